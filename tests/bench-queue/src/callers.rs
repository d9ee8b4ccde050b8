//! Callers that ask at the same time, each for the next thing when the last one is done, or at a pace.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// How fast the callers go together.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pace {
    /// The next call follows the answer.
    AsFastAsAnswered,
    PerSecond(f64),
}

/// What the callers saw.
pub(crate) struct Answered {
    pub(crate) per_second: f64,
    /// Sorted. From the moment when a call was due, if its caller was still busy with the one before; else from its
    /// begin, because a timer of this side that was late is nobody else's fault.
    pub(crate) latencies: Vec<Duration>,
}

impl Answered {
    pub(crate) fn count(&self) -> u64 {
        self.latencies.len() as u64
    }
}

/// The value below which that part of them lies. `sorted` holds at least one.
pub(crate) fn quantile(sorted: &[Duration], part: f64) -> Duration {
    let nth = (sorted.len() as f64 * part) as usize;
    sorted[nth.min(sorted.len() - 1)]
}

/// Has `callers` call for `time`, each told its number, and waits for every answer. Errors at the first call that does.
pub(crate) async fn drive<C, F>(callers: u32, pace: Pace, time: Duration, call: C) -> anyhow::Result<Answered>
where
    C: Fn(u32) -> F + Clone + Send + 'static,
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let started = Instant::now();
    let every = match pace {
        Pace::AsFastAsAnswered => Duration::ZERO,
        Pace::PerSecond(rate) => Duration::from_secs_f64(f64::from(callers) / rate),
    };
    let mut tasks = JoinSet::new();
    for caller in 0..callers {
        // Evenly spread over the first interval.
        let due = started + every.mul_f64(f64::from(caller) / f64::from(callers));
        let call = call.clone();
        tasks.spawn(until(started + time, due, every, move || call(caller)));
    }
    let mut latencies = Vec::new();
    while let Some(answered) = tasks.join_next().await {
        latencies.append(&mut answered.context("a caller panicked")??);
    }
    let took = started.elapsed();
    ensure!(!latencies.is_empty(), "nobody was answered in {time:?}");
    latencies.sort_unstable();
    Ok(Answered { per_second: latencies.len() as f64 / took.as_secs_f64(), latencies })
}

/// `every` is zero without a pace.
async fn until<F>(
    end: Instant,
    mut due: Instant,
    every: Duration,
    call: impl Fn() -> F,
) -> anyhow::Result<Vec<Duration>>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let mut latencies = Vec::new();
    let mut now = Instant::now();
    while due.max(now) < end {
        let is_late = !every.is_zero() && due < now;
        if due > now {
            sleep_until(due).await;
            now = Instant::now();
        }
        let since = if is_late { due } else { now };
        call().await?;
        now = Instant::now();
        latencies.push(now - since);
        due = if every.is_zero() { now } else { due + every };
    }
    Ok(latencies)
}
