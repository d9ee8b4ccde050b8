//! How fast a forge is written to: one write at a time, a pause between two, and none at all while it limits us.
//!
//! A forge counts per installation. Its lane lets one publication at a time be at work, at whichever dashboard; this keeps the
//! pauses, and stops every publication of an installation once one of them was limited.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use super::Halt;

/// Pauses, a minute of them: a rest after a second limit in a row, doubled for each further one, since what the forge told was
/// not enough.
const FIRST_REST: u32 = 60;
/// Pauses, an hour of them: within so many, this many writes. GitHub allows 500 an hour that people see.
const WRITES_COUNTED_FOR: u32 = 60 * 60;
const MOST_WRITES: usize = 480;
/// Of those: telling of progress leaves the others to results.
const MOST_WRITES_OF_PROGRESS: usize = 240;
/// A forge's limits are counted by the hour.
const LONGEST_REST: Duration = Duration::from_secs(60 * 60);

/// Whose writes are counted together: an installation, or the one token.
type Owner = Option<u64>;

/// Remembers when each owner may be written to.
pub struct Pace {
    gap: Duration,
    owners: Mutex<HashMap<Owner, Gait>>,
}

#[derive(Debug)]
struct Gait {
    next_write: Instant,
    resting_until: Instant,
    limits_in_a_row: u32,
    /// Turns of the last hour, the oldest first.
    turns: VecDeque<Instant>,
}

impl Gait {
    fn new(now: Instant) -> Self {
        Self { next_write: now, resting_until: now, limits_in_a_row: 0, turns: VecDeque::new() }
    }
}

impl Pace {
    /// With a pause of `gap` between two writes.
    pub fn new(gap: Duration) -> Self {
        Self { gap, owners: Mutex::default() }
    }

    /// Errors with [`Halt::Limited`] while the forge limits this owner: nothing needs to be asked.
    pub(crate) fn may_begin(&self, owner: Owner) -> Result<(), Halt> {
        let rest = self.gaits().get(&owner).map(|gait| gait.resting_until.saturating_duration_since(Instant::now()));
        match rest {
            Some(rest) if !rest.is_zero() => Err(Halt::Limited(rest)),
            _ => Ok(()),
        }
    }

    /// Waits for this owner's next turn to write. Errors with [`Halt::Limited`] when the hour's writes are used up, before the
    /// forge has to say so.
    pub(crate) async fn turn(&self, owner: Owner) -> Result<(), Halt> {
        let at = {
            let mut gaits = self.gaits();
            let now = Instant::now();
            let gait = gaits.entry(owner).or_insert_with(|| Gait::new(now));
            self.forget_old(gait, now);
            if let (MOST_WRITES.., Some(oldest)) = (gait.turns.len(), gait.turns.front()) {
                return Err(Halt::Limited(*oldest + self.hour() - now));
            }
            let at = gait.next_write.max(now);
            gait.next_write = at + self.gap;
            gait.turns.push_back(at);
            at
        };
        tokio::time::sleep_until(at).await;
        Ok(())
    }

    /// Whether there are writes enough left this hour to tell of progress.
    pub(crate) fn has_plenty(&self, owner: Owner) -> bool {
        let mut gaits = self.gaits();
        let now = Instant::now();
        let gait = gaits.entry(owner).or_insert_with(|| Gait::new(now));
        self.forget_old(gait, now);
        gait.turns.len() < MOST_WRITES_OF_PROGRESS
    }

    fn hour(&self) -> Duration {
        self.gap.saturating_mul(WRITES_COUNTED_FOR)
    }

    fn forget_old(&self, gait: &mut Gait, now: Instant) {
        while gait.turns.front().is_some_and(|turn| *turn + self.hour() <= now) {
            gait.turns.pop_front();
        }
    }

    /// How long to rest, when the forge told to wait for `told`.
    pub(crate) fn limited(&self, owner: Owner, told: Duration) -> Duration {
        let mut gaits = self.gaits();
        let now = Instant::now();
        let gait = gaits.entry(owner).or_insert_with(|| Gait::new(now));
        gait.limits_in_a_row += 1;
        let doubled = match gait.limits_in_a_row {
            1 => Duration::ZERO,
            again => self.gap.saturating_mul(FIRST_REST << (again - 1).min(10)),
        };
        let rest = told.max(doubled.min(LONGEST_REST));
        gait.resting_until = now + rest;
        rest
    }

    /// The forge took what was to be written.
    pub(crate) fn answered(&self, owner: Owner) {
        if let Some(gait) = self.gaits().get_mut(&owner) {
            gait.limits_in_a_row = 0;
        }
    }

    fn gaits(&self) -> MutexGuard<'_, HashMap<Owner, Gait>> {
        self.owners.lock().expect("no holder panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GAP: Duration = Duration::from_secs(1);

    fn rest(halt: Result<(), Halt>) -> Option<Duration> {
        match halt {
            Ok(()) => None,
            Err(Halt::Limited(rest)) => Some(rest),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn writes_of_one_owner_are_apart_and_others_do_not_wait_for_them() {
        let (pace, began) = (Pace::new(GAP), Instant::now());
        pace.turn(Some(1)).await.unwrap();
        pace.turn(Some(2)).await.unwrap();
        assert_eq!(began.elapsed(), Duration::ZERO);
        pace.turn(Some(1)).await.unwrap();
        pace.turn(Some(1)).await.unwrap();
        assert_eq!(began.elapsed(), 2 * GAP);
        tokio::time::sleep(10 * GAP).await;
        pace.turn(Some(1)).await.unwrap();
        assert_eq!(began.elapsed(), 12 * GAP, "a pause that has passed is not waited for");
    }

    #[tokio::test(start_paused = true)]
    async fn an_hour_has_so_many_writes_and_progress_leaves_half_of_them() {
        let pace = Pace::new(GAP);
        for nth in 0..MOST_WRITES {
            assert_eq!(pace.has_plenty(None), nth < MOST_WRITES_OF_PROGRESS);
            pace.turn(None).await.unwrap();
        }
        let left = 3600 - u64::try_from(MOST_WRITES).unwrap() + 1;
        assert_eq!(rest(pace.turn(None).await), Some(Duration::from_secs(left)), "until the oldest is an hour old");
        assert_eq!(rest(pace.turn(Some(7)).await), None, "another installation has its own");
        tokio::time::sleep(Duration::from_secs(left)).await;
        assert_eq!(rest(pace.turn(None).await), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_limited_owner_rests_as_told_and_longer_each_time_that_was_not_enough() {
        let (pace, told) = (Pace::new(GAP), Duration::from_secs(30));
        assert_eq!(rest(pace.may_begin(None)), None);
        let rests: Vec<u64> = (0..8).map(|_| pace.limited(None, told).as_secs()).collect();
        assert_eq!(rests, [30, 120, 240, 480, 960, 1920, 3600, 3600]);
        assert_eq!(rest(pace.may_begin(Some(7))), None, "another installation goes on");
        tokio::time::sleep(Duration::from_secs(3599)).await;
        assert_eq!(rest(pace.may_begin(None)), Some(Duration::from_secs(1)));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(rest(pace.may_begin(None)), None);
        pace.answered(None);
        assert_eq!(pace.limited(None, told), told);
        assert_eq!(pace.limited(None, 2 * LONGEST_REST), 2 * LONGEST_REST, "the forge knows best");
    }
}
