//! Divides what an engine has used among the requests that it worked on, so that the parts are the whole to the last unit.

/// `amount` in parts as large as `weights` are, in their order. Without any weight the parts are equal; without parts there
/// is nobody to bear it, and the caller keeps `amount` as idle. What does not divide goes to the largest remainders, the
/// earlier ones first.
pub(crate) fn split(amount: u64, weights: &[u64]) -> Vec<u64> {
    let sum: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
    if sum == 0 {
        return if weights.is_empty() { Vec::new() } else { split(amount, &vec![1; weights.len()]) };
    }
    let mut parts = Vec::with_capacity(weights.len());
    let mut remainders = Vec::with_capacity(weights.len());
    for (nth, weight) in weights.iter().enumerate() {
        let share = u128::from(amount) * u128::from(*weight);
        parts.push(u64::try_from(share / sum).expect("a part is no larger than the whole"));
        remainders.push((std::cmp::Reverse(share % sum), nth));
    }
    remainders.sort_unstable();
    let left = amount - parts.iter().sum::<u64>();
    for (_, nth) in remainders.into_iter().take(usize::try_from(left).expect("less is left than there are parts")) {
        parts[nth] += 1;
    }
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parts_are_as_large_as_their_weights_and_equal_without() {
        assert_eq!(split(1_000, &[1, 3]), [250, 750]);
        assert_eq!(split(10, &[0, 0, 0]), [4, 3, 3]);
        assert_eq!(split(10, &[0, 5]), [0, 10]);
        assert_eq!(split(10, &[]), Vec::<u64>::new());
    }

    proptest! {
        #[test]
        fn the_parts_are_the_whole_and_none_is_a_unit_off(amount: u64, weights in proptest::collection::vec(any::<u64>(), 1..40)) {
            let parts = split(amount, &weights);
            prop_assert_eq!(parts.iter().map(|part| u128::from(*part)).sum::<u128>(), u128::from(amount));
            let sum: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
            for (part, weight) in parts.iter().zip(&weights) {
                let exact = (u128::from(amount) * u128::from(*weight)).checked_div(sum);
                prop_assert!(exact.is_none_or(|exact| [exact, exact + 1].contains(&u128::from(*part))));
            }
        }
    }
}
