//! A PostgreSQL server for one purpose, from the installed programs: in a temporary folder, reachable through a socket in it,
//! ended and removed when dropped.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, geteuid, kill_process};

/// Where Debian keeps the programs, one folder for each version.
const DEBIAN: &str = "/usr/lib/postgresql";
/// From its start until it answers; on a busy machine a new data folder is synced first.
const READY_TRIES: u32 = 300;
const READY_POLL: Duration = Duration::from_millis(100);

pub(crate) struct Scratch {
    folder: tempfile::TempDir,
    server: Child,
}

impl Scratch {
    /// `None`: PostgreSQL is not installed.
    pub(crate) fn start() -> anyhow::Result<Option<Self>> {
        let Some(programs) = programs()? else { return Ok(None) };
        let folder = tempfile::Builder::new().prefix("fettle-postgres-").tempdir()?;
        let user = user()?;
        if let Some((uid, gid)) = user {
            chown(folder.path(), Some(uid), Some(gid))?;
        }
        let command = |program: &str| {
            let mut command = Command::new(programs.join(program));
            command.current_dir(folder.path()).stdin(Stdio::null()).stdout(Stdio::null());
            if let Some((uid, gid)) = user {
                command.uid(uid).gid(gid);
            }
            command
        };
        let data = folder.path().join("data");
        let made = command("initdb")
            .args(["--username", "postgres", "--auth", "trust", "--encoding", "UTF8", "--no-locale", "--no-sync"])
            .arg(&data)
            .status()
            .context("while starting initdb")?;
        ensure!(made.success(), "initdb failed ({made})");
        let log = fs_err::File::create(folder.path().join("log"))?.into_parts().0;
        let server = command("postgres")
            .arg("-D")
            .arg(&data)
            .args(["-c", "listen_addresses=", "-c", "fsync=off", "-c"])
            .arg(format!("unix_socket_directories={}", folder.path().display()))
            .stderr(log)
            .spawn()
            .context("while starting postgres")?;
        let mut scratch = Self { folder, server };
        scratch.wait_until_ready()?;
        Ok(Some(scratch))
    }

    /// Of its database `postgres`, which is empty.
    pub(crate) fn url(&self) -> String {
        format!("postgres://postgres@localhost/postgres?host={}", self.folder.path().display())
    }

    fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let state = self.folder.path().join("data/postmaster.pid");
        for _ in 0..READY_TRIES {
            // The last line of this file says it, see `pg_ctl --wait`.
            if fs_err::read_to_string(&state).is_ok_and(|text| text.lines().any(|line| line.trim() == "ready")) {
                return Ok(());
            }
            if self.server.try_wait()?.is_some() {
                break;
            }
            std::thread::sleep(READY_POLL);
        }
        let log = fs_err::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        bail!("the scratch PostgreSQL did not start: {log}")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // At once: nothing in it is worth a checkpoint. Not SIGKILL, which would leave its children to find out.
        if let Some(server) = Pid::from_raw(self.server.id().cast_signed()) {
            let _ = kill_process(server, Signal::QUIT);
        }
        let _ = self.server.wait();
    }
}

/// The folder of the newest installed version's programs.
fn programs() -> anyhow::Result<Option<PathBuf>> {
    let mut versions = Vec::new();
    if Path::new(DEBIAN).is_dir() {
        for entry in fs_err::read_dir(DEBIAN)? {
            let folder = entry?.path();
            let version = folder.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<f32>().ok());
            if folder.join("bin/initdb").exists() {
                versions.push((version.unwrap_or(0.0), folder.join("bin")));
            }
        }
    }
    versions.sort_by(|one, other| one.0.total_cmp(&other.0));
    if let Some((_, folder)) = versions.pop() {
        return Ok(Some(folder));
    }
    #[expect(clippy::disallowed_methods, reason = "programs are found as the shell finds them")]
    let path = std::env::var_os("PATH").unwrap_or_default();
    Ok(std::env::split_paths(&path).find(|folder| folder.join("initdb").exists() && folder.join("postgres").exists()))
}

/// Whom to become, user and group: the programs refuse to run as root. `None`: we are somebody else already.
fn user() -> anyhow::Result<Option<(u32, u32)>> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let users = fs_err::read_to_string("/etc/passwd")?;
    let of = |wanted: &str| {
        users.lines().find_map(|line| {
            let mut fields = line.split(':');
            if fields.next()? != wanted {
                return None;
            }
            Some((fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?))
        })
    };
    Ok(Some(of("postgres").or_else(|| of("nobody")).context("no user `postgres` or `nobody` to run PostgreSQL as")?))
}
