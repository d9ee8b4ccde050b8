//! The invariants of `crates/README.md`, looked for in the rows themselves: one sentence for each breach.

use std::collections::BTreeMap;
use std::time::Duration;

use fettle_domain::choice;
use fettle_domain::id::{JobId, TaskId};
use fettle_domain::job::JobState;
use fettle_domain::retry::{MAX_ATTEMPTS, MAX_CRASHES};
use fettle_domain::task::TaskState;
use fettle_domain::turn::Slots;
use futures::TryStreamExt as _;
use jiff::Timestamp;
use sqlx::PgConnection;

use crate::error::{OrLedger, R, unreadable};
use crate::time::{Instant, before};
use crate::{job, task};

/// A sweep runs every half second; a lease that lapsed this long ago means that none does.
const LATE: Duration = Duration::from_secs(60);
/// Sentences of one audit; more of the same help nobody.
const MAX_BREACHES: usize = 100;

/// Empty when all invariants hold. Reads one snapshot.
pub(crate) async fn audit(conn: &mut PgConnection, slots: &Slots, now: Timestamp) -> R<Vec<String>> {
    let mut breaches = Vec::new();
    identities(conn, &mut breaches).await?;
    leases(conn, now, &mut breaches).await?;
    turns(conn, slots, &mut breaches).await?;
    journals(conn, &mut breaches).await?;
    events(conn, &mut breaches).await?;
    folds(conn, &mut breaches).await?;
    breaches.truncate(MAX_BREACHES);
    Ok(breaches)
}

/// I1, over and above the unique indexes: they can be lost, the rows tell.
async fn identities(conn: &mut PgConnection, breaches: &mut Vec<String>) -> R<()> {
    let crowded = sqlx::query!(
        r#"SELECT repo_forge_id, issue_number, count(*) AS "tasks!" FROM task
           WHERE ended_at IS NULL AND repo_forge_id IS NOT NULL AND issue_number IS NOT NULL
           GROUP BY repo_forge_id, issue_number HAVING count(*) > 1"#
    )
    .fetch_all(&mut *conn)
    .await
    .or_ledger()?;
    for row in crowded {
        let (repo, issue) = (row.repo_forge_id.unwrap_or(0), row.issue_number.unwrap_or(0));
        breaches.push(format!("I1: repository {repo} has {} active Tasks on issue #{issue}", row.tasks));
    }
    let twice = sqlx::query!(
        r#"SELECT task_id, count(*) AS "jobs!" FROM job
           WHERE kind = 'publish' AND state NOT IN ('done', 'dead', 'cancelled')
           GROUP BY task_id HAVING count(*) > 1"#
    )
    .fetch_all(conn)
    .await
    .or_ledger()?;
    for row in twice {
        breaches.push(format!("I1: {} has {} unfinished publish jobs", TaskId::from_uuid(row.task_id), row.jobs));
    }
    Ok(())
}

/// I4: nobody has more at work than its slots, and whoever is queued stands in line.
async fn turns(conn: &mut PgConnection, slots: &Slots, breaches: &mut Vec<String>) -> R<()> {
    let owners = sqlx::query!(
        r#"SELECT lane.slots_of, count(*) AS "held!"
           FROM job JOIN lane ON lane.id = job.lane_id WHERE job.leased_until IS NOT NULL GROUP BY lane.slots_of"#
    )
    .fetch_all(&mut *conn)
    .await
    .or_ledger()?;
    for owner in owners {
        let (held, allowed) = (owner.held, slots.of(&owner.slots_of));
        if held > i64::from(allowed) {
            breaches.push(format!("I4: {} has {held} jobs at work, {allowed} may be", owner.slots_of));
        }
    }
    let astray = sqlx::query_scalar!("SELECT id FROM job WHERE (state = 'queued') <> (turn_at IS NOT NULL)")
        .fetch_all(conn)
        .await
        .or_ledger()?;
    breaches.extend(
        astray.into_iter().map(|id| format!("I4: {} stands in no line, or wrongly in one", JobId::from_uuid(id))),
    );
    Ok(())
}

/// I2, I3, I7 and I8 of every job.
async fn leases(conn: &mut PgConnection, now: Timestamp, breaches: &mut Vec<String>) -> R<()> {
    let wrong = sqlx::query!(
        r#"SELECT id, fence_back AS "fence_back!", lease_amiss AS "lease_amiss!", counters_off AS "counters_off!",
                  late AS "late!"
           FROM (SELECT id,
                        coalesce(ended_by, 0) > fence AS fence_back,
                        (state IN ('leased', 'cancelling')) <> (leased_until IS NOT NULL AND worker_id IS NOT NULL)
                        OR (leased_until IS NULL) <> (worker_id IS NULL) AS lease_amiss,
                        crashes_since_step > crashes OR crashes > $1
                        OR attempts > $2 OR (attempts = $2 AND state NOT IN ('dead', 'cancelled')) AS counters_off,
                        leased_until IS NOT NULL AND leased_until < $3 AS late
                 FROM job) AS judged
           WHERE fence_back OR lease_amiss OR counters_off OR late LIMIT $4"#,
        i64::from(MAX_CRASHES),
        i64::from(MAX_ATTEMPTS),
        Instant(before(now, LATE)),
        MAX_BREACHES as i64,
    )
    .fetch_all(conn)
    .await
    .or_ledger()?;
    for row in wrong {
        let id = JobId::from_uuid(row.id);
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
async fn journals(conn: &mut PgConnection, breaches: &mut Vec<String>) -> R<()> {
    let without_result = sqlx::query_scalar!(
        r#"SELECT run.task_id AS "task_id!" FROM run JOIN job ON job.id = run.job_id
           WHERE job.state = 'done' AND run.result IS NULL"#
    )
    .fetch_all(&mut *conn)
    .await
    .or_ledger()?;
    for id in without_result {
        breaches.push(format!("I5: a Run of {} is done without a result", TaskId::from_uuid(id)));
    }
    let gaps = sqlx::query_scalar!(
        r#"SELECT run.task_id AS "task_id!" FROM run LEFT JOIN step ON step.run_id = run.id
           GROUP BY run.id HAVING count(step.seq) <> run.steps OR coalesce(max(step.seq) + 1, 0) <> run.steps"#
    )
    .fetch_all(&mut *conn)
    .await
    .or_ledger()?;
    for id in gaps {
        breaches.push(format!("I5: a journal of {} has a gap", TaskId::from_uuid(id)));
    }
    let newer_than_lease = sqlx::query_scalar!(
        r#"SELECT DISTINCT run.task_id AS "task_id!" FROM step JOIN run ON run.id = step.run_id
           JOIN job ON job.id = run.job_id WHERE step.fence > job.fence"#
    )
    .fetch_all(&mut *conn)
    .await
    .or_ledger()?;
    for id in newer_than_lease {
        breaches.push(format!("I2: {} has a step of a fence that was never issued", TaskId::from_uuid(id)));
    }
    let open = sqlx::query_scalar!(
        r#"SELECT DISTINCT effect.task_id FROM effect
           JOIN job ON job.task_id = effect.task_id AND job.kind = 'publish'
           WHERE effect.state <> 'settled' AND job.state = 'done'
             AND NOT EXISTS (SELECT 1 FROM job AS later WHERE later.task_id = job.task_id AND later.kind = 'publish'
                             AND later.seq > job.seq)"#
    )
    .fetch_all(conn)
    .await
    .or_ledger()?;
    for id in open {
        breaches.push(format!("I6: {} is published with an effect that is not settled", TaskId::from_uuid(id)));
    }
    Ok(())
}

/// I9, first half: numbers without gaps.
async fn events(conn: &mut PgConnection, breaches: &mut Vec<String>) -> R<()> {
    let gaps = sqlx::query_scalar!(
        r#"SELECT task.id AS "id!" FROM task LEFT JOIN event ON event.task_id = task.id
           GROUP BY task.id HAVING count(event.seq) <> task.event_seq OR coalesce(max(event.task_seq), 0) <> task.event_seq"#
    )
    .fetch_all(conn)
    .await
    .or_ledger()?;
    for id in gaps {
        breaches.push(format!("I9: the events of {} have a gap", TaskId::from_uuid(id)));
    }
    Ok(())
}

/// I9, second half: the shown state is the fold of the jobs, and an end was told last.
async fn folds(conn: &mut PgConnection, breaches: &mut Vec<String>) -> R<()> {
    let several = several(conn).await?;
    // Row by row as they come: there may be as many as there ever were Tasks.
    let mut rows = sqlx::query!(
        r#"SELECT task.id, task.state, task.ended_at,
                  run.state AS run_state, coalesce(run.delayed_until, run.leased_until) AS run_until,
                  run.worker_id AS run_worker, run.reason AS run_reason,
                  publish.state AS "publish_state?", coalesce(publish.delayed_until, publish.leased_until) AS publish_until,
                  publish.worker_id AS publish_worker, publish.reason AS publish_reason, turn.kind AS "turn?"
           FROM task JOIN run AS tried ON tried.task_id = task.id AND tried.ordinal = task.leading_run
           JOIN job AS run ON run.id = tried.job_id
           LEFT JOIN LATERAL (SELECT * FROM job WHERE job.task_id = task.id AND job.kind = 'publish'
                              ORDER BY job.state = 'cancelled' DESC, job.seq DESC LIMIT 1) AS publish ON true
           LEFT JOIN LATERAL (SELECT event.kind FROM event WHERE event.task_id = task.id
                              AND event.kind IN ('task_created', 'redriven', 'runs_added', 'task_done', 'task_cancelled')
                              ORDER BY event.task_seq DESC LIMIT 1) AS turn ON true"#
    )
    .fetch(conn);
    while let Some(row) = rows.try_next().await.or_ledger()? {
        let id = TaskId::from_uuid(row.id);
        let bad = |what| unreadable(format!("a job of {id} {what}"));
        let leading = job::state_of(&row.run_state, row.run_until, row.run_worker, row.run_reason).map_err(bad)?;
        let run = several.get(&id).cloned().unwrap_or(leading);
        let publish = match row.publish_state {
            Some(state) => {
                let (until, worker, reason) = (row.publish_until, row.publish_worker, row.publish_reason);
                Some(job::state_of(&state, until, worker, reason).map_err(bad)?)
            }
            None => None,
        };
        let folded = TaskState::fold(&run, publish.as_ref());
        let shown = task::state_of(&row.state)?;
        if folded != shown || folded.is_final() != row.ended_at.is_some() {
            breaches.push(format!("I9: {id} is shown as {} and its jobs say {}", shown.name(), folded.name()));
        }
        let told = match row.turn.as_deref() {
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

/// Of Tasks with several Runs, which are few: what the Run's job says that speaks for the Task.
async fn several(conn: &mut PgConnection) -> R<BTreeMap<TaskId, JobState>> {
    let rows = sqlx::query!(
        r#"SELECT run.task_id, run.job_id, run.ordinal = task.leading_run AS "leads!",
                  task.cancelled_by IS NOT NULL AS "is_cancelled!"
           FROM run JOIN task ON task.id = run.task_id
           WHERE run.task_id IN (SELECT task_id FROM run WHERE ordinal > 1) ORDER BY run.task_id, run.ordinal"#
    )
    .fetch_all(&mut *conn)
    .await
    .or_ledger()?;
    let mut runs: BTreeMap<TaskId, (Vec<JobState>, usize, bool)> = BTreeMap::new();
    for row in rows {
        let job = job::get(conn, JobId::from_uuid(row.job_id)).await?.job.state;
        let (jobs, leading, is_cancelled) = runs.entry(TaskId::from_uuid(row.task_id)).or_default();
        *is_cancelled = row.is_cancelled;
        if row.leads {
            *leading = jobs.len();
        }
        jobs.push(job);
    }
    let speaks = |(task, (mut jobs, leading, is_cancelled)): (TaskId, (Vec<JobState>, usize, bool))| {
        let speaker = choice::speaker(&jobs.iter().collect::<Vec<_>>(), leading, is_cancelled);
        (task, jobs.swap_remove(speaker))
    };
    Ok(runs.into_iter().map(speaks).collect())
}
