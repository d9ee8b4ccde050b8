//! The keeper: one small process above each engine, in its own session. It takes on whatever the engine leaves behind, so that
//! nothing of it is anybody else's child; writes its log; says how it ended; and ends only when nothing of it is left. With the
//! host as its parent it ends the engine when the host ends, however that happens. It decides nothing.
//!
//! ```text
//! fettle-engine-keeper keep <folder>              what a host or a unit starts
//! fettle-engine-keeper become <keeper> <argv…>    what the keeper starts: it becomes the engine
//! ```

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use rolling_file::{RollingConditionBasic, RollingFileAppender};
use rustix::process::{Pid, Signal, WaitOptions};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};

use crate::exit::Status;
use crate::record::{Folder, Kept, Spec};
use crate::table::Table;

/// As a shell has it.
const CANNOT_EXECUTE: u8 = 126;
const NOT_FOUND: u8 = 127;
/// Between two looks at what is left; longer for what a driver holds on to.
const LOOK: Duration = Duration::from_millis(10);
const LOOK_LONGEST: Duration = Duration::from_millis(500);
/// For the last words, once nobody is left to say more.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// `arguments` without the program's name.
pub fn main(arguments: &[String]) -> ExitCode {
    let done = match arguments {
        [verb, folder] if verb == "keep" => keep(&Folder::at(folder)),
        [verb, keeper, argv @ ..] if verb == "become" && !argv.is_empty() => return become_engine(keeper, argv),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is started by fettle, with `keep` and a folder")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tell(&format!("fettle-engine-keeper: {e}"));
            ExitCode::FAILURE
        }
    }
}

/// To the engine's log, or the journal. Nobody is there to hear that it failed.
fn tell(text: &str) {
    let _nobody_hears = writeln!(io::stderr(), "{text}");
}

/// A step of its own, because what a new process must do between its birth and its program can be said without unsafe code only
/// in a program.
fn become_engine(keeper: &str, argv: &[String]) -> ExitCode {
    // The keeper spawns from its only thread, whose end is the keeper's.
    let bound = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().to_string());
    if bound.is_err() || parent.as_deref() != Some(keeper) {
        return ExitCode::from(CANNOT_EXECUTE);
    }
    let error = std::process::Command::new(&argv[0]).args(&argv[1..]).exec();
    let program = argv[0].rsplit('/').next().unwrap_or_default();
    tell(&format!("{program} cannot be started: {error}"));
    ExitCode::from(if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { CANNOT_EXECUTE })
}

fn keep(folder: &Folder) -> io::Result<()> {
    let spec = folder.spec()?.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "there is nothing to keep"))?;
    // systemd has given it a session already.
    let _has_one = rustix::process::setsid();
    let own = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(own))?;
    if let Some(group) = &spec.cgroup {
        fs_err::write(group.join("cgroup.procs"), "0")?;
    }
    // Whoever takes up after us must find us before there is an engine to be found.
    let keeper = Table::read()?.identity(std::process::id()).ok_or(io::ErrorKind::NotFound)?;
    folder.write_kept(&Kept { keeper, engine: None })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut kept = match Keeper::start(folder, &spec) {
            Ok(kept) => kept,
            Err(e) => {
                folder.write_status(Status::NotStarted)?;
                return Err(e);
            }
        };
        kept.watch(&spec).await?;
        kept.end_what_is_left().await
    })
}

struct Keeper<'f> {
    folder: &'f Folder,
    engine: Child,
    group: Pid,
    said: pipe::Receiver,
    log: RollingFileAppender<RollingConditionBasic>,
    at_line_start: bool,
}

impl<'f> Keeper<'f> {
    fn start(folder: &'f Folder, spec: &Spec) -> io::Result<Self> {
        let condition = RollingConditionBasic::new().max_size(spec.log_bytes);
        let log = RollingFileAppender::new(&spec.log, condition, 1)?;
        // One pipe for both, so that lines stay in the order in which they were said.
        let (said, saying) = io::pipe()?;
        let engine = tokio::process::Command::new("/proc/self/exe")
            .arg("become")
            .arg(std::process::id().to_string())
            .args(&spec.argv)
            .env_clear()
            .envs(&spec.env)
            .stdin(Stdio::null())
            .stdout(saying.try_clone()?)
            .stderr(saying)
            .process_group(0)
            .spawn()?;
        let pid = engine.id().ok_or(io::ErrorKind::NotFound)?;
        let keeper = Table::read()?;
        let own = keeper.identity(std::process::id()).ok_or(io::ErrorKind::NotFound)?;
        folder.write_kept(&Kept { keeper: own, engine: keeper.identity(pid) })?;
        let group = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { folder, engine, group, said: pipe::Receiver::from_owned_fd(said.into())?, log, at_line_start: true })
    }

    /// Until the engine's first process has ended, or the host has.
    async fn watch(&mut self, spec: &Spec) -> io::Result<()> {
        let mut host = if spec.bound {
            Some(pipe::Receiver::from_owned_fd(io::stdin().as_fd().try_clone_to_owned()?)?)
        } else {
            None
        };
        let (mut asked, mut child) = (signal(SignalKind::terminate())?, signal(SignalKind::child())?);
        let mut piece = vec![0; 16 << 10];
        loop {
            tokio::select! {
                ended = self.engine.wait() => return self.write_end(ended?),
                read = self.said.read(&mut piece) => match read? {
                    // It has closed its output, which says nothing.
                    0 => return self.watch_in_silence(&mut host, &mut asked).await,
                    length => self.log(&piece[..length]),
                },
                () = gone(&mut host) => return Ok(()),
                _ = asked.recv() => self.terminate(),
                _ = child.recv() => reap(self.engine.id()),
            }
        }
    }

    async fn watch_in_silence(
        &mut self,
        host: &mut Option<pipe::Receiver>,
        asked: &mut tokio::signal::unix::Signal,
    ) -> io::Result<()> {
        loop {
            tokio::select! {
                ended = self.engine.wait() => return self.write_end(ended?),
                () = gone(host) => return Ok(()),
                _ = asked.recv() => self.terminate(),
            }
        }
    }

    /// The status last: whoever reads it finds the last words in the log.
    fn write_end(&mut self, ended: ExitStatus) -> io::Result<()> {
        let mut piece = vec![0; 16 << 10];
        while let Ok(length @ 1..) = self.said.try_read(&mut piece) {
            self.log(&piece[..length]);
        }
        if !self.at_line_start {
            self.log(b"\n");
        }
        self.folder.write_status(status(ended))
    }

    fn terminate(&self) {
        // It may have ended meanwhile.
        let _nobody = rustix::process::kill_process_group(self.group, Signal::TERM);
    }

    /// A full disk costs the log and not the engine.
    fn log(&mut self, piece: &[u8]) {
        self.at_line_start = piece.last().is_none_or(|byte| *byte == b'\n');
        let _lost = self.log.write_all(piece).and_then(|()| self.log.flush());
    }

    async fn end_what_is_left(&mut self) -> io::Result<()> {
        let mut wait = LOOK;
        loop {
            let left = Table::read()?.below(std::process::id());
            if left.is_empty() {
                break;
            }
            for pid in left {
                kill(pid);
            }
            reap(None);
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LOOK_LONGEST);
        }
        let mut rest = Vec::new();
        let _too_long = tokio::time::timeout(LAST_WORDS, self.said.read_to_end(&mut rest)).await;
        self.log(&rest);
        Ok(())
    }
}

/// When the host has ended; never where there is none to end with.
async fn gone(host: &mut Option<pipe::Receiver>) {
    match host {
        None => std::future::pending().await,
        Some(pipe) => {
            let mut nothing = [0; 1];
            while matches!(pipe.read(&mut nothing).await, Ok(1..)) {}
        }
    }
}

fn status(status: ExitStatus) -> Status {
    match (status.code(), status.signal()) {
        (Some(code), _) if code == i32::from(CANNOT_EXECUTE) || code == i32::from(NOT_FOUND) => Status::NotStarted,
        (Some(code), _) => Status::Code(code),
        (None, signal) => Status::Signal(signal.unwrap_or(0)),
    }
}

pub(crate) fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may have ended meanwhile.
        let _nobody = rustix::process::kill_process(pid, Signal::KILL);
    }
}

/// Children that have ended, but for the one that is waited for.
fn reap(except: Option<u32>) {
    let own = std::process::id();
    let text = fs_err::read_to_string(format!("/proc/self/task/{own}/children")).unwrap_or_default();
    let children = text.split_ascii_whitespace().filter_map(|word| word.parse::<u32>().ok());
    for child in children.filter(|child| Some(*child) != except) {
        if let Some(pid) = i32::try_from(child).ok().and_then(Pid::from_raw) {
            let _not_yet = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }
}
