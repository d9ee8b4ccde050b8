//! People's commands as processes, against a real dashboard on a port of its own. No worker: a probe stays queued.

#![expect(clippy::unwrap_used, reason = "these are tests")]

use std::process::{Output, Stdio};
use std::time::Duration;

use camino::Utf8PathBuf;
use fettle_api::ProbeTiming;
use fettle_dashboard::{Credentials, Running, Start};
use fettle_domain::lease::Timing;
use fettle_git::{Git, GitOptions};
use fettle_runtime::config::Config;
use fettle_runtime::data::DataDir;
use fettle_runtime::environment::Environment;
use fettle_runtime::supervisor::Supervisor;
use fettle_runtime::system::RandomIds;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::time::timeout;

/// Every command here answers within a second; a machine under load may need more.
const LIMIT: Duration = Duration::from_secs(60);

struct World {
    home: tempfile::TempDir,
    running: Running,
    supervisor: Supervisor,
}

impl World {
    async fn new() -> Self {
        fettle_runtime::install_tls();
        let home = tempfile::tempdir().unwrap();
        let folder = Utf8PathBuf::try_from(home.path().join("data")).unwrap();
        // A probe asks no forge; whoever did would find nobody.
        let config =
            Config::parse("test", "[forge]\napi_url = \"http://127.0.0.1:1\"\n", &Environment::default()).unwrap();
        let data = DataDir::open(Some(&folder), &config, &Environment::default()).unwrap();
        let credentials = Credentials::load(&config, &data, &RandomIds).unwrap();
        let supervisor = Supervisor::default();
        let running = fettle_dashboard::start(Start {
            config_file: None,
            broker: None,
            config: &config,
            data: &data,
            credentials: &credentials,
            git: Git::new(GitOptions::new(data.publisher_mirrors())).unwrap(),
            timing: Timing::for_tests(),
            probing: ProbeTiming::default(),
            listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
            pods: None,
            gateway: None,
            internal: None,
            registry: prometheus::Registry::new(),
            supervisor: &supervisor,
        })
        .await
        .unwrap();
        Self { home, running, supervisor }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        command(self.home.path(), arguments)
    }

    async fn fettle(&self, arguments: &[&str]) -> Output {
        run(self.command(arguments)).await
    }

    async fn json(&self, arguments: &[&str]) -> Value {
        let output = self.fettle(arguments).await;
        assert!(output.status.success(), "{arguments:?}: {}", err(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    async fn end(self) -> tempfile::TempDir {
        self.supervisor.shutdown().cancel();
        timeout(LIMIT, self.supervisor.ended()).await.unwrap().unwrap();
        self.running.close().await;
        self.home
    }
}

fn command(home: &std::path::Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fettle"));
    command.args(arguments).arg("--data-dir").arg(home.join("data")).current_dir(home);
    command.env_clear().env("HOME", home).env("PATH", "/usr/bin:/bin").env("TZ", "UTC");
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn run(mut command: Command) -> Output {
    timeout(LIMIT, command.output()).await.expect("the command ends").unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[tokio::test]
async fn a_task_is_submitted_listed_looked_at_cancelled_and_tried_again() {
    let world = World::new().await;
    let submitted = world.json(&["submit", "--mode", "probe", "--idempotency-key", "once", "--json"]).await;
    let id = submitted["task"]["id"].as_str().unwrap().to_owned();
    assert_eq!((&submitted["opened"], &submitted["task"]["state"]), (&"new".into(), &"queued".into()));
    let again = world.fettle(&["submit", "--mode", "probe", "--idempotency-key", "once"]).await;
    assert!(out(&again).starts_with(&format!("{id} was made by the same request before\n")), "{}", out(&again));

    let list = out(&world.fettle(&["tasks", "--state", "queued"]).await);
    let cells: Vec<&str> = list.trim_end().split('\t').collect();
    assert_eq!((cells[0], cells[1], cells[2], cells[3], cells[5]), (id.as_str(), "queued", "-", "probe", "-"));
    let page = world.json(&["tasks", "--state", "done", "--json"]).await;
    assert_eq!(page, serde_json::json!({ "items": [], "next": null }));

    let shown = out(&world.fettle(&["task", "show", &id]).await);
    assert!(shown.contains(&format!("  task      {id}\n")) && shown.contains("  state     queued\n"), "{shown}");
    let log = out(&world.fettle(&["task", "log", &id]).await);
    assert!(log.lines().count() == 1 && log.ends_with(" task       probe (probe, by api)\n"), "{log}");

    let cancelled = world.fettle(&["task", "cancel", &id]).await;
    assert_eq!(out(&cancelled), format!("cancelled {id}\n"));
    let followed = world.fettle(&["task", "log", "-f", &id, "--json"]).await;
    let events: Vec<Value> = out(&followed).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.last().unwrap()["what"]["type"], "task_cancelled");
    let retried = world.json(&["task", "retry", &id, "--json"]).await;
    assert!(retried["state"] == "queued", "{retried}");
    world.end().await;
}

#[tokio::test]
async fn whoever_waits_is_told_how_the_task_ended() {
    let world = World::new().await;
    let mut waiting = world.command(&["submit", "--mode", "probe", "--wait"]);
    let mut waiting = waiting.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(waiting.stderr.take().unwrap()).lines();
    let line = timeout(LIMIT, lines.next_line()).await.unwrap().unwrap().unwrap();
    let id = line.strip_prefix("submitted ").and_then(|rest| rest.strip_suffix(": probe")).expect(&line);
    world.json(&["task", "cancel", id, "--json"]).await;
    let output = timeout(LIMIT, waiting.wait_with_output()).await.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(out(&output).ends_with("CANCELLED\n") && out(&output).contains("task       cancelled"), "{}", out(&output));
    world.end().await;
}

#[tokio::test]
async fn a_refusal_says_what_to_do_and_never_shows_the_key() {
    let world = World::new().await;
    let key = world.home.path().join("wrong.key");
    fs_err::write(&key, "fettle_not-the-real-key\n").unwrap();
    let refused = world.fettle(&["tasks", "--key-file", key.to_str().unwrap()]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        err(&refused).contains("does not accept the admin key in") && err(&refused).contains("wrong.key"),
        "{}",
        err(&refused)
    );
    assert!(!err(&refused).contains("not-the-real-key"));

    let unknown = world.fettle(&["submit", "--mode", "probe", "--model", "nobody"]).await;
    assert!(
        err(&unknown).contains("/model: there is no model `nobody`") && err(&unknown).contains("request request_"),
        "{}",
        err(&unknown)
    );
    let cursor = world.fettle(&["tasks", "--after", "elsewhere"]).await;
    assert!(err(&cursor).contains("?after: This is not the `next` of a page."), "{}", err(&cursor));
    let absent = world.fettle(&["task", "show", "task_019aa0c5a3c07d6b9f0e2f3a4b5c6d7e"]).await;
    assert!(absent.status.code() == Some(1) && err(&absent).starts_with("error: Not found: "), "{}", err(&absent));
    for misuse in [&["submit"][..], &["submit", "--repo", "o/r"], &["task", "show", "7"], &["tasks", "--limit", "0"]] {
        let output = world.fettle(misuse).await;
        assert_eq!(output.status.code(), Some(2), "{misuse:?}: {}", err(&output));
    }

    let home = world.end().await;
    let alone = run(command(home.path(), &["tasks"])).await;
    assert!(
        err(&alone).contains("nothing listens on http://127.0.0.1:") && err(&alone).contains("`fettle up`"),
        "{}",
        err(&alone)
    );
}

/// Standard input of a command that was given a password there.
async fn typed(world: &World, arguments: &[&str], password: &str) -> Output {
    let mut child = world.command(arguments);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(password.as_bytes()).await.unwrap();
    drop(input);
    timeout(LIMIT, child.wait_with_output()).await.expect("the command ends").unwrap()
}

#[tokio::test]
async fn whoever_has_the_machine_makes_accounts_and_lets_people_in_again() {
    let world = World::new().await;
    let sign_in = async |password: String| {
        let url = format!("http://{}/api/auth/login", world.running.address);
        let body = serde_json::json!({ "username": "ada", "password": password });
        let http = reqwest::Client::builder().timeout(LIMIT).no_proxy().build().unwrap();
        http.post(url).json(&body).send().await.unwrap().status().as_u16()
    };
    let none = world.fettle(&["admin", "users", "list"]).await;
    assert!(out(&none).starts_with("no accounts; "), "{}", out(&none));
    let add = ["admin", "users", "add", "Ada", "--email", "ada@example.org", "--role", "admin"];
    let made = world.fettle(&add).await;
    assert!(made.status.success(), "{}", err(&made));
    let told = out(&made);
    let mut lines = told.lines();
    assert_eq!(lines.next(), Some("added ada: admin, active"));
    let password = lines.next().unwrap().to_owned();
    assert_eq!(sign_in(password.clone()).await, 200);
    let twice = world.fettle(&add).await;
    assert!(twice.status.code() == Some(1) && err(&twice).contains("taken"), "{}", err(&twice));

    // Locked out by wrong passwords, and let in with a new one.
    for _ in 0..5 {
        assert_eq!(sign_in("wrong".into()).await, 401);
    }
    assert_eq!(sign_in(password).await, 401);
    let new = typed(
        &world,
        &["admin", "users", "password", "ada@example.org", "--password-file", "-"],
        "mohn quirlt im herbst 7\n",
    );
    let new = new.await;
    assert_eq!(out(&new), "set the password of ada: admin, active\n", "{}", err(&new));
    assert_eq!(sign_in("mohn quirlt im herbst 7".into()).await, 200);
    let weak = typed(&world, &["admin", "users", "password", "ada", "--password-file", "-"], "password1234").await;
    assert!(weak.status.code() == Some(1) && err(&weak).contains("guessed"), "{}", err(&weak));

    let last = world.fettle(&["admin", "users", "set", "ada", "--active", "false"]).await;
    assert!(err(&last).contains("last active admin"), "{}", err(&last));
    let eve = world.json(&["admin", "users", "add", "eve", "--email", "eve@example.org", "--json"]).await;
    assert_eq!((&eve["role"], eve["password"].is_string()), (&"viewer".into(), true));
    let set = world.fettle(&["admin", "users", "set", "eve", "--role", "maintainer", "--active", "false"]).await;
    assert_eq!(out(&set), "changed eve: maintainer, inactive\n");
    let listed = world.json(&["admin", "users", "list", "--json"]).await;
    let names: Vec<&str> =
        listed["items"].as_array().unwrap().iter().filter_map(|one| one["username"].as_str()).collect();
    assert_eq!(names, ["ada", "eve"]);
    let table = out(&world.fettle(&["admin", "users", "list"]).await);
    assert!(table.contains("eve   maintainer  inactive"), "{table}");
    let nobody = world.fettle(&["admin", "users", "set", "mallory", "--active", "false"]).await;
    assert!(err(&nobody).contains("there is no account `mallory`"), "{}", err(&nobody));
    assert_eq!(world.fettle(&["admin", "users", "set", "ada"]).await.status.code(), Some(2), "nothing to change");

    let log = out(&world.fettle(&["admin", "audit-log", "--limit", "1"]).await);
    let cells: Vec<&str> = log.trim_end().split('\t').collect();
    assert_eq!((cells[1], cells[2], cells[3]), ("done", "admin", "users.change"), "{log}");
    let whole = world.json(&["admin", "audit-log", "--verify", "--json"]).await;
    assert!(whole["entries"].as_u64().unwrap() > 10 && whole["broken_from"].is_null(), "{whole}");
    world.end().await;
}

#[tokio::test]
async fn a_feed_that_breaks_off_goes_on_after_its_last_event() {
    let home = tempfile::tempdir().unwrap();
    let key = home.path().join("key");
    fs_err::write(&key, "fettle_some-key\n").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let event = |seq: u32, title: &str| {
        let what = format!(
            r#"{{"type":"step","seq":{seq},"kind":"tool_call","phase":"fix","title":"{title}","calls":1,"generated_tokens":2,"prompt_tokens":3,"took_ms":4}}"#
        );
        format!(
            "id: {seq}\ndata: {{\"seq\":{seq},\"task_id\":\"t\",\"task_seq\":{seq},\"at\":\"2026-11-20T12:03:11Z\",\"correlation_id\":\"c\",\"what\":{what}}}\n\n"
        )
    };
    let server = async {
        let (mut first, head) = accept(&listener).await;
        assert!(!head.contains("last-event-id") && head.contains("authorization: bearer fettle_some-key"), "{head}");
        let begun = format!("retry: 10\n\n{}id: 2\ndata: {{\"cut o", event(1, "view src/lib.rs"));
        first.write_all(begun.as_bytes()).await.unwrap();
        drop(first);
        let (mut refused, _) = accept(&listener).await;
        refused.shutdown().await.unwrap();
        let (mut second, head) = accept(&listener).await;
        assert!(head.contains("last-event-id: 1\r\n"), "{head}");
        let rest = format!("{}event: end\ndata: {{}}\n\n", event(2, "str_replace src/lib.rs"));
        second.write_all(rest.as_bytes()).await.unwrap();
        // Stays open: the end is told by its message.
        second
    };
    let arguments = [
        "task",
        "log",
        "-f",
        "task_019aa0c5a3c07d6b9f0e2f3a4b5c6d7e",
        "--url",
        &url,
        "--key-file",
        key.to_str().unwrap(),
    ];
    let (_open, output) =
        timeout(LIMIT, async { tokio::join!(server, run(command(home.path(), &arguments))) }).await.unwrap();
    assert!(output.status.success(), "{}", err(&output));
    assert_eq!(out(&output), "12:03:11 fix        view src/lib.rs\n12:03:11 fix        str_replace src/lib.rs\n");
    assert!(err(&output).contains("the event feed broke off; trying again"), "{}", err(&output));
}

/// A connection that has sent its request, the head of which is given in lower case and was answered with 200.
async fn accept(listener: &TcpListener) -> (TcpStream, String) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n").await.unwrap();
    (stream, String::from_utf8(head).unwrap().to_lowercase())
}

#[tokio::test]
async fn the_doctor_names_each_check_and_fails_when_one_does() {
    let world = World::new().await;
    let output = world.fettle(&["doctor", "--json"]).await;
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = found["checks"].as_array().unwrap();
    let status =
        |id: &str| checks.iter().find(|check| check["id"] == id).map(|check| check["status"].as_str().unwrap());
    for (id, expected) in [
        ("config", "ok"),
        ("data", "ok"),
        ("models", "warn"),
        ("forge", "warn"),
        ("webhook", "warn"),
        ("dashboard", "ok"),
    ] {
        assert_eq!(status(id), Some(expected), "{id} in {found:#}");
    }
    assert!(
        status("sandbox").is_some() && status("disk").is_some() && status("toolchain.pytest").is_some(),
        "{found:#}"
    );
    assert!(checks.iter().all(|check| check["status"] == "ok" || check["remedy"].is_string()), "{found:#}");
    let failed = checks.iter().any(|check| check["status"] == "fail");
    assert_eq!((found["ok"].as_bool(), output.status.success()), (Some(!failed), !failed));
    let left: Vec<_> = fs_err::read_dir(world.home.path().join("data/cache/runs")).into_iter().flatten().collect();
    assert!(left.is_empty(), "{left:?}");

    fs_err::write(world.home.path().join("bad.toml"), "[serfer]\n").unwrap();
    let broken = world.fettle(&["doctor", "--config", "bad.toml"]).await;
    assert_eq!(broken.status.code(), Some(1));
    assert!(out(&broken).starts_with("FAIL  config"), "{}", out(&broken));
    world.end().await;
}

#[tokio::test]
async fn a_configuration_is_accepted_or_refused_with_its_line() {
    let home = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| fs_err::write(home.path().join(name), text).unwrap();
    file("good.toml", "[server]\nlisten = \"127.0.0.1:9999\"\n[forge]\nwebhook_secret_file = \"/nowhere/secret\"\n");
    file("bad.toml", "[server]\nlissten = \"127.0.0.1:9999\"\n");
    let check = |arguments: &'static [&str]| {
        let mut command = command(home.path(), &[&["check-config"], arguments].concat());
        command.env("FETTLE_SERVER__LISTEN", "nowhere");
        run(command)
    };
    let good = check(&["good.toml"]).await;
    assert!(
        good.status.success() && out(&good).starts_with("ok: good.toml: listens on 127.0.0.1:9999; "),
        "{}",
        out(&good)
    );
    assert!(err(&good).starts_with("warning: forge.webhook_secret_file: could not read"), "{}", err(&good));
    let bad = check(&["bad.toml"]).await;
    assert!(
        bad.status.code() == Some(1) && err(&bad).contains("lissten") && err(&bad).contains("line 2"),
        "{}",
        err(&bad)
    );
    let bad: Value = serde_json::from_slice(&check(&["bad.toml", "--json"]).await.stdout).unwrap();
    assert!(bad["ok"] == false && bad["error"].as_str().unwrap().contains("line 2"), "{bad}");
    let overridden = check(&["good.toml", "--with-environment"]).await;
    assert!(overridden.status.code() == Some(1) && err(&overridden).contains("server.listen"), "{}", err(&overridden));
    assert_eq!(check(&[]).await.status.code(), Some(2));

    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut unread = command(home.path(), &["check-config", "good.toml", "--json"]);
    unread.stdout(writer).stderr(Stdio::piped());
    let unread = timeout(LIMIT, unread.spawn().unwrap().wait_with_output()).await.unwrap().unwrap();
    assert_eq!(err(&unread), "", "whoever stops reading is not told of an error");
}
