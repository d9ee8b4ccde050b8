//! The comment of a Task that is at work: wanted beside its Run, never in the way of its end, and never left to tell of work
//! that was cancelled.

use fettle_app::ports::ledger::{CancelAnswer, Fenced, LedgerError, Retried, Then};
use fettle_domain::effect::{Effect, EffectKind, EffectState, Intent, Receipt};
use fettle_domain::id::{EffectId, TaskId};
use fettle_domain::job::JobKind;
use fettle_domain::lease::LeaseRef;
use fettle_domain::run::RunOutcome;
use fettle_domain::task::TaskState;

use super::world::{Subject, World, result, step};

const COMMENT: u64 = 5;

fn fixing() -> Receipt {
    Receipt::Progress { id: COMMENT, phase: "fix".into() }
}

async fn effect<S: Subject>(world: &World<S>, task: TaskId, kind: EffectKind) -> Option<Effect> {
    world.view(task).await.effects.into_iter().find(|effect| effect.kind == kind)
}

async fn write<S: Subject>(world: &World<S>, lease: &LeaseRef, effect: EffectId, intent: Intent, receipt: Receipt) {
    assert_eq!(world.ledger().intend(lease, effect, &intent).await.unwrap(), Fenced::Applied);
    assert_eq!(world.ledger().settle(lease, effect, &receipt).await.unwrap(), Fenced::Applied);
}

/// The issue is told of the phase by a publisher.
async fn tell<S: Subject>(world: &World<S>, task: TaskId) {
    assert!(world.ledger().want_progress(task).await.unwrap());
    let lease = world.lease(JobKind::Publish).await.lease;
    let progress = effect(world, task, EffectKind::Progress).await.unwrap();
    write(world, &lease, progress.id, Intent::Progress { issue: 1, marker: "m".into() }, fixing()).await;
    assert_eq!(world.ledger().complete_publish(&lease).await.unwrap(), Fenced::Applied);
}

/// What the issue of a cancelled Task is told last.
async fn tell_the_end<S: Subject>(world: &World<S>, task: TaskId) {
    let lease = world.lease(JobKind::Publish).await.lease;
    assert_eq!(world.ledger().publication(&lease).await.unwrap().phase, None);
    let comment = effect(world, task, EffectKind::Comment).await.expect("the end is told");
    write(
        world,
        &lease,
        comment.id,
        Intent::Comment { issue: 1, marker: "m".into() },
        Receipt::Comment { id: COMMENT },
    )
    .await;
    assert_eq!(world.ledger().complete_publish(&lease).await.unwrap(), Fenced::Applied);
    assert!(world.try_lease(JobKind::Publish).await.is_none(), "once");
    assert_eq!(world.view(task).await.state, TaskState::Cancelled);
}

pub async fn progress_is_told_beside_the_run_and_what_it_brought_is_remembered<S: Subject>(world: &mut World<S>) {
    let task = world.open(1).await;
    assert!(!world.ledger().want_progress(task).await.unwrap(), "nobody works on it yet");
    assert_eq!(world.ledger().at_work(10).await.unwrap(), []);
    let run = world.lease(JobKind::Run).await.lease;
    let at_work = world.ledger().at_work(10).await.unwrap();
    let [one] = &at_work[..] else { panic!("{at_work:?}") };
    assert_eq!((one.task, one.phase.as_str(), &one.told), (task, "", &None));
    let fix = step(0, "the change");

    world.leases().record(&run, &fix).await.unwrap();

    tell(world, task).await;
    assert_eq!(world.view(task).await.state, TaskState::Running);
    let at_work = world.ledger().at_work(10).await.unwrap();
    assert_eq!(at_work[0].phase, "fix");
    let told = at_work[0].told.as_ref().map(|effect| &effect.state);
    assert_eq!(told, Some(&EffectState::Settled { receipt: fixing() }));

    // The Run ends while the next edit is wanted: both are one publication, and the comment is known.
    assert!(world.ledger().want_progress(task).await.unwrap());
    let again = effect(world, task, EffectKind::Progress).await.unwrap();
    assert_eq!((again.state, again.before), (EffectState::Wanted, Some(fixing())));
    let unsolved = result(RunOutcome::Unsolved { notes: "nothing".into() });
    world.leases().complete_run(&run, &unsolved).await.unwrap();
    assert!(!world.ledger().want_progress(task).await.unwrap(), "it has ended");
    let lease = world.lease(JobKind::Publish).await.lease;
    let publication = world.ledger().publication(&lease).await.unwrap();
    assert_eq!(publication.phase, None);
    let kinds: Vec<_> = publication.task.effects.iter().map(|effect| effect.kind).collect();
    assert_eq!(kinds, [EffectKind::Progress, EffectKind::Comment, EffectKind::Labels]);
}

pub async fn who_was_told_of_the_beginning_is_told_of_a_cancellation<S: Subject>(world: &mut World<S>) {
    let told = world.open(1).await;
    let run = world.lease(JobKind::Run).await.lease;
    tell(world, told).await;
    // An edit is on its way when it is cancelled.
    assert!(world.ledger().want_progress(told).await.unwrap());
    let edit = world.lease(JobKind::Publish).await.lease;
    assert_eq!(world.ledger().cancel(told, "ada").await.unwrap(), CancelAnswer::Cancelling);
    let progress = effect(world, told, EffectKind::Progress).await.unwrap();
    assert_eq!(progress.state, EffectState::Settled { receipt: fixing() }, "the comment is not forgotten");
    assert_eq!(world.leases().release(&run).await.unwrap(), Fenced::Applied);
    assert_eq!(world.view(told).await.state, TaskState::Cancelled);
    assert!(world.try_lease(JobKind::Publish).await.is_none(), "one publisher at a time");
    assert_eq!(world.leases().release(&edit).await.unwrap(), Fenced::Applied);
    tell_the_end(world, told).await;

    let untold = world.open(2).await;
    assert_eq!(world.ledger().cancel(untold, "ada").await.unwrap(), CancelAnswer::Cancelled);
    assert!(world.try_lease(JobKind::Publish).await.is_none(), "who was told nothing is told nothing");
}

pub async fn a_publication_that_is_cancelled_still_tells_who_was_told<S: Subject>(world: &mut World<S>) {
    let task = world.open(1).await;
    let run = world.lease(JobKind::Run).await.lease;
    tell(world, task).await;
    world.leases().complete_run(&run, &result(RunOutcome::ReadyPr)).await.unwrap();
    assert_eq!(world.ledger().cancel(task, "ada").await.unwrap(), CancelAnswer::Cancelled);
    tell_the_end(world, task).await;
    let events = world.ledger().events(Some(task), 0, 500).await.unwrap();
    let ends = events.iter().filter(|event| event.body == fettle_domain::event::EventBody::TaskCancelled).count();
    assert_eq!(ends, 1, "it ends once");
}

pub async fn a_cancelled_task_is_not_taken_up_again<S: Subject>(world: &mut World<S>) {
    let task = world.open(1).await;
    let run = world.lease(JobKind::Run).await.lease;
    assert_eq!(world.leases().fail(&run, "broken", Then::Never).await.unwrap(), Fenced::Applied);
    let dead = world.ledger().dead(None, 10).await.unwrap()[0].job;
    assert_eq!(world.ledger().cancel(task, "ada").await.unwrap(), CancelAnswer::Cancelled);
    assert!(matches!(world.ledger().redrive(dead, "ada").await, Err(LedgerError::Invalid(_))));
    let Retried { task: next, new } = world.ledger().retry(task, "ada").await.unwrap();
    assert!(new && next != task, "a retry is a new Task");
}

pub async fn a_stop_that_came_too_late_is_no_wish_about_what_is_taken_up_again<S: Subject>(world: &mut World<S>) {
    let task = world.open(1).await;
    let run = world.lease(JobKind::Run).await.lease;
    world.leases().fail(&run, "no", Then::Never).await.unwrap();
    let telling = world.lease(JobKind::Publish).await.lease;
    let comment = effect(world, task, EffectKind::Comment).await.expect("a death is told");
    let intent = Intent::Comment { issue: 1, marker: "m".into() };
    assert_eq!(world.ledger().intend(&telling, comment.id, &intent).await.unwrap(), Fenced::Applied);
    world.ledger().cancel(task, "ada").await.unwrap();
    let receipt = Receipt::Comment { id: COMMENT };
    assert_eq!(world.ledger().settle(&telling, comment.id, &receipt).await.unwrap(), Fenced::Applied);
    assert_eq!(world.ledger().complete_publish(&telling).await.unwrap(), Fenced::Applied);
    assert_eq!(world.view(task).await.state, TaskState::Done, "it had ended");

    assert_eq!(world.ledger().retry(task, "ada").await.unwrap(), Retried { task, new: false });
    let again = world.lease(JobKind::Run).await.lease;
    world.leases().complete_run(&again, &result(RunOutcome::ReadyPr)).await.unwrap();
    assert_eq!(world.view(task).await.state, TaskState::Publishing);
    assert!(effect(world, task, EffectKind::Push).await.is_some(), "its patch is published");
}
