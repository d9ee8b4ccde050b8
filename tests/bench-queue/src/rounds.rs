//! Rounds: in each, the disk, Fettle and the others are measured one after the other, and the disk once more. A round in which
//! the disk changed is measured again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use camino::Utf8Path;
use fettle_test_kit::brokers::rabbitmq::RabbitServer;
use fettle_test_kit::brokers::redis::RedisServer;
use fettle_test_kit::measure::disk::{Flushes, flush, is_steady, require_disk};
use fettle_test_kit::measure::home;
use fettle_test_kit::measure::process::load_average;
use fettle_test_kit::measure::report::Report;
use tokio::time::Instant;

use crate::backlog::{self, Backlog};
use crate::callers::{Answered, Pace, drive, quantile};
use crate::figures;
use crate::latency::{self, Bell};
use crate::ledger::{Measured, holder};
use crate::peers::{Apalis, Peer, Python};
use crate::streams::{self, Fsync};
use crate::wait::{self, Waits};

/// How many ask at the same time.
pub(crate) const CALLERS: [u32; 3] = [16, 64, 256];
const OPENERS: u32 = 64;
/// Threads, caches and the log are there when the clock starts.
const WARM_UP: Duration = Duration::from_millis(300);
/// Backlogs at which apalis is measured: at its best, and near where its script fails.
pub(crate) const APALIS_BACKLOGS: [u64; 3] = [1_000, 3_000, 7_900];
/// Rounds in which the disk's speed changed are measured again, so many at most.
const SPARE_ROUNDS: usize = 3;
const CROWD: u64 = 10_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    Whole,
    Quick,
}

impl Extent {
    pub(crate) fn rounds(self) -> usize {
        match self {
            Self::Whole => 5,
            Self::Quick => 2,
        }
    }

    /// No further round is begun after this, so that the whole stays below twelve minutes, or three, also on a slow machine.
    fn rounds_begin_within(self) -> Duration {
        match self {
            Self::Whole => Duration::from_secs(5 * 60),
            Self::Quick => Duration::from_secs(75),
        }
    }

    /// Of each measurement of Fettle and of raw streams.
    fn time(self) -> Duration {
        match self {
            Self::Whole => Duration::from_secs(2),
            Self::Quick => Duration::from_secs(1),
        }
    }

    /// Tasks for an idle worker, of each way to wake it.
    fn idle_samples(self) -> usize {
        match self {
            Self::Whole => 150,
            Self::Quick => 60,
        }
    }

    fn backlog(self) -> Backlog {
        match self {
            Self::Whole => Backlog { repositories: 10_000, jobs: 1_000_000 },
            Self::Quick => Backlog { repositories: 1_000, jobs: 100_000 },
        }
    }

    fn ticks(self) -> u32 {
        match self {
            Self::Whole => 1_500,
            Self::Quick => 500,
        }
    }

    /// Arrivals that are served alone and beside a crowd.
    fn seeds(self) -> u64 {
        match self {
            Self::Whole => 3,
            Self::Quick => 1,
        }
    }
}

/// What one round saw. Rates are by callers, in the order of [`CALLERS`]; what could not be measured is absent.
pub(crate) struct Round {
    pub(crate) before: Flushes,
    pub(crate) after: Flushes,
    pub(crate) cycles: [f64; 3],
    pub(crate) opened: f64,
    pub(crate) open_p99_at_half: Duration,
    pub(crate) always: Option<[f64; 3]>,
    pub(crate) every_second: Option<[f64; 3]>,
    /// By backlog, in the order of [`APALIS_BACKLOGS`].
    pub(crate) apalis: [Option<f64>; 3],
    pub(crate) rq: Option<f64>,
    pub(crate) celery: Option<f64>,
    /// Sorted.
    pub(crate) idle: Vec<Duration>,
    pub(crate) idle_redis: Option<Vec<Duration>>,
    pub(crate) idle_rabbitmq: Option<Vec<Duration>>,
}

impl Round {
    pub(crate) fn flushes_per_second(&self) -> f64 {
        self.before.per_second.midpoint(self.after.per_second)
    }

    /// Half of the flushes took no longer.
    pub(crate) fn flush(&self) -> Duration {
        (self.before.median + self.after.median) / 2
    }

    pub(crate) fn flush_p99(&self) -> Duration {
        (self.before.p99 + self.after.p99) / 2
    }
}

/// Everything that was measured.
pub(crate) struct Seen {
    pub(crate) rounds: Vec<Round>,
    pub(crate) leases: backlog::Leases,
    pub(crate) waits: Vec<Waits>,
    pub(crate) backlog: Backlog,
    pub(crate) crowd: u64,
    pub(crate) versions: BTreeMap<&'static str, String>,
    pub(crate) notes: Vec<String>,
}

/// Measures with state below `folder`. Errors when a job is lost or a ledger contradicts itself; a peer that cannot be had or
/// does not work is missing in the report.
pub(crate) async fn measure(folder: &Utf8Path, extent: Extent, peers: &[Peer]) -> anyhow::Result<Report> {
    require_disk(folder)?;
    let load = load_average()?;
    let own = home(folder)?;
    let folder = Utf8Path::from_path(own.path()).context("a folder's name is text")?;
    let mut others = Others::provide(folder, peers).await?;

    say("the rounds");
    let began = Instant::now();
    let (mut steady, mut unsteady) = (Vec::new(), Vec::new());
    while steady.len() < extent.rounds() && steady.len() + unsteady.len() < extent.rounds() + SPARE_ROUNDS {
        let is_late = began.elapsed() > extent.rounds_begin_within();
        if is_late && !(steady.is_empty() && unsteady.is_empty()) {
            break;
        }
        let round = others.round(folder, extent).await?;
        if is_steady(&round.before, &round.after) { steady.push(round) } else { unsteady.push(round) }
    }
    let unsteady_ones = unsteady.len().min(extent.rounds() - steady.len());
    let left_out = unsteady.len() - unsteady_ones;
    steady.extend(unsteady.into_iter().take(unsteady_ones));
    let (versions, mut notes) = (others.versions().await, others.notes);
    figures::tell_unsteady(&mut notes, left_out, unsteady_ones);
    if steady.len() < extent.rounds() {
        notes.push(format!("only {} of {} rounds: this machine is too slow for more", steady.len(), extent.rounds()));
    }

    say("a long backlog");
    let backlog = extent.backlog();
    let leases = backlog::leases(&folder.join("backlog"), backlog, extent.rounds(), extent.time()).await?;
    say("others beside a crowd");
    let mut waits = Vec::new();
    for seed in 1..=extent.seeds() {
        waits.push(wait::waits(folder, CROWD, extent.ticks(), seed).await?);
    }
    figures::report(load, &Seen { rounds: steady, leases, waits, backlog, crowd: CROWD, versions, notes })
}

/// Where the benchmark is, for whoever waits for it.
fn say(what: &str) {
    use std::io::Write as _;
    // Progress that nobody can read is no reason to stop.
    let _ = writeln!(std::io::stderr(), "measuring {what}");
}

/// What Fettle is measured beside, as far as it is here.
struct Others {
    always: Option<RedisServer>,
    every_second: Option<RedisServer>,
    rabbitmq: Option<RabbitServer>,
    apalis: Option<Apalis>,
    /// That are the fastest for apalis, by the first round.
    apalis_callers: Option<u32>,
    /// Backlogs at which apalis has failed; one that takes its time to fail is not tried again.
    apalis_failed: [bool; 3],
    python: Option<Python>,
    peers: Vec<Peer>,
    notes: Vec<String>,
}

impl Others {
    async fn provide(folder: &Utf8Path, peers: &[Peer]) -> anyhow::Result<Self> {
        let mut notes = Vec::new();
        let folders = [folder.join("always"), folder.join("everysec")];
        for folder in &folders {
            fs_err::create_dir_all(folder)?;
        }
        let always = streams::redis(&folders[0], Fsync::Always).await;
        let every_second = streams::redis(&folders[1], Fsync::EverySecond).await;
        if always.is_none() {
            notes.push("no redis-server on this machine: whatever needs one is missing".to_owned());
        }
        let rabbitmq = if RabbitServer::is_installed() {
            say("with RabbitMQ; it takes seconds to start");
            Some(RabbitServer::start().await?)
        } else {
            notes.push("no rabbitmq-server on this machine: whatever needs one is missing".to_owned());
            None
        };
        let wants = |peer| always.is_some() && peers.contains(&peer);
        for peer in Peer::ALL.into_iter().filter(|peer| !peers.contains(peer)) {
            notes.push(format!("{peer} was not asked for"));
        }
        let apalis = if wants(Peer::Apalis) {
            say("with apalis; its first build takes minutes");
            had(&mut notes, "apalis", Apalis::provide().await)
        } else {
            None
        };
        let python = if wants(Peer::Rq) || wants(Peer::Celery) {
            had(&mut notes, "RQ and Celery", Python::provide().await)
        } else {
            None
        };
        let peers = peers.to_vec();
        Ok(Self {
            always,
            every_second,
            rabbitmq,
            apalis,
            apalis_callers: None,
            apalis_failed: [false; 3],
            python,
            peers,
            notes,
        })
    }

    async fn round(&mut self, folder: &Utf8Path, extent: Extent) -> anyhow::Result<Round> {
        let before = flush_in(folder).await?;
        let cycles = cycles(folder, extent.time()).await?;
        let always = self.streams(self.always.as_ref(), extent.time()).await?;
        let (opened, open_p99_at_half) = open_only(folder, extent.time()).await?;
        let every_second = self.streams(self.every_second.as_ref(), extent.time()).await?;
        let apalis = self.apalis().await;
        let idle = latency::waits(folder, None, extent.idle_samples()).await?;
        let idle_redis = match &self.always {
            Some(server) => {
                server.flush().await;
                Some(latency::waits(folder, Some(&Bell::of_redis(server)?), extent.idle_samples()).await?)
            }
            None => None,
        };
        let idle_rabbitmq = match &self.rabbitmq {
            Some(server) => {
                Some(latency::waits(folder, Some(&Bell::of_rabbitmq(server)?), extent.idle_samples()).await?)
            }
            None => None,
        };
        let (rq, celery) = self.python().await;
        let after = flush_in(folder).await?;
        Ok(Round {
            before,
            after,
            cycles,
            opened,
            open_p99_at_half,
            always,
            every_second,
            apalis,
            rq,
            celery,
            idle,
            idle_redis,
            idle_rabbitmq,
        })
    }

    async fn streams(&self, server: Option<&RedisServer>, time: Duration) -> anyhow::Result<Option<[f64; 3]>> {
        let Some(server) = server.filter(|_| self.peers.contains(&Peer::Streams)) else { return Ok(None) };
        let mut cycles = [0.0; 3];
        for (cycles, callers) in cycles.iter_mut().zip(CALLERS) {
            *cycles = streams::cycles(server, callers, WARM_UP, time).await?;
        }
        Ok(Some(cycles))
    }

    /// At each backlog.
    async fn apalis(&mut self) -> [Option<f64>; 3] {
        let (Some(apalis), Some(server)) = (&self.apalis, &self.always) else { return [None; 3] };
        let callers = match self.apalis_callers {
            Some(callers) => callers,
            None => {
                let mut best = (0.0, CALLERS[0]);
                for callers in CALLERS {
                    if let Ok(rate) = apalis.cycles(server, APALIS_BACKLOGS[0], callers).await
                        && rate > best.0
                    {
                        best = (rate, callers);
                    }
                }
                self.notes.push(format!("apalis is at its best with {} callers", best.1));
                *self.apalis_callers.insert(best.1)
            }
        };
        let mut cycles = [None; 3];
        for ((cycles, has_failed), jobs) in cycles.iter_mut().zip(&mut self.apalis_failed).zip(APALIS_BACKLOGS) {
            if !*has_failed {
                let outcome = apalis.cycles(server, jobs, callers).await;
                *has_failed = outcome.is_err();
                *cycles = had(&mut self.notes, &format!("apalis at {jobs} jobs"), outcome);
            }
        }
        cycles
    }

    /// RQ and Celery, as far as they are asked for.
    async fn python(&mut self) -> (Option<f64>, Option<f64>) {
        let (Some(python), Some(server)) = (&self.python, &self.always) else { return (None, None) };
        let mut rates = (None, None);
        if self.peers.contains(&Peer::Rq) {
            rates.0 = had(&mut self.notes, "RQ", python.rq(server).await);
        }
        if self.peers.contains(&Peer::Celery) {
            rates.1 = had(&mut self.notes, "Celery", python.celery(server).await);
        }
        rates
    }

    async fn versions(&self) -> BTreeMap<&'static str, String> {
        let mut versions = BTreeMap::from([("fettle", env!("CARGO_PKG_VERSION").to_owned())]);
        if let Some(server) = &self.always {
            versions.insert("redis", streams::version(server).await);
        }
        if let Some(server) = &self.rabbitmq {
            let told = server.ctl(&["version"]).await;
            versions.insert("rabbitmq", told.map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned()));
        }
        if self.apalis.is_some() {
            versions.insert("apalis-redis", Apalis::version().unwrap_or_else(|_| "unknown".to_owned()));
        }
        if let Some(python) = &self.python {
            for package in ["rq", "celery"] {
                let told = python.version(package).await;
                versions.insert(package, told.unwrap_or_else(|_| "unknown".to_owned()));
            }
        }
        versions
    }
}

/// What came of it; why it did not is told.
fn had<T>(notes: &mut Vec<String>, name: &str, outcome: anyhow::Result<T>) -> Option<T> {
    outcome.map_err(|error| notes.push(format!("{name} could not be measured: {error:#}"))).ok()
}

async fn flush_in(folder: &Utf8Path) -> anyhow::Result<Flushes> {
    let folder = folder.to_owned();
    tokio::task::spawn_blocking(move || flush(&folder)).await.context("measuring the disk panicked")?
}

async fn cycles(folder: &Utf8Path, time: Duration) -> anyhow::Result<[f64; 3]> {
    let mut cycles = [0.0; 3];
    for (rate, callers) in cycles.iter_mut().zip(CALLERS) {
        let measured = Measured::new(folder).await?;
        let holders: Arc<Vec<_>> = Arc::new((0..callers).map(|_| holder()).collect());
        let call = {
            let measured = measured.clone();
            move |caller: u32| {
                let (measured, holders) = (measured.clone(), holders.clone());
                // Each caller has a repository of its own, so there are as many lanes as callers.
                async move { measured.cycle(u64::from(caller) + 1, &holders[caller as usize]).await }
            }
        };
        let warm = drive(callers, Pace::AsFastAsAnswered, WARM_UP, call.clone()).await?;
        let answered = drive(callers, Pace::AsFastAsAnswered, time, call).await?;
        *rate = answered.per_second;
        ended(&measured, &[warm, answered]).await?;
    }
    Ok(cycles)
}

/// Opened a second, and the p99 at half of that.
async fn open_only(folder: &Utf8Path, time: Duration) -> anyhow::Result<(f64, Duration)> {
    let measured = Measured::new(folder).await?;
    let call = {
        let measured = measured.clone();
        move |caller: u32| {
            let measured = measured.clone();
            async move { measured.open_task(u64::from(caller) + 1).await.map(|_| ()) }
        }
    };
    let warm = drive(OPENERS, Pace::AsFastAsAnswered, WARM_UP, call.clone()).await?;
    let opened = drive(OPENERS, Pace::AsFastAsAnswered, time, call.clone()).await?;
    let halved = drive(OPENERS, Pace::PerSecond(opened.per_second / 2.0), time, call).await?;
    let (rate, p99) = (opened.per_second, quantile(&halved.latencies, 0.99));
    ended(&measured, &[warm, opened, halved]).await?;
    Ok((rate, p99))
}

/// Errors unless the ledger has what the callers were told it has.
async fn ended(measured: &Measured, answered: &[Answered]) -> anyhow::Result<()> {
    let tasks = answered.iter().map(Answered::count).sum();
    ensure!(tasks > 0, "nothing was measured");
    measured.require(tasks).await?;
    measured.ledger.close().await?;
    Ok(())
}
