//! Whether a failed attempt is followed by another one. Only the caller's patience and a share of all traffic are spent on it;
//! nothing is tried again of which the caller has seen a byte.

use std::time::Duration;

/// Beyond the first.
const MOST_RETRIES: u32 = 2;
/// One retry is earned by so many requests: when everything fails, the load grows by a tenth and not threefold.
const REQUESTS_PER_RETRY: u32 = 10;
/// What a quiet gateway may spend at once, in retries.
const MOST_SAVED: u32 = 10;
/// A target that asks for a longer pause is not waited for.
const SHORT_WAIT: Duration = Duration::from_secs(2);
/// Between two attempts at the same target, so that a restart has a chance.
const SAME_TARGET_PAUSE: Duration = Duration::from_millis(100);

/// What retries may still cost. Each request earns a tenth of one.
#[derive(Debug)]
pub(crate) struct Savings {
    tenths: u32,
}

impl Savings {
    pub(crate) fn new() -> Self {
        Self { tenths: MOST_SAVED * REQUESTS_PER_RETRY }
    }

    pub(crate) fn earn(&mut self) {
        self.tenths = (self.tenths + 1).min(MOST_SAVED * REQUESTS_PER_RETRY);
    }

    fn spend(&mut self) -> bool {
        match self.tenths.checked_sub(REQUESTS_PER_RETRY) {
            Some(left) => {
                self.tenths = left;
                true
            }
            None => false,
        }
    }
}

/// One attempt that failed before the caller got a byte.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Failed {
    /// Another attempt may go better.
    pub(crate) worth_retrying: bool,
    /// The target asked for this pause.
    pub(crate) wait: Option<Duration>,
    /// Attempts so far, this one included.
    pub(crate) attempts: u32,
    /// Another target could take it now.
    pub(crate) elsewhere: bool,
    /// What the caller still waits for; `None`: as long as it takes.
    pub(crate) patience: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Elsewhere,
    SameAfter(Duration),
    GiveUp,
}

pub(crate) fn decide(failed: Failed, savings: &mut Savings) -> Verdict {
    if !failed.worth_retrying || failed.attempts > MOST_RETRIES {
        return Verdict::GiveUp;
    }
    let verdict = match failed.wait {
        _ if failed.elsewhere => Verdict::Elsewhere,
        Some(wait) if wait > SHORT_WAIT => return Verdict::GiveUp,
        Some(wait) => Verdict::SameAfter(wait.max(SAME_TARGET_PAUSE)),
        None => Verdict::SameAfter(SAME_TARGET_PAUSE * failed.attempts),
    };
    let pause = match verdict {
        Verdict::SameAfter(pause) => pause,
        Verdict::Elsewhere | Verdict::GiveUp => Duration::ZERO,
    };
    let patient = failed.patience.is_none_or(|left| left > pause);
    if patient && savings.spend() { verdict } else { Verdict::GiveUp }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAILED: Failed = Failed { worth_retrying: true, wait: None, attempts: 1, elsewhere: false, patience: None };

    fn decided(failed: Failed) -> Verdict {
        decide(failed, &mut Savings::new())
    }

    #[test]
    fn another_target_is_tried_before_the_same_one() {
        assert_eq!(decided(Failed { elsewhere: true, ..FAILED }), Verdict::Elsewhere);
        assert_eq!(decided(FAILED), Verdict::SameAfter(SAME_TARGET_PAUSE));
        let long = Some(Duration::from_secs(30));
        assert_eq!(decided(Failed { elsewhere: true, wait: long, ..FAILED }), Verdict::Elsewhere);
        assert_eq!(decided(Failed { wait: long, ..FAILED }), Verdict::GiveUp);
    }

    #[test]
    fn there_are_two_retries_at_most_and_none_of_what_cannot_go_better() {
        assert_ne!(decided(Failed { attempts: 2, ..FAILED }), Verdict::GiveUp);
        assert_eq!(decided(Failed { attempts: 3, elsewhere: true, ..FAILED }), Verdict::GiveUp);
        assert_eq!(decided(Failed { worth_retrying: false, ..FAILED }), Verdict::GiveUp);
    }

    #[test]
    fn a_caller_without_time_gets_no_retry() {
        let wait = Some(Duration::from_secs(1));
        assert_eq!(decided(Failed { wait, patience: wait, ..FAILED }), Verdict::GiveUp);
        assert_eq!(decided(Failed { elsewhere: true, patience: Some(Duration::ZERO), ..FAILED }), Verdict::GiveUp);
    }

    #[test]
    fn when_all_fail_a_tenth_is_tried_again() {
        let mut savings = Savings::new();
        let retried = (0..1_000)
            .filter(|_| {
                savings.earn();
                decide(FAILED, &mut savings) != Verdict::GiveUp
            })
            .count();
        assert!((100..=110).contains(&retried), "{retried}");
    }
}
