//! A claim follows what is seen: up at once, down only after a quiet while, and never below what is there.

use crate::footprint::Slack;
use crate::quantity::{Bytes, Millis};

/// Memory that was not used for this long is not about to be.
pub const QUIET: Millis = Millis::secs(10 * 60);

/// An engine's claim on one pool, with what was seen since it was last set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    pub bytes: Bytes,
    /// The most that was observed since `since`.
    pub peak: Bytes,
    pub since: Millis,
}

impl Claim {
    pub fn new(bytes: Bytes, now: Millis) -> Self {
        Self { bytes, peak: Bytes::ZERO, since: now }
    }

    /// The claim after `observed` was seen at `now`.
    #[must_use]
    pub fn follow(self, observed: Bytes, slack: Slack, now: Millis) -> Self {
        if observed > self.bytes {
            return Self { bytes: observed, peak: observed, since: now };
        }
        let peak = self.peak.max(observed);
        if now.since(self.since) < QUIET {
            return Self { peak, ..self };
        }
        Self { bytes: self.bytes.min(slack.on(peak)), peak: observed, since: now }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_claim_rises_at_once_and_falls_after_ten_quiet_minutes() {
        let claim = Claim::new(Bytes::gib(40), Millis::ZERO);
        let risen = claim.follow(Bytes::gib(42), Slack::LEAST, Millis::secs(1));
        assert_eq!(risen.bytes, Bytes::gib(42));
        let early = risen.follow(Bytes::gib(20), Slack::LEAST, Millis::secs(600));
        assert_eq!(early.bytes, Bytes::gib(42), "42 GiB were seen within ten minutes");
        let first = early.follow(Bytes::gib(20), Slack::LEAST, Millis::secs(601));
        assert_eq!(first.bytes, Bytes::gib(42), "the peak of the first ten minutes still counts");
        let fallen = first.follow(Bytes::gib(20), Slack::LEAST, Millis::secs(1201));
        assert_eq!(fallen.bytes, Slack::LEAST.on(Bytes::gib(20)));
    }

    proptest! {
        #[test]
        fn a_claim_is_never_below_what_is_seen(seen in proptest::collection::vec((0..200u64, 0..400u64), 1..60)) {
            let mut claim = Claim::new(Bytes::gib(50), Millis::ZERO);
            let mut now = 0;
            for (gib, step) in seen {
                now += step;
                claim = claim.follow(Bytes::gib(gib), Slack::LEAST, Millis::secs(now));
                prop_assert!(claim.bytes >= Bytes::gib(gib));
            }
        }
    }
}
