//! A Task with several Runs: they work side by side, and one of them becomes the Task's pull request.

use fettle_app::ports::clock::IdSource as _;
use fettle_app::ports::ledger::{
    Beat, BeatAnswer, CancelAnswer, Fenced, Leased, LedgerError, Message, Order, RunOrder, RunPlan, RunStopped,
    TaskPlan, Then,
};
use fettle_domain::choice::MAX_RUNS;
use fettle_domain::effect::EffectKind;
use fettle_domain::event::EventBody;
use fettle_domain::id::{JobId, RunId, TaskId};
use fettle_domain::job::JobKind;
use fettle_domain::progress::CHOICE;
use fettle_domain::run::RunOutcome;
use fettle_domain::task::TaskState;

use super::world::{Subject, World, result, step};

fn further<S: Subject>(world: &World<S>, model: &str) -> RunPlan {
    RunPlan {
        run: RunId::from_uuid(world.ids.uuid()),
        job: JobId::from_uuid(world.ids.uuid()),
        model: Some(model.to_owned()),
        instruction: Some(format!("as {model} would")),
    }
}

/// One that two models work on.
async fn open<S: Subject>(world: &World<S>) -> TaskId {
    let plan = TaskPlan { further: vec![further(world, "second")], ..world.plan(1) };
    world.ledger().open_task(None, &plan).await.unwrap();
    plan.id
}

fn order(leased: &Leased) -> &RunOrder {
    match &leased.order {
        Order::Run(order) => order,
        Order::Publish { .. } => panic!("not a Run"),
    }
}

async fn complete<S: Subject>(world: &World<S>, run: &Leased, outcome: RunOutcome) {
    assert_eq!(world.leases().complete_run(&run.lease, &result(outcome)).await.unwrap(), Fenced::Applied);
}

fn unsolved() -> RunOutcome {
    RunOutcome::Unsolved { notes: "no way".into() }
}

async fn state<S: Subject>(world: &World<S>, task: TaskId) -> TaskState {
    world.view(task).await.state
}

async fn wants<S: Subject>(world: &World<S>, task: TaskId) -> Vec<EffectKind> {
    world.view(task).await.effects.iter().map(|effect| effect.kind).collect()
}

fn assert_refused<T: std::fmt::Debug>(answer: Result<T, LedgerError>) {
    assert!(matches!(answer, Err(LedgerError::Invalid(_))), "{answer:?}");
}

pub async fn a_person_chooses_among_several_patches<S: Subject>(world: &mut World<S>) {
    let task = open(world).await;
    let (first, second) = (world.lease(JobKind::Run).await, world.lease(JobKind::Run).await);
    assert_eq!((order(&first).model.as_deref(), order(&first).instruction.as_deref()), (None, None));
    assert_eq!(order(&second).model.as_deref(), Some("second"));
    assert_eq!(order(&second).instruction.as_deref(), Some("as second would"));
    assert_eq!(order(&first).task, order(&second).task);

    // Each has a journal of its own.
    for run in [&first, &second] {
        assert_eq!(world.leases().record(&run.lease, &step(0, "look")).await.unwrap(), Fenced::Applied);
        assert_eq!(world.leases().steps(&run.lease).await.unwrap().len(), 1);
    }
    complete(world, &first, RunOutcome::ReadyPr).await;
    assert_eq!(state(world, task).await, TaskState::Running, "the other is at work");
    assert_refused(world.ledger().choose_run(task, order(&first).run, false, "ada").await);
    world.crash().await;
    complete(world, &second, RunOutcome::DraftPr { reasons: vec![] }).await;
    let view = world.view(task).await;
    assert_eq!((view.state, view.outcome()), (TaskState::Waiting, None));
    assert!(view.note.is_some_and(|note| note.contains("choose")));
    assert_eq!(wants(world, task).await, [EffectKind::Progress], "the issue is told, and nothing is published unasked");
    let telling = world.lease(JobKind::Publish).await;
    assert_eq!(world.ledger().publication(&telling.lease).await.unwrap().phase.as_deref(), Some(CHOICE));
    assert!(!world.view(task).await.as_draft);
    assert_eq!(world.leases().complete_run(&second.lease, &result(unsolved())).await.unwrap(), Fenced::AlreadyApplied);
    let unknown = RunId::from_uuid(world.ids.uuid());
    assert!(matches!(world.ledger().choose_run(task, unknown, false, "ada").await, Err(LedgerError::NotFound(_))));

    world.ledger().choose_run(task, order(&second).run, true, "ada").await.unwrap();
    let view = world.view(task).await;
    assert_eq!((view.state, view.run.id, view.as_draft), (TaskState::Publishing, order(&second).run, true));
    assert_eq!(view.outcome(), Some("draft_pr"));
    assert_eq!(wants(world, task).await[1..3], [EffectKind::Push, EffectKind::PullRequest]);
    world.leases().release(&telling.lease).await.unwrap();
    assert_refused(world.ledger().choose_run(task, order(&first).run, false, "ada").await);
    assert_refused(world.ledger().add_runs(task, "ada", &[further(world, "third")]).await);
    let publish = world.lease(JobKind::Publish).await;
    assert_eq!(world.ledger().publication(&publish.lease).await.unwrap().task.run.id, order(&second).run);

    let runs = world.ledger().runs(task).await.unwrap();
    let told: Vec<_> = runs.iter().map(|run| (run.ordinal, run.job_state.as_str(), run.steps)).collect();
    assert_eq!(told, [(1, "done", 1), (2, "done", 1)]);
    let events = world.ledger().events(Some(task), 0, 100).await.unwrap();
    let ended = events.iter().filter_map(|event| match &event.body {
        EventBody::RunEnded { ordinal, .. } | EventBody::RunChosen { ordinal, .. } => Some(*ordinal),
        _ => None,
    });
    assert_eq!(ended.collect::<Vec<_>>(), [1, 2, 2]);
}

pub async fn the_only_patch_is_published_unasked<S: Subject>(world: &mut World<S>) {
    let task = open(world).await;
    let (first, second) = (world.lease(JobKind::Run).await, world.lease(JobKind::Run).await);
    complete(world, &second, RunOutcome::ReadyPr).await;
    // The other one dies, and so has no word in it.
    world.leases().fail(&first.lease, "no", Then::Never).await.unwrap();
    let view = world.view(task).await;
    assert_eq!((view.state, view.run.id), (TaskState::Publishing, order(&second).run));
    assert_eq!(wants(world, task).await[..2], [EffectKind::Push, EffectKind::PullRequest]);
    // What died stays dead: a second patch would be in the way of the first.
    assert_refused(world.ledger().redrive(first.lease.job, "ada").await);
}

pub async fn runs_are_added_until_something_is_published<S: Subject>(world: &mut World<S>) {
    let task = world.open(1).await;
    complete(world, &world.lease(JobKind::Run).await, unsolved()).await;
    let comment = world.lease(JobKind::Publish).await;
    world.leases().release(&comment.lease).await.unwrap();
    assert_refused(world.ledger().add_runs(task, "ada", &[]).await);
    let too_many: Vec<_> = (0..MAX_RUNS).map(|_| further(world, "more")).collect();
    assert_refused(world.ledger().add_runs(task, "ada", &too_many).await);
    world.ledger().add_runs(task, "ada", &too_many[1..3]).await.unwrap();
    assert_eq!(state(world, task).await, TaskState::Queued);
    let (second, third) = (world.lease(JobKind::Run).await, world.lease(JobKind::Run).await);
    complete(world, &third, unsolved()).await;
    complete(world, &second, RunOutcome::ReadyPr).await;
    let view = world.view(task).await;
    assert_eq!((view.state, view.run.ordinal), (TaskState::Publishing, 2));
    assert_eq!(world.ledger().runs(task).await.unwrap().len(), 3);
    assert_refused(world.ledger().add_runs(task, "ada", &[further(world, "late")]).await);
}

pub async fn a_cancelled_task_stops_all_its_runs<S: Subject>(world: &mut World<S>) {
    let task = open(world).await;
    let (first, second) = (world.lease(JobKind::Run).await, world.lease(JobKind::Run).await);
    complete(world, &first, RunOutcome::ReadyPr).await;
    assert_eq!(world.ledger().cancel(task, "ada").await.unwrap(), CancelAnswer::Cancelling);
    assert_refused(world.ledger().add_runs(task, "ada", &[further(world, "third")]).await);
    let answer = world.leases().renew(&[Beat::new(second.lease, 1)]).await.unwrap().remove(0);
    assert!(matches!(answer, BeatAnswer::Cancel { .. }), "{answer:?}");
    // Too late to be cancelled, and yet nothing of it is published.
    complete(world, &second, RunOutcome::ReadyPr).await;
    assert_eq!(state(world, task).await, TaskState::Cancelled);
    assert_eq!(wants(world, task).await, []);
    assert_refused(world.ledger().stop_run(task, order(&first).run, "ada").await);
    assert_refused(world.ledger().choose_run(task, order(&first).run, false, "ada").await);

    // One that waits for a person is cancelled at once, and tried again it has as many Runs.
    let retried = world.ledger().retry(task, "ada").await.unwrap();
    for _ in 0..2 {
        complete(world, &world.lease(JobKind::Run).await, RunOutcome::ReadyPr).await;
    }
    assert_eq!(state(world, retried.task).await, TaskState::Waiting);
    assert_eq!(world.ledger().cancel(retried.task, "ada").await.unwrap(), CancelAnswer::Cancelled);
}

pub async fn each_of_several_runs_hears_every_message<S: Subject>(world: &mut World<S>) {
    let task = open(world).await;
    let (first, second) = (world.lease(JobKind::Run).await, world.lease(JobKind::Run).await);
    complete(world, &first, RunOutcome::ReadyPr).await;
    world.ledger().post_message(task, "ada", "mind the tests").await.unwrap();
    let kept = world.ledger().messages(task, 10).await.unwrap();
    assert_eq!(kept, [Message { by: "ada".into(), at: world.now(), text: "mind the tests".into() }]);
    assert!(world.try_lease(JobKind::Run).await.is_none(), "what waits to be chosen has done its work");
    world.ledger().add_runs(task, "ada", &[further(world, "third")]).await.unwrap();
    let third = world.lease(JobKind::Run).await;
    for run in [&second, &third] {
        let answer = world.leases().renew(&[Beat::new(run.lease, 1)]).await.unwrap().remove(0);
        let BeatAnswer::Renewed { messages, received, .. } = answer else { panic!("{answer:?}") };
        assert_eq!((messages.as_slice(), received), (["ada: mind the tests".to_owned()].as_slice(), Some(1)));
    }
}

pub async fn one_of_several_runs_is_stopped_and_the_others_go_on<S: Subject>(world: &mut World<S>) {
    let plan = TaskPlan { further: vec![further(world, "second"), further(world, "third")], ..world.plan(1) };
    world.ledger().open_task(None, &plan).await.unwrap();
    let task = plan.id;
    let first = world.lease(JobKind::Run).await;
    let runs = world.ledger().runs(task).await.unwrap();
    let unknown = RunId::from_uuid(world.ids.uuid());
    assert!(matches!(world.ledger().stop_run(task, unknown, "ada").await, Err(LedgerError::NotFound(_))));

    // One that nobody works on is never begun.
    assert_eq!(world.ledger().stop_run(task, runs[2].id, "ada").await.unwrap(), RunStopped::AtOnce);
    // The first one's worker is told, has come to its end already, and what it has is no choice.
    assert_eq!(world.ledger().stop_run(task, runs[0].id, "ada").await.unwrap(), RunStopped::Stopping);
    assert_eq!(world.ledger().stop_run(task, runs[0].id, "ada").await.unwrap(), RunStopped::Stopping, "asked again");
    assert_refused(world.ledger().stop_run(task, runs[1].id, "ada").await);
    world.crash().await;
    let answer = world.leases().renew(&[Beat::new(first.lease, 1)]).await.unwrap().remove(0);
    assert!(matches!(answer, BeatAnswer::Cancel { .. }), "{answer:?}");
    complete(world, &first, RunOutcome::ReadyPr).await;
    assert_eq!(state(world, task).await, TaskState::Queued, "the second is still to come");
    let second = world.lease(JobKind::Run).await;
    assert_eq!(order(&second).run, runs[1].id);
    assert!(world.try_lease(JobKind::Run).await.is_none());

    complete(world, &second, RunOutcome::ReadyPr).await;
    let view = world.view(task).await;
    assert_eq!((view.state, view.run.id), (TaskState::Publishing, runs[1].id), "the only patch that counts");
    let told: Vec<_> = world.ledger().runs(task).await.unwrap().into_iter().map(|run| run.job_state).collect();
    assert_eq!(told, ["cancelled", "done", "cancelled"]);
    let events = world.ledger().events(Some(task), 0, 100).await.unwrap();
    let stopped = events.iter().filter_map(|event| match &event.body {
        EventBody::RunStopped { ordinal, .. } => Some(*ordinal),
        _ => None,
    });
    assert_eq!(stopped.collect::<Vec<_>>(), [3, 1]);
}

pub async fn the_stop_of_the_last_run_at_work_lets_the_task_come_to_its_end<S: Subject>(world: &mut World<S>) {
    let task = open(world).await;
    let (first, second) = (world.lease(JobKind::Run).await, world.lease(JobKind::Run).await);
    complete(world, &second, unsolved()).await;
    assert_refused(world.ledger().stop_run(task, order(&second).run, "ada").await);
    assert_eq!(world.ledger().stop_run(task, order(&first).run, "ada").await.unwrap(), RunStopped::Stopping);
    assert_eq!(state(world, task).await, TaskState::Running);
    assert_eq!(world.leases().release(&first.lease).await.unwrap(), Fenced::Applied);
    let view = world.view(task).await;
    assert_eq!((view.state, view.run.id), (TaskState::Publishing, order(&second).run));
    assert_eq!(wants(world, task).await, [EffectKind::Comment, EffectKind::Labels]);
}
