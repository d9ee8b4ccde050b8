//! Runs: their journal of steps, their result, and the publish job that follows.

use fettle_app::ports::ledger::{Fenced, L, LedgerError, RunPlan, RunStopped};
use fettle_domain::choice::{self, Follows, TO_BE_CHOSEN, has_patch, may_be_added, may_be_stopped};
use fettle_domain::effect::EffectKind;
use fettle_domain::event::EventBody;
use fettle_domain::id::{JobId, RunId, TaskId};
use fettle_domain::job::{Job, JobKind, JobState, Until};
use fettle_domain::lease::LeaseRef;
use fettle_domain::object::BlobId;
use fettle_domain::proof::Level;
use fettle_domain::publication::{Ended, wanted_effects};
use fettle_domain::run::RunResult;
use fettle_domain::step::{MAX_STEP_BODY_BYTES, StepBody, StepRecord};

use super::rows::{Rows, RunRow, Tx};
use super::{effect, job, task};
use crate::bug::Bug;

pub(super) fn require_blobs(rows: &Rows, ids: impl IntoIterator<Item = BlobId>) -> L<()> {
    match ids.into_iter().find(|id| !rows.blobs.contains_key(id)) {
        Some(id) => Err(LedgerError::Invalid(format!("blob {id} was not stored before it was named"))),
        None => Ok(()),
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
    let (task, nth) = tx.rows.run_of(lease.job)?;
    let fence = tx.fence_of(index, lease);
    let seq = usize::try_from(step.seq).unwrap_or(usize::MAX);
    let steps = &mut tx.task(task)?.runs[nth].steps;
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
    tx.task(task)?.runs[nth].spent = step.spent;
    if tx.rows.jobs[index].job.counters.crashes_since_step > 0 {
        let job = tx.rows.jobs[index].job.clone().step(fence);
        tx.store(index, job.map_err(|e| LedgerError::Unreadable(e.to_string()))?);
    }
    tx.append(
        task,
        EventBody::Step {
            ordinal: tx.rows.ordinal(lease.job)?,
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
    let (task, nth) = rows.run_of(lease.job)?;
    let same = |(fence, known): &(_, StepRecord)| *fence == lease.fence && known == step;
    Ok(if rows.task(task)?.runs[nth].steps.iter().any(same) { Fenced::AlreadyApplied } else { Fenced::Stale })
}

pub(super) fn complete(tx: &mut Tx<'_>, lease: &LeaseRef, result: &RunResult) -> L<Fenced> {
    require_blobs(tx.rows, result.change.iter().map(|change| change.bundle))?;
    let index = match tx.held(lease) {
        Ok(index) => index,
        Err(fenced) => return Ok(fenced),
    };
    let (task, nth) = tx.rows.run_of(lease.job)?;
    let stopping = matches!(tx.rows.jobs[index].job.state, JobState::Cancelling { .. });
    let cancelled = stopping && tx.rows.task(task)?.cancelled_by.is_some();
    let (job, fence) = (tx.rows.jobs[index].job.clone(), tx.fence_of(index, lease));
    let job = if stopping && !cancelled {
        job.complete_unwanted(fence)
    } else if !cancelled && tx.rows.task(task)?.runs.len() > 1 && has_patch(&result.outcome) {
        job.defer(fence, Until::Event, TO_BE_CHOSEN)
    } else {
        job.complete(fence)
    };
    tx.store(index, job.map_err(|e| LedgerError::Unreadable(e.to_string()))?);
    let run = &mut tx.task(task)?.runs[nth];
    run.result = Some(result.clone());
    run.spent = result.spent;
    let level = result.change.as_ref().map(|change| level_name(change.proof.level).to_owned());
    let ordinal = tx.rows.ordinal(lease.job)?;
    tx.append(task, EventBody::RunEnded { ordinal, outcome: result.outcome.name().to_owned(), level })?;
    if cancelled {
        publish_nothing(tx, task)?;
    } else if tx.bug != Some(Bug::TornHandOver) {
        want_what_follows(tx, task)?;
    }
    task::refresh(tx, task)?;
    Ok(Fenced::Applied)
}

/// Whether a Run has nothing more to do: its job is final, or waits with a patch.
fn has_ended(rows: &Rows, run: &RunRow) -> L<bool> {
    let state = &rows.jobs[rows.job(run.job)?].job.state;
    Ok(state.is_final() || (matches!(state, JobState::Waiting { .. }) && run.result.is_some()))
}

/// What the end of a Run asks for on the forge, once it is the end of all.
pub(super) fn want_what_follows(tx: &mut Tx<'_>, task: TaskId) -> L<()> {
    let row = tx.rows.task(task)?;
    if row.cancelled_by.is_some() {
        return Ok(());
    }
    let (mut counted, mut ends) = (Vec::new(), Vec::new());
    for (nth, run) in row.runs.iter().enumerate() {
        if !has_ended(tx.rows, run)? {
            return Ok(());
        }
        if tx.rows.jobs[tx.rows.job(run.job)?].job.state != JobState::Cancelled {
            counted.push(nth);
            ends.push(run.result.as_ref().map(|result| &result.outcome));
        }
    }
    match choice::follows(&ends) {
        Follows::Publish(nth) => publish(tx, task, counted[nth]),
        Follows::Choice(first) => {
            let kinds = wanted_effects(row.audience(), Ended::ToBeChosen);
            tx.task(task)?.leading = counted[first];
            if kinds.is_empty() { Ok(()) } else { effect::want(tx, task, &kinds).map(|_| ()) }
        }
    }
}

/// This Run's end is the Task's.
fn publish(tx: &mut Tx<'_>, task: TaskId, nth: usize) -> L<()> {
    tx.task(task)?.leading = nth;
    let row = tx.rows.task(task)?;
    let jobs: Vec<_> = row.runs.iter().filter(|run| run.result.is_some()).map(|run| run.job).collect();
    for job in jobs {
        let index = tx.rows.job(job)?;
        if let Some(job) = tx.rows.jobs[index].job.clone().settle() {
            tx.store(index, job);
        }
    }
    let row = tx.rows.task(task)?;
    let ended = row.leading().result.as_ref().map_or(Ended::Died, |result| Ended::With(&result.outcome));
    let kinds = wanted_effects(row.audience(), ended);
    if ended == Ended::Died && kinds.is_empty() {
        return Ok(());
    }
    effect::want(tx, task, &kinds).map(|_| ())
}

/// Further Runs for a Task nothing of which is published or on its way.
pub(super) fn add(tx: &mut Tx<'_>, task: TaskId, by: &str, plans: &[RunPlan]) -> L<()> {
    let row = tx.rows.task(task)?;
    let published = row.effects.iter().any(|(effect, _)| effect.kind == EffectKind::Push);
    may_be_added(row.mode, row.state, row.cancelled_by.is_some(), published, row.runs.len(), plans.len())
        .map_err(|why| LedgerError::Invalid(format!("{task} {why}")))?;
    task::may_become_active(tx.rows, task, JobKind::Publish)?;
    insert(tx, task, by, plans)?;
    task::refresh(tx, task)
}

pub(super) fn insert(tx: &mut Tx<'_>, task: TaskId, by: &str, plans: &[RunPlan]) -> L<()> {
    for plan in plans {
        tx.task(task)?.runs.push(RunRow::new(plan));
        tx.insert_job(Job::queued(plan.job, JobKind::Run), task, plan.model.as_deref())?;
    }
    let models = plans.iter().map(|plan| plan.model.clone()).collect();
    tx.append(task, EventBody::RunsAdded { by: by.to_owned(), models })
}

/// Publishes the patch of this one.
pub(super) fn choose(tx: &mut Tx<'_>, task: TaskId, run: RunId, draft: bool, by: &str) -> L<()> {
    let row = tx.rows.task(task)?;
    let nth = row.runs.iter().position(|row| row.id == run).ok_or_else(|| LedgerError::NotFound(run.to_string()))?;
    for other in &row.runs {
        if !has_ended(tx.rows, other)? {
            return Err(LedgerError::Invalid(format!("{} has not ended", other.id)));
        }
    }
    let state = &tx.rows.jobs[tx.rows.job(row.runs[nth].job)?].job.state;
    if !matches!(state, JobState::Waiting { .. }) {
        return Err(LedgerError::Invalid(format!("{run} has no patch that waits to be chosen")));
    }
    let ordinal = u16::try_from(nth + 1).unwrap_or(u16::MAX);
    tx.append(task, EventBody::RunChosen { by: by.to_owned(), ordinal, draft })?;
    tx.task(task)?.as_draft = draft;
    publish(tx, task, nth)?;
    task::refresh(tx, task)
}

/// Stops one of several; the others go on.
pub(super) fn stop(tx: &mut Tx<'_>, task: TaskId, run: RunId, by: &str) -> L<RunStopped> {
    let row = tx.rows.task(task)?;
    let nth = row.runs.iter().position(|row| row.id == run).ok_or_else(|| LedgerError::NotFound(run.to_string()))?;
    let jobs: Vec<usize> = row.runs.iter().map(|run| tx.rows.job(run.job)).collect::<L<_>>()?;
    let states: Vec<&JobState> = jobs.iter().map(|index| &tx.rows.jobs[*index].job.state).collect();
    may_be_stopped(&states, nth, has_ended(tx.rows, &row.runs[nth])?)
        .map_err(|why| LedgerError::Invalid(format!("{run} {why}")))?;
    let index = jobs[nth];
    let Some(stopped) = tx.rows.jobs[index].job.clone().cancel() else { return Ok(RunStopped::Stopping) };
    let at_once = stopped.state == JobState::Cancelled;
    tx.store(index, stopped);
    let ordinal = u16::try_from(nth + 1).unwrap_or(u16::MAX);
    tx.append(task, EventBody::RunStopped { by: by.to_owned(), ordinal })?;
    job::after_end(tx, index)?;
    Ok(if at_once { RunStopped::AtOnce } else { RunStopped::Stopping })
}

/// The Run came in too late to be cancelled, its publication has not: the result is kept, nothing is written. Whoever still tells of
/// its progress does not decide how it ended.
fn publish_nothing(tx: &mut Tx<'_>, task: TaskId) -> L<()> {
    effect::cancel_publication(tx, task)?;
    if tx.rows.publish_job(task).is_some_and(|row| row.job.state == JobState::Cancelled) {
        return Ok(());
    }
    let job = Job::queued(JobId::from_uuid(tx.ids.uuid()), JobKind::Publish);
    tx.insert_job(job.cancel().expect("a queued job can be cancelled"), task, None)
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::Unproven => "unproven",
        Level::Weak => "weak",
        Level::Proven => "proven",
    }
}
