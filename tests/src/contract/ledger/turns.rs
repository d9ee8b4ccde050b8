//! Whose turn it is, against [`fettle_domain::turn::next`]: the rule said in full, over what the case itself remembers.

use std::collections::BTreeMap;
use std::time::Duration;

use fettle_app::ports::ledger::{Granted, Opened, TaskPlan, Want};
use fettle_domain::id::JobId;
use fettle_domain::job::JobKind;
use fettle_domain::label::Labels;
use fettle_domain::lease::LeaseRef;
use fettle_domain::run::RunOutcome;
use fettle_domain::turn::{self, Lane, Priority, Slots, Waiting};
use jiff::Timestamp;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, TestRunner};

use super::world::{Subject, World, repo, result, want};

/// What every ledger under test is opened with. More than other cases lease at once, and soon reached here.
pub fn slots() -> Slots {
    Slots {
        per_repository: PER_REPOSITORY,
        per_model: BTreeMap::from([(BUSY_MODEL.to_owned(), 2)]),
        default_model: "coder".to_owned(),
    }
}

const PER_REPOSITORY: u32 = 16;
const BUSY_MODEL: &str = "slow";
const REPOSITORIES: u64 = 3;
const SEQUENCES: u32 = 40;

#[derive(Debug, Clone)]
enum Act {
    Open { repo: u64, busy_model: bool, asked: bool },
    Lease,
    Release { nth: usize },
    Complete { nth: usize },
    Pass { seconds: u64 },
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (0..REPOSITORIES, any::<bool>(), any::<bool>())
            .prop_map(|(repo, busy_model, asked)| Act::Open { repo, busy_model, asked }),
        4 => Just(Act::Lease),
        1 => any::<usize>().prop_map(|nth| Act::Release { nth }),
        1 => any::<usize>().prop_map(|nth| Act::Complete { nth }),
        2 => (0..1500u64).prop_map(|seconds| Act::Pass { seconds }),
    ];
    proptest::collection::vec(act, 1..40)
}

/// A queue as a person would keep it.
#[derive(Default)]
struct Line {
    waiting: Vec<Waiting>,
    held: Vec<(Waiting, LeaseRef)>,
    served: BTreeMap<u64, Timestamp>,
    seq: u64,
}

/// A lane for each repository and model.
fn lane(repo: u64, busy_model: bool) -> u64 {
    repo * 2 + u64::from(busy_model)
}

impl Line {
    fn lanes(&self) -> Vec<Lane> {
        let held = |belongs: &dyn Fn(u64) -> bool| self.held.iter().filter(|(job, _)| belongs(job.lane)).count() as u32;
        let lane = |id: u64| {
            let (repo, busy_model) = (id / 2, id % 2 == 1);
            let of_repo = PER_REPOSITORY.saturating_sub(held(&|lane| lane / 2 == repo));
            let of_model = if busy_model { 2u32.saturating_sub(held(&|lane| lane % 2 == 1)) } else { u32::MAX };
            let served_at = self.served.get(&repo).copied().unwrap_or(Timestamp::UNIX_EPOCH);
            Lane { id, served_at, free_slots: of_repo.min(of_model) }
        };
        (0..REPOSITORIES * 2).map(lane).collect()
    }

    fn take(&mut self, job: JobId) -> Waiting {
        let at = self.waiting.iter().position(|waiting| waiting.job == job).expect("what is leased was waiting");
        self.waiting.remove(at)
    }
}

pub async fn whose_turn_it_is_follows_the_rule<S: Subject>(world: &mut World<S>) {
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(SEQUENCES) });
    let strategy = acts();
    for _ in 0..SEQUENCES {
        let acts = strategy.new_tree(&mut runner).unwrap().current();
        let mut line = Line::default();
        let mut story = Vec::new();
        for act in acts {
            story.push(act.clone());
            play(world, &mut line, act, &story).await;
        }
        // Nothing is left for the next sequence.
        while let Some(leased) = world.try_lease(JobKind::Run).await {
            world.leases().fail(&leased.lease, "over", fettle_app::ports::ledger::Then::Never).await.unwrap();
        }
        for (_, lease) in line.held {
            world.leases().fail(&lease, "over", fettle_app::ports::ledger::Then::Never).await.unwrap();
        }
        while let Some(leased) = world.try_lease(JobKind::Run).await {
            world.leases().fail(&leased.lease, "over", fettle_app::ports::ledger::Then::Never).await.unwrap();
        }
        assert_eq!(world.ledger().runnable(1000).await.unwrap(), 0, "{story:?}");
        world.advance(Duration::from_secs(24 * 3600));
    }
}

async fn play<S: Subject>(world: &World<S>, line: &mut Line, act: Act, story: &[Act]) {
    match act {
        Act::Open { repo: number, busy_model, asked } => {
            let mut plan = world.plan(0);
            plan.repo = Some(fettle_domain::repo::Repo { forge_id: 1000 + number, ..repo() });
            plan.issue.number = None;
            plan.model = busy_model.then(|| BUSY_MODEL.to_owned());
            plan.trigger = if asked { "api" } else { "label" }.to_owned();
            world.ledger().open_task(None, &plan).await.unwrap();
            line.seq += 1;
            line.waiting.push(Waiting {
                job: plan.job,
                seq: line.seq,
                lane: lane(number, busy_model),
                runnable_at: world.now(),
                priority: Priority::of_trigger(&plan.trigger),
            });
        }
        Act::Lease => {
            let lanes = line.lanes();
            let expected = turn::next(&line.waiting, &lanes).map(|job| job.job);
            let some = expected.is_some();
            assert_eq!(world.ledger().runnable(1000).await.unwrap() > 0, some, "{story:?}");
            let leased = world.try_lease(JobKind::Run).await;
            assert_eq!(leased.as_ref().map(|leased| leased.lease.job), expected, "{story:?}");
            if let Some(leased) = leased {
                let job = line.take(leased.lease.job);
                line.served.insert(job.lane / 2, world.now());
                line.held.push((job, leased.lease));
            }
        }
        Act::Release { nth } if !line.held.is_empty() => {
            let (mut job, lease) = line.held.remove(nth % line.held.len());
            world.leases().release(&lease).await.unwrap();
            job.runnable_at = world.now();
            line.waiting.push(job);
        }
        Act::Complete { nth } if !line.held.is_empty() => {
            let (_, lease) = line.held.remove(nth % line.held.len());
            let outcome = RunOutcome::Unsolved { notes: "nothing".into() };
            world.leases().complete_run(&lease, &result(outcome)).await.unwrap();
        }
        Act::Release { .. } | Act::Complete { .. } => {}
        Act::Pass { seconds } => {
            world.advance(Duration::from_secs(seconds));
            // Nobody sweeps here, so nothing lapses.
        }
    }
}

/// Whatever the turns say, a worker is given what it has the labels for, and the count for scaling has all of them.
pub async fn what_needs_a_label_waits_for_a_worker_that_has_it<S: Subject>(world: &mut World<S>) {
    let labels = |text: &str| text.parse::<Labels>().unwrap();
    let mut opened = Vec::new();
    for (issue, needs) in [(1, "gpu"), (2, "arm64,gpu"), (3, "")] {
        let plan = TaskPlan { needs: labels(needs), ..world.plan(issue) };
        assert!(matches!(world.ledger().open_task(None, &plan).await.unwrap(), Opened::New { .. }));
        opened.push(world.view(plan.id).await.run.job);
        assert_eq!(world.view(plan.id).await.needs, labels(needs));
    }
    assert_eq!(world.ledger().runnable(10).await.unwrap(), 3);
    let of = |text: &str| Want { labels: Some(labels(text)), ..want(JobKind::Run) };
    let granted = async |text: &str| {
        let asked = world.leases().lease(&world.holder(), &of(text), 1, Duration::ZERO, world.request()).await.unwrap();
        match asked {
            Granted::Leased(jobs) => jobs.into_iter().next().map(|leased| leased.lease.job),
            Granted::Idle => None,
        }
    };
    assert_eq!(granted("").await, Some(opened[2]), "it passes those before it");
    assert_eq!(granted("arm64").await, None);
    assert_eq!(granted("gpu,big").await, Some(opened[0]));
    assert_eq!(granted("gpu,arm64").await, Some(opened[1]));
}

pub async fn a_repository_has_so_many_tasks_at_work_and_a_freed_slot_is_taken<S: Subject>(world: &mut World<S>) {
    // For two models, whose jobs stand in lanes of their own.
    for issue in 1..=u64::from(PER_REPOSITORY) + 2 {
        let plan = TaskPlan { model: (issue % 2 == 0).then(|| "other".to_owned()), ..world.plan(issue) };
        world.ledger().open_task(None, &plan).await.unwrap();
    }
    assert_eq!(world.ledger().runnable(1000).await.unwrap(), PER_REPOSITORY);
    let mut held = Vec::new();
    while let Some(leased) = world.try_lease(JobKind::Run).await {
        held.push(leased.lease);
    }
    assert_eq!(held.len(), PER_REPOSITORY as usize);
    let demand = world.ledger().demand().await.unwrap();
    assert_eq!((demand.runnable, demand.leased), (0, PER_REPOSITORY.into()), "no worker more would be of use");

    let mut elsewhere = world.plan(99);
    elsewhere.repo = Some(fettle_domain::repo::Repo { forge_id: 78, ..repo() });
    world.ledger().open_task(None, &elsewhere).await.unwrap();
    assert_eq!(world.lease(JobKind::Run).await.lease.job, elsewhere.job, "a full lane stands in nobody's way");

    let waiting = async {
        let want = super::world::want(JobKind::Run);
        world.leases().lease(&world.holder(), &want, 1, Duration::from_secs(20), world.request()).await.unwrap()
    };
    let freeing = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let outcome = RunOutcome::Unsolved { notes: "nothing".into() };
        world.leases().complete_run(&held[0], &result(outcome)).await.unwrap();
        tokio::time::Instant::now()
    };
    let (granted, freed) = tokio::join!(waiting, freeing);
    assert!(matches!(granted, fettle_app::ports::ledger::Granted::Leased(_)));
    assert!(freed.elapsed() < Duration::from_secs(5), "whoever waits is woken by a freed slot");
}

pub async fn slots_and_turns_outlast_a_restart<S: Subject>(world: &mut World<S>) {
    for issue in 1..=u64::from(PER_REPOSITORY) + 1 {
        world.open(issue).await;
    }
    let first = world.lease(JobKind::Run).await.lease;
    while world.try_lease(JobKind::Run).await.is_some() {}
    world.crash().await;
    assert!(world.try_lease(JobKind::Run).await.is_none(), "what was held is held");
    world.leases().release(&first).await.unwrap();
    assert!(world.try_lease(JobKind::Run).await.is_some());
}
