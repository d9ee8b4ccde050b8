//! The guard of a machine whose GPU and host share one memory: when that runs out there, the whole machine stands still, and no
//! kernel ends anybody. Pure: a reading of `MemAvailable` in, one act out. Nothing here allocates, because whoever asks does so when
//! there is nothing left.
//!
//! Only `MemAvailable` counts. `MemFree` is low on any machine that has read large files.

use std::time::Duration;

use fettle_placement::quantity::Bytes;

/// Engines that are known at a time; a machine with one GPU runs a few.
pub const MAX_VICTIMS: usize = 64;
/// Processes of one engine.
pub const MAX_PROCESSES: usize = 32;
/// A slope that reaches the last rung so soon is as bad as being there: a look comes every 100 ms, and a kill takes its time.
const FORESIGHT: Duration = Duration::from_millis(250);
/// After a kill, memory comes back when the driver has cleaned up; another kill before that ends an innocent.
const KILL_SETTLES: Duration = Duration::from_millis(500);
/// An engine that was asked politely gets so long before the next one is asked.
const TERM_SETTLES: Duration = Duration::from_secs(5);

/// Limits on `MemAvailable`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rungs {
    pub freeze: Bytes,
    /// While an engine loads, which takes gigabytes a second.
    pub freeze_in_load: Bytes,
    pub term: Bytes,
    pub kill: Bytes,
    /// Below it, a fresh `NV_ERR_NO_MEMORY` of the driver is believed.
    pub kill_on_no_memory: Bytes,
}

impl Default for Rungs {
    /// A fall from 34.0 to 12.7 GiB in 1.5 s is on record (14 GiB/s); 12 GiB less 150 ms of that are 9.9.
    fn default() -> Self {
        Self {
            freeze: Bytes::gib(16),
            freeze_in_load: Bytes::gib(24),
            term: Bytes::gib(14),
            kill: Bytes::gib(12),
            kill_on_no_memory: Bytes::gib(24),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rung {
    Calm,
    Freeze,
    Term,
    Kill,
}

impl Rung {
    pub const ALL: [Self; 4] = [Self::Calm, Self::Freeze, Self::Term, Self::Kill];

    pub fn name(self) -> &'static str {
        match self {
            Self::Calm => "calm",
            Self::Freeze => "freeze",
            Self::Term => "term",
            Self::Kill => "kill",
        }
    }
}

/// A process that is known by more than its number, which may be another's by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Process {
    pub pid: i32,
    /// Field 22 of `/proc/<pid>/stat`.
    pub started: u64,
}

/// An engine that may be ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Victim {
    pub loading: bool,
    /// The lowest is asked first.
    pub priority: u8,
    /// The highest is the newest.
    pub nth: u64,
    processes: [Process; MAX_PROCESSES],
    count: usize,
}

impl Victim {
    const NONE: Self = Self {
        loading: false,
        priority: 0,
        nth: 0,
        processes: [Process { pid: 0, started: 0 }; MAX_PROCESSES],
        count: 0,
    };

    pub fn processes(&self) -> &[Process] {
        &self.processes[..self.count]
    }

    /// `loading 0 17 4711:123,4712:124`
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let loading = match words.next()? {
            "loading" => true,
            "ready" => false,
            _ => return None,
        };
        let mut victim =
            Self { loading, priority: words.next()?.parse().ok()?, nth: words.next()?.parse().ok()?, ..Self::NONE };
        for word in words.next()?.split(',').take(MAX_PROCESSES) {
            let (pid, started) = word.split_once(':')?;
            // A number below 1 would mean a group, or everybody.
            let pid = pid.parse().ok().filter(|pid| *pid > 1)?;
            victim.processes[victim.count] = Process { pid, started: started.parse().ok()? };
            victim.count += 1;
        }
        Some(victim)
    }

    /// The line that is read again.
    pub fn write(loading: bool, priority: u8, nth: u64, processes: &[Process]) -> String {
        let state = if loading { "loading" } else { "ready" };
        let each: Vec<String> = processes.iter().map(|one| format!("{}:{}", one.pid, one.started)).collect();
        format!("{state} {priority} {nth} {}\n", each.join(","))
    }
}

/// Who may be ended, as the supervisor wrote it last.
pub struct Victims {
    known: [Victim; MAX_VICTIMS],
    count: usize,
}

impl Victims {
    pub const NONE: Self = Self { known: [Victim::NONE; MAX_VICTIMS], count: 0 };

    /// Lines that are none of ours are passed over.
    pub fn read(&mut self, text: &str) {
        self.count = 0;
        for victim in text.lines().filter_map(Victim::parse).take(MAX_VICTIMS) {
            self.known[self.count] = victim;
            self.count += 1;
        }
    }

    pub fn all(&self) -> &[Victim] {
        &self.known[..self.count]
    }
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Nothing,
    /// Nothing new is loaded, and the pages of model files are given up.
    Freeze,
    Term(Victim),
    Kill(Victim),
}

/// One look at the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Microseconds of a clock that only goes forward.
    pub at: u64,
    pub available: Bytes,
    /// The driver has just failed to get memory.
    pub no_memory: bool,
}

pub struct Guard {
    rungs: Rungs,
    last: Option<Look>,
    /// The newest engine that was asked, and when; likewise ended.
    termed: Done,
    killed: Done,
}

/// Whom it was done to, the last ones, so that nobody is chosen twice while he is still listed.
struct Done {
    ended: [u64; MAX_VICTIMS],
    count: usize,
    at: Option<u64>,
}

impl Done {
    const NOTHING: Self = Self { ended: [0; MAX_VICTIMS], count: 0, at: None };

    fn has(&self, nth: u64) -> bool {
        self.ended[..self.count.min(MAX_VICTIMS)].contains(&nth)
    }

    fn settles(&self, now: u64, within: Duration) -> bool {
        self.at.is_some_and(|at| u128::from(now.saturating_sub(at)) < within.as_micros())
    }

    fn add(&mut self, nth: u64, now: u64) {
        self.ended[self.count % MAX_VICTIMS] = nth;
        self.count += 1;
        self.at = Some(now);
    }
}

impl Guard {
    pub fn new(rungs: Rungs) -> Self {
        Self { rungs, last: None, termed: Done::NOTHING, killed: Done::NOTHING }
    }

    /// The rung that the memory is on, and what follows from it.
    pub fn look(&mut self, look: Look, victims: &Victims) -> (Rung, Act) {
        let rung = self.rung(look, victims);
        self.last = Some(look);
        let act = match rung {
            Rung::Calm => Act::Nothing,
            Rung::Freeze => Act::Freeze,
            Rung::Term => self.term(look.at, victims).map_or(Act::Freeze, Act::Term),
            Rung::Kill => self.kill(look.at, victims).map_or(Act::Freeze, Act::Kill),
        };
        (rung, act)
    }

    fn rung(&self, look: Look, victims: &Victims) -> Rung {
        let Rungs { freeze, freeze_in_load, term, kill, kill_on_no_memory } = self.rungs;
        let loading = victims.all().iter().any(|victim| victim.loading);
        if look.available < kill || self.foreseen(look) < kill || (look.no_memory && look.available < kill_on_no_memory)
        {
            Rung::Kill
        } else if look.available < term {
            Rung::Term
        } else if look.available < freeze || (loading && look.available < freeze_in_load) {
            Rung::Freeze
        } else {
            Rung::Calm
        }
    }

    /// What is left after [`FORESIGHT`] if it goes on as since the last look.
    fn foreseen(&self, look: Look) -> Bytes {
        let Some(last) = self.last.filter(|last| last.at < look.at && last.available > look.available) else {
            return look.available;
        };
        let fallen = u128::from(last.available.get() - look.available.get());
        let more = fallen * FORESIGHT.as_micros() / u128::from(look.at - last.at);
        Bytes::new(look.available.get().saturating_sub(u64::try_from(more).unwrap_or(u64::MAX)))
    }

    /// The one of lowest priority, of equals the newest.
    fn term(&mut self, now: u64, victims: &Victims) -> Option<Victim> {
        if self.termed.settles(now, TERM_SETTLES) || self.killed.settles(now, KILL_SETTLES) {
            return None;
        }
        let open = victims.all().iter().filter(|one| !self.termed.has(one.nth) && !self.killed.has(one.nth));
        let chosen = open.min_by_key(|one| (one.priority, u64::MAX - one.nth)).copied()?;
        self.termed.add(chosen.nth, now);
        Some(chosen)
    }

    /// The one that loads, which is the one that grows; else the newest.
    fn kill(&mut self, now: u64, victims: &Victims) -> Option<Victim> {
        if self.killed.settles(now, KILL_SETTLES) {
            return None;
        }
        let open = victims.all().iter().filter(|one| !self.killed.has(one.nth));
        let chosen = open.max_by_key(|one| (one.loading, one.nth)).copied()?;
        self.killed.add(chosen.nth, now);
        Some(chosen)
    }
}

/// `MemAvailable` of the text of `/proc/meminfo`.
pub fn available(meminfo: &str) -> Option<Bytes> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(Bytes::new(kib.checked_mul(1024)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GIB: u64 = 1 << 30;
    const TICK: u64 = 100_000;

    fn victims(lines: &str) -> Victims {
        let mut victims = Victims::NONE;
        victims.read(lines);
        victims
    }

    /// A look every 100 ms at what is available in tenths of a GiB; what was done at each.
    fn acts(tenths: &[u64], victims: &Victims) -> Vec<(Rung, Act)> {
        let mut guard = Guard::new(Rungs::default());
        let looks = tenths.iter().enumerate().map(|(nth, tenths)| Look {
            at: (nth as u64 + 1) * TICK,
            available: Bytes::new(tenths * GIB / 10),
            no_memory: false,
        });
        looks.map(|look| guard.look(look, victims)).collect()
    }

    fn ended(act: Act) -> Option<(char, u64)> {
        match act {
            Act::Term(one) => Some(('t', one.nth)),
            Act::Kill(one) => Some(('k', one.nth)),
            Act::Nothing | Act::Freeze => None,
        }
    }

    #[test]
    fn a_ramp_of_14_gib_a_second_is_met_before_less_than_8_are_left() {
        let victims = victims("ready 1 1 100:1\nloading 1 2 200:2\n");
        let fall: Vec<u64> = (0..30).map(|nth| 400u64.saturating_sub(nth * 14)).collect();
        let acts = acts(&fall, &victims);
        let first = acts.iter().position(|(_, act)| ended(*act).is_some()).unwrap();
        assert_eq!(ended(acts[first].1), Some(('k', 2)), "the one that loads");
        assert!(fall[first] > 120, "foreseen at {} tenths of a GiB", fall[first]);
    }

    #[test]
    fn a_slow_fall_asks_politely_first_and_the_lowest_priority() {
        let victims = victims("ready 2 1 100:1\nready 0 2 200:2\nready 0 3 300:3\n");
        let slow: Vec<u64> = (0..80).map(|nth| 165 - nth / 2).collect();
        let told: Vec<_> = acts(&slow, &victims).iter().filter_map(|(_, act)| ended(*act)).collect();
        assert_eq!(told.first(), Some(&('t', 3)));
        assert!(told.iter().all(|(how, _)| *how == 't'), "five seconds each: {told:?}");
    }

    #[test]
    fn one_at_a_time_is_killed_and_nobody_twice() {
        let victims = victims("ready 0 1 100:1\nready 0 2 200:2\n");
        let acts = acts(&[110; 30], &victims);
        let told: Vec<_> = acts.iter().enumerate().filter_map(|(nth, (_, act))| Some((nth, ended(*act)?))).collect();
        assert_eq!(told, [(0, ('k', 2)), (5, ('k', 1))]);
    }

    #[test]
    fn a_freeze_comes_earlier_while_something_loads() {
        let rungs = |lines: &str| acts(&[200], &victims(lines))[0].0;
        assert_eq!(rungs("ready 0 1 100:1\n"), Rung::Calm);
        assert_eq!(rungs("loading 0 1 100:1\n"), Rung::Freeze);
    }

    #[test]
    fn the_drivers_own_word_is_believed_below_24_gib_only() {
        let victims = victims("ready 0 1 100:1\n");
        let kills = |gib: u64| {
            let look = Look { at: 1, available: Bytes::gib(gib), no_memory: true };
            ended(Guard::new(Rungs::default()).look(look, &victims).1).is_some()
        };
        assert!(kills(23) && !kills(25));
    }

    #[test]
    fn meminfo_is_read_by_its_available_line_alone() {
        let text = "MemTotal:       131072000 kB\nMemFree:          900000 kB\nMemAvailable:   62914560 kB\n";
        assert_eq!(available(text), Some(Bytes::gib(60)));
        assert_eq!(available("MemFree: 1 kB\n"), None);
    }

    #[test]
    fn a_line_is_read_as_it_was_written_and_others_are_passed_over() {
        let processes = [Process { pid: 4711, started: 9 }, Process { pid: 4712, started: 10 }];
        let text = Victim::write(true, 3, 7, &processes) + "ready 0 1 1:1\nready 0 1 -5:1\nfile /m\n\nready x\n";
        let victims = victims(&text);
        let [only] = victims.all() else { panic!("{:?}", victims.all()) };
        assert_eq!((only.loading, only.priority, only.nth, only.processes()), (true, 3, 7, &processes[..]));
    }

    proptest! {
        /// Whatever `MemFree` and page cache do, nothing is ended while enough is available and it does not fall steeply.
        #[test]
        fn nobody_is_ended_while_there_is_enough(steps in prop::collection::vec(-8i64..8, 1..200), start in 200u64..600) {
            let victims = victims("ready 0 1 100:1\nready 0 2 200:2\n");
            let mut now = i64::try_from(start).unwrap();
            let tenths: Vec<u64> = steps.iter().map(|step| {
                // Up to 8 GiB a second, and never below 15: the third look would not yet be at 12.
                now = (now + step).max(150);
                u64::try_from(now).unwrap()
            }).collect();
            for (tenths, (_, act)) in tenths.iter().zip(acts(&tenths, &victims)) {
                prop_assert!(ended(act).is_none(), "at {tenths} tenths of a GiB");
            }
        }

        #[test]
        fn any_text_is_read(text in "\\PC*") {
            prop_assert!(victims(&text).all().len() <= MAX_VICTIMS);
        }
    }
}
