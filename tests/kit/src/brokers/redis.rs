//! `redis-server` of this machine: one, or a master with a replica and a sentinel. Killed when dropped.

use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, ConnectionAddr, FromRedisValue, IntoConnectionInfo as _};
use tempfile::TempDir;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::Process;
use crate::skip::skip;

const PROGRAM: &str = "redis-server";
/// A server starts in a tenth of a second; a sentinel waits one, asks itself, and has the replica promoted.
const LIMIT: Duration = Duration::from_secs(40);
/// Between two looks at something that has no event to wait for.
const LOOK: Duration = Duration::from_millis(50);
/// The name under which the sentinel knows the master.
pub const MASTER: &str = "fettle-master";

/// Lines of a `redis.conf`, beyond those that every server here has.
#[derive(Debug, Clone, Default)]
pub struct Settings(Vec<String>);

impl Settings {
    #[must_use]
    pub fn with(mut self, line: impl Into<String>) -> Self {
        self.0.push(line.into());
        self
    }
}

pub struct RedisServer {
    folder: TempDir,
    port: u16,
    made: Made,
    process: Mutex<Option<Process>>,
}

#[derive(Default)]
struct Made {
    settings: Settings,
    certificates: Option<Certificates>,
    is_sentinel: bool,
    /// What the default user is asked for.
    secret: Option<String>,
}

impl RedisServer {
    /// `None`, said visibly, where there is no `redis-server`.
    pub async fn start(settings: Settings) -> Option<Self> {
        is_installed().then_some(())?;
        Some(Self::started(Made { settings, ..Made::default() }).await)
    }

    /// Speaks TLS only. `None` also where there is no `openssl` to make certificates with.
    pub async fn start_tls(settings: Settings) -> Option<Self> {
        is_installed().then_some(())?;
        let certificates = Certificates::make()?;
        Some(Self::started(Made { settings, certificates: Some(certificates), ..Made::default() }).await)
    }

    async fn started(made: Made) -> Self {
        let server = Self { folder: tempfile::tempdir().unwrap(), port: spare_port(), made, process: Mutex::default() };
        fs_err::write(server.path("redis.conf"), server.configuration()).unwrap();
        server.go_on().await;
        server
    }

    fn configuration(&self) -> String {
        let Self { port, made, .. } = self;
        let mut lines = vec![
            "bind 127.0.0.1".to_owned(),
            format!("dir {}", folder(&self.folder)),
            format!("unixsocket {}", self.socket()),
            "daemonize no".to_owned(),
        ];
        match &made.certificates {
            None => lines.push(format!("port {port}")),
            Some(certificates) => {
                lines.extend(["port 0".to_owned(), format!("tls-port {port}"), "tls-auth-clients no".to_owned()]);
                for (key, file) in [("cert", "server.crt"), ("key", "server.key"), ("ca-cert", "ca.crt")] {
                    lines.push(format!("tls-{key}-file {}", certificates.path(file)));
                }
            }
        }
        if !made.is_sentinel {
            // What was answered is on the disk.
            lines.extend(["save \"\"", "appendonly yes", "appendfsync always"].map(str::to_owned));
        }
        lines.extend(made.secret.iter().map(|secret| format!("requirepass {secret}")));
        lines.extend(made.settings.0.iter().cloned());
        lines.join("\n")
    }

    fn path(&self, name: &str) -> Utf8PathBuf {
        folder(&self.folder).join(name)
    }

    fn socket(&self) -> Utf8PathBuf {
        self.path("redis.sock")
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        let scheme = if self.made.certificates.is_some() { "rediss" } else { "redis" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    /// The certificate authority that the server's certificate is from, in PEM.
    pub fn ca_pem(&self) -> Vec<u8> {
        let certificates = self.made.certificates.as_ref().expect("a server with TLS");
        fs_err::read(certificates.path("ca.crt")).unwrap()
    }

    /// The first number of the version, or of the Redis that a Valkey stands in for.
    pub async fn version(&self) -> u32 {
        let told: String = self.say("INFO server").await;
        let version = told.lines().find_map(|line| line.strip_prefix("redis_version:")).expect("a version is told");
        version.split('.').next().unwrap().parse().unwrap()
    }

    /// SIGKILL.
    pub async fn kill(&self) {
        if let Some(mut process) = self.process.lock().await.take() {
            process.kill();
        }
    }

    /// Starts it on the port and the data that it had, and waits until it answers.
    pub async fn go_on(&self) {
        let mut process = self.process.lock().await;
        assert!(process.is_none(), "it runs already");
        let mut command = Command::new(PROGRAM);
        command.arg(self.path("redis.conf")).args(self.made.is_sentinel.then_some("--sentinel"));
        let started = process.insert(Process::start(PROGRAM, &mut command).unwrap());
        let until = Instant::now() + LIMIT;
        while self.try_ask::<String>(&redis::cmd("PING")).await.is_err() {
            assert!(Instant::now() < until, "{PROGRAM} does not answer:\n{}", started.tail());
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Stopped as by SIGSTOP: connections stay open, and nothing is answered.
    pub async fn suspend(&self) {
        self.process.lock().await.as_ref().expect("it runs").suspend();
    }

    pub async fn resume(&self) {
        self.process.lock().await.as_ref().expect("it runs").resume();
    }

    /// The answer to one command of the administrator's, past the port.
    pub async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> T {
        self.try_ask(command).await.unwrap()
    }

    /// As [`RedisServer::ask`], the command as words.
    pub async fn say<T: FromRedisValue>(&self, words: &str) -> T {
        self.ask(&command(words)).await
    }

    async fn try_ask<T: FromRedisValue>(&self, command: &Cmd) -> redis::RedisResult<T> {
        command.query_async(&mut self.connection().await?).await
    }

    async fn connection(&self) -> redis::RedisResult<MultiplexedConnection> {
        let address = ConnectionAddr::Unix(self.socket().into_std_path_buf());
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(LIMIT));
        let mut who = redis::RedisConnectionInfo::default();
        if let Some(secret) = &self.made.secret {
            who = who.set_password(secret);
        }
        let info = address.into_connection_info()?.set_redis_settings(who);
        Client::open(info)?.get_multiplexed_async_connection_with_config(&config).await
    }

    pub async fn flush(&self) {
        self.say::<()>("FLUSHALL").await;
    }

    /// Asks until the answer `is` as it should be.
    async fn becomes(&self, what: &str, words: &str, is: impl Fn(&str) -> bool) {
        let until = Instant::now() + LIMIT;
        loop {
            // A server that changes its part cuts its connections.
            let told = self.try_ask::<String>(&command(words)).await.unwrap_or_else(|error| error.to_string());
            if is(&told) {
                return;
            }
            assert!(Instant::now() < until, "no {what} within {LIMIT:?}: {told}");
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// A master, its replica, and a sentinel that decides alone.
pub struct Failover {
    servers: [RedisServer; 2],
    pub sentinel: RedisServer,
}

impl Failover {
    /// `secret`: what servers and sentinel ask for. `None` as with [`RedisServer::start`].
    pub async fn start(secret: &str) -> Option<Self> {
        is_installed().then_some(())?;
        let made = |settings: Settings| Made { settings, secret: Some(secret.to_owned()), ..Made::default() };
        let settings = Settings::default().with(format!("masterauth {secret}"));
        let master = RedisServer::started(made(settings.clone())).await;
        let following = settings.with(format!("replicaof 127.0.0.1 {}", master.port));
        let replica = RedisServer::started(made(following)).await;
        replica.becomes("replica", "INFO replication", |told| told.contains("master_link_status:up")).await;
        let watching = Settings::default()
            .with(format!("sentinel monitor {MASTER} 127.0.0.1 {} 1", master.port))
            .with(format!("sentinel auth-pass {MASTER} {secret}"))
            .with(format!("sentinel down-after-milliseconds {MASTER} 1000"))
            .with(format!("sentinel failover-timeout {MASTER} 4000"));
        let sentinel = RedisServer::started(Made { is_sentinel: true, ..made(watching) }).await;
        sentinel.becomes("known replica", "INFO sentinel", |told| told.contains("slaves=1")).await;
        Some(Self { servers: [master, replica], sentinel })
    }

    /// Whom the sentinel names.
    pub async fn master(&self) -> &RedisServer {
        let (_, port): (String, u16) = self.sentinel.say(&format!("SENTINEL GET-MASTER-ADDR-BY-NAME {MASTER}")).await;
        self.servers.iter().find(|server| server.port == port).expect("one of them is the master")
    }

    /// Kills the master and waits until its replica is the master; the dead one.
    pub async fn kill_master(&self) -> &RedisServer {
        let old = self.master().await;
        old.kill().await;
        self.promoted_instead_of(old).await;
        old
    }

    /// Has the master and its replica change places, both alive.
    pub async fn swap(&self) {
        let old = self.master().await;
        let order = command(&format!("SENTINEL FAILOVER {MASTER}"));
        let until = Instant::now() + LIMIT;
        // It obeys when it has heard from the replica.
        while let Err(error) = self.sentinel.try_ask::<()>(&order).await {
            assert!(Instant::now() < until, "{error}");
            tokio::time::sleep(LOOK).await;
        }
        self.promoted_instead_of(old).await;
        old.becomes("demoted master", "INFO replication", |told| told.contains("role:slave")).await;
    }

    async fn promoted_instead_of(&self, old: &RedisServer) {
        let until = Instant::now() + LIMIT;
        while self.master().await.port == old.port {
            assert!(Instant::now() < until, "the sentinel names no other master");
            tokio::time::sleep(LOOK).await;
        }
        self.master().await.becomes("promoted replica", "INFO replication", |told| told.contains("role:master")).await;
    }
}

/// A certificate authority and a certificate for 127.0.0.1 that is from it.
struct Certificates(TempDir);

impl Certificates {
    fn make() -> Option<Self> {
        let made = Self(tempfile::tempdir().unwrap());
        fs_err::write(made.path("san"), "subjectAltName=IP:127.0.0.1").unwrap();
        let new_key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        let all_made = made.openssl(&format!("req -x509 {new_key} -subj /CN=ca -days 2 -keyout ca.key -out ca.crt"))
            && made.openssl(&format!("req {new_key} -subj /CN=redis -keyout server.key -out server.csr"))
            && made.openssl(
                "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile san -out server.crt",
            );
        if !all_made {
            skip("openssl makes no certificates for Redis");
        }
        all_made.then_some(made)
    }

    fn openssl(&self, arguments: &str) -> bool {
        let mut command = Command::new("openssl");
        command.args(arguments.split_whitespace()).current_dir(self.0.path());
        command.output().is_ok_and(|output| output.status.success())
    }

    fn path(&self, name: &str) -> Utf8PathBuf {
        folder(&self.0).join(name)
    }
}

fn command(words: &str) -> Cmd {
    let mut words = words.split_whitespace();
    let mut command = redis::cmd(words.next().expect("a command has a name"));
    for word in words {
        command.arg(word);
    }
    command
}

fn is_installed() -> bool {
    let is = Command::new(PROGRAM).arg("--version").output().is_ok_and(|output| output.status.success());
    if !is {
        skip("no redis-server on this machine");
    }
    is
}

fn spare_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn folder(folder: &TempDir) -> &Utf8Path {
    Utf8Path::from_path(folder.path()).expect("temporary paths are UTF-8")
}
