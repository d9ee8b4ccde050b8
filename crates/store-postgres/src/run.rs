//! Runs: their journal of steps, their result, and the publish job that follows.

use fettle_app::ports::ledger::{Fenced, LedgerError, RunOrder};
use fettle_domain::budget::Spent;
use fettle_domain::event::EventBody;
use fettle_domain::id::{JobId, RunId, TaskId};
use fettle_domain::job::{Job, JobKind, JobState};
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
use crate::{effect, event, stored, task};

/// The Run that a job executes, with its journal's length.
struct RunRow {
    id: RunId,
    steps: u32,
    spent: Spent,
}

async fn of_job(conn: &mut PgConnection, job: JobId) -> R<RunRow> {
    let uuid = job.as_uuid();
    let row = sqlx::query!(
        "SELECT id, steps, calls, generated_tokens, prompt_tokens, wall_s FROM run WHERE job_id = $1",
        uuid,
    )
    .fetch_optional(conn)
    .await
    .or_ledger()?
    .ok_or_else(|| LedgerError::Invalid(format!("{job} is not a run job")))?;
    Ok(RunRow {
        id: RunId::from_uuid(row.id),
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
        event::append(tx, row.task, &step_event(step)).await?;
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
        let cancelled = matches!(row.job.state, JobState::Cancelling { .. });
        row.job = row.job.complete(self.lease.fence).map_err(unreadable)?;
        job::store(tx, &row).await?;

        let (id, result) = (run.id.as_uuid(), stored::write(&self.result)?);
        sqlx::query!("UPDATE run SET result = $1 WHERE id = $2", result, id)
            .execute(&mut *tx.conn)
            .await
            .or_ledger()?;
        store_spent(tx, run.id, &self.result.spent, i64::from(run.steps)).await?;
        let level = self.result.change.as_ref().map(|change| level_name(change.proof.level).to_owned());
        let body = EventBody::RunEnded { outcome: self.result.outcome.name().to_owned(), level };
        event::append(tx, row.task, &body).await?;

        if cancelled {
            publish_nothing(tx, row.task).await?;
        } else {
            let audience = task::get(tx, row.task).await?.audience();
            let kinds = wanted_effects(audience, Ended::With(&self.result.outcome));
            effect::want(tx, row.task, &kinds).await?;
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
    let place = task::get(tx, task).await?.place_of(JobKind::Publish);
    job::insert(tx, &cancelled, task, &place).await
}

/// A comment for a Run that died without an outcome.
pub(crate) async fn publish_the_death(tx: &mut Tx<'_>, task: TaskId) -> R<()> {
    let audience = task::get(tx, task).await?.audience();
    let kinds = wanted_effects(audience, Ended::Died);
    if kinds.is_empty() {
        return Ok(());
    }
    effect::want(tx, task, &kinds).await.map(|_| ())
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::Unproven => "unproven",
        Level::Weak => "weak",
        Level::Proven => "proven",
    }
}

/// The row of a Task's one Run.
pub(crate) async fn insert(tx: &mut Tx<'_>, run: RunId, task: TaskId, job: JobId) -> R<()> {
    let (run, task, job) = (run.as_uuid(), task.as_uuid(), job.as_uuid());
    sqlx::query!(
        "INSERT INTO run (id, task_id, job_id, steps, calls, generated_tokens, prompt_tokens, wall_s)
         VALUES ($1, $2, $3, 0, 0, 0, 0, 0)",
        run,
        task,
        job,
    )
    .execute(&mut *tx.conn)
    .await
    .or_ledger()?;
    Ok(())
}
