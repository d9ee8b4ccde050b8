//! Runs: their journal of steps, their result, and the publish job that follows.

use fettle_app::ports::ledger::{Fenced, L, LedgerError, RunOrder};
use fettle_domain::budget::Spent;
use fettle_domain::event::EventBody;
use fettle_domain::id::{JobId, RunId, TaskId};
use fettle_domain::job::{Job, JobKind, JobState};
use fettle_domain::lease::LeaseRef;
use fettle_domain::proof::Level;
use fettle_domain::publication::{Ended, wanted_effects};
use fettle_domain::run::RunResult;
use fettle_domain::step::{MAX_STEP_BODY_BYTES, StepBody, StepRecord};
use rusqlite::{Connection, params};
use uuid::Uuid;

use crate::error::unreadable;
use crate::job::{self, JobRow};
use crate::sql::{Sql as _, first};
use crate::task::{self, TaskRow};
use crate::writer::{Tx, Verb};
use crate::{effect, event, stored};

/// The Run that a job executes, with its journal's length.
struct RunRow {
    id: RunId,
    steps: u32,
    spent: Spent,
}

fn of_job(conn: &Connection, job: JobId) -> L<RunRow> {
    let uuid = job.as_uuid();
    type Row = (Uuid, i64, i64, i64, i64, i64);
    let row: Option<Row> = conn.maybe(
        "SELECT id, steps, calls, generated_tokens, prompt_tokens, wall_s FROM run WHERE job_id = ?",
        params![uuid],
        |row| row.try_into(),
    )?;
    let (id, steps, calls, generated_tokens, prompt_tokens, wall_s) =
        row.ok_or_else(|| LedgerError::Invalid(format!("{job} is not a run job")))?;
    Ok(RunRow {
        id: RunId::from_uuid(id),
        steps: u32::try_from(steps).map_err(unreadable)?,
        spent: spent(calls, generated_tokens, prompt_tokens, wall_s)?,
    })
}

pub(crate) fn spent(calls: i64, generated_tokens: i64, prompt_tokens: i64, wall_s: i64) -> L<Spent> {
    Ok(Spent {
        calls: u32::try_from(calls).map_err(unreadable)?,
        generated_tokens: u64::try_from(generated_tokens).map_err(unreadable)?,
        prompt_tokens: u64::try_from(prompt_tokens).map_err(unreadable)?,
        wall_s: u64::try_from(wall_s).map_err(unreadable)?,
    })
}

/// What the holder of `row` is to do.
pub(crate) fn order(tx: &mut Tx<'_>, row: &JobRow, task: TaskRow) -> L<RunOrder> {
    let run = of_job(tx.conn, row.job.id)?;
    Ok(RunOrder {
        task: row.task,
        run: run.id,
        correlation: task.correlation,
        mode: task.mode,
        repo: task.subject.repo,
        issue: task.subject.issue,
        model: task.subject.model,
        base: task.subject.base,
        generation: task.generation,
        spent: run.spent,
        last_failure: row.last_failure.clone(),
    })
}

pub(crate) struct Record {
    pub(crate) lease: LeaseRef,
    pub(crate) step: StepRecord,
}

impl Verb for Record {
    type Out = Fenced;

    fn apply(&self, tx: &mut Tx<'_>) -> L<Fenced> {
        let step = &self.step;
        if let StepBody::Inline(body) = &step.body
            && body.to_string().len() > MAX_STEP_BODY_BYTES
        {
            return Err(LedgerError::Invalid(format!(
                "a step's body is at most {MAX_STEP_BODY_BYTES} bytes; use a blob"
            )));
        }
        let mut row = match job::held(tx, &self.lease)? {
            Ok(row) => row,
            // The lease was ended by its own holder; this is its last step come twice, or a step too late.
            Err(Fenced::AlreadyApplied) => return self.repeated(tx),
            Err(fenced) => return Ok(fenced),
        };
        let run = of_job(tx.conn, self.lease.job)?;
        if step.seq > run.steps {
            return Err(LedgerError::Invalid(format!("step {} follows step count {}: a gap", step.seq, run.steps)));
        }
        let (run_id, seq, fence) = (run.id.as_uuid(), step.seq, job::column(self.lease.fence));
        let record = stored::write(step)?;
        if step.seq < run.steps {
            let (by, was): (i64, String) = tx.conn.one(
                "SELECT fence, record FROM step WHERE run_id = ? AND seq = ?",
                params![run_id, seq],
                |row| row.try_into(),
            )?;
            if by == fence && was == record {
                return Ok(Fenced::AlreadyApplied);
            }
            if by == fence {
                return Err(LedgerError::Invalid(format!("step {seq} was recorded with another content")));
            }
            // The replay has diverged here: what an earlier holder did afterwards is no longer part of the Run.
            tx.conn.run("DELETE FROM step WHERE run_id = ? AND seq >= ?", params![run_id, seq])?;
        }
        let (now, kind) = (tx.now.as_microsecond(), step.kind.name());
        tx.conn.run(
            "INSERT INTO step (run_id, seq, fence, kind, recorded_at, record) VALUES (?, ?, ?, ?, ?, ?)",
            params![run_id, seq, fence, kind, now, record],
        )?;
        store_spent(tx, run.id, &step.spent, i64::from(step.seq) + 1)?;

        if row.job.counters.crashes_since_step > 0 {
            row.job = row.job.step(self.lease.fence).map_err(unreadable)?;
            job::store(tx, &row)?;
        }
        event::append(tx, row.task, &step_event(step))?;
        Ok(Fenced::Applied)
    }
}

impl Record {
    fn repeated(&self, tx: &mut Tx<'_>) -> L<Fenced> {
        let run = of_job(tx.conn, self.lease.job)?;
        let (run_id, fence, record) = (run.id.as_uuid(), job::column(self.lease.fence), stored::write(&self.step)?);
        let same: i64 = tx.conn.one(
            "SELECT count(*) FROM step WHERE run_id = ? AND seq = ? AND fence = ? AND record = ?",
            params![run_id, self.step.seq, fence, record],
            first,
        )?;
        Ok(if same > 0 { Fenced::AlreadyApplied } else { Fenced::Stale })
    }
}

/// What was spent, as SQLite's signed integers.
struct Columns {
    calls: u32,
    generated_tokens: i64,
    prompt_tokens: i64,
    wall_s: i64,
}

fn columns(spent: &Spent) -> Columns {
    let signed = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    Columns {
        calls: spent.calls,
        generated_tokens: signed(spent.generated_tokens),
        prompt_tokens: signed(spent.prompt_tokens),
        wall_s: signed(spent.wall_s),
    }
}

fn store_spent(tx: &mut Tx<'_>, run: RunId, spent: &Spent, steps: i64) -> L<()> {
    let Columns { calls, generated_tokens, prompt_tokens, wall_s } = columns(spent);
    tx.conn.run(
        "UPDATE run SET steps = ?, calls = ?, generated_tokens = ?, prompt_tokens = ?, wall_s = ? WHERE id = ?",
        params![steps, calls, generated_tokens, prompt_tokens, wall_s, run.as_uuid()],
    )?;
    Ok(())
}

fn step_event(step: &StepRecord) -> EventBody {
    EventBody::Step {
        seq: step.seq,
        kind: step.kind.name().to_owned(),
        phase: step.phase.clone(),
        title: step.title.clone(),
        calls: step.spent.calls,
        generated_tokens: step.spent.generated_tokens,
        prompt_tokens: step.spent.prompt_tokens,
        took_ms: step.took_ms,
    }
}

/// Of the newest step; empty before the first.
pub(crate) fn phase(conn: &Connection, run: RunId) -> L<String> {
    let newest: Option<String> = conn.maybe(
        "SELECT record FROM step WHERE run_id = ? ORDER BY seq DESC LIMIT 1",
        params![run.as_uuid()],
        first,
    )?;
    let newest: Option<StepRecord> = newest.as_deref().map(stored::read).transpose()?;
    Ok(newest.map(|step| step.phase).unwrap_or_default())
}

/// The journal in order.
pub(crate) fn steps(conn: &Connection, lease: &LeaseRef) -> L<Vec<StepRecord>> {
    let row = job::held_for_reading(conn, lease)?;
    let run = of_job(conn, row.job.id)?.id.as_uuid();
    let records: Vec<String> =
        conn.all("SELECT record FROM step WHERE run_id = ? ORDER BY seq", params![run], first)?;
    records.iter().map(|record| stored::read(record)).collect()
}

pub(crate) struct Complete {
    pub(crate) lease: LeaseRef,
    pub(crate) result: RunResult,
}

impl Verb for Complete {
    type Out = Fenced;

    fn apply(&self, tx: &mut Tx<'_>) -> L<Fenced> {
        let mut row = match job::held(tx, &self.lease)? {
            Ok(row) => row,
            Err(fenced) => return Ok(fenced),
        };
        let run = of_job(tx.conn, self.lease.job)?;
        let cancelled = matches!(row.job.state, JobState::Cancelling { .. });
        row.job = row.job.complete(self.lease.fence).map_err(unreadable)?;
        job::store(tx, &row)?;

        store_result(tx, run.id, &self.result)?;
        let mut task = task::get(tx, row.task)?;
        let level = self.result.change.as_ref().map(|change| level_name(change.proof.level).to_owned());
        task.tell(tx, &EventBody::RunEnded { outcome: self.result.outcome.name().to_owned(), level })?;

        let publish = if cancelled {
            publish_nothing(tx, &task)?
        } else {
            let kinds = wanted_effects(task.audience(), Ended::With(&self.result.outcome));
            effect::want(tx, &task, &kinds)?
        };
        task.follow(tx, &row, Some(&publish))?;
        task.store(tx)?;
        Ok(Fenced::Applied)
    }
}

fn store_result(tx: &mut Tx<'_>, run: RunId, result: &RunResult) -> L<()> {
    let Columns { calls, generated_tokens, prompt_tokens, wall_s } = columns(&result.spent);
    tx.conn.run(
        "UPDATE run SET result = ?, calls = ?, generated_tokens = ?, prompt_tokens = ?, wall_s = ? WHERE id = ?",
        params![stored::write(result)?, calls, generated_tokens, prompt_tokens, wall_s, run.as_uuid()],
    )?;
    Ok(())
}

/// What the Run of a Task came to, by name, once it has.
pub(crate) fn outcome(tx: &mut Tx<'_>, task: TaskId) -> L<Option<&'static str>> {
    let result: Option<String> =
        tx.conn.one("SELECT result FROM run WHERE task_id = ?", params![task.as_uuid()], first)?;
    let result = result.as_deref().map(stored::read::<RunResult>).transpose()?;
    Ok(result.map(|result| result.outcome.name()))
}

/// The Run came in too late to be cancelled, its publication has not: the result is kept, nothing is written. Whoever still tells of
/// its progress does not decide how it ended.
fn publish_nothing(tx: &mut Tx<'_>, task: &TaskRow) -> L<JobRow> {
    if let Some(withheld) = effect::cancel_publication(tx, task.id)?.filter(|row| row.job.state == JobState::Cancelled)
    {
        return Ok(withheld);
    }
    let job = Job::queued(JobId::from_uuid(tx.ids.uuid()), JobKind::Publish);
    let cancelled = job.cancel().expect("a queued job can be cancelled");
    job::insert(tx, cancelled, task.id, &task.place_of(JobKind::Publish))
}

/// A comment for a Run that died without an outcome.
pub(crate) fn publish_the_death(tx: &mut Tx<'_>, task: TaskId) -> L<()> {
    let task = task::get(tx, task)?;
    let kinds = wanted_effects(task.audience(), Ended::Died);
    if kinds.is_empty() {
        return Ok(());
    }
    effect::want(tx, &task, &kinds).map(|_| ())
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::Unproven => "unproven",
        Level::Weak => "weak",
        Level::Proven => "proven",
    }
}

/// The row of a Task's one Run.
pub(crate) fn insert(tx: &mut Tx<'_>, run: RunId, task: TaskId, job: JobId) -> L<()> {
    let (run, task, job) = (run.as_uuid(), task.as_uuid(), job.as_uuid());
    tx.conn.run(
        "INSERT INTO run (id, task_id, job_id, steps, calls, generated_tokens, prompt_tokens, wall_s)
         VALUES (?, ?, ?, 0, 0, 0, 0, 0)",
        params![run, task, job],
    )?;
    Ok(())
}
