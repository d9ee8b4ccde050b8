//! Runs: their journal of steps, their result, and the publish job that follows.

use fettle_app::ports::ledger::{Fenced, L, LedgerError, RunOrder, RunPlan, RunStopped};
use fettle_domain::budget::Spent;
use fettle_domain::choice::{self, Follows, TO_BE_CHOSEN, has_patch, may_be_added, may_be_stopped};
use fettle_domain::event::EventBody;
use fettle_domain::id::{JobId, RunId, TaskId};
use fettle_domain::job::{Job, JobKind, JobState, Until};
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
use crate::{effect, event, lane, stored};

/// The Run that a job executes, with its journal's length.
struct RunRow {
    id: RunId,
    ordinal: u16,
    model: Option<String>,
    instruction: Option<String>,
    steps: u32,
    spent: Spent,
}

fn of_job(conn: &Connection, job: JobId) -> L<RunRow> {
    let uuid = job.as_uuid();
    type Row = (Uuid, u16, Option<String>, Option<String>, i64, i64, i64, i64, i64);
    let row: Option<Row> = conn.maybe(
        "SELECT id, ordinal, model, instruction, steps, calls, generated_tokens, prompt_tokens, wall_s
         FROM run WHERE job_id = ?",
        params![uuid],
        |row| row.try_into(),
    )?;
    let (id, ordinal, model, instruction, steps, calls, generated_tokens, prompt_tokens, wall_s) =
        row.ok_or_else(|| LedgerError::Invalid(format!("{job} is not a run job")))?;
    Ok(RunRow {
        id: RunId::from_uuid(id),
        ordinal,
        model,
        instruction,
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
        model: run.model,
        instruction: run.instruction,
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
        event::append(tx, row.task, &step_event(run.ordinal, step))?;
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

fn step_event(ordinal: u16, step: &StepRecord) -> EventBody {
    EventBody::Step {
        ordinal,
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
        let mut task = task::get(tx, row.task)?;
        let stopping = matches!(row.job.state, JobState::Cancelling { .. });
        let cancelled = stopping && task.is_cancelled;
        let fence = self.lease.fence;
        let is_alone = count(tx.conn, row.task)? == 1;
        row.job = if stopping && !cancelled {
            row.job.complete_unwanted(fence)
        } else if !cancelled && !is_alone && has_patch(&self.result.outcome) {
            row.job.defer(fence, Until::Event, TO_BE_CHOSEN)
        } else {
            row.job.complete(fence)
        }
        .map_err(unreadable)?;
        job::store(tx, &row)?;

        store_result(tx, run.id, &self.result)?;
        let level = self.result.change.as_ref().map(|change| level_name(change.proof.level).to_owned());
        let outcome = self.result.outcome.name().to_owned();
        task.tell(tx, &EventBody::RunEnded { ordinal: run.ordinal, outcome, level })?;

        if is_alone {
            let publish = if cancelled {
                publish_nothing(tx, &task)?
            } else {
                let kinds = wanted_effects(task.audience(), Ended::With(&self.result.outcome));
                effect::want(tx, &task, &kinds)?
            };
            task.follow(tx, &row, Some(&publish))?;
            task.store(tx)?;
        } else {
            task.store(tx)?;
            if cancelled {
                publish_nothing(tx, &task)?;
            } else {
                want_what_follows(tx, row.task)?;
            }
            task::refresh(tx, row.task)?;
        }
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

/// What the leading Run of a Task came to, by name, once it has.
pub(crate) fn outcome(tx: &mut Tx<'_>, task: TaskId) -> L<Option<&'static str>> {
    let result: Option<String> = tx.conn.one(
        "SELECT run.result FROM task JOIN run ON run.task_id = task.id AND run.ordinal = task.leading_run WHERE task.id = ?",
        params![task.as_uuid()],
        first,
    )?;
    let result = result.as_deref().map(stored::read::<RunResult>).transpose()?;
    Ok(result.map(|result| result.outcome.name()))
}

pub(crate) fn count(conn: &Connection, task: TaskId) -> L<usize> {
    let count: i64 = conn.one("SELECT count(*) FROM run WHERE task_id = ?", params![task.as_uuid()], first)?;
    usize::try_from(count).map_err(unreadable)
}

/// Which of its Task's Runs a job executes, from 1.
pub(crate) fn ordinal(conn: &Connection, job: JobId) -> L<u16> {
    conn.one("SELECT ordinal FROM run WHERE job_id = ?", params![job.as_uuid()], first)
}

pub(crate) fn leading_job(conn: &Connection, task: TaskId) -> L<JobId> {
    let job = conn.maybe(
        "SELECT run.job_id FROM task JOIN run ON run.task_id = task.id AND run.ordinal = task.leading_run WHERE task.id = ?",
        params![task.as_uuid()],
        first,
    )?;
    Ok(JobId::from_uuid(job.ok_or_else(|| LedgerError::NotFound(task.to_string()))?))
}

/// One of a Task's Runs, as far as it decides what follows.
struct End {
    run: RunId,
    ordinal: u16,
    job: JobRow,
    result: Option<RunResult>,
}

impl End {
    /// Its job is final, or waits with a patch.
    fn has_come(&self) -> bool {
        let state = &self.job.job.state;
        state.is_final() || (matches!(state, JobState::Waiting { .. }) && self.result.is_some())
    }
}

/// In the order of the Runs.
fn ends(tx: &mut Tx<'_>, task: TaskId) -> L<Vec<End>> {
    let rows: Vec<(Uuid, u16, Uuid, Option<String>)> = tx.conn.all(
        "SELECT id, ordinal, job_id, result FROM run WHERE task_id = ? ORDER BY ordinal",
        params![task.as_uuid()],
        |row| row.try_into(),
    )?;
    let end = |(run, ordinal, job, result): (Uuid, u16, Uuid, Option<String>)| {
        Ok(End {
            run: RunId::from_uuid(run),
            ordinal,
            job: job::get(tx.conn, JobId::from_uuid(job))?,
            result: result.as_deref().map(stored::read).transpose()?,
        })
    };
    rows.into_iter().map(end).collect()
}

/// What the end of a Run asks for on the forge, once it is the end of all.
pub(crate) fn want_what_follows(tx: &mut Tx<'_>, task: TaskId) -> L<()> {
    let row = task::get(tx, task)?;
    if row.is_cancelled {
        return Ok(());
    }
    let mut ends = ends(tx, task)?;
    if ends.iter().any(|end| !end.has_come()) {
        return Ok(());
    }
    ends.retain(|end| end.job.job.state != JobState::Cancelled);
    let outcomes: Vec<_> = ends.iter().map(|end| end.result.as_ref().map(|result| &result.outcome)).collect();
    match choice::follows(&outcomes) {
        Follows::Publish(nth) => publish(tx, task, ends, nth),
        Follows::Choice(first) => {
            lead(tx, task, &ends[first])?;
            let kinds = wanted_effects(row.audience(), Ended::ToBeChosen);
            if !kinds.is_empty() {
                effect::want(tx, &row, &kinds)?;
            }
            Ok(())
        }
    }
}

fn lead(tx: &mut Tx<'_>, task: TaskId, end: &End) -> L<()> {
    tx.conn.run("UPDATE task SET leading_run = ? WHERE id = ?", params![end.ordinal, task.as_uuid()])?;
    Ok(())
}

/// The end of the `nth` is the Task's.
fn publish(tx: &mut Tx<'_>, task: TaskId, mut ends: Vec<End>, nth: usize) -> L<()> {
    lead(tx, task, &ends[nth])?;
    for end in ends.iter_mut().filter(|end| end.result.is_some()) {
        if let Some(settled) = end.job.job.clone().settle() {
            end.job.job = settled;
            job::store(tx, &end.job)?;
        }
    }
    let row = task::get(tx, task)?;
    let ended = ends[nth].result.as_ref().map_or(Ended::Died, |result| Ended::With(&result.outcome));
    let kinds = wanted_effects(row.audience(), ended);
    // A comment for what died without an outcome, where there is somebody to tell.
    if ended == Ended::Died && kinds.is_empty() {
        return Ok(());
    }
    effect::want(tx, &row, &kinds).map(|_| ())
}

pub(crate) struct Add {
    pub(crate) task: TaskId,
    pub(crate) by: String,
    pub(crate) plans: Vec<RunPlan>,
}

impl Verb for Add {
    type Out = ();

    fn apply(&self, tx: &mut Tx<'_>) -> L<()> {
        let task = task::get(tx, self.task)?;
        let has = count(tx.conn, self.task)?;
        let published = effect::is_published(tx.conn, self.task)?;
        may_be_added(task.mode, task.state, task.is_cancelled, published, has, self.plans.len())
            .map_err(|why| LedgerError::Invalid(format!("{} {why}", self.task)))?;
        task::may_become_active(tx, self.task, JobKind::Publish)?;
        add(tx, &task, has, &self.by, &self.plans)?;
        task::refresh(tx, self.task)
    }
}

/// Queues further Runs behind the first `has`, and tells of them.
pub(crate) fn add(tx: &mut Tx<'_>, task: &TaskRow, has: usize, by: &str, plans: &[RunPlan]) -> L<()> {
    for (ordinal, plan) in (has + 1..).zip(plans) {
        let place = lane::place(JobKind::Run, &task.subject, plan.model.as_deref(), &task.trigger);
        job::insert(tx, Job::queued(plan.job, JobKind::Run), task.id, &place)?;
        insert(tx, task.id, u16::try_from(ordinal).map_err(unreadable)?, plan)?;
    }
    let models = plans.iter().map(|plan| plan.model.clone()).collect();
    event::append(tx, task.id, &EventBody::RunsAdded { by: by.to_owned(), models })
}

pub(crate) struct Choose {
    pub(crate) task: TaskId,
    pub(crate) run: RunId,
    pub(crate) draft: bool,
    pub(crate) by: String,
}

impl Verb for Choose {
    type Out = ();

    fn apply(&self, tx: &mut Tx<'_>) -> L<()> {
        task::get(tx, self.task)?;
        let ends = ends(tx, self.task)?;
        let nth = ends.iter().position(|end| end.run == self.run);
        let nth = nth.ok_or_else(|| LedgerError::NotFound(self.run.to_string()))?;
        if let Some(at_work) = ends.iter().find(|end| !end.has_come()) {
            return Err(LedgerError::Invalid(format!("{} has not ended", at_work.run)));
        }
        if !matches!(ends[nth].job.job.state, JobState::Waiting { .. }) {
            return Err(LedgerError::Invalid(format!("{} has no patch that waits to be chosen", self.run)));
        }
        let body = EventBody::RunChosen { by: self.by.clone(), ordinal: ends[nth].ordinal, draft: self.draft };
        event::append(tx, self.task, &body)?;
        tx.conn.run("UPDATE task SET as_draft = ? WHERE id = ?", params![self.draft, self.task.as_uuid()])?;
        publish(tx, self.task, ends, nth)?;
        task::refresh(tx, self.task)
    }
}

pub(crate) struct Stop {
    pub(crate) task: TaskId,
    pub(crate) run: RunId,
    pub(crate) by: String,
}

impl Verb for Stop {
    type Out = RunStopped;

    fn apply(&self, tx: &mut Tx<'_>) -> L<RunStopped> {
        task::get(tx, self.task)?;
        let mut ends = ends(tx, self.task)?;
        let nth = ends.iter().position(|end| end.run == self.run);
        let nth = nth.ok_or_else(|| LedgerError::NotFound(self.run.to_string()))?;
        let states: Vec<_> = ends.iter().map(|end| &end.job.job.state).collect();
        may_be_stopped(&states, nth, ends[nth].has_come())
            .map_err(|why| LedgerError::Invalid(format!("{} {why}", self.run)))?;
        let End { ordinal, job: mut row, .. } = ends.swap_remove(nth);
        let Some(stopped) = row.job.clone().cancel() else { return Ok(RunStopped::Stopping) };
        row.job = stopped;
        job::store(tx, &row)?;
        event::append(tx, self.task, &EventBody::RunStopped { by: self.by.clone(), ordinal })?;
        job::after_end(tx, &row)?;
        let at_once = row.job.state == JobState::Cancelled;
        Ok(if at_once { RunStopped::AtOnce } else { RunStopped::Stopping })
    }
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
    job::insert(tx, cancelled, task.id, &task.publish_place())
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::Unproven => "unproven",
        Level::Weak => "weak",
        Level::Proven => "proven",
    }
}

pub(crate) fn insert(tx: &mut Tx<'_>, task: TaskId, ordinal: u16, plan: &RunPlan) -> L<()> {
    tx.conn.run(
        "INSERT INTO run (id, task_id, job_id, ordinal, model, instruction, steps, calls, generated_tokens,
                          prompt_tokens, wall_s)
         VALUES (?, ?, ?, ?, ?, ?, 0, 0, 0, 0, 0)",
        params![plan.run.as_uuid(), task.as_uuid(), plan.job.as_uuid(), ordinal, plan.model, plan.instruction],
    )?;
    Ok(())
}
