//! What nobody told us: which labels are news to somebody who looks, and which deliveries to ask for once more.
//!
//! All instants are the forge's own, so no clock of ours can hide a label or bring an old one back.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

/// A look begins so far before the last one: what a forge lists lags behind what happened there.
const OVERLAP: SignedDuration = SignedDuration::from_secs(60);
/// How far the first look at a repository reaches back. Whoever tries Fettle sets a label and then starts it; what lies longer
/// back was asked of somebody else.
pub const FIRST_LOOK: SignedDuration = SignedDuration::from_hours(1);
/// A wish that nobody heard for so long is not fulfilled out of the blue. GitHub keeps its deliveries about as long.
pub const REMEMBERED: SignedDuration = SignedDuration::from_hours(3 * 24);
/// Deliveries of one event, the first included. With the pauses between them that is most of a day.
const MAX_ATTEMPTS: u32 = 10;
/// The longest pause between two of them.
const LONGEST_PAUSE: SignedDuration = SignedDuration::from_hours(12);

/// Labels that were set before this are no news at `now`, for a look that goes on from `mark`.
pub fn news_from(mark: Option<Timestamp>, now: Timestamp) -> Timestamp {
    match mark {
        Some(mark) => mark.max(back(now, REMEMBERED)),
        None => back(now, FIRST_LOOK),
    }
}

/// What a look saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// When the forge answered.
    pub now: Timestamp,
    /// The newest change among the issues that were seen. `None`: there were none.
    pub last_change: Option<Timestamp>,
    /// There were more, changed later still.
    pub cut: bool,
}

/// Where the next look goes on from. `None`: from the same mark, so that the question stays the same and the forge can answer
/// that nothing has changed, which costs nothing there.
pub fn next_mark(mark: Option<Timestamp>, look: &Look) -> Option<Timestamp> {
    let next = match (mark, look.last_change) {
        (Some(_), None) => return None,
        // A second more, or a thousand changes within one second would be all that is ever seen.
        (Some(mark), Some(last)) if look.cut => last.max(mark.saturating_add(SignedDuration::from_secs(1)).ok()?),
        (None, Some(last)) if look.cut => last,
        (Some(mark), Some(_)) => back(look.now, OVERLAP).max(mark),
        (None, _) => back(look.now, OVERLAP),
    };
    (Some(next) != mark).then_some(next)
}

/// One attempt of the forge to deliver an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    pub id: u64,
    /// The event's, which its attempts share.
    pub guid: String,
    pub at: Timestamp,
    /// It was answered with a status of success.
    pub arrived: bool,
}

/// An event of which no attempt has arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    pub guid: String,
    /// The newest attempt, which is asked to be repeated.
    pub attempt: u64,
    pub first_at: Timestamp,
    last_at: Timestamp,
    attempts: u32,
}

/// The lost events that the forge can still deliver and that were not tried too often, the oldest first.
pub fn lost(attempts: &[Attempt], now: Timestamp) -> Vec<Lost> {
    let mut events: BTreeMap<&str, Option<Lost>> = BTreeMap::new();
    for attempt in attempts {
        let event = events.entry(&attempt.guid).or_insert_with(|| {
            let (guid, at) = (attempt.guid.clone(), attempt.at);
            Some(Lost { guid, attempt: attempt.id, first_at: at, last_at: at, attempts: 0 })
        });
        match event {
            _ if attempt.arrived => *event = None,
            Some(lost) => {
                lost.attempts += 1;
                lost.first_at = lost.first_at.min(attempt.at);
                if (attempt.at, attempt.id) >= (lost.last_at, lost.attempt) {
                    (lost.last_at, lost.attempt) = (attempt.at, attempt.id);
                }
            }
            None => {}
        }
    }
    let mut lost: Vec<Lost> = events
        .into_values()
        .flatten()
        .filter(|lost| lost.attempts < MAX_ATTEMPTS && lost.first_at > back(now, REMEMBERED))
        .collect();
    lost.sort_by_key(|lost| (lost.first_at, lost.attempt));
    lost
}

impl Lost {
    /// Whether to ask again by now. At first at once, then after `pause`, and each time twice as long as before.
    pub fn is_due(&self, now: Timestamp, pause: SignedDuration) -> bool {
        let wait = match self.attempts {
            0 | 1 => SignedDuration::ZERO,
            more => pause.saturating_mul(1 << (more - 2).min(16)).min(LONGEST_PAUSE),
        };
        self.last_at.saturating_add(wait).is_ok_and(|then| then <= now)
    }
}

fn back(from: Timestamp, by: SignedDuration) -> Timestamp {
    from.saturating_sub(by).unwrap_or(Timestamp::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).expect("a test's instant")
    }

    #[test]
    fn a_first_look_reaches_back_an_hour_and_a_late_one_three_days() {
        assert_eq!(news_from(None, at(7200)), at(3600));
        assert_eq!(news_from(Some(at(0)), at(7200)), at(0));
        assert_eq!(news_from(Some(at(0)), at(3 * 86_400 + 5)), at(5));
    }

    #[test]
    fn the_mark_stays_while_nothing_is_seen_and_never_goes_back() {
        let look = |now, last_change| Look { now: at(now), last_change, cut: false };
        assert_eq!(next_mark(None, &look(600, None)), Some(at(540)));
        assert_eq!(next_mark(None, &look(600, Some(at(10)))), Some(at(540)));
        assert_eq!(next_mark(Some(at(540)), &look(9_000, None)), None);
        assert_eq!(next_mark(Some(at(540)), &look(9_000, Some(at(8_990)))), Some(at(8_940)));
        assert_eq!(next_mark(Some(at(540)), &look(590, Some(at(585)))), None, "the forge's clock was set back");
    }

    #[test]
    fn a_list_that_was_cut_goes_on_where_it_was_cut_and_always_further() {
        let look = |last| Look { now: at(9_000), last_change: Some(at(last)), cut: true };
        assert_eq!(next_mark(None, &look(50)), Some(at(50)));
        assert_eq!(next_mark(Some(at(10)), &look(50)), Some(at(50)));
        assert_eq!(next_mark(Some(at(50)), &look(50)), Some(at(51)));
    }

    fn attempt(id: u64, guid: &str, second: i64, arrived: bool) -> Attempt {
        Attempt { id, guid: guid.to_owned(), at: at(second), arrived }
    }

    fn guids(attempts: &[Attempt], now: i64) -> Vec<String> {
        lost(attempts, at(now)).into_iter().map(|lost| lost.guid).collect()
    }

    #[test]
    fn lost_is_what_never_arrived_and_can_still_come() {
        let newest_first = [
            attempt(9, "again", 90, true),
            attempt(8, "late", 80, false),
            attempt(7, "again", 70, false),
            attempt(6, "early", 60, false),
            attempt(5, "fine", 50, true),
        ];
        assert_eq!(guids(&newest_first, 100), ["early", "late"]);
        assert_eq!(guids(&newest_first, 60 + 3 * 86_400), ["late"]);
        let oldest_first: Vec<Attempt> = newest_first.into_iter().rev().collect();
        assert_eq!(guids(&oldest_first, 100), ["early", "late"]);
    }

    #[test]
    fn each_attempt_waits_twice_as_long_as_the_one_before_and_ten_are_enough() {
        let minute = SignedDuration::from_secs(60);
        let after = |attempts: u64| {
            let all: Vec<Attempt> = (0..attempts).map(|id| attempt(id, "a", 0, false)).collect();
            lost(&all, at(0)).pop()
        };
        let due = |attempts, second| after(attempts).unwrap().is_due(at(second), minute);
        assert!(due(1, 0));
        assert!(!due(2, 59) && due(2, 60));
        assert!(!due(4, 239) && due(4, 240));
        assert_eq!(after(9).unwrap().attempt, 8);
        assert_eq!(after(10), None);
        let long = SignedDuration::from_hours(8);
        let third = after(3).unwrap();
        assert!(!third.is_due(at(43_199), long) && third.is_due(at(43_200), long));
    }
}
