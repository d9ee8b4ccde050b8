//! Where each session was last, for as long as an engine may remember its beginning.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::routing::TargetId;

/// Sessions remembered at once, some 50 bytes each. Above it the oldest go: their prefixes are the first that engines forget.
const MOST_SESSIONS: usize = 65_536;

#[derive(Debug)]
pub(crate) struct Sticky {
    ttl: Duration,
    sessions: HashMap<u64, Session>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Session {
    pub(crate) target: TargetId,
    /// Tokens of its last request and answer: the next one begins with them.
    pub(crate) tokens: u64,
    last: Instant,
}

impl Sticky {
    pub(crate) fn new(ttl: Duration) -> Self {
        Self { ttl, sessions: HashMap::new() }
    }

    pub(crate) fn find(&self, session: u64, now: Instant) -> Option<Session> {
        self.sessions.get(&session).copied().filter(|found| now.saturating_duration_since(found.last) < self.ttl)
    }

    /// Its time begins anew.
    pub(crate) fn keep(&mut self, session: u64, target: TargetId, tokens: u64, now: Instant) {
        if self.sessions.len() >= MOST_SESSIONS && !self.sessions.contains_key(&session) {
            self.make_room(now);
        }
        self.sessions.insert(session, Session { target, tokens, last: now });
    }

    pub(crate) fn forget_target(&mut self, target: TargetId) {
        self.sessions.retain(|_, session| session.target != target);
    }

    pub(crate) fn forget_old(&mut self, now: Instant) {
        let ttl = self.ttl;
        self.sessions.retain(|_, session| now.saturating_duration_since(session.last) < ttl);
    }

    /// How many sessions each target has that are not too old.
    pub(crate) fn warm(&self, now: Instant) -> HashMap<TargetId, u32> {
        let mut warm = HashMap::new();
        for session in self.sessions.values().filter(|one| now.saturating_duration_since(one.last) < self.ttl) {
            *warm.entry(session.target).or_default() += 1;
        }
        warm
    }

    /// An eighth at once, so that a full table is not searched for each new session.
    fn make_room(&mut self, now: Instant) {
        self.forget_old(now);
        let Some(surplus) = (self.sessions.len() + MOST_SESSIONS / 8).checked_sub(MOST_SESSIONS) else { return };
        let mut ages: Vec<(Instant, u64)> = self.sessions.iter().map(|(id, session)| (session.last, *id)).collect();
        ages.sort_unstable();
        for (_, id) in ages.into_iter().take(surplus) {
            self.sessions.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(600);

    #[test]
    fn each_use_begins_the_time_anew_and_silence_ends_it() {
        let (mut sticky, begin) = (Sticky::new(TTL), Instant::now());
        sticky.keep(1, TargetId(7), 10, begin);
        let later = begin + TTL - Duration::from_secs(1);
        assert_eq!(sticky.find(1, later).unwrap().target, TargetId(7));
        sticky.keep(1, TargetId(7), 20, later);
        assert_eq!(sticky.find(1, begin + TTL).unwrap().tokens, 20);
        assert!(sticky.find(1, later + TTL).is_none());
        assert!(sticky.warm(later + TTL).is_empty());
    }

    #[test]
    fn the_oldest_sessions_make_room_for_new_ones() {
        let (mut sticky, begin) = (Sticky::new(TTL), Instant::now());
        for nth in 0..=MOST_SESSIONS as u64 {
            sticky.keep(nth, TargetId(1), 0, begin + Duration::from_millis(nth));
        }
        assert!(sticky.sessions.len() <= MOST_SESSIONS);
        let now = begin + Duration::from_millis(MOST_SESSIONS as u64);
        assert!(sticky.find(0, now).is_none() && sticky.find(MOST_SESSIONS as u64, now).is_some());
    }
}
