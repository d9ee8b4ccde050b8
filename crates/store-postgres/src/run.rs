//! Runs: their journal of steps, their result, and the publish job that follows.

use fettle_app::ports::ledger::{Fenced, LedgerError, RunOrder, RunPlan, RunStopped};
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
use sqlx::PgConnection;

use crate::error::{OrLedger, R, unreadable};
use crate::job::{self, JobRow};
use crate::time::Instant;
use crate::writer::{Tx, Verb};
use crate::{effect, event, lane, stored, task};

/// The Run that a job executes, with its journal's length.
struct RunRow {
    id: RunId,
    ordinal: u16,
    model: Option<String>,
    instruction: Option<String>,
    steps: u32,
    spent: Spent,
}

async fn of_job(conn: &mut PgConnection, job: JobId) -> R<RunRow> {
    let uuid = job.as_uuid();
    let row = sqlx::query!(
        "SELECT id, ordinal, model, instruction, steps, calls, generated_tokens, prompt_tokens, wall_s
         FROM run WHERE job_id = $1",
        uuid,
    )
    .fetch_optional(conn)
    .await
    .or_ledger()?
    .ok_or_else(|| LedgerError::Invalid(format!("{job} is not a run job")))?;
    Ok(RunRow {
        id: RunId::from_uuid(row.id),
        ordinal: u16::try_from(row.ordinal).map_err(unreadable)?,
        model: row.model,
        instruction: row.instruction,
        steps: u32::try_from(row.steps).map_err(unreadable)?,
        spent: spent(row.calls, row.generated_tokens, row.prompt_tokens, row.wall_s)?,
    })
}

pub(crate) fn spent(calls: i64, generated_tokens: i64, prompt_tokens: i64, wall_s: i64) -> R<Spent> {
    Ok(Spent {
        calls: u32::try_from(calls).map_err(unreadable)?,
        generated_tokens: u64::try_from(generated_tokens).map_err(unreadable)?,
        prompt_tokens: u64::try_from(prompt_tokens).map_err(unreadable)?,
        wall_s: u64::try_from(wall_s).map_err(unreadable)?,
    })
}

/// What the holder of `row` is to do.
pub(crate) async fn order(tx: &mut Tx<'_>, row: &JobRow) -> R<RunOrder> {
    let run = of_job(tx.conn, row.job.id).await?;
    let task = task::get(tx, row.task).await?;
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

    async fn apply(&self, tx: &mut Tx<'_>) -> R<Fenced> {
        let step = &self.step;
        if let StepBody::Inline(body) = &step.body
            && body.to_string().len() > MAX_STEP_BODY_BYTES
        {
            return Err(LedgerError::Invalid(format!(
                "a step's body is at most {MAX_STEP_BODY_BYTES} bytes; use a blob"
            ))
            .into());
        }
        let mut row = match job::held(tx, &self.lease).await? {
            Ok(row) => row,
            // The lease was ended by its own holder; this is its last step come twice, or a step too late.
            Err(Fenced::AlreadyApplied) => return self.repeated(tx).await,
            Err(fenced) => return Ok(fenced),
        };
        let run = of_job(tx.conn, self.lease.job).await?;
        if step.seq > run.steps {
            return Err(
                LedgerError::Invalid(format!("step {} follows step count {}: a gap", step.seq, run.steps)).into()
            );
        }
        let (run_id, seq, fence) = (run.id.as_uuid(), i64::from(step.seq), job::column(self.lease.fence));
        let record = stored::write(step)?;
        if step.seq < run.steps {
            let same = sqlx::query!("SELECT fence, record FROM step WHERE run_id = $1 AND seq = $2", run_id, seq)
                .fetch_one(&mut *tx.conn)
                .await
                .or_ledger()?;
            if same.fence == fence && same.record == record {
                return Ok(Fenced::AlreadyApplied);
            }
            if same.fence == fence {
                return Err(LedgerError::Invalid(format!("step {seq} was recorded with another content")).into());
            }
            // The replay has diverged here: what an earlier holder did afterwards is no longer part of the Run.
            sqlx::query!("DELETE FROM step WHERE run_id = $1 AND seq >= $2", run_id, seq)
                .execute(&mut *tx.conn)
                .await
                .or_ledger()?;
        }
        let (now, kind) = (Instant(tx.now), step.kind.name());
        sqlx::query!(
            "INSERT INTO step (run_id, seq, fence, kind, recorded_at, record) VALUES ($1, $2, $3, $4, $5, $6)",
            run_id,
            seq,
            fence,
            kind,
            now,
            record,
        )
        .execute(&mut *tx.conn)
        .await
        .or_ledger()?;
        store_spent(tx, run.id, &step.spent, i64::from(step.seq) + 1).await?;

        if row.job.counters.crashes_since_step > 0 {
            row.job = row.job.step(self.lease.fence).map_err(unreadable)?;
            job::store(tx, &row).await?;
        }
        event::append(tx, row.task, &step_event(run.ordinal, step)).await?;
        Ok(Fenced::Applied)
    }
}

impl Record {
    async fn repeated(&self, tx: &mut Tx<'_>) -> R<Fenced> {
        let run = of_job(tx.conn, self.lease.job).await?;
        let (run_id, fence, record) = (run.id.as_uuid(), job::column(self.lease.fence), stored::write(&self.step)?);
        let same = sqlx::query_scalar!(
            r#"SELECT EXISTS (SELECT FROM step WHERE run_id = $1 AND seq = $2 AND fence = $3 AND record = $4) AS "same!""#,
            run_id,
            i64::from(self.step.seq),
            fence,
            record,
        )
        .fetch_one(&mut *tx.conn)
        .await
        .or_ledger()?;
        Ok(if same { Fenced::AlreadyApplied } else { Fenced::Stale })
    }
}

async fn store_spent(tx: &mut Tx<'_>, run: RunId, spent: &Spent, steps: i64) -> R<()> {
    let tokens = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let (generated, prompt, wall) = (tokens(spent.generated_tokens), tokens(spent.prompt_tokens), tokens(spent.wall_s));
    let id = run.as_uuid();
    sqlx::query!(
        "UPDATE run SET steps = $1, calls = $2, generated_tokens = $3, prompt_tokens = $4, wall_s = $5 WHERE id = $6",
        steps,
        i64::from(spent.calls),
        generated,
        prompt,
        wall,
        id,
    )
    .execute(&mut *tx.conn)
    .await
    .or_ledger()?;
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
pub(crate) async fn phase(conn: &mut PgConnection, run: RunId) -> R<String> {
    let uuid = run.as_uuid();
    let newest = sqlx::query_scalar!("SELECT record FROM step WHERE run_id = $1 ORDER BY seq DESC LIMIT 1", uuid)
        .fetch_optional(conn)
        .await
        .or_ledger()?;
    let newest: Option<StepRecord> = newest.as_deref().map(stored::read).transpose()?;
    Ok(newest.map(|step| step.phase).unwrap_or_default())
}

/// The journal in order.
pub(crate) async fn steps(conn: &mut PgConnection, lease: &LeaseRef) -> R<Vec<StepRecord>> {
    let row = job::held_for_reading(conn, lease).await?;
    let run = of_job(conn, row.job.id).await?.id.as_uuid();
    let records = sqlx::query_scalar!("SELECT record FROM step WHERE run_id = $1 ORDER BY seq", run)
        .fetch_all(conn)
        .await
        .or_ledger()?;
    records.iter().map(|record| Ok(stored::read(record)?)).collect()
}

pub(crate) struct Complete {
    pub(crate) lease: LeaseRef,
    pub(crate) result: RunResult,
}

impl Verb for Complete {
    type Out = Fenced;

    async fn apply(&self, tx: &mut Tx<'_>) -> R<Fenced> {
        let mut row = match job::held(tx, &self.lease).await? {
            Ok(row) => row,
            Err(fenced) => return Ok(fenced),
        };
        let run = of_job(tx.conn, self.lease.job).await?;
        let stopping = matches!(row.job.state, JobState::Cancelling { .. });
        let cancelled = stopping && task::get(tx, row.task).await?.is_cancelled;
        let fence = self.lease.fence;
        row.job = if stopping && !cancelled {
            row.job.complete_unwanted(fence)
        } else if !cancelled && has_patch(&self.result.outcome) && count(tx.conn, row.task).await? > 1 {
            row.job.defer(fence, Until::Event, TO_BE_CHOSEN)
        } else {
            row.job.complete(fence)
        }
        .map_err(unreadable)?;
        job::store(tx, &row).await?;

        let (id, result) = (run.id.as_uuid(), stored::write(&self.result)?);
        sqlx::query!("UPDATE run SET result = $1 WHERE id = $2", result, id)
            .execute(&mut *tx.conn)
            .await
            .or_ledger()?;
        store_spent(tx, run.id, &self.result.spent, i64::from(run.steps)).await?;
        let level = self.result.change.as_ref().map(|change| level_name(change.proof.level).to_owned());
        let outcome = self.result.outcome.name().to_owned();
        event::append(tx, row.task, &EventBody::RunEnded { ordinal: run.ordinal, outcome, level }).await?;

        if cancelled {
            publish_nothing(tx, row.task).await?;
        } else {
            want_what_follows(tx, row.task).await?;
        }
        task::refresh(tx, row.task).await?;
        Ok(Fenced::Applied)
    }
}

/// The Run came in too late to be cancelled, its publication has not: the result is kept, nothing is written. Whoever still tells of
/// its progress does not decide how it ended.
async fn publish_nothing(tx: &mut Tx<'_>, task: TaskId) -> R<()> {
    if effect::cancel_publication(tx, task).await? == Some(JobState::Cancelled) {
        return Ok(());
    }
    let job = Job::queued(JobId::from_uuid(tx.ids.uuid()), JobKind::Publish);
    let cancelled = job.cancel().expect("a queued job can be cancelled");
    let place = task::get(tx, task).await?.publish_place();
    job::insert(tx, &cancelled, task, &place).await
}

pub(crate) async fn count(conn: &mut PgConnection, task: TaskId) -> R<usize> {
    let task = task.as_uuid();
    let count = sqlx::query_scalar!(r#"SELECT count(*) AS "count!" FROM run WHERE task_id = $1"#, task)
        .fetch_one(conn)
        .await
        .or_ledger()?;
    Ok(usize::try_from(count).map_err(unreadable)?)
}

/// Which of its Task's Runs a job executes, from 1.
pub(crate) async fn ordinal(conn: &mut PgConnection, job: JobId) -> R<u16> {
    let job = job.as_uuid();
    let ordinal =
        sqlx::query_scalar!("SELECT ordinal FROM run WHERE job_id = $1", job).fetch_one(conn).await.or_ledger()?;
    Ok(u16::try_from(ordinal).map_err(unreadable)?)
}

pub(crate) async fn leading_job(conn: &mut PgConnection, task: TaskId) -> R<JobId> {
    let uuid = task.as_uuid();
    let job = sqlx::query_scalar!(
        "SELECT run.job_id FROM task JOIN run ON run.task_id = task.id AND run.ordinal = task.leading_run
         WHERE task.id = $1",
        uuid,
    )
    .fetch_optional(conn)
    .await
    .or_ledger()?;
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
async fn ends(tx: &mut Tx<'_>, task: TaskId) -> R<Vec<End>> {
    let task = task.as_uuid();
    let rows = sqlx::query!("SELECT id, ordinal, job_id, result FROM run WHERE task_id = $1 ORDER BY ordinal", task)
        .fetch_all(&mut *tx.conn)
        .await
        .or_ledger()?;
    let mut ends = Vec::with_capacity(rows.len());
    for row in rows {
        ends.push(End {
            run: RunId::from_uuid(row.id),
            ordinal: u16::try_from(row.ordinal).map_err(unreadable)?,
            job: job::get(tx.conn, JobId::from_uuid(row.job_id)).await?,
            result: row.result.as_deref().map(stored::read).transpose()?,
        });
    }
    Ok(ends)
}

/// What the end of a Run asks for on the forge, once it is the end of all.
pub(crate) async fn want_what_follows(tx: &mut Tx<'_>, task: TaskId) -> R<()> {
    let row = task::get(tx, task).await?;
    if row.is_cancelled {
        return Ok(());
    }
    let mut ends = ends(tx, task).await?;
    if ends.iter().any(|end| !end.has_come()) {
        return Ok(());
    }
    ends.retain(|end| end.job.job.state != JobState::Cancelled);
    let outcomes: Vec<_> = ends.iter().map(|end| end.result.as_ref().map(|result| &result.outcome)).collect();
    match choice::follows(&outcomes) {
        Follows::Publish(nth) => publish(tx, task, ends, nth).await,
        Follows::Choice(first) => {
            lead(tx, task, &ends[first]).await?;
            let kinds = wanted_effects(row.audience(), Ended::ToBeChosen);
            if !kinds.is_empty() {
                effect::want(tx, task, &kinds).await?;
            }
            Ok(())
        }
    }
}

async fn lead(tx: &mut Tx<'_>, task: TaskId, end: &End) -> R<()> {
    let (leading, id) = (i64::from(end.ordinal), task.as_uuid());
    sqlx::query!("UPDATE task SET leading_run = $1 WHERE id = $2", leading, id)
        .execute(&mut *tx.conn)
        .await
        .or_ledger()?;
    Ok(())
}

/// The end of the `nth` is the Task's.
async fn publish(tx: &mut Tx<'_>, task: TaskId, mut ends: Vec<End>, nth: usize) -> R<()> {
    lead(tx, task, &ends[nth]).await?;
    for end in ends.iter_mut().filter(|end| end.result.is_some()) {
        if let Some(settled) = end.job.job.clone().settle() {
            end.job.job = settled;
            job::store(tx, &end.job).await?;
        }
    }
    let audience = task::get(tx, task).await?.audience();
    let ended = ends[nth].result.as_ref().map_or(Ended::Died, |result| Ended::With(&result.outcome));
    let kinds = wanted_effects(audience, ended);
    // A comment for what died without an outcome, where there is somebody to tell.
    if ended == Ended::Died && kinds.is_empty() {
        return Ok(());
    }
    effect::want(tx, task, &kinds).await.map(|_| ())
}

pub(crate) struct Add {
    pub(crate) task: TaskId,
    pub(crate) by: String,
    pub(crate) plans: Vec<RunPlan>,
}

impl Verb for Add {
    type Out = ();

    async fn apply(&self, tx: &mut Tx<'_>) -> R<()> {
        task::lock(tx, self.task).await?;
        let task = task::get(tx, self.task).await?;
        let has = count(tx.conn, self.task).await?;
        let published = effect::is_published(tx.conn, self.task).await?;
        may_be_added(task.mode, task.state, task.is_cancelled, published, has, self.plans.len())
            .map_err(|why| LedgerError::Invalid(format!("{} {why}", self.task)))?;
        task::may_become_active(tx, self.task, JobKind::Publish).await?;
        add(tx, self.task, has, &self.by, &self.plans).await?;
        task::refresh(tx, self.task).await
    }
}

/// Queues further Runs behind the first `has`, and tells of them.
pub(crate) async fn add(tx: &mut Tx<'_>, task: TaskId, has: usize, by: &str, plans: &[RunPlan]) -> R<()> {
    let row = task::get(tx, task).await?;
    for (ordinal, plan) in (has + 1..).zip(plans) {
        let place = lane::place(JobKind::Run, &row.subject, plan.model.as_deref(), &row.trigger);
        job::insert(tx, &Job::queued(plan.job, JobKind::Run), task, &place).await?;
        insert(tx, task, i64::try_from(ordinal).map_err(unreadable)?, plan).await?;
    }
    let models = plans.iter().map(|plan| plan.model.clone()).collect();
    event::append(tx, task, &EventBody::RunsAdded { by: by.to_owned(), models }).await
}

pub(crate) struct Choose {
    pub(crate) task: TaskId,
    pub(crate) run: RunId,
    pub(crate) draft: bool,
    pub(crate) by: String,
}

impl Verb for Choose {
    type Out = ();

    async fn apply(&self, tx: &mut Tx<'_>) -> R<()> {
        task::lock(tx, self.task).await?;
        let ends = ends(tx, self.task).await?;
        let nth = ends.iter().position(|end| end.run == self.run);
        let nth = nth.ok_or_else(|| LedgerError::NotFound(self.run.to_string()))?;
        if let Some(at_work) = ends.iter().find(|end| !end.has_come()) {
            return Err(LedgerError::Invalid(format!("{} has not ended", at_work.run)).into());
        }
        if !matches!(ends[nth].job.job.state, JobState::Waiting { .. }) {
            return Err(LedgerError::Invalid(format!("{} has no patch that waits to be chosen", self.run)).into());
        }
        let body = EventBody::RunChosen { by: self.by.clone(), ordinal: ends[nth].ordinal, draft: self.draft };
        event::append(tx, self.task, &body).await?;
        sqlx::query!("UPDATE task SET as_draft = $1 WHERE id = $2", self.draft, self.task.as_uuid())
            .execute(&mut *tx.conn)
            .await
            .or_ledger()?;
        publish(tx, self.task, ends, nth).await?;
        task::refresh(tx, self.task).await
    }
}

pub(crate) struct Stop {
    pub(crate) task: TaskId,
    pub(crate) run: RunId,
    pub(crate) by: String,
}

impl Verb for Stop {
    type Out = RunStopped;

    async fn apply(&self, tx: &mut Tx<'_>) -> R<RunStopped> {
        task::lock(tx, self.task).await?;
        let mut ends = ends(tx, self.task).await?;
        let nth = ends.iter().position(|end| end.run == self.run);
        let nth = nth.ok_or_else(|| LedgerError::NotFound(self.run.to_string()))?;
        let states: Vec<_> = ends.iter().map(|end| &end.job.job.state).collect();
        may_be_stopped(&states, nth, ends[nth].has_come())
            .map_err(|why| LedgerError::Invalid(format!("{} {why}", self.run)))?;
        let End { ordinal, job: mut row, .. } = ends.swap_remove(nth);
        let Some(stopped) = row.job.clone().cancel() else { return Ok(RunStopped::Stopping) };
        row.job = stopped;
        job::store(tx, &row).await?;
        event::append(tx, self.task, &EventBody::RunStopped { by: self.by.clone(), ordinal }).await?;
        job::after_end(tx, &row).await?;
        let at_once = row.job.state == JobState::Cancelled;
        Ok(if at_once { RunStopped::AtOnce } else { RunStopped::Stopping })
    }
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::Unproven => "unproven",
        Level::Weak => "weak",
        Level::Proven => "proven",
    }
}

pub(crate) async fn insert(tx: &mut Tx<'_>, task: TaskId, ordinal: i64, plan: &RunPlan) -> R<()> {
    let (run, task, job) = (plan.run.as_uuid(), task.as_uuid(), plan.job.as_uuid());
    sqlx::query!(
        "INSERT INTO run (id, task_id, job_id, ordinal, model, instruction, steps, calls, generated_tokens,
                          prompt_tokens, wall_s)
         VALUES ($1, $2, $3, $4, $5, $6, 0, 0, 0, 0, 0)",
        run,
        task,
        job,
        ordinal,
        plan.model.as_deref().map(stored::text),
        plan.instruction.as_deref().map(stored::text),
    )
    .execute(&mut *tx.conn)
    .await
    .or_ledger()?;
    Ok(())
}
