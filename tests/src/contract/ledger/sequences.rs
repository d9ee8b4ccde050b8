//! Any sequence of verbs, asked of a ledger and of the reference ledger beside it: each answer and all that can be read
//! afterwards must be the same.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use bytes::Bytes;
use fettle_app::ports::clock::{Clock as _, IdSource as _};
use fettle_app::ports::ledger::{
    Beat, Delivery, Granted, Holder, L, Ledger, Opened, Order, RunPlan, TaskFilter, TaskPlan, Then, Wake, Want,
};
use fettle_domain::branch::BranchName;
use fettle_domain::budget::Spent;
use fettle_domain::effect::{EffectKind, Intent, Receipt};
use fettle_domain::id::{CorrelationId, DeliveryId, EffectId, JobId, RequestId, RunId, TaskId, WorkerId};
use fettle_domain::issue::IssueSnapshot;
use fettle_domain::job::JobKind;
use fettle_domain::lease::LeaseRef;
use fettle_domain::object::{BlobId, CommitId};
use fettle_domain::repo::Repo;
use fettle_domain::run::{RunOutcome, RunResult};
use fettle_domain::step::{StepBody, StepKind, StepRecord};
use fettle_domain::task::Mode;
use fettle_domain::turn::Slots;
use jiff::Timestamp;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};
use uuid::Uuid;

use super::world::{CountedIds, Subject};

/// Cases of proptest when nobody says how many.
const UNASKED: u32 = 256;
/// Verbs of one sequence at most.
const VERBS: usize = 50;

/// Asks `A` and `B` the same sequences, `usual` of them or as many as `PROPTEST_CASES` says, and panics at the first
/// difference with the shortest sequence that shows it.
pub fn compare<A: Fresh, B: Fresh>(usual: u32) {
    let standard = Config::default();
    let cases = if standard.cases == UNASKED { usual } else { standard.cases };
    let config = Config { cases, failure_persistence: None, ..standard };
    let sequences = Script::sequential_strategy(1..VERBS);
    let compared = TestRunner::new(config.clone()).run(&sequences, |((), verbs, seen)| {
        Pair::<A, B>::test_sequential(config.clone(), (), verbs, seen);
        Ok(())
    });
    if let Err(failed) = compared {
        panic!("{failed}");
    }
}

/// Which of the leases, Tasks or deliveries that there have been, modulo their number; 0 is the newest.
type Nth = usize;

#[derive(Debug, Clone)]
pub enum Verb {
    Open { issue: Option<u64>, repo: u64, model: Option<&'static str>, trigger: &'static str, further: u8 },
    OpenAgain,
    Accept { key: u8 },
    Postpone(Nth),
    Close(Nth),
    Lease { kind: JobKind, max: u8 },
    LeaseAgain(Nth),
    Renew(Nth),
    Record { lease: Nth, ahead: i8, said: u8 },
    Steps(Nth),
    Complete { lease: Nth, change: bool },
    Fail { lease: Nth, never: bool },
    Defer { lease: Nth, event: bool },
    Release(Nth),
    Publication(Nth),
    Intend { lease: Nth, kind: EffectKind, other: bool },
    Settle { lease: Nth, kind: EffectKind, withheld: bool },
    CompletePublish(Nth),
    Want { task: Nth, kinds: Vec<EffectKind> },
    WantProgress(Nth),
    Cancel(Nth),
    Retry(Nth),
    Redrive(Nth),
    AddRuns { task: Nth, runs: u8 },
    Choose { task: Nth, run: Nth },
    StopRun { task: Nth, run: Nth },
    Say(Nth),
    Sweep,
    Pass { seconds: u64 },
    Announce { to: u64 },
    Crash,
}

/// The reference is the other ledger; what may be asked next depends on nothing, so that a shrunk sequence stays a valid one.
pub struct Script;

impl ReferenceStateMachine for Script {
    type State = ();
    type Transition = Verb;

    fn init_state() -> BoxedStrategy<()> {
        Just(()).boxed()
    }

    fn transitions((): &()) -> BoxedStrategy<Verb> {
        // Mostly the newest: long superseded ones are asked for often enough.
        let nth = || prop_oneof![4 => Just(0usize), 2 => Just(1usize), 1 => 0..6usize];
        let effect = || {
            prop::sample::select(vec![
                EffectKind::Progress,
                EffectKind::Push,
                EffectKind::PullRequest,
                EffectKind::Comment,
                EffectKind::Labels,
            ])
        };
        let kind = prop_oneof![Just(JobKind::Run), Just(JobKind::Publish)];
        prop_oneof![
            4 => (prop::option::weighted(0.9, 1..4u64), 77..79u64, prop::option::of(Just("coder")),
                  prop::sample::select(vec!["label", "api"]), prop_oneof![2 => Just(0u8), 1 => 1..3u8])
                .prop_map(|(issue, repo, model, trigger, further)| Verb::Open { issue, repo, model, trigger, further }),
            1 => Just(Verb::OpenAgain),
            1 => (0..4u8).prop_map(|key| Verb::Accept { key }),
            1 => nth().prop_map(Verb::Postpone),
            1 => nth().prop_map(Verb::Close),
            9 => (kind, 1..3u8).prop_map(|(kind, max)| Verb::Lease { kind, max }),
            1 => nth().prop_map(Verb::LeaseAgain),
            2 => nth().prop_map(Verb::Renew),
            4 => (nth(), prop_oneof![5 => Just(0i8), 1 => -2..2i8], 0..2u8)
                .prop_map(|(lease, ahead, said)| Verb::Record { lease, ahead, said }),
            1 => nth().prop_map(Verb::Steps),
            4 => (nth(), any::<bool>()).prop_map(|(lease, change)| Verb::Complete { lease, change }),
            3 => (nth(), prop::bool::weighted(0.3)).prop_map(|(lease, never)| Verb::Fail { lease, never }),
            2 => (nth(), any::<bool>()).prop_map(|(lease, event)| Verb::Defer { lease, event }),
            2 => nth().prop_map(Verb::Release),
            1 => nth().prop_map(Verb::Publication),
            5 => (nth(), effect(), prop::bool::weighted(0.1))
                .prop_map(|(lease, kind, other)| Verb::Intend { lease, kind, other }),
            5 => (nth(), effect(), prop::bool::weighted(0.2))
                .prop_map(|(lease, kind, withheld)| Verb::Settle { lease, kind, withheld }),
            3 => nth().prop_map(Verb::CompletePublish),
            2 => (nth(), prop::collection::vec(effect(), 1..3)).prop_map(|(task, kinds)| Verb::Want { task, kinds }),
            3 => nth().prop_map(Verb::WantProgress),
            2 => nth().prop_map(Verb::Cancel),
            2 => nth().prop_map(Verb::Retry),
            1 => nth().prop_map(Verb::Redrive),
            1 => (nth(), 0..3u8).prop_map(|(task, runs)| Verb::AddRuns { task, runs }),
            2 => (nth(), 0..4usize).prop_map(|(task, run)| Verb::Choose { task, run }),
            2 => (nth(), 0..4usize).prop_map(|(task, run)| Verb::StopRun { task, run }),
            2 => nth().prop_map(Verb::Say),
            2 => Just(Verb::Sweep),
            5 => prop::sample::select(vec![1u64, 20, 31, 700]).prop_map(|seconds| Verb::Pass { seconds }),
            1 => (0..3u64).prop_map(|to| Verb::Announce { to }),
            1 => Just(Verb::Crash),
        ]
        .boxed()
    }

    fn apply((): (), _: &Verb) {}
}

/// The same thing in both ledgers, which name some things by ids of their own.
#[derive(Debug, Clone, Copy)]
pub struct Both<T> {
    real: T,
    reference: T,
}

#[derive(Debug, Clone)]
struct Asked {
    who: Holder,
    want: Want,
    max: u8,
    request: RequestId,
}

/// A ledger beside the reference ledger, and what has been asked of both.
pub struct Pair<A: Subject, B: Subject> {
    runtime: tokio::runtime::Runtime,
    ids: CountedIds,
    real: Option<A>,
    reference: Option<B>,
    plans: Vec<TaskPlan>,
    tasks: Vec<Both<TaskId>>,
    leases: Vec<(Both<LeaseRef>, Both<TaskId>)>,
    requests: Vec<Asked>,
    deliveries: Vec<DeliveryId>,
}

/// Few, so that they are full now and then.
pub fn slots() -> Slots {
    Slots { per_repository: 2, per_model: BTreeMap::from([("coder".to_owned(), 1)]), ..Slots::default() }
}

/// A ledger with [`slots`] of which [`Pair`] makes a new one for each sequence.
pub trait Fresh: Subject {
    /// What its errors and differences are told of.
    const NAME: &'static str;
    /// With nothing in it. Panics when there can be none.
    fn fresh() -> impl Future<Output = Self>;
}

impl<A: Fresh, B: Fresh> Pair<A, B> {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (real, reference) = runtime.block_on(async { (A::fresh().await, B::fresh().await) });
        Self {
            real: Some(real),
            reference: Some(reference),
            ids: CountedIds::of_space(0xca5e),
            plans: Vec::new(),
            tasks: Vec::new(),
            leases: Vec::new(),
            requests: Vec::new(),
            deliveries: Vec::new(),
            runtime,
        }
    }

    fn real(&self) -> &A {
        self.real.as_ref().expect("it is open")
    }

    fn reference(&self) -> &B {
        self.reference.as_ref().expect("it is open")
    }

    fn now(&self) -> Timestamp {
        self.reference().time().now()
    }

    /// Asks both and compares what they say.
    fn ask<T: Debug>(&self, verb: &Verb, ask: impl AsyncFn(&dyn Ledger, Side) -> L<T>) -> Option<Both<T>> {
        let real = self.runtime.block_on(ask(self.real().ledger(), Side::Real));
        let reference = self.runtime.block_on(ask(self.reference().ledger(), Side::Reference));
        assert_eq!(shape(&real), shape(&reference), "{} and the reference answer {verb:?} differently", A::NAME);
        Some(Both { real: real.ok()?, reference: reference.ok()? })
    }

    fn nth<T: Clone>(all: &[T], nth: Nth) -> Option<T> {
        let last = all.len().checked_sub(1)?;
        all.get(last - nth % all.len()).cloned()
    }

    fn run(&self, task: Nth, run: Nth) -> Option<(Both<TaskId>, Both<RunId>)> {
        let task = Self::nth(&self.tasks, task)?;
        let runs = |ledger: &dyn Ledger, task| self.runtime.block_on(ledger.runs(task)).unwrap();
        let real = Self::nth(&runs(self.real().ledger(), task.real), run)?.id;
        let reference = Self::nth(&runs(self.reference().ledger(), task.reference), run)?.id;
        Some((task, Both { real, reference }))
    }

    fn lease(&self, nth: Nth) -> Option<(Both<LeaseRef>, Both<TaskId>)> {
        Self::nth(&self.leases, nth)
    }

    fn plan(&self, issue: Option<u64>, repo: u64, model: Option<&str>, trigger: &str) -> TaskPlan {
        TaskPlan {
            id: TaskId::from_uuid(self.ids.uuid()),
            run: RunId::from_uuid(self.ids.uuid()),
            job: JobId::from_uuid(self.ids.uuid()),
            correlation: CorrelationId::from_uuid(self.ids.uuid()),
            intent: self.ids.uuid().to_string(),
            mode: Mode::Quickfix,
            repo: Some(Repo {
                forge_id: repo,
                name: "acme/tools".parse().unwrap(),
                clone_url: "https://forge.test/acme/tools".into(),
                default_branch: "main".into(),
                private: false,
                installation: (repo == 78).then_some(5),
            }),
            issue: IssueSnapshot {
                number: issue,
                title: "it fails".into(),
                body: String::new(),
                author: "ada".into(),
                url: None,
                comments: vec![],
                taken_at: self.now(),
            },
            said: None,
            model: model.map(str::to_owned),
            base: None,
            needs: Default::default(),
            actor: "ada".into(),
            trigger: trigger.to_owned(),
            at: self.now(),
            further: Vec::new(),
        }
    }

    fn open(&mut self, verb: &Verb, plan: &TaskPlan) {
        let opened = self.ask(verb, async |ledger, _| ledger.open_task(None, plan).await);
        if let Some(Both { real: Opened::New { task, .. }, .. }) = opened {
            self.tasks.push(Both { real: task, reference: task });
        }
    }

    fn ask_for_a_lease(&mut self, verb: &Verb, asked: &Asked) {
        let Asked { who, want, max, request } = asked;
        let granted = self.ask(verb, async |ledger, _| ledger.lease(who, want, *max, Duration::ZERO, *request).await);
        let Some(Both { real: Granted::Leased(real), reference: Granted::Leased(reference) }) = granted else { return };
        for (real, reference) in real.into_iter().zip(reference) {
            let task = |order: &Order| match order {
                Order::Run(order) => order.task,
                Order::Publish { task } => *task,
            };
            let tasks = Both { real: task(&real.order), reference: task(&reference.order) };
            self.leases.push((Both { real: real.lease, reference: reference.lease }, tasks));
        }
    }

    fn step(&mut self, verb: &Verb) -> Option<()> {
        match verb {
            Verb::Open { issue, repo, model, trigger, further } => {
                let further = self.further(*further);
                let plan = TaskPlan { further, ..self.plan(*issue, *repo, *model, trigger) };
                self.open(verb, &plan);
                self.plans.push(plan);
            }
            Verb::OpenAgain => {
                let plan = self.plans.last()?.clone();
                self.open(verb, &plan);
            }
            Verb::Accept { key } => {
                let delivery = Delivery {
                    id: DeliveryId::from_uuid(self.ids.uuid()),
                    key: format!("github:{key}"),
                    event: "issues".into(),
                    body: Bytes::from_static(b"{}"),
                    correlation: CorrelationId::from_uuid(self.ids.uuid()),
                    received_at: self.now(),
                };
                self.deliveries.push(delivery.id);
                self.ask(verb, async |ledger, _| ledger.accept(delivery.clone()).await)?;
            }
            Verb::Postpone(nth) => {
                let id = Self::nth(&self.deliveries, *nth)?;
                self.ask(verb, async |ledger, _| ledger.postpone_delivery(id, Duration::from_secs(25)).await)?;
            }
            Verb::Close(nth) => {
                let id = Self::nth(&self.deliveries, *nth)?;
                self.ask(verb, async |ledger, _| ledger.close_delivery(id, "nothing to do").await)?;
            }
            Verb::Lease { kind, max } => {
                let who = Holder { worker: WorkerId::from_uuid(self.ids.uuid()), name: "box/1".into() };
                let want = Want::anything(*kind, vec![1]);
                let asked = Asked { who, want, max: *max, request: RequestId::from_uuid(self.ids.uuid()) };
                self.ask_for_a_lease(verb, &asked);
                self.requests.push(asked);
            }
            Verb::LeaseAgain(nth) => {
                let asked = Self::nth(&self.requests, *nth)?;
                self.ask_for_a_lease(verb, &asked);
            }
            Verb::Renew(nth) => {
                let (lease, _) = self.lease(*nth)?;
                self.ask(verb, async |ledger, side| ledger.renew(&[Beat::new(lease.of(side), 1)]).await)?;
            }
            Verb::Record { lease, ahead, said } => {
                let (lease, task) = self.lease(*lease)?;
                let runs = self.runtime.block_on(self.reference().ledger().runs(task.reference)).unwrap();
                let run = runs.iter().find(|run| run.job == lease.reference.job);
                let recorded = run.map_or(0, |run| run.steps);
                let seq = recorded.saturating_add_signed((*ahead).into());
                let step = step(seq, *said);
                self.ask(verb, async |ledger, side| ledger.record(&lease.of(side), &step).await)?;
            }
            Verb::Steps(nth) => {
                let (lease, _) = self.lease(*nth)?;
                self.ask(verb, async |ledger, side| ledger.steps(&lease.of(side)).await)?;
            }
            Verb::Complete { lease, change } => {
                let (lease, _) = self.lease(*lease)?;
                let outcome = match change {
                    true => RunOutcome::ReadyPr,
                    false => RunOutcome::Unsolved { notes: "no way".into() },
                };
                let result =
                    RunResult { outcome, base: None, change: None, spent: Spent::default(), model: "coder".into() };
                self.ask(verb, async |ledger, side| ledger.complete_run(&lease.of(side), &result).await)?;
            }
            Verb::Fail { lease, never } => {
                let (lease, _) = self.lease(*lease)?;
                let then = if *never { Then::Never } else { Then::RetryAfter(Duration::from_secs(15)) };
                self.ask(verb, async |ledger, side| ledger.fail(&lease.of(side), "no", then).await)?;
            }
            Verb::Defer { lease, event } => {
                let (lease, _) = self.lease(*lease)?;
                let wake = if *event { Wake::Event } else { Wake::After(Duration::from_secs(15)) };
                self.ask(verb, async |ledger, side| ledger.defer(&lease.of(side), wake, "later").await)?;
            }
            Verb::Release(nth) => {
                let (lease, _) = self.lease(*nth)?;
                self.ask(verb, async |ledger, side| ledger.release(&lease.of(side)).await)?;
            }
            Verb::Publication(nth) => {
                let (lease, _) = self.lease(*nth)?;
                self.ask(verb, async |ledger, side| ledger.publication(&lease.of(side)).await)?;
            }
            Verb::Intend { lease, kind, other } => {
                let (lease, task) = self.lease(*lease)?;
                let effect = self.effect(task, *kind)?;
                let intent = intent(*kind, *other);
                self.ask(verb, async |ledger, side| ledger.intend(&lease.of(side), effect.of(side), &intent).await)?;
            }
            Verb::Settle { lease, kind, withheld } => {
                let (lease, task) = self.lease(*lease)?;
                let effect = self.effect(task, *kind)?;
                let receipt = match withheld {
                    true => Receipt::Withheld { reason: "a person must look".into() },
                    false => receipt(*kind),
                };
                self.ask(verb, async |ledger, side| ledger.settle(&lease.of(side), effect.of(side), &receipt).await)?;
            }
            Verb::CompletePublish(nth) => {
                let (lease, _) = self.lease(*nth)?;
                self.ask(verb, async |ledger, side| ledger.complete_publish(&lease.of(side)).await)?;
            }
            Verb::Want { task, kinds } => {
                let task = Self::nth(&self.tasks, *task)?;
                self.ask(verb, async |ledger, side| ledger.want_effects(task.of(side), kinds).await)?;
            }
            Verb::WantProgress(nth) => {
                let task = Self::nth(&self.tasks, *nth)?;
                self.ask(verb, async |ledger, side| ledger.want_progress(task.of(side)).await)?;
                self.ask(verb, async |ledger, _| ledger.at_work(10).await.map(|at_work| at_work.len()))?;
            }
            Verb::Cancel(nth) => {
                let task = Self::nth(&self.tasks, *nth)?;
                self.ask(verb, async |ledger, side| ledger.cancel(task.of(side), "bob").await)?;
            }
            Verb::Retry(nth) => {
                let task = Self::nth(&self.tasks, *nth)?;
                let retried = self.ask(verb, async |ledger, side| ledger.retry(task.of(side), "bob").await)?;
                if retried.real.new {
                    self.tasks.push(Both { real: retried.real.task, reference: retried.reference.task });
                }
            }
            Verb::Redrive(nth) => {
                let (lease, _) = self.lease(*nth)?;
                self.ask(verb, async |ledger, side| ledger.redrive(lease.of(side).job, "bob").await)?;
            }
            Verb::AddRuns { task, runs } => {
                let (task, runs) = (Self::nth(&self.tasks, *task)?, self.further(*runs));
                self.ask(verb, async |ledger, side| ledger.add_runs(task.of(side), "bob", &runs).await)?;
            }
            Verb::Choose { task, run } => {
                let (task, run) = self.run(*task, *run)?;
                self.ask(verb, async |ledger, side| {
                    ledger.choose_run(task.of(side), run.of(side), false, "bob").await
                })?;
            }
            Verb::StopRun { task, run } => {
                let (task, run) = self.run(*task, *run)?;
                self.ask(verb, async |ledger, side| ledger.stop_run(task.of(side), run.of(side), "bob").await)?;
            }
            Verb::Say(nth) => {
                let task = Self::nth(&self.tasks, *nth)?;
                self.ask(verb, async |ledger, side| ledger.post_message(task.of(side), "ada", "go on").await)?;
            }
            Verb::Sweep => {
                self.ask(verb, async |ledger, _| ledger.sweep(100).await)?;
            }
            Verb::Pass { seconds } => {
                self.real().time().advance(Duration::from_secs(*seconds));
                self.reference().time().advance(Duration::from_secs(*seconds));
            }
            Verb::Announce { to } => {
                self.ask(verb, async |ledger, _| ledger.set_announced(to.saturating_sub(1), *to).await)?;
            }
            Verb::Crash => {
                let (real, reference) = (self.real.take()?, self.reference.take()?);
                self.real = Some(self.runtime.block_on(real.crash_and_reopen()));
                self.reference = Some(self.runtime.block_on(reference.crash_and_reopen()));
            }
        }
        Some(())
    }

    /// Every other one for a model of which there is one slot.
    fn further(&self, runs: u8) -> Vec<RunPlan> {
        let run = |nth: u8| RunPlan {
            run: RunId::from_uuid(self.ids.uuid()),
            job: JobId::from_uuid(self.ids.uuid()),
            model: nth.is_multiple_of(2).then(|| "coder".to_owned()),
            instruction: (!nth.is_multiple_of(2)).then(|| "be brief".to_owned()),
        };
        (0..runs).map(run).collect()
    }

    fn effect(&self, task: Both<TaskId>, kind: EffectKind) -> Option<Both<EffectId>> {
        let find = |ledger: &dyn Ledger, task| {
            let view = self.runtime.block_on(ledger.task(task)).unwrap();
            view.effects.iter().find(|effect| effect.kind == kind).map(|effect| effect.id)
        };
        Some(Both {
            real: find(self.real().ledger(), task.real)?,
            reference: find(self.reference().ledger(), task.reference)?,
        })
    }

    fn compare(&self, verb: &Verb) {
        let seen = |ledger: &dyn Ledger| {
            self.runtime.block_on(async {
                // Time passes here without a sweep, and both must say that a lease is overdue; nothing else is ever wrong.
                let breaches = ledger.audit().await.unwrap();
                assert!(breaches.iter().all(|breach| breach.starts_with("I8:")), "after {verb:?}: {breaches:?}");
                let tasks = ledger.tasks(TaskFilter::default(), None, 500).await.unwrap();
                let mut runs = Vec::new();
                for task in &tasks {
                    runs.push((ledger.runs(task.id).await.unwrap(), ledger.messages(task.id, 3).await.unwrap()));
                }
                shape(&(
                    breaches.len(),
                    (tasks, runs),
                    ledger.depth().await.unwrap(),
                    ledger.demand().await.unwrap(),
                    (ledger.held_jobs(100).await.unwrap(), ledger.unheld_jobs(None, 100).await.unwrap()),
                    ledger.seen_repositories(100).await.unwrap(),
                    ledger.runnable(100).await.unwrap(),
                    ledger.open_deliveries(100).await.unwrap(),
                    ledger.actors(77, 1, 10).await.unwrap(),
                    ledger.opened_since(None, Timestamp::UNIX_EPOCH).await.unwrap(),
                    ledger.announced().await.unwrap(),
                    ledger.events(None, 0, 500).await.unwrap(),
                ))
            })
        };
        let (real, reference) = (seen(self.real().ledger()), seen(self.reference().ledger()));
        assert_eq!(real, reference, "after {verb:?} {} and the reference show different things", A::NAME);
    }
}

#[derive(Debug, Clone, Copy)]
pub enum Side {
    Real,
    Reference,
}

impl<T: Copy> Both<T> {
    fn of(self, side: Side) -> T {
        match side {
            Side::Real => self.real,
            Side::Reference => self.reference,
        }
    }
}

/// As text, in which each id stands for what it is the n-th of: a ledger makes some ids itself. Errors are their kind.
fn shape<T: Debug>(value: &T) -> String {
    let text = format!("{value:?}");
    if let Some(kind) = ["Invalid", "NotFound", "Unavailable", "Unreadable", "Corrupt", "Full"]
        .into_iter()
        .find(|kind| text.starts_with(&format!("Err({kind}")))
    {
        return kind.to_owned();
    }
    let mut known: BTreeMap<&str, usize> = BTreeMap::new();
    let mut shape = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(start) = rest.find(|c: char| c.is_ascii_hexdigit()) {
        shape.push_str(&rest[..start]);
        rest = &rest[start..];
        let length = rest.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(rest.len());
        let (run, after) = rest.split_at(length);
        if run.len() == 32 {
            let next = known.len();
            shape.push_str(&format!("#{}", known.entry(run).or_insert(next)));
        } else {
            shape.push_str(run);
        }
        rest = after;
    }
    shape.push_str(rest);
    shape
}

fn step(seq: u32, said: u8) -> StepRecord {
    StepRecord {
        seq,
        kind: if said == 0 { StepKind::MessageIn } else { StepKind::ToolCall },
        phase: "fix".into(),
        title: format!("said {said}"),
        input: BlobId::of(&[said]),
        body: StepBody::Inline(serde_json::json!({ "said": said, "big": u64::MAX, "half": 0.5 })),
        workspace: None,
        spent: Spent { calls: seq + 1, generated_tokens: 10, prompt_tokens: 20, wall_s: 1 },
        took_ms: 5,
    }
}

fn branch() -> BranchName {
    BranchName::of(Mode::Quickfix, Some(1), TaskId::from_uuid(Uuid::from_u128(1)), 1)
}

fn intent(kind: EffectKind, other: bool) -> Intent {
    match kind {
        EffectKind::Progress => Intent::Progress { issue: 1, marker: format!("<!-- {other} -->") },
        EffectKind::Push => {
            Intent::Push { branch: branch(), expected: None, commit: CommitId::from_bytes([u8::from(other); 20]) }
        }
        EffectKind::PullRequest => Intent::PullRequest { head: branch(), base: "main".into(), draft: other },
        EffectKind::Comment => Intent::Comment { issue: 1, marker: format!("<!-- {other} -->") },
        EffectKind::Labels => Intent::Labels { issue: 1, add: vec![other.to_string()], remove: vec![] },
    }
}

fn receipt(kind: EffectKind) -> Receipt {
    match kind {
        EffectKind::Progress => Receipt::Progress { id: 4, phase: "fix".into() },
        EffectKind::Push => Receipt::Pushed { branch: branch(), commit: CommitId::from_bytes([0; 20]) },
        EffectKind::PullRequest => Receipt::PullRequest { number: 9, url: "https://forge.test/9".into(), draft: false },
        EffectKind::Comment => Receipt::Comment { id: 4 },
        EffectKind::Labels => Receipt::Labels,
    }
}

impl<A: Fresh, B: Fresh> StateMachineTest for Pair<A, B> {
    type SystemUnderTest = Self;
    type Reference = Script;

    fn init_test((): &()) -> Self {
        Self::new()
    }

    fn apply(mut pair: Self, (): &(), verb: Verb) -> Self {
        let _nothing_to_ask_about = pair.step(&verb);
        pair.compare(&verb);
        pair
    }
}

#[cfg(test)]
mod tests {
    use fettle_app::ports::ledger::LedgerError;

    use super::*;

    #[test]
    fn a_difference_would_be_seen() {
        let known = shape(&Ok::<_, LedgerError>(vec![Uuid::from_u128(1).simple().to_string(); 2]));
        let same = shape(&Ok::<_, LedgerError>(vec![Uuid::from_u128(2).simple().to_string(); 2]));
        let other = [1, 2].map(|n| Uuid::from_u128(n).simple().to_string()).to_vec();
        assert_eq!(known, same, "ids are known by what they are equal to");
        assert_ne!(known, shape(&Ok::<_, LedgerError>(other)));
        assert_ne!(shape(&Ok::<_, LedgerError>(())), shape(&Err::<(), _>(LedgerError::Full)));
    }
}
