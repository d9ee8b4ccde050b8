//! Wanted writes to the forge and the publish job that brings them about: one intent before each, one receipt after.

use fettle_app::ports::ledger::{Fenced, L, LedgerError};
use fettle_domain::effect::{Effect, EffectKind, EffectState, Intent, Receipt};
use fettle_domain::event::EventBody;
use fettle_domain::id::{EffectId, JobId, TaskId};
use fettle_domain::job::{Job, JobKind, JobState};
use fettle_domain::lease::{Fence, LeaseRef};
use fettle_domain::publication::{CANCELLED, owes_last_word};

use super::rows::Tx;
use super::task;
use crate::bug::Bug;

pub(super) fn want_effects(tx: &mut Tx<'_>, task: TaskId, kinds: &[EffectKind]) -> L<JobId> {
    tx.rows.task(task)?;
    task::may_become_active(tx.rows, task, JobKind::Publish)?;
    let job = want(tx, task, kinds)?;
    task::refresh(tx, task)?;
    Ok(job)
}

/// Wants `kinds` (a settled one again) and gives them to the Task's unfinished publish job or to a new one.
pub(super) fn want(tx: &mut Tx<'_>, task: TaskId, kinds: &[EffectKind]) -> L<JobId> {
    let unfinished = tx.rows.unfinished_publish_job(task);
    if let Some(index) = unfinished
        && let JobState::Cancelling { .. } = tx.rows.jobs[index].job.state
    {
        return Err(LedgerError::Invalid(format!("the publication of {task} is being cancelled")));
    }
    for kind in kinds {
        let id = EffectId::from_uuid(tx.ids.uuid());
        let effects = &mut tx.task(task)?.effects;
        match effects.iter_mut().find(|(effect, _)| effect.kind == *kind) {
            Some((effect, fence)) => {
                if let EffectState::Settled { receipt } = &effect.state {
                    effect.before = Some(receipt.clone());
                    effect.state = EffectState::Wanted;
                    *fence = None;
                }
            }
            None => effects.push((Effect::new(id, task, *kind, EffectState::Wanted), None)),
        }
        effects.sort_by_key(|(effect, _)| effect.kind);
    }
    if let Some(index) = unfinished {
        return Ok(tx.rows.jobs[index].job.id);
    }
    let id = JobId::from_uuid(tx.ids.uuid());
    tx.insert_job(Job::queued(id, JobKind::Publish), task, None)?;
    Ok(id)
}

pub(super) fn want_progress(tx: &mut Tx<'_>, task: TaskId) -> L<bool> {
    if !matches!(tx.rows.jobs[tx.rows.leading_job(task)?].job.state, JobState::Leased { .. }) {
        return Ok(false);
    }
    want(tx, task, &[EffectKind::Progress])?;
    Ok(true)
}

/// Who was told of the beginning is told that the Task was cancelled, once nobody publishes for it any more.
pub(super) fn want_last_word(tx: &mut Tx<'_>, task: TaskId) -> L<()> {
    let effects: Vec<_> = tx.rows.task(task)?.effects.iter().map(|(effect, _)| effect.clone()).collect();
    let owes = owes_last_word(&effects, tx.rows.newest_publish_job(task).map(|row| &row.job.state));
    if owes && tx.rows.unfinished_publish_job(task).is_none() {
        want(tx, task, &[EffectKind::Comment])?;
    }
    Ok(())
}

/// Cancels the unfinished publish job, if there is one, and withholds what it has not begun.
pub(super) fn cancel_publication(tx: &mut Tx<'_>, task: TaskId) -> L<()> {
    let Some(index) = tx.rows.unfinished_publish_job(task) else { return Ok(()) };
    if let Some(job) = tx.rows.jobs[index].job.clone().cancel() {
        tx.store(index, job);
    }
    for (effect, _) in &mut tx.task(task)?.effects {
        if effect.state == EffectState::Wanted {
            let withheld = || Receipt::Withheld { reason: CANCELLED.to_owned() };
            effect.state = EffectState::Settled { receipt: effect.before.take().unwrap_or_else(withheld) };
        }
    }
    Ok(())
}

/// The effect, and where the holder's job stands.
struct Found<'a> {
    effect: &'a mut Effect,
    wrote: &'a mut Option<Fence>,
    fence: Fence,
    cancelling: bool,
    task: TaskId,
}

fn find<'a>(tx: &'a mut Tx<'_>, lease: &LeaseRef, id: EffectId) -> L<Result<Found<'a>, Fenced>> {
    let index = match tx.held(lease) {
        Ok(index) => index,
        Err(fenced) => return Ok(Err(fenced)),
    };
    let fence = tx.fence_of(index, lease);
    let row = &tx.rows.jobs[index];
    let (task, cancelling) = (row.task, matches!(row.job.state, JobState::Cancelling { .. }));
    let found = tx.task(task)?.effects.iter_mut().find(|(effect, _)| effect.id == id);
    let (effect, wrote) = found.ok_or_else(|| LedgerError::Invalid(format!("{id} is not an effect of {task}")))?;
    Ok(Ok(Found { effect, wrote, fence, cancelling, task }))
}

pub(super) fn intend(tx: &mut Tx<'_>, lease: &LeaseRef, id: EffectId, intent: &Intent) -> L<Fenced> {
    let early = tx.bug == Some(Bug::ReceiptBeforeRequest);
    let found = match find(tx, lease, id)? {
        Ok(found) => found,
        Err(fenced) => return Ok(fenced),
    };
    let kind = found.effect.kind;
    if kind != intent.effect() {
        return Err(LedgerError::Invalid(format!("{id} is a {}", kind.name())));
    }
    match &found.effect.state {
        EffectState::Settled { .. } if found.cancelling => return Ok(Fenced::Stale),
        EffectState::Settled { .. } => return Err(LedgerError::Invalid(format!("{id} is settled"))),
        EffectState::Intended { intent: known } if *found.wrote == Some(found.fence) && known == intent => {
            return Ok(Fenced::AlreadyApplied);
        }
        EffectState::Intended { .. } | EffectState::Wanted => {}
    }
    found.effect.state = match intent {
        Intent::Push { branch, commit, .. } if early => {
            EffectState::Settled { receipt: Receipt::Pushed { branch: branch.clone(), commit: *commit } }
        }
        _ => EffectState::Intended { intent: intent.clone() },
    };
    *found.wrote = Some(found.fence);
    let task = found.task;
    tx.append(task, EventBody::EffectIntended { effect: kind.name().to_owned(), what: intent.told() })?;
    Ok(Fenced::Applied)
}

pub(super) fn settle(tx: &mut Tx<'_>, lease: &LeaseRef, id: EffectId, receipt: &Receipt) -> L<Fenced> {
    let found = match find(tx, lease, id)? {
        Ok(found) => found,
        Err(fenced) => return Ok(fenced),
    };
    let kind = found.effect.kind;
    if receipt.effect().is_some_and(|of| of != kind) {
        return Err(LedgerError::Invalid(format!("{id} is a {}", kind.name())));
    }
    match &found.effect.state {
        EffectState::Settled { receipt: known } if known == receipt => return Ok(Fenced::AlreadyApplied),
        EffectState::Settled { .. } => return Err(LedgerError::Invalid(format!("{id} is settled"))),
        EffectState::Wanted if !matches!(receipt, Receipt::Withheld { .. }) => {
            return Err(LedgerError::Invalid(format!("{id} has no intent")));
        }
        EffectState::Wanted | EffectState::Intended { .. } => {}
    }
    found.effect.state = EffectState::Settled { receipt: receipt.clone() };
    found.effect.before = None;
    *found.wrote = Some(found.fence);
    let (task, what, url) = (found.task, receipt.told(), receipt.url().map(str::to_owned));
    tx.append(task, EventBody::EffectSettled { effect: kind.name().to_owned(), what, url })?;
    Ok(Fenced::Applied)
}

pub(super) fn complete_publish(tx: &mut Tx<'_>, lease: &LeaseRef) -> L<Fenced> {
    let index = match tx.held(lease) {
        Ok(index) => index,
        Err(fenced) => return Ok(fenced),
    };
    let row = &tx.rows.jobs[index];
    let task = row.task;
    if row.job.kind != JobKind::Publish {
        return Err(LedgerError::Invalid(format!("{} is not a publish job", row.job.id)));
    }
    let effects = &tx.rows.task(task)?.effects;
    if let Some((open, _)) = effects.iter().find(|(effect, _)| matches!(effect.state, EffectState::Intended { .. })) {
        return Err(LedgerError::Invalid(format!("{} is intended and not settled", open.id)));
    }
    let more = effects.iter().any(|(effect, _)| effect.state == EffectState::Wanted);
    let (job, fence) = (row.job.clone(), tx.fence_of(index, lease));
    let job = if more { job.again(fence) } else { job.complete(fence) };
    tx.store(index, job.map_err(|e| LedgerError::Unreadable(e.to_string()))?);
    task::refresh(tx, task)?;
    Ok(Fenced::Applied)
}
