//! Tasks as they are shown, each from one snapshot.

use std::str::FromStr;

use fettle_app::ports::ledger::{
    DeadJob, Demand, Depth, LedgerError, Publication, RunView, TaskCursor, TaskFilter, TaskView,
};
use fettle_domain::branch::BranchName;
use fettle_domain::effect::EffectKind;
use fettle_domain::id::{CorrelationId, JobId, RunId, TaskId};
use fettle_domain::job::{JobKind, JobState};
use fettle_domain::lease::LeaseRef;
use fettle_domain::progress::{self, AtWork};
use fettle_domain::task::Mode;
use jiff::Timestamp;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::error::{OrLedger, R, unreadable};
use crate::stored::{self, Subject};
use crate::time::{Instant, until};
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
    created_at: Instant,
    updated_at: Instant,
    subject: String,
    leading_run: i64,
    as_draft: bool,
}

pub(crate) async fn task(conn: &mut PgConnection, id: TaskId) -> R<TaskView> {
    let uuid = id.as_uuid();
    let row = sqlx::query_as!(
        Row,
        "SELECT task.id, task.correlation_id, task.mode, task.generation,
                  task.actor, task.trigger_kind, task.state, task.note, task.created_at, task.updated_at, task.subject,
                  task.leading_run, task.as_draft
           FROM task WHERE task.id = $1",
        uuid,
    )
    .fetch_optional(&mut *conn)
    .await
    .or_ledger()?
    .ok_or_else(|| LedgerError::NotFound(id.to_string()))?;
    let subject: Subject = stored::read(&row.subject)?;
    let run = runs(conn, id, Some(row.leading_run)).await?.pop();
    let run = run.ok_or_else(|| unreadable(format!("{id} has no leading Run")))?;
    Ok(TaskView {
        id: TaskId::from_uuid(row.id),
        correlation: CorrelationId::from_uuid(row.correlation_id),
        mode: Mode::from_str(&row.mode).map_err(unreadable)?,
        repo: subject.repo,
        issue: subject.issue,
        model: subject.model,
        base: subject.base,
        needs: subject.needs,
        actor: row.actor,
        trigger: row.trigger_kind,
        generation: u32::try_from(row.generation).map_err(unreadable)?,
        as_draft: row.as_draft,
        state: task::state_of(&row.state)?,
        note: row.note,
        created_at: row.created_at.0,
        updated_at: row.updated_at.0,
        run,
        effects: effect::list(conn, id).await?,
    })
}

/// A Task's Runs in their order, or the one of this number.
pub(crate) async fn runs(conn: &mut PgConnection, task: TaskId, ordinal: Option<i64>) -> R<Vec<RunView>> {
    let (task, (first, last)) = (task.as_uuid(), ordinal.map_or((0, i64::MAX), |ordinal| (ordinal, ordinal)));
    let rows = sqlx::query!(
        "SELECT run.id, run.ordinal, run.model, run.instruction, run.job_id, run.steps, run.calls, run.generated_tokens,
                run.prompt_tokens, run.wall_s, run.result, job.state AS job_state, job.fence, job.attempts, job.crashes
         FROM run JOIN job ON job.id = run.job_id WHERE run.task_id = $1 AND run.ordinal BETWEEN $2 AND $3
         ORDER BY run.ordinal",
        task,
        first,
        last,
    )
    .fetch_all(conn)
    .await
    .or_ledger()?;
    let mut runs = Vec::with_capacity(rows.len());
    for row in rows {
        runs.push(RunView {
            id: RunId::from_uuid(row.id),
            ordinal: u16::try_from(row.ordinal).map_err(unreadable)?,
            model: row.model,
            instruction: row.instruction,
            job: JobId::from_uuid(row.job_id),
            job_state: row.job_state,
            fence: u64::try_from(row.fence).map_err(unreadable)?,
            attempts: u16::try_from(row.attempts).map_err(unreadable)?,
            crashes: u16::try_from(row.crashes).map_err(unreadable)?,
            steps: u32::try_from(row.steps).map_err(unreadable)?,
            spent: run::spent(row.calls, row.generated_tokens, row.prompt_tokens, row.wall_s)?,
            result: row.result.as_deref().map(stored::read).transpose()?,
        });
    }
    Ok(runs)
}

/// The Task that a live lease works on, with the Run that is leased.
pub(crate) async fn task_held(conn: &mut PgConnection, lease: &LeaseRef) -> R<TaskView> {
    let held = job::held_for_reading(conn, lease).await?.task;
    let leased = runs(conn, held, None).await?.into_iter().find(|run| run.job == lease.job);
    let task = task(conn, held).await?;
    Ok(TaskView { run: leased.unwrap_or_else(|| task.run.clone()), ..task })
}

/// Newest first, strictly after the cursor.
pub(crate) async fn tasks(
    conn: &mut PgConnection,
    filter: TaskFilter,
    after: Option<TaskCursor>,
    max: u16,
) -> R<Vec<TaskView>> {
    let max = i64::from(max);
    let (at, id) = match after {
        Some(cursor) => (Instant(cursor.created_at), cursor.id.as_uuid()),
        None => (Instant(Timestamp::MAX), Uuid::max()),
    };
    let ids = match filter.state.map(|state| state.name()) {
        Some(state) => {
            sqlx::query_scalar!(
                "SELECT id FROM task WHERE state = $1 AND (created_at, id) < ($2, $3)
                 ORDER BY created_at DESC, id DESC LIMIT $4",
                state,
                at,
                id,
                max,
            )
            .fetch_all(&mut *conn)
            .await
        }
        None => {
            sqlx::query_scalar!(
                "SELECT id FROM task WHERE (created_at, id) < ($1, $2) ORDER BY created_at DESC, id DESC LIMIT $3",
                at,
                id,
                max,
            )
            .fetch_all(&mut *conn)
            .await
        }
    };
    let mut views = Vec::new();
    for id in ids.or_ledger()? {
        views.push(task(conn, TaskId::from_uuid(id)).await?);
    }
    Ok(views)
}

pub(crate) async fn active(conn: &mut PgConnection, repo: u64, issue: u64) -> R<Option<TaskId>> {
    let (repo, issue) = (task::number(repo)?, task::number(issue)?);
    let id = sqlx::query_scalar!(
        "SELECT id FROM task WHERE repo_forge_id = $1 AND issue_number = $2 AND ended_at IS NULL",
        repo,
        issue,
    )
    .fetch_optional(conn)
    .await
    .or_ledger()?;
    Ok(id.map(TaskId::from_uuid))
}

pub(crate) async fn opened_since(conn: &mut PgConnection, installation: Option<u64>, since: Timestamp) -> R<u64> {
    let (installation, since) = (installation.map(task::number).transpose()?, Instant(since));
    let count = sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM task
           WHERE created_at >= $1 AND installation IS NOT DISTINCT FROM $2 AND trigger_kind IN ('label', 'comment')"#,
        since,
        installation,
    )
    .fetch_one(conn)
    .await
    .or_ledger()?;
    Ok(u64::try_from(count).map_err(unreadable)?)
}

pub(crate) async fn actors(conn: &mut PgConnection, repo: u64, issue: u64, max: u16) -> R<Vec<String>> {
    let (repo, issue) = (task::number(repo)?, task::number(issue)?);
    sqlx::query_scalar!(
        "SELECT actor FROM task WHERE repo_forge_id = $1 AND issue_number = $2
         ORDER BY created_at DESC, id DESC LIMIT $3",
        repo,
        issue,
        i64::from(max),
    )
    .fetch_all(conn)
    .await
    .or_ledger()
}

pub(crate) async fn publication(conn: &mut PgConnection, lease: &LeaseRef) -> R<Publication> {
    let row = job::held_for_reading(conn, lease).await?;
    if row.job.kind != JobKind::Publish {
        return Err(LedgerError::Invalid(format!("{} is not a publish job", row.job.id)).into());
    }
    let task = task(conn, row.task).await?;
    let run = job::get(conn, task.run.job).await?;
    let phase = match &run.job.state {
        state if state.is_final() => None,
        JobState::Waiting { .. } if task.run.result.is_some() => Some(progress::CHOICE.to_owned()),
        _ => Some(run::phase(conn, task.run.id).await?),
    };
    let run_failure = match run.job.state {
        JobState::Dead { reason } => Some(reason),
        _ => None,
    };
    let branch = BranchName::of(task.mode, task.issue.number, task.id, task.generation);
    Ok(Publication { task, branch, run_failure, phase })
}

/// Runs under a lease that work on an issue, the longest-standing Task first.
pub(crate) async fn at_work(conn: &mut PgConnection, max: u16) -> R<Vec<AtWork>> {
    let rows = sqlx::query!(
        r#"SELECT task.id, task.created_at AS "created_at: Instant", run.id AS run_id
           FROM job JOIN task ON task.id = job.task_id
             JOIN run ON run.job_id = job.id AND run.ordinal = task.leading_run
           WHERE job.leased_until IS NOT NULL AND job.kind = 'run' AND job.state = 'leased'
             AND task.repo_forge_id IS NOT NULL AND task.issue_number IS NOT NULL AND task.mode <> 'probe'
           ORDER BY task.created_at, task.id LIMIT $1"#,
        i64::from(max),
    )
    .fetch_all(&mut *conn)
    .await
    .or_ledger()?;
    let mut at_work = Vec::with_capacity(rows.len());
    for row in rows {
        let task = TaskId::from_uuid(row.id);
        let phase = run::phase(conn, RunId::from_uuid(row.run_id)).await?;
        let effects = effect::list(conn, task).await?;
        let told = effects.into_iter().find(|effect| effect.kind == EffectKind::Progress);
        at_work.push(AtWork { task, created_at: row.created_at.0, phase, told });
    }
    Ok(at_work)
}

pub(crate) async fn dead(conn: &mut PgConnection, after: Option<JobId>, max: u16) -> R<Vec<DeadJob>> {
    let rows = sqlx::query!(
        "SELECT id, kind, task_id, reason, last_failure, attempts, crashes FROM job
         WHERE state = 'dead' AND ($2::uuid IS NULL OR seq < (SELECT seq FROM job WHERE id = $2))
         ORDER BY seq DESC LIMIT $1",
        i64::from(max),
        after.map(|job| job.as_uuid()) as Option<Uuid>,
    )
    .fetch_all(conn)
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

pub(crate) async fn demand(conn: &mut PgConnection, now: Timestamp, runnable: u32) -> R<Demand> {
    let found = sqlx::query!(
        r#"SELECT (SELECT min(runnable_at) FROM job WHERE state = 'queued' AND kind = 'run') AS "oldest: Instant",
                  (SELECT count(*) FROM job WHERE leased_until <= $1 AND kind = 'run') AS "lapsed!",
                  (SELECT count(*) FROM job WHERE leased_until > $1 AND kind = 'run') AS "leased!""#,
        Instant(now),
    )
    .fetch_one(conn)
    .await
    .or_ledger()?;
    Ok(Demand {
        runnable: u64::from(runnable) + u64::try_from(found.lapsed).map_err(unreadable)?,
        leased: u64::try_from(found.leased).map_err(unreadable)?,
        oldest_runnable_s: found.oldest.map_or(0, |Instant(oldest)| until(oldest, now).as_secs()),
    })
}

pub(crate) async fn depth(conn: &mut PgConnection, now: Timestamp) -> R<Depth> {
    let mut depth = Depth::default();
    let states = sqlx::query!(
        r#"SELECT state, count(*) AS "count!" FROM job WHERE state NOT IN ('done', 'cancelled') GROUP BY state"#
    )
    .fetch_all(&mut *conn)
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
    let oldest = sqlx::query_scalar!("SELECT min(runnable_at) FROM job WHERE state = 'queued'")
        .fetch_one(&mut *conn)
        .await
        .or_ledger()?;
    depth.oldest_runnable_s = oldest.map_or(0, |Instant(oldest)| until(oldest, now).as_secs());
    depth.open_deliveries = u64::try_from(delivery::count_open(conn).await?).map_err(unreadable)?;
    Ok(depth)
}
