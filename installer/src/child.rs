//! One run of a program: as whom, from what, into what, for how long, and how much of its words are kept.

use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use camino::Utf8Path;

/// Where programs of the system are, whatever the caller's environment says.
const PATH: &str = "/run/current-system/sw/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Room for copies of a ledger; `/tmp` may be memory.
const TEMPORARY: &str = "/var/tmp";
/// Between two looks at a program that runs.
const LOOK: Duration = Duration::from_millis(10);

/// Numbers of a user and its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

pub(crate) struct Child<'a> {
    pub(crate) program: &'a Utf8Path,
    pub(crate) arguments: &'a [&'a str],
    /// Somebody else than the caller, who is root then. Supplementary groups are dropped.
    pub(crate) user: Option<User>,
    pub(crate) stdin: Option<std::fs::File>,
    /// Where its output goes; without, it is kept.
    pub(crate) stdout: Option<std::fs::File>,
    pub(crate) limit: Duration,
    /// What it says beyond this is dropped.
    pub(crate) kept_bytes: u64,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ran {
    pub(crate) ok: bool,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Child<'_> {
    /// Errors with a sentence when it cannot be started, or had to be ended.
    pub(crate) fn run(self) -> Result<Ran, String> {
        let name = self.program;
        let failed = |error: std::io::Error| format!("could not run {name}: {error}");
        let mut command = Command::new(name);
        command.args(self.arguments).env_clear().env("PATH", PATH).env("LC_ALL", "C.UTF-8").env("TMPDIR", TEMPORARY);
        command.current_dir("/").stderr(Stdio::piped());
        command.stdin(self.stdin.map_or_else(Stdio::null, Stdio::from));
        command.stdout(self.stdout.map_or_else(Stdio::piped, Stdio::from));
        if let Some(User { uid, gid }) = self.user {
            command.gid(gid).uid(uid);
        }
        #[expect(clippy::disallowed_types, reason = "the limit of a program is measured, and no test waits for it")]
        let begun = std::time::Instant::now();
        let mut child = command.spawn().map_err(failed)?;
        let streams: [Option<Box<dyn std::io::Read + Send>>; 2] = [
            child.stdout.take().map(|stream| Box::new(stream) as Box<_>),
            child.stderr.take().map(|stream| Box::new(stream) as Box<_>),
        ];
        let kept = self.kept_bytes;
        let [out, err] = streams
            .map(|stream| std::thread::spawn(move || stream.map(|stream| said(stream, kept)).unwrap_or_default()));
        let status = loop {
            if let Some(status) = child.try_wait().map_err(failed)? {
                break status;
            }
            if begun.elapsed() > self.limit {
                child.kill().map_err(failed)?;
                child.wait().map_err(failed)?;
                return Err(format!("{name} was still running after {} s and was ended", self.limit.as_secs()));
            }
            std::thread::sleep(LOOK);
        };
        let [out, err] = [out, err].map(|reader| reader.join().unwrap_or_default());
        Ok(Ran { ok: status.success(), out, err: err.trim().to_owned() })
    }
}

/// The beginning of a stream; the rest is read and dropped, so that the program does not wait for us.
fn said(mut stream: Box<dyn std::io::Read + Send>, kept: u64) -> String {
    let mut bytes = Vec::new();
    // What cannot be read any more was not said.
    let _ = stream.by_ref().take(kept).read_to_end(&mut bytes);
    let _ = std::io::copy(&mut stream, &mut std::io::sink());
    String::from_utf8_lossy(&bytes).into_owned()
}
