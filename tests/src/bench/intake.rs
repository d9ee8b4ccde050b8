//! From a signed webhook to its durable 202, beside what the same server answers without storing and what the disk can.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use fettle_test_kit::measure::disk::{Flushes, STEADY, flush, is_steady, require_disk};
use fettle_test_kit::measure::home;
use fettle_test_kit::measure::process::{cpu_time, load_average};
use fettle_test_kit::measure::report::{Figure, Report, Target};
use serde_json::{Value, json};

use super::load::{Ids, Pace, Request, send};
use super::server::Server;
use crate::forge::{ForgeEmulator, ForgeOptions};

const CONNECTIONS: u32 = 64;
/// What GitHub sends for an issue with a short text.
const BODY_BYTES: usize = 6 * 1024;
const SECRET: &str = "the secret of a benchmark";
const ROUNDS: usize = 5;
/// Rounds in which the disk's speed changed are measured again, so many at most: the whole stays below two minutes.
const SPARE_ROUNDS: usize = 3;
/// Threads, caches and the log are there when the clock starts.
const WARM_UP: Duration = Duration::from_millis(300);
/// Without storing, figures are steady at once.
const UNSTORED: Duration = Duration::from_millis(1500);
/// Long enough for checkpoints of the ledger to be in it.
const STORED: Duration = Duration::from_secs(3);

/// Answers a second that are enough on any disk.
const ENOUGH: f64 = 15_000.0;
/// Deliveries that share a flush of the disk, at least.
const PER_FLUSH: f64 = 20.0;
/// What storing may take of the speed.
const OF_UNSTORED: f64 = 0.4;
/// A delivery may meet a flush that has begun, wait for the next, and for one more.
const FLUSHES_IN_P99: f64 = 3.0;
const P99_ALLOWANCE: Duration = Duration::from_millis(2);

/// How the benchmark is run.
#[derive(Debug, Clone, Copy)]
pub struct IntakeOptions<'a> {
    /// Where the ledgers lie; on a disk.
    pub folder: &'a Utf8Path,
    /// Rounds that count.
    pub rounds: usize,
}

impl<'a> IntakeOptions<'a> {
    pub fn new(folder: &'a Utf8Path) -> Self {
        Self { folder, rounds: ROUNDS }
    }
}

/// What one round saw.
struct Round {
    before: Flushes,
    after: Flushes,
    unstored: f64,
    stored: f64,
    p99_at_half: Duration,
    /// Cores that the server used while it stored as fast as it could, and those that the senders used.
    server_cores: f64,
    senders_cores: f64,
    accepted: u64,
    /// Of the accepted ones, those that intake had closed by the end.
    closed: u64,
}

impl Round {
    fn is_steady(&self) -> bool {
        is_steady(&self.before, &self.after)
    }

    fn flushes_per_second(&self) -> f64 {
        self.before.per_second.midpoint(self.after.per_second)
    }

    /// Half of the flushes took no longer.
    fn flush(&self) -> Duration {
        (self.before.median + self.after.median) / 2
    }

    fn target(&self) -> f64 {
        (PER_FLUSH * self.flushes_per_second()).min(ENOUGH)
    }

    fn p99_limit(&self) -> Duration {
        self.flush().mul_f64(FLUSHES_IN_P99) + P99_ALLOWANCE
    }
}

/// Measures against new ledgers, one a round. Errors when an accepted delivery is not in its ledger.
pub async fn intake(options: IntakeOptions<'_>) -> anyhow::Result<Report> {
    require_disk(options.folder)?;
    let load = load_average()?;
    let body = serde_json::to_vec(&payload().await?)?;
    let requests = Requests {
        stored: Request::new("issues", SECRET, &body, "202"),
        unstored: Request::new("ping", SECRET, &body, "200"),
        ids: Ids::default(),
    };
    let (mut steady, mut unsteady) = (Vec::new(), Vec::new());
    while steady.len() < options.rounds && steady.len() + unsteady.len() < options.rounds + SPARE_ROUNDS {
        let round = round(options.folder, &requests).await?;
        if round.is_steady() { steady.push(round) } else { unsteady.push(round) }
    }
    let missing = options.rounds - steady.len();
    let left_out = unsteady.len() - missing;
    steady.extend(unsteady.into_iter().take(missing));
    report(load, &steady, left_out, missing)
}

struct Requests {
    stored: Request,
    unstored: Request,
    ids: Ids,
}

async fn round(folder: &Utf8Path, requests: &Requests) -> anyhow::Result<Round> {
    let own = home(folder)?;
    let home = Utf8Path::from_path(own.path()).context("a folder's name is text")?;
    let before = flush_in(home).await?;
    let server = Server::start(home, Some(&config(home)?)).await?;
    let load = async |request, pace, time| {
        let sent = send(server.address, CONNECTIONS, request, &requests.ids, pace, time).await;
        sent.with_context(|| format!("the server's log ends with:\n{}", server.tail()))
    };

    load(&requests.unstored, Pace::AsFastAsAnswered, WARM_UP).await?;
    let unstored = load(&requests.unstored, Pace::AsFastAsAnswered, UNSTORED).await?;
    let warm = load(&requests.stored, Pace::AsFastAsAnswered, WARM_UP).await?;
    let (server_before, own_before) = (cpu_time(server.pid())?, cpu_time(std::process::id())?);
    let stored = load(&requests.stored, Pace::AsFastAsAnswered, STORED).await?;
    let server_used = cpu_time(server.pid())?.saturating_sub(server_before);
    let own_used = cpu_time(std::process::id())?.saturating_sub(own_before);
    let halved = load(&requests.stored, Pace::PerSecond(stored.per_second / 2.0), STORED).await?;

    // As a crash would: what was answered with 202 must be there all the same.
    server.kill()?;
    let accepted = warm.count() + stored.count() + halved.count();
    let (kept, closed) = in_ledger(home)?;
    ensure!(
        kept == accepted,
        "{accepted} deliveries were accepted and {kept} are in the ledger: the difference was lost or stored twice"
    );
    Ok(Round {
        before,
        after: flush_in(home).await?,
        unstored: unstored.per_second,
        stored: stored.per_second,
        p99_at_half: halved.p99(),
        server_cores: server_used.as_secs_f64() / STORED.as_secs_f64(),
        senders_cores: own_used.as_secs_f64() / STORED.as_secs_f64(),
        accepted,
        closed,
    })
}

async fn flush_in(folder: &Utf8Path) -> anyhow::Result<Flushes> {
    let folder = folder.to_owned();
    tokio::task::spawn_blocking(move || flush(&folder)).await.context("measuring the disk panicked")?
}

/// A webhook secret, and a forge that does not exist: nothing of it is needed to close these deliveries.
fn config(home: &Utf8Path) -> anyhow::Result<Utf8PathBuf> {
    let (secret, config) = (home.join("webhook-secret"), home.join("fettle.toml"));
    fs_err::write(&secret, SECRET)?;
    fs_err::write(&config, format!("[forge]\napi_url = 'http://127.0.0.1:1'\nwebhook_secret_file = '{secret}'\n"))?;
    Ok(config)
}

/// The body of `issues.opened` without the label that asks for work: intake reads it and closes the delivery.
async fn payload() -> anyhow::Result<Value> {
    let forge = ForgeEmulator::start(ForgeOptions { app: None, folder: None }).await?;
    let repo = forge.create_repository("octo/bench", &[("README.md", "# bench\n")]).await?;
    let issue = forge.create_issue(&repo, "ann", "The upper bound is off by one", "");
    let mut payload = forge.issue_opened(&repo, issue);
    // The forty addresses that GitHub lists of a repository leave no room for the text of an issue.
    let repository = payload["repository"].as_object_mut().context("a payload tells of its repository")?;
    repository.retain(|name, _| !name.ends_with("_url") || matches!(name.as_str(), "clone_url" | "html_url"));
    let missing = BODY_BYTES
        .checked_sub(serde_json::to_vec(&payload)?.len())
        .context("a body without text is larger than the benchmark's")?;
    payload["issue"]["body"] = json!("clamp(7, 1, 5) gives 6. ".repeat(missing).get(..missing));
    Ok(payload)
}

/// Deliveries of the benchmark in the ledger that was left behind, and how many of them are closed.
fn in_ledger(home: &Utf8Path) -> anyhow::Result<(u64, u64)> {
    let file = home.join("data/ledger").join(fettle_store_sqlite::DATABASE_FILE);
    let ledger = rusqlite::Connection::open(file)?;
    let counted = "SELECT count(*), count(closed_at) FROM delivery";
    let (kept, closed): (i64, i64) = ledger.query_one(counted, (), |row| row.try_into())?;
    Ok((kept.try_into()?, closed.try_into()?))
}

fn report(load: f64, rounds: &[Round], left_out: usize, unsteady: usize) -> anyhow::Result<Report> {
    let each = |value: &dyn Fn(&Round) -> f64| -> Vec<f64> { rounds.iter().map(value).collect() };
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    let told = |name, unit, value: &dyn Fn(&Round) -> f64| Figure::new(name, unit, None, each(value));
    let judged = |name, target, value: &dyn Fn(&Round) -> f64| Figure::new(name, "", Some(target), each(value));
    let figures = vec![
        judged("stored ÷ min(20 × flushes, 15000/s)", Target::AtLeast(1.0), &|r| r.stored / r.target()),
        judged("stored ÷ unstored", Target::AtLeast(OF_UNSTORED), &|r| r.stored / r.unstored),
        judged("p99 at half rate ÷ (3 × flush + 2 ms)", Target::AtMost(1.0), &|r| {
            r.p99_at_half.as_secs_f64() / r.p99_limit().as_secs_f64()
        }),
        told("stored, answered with 202", "1/s", &|r| r.stored),
        told("unstored, the answer to a ping", "1/s", &|r| r.unstored),
        told("flushes: fdatasync of 4 KiB", "1/s", &Round::flushes_per_second),
        told("one flush, median", "ms", &|r| ms(r.flush())),
        told("p99 at half rate", "ms", &|r| ms(r.p99_at_half)),
        told("the server while storing", "cores", &|r| r.server_cores),
        told("the senders meanwhile", "cores", &|r| r.senders_cores),
        told("closed by intake at the end of a round", "%", &|r| 100.0 * r.closed as f64 / r.accepted as f64),
    ];
    let accepted: u64 = rounds.iter().map(|round| round.accepted).sum();
    let mut notes = vec![
        format!("{accepted} deliveries were accepted; after SIGKILL all of them are in the ledgers, none twice"),
        format!("{CONNECTIONS} connections, {BODY_BYTES} bytes a body; senders and server share the cores, unpinned"),
    ];
    if left_out > 0 {
        notes.push(format!("{left_out} rounds are left out: the disk's speed changed by more than {STEADY} within"));
    }
    if unsteady > 0 {
        notes.push(format!("{unsteady} of the rounds are unsteady: the disk's speed changed by more than {STEADY}"));
    }
    Report::new("intake", load, figures, notes)
}
