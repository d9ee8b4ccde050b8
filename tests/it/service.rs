//! The programs as services: what they tell their manager, the sockets that they are handed, reloads, a worker's health.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use fettle_tests::world::repository::{self, finish};
use fettle_tests::world::{
    Api, Layout, MAINTAINER, PATIENCE, Process, SERVER, Setup, TestBox, WORKER, message, program, toolchains,
};
use futures::future::join;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixDatagram;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::webhook::holding;

/// A service without configuration in a folder of its own, as systemd starts one.
struct Service {
    root: Utf8PathBuf,
    _home: tempfile::TempDir,
}

impl Service {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let root = Utf8PathBuf::try_from(home.path().to_owned()).unwrap();
        fs_err::create_dir(root.join("logs")).unwrap();
        Self { root, _home: home }
    }

    fn state(&self) -> Utf8PathBuf {
        self.root.join("state")
    }

    fn variables(&self, command: &mut Command) {
        command.env_clear().current_dir(&self.root).env("HOME", &self.root).envs(toolchains());
        command.env("STATE_DIRECTORY", format!("{}:/nowhere/else", self.state()));
        command.env("FETTLE_SERVER__LISTEN", "127.0.0.1:0").env("FETTLE_SERVER__INTERNAL_LISTEN", "127.0.0.1:0");
    }

    fn dashboard(&self, more: &[(&str, &str)]) -> Process {
        let mut command = Command::new(program("fettle-dashboard").unwrap());
        self.variables(&mut command);
        command.envs(more.iter().copied());
        Process::start("fettle-dashboard", &mut command).unwrap()
    }

    /// A dashboard that is handed `socket` as systemd does it: as descriptor 3, for exactly this process.
    fn handed(&self, socket: impl Into<OwnedFd>, name: &str) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", "LISTEN_PID=$$ exec \"$0\" 3<&0 0</dev/null"]).arg(program("fettle-dashboard").unwrap());
        self.variables(&mut command);
        command.env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", name);
        Process::start_reading("fettle-dashboard", &mut command, Stdio::from(socket.into())).unwrap()
    }
}

async fn serving(process: &Process) {
    let serves = |line: &str| message(line)?.contains("fettle-dashboard listens on http://").then_some(());
    process.logged("it serves", PATIENCE, serves).await.unwrap();
}

/// The start page's status line.
async fn asked(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer.lines().next().unwrap_or_default().to_owned())
}

/// A service manager that only listens.
struct Manager(UnixDatagram);

impl Manager {
    fn at(path: &Utf8Path) -> Self {
        Self(UnixDatagram::bind(path).unwrap())
    }

    async fn next(&self) -> String {
        let mut word = [0; 4096];
        let length = timeout(PATIENCE, self.0.recv(&mut word)).await.expect("the manager hears something").unwrap();
        String::from_utf8_lossy(&word[..length]).into_owned()
    }

    /// The next word with this in it.
    async fn hears(&self, part: &str) -> String {
        loop {
            let word = self.next().await;
            if word.contains(part) {
                return word;
            }
        }
    }

    fn forget(&self) {
        let mut word = [0; 4096];
        while self.0.try_recv(&mut word).is_ok() {}
    }
}

/// The watchdog's period; a sign of life comes every third of it.
const PERIOD: Duration = Duration::from_millis(600);

#[tokio::test]
async fn a_manager_hears_of_readiness_and_of_life_only_while_the_ledger_takes_writes() {
    let service = Service::new();
    let (socket, logs) = (service.root.join("notify"), service.root.join("logs"));
    let manager = Manager::at(&socket);
    let mut dashboard = service.dashboard(&[
        ("NOTIFY_SOCKET", socket.as_str()),
        ("WATCHDOG_USEC", &PERIOD.as_micros().to_string()),
        ("FETTLE_TEST_PROBING", "1"),
        ("LOGS_DIRECTORY", logs.as_str()),
    ]);
    let ready = manager.hears("READY=1").await;
    let address = ready.lines().find_map(|line| line.strip_prefix("STATUS=Serving on ")).unwrap().parse().unwrap();
    assert_eq!(asked(address).await.unwrap(), "HTTP/1.1 200 OK");
    for _ in 0..3 {
        manager.hears("WATCHDOG=1").await;
    }

    // Whoever holds SQLite's write lock stops the one writer in the middle of its work.
    let holder = rusqlite::Connection::open(service.state().join("ledger/ledger.db")).unwrap();
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();
    let starved = |line: &str| {
        let said = message(line)?;
        (said.contains("ledger probe has not come round") && said.contains("no longer fed")).then_some(())
    };
    dashboard.logged("the watchdog is not fed", PATIENCE, starved).await.unwrap();
    let api = Api::of(&service.state()).unwrap();
    let (status, text) = api.health("/healthz").await.unwrap();
    assert!(status == 503 && text.contains("ledger probe"), "{status} {text}");
    manager.forget();
    let mut word = [0; 64];
    assert!(timeout(PERIOD, manager.0.recv(&mut word)).await.is_err(), "a frozen ledger gave a sign of life");

    holder.execute_batch("ROLLBACK").unwrap();
    manager.hears("WATCHDOG=1").await;
    holder.close().unwrap();
    dashboard.terminate();
    manager.hears("STOPPING=1").await;
    assert!(dashboard.ended(PATIENCE).await.unwrap().success(), "{}", dashboard.tail());

    let written = fs_err::read_to_string(logs.join("fettle-dashboard.jsonl")).unwrap();
    let lines: Vec<String> = written.lines().map(|line| message(line).expect("a line is JSON")).collect();
    assert!(lines.iter().any(|line| line.contains("no longer fed")) && lines.len() >= 5, "{written}");
}

#[tokio::test]
async fn a_log_file_on_a_full_disk_holds_nothing_up_and_without_a_manager_nothing_is_told() {
    let service = Service::new();
    let logs = service.root.join("logs");
    fs_err::os::unix::fs::symlink("/dev/full", logs.join("fettle-dashboard.jsonl")).unwrap();
    let mut dashboard = service.dashboard(&[("LOGS_DIRECTORY", logs.as_str()), ("WATCHDOG_USEC", "1000")]);
    serving(&dashboard).await;
    let api = Api::of(&service.state()).unwrap();
    assert_eq!(api.health("/readyz").await.unwrap().0, 200);
    assert!(dashboard.stop().unwrap().success());
    let said = dashboard.tail();
    assert!(!said.contains("NOTIFY_SOCKET") && !said.contains("watchdog"), "{said}");
}

#[tokio::test]
async fn a_restart_under_a_passed_socket_refuses_no_connection() {
    let service = Service::new();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let mut first = service.handed(socket.try_clone().unwrap(), "public");
    serving(&first).await;
    assert_eq!(Api::of(&service.state()).unwrap().address(), address.to_string());
    let (stop, mut stopped) = oneshot::channel::<()>();
    let asking = async {
        let mut answers = 0;
        while stopped.try_recv().is_err() {
            assert_eq!(asked(address).await.expect("no connection is refused"), "HTTP/1.1 200 OK");
            answers += 1;
        }
        answers
    };
    let restarting = async {
        first.terminate();
        assert!(first.ended(PATIENCE).await.unwrap().success(), "{}", first.tail());
        let second = service.handed(socket.try_clone().unwrap(), "public");
        serving(&second).await;
        stop.send(()).unwrap();
        second
    };
    let (answers, mut second) = timeout(PATIENCE, join(asking, restarting)).await.unwrap();
    assert!(answers > 1, "nobody asked during the restart");
    assert!(second.stop().unwrap().success());
}

#[tokio::test]
async fn a_socket_that_cannot_be_served_is_refused_with_a_sentence() {
    let service = Service::new();
    let listening = || TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = listening();
    let connected = TcpStream::connect(peer.local_addr().unwrap()).unwrap();
    let file = fs_err::File::open("/dev/null").unwrap().into_file();
    for (socket, name, sentence) in [
        (OwnedFd::from(listening()), "admin", "a socket named `admin` was passed"),
        (OwnedFd::from(listening()), "public:internal", "1 sockets were passed with the names `public:internal`"),
        (OwnedFd::from(connected), "public", "`public` is not a TCP socket that listens"),
        (OwnedFd::from(file), "internal", "`internal` is not a TCP socket that listens"),
    ] {
        let mut dashboard = service.handed(socket, name);
        let status = dashboard.ended(PATIENCE).await.unwrap();
        assert!(!status.success() && dashboard.tail().contains(sentence), "{name}: {}", dashboard.tail());
    }
}

/// Asks until the status is this; what was said then.
async fn answers(api: &Api, url: &str, wanted: u16) -> String {
    let asking = async {
        loop {
            let (status, text) = api.public(url).await.unwrap();
            if status == wanted {
                return text;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("{url} never answered {wanted}"))
}

#[tokio::test]
async fn a_worker_tells_whether_it_holds_a_lease_and_whether_its_dashboard_is_there() {
    let (script, go) = holding(repository::triage(), "reproduce", vec![finish("no test: held")]);
    let script = script.phase_with("fix", |_| finish("I changed nothing")).phase_with("notes", |_| finish("none"));
    let setup = Setup { layout: Layout::Two, ..Setup::with(script.script()) };
    let mut fettle = TestBox::start(setup).await.unwrap();
    let told = |line: &str| message(line)?.strip_prefix("health listens on ").map(str::to_owned);
    let health = fettle.process(WORKER).logged("where its health is", PATIENCE, told).await.unwrap();
    let at = |path: &str| format!("{health}{path}");
    for path in ["/readyz", "/health/ready", "/healthz", "/livez", "/health/live"] {
        let body: Value = serde_json::from_str(&answers(&fettle.api, &at(path), 200).await).unwrap();
        assert_eq!((&body["status"], body["checks"].as_array().is_some()), (&"ok".into(), true), "{path}");
    }
    assert_eq!(fettle.api.public(&at("/leased")).await.unwrap().0, 503);

    let issue = fettle.issue();
    fettle.label(issue).await.unwrap();
    let leased = |line: &str| message(line)?.starts_with("leased job_").then_some(());
    fettle.process(WORKER).logged("it has leased", PATIENCE, leased).await.unwrap();
    assert_eq!(fettle.api.public(&at("/leased")).await.unwrap().0, 200);
    let metrics = fettle.api.public(&at("/metrics")).await.unwrap().1;
    assert!(metrics.contains("fettle_worker_leases 1"), "{metrics}");
    go.send(()).unwrap();
    answers(&fettle.api, &at("/leased"), 503).await;
    let task = fettle.api.task_opened(0, PATIENCE).await.unwrap();
    fettle.api.task_ended(&task, PATIENCE).await.unwrap();

    fettle.kill(SERVER);
    let unready = answers(&fettle.api, &at("/readyz"), 503).await;
    assert!(unready.contains(r#""name":"dashboard","ok":false"#), "{unready}");
    assert_eq!(fettle.api.public(&at("/healthz")).await.unwrap().0, 200);
    fettle.restart(SERVER, None).await.unwrap();
    answers(&fettle.api, &at("/readyz"), 200).await;
}

/// A worker in the middle of a Run that the model holds until it is told to go on, and how long it may go on at its end.
async fn at_work(drain_finish: &str) -> (TestBox, std::sync::mpsc::Sender<()>) {
    let (script, go) = holding(repository::triage(), "reproduce", vec![finish("no test: held")]);
    let script = script.phase_with("fix", |_| finish("I changed nothing")).phase_with("notes", |_| finish("none"));
    let agent = format!("drain_finish = '{drain_finish}'\n");
    let setup = Setup { layout: Layout::Two, agent: &agent, ..Setup::with(script.script()) };
    let fettle = TestBox::start(setup).await.unwrap();
    let issue = fettle.issue();
    fettle.label(issue).await.unwrap();
    says(&fettle, WORKER, "leased job_").await;
    (fettle, go)
}

fn was_said(fettle: &TestBox, sentence: &str) -> bool {
    fettle.log().iter().filter_map(|line| message(line)).any(|said| said.contains(sentence))
}

/// SIGTERM comes from whoever scales in, and any pod may be the one.
#[tokio::test]
async fn a_worker_that_is_told_to_end_brings_its_run_to_an_end_in_the_time_that_it_has() {
    let (mut fettle, go) = at_work("2m").await;
    fettle.process(WORKER).terminate();
    says(&fettle, WORKER, "may go on for 120 s").await;
    go.send(()).unwrap();
    fettle.ended(WORKER).await.unwrap();
    assert!(was_said(&fettle, " ended: ") && !was_said(&fettle, "letting go of"), "{}", fettle.tails());
    let task = fettle.api.task_opened(0, PATIENCE).await.unwrap();
    fettle.api.task_ended(&task, PATIENCE).await.unwrap();
}

/// When the time is over, and when it is told a second time.
#[tokio::test]
async fn a_worker_whose_time_is_over_lets_go_of_its_run_and_another_takes_it_up() {
    for (drain_finish, again) in [("1s", false), ("2m", true)] {
        let (mut fettle, go) = at_work(drain_finish).await;
        fettle.process(WORKER).terminate();
        says(&fettle, WORKER, "may go on for").await;
        if again {
            fettle.process(WORKER).terminate();
        }
        says(&fettle, WORKER, "letting go of job_").await;
        fettle.ended(WORKER).await.unwrap();
        assert!(!was_said(&fettle, " ended: "), "{}", fettle.tails());
        // The one that still waits for the worker that is gone, and the next.
        go.send(()).unwrap();
        go.send(()).unwrap();
        fettle.restart(WORKER, None).await.unwrap();
        let task = fettle.api.task_opened(0, PATIENCE).await.unwrap();
        fettle.api.task_ended(&task, PATIENCE).await.unwrap();
    }
}

/// Replaces text in the configuration, which must be there.
fn edit(fettle: &TestBox, from: &str, to: &str) {
    let text = fs_err::read_to_string(fettle.config()).unwrap();
    assert!(text.contains(from), "{from} is not in\n{text}");
    fs_err::write(fettle.config(), text.replace(from, to)).unwrap();
}

async fn says(fettle: &TestBox, nth: usize, sentence: &str) {
    let said = |line: &str| message(line)?.contains(sentence).then_some(());
    fettle.process(nth).logged(sentence, PATIENCE, said).await.unwrap();
}

#[tokio::test]
async fn a_hangup_exchanges_label_and_secret_names_what_must_wait_and_refuses_what_is_wrong() {
    let mut fettle = TestBox::start(Setup::with(repository::solving().script())).await.unwrap();
    fettle.expect_error("the configuration is refused");
    edit(&fettle, "[forge]\n", "[telemetry]\nlog = 'fettle=loud'\n[forge]\n");
    fettle.process(SERVER).hang_up();
    says(&fettle, SERVER, "the configuration is refused, and the old one stays: ").await;
    edit(&fettle, "fettle=loud", "info,fettle_app=debug");

    let secret = "canary-of-the-next-webhook-secret";
    let next = fettle.config().with_file_name("next-secret");
    fs_err::write(&next, secret).unwrap();
    edit(&fettle, "webhook_secret_file = '", &format!("webhook_secret_file = '{next}' # '"));
    edit(&fettle, "label = 'ai-help'", "label = 'mend'\ndaily_tasks = 1");
    edit(&fettle, "listen = '127.0.0.1:0'\ninternal", "listen = '127.0.0.1:1'\ninternal");
    fettle.process(SERVER).hang_up();
    says(&fettle, SERVER, "in force now: forge.daily_tasks, forge.label, forge.webhook_secret_file, telemetry.log")
        .await;
    says(&fettle, SERVER, "needs a restart: server.listen").await;

    let issue = fettle.issue();
    fettle.forge.label(&fettle.repo, issue, "mend", MAINTAINER);
    let payload = fettle.forge.issue_labeled(&fettle.repo, issue, "mend", MAINTAINER);
    let refused = fettle.deliver("issues", &payload).await.unwrap_err().to_string();
    assert!(refused.contains("401"), "{refused}");
    fettle.webhook_secret = secret.to_owned();
    fettle.deliver("issues", &payload).await.unwrap();
    let task = fettle.api.task_opened(0, PATIENCE).await.unwrap();
    let ended = fettle.api.task_ended(&task, PATIENCE).await.unwrap();
    assert_eq!(ended["outcome"], "ready_pr", "{ended:#}");

    let second = fettle.issue();
    fettle.forge.label(&fettle.repo, second, "mend", MAINTAINER);
    let payload = fettle.forge.issue_labeled(&fettle.repo, second, "mend", MAINTAINER);
    fettle.deliver("issues", &payload).await.unwrap();
    let why = fettle.closed_deliveries(1).await.unwrap();
    assert!(why[0].contains("the daily limit of 1 Tasks is reached"), "{why:?}");
}

#[tokio::test]
async fn a_hangup_reaches_dashboard_and_worker_and_each_names_its_own_keys() {
    let fettle = TestBox::start(Setup { layout: Layout::Two, ..Setup::with(repository::solving().script()) });
    let fettle = fettle.await.unwrap();
    says(&fettle, WORKER, "working for ").await;
    edit(&fettle, "internal_listen = '127.0.0.1:0'", "internal_listen = '127.0.0.1:1'");
    edit(&fettle, "[agent]\n", "[agent]\nworkers = 2\n");
    edit(&fettle, "[forge]\n", "[telemetry]\nlog = 'debug'\n[forge]\n");
    let worker_key = fettle.config().with_file_name("keys/worker");
    fs_err::write(worker_key, "canary-of-another-worker-key").unwrap();
    fettle.process(SERVER).hang_up();
    fettle.process(WORKER).hang_up();
    says(&fettle, SERVER, "in force now: telemetry.log").await;
    says(&fettle, SERVER, "needs a restart: auth.worker_key_file, server.internal_listen").await;
    says(&fettle, WORKER, "in force now: telemetry.log").await;
    says(&fettle, WORKER, "needs a restart: agent.workers").await;
}
