//! Tasks: opened once per intent, one active per issue, shown in the state their jobs fold to.

use std::str::FromStr;

use fettle_app::ports::ledger::{CancelAnswer, L, LedgerError, Opened, Retried, TaskPlan};
use fettle_domain::effect::{EffectState, Receipt};
use fettle_domain::event::EventBody;
use fettle_domain::id::{CorrelationId, DeliveryId, JobId, RunId, TaskId};
use fettle_domain::job::{Job, JobKind, JobState};
use fettle_domain::publication::Audience;
use fettle_domain::run::RunResult;
use fettle_domain::task::{Mode, TaskState};
use fettle_domain::turn::Place;
use rusqlite::params;
use uuid::Uuid;

use crate::error::unreadable;
use crate::job::{self, JobRow};
use crate::sql::{Sql as _, first};
use crate::stored::{self, Subject};
use crate::writer::{Tx, Verb};
use crate::{delivery, effect, event, lane, message, run};

/// A Task's row.
pub(crate) struct TaskRow {
    pub(crate) correlation: CorrelationId,
    pub(crate) mode: Mode,
    pub(crate) generation: u32,
    pub(crate) trigger: String,
    pub(crate) state: TaskState,
    pub(crate) note: Option<String>,
    pub(crate) ended: bool,
    pub(crate) subject: Subject,
}

impl TaskRow {
    pub(crate) fn audience(&self) -> Audience {
        Audience {
            mode: self.mode,
            has_repo: self.subject.repo.is_some(),
            has_issue: self.subject.issue.number.is_some(),
        }
    }

    /// Where a job of this Task stands in line.
    pub(crate) fn place_of(&self, kind: JobKind) -> Place {
        lane::place(kind, &self.subject, &self.trigger)
    }

    /// What at most one active Task may have.
    fn place(&self) -> Option<(u64, u64)> {
        Some((self.subject.repo.as_ref()?.forge_id, self.subject.issue.number?))
    }
}

pub(crate) fn state_of(text: &str) -> L<TaskState> {
    [
        TaskState::Queued,
        TaskState::Running,
        TaskState::Waiting,
        TaskState::Publishing,
        TaskState::Done,
        TaskState::Cancelled,
    ]
    .into_iter()
    .find(|state| state.name() == text)
    .ok_or_else(|| unreadable(format!("unknown task state `{text}`")))
}

pub(crate) fn get(tx: &mut Tx<'_>, id: TaskId) -> L<TaskRow> {
    let uuid = id.as_uuid();
    type Row = (Uuid, String, i64, String, String, Option<String>, Option<i64>, String);
    let row: Option<Row> = tx.conn.maybe(
        "SELECT correlation_id, mode, generation, trigger_kind, state, note, ended_at, subject
           FROM task WHERE id = ?",
        params![uuid],
        |row| row.try_into(),
    )?;
    let (correlation, mode, generation, trigger, state, note, ended_at, subject) =
        row.ok_or_else(|| LedgerError::NotFound(id.to_string()))?;
    Ok(TaskRow {
        correlation: CorrelationId::from_uuid(correlation),
        mode: Mode::from_str(&mode).map_err(unreadable)?,
        generation: u32::try_from(generation).map_err(unreadable)?,
        trigger,
        state: state_of(&state)?,
        note,
        ended: ended_at.is_some(),
        subject: stored::read(&subject)?,
    })
}

pub(crate) struct Open {
    pub(crate) delivery: Option<DeliveryId>,
    pub(crate) plan: TaskPlan,
}

impl Verb for Open {
    type Out = Opened;

    fn apply(&self, tx: &mut Tx<'_>) -> L<Opened> {
        let opened = open(tx, &self.plan)?;
        if let Some(delivery) = self.delivery {
            let verdict = match &opened {
                Opened::New { task, .. } => format!("opened {task}"),
                Opened::Joined { task } => format!("joined {task}"),
                Opened::Duplicate { task } => format!("duplicate of {task}"),
            };
            delivery::close(tx, delivery, &verdict)?;
        }
        Ok(opened)
    }
}

fn open(tx: &mut Tx<'_>, plan: &TaskPlan) -> L<Opened> {
    if let Some(task) = of_intent(tx, &plan.intent)? {
        return Ok(Opened::Duplicate { task });
    }
    let place = plan.repo.as_ref().map(|repo| repo.forge_id).zip(plan.issue.number);
    let mut generation = 1;
    if let Some((repo, issue)) = place {
        if let Some(task) = active(tx, repo, issue)? {
            join(tx, task, plan)?;
            return Ok(Opened::Joined { task });
        }
        generation += earlier(tx, repo, issue)?;
    }
    insert(tx, plan, generation)?;
    Ok(Opened::New { task: plan.id, generation })
}

fn of_intent(tx: &mut Tx<'_>, intent: &str) -> L<Option<TaskId>> {
    let task = tx.conn.maybe("SELECT task_id FROM intent WHERE key = ?", params![intent], first)?;
    Ok(task.map(TaskId::from_uuid))
}

fn active(tx: &mut Tx<'_>, repo: u64, issue: u64) -> L<Option<TaskId>> {
    let (repo, issue) = (number(repo)?, number(issue)?);
    let task = tx.conn.maybe(
        "SELECT id FROM task WHERE repo_forge_id = ? AND issue_number = ? AND ended_at IS NULL",
        params![repo, issue],
        first,
    )?;
    Ok(task.map(TaskId::from_uuid))
}

fn earlier(tx: &mut Tx<'_>, repo: u64, issue: u64) -> L<u32> {
    let (repo, issue) = (number(repo)?, number(issue)?);
    let count: i64 = tx.conn.one(
        "SELECT count(*) FROM task WHERE repo_forge_id = ? AND issue_number = ?",
        params![repo, issue],
        first,
    )?;
    u32::try_from(count).map_err(unreadable)
}

/// Numbers of forges and issues, as SQLite's signed integers.
pub(crate) fn number(value: u64) -> L<i64> {
    i64::try_from(value).map_err(|_| LedgerError::Invalid(format!("{value} is too large a number")))
}

/// The trigger becomes a message to the Task that is at work on the issue.
fn join(tx: &mut Tx<'_>, task: TaskId, plan: &TaskPlan) -> L<()> {
    remember(tx, &plan.intent, task)?;
    let what = plan.trigger.clone();
    event::append(tx, task, &EventBody::TaskJoined { by: plan.actor.clone(), what })?;
    let text = plan.said.clone().unwrap_or_else(|| format!("asked for this again ({})", plan.trigger));
    message::post(tx, task, &plan.actor, &text)
}

fn remember(tx: &mut Tx<'_>, intent: &str, task: TaskId) -> L<()> {
    let task = task.as_uuid();
    tx.conn.run("INSERT INTO intent (key, task_id) VALUES (?, ?)", params![intent, task])?;
    Ok(())
}

fn insert(tx: &mut Tx<'_>, plan: &TaskPlan, generation: u32) -> L<()> {
    let subject = Subject {
        repo: plan.repo.clone(),
        issue: plan.issue.clone(),
        model: plan.model.clone(),
        base: plan.base.clone(),
        needs: plan.needs.clone(),
    };
    let repo = plan.repo.as_ref().map(|repo| number(repo.forge_id)).transpose()?;
    let issue = plan.issue.number.map(number).transpose()?;
    let installation = plan.repo.as_ref().and_then(|repo| repo.installation).map(number).transpose()?;
    let (id, correlation, mode) = (plan.id.as_uuid(), plan.correlation.as_uuid(), plan.mode.name());
    let place = lane::place(JobKind::Run, &subject, &plan.trigger);
    let (state, at, subject) = (TaskState::Queued.name(), plan.at.as_microsecond(), stored::write(&subject)?);
    tx.conn.run(
        "INSERT INTO task (id, correlation_id, mode, repo_forge_id, issue_number, installation, generation, actor,
                           trigger_kind, state, event_seq, created_at, updated_at, subject)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?)",
        params![
            id,
            correlation,
            mode,
            repo,
            issue,
            installation,
            generation,
            plan.actor,
            plan.trigger,
            state,
            at,
            at,
            subject
        ],
    )?;
    remember(tx, &plan.intent, plan.id)?;
    job::insert(tx, &Job::queued(plan.job, JobKind::Run), plan.id, &place)?;
    run::insert(tx, plan.run, plan.id, plan.job)?;
    let body = EventBody::TaskCreated {
        title: plan.issue.title.clone(),
        mode: plan.mode.name().to_owned(),
        trigger: plan.trigger.clone(),
    };
    event::append(tx, plan.id, &body)
}

/// A Task's jobs and result: what its state folds from.
pub(crate) struct Parts {
    pub(crate) run: JobRow,
    /// One that was cancelled, else the newest.
    pub(crate) publish: Option<JobRow>,
    pub(crate) result: Option<RunResult>,
}

pub(crate) fn parts(tx: &mut Tx<'_>, task: TaskId) -> L<Parts> {
    let uuid = task.as_uuid();
    let row: Option<(Uuid, Option<String>, Option<Uuid>)> = tx.conn.maybe(
        "SELECT run.job_id AS run_job, run.result,
                  coalesce((SELECT job.id FROM job WHERE job.task_id = run.task_id AND job.kind = 'publish'
                            AND job.state = 'cancelled' ORDER BY job.seq DESC LIMIT 1),
                           (SELECT job.id FROM job WHERE job.task_id = run.task_id AND job.kind = 'publish'
                            ORDER BY job.seq DESC LIMIT 1)) AS publish_job
           FROM run WHERE run.task_id = ?",
        params![uuid],
        |row| row.try_into(),
    )?;
    let (run, result, publish) = row.ok_or_else(|| LedgerError::NotFound(task.to_string()))?;
    Ok(Parts {
        run: job::get(tx.conn, JobId::from_uuid(run))?,
        publish: publish.map(|id| job::get(tx.conn, JobId::from_uuid(id))).transpose()?,
        result: result.as_deref().map(stored::read).transpose()?,
    })
}

impl Parts {
    pub(crate) fn state(&self) -> TaskState {
        TaskState::fold(&self.run.job.state, self.publish.as_ref().map(|row| &row.job.state))
    }

    /// Why it waits or failed, when it does.
    fn note(&self) -> Option<String> {
        let run = note_of(&self.run);
        match &self.publish {
            Some(publish) if self.run.job.state.is_final() => note_of(publish).or(run),
            _ => run,
        }
    }
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

/// Folds the Task's jobs again, keeps the outcome in its row, and tells when it has ended.
pub(crate) fn refresh(tx: &mut Tx<'_>, task: TaskId) -> L<()> {
    let before = get(tx, task)?;
    let parts = parts(tx, task)?;
    let (state, note) = (parts.state(), parts.note());
    if state == TaskState::Cancelled {
        effect::want_last_word(tx, task)?;
    }
    if state == before.state && note == before.note && state.is_final() == before.ended {
        return Ok(());
    }
    let (name, now, ended, id) = (state.name(), tx.now.as_microsecond(), state.is_final(), task.as_uuid());
    tx.conn.run(
        "UPDATE task SET state = ?1, note = ?2, updated_at = max(updated_at, ?3),
                ended_at = CASE WHEN ?4 THEN coalesce(ended_at, ?3) END
         WHERE id = ?5",
        params![name, note, now, ended, id],
    )?;
    match state {
        TaskState::Cancelled if !before.ended => event::append(tx, task, &EventBody::TaskCancelled),
        TaskState::Done if !before.ended => {
            let outcome = parts.result.as_ref().map_or("failed", |result| result.outcome.name()).to_owned();
            let pull_request = pull_request(tx, task)?;
            event::append(tx, task, &EventBody::TaskDone { outcome, pull_request })
        }
        _ => Ok(()),
    }
}

fn pull_request(tx: &mut Tx<'_>, task: TaskId) -> L<Option<u64>> {
    let effects = effect::list(tx.conn, task)?;
    Ok(effects.into_iter().find_map(|effect| match effect.state {
        EffectState::Settled { receipt: Receipt::PullRequest { number, .. } } => Some(number),
        _ => None,
    }))
}

/// Refuses to make an ended Task active beside another one of its issue, and to redrive a run that is still published.
pub(crate) fn may_become_active(tx: &mut Tx<'_>, task: TaskId, kind: JobKind) -> L<()> {
    let row = get(tx, task)?;
    if kind == JobKind::Run && !row.ended {
        return Err(LedgerError::Invalid(format!("{task} is still {}", row.state.name())));
    }
    if let Some((repo, issue)) = row.place()
        && let Some(other) = active(tx, repo, issue)?
        && other != task
    {
        return Err(LedgerError::Invalid(format!("{other} is already at work on issue #{issue}")));
    }
    Ok(())
}

pub(crate) struct Cancel {
    pub(crate) task: TaskId,
    pub(crate) by: String,
}

impl Verb for Cancel {
    type Out = CancelAnswer;

    fn apply(&self, tx: &mut Tx<'_>) -> L<CancelAnswer> {
        let before = get(tx, self.task)?;
        if before.state.is_final() {
            return Ok(CancelAnswer::TooLate { state: before.state });
        }
        let (by, id) = (self.by.as_str(), self.task.as_uuid());
        let asked =
            tx.conn.run("UPDATE task SET cancelled_by = ? WHERE id = ? AND cancelled_by IS NULL", params![by, id])?;
        if asked > 0 {
            event::append(tx, self.task, &EventBody::CancelRequested { by: self.by.clone() })?;
        }
        let mut run = parts(tx, self.task)?.run;
        if let Some(cancelled) = run.job.clone().cancel() {
            run.job = cancelled;
            job::store(tx, &run)?;
        }
        effect::cancel_publication(tx, self.task)?;
        refresh(tx, self.task)?;
        let after = get(tx, self.task)?.state;
        Ok(if after == TaskState::Cancelled { CancelAnswer::Cancelled } else { CancelAnswer::Cancelling })
    }
}

pub(crate) fn cancel_reason(tx: &mut Tx<'_>, task: TaskId) -> L<String> {
    let id = task.as_uuid();
    let by: Option<String> = tx.conn.one("SELECT cancelled_by FROM task WHERE id = ?", params![id], first)?;
    let by = by.ok_or_else(|| unreadable(format!("{task} is being cancelled by nobody")))?;
    Ok(format!("cancelled by {by}"))
}

pub(crate) struct Retry {
    pub(crate) task: TaskId,
    pub(crate) by: String,
}

impl Verb for Retry {
    type Out = Retried;

    fn apply(&self, tx: &mut Tx<'_>) -> L<Retried> {
        let row = get(tx, self.task)?;
        if !row.state.is_final() {
            return Err(LedgerError::Invalid(format!("{} is still {}; cancel it first", self.task, row.state.name())));
        }
        if row.state == TaskState::Cancelled {
            return self.open_next(tx, row);
        }
        let parts = parts(tx, self.task)?;
        let dead = [Some(&parts.run), parts.publish.as_ref()]
            .into_iter()
            .flatten()
            .find(|row| matches!(row.job.state, JobState::Dead { .. }));
        if let Some(dead) = dead {
            job::redrive(tx, dead.job.id, &self.by)?;
            return Ok(Retried { task: self.task, new: false });
        }
        self.open_next(tx, row)
    }
}

impl Retry {
    /// A finished or cancelled Task stays as it is; the next one begins anew, on a new branch.
    fn open_next(&self, tx: &mut Tx<'_>, row: TaskRow) -> L<Retried> {
        may_become_active(tx, self.task, JobKind::Run)?;
        let generation = match row.place() {
            Some((repo, issue)) => 1 + earlier(tx, repo, issue)?,
            None => row.generation + 1,
        };
        let plan = TaskPlan {
            id: TaskId::from_uuid(tx.ids.uuid()),
            run: RunId::from_uuid(tx.ids.uuid()),
            job: JobId::from_uuid(tx.ids.uuid()),
            correlation: CorrelationId::from_uuid(tx.ids.uuid()),
            intent: format!("retry:{}:{}", self.task, tx.ids.uuid().simple()),
            mode: row.mode,
            repo: row.subject.repo,
            issue: row.subject.issue,
            said: None,
            model: row.subject.model,
            base: row.subject.base,
            needs: row.subject.needs,
            actor: self.by.clone(),
            trigger: row.trigger,
            at: tx.now,
        };
        insert(tx, &plan, generation)?;
        Ok(Retried { task: plan.id, new: true })
    }
}
