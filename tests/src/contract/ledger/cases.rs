//! The cases, in the order of a Task's life. Each leaves a ledger whose audit finds nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use fettle_app::ports::ledger::{
    Accepted, Admission, Beat, BeatAnswer, CancelAnswer, Fenced, Granted, LedgerError, MAX_BLOB_BYTES, Opened,
    SeenRepository, Stands, TaskCursor, TaskFilter, Then, Wake,
};
use fettle_domain::effect::{EffectKind, EffectState, Intent, Receipt};
use fettle_domain::event::EventBody;
use fettle_domain::job::JobKind;
use fettle_domain::lease::{LeaseRef, Timing};
use fettle_domain::object::{BlobId, CommitId};
use fettle_domain::run::RunOutcome;
use fettle_domain::step::{StepBody, StepKind};
use fettle_domain::task::TaskState;
use futures::future::join_all;

use super::world::{Subject, World, result, step, want};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

fn unsolved() -> RunOutcome {
    RunOutcome::Unsolved { notes: "nothing".into() }
}

/// A publish lease of a Task on issue 1 whose run was unsolved: it wants a comment and labels.
async fn publishing<S: Subject>(world: &World<S>) -> (fettle_domain::id::TaskId, LeaseRef) {
    let task = world.open(1).await;
    let run = world.lease(JobKind::Run).await.lease;
    assert_eq!(world.leases().complete_run(&run, &result(unsolved())).await.unwrap(), Fenced::Applied);
    (task, world.lease(JobKind::Publish).await.lease)
}

async fn event_names<S: Subject>(world: &World<S>, task: fettle_domain::id::TaskId) -> Vec<String> {
    let events = world.ledger().events(Some(task), 0, 500).await.unwrap();
    let name = |body: &EventBody| serde_json::to_value(body).unwrap()["type"].as_str().unwrap().to_owned();
    events.iter().map(|event| name(&event.body)).collect()
}

pub async fn leasing_is_exclusive_and_in_order<S: Subject>(world: &mut World<S>) {
    let mut opened = Vec::new();
    for issue in 1..=6 {
        opened.push(world.open(issue).await);
    }
    let first = world.lease(JobKind::Run).await;
    assert_eq!(first.lease.job, world.view(opened[0]).await.run.job, "first come, first served");

    let leases = join_all((0..12).map(|_| world.try_lease(JobKind::Run))).await;
    let jobs: BTreeSet<_> = leases.iter().flatten().map(|leased| leased.lease.job).collect();
    assert_eq!(jobs.len(), 5, "each job has one holder");
    assert_eq!(leases.iter().flatten().count(), 5);
    assert!(world.try_lease(JobKind::Publish).await.is_none(), "a kind is leased only by who wants it");

    let nobody = fettle_app::ports::ledger::Want::anything(JobKind::Run, vec![999]);
    world.leases().release(&first.lease).await.unwrap();
    let granted = world.leases().lease(&world.holder(), &nobody, 1, Duration::ZERO, world.request()).await.unwrap();
    assert_eq!(granted, Granted::Idle, "a holder gets only what it understands");
}

// A worker stops, its lease goes to another, it wakes up and tries everything.
pub async fn a_superseded_holder_changes_nothing<S: Subject>(world: &mut World<S>) {
    let task = world.open(1).await;
    let old = world.lease(JobKind::Run).await.lease;
    world.lapse().await;
    let new = world.lease(JobKind::Run).await.lease;
    assert_eq!(old.job, new.job);
    assert!(new.fence > old.fence);

    let (before, events) = (world.view(task).await, event_names(world, task).await);
    let leases = world.leases();
    assert_eq!(leases.record(&old, &step(0, "late")).await.unwrap(), Fenced::Stale);
    assert_eq!(leases.complete_run(&old, &result(unsolved())).await.unwrap(), Fenced::Stale);
    assert_eq!(leases.fail(&old, "late", Then::Never).await.unwrap(), Fenced::Stale);
    assert_eq!(leases.defer(&old, Wake::Event, "late").await.unwrap(), Fenced::Stale);
    assert_eq!(leases.release(&old).await.unwrap(), Fenced::Stale);
    let beats = [Beat::new(old, 1), Beat::new(new, 1)];
    let answers = leases.renew(&beats).await.unwrap();
    assert_eq!(answers[0], BeatAnswer::Lost);
    assert!(matches!(answers[1], BeatAnswer::Renewed { time_left, .. } if time_left == Timing::default().lease));
    assert_eq!(world.view(task).await, before);
    assert_eq!(event_names(world, task).await, events);
    assert_eq!(leases.release(&new).await.unwrap(), Fenced::Applied);
}

pub async fn a_repeated_end_is_recognised<S: Subject>(world: &mut World<S>) {
    world.open(1).await;
    let leases = world.leases();
    let released = world.lease(JobKind::Run).await.lease;
    assert_eq!(leases.release(&released).await.unwrap(), Fenced::Applied);
    assert_eq!(leases.release(&released).await.unwrap(), Fenced::AlreadyApplied);

    let failed = world.lease(JobKind::Run).await.lease;
    let then = Then::RetryAfter(SECOND);
    assert_eq!(leases.fail(&failed, "no", then).await.unwrap(), Fenced::Applied);
    assert_eq!(leases.fail(&failed, "no", then).await.unwrap(), Fenced::AlreadyApplied);
    assert_eq!(leases.release(&released).await.unwrap(), Fenced::Stale, "only the newest end is remembered");

    world.advance(HOUR);
    world.ledger().sweep(10).await.unwrap();
    let completed = world.lease(JobKind::Run).await.lease;
    assert_eq!(leases.complete_run(&completed, &result(unsolved())).await.unwrap(), Fenced::Applied);
    assert_eq!(leases.complete_run(&completed, &result(unsolved())).await.unwrap(), Fenced::AlreadyApplied);
}

pub async fn the_same_request_gets_the_same_leases<S: Subject>(world: &mut World<S>) {
    for issue in 1..=3 {
        world.open(issue).await;
    }
    let (holder, request, want) = (world.holder(), world.request(), want(JobKind::Run));
    let lost = world.leases().lease(&holder, &want, 2, Duration::ZERO, request).await.unwrap();
    world.advance(SECOND);
    let again = world.leases().lease(&holder, &want, 2, Duration::ZERO, request).await.unwrap();
    let (Granted::Leased(lost), Granted::Leased(again)) = (lost, again) else { panic!("nothing was leased") };
    let leases = |granted: &[fettle_app::ports::ledger::Leased]| granted.iter().map(|l| l.lease).collect::<Vec<_>>();
    assert_eq!(leases(&lost), leases(&again));
    assert_eq!(lost.len(), 2);
    assert_eq!(again[0].time_left, Timing::default().lease - SECOND, "asking again does not renew");
    assert!(world.try_lease(JobKind::Run).await.is_some(), "the third job was left for others");
}

pub async fn three_crashes_without_a_step_kill_a_job_and_its_issue_is_told<S: Subject>(world: &mut World<S>) {
    let task = world.open(1).await;
    for crash in 1..=3 {
        assert_eq!(world.view(task).await.state, TaskState::Queued);
        world.lease(JobKind::Run).await;
        world.lapse().await;
        assert_eq!(world.view(task).await.run.crashes, crash);
    }
    let view = world.view(task).await;
    assert_eq!((view.run.job_state.as_str(), view.run.attempts), ("dead", 0));
    assert_eq!(view.state, TaskState::Publishing, "the issue is still to be told");

    let publish = world.lease(JobKind::Publish).await.lease;
    let publication = world.ledger().publication(&publish).await.unwrap();
    assert!(publication.run_failure.is_some());
    let kinds: Vec<_> = publication.task.effects.iter().map(|effect| effect.kind).collect();
    assert_eq!(kinds, [EffectKind::Comment, EffectKind::Labels]);
    for effect in &publication.task.effects {
        let receipt = Receipt::Withheld { reason: "test".into() };
        assert_eq!(world.ledger().settle(&publish, effect.id, &receipt).await.unwrap(), Fenced::Applied);
    }
    assert_eq!(world.ledger().complete_publish(&publish).await.unwrap(), Fenced::Applied);
    let view = world.view(task).await;
    assert_eq!(view.state, TaskState::Done);
    assert!(view.note.is_some(), "the reason stays visible");
}

pub async fn a_step_between_crashes_keeps_a_job_alive<S: Subject>(world: &mut World<S>) {
    let task = world.open(1).await;
    for seq in 0..5 {
        let lease = world.lease(JobKind::Run).await.lease;
        assert_eq!(world.leases().record(&lease, &step(seq, "on")).await.unwrap(), Fenced::Applied);
        world.lapse().await;
    }
    let run = world.view(task).await.run;
    assert_eq!((run.job_state.as_str(), run.crashes, run.steps), ("queued", 5, 5));
}

pub async fn five_failures_kill_a_job<S: Subject>(world: &mut World<S>) {
    let task = world.open(1).await;
    for attempt in 1..=5 {
        let leased = world.lease(JobKind::Run).await;
        let fenced = world.leases().fail(&leased.lease, "boom", Then::RetryAfter(60 * SECOND)).await.unwrap();
        assert_eq!(fenced, Fenced::Applied);
        let view = world.view(task).await;
        assert_eq!(view.run.attempts, attempt);
        assert!(view.note.expect("a failure is shown").contains("boom"));
        assert!(world.try_lease(JobKind::Run).await.is_none(), "not before its time");
        world.advance(61 * SECOND);
        world.ledger().sweep(10).await.unwrap();
    }
    let view = world.view(task).await;
    assert_eq!(view.run.job_state, "dead");
    assert!(world.try_lease(JobKind::Run).await.is_none());

    // An operator sees it, and may take it up again once its issue was told.
    let dead = world.ledger().dead(None, 10).await.unwrap();
    assert_eq!(world.ledger().dead(dead.last().map(|one| one.job), 10).await.unwrap(), [], "there are no older ones");
    let [dead] = dead.as_slice() else { panic!("one job is dead: {dead:?}") };
    assert_eq!((dead.job, dead.kind, dead.task, dead.attempts), (view.run.job, JobKind::Run, task, 5));
    assert!(dead.last_failure.as_deref() == Some("boom") && !dead.reason.is_empty(), "{dead:?}");
    assert!(matches!(world.ledger().redrive(dead.job, "admin").await, Err(LedgerError::Invalid(_))));
    let lease = world.lease(JobKind::Publish).await.lease;
    for effect in world.view(task).await.effects {
        world.ledger().settle(&lease, effect.id, &Receipt::Withheld { reason: "test".into() }).await.unwrap();
    }
    assert_eq!(world.ledger().complete_publish(&lease).await.unwrap(), Fenced::Applied);
    world.ledger().redrive(dead.job, "admin").await.unwrap();
    assert_eq!(world.ledger().dead(None, 10).await.unwrap(), []);
    assert_eq!(world.lease(JobKind::Run).await.attempts, 0);
}

pub async fn a_deferred_job_waits_for_its_time_or_its_event_and_spends_nothing<S: Subject>(world: &mut World<S>) {
    let task = world.open(1).await;
    let lease = world.lease(JobKind::Run).await.lease;
    world.leases().defer(&lease, Wake::After(10 * SECOND), "rate limit").await.unwrap();
    assert_eq!(world.view(task).await.state, TaskState::Waiting);
    world.advance(9 * SECOND);
    assert_eq!(world.ledger().sweep(10).await.unwrap().promoted, 0);
    world.advance(SECOND);
    assert_eq!(world.ledger().sweep(10).await.unwrap().promoted, 1);
    assert_eq!(world.ledger().sweep(10).await.unwrap().promoted, 0, "a second sweep finds nothing");

    let lease = world.lease(JobKind::Run).await.lease;
    world.leases().defer(&lease, Wake::Event, "which database?").await.unwrap();
    world.advance(HOUR);
    world.ledger().sweep(10).await.unwrap();
    let view = world.view(task).await;
    assert_eq!((view.state, view.note.as_deref()), (TaskState::Waiting, Some("which database?")));
    world.ledger().post_message(task, "ada", "postgres").await.unwrap();
    let run = world.view(task).await.run;
    assert_eq!((run.job_state.as_str(), run.attempts, run.crashes), ("queued", 0, 0));
}

pub async fn a_cancelled_job_ends_at_once_or_when_its_holder_lets_go<S: Subject>(world: &mut World<S>) {
    let queued = world.open(1).await;
    assert_eq!(world.ledger().cancel(queued, "ada").await.unwrap(), CancelAnswer::Cancelled);
    let too_late = CancelAnswer::TooLate { state: TaskState::Cancelled };
    assert_eq!(world.ledger().cancel(queued, "ada").await.unwrap(), too_late);
    assert_eq!(event_names(world, queued).await, ["task_created", "cancel_requested", "task_cancelled"]);

    for (issue, ending) in (2..).zip(["release", "fail", "defer", "lapse"]) {
        let task = world.open(issue).await;
        let lease = world.lease(JobKind::Run).await.lease;
        assert_eq!(world.ledger().cancel(task, "ada").await.unwrap(), CancelAnswer::Cancelling);
        assert_eq!(world.ledger().cancel(task, "ada").await.unwrap(), CancelAnswer::Cancelling);
        assert!(!world.view(task).await.state.is_final());
        let told = world.leases().renew(&[Beat::new(lease, 1)]).await.unwrap().remove(0);
        assert!(matches!(told, BeatAnswer::Cancel { reason } if reason.contains("ada")));
        match ending {
            "release" => drop(world.leases().release(&lease).await.unwrap()),
            "fail" => drop(world.leases().fail(&lease, "stopped", Then::RetryAfter(SECOND)).await.unwrap()),
            "defer" => drop(world.leases().defer(&lease, Wake::Event, "stopped").await.unwrap()),
            _ => world.lapse().await,
        }
        assert_eq!(world.view(task).await.state, TaskState::Cancelled, "after {ending}");
    }
    let delayed = world.open(9).await;
    let lease = world.lease(JobKind::Run).await.lease;
    world.leases().fail(&lease, "no", Then::RetryAfter(HOUR)).await.unwrap();
    assert_eq!(world.ledger().cancel(delayed, "ada").await.unwrap(), CancelAnswer::Cancelled);
    world.advance(2 * HOUR);
    assert_eq!(world.ledger().sweep(10).await.unwrap().promoted, 0);
    assert!(world.try_lease(JobKind::Run).await.is_none());
}

pub async fn a_result_that_comes_in_while_cancelling_is_kept_and_not_published<S: Subject>(world: &mut World<S>) {
    let task = world.open(1).await;
    let lease = world.lease(JobKind::Run).await.lease;
    world.ledger().cancel(task, "ada").await.unwrap();
    assert_eq!(world.leases().complete_run(&lease, &result(unsolved())).await.unwrap(), Fenced::Applied);
    let view = world.view(task).await;
    assert_eq!((view.run.job_state.as_str(), view.state), ("done", TaskState::Cancelled));
    assert_eq!(view.run.result, Some(result(unsolved())));
    assert!(world.try_lease(JobKind::Publish).await.is_none());
}

pub async fn cancelling_a_publication_drops_what_was_not_begun<S: Subject>(world: &mut World<S>) {
    let (task, lease) = publishing(world).await;
    let effects = world.view(task).await.effects;
    let comment = Intent::Comment { issue: 1, marker: "m".into() };
    assert_eq!(world.ledger().intend(&lease, effects[0].id, &comment).await.unwrap(), Fenced::Applied);
    assert_eq!(world.ledger().cancel(task, "ada").await.unwrap(), CancelAnswer::Cancelling);

    let labels = Intent::Labels { issue: 1, add: vec![], remove: vec![] };
    assert_eq!(world.ledger().intend(&lease, effects[1].id, &labels).await.unwrap(), Fenced::Stale);
    let states: Vec<_> = world.view(task).await.effects.into_iter().map(|effect| effect.state).collect();
    assert_eq!(states[0], EffectState::Intended { intent: comment });
    assert!(matches!(&states[1], EffectState::Settled { receipt: Receipt::Withheld { .. } }));
    let written = Receipt::Comment { id: 5 };
    assert_eq!(world.ledger().settle(&lease, effects[0].id, &written).await.unwrap(), Fenced::Applied);
    assert_eq!(world.leases().release(&lease).await.unwrap(), Fenced::Applied);
    assert_eq!(world.view(task).await.state, TaskState::Cancelled);

    let unheard = world.open(2).await;
    let run = world.lease(JobKind::Run).await.lease;
    world.leases().complete_run(&run, &result(unsolved())).await.unwrap();
    assert_eq!(world.ledger().cancel(unheard, "ada").await.unwrap(), CancelAnswer::Cancelled);
    assert!(world.try_lease(JobKind::Publish).await.is_none());
}

pub async fn a_delivery_is_accepted_once<S: Subject>(world: &mut World<S>) {
    let deliveries: Vec<_> = (0..60).map(|n| world.delivery(&format!("github:{}", n % 20))).collect();
    let accepted = join_all(deliveries.iter().map(|delivery| world.ledger().accept(delivery.clone()))).await;
    let new = accepted.into_iter().filter(|accepted| matches!(accepted, Ok(Accepted::New))).count();
    assert_eq!(new, 20);

    let open = world.ledger().open_deliveries(100).await.unwrap();
    assert_eq!(open.len(), 20);
    for delivery in &open {
        assert!(deliveries.contains(delivery), "a delivery comes back as it was accepted");
    }
    let repeated = open[0].clone();
    assert_eq!(world.ledger().accept(repeated.clone()).await.unwrap(), Accepted::Duplicate, "its answer was lost");

    world.ledger().close_delivery(repeated.id, "ignored: ping").await.unwrap();
    world.ledger().open_task(Some(open[1].id), &world.plan(1)).await.unwrap();
    world.crash().await;
    let left = world.ledger().open_deliveries(100).await.unwrap();
    assert_eq!(left, open[2..], "oldest first, without those that something came of");
    assert_eq!(world.ledger().accept(repeated).await.unwrap(), Accepted::Duplicate, "also when it is closed");
    let unknown = world.delivery("github:unknown").id;
    assert!(matches!(world.ledger().close_delivery(unknown, "x").await, Err(LedgerError::NotFound(_))));
}

pub async fn one_task_at_a_time_works_on_an_issue<S: Subject>(world: &mut World<S>) {
    let plans: Vec<_> = (0..12).map(|n| world.plan(1 + n % 2)).collect();
    let opened = join_all(plans.iter().map(|plan| world.ledger().open_task(None, plan))).await;
    let opened: Vec<_> = opened.into_iter().map(Result::unwrap).collect();
    let new: Vec<_> = opened.iter().filter(|opened| matches!(opened, Opened::New { .. })).collect();
    assert_eq!(new.len(), 2, "one for each issue: {opened:?}");
    assert_eq!(opened.iter().filter(|opened| matches!(opened, Opened::Joined { .. })).count(), 10);

    // The same triggers again, from a redelivery and from the poll.
    let again = join_all(plans.iter().chain(&plans).map(|plan| world.ledger().open_task(None, plan))).await;
    assert!(again.iter().all(|opened| matches!(opened, Ok(Opened::Duplicate { .. }))), "{again:?}");

    let task = world.ledger().active_task(77, 1).await.unwrap().expect("issue 1 has an active Task");
    let names = event_names(world, task).await;
    assert_eq!(names.iter().filter(|name| *name == "task_joined").count(), 5);
    assert_eq!(world.ledger().active_task(77, 3).await.unwrap(), None);
    assert_eq!(world.ledger().active_task(78, 1).await.unwrap(), None);
}

pub async fn a_finished_issue_gets_the_next_generation<S: Subject>(world: &mut World<S>) {
    for generation in 1..=3 {
        let plan = world.plan(1);
        let opened = world.ledger().open_task(None, &plan).await.unwrap();
        assert_eq!(opened, Opened::New { task: plan.id, generation });
        assert_eq!(world.view(plan.id).await.generation, generation);
        world.ledger().cancel(plan.id, "ada").await.unwrap();
        assert_eq!(world.ledger().active_task(77, 1).await.unwrap(), None);
    }
}

pub async fn a_retry_continues_the_dead_and_repeats_the_finished<S: Subject>(world: &mut World<S>) {
    let dead = world.open(1).await;
    let lease = world.lease(JobKind::Run).await.lease;
    world.leases().record(&lease, &step(0, "kept")).await.unwrap();
    assert!(matches!(world.ledger().retry(dead, "ada").await, Err(LedgerError::Invalid(_))), "it is at work");
    world.leases().fail(&lease, "unknown model", Then::Never).await.unwrap();
    let publish = world.lease(JobKind::Publish).await.lease;
    world.leases().fail(&publish, "no token", Then::Never).await.unwrap();
    assert_eq!(world.view(dead).await.state, TaskState::Done);

    let retried = world.ledger().retry(dead, "ada").await.unwrap();
    assert_eq!((retried.task, retried.new), (dead, false));
    let again = world.lease(JobKind::Run).await;
    assert!(again.lease.fence > lease.fence, "the fence goes on");
    assert_eq!(world.leases().steps(&again.lease).await.unwrap(), [step(0, "kept")], "so does the journal");
    assert_eq!(world.view(dead).await.run.attempts, 0);
    world.leases().complete_run(&again.lease, &result(unsolved())).await.unwrap();
    let publish = world.lease(JobKind::Publish).await.lease;
    for effect in world.view(dead).await.effects {
        world.ledger().settle(&publish, effect.id, &Receipt::Withheld { reason: "test".into() }).await.unwrap();
    }
    world.ledger().complete_publish(&publish).await.unwrap();

    let retried = world.ledger().retry(dead, "ada").await.unwrap();
    assert!(retried.new && retried.task != dead);
    let next = world.view(retried.task).await;
    assert_eq!((next.generation, next.state, next.actor.as_str()), (2, TaskState::Queued, "ada"));
    assert_eq!(next.issue, world.view(dead).await.issue);
    assert!(matches!(world.ledger().retry(dead, "ada").await, Err(LedgerError::Invalid(_))), "the issue is taken");
    let job = world.view(retried.task).await.run.job;
    assert!(matches!(world.ledger().redrive(job, "ada").await, Err(LedgerError::Invalid(_))), "it is not dead");
}

pub async fn a_step_is_recorded_once_and_a_diverged_replay_forgets_the_rest<S: Subject>(world: &mut World<S>) {
    let task = world.open(1).await;
    let first = world.lease(JobKind::Run).await.lease;
    let leases = world.leases();
    for (seq, title) in (0..).zip(["a", "b", "c"]) {
        assert_eq!(leases.record(&first, &step(seq, title)).await.unwrap(), Fenced::Applied);
        assert_eq!(leases.record(&first, &step(seq, title)).await.unwrap(), Fenced::AlreadyApplied);
    }
    assert!(matches!(leases.record(&first, &step(1, "other")).await, Err(LedgerError::Invalid(_))));
    assert!(matches!(leases.record(&first, &step(4, "gap")).await, Err(LedgerError::Invalid(_))));
    let mut large = step(3, "large");
    large.body = StepBody::Inline(serde_json::Value::String("x".repeat(256 * 1024 + 1)));
    assert!(matches!(leases.record(&first, &large).await, Err(LedgerError::Invalid(_))));
    large.body = StepBody::Blob(BlobId::of(b"never stored"));
    assert!(matches!(leases.record(&first, &large).await, Err(LedgerError::Invalid(_))));
    assert_eq!(world.view(task).await.run.spent, step(2, "c").spent);

    assert_eq!(leases.release(&first).await.unwrap(), Fenced::Applied);
    assert_eq!(leases.record(&first, &step(2, "c")).await.unwrap(), Fenced::AlreadyApplied, "its answer was lost");
    assert_eq!(leases.record(&first, &step(3, "d")).await.unwrap(), Fenced::Stale);

    let second = world.lease(JobKind::Run).await;
    assert!(matches!(&second.order, fettle_app::ports::ledger::Order::Run(order) if order.spent.calls == 3));
    assert_eq!(leases.record(&second.lease, &step(1, "elsewhere")).await.unwrap(), Fenced::Applied);
    assert_eq!(leases.steps(&second.lease).await.unwrap(), [step(0, "a"), step(1, "elsewhere")]);
    assert_eq!(leases.record(&second.lease, &step(2, "on")).await.unwrap(), Fenced::Applied);
    assert_eq!(world.view(task).await.run.steps, 3);
}

pub async fn a_finished_run_wants_its_effects_once_and_in_order<S: Subject>(world: &mut World<S>) {
    let task = world.open(1).await;
    let run = world.lease(JobKind::Run).await.lease;
    let ready = result(RunOutcome::ReadyPr);
    let repeated = join_all((0..4).map(|_| world.leases().complete_run(&run, &ready))).await;
    let applied = repeated.iter().filter(|fenced| matches!(fenced, Ok(Fenced::Applied))).count();
    assert_eq!(applied, 1, "{repeated:?}");

    let publish = world.lease(JobKind::Publish).await;
    assert_eq!(publish.order, fettle_app::ports::ledger::Order::Publish { task });
    assert!(world.try_lease(JobKind::Publish).await.is_none(), "one publish job");
    let publication = world.ledger().publication(&publish.lease).await.unwrap();
    assert_eq!(publication.branch.as_str(), "ai-agent/quickfix-issue-1");
    assert_eq!(publication.run_failure, None);
    let kinds: Vec<_> = publication.task.effects.iter().map(|effect| effect.kind).collect();
    assert_eq!(kinds, [EffectKind::Push, EffectKind::PullRequest, EffectKind::Comment, EffectKind::Labels]);
    assert_eq!(publication.task.state, TaskState::Publishing);
    assert_eq!(publication.task.run.result, Some(ready));

    let open = world.ledger().complete_publish(&publish.lease).await.unwrap();
    assert_eq!(open, Fenced::Applied);
    assert_eq!(world.view(task).await.state, TaskState::Publishing, "what is wanted is still to be done");
}

pub async fn an_effect_is_intended_and_settled_by_the_live_lease_only<S: Subject>(world: &mut World<S>) {
    let (task, old) = publishing(world).await;
    world.lapse().await;
    let lease = world.lease(JobKind::Publish).await.lease;
    let effects = world.view(task).await.effects;
    let (comment, labels) = (effects[0].id, effects[1].id);
    let (intent, receipt) = (Intent::Comment { issue: 1, marker: "m".into() }, Receipt::Comment { id: 5 });
    let ledger = world.ledger();

    assert_eq!(ledger.intend(&old, comment, &intent).await.unwrap(), Fenced::Stale);
    assert!(matches!(ledger.settle(&lease, comment, &receipt).await, Err(LedgerError::Invalid(_))), "no intent");
    let push = Intent::Push {
        branch: fettle_domain::branch::BranchName::of(fettle_domain::task::Mode::Quickfix, Some(1), task, 1),
        expected: None,
        commit: CommitId::from_bytes([1; 20]),
    };
    assert!(matches!(ledger.intend(&lease, comment, &push).await, Err(LedgerError::Invalid(_))), "of another kind");
    assert_eq!(ledger.intend(&lease, comment, &intent).await.unwrap(), Fenced::Applied);
    assert_eq!(ledger.intend(&lease, comment, &intent).await.unwrap(), Fenced::AlreadyApplied);
    assert!(matches!(ledger.complete_publish(&lease).await, Err(LedgerError::Invalid(_))), "an intent is open");
    assert_eq!(ledger.settle(&old, comment, &receipt).await.unwrap(), Fenced::Stale);

    // The publisher dies between request and receipt; the next one reads back and adopts.
    world.lapse().await;
    let next = world.lease(JobKind::Publish).await.lease;
    assert_eq!(ledger.settle(&lease, comment, &receipt).await.unwrap(), Fenced::Stale);
    assert_eq!(ledger.settle(&next, comment, &receipt).await.unwrap(), Fenced::Applied);
    assert_eq!(ledger.settle(&next, comment, &receipt).await.unwrap(), Fenced::AlreadyApplied);
    assert!(matches!(ledger.settle(&next, comment, &Receipt::Comment { id: 6 }).await, Err(LedgerError::Invalid(_))));
    let set = Intent::Labels { issue: 1, add: vec!["done".into()], remove: vec![] };
    assert_eq!(ledger.intend(&next, labels, &set).await.unwrap(), Fenced::Applied);
    assert_eq!(ledger.settle(&next, labels, &Receipt::Labels).await.unwrap(), Fenced::Applied);
    assert_eq!(ledger.complete_publish(&next).await.unwrap(), Fenced::Applied);
    assert_eq!(ledger.complete_publish(&next).await.unwrap(), Fenced::AlreadyApplied);
    assert_eq!(world.view(task).await.state, TaskState::Done);
    assert_eq!(event_names(world, task).await.last().map(String::as_str), Some("task_done"));
}

pub async fn effects_wanted_meanwhile_queue_the_publication_again<S: Subject>(world: &mut World<S>) {
    let (task, lease) = publishing(world).await;
    let ledger = world.ledger();
    let withheld = Receipt::Withheld { reason: "test".into() };
    for effect in world.view(task).await.effects {
        ledger.settle(&lease, effect.id, &withheld).await.unwrap();
    }
    let job = ledger.want_effects(task, &[EffectKind::Comment]).await.unwrap();
    assert_eq!(job, lease.job, "it joins the unfinished job");
    assert_eq!(ledger.complete_publish(&lease).await.unwrap(), Fenced::Applied);
    let again = world.lease(JobKind::Publish).await.lease;
    assert_eq!(again.job, job);
    let comment = world.view(task).await.effects[0].clone();
    assert_eq!((comment.kind, comment.state), (EffectKind::Comment, EffectState::Wanted));
    ledger.settle(&again, comment.id, &withheld).await.unwrap();
    ledger.complete_publish(&again).await.unwrap();
    assert_eq!(world.view(task).await.state, TaskState::Done);

    let new = ledger.want_effects(task, &[EffectKind::Labels]).await.unwrap();
    assert_ne!(new, job, "a finished one is not opened again");
    assert_eq!(world.view(task).await.state, TaskState::Publishing);
}

pub async fn events_are_numbered_without_gaps_by_concurrent_writers<S: Subject>(world: &mut World<S>) {
    let (one, two) = (world.open(1).await, world.open(2).await);
    let newest = world.ledger().newest_event();
    let posts = (0..20).map(|n| world.ledger().post_message(if n % 2 == 0 { one } else { two }, "ada", "more"));
    join_all(posts).await.into_iter().for_each(Result::unwrap);
    for task in [one, two] {
        let events = world.ledger().events(Some(task), 0, 500).await.unwrap();
        assert_eq!(events.iter().map(|event| event.task_seq).collect::<Vec<_>>(), (1..=11).collect::<Vec<_>>());
        assert!(events.iter().all(|event| event.task == task));
    }
    let all = world.ledger().events(None, 0, 500).await.unwrap();
    assert!(all.windows(2).all(|pair| pair[0].seq < pair[1].seq));
    assert_eq!(all.len(), 22);
    assert_eq!(*newest.borrow(), all[21].seq);
    let resumed = world.ledger().events(None, all[4].seq, 3).await.unwrap();
    assert_eq!(resumed, all[5..8], "a reader goes on where it stopped");
}

pub async fn the_list_holds_still_while_tasks_are_added<S: Subject>(world: &mut World<S>) {
    let mut opened = Vec::new();
    for issue in 1..=7 {
        opened.push(world.open(issue).await);
        // Three share an instant: the id decides.
        if issue % 3 == 0 {
            world.advance(SECOND);
        }
    }
    let mut seen = Vec::new();
    let mut after = None;
    loop {
        let page = world.ledger().tasks(TaskFilter::default(), after, 2).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(TaskCursor { created_at: last.created_at, id: last.id });
        seen.extend(page.iter().map(|view| view.id));
        world.open(100 + seen.len() as u64).await;
    }
    opened.reverse();
    assert_eq!(seen, opened, "each once, newest first, and none that came later");

    world.ledger().cancel(opened[2], "ada").await.unwrap();
    let filter = TaskFilter { state: Some(TaskState::Cancelled) };
    let cancelled = world.ledger().tasks(filter, None, 10).await.unwrap();
    assert_eq!(cancelled.iter().map(|view| view.id).collect::<Vec<_>>(), [opened[2]]);
    let missing = world.plan(1).id;
    assert!(matches!(world.ledger().task(missing).await, Err(LedgerError::NotFound(_))));
}

pub async fn a_blob_comes_back_as_it_was_put<S: Subject>(world: &mut World<S>) {
    for content in [Bytes::new(), Bytes::from_static(b"\0patch\xff"), Bytes::from(vec![7; 300_000])] {
        let puts = join_all((0..4).map(|_| world.leases().put_blob(content.clone()))).await;
        let id = BlobId::of(&content);
        assert!(puts.into_iter().all(|put| put.unwrap() == id));
        world.crash().await;
        assert_eq!(world.leases().blob(id).await.unwrap(), content);
    }
    assert!(matches!(world.leases().blob(BlobId::of(b"unknown")).await, Err(LedgerError::NotFound(_))));
    let too_large = Bytes::from(vec![0; MAX_BLOB_BYTES + 1]);
    assert!(matches!(world.leases().put_blob(too_large).await, Err(LedgerError::Invalid(_))));
}

pub async fn what_was_answered_survives_a_crash<S: Subject>(world: &mut World<S>) {
    let task = world.open(1).await;
    let run = world.lease(JobKind::Run).await.lease;
    world.leases().record(&run, &step(0, "kept")).await.unwrap();
    let (before, events) = (world.view(task).await, event_names(world, task).await);
    // Nobody could renew while nobody listened: the lease has lapsed, yet its holder keeps it.
    world.advance(10 * Timing::default().lease);
    world.crash().await;
    assert_eq!(world.ledger().sweep(10).await.unwrap().expired, 0);
    assert_eq!(world.view(task).await, before);
    assert_eq!(event_names(world, task).await, events);
    assert_eq!(world.leases().steps(&run).await.unwrap(), [step(0, "kept")]);
    let answer = world.leases().renew(&[Beat::new(run, 1)]).await.unwrap().remove(0);
    assert!(matches!(answer, BeatAnswer::Renewed { .. }));

    world.leases().complete_run(&run, &result(unsolved())).await.unwrap();
    world.crash().await;
    assert_eq!(world.leases().complete_run(&run, &result(unsolved())).await.unwrap(), Fenced::AlreadyApplied);
    let publish = world.lease(JobKind::Publish).await.lease;
    assert!(world.ledger().publication(&publish).await.unwrap().task.run.result.is_some());
    let newest = *world.ledger().newest_event().borrow();
    assert_eq!(newest, world.ledger().events(None, 0, 500).await.unwrap().last().unwrap().seq);
}

pub async fn a_message_reaches_the_holder_and_the_next_one_unless_it_was_journaled<S: Subject>(world: &mut World<S>) {
    let task = world.open(1).await;
    let mut comment = world.plan(1);
    comment.trigger = "comment".into();
    comment.said = Some("use tokio".into());
    assert_eq!(world.ledger().open_task(None, &comment).await.unwrap(), Opened::Joined { task });
    world.ledger().post_message(task, "bob", "and no unsafe").await.unwrap();

    let handed = async |lease, received| {
        let beat = Beat { received, ..Beat::new(lease, 1) };
        match world.leases().renew(&[beat]).await.unwrap().remove(0) {
            BeatAnswer::Renewed { messages, received, .. } => (messages, received),
            other => panic!("{other:?}"),
        }
    };
    let first = world.lease(JobKind::Run).await.lease;
    let (lost, _) = handed(first, None).await;
    let (messages, received) = handed(first, None).await;
    assert_eq!(lost, messages, "an answer that did not arrive comes again");
    assert!(messages[0].contains("use tokio") && messages[1].contains("and no unsafe"), "{messages:?}");
    assert_eq!(messages.len(), 2);
    assert_eq!(handed(first, received).await, (vec![], received), "once for each holder");
    let mut journaled = step(0, "use tokio");
    journaled.kind = StepKind::MessageIn;
    world.leases().record(&first, &journaled).await.unwrap();

    world.lapse().await;
    let second = world.lease(JobKind::Run).await.lease;
    let (messages, received) = handed(second, None).await;
    assert!(messages.len() == 1 && messages[0].contains("and no unsafe"), "what no journal has: {messages:?}");
    world.ledger().post_message(task, "bob", "thanks").await.unwrap();
    let (messages, received) = handed(second, received).await;
    assert_eq!((messages.len(), received), (1, Some(3)));
}

pub async fn a_waiting_lease_request_is_woken_by_work<S: Subject>(world: &mut World<S>) {
    let mut work = world.ledger().work();
    work.mark_unchanged();
    let (holder, want, request) = (world.holder(), want(JobKind::Run), world.request());
    let waiting = world.leases().lease(&holder, &want, 1, 20 * SECOND, request);
    let (granted, task) = tokio::join!(waiting, world.open(1));
    let Granted::Leased(leased) = granted.unwrap() else { panic!("the wait ended without work") };
    assert_eq!(leased[0].lease.job, world.view(task).await.run.job);
    assert!(work.has_changed().unwrap());
    for max in [0, 33] {
        let refused = world.leases().lease(&holder, &want, max, Duration::ZERO, world.request()).await;
        assert!(matches!(refused, Err(LedgerError::Invalid(_))));
    }
}

pub async fn a_stale_lease_reads_nothing<S: Subject>(world: &mut World<S>) {
    let (_, stale) = publishing(world).await;
    assert!(world.ledger().publication(&stale).await.is_ok());
    world.lapse().await;
    assert!(matches!(world.ledger().publication(&stale).await, Err(LedgerError::Invalid(_))));
    world.open(2).await;
    let run = world.lease(JobKind::Run).await.lease;
    let admission = world.leases().admit(&run).await.unwrap();
    assert!(matches!(admission, Admission::Go { read_token: None, run_token: None, model: None }), "{admission:?}");
    assert_eq!(world.leases().steps(&run).await.unwrap(), []);
    world.lapse().await;
    assert!(matches!(world.leases().steps(&run).await, Err(LedgerError::Invalid(_))));
    assert!(matches!(world.leases().admit(&run).await, Err(LedgerError::Invalid(_))));
}

pub async fn a_postponed_delivery_makes_room_for_others_and_comes_back<S: Subject>(world: &mut World<S>) {
    let (first, second) = (world.delivery("github:1"), world.delivery("github:2"));
    for delivery in [&first, &second] {
        world.ledger().accept(delivery.clone()).await.unwrap();
    }
    let open = async || {
        let deliveries = world.ledger().open_deliveries(1).await.unwrap();
        deliveries.into_iter().map(|delivery| delivery.key).collect::<Vec<_>>()
    };
    assert_eq!(open().await, ["github:1"]);
    world.ledger().postpone_delivery(first.id, 10 * SECOND).await.unwrap();
    assert_eq!(open().await, ["github:2"]);
    world.ledger().close_delivery(second.id, "nothing").await.unwrap();
    assert_eq!(open().await, Vec::<String>::new());
    assert_eq!(world.ledger().depth().await.unwrap().open_deliveries, 1, "it is still open");
    world.advance(11 * SECOND);
    assert_eq!(open().await, ["github:1"]);
}

pub async fn tasks_are_counted_by_installation_and_known_by_who_asked<S: Subject>(world: &mut World<S>) {
    let start = world.now();
    let open = async |issue: u64, installation: Option<u64>, trigger: &str, actor: &str| {
        let mut plan = world.plan(issue);
        plan.repo.as_mut().unwrap().installation = installation;
        (plan.trigger, plan.actor) = (trigger.into(), actor.into());
        world.ledger().open_task(None, &plan).await.unwrap();
        world.ledger().cancel(plan.id, "ada").await.unwrap();
        world.advance(SECOND);
    };
    for (issue, installation, trigger, actor) in [
        (1, Some(5), "label", "ada"),
        (1, Some(5), "comment", "bob[bot]"),
        (1, Some(5), "api", "admin"),
        (2, Some(6), "label", "ada"),
        (3, None, "label", "ada"),
    ] {
        open(issue, installation, trigger, actor).await;
    }
    let count = async |installation, since| world.ledger().opened_since(installation, since).await.unwrap();
    assert_eq!((count(Some(5), start).await, count(Some(6), start).await, count(None, start).await), (2, 1, 1));
    let later = start.checked_add(jiff::SignedDuration::from_secs(1)).unwrap();
    assert_eq!(count(Some(5), later).await, 1, "the first one was before");
    let repo = world.plan(1).repo.unwrap().forge_id;
    assert_eq!(world.ledger().actors(repo, 1, 2).await.unwrap(), ["admin", "bob[bot]"]);
    assert_eq!(world.ledger().actors(repo, 9, 2).await.unwrap(), Vec::<String>::new());
}

pub async fn depth_counts_what_is_where<S: Subject>(world: &mut World<S>) {
    for issue in 1..=5 {
        world.open(issue).await;
    }
    let lease = world.lease(JobKind::Run).await.lease;
    world.leases().defer(&lease, Wake::Event, "?").await.unwrap();
    let lease = world.lease(JobKind::Run).await.lease;
    world.leases().fail(&lease, "no", Then::RetryAfter(HOUR)).await.unwrap();
    world.lease(JobKind::Run).await;
    world.ledger().accept(world.delivery("github:1")).await.unwrap();
    world.advance(7 * SECOND);
    let depth = world.ledger().depth().await.unwrap();
    assert_eq!((depth.runnable, depth.waiting, depth.delayed, depth.leased, depth.dead), (2, 1, 1, 1, 0));
    assert_eq!((depth.oldest_runnable_s, depth.open_deliveries), (7, 1));
}

pub async fn open_jobs_are_listed_with_whoever_holds_them<S: Subject>(world: &mut World<S>) {
    let mut tasks = Vec::new();
    for issue in 1..=5 {
        tasks.push(world.open(issue).await);
    }
    let begun = world.now();
    let waits = world.lease(JobKind::Run).await.lease;
    world.leases().defer(&waits, Wake::Event, "?").await.unwrap();
    let later = world.lease(JobKind::Run).await.lease;
    world.leases().fail(&later, "no network", Then::RetryAfter(HOUR)).await.unwrap();
    let stopped = world.lease(JobKind::Run).await.lease;
    world.ledger().cancel(tasks[2], "ada").await.unwrap();
    world.advance(SECOND);
    let held = world.lease(JobKind::Run).await.lease;
    let lease = Timing::default().lease;

    let listed = world.ledger().held_jobs(10).await.unwrap();
    let jobs: Vec<_> = listed.iter().map(|job| (job.job, job.task)).collect();
    assert_eq!(jobs, [(stopped.job, tasks[2]), (held.job, tasks[3])], "the one first that runs out first");
    assert!(matches!(&listed[0].stands, Stands::Held { cancelling: true, .. }), "{:?}", listed[0]);
    match &listed[1].stands {
        Stands::Held { by: _, name, until, cancelling } => {
            assert_eq!((name.as_str(), *until, *cancelling), ("box/1", world.now() + lease, false));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(
        (listed[1].title.as_str(), listed[1].repo.clone()),
        ("issue 4", world.plan(1).repo.map(|repo| repo.name))
    );
    assert_eq!(world.ledger().held_jobs(1).await.unwrap(), listed[..1]);

    let listed = world.ledger().unheld_jobs(None, 10).await.unwrap();
    let stands: Vec<_> = listed.iter().map(|job| (job.task, job.stands.clone())).collect();
    let until = begun + HOUR;
    assert_eq!(
        stands,
        [
            (tasks[0], Stands::Waiting),
            (tasks[1], Stands::Delayed { until }),
            (tasks[4], Stands::Runnable { since: begun }),
        ]
    );
    assert_eq!((listed[1].attempts, listed[1].last_failure.as_deref()), (1, Some("no network")));
    assert_eq!(world.ledger().unheld_jobs(None, 2).await.unwrap(), listed[..2]);
    assert_eq!(world.ledger().unheld_jobs(Some(listed[0].job), 1).await.unwrap(), listed[1..2]);
    // Leased since the page before ended with it.
    assert_eq!(world.ledger().unheld_jobs(Some(held.job), 10).await.unwrap(), listed[2..]);
    assert_eq!(world.ledger().unheld_jobs(Some(listed[2].job), 10).await.unwrap(), []);
    let unknown = fettle_domain::id::JobId::from_uuid(uuid::Uuid::max());
    assert_eq!(world.ledger().unheld_jobs(Some(unknown), 10).await.unwrap(), []);
}

pub async fn repositories_are_known_by_their_tasks<S: Subject>(world: &mut World<S>) {
    assert_eq!(world.ledger().seen_repositories(10).await.unwrap(), []);
    world.open(1).await;
    world.advance(SECOND);
    let mut elsewhere = world.plan(1);
    if let Some(repo) = &mut elsewhere.repo {
        (repo.forge_id, repo.name) = (78, "acme/other".parse().unwrap());
    }
    world.ledger().open_task(None, &elsewhere).await.unwrap();
    let mut probe = world.plan(3);
    probe.repo = None;
    world.ledger().open_task(None, &probe).await.unwrap();
    world.advance(SECOND);
    let newest = world.open(2).await;
    world.ledger().cancel(newest, "ada").await.unwrap();
    let forge_id = world.plan(1).repo.unwrap().forge_id;
    let first = SeenRepository { forge_id, tasks: 2, open: 1, newest };
    let second = SeenRepository { forge_id: 78, tasks: 1, open: 1, newest: elsewhere.id };
    assert_eq!(world.ledger().seen_repositories(10).await.unwrap(), [first, second]);
    assert_eq!(world.ledger().seen_repositories(1).await.unwrap(), [first]);
}

pub async fn a_journal_is_read_by_whoever_knows_its_run<S: Subject>(world: &mut World<S>) {
    let task = world.open(1).await;
    let run = world.view(task).await.run.id;
    let read = async |from, max| world.ledger().journal(run, from, max).await.unwrap();
    assert_eq!(read(0, 10).await, []);
    let lease = world.lease(JobKind::Run).await.lease;
    for (seq, title) in (0..).zip(["a", "b", "c"]) {
        world.leases().record(&lease, &step(seq, title)).await.unwrap();
    }
    assert_eq!(read(1, 10).await, [step(1, "b"), step(2, "c")]);
    assert_eq!((read(0, 1).await, read(3, 10).await), (vec![step(0, "a")], vec![]));
    let unknown = world.plan(2).run;
    assert!(matches!(world.ledger().journal(unknown, 0, 10).await, Err(LedgerError::NotFound(_))));
}

pub async fn demand_counts_the_runs_that_workers_hold_or_could_hold<S: Subject>(world: &mut World<S>) {
    for issue in 1..=4 {
        world.open(issue).await;
    }
    world.advance(9 * SECOND);
    let done = world.lease(JobKind::Run).await.lease;
    world.leases().complete_run(&done, &result(RunOutcome::ReadyPr)).await.unwrap();
    world.lease(JobKind::Run).await;
    let demand = world.ledger().demand().await.unwrap();
    assert_eq!((demand.runnable, demand.leased, demand.oldest_runnable_s), (2, 1, 9), "a publication is no Run");
    assert_eq!(world.ledger().runnable(1000).await.unwrap(), 2);
    assert_eq!(world.ledger().runnable(1).await.unwrap(), 1, "counted no further");

    world.advance(31 * SECOND);
    let demand = world.ledger().demand().await.unwrap();
    assert_eq!((demand.runnable, demand.leased), (3, 0), "its worker is silent, another one is of use");
}

pub async fn a_delivery_is_known_by_the_beginning_of_its_key_for_a_while<S: Subject>(world: &mut World<S>) {
    let since = world.now();
    world.advance(SECOND);
    for key in ["foreign-body:a:1", "foreign-body:ab:1", "github:1"] {
        world.ledger().accept(world.delivery(key)).await.unwrap();
    }
    let seen = async |prefix: &str, since| world.ledger().received_since(prefix, since).await.unwrap();
    assert!(seen("foreign-body:a:", since).await && seen("github:", since).await);
    assert!(!seen("foreign-body:b:", since).await && !seen("foreign-body:a:2", since).await);
    world.advance(SECOND);
    assert!(!seen("foreign-body:a:", world.now()).await, "too long ago");
}

pub async fn a_mark_of_looking_moves_only_from_where_it_is<S: Subject>(world: &mut World<S>) {
    let mark = async |repo| world.ledger().poll_mark(repo).await.unwrap();
    let (first, second) = (world.now(), world.now() + jiff::SignedDuration::from_secs(60));
    assert_eq!(mark(77).await, None);
    let set = async |from, to| world.ledger().set_poll_mark(77, from, to).await.unwrap();
    assert!(!set(Some(first), second).await, "there is none to move");
    assert!(set(None, first).await);
    assert!(!set(None, second).await, "another dashboard was first");
    assert_eq!((mark(77).await, mark(78).await), (Some(first), None));
    assert!(set(Some(first), second).await);
    assert!(!set(Some(first), second).await, "another dashboard was faster");
    world.crash().await;
    assert_eq!(world.ledger().poll_mark(77).await.unwrap(), Some(second));
}

pub async fn an_issue_was_last_asked_for_when_its_newest_task_was<S: Subject>(world: &mut World<S>) {
    let repo = world.plan(1).repo.unwrap().forge_id;
    let asked = async |issue| world.ledger().last_asked(repo, issue).await.unwrap();
    assert_eq!(asked(1).await, None);
    let minute = jiff::SignedDuration::from_secs(60);
    for ago in [3, 2] {
        let mut plan = world.plan(1);
        // The forge's clock, which is not the ledger's.
        plan.issue.taken_at = world.now() - minute * ago;
        world.ledger().open_task(None, &plan).await.unwrap();
        world.ledger().cancel(plan.id, "ada").await.unwrap();
        world.advance(SECOND);
    }
    assert_eq!(asked(1).await, Some(world.now() - minute * 2 - jiff::SignedDuration::from_secs(1)));
    assert_eq!(asked(2).await, None);
}

pub async fn what_was_announced_only_moves_on_from_where_it_was<S: Subject>(world: &mut World<S>) {
    let before = world.ledger().announced().await.unwrap();
    world.open(1).await;
    let newest = *world.ledger().newest_event().borrow();
    assert!(newest > before);
    assert!(world.ledger().set_announced(before, newest).await.unwrap());
    assert!(!world.ledger().set_announced(before, newest).await.unwrap(), "another dashboard was faster");
    world.crash().await;
    assert_eq!(world.ledger().announced().await.unwrap(), newest);
}
