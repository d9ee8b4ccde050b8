//! The outermost process of the sandbox: talks to the trusted side and outlives everything that it starts.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use fettle_app::ports::sandbox::SandboxLevel;

use super::{Step, command, forks, full};
use crate::proctree;
use crate::spec::{Refusal, Report, Spec};
use crate::sys::{self, Fork, Reaped, Wait};

/// How often orphans are collected while the command runs; until then they stand as zombies and count as processes.
const REAP_EVERY: Duration = Duration::from_millis(200);

/// The killed need the processor to end.
const DYING_TAKES: Duration = Duration::from_millis(5);

pub(super) fn run() -> io::Result<()> {
    sys::close_inherited()?;
    let control = UnixStream::from(sys::duplicate(io::stdin().as_fd())?);
    sys::put_at(File::open("/dev/null")?.as_fd(), 0)?;
    let Some(spec) = read_spec(&control)? else { return Ok(()) };
    let report = match carry_out(&spec, &control) {
        Ok(report) => report,
        Err(refusal) => Report::Refused(refusal),
    };
    send(&control, &report)
}

/// `None` when the trusted side has gone before it said anything.
fn read_spec(control: &UnixStream) -> io::Result<Option<Spec>> {
    let mut line = Vec::new();
    BufReader::new(control).read_until(b'\n', &mut line)?;
    if line.is_empty() { Ok(None) } else { Ok(Some(serde_json::from_slice(&line)?)) }
}

fn send(mut control: &UnixStream, report: &Report) -> io::Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    control.write_all(&line)
}

fn carry_out(spec: &Spec, control: &UnixStream) -> Result<Report, Refusal> {
    sys::narrow_processors(spec.cpus, std::process::id()).walls("choose processors")?;
    // As the clerk does: whoever kills a fork bomb must not wait for it. Refused to ordinary users, who have an rlimit.
    let _ = sys::go_first();
    sys::become_subreaper().walls("become subreaper")?;
    // Before the namespaces: the first child in a new process namespace is its init.
    let clerk = start_clerk(spec, control).walls("start the clerk who limits processes")?;
    if spec.level == SandboxLevel::Full
        && let Some(listener) = full::unshare(spec)?
    {
        let mut line = serde_json::to_vec(&Report::Listening).map_err(io::Error::from).walls("report the listener")?;
        line.push(b'\n');
        sys::send_with(control.as_fd(), &line, listener.as_fd()).walls("hand over the proxy's listener")?;
    }

    let (said, says) = io::pipe().walls("make a pipe")?;
    match sys::fork().walls("fork")? {
        Fork::Child => {
            drop(said);
            // The lifeline must end with the outer process alone.
            command::close(control);
            let says = File::from(OwnedFd::from(says));
            match spec.level {
                SandboxLevel::Full => full::init(spec, says),
                SandboxLevel::Landlock => command::become_it(spec, says),
            }
        }
        Fork::Parent(child) => {
            drop(says);
            let end = watch(child, clerk, control).walls("wait for the command")?;
            // At `full` only the clerk can be left.
            end_descendants().walls("end the command's processes")?;
            Ok(match end {
                Watched::TooMany => Report::TooMany,
                Watched::Ended(status) => conclude(spec.level, status, said),
            })
        }
    }
}

fn start_clerk(spec: &Spec, control: &UnixStream) -> io::Result<i32> {
    let me = own_number()?;
    match sys::fork()? {
        Fork::Child => {
            command::close(control);
            forks::clerk(me, u64::from(spec.processes) + u64::from(forks::SLACK) + own_processes(spec.level))
        }
        Fork::Parent(clerk) => Ok(clerk),
    }
}

fn own_number() -> io::Result<i32> {
    i32::try_from(std::process::id()).map_err(io::Error::other)
}

/// How many of the processes below this one are not the command's: the clerk and the init.
fn own_processes(level: SandboxLevel) -> u64 {
    match level {
        SandboxLevel::Full => 2,
        SandboxLevel::Landlock => 1,
    }
}

enum Watched {
    Ended(i32),
    TooMany,
}

/// Waits for `child`; kills it when the trusted side says anything or is gone.
fn watch(child: i32, clerk: i32, control: &UnixStream) -> io::Result<Watched> {
    let ended = [sys::pidfd_open(child)?, sys::pidfd_open(clerk)?];
    loop {
        let ready = sys::wait_readable(&[control.as_fd(), ended[0].as_fd(), ended[1].as_fd()], REAP_EVERY)?;
        if ready[0].readable || ready[0].closed {
            // At `full` the child is the init of its namespace, and waiting for it means waiting for everything in it.
            sys::kill(child, libc::SIGKILL)?;
            return wait_for(child).map(Watched::Ended);
        }
        while let Reaped::Child { pid, status } = sys::reap(-1, Wait::Poll)? {
            if pid == child {
                return Ok(Watched::Ended(status));
            }
            if pid == clerk {
                sys::kill(child, libc::SIGKILL)?;
                wait_for(child)?;
                return Ok(Watched::TooMany);
            }
        }
    }
}

fn wait_for(child: i32) -> io::Result<i32> {
    loop {
        match sys::reap(child, Wait::Block)? {
            Reaped::Child { pid, status } if pid == child => return Ok(status),
            Reaped::NoChildren => return Err(io::Error::other("the child was collected by somebody else")),
            Reaped::Child { .. } | Reaped::NoneYet => {}
        }
    }
}

/// Kills until nothing is left. All are stopped first, so that a process which forks without end cannot outrun the list.
fn end_descendants() -> io::Result<()> {
    let me = own_number()?;
    loop {
        let left = proctree::below(me)?;
        for signal in [libc::SIGSTOP, libc::SIGKILL] {
            for process in &left {
                // It may have ended by itself.
                let _ = sys::kill(process.pid, signal);
            }
        }
        loop {
            match sys::reap(-1, Wait::Poll)? {
                Reaped::Child { .. } => {}
                Reaped::NoChildren => return Ok(()),
                Reaped::NoneYet => break,
            }
        }
        std::thread::sleep(DYING_TAKES);
    }
}

/// What became of the command: its own status comes through the pipe at `full`; a refusal at either level.
fn conclude(level: SandboxLevel, status: i32, mut said: impl Read) -> Report {
    let mut line = String::new();
    if said.read_to_string(&mut line).is_ok()
        && let Ok(report) = serde_json::from_str(&line)
    {
        return report;
    }
    match level {
        SandboxLevel::Full => Report::Lost { status },
        SandboxLevel::Landlock => Report::Ended { status },
    }
}
