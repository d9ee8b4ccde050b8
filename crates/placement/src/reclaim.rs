//! Whether an engine's memory has come back. It counts as free when it was seen free, and not because its process ended.

use crate::quantity::{Bytes, Millis};

/// What is still missing then is given up, and counts as foreign.
pub const RECLAIM_DEADLINE: Millis = Millis::secs(10);
/// Drivers keep some of a context for a while.
const ENOUGH_PERMILLE: u32 = 900;

/// A pool as it was sampled, with what foreign processes had of it. Both come from one sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSample {
    pub at: Millis,
    pub free: Bytes,
    /// Of processes that are not ours; where bytes are not known by process, 0 in both samples.
    pub foreign: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reclaim {
    Done,
    Waiting {
        missing: Bytes,
    },
    /// Booked as leaked, and somebody is told.
    Leaked {
        missing: Bytes,
    },
}

/// `observed` is what the engine had in the sample `before`, the last one while it lived. `own_processes` says whether any of
/// its processes is left.
pub fn reclaim(before: PoolSample, now: PoolSample, observed: Bytes, own_processes: bool) -> Reclaim {
    // What others gave back meanwhile is not ours, and what they took must not hide that we gave back.
    let foreign_growth = i128::from(now.foreign.over(before.foreign));
    let given_back = i128::from(now.free.over(before.free)) + foreign_growth;
    let missing = observed.signed() * i128::from(ENOUGH_PERMILLE) / 1000 - given_back;
    if !own_processes && missing <= 0 {
        return Reclaim::Done;
    }
    let missing = Bytes::there(observed.signed() - given_back);
    if now.at.since(before.at) >= RECLAIM_DEADLINE && !own_processes {
        Reclaim::Leaked { missing }
    } else {
        Reclaim::Waiting { missing }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample(seconds: u64, free: u64, foreign: u64) -> PoolSample {
        PoolSample { at: Millis::secs(seconds), free: Bytes::gib(free), foreign: Bytes::gib(foreign) }
    }

    #[test]
    fn memory_that_somebody_else_gave_back_is_not_ours() {
        let before = sample(0, 10, 30);
        let now = sample(1, 40, 0);
        assert_eq!(reclaim(before, now, Bytes::gib(30), false), Reclaim::Waiting { missing: Bytes::gib(30) });
    }

    #[test]
    fn memory_that_somebody_took_at_once_had_come_back() {
        assert_eq!(reclaim(sample(0, 10, 0), sample(1, 20, 20), Bytes::gib(30), false), Reclaim::Done);
    }

    #[test]
    fn what_is_missing_after_ten_seconds_has_leaked() {
        let (before, late) = (sample(0, 10, 0), sample(10, 30, 0));
        assert_eq!(reclaim(before, late, Bytes::gib(30), false), Reclaim::Leaked { missing: Bytes::gib(10) });
        assert_eq!(reclaim(before, late, Bytes::gib(30), true), Reclaim::Waiting { missing: Bytes::gib(10) });
    }

    proptest! {
        // I15. The truth is made first: what our engine gave back, what others did, and the two samples follow from it.
        #[test]
        fn reclaim_never_succeeds_by_foreign_frees_or_underflow(
            observed in 1..100u64, ours in 0..100u64, free in 0..100u64, foreign in 0..100u64, foreign_now in 0..200u64, at in 0..20u64,
        ) {
            let given_back = ours.min(observed);
            let free_now = i128::from(free + given_back + foreign) - i128::from(foreign_now);
            prop_assume!(free_now >= 0);
            let now = PoolSample { free: Bytes::there(free_now * (1 << 30)), ..sample(at, 0, foreign_now) };
            let verdict = reclaim(sample(0, free, foreign), now, Bytes::gib(observed), false);
            prop_assert_eq!(verdict == Reclaim::Done, given_back * 10 >= observed * 9);
        }
    }
}
