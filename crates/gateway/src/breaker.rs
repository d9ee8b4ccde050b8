//! Whether a target is asked at all. It forgets nothing that failed within half a minute, lets one request try again after a
//! pause that doubles, and never hears of what was the caller's own fault.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// A target that fails so often in a row is down, however few ask it.
const FAILURES_IN_A_ROW: u32 = 5;
/// Half of the last requests failing is no accident; fewer say nothing.
const WINDOW_REQUESTS: usize = 20;
/// Older answers say nothing of now.
const WINDOW: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_secs(10);
/// An engine that was restarted is found again within this time.
const LONGEST_PAUSE: Duration = Duration::from_secs(120);
/// A request that is to find out, and has brought neither content nor an end by then, lets the next one try.
const PROBE_TIME: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Good,
    Failed,
    /// An engine at whose address nobody listens: it has ended, and the supply will say so.
    Gone,
    /// It will not get better by itself: a key that is not accepted.
    Misconfigured,
    /// The caller's fault or wish: says nothing of the target.
    Neutral,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Permit {
    Open,
    /// One request may find out; whoever takes it says so with [`Breaker::probe`].
    Probe,
    Closed {
        until: Instant,
    },
}

#[derive(Debug)]
pub(crate) struct Breaker {
    state: State,
    in_a_row: u32,
    window: VecDeque<(Instant, bool)>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Serving,
    /// `asked`: it wants to be left alone.
    Resting {
        until: Instant,
        pauses: u32,
        asked: bool,
    },
    Probing {
        pauses: u32,
        since: Instant,
    },
}

impl Breaker {
    pub(crate) fn new() -> Self {
        Self { state: State::Serving, in_a_row: 0, window: VecDeque::new() }
    }

    pub(crate) fn permit(&self, now: Instant) -> Permit {
        match self.state {
            State::Serving => Permit::Open,
            State::Resting { until, .. } if now >= until => Permit::Probe,
            State::Resting { until, .. } => Permit::Closed { until },
            State::Probing { since, .. } if now >= since + PROBE_TIME => Permit::Probe,
            State::Probing { since, .. } => Permit::Closed { until: since + PROBE_TIME },
        }
    }

    pub(crate) fn probe(&mut self, now: Instant) {
        if let State::Resting { pauses, .. } | State::Probing { pauses, .. } = self.state {
            self.state = State::Probing { pauses, since: now };
        }
    }

    /// An answer has begun: whoever was to find out has found out, however long the rest takes.
    pub(crate) fn answers(&mut self) {
        if let State::Probing { .. } = self.state {
            *self = Self::new();
        }
    }

    /// It asked for a pause of its own accord. That is no failure, and it is kept.
    pub(crate) fn rest(&mut self, until: Instant) {
        match self.state {
            State::Serving => self.state = State::Resting { until, pauses: 0, asked: true },
            State::Probing { pauses, .. } => self.state = State::Resting { until, pauses, asked: true },
            State::Resting { until: before, pauses, .. } => {
                self.state = State::Resting { until: before.max(until), pauses, asked: true };
            }
        }
    }

    /// Somebody asked it although it was left alone, and it answered well. A pause that it wants is kept.
    pub(crate) fn found_well(&mut self) {
        if !matches!(self.state, State::Resting { asked: true, .. }) {
            *self = Self::new();
        }
    }

    pub(crate) fn record(&mut self, outcome: Outcome, now: Instant) {
        match (outcome, self.state) {
            (Outcome::Good, State::Probing { .. }) => *self = Self::new(),
            (Outcome::Good, _) => {
                self.in_a_row = 0;
                self.remember(now, true);
            }
            (Outcome::Neutral, State::Probing { pauses, .. }) => {
                self.state = State::Resting { until: now, pauses, asked: false }
            }
            (Outcome::Neutral, _) => {}
            (Outcome::Gone, _) => self.open(now + FIRST_PAUSE, 0),
            (Outcome::Misconfigured, _) => self.open(now + LONGEST_PAUSE, u32::MAX),
            (Outcome::Failed, State::Probing { pauses, .. }) => {
                let pauses = pauses.saturating_add(1);
                self.open(now + pause(pauses), pauses);
            }
            // Requests that were sent before it opened.
            (Outcome::Failed, State::Resting { .. }) => {}
            (Outcome::Failed, State::Serving) => {
                self.in_a_row += 1;
                self.remember(now, false);
                let failed = self.window.iter().filter(|(_, good)| !good).count();
                let half = self.window.len() >= WINDOW_REQUESTS && failed * 2 >= self.window.len();
                if self.in_a_row >= FAILURES_IN_A_ROW || half {
                    self.open(now + pause(0), 0);
                }
            }
        }
    }

    fn open(&mut self, until: Instant, pauses: u32) {
        self.state = State::Resting { until, pauses, asked: false };
        self.in_a_row = 0;
        self.window.clear();
    }

    fn remember(&mut self, now: Instant, good: bool) {
        self.window.push_back((now, good));
        while self.window.len() > WINDOW_REQUESTS
            || self.window.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > WINDOW)
        {
            self.window.pop_front();
        }
    }
}

fn pause(pauses: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << pauses.min(10)).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::new();
        (0..FAILURES_IN_A_ROW).for_each(|_| breaker.record(Outcome::Failed, now));
        breaker
    }

    #[test]
    fn an_engine_that_has_ended_is_not_asked_again_at_once() {
        let now = Instant::now();
        let mut breaker = Breaker::new();
        breaker.record(Outcome::Gone, now);
        assert_eq!(breaker.permit(now), Permit::Closed { until: now + FIRST_PAUSE });
    }

    #[test]
    fn five_failures_in_a_row_open_it_and_a_good_answer_between_does_not() {
        let now = Instant::now();
        assert_eq!(opened(now).permit(now), Permit::Closed { until: now + FIRST_PAUSE });
        let mut breaker = Breaker::new();
        for _ in 0..3 {
            (0..4).for_each(|_| breaker.record(Outcome::Failed, now));
            breaker.record(Outcome::Good, now);
            (0..6).for_each(|_| breaker.record(Outcome::Good, now));
        }
        assert_eq!(breaker.permit(now), Permit::Open);
    }

    #[test]
    fn half_of_twenty_within_half_a_minute_open_it_and_over_an_hour_do_not() {
        let begin = Instant::now();
        let alternating = |gap: Duration| {
            let mut breaker = Breaker::new();
            for nth in 0..20 {
                let outcome = if nth % 2 == 0 { Outcome::Good } else { Outcome::Failed };
                breaker.record(outcome, begin + gap * nth);
            }
            breaker.permit(begin + gap * 20)
        };
        assert_ne!(alternating(SECOND), Permit::Open);
        assert_eq!(alternating(SECOND * 60), Permit::Open);
    }

    #[test]
    fn one_probe_at_a_time_and_each_failed_one_doubles_the_pause() {
        let mut now = Instant::now();
        let mut breaker = opened(now);
        for pause in [10, 20, 40, 80, 120, 120].map(Duration::from_secs) {
            assert_eq!(breaker.permit(now), Permit::Closed { until: now + pause });
            now += pause;
            assert_eq!(breaker.permit(now), Permit::Probe);
            breaker.probe(now);
            assert!(matches!(breaker.permit(now), Permit::Closed { .. }));
            breaker.record(Outcome::Failed, now);
        }
        now += LONGEST_PAUSE;
        breaker.probe(now);
        breaker.record(Outcome::Good, now);
        assert_eq!(breaker.permit(now), Permit::Open);
    }

    #[test]
    fn a_probe_whose_caller_hung_up_lets_the_next_one_try() {
        let now = Instant::now();
        let mut breaker = opened(now);
        breaker.probe(now + FIRST_PAUSE);
        breaker.record(Outcome::Neutral, now + FIRST_PAUSE);
        assert_eq!(breaker.permit(now + FIRST_PAUSE), Permit::Probe);
    }

    #[test]
    fn a_probe_finds_out_with_the_first_of_its_answer_and_within_a_time() {
        let now = Instant::now();
        let mut breaker = opened(now);
        breaker.probe(now + FIRST_PAUSE);
        assert_eq!(
            breaker.permit(now + FIRST_PAUSE + SECOND),
            Permit::Closed { until: now + FIRST_PAUSE + PROBE_TIME }
        );
        assert_eq!(breaker.permit(now + FIRST_PAUSE + PROBE_TIME), Permit::Probe);
        breaker.probe(now + FIRST_PAUSE + PROBE_TIME);
        assert!(matches!(breaker.permit(now + FIRST_PAUSE + PROBE_TIME), Permit::Closed { .. }));
        breaker.answers();
        assert_eq!(breaker.permit(now + FIRST_PAUSE + PROBE_TIME), Permit::Open);
    }

    #[test]
    fn a_refused_key_closes_the_target_at_once() {
        let now = Instant::now();
        let mut breaker = Breaker::new();
        breaker.record(Outcome::Misconfigured, now);
        assert_eq!(breaker.permit(now), Permit::Closed { until: now + LONGEST_PAUSE });
    }

    proptest! {
        #[test]
        fn whatever_happens_it_is_asked_again_within_the_longest_pause(events in proptest::collection::vec((0..5u8, 0..40u64), 0..200)) {
            let mut now = Instant::now();
            let mut breaker = Breaker::new();
            for (event, seconds) in events {
                now += SECOND * u32::try_from(seconds).unwrap();
                if breaker.permit(now) == Permit::Probe {
                    breaker.probe(now);
                }
                breaker.record([Outcome::Good, Outcome::Failed, Outcome::Neutral, Outcome::Misconfigured, Outcome::Failed][usize::from(event)], now);
                let closed = matches!(breaker.permit(now + LONGEST_PAUSE), Permit::Closed { .. });
                prop_assert!(!closed);
            }
        }
    }
}
