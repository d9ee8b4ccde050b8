//! Wanted writes to the forge and the publish job that brings them about: one intent before each, one receipt after.

use fettle_app::ports::ledger::{Fenced, L, LedgerError};
use fettle_domain::effect::{Effect, EffectKind, EffectState, Intent, Receipt};
use fettle_domain::event::EventBody;
use fettle_domain::id::{EffectId, JobId, TaskId};
use fettle_domain::job::{Job, JobKind, JobState};
use fettle_domain::lease::{Fence, LeaseRef};

use super::rows::Tx;
use super::task;
use crate::bug::Bug;

const CANCELLED: &str = "the Task was cancelled";

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
            Some((effect, fence)) if matches!(effect.state, EffectState::Settled { .. }) => {
                effect.state = EffectState::Wanted;
                *fence = None;
            }
            Some(_) => {}
            None => effects.push((Effect { id, task, kind: *kind, state: EffectState::Wanted }, None)),
        }
        effects.sort_by_key(|(effect, _)| effect.kind);
    }
    if let Some(index) = unfinished {
        return Ok(tx.rows.jobs[index].job.id);
    }
    let id = JobId::from_uuid(tx.ids.uuid());
    tx.insert_job(Job::queued(id, JobKind::Publish), task)?;
    Ok(id)
}

/// Cancels the unfinished publish job, if there is one, and withholds what it has not begun.
pub(super) fn cancel_publication(tx: &mut Tx<'_>, task: TaskId) -> L<()> {
    let Some(index) = tx.rows.unfinished_publish_job(task) else { return Ok(()) };
    if let Some(job) = tx.rows.jobs[index].job.clone().cancel() {
        tx.store(index, job);
    }
    for (effect, _) in &mut tx.task(task)?.effects {
        if effect.state == EffectState::Wanted {
            effect.state = EffectState::Settled { receipt: Receipt::Withheld { reason: CANCELLED.to_owned() } };
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
    if kind != kind_of_intent(intent) {
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
    tx.append(task, EventBody::EffectIntended { effect: kind.name().to_owned(), what: told(intent) })?;
    Ok(Fenced::Applied)
}

pub(super) fn settle(tx: &mut Tx<'_>, lease: &LeaseRef, id: EffectId, receipt: &Receipt) -> L<Fenced> {
    let found = match find(tx, lease, id)? {
        Ok(found) => found,
        Err(fenced) => return Ok(fenced),
    };
    let kind = found.effect.kind;
    if kind_of_receipt(receipt).is_some_and(|of| of != kind) {
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
    *found.wrote = Some(found.fence);
    let (task, (what, url)) = (found.task, seen(receipt));
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

fn kind_of_intent(intent: &Intent) -> EffectKind {
    match intent {
        Intent::Push { .. } => EffectKind::Push,
        Intent::PullRequest { .. } => EffectKind::PullRequest,
        Intent::Comment { .. } => EffectKind::Comment,
        Intent::Labels { .. } => EffectKind::Labels,
    }
}

fn kind_of_receipt(receipt: &Receipt) -> Option<EffectKind> {
    match receipt {
        Receipt::Pushed { .. } => Some(EffectKind::Push),
        Receipt::PullRequest { .. } => Some(EffectKind::PullRequest),
        Receipt::Comment { .. } => Some(EffectKind::Comment),
        Receipt::Labels => Some(EffectKind::Labels),
        Receipt::Withheld { .. } => None,
    }
}

fn told(intent: &Intent) -> String {
    match intent {
        Intent::Push { branch, commit, .. } => format!("push {} to {branch}", commit.short()),
        Intent::PullRequest { head, base, draft: true } => format!("draft pull request from {head} to {base}"),
        Intent::PullRequest { head, base, draft: false } => format!("pull request from {head} to {base}"),
        Intent::Comment { issue, .. } => format!("comment on #{issue}"),
        Intent::Labels { issue, .. } => format!("labels of #{issue}"),
    }
}

fn seen(receipt: &Receipt) -> (String, Option<String>) {
    match receipt {
        Receipt::Pushed { branch, commit } => (format!("{branch} is at {}", commit.short()), None),
        Receipt::PullRequest { number, url, draft: true } => {
            (format!("draft pull request #{number}"), Some(url.clone()))
        }
        Receipt::PullRequest { number, url, draft: false } => (format!("pull request #{number}"), Some(url.clone())),
        Receipt::Comment { id } => (format!("comment {id}"), None),
        Receipt::Labels => ("labels set".to_owned(), None),
        Receipt::Withheld { reason } => (format!("not written: {reason}"), None),
    }
}
