//! Chance from a seed. The same seed, asked the same questions in the same order, gives the same answers.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// SplitMix64: any seed is a good one, and a state is one number.
#[derive(Debug)]
pub(crate) struct Dice(Mutex<u64>);

impl Dice {
    pub(crate) fn of_seed(seed: u64) -> Self {
        Self(Mutex::new(seed))
    }

    pub(crate) fn roll(&self) -> u64 {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = *state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 up to and without `end`, which is above 0.
    pub(crate) fn below(&self, end: u64) -> u64 {
        self.roll() % end
    }

    /// From the first to the last, both possible.
    pub(crate) fn between(&self, first: u64, last: u64) -> u64 {
        first + self.below(last - first + 1)
    }

    pub(crate) fn in_a_thousand(&self, times: u64) -> bool {
        self.below(1000) < times
    }

    pub(crate) fn millis(&self, first: u64, last: u64) -> Duration {
        Duration::from_millis(self.between(first, last))
    }
}
