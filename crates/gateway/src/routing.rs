//! Which target takes a request: a function of what is known of them, with the reason. Whole numbers only, so that the same
//! facts give the same choice everywhere.

use std::fmt;

/// One target in the desk's books; never used again for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TargetId(pub(crate) u64);

impl fmt::Display for TargetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "target {}", self.0)
    }
}

/// What a request in flight costs the next one beside its tokens: scheduling within the engine.
const INFLIGHT_MICROS: u64 = 5_000;

/// A target that could take the request now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) target: TargetId,
    pub(crate) inflight: u32,
    /// Tokens that its requests in flight are still expected to write.
    pub(crate) queued_tokens: u64,
    /// Tokens of the prompt that it is expected to remember.
    pub(crate) cached_tokens: u64,
    /// Tokens a second, measured; never 0.
    pub(crate) prefill_rate: u64,
    /// Of all its requests together.
    pub(crate) decode_rate: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) target: TargetId,
    pub(crate) policy: Policy,
}

/// Why it was this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    /// There was no other.
    Only,
    /// Its session was there before.
    Sticky,
    /// Least expected delay.
    Least,
    /// As `Least`, and the session's target was too busy.
    LeftBusy,
}

impl Policy {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Only => "only",
            Self::Sticky => "sticky",
            Self::Least => "least",
            Self::LeftBusy => "left_busy",
        }
    }
}

/// `None`: there are no candidates. `home` is where the request's session was last.
pub(crate) fn choose(candidates: &[Candidate], prompt_tokens: u64, home: Option<TargetId>) -> Option<Choice> {
    if let [only] = candidates {
        let policy = if home == Some(only.target) { Policy::Sticky } else { Policy::Only };
        return Some(Choice { target: only.target, policy });
    }
    let best = candidates.iter().map(|candidate| candidate.inflight).min()?;
    let at_home = home.and_then(|home| candidates.iter().find(|candidate| candidate.target == home));
    if let Some(there) = at_home
        && !too_busy(there.inflight, best)
    {
        return Some(Choice { target: there.target, policy: Policy::Sticky });
    }
    let least = candidates.iter().min_by_key(|one| (expected_micros(one, prompt_tokens), one.inflight, one.target))?;
    let policy = if at_home.is_some() { Policy::LeftBusy } else { Policy::Least };
    Some(Choice { target: least.target, policy })
}

/// More than 1.5 times the least busy one's load and 2: then what is remembered there is not worth the wait.
fn too_busy(home: u32, best: u32) -> bool {
    u64::from(home) * 2 > u64::from(best) * 3 + 4
}

fn expected_micros(candidate: &Candidate, prompt_tokens: u64) -> u64 {
    let seconds = |tokens: u64, rate: u64| tokens.saturating_mul(1_000_000) / rate.max(1);
    let uncached = prompt_tokens.saturating_sub(candidate.cached_tokens);
    seconds(uncached, candidate.prefill_rate)
        .saturating_add(seconds(candidate.queued_tokens, candidate.decode_rate))
        .saturating_add(u64::from(candidate.inflight) * INFLIGHT_MICROS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidate(target: u64, inflight: u32) -> Candidate {
        Candidate {
            target: TargetId(target),
            inflight,
            queued_tokens: u64::from(inflight) * 100,
            cached_tokens: 0,
            prefill_rate: 2_000,
            decode_rate: 100,
        }
    }

    #[test]
    fn a_session_stays_until_its_target_is_much_busier_than_the_best() {
        let at =
            |home: u32, other: u32| choose(&[candidate(1, home), candidate(2, other)], 100, Some(TargetId(1))).unwrap();
        assert_eq!(at(2, 0), Choice { target: TargetId(1), policy: Policy::Sticky });
        assert_eq!(at(3, 0), Choice { target: TargetId(2), policy: Policy::LeftBusy });
        assert_eq!(at(8, 4), Choice { target: TargetId(1), policy: Policy::Sticky });
        assert_eq!(at(9, 4), Choice { target: TargetId(2), policy: Policy::LeftBusy });
    }

    #[test]
    fn the_faster_of_two_idle_targets_gets_a_long_prompt() {
        let slow = Candidate { prefill_rate: 500, ..candidate(1, 0) };
        assert_eq!(choose(&[slow, candidate(2, 0)], 10_000, None).unwrap().target, TargetId(2));
    }

    #[test]
    fn what_is_remembered_counts_as_done() {
        let warm = Candidate { cached_tokens: 9_000, ..candidate(1, 1) };
        assert_eq!(choose(&[candidate(2, 0), warm], 10_000, None).unwrap().target, TargetId(1));
    }

    #[test]
    fn without_candidates_there_is_no_choice() {
        assert_eq!(choose(&[], 10, Some(TargetId(1))), None);
    }

    proptest! {
        #[test]
        fn the_choice_is_one_of_them_whatever_their_order_and_never_a_dominated_one(
            loads in proptest::collection::vec((0..50u32, 0..10_000u64, 1..5_000u64), 1..9),
            prompt in 0..100_000u64,
            home in 0..9u64,
        ) {
            let candidates: Vec<_> = loads.iter().enumerate().map(|(nth, (inflight, queued, rate))| Candidate {
                queued_tokens: *queued, prefill_rate: *rate, ..candidate(nth as u64, *inflight)
            }).collect();
            let chosen = choose(&candidates, prompt, Some(TargetId(home))).unwrap();
            let mut turned = candidates.clone();
            turned.reverse();
            prop_assert_eq!(choose(&turned, prompt, Some(TargetId(home))), Some(chosen));
            let taken = candidates.iter().find(|one| one.target == chosen.target).unwrap();
            if chosen.policy != Policy::Sticky {
                prop_assert!(candidates.iter().all(|one| expected_micros(one, prompt) >= expected_micros(taken, prompt)));
            }
            let best = candidates.iter().map(|one| one.inflight).min().unwrap();
            prop_assert!(chosen.policy != Policy::Sticky || !too_busy(taken.inflight, best));
        }
    }
}
