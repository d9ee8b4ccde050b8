//! The system's RabbitMQ as a node of a test's own: own ports, folder, cookie and port mapper. Touches no other node, and
//! outlives neither its owner nor the test's process, however that ends.

use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use lapin::{Connection, ConnectionProperties};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep, timeout};

/// A node takes 6 s on an idle machine.
const START_LIMIT: Duration = Duration::from_secs(120);
/// Each call of the command starts an Erlang of its own.
const CTL_LIMIT: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(100);
/// Made at once, since making one alone takes as long.
const VHOSTS: usize = 8;
/// The authority that signed the node's certificate.
const CA: &str = "ca.pem";
/// Debian's `rabbitmq-server` changes the user and writes to the system's folders; this is what it calls.
const DEBIAN: &str = "/usr/lib/rabbitmq/bin";

/// A running node. Killed when dropped, with everything that it started.
pub struct RabbitServer {
    scripts: Scripts,
    folder: tempfile::TempDir,
    ports: Ports,
    epmd: Mutex<Child>,
    node: Mutex<Option<Child>>,
    /// Closed by the end of this process, it has the guardian kill what is left.
    guard: Mutex<(Child, Option<ChildStdin>)>,
    vhosts: tokio::sync::Mutex<Vhosts>,
}

#[derive(Default)]
struct Vhosts {
    made: usize,
    free: Vec<String>,
}

struct Ports {
    amqp: u16,
    amqps: u16,
    distribution: u16,
    epmd: u16,
}

/// Where the programs are.
struct Scripts(PathBuf);

impl Scripts {
    fn find() -> Option<Self> {
        let on_path = Command::new("sh").args(["-c", "command -v rabbitmq-server"]).output().ok()?;
        let found = PathBuf::from(String::from_utf8_lossy(&on_path.stdout).trim());
        let folder = if Path::new(DEBIAN).join("rabbitmq-server").is_file() {
            PathBuf::from(DEBIAN)
        } else {
            found.parent().filter(|_| on_path.status.success())?.to_owned()
        };
        Some(Self(folder))
    }
}

impl RabbitServer {
    pub fn is_installed() -> bool {
        Scripts::find().is_some()
    }

    /// One node for all tests of this process, for those that leave it alive and unblocked.
    pub async fn shared() -> anyhow::Result<Arc<Self>> {
        static SHARED: OnceCell<Arc<RabbitServer>> = OnceCell::const_new();
        SHARED.get_or_try_init(async || Self::start().await.map(Arc::new)).await.cloned()
    }

    /// A node of its own.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with("").await
    }

    /// With these lines in its configuration as well.
    pub async fn start_with(lines: &str) -> anyhow::Result<Self> {
        let scripts = Scripts::find().context("there is no rabbitmq-server here")?;
        let folder = tempfile::tempdir()?;
        let [amqp, amqps, distribution, epmd_port] = free_ports()?;
        let ports = Ports { amqp, amqps, distribution, epmd: epmd_port };
        // The disk's limit: a full disk of the machine is not what these tests are about.
        let mut configuration = format!(
            "listeners.tcp.1 = 127.0.0.1:{amqp}\nloopback_users = none\ndisk_free_limit.absolute = 1MB\nlog.console = true\n{lines}"
        );
        if make_certificates(folder.path()) {
            let file = |name: &str| folder.path().join(name).display().to_string();
            configuration += &format!(
                "listeners.ssl.1 = 127.0.0.1:{amqps}\nssl_options.cacertfile = {}\nssl_options.certfile = {}\nssl_options.keyfile = {}\n",
                file(CA),
                file("server.pem"),
                file("server.key"),
            );
        }
        fs_err::write(folder.path().join("rabbitmq.conf"), configuration)?;
        fs_err::write(folder.path().join("enabled_plugins"), "[].")?;
        let guard = guardian(folder.path())?;
        let epmd = Command::new("epmd")
            .args(["-port", &epmd_port.to_string(), "-address", "127.0.0.1"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("while starting epmd")?;
        let server = Self {
            scripts,
            folder,
            ports,
            epmd: Mutex::new(epmd),
            node: Mutex::new(None),
            guard: Mutex::new(guard),
            vhosts: tokio::sync::Mutex::default(),
        };
        server.boot().await?;
        Ok(server)
    }

    /// Without credentials.
    pub fn url(&self, vhost: &str) -> String {
        format!("amqp://127.0.0.1:{}/{}", self.ports.amqp, vhost.replace('/', "%2F"))
    }

    /// The address for TLS, and the authority that its certificate is signed by. `None`: no `openssl` here.
    pub fn tls(&self, vhost: &str) -> Option<(String, String)> {
        let authority = fs_err::read_to_string(self.folder.path().join(CA)).ok()?;
        Some((format!("amqps://localhost:{}/{}", self.ports.amqps, vhost.replace('/', "%2F")), authority))
    }

    /// A connection of the administrator.
    pub async fn connect(&self, vhost: &str) -> anyhow::Result<Connection> {
        let url = self.url(vhost);
        let connecting = Connection::connect(&url, ConnectionProperties::default());
        Ok(timeout(Duration::from_secs(5), connecting).await.context("while connecting")??)
    }

    /// The name of a virtual host that nobody has used, with all rights for `guest`.
    pub async fn vhost(&self) -> anyhow::Result<String> {
        let mut vhosts = self.vhosts.lock().await;
        if vhosts.free.is_empty() {
            let names: Vec<String> = (0..VHOSTS).map(|n| format!("test{}", vhosts.made + n)).collect();
            let list = names.iter().map(|name| format!("<<\"{name}\">>")).collect::<Vec<_>>().join(",");
            let all = "<<\".*\">>";
            self.ctl(&["eval", &format!(
                "[begin rabbit_vhost:add(V, <<\"test\">>), rabbit_auth_backend_internal:set_permissions(<<\"guest\">>, V, {all}, {all}, {all}, <<\"test\">>) end || V <- [{list}]]."
            )])
            .await?;
            vhosts.made += VHOSTS;
            vhosts.free = names;
        }
        vhosts.free.pop().context("some were just made")
    }

    /// What `rabbitmqctl` says.
    pub async fn ctl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = tokio::process::Command::from(self.command("rabbitmqctl"));
        let running = command.args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
        let output = timeout(CTL_LIMIT, running).await.context("rabbitmqctl takes too long")??;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "rabbitmqctl {arguments:?}: {said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(said)
    }

    /// Ends the node as a power cut would.
    pub fn kill(&self) {
        if let Some(mut node) = self.node().take() {
            end(&mut node);
        }
    }

    /// Stops it in its tracks: connections stay, and nothing answers.
    pub fn suspend(&self) {
        self.signal(Signal::STOP);
    }

    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        if let Some(node) = &*self.node() {
            let _gone_already = kill_process_group(Pid::from_child(node), signal);
        }
    }

    /// Starts the node again on the same data and ports; waits until it answers.
    pub async fn restart(&self) -> anyhow::Result<()> {
        self.kill();
        self.boot().await
    }

    /// The end of the node's log, for a failure's text.
    pub fn log(&self) -> String {
        let log = fs_err::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    async fn boot(&self) -> anyhow::Result<()> {
        let log = fs_err::OpenOptions::new().create(true).append(true).open(self.folder.path().join("log"))?;
        let log = log.into_file();
        let node = self
            .command("rabbitmq-server")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .context("while starting rabbitmq-server")?;
        fs_err::write(
            self.folder.path().join("groups"),
            format!("{}\n{}\n", node.id(), self.epmd.lock().expect("no holder panics").id()),
        )?;
        *self.node() = Some(node);
        let until = Instant::now() + START_LIMIT;
        loop {
            if let Ok(connection) = self.connect("/").await {
                connection.close(200, "OK".into()).await.ok();
                return Ok(());
            }
            let ended = self.node().as_mut().is_none_or(|node| node.try_wait().is_ok_and(|status| status.is_some()));
            if ended || Instant::now() > until {
                bail!("rabbitmq-server did not start:\n{}", self.log());
            }
            sleep(LOOK).await;
        }
    }

    fn node(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.node.lock().expect("no holder panics")
    }

    fn command(&self, program: &str) -> Command {
        let folder = self.folder.path();
        let mut command = Command::new(self.scripts.0.join(program));
        let loopback = "-kernel inet_dist_use_interface {127,0,0,1}";
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        command
            .env_clear()
            .env("PATH", path)
            .env("LANG", "C.UTF-8")
            // Erlang keeps its cookie there.
            .env("HOME", folder)
            .env("ERL_EPMD_PORT", self.ports.epmd.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODENAME", format!("fettle{}@localhost", self.ports.amqp))
            .env("RABBITMQ_DIST_PORT", self.ports.distribution.to_string())
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", loopback)
            .env("RABBITMQ_CTL_ERL_ARGS", loopback)
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env("RABBITMQ_CONFIG_FILE", folder.join("rabbitmq"))
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", folder.join("none"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", folder.join("enabled_plugins"))
            .env("RABBITMQ_MNESIA_BASE", folder.join("data"))
            .env("RABBITMQ_LOG_BASE", folder.join("logs"))
            .env("RABBITMQ_LOGS", "-")
            .env("RABBITMQ_PID_FILE", folder.join("pid"))
            .current_dir(folder);
        command
    }
}

impl Drop for RabbitServer {
    fn drop(&mut self) {
        self.kill();
        end(&mut self.epmd.lock().expect("no holder panics"));
        let mut guard = self.guard.lock().expect("no holder panics");
        // Nothing of these is left for it to kill; their ids may soon be others'.
        let _gone_already = fs_err::remove_file(self.folder.path().join("groups"));
        drop(guard.1.take());
        let _ended = guard.0.wait();
    }
}

/// An authority and a certificate for `localhost`, for a month. False when there is no `openssl`.
fn make_certificates(folder: &Path) -> bool {
    let script = "set -e
        new='openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes'
        $new -x509 -days 30 -subj /CN=authority -keyout ca.key -out ca.pem
        $new -subj /CN=localhost -keyout server.key -out server.csr
        printf 'subjectAltName=DNS:localhost,IP:127.0.0.1' > names
        openssl x509 -req -days 30 -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile names -out server.pem";
    let made = Command::new("sh").args(["-c", script]).current_dir(folder).stdin(Stdio::null()).output();
    made.is_ok_and(|made| made.status.success())
}

/// Kills the groups of this server when its input ends, be it by a test's process that was killed.
fn guardian(folder: &Path) -> anyhow::Result<(Child, Option<ChildStdin>)> {
    let script = r#"cat >/dev/null; for group in $(cat "$0/groups" 2>/dev/null); do kill -s KILL -- "-$group"; done; sleep 0.2; rm -rf "$0""#;
    let mut guardian = Command::new("sh")
        .args(["-c", script])
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .context("while starting the guardian of a broker")?;
    let input = guardian.stdin.take();
    Ok((guardian, input))
}

/// With its whole group, and waits for it.
fn end(child: &mut Child) {
    let _gone_already = kill_process_group(Pid::from_child(child), Signal::KILL);
    let _ended = child.wait();
}

/// Free a moment ago.
fn free_ports() -> anyhow::Result<[u16; 4]> {
    let listeners = [(); 4].map(|()| TcpListener::bind("127.0.0.1:0"));
    let mut ports = [0; 4];
    for (port, listener) in ports.iter_mut().zip(listeners) {
        *port = listener?.local_addr()?.port();
    }
    Ok(ports)
}
