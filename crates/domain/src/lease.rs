//! The right to work on a job until a time, and the number that tells an old right from a new one.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::id::JobId;

/// Numbers the leases of one job. Knows only order and [`Fence::next`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fence(u64);

impl Fence {
    /// Of a job that was never leased.
    pub const NONE: Self = Self(0);

    pub const fn new(value: u64) -> Self {
        Self(value)
    }

    pub const fn get(self) -> u64 {
        self.0
    }

    /// The fence of the next lease: greater than this one, and at least the ledger's time in microseconds, so that it
    /// also grows after a ledger was restored from an old backup.
    #[must_use]
    pub fn next(self, now: Timestamp) -> Self {
        let micros = u64::try_from(now.as_microsecond()).unwrap_or(0);
        Self((self.0 + 1).max(micros))
    }
}

/// What a holder shows with every write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LeaseRef {
    pub job: JobId,
    pub fence: Fence,
}

/// The times of leasing (`Timing::default()` in production; tests shorten all of them together).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How long a lease lasts without renewal: recovery within 35 s, yet five lost heartbeats lose no lease.
    pub lease: Duration,
    /// Between two renewals.
    pub heartbeat: Duration,
    /// The time a renewal may take.
    pub heartbeat_timeout: Duration,
    /// Before the lease's end, a holder that could not renew stops writing; the longest forge request fits in it.
    pub margin: Duration,
    /// Fenced for this long without an answer, a holder kills its work.
    pub give_up: Duration,
    /// The longest wait after a first failure; see [`crate::retry::back_off`].
    pub back_off: Duration,
    /// Between two writes to a forge for one installation, as GitHub asks.
    pub write_gap: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(30),
            heartbeat: Duration::from_secs(5),
            heartbeat_timeout: Duration::from_secs(3),
            margin: Duration::from_secs(10),
            give_up: Duration::from_secs(300),
            back_off: crate::retry::BACK_OFF_BASE,
            write_gap: Duration::from_secs(1),
        }
    }
}

impl Timing {
    /// The times of tests with real processes: recovery in about a second.
    pub const fn for_tests() -> Self {
        Self {
            lease: Duration::from_millis(1000),
            heartbeat: Duration::from_millis(150),
            heartbeat_timeout: Duration::from_millis(300),
            margin: Duration::from_millis(300),
            give_up: Duration::from_secs(5),
            back_off: Duration::from_millis(300),
            write_gap: Duration::from_millis(10),
        }
    }

    /// How long after *sending* its last good renewal a holder may still start a write.
    pub fn self_fence_after(&self) -> Duration {
        self.lease.saturating_sub(self.margin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_fence_grows_whatever_the_clock_does(previous in 0..u64::MAX / 2, micros in -1_000_000_000_000_000i64..4_000_000_000_000_000) {
            let now = Timestamp::from_microsecond(micros).expect("in range");
            let fence = Fence::new(previous);
            prop_assert!(fence.next(now) > fence);
        }
    }
}
