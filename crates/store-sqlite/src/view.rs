//! Tasks as they are shown, read from the read-only connections.

use std::str::FromStr;

use fettle_app::ports::ledger::{
    DeadJob, Demand, Depth, L, LedgerError, Publication, RunView, TaskCursor, TaskFilter, TaskView,
};
use fettle_domain::branch::BranchName;
use fettle_domain::id::{CorrelationId, JobId, RunId, TaskId};
use fettle_domain::job::{JobKind, JobState};
use fettle_domain::lease::LeaseRef;
use fettle_domain::task::Mode;
use jiff::Timestamp;
use sqlx::{SqliteConnection, SqlitePool};
use uuid::Uuid;

use crate::error::{OrLedger, unreadable};
use crate::stored::{self, Subject};
use crate::time::from_micros;
use crate::{delivery, effect, job, run, task};

struct Row {
    id: Uuid,
    correlation_id: Uuid,
    mode: String,
    generation: i64,
    actor: String,
    trigger_kind: String,
    state: String,
    note: Option<String>,
    created_at: i64,
    updated_at: i64,
    subject: String,
    run_id: Uuid,
    job_id: Uuid,
    steps: i64,
    calls: i64,
    generated_tokens: i64,
    prompt_tokens: i64,
    wall_s: i64,
    result: Option<String>,
    job_state: String,
    fence: i64,
    attempts: i64,
    crashes: i64,
}

pub(crate) async fn task(conn: &mut SqliteConnection, id: TaskId) -> L<TaskView> {
    let uuid = id.as_uuid();
    let row = sqlx::query_as!(
        Row,
        r#"SELECT task.id AS "id: Uuid", task.correlation_id AS "correlation_id: Uuid", task.mode, task.generation,
                  task.actor, task.trigger_kind, task.state, task.note, task.created_at, task.updated_at, task.subject,
                  run.id AS "run_id: Uuid", run.job_id AS "job_id: Uuid", run.steps, run.calls, run.generated_tokens,
                  run.prompt_tokens, run.wall_s, run.result, job.state AS job_state, job.fence, job.attempts, job.crashes
           FROM task JOIN run ON run.task_id = task.id JOIN job ON job.id = run.job_id WHERE task.id = ?"#,
        uuid,
    )
    .fetch_optional(&mut *conn)
    .await
    .or_ledger()?
    .ok_or_else(|| LedgerError::NotFound(id.to_string()))?;
    let subject: Subject = stored::read(&row.subject)?;
    Ok(TaskView {
        id: TaskId::from_uuid(row.id),
        correlation: CorrelationId::from_uuid(row.correlation_id),
        mode: Mode::from_str(&row.mode).map_err(unreadable)?,
        repo: subject.repo,
        issue: subject.issue,
        model: subject.model,
        base: subject.base,
        actor: row.actor,
        trigger: row.trigger_kind,
        generation: u32::try_from(row.generation).map_err(unreadable)?,
        state: task::state_of(&row.state)?,
        note: row.note,
        created_at: from_micros(row.created_at),
        updated_at: from_micros(row.updated_at),
        run: RunView {
            id: RunId::from_uuid(row.run_id),
            job: JobId::from_uuid(row.job_id),
            job_state: row.job_state,
            fence: u64::try_from(row.fence).map_err(unreadable)?,
            attempts: u16::try_from(row.attempts).map_err(unreadable)?,
            crashes: u16::try_from(row.crashes).map_err(unreadable)?,
            steps: u32::try_from(row.steps).map_err(unreadable)?,
            spent: run::spent(row.calls, row.generated_tokens, row.prompt_tokens, row.wall_s)?,
            result: row.result.as_deref().map(stored::read).transpose()?,
        },
        effects: effect::list(conn, id).await?,
    })
}

/// Newest first, strictly after the cursor.
pub(crate) async fn tasks(
    readers: &SqlitePool,
    filter: TaskFilter,
    after: Option<TaskCursor>,
    max: u16,
) -> L<Vec<TaskView>> {
    let mut transaction = readers.begin().await.or_ledger()?;
    let (at, id) = match after {
        Some(cursor) => (cursor.created_at.as_microsecond(), cursor.id.as_uuid()),
        None => (i64::MAX, Uuid::max()),
    };
    let ids = match filter.state.map(|state| state.name()) {
        Some(state) => {
            sqlx::query_scalar!(
                r#"SELECT id AS "id: Uuid" FROM task WHERE state = ? AND (created_at, id) < (?, ?)
                   ORDER BY created_at DESC, id DESC LIMIT ?"#,
                state,
                at,
                id,
                max,
            )
            .fetch_all(&mut *transaction)
            .await
        }
        None => {
            sqlx::query_scalar!(
                r#"SELECT id AS "id: Uuid" FROM task WHERE (created_at, id) < (?, ?)
                   ORDER BY created_at DESC, id DESC LIMIT ?"#,
                at,
                id,
                max,
            )
            .fetch_all(&mut *transaction)
            .await
        }
    };
    let mut views = Vec::new();
    for id in ids.or_ledger()? {
        views.push(task(&mut transaction, TaskId::from_uuid(id)).await?);
    }
    Ok(views)
}

pub(crate) async fn active(readers: &SqlitePool, repo: u64, issue: u64) -> L<Option<TaskId>> {
    let (repo, issue) = (task::number(repo)?, task::number(issue)?);
    let id = sqlx::query_scalar!(
        r#"SELECT id AS "id: Uuid" FROM task WHERE repo_forge_id = ? AND issue_number = ? AND ended_at IS NULL"#,
        repo,
        issue,
    )
    .fetch_optional(readers)
    .await
    .or_ledger()?;
    Ok(id.map(TaskId::from_uuid))
}

pub(crate) async fn opened_since(readers: &SqlitePool, installation: Option<u64>, since: Timestamp) -> L<u64> {
    let (installation, since) = (installation.map(task::number).transpose()?, since.as_microsecond());
    let count = sqlx::query_scalar!(
        "SELECT count(*) FROM task
         WHERE created_at >= ? AND installation IS ? AND trigger_kind IN ('label', 'comment')",
        since,
        installation,
    )
    .fetch_one(readers)
    .await
    .or_ledger()?;
    u64::try_from(count).map_err(unreadable)
}

pub(crate) async fn actors(readers: &SqlitePool, repo: u64, issue: u64, max: u16) -> L<Vec<String>> {
    let (repo, issue) = (task::number(repo)?, task::number(issue)?);
    sqlx::query_scalar!(
        "SELECT actor FROM task WHERE repo_forge_id = ? AND issue_number = ? ORDER BY created_at DESC, id DESC LIMIT ?",
        repo,
        issue,
        max,
    )
    .fetch_all(readers)
    .await
    .or_ledger()
}

pub(crate) async fn publication(readers: &SqlitePool, lease: &LeaseRef) -> L<Publication> {
    let mut transaction = readers.begin().await.or_ledger()?;
    let row = job::held_for_reading(&mut transaction, lease).await?;
    if row.job.kind != JobKind::Publish {
        return Err(LedgerError::Invalid(format!("{} is not a publish job", row.job.id)));
    }
    let task = task(&mut transaction, row.task).await?;
    let run = job::get(&mut transaction, task.run.job).await?;
    let run_failure = match run.job.state {
        JobState::Dead { reason } => Some(reason),
        _ => None,
    };
    let branch = BranchName::of(task.mode, task.issue.number, task.id, task.generation);
    Ok(Publication { task, branch, run_failure })
}

/// `runnable`: those whose turn it can be.
pub(crate) async fn dead(readers: &SqlitePool, max: u16) -> L<Vec<DeadJob>> {
    let rows = sqlx::query!(
        r#"SELECT id AS "id: Uuid", kind, task_id AS "task_id: Uuid", reason, last_failure, attempts, crashes
           FROM job WHERE state = 'dead' ORDER BY seq DESC LIMIT ?"#,
        max,
    )
    .fetch_all(readers)
    .await
    .or_ledger()?;
    let dead = rows.into_iter().map(|row| {
        Ok(DeadJob {
            job: JobId::from_uuid(row.id),
            kind: JobKind::named(&row.kind)
                .ok_or_else(|| unreadable(format!("a job of the unknown kind `{}`", row.kind)))?,
            task: TaskId::from_uuid(row.task_id),
            reason: row.reason.unwrap_or_default(),
            last_failure: row.last_failure,
            attempts: u16::try_from(row.attempts).map_err(unreadable)?,
            crashes: u16::try_from(row.crashes).map_err(unreadable)?,
        })
    });
    dead.collect()
}

pub(crate) async fn demand(readers: &SqlitePool, now: Timestamp, runnable: u32) -> L<Demand> {
    let micros = now.as_microsecond();
    let found = sqlx::query!(
        r#"SELECT (SELECT min(runnable_at) FROM job WHERE state = 'queued' AND kind = 'run') AS "oldest: i64",
                  (SELECT count(*) FROM job WHERE leased_until <= ?1 AND kind = 'run') AS "lapsed!: i64",
                  (SELECT count(*) FROM job WHERE leased_until > ?1 AND kind = 'run') AS "leased!: i64""#,
        micros,
    )
    .fetch_one(readers)
    .await
    .or_ledger()?;
    let waited = found.oldest.map_or(0, |oldest| (micros - oldest) / 1_000_000);
    Ok(Demand {
        runnable: u64::from(runnable) + u64::try_from(found.lapsed).map_err(unreadable)?,
        leased: u64::try_from(found.leased).map_err(unreadable)?,
        oldest_runnable_s: u64::try_from(waited).unwrap_or(0),
    })
}

pub(crate) async fn depth(readers: &SqlitePool, now: Timestamp) -> L<Depth> {
    let mut depth = Depth::default();
    let states = sqlx::query!(
        r#"SELECT state, count(*) AS "count!: i64" FROM job WHERE state NOT IN ('done', 'cancelled') GROUP BY state"#
    )
    .fetch_all(readers)
    .await
    .or_ledger()?;
    for row in states {
        let count = u64::try_from(row.count).map_err(unreadable)?;
        match row.state.as_str() {
            "queued" => depth.runnable = count,
            "delayed" => depth.delayed = count,
            "waiting" => depth.waiting = count,
            "leased" | "cancelling" => depth.leased += count,
            "dead" => depth.dead = count,
            _ => {}
        }
    }
    let oldest = sqlx::query_scalar!(r#"SELECT min(runnable_at) AS "oldest: i64" FROM job WHERE state = 'queued'"#)
        .fetch_one(readers)
        .await
        .or_ledger()?;
    let micros = oldest.map_or(0, |oldest| now.as_microsecond() - oldest);
    depth.oldest_runnable_s = u64::try_from(micros / 1_000_000).unwrap_or(0);
    depth.open_deliveries = u64::try_from(delivery::count_open(readers).await?).map_err(unreadable)?;
    Ok(depth)
}
