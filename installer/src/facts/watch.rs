//! The edge: files below a root, and the few things that no file tells. Whatever is read, run or waited for has a limit.

use std::io::Read as _;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use fettle_app::ports::clock::Clock as _;
use fettle_runtime::system::SystemClock;
use jiff::Timestamp;
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, Ruleset, RulesetAttr as _,
    RulesetError, Scope,
};
use rustix::fs::StatVfsMountFlags;

use super::{Attempt, Disk, Kind, NEEDS_ROOT, Seen, Stat, Unknown};

/// Of a file; the longest ones that matter are lists of sockets.
const READ_LIMIT: u64 = 4 << 20;
/// Names in a folder: `/proc` of a busy host holds tens of thousands.
const LIST_LIMIT: usize = 65_536;
/// Of what a program says.
const SAID_LIMIT: u64 = 256 << 10;
/// A program or a connection. Four programs one after the other stay well under the five seconds that all may take.
const PATIENCE: Duration = Duration::from_millis(800);
const LOOK_AGAIN: Duration = Duration::from_millis(4);
/// Where programs are, on every distribution that is supported.
pub(super) const PROGRAMS: [&str; 7] =
    ["/run/current-system/sw/bin", "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// An ordinary user, whatever the host calls it.
const NOBODY: u32 = 65_534;

/// The files of a host. Tests hand a folder in that stands for `/`.
#[derive(Debug, Clone)]
pub struct Files {
    root: Utf8PathBuf,
}

impl Files {
    pub fn below(root: impl Into<Utf8PathBuf>) -> Self {
        Self { root: root.into() }
    }

    pub(super) fn at(&self, path: &str) -> Utf8PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// None when there is no such file. What is no UTF-8 is replaced.
    pub(super) fn read(&self, path: &str) -> Result<Option<String>, Unknown> {
        let Some(file) = seen(path, fs_err::File::open(self.at(path)))? else { return Ok(None) };
        let mut bytes = Vec::new();
        match file.take(READ_LIMIT + 1).read_to_end(&mut bytes) {
            Ok(count) if count as u64 > READ_LIMIT => Err(Unknown { why: format!("{path} is larger than 4 MiB") }),
            Ok(_) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            Err(error) => seen::<()>(path, Err(error)).map(|_| None),
        }
    }

    /// Names, sorted; none when there is no such folder.
    pub(super) fn list(&self, folder: &str) -> Result<Option<Vec<String>>, Unknown> {
        let Some(entries) = seen(folder, fs_err::read_dir(self.at(folder)))? else { return Ok(None) };
        let names = entries.take(LIST_LIMIT).filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<String> = names.collect();
        names.sort();
        Ok(Some(names))
    }

    pub(super) fn stat(&self, path: &str) -> Result<Option<Stat>, Unknown> {
        let Some(found) = seen(path, fs_err::symlink_metadata(self.at(path)))? else { return Ok(None) };
        let kind = match found.file_type() {
            kind if kind.is_file() => Kind::File,
            kind if kind.is_dir() => Kind::Dir,
            kind if kind.is_symlink() => Kind::Link,
            _ => Kind::Other,
        };
        Ok(Some(Stat {
            kind,
            mode: found.mode() & 0o7777,
            uid: found.uid(),
            gid: found.gid(),
            bytes: found.size(),
            inode: found.ino(),
        }))
    }

    /// Links are followed.
    pub(super) fn has(&self, path: &str) -> Result<bool, Unknown> {
        seen(path, fs_err::metadata(self.at(path))).map(|found| found.is_some())
    }

    pub(super) fn target(&self, link: &str) -> Option<String> {
        fs_err::read_link(self.at(link)).ok()?.into_os_string().into_string().ok()
    }

    /// The file system on which `path` is, or will be.
    pub(super) fn disk(&self, path: &Utf8Path) -> Result<Disk, Unknown> {
        let mut found = None;
        for folder in path.ancestors() {
            if self.has(folder.as_str())? {
                found = Some(self.at(folder.as_str()));
                break;
            }
        }
        let found =
            found.ok_or_else(|| Unknown { why: format!("{path}: there is no such folder, nor one above it") })?;
        let failed = |what: &dyn std::fmt::Display| Unknown { why: format!("{path}: {what}") };
        let space = rustix::fs::statvfs(found.as_std_path()).map_err(|error| failed(&error))?;
        let device = fs_err::metadata(&found).map_err(|error| failed(&error))?.dev();
        Ok(Disk {
            free_bytes: space.f_bavail.saturating_mul(space.f_frsize),
            total_bytes: space.f_blocks.saturating_mul(space.f_frsize),
            free_inodes: space.f_favail,
            total_inodes: space.f_files,
            device,
            read_only: space.f_flag.contains(StatVfsMountFlags::RDONLY),
            no_exec: space.f_flag.contains(StatVfsMountFlags::NOEXEC),
        })
    }
}

/// Absence is knowledge; a closed door is not.
fn seen<T>(path: &str, result: std::io::Result<T>) -> Result<Option<T>, Unknown> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) => match error.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => Ok(None),
            std::io::ErrorKind::PermissionDenied => Err(Unknown { why: format!("{NEEDS_ROOT} to look at {path}") }),
            _ => Err(Unknown { why: error.to_string() }),
        },
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uname {
    pub release: String,
    pub machine: String,
}

/// What no file tells.
pub trait Ask {
    fn now(&self) -> Timestamp;
    fn uid(&self) -> u32;
    fn uname(&self) -> Uname;
    /// What a program that changes nothing prints. The error says why there is nothing.
    fn run(&self, program: &str, arguments: &[&str]) -> Result<String, String>;
    /// Makes the namespaces of the sandbox as an ordinary user, and leaves them.
    fn namespaces(&self) -> Seen<Attempt>;
    fn landlock_abi(&self) -> Seen<u32>;
    /// Connects to each `host:port`, all at a time, in their order.
    fn connect(&self, addresses: &[String]) -> Vec<Attempt>;
}

/// This host.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealAsk;

impl Ask for RealAsk {
    fn now(&self) -> Timestamp {
        SystemClock.now()
    }

    fn uid(&self) -> u32 {
        rustix::process::geteuid().as_raw()
    }

    fn uname(&self) -> Uname {
        let uname = rustix::system::uname();
        let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
        Uname { release: text(uname.release()), machine: text(uname.machine()) }
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<String, String> {
        let said = run(&mut Command::new(find(program)?), program, arguments)?;
        if said.ok { Ok(said.out) } else { Err(format!("{program} failed: {}", said.err)) }
    }

    fn namespaces(&self) -> Seen<Attempt> {
        // What `fettle-sandbox` does, by the system's own tool: namespaces, a root of their own user, and a fresh /proc.
        const NAMESPACES: [&str; 9] =
            ["--user", "--map-root-user", "--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--mount-proc"];
        let (program, nothing) = match (find("unshare"), find("true")) {
            (Ok(program), Ok(nothing)) => (program, nothing),
            (Err(why), _) | (_, Err(why)) => return Seen::unknown(why),
        };
        let mut command = Command::new(program);
        if self.uid() == 0 {
            // Root may always; the worker is not root.
            command.uid(NOBODY).gid(NOBODY);
        }
        let arguments: Vec<&str> = NAMESPACES.into_iter().chain([nothing.as_str()]).collect();
        match run(&mut command, "unshare", &arguments) {
            Ok(said) if said.ok => Seen::Known(Attempt { ok: true, said: String::new() }),
            Ok(said) => Seen::Known(Attempt { ok: false, said: said.err }),
            Err(why) => Seen::unknown(why),
        }
    }

    fn landlock_abi(&self) -> Seen<u32> {
        let known = LANDLOCK.into_iter().rev().find(|(_, abi)| offers(*abi));
        Seen::Known(known.map_or(0, |(number, _)| number))
    }

    fn connect(&self, addresses: &[String]) -> Vec<Attempt> {
        // Name servers that do not answer hold their caller far longer than we wait, so each thread is left to its fate.
        let tries: Vec<_> = addresses.iter().map(|address| start(address.clone())).collect();
        let patience = PATIENCE * 3 / 2;
        let answer = |answer: mpsc::Receiver<std::io::Result<()>>| match answer.recv_timeout(patience) {
            Ok(Ok(())) => Attempt { ok: true, said: String::new() },
            Ok(Err(error)) => Attempt { ok: false, said: error.to_string() },
            Err(_) => Attempt { ok: false, said: format!("no answer within {} ms", patience.as_millis()) },
        };
        tries.into_iter().map(answer).collect()
    }
}

/// Newer ones bring nothing that the sandbox asks for.
const LANDLOCK: [(u32, ABI); 6] = [(1, ABI::V1), (2, ABI::V2), (3, ABI::V3), (4, ABI::V4), (5, ABI::V5), (6, ABI::V6)];

/// Whether the kernel takes a set of rules that has what is new in `abi`. The set is dropped; nothing is restricted.
fn offers(abi: ABI) -> bool {
    let ruleset = || -> Result<(), RulesetError> {
        let mut ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
        ruleset = ruleset.handle_access(AccessFs::from_all(abi))?;
        let net: BitFlags<AccessNet> = AccessNet::from_all(abi);
        if !net.is_empty() {
            ruleset = ruleset.handle_access(net)?;
        }
        let scope: BitFlags<Scope> = Scope::from_all(abi);
        if !scope.is_empty() {
            ruleset = ruleset.scope(scope)?;
        }
        ruleset.create().map(drop)
    };
    ruleset().is_ok()
}

fn start(address: String) -> mpsc::Receiver<std::io::Result<()>> {
    let (tell, answer) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let connect = || {
            let mut last = std::io::Error::other(format!("{address} has no address"));
            for one in address.to_socket_addrs()?.take(2) {
                match TcpStream::connect_timeout(&one, PATIENCE) {
                    Ok(_) => return Ok(()),
                    Err(error) => last = error,
                }
            }
            Err(last)
        };
        // Nobody may be listening any more.
        let _ = tell.send(connect());
    });
    answer
}

fn find(program: &str) -> Result<Utf8PathBuf, String> {
    let mut places = PROGRAMS.iter().map(|folder| Utf8Path::new(folder).join(program));
    places.find(|path| path.is_file()).ok_or_else(|| format!("the program {program} is not there"))
}

struct Said {
    ok: bool,
    out: String,
    /// The first line.
    err: String,
}

fn run(command: &mut Command, name: &str, arguments: &[&str]) -> Result<Said, String> {
    let failed = |error: &dyn std::fmt::Display| format!("could not run {name}: {error}");
    command.args(arguments).env_clear().env("PATH", PROGRAMS.join(":")).env("LC_ALL", "C.UTF-8").current_dir("/");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(&error))?;
    let out = child.stdout.take().map(collect);
    let err = child.stderr.take().map(collect);
    let mut waited = Duration::ZERO;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(|error| failed(&error))? {
            break status;
        }
        if waited >= PATIENCE {
            // It may be gone already; then there is nothing to kill.
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("{name} gave no answer within {} ms", PATIENCE.as_millis()));
        }
        std::thread::sleep(LOOK_AGAIN);
        waited += LOOK_AGAIN;
    };
    let text = |collected: Option<mpsc::Receiver<String>>| {
        collected.and_then(|text| text.recv_timeout(PATIENCE).ok()).unwrap_or_default()
    };
    let err = text(err).lines().next().unwrap_or_default().trim().to_owned();
    Ok(Said { ok: status.success(), out: text(out), err })
}

/// Reads beside, so that a full pipe stops nobody.
fn collect(stream: impl std::io::Read + Send + 'static) -> mpsc::Receiver<String> {
    let (tell, answer) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is what there is.
        let _ = stream.take(SAID_LIMIT).read_to_end(&mut bytes);
        let _ = tell.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    answer
}
