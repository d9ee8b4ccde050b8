//! The ledger's time, by the rule of the real ones: the wall clock at the start plus a stopwatch, never less than it was,
//! and a forward step of the wall clock is followed.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jiff::Timestamp;

use super::Surroundings;

const FORWARD_STEP: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct LedgerTime {
    /// Ledger time minus the stopwatch, in microseconds.
    base: AtomicI64,
    newest: AtomicI64,
}

impl LedgerTime {
    pub(super) fn starting(around: &Surroundings, persisted: i64) -> Self {
        let start = around.clock.now().as_microsecond().max(persisted);
        let base = start - micros((around.stopwatch)());
        Self { base: AtomicI64::new(base), newest: AtomicI64::new(start) }
    }

    pub(super) fn now(&self, around: &Surroundings) -> Timestamp {
        let measured = self.base.load(Ordering::Relaxed) + micros((around.stopwatch)());
        from_micros(self.newest.fetch_max(measured, Ordering::Relaxed).max(measured))
    }

    pub(super) fn forward_step(&self, around: &Surroundings) -> Option<Duration> {
        let ahead = around.clock.now().as_microsecond() - self.now(around).as_microsecond();
        let ahead = Duration::from_micros(u64::try_from(ahead).ok()?);
        (ahead > FORWARD_STEP).then_some(ahead)
    }

    pub(super) fn follow(&self, step: Duration) {
        self.base.fetch_add(micros(step), Ordering::Relaxed);
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX / 4)
}

pub(super) fn from_micros(micros: i64) -> Timestamp {
    Timestamp::from_microsecond(micros).unwrap_or(Timestamp::MAX)
}

pub(super) fn after(at: Timestamp, wait: Duration) -> Timestamp {
    from_micros(at.as_microsecond().saturating_add(micros(wait)))
}

pub(super) fn until(now: Timestamp, then: Timestamp) -> Duration {
    Duration::from_micros(u64::try_from(then.as_microsecond() - now.as_microsecond()).unwrap_or(0))
}
