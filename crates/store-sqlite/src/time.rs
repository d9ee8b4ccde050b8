//! The ledger's time: the wall clock at the start plus what a stopwatch measured since, never less than it ever was.
//!
//! Leases end by it, so that stepping the wall clock neither ends a live lease nor keeps a dead one.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use fettle_app::ports::clock::Clock;
use jiff::Timestamp;
use tokio::time::Instant;

/// A wall clock that runs ahead by more than this was stepped forward, not merely drifting: the ledger follows.
const FORWARD_STEP: Duration = Duration::from_secs(5);

/// Monotonic time since some start.
pub trait Stopwatch: Send + Sync {
    fn elapsed(&self) -> Duration;
}

/// The stopwatch of production.
#[derive(Debug)]
pub struct RunningStopwatch(Instant);

impl RunningStopwatch {
    pub fn start() -> Self {
        Self(Instant::now())
    }
}

impl Stopwatch for RunningStopwatch {
    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

pub(crate) struct LedgerTime {
    clock: Arc<dyn Clock>,
    stopwatch: Arc<dyn Stopwatch>,
    /// Ledger time minus the stopwatch, in microseconds.
    base: AtomicI64,
    /// The newest time given out.
    newest: AtomicI64,
}

impl LedgerTime {
    /// `persisted` is the newest time the file has seen, in microseconds.
    pub(crate) fn starting(clock: Arc<dyn Clock>, stopwatch: Arc<dyn Stopwatch>, persisted: i64) -> Self {
        let start = clock.now().as_microsecond().max(persisted);
        let base = start - whole_micros(stopwatch.elapsed());
        Self { clock, stopwatch, base: AtomicI64::new(base), newest: AtomicI64::new(start) }
    }

    pub(crate) fn now(&self) -> Timestamp {
        let measured = self.base.load(Ordering::Relaxed) + whole_micros(self.stopwatch.elapsed());
        let newest = self.newest.fetch_max(measured, Ordering::Relaxed).max(measured);
        from_micros(newest)
    }

    /// How far the wall clock was stepped ahead, if it was.
    pub(crate) fn forward_step(&self) -> Option<Duration> {
        let ahead = self.clock.now().as_microsecond() - self.now().as_microsecond();
        let ahead = Duration::from_micros(u64::try_from(ahead).ok()?);
        (ahead > FORWARD_STEP).then_some(ahead)
    }

    pub(crate) fn follow(&self, step: Duration) {
        self.base.fetch_add(whole_micros(step), Ordering::Relaxed);
    }
}

/// A stored instant. One beyond what a `Timestamp` holds is cut to the end of time.
pub(crate) fn from_micros(micros: i64) -> Timestamp {
    let last = Timestamp::MAX.as_microsecond();
    Timestamp::from_microsecond(micros.clamp(-last / 2, last)).unwrap_or(Timestamp::MAX)
}

pub(crate) fn whole_micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX / 4)
}

/// `at` plus `duration`; a duration beyond the end of time gives the end of time.
pub(crate) fn after(at: Timestamp, duration: Duration) -> Timestamp {
    from_micros(at.as_microsecond().saturating_add(whole_micros(duration)))
}

/// From `now` until `then`; zero when it has passed.
pub(crate) fn until(now: Timestamp, then: Timestamp) -> Duration {
    Duration::from_micros(u64::try_from(then.as_microsecond() - now.as_microsecond()).unwrap_or(0))
}
