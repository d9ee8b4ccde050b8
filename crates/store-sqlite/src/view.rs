//! Tasks as they are shown, read from the read-only connections.

use std::str::FromStr;

use fettle_app::ports::ledger::{
    DeadJob, Demand, Depth, L, LedgerError, Publication, RunView, TaskCursor, TaskFilter, TaskView,
};
use fettle_domain::branch::BranchName;
use fettle_domain::effect::EffectKind;
use fettle_domain::id::{CorrelationId, JobId, RunId, TaskId};
use fettle_domain::job::{JobKind, JobState};
use fettle_domain::lease::LeaseRef;
use fettle_domain::progress::{self, AtWork};
use fettle_domain::task::Mode;
use jiff::Timestamp;
use rusqlite::{Connection, params};
use uuid::Uuid;

use crate::error::unreadable;
use crate::sql::{Sql as _, first};
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
    leading: u16,
    as_draft: bool,
}

impl Row {
    /// In the order of the query of [`task`].
    fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            correlation_id: row.get(1)?,
            mode: row.get(2)?,
            generation: row.get(3)?,
            actor: row.get(4)?,
            trigger_kind: row.get(5)?,
            state: row.get(6)?,
            note: row.get(7)?,
            created_at: row.get(8)?,
            updated_at: row.get(9)?,
            subject: row.get(10)?,
            leading: row.get(11)?,
            as_draft: row.get(12)?,
        })
    }
}

pub(crate) fn task(conn: &Connection, id: TaskId) -> L<TaskView> {
    let uuid = id.as_uuid();
    let row = conn
        .maybe(
            "SELECT task.id, task.correlation_id, task.mode, task.generation,
                task.actor, task.trigger_kind, task.state, task.note, task.created_at, task.updated_at, task.subject,
                task.leading_run, task.as_draft
         FROM task WHERE task.id = ?",
            params![uuid],
            Row::read,
        )?
        .ok_or_else(|| LedgerError::NotFound(id.to_string()))?;
    let subject: Subject = stored::read(&row.subject)?;
    let run = runs(conn, id, Some(row.leading))?.pop();
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
        created_at: from_micros(row.created_at),
        updated_at: from_micros(row.updated_at),
        run,
        effects: effect::list(conn, id)?,
    })
}

/// The Task that a live lease works on, with the Run that is leased.
pub(crate) fn task_held(conn: &Connection, lease: &LeaseRef) -> L<TaskView> {
    let held = job::held_for_reading(conn, lease)?.task;
    let leased = runs(conn, held, None)?.into_iter().find(|run| run.job == lease.job);
    let task = task(conn, held)?;
    Ok(TaskView { run: leased.unwrap_or_else(|| task.run.clone()), ..task })
}

/// A Task's Runs in their order, or the one of this number.
pub(crate) fn runs(conn: &Connection, task: TaskId, ordinal: Option<u16>) -> L<Vec<RunView>> {
    struct Row {
        id: Uuid,
        ordinal: u16,
        model: Option<String>,
        instruction: Option<String>,
        job: Uuid,
        job_state: String,
        fence: i64,
        attempts: u16,
        crashes: u16,
        steps: u32,
        /// Calls, generated tokens, prompt tokens, seconds.
        spent: [i64; 4],
        result: Option<String>,
    }
    let (first, last) = ordinal.map_or((0, u16::MAX), |ordinal| (ordinal, ordinal));
    let rows: Vec<Row> = conn.all(
        "SELECT run.id, run.ordinal, run.model, run.instruction, run.job_id, job.state, job.fence, job.attempts,
                job.crashes, run.steps, run.calls, run.generated_tokens, run.prompt_tokens, run.wall_s, run.result
         FROM run JOIN job ON job.id = run.job_id WHERE run.task_id = ? AND run.ordinal BETWEEN ? AND ?
         ORDER BY run.ordinal",
        params![task.as_uuid(), first, last],
        |row| {
            Ok(Row {
                id: row.get(0)?,
                ordinal: row.get(1)?,
                model: row.get(2)?,
                instruction: row.get(3)?,
                job: row.get(4)?,
                job_state: row.get(5)?,
                fence: row.get(6)?,
                attempts: row.get(7)?,
                crashes: row.get(8)?,
                steps: row.get(9)?,
                spent: [row.get(10)?, row.get(11)?, row.get(12)?, row.get(13)?],
                result: row.get(14)?,
            })
        },
    )?;
    let view = |row: Row| {
        let [calls, generated_tokens, prompt_tokens, wall_s] = row.spent;
        Ok(RunView {
            id: RunId::from_uuid(row.id),
            ordinal: row.ordinal,
            model: row.model,
            instruction: row.instruction,
            job: JobId::from_uuid(row.job),
            job_state: row.job_state,
            fence: u64::try_from(row.fence).map_err(unreadable)?,
            attempts: row.attempts,
            crashes: row.crashes,
            steps: row.steps,
            spent: run::spent(calls, generated_tokens, prompt_tokens, wall_s)?,
            result: row.result.as_deref().map(stored::read).transpose()?,
        })
    };
    rows.into_iter().map(view).collect()
}

/// Newest first, strictly after the cursor.
pub(crate) fn tasks(conn: &Connection, filter: TaskFilter, after: Option<TaskCursor>, max: u16) -> L<Vec<TaskView>> {
    let (at, id) = match after {
        Some(cursor) => (cursor.created_at.as_microsecond(), cursor.id.as_uuid()),
        None => (i64::MAX, Uuid::max()),
    };
    let ids: L<Vec<Uuid>> = match filter.state.map(|state| state.name()) {
        Some(state) => conn.all(
            "SELECT id FROM task WHERE state = ? AND (created_at, id) < (?, ?)
             ORDER BY created_at DESC, id DESC LIMIT ?",
            params![state, at, id, max],
            first,
        ),
        None => conn.all(
            "SELECT id FROM task WHERE (created_at, id) < (?, ?)
             ORDER BY created_at DESC, id DESC LIMIT ?",
            params![at, id, max],
            first,
        ),
    };
    let mut views = Vec::new();
    for id in ids? {
        views.push(task(conn, TaskId::from_uuid(id))?);
    }
    Ok(views)
}

pub(crate) fn active(conn: &Connection, repo: u64, issue: u64) -> L<Option<TaskId>> {
    let (repo, issue) = (task::number(repo)?, task::number(issue)?);
    let id = conn.maybe(
        "SELECT id FROM task WHERE repo_forge_id = ? AND issue_number = ? AND ended_at IS NULL",
        params![repo, issue],
        first,
    )?;
    Ok(id.map(TaskId::from_uuid))
}

pub(crate) fn opened_since(conn: &Connection, installation: Option<u64>, since: Timestamp) -> L<u64> {
    let (installation, since) = (installation.map(task::number).transpose()?, since.as_microsecond());
    let count: i64 = conn.one(
        "SELECT count(*) FROM task
         WHERE created_at >= ? AND installation IS ? AND trigger_kind IN ('label', 'comment')",
        params![since, installation],
        first,
    )?;
    u64::try_from(count).map_err(unreadable)
}

pub(crate) fn actors(conn: &Connection, repo: u64, issue: u64, max: u16) -> L<Vec<String>> {
    let (repo, issue) = (task::number(repo)?, task::number(issue)?);
    conn.all(
        "SELECT actor FROM task WHERE repo_forge_id = ? AND issue_number = ? ORDER BY created_at DESC, id DESC LIMIT ?",
        params![repo, issue, max],
        first,
    )
}

pub(crate) fn publication(conn: &Connection, lease: &LeaseRef) -> L<Publication> {
    let row = job::held_for_reading(conn, lease)?;
    if row.job.kind != JobKind::Publish {
        return Err(LedgerError::Invalid(format!("{} is not a publish job", row.job.id)));
    }
    let task = task(conn, row.task)?;
    let run = job::get(conn, task.run.job)?;
    let phase = match &run.job.state {
        state if state.is_final() => None,
        JobState::Waiting { .. } if task.run.result.is_some() => Some(progress::CHOICE.to_owned()),
        _ => Some(run::phase(conn, task.run.id)?),
    };
    let run_failure = match run.job.state {
        JobState::Dead { reason } => Some(reason),
        _ => None,
    };
    let branch = BranchName::of(task.mode, task.issue.number, task.id, task.generation);
    Ok(Publication { task, branch, run_failure, phase })
}

/// `runnable`: those whose turn it can be.
/// Runs under a lease that work on an issue, the longest-standing Task first.
pub(crate) fn at_work(conn: &Connection, max: u16) -> L<Vec<AtWork>> {
    let rows: Vec<(Uuid, i64, Uuid)> = conn.all(
        "SELECT task.id, task.created_at, run.id
           FROM job INDEXED BY job_leased JOIN task ON task.id = job.task_id
             JOIN run ON run.job_id = job.id AND run.ordinal = task.leading_run
           WHERE job.leased_until IS NOT NULL AND job.kind = 'run' AND job.state = 'leased'
             AND task.repo_forge_id IS NOT NULL AND task.issue_number IS NOT NULL AND task.mode <> 'probe'
           ORDER BY task.created_at, task.id LIMIT ?",
        params![max],
        |row| row.try_into(),
    )?;
    let at_work = rows.into_iter().map(|(task, created_at, run)| {
        let task = TaskId::from_uuid(task);
        let effects = effect::list(conn, task)?;
        let told = effects.into_iter().find(|effect| effect.kind == EffectKind::Progress);
        let phase = run::phase(conn, RunId::from_uuid(run))?;
        Ok(AtWork { task, created_at: from_micros(created_at), phase, told })
    });
    at_work.collect()
}

pub(crate) fn dead(conn: &Connection, after: Option<JobId>, max: u16) -> L<Vec<DeadJob>> {
    type Row = (Uuid, String, Uuid, Option<String>, Option<String>, i64, i64);
    let rows: Vec<Row> = conn.all(
        "SELECT id, kind, task_id, reason, last_failure, attempts, crashes
         FROM job WHERE state = 'dead' AND (?1 IS NULL OR seq < (SELECT seq FROM job WHERE id = ?1))
         ORDER BY seq DESC LIMIT ?2",
        params![after.map(|job| job.as_uuid()), max],
        |row| row.try_into(),
    )?;
    let dead = rows.into_iter().map(|(job, kind, task, reason, last_failure, attempts, crashes)| {
        Ok(DeadJob {
            job: JobId::from_uuid(job),
            kind: JobKind::named(&kind).ok_or_else(|| unreadable(format!("a job of the unknown kind `{kind}`")))?,
            task: TaskId::from_uuid(task),
            reason: reason.unwrap_or_default(),
            last_failure,
            attempts: u16::try_from(attempts).map_err(unreadable)?,
            crashes: u16::try_from(crashes).map_err(unreadable)?,
        })
    });
    dead.collect()
}

pub(crate) fn demand(conn: &Connection, now: Timestamp, runnable: u32) -> L<Demand> {
    let micros = now.as_microsecond();
    let (oldest, lapsed, leased): (Option<i64>, i64, i64) = conn.one(
        "SELECT (SELECT min(runnable_at) FROM job WHERE state = 'queued' AND kind = 'run') AS oldest,
         (SELECT count(*) FROM job WHERE leased_until <= ?1 AND kind = 'run') AS lapsed,
         (SELECT count(*) FROM job WHERE leased_until > ?1 AND kind = 'run') AS leased",
        params![micros],
        |row| row.try_into(),
    )?;
    let waited = oldest.map_or(0, |oldest| (micros - oldest) / 1_000_000);
    Ok(Demand {
        runnable: u64::from(runnable) + u64::try_from(lapsed).map_err(unreadable)?,
        leased: u64::try_from(leased).map_err(unreadable)?,
        oldest_runnable_s: u64::try_from(waited).unwrap_or(0),
    })
}

pub(crate) fn depth(conn: &Connection, now: Timestamp) -> L<Depth> {
    let mut depth = Depth::default();
    let states: Vec<(String, i64)> = conn.all(
        "SELECT state, count(*) AS count FROM job WHERE state NOT IN ('done', 'cancelled') GROUP BY state",
        (),
        |row| row.try_into(),
    )?;
    for (state, count) in states {
        let count = u64::try_from(count).map_err(unreadable)?;
        match state.as_str() {
            "queued" => depth.runnable = count,
            "delayed" => depth.delayed = count,
            "waiting" => depth.waiting = count,
            "leased" | "cancelling" => depth.leased += count,
            "dead" => depth.dead = count,
            _ => {}
        }
    }
    let oldest: Option<i64> =
        conn.one("SELECT min(runnable_at) AS oldest FROM job WHERE state = 'queued'", (), first)?;
    let micros = oldest.map_or(0, |oldest| now.as_microsecond() - oldest);
    depth.oldest_runnable_s = u64::try_from(micros / 1_000_000).unwrap_or(0);
    depth.open_deliveries = u64::try_from(delivery::count_open(conn)?).map_err(unreadable)?;
    Ok(depth)
}
