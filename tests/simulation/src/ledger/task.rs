//! Tasks: opened once per intent, one active per issue, shown in the state their jobs fold to.

use fettle_app::ports::ledger::{CancelAnswer, L, LedgerError, Opened, Retried, RunPlan, TaskPlan};
use fettle_domain::effect::{EffectState, Receipt};
use fettle_domain::event::EventBody;
use fettle_domain::id::{CorrelationId, DeliveryId, JobId, RunId, TaskId};
use fettle_domain::job::{Job, JobKind, JobState};
use fettle_domain::task::TaskState;

use super::rows::{JobRow, Message, Rows, RunRow, TaskRow, Tx};
use super::{effect, job, run};

pub(super) fn open_and_close(tx: &mut Tx<'_>, delivery: Option<DeliveryId>, plan: &TaskPlan) -> L<Opened> {
    if let Some(id) = delivery
        && !tx.rows.deliveries.iter().any(|row| row.delivery.id == id)
    {
        return Err(LedgerError::NotFound(id.to_string()));
    }
    let opened = open(tx, plan)?;
    if let Some(id) = delivery {
        let verdict = match &opened {
            Opened::New { task, .. } => format!("opened {task}"),
            Opened::Joined { task } => format!("joined {task}"),
            Opened::Duplicate { task } => format!("duplicate of {task}"),
        };
        close_delivery(tx, id, &verdict)?;
    }
    Ok(opened)
}

/// The first verdict stays.
pub(super) fn close_delivery(tx: &mut Tx<'_>, id: DeliveryId, verdict: &str) -> L<()> {
    let row = tx.rows.deliveries.iter_mut().find(|row| row.delivery.id == id);
    let row = row.ok_or_else(|| LedgerError::NotFound(id.to_string()))?;
    row.verdict.get_or_insert_with(|| verdict.to_owned());
    Ok(())
}

fn open(tx: &mut Tx<'_>, plan: &TaskPlan) -> L<Opened> {
    if let Some(task) = tx.rows.intents.get(&plan.intent) {
        return Ok(Opened::Duplicate { task: *task });
    }
    let place = plan.repo.as_ref().map(|repo| repo.forge_id).zip(plan.issue.number);
    let mut generation = 1;
    if let Some((repo, issue)) = place {
        if let Some(task) = tx.rows.active(repo, issue) {
            join(tx, task, plan)?;
            return Ok(Opened::Joined { task });
        }
        generation += earlier(tx.rows, repo, issue);
    }
    insert(tx, plan, generation)?;
    Ok(Opened::New { task: plan.id, generation })
}

fn earlier(rows: &Rows, repo: u64, issue: u64) -> u32 {
    let count = rows.tasks.values().filter(|task| task.place() == Some((repo, issue))).count();
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn join(tx: &mut Tx<'_>, task: TaskId, plan: &TaskPlan) -> L<()> {
    tx.rows.intents.insert(plan.intent.clone(), task);
    tx.append(task, EventBody::TaskJoined { by: plan.actor.clone(), what: plan.trigger.clone() })?;
    let text = plan.said.clone().unwrap_or_else(|| format!("asked for this again ({})", plan.trigger));
    keep_message(tx, task, &plan.actor, &text)
}

pub(super) fn post_message(tx: &mut Tx<'_>, task: TaskId, by: &str, text: &str) -> L<()> {
    tx.append(task, EventBody::TaskJoined { by: by.to_owned(), what: "message".to_owned() })?;
    keep_message(tx, task, by, text)
}

fn keep_message(tx: &mut Tx<'_>, task: TaskId, by: &str, text: &str) -> L<()> {
    let message = Message { author: by.to_owned(), at: tx.now, content: text.to_owned() };
    tx.task(task)?.messages.push(message);
    job::wake(tx, task);
    refresh(tx, task)
}

fn insert(tx: &mut Tx<'_>, plan: &TaskPlan, generation: u32) -> L<()> {
    let run = RunPlan { run: plan.run, job: plan.job, model: plan.model.clone(), instruction: None };
    let row = TaskRow {
        id: plan.id,
        correlation: plan.correlation,
        mode: plan.mode,
        repo: plan.repo.clone(),
        issue: plan.issue.clone(),
        model: plan.model.clone(),
        needs: plan.needs.clone(),
        base: plan.base.clone(),
        actor: plan.actor.clone(),
        trigger: plan.trigger.clone(),
        generation,
        state: TaskState::Queued,
        note: None,
        created_at: plan.at,
        updated_at: plan.at,
        ended: false,
        event_seq: 0,
        cancelled_by: None,
        runs: vec![RunRow::new(&run)],
        leading: 0,
        as_draft: false,
        effects: Vec::new(),
        messages: Vec::new(),
    };
    tx.rows.tasks.insert(plan.id, row);
    tx.rows.intents.insert(plan.intent.clone(), plan.id);
    tx.insert_job(Job::queued(plan.job, JobKind::Run), plan.id, plan.model.as_deref())?;
    let body = EventBody::TaskCreated {
        title: plan.issue.title.clone(),
        mode: plan.mode.name().to_owned(),
        trigger: plan.trigger.clone(),
    };
    tx.append(plan.id, body)?;
    if plan.further.is_empty() { Ok(()) } else { run::insert(tx, plan.id, &plan.actor, &plan.further) }
}

fn note_of(row: &JobRow) -> Option<String> {
    match &row.job.state {
        JobState::Waiting { reason } | JobState::Dead { reason } => Some(reason.clone()),
        JobState::Delayed { .. } => row.last_failure.clone(),
        JobState::Queued
        | JobState::Leased { .. }
        | JobState::Cancelling { .. }
        | JobState::Done
        | JobState::Cancelled => None,
    }
}

fn note(rows: &Rows, task: TaskId) -> L<Option<String>> {
    let run = &rows.jobs[rows.run_job(task)?];
    Ok(match rows.publish_job(task) {
        Some(publish) if run.job.state.is_final() => note_of(publish).or_else(|| note_of(run)),
        _ => note_of(run),
    })
}

/// Folds the Task's jobs again, keeps the outcome in its row, and tells when it has ended.
pub(super) fn refresh(tx: &mut Tx<'_>, task: TaskId) -> L<()> {
    let (state, note, now) = (tx.rows.fold(task)?, note(tx.rows, task)?, tx.now);
    if state == TaskState::Cancelled {
        effect::want_last_word(tx, task)?;
    }
    let row = tx.task(task)?;
    let was_ended = row.ended;
    if state == row.state && note == row.note && state.is_final() == was_ended {
        return Ok(());
    }
    row.state = state;
    row.note = note;
    row.updated_at = row.updated_at.max(now);
    row.ended = state.is_final();
    match state {
        TaskState::Cancelled if !was_ended => tx.append(task, EventBody::TaskCancelled),
        TaskState::Done if !was_ended => {
            let outcome = row.leading().result.as_ref().map_or("failed", |result| result.outcome.name()).to_owned();
            let pull_request = row.effects.iter().find_map(|(effect, _)| match effect.state {
                EffectState::Settled { receipt: Receipt::PullRequest { number, .. } } => Some(number),
                _ => None,
            });
            tx.append(task, EventBody::TaskDone { outcome, pull_request })
        }
        _ => Ok(()),
    }
}

pub(super) fn may_become_active(rows: &Rows, task: TaskId, kind: JobKind) -> L<()> {
    let row = rows.task(task)?;
    if kind == JobKind::Run && !row.ended {
        return Err(LedgerError::Invalid(format!("{task} is still {}", row.state.name())));
    }
    if let Some((repo, issue)) = row.place()
        && let Some(other) = rows.active(repo, issue)
        && other != task
    {
        return Err(LedgerError::Invalid(format!("{other} is already at work on issue #{issue}")));
    }
    Ok(())
}

pub(super) fn cancel(tx: &mut Tx<'_>, task: TaskId, by: &str) -> L<CancelAnswer> {
    let row = tx.task(task)?;
    if row.state.is_final() {
        return Ok(CancelAnswer::TooLate { state: row.state });
    }
    if row.cancelled_by.is_none() {
        row.cancelled_by = Some(by.to_owned());
        tx.append(task, EventBody::CancelRequested { by: by.to_owned() })?;
    }
    job::cancel_runs(tx, task)?;
    refresh(tx, task)?;
    let state = tx.task(task)?.state;
    Ok(if state == TaskState::Cancelled { CancelAnswer::Cancelled } else { CancelAnswer::Cancelling })
}

pub(super) fn retry(tx: &mut Tx<'_>, task: TaskId, by: &str) -> L<Retried> {
    let row = tx.rows.task(task)?;
    if !row.state.is_final() {
        return Err(LedgerError::Invalid(format!("{task} is still {}; cancel it first", row.state.name())));
    }
    if row.state == TaskState::Cancelled {
        let row = row.clone();
        return open_next(tx, row, by);
    }
    let run = &tx.rows.jobs[tx.rows.run_job(task)?];
    let dead = [Some(run), tx.rows.publish_job(task)]
        .into_iter()
        .flatten()
        .find(|row| matches!(row.job.state, JobState::Dead { .. }));
    if let Some(dead) = dead {
        let id = dead.job.id;
        job::redrive(tx, id, by)?;
        return Ok(Retried { task, new: false });
    }
    let row = row.clone();
    open_next(tx, row, by)
}

/// A finished Task stays as it is; the next one begins anew, on a new branch.
fn open_next(tx: &mut Tx<'_>, row: TaskRow, by: &str) -> L<Retried> {
    may_become_active(tx.rows, row.id, JobKind::Run)?;
    let generation = match row.place() {
        Some((repo, issue)) => 1 + earlier(tx.rows, repo, issue),
        None => row.generation + 1,
    };
    let further = row.runs[1..].iter().map(|run| RunPlan {
        run: RunId::from_uuid(tx.ids.uuid()),
        job: JobId::from_uuid(tx.ids.uuid()),
        model: run.model.clone(),
        instruction: run.instruction.clone(),
    });
    let further = further.collect();
    let plan = TaskPlan {
        id: TaskId::from_uuid(tx.ids.uuid()),
        run: RunId::from_uuid(tx.ids.uuid()),
        job: JobId::from_uuid(tx.ids.uuid()),
        correlation: CorrelationId::from_uuid(tx.ids.uuid()),
        intent: format!("retry:{}:{}", row.id, tx.ids.uuid().simple()),
        mode: row.mode,
        repo: row.repo,
        issue: row.issue,
        said: None,
        model: row.model,
        needs: row.needs,
        base: row.base,
        actor: by.to_owned(),
        trigger: row.trigger,
        at: tx.now,
        further,
    };
    insert(tx, &plan, generation)?;
    Ok(Retried { task: plan.id, new: true })
}
