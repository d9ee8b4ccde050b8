//! Whether one repository's backlog keeps others waiting: the same Tasks of others, with and without it, at a fixed rate of
//! service. Time is moved by hand, so a wait is a number of leases and the machine's speed is not in it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use camino::Utf8Path;
use fettle_app::ports::clock::{Clock, IdSource as _};
use fettle_app::ports::ledger::{Granted, Leases as _, Order};
use fettle_domain::id::{RequestId, TaskId};
use fettle_runtime::system::RandomIds;
use fettle_store_sqlite::{Options, Stopwatch};
use fettle_test_kit::measure::home;
use jiff::Timestamp;
use tokio::task::JoinSet;

use crate::ledger::{Measured, any_run, holder};

/// One lease in each: as if every Run took a second of the one worker.
const TICK: Duration = Duration::from_secs(1);
/// The one with the backlog; the others follow it.
const CROWDED: u64 = 1;
const OTHERS: u64 = 20;
/// Others' Tasks for each tick, on average, each independent of the rest: the worker could serve twice as many.
const BUSY: f64 = 0.5;
const OPENERS: u64 = 64;
const PAYLOAD: usize = 64;
/// 2026-01-01T00:00:00Z in microseconds.
const START: i64 = 1_767_225_600_000_000;

/// Waits of others' Tasks, in leases granted from their opening to their own, which is counted; sorted.
pub(crate) struct Waits {
    pub(crate) alone: Vec<f64>,
    pub(crate) beside: Vec<f64>,
}

/// `ticks` of the same arrivals, alone and beside `backlog` jobs of one repository. `seed` decides who comes when.
pub(crate) async fn waits(folder: &Utf8Path, backlog: u64, ticks: u32, seed: u64) -> anyhow::Result<Waits> {
    Ok(Waits { alone: serve(folder, 0, ticks, seed).await?, beside: serve(folder, backlog, ticks, seed).await? })
}

async fn serve(folder: &Utf8Path, backlog: u64, ticks: u32, seed: u64) -> anyhow::Result<Vec<f64>> {
    let own = home(folder)?;
    let path = Utf8Path::from_path(own.path()).context("a folder's name is text")?;
    let time = Arc::new(ManualTime::default());
    let mut options = Options::new(time.clone(), Arc::new(RandomIds));
    options.stopwatch = time.clone();
    let measured = Arc::new(Measured::open(path, options, time.clone(), PAYLOAD).await?);
    crowd(&measured, backlog).await?;

    let mut random = Random(seed);
    let mut opened: BTreeMap<TaskId, u32> = BTreeMap::new();
    let mut waits = Vec::new();
    let mut next = random.gap();
    for tick in 0..ticks {
        let end = TICK * (tick + 1);
        while next < end {
            time.set(next);
            let repository = CROWDED + 1 + (random.next() * OTHERS as f64) as u64;
            opened.insert(measured.open_task(repository).await?, tick);
            next += random.gap();
        }
        time.set(end);
        let (who, request) = (holder(), RequestId::from_uuid(RandomIds.uuid()));
        let granted = measured.ledger.lease(&who, &any_run(), 1, Duration::ZERO, request).await?;
        let Granted::Leased(leased) = granted else { continue };
        for leased in leased {
            let Order::Run(order) = &leased.order else { bail!("a worker was given a publish job") };
            if let Some(at) = opened.remove(&order.task) {
                waits.push(f64::from(tick - at + 1));
            }
            measured.complete(&leased.lease).await?;
        }
    }
    // Whoever still waits has waited at least so long, and must not be forgotten.
    waits.extend(opened.into_values().map(|at| f64::from(ticks - at + 1)));
    measured.ledger.close().await?;
    waits.sort_unstable_by(f64::total_cmp);
    Ok(waits)
}

/// Queues `jobs` of the crowded repository.
async fn crowd(measured: &Arc<Measured>, jobs: u64) -> anyhow::Result<()> {
    let mut openers = JoinSet::new();
    for opener in 0..OPENERS {
        let measured = measured.clone();
        openers.spawn(async move {
            for _ in 0..jobs / OPENERS + u64::from(opener < jobs % OPENERS) {
                measured.open_task(CROWDED).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(opened) = openers.join_next().await {
        opened.context("an opener panicked")??;
    }
    Ok(())
}

/// Wall clock and stopwatch that go together, when they are told to.
#[derive(Debug, Default)]
struct ManualTime(AtomicI64);

impl ManualTime {
    /// `since` the start.
    fn set(&self, since: Duration) {
        self.0.store(since.as_micros() as i64, Ordering::SeqCst);
    }
}

impl Clock for ManualTime {
    fn now(&self) -> Timestamp {
        Timestamp::from_microsecond(START + self.0.load(Ordering::SeqCst)).expect("days after 2026 are in range")
    }
}

impl Stopwatch for ManualTime {
    fn elapsed(&self) -> Duration {
        Duration::from_micros(self.0.load(Ordering::SeqCst).unsigned_abs())
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    /// Until the next Task of others comes.
    fn gap(&mut self) -> Duration {
        TICK.mul_f64(-(1.0 - self.next()).ln() / BUSY)
    }

    /// From 0 to 1, without 1.
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}
