//! Numbers from a seed, whole ones only.

/// SplitMix64: small, and good enough for traces.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `end`, which is above 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.word() % end.max(1)
    }

    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// One of `list`, which is not empty, each as likely as the others.
    pub fn one_of<T: Copy>(&mut self, list: &[T]) -> T {
        list[usize::try_from(self.below(list.len() as u64)).unwrap_or_default()]
    }

    /// How long until the next event of a kind that comes every `mean` on average, each one independent of the others.
    pub fn interval(&mut self, mean: u64) -> u64 {
        // -log2(u) in sixteenths: the leading zeros are its whole bits, the four bits after them the rest, as the chord of the
        // logarithm has it; a bit is 0.693 of the mean, and 0.653 makes up for the chord and for rounding up.
        let word = self.word() | 1;
        let whole = u64::from(word.leading_zeros());
        let rest = (word << whole << 1) >> 60;
        let sixteenths = whole * 16 + (16 - rest);
        mean * sixteenths * 653 / 16_000
    }

    /// A place in a list of `weights`, as likely as they are.
    pub fn weighted(&mut self, weights: &[u64]) -> usize {
        let mut left = self.below(weights.iter().sum());
        weights
            .iter()
            .position(|weight| {
                left < *weight || {
                    left -= weight;
                    false
                }
            })
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_have_their_mean() {
        let mut random = Random::new(7);
        let sum: u64 = (0..100_000).map(|_| random.interval(1000)).sum();
        let mean = sum / 100_000;
        assert!((950..1050).contains(&mean), "{mean}");
    }

    #[test]
    fn heavy_places_are_met_more_often() {
        let mut random = Random::new(7);
        let first = (0..10_000).filter(|_| random.weighted(&[3, 1]) == 0).count();
        assert!((7300..7700).contains(&first), "{first}");
    }
}
