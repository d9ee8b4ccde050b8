//! The API as many people use it at once: reads, writes and live followers over a ledger with a long history.
//!
//! Reads are set beside `/healthz` of the same seconds, since the machine's own speed is no merit.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use camino::Utf8Path;
use fettle_test_kit::measure::home;
use fettle_test_kit::measure::process::{cpu_time, load_average, resident_bytes};
use fettle_test_kit::measure::report::{Figure, Report, Target};
use futures::{SinkExt as _, StreamExt as _};
use jiff::Timestamp;
use reqwest::{Client, Method};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use super::server::Server;

/// What the API promises of reads at this load.
const READ_P95_MS: f64 = 25.0;
const RESTART_MS: f64 = 2_000.0;
/// Requests a second of all users together, and beside them to the trivial route.
const REQUESTS: u32 = 200;
const TRIVIAL: u32 = 20;
const EVENTS_OF_A_TASK: u64 = 100;
/// Each event goes to all followers, so most look at one Task each and these at all.
const FOLLOW_ALL_IN: usize = 10;
/// An answer that takes longer is a failure of the benchmark.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// Connections and threads are there when the clock starts.
const WARM_UP: Duration = Duration::from_secs(1);
const PASSWORD: &str = "mohnfeld-quirlt-19-laternen";
const MEBIBYTE: f64 = 1024.0 * 1024.0;

/// How the benchmark is run.
#[derive(Debug, Clone, Copy)]
pub struct ApiOptions<'a> {
    /// Where the ledger lies; on a disk.
    pub folder: &'a Utf8Path,
    /// A tenth of everything but the rate.
    pub quick: bool,
}

struct Size {
    users: usize,
    followers: usize,
    events: u64,
    time: Duration,
}

impl Size {
    fn new(quick: bool) -> Self {
        match quick {
            true => Self { users: 20, followers: 100, events: 100_000, time: Duration::from_secs(5) },
            false => Self { users: 100, followers: 1_000, events: 1_000_000, time: Duration::from_secs(30) },
        }
    }
}

/// Somebody who uses the API.
#[derive(Clone)]
struct User {
    client: Client,
    base: String,
    token: String,
    /// As a reverse proxy would say: limits go by it.
    address: String,
}

impl User {
    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<(u16, Value)> {
        let mut request =
            self.client.request(method, format!("{}{path}", self.base)).header("x-forwarded-for", &self.address);
        if !self.token.is_empty() {
            request = request.bearer_auth(&self.token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await.with_context(|| format!("while asking for {path}"))?;
        let status = answer.status().as_u16();
        let text = answer.bytes().await?;
        Ok((status, serde_json::from_slice(&text).unwrap_or(Value::Null)))
    }

    async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let (status, body) = self.ask(Method::GET, path, None).await?;
        ensure!(status == 200, "{path} was answered by {status}: {body}");
        Ok(body)
    }
}

/// What was seen under load.
#[derive(Default)]
struct Seen {
    reads: Vec<f64>,
    by_address: BTreeMap<&'static str, Vec<f64>>,
    writes: Vec<f64>,
    trivial: Vec<f64>,
    refused: u64,
}

/// Measures one Fettle with a ledger that is filled first. State lies below `folder`.
pub async fn api(options: ApiOptions<'_>) -> anyhow::Result<Report> {
    let load = load_average()?;
    let size = Size::new(options.quick);
    let own = home(options.folder)?;
    let home = Utf8Path::from_path(own.path()).context("a folder's name is text")?;
    let config = home.join("fettle.toml");
    fs_err::write(&config, "[server]\ntrusted_proxies = [\"127.0.0.1\"]\n")?;

    let server = Server::start(home, Some(&config)).await?;
    let admin = admin(home, server.address)?;
    let template = probe(&admin).await?;
    server.stop().await?;
    let begun = Instant::now();
    let filled = {
        let (home, events) = (home.to_owned(), size.events);
        tokio::task::spawn_blocking(move || fill(&home, &template, events)).await.context("filling panicked")??
    };
    let filled_in = begun.elapsed();

    let server = Server::start(home, Some(&config)).await?;
    let restart = server.ready_after;
    let admin = User { base: format!("http://{}", server.address), ..admin };
    let users = users(&admin, size.users).await?;
    let page = admin.get("/api/v1/tasks?limit=200").await?;
    let tasks: Vec<(String, String)> = page["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|task| Some(task["id"].as_str()?.to_owned()))
        .map(|id| (id, String::new()))
        .collect();
    let tasks = with_runs(&admin, tasks).await?;

    let bare = resident_bytes(server.pid())? as f64 / MEBIBYTE;
    let told = Arc::new(Told::default());
    let mut followers = JoinSet::new();
    for nth in 0..size.followers {
        let user = &users[nth % users.len()];
        let topic = match nth % FOLLOW_ALL_IN {
            0 => "tasks".to_owned(),
            _ => format!("task:{}", tasks[nth % tasks.len()].0),
        };
        let socket = follow(server.address, user, &topic).await.with_context(|| format!("at follower {nth}"))?;
        followers.spawn(listen(socket, nth % FOLLOW_ALL_IN == 0, told.clone()));
    }
    let followed = resident_bytes(server.pid())? as f64 / MEBIBYTE;

    let cpu = cpu_time(server.pid())?;
    let seen = work(&users, &tasks, size.time).await?;
    let used = cpu_time(server.pid())?.saturating_sub(cpu);
    // What was written last is told as well.
    sleep(WARM_UP).await;
    let worked = resident_bytes(server.pid())? as f64 / MEBIBYTE;
    ensure!(
        followers.try_join_next().is_none(),
        "a follower was cut off; the server's log ends with:\n{}",
        server.tail()
    );
    told.over.store(true, Ordering::Relaxed);
    followers.abort_all();
    server.stop().await?;
    let again = Server::start(home, Some(&config)).await?;
    let starts = vec![restart.as_secs_f64() * 1000.0, again.ready_after.as_secs_f64() * 1000.0];
    again.stop().await?;

    let on_wire = std::mem::take(&mut *told.latencies.lock().await);
    let (reads, trivial) = (quantile(&seen.reads, 0.95), quantile(&seen.trivial, 0.95));
    let figures = vec![
        Figure::new("reads, p95", "ms", Some(Target::AtMost(READ_P95_MS)), vec![reads]),
        Figure::new("reads, p95 ÷ p95 of /healthz", "", None, vec![reads / trivial]),
        Figure::new("reads, median", "ms", None, vec![quantile(&seen.reads, 0.5)]),
        Figure::new("/healthz, p95", "ms", None, vec![trivial]),
        Figure::new("writes (a probe is made), p95", "ms", None, vec![quantile(&seen.writes, 0.95)]),
        Figure::of("from commit to the wire, p95", "ms", None, some(&on_wire, 0.95)),
        Figure::of("from commit to the wire, median", "ms", None, some(&on_wire, 0.5)),
        Figure::new("ready after a restart", "ms", Some(Target::AtMost(RESTART_MS)), starts),
        Figure::new("VmRSS before the followers", "MiB", None, vec![bare]),
        Figure::new("VmRSS with the followers", "MiB", None, vec![followed]),
        Figure::new("VmRSS after the load", "MiB", None, vec![worked]),
        Figure::new("the server meanwhile", "cores", None, vec![used.as_secs_f64() / size.time.as_secs_f64()]),
    ];
    let by_address = seen.by_address.iter().map(|(of, took)| format!("{of} {:.1}", quantile(took, 0.95)));
    let by_address = by_address.collect::<Vec<_>>().join(", ");
    let answered = seen.reads.len() + seen.writes.len();
    let notes = vec![
        format!(
            "{filled} events of {} Tasks, written in {:.1} s; {} users, {} followers, of which one in {FOLLOW_ALL_IN} follows all Tasks",
            filled / EVENTS_OF_A_TASK,
            filled_in.as_secs_f64(),
            size.users,
            size.followers,
        ),
        format!(
            "{answered} requests in {} s ({REQUESTS}/s were wanted), {} refused; {} events told",
            size.time.as_secs(),
            seen.refused,
            told.events.load(Ordering::Relaxed),
        ),
        format!("p95 of reads in ms: {by_address}"),
        "users, followers and server share the cores, unpinned".to_owned(),
    ];
    Report::new("api", load, figures, notes)
}

/// The value below which this part of them is.
fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let nth = (sorted.len() as f64 * part) as usize;
    sorted.get(nth.min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

fn some(values: &[f64], part: f64) -> Vec<f64> {
    if values.is_empty() { Vec::new() } else { vec![quantile(values, part)] }
}

fn admin(home: &Utf8Path, address: SocketAddr) -> anyhow::Result<User> {
    let token = fs_err::read_to_string(home.join("data/admin.key"))?.trim().to_owned();
    let client = Client::builder().no_proxy().timeout(ANSWER_LIMIT).build()?;
    Ok(User { client, base: format!("http://{address}"), token, address: "127.0.0.1".to_owned() })
}

/// The id of a Task that has gone all its way: what the history is made of.
async fn probe(admin: &User) -> anyhow::Result<String> {
    let (status, made) = admin.ask(Method::POST, "/api/v1/tasks", Some(&json!({"mode": "probe"}))).await?;
    ensure!(status == 201, "a probe was answered by {status}: {made}");
    let id = made["task"]["id"].as_str().context("a Task has an id")?.to_owned();
    let ended = async {
        loop {
            if admin.get(&format!("/api/v1/tasks/{id}")).await?["state"] == "done" {
                return anyhow::Ok(());
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(ANSWER_LIMIT, ended).await.context("the probe did not end")??;
    Ok(id)
}

/// Copies the Task until there are so many events; how many there are then. By SQL: a million commits would take an hour.
fn fill(home: &Utf8Path, template: &str, events: u64) -> anyhow::Result<u64> {
    let file = home.join("data/ledger").join(fettle_store_sqlite::DATABASE_FILE);
    let ledger = rusqlite::Connection::open(file)?;
    let digits = template.strip_prefix("task_").context("a Task's id begins with its kind")?;
    let copies = i64::try_from(events / EVENTS_OF_A_TASK)?;
    // Ids whose last four bytes are the number of the copy.
    let id = |column: &str| format!("CAST(substr({column}, 1, 12) || unhex(printf('%08x', n)) AS BLOB)");
    let of = format!("x'{digits}'");
    let columns = |table: &str| -> anyhow::Result<Vec<String>> {
        let mut statement = ledger.prepare(&format!("SELECT name FROM pragma_table_info('{table}')"))?;
        let names = statement.query_map((), |row| row.get(0))?.collect::<Result<_, _>>()?;
        Ok(names)
    };
    let copy = |table: &str, whose: &str, other: &[(&str, String)], left_out: &[&str]| -> anyhow::Result<String> {
        let names: Vec<String> =
            columns(table)?.into_iter().filter(|name| !left_out.contains(&name.as_str())).collect();
        let values: Vec<String> = names
            .iter()
            .map(|name| {
                other.iter().find(|(one, _)| one == name).map_or(format!("old.{name}"), |(_, value)| value.clone())
            })
            .collect();
        Ok(format!(
            "INSERT INTO {table} ({}) SELECT {} FROM numbers, {table} AS old WHERE {whose}",
            names.join(", "),
            values.join(", "),
        ))
    };
    let task = [
        ("id", id("old.id")),
        ("event_seq", EVENTS_OF_A_TASK.to_string()),
        ("created_at", "old.created_at - 1000 * n".to_owned()),
    ];
    let job = [("id", id("old.id")), ("task_id", id("old.task_id"))];
    let run = [("id", id("old.id")), ("task_id", id("old.task_id")), ("job_id", id("old.job_id"))];
    let statements = [
        format!(
            "CREATE TEMP TABLE numbers AS WITH RECURSIVE up (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM up WHERE n < {copies})
             SELECT n FROM up"
        ),
        copy("task", &format!("old.id = {of}"), &task, &[])?,
        copy("job", &format!("old.task_id = {of}"), &job, &["seq"])?,
        copy("run", &format!("old.task_id = {of}"), &run, &[])?,
        format!("INSERT INTO intent (key, task_id) SELECT 'bench:' || n, {} FROM numbers", id(&of)),
        format!(
            "CREATE TEMP TABLE told AS WITH RECURSIVE up (k) AS (SELECT 1 UNION ALL SELECT k + 1 FROM up WHERE k < {EVENTS_OF_A_TASK})
             SELECT k, (SELECT body FROM event WHERE task_id = {of} AND (task_seq = k OR task_seq <= 2)
                        ORDER BY task_seq DESC LIMIT 1) AS body FROM up"
        ),
        format!(
            "INSERT INTO event (task_id, task_seq, at, correlation_id, body)
             SELECT {}, k, old.created_at, old.correlation_id, told.body FROM numbers, told, task AS old
             WHERE old.id = {of} ORDER BY n, k",
            id("old.id"),
        ),
    ];
    ledger.execute_batch(&format!("PRAGMA foreign_keys = ON; BEGIN IMMEDIATE; {}; COMMIT;", statements.join(";\n")))?;
    let kept: i64 = ledger.query_one("SELECT count(*) FROM event", (), |row| row.get(0))?;
    ledger.close().map_err(|(_, error)| error)?;
    Ok(kept.try_into()?)
}

async fn users(admin: &User, count: usize) -> anyhow::Result<Vec<User>> {
    let mut users = Vec::new();
    for nth in 0..count {
        let name = format!("user{nth}");
        let body = json!({"username": name, "email": format!("{name}@example.org"), "password": PASSWORD, "role": "maintainer"});
        let (status, made) = admin.ask(Method::POST, "/api/v1/users", Some(&body)).await?;
        ensure!(status == 201, "an account was answered by {status}: {made}");
        let address = format!("10.0.{}.{}", nth / 250, nth % 250 + 1);
        let user = User { token: String::new(), address, ..admin.clone() };
        let body = json!({"username": name, "password": PASSWORD});
        let (status, given) = user.ask(Method::POST, "/api/auth/login", Some(&body)).await?;
        ensure!(status == 200, "a sign-in was answered by {status}: {given}");
        let token = given["accessToken"].as_str().context("a sign-in gives a token")?.to_owned();
        users.push(User { token, ..user });
    }
    Ok(users)
}

/// Each Task with the id of its Run.
async fn with_runs(admin: &User, tasks: Vec<(String, String)>) -> anyhow::Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for (id, _) in tasks {
        let task = admin.get(&format!("/api/v1/tasks/{id}")).await?;
        found.push((id, task["run"]["id"].as_str().context("a Task has a Run")?.to_owned()));
    }
    Ok(found)
}

#[derive(Default)]
struct Told {
    events: AtomicU64,
    /// Of those who follow all Tasks, in milliseconds, by the clock that both sides share.
    latencies: Mutex<Vec<f64>>,
    over: AtomicBool,
}

async fn follow(address: SocketAddr, user: &User, topic: &str) -> anyhow::Result<WebSocketStream<TcpStream>> {
    let mut request = format!("ws://{address}/api/v1/live").into_client_request()?;
    request.headers_mut().insert("authorization", format!("Bearer {}", user.token).parse()?);
    request.headers_mut().insert("x-forwarded-for", user.address.parse()?);
    let stream = TcpStream::connect(address).await.context("while connecting")?;
    let (mut socket, _) = timeout(ANSWER_LIMIT, tokio_tungstenite::client_async(request, stream)).await??;
    socket.send(Message::text(json!({"type": "subscribe", "topic": topic}).to_string())).await?;
    let first = timeout(ANSWER_LIMIT, socket.next()).await?.context("the connection ended")??;
    ensure!(first.to_text()?.contains("\"subscribed\""), "{first}");
    Ok(socket)
}

/// Counts what is told until the connection ends.
async fn listen(mut socket: WebSocketStream<TcpStream>, all: bool, told: Arc<Told>) {
    while let Some(Ok(message)) = socket.next().await {
        let Message::Text(text) = message else { continue };
        told.events.fetch_add(1, Ordering::Relaxed);
        if !all || told.over.load(Ordering::Relaxed) {
            continue;
        }
        let at = text.split_once("\"at\":\"").and_then(|(_, rest)| rest.split_once('"')?.0.parse::<Timestamp>().ok());
        if let Some(at) = at {
            let took = now().duration_since(at).as_secs_f64() * 1000.0;
            told.latencies.lock().await.push(took);
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "it is compared with the clock of the server, on the same machine")]
fn now() -> Timestamp {
    Timestamp::now()
}

/// Everybody at work for `time`.
async fn work(users: &[User], tasks: &[(String, String)], time: Duration) -> anyhow::Result<Seen> {
    let mut asking = JoinSet::new();
    let (mut due, mut trivial) =
        (interval(Duration::from_secs(1) / REQUESTS), interval(Duration::from_secs(1) / TRIVIAL));
    let begun = Instant::now();
    let end = begun + WARM_UP + time;
    let mut nth: usize = 0;
    let mut seen = Seen::default();
    while Instant::now() < end {
        let counts = begun.elapsed() >= WARM_UP;
        tokio::select! {
            at = due.tick() => {
                let user = users[nth % users.len()].clone();
                let (task, run) = &tasks[nth * 7 % tasks.len()];
                let (kind, method, path, body) = what(nth, task, run);
                nth += 1;
                asking.spawn(async move {
                    let (status, _) = user.ask(method, &path, body.as_ref()).await?;
                    // From when it was due: a late start is somebody's wait as well.
                    anyhow::Ok((kind, counts, status, at.elapsed()))
                });
            }
            at = trivial.tick() => {
                let user = users[0].clone();
                asking.spawn(async move {
                    let (status, _) = user.ask(Method::GET, "/healthz", None).await?;
                    Ok((Kind::Trivial, counts, status, at.elapsed()))
                });
            }
            Some(done) = asking.join_next() => seen.take(done.context("an asker panicked")??)?,
        }
    }
    while let Some(done) = asking.join_next().await {
        seen.take(done.context("an asker panicked")??)?;
    }
    Ok(seen)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Of what, for people.
    Read(&'static str),
    Write,
    Trivial,
}

/// In a hundred: 2 writes; reads of a Task, lists, its Runs, steps and messages, queue and overview.
fn what(nth: usize, task: &str, run: &str) -> (Kind, Method, String, Option<Value>) {
    let read = |of, path: String| (Kind::Read(of), Method::GET, path, None);
    match nth % 50 {
        0 => (Kind::Write, Method::POST, "/api/v1/tasks".to_owned(), Some(json!({"mode": "probe"}))),
        1..=15 => read("list of Tasks", "/api/v1/tasks?limit=50".to_owned()),
        16..=20 => read("Runs", format!("/api/v1/tasks/{task}/runs")),
        21..=25 => read("steps", format!("/api/v1/runs/{run}/steps")),
        26..=28 => read("messages", format!("/api/v1/tasks/{task}/messages")),
        29..=31 => read("queue", "/api/v1/queue".to_owned()),
        32..=34 => read("overview", "/api/v1/overview".to_owned()),
        _ => read("a Task", format!("/api/v1/tasks/{task}")),
    }
}

impl Seen {
    fn take(&mut self, (kind, counts, status, took): (Kind, bool, u16, Duration)) -> anyhow::Result<()> {
        ensure!(status < 500 || status == 503, "an answer was {status}");
        if !counts {
            return Ok(());
        }
        if status >= 400 {
            self.refused += 1;
            return Ok(());
        }
        let ms = took.as_secs_f64() * 1000.0;
        match kind {
            Kind::Read(of) => {
                self.reads.push(ms);
                self.by_address.entry(of).or_default().push(ms);
            }
            Kind::Write => self.writes.push(ms),
            Kind::Trivial => self.trivial.push(ms),
        }
        Ok(())
    }
}
