//! Which cases there are.

use std::fmt;

use anyhow::{Context as _, ensure};
use fettle_app::crash::Point;
use serde_json::Value;

use super::dice::Dice;

/// What arms a program.
pub(super) const VARIABLE: &str = "FETTLE_CRASH_POINT";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Before,
    After,
}

impl Side {
    const BOTH: [Self; 2] = [Self::Before, Self::After];

    fn name(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::After => "after",
        }
    }
}

/// Where a program dies: when it gets to the point for the `nth` time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crash {
    pub point: Point,
    pub side: Side,
    pub nth: u32,
}

impl Crash {
    pub fn at(point: Point, side: Side) -> Self {
        Self { point, side, nth: 1 }
    }

    /// As a program understands it.
    pub(super) fn arming(self) -> String {
        format!("{}:{}:{}", self.point.name(), self.side.name(), self.nth)
    }

    /// Whether the worker is the one that dies, where it is a program of its own.
    pub(super) fn hits_worker(self) -> bool {
        self.point.name().starts_with("worker.")
    }

    /// Whether the Task is ordered by a message.
    pub(super) fn hits_order(self) -> bool {
        matches!(self.point, Point::ForeignStore | Point::ForeignTaken)
    }

    /// GitHub shows the delivery as failed, and somebody sends it again.
    pub(super) fn hits_delivery(self) -> bool {
        matches!(self.point, Point::IntakeStore | Point::IntakeAnswer)
    }

    /// A model call that was answered and not recorded is paid again; nothing else is.
    pub(super) fn pays_again(self) -> bool {
        matches!(
            (self.point, self.side),
            (Point::WorkerModelCall, Side::After) | (Point::WorkerModelRecord, Side::Before)
        )
    }

    /// Whether the recovery from this death comes here again: what was not done is done then, but a ring that fell silent
    /// is not made up for; whoever waits for it looks by itself.
    fn recurs(self) -> bool {
        let rings = matches!(self.point, Point::HintRing | Point::HintMark | Point::PublishWake);
        self.side == Side::Before && !rings
    }

    /// In the middle of the work, where there is something to rebuild.
    fn amid(self, steps: &Counted) -> Self {
        Self { nth: steps.at(self.point).div_ceil(2).max(1), ..self }
    }
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.point.number(), self.point.name(), self.side.name())?;
        if self.nth > 1 { write!(f, " #{}", self.nth) } else { Ok(()) }
    }
}

/// How the system runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Programs {
    /// Dashboard and worker.
    Apart,
    /// `fettle up`, which dies as a whole.
    Together,
}

/// What no single point tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// C27: a worker is asked to end in the middle, and another one comes.
    WorkerStopped,
    /// C28: a worker sleeps past its lease, another one takes over, and the first wakes up.
    WorkerSuspended,
    /// C30: the dashboard dies and comes back; the worker keeps its job.
    DashboardKilled,
    /// C36: the ledger's database dies and comes back.
    DatabaseKilled,
    /// C37: a job that lasts as many leases; the broker restarts in its middle, and an idle worker hears every hint.
    LongJob { leases: u32 },
    /// C33: somebody cancels while the result is handed over, after this event.
    Cancelled { after: &'static str },
}

impl Scenario {
    /// Wherever the ledger is.
    const ALL: [Self; 6] = [
        Self::WorkerStopped,
        Self::WorkerSuspended,
        Self::DashboardKilled,
        Self::Cancelled { after: "step" },
        Self::Cancelled { after: "run_ended" },
        Self::Cancelled { after: "effect_intended" },
    ];

    fn number(self) -> &'static str {
        match self {
            Self::WorkerStopped => "C27",
            Self::WorkerSuspended => "C28",
            Self::DashboardKilled => "C30",
            Self::DatabaseKilled => "C36",
            Self::LongJob { .. } => "C37",
            Self::Cancelled { .. } => "C33",
        }
    }
}

/// What dies, or is emptied, while many Tasks are in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    WorkerKilled,
    DashboardKilled,
    DatabaseKilled,
    BrokerKilled,
    BrokerWiped,
}

impl Fault {
    /// Those that there is something for.
    fn all(on: On) -> Vec<Self> {
        let mut faults = vec![Self::WorkerKilled, Self::DashboardKilled];
        faults.extend(on.database.then_some(Self::DatabaseKilled));
        faults.extend(on.broker.then_some([Self::BrokerKilled, Self::BrokerWiped]).into_iter().flatten());
        faults
    }

    fn number(self) -> &'static str {
        match self {
            Self::WorkerKilled => "M1",
            Self::DashboardKilled => "M2",
            Self::DatabaseKilled => "M3",
            Self::BrokerKilled => "M4",
            Self::BrokerWiped => "M5",
        }
    }

    fn sentence(self) -> &'static str {
        match self {
            Self::WorkerKilled => "workers killed among many Tasks",
            Self::DashboardKilled => "dashboard killed under many Tasks",
            Self::DatabaseKilled => "database killed under many Tasks",
            Self::BrokerKilled => "broker killed under many Tasks",
            Self::BrokerWiped => "broker wiped under many Tasks",
        }
    }
}

/// Many Tasks at a time, hit again and again; the seed says when, and which worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crowd {
    pub fault: Fault,
    pub seed: u64,
}

#[derive(Debug, Clone)]
pub enum Story {
    /// In the order of a Task's life.
    Crashes(Vec<Crash>),
    Scenario(Scenario),
    Crowd(Crowd),
}

#[derive(Debug, Clone)]
pub struct Case {
    pub programs: Programs,
    pub story: Story,
}

impl Case {
    pub fn apart(crashes: &[Crash]) -> Self {
        Self { programs: Programs::Apart, story: Story::Crashes(crashes.to_vec()) }
    }

    pub fn together(crash: Crash) -> Self {
        Self { programs: Programs::Together, story: Story::Crashes(vec![crash]) }
    }

    pub fn long_job(leases: u32) -> Self {
        Self { programs: Programs::Apart, story: Story::Scenario(Scenario::LongJob { leases }) }
    }

    /// Whether it is about many Tasks.
    pub fn is_crowd(&self) -> bool {
        matches!(self.story, Story::Crowd(_))
    }

    fn has(&self, number: &str) -> bool {
        match &self.story {
            Story::Crashes(crashes) => crashes.iter().any(|crash| crash.point.number() == number),
            Story::Scenario(scenario) => scenario.number() == number,
            Story::Crowd(crowd) => crowd.fault.number() == number,
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.programs == Programs::Together {
            f.write_str("up: ")?;
        }
        match &self.story {
            Story::Crashes(crashes) => {
                let all: Vec<String> = crashes.iter().map(Crash::to_string).collect();
                f.write_str(&all.join(", then "))
            }
            Story::Scenario(Scenario::WorkerStopped) => f.write_str("C27 worker stopped in the middle"),
            Story::Scenario(Scenario::WorkerSuspended) => f.write_str("C28 worker suspended past its lease"),
            Story::Scenario(Scenario::DashboardKilled) => f.write_str("C30 dashboard killed, the worker goes on"),
            Story::Scenario(Scenario::DatabaseKilled) => f.write_str("C36 database killed, the worker goes on"),
            Story::Scenario(Scenario::LongJob { leases }) => {
                write!(f, "C37 a job of {leases} leases, broker restarted")
            }
            Story::Scenario(Scenario::Cancelled { after }) => write!(f, "C33 cancelled after {after}"),
            Story::Crowd(Crowd { fault, seed }) => write!(f, "{} {}, seed {seed}", fault.number(), fault.sentence()),
        }
    }
}

/// How often a calm Task gets to the points that it passes more than once.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counted {
    pub model: u32,
    pub tool: u32,
    pub verify: u32,
}

impl Counted {
    pub(super) fn of(events: &[Value]) -> Self {
        let of_kind = |kind: &str| {
            let steps = events.iter().map(|event| &event["what"]);
            let count = steps.filter(|what| what["type"] == "step" && what["kind"] == kind).count();
            u32::try_from(count).unwrap_or(u32::MAX)
        };
        Self { model: of_kind("model_call"), tool: of_kind("tool_call"), verify: of_kind("verify") }
    }

    fn at(&self, point: Point) -> u32 {
        match point {
            Point::WorkerModelCall | Point::WorkerModelRecord => self.model,
            Point::WorkerToolRecord => self.tool,
            Point::WorkerVerifyRecord => self.verify,
            _ => 1,
        }
    }
}

/// Leases of a second: as many as four hours have of thirty, and a few for the usual plan.
pub const FOUR_HOURS: u32 = 480;
pub const SHORT_JOB: u32 = 10;

/// What there is that can be killed beside the programs.
#[derive(Debug, Clone, Copy, Default)]
pub struct On {
    pub broker: bool,
    pub database: bool,
}

/// All points on both sides, `fettle up` killed at some of them, deaths in a row, and the scenarios.
pub fn every_case(steps: &Counted, on: On) -> Vec<Case> {
    let mut cases: Vec<Case> = all_points(on.broker).map(|crash| Case::apart(&[crash.amid(steps)])).collect();
    let of_up = [
        Crash::at(Point::IntakeAnswer, Side::After),
        Crash::at(Point::WorkerModelRecord, Side::Before),
        Crash::at(Point::WorkerComplete, Side::After),
        Crash::at(Point::PushSend, Side::After),
        Crash::at(Point::PullSettle, Side::Before),
        Crash::at(Point::CommentSettle, Side::Before),
    ];
    cases.extend(of_up.map(|crash| Case::together(crash.amid(steps))));
    let (called, answered) = (Point::WorkerModelCall, Point::WorkerModelRecord);
    let in_a_row = [
        [Crash::at(called, Side::After), Crash::at(Point::WorkerToolRecord, Side::Before)],
        [Crash::at(answered, Side::Before), Crash::at(Point::PushSend, Side::After)],
        [Crash::at(Point::PullSend, Side::After), Crash::at(Point::CommentSend, Side::After)],
    ];
    cases.extend(in_a_row.map(|crashes| Case::apart(&crashes)));
    let scenario = |scenario| Case { programs: Programs::Apart, story: Story::Scenario(scenario) };
    cases.extend(Scenario::ALL.map(scenario));
    cases.extend(on.database.then(|| scenario(Scenario::DatabaseKilled)));
    cases.extend(on.broker.then(|| Case::long_job(SHORT_JOB)));
    cases
}

/// Each fault once, under many Tasks.
pub fn crowds(on: On, seed: u64) -> Vec<Case> {
    let crowd = |fault| Case { programs: Programs::Apart, story: Story::Crowd(Crowd { fault, seed }) };
    Fault::all(on).into_iter().map(crowd).collect()
}

/// [`every_case`], each passing of a point that is passed more than once, `fettle up` at all points, recoveries that die
/// where the first try died, and crowds.
pub fn full_plan(steps: &Counted, on: On, seed: u64) -> Vec<Case> {
    let mut cases = every_case(steps, on);
    for crash in all_points(on.broker) {
        let usual = crash.amid(steps).nth;
        let others = (1..=steps.at(crash.point)).filter(|&nth| nth != usual);
        cases.extend(others.map(|nth| Case::apart(&[Crash { nth, ..crash }])));
        // It would reach this one before it has heard of any Task.
        let too_early = crash == Crash::at(Point::WorkerLease, Side::Before);
        // Its workers need no hint.
        let never = crash.point == Point::WorkerHint;
        if !too_early && !never && !cases.iter().any(|case| is_of_up(case, crash)) {
            cases.push(Case::together(crash.amid(steps)));
        }
        if crash.recurs() {
            cases.push(Case::apart(&[crash.amid(steps), crash]));
        }
    }
    cases.extend(on.broker.then(|| Case::long_job(FOUR_HOURS)));
    cases.extend(crowds(on, seed));
    cases
}

fn is_of_up(case: &Case, crash: Crash) -> bool {
    case.programs == Programs::Together
        && matches!(&case.story, Story::Crashes(crashes) if crashes.iter().any(|other| (other.point, other.side) == (crash.point, crash.side)))
}

/// The cases of these points and scenarios, of all that there are.
pub fn named_cases(cases: Vec<Case>, names: &[String]) -> anyhow::Result<Vec<Case>> {
    for name in names {
        ensure!(cases.iter().any(|case| case.has(name)), "there is no point or scenario `{name}`");
    }
    Ok(cases.into_iter().filter(|case| names.iter().any(|name| case.has(name))).collect())
}

/// `count` of the cases in their order, and for each crash one of the passings of its point.
pub fn sample(cases: Vec<Case>, steps: &Counted, count: usize, seed: u64) -> anyhow::Result<Vec<Case>> {
    let mut dice = Dice(seed);
    let mut chosen: Vec<usize> = (0..cases.len()).collect();
    while chosen.len() > count {
        chosen.remove(dice.below(chosen.len()).context("nothing to choose from")?);
    }
    let mut cases: Vec<Case> = chosen.into_iter().map(|index| cases[index].clone()).collect();
    for case in &mut cases {
        // How often a recovery comes to a point depends on where the first try died.
        if let Story::Crashes(crashes) = &mut case.story
            && let [crash] = crashes.as_mut_slice()
        {
            let passings = usize::try_from(steps.at(crash.point))?;
            crash.nth = 1 + u32::try_from(dice.below(passings).unwrap_or(0))?;
        }
    }
    Ok(cases)
}

/// Those of a process with a broker only where there is one. What buries refused orders needs an order that is refused;
/// it is a test of its own.
fn all_points(broker: bool) -> impl Iterator<Item = Crash> {
    let points = Point::ALL.iter().filter(move |point| broker || !point.is_of_broker());
    let points = points.filter(|&&point| point != Point::ForeignBury);
    points.flat_map(|&point| Side::BOTH.map(|side| Crash::at(point, side)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BROKER: On = On { broker: true, database: false };
    const STEPS: Counted = Counted { model: 7, tool: 4, verify: 2 };

    #[test]
    fn every_point_is_killed_on_both_sides() {
        let cases = every_case(&STEPS, BROKER);
        for &point in Point::ALL.iter().filter(|&&point| point != Point::ForeignBury) {
            let sides = |case: &&Case| matches!(&case.story, Story::Crashes(c) if case.programs == Programs::Apart && c.len() == 1 && c[0].point == point);
            assert_eq!(cases.iter().filter(sides).count(), 2, "{point:?}");
        }
        assert_eq!(Point::ALL.iter().filter(|point| !point.is_of_broker()).count(), 27);
        assert_eq!(every_case(&STEPS, On::default()).len() + 11, cases.len(), "five points on both sides, a long job");
    }

    #[test]
    fn many_tasks_are_hit_by_whatever_there_is() {
        let named = |on| crowds(on, 7).iter().map(Case::to_string).collect::<Vec<_>>();
        let alone = ["M1 workers killed among many Tasks, seed 7", "M2 dashboard killed under many Tasks, seed 7"];
        assert_eq!(named(On::default()), alone);
        assert_eq!(named(On { broker: true, database: true }).len(), 5);
        let full = full_plan(&STEPS, On::default(), 7);
        assert!(alone.iter().all(|name| full.iter().any(|case| case.to_string() == *name)));
    }

    #[test]
    fn a_seed_names_a_sample() {
        let drawn = |seed| {
            let cases = sample(every_case(&STEPS, On::default()), &STEPS, 8, seed).unwrap();
            cases.iter().map(Case::to_string).collect::<Vec<_>>()
        };
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(1), drawn(2));
        assert_eq!(drawn(3).len(), 8);
    }

    #[test]
    fn names_choose_their_cases_and_wrong_ones_are_refused() {
        let both = named_cases(every_case(&STEPS, On::default()), &["C9".to_owned(), "C28".to_owned()]).unwrap();
        assert_eq!(
            both.iter().map(Case::to_string).collect::<Vec<_>>(),
            [
                "C9 worker.model.call before #4",
                "C9 worker.model.call after #4",
                "C9 worker.model.call after, then C11 worker.tool.record before",
                "C28 worker suspended past its lease",
            ]
        );
        assert!(named_cases(every_case(&STEPS, On::default()), &["C99".to_owned()]).is_err());
    }
}
