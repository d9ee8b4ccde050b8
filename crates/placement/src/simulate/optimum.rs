//! The most bytes of some models that fit on equal devices, found by looking at everything that could be better: what a plan
//! is measured against.

/// Looked at in a case at most; beyond, the bound stands in for the optimum, which makes whoever is measured look worse.
const MOST_NODES: u64 = 2_000_000;

/// `sizes` on `devices` of `room` each, in any unit. Never below the optimum.
pub fn most_packed(devices: usize, room: u64, sizes: &[u64]) -> u64 {
    let mut sizes: Vec<u64> = sizes.iter().copied().filter(|size| *size <= room).collect();
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    let left = sizes.iter().rev().scan(0, |sum, size| {
        *sum += size;
        Some(*sum)
    });
    let mut left: Vec<u64> = left.collect();
    left.reverse();
    left.push(0);
    let bound = left[0].min(room * devices as u64);
    let mut search = Search { sizes: &sizes, left: &left, bound, best: 0, nodes: 0 };
    search.from(0, 0, &mut vec![room; devices]);
    if search.nodes > MOST_NODES { bound } else { search.best }
}

struct Search<'s> {
    sizes: &'s [u64],
    /// The sum of the sizes from a place on.
    left: &'s [u64],
    bound: u64,
    best: u64,
    nodes: u64,
}

impl Search<'_> {
    fn from(&mut self, place: usize, packed: u64, rooms: &mut Vec<u64>) {
        self.nodes += 1;
        self.best = self.best.max(packed);
        let room: u64 = rooms.iter().sum();
        let hopeless = packed + self.left[place].min(room) <= self.best;
        if hopeless || self.best == self.bound || self.nodes > MOST_NODES {
            return;
        }
        let Some(&size) = self.sizes.get(place) else { return };
        // The tightest first; of devices with the same room one stands for all.
        let mut order: Vec<usize> = (0..rooms.len()).filter(|nth| rooms[*nth] >= size).collect();
        order.sort_by_key(|nth| rooms[*nth]);
        order.dedup_by_key(|nth| rooms[*nth]);
        for nth in order {
            rooms[nth] -= size;
            self.from(place + 1, packed + size, rooms);
            rooms[nth] += size;
        }
        self.from(place + 1, packed, rooms);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_greedy_choice_is_not_the_optimum() {
        assert_eq!(most_packed(1, 10, &[6, 5, 5]), 10);
        assert_eq!(most_packed(2, 10, &[7, 6, 4, 3, 2]), 20);
        assert_eq!(most_packed(2, 10, &[11]), 0);
    }

    proptest! {
        #[test]
        fn it_is_what_trying_everything_finds(sizes in proptest::collection::vec(1..12u64, 0..8)) {
            fn all(sizes: &[u64], rooms: &mut [u64; 2]) -> u64 {
                let Some((size, rest)) = sizes.split_first() else { return 0 };
                let mut best = all(rest, rooms);
                for nth in 0..2 {
                    if rooms[nth] >= *size {
                        rooms[nth] -= size;
                        best = best.max(size + all(rest, rooms));
                        rooms[nth] += size;
                    }
                }
                best
            }
            prop_assert_eq!(most_packed(2, 12, &sizes), all(&sizes, &mut [12, 12]));
        }
    }
}
