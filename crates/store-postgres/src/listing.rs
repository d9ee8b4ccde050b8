//! Lists for whoever looks on: what waits and is at work, where Tasks were asked for, and what a Run has done so far.

use fettle_app::ports::ledger::{LedgerError, OpenJob, SeenRepository, Stands};
use fettle_domain::id::{JobId, RunId, TaskId, WorkerId};
use fettle_domain::job::JobKind;
use fettle_domain::step::StepRecord;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::error::{OrLedger, R, unreadable};
use crate::stored::{self, Subject};
use crate::time::Instant;

struct Row {
    id: Uuid,
    kind: String,
    task_id: Uuid,
    state: String,
    runnable_at: Option<Instant>,
    delayed_until: Option<Instant>,
    leased_until: Option<Instant>,
    worker_id: Option<Uuid>,
    holder: Option<String>,
    attempts: i64,
    crashes: i64,
    last_failure: Option<String>,
    subject: String,
}

fn open_job(row: Row) -> R<OpenJob> {
    let subject: Subject = stored::read(&row.subject)?;
    let odd = || unreadable(format!("a job is {} without all that belongs to it", row.state));
    let instant = |at: Option<Instant>| at.map(|Instant(at)| at).ok_or_else(odd);
    let stands = match row.state.as_str() {
        "queued" => Stands::Runnable { since: instant(row.runnable_at)? },
        "delayed" => Stands::Delayed { until: instant(row.delayed_until)? },
        "waiting" => Stands::Waiting,
        state @ ("leased" | "cancelling") => Stands::Held {
            by: WorkerId::from_uuid(row.worker_id.ok_or_else(odd)?),
            name: row.holder.clone().unwrap_or_default(),
            until: instant(row.leased_until)?,
            cancelling: state == "cancelling",
        },
        state => return Err(unreadable(format!("a job in the state `{state}` is not open")).into()),
    };
    Ok(OpenJob {
        job: JobId::from_uuid(row.id),
        kind: JobKind::named(&row.kind)
            .ok_or_else(|| unreadable(format!("a job of the unknown kind `{}`", row.kind)))?,
        task: TaskId::from_uuid(row.task_id),
        title: subject.issue.title,
        repo: subject.repo.map(|repo| repo.name),
        stands,
        attempts: u16::try_from(row.attempts).map_err(unreadable)?,
        crashes: u16::try_from(row.crashes).map_err(unreadable)?,
        last_failure: row.last_failure,
    })
}

pub(crate) async fn held(conn: &mut PgConnection, max: u16) -> R<Vec<OpenJob>> {
    let rows = sqlx::query_as!(
        Row,
        "SELECT job.id, job.kind, job.task_id, job.state, job.runnable_at, job.delayed_until, job.leased_until,
                job.worker_id, job.holder, job.attempts, job.crashes, job.last_failure, task.subject
         FROM job JOIN task ON task.id = job.task_id
         WHERE job.leased_until IS NOT NULL ORDER BY job.leased_until, job.seq LIMIT $1",
        i64::from(max),
    )
    .fetch_all(conn)
    .await
    .or_ledger()?;
    rows.into_iter().map(open_job).collect()
}

pub(crate) async fn unheld(conn: &mut PgConnection, after: Option<JobId>, max: u16) -> R<Vec<OpenJob>> {
    let rows = sqlx::query_as!(
        Row,
        "SELECT job.id, job.kind, job.task_id, job.state, job.runnable_at, job.delayed_until, job.leased_until,
                job.worker_id, job.holder, job.attempts, job.crashes, job.last_failure, task.subject
         FROM job JOIN task ON task.id = job.task_id
         WHERE job.state IN ('queued', 'delayed', 'waiting') AND job.state NOT IN ('done', 'cancelled')
             AND ($2::uuid IS NULL OR job.seq > (SELECT seq FROM job WHERE id = $2))
         ORDER BY job.seq LIMIT $1",
        i64::from(max),
        after.map(|job| job.as_uuid()) as Option<Uuid>,
    )
    .fetch_all(conn)
    .await
    .or_ledger()?;
    rows.into_iter().map(open_job).collect()
}

pub(crate) async fn repositories(conn: &mut PgConnection, max: u16) -> R<Vec<SeenRepository>> {
    let rows = sqlx::query!(
        r#"SELECT repo_forge_id AS "forge_id!", count(*) AS "tasks!", count(*) FILTER (WHERE ended_at IS NULL) AS "open!",
                  (array_agg(id ORDER BY created_at DESC, id DESC))[1] AS "newest!"
           FROM task WHERE repo_forge_id IS NOT NULL
           GROUP BY repo_forge_id ORDER BY max(created_at) DESC, repo_forge_id LIMIT $1"#,
        i64::from(max),
    )
    .fetch_all(conn)
    .await
    .or_ledger()?;
    let seen = rows.into_iter().map(|row| {
        Ok(SeenRepository {
            forge_id: u64::try_from(row.forge_id).map_err(unreadable)?,
            tasks: u64::try_from(row.tasks).map_err(unreadable)?,
            open: u64::try_from(row.open).map_err(unreadable)?,
            newest: TaskId::from_uuid(row.newest),
        })
    });
    seen.collect()
}

pub(crate) async fn journal(conn: &mut PgConnection, run: RunId, from: u32, max: u16) -> R<Vec<StepRecord>> {
    let known = sqlx::query_scalar!(r#"SELECT EXISTS (SELECT FROM run WHERE id = $1) AS "known!""#, run.as_uuid())
        .fetch_one(&mut *conn)
        .await
        .or_ledger()?;
    if !known {
        return Err(LedgerError::NotFound(run.to_string()).into());
    }
    let records = sqlx::query_scalar!(
        "SELECT record FROM step WHERE run_id = $1 AND seq >= $2 ORDER BY seq LIMIT $3",
        run.as_uuid(),
        i64::from(from),
        i64::from(max),
    )
    .fetch_all(conn)
    .await
    .or_ledger()?;
    records.iter().map(|record| Ok(stored::read(record)?)).collect()
}
