//! Whether a lease costs more beside a long backlog: the same calls against a ledger with a thousand jobs and one with many,
//! by turns.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use camino::Utf8Path;
use fettle_app::ports::clock::Clock;
use fettle_app::ports::ledger::{Fenced, Leases as _, Ledger as _};
use fettle_runtime::system::{RandomIds, SystemClock};
use fettle_store_sqlite::Options;
use tokio::time::Instant;

use crate::callers::{Pace, drive};
use crate::fill::{Copies, multiply};
use crate::ledger::{Measured, holder};

const SMALL: Backlog = Backlog { repositories: 10, jobs: 1_000 };
/// As many as there are workers of a large team.
const CALLERS: u32 = 16;
/// Of repositories whose first Task is opened by the verbs.
const OPENERS: u64 = 64;
/// Of all jobs, in the first repository.
const OF_FIRST: f64 = 0.9;
/// A backlog is not read for its texts.
const PAYLOAD: usize = 64;
const WARM_UP: Duration = Duration::from_millis(300);

/// How many jobs wait, and where.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backlog {
    pub(crate) repositories: u64,
    pub(crate) jobs: u64,
}

/// Leases of both ledgers, in milliseconds, round by round.
pub(crate) struct Leases {
    pub(crate) small: Vec<Vec<f64>>,
    pub(crate) large: Vec<Vec<f64>>,
    /// For the notes: how long it took to fill and to audit the large one.
    pub(crate) filled_in: Duration,
    pub(crate) audited_in: Duration,
}

/// Leases and releases for `time` in each of `rounds`, so the backlog stays as long as it is.
pub(crate) async fn leases(folder: &Utf8Path, large: Backlog, rounds: usize, time: Duration) -> anyhow::Result<Leases> {
    let (small_folder, large_folder) = (folder.join("small"), folder.join("large"));
    let (small, _, _) = filled(&small_folder, SMALL).await?;
    let (large, filled_in, audited_in) = filled(&large_folder, large).await?;
    let mut leases = Leases { small: Vec::new(), large: Vec::new(), filled_in, audited_in };
    for measured in [&small, &large] {
        lease(measured, WARM_UP).await?;
    }
    for _ in 0..rounds {
        leases.small.push(lease(&small, time).await?);
        leases.large.push(lease(&large, time).await?);
    }
    for measured in [small, large] {
        measured.ledger.close().await?;
    }
    Ok(leases)
}

async fn filled(folder: &Utf8Path, backlog: Backlog) -> anyhow::Result<(Arc<Measured>, Duration, Duration)> {
    let began = Instant::now();
    let measured = Arc::new(open(folder).await?);
    let openers = backlog.repositories.min(OPENERS);
    let mut tasks = tokio::task::JoinSet::new();
    for opener in 0..openers {
        let measured = measured.clone();
        tasks.spawn(async move {
            for repository in (1..=backlog.repositories).skip(opener as usize).step_by(openers as usize) {
                measured.open_task(repository).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(opened) = tasks.join_next().await {
        opened.context("an opener panicked")??;
    }
    measured.ledger.close().await?;
    drop(measured);

    let of_first = (backlog.jobs as f64 * OF_FIRST) as u64;
    let each = (backlog.jobs - of_first) / (backlog.repositories - 1);
    multiply(folder, Copies { of_first: of_first - 1, of_others: each.saturating_sub(1) }).await?;
    let measured = Arc::new(open(folder).await?);
    let filled_in = began.elapsed();

    let began = Instant::now();
    let breaches = measured.ledger.audit().await?;
    ensure!(breaches.is_empty(), "the filled ledger contradicts itself: {}", breaches.join("; "));
    let queued = measured.ledger.depth().await?.runnable;
    ensure!(
        queued.abs_diff(backlog.jobs) <= backlog.repositories,
        "{queued} jobs are queued, of {} that should be",
        backlog.jobs
    );
    Ok((measured, filled_in, began.elapsed()))
}

async fn open(folder: &Utf8Path) -> anyhow::Result<Measured> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    Measured::open(folder, Options::new(clock.clone(), Arc::new(RandomIds)), clock, PAYLOAD).await
}

/// How long each lease took, without its release.
async fn lease(measured: &Arc<Measured>, time: Duration) -> anyhow::Result<Vec<f64>> {
    let took = Arc::new(Mutex::new(Vec::new()));
    let call = {
        let (measured, took) = (measured.clone(), took.clone());
        move |_| {
            let (measured, took) = (measured.clone(), took.clone());
            async move {
                let began = Instant::now();
                let leased = measured.lease(&holder()).await?;
                took.lock().expect("no holder panics").push(began.elapsed().as_secs_f64() * 1000.0);
                let released = measured.ledger.release(&leased.lease).await?;
                ensure!(released == Fenced::Applied, "a live lease was refused: {released:?}");
                Ok(())
            }
        }
    };
    drive(CALLERS, Pace::AsFastAsAnswered, time, call).await?;
    let mut took = std::mem::take(&mut *took.lock().expect("no holder panics"));
    took.sort_unstable_by(f64::total_cmp);
    Ok(took)
}
