//! Two dashboards on one database at the same moment.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fettle_app::ports::ledger::{
    Beat, BeatAnswer, CancelAnswer, Fenced, Granted, Leases as _, Ledger as _, Opened, TaskFilter, Want,
};
use fettle_domain::budget::Spent;
use fettle_domain::id::JobId;
use fettle_domain::job::JobKind;
use fettle_domain::lease::Timing;
use fettle_domain::run::{RunOutcome, RunResult};
use fettle_domain::task::TaskState;
use fettle_tests::contract::ledger::{Subject as _, World, slots};
use futures::StreamExt as _;
use futures::future::join_all;

use super::{Dashboard, two};

/// Everything here is done within a second or two.
const PATIENCE: Duration = Duration::from_secs(60);

fn runs() -> Want {
    Want::anything(JobKind::Run, vec![1])
}

pub(super) fn unsolved() -> RunResult {
    let outcome = RunOutcome::Unsolved { notes: "nothing".into() };
    RunResult { outcome, base: None, change: None, spent: Spent::default(), model: "coder".into() }
}

async fn open_many(world: &World<Dashboard>, issues: std::ops::RangeInclusive<u64>) {
    open_in(world, issues, 1).await;
}

/// Over so many repositories, so that more can be at work at once.
async fn open_in(world: &World<Dashboard>, issues: std::ops::RangeInclusive<u64>, repositories: u64) {
    let plan = |issue| {
        let mut plan = world.plan(issue);
        plan.repo.as_mut().expect("a plan has a repository").forge_id += issue % repositories;
        plan
    };
    let plans: Vec<_> = issues.map(plan).collect();
    let opened = futures::stream::iter(&plans).map(|plan| world.ledger().open_task(None, plan)).buffer_unordered(8);
    let opened: Vec<_> = opened.collect().await;
    assert!(opened.iter().all(|opened| matches!(opened, Ok(Opened::New { .. }))), "{opened:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_holders_share_two_hundred_jobs_none_gets_anothers_and_their_repository_never_has_more_than_its_slots()
{
    const JOBS: usize = 200;
    let Some((one, two)) = two().await else { return };
    open_many(&one, 1..=JOBS as u64).await;
    let (left, held) = (AtomicUsize::new(JOBS), AtomicUsize::new(0));
    let allowed = slots().per_repository as usize;
    let holders = (0..16).map(async |n| {
        let world = if n % 2 == 0 { &one } else { &two };
        let mut mine: Vec<JobId> = Vec::new();
        while left.load(Ordering::SeqCst) > 0 {
            let (holder, max) = (world.holder(), 1 + n / 8);
            let granted = world.leases().lease(&holder, &runs(), max, Duration::ZERO, world.request()).await.unwrap();
            if let Granted::Leased(leased) = granted {
                left.fetch_sub(leased.len(), Ordering::SeqCst);
                let now_held = held.fetch_add(leased.len(), Ordering::SeqCst) + leased.len();
                assert!(now_held <= allowed, "{now_held} are at work, {allowed} may be");
                for leased in leased {
                    mine.push(leased.lease.job);
                    held.fetch_sub(1, Ordering::SeqCst);
                    let completed = world.leases().complete_run(&leased.lease, &unsolved()).await.unwrap();
                    assert_eq!(completed, Fenced::Applied);
                }
            }
        }
        mine
    });
    let jobs: Vec<JobId> = tokio::time::timeout(PATIENCE, join_all(holders)).await.unwrap().concat();
    assert_eq!((jobs.len(), jobs.into_iter().collect::<BTreeSet<_>>().len()), (JOBS, JOBS));
    one.finish().await;
    two.finish().await;
}

// An answer was lost, and the same request comes to the other dashboard while the first one still works on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_request_to_both_gets_the_same_lease() {
    let Some((one, two)) = two().await else { return };
    open_many(&one, 1..=20).await;
    for _ in 0..10 {
        let (holder, request) = (one.holder(), one.request());
        let ask = async |world: &World<Dashboard>| match world
            .leases()
            .lease(&holder, &runs(), 1, Duration::ZERO, request)
            .await
            .unwrap()
        {
            Granted::Leased(leased) => leased[0].lease,
            Granted::Idle => panic!("there is enough"),
        };
        let (first, second) = tokio::join!(ask(&one), ask(&two));
        assert_eq!(first, second);
    }
    assert_eq!(one.ledger().depth().await.unwrap().leased, 10);
    one.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_wish_that_reaches_both_becomes_one_task() {
    let Some((one, two)) = two().await else { return };
    for issue in 1..=20 {
        let (first, mut second, third) = (one.plan(issue), two.plan(issue), two.plan(issue));
        second.intent.clone_from(&first.intent);
        let (a, b, c) = tokio::join!(
            one.ledger().open_task(None, &first),
            two.ledger().open_task(None, &second),
            two.ledger().open_task(None, &third),
        );
        let opened = [a.unwrap(), b.unwrap(), c.unwrap()];
        let new = opened.iter().filter(|opened| matches!(opened, Opened::New { generation: 1, .. })).count();
        assert_eq!(new, 1, "{opened:?}");
        let active = one.ledger().active_task(77, issue).await.unwrap().unwrap();
        for outcome in &opened {
            let (Opened::New { task, .. } | Opened::Joined { task } | Opened::Duplicate { task }) = outcome;
            assert_eq!(*task, active, "{opened:?}");
        }
        let same = [&opened[0], &opened[1]].into_iter().filter(|one| matches!(one, Opened::Duplicate { .. })).count();
        assert_eq!(same, 1, "one of the two with the same intent was a duplicate: {opened:?}");
    }
    one.finish().await;
}

// The generation names the branch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_two_tasks_of_an_issue_have_the_same_generation() {
    let Some((one, two)) = two().await else { return };
    let churn = async |world: &World<Dashboard>| {
        for _ in 0..30 {
            let plan = world.plan(1);
            if let Opened::New { task, .. } = world.ledger().open_task(None, &plan).await.unwrap() {
                world.ledger().cancel(task, "ada").await.unwrap();
            }
        }
    };
    tokio::join!(churn(&one), churn(&two));
    let tasks = one.ledger().tasks(TaskFilter::default(), None, 500).await.unwrap();
    let generations: BTreeSet<u32> = tasks.iter().map(|task| task.generation).collect();
    assert_eq!(generations, (1..=u32::try_from(tasks.len()).unwrap()).collect());
    one.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn completing_and_cancelling_at_once_leaves_one_truth() {
    let Some((one, two)) = two().await else { return };
    for issue in 1..=25 {
        let task = one.open(issue).await;
        let lease = one.lease(JobKind::Run).await.lease;
        let result = unsolved();
        let (completed, again, cancelled) = tokio::join!(
            one.leases().complete_run(&lease, &result),
            two.leases().complete_run(&lease, &result),
            two.ledger().cancel(task, "ada"),
        );
        let completed = [completed.unwrap(), again.unwrap()];
        assert!(completed.contains(&Fenced::Applied) && completed.contains(&Fenced::AlreadyApplied), "{completed:?}");
        assert!(matches!(cancelled.unwrap(), CancelAnswer::Cancelled | CancelAnswer::Cancelling));
        let view = one.view(task).await;
        assert_eq!((view.state, view.run.result), (TaskState::Cancelled, Some(result)));
    }
    one.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lapsed_lease_is_taken_once_however_many_sweep() {
    let Some((one, two)) = two().await else { return };
    open_in(&one, 1..=60, 6).await;
    for _ in 0..60 {
        one.lease(JobKind::Run).await;
    }
    one.advance(Timing::default().lease + Duration::from_secs(1));
    let sweeps = (0..8).map(async |n| {
        let world = if n % 2 == 0 { &one } else { &two };
        let mut expired = 0;
        for _ in 0..4 {
            expired += world.ledger().sweep(200).await.unwrap().expired;
        }
        expired
    });
    let expired: u32 = join_all(sweeps).await.into_iter().sum();
    assert_eq!(expired, 60);
    let depth = two.ledger().depth().await.unwrap();
    assert_eq!((depth.runnable, depth.leased), (60, 0));
    two.finish().await;
}

// A feed is followed by number: an event that is committed below a number already read would never be seen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_misses_no_event_while_both_write() {
    const EACH: usize = 60;
    let Some((one, two)) = two().await else { return };
    let mut tasks = Vec::new();
    for issue in 1..=6 {
        tasks.push(one.open(issue).await);
    }
    let writers = (0..8).map(async |n: usize| {
        let world = if n.is_multiple_of(2) { &one } else { &two };
        for turn in 0..EACH {
            world.ledger().post_message(tasks[(n + turn) % tasks.len()], "ada", "more").await.unwrap();
        }
    });
    let total = tasks.len() + 8 * EACH;
    let follow = async |world: &World<Dashboard>| {
        let mut newest = world.ledger().newest_event();
        let mut seen = Vec::new();
        while seen.len() < total {
            let after = seen.last().map_or(0, |event: &fettle_domain::event::Event| event.seq);
            let page = world.ledger().events(None, after, 50).await.unwrap();
            if page.is_empty() {
                tokio::time::timeout(PATIENCE, newest.changed()).await.unwrap().unwrap();
            }
            seen.extend(page);
        }
        seen
    };
    let (_, first, second) = tokio::join!(join_all(writers), follow(&one), follow(&two));
    let all = one.ledger().events(None, 0, 500).await.unwrap();
    assert_eq!(all.len(), total.min(500));
    for seen in [first, second] {
        assert_eq!(seen[..all.len()], all[..], "as they came, and none in between later");
        for task in &tasks {
            let numbers: Vec<u64> =
                seen.iter().filter(|event| event.task == *task).map(|event| event.task_seq).collect();
            assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
        }
    }
    one.finish().await;
}

// `LISTEN` wakes; without it this would take as long as the slow look.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_at_one_wakes_who_waits_at_the_other() {
    let Some((one, two)) = two().await else { return };
    let (mut work, mut newest) = (two.ledger().work(), two.ledger().newest_event());
    work.mark_unchanged();
    newest.mark_unchanged();
    let (holder, request) = (two.holder(), two.request());
    let wait = Duration::from_secs(20);
    let start = tokio::time::Instant::now();
    let want = runs();
    let waiting = two.leases().lease(&holder, &want, 1, wait, request);
    let opening = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        one.open(1).await
    };
    let (granted, task) = tokio::join!(waiting, opening);
    assert!(matches!(granted.unwrap(), Granted::Leased(leased) if leased.len() == 1));
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    tokio::time::timeout(Duration::from_secs(3), newest.changed()).await.unwrap().unwrap();
    assert_eq!(two.view(task).await.state, TaskState::Running);
    one.ledger().accept(one.delivery("github:1")).await.unwrap();
    tokio::time::timeout(Duration::from_secs(3), work.changed()).await.unwrap().unwrap();
}

// Only who comes alone comes after an outage; beside a dashboard that is alive, a silent holder is a dead one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dashboard_that_joins_another_gives_no_grace_and_one_that_comes_alone_does() {
    let Some(first) = Dashboard::alone().await else { return };
    let (url, time) = (first.url.clone(), first.time.clone());
    let one = World::of(first);
    one.open(1).await;
    one.lease(JobKind::Run).await;
    one.advance(10 * Timing::default().lease);
    let two = Dashboard::join(&url, &time, 2).await;
    assert_eq!(two.ledger.sweep(10).await.unwrap().expired, 1);

    let lease = one.lease(JobKind::Run).await.lease;
    one.advance(10 * Timing::default().lease);
    let first = one.into_subject();
    first.ledger.close().await.unwrap();
    assert!(first.ledger().probe().await.is_err(), "a closed ledger refuses");
    let beat = [Beat::new(lease, 1)];
    assert!(matches!(two.ledger.renew(&beat).await.unwrap()[0], BeatAnswer::Renewed { .. }), "the other one goes on");
    two.time.advance(10 * Timing::default().lease);
    drop((first, two));
    super::nobody_is_there(&url).await;
    let three = Dashboard::join(&url, &time, 3).await;
    assert_eq!(three.ledger.sweep(10).await.unwrap().expired, 0);
    assert!(matches!(three.ledger.renew(&beat).await.unwrap()[0], BeatAnswer::Renewed { .. }));
    World::of(three).finish().await;
}

// Renewals of several leases lock several Tasks, and so do sweeps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewals_in_any_order_do_not_stand_in_each_others_way() {
    let Some((one, two)) = two().await else { return };
    open_many(&one, 1..=16).await;
    let mut beats = Vec::new();
    for _ in 0..16 {
        beats.push(Beat::new(one.lease(JobKind::Run).await.lease, 1));
    }
    let beats = Arc::new(beats);
    let renewals = (0..8).map(async |n: usize| {
        let world = if n.is_multiple_of(2) { &one } else { &two };
        let mut mine = beats.as_ref().clone();
        if n.is_multiple_of(3) {
            mine.reverse();
        }
        mine.rotate_left(n);
        for _ in 0..10 {
            let answers = world.leases().renew(&mine).await.unwrap();
            assert!(answers.iter().all(|answer| matches!(answer, BeatAnswer::Renewed { .. })), "{answers:?}");
        }
    });
    tokio::time::timeout(PATIENCE, join_all(renewals)).await.unwrap();
    one.finish().await;
}

// A dashboard that is stopped makes room for the next one at once, which then has come alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_ledger_is_not_there_any_more() {
    let Some(dashboard) = Dashboard::alone().await else { return };
    let task = dashboard.ledger.active_task(77, 1).await.unwrap();
    assert_eq!(task, None);
    dashboard.ledger.close().await.unwrap();
    super::nobody_is_there(&dashboard.url).await;
}
