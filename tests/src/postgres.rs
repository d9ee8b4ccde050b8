//! A PostgreSQL server for tests, from the installed programs: one for the whole test binary, with a database for each test;
//! or one of a test's own, to be killed.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use fettle_store_postgres::{Database, PostgresLedger};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};
use tokio::sync::OnceCell;

/// Where Debian keeps the programs, one folder for each version.
const DEBIAN: &str = "/usr/lib/postgresql";
/// Of the user `postgres`, over TCP; the socket is for whoever made the server.
pub const PASSWORD: &str = "canary-of-the-database-8e11";
/// A new server answers within a second; after a crash it recovers first, and the machine may be busy.
const READY: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);
/// The migrated database that the tests' own are copies of.
const TEMPLATE: &str = "fettle_template";

/// Waits for its standard input to end, however its owner ends, and then ends the server and removes its folder.
const KEEPER: &str = r#"
folder=$1; shift
"$@" </dev/null >"$folder/log" 2>&1 &
echo $!
read -r _
kill -QUIT $! 2>/dev/null
wait $!
test -e "$folder/keep" || rm -rf "$folder"
"#;

/// What a server keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Nothing, should the machine crash: faster, and the tests' databases are worth nothing.
    None,
    /// As in production.
    Full,
}

pub struct Server {
    programs: PathBuf,
    folder: PathBuf,
    durability: Durability,
    port: u16,
    process: Option<Running>,
}

/// A server process and the keeper that it ends with.
struct Running {
    server: Pid,
    keeper: Child,
    _alive: ChildStdin,
}

impl Server {
    /// `None`: PostgreSQL is not installed.
    pub async fn start(durability: Durability) -> anyhow::Result<Option<Self>> {
        let Some(programs) = programs()? else { return Ok(None) };
        let folder = tempfile::Builder::new().prefix("fettle-postgres-").tempdir()?.keep();
        if let Some((uid, gid)) = user()? {
            std::os::unix::fs::chown(&folder, Some(uid), Some(gid))?;
        }
        let mut server = Self { programs, folder, durability, port: free_port()?, process: None };
        let made = server
            .command(server.programs.join("initdb"))?
            .args([
                "--username",
                "postgres",
                "--auth-local",
                "trust",
                "--auth-host",
                "scram-sha-256",
                "--encoding",
                "UTF8",
                "--no-locale",
                "--no-sync",
            ])
            .arg(server.folder.join("data"))
            .output()
            .context("while starting initdb")?;
        ensure!(made.status.success(), "initdb failed: {}", String::from_utf8_lossy(&made.stderr));
        server.run().await?;
        server.execute(format!("ALTER USER postgres PASSWORD '{PASSWORD}'")).await?;
        Ok(Some(server))
    }

    /// Of a database on it, which need not exist.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@localhost/{database}?host={}&port={}", self.folder.display(), self.port)
    }

    /// What a configuration calls it: without user and password.
    pub fn tcp_url(&self, database: &str) -> String {
        format!("postgres://127.0.0.1:{}/{database}", self.port)
    }

    /// `kill -9`, as the machine's memory killer does.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        fs_err::write(self.folder.join("keep"), "")?;
        let mut running = self.process.take().context("the server runs")?;
        kill_process(running.server, Signal::KILL)?;
        drop(running._alive);
        running.keeper.wait()?;
        Ok(())
    }

    /// Starts it again on what it left.
    pub async fn run(&mut self) -> anyhow::Result<()> {
        let deadline = tokio::time::Instant::now() + READY;
        loop {
            // Children of a killed server end by themselves, a little later; until then their memory is in the way.
            if self.try_run().await? {
                return Ok(());
            }
            if tokio::time::Instant::now() > deadline {
                let log = fs_err::read_to_string(self.folder.join("log")).unwrap_or_default();
                bail!("PostgreSQL does not start: {log}");
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn try_run(&mut self) -> anyhow::Result<bool> {
        let _ = fs_err::remove_file(self.folder.join("keep"));
        let fsync = match self.durability {
            Durability::None => ["-c", "fsync=off", "-c", "full_page_writes=off"],
            Durability::Full => ["-c", "fsync=on", "-c", "full_page_writes=on"],
        };
        let mut keeper = self
            .command("sh")?
            .args(["-c", KEEPER, "keeper"])
            .arg(&self.folder)
            .arg(self.programs.join("postgres"))
            .arg("-D")
            .arg(self.folder.join("data"))
            .args(["-c", "listen_addresses=127.0.0.1", "-c", "max_connections=300", "-c", "jit=off"])
            .arg("-c")
            .arg(format!("port={}", self.port))
            .args(fsync)
            .arg("-c")
            .arg(format!("unix_socket_directories={}", self.folder.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("while starting PostgreSQL")?;
        let alive = keeper.stdin.take().context("the keeper has an input")?;
        let mut line = String::new();
        BufReader::new(keeper.stdout.take().context("the keeper has an output")?).read_line(&mut line)?;
        let server =
            line.trim().parse().ok().and_then(Pid::from_raw).context("the keeper tells the server's process")?;
        let running = Running { server, keeper, _alive: alive };
        let deadline = tokio::time::Instant::now() + READY;
        while tokio::time::Instant::now() < deadline {
            if let Ok(conn) = self.url("postgres").parse::<PgConnectOptions>()?.connect().await {
                conn.close().await?;
                self.process = Some(running);
                return Ok(true);
            }
            if rustix::process::test_kill_process(running.server).is_err() {
                break;
            }
            tokio::time::sleep(POLL).await;
        }
        fs_err::write(self.folder.join("keep"), "")?;
        let Running { server: _, mut keeper, _alive } = running;
        drop(_alive);
        keeper.wait()?;
        Ok(false)
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> anyhow::Result<Command> {
        let mut command = Command::new(program);
        command.current_dir(&self.folder).stdin(Stdio::null());
        if let Some((uid, gid)) = user()? {
            command.uid(uid).gid(gid);
        }
        Ok(command)
    }

    async fn execute(&self, sql: String) -> anyhow::Result<()> {
        let mut conn = self.url("postgres").parse::<PgConnectOptions>()?.connect().await?;
        sqlx::query(AssertSqlSafe(sql)).execute(&mut conn).await?;
        conn.close().await?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        match self.process.take() {
            Some(Running { mut keeper, _alive, .. }) => {
                drop(_alive);
                let _ = keeper.wait();
            }
            None => drop(fs_err::remove_dir_all(&self.folder)),
        }
    }
}

/// Never dropped, as statics are not; its keeper sees the end of this process.
static SHARED: OnceCell<Option<Server>> = OnceCell::const_new();
static DATABASES: AtomicU32 = AtomicU32::new(0);

/// The server that all tests of this process share. `None`: PostgreSQL is not installed.
async fn shared() -> anyhow::Result<Option<&'static Server>> {
    let server = SHARED.get_or_try_init(async || {
        let server = Server::start(Durability::None).await?;
        if let Some(server) = &server {
            server.execute(format!("CREATE DATABASE {TEMPLATE}")).await?;
            PostgresLedger::migrate(&Database::at(server.url(TEMPLATE))).await?;
        }
        anyhow::Ok(server)
    });
    Ok(server.await?.as_ref())
}

/// The address of a new database with an empty ledger, on the shared server. `None`: PostgreSQL is not installed, which has
/// been told.
pub async fn migrated() -> anyhow::Result<Option<String>> {
    made(&format!("TEMPLATE {TEMPLATE}")).await
}

/// The address of a new database with nothing in it.
pub async fn empty() -> anyhow::Result<Option<String>> {
    made("TEMPLATE template0").await
}

async fn made(like: &str) -> anyhow::Result<Option<String>> {
    let Some(server) = shared().await? else {
        absent();
        return Ok(None);
    };
    let database = format!("fettle_{}", DATABASES.fetch_add(1, Ordering::Relaxed));
    server.execute(format!("CREATE DATABASE {database} {like}")).await?;
    Ok(Some(server.url(&database)))
}

/// Drops a database of the shared server, by its address; whoever uses it is thrown out.
pub async fn forget(url: &str) -> anyhow::Result<()> {
    let server = shared().await?.context("there is no server")?;
    let database = url.parse::<PgConnectOptions>()?;
    let name = database.get_database().context("the address names a database")?;
    server.execute(format!("DROP DATABASE {name} WITH (FORCE)")).await
}

/// A server with a new database of that name, made for one test: its own to kill. `None` as above.
pub async fn own(database: &str) -> anyhow::Result<Option<Server>> {
    let Some(server) = Server::start(Durability::Full).await? else {
        absent();
        return Ok(None);
    };
    server.execute(format!("CREATE DATABASE {database}")).await?;
    Ok(Some(server))
}

/// Says that a test did not run.
pub fn absent() {
    crate::skip::skip("PostgreSQL is not installed");
}

fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
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
