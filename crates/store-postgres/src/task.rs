//! Tasks: opened once per intent, one active per issue, shown in the state their jobs fold to.

use std::str::FromStr;

use fettle_app::ports::ledger::{CancelAnswer, LedgerError, Opened, Retried, RunPlan, TaskPlan};
use fettle_domain::choice::{self, STOPPED_ALONE};
use fettle_domain::effect::{EffectState, Receipt};
use fettle_domain::event::EventBody;
use fettle_domain::id::{CorrelationId, DeliveryId, JobId, RunId, TaskId};
use fettle_domain::job::{Job, JobKind, JobState};
use fettle_domain::publication::Audience;
use fettle_domain::run::RunResult;
use fettle_domain::task::{Mode, TaskState};
use fettle_domain::turn::Place;

use crate::error::{OrLedger, R, unreadable};
use crate::job::{self, JobRow};
use crate::stored::{self, Subject};
use crate::time::Instant;
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
    /// Somebody asked for it, also while a holder has yet to let go.
    pub(crate) is_cancelled: bool,
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

    /// Where its publications stand in line.
    pub(crate) fn publish_place(&self) -> Place {
        lane::place(JobKind::Publish, &self.subject, None, &self.trigger)
    }

    /// What at most one active Task may have.
    fn place(&self) -> Option<(u64, u64)> {
        Some((self.subject.repo.as_ref()?.forge_id, self.subject.issue.number?))
    }
}

pub(crate) fn state_of(text: &str) -> R<TaskState> {
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
    .ok_or_else(|| unreadable(format!("unknown task state `{text}`")).into())
}

/// Locks the Task until the transaction ends: its row, its jobs, its effects and its events change only under this lock, so that
/// its events have no gap and its state is the fold of its jobs. What was read before says nothing any more.
pub(crate) async fn lock(tx: &mut Tx<'_>, id: TaskId) -> R<()> {
    let uuid = id.as_uuid();
    // Not `FOR UPDATE`: rows that refer to the Task may be inserted meanwhile.
    sqlx::query_scalar!("SELECT id FROM task WHERE id = $1 FOR NO KEY UPDATE", uuid)
        .fetch_optional(&mut *tx.conn)
        .await
        .or_ledger()?
        .ok_or_else(|| LedgerError::NotFound(id.to_string()))?;
    Ok(())
}

pub(crate) async fn get(tx: &mut Tx<'_>, id: TaskId) -> R<TaskRow> {
    let uuid = id.as_uuid();
    let row = sqlx::query!(
        "SELECT correlation_id, mode, generation, trigger_kind, state, note, ended_at, cancelled_by, subject
         FROM task WHERE id = $1",
        uuid,
    )
    .fetch_optional(&mut *tx.conn)
    .await
    .or_ledger()?
    .ok_or_else(|| LedgerError::NotFound(id.to_string()))?;
    Ok(TaskRow {
        correlation: CorrelationId::from_uuid(row.correlation_id),
        mode: Mode::from_str(&row.mode).map_err(unreadable)?,
        generation: u32::try_from(row.generation).map_err(unreadable)?,
        trigger: row.trigger_kind,
        state: state_of(&row.state)?,
        note: row.note,
        ended: row.ended_at.is_some(),
        is_cancelled: row.cancelled_by.is_some(),
        subject: stored::read(&row.subject)?,
    })
}

pub(crate) struct Open {
    pub(crate) delivery: Option<DeliveryId>,
    pub(crate) plan: TaskPlan,
}

impl Verb for Open {
    type Out = Opened;

    async fn apply(&self, tx: &mut Tx<'_>) -> R<Opened> {
        let opened = open(tx, &self.plan).await?;
        if let Some(delivery) = self.delivery {
            let verdict = match &opened {
                Opened::New { task, .. } => format!("opened {task}"),
                Opened::Joined { task } => format!("joined {task}"),
                Opened::Duplicate { task } => format!("duplicate of {task}"),
            };
            delivery::close(tx, delivery, &verdict).await?;
        }
        Ok(opened)
    }
}

async fn open(tx: &mut Tx<'_>, plan: &TaskPlan) -> R<Opened> {
    let place = plan.repo.as_ref().map(|repo| repo.forge_id).zip(plan.issue.number);
    if let Some((repo, issue)) = place {
        crate::lock::issue(tx.conn, repo, issue).await?;
    }
    if let Some(task) = of_intent(tx, &plan.intent).await? {
        return Ok(Opened::Duplicate { task });
    }
    let mut generation = 1;
    if let Some((repo, issue)) = place {
        while let Some(task) = active(tx, repo, issue).await? {
            lock(tx, task).await?;
            // It may have ended before we had its lock; then the issue is free, unless an ended Task was taken up again.
            if active(tx, repo, issue).await? == Some(task) {
                join(tx, task, plan).await?;
                return Ok(Opened::Joined { task });
            }
        }
        generation += earlier(tx, repo, issue).await?;
    }
    insert(tx, plan, generation).await?;
    Ok(Opened::New { task: plan.id, generation })
}

async fn of_intent(tx: &mut Tx<'_>, intent: &str) -> R<Option<TaskId>> {
    let task = sqlx::query_scalar!("SELECT task_id FROM intent WHERE key = $1", stored::text(intent))
        .fetch_optional(&mut *tx.conn)
        .await
        .or_ledger()?;
    Ok(task.map(TaskId::from_uuid))
}

async fn active(tx: &mut Tx<'_>, repo: u64, issue: u64) -> R<Option<TaskId>> {
    let (repo, issue) = (number(repo)?, number(issue)?);
    let task = sqlx::query_scalar!(
        "SELECT id FROM task WHERE repo_forge_id = $1 AND issue_number = $2 AND ended_at IS NULL",
        repo,
        issue,
    )
    .fetch_optional(&mut *tx.conn)
    .await
    .or_ledger()?;
    Ok(task.map(TaskId::from_uuid))
}

async fn earlier(tx: &mut Tx<'_>, repo: u64, issue: u64) -> R<u32> {
    let (repo, issue) = (number(repo)?, number(issue)?);
    let count =
        sqlx::query_scalar!("SELECT count(*) FROM task WHERE repo_forge_id = $1 AND issue_number = $2", repo, issue)
            .fetch_one(&mut *tx.conn)
            .await
            .or_ledger()?;
    Ok(u32::try_from(count.unwrap_or(0)).map_err(unreadable)?)
}

/// Numbers of forges and issues, as PostgreSQL's signed integers.
pub(crate) fn number(value: u64) -> R<i64> {
    i64::try_from(value).map_err(|_| LedgerError::Invalid(format!("{value} is too large a number")).into())
}

/// The trigger becomes a message to the Task that is at work on the issue.
async fn join(tx: &mut Tx<'_>, task: TaskId, plan: &TaskPlan) -> R<()> {
    remember(tx, &plan.intent, task).await?;
    let what = plan.trigger.clone();
    event::append(tx, task, &EventBody::TaskJoined { by: plan.actor.clone(), what }).await?;
    let text = plan.said.clone().unwrap_or_else(|| format!("asked for this again ({})", plan.trigger));
    message::post(tx, task, &plan.actor, &text).await
}

async fn remember(tx: &mut Tx<'_>, intent: &str, task: TaskId) -> R<()> {
    let task = task.as_uuid();
    sqlx::query!("INSERT INTO intent (key, task_id) VALUES ($1, $2)", stored::text(intent), task)
        .execute(&mut *tx.conn)
        .await
        .or_ledger()?;
    Ok(())
}

async fn insert(tx: &mut Tx<'_>, plan: &TaskPlan, generation: u32) -> R<()> {
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
    let place = lane::place(JobKind::Run, &subject, plan.model.as_deref(), &plan.trigger);
    let (state, at, subject) = (TaskState::Queued.name(), Instant(plan.at), stored::write(&subject)?);
    sqlx::query!(
        "INSERT INTO task (id, correlation_id, mode, repo_forge_id, issue_number, installation, generation, actor,
                           trigger_kind, state, event_seq, created_at, updated_at, subject)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 0, $11, $12, $13)",
        id,
        correlation,
        mode,
        repo,
        issue,
        installation,
        i64::from(generation),
        stored::text(&plan.actor),
        stored::text(&plan.trigger),
        state,
        at,
        at,
        subject,
    )
    .execute(&mut *tx.conn)
    .await
    .or_ledger()?;
    remember(tx, &plan.intent, plan.id).await?;
    job::insert(tx, &Job::queued(plan.job, JobKind::Run), plan.id, &place).await?;
    let run = RunPlan { run: plan.run, job: plan.job, model: plan.model.clone(), instruction: None };
    run::insert(tx, plan.id, 1, &run).await?;
    let body = EventBody::TaskCreated {
        title: plan.issue.title.clone(),
        mode: plan.mode.name().to_owned(),
        trigger: plan.trigger.clone(),
    };
    event::append(tx, plan.id, &body).await?;
    if plan.further.is_empty() {
        return Ok(());
    }
    run::add(tx, plan.id, 1, &plan.actor, &plan.further).await
}

/// A Task's jobs and result: what its state folds from.
pub(crate) struct Parts {
    /// Of the Run that speaks for it.
    pub(crate) run: JobRow,
    /// One that was cancelled, else the newest.
    pub(crate) publish: Option<JobRow>,
    /// Of the leading Run.
    pub(crate) result: Option<RunResult>,
}

pub(crate) async fn parts(tx: &mut Tx<'_>, task: TaskId) -> R<Parts> {
    let uuid = task.as_uuid();
    let runs = sqlx::query!(
        r#"SELECT run.job_id AS run_job, run.result, run.ordinal = task.leading_run AS "leads!",
                  task.cancelled_by IS NOT NULL AS "is_cancelled!",
                  coalesce((SELECT job.id FROM job WHERE job.task_id = run.task_id AND job.kind = 'publish'
                            AND job.state = 'cancelled' ORDER BY job.seq DESC LIMIT 1),
                           (SELECT job.id FROM job WHERE job.task_id = run.task_id AND job.kind = 'publish'
                            ORDER BY job.seq DESC LIMIT 1)) AS "publish_job?"
           FROM task JOIN run ON run.task_id = task.id WHERE task.id = $1 ORDER BY run.ordinal"#,
        uuid,
    )
    .fetch_all(&mut *tx.conn)
    .await
    .or_ledger()?;
    let leading = runs.iter().position(|run| run.leads).ok_or_else(|| LedgerError::NotFound(task.to_string()))?;
    let mut jobs = Vec::with_capacity(runs.len());
    for run in &runs {
        jobs.push(job::get(tx.conn, JobId::from_uuid(run.run_job)).await?);
    }
    let states: Vec<&JobState> = jobs.iter().map(|row| &row.job.state).collect();
    let speaker = choice::speaker(&states, leading, runs[leading].is_cancelled);
    let publish = match runs[leading].publish_job {
        Some(id) => Some(job::get(tx.conn, JobId::from_uuid(id)).await?),
        None => None,
    };
    Ok(Parts {
        run: jobs.swap_remove(speaker),
        publish,
        result: runs[leading].result.as_deref().map(stored::read).transpose()?,
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
pub(crate) async fn refresh(tx: &mut Tx<'_>, task: TaskId) -> R<()> {
    let before = get(tx, task).await?;
    let parts = parts(tx, task).await?;
    let (state, note) = (parts.state(), parts.note());
    if state == TaskState::Cancelled {
        effect::want_last_word(tx, task).await?;
    }
    if state == before.state && note == before.note && state.is_final() == before.ended {
        return Ok(());
    }
    let (name, now, ended, id) = (state.name(), Instant(tx.now), state.is_final(), task.as_uuid());
    sqlx::query!(
        "UPDATE task SET state = $1, note = $2, updated_at = greatest(updated_at, $3),
                ended_at = CASE WHEN $4 THEN coalesce(ended_at, $3) END
         WHERE id = $5",
        name,
        note.as_deref().map(stored::text),
        now,
        ended,
        id,
    )
    .execute(&mut *tx.conn)
    .await
    .or_ledger()?;
    match state {
        TaskState::Cancelled if !before.ended => event::append(tx, task, &EventBody::TaskCancelled).await,
        TaskState::Done if !before.ended => {
            let outcome = parts.result.as_ref().map_or("failed", |result| result.outcome.name()).to_owned();
            let pull_request = pull_request(tx, task).await?;
            event::append(tx, task, &EventBody::TaskDone { outcome, pull_request }).await
        }
        _ => Ok(()),
    }
}

async fn pull_request(tx: &mut Tx<'_>, task: TaskId) -> R<Option<u64>> {
    let effects = effect::list(tx.conn, task).await?;
    Ok(effects.into_iter().find_map(|effect| match effect.state {
        EffectState::Settled { receipt: Receipt::PullRequest { number, .. } } => Some(number),
        _ => None,
    }))
}

/// Refuses to make an ended Task active beside another one of its issue, and to redrive a run that is still published.
pub(crate) async fn may_become_active(tx: &mut Tx<'_>, task: TaskId, kind: JobKind) -> R<()> {
    let row = get(tx, task).await?;
    if kind == JobKind::Run && !row.ended {
        return Err(LedgerError::Invalid(format!("{task} is still {}", row.state.name())).into());
    }
    if let Some((repo, issue)) = row.place()
        && let Some(other) = active(tx, repo, issue).await?
        && other != task
    {
        return Err(LedgerError::Invalid(format!("{other} is already at work on issue #{issue}")).into());
    }
    Ok(())
}

pub(crate) struct Cancel {
    pub(crate) task: TaskId,
    pub(crate) by: String,
}

impl Verb for Cancel {
    type Out = CancelAnswer;

    async fn apply(&self, tx: &mut Tx<'_>) -> R<CancelAnswer> {
        lock(tx, self.task).await?;
        let before = get(tx, self.task).await?;
        if before.state.is_final() {
            return Ok(CancelAnswer::TooLate { state: before.state });
        }
        let (by, id) = (stored::text(&self.by), self.task.as_uuid());
        let first = sqlx::query!("UPDATE task SET cancelled_by = $1 WHERE id = $2 AND cancelled_by IS NULL", by, id)
            .execute(&mut *tx.conn)
            .await
            .or_ledger()?;
        if first.rows_affected() > 0 {
            event::append(tx, self.task, &EventBody::CancelRequested { by: self.by.clone() }).await?;
        }
        let runs = sqlx::query_scalar!("SELECT job_id FROM run WHERE task_id = $1 ORDER BY ordinal", id)
            .fetch_all(&mut *tx.conn)
            .await
            .or_ledger()?;
        for run in runs {
            let mut run = job::get(tx.conn, JobId::from_uuid(run)).await?;
            if let Some(cancelled) = run.job.clone().cancel() {
                run.job = cancelled;
                job::store(tx, &run).await?;
            }
        }
        effect::cancel_publication(tx, self.task).await?;
        refresh(tx, self.task).await?;
        let after = get(tx, self.task).await?.state;
        Ok(if after == TaskState::Cancelled { CancelAnswer::Cancelled } else { CancelAnswer::Cancelling })
    }
}

pub(crate) async fn cancel_reason(tx: &mut Tx<'_>, task: TaskId) -> R<String> {
    let id = task.as_uuid();
    let by = sqlx::query_scalar!("SELECT cancelled_by FROM task WHERE id = $1", id)
        .fetch_one(&mut *tx.conn)
        .await
        .or_ledger()?;
    Ok(by.map_or_else(|| STOPPED_ALONE.to_owned(), |by| format!("cancelled by {by}")))
}

pub(crate) struct Retry {
    pub(crate) task: TaskId,
    pub(crate) by: String,
}

impl Verb for Retry {
    type Out = Retried;

    async fn apply(&self, tx: &mut Tx<'_>) -> R<Retried> {
        lock(tx, self.task).await?;
        let row = get(tx, self.task).await?;
        if !row.state.is_final() {
            let state = row.state.name();
            return Err(LedgerError::Invalid(format!("{} is still {state}; cancel it first", self.task)).into());
        }
        if row.state == TaskState::Cancelled {
            return self.open_next(tx, row).await;
        }
        let parts = parts(tx, self.task).await?;
        let dead = [Some(&parts.run), parts.publish.as_ref()]
            .into_iter()
            .flatten()
            .find(|row| matches!(row.job.state, JobState::Dead { .. }));
        if let Some(dead) = dead {
            job::redrive(tx, dead.job.id, &self.by).await?;
            return Ok(Retried { task: self.task, new: false });
        }
        self.open_next(tx, row).await
    }
}

impl Retry {
    /// A finished or cancelled Task stays as it is; the next one begins anew, on a new branch.
    async fn open_next(&self, tx: &mut Tx<'_>, row: TaskRow) -> R<Retried> {
        may_become_active(tx, self.task, JobKind::Run).await?;
        let generation = match row.place() {
            Some((repo, issue)) => 1 + earlier(tx, repo, issue).await?,
            None => row.generation + 1,
        };
        let task = self.task.as_uuid();
        let further = sqlx::query!(
            "SELECT model, instruction FROM run WHERE task_id = $1 AND ordinal > 1 ORDER BY ordinal",
            task,
        )
        .fetch_all(&mut *tx.conn)
        .await
        .or_ledger()?;
        let further = further.into_iter().map(|run| RunPlan {
            run: RunId::from_uuid(tx.ids.uuid()),
            job: JobId::from_uuid(tx.ids.uuid()),
            model: run.model,
            instruction: run.instruction,
        });
        let further = further.collect();
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
            further,
        };
        insert(tx, &plan, generation).await?;
        Ok(Retried { task: plan.id, new: true })
    }
}
