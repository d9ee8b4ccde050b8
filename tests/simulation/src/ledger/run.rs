//! Runs: their journal of steps, their result, and the publish job that follows.

use fettle_app::ports::ledger::{Fenced, L, LedgerError};
use fettle_domain::event::EventBody;
use fettle_domain::id::{JobId, TaskId};
use fettle_domain::job::{Job, JobKind, JobState};
use fettle_domain::lease::LeaseRef;
use fettle_domain::object::BlobId;
use fettle_domain::proof::Level;
use fettle_domain::publication::{Ended, wanted_effects};
use fettle_domain::run::RunResult;
use fettle_domain::step::{MAX_STEP_BODY_BYTES, StepBody, StepRecord};

use super::rows::{Rows, Tx};
use super::{effect, task};
use crate::bug::Bug;

pub(super) fn require_blobs(rows: &Rows, ids: impl IntoIterator<Item = BlobId>) -> L<()> {
    match ids.into_iter().find(|id| !rows.blobs.contains_key(id)) {
        Some(id) => Err(LedgerError::Invalid(format!("blob {id} was not stored before it was named"))),
        None => Ok(()),
    }
}

/// The Task whose Run `job` executes.
fn task_of_run(rows: &Rows, job: JobId) -> L<TaskId> {
    let task = rows.jobs[rows.job(job)?].task;
    match rows.task(task)?.run.job == job {
        true => Ok(task),
        false => Err(LedgerError::Invalid(format!("{job} is not a run job"))),
    }
}

pub(super) fn record(tx: &mut Tx<'_>, lease: &LeaseRef, step: &StepRecord) -> L<Fenced> {
    let body = match &step.body {
        StepBody::Blob(id) => Some(*id),
        StepBody::Inline(_) => None,
    };
    require_blobs(tx.rows, body.into_iter().chain(step.workspace.map(|state| state.bundle)))?;
    if let StepBody::Inline(body) = &step.body
        && body.to_string().len() > MAX_STEP_BODY_BYTES
    {
        return Err(LedgerError::Invalid(format!("a step's body is at most {MAX_STEP_BODY_BYTES} bytes")));
    }
    let index = match tx.held(lease) {
        Ok(index) => index,
        Err(Fenced::AlreadyApplied) => return repeated(tx.rows, lease, step),
        Err(fenced) => return Ok(fenced),
    };
    let task = task_of_run(tx.rows, lease.job)?;
    let fence = tx.fence_of(index, lease);
    let seq = usize::try_from(step.seq).unwrap_or(usize::MAX);
    let steps = &mut tx.task(task)?.run.steps;
    if seq > steps.len() {
        return Err(LedgerError::Invalid(format!("step {seq} follows step count {}: a gap", steps.len())));
    }
    if let Some((by, same)) = steps.get(seq) {
        if *by == fence && same == step {
            return Ok(Fenced::AlreadyApplied);
        }
        if *by == fence {
            return Err(LedgerError::Invalid(format!("step {seq} was recorded with another content")));
        }
        steps.truncate(seq);
    }
    steps.push((fence, step.clone()));
    tx.task(task)?.run.spent = step.spent;
    if tx.rows.jobs[index].job.counters.crashes_since_step > 0 {
        let job = tx.rows.jobs[index].job.clone().step(fence);
        tx.store(index, job.map_err(|e| LedgerError::Unreadable(e.to_string()))?);
    }
    tx.append(
        task,
        EventBody::Step {
            seq: step.seq,
            kind: step.kind.name().to_owned(),
            phase: step.phase.clone(),
            title: step.title.clone(),
            calls: step.spent.calls,
            generated_tokens: step.spent.generated_tokens,
            prompt_tokens: step.spent.prompt_tokens,
            took_ms: step.took_ms,
        },
    )?;
    Ok(Fenced::Applied)
}

/// The lease was ended by its own holder; this is its last step come twice, or a step too late.
fn repeated(rows: &Rows, lease: &LeaseRef, step: &StepRecord) -> L<Fenced> {
    let task = task_of_run(rows, lease.job)?;
    let same = |(fence, known): &(_, StepRecord)| *fence == lease.fence && known == step;
    Ok(if rows.task(task)?.run.steps.iter().any(same) { Fenced::AlreadyApplied } else { Fenced::Stale })
}

pub(super) fn complete(tx: &mut Tx<'_>, lease: &LeaseRef, result: &RunResult) -> L<Fenced> {
    require_blobs(tx.rows, result.change.iter().map(|change| change.bundle))?;
    let index = match tx.held(lease) {
        Ok(index) => index,
        Err(fenced) => return Ok(fenced),
    };
    let task = task_of_run(tx.rows, lease.job)?;
    let cancelled = matches!(tx.rows.jobs[index].job.state, JobState::Cancelling { .. });
    let job = tx.rows.jobs[index].job.clone().complete(tx.fence_of(index, lease));
    tx.store(index, job.map_err(|e| LedgerError::Unreadable(e.to_string()))?);
    let row = tx.task(task)?;
    row.run.result = Some(result.clone());
    row.run.spent = result.spent;
    let level = result.change.as_ref().map(|change| level_name(change.proof.level).to_owned());
    tx.append(task, EventBody::RunEnded { outcome: result.outcome.name().to_owned(), level })?;
    if cancelled {
        publish_nothing(tx, task)?;
    } else if tx.bug != Some(Bug::TornHandOver) {
        want_what_follows(tx, task)?;
    }
    task::refresh(tx, task)?;
    Ok(Fenced::Applied)
}

/// What a finished Run asks for on the forge.
pub(super) fn want_what_follows(tx: &mut Tx<'_>, task: TaskId) -> L<()> {
    let row = tx.rows.task(task)?;
    let Some(result) = &row.run.result else { return Ok(()) };
    let kinds = wanted_effects(row.audience(), Ended::With(&result.outcome));
    effect::want(tx, task, &kinds).map(|_| ())
}

/// The Run came in too late to be cancelled, its publication has not: the result is kept, nothing is written. Whoever still tells of
/// its progress does not decide how it ended.
fn publish_nothing(tx: &mut Tx<'_>, task: TaskId) -> L<()> {
    effect::cancel_publication(tx, task)?;
    if tx.rows.publish_job(task).is_some_and(|row| row.job.state == JobState::Cancelled) {
        return Ok(());
    }
    let job = Job::queued(JobId::from_uuid(tx.ids.uuid()), JobKind::Publish);
    tx.insert_job(job.cancel().expect("a queued job can be cancelled"), task)
}

/// A comment for a Run that died without an outcome.
pub(super) fn publish_the_death(tx: &mut Tx<'_>, task: TaskId) -> L<()> {
    let kinds = wanted_effects(tx.rows.task(task)?.audience(), Ended::Died);
    if kinds.is_empty() {
        return Ok(());
    }
    effect::want(tx, task, &kinds).map(|_| ())
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::Unproven => "unproven",
        Level::Weak => "weak",
        Level::Proven => "proven",
    }
}
