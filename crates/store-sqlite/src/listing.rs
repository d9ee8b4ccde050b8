//! Lists for whoever looks on: what waits and is at work, where Tasks were asked for, and what a Run has done so far.

use fettle_app::ports::ledger::{L, LedgerError, OpenJob, SeenRepository, Stands};
use fettle_domain::id::{JobId, RunId, TaskId, WorkerId};
use fettle_domain::job::JobKind;
use fettle_domain::step::StepRecord;
use rusqlite::{Connection, params};
use uuid::Uuid;

use crate::error::unreadable;
use crate::sql::{Sql as _, first};
use crate::stored::{self, Subject};
use crate::time::from_micros;

struct Row {
    id: Uuid,
    kind: String,
    task: Uuid,
    state: String,
    runnable_at: Option<i64>,
    delayed_until: Option<i64>,
    leased_until: Option<i64>,
    worker: Option<Uuid>,
    holder: Option<String>,
    attempts: i64,
    crashes: i64,
    last_failure: Option<String>,
    subject: String,
}

impl Row {
    /// In the order of both queries.
    fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            kind: row.get(1)?,
            task: row.get(2)?,
            state: row.get(3)?,
            runnable_at: row.get(4)?,
            delayed_until: row.get(5)?,
            leased_until: row.get(6)?,
            worker: row.get(7)?,
            holder: row.get(8)?,
            attempts: row.get(9)?,
            crashes: row.get(10)?,
            last_failure: row.get(11)?,
            subject: row.get(12)?,
        })
    }
}

impl TryFrom<Row> for OpenJob {
    type Error = LedgerError;

    fn try_from(row: Row) -> L<Self> {
        let subject: Subject = stored::read(&row.subject)?;
        let odd = || unreadable(format!("a job is {} without all that belongs to it", row.state));
        let instant = |micros: Option<i64>| micros.map(from_micros).ok_or_else(odd);
        let stands = match row.state.as_str() {
            "queued" => Stands::Runnable { since: instant(row.runnable_at)? },
            "delayed" => Stands::Delayed { until: instant(row.delayed_until)? },
            "waiting" => Stands::Waiting,
            state @ ("leased" | "cancelling") => Stands::Held {
                by: WorkerId::from_uuid(row.worker.ok_or_else(odd)?),
                name: row.holder.clone().unwrap_or_default(),
                until: instant(row.leased_until)?,
                cancelling: state == "cancelling",
            },
            state => return Err(unreadable(format!("a job in the state `{state}` is not open"))),
        };
        Ok(Self {
            job: JobId::from_uuid(row.id),
            kind: JobKind::named(&row.kind)
                .ok_or_else(|| unreadable(format!("a job of the unknown kind `{}`", row.kind)))?,
            task: TaskId::from_uuid(row.task),
            title: subject.issue.title,
            repo: subject.repo.map(|repo| repo.name),
            stands,
            attempts: u16::try_from(row.attempts).map_err(unreadable)?,
            crashes: u16::try_from(row.crashes).map_err(unreadable)?,
            last_failure: row.last_failure,
        })
    }
}

pub(crate) fn held(conn: &Connection, max: u16) -> L<Vec<OpenJob>> {
    let rows = conn.all(
        "SELECT job.id, job.kind, job.task_id, job.state, job.runnable_at, job.delayed_until, job.leased_until,
                job.worker_id, job.holder, job.attempts, job.crashes, job.last_failure, task.subject
         FROM job INDEXED BY job_leased JOIN task ON task.id = job.task_id
         WHERE job.leased_until IS NOT NULL ORDER BY job.leased_until, job.seq LIMIT ?",
        params![max],
        Row::read,
    )?;
    rows.into_iter().map(OpenJob::try_from).collect()
}

pub(crate) fn unheld(conn: &Connection, after: Option<JobId>, max: u16) -> L<Vec<OpenJob>> {
    let rows = conn.all(
        "SELECT job.id, job.kind, job.task_id, job.state, job.runnable_at, job.delayed_until, job.leased_until,
                job.worker_id, job.holder, job.attempts, job.crashes, job.last_failure, task.subject
         FROM (SELECT seq AS open_seq FROM job INDEXED BY job_unfinished
               WHERE state IN ('queued', 'delayed', 'waiting') AND state NOT IN ('done', 'cancelled')
                   AND (?1 IS NULL OR seq > (SELECT seq FROM job WHERE id = ?1))
               ORDER BY seq LIMIT ?2)
         JOIN job ON job.seq = open_seq JOIN task ON task.id = job.task_id ORDER BY job.seq",
        params![after.map(|job| job.as_uuid()), max],
        Row::read,
    )?;
    rows.into_iter().map(OpenJob::try_from).collect()
}

pub(crate) fn repositories(conn: &Connection, max: u16) -> L<Vec<SeenRepository>> {
    let rows: Vec<(i64, i64, i64)> = conn.all(
        "SELECT repo_forge_id, count(*), sum(ended_at IS NULL) FROM task WHERE repo_forge_id IS NOT NULL
         GROUP BY repo_forge_id ORDER BY max(created_at) DESC, repo_forge_id LIMIT ?",
        params![max],
        |row| row.try_into(),
    )?;
    let seen = rows.into_iter().map(|(forge_id, tasks, open)| {
        let newest: Uuid = conn.one(
            "SELECT id FROM task WHERE repo_forge_id = ? ORDER BY created_at DESC, id DESC LIMIT 1",
            params![forge_id],
            first,
        )?;
        Ok(SeenRepository {
            forge_id: u64::try_from(forge_id).map_err(unreadable)?,
            tasks: u64::try_from(tasks).map_err(unreadable)?,
            open: u64::try_from(open).map_err(unreadable)?,
            newest: TaskId::from_uuid(newest),
        })
    });
    seen.collect()
}

pub(crate) fn journal(conn: &Connection, run: RunId, from: u32, max: u16) -> L<Vec<StepRecord>> {
    let known: i64 = conn.one("SELECT count(*) FROM run WHERE id = ?", params![run.as_uuid()], first)?;
    if known == 0 {
        return Err(LedgerError::NotFound(run.to_string()));
    }
    let records: Vec<String> = conn.all(
        "SELECT record FROM step WHERE run_id = ? AND seq >= ? ORDER BY seq LIMIT ?",
        params![run.as_uuid(), from, max],
        first,
    )?;
    records.iter().map(|record| stored::read(record)).collect()
}
