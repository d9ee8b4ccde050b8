//! The life of one engine: what was seen of it and the time become its next state and what is to be done. Computes only; the
//! actor looks and acts.
//!
//! ```text
//! Spawning -> Loading -> Ready -> Stopping -> Gone        from any of them to Stopping, from Stopping to Gone alone
//! ```

use fettle_app::ports::serving::{Exit, ExitClass};
use fettle_placement::quantity::Millis;

use crate::settings::Limits;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    Spawning {
        since: Millis,
    },
    Loading {
        /// As it was when it last got on.
        mark: Work,
        progress: Millis,
    },
    Ready,
    Stopping {
        why: Exit,
        /// Not polite any more from then on.
        kill_at: Millis,
        /// Looks in a row that found no process: one may miss a process that was just being made.
        empty: u8,
    },
    /// No process is left.
    Gone(Exit),
}

/// Looks in a row that must find nothing.
const EMPTY_LOOKS: u8 = 2;

/// What one look found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// The keeper has not begun, is at work, or has ended.
    pub keeper: Keeper,
    /// Processes of the engine, without its keeper.
    pub processes: usize,
    /// The engine's first process has ended, and how.
    pub ended: Option<Exit>,
    /// It could not even be started.
    pub refused: Option<Exit>,
    pub work: Work,
    /// One token came back.
    pub answered: bool,
    /// Somebody wants it to end.
    pub stop: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Keeper {
    #[default]
    Absent,
    Alive,
    Ended,
}

/// What an engine that loads has done; each grows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    pub log_bytes: u64,
    pub read_bytes: u64,
    pub memory_bytes: u64,
}

/// What a process that only waits reads and allocates, over and over, in a stall's time.
const IDLING: u64 = 1 << 20;

impl Work {
    fn got_on_since(self, mark: Self) -> bool {
        self.log_bytes > mark.log_bytes
            || self.read_bytes >= mark.read_bytes.saturating_add(IDLING)
            || self.memory_bytes >= mark.memory_bytes.saturating_add(IDLING)
    }

    fn most(self, other: Self) -> Self {
        Self {
            log_bytes: self.log_bytes.max(other.log_bytes),
            read_bytes: self.read_bytes.max(other.read_bytes),
            memory_bytes: self.memory_bytes.max(other.memory_bytes),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Wait,
    /// Ask for one token, unless that is under way.
    Probe,
    /// SIGTERM, once.
    Terminate,
    /// SIGKILL to whatever is there, at every look until nothing is.
    Kill,
}

pub fn next(state: State, seen: &Seen, now: Millis, limits: &Limits) -> (State, Act) {
    let stopping = |why: Exit, grace: Millis| State::Stopping { why, kill_at: now + grace, empty: 0 };
    let asked = || Exit { class: ExitClass::Asked, why: "it was asked to stop".to_owned() };
    match state {
        State::Gone(exit) => (State::Gone(exit), Act::Wait),
        State::Stopping { why, kill_at, empty } => {
            if seen.keeper != Keeper::Alive && seen.processes == 0 {
                let empty = empty.saturating_add(1);
                return match empty >= EMPTY_LOOKS {
                    true => (State::Gone(why), Act::Wait),
                    false => (State::Stopping { why, kill_at, empty }, Act::Wait),
                };
            }
            let act = if now >= kill_at { Act::Kill } else { Act::Wait };
            (State::Stopping { why, kill_at, empty: 0 }, act)
        }
        State::Spawning { .. } | State::Loading { .. } | State::Ready if seen.stop => {
            (stopping(asked(), limits.grace), Act::Terminate)
        }
        // What its first process leaves behind serves nobody.
        State::Spawning { .. } | State::Loading { .. } | State::Ready
            if seen.ended.is_some() || seen.refused.is_some() =>
        {
            let why = seen.refused.clone().or_else(|| seen.ended.clone()).unwrap_or_else(asked);
            (stopping(why, Millis::ZERO), Act::Kill)
        }
        State::Spawning { .. } | State::Loading { .. } | State::Ready if seen.keeper == Keeper::Ended => {
            let why = Exit { class: ExitClass::Unknown, why: "it ended, and nobody saw how".to_owned() };
            (stopping(why, Millis::ZERO), Act::Kill)
        }
        State::Spawning { since } => {
            if seen.keeper == Keeper::Alive && seen.processes > 0 {
                return (State::Loading { mark: seen.work, progress: now }, Act::Probe);
            }
            if now.since(since) < limits.spawn {
                return (State::Spawning { since }, Act::Wait);
            }
            let why = format!("no process of it was seen within {}", limits.spawn);
            (stopping(Exit { class: ExitClass::NotStarted, why }, Millis::ZERO), Act::Kill)
        }
        State::Loading { mark, progress } => {
            if seen.answered {
                return (State::Ready, Act::Wait);
            }
            if seen.work.got_on_since(mark) {
                return (State::Loading { mark: seen.work.most(mark), progress: now }, Act::Probe);
            }
            if now.since(progress) < limits.stall {
                return (State::Loading { mark, progress }, Act::Probe);
            }
            let why = format!("it wrote, read and allocated nothing for {} while loading", limits.stall);
            (stopping(Exit { class: ExitClass::Stalled, why }, limits.grace), Act::Terminate)
        }
        State::Ready => (State::Ready, Act::Wait),
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn rank(state: &State) -> u8 {
        match state {
            State::Spawning { .. } => 0,
            State::Loading { .. } => 1,
            State::Ready => 2,
            State::Stopping { .. } => 3,
            State::Gone(_) => 4,
        }
    }

    fn exit() -> Exit {
        Exit { class: ExitClass::OutOfMemory, why: "out of memory".to_owned() }
    }

    prop_compose! {
        fn seen()(
            keeper in prop_oneof![1 => Just(Keeper::Absent), 4 => Just(Keeper::Alive), 1 => Just(Keeper::Ended)],
            processes in 0..3usize,
            ended in prop::option::weighted(0.1, Just(exit())),
            refused in prop::option::weighted(0.02, Just(exit())),
            log_bytes in 0..4u64,
            read_bytes in 0..3 * IDLING,
            answered in prop::bool::weighted(0.2),
            stop in prop::bool::weighted(0.1),
        ) -> Seen {
            Seen { keeper, processes, ended, refused, work: Work { log_bytes, read_bytes, memory_bytes: 0 }, answered, stop }
        }
    }

    proptest! {
        #[test]
        fn a_life_never_goes_back_and_is_over_only_when_nothing_is_left(looks in vec((seen(), 0..40_000u64), 1..60)) {
            let limits = Limits::default();
            let mut now = Millis::secs(1);
            let mut state = State::Spawning { since: now };
            let mut empty_before = false;
            for (seen, wait) in looks {
                now += Millis::new(wait);
                let empty = seen.keeper != Keeper::Alive && seen.processes == 0;
                let (then, act) = next(state.clone(), &seen, now, &limits);
                prop_assert!(rank(&then) >= rank(&state));
                if then != state && matches!(then, State::Gone(_)) {
                    prop_assert!(rank(&state) == 3 && empty && empty_before);
                }
                if rank(&state) < 2 && then == State::Ready {
                    prop_assert!(seen.answered && !seen.stop && seen.ended.is_none());
                }
                if let State::Stopping { why, kill_at, .. } = &then {
                    // Killed at the latest when the grace is over, and again and again; the reason stays.
                    prop_assert!(act == Act::Kill || empty || now < *kill_at || act == Act::Terminate);
                    if let State::Stopping { why: before, .. } = &state {
                        prop_assert_eq!(why, before);
                        prop_assert_ne!(act, Act::Terminate);
                    }
                }
                empty_before = empty;
                state = then;
            }
        }

        #[test]
        fn whatever_happens_an_engine_that_is_asked_to_stop_is_killed_after_the_grace(
            looks in vec(seen(), 0..20), alive in 1..3usize,
        ) {
            let limits = Limits::default();
            let mut state = State::Spawning { since: Millis::ZERO };
            for seen in &looks {
                state = next(state, seen, Millis::new(1), &limits).0;
            }
            prop_assume!(!matches!(state, State::Gone(_)));
            let asked = Seen { stop: true, keeper: Keeper::Alive, processes: alive, ..Seen::default() };
            let (state, _) = next(state, &asked, Millis::new(1), &limits);
            let (state, act) = next(state, &asked, Millis::new(1) + limits.grace, &limits);
            prop_assert_eq!(act, Act::Kill);
            prop_assert_eq!(rank(&state), 3);
        }
    }

    #[test]
    fn a_load_that_gets_on_is_no_stall_however_long_it_takes() {
        let limits = Limits::default();
        let mut seen = Seen { keeper: Keeper::Alive, processes: 1, ..Seen::default() };
        let (mut state, _) = next(State::Spawning { since: Millis::ZERO }, &seen, Millis::ZERO, &limits);
        for step in 1..100 {
            seen.work.read_bytes += IDLING;
            state = next(state, &seen, Millis::secs(step * 100), &limits).0;
            assert!(matches!(state, State::Loading { .. }), "{state:?}");
        }
        let (state, act) = next(state, &seen, Millis::secs(99 * 100 + 120), &limits);
        assert_eq!(act, Act::Terminate);
        assert!(matches!(&state, State::Stopping { why, .. } if why.class == ExitClass::Stalled), "{state:?}");
    }

    #[test]
    fn little_reads_of_a_process_that_waits_are_no_progress() {
        let limits = Limits::default();
        let mut seen = Seen { keeper: Keeper::Alive, processes: 1, ..Seen::default() };
        let (mut state, _) = next(State::Spawning { since: Millis::ZERO }, &seen, Millis::ZERO, &limits);
        for second in 1..=120 {
            seen.work.read_bytes += 4096;
            state = next(state, &seen, Millis::secs(second), &limits).0;
        }
        assert!(matches!(&state, State::Stopping { why, .. } if why.class == ExitClass::Stalled), "{state:?}");
    }
}
