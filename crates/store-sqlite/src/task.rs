//! Tasks: opened once per intent, one active per issue, shown in the state their jobs fold to.

use std::str::FromStr;

use fettle_app::ports::ledger::{CancelAnswer, L, LedgerError, Opened, Retried, RunPlan, TaskPlan};
use fettle_domain::choice::{self, STOPPED_ALONE};
use fettle_domain::effect::{EffectState, Receipt};
use fettle_domain::event::EventBody;
use fettle_domain::id::{CorrelationId, DeliveryId, JobId, RunId, TaskId};
use fettle_domain::job::{Job, JobKind, JobState};
use fettle_domain::publication::Audience;
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

/// A Task's row. What a verb tells and changes is kept in it until [`TaskRow::store`].
pub(crate) struct TaskRow {
    pub(crate) id: TaskId,
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
    /// Of its last event.
    event_seq: i64,
    /// Whether `ended` is another than in the file.
    turned: bool,
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
    type Row = (Uuid, String, i64, String, String, Option<String>, bool, bool, i64, String);
    let row: Option<Row> = tx.conn.maybe(
        "SELECT correlation_id, mode, generation, trigger_kind, state, note, ended_at IS NOT NULL,
                cancelled_by IS NOT NULL, event_seq, subject
         FROM task WHERE id = ?",
        params![id.as_uuid()],
        |row| row.try_into(),
    )?;
    let (correlation, mode, generation, trigger, state, note, ended, is_cancelled, event_seq, subject) =
        row.ok_or_else(|| LedgerError::NotFound(id.to_string()))?;
    Ok(TaskRow {
        id,
        correlation: CorrelationId::from_uuid(correlation),
        mode: Mode::from_str(&mode).map_err(unreadable)?,
        generation: u32::try_from(generation).map_err(unreadable)?,
        trigger,
        state: state_of(&state)?,
        note,
        ended,
        is_cancelled,
        event_seq,
        turned: false,
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
    let mut generation = 1;
    if let Some((repo, issue)) = plan.repo.as_ref().map(|repo| repo.forge_id).zip(plan.issue.number) {
        let standing = standing(tx, repo, issue)?;
        if let Some(task) = standing.active {
            join(tx, task, plan)?;
            return Ok(Opened::Joined { task });
        }
        generation += standing.tasks;
    }
    insert(tx, plan, generation)?;
    Ok(Opened::New { task: plan.id, generation })
}

fn of_intent(tx: &mut Tx<'_>, intent: &str) -> L<Option<TaskId>> {
    let task = tx.conn.maybe("SELECT task_id FROM intent WHERE key = ?", params![intent], first)?;
    Ok(task.map(TaskId::from_uuid))
}

/// What was asked for an issue until now.
struct Standing {
    tasks: u32,
    active: Option<TaskId>,
}

fn standing(tx: &mut Tx<'_>, repo: u64, issue: u64) -> L<Standing> {
    let (tasks, active): (u32, Option<Uuid>) = tx.conn.one(
        "SELECT count(*), max(CASE WHEN ended_at IS NULL THEN id END) FROM task
         WHERE repo_forge_id = ? AND issue_number = ?",
        params![number(repo)?, number(issue)?],
        |row| row.try_into(),
    )?;
    Ok(Standing { tasks, active: active.map(TaskId::from_uuid) })
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
    let place = lane::place(JobKind::Run, &subject, plan.model.as_deref(), &plan.trigger);
    let (state, at, subject) = (TaskState::Queued.name(), plan.at.as_microsecond(), stored::write(&subject)?);
    tx.conn.run(
        "INSERT INTO task (id, correlation_id, mode, repo_forge_id, issue_number, installation, generation, actor,
                           trigger_kind, state, event_seq, created_at, updated_at, subject)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, 1, ?11, max(?11, ?12), ?13)",
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
            tx.now.as_microsecond(),
            subject
        ],
    )?;
    remember(tx, &plan.intent, plan.id)?;
    job::insert(tx, Job::queued(plan.job, JobKind::Run), plan.id, &place)?;
    let run = RunPlan { run: plan.run, job: plan.job, model: plan.model.clone(), instruction: None };
    run::insert(tx, plan.id, 1, &run)?;
    let body = EventBody::TaskCreated {
        title: plan.issue.title.clone(),
        mode: plan.mode.name().to_owned(),
        trigger: plan.trigger.clone(),
    };
    event::insert(tx, plan.id, 1, plan.correlation, &body)?;
    if plan.further.is_empty() {
        return Ok(());
    }
    let task = get(tx, plan.id)?;
    run::add(tx, &task, 1, &plan.actor, &plan.further)
}

/// A Task's jobs: what its state folds from.
pub(crate) struct Parts {
    /// Of the Run that speaks for it.
    pub(crate) run: JobRow,
    /// One that was cancelled, else the newest.
    pub(crate) publish: Option<JobRow>,
}

pub(crate) fn parts(tx: &mut Tx<'_>, task: TaskId) -> L<Parts> {
    let runs: Vec<(Uuid, bool, Option<Uuid>, bool)> = tx.conn.all(
        "SELECT run.job_id, run.ordinal = task.leading_run,
                coalesce((SELECT job.id FROM job WHERE job.task_id = run.task_id AND job.kind = 'publish'
                          AND job.state = 'cancelled' ORDER BY job.seq DESC LIMIT 1),
                         (SELECT job.id FROM job WHERE job.task_id = run.task_id AND job.kind = 'publish'
                          ORDER BY job.seq DESC LIMIT 1)),
                task.cancelled_by IS NOT NULL
         FROM task JOIN run ON run.task_id = task.id WHERE task.id = ? ORDER BY run.ordinal",
        params![task.as_uuid()],
        |row| row.try_into(),
    )?;
    let publish = runs.first().ok_or_else(|| LedgerError::NotFound(task.to_string()))?.2;
    let mut jobs = Vec::with_capacity(runs.len());
    for (job, ..) in &runs {
        jobs.push(job::get(tx.conn, JobId::from_uuid(*job))?);
    }
    let states: Vec<&JobState> = jobs.iter().map(|row| &row.job.state).collect();
    let leading = runs.iter().position(|(_, leads, ..)| *leads).unwrap_or(0);
    let is_cancelled = runs.iter().any(|(.., cancelled)| *cancelled);
    let speaker = choice::speaker(&states, leading, is_cancelled);
    Ok(Parts {
        run: jobs.swap_remove(speaker),
        publish: publish.map(|id| job::get(tx.conn, JobId::from_uuid(id))).transpose()?,
    })
}

/// Why a Task waits or failed, when it does.
fn note(run: &JobRow, publish: Option<&JobRow>) -> Option<String> {
    match publish {
        Some(publish) if run.job.state.is_final() => note_of(publish).or_else(|| note_of(run)),
        _ => note_of(run),
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
    let mut row = get(tx, task)?;
    let parts = parts(tx, task)?;
    if row.follow(tx, &parts.run, parts.publish.as_ref())? {
        row.store(tx)?;
    }
    Ok(())
}

impl TaskRow {
    pub(crate) fn tell(&mut self, tx: &mut Tx<'_>, body: &EventBody) -> L<()> {
        self.event_seq += 1;
        event::insert(tx, self.id, self.event_seq, self.correlation, body)
    }

    /// Takes the state that its jobs fold to, and tells when it has ended. Without a publish job only while the Run goes on,
    /// which decides alone. Gives whether anything is different.
    pub(crate) fn follow(&mut self, tx: &mut Tx<'_>, run: &JobRow, publish: Option<&JobRow>) -> L<bool> {
        let state = TaskState::fold(&run.job.state, publish.map(|row| &row.job.state));
        let (note, ended) = (note(run, publish), state.is_final());
        if state == TaskState::Cancelled {
            effect::want_last_word(tx, self)?;
        }
        if state == self.state && note == self.note && ended == self.ended {
            return Ok(false);
        }
        self.turned = ended != self.ended;
        (self.state, self.note, self.ended) = (state, note, ended);
        match state {
            TaskState::Cancelled if self.turned => self.tell(tx, &EventBody::TaskCancelled)?,
            TaskState::Done if self.turned => {
                let body = EventBody::TaskDone {
                    outcome: run::outcome(tx, self.id)?.unwrap_or("failed").to_owned(),
                    pull_request: pull_request(tx, self.id)?,
                };
                self.tell(tx, &body)?;
            }
            _ => {}
        }
        Ok(true)
    }

    pub(crate) fn store(&self, tx: &mut Tx<'_>) -> L<()> {
        let (id, now) = (self.id.as_uuid(), tx.now.as_microsecond());
        tx.conn.run(
            "UPDATE task SET state = ?, note = ?, event_seq = ?, updated_at = max(updated_at, ?) WHERE id = ?",
            params![self.state.name(), self.note, self.event_seq, now, id],
        )?;
        // Apart, because the index of active Tasks need not be touched for the rest.
        if self.turned {
            tx.conn.run("UPDATE task SET ended_at = ? WHERE id = ?", params![self.ended.then_some(now), id])?;
        }
        Ok(())
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
        && let Some(other) = standing(tx, repo, issue)?.active
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
        let runs = tx.conn.all("SELECT job_id FROM run WHERE task_id = ? ORDER BY ordinal", params![id], first)?;
        for run in runs {
            let mut run = job::get(tx.conn, JobId::from_uuid(run))?;
            if let Some(cancelled) = run.job.clone().cancel() {
                run.job = cancelled;
                job::store(tx, &run)?;
            }
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
    Ok(by.map_or_else(|| STOPPED_ALONE.to_owned(), |by| format!("cancelled by {by}")))
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
            Some((repo, issue)) => 1 + standing(tx, repo, issue)?.tasks,
            None => row.generation + 1,
        };
        let further: Vec<(Option<String>, Option<String>)> = tx.conn.all(
            "SELECT model, instruction FROM run WHERE task_id = ? AND ordinal > 1 ORDER BY ordinal",
            params![self.task.as_uuid()],
            |row| row.try_into(),
        )?;
        let further = further.into_iter().map(|(model, instruction)| RunPlan {
            run: RunId::from_uuid(tx.ids.uuid()),
            job: JobId::from_uuid(tx.ids.uuid()),
            model,
            instruction,
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
        insert(tx, &plan, generation)?;
        Ok(Retried { task: plan.id, new: true })
    }
}
