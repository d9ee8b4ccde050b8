//! What surrounds all processes of a history: virtual time, chance, faults, and the trace of what happened.
//!
//! Every port of every process passes through [`Nature::step`], the places where a process can be killed or stopped.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fettle_app::ports::clock::{Clock, IdSource};
use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

use crate::dice::Dice;

/// 2026-01-01T00:00:00Z in microseconds: when every history begins.
const START: i64 = 1_767_225_600_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    Dashboard(usize),
    Worker(usize),
    /// People and other programs, and the server of a ledger that several dashboards share.
    Outside,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dashboard(number) => write!(f, "dashboard {number}"),
            Self::Worker(number) => write!(f, "worker {number}"),
            Self::Outside => f.write_str("outside"),
        }
    }
}

/// How often things go wrong in this history, in a thousand. Each history draws its own: one where everything fails all the
/// time gets nowhere, and one fault alone shows its own consequences.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weather {
    /// At a step of any process, SIGKILL.
    pub(crate) kill: u64,
    /// At a step of a worker, SIGSTOP for up to a minute.
    pub(crate) freeze: u64,
    /// A message between worker and dashboard is lost.
    pub(crate) lost: u64,
    /// Per ten seconds: a worker cut off from the dashboards, or one of several dashboards from the ledger.
    pub(crate) partition: u64,
    /// A request at the forge goes wrong in one of its ways.
    pub(crate) forge: u64,
    /// The ledger's disk does not answer.
    pub(crate) disk: u64,
    /// A hint is lost, or comes twice; the broker does not answer; a dashboard does not hear of another's commit.
    pub(crate) bell: u64,
    /// Per ten seconds and dashboard: its clock is set.
    pub(crate) clock: u64,
    /// A try of a Run ends without a result.
    pub(crate) run: u64,
}

impl Weather {
    fn drawn(dice: &Dice) -> Self {
        let maybe = |most: u64| if dice.below(2) == 0 { 0 } else { dice.between(1, most) };
        Self {
            kill: maybe(30),
            freeze: maybe(15),
            lost: maybe(150),
            partition: maybe(200),
            forge: maybe(300),
            disk: maybe(30),
            bell: maybe(300),
            clock: maybe(300),
            run: maybe(300),
        }
    }
}

pub(crate) struct Nature {
    pub(crate) dice: Dice,
    pub(crate) weather: Weather,
    started: Instant,
    storm: AtomicBool,
    /// Wall clocks minus true time, in microseconds.
    clock_off: Mutex<BTreeMap<Who, i64>>,
    ids: AtomicU64,
    /// Killed, and not yet buried.
    killed: Mutex<Vec<Who>>,
    pub(crate) kill: Notify,
    frozen: Mutex<BTreeMap<Who, Instant>>,
    cut: Mutex<BTreeMap<Who, Instant>>,
    breaches: Mutex<Vec<String>>,
    trace: Option<Mutex<Vec<String>>>,
}

impl Nature {
    /// Must be made inside of the runtime whose time it is.
    pub(crate) fn of_seed(seed: u64, keep_trace: bool) -> Self {
        let dice = Dice::of_seed(seed);
        Self {
            weather: Weather::drawn(&dice),
            dice,
            started: Instant::now(),
            storm: AtomicBool::new(true),
            clock_off: Mutex::default(),
            ids: AtomicU64::new(1),
            killed: Mutex::default(),
            kill: Notify::new(),
            frozen: Mutex::default(),
            cut: Mutex::default(),
            breaches: Mutex::default(),
            trace: keep_trace.then(Mutex::default),
        }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    pub(crate) fn is_stormy(&self) -> bool {
        self.storm.load(Ordering::Relaxed)
    }

    /// From now on nothing fails any more.
    pub(crate) fn calm(&self) {
        self.storm.store(false, Ordering::Relaxed);
        lock(&self.frozen).clear();
        lock(&self.cut).clear();
        self.note(Who::Outside, || "calm".to_owned());
    }

    /// Whether something goes wrong that goes wrong so often.
    pub(crate) fn wrong(&self, in_a_thousand: u64) -> bool {
        self.is_stormy() && in_a_thousand > 0 && self.dice.in_a_thousand(in_a_thousand)
    }

    /// A place where `who` may be stopped for a while, or for ever.
    pub(crate) async fn step(&self, who: Who, what: &'static str) {
        self.note(who, || what.to_owned());
        if !self.is_stormy() {
            return;
        }
        if self.wrong(self.weather.kill) {
            self.note(who, || format!("is killed at {what}"));
            lock(&self.killed).push(who);
            self.kill.notify_one();
            std::future::pending::<()>().await;
        }
        if matches!(who, Who::Dashboard(_)) {
            return;
        }
        if self.wrong(self.weather.freeze) {
            let until = Instant::now() + self.dice.millis(1_000, 60_000);
            self.note(who, || format!("is stopped at {what}"));
            lock(&self.frozen).insert(who, until);
        }
        loop {
            let until = lock(&self.frozen).get(&who).copied();
            match until.filter(|until| *until > Instant::now()) {
                Some(until) => sleep_until(until).await,
                None => return,
            }
        }
    }

    pub(crate) fn take_killed(&self) -> Vec<Who> {
        std::mem::take(&mut *lock(&self.killed))
    }

    /// After a restart, what was killed before is dead already.
    pub(crate) fn forget(&self, who: Who) {
        lock(&self.killed).retain(|killed| *killed != who);
        lock(&self.frozen).remove(&who);
    }

    pub(crate) fn cut_off(&self, who: Who, length: Duration) {
        self.note(who, || format!("is cut off for {} s", length.as_secs()));
        lock(&self.cut).insert(who, Instant::now() + length);
    }

    pub(crate) fn is_cut_off(&self, who: Who) -> bool {
        lock(&self.cut).get(&who).is_some_and(|until| *until > Instant::now())
    }

    /// Some milliseconds, in which others come first.
    pub(crate) async fn latency(&self, most_ms: u64) {
        let wait = self.dice.millis(0, most_ms);
        if !wait.is_zero() {
            sleep(wait).await;
        }
    }

    pub(crate) fn set_clock(&self, who: Who, off_by: Duration, ahead: bool) {
        let off_by = i64::try_from(off_by.as_micros()).unwrap_or(i64::MAX / 4);
        let off_by = if ahead { off_by } else { -off_by };
        self.note(who, || format!("has its clock set by {off_by} µs"));
        *lock(&self.clock_off).entry(who).or_default() += off_by;
    }

    /// The wall clock of `who`; that of [`Who::Outside`] is right.
    pub(crate) fn clock(self: &Arc<Self>, who: Who) -> Arc<WallClock> {
        Arc::new(WallClock { nature: self.clone(), who })
    }

    /// What must never happen has happened.
    pub(crate) fn breach(&self, what: String) {
        self.note(Who::Outside, || format!("BREACH: {what}"));
        lock(&self.breaches).push(what);
    }

    pub(crate) fn breaches(&self) -> Vec<String> {
        lock(&self.breaches).clone()
    }

    pub(crate) fn note(&self, who: Who, what: impl FnOnce() -> String) {
        if let Some(trace) = &self.trace {
            let line = format!("{:>9.3} {who}: {}", self.elapsed().as_secs_f64(), what());
            lock(trace).push(line);
        }
    }

    pub(crate) fn take_trace(&self) -> Vec<String> {
        self.trace.as_ref().map(|trace| std::mem::take(&mut *lock(trace))).unwrap_or_default()
    }
}

pub(crate) struct WallClock {
    nature: Arc<Nature>,
    who: Who,
}

impl Clock for WallClock {
    fn now(&self) -> Timestamp {
        let elapsed = i64::try_from(self.nature.elapsed().as_micros()).unwrap_or(i64::MAX / 4);
        let off = lock(&self.nature.clock_off).get(&self.who).copied().unwrap_or(0);
        let micros = START + elapsed + off;
        Timestamp::from_microsecond(micros).unwrap_or(Timestamp::MAX)
    }
}

impl IdSource for Nature {
    /// Counted; the low half is drawn, since jitter is made of it.
    fn uuid(&self) -> Uuid {
        Uuid::from_u64_pair(self.ids.fetch_add(1, Ordering::Relaxed), self.dice.roll())
    }
}

/// Values behind these locks are whole at every moment.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
