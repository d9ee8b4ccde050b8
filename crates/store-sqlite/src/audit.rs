//! The invariants of `crates/README.md`, looked for in the rows themselves: one sentence for each breach.

use std::time::Duration;

use fettle_app::ports::ledger::L;
use fettle_domain::choice;
use fettle_domain::id::{JobId, TaskId};
use fettle_domain::job::JobState;
use fettle_domain::retry::{MAX_ATTEMPTS, MAX_CRASHES};
use fettle_domain::task::TaskState;
use fettle_domain::turn::Slots;
use jiff::Timestamp;
use rusqlite::{Connection, params};
use uuid::Uuid;

use crate::error::unreadable;
use crate::sql::{Sql as _, first};
use crate::time::whole_micros;
use crate::{job, task};

/// A sweep runs every half second; a lease that lapsed this long ago means that none does.
const LATE: Duration = Duration::from_secs(60);
/// Sentences of one audit; more of the same help nobody.
const MAX_BREACHES: usize = 100;

/// Empty when all invariants hold. Reads one snapshot. Without `slots`, lanes are not looked at.
pub(crate) fn audit(conn: &Connection, slots: Option<&Slots>, now: Timestamp) -> L<Vec<String>> {
    let mut breaches = Vec::new();
    identities(conn, &mut breaches)?;
    leases(conn, now, &mut breaches)?;
    if let Some(slots) = slots {
        turns(conn, slots, &mut breaches)?;
    }
    journals(conn, &mut breaches)?;
    events(conn, &mut breaches)?;
    folds(conn, &mut breaches)?;
    breaches.truncate(MAX_BREACHES);
    Ok(breaches)
}

/// I1, over and above the unique indexes: they can be lost, the rows tell.
fn identities(conn: &Connection, breaches: &mut Vec<String>) -> L<()> {
    let crowded: Vec<(i64, i64, i64)> = conn.all(
        "SELECT repo_forge_id, issue_number, count(*) AS tasks FROM task
         WHERE ended_at IS NULL AND repo_forge_id IS NOT NULL AND issue_number IS NOT NULL
         GROUP BY repo_forge_id, issue_number HAVING count(*) > 1",
        (),
        |row| row.try_into(),
    )?;
    for (repo, issue, tasks) in crowded {
        breaches.push(format!("I1: repository {repo} has {tasks} active Tasks on issue #{issue}"));
    }
    let twice: Vec<(Uuid, i64)> = conn.all(
        "SELECT task_id, count(*) AS jobs FROM job
         WHERE kind = 'publish' AND state NOT IN ('done', 'dead', 'cancelled')
         GROUP BY task_id HAVING count(*) > 1",
        (),
        |row| row.try_into(),
    )?;
    for (task, jobs) in twice {
        breaches.push(format!("I1: {} has {jobs} unfinished publish jobs", TaskId::from_uuid(task)));
    }
    Ok(())
}

/// I4: who is next is what the jobs themselves say.
fn turns(conn: &Connection, slots: &Slots, breaches: &mut Vec<String>) -> L<()> {
    type Line = (i64, String, Option<i64>, i64, Option<i64>);
    let lanes: Vec<Line> = conn.all(
        "SELECT id, slots_of, turn_seq,
                (SELECT count(*) FROM lane AS beside JOIN job ON job.lane_id = beside.id
                 WHERE beside.slots_of = lane.slots_of AND job.leased_until IS NOT NULL) AS held,
                (SELECT seq FROM job WHERE lane_id = lane.id AND turn_at IS NOT NULL
                 ORDER BY turn_at, seq LIMIT 1) AS first
         FROM lane",
        (),
        |row| row.try_into(),
    )?;
    for (id, slots_of, next, held, queued) in lanes {
        let first = queued.filter(|_| held < i64::from(slots.of(&slots_of)));
        if next != first {
            breaches.push(format!("I4: lane {id} ({slots_of}) has job {next:?} as its next and not {first:?}"));
        }
    }
    let astray = conn.all(
        "SELECT id FROM job WHERE (state = 'queued') <> (turn_at IS NOT NULL AND lane_id IS NOT NULL)",
        (),
        first,
    )?;
    breaches.extend(
        astray.into_iter().map(|id| format!("I4: {} stands in no line, or wrongly in one", JobId::from_uuid(id))),
    );
    Ok(())
}

/// I2, I3, I7 and I8 of every job that is not at rest.
fn leases(conn: &Connection, now: Timestamp, breaches: &mut Vec<String>) -> L<()> {
    let (late, max_attempts, max_crashes) = (now.as_microsecond() - whole_micros(LATE), MAX_ATTEMPTS, MAX_CRASHES);
    struct Wrong {
        id: JobId,
        fence_back: bool,
        lease_amiss: bool,
        counters_off: bool,
        late: bool,
    }
    let wrong = conn.all(
        "SELECT id,
                coalesce(ended_by, 0) > fence AS fence_back,
                (state IN ('leased', 'cancelling')) <> (leased_until IS NOT NULL AND worker_id IS NOT NULL)
                OR (leased_until IS NULL) <> (worker_id IS NULL) AS lease_amiss,
                crashes_since_step > crashes OR crashes > ?1
                OR attempts > ?2 OR (attempts = ?2 AND state NOT IN ('dead', 'cancelled')) AS counters_off,
                leased_until < ?3 AND leased_until IS NOT NULL AS late
         FROM job",
        params![max_crashes, max_attempts, late],
        |row| {
            Ok(Wrong {
                id: JobId::from_uuid(row.get(0)?),
                fence_back: row.get(1)?,
                lease_amiss: row.get(2)?,
                counters_off: row.get(3)?,
                late: row.get(4)?,
            })
        },
    )?;
    for row in wrong {
        let id = row.id;
        if row.fence_back {
            breaches.push(format!("I2: {id} was ended under a fence newer than its newest"));
        }
        if row.lease_amiss {
            breaches.push(format!("I3: {id} has a holder and a deadline without being leased, or the reverse"));
        }
        if row.counters_off {
            breaches.push(format!("I7: {id} has counters that no sequence of failures and crashes gives"));
        }
        if row.late {
            breaches.push(format!("I8: the lease of {id} lapsed more than {} s ago", LATE.as_secs()));
        }
    }
    Ok(())
}

/// I5 and I6: what ended has what it ended with.
fn journals(conn: &Connection, breaches: &mut Vec<String>) -> L<()> {
    let without_result = conn.all(
        "SELECT run.task_id FROM run JOIN job ON job.id = run.job_id
         WHERE job.state = 'done' AND run.result IS NULL",
        (),
        first,
    )?;
    for id in without_result {
        breaches.push(format!("I5: a Run of {} is done without a result", TaskId::from_uuid(id)));
    }
    let gaps = conn.all(
        "SELECT run.task_id FROM run LEFT JOIN step ON step.run_id = run.id
         GROUP BY run.id HAVING count(step.seq) <> run.steps OR coalesce(max(step.seq) + 1, 0) <> run.steps",
        (),
        first,
    )?;
    for id in gaps {
        breaches.push(format!("I5: a journal of {} has a gap", TaskId::from_uuid(id)));
    }
    let newer_than_lease = conn.all(
        "SELECT DISTINCT run.task_id FROM step JOIN run ON run.id = step.run_id
         JOIN job ON job.id = run.job_id WHERE step.fence > job.fence",
        (),
        first,
    )?;
    for id in newer_than_lease {
        breaches.push(format!("I2: {} has a step of a fence that was never issued", TaskId::from_uuid(id)));
    }
    let open = conn.all(
        "SELECT DISTINCT effect.task_id FROM effect
         JOIN job ON job.task_id = effect.task_id AND job.kind = 'publish'
         WHERE effect.state <> 'settled' AND job.state = 'done'
           AND NOT EXISTS (SELECT 1 FROM job AS later WHERE later.task_id = job.task_id AND later.kind = 'publish'
                           AND later.seq > job.seq)",
        (),
        first,
    )?;
    for id in open {
        breaches.push(format!("I6: {} is published with an effect that is not settled", TaskId::from_uuid(id)));
    }
    Ok(())
}

/// I9, first half: numbers without gaps.
fn events(conn: &Connection, breaches: &mut Vec<String>) -> L<()> {
    let gaps = conn.all(
        "SELECT task.id FROM task LEFT JOIN event ON event.task_id = task.id
         GROUP BY task.id
         HAVING count(event.seq) <> task.event_seq OR coalesce(max(event.task_seq), 0) <> task.event_seq",
        (),
        first,
    )?;
    for id in gaps {
        breaches.push(format!("I9: the events of {} have a gap", TaskId::from_uuid(id)));
    }
    Ok(())
}

/// I9, second half: the shown state is the fold of the jobs, and an end was told last.
fn folds(conn: &Connection, breaches: &mut Vec<String>) -> L<()> {
    type Told = (Uuid, String, Option<i64>, u16, bool, Option<Uuid>, Option<String>);
    let rows: Vec<Told> = conn.all(
        "SELECT task.id, task.state, task.ended_at, task.leading_run, task.cancelled_by IS NOT NULL,
                (SELECT job.id FROM job WHERE job.task_id = task.id AND job.kind = 'publish'
                 ORDER BY job.state = 'cancelled' DESC, job.seq DESC LIMIT 1) AS publish_job,
                (SELECT json_extract(event.body, '$.value.type') FROM event WHERE event.task_id = task.id
                 AND json_extract(event.body, '$.value.type')
                     IN ('task_created', 'redriven', 'runs_added', 'task_done', 'task_cancelled')
                 ORDER BY event.task_seq DESC LIMIT 1) AS turn
         FROM task",
        (),
        |row| row.try_into(),
    )?;
    for (id, state, ended_at, leading, is_cancelled, publish, turn) in rows {
        let id = TaskId::from_uuid(id);
        let run = speaker(conn, id, leading, is_cancelled)?;
        let publish: Option<JobState> = match publish {
            Some(job) => Some(job::get(conn, JobId::from_uuid(job))?.job.state),
            None => None,
        };
        let folded = TaskState::fold(&run, publish.as_ref());
        let shown = task::state_of(&state)?;
        if folded != shown || folded.is_final() != ended_at.is_some() {
            breaches.push(format!("I9: {id} is shown as {} and its jobs say {}", shown.name(), folded.name()));
        }
        let told = match turn.as_deref() {
            Some("task_done") => Some(TaskState::Done),
            Some("task_cancelled") => Some(TaskState::Cancelled),
            _ => None,
        };
        let ended = Some(folded).filter(|state| state.is_final());
        // A Task whose effects are wanted again after its end goes on without a word and ends once more.
        if ended.is_some() && told != ended {
            breaches.push(format!("I9: {id} is {} and its events tell of another end", folded.name()));
        }
    }
    Ok(())
}

/// What the Run's job says that speaks for the Task.
fn speaker(conn: &Connection, task: TaskId, leading: u16, is_cancelled: bool) -> L<JobState> {
    let runs: Vec<(u16, Uuid)> = conn.all(
        "SELECT ordinal, job_id FROM run WHERE task_id = ? ORDER BY ordinal",
        params![task.as_uuid()],
        |row| row.try_into(),
    )?;
    let mut jobs = Vec::with_capacity(runs.len());
    for (_, job) in &runs {
        jobs.push(job::get(conn, JobId::from_uuid(*job))?.job.state);
    }
    let leading = runs.iter().position(|(ordinal, _)| *ordinal == leading);
    let leading = leading.ok_or_else(|| unreadable(format!("{task} has no leading Run")))?;
    let speaker = choice::speaker(&jobs.iter().collect::<Vec<_>>(), leading, is_cancelled);
    Ok(jobs.swap_remove(speaker))
}
