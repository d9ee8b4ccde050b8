//! Sessions: how long one lasts, and what it means when its secret is shown again.
//!
//! A browser's session keeps its secret. A client's refresh token is used once and exchanged for the next of its family;
//! one that comes a second time was copied, and nobody can say by whom, so the whole family ends.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// Without use for this long, a session is over.
pub const IDLE_LIMIT: Duration = Duration::from_secs(7 * 24 * 3600);
/// However often it is used, a session ends: whoever copied its secret unnoticed loses it then.
pub const WHOLE_LIMIT: Duration = Duration::from_secs(30 * 24 * 3600);
/// Uses closer together than this are not written down: one write for each request would be too many.
pub const TOUCH_EVERY: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Browser,
    Token,
}

impl Kind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Browser => "browser",
            Self::Token => "token",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Self::Browser, Self::Token].into_iter().find(|kind| kind.name() == text)
    }
}

/// How long a session lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
    pub ended_at: Option<Timestamp>,
}

/// Which of a family's refresh tokens was shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    Newest,
    /// One that was exchanged before.
    Spent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exchange {
    /// The next token, good until then.
    Rotate {
        expires_at: Timestamp,
    },
    /// The family ends now.
    Reused,
    Over,
}

impl Life {
    pub fn begin(now: Timestamp) -> Self {
        Self { created_at: now, expires_at: later(now, IDLE_LIMIT), ended_at: None }
    }

    pub fn live(self, now: Timestamp) -> bool {
        self.ended_at.is_none() && now < self.expires_at
    }

    /// Until when it lasts if it is used now: never less than before, never beyond the whole.
    pub fn used(self, now: Timestamp) -> Timestamp {
        later(now, IDLE_LIMIT).min(later(self.created_at, WHOLE_LIMIT)).max(self.expires_at)
    }

    /// What a refresh token brings. A spent one ends its family also when that has expired, so that the log tells of it.
    pub fn exchange(self, shown: Shown, now: Timestamp) -> Exchange {
        match shown {
            Shown::Spent if self.ended_at.is_none() => Exchange::Reused,
            Shown::Newest if self.live(now) => Exchange::Rotate { expires_at: self.used(now) },
            Shown::Newest | Shown::Spent => Exchange::Over,
        }
    }
}

fn later(at: Timestamp, by: Duration) -> Timestamp {
    let by = SignedDuration::from_secs(i64::try_from(by.as_secs()).unwrap_or(i64::MAX));
    at.checked_add(by).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A family as a store keeps it: tokens are numbers, the newest is the largest.
    struct Family {
        life: Life,
        newest: u32,
    }

    impl Family {
        fn show(&mut self, token: u32, now: Timestamp) -> Exchange {
            let shown = if token == self.newest { Shown::Newest } else { Shown::Spent };
            let exchange = self.life.exchange(shown, now);
            match exchange {
                Exchange::Rotate { expires_at } => {
                    self.newest += 1;
                    self.life.expires_at = expires_at;
                }
                Exchange::Reused => self.life.ended_at = Some(now),
                Exchange::Over => {}
            }
            exchange
        }
    }

    proptest! {
        #[test]
        fn each_token_rotates_once_and_a_second_showing_ends_all(
            steps in proptest::collection::vec((0u32..6, 0i64..4 * 24 * 3600), 1..60),
        ) {
            let mut now = Timestamp::from_second(1_000_000).unwrap();
            let mut family = Family { life: Life::begin(now), newest: 0 };
            let (mut rotated, mut reused) = (std::collections::BTreeSet::new(), false);
            for (back, seconds) in steps {
                now = now.checked_add(SignedDuration::from_secs(seconds)).unwrap();
                let token = family.newest.saturating_sub(back);
                let spent = token != family.newest;
                let before = family.life.expires_at;
                match family.show(token, now) {
                    Exchange::Rotate { expires_at } => {
                        prop_assert!(!reused, "a family that ended gives nothing");
                        prop_assert!(rotated.insert(token), "{} was exchanged twice", token);
                        prop_assert!(expires_at <= later(family.life.created_at, WHOLE_LIMIT));
                        prop_assert!(expires_at >= before && expires_at <= later(now, IDLE_LIMIT).max(before));
                    }
                    Exchange::Reused => {
                        prop_assert!(spent);
                        reused = true;
                    }
                    Exchange::Over => prop_assert!(reused || now >= family.life.expires_at),
                }
            }
        }

        #[test]
        fn use_prolongs_within_the_whole(gaps in proptest::collection::vec(0i64..8 * 24 * 3600, 1..40)) {
            let begin = Timestamp::from_second(0).unwrap();
            let mut life = Life::begin(begin);
            let mut now = begin;
            for gap in gaps {
                now = now.checked_add(SignedDuration::from_secs(gap)).unwrap();
                prop_assert_eq!(life.live(now), now < life.expires_at);
                if life.live(now) {
                    let next = life.used(now);
                    prop_assert!(next >= life.expires_at && next <= later(begin, WHOLE_LIMIT));
                    life.expires_at = next;
                }
            }
        }
    }
}
