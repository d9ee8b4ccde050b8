//! `fettle-inference guard`: one thread, a look every 100 ms. After it has begun nothing is allocated: all buffers are here before,
//! and all memory is locked.

use std::ffi::CString;
use std::io::{Cursor, Write as _};
use std::time::Duration;

use anyhow::{Context as _, Result};
use camino::Utf8PathBuf;
use fettle_gpu::guard::{Act, Guard, Look, Process, Rung, Rungs, Victim, Victims, available};
use fettle_placement::quantity::Bytes;
use rustix::fd::OwnedFd;
use rustix::fs::{Advice, Mode, OFlags, fadvise, open};
use rustix::io::{Errno, pread, pwrite, read};
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{Pid, Signal, getpgid, kill_process, kill_process_group, setpriority_process};

use super::{Heartbeat, now_micros};

/// Between two looks.
const EVERY: Duration = Duration::from_millis(100);
/// `/proc/meminfo` has some 1.5 KiB, its available line among the first three.
const MEMINFO_BYTES: usize = 4 * 1024;
/// 64 engines with 32 processes each.
const VICTIM_BYTES: usize = 64 * 1024;
/// A record of the kernel's log.
const KMSG_BYTES: usize = 8 * 1024;
/// How the driver says that the machine's memory is used up.
const NO_MEMORY: &[u8] = b"NV_ERR_NO_MEMORY";
/// For so long its word counts.
const NO_MEMORY_MICROS: u64 = 1_000_000;
/// The kernel ends others first.
const SPARED: &[u8] = b"-1000";
/// Nobody runs before it.
const NICE: i32 = -20;
/// Looks between two questions whether the owner is still there.
const OWNER_EVERY: u32 = 10;

/// Ends engines before a machine whose GPU shares its memory runs out of it.
#[derive(Debug, clap::Args)]
pub struct Flags {
    /// Who may be ended; the supervisor writes it.
    #[arg(long)]
    victims: Utf8PathBuf,
    /// What is seen; the supervisor reads it.
    #[arg(long)]
    state: Utf8PathBuf,
    /// Ends when this process is gone and no engine is left; default: never.
    #[arg(long, value_name = "PID")]
    owner: Option<i32>,
    #[arg(long, hide = true, default_value = "/proc/meminfo")]
    meminfo: Utf8PathBuf,
    #[arg(long, hide = true, default_value = "/dev/kmsg")]
    kmsg: Utf8PathBuf,
}

/// Until it is killed, or the owner has gone and with it all engines.
pub fn watch(flags: &Flags) -> Result<()> {
    let mut post = Post::open(flags)?;
    prefer_us();
    let mut guard = Guard::new(Rungs::default());
    let (mut victims, mut rung, mut looks) = (Victims::NONE, Rung::Calm, 0u32);
    loop {
        victims.read(post.victims.read());
        if let Some(available) = post.available() {
            let at = now_micros();
            let look = Look { at, available, no_memory: post.heard_no_memory(at) };
            let (now, act) = guard.look(look, &victims);
            if now != rung {
                say(format_args!("guard: {} ({} MiB available)", now.name(), available.get() >> 20));
                rung = now;
            }
            carry_out(act, &mut post);
            post.tell(Heartbeat { rung, available, at_micros: at });
        }
        looks = looks.wrapping_add(1);
        if looks.is_multiple_of(OWNER_EVERY) && post.is_alone(&victims) {
            return Ok(());
        }
        std::thread::sleep(EVERY);
    }
}

/// All that is open and all buffers.
struct Post {
    victims: Text,
    meminfo: Text,
    stat: Box<[u8]>,
    state: OwnedFd,
    /// `None`: not permitted here.
    kmsg: Option<OwnedFd>,
    kmsg_buffer: Box<[u8]>,
    no_memory_at: Option<u64>,
    owner: Option<i32>,
}

/// A file that is read anew each time.
struct Text {
    path: CString,
    buffer: Box<[u8]>,
    length: usize,
}

impl Text {
    fn new(path: &Utf8PathBuf, bytes: usize) -> Result<Self> {
        let path_of = CString::new(path.as_str()).with_context(|| format!("{path} is no path"))?;
        Ok(Self { path: path_of, buffer: vec![0; bytes].into_boxed_slice(), length: 0 })
    }

    /// What the file says now; nothing when it is not there.
    fn read(&mut self) -> &str {
        self.length = match open(self.path.as_c_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(file) => fill(&file, &mut self.buffer),
            Err(_) => 0,
        };
        std::str::from_utf8(&self.buffer[..self.length]).unwrap_or_default()
    }
}

fn fill(file: &OwnedFd, buffer: &mut [u8]) -> usize {
    let mut length = 0;
    while length < buffer.len() {
        match pread(file, &mut buffer[length..], length as u64) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(Errno::INTR) => {}
            Err(_) => break,
        }
    }
    length
}

impl Post {
    fn open(flags: &Flags) -> Result<Self> {
        let made = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
        let state = open(flags.state.as_str(), made, Mode::RUSR | Mode::WUSR)
            .with_context(|| format!("could not open {}", flags.state))?;
        let log = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let kmsg = match open(flags.kmsg.as_str(), log, Mode::empty()) {
            Ok(log) => {
                // What was said before is old. A plain file, as tests have it, is read from its end as well.
                let _ = rustix::fs::seek(&log, rustix::fs::SeekFrom::End(0));
                Some(log)
            }
            Err(error) => {
                say(format_args!("guard: the kernel's log cannot be read ({error}); memory alone counts"));
                None
            }
        };
        Ok(Self {
            victims: Text::new(&flags.victims, VICTIM_BYTES)?,
            meminfo: Text::new(&flags.meminfo, MEMINFO_BYTES)?,
            stat: vec![0; MEMINFO_BYTES].into_boxed_slice(),
            state,
            kmsg,
            kmsg_buffer: vec![0; KMSG_BYTES].into_boxed_slice(),
            no_memory_at: None,
            owner: flags.owner,
        })
    }

    fn available(&mut self) -> Option<Bytes> {
        available(self.meminfo.read())
    }

    fn heard_no_memory(&mut self, now: u64) -> bool {
        if let Some(log) = &self.kmsg {
            loop {
                match read(log, &mut self.kmsg_buffer[..]) {
                    Ok(0) => break,
                    Ok(length) => {
                        let record = &self.kmsg_buffer[..length];
                        if record.windows(NO_MEMORY.len()).any(|window| window == NO_MEMORY) {
                            self.no_memory_at = Some(now);
                        }
                    }
                    // Records were overwritten before they were read; the next ones are there.
                    Err(Errno::PIPE | Errno::INTR) => {}
                    Err(_) => break,
                }
            }
        }
        self.no_memory_at.is_some_and(|at| now.saturating_sub(at) <= NO_MEMORY_MICROS)
    }

    /// In place: whoever reads it meanwhile reads the one or the other line, or none that makes sense.
    fn tell(&self, heartbeat: Heartbeat) {
        let mut line = [0u8; 64];
        let mut cursor = Cursor::new(&mut line[..]);
        if writeln!(cursor, "{heartbeat}").is_ok() {
            let length = usize::try_from(cursor.position()).unwrap_or(0);
            // A state that cannot be written gets old, which closes the pool.
            let _ = pwrite(&self.state, &line[..length], 0);
        }
    }

    /// The owner has gone, and every engine.
    fn is_alone(&mut self, victims: &Victims) -> bool {
        let Some(owner) = self.owner else { return false };
        let there = |pid: i32| Pid::from_raw(pid).is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok());
        !there(owner) && victims.all().iter().flat_map(Victim::processes).all(|one| !self.is_there(*one))
    }

    fn is_there(&mut self, process: Process) -> bool {
        let mut path = [0u8; 32];
        let mut cursor = Cursor::new(&mut path[..]);
        if write!(cursor, "/proc/{}/stat", process.pid).is_err() {
            return false;
        }
        let length = usize::try_from(cursor.position()).unwrap_or(0);
        let Ok(path) = std::str::from_utf8(&path[..length]) else { return false };
        let Ok(file) = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) else { return false };
        let length = fill(&file, &mut self.stat);
        let text = std::str::from_utf8(&self.stat[..length]).unwrap_or_default();
        started(text) == Some(process.started)
    }
}

/// Field 22 of `/proc/<pid>/stat`; the name before it may hold anything.
pub(super) fn started(stat: &str) -> Option<u64> {
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

fn carry_out(act: Act, post: &mut Post) {
    match act {
        Act::Nothing => {}
        Act::Freeze => give_up_pages(post),
        Act::Term(victim) => end(&victim, Signal::TERM, post),
        Act::Kill(victim) => end(&victim, Signal::KILL, post),
    }
}

/// Each process that is still the one that was meant, with the group that it leads.
fn end(victim: &Victim, signal: Signal, post: &mut Post) {
    say(format_args!("guard: {signal:?} to engine {} with {} processes", victim.nth, victim.processes().len()));
    for process in victim.processes() {
        if !post.is_there(*process) {
            continue;
        }
        let Some(pid) = Pid::from_raw(process.pid) else { continue };
        if getpgid(Some(pid)) == Ok(pid) {
            let _gone = kill_process_group(pid, signal);
        }
        let _gone = kill_process(pid, signal);
    }
}

/// Pages of model files that an engine has read are of no more use once it has loaded, and are given back sooner.
fn give_up_pages(post: &mut Post) {
    let files = std::str::from_utf8(&post.victims.buffer[..post.victims.length]).unwrap_or_default();
    for path in files.lines().filter_map(|line| line.strip_prefix("file ")) {
        if let Ok(file) = open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty()) {
            let _ = fadvise(&file, 0, None, Advice::DontNeed);
        }
    }
}

/// Each of these helps and none is needed: whoever may not do it is told so once.
fn prefer_us() {
    if let Err(error) = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE) {
        say(format_args!("guard: its memory is not locked ({error})"));
    }
    if let Err(error) = setpriority_process(None, NICE) {
        say(format_args!("guard: others may run before it ({error})"));
    }
    let file = open("/proc/self/oom_score_adj", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
    if let Err(error) = file.and_then(|file| rustix::io::write(&file, SPARED)) {
        say(format_args!("guard: the kernel may end it ({error})"));
    }
}

/// Without a lock and without a buffer that grows.
fn say(what: std::fmt::Arguments<'_>) {
    let mut line = [0u8; 256];
    let mut cursor = Cursor::new(&mut line[..]);
    let _cut = writeln!(cursor, "{what}");
    let length = usize::try_from(cursor.position()).unwrap_or(0);
    let _ = rustix::io::write(rustix::stdio::stderr(), &line[..length]);
}
