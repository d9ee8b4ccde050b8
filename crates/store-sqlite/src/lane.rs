//! Lanes: where jobs stand in line, and which job is next. The rule is [`fettle_domain::turn`]'s; here it is kept in indexes.

use std::collections::BTreeMap;

use fettle_app::ports::ledger::{L, Want};
use fettle_domain::id::JobId;
use fettle_domain::job::JobKind;
use fettle_domain::turn::{AGING, Place, Slots};
use rusqlite::{Connection, params};
use uuid::Uuid;

use crate::error::unreadable;
use crate::sql::{Sql as _, first};
use crate::stored::{self, Subject};
use crate::writer::{Tx, Verb};

/// What a level of priority is worth, in a column's unit.
pub(crate) fn head_start() -> i64 {
    i64::try_from(AGING.as_micros()).expect("minutes are few microseconds")
}

pub(crate) fn place(kind: JobKind, subject: &Subject, trigger: &str) -> Place {
    Place::of(kind, subject.repo.as_ref(), subject.model.as_deref(), &subject.needs, trigger)
}

/// The lane at `place`, made when it is the first to stand there.
pub(crate) fn enter(tx: &mut Tx<'_>, kind: JobKind, order_version: u16, place: &Place) -> L<i64> {
    let (kind, needs) = (kind.name(), place.needs.to_string());
    tx.conn.run(
        "INSERT INTO pool (kind, order_version, model, needs) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        params![kind, order_version, place.model, needs],
    )?;
    tx.conn.one(
        "INSERT INTO lane (pool_id, slots_of, served_at)
           SELECT id, ?5, 0 FROM pool WHERE kind = ?1 AND order_version = ?2 AND model = ?3 AND needs = ?4
           ON CONFLICT (pool_id, slots_of) DO UPDATE SET served_at = served_at
           RETURNING id",
        params![kind, order_version, place.model, needs, place.slots_of],
        first,
    )
}

/// After a job of `lane` began or ceased to stand in line, or took or freed a slot.
pub(crate) fn refresh(tx: &mut Tx<'_>, lane: i64) -> L<()> {
    let slots_of: String = tx.conn.one("SELECT slots_of FROM lane WHERE id = ?", params![lane], first)?;
    let (slots, head_start) = (tx.slots.of(&slots_of), head_start());
    tx.conn.run(
        "UPDATE lane SET (turn_at, turn_seq) = (
             SELECT max(job.runnable_at, lane.served_at) - job.priority * ?3, job.seq FROM job
             WHERE job.lane_id = lane.id AND job.turn_at IS NOT NULL
               AND (SELECT count(DISTINCT held.task_id) FROM lane AS beside JOIN job AS held ON held.lane_id = beside.id
                    WHERE beside.slots_of = ?1 AND held.leased_until IS NOT NULL) < ?2
             ORDER BY job.turn_at, job.seq LIMIT 1)
         WHERE slots_of = ?1",
        params![slots_of, slots, head_start],
    )?;
    Ok(())
}

/// The lane's owner has had its turn, in all of its lanes.
pub(crate) fn serve(tx: &mut Tx<'_>, lane: i64) -> L<()> {
    let now = tx.now.as_microsecond();
    tx.conn.run(
        "UPDATE lane SET served_at = max(served_at, ?) WHERE slots_of = (SELECT slots_of FROM lane WHERE id = ?)",
        params![now, lane],
    )?;
    Ok(())
}

/// A pool with what its model can still take.
struct Pool {
    id: i64,
    model: String,
    free: i64,
}

/// Pools that `want` fits, without those whose model is busy. What is held is counted from the jobs at work, which are few; the
/// planner would go through the lanes, and there is one for each repository that ever asked for anything.
fn pools(conn: &Connection, slots: &Slots, want: &Want) -> L<Vec<Pool>> {
    let (kind, versions) = (want.kind.name(), serde_json::to_string(&want.versions).map_err(unreadable)?);
    let rows: Vec<(i64, String, String, i64)> = conn.all(
        "SELECT id, model, needs,
                  (SELECT count(*) FROM job INDEXED BY job_held CROSS JOIN lane ON lane.id = job.lane_id
                   CROSS JOIN pool AS beside ON beside.id = lane.pool_id
                   WHERE job.leased_until IS NOT NULL AND beside.kind = pool.kind AND beside.model = pool.model)
                  AS held
           FROM pool WHERE kind = ? AND order_version IN (SELECT value FROM json_each(?))",
        params![kind, versions],
        |row| row.try_into(),
    )?;
    let mut pools = Vec::new();
    for (id, model, needs, held) in rows {
        let free = i64::from(slots.of_model(&model)) - held;
        if free > 0 && want.meets(&needs.parse().map_err(unreadable)?) {
            pools.push(Pool { id, model, free });
        }
    }
    Ok(pools)
}

/// The job whose turn it is among those that `want` fits.
pub(crate) fn next(tx: &mut Tx<'_>, want: &Want) -> L<Option<JobId>> {
    let mut earliest: Option<(i64, i64)> = None;
    for pool in pools(tx.conn, tx.slots, want)? {
        let turn: Option<(i64, i64)> = tx.conn.maybe(
            "SELECT turn_at, turn_seq FROM lane
               WHERE pool_id = ? AND turn_at IS NOT NULL ORDER BY turn_at, turn_seq LIMIT 1",
            params![pool.id],
            |row| row.try_into(),
        )?;
        earliest = earliest.into_iter().chain(turn).min();
    }
    let Some((_, seq)) = earliest else { return Ok(None) };
    let id: Uuid = tx.conn.one("SELECT id FROM job WHERE seq = ?", params![seq], first)?;
    Ok(Some(JobId::from_uuid(id)))
}

/// Jobs that [`next`] would give one after the other, counted up to `max`.
pub(crate) fn count_next(conn: &Connection, slots: &Slots, want: &Want, max: u32) -> L<u32> {
    let (mut count, per_repository) = (0, slots.per_repository);
    let mut taken: BTreeMap<String, i64> = BTreeMap::new();
    for pool in pools(conn, slots, want)? {
        // Pools of one model share what it can take.
        let taken = taken.entry(pool.model).or_default();
        let most = (pool.free - *taken).min(i64::from(max));
        // A lane has at least one that can go, so as many lanes as are asked for are enough.
        let of_pool: i64 = conn.one(
            "SELECT coalesce(sum(min(slots - held, queued)), 0) AS count FROM (
                   SELECT CASE WHEN lane.slots_of LIKE 'repo:%' THEN ?3 ELSE ?2 + held END AS slots, held,
                          (SELECT count(*) FROM (SELECT 1 FROM job WHERE lane_id = lane.id AND turn_at IS NOT NULL
                                                 LIMIT ?2)) AS queued
                   FROM (SELECT lane.id, lane.slots_of,
                                (SELECT count(*) FROM lane AS beside JOIN job ON job.lane_id = beside.id
                                 WHERE beside.slots_of = lane.slots_of AND job.leased_until IS NOT NULL) AS held
                         FROM lane WHERE pool_id = ?1 AND turn_at IS NOT NULL LIMIT ?2) AS lane)",
            params![pool.id, most, per_repository],
            first,
        )?;
        *taken += of_pool.min(most);
        count = u32::try_from(i64::from(count) + of_pool.min(most)).unwrap_or(max).min(max);
        if count == max {
            break;
        }
    }
    Ok(count)
}

/// Puts everything in its place at start: what an older binary queued or moved without knowing of lanes, and lanes whose
/// number of slots was configured anew.
pub(crate) struct Arrange;

impl Verb for Arrange {
    type Out = ();

    fn apply(&self, tx: &mut Tx<'_>) -> L<()> {
        take_in(tx)?;
        let head_start = head_start();
        tx.conn.run("UPDATE job SET turn_at = NULL WHERE turn_at IS NOT NULL AND state <> 'queued'", ())?;
        tx.conn.run(
            "UPDATE job SET turn_at = runnable_at - priority * ? WHERE state = 'queued' AND turn_at IS NULL",
            params![head_start],
        )?;
        let lanes: Vec<i64> = tx.conn.all("SELECT min(id) AS id FROM lane GROUP BY slots_of", (), first)?;
        for lane in lanes {
            refresh(tx, lane)?;
        }
        Ok(())
    }
}

/// Jobs that stand in no lane yet.
fn take_in(tx: &mut Tx<'_>) -> L<()> {
    type Row = (Uuid, String, i64, String, String);
    let astray: Vec<Row> = tx.conn.all(
        "SELECT job.id, job.kind, job.order_version, task.trigger_kind, task.subject
           FROM job INDEXED BY job_astray JOIN task ON task.id = job.task_id
           WHERE job.lane_id IS NULL AND job.state NOT IN ('done', 'cancelled')",
        (),
        |row| row.try_into(),
    )?;
    for (id, kind, order_version, trigger, subject) in astray {
        let kind = if kind == "run" { JobKind::Run } else { JobKind::Publish };
        let place = place(kind, &stored::read(&subject)?, &trigger);
        let lane = enter(tx, kind, u16::try_from(order_version).map_err(unreadable)?, &place)?;
        let priority = place.priority.get();
        tx.conn.run("UPDATE job SET lane_id = ?, priority = ? WHERE id = ?", params![lane, priority, id])?;
    }
    Ok(())
}
