//! Chance from a seed.

/// SplitMix64: the same seed gives the same sample on every machine.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    /// Less than `limit`; none below nothing.
    pub(super) fn below(&mut self, limit: usize) -> Option<usize> {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let limit = u64::try_from(limit).ok().filter(|&limit| limit > 0)?;
        usize::try_from((mixed ^ (mixed >> 31)) % limit).ok()
    }
}
