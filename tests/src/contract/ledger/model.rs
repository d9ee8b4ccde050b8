//! One job against a model of it small enough to be believed: random verbs, some of them by holders long superseded.

use std::time::Duration;

use fettle_app::ports::ledger::{Beat, BeatAnswer, CancelAnswer, Fenced, LedgerError, Then, Wake};
use fettle_domain::id::TaskId;
use fettle_domain::job::JobKind;
use fettle_domain::lease::LeaseRef;
use fettle_domain::run::RunOutcome;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::world::{Subject, World, result, step};

/// Sequences tried; with at most [`VERBS`] commits each they take a second or two.
const SEQUENCES: u32 = 100;
const VERBS: usize = 24;

#[derive(Debug, Clone, Copy)]
enum Act {
    Lease,
    Renew,
    Step,
    Fail,
    GiveUp,
    Defer,
    Ask,
    Release,
    Complete,
    Cancel,
    /// Time passes: a lease lapses, a delayed job's time comes.
    Pass,
    Message,
    Redrive,
}

/// Whose lease a holder's verb shows: the newest, or the `n`-th ever.
#[derive(Debug, Clone, Copy)]
enum Whose {
    Newest,
    Nth(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Queued,
    Delayed,
    Waiting,
    Leased,
    Cancelling,
    Done,
    Dead,
    Cancelled,
}

#[derive(Debug)]
struct Model {
    state: State,
    leases: Vec<LeaseRef>,
    /// The leases whose holders ended them.
    ended: Vec<LeaseRef>,
    attempts: u16,
    crashes: u16,
    since_step: u16,
    steps: u32,
}

pub async fn a_job_does_what_its_model_does<S: Subject>(world: &mut World<S>) {
    let act = prop_oneof![
        4 => Just(Act::Lease),
        1 => Just(Act::Renew),
        2 => Just(Act::Step),
        2 => Just(Act::Fail),
        1 => Just(Act::GiveUp),
        1 => Just(Act::Defer),
        1 => Just(Act::Ask),
        2 => Just(Act::Release),
        1 => Just(Act::Complete),
        1 => Just(Act::Cancel),
        3 => Just(Act::Pass),
        1 => Just(Act::Message),
        1 => Just(Act::Redrive),
    ];
    let whose = prop_oneof![3 => Just(Whose::Newest), 1 => (0..4usize).prop_map(Whose::Nth)];
    let acts = prop::collection::vec((act, whose), 1..VERBS);
    let mut runner = TestRunner::new(Config { cases: SEQUENCES, failure_persistence: None, ..Config::default() });
    let world = &*world;
    let outcome = tokio::task::block_in_place(|| {
        runner.run(&acts, |acts| {
            tokio::runtime::Handle::current().block_on(one_sequence(world, &acts));
            Ok(())
        })
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

async fn one_sequence<S: Subject>(world: &World<S>, acts: &[(Act, Whose)]) {
    // Without an issue nothing is published of a death, so the job under test is the only one.
    let mut plan = world.plan(1);
    plan.issue.number = None;
    world.ledger().open_task(None, &plan).await.unwrap();
    let mut model =
        Model { state: State::Queued, leases: vec![], ended: vec![], attempts: 0, crashes: 0, since_step: 0, steps: 0 };
    for (act, whose) in acts {
        apply(world, plan.id, &mut model, *act, *whose).await;
        let view = world.view(plan.id).await.run;
        let expected = format!("{:?}", model.state).to_lowercase();
        assert_eq!(view.job_state, expected, "after {act:?} {whose:?}: {model:?}");
        assert_eq!((view.attempts, view.crashes, view.steps), (model.attempts, model.crashes, model.steps));
        assert_eq!(view.fence, model.leases.last().map_or(0, |lease| lease.fence.get()));
    }
    leave_nothing_runnable(world, plan.id).await;
}

async fn leave_nothing_runnable<S: Subject>(world: &World<S>, task: TaskId) {
    world.ledger().cancel(task, "the end").await.unwrap();
    world.lapse().await;
    while let Some(publish) = world.try_lease(JobKind::Publish).await {
        world.leases().release(&publish.lease).await.unwrap();
        world.ledger().cancel(task, "the end").await.unwrap();
    }
}

async fn apply<S: Subject>(world: &World<S>, task: TaskId, model: &mut Model, act: Act, whose: Whose) {
    let (leases, ledger) = (world.leases(), world.ledger());
    let shown = match whose {
        Whose::Newest => model.leases.last().copied(),
        Whose::Nth(n) => model.leases.get(n).copied(),
    };
    match act {
        Act::Lease => {
            let leased = world.try_lease(JobKind::Run).await;
            assert_eq!(leased.is_some(), model.state == State::Queued);
            if let Some(leased) = leased {
                assert!(model.leases.last().is_none_or(|last| last.fence < leased.lease.fence));
                model.leases.push(leased.lease);
                model.state = State::Leased;
            }
        }
        Act::Pass => {
            world.advance(Duration::from_secs(3600));
            ledger.sweep(10).await.unwrap();
            model.pass();
        }
        Act::Cancel => {
            let expected = match model.state {
                State::Queued | State::Delayed | State::Waiting => CancelAnswer::Cancelled,
                State::Leased | State::Cancelling => CancelAnswer::Cancelling,
                // The publish job of a completed run is still to come.
                State::Done => return,
                State::Dead | State::Cancelled => CancelAnswer::TooLate { state: world.view(task).await.state },
            };
            assert_eq!(ledger.cancel(task, "ada").await.unwrap(), expected);
            model.state = match expected {
                CancelAnswer::Cancelled => State::Cancelled,
                CancelAnswer::Cancelling => State::Cancelling,
                CancelAnswer::TooLate { .. } => model.state,
            };
        }
        Act::Message => {
            ledger.post_message(task, "ada", "go on").await.unwrap();
            if model.state == State::Waiting {
                model.state = State::Queued;
            }
        }
        Act::Redrive => {
            let job = world.view(task).await.run.job;
            match ledger.redrive(job, "ada").await {
                Ok(()) => {
                    assert_eq!(model.state, State::Dead);
                    (model.state, model.attempts, model.crashes, model.since_step) = (State::Queued, 0, 0, 0);
                }
                Err(LedgerError::Invalid(_)) => assert_ne!(model.state, State::Dead),
                Err(other) => panic!("{other}"),
            }
        }
        Act::Renew => {
            let Some(lease) = shown else { return };
            let answer = leases.renew(&[Beat::new(lease, 1)]).await.unwrap().remove(0);
            match answer {
                BeatAnswer::Renewed { .. } => assert!(model.is_live(lease) && model.state == State::Leased),
                BeatAnswer::Cancel { .. } => assert!(model.is_live(lease) && model.state == State::Cancelling),
                BeatAnswer::Lost => assert!(!model.is_live(lease)),
            }
        }
        Act::Step => {
            let Some(lease) = shown else { return };
            // The fence makes each holder's step another one.
            let fenced = leases.record(&lease, &step(model.steps, &lease.fence.get().to_string())).await.unwrap();
            let expected = if model.is_live(lease) { Fenced::Applied } else { Fenced::Stale };
            assert_eq!(fenced, expected);
            if fenced == Fenced::Applied {
                model.steps += 1;
                model.since_step = 0;
            }
        }
        Act::Fail | Act::GiveUp | Act::Defer | Act::Ask | Act::Release | Act::Complete => {
            let Some(lease) = shown else { return };
            let fenced = match act {
                Act::Fail => leases.fail(&lease, "no", Then::RetryAfter(Duration::from_secs(60))).await,
                Act::GiveUp => leases.fail(&lease, "no", Then::Never).await,
                Act::Defer => leases.defer(&lease, Wake::After(Duration::from_secs(60)), "later").await,
                Act::Ask => leases.defer(&lease, Wake::Event, "which?").await,
                Act::Release => leases.release(&lease).await,
                _ => leases.complete_run(&lease, &result(RunOutcome::Unsolved { notes: "n".into() })).await,
            };
            assert_eq!(fenced.unwrap(), model.end(lease, act), "{model:?}");
        }
    }
}

impl Model {
    fn is_live(&self, lease: LeaseRef) -> bool {
        matches!(self.state, State::Leased | State::Cancelling) && self.leases.last() == Some(&lease)
    }

    fn pass(&mut self) {
        match self.state {
            State::Delayed => self.state = State::Queued,
            State::Leased | State::Cancelling => {
                self.crashes += 1;
                self.since_step += 1;
                self.state = match self.state {
                    State::Cancelling => State::Cancelled,
                    _ if self.since_step >= 3 || self.crashes >= 10 => State::Dead,
                    _ => State::Queued,
                };
            }
            _ => {}
        }
    }

    fn end(&mut self, lease: LeaseRef, act: Act) -> Fenced {
        if !self.is_live(lease) {
            // Only the newest end is remembered; who ended before it is merely late.
            return if self.ended.last() == Some(&lease) { Fenced::AlreadyApplied } else { Fenced::Stale };
        }
        self.ended.push(lease);
        if matches!(act, Act::Fail | Act::GiveUp) {
            self.attempts += 1;
        }
        self.state = match (self.state, act) {
            (_, Act::Complete) => State::Done,
            (State::Cancelling, _) => State::Cancelled,
            (_, Act::Fail) if self.attempts < 5 => State::Delayed,
            (_, Act::Fail | Act::GiveUp) => State::Dead,
            (_, Act::Defer) => State::Delayed,
            (_, Act::Ask) => State::Waiting,
            _ => State::Queued,
        };
        Fenced::Applied
    }
}
