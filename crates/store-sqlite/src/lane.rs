//! Lanes: where jobs stand in line, and which job is next. The rule is [`fettle_domain::turn`]'s; here it is kept in indexes.

use fettle_app::ports::ledger::{L, Want};
use fettle_domain::id::JobId;
use fettle_domain::job::JobKind;
use fettle_domain::turn::{self, AGING, Place, Slots, Standing};
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

/// `model`: of a Run.
pub(crate) fn place(kind: JobKind, subject: &Subject, model: Option<&str>, trigger: &str) -> Place {
    Place::of(kind, subject.repo.as_ref(), model, &subject.needs, trigger)
}

/// A lane, as a job's row refers to it.
#[derive(Debug, Clone)]
pub(crate) struct Lane {
    pub(crate) id: i64,
    /// Whose slots its jobs take.
    pub(crate) slots_of: String,
}

/// The lane at `place`, made when it is the first to stand there.
pub(crate) fn enter(tx: &mut Tx<'_>, kind: JobKind, order_version: u16, place: &Place) -> L<Lane> {
    let lane = |id| Lane { id, slots_of: place.slots_of.clone() };
    let (kind, needs) = (kind.name(), place.needs.to_string());
    let there = tx.conn.maybe(
        "SELECT lane.id FROM pool JOIN lane ON lane.pool_id = pool.id
         WHERE kind = ? AND order_version = ? AND model = ? AND needs = ? AND slots_of = ?",
        params![kind, order_version, place.model, needs, place.slots_of],
        first,
    )?;
    if let Some(id) = there {
        return Ok(lane(id));
    }
    tx.conn.run(
        "INSERT INTO pool (kind, order_version, model, needs) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        params![kind, order_version, place.model, needs],
    )?;
    let made = tx.conn.one(
        "INSERT INTO lane (pool_id, slots_of, served_at)
         SELECT id, ?5, 0 FROM pool WHERE kind = ?1 AND order_version = ?2 AND model = ?3 AND needs = ?4 RETURNING id",
        params![kind, order_version, place.model, needs, place.slots_of],
        first,
    )?;
    Ok(lane(made))
}

/// Whether a job's change means that the lane's owner has had its turn, in all of its lanes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Turn {
    Had,
    Kept,
}

/// After a job of `lane` began or ceased to stand in line, or took or freed a slot.
pub(crate) fn refresh(tx: &mut Tx<'_>, lane: &Lane, turn: Turn) -> L<()> {
    let served_at = match turn {
        Turn::Had => tx.now.as_microsecond(),
        Turn::Kept => 0,
    };
    tx.conn.run(
        "UPDATE lane SET served_at = max(served_at, ?4), (turn_at, turn_seq) = (
             SELECT max(job.runnable_at, lane.served_at, ?4) - job.priority * ?3, job.seq FROM job
             WHERE job.lane_id = lane.id AND job.turn_at IS NOT NULL
               AND (SELECT count(*) FROM lane AS beside JOIN job AS held ON held.lane_id = beside.id
                    WHERE beside.slots_of = ?1 AND held.leased_until IS NOT NULL) < ?2
             ORDER BY job.turn_at, job.seq LIMIT 1)
         WHERE slots_of = ?1",
        params![lane.slots_of, tx.slots.of(&lane.slots_of), head_start(), served_at],
    )?;
    Ok(())
}

/// A pool with what its model can still take.
struct Pool {
    id: i64,
    model: String,
    free: i64,
}

/// Pools that `want` fits, without those whose model is busy.
fn pools(conn: &Connection, slots: &Slots, want: &Want) -> L<Vec<Pool>> {
    let rows: Vec<(i64, u16, String, String)> = conn.all(
        "SELECT id, order_version, model, needs FROM pool WHERE kind = ?",
        params![want.kind.name()],
        |row| row.try_into(),
    )?;
    let mut pools = Vec::with_capacity(rows.len());
    for (id, order_version, model, needs) in rows {
        if !want.versions.contains(&order_version) || !want.meets(&needs.parse().map_err(unreadable)?) {
            continue;
        }
        let free = match slots.of_model(&model) {
            u32::MAX => i64::MAX,
            limit => i64::from(limit) - at_work(conn, want.kind, &model)?,
        };
        if free > 0 {
            pools.push(Pool { id, model, free });
        }
    }
    Ok(pools)
}

/// What a model has at work. It is counted from all jobs at work, which are few; the planner would go through the lanes, and
/// there is one for each repository that ever asked for anything.
fn at_work(conn: &Connection, kind: JobKind, model: &str) -> L<i64> {
    conn.one(
        "SELECT count(*) FROM job INDEXED BY job_held CROSS JOIN lane ON lane.id = job.lane_id
         CROSS JOIN pool ON pool.id = lane.pool_id
         WHERE job.leased_until IS NOT NULL AND pool.kind = ? AND pool.model = ?",
        params![kind.name(), model],
        first,
    )
}

/// The job whose turn it is among those that `want` fits.
pub(crate) fn next(tx: &mut Tx<'_>, want: &Want) -> L<Option<JobId>> {
    let mut earliest: Option<(i64, i64, Uuid)> = None;
    for pool in pools(tx.conn, tx.slots, want)? {
        let turn: Option<(i64, i64, Uuid)> = tx.conn.maybe(
            "SELECT lane.turn_at, lane.turn_seq, job.id FROM lane CROSS JOIN job ON job.seq = lane.turn_seq
             WHERE pool_id = ? AND lane.turn_at IS NOT NULL ORDER BY lane.turn_at, lane.turn_seq LIMIT 1",
            params![pool.id],
            |row| row.try_into(),
        )?;
        earliest = earliest.into_iter().chain(turn).min();
    }
    Ok(earliest.map(|(_, _, id)| JobId::from_uuid(id)))
}

/// Jobs that [`next`] would give one after the other, counted up to `max`.
pub(crate) fn count_next(conn: &Connection, slots: &Slots, want: &Want, max: u32) -> L<u32> {
    let mut standing = Vec::new();
    for pool in pools(conn, slots, want)? {
        // A lane has at least one that can go, so as many lanes as are asked for are enough.
        let lanes: Vec<(i64, i64, String, u32, u32)> = conn.all(
            "SELECT turn_at, turn_seq, slots_of,
                    (SELECT count(*) FROM lane AS beside JOIN job ON job.lane_id = beside.id
                     WHERE beside.slots_of = lane.slots_of AND job.leased_until IS NOT NULL),
                    (SELECT count(*) FROM (SELECT 1 FROM job WHERE lane_id = lane.id AND turn_at IS NOT NULL LIMIT ?2))
             FROM lane WHERE pool_id = ?1 AND turn_at IS NOT NULL ORDER BY turn_at, turn_seq LIMIT ?2",
            params![pool.id, max],
            |row| row.try_into(),
        )?;
        let free_of_model = u32::try_from(pool.free).unwrap_or(u32::MAX);
        standing.extend(lanes.into_iter().map(|(turn_at, turn_seq, slots_of, held, queued)| {
            let free_slots = slots.of(&slots_of).saturating_sub(held);
            let model = pool.model.clone();
            ((turn_at, turn_seq), Standing { slots_of, model, free_slots, free_of_model, queued })
        }));
    }
    standing.sort_by_key(|(turn, _)| *turn);
    Ok(turn::count(standing.into_iter().map(|(_, lane)| lane)).min(max))
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
        let lanes = tx.conn.all("SELECT min(id), slots_of FROM lane GROUP BY slots_of", (), |row| {
            Ok(Lane { id: row.get(0)?, slots_of: row.get(1)? })
        })?;
        for lane in lanes {
            refresh(tx, &lane, Turn::Kept)?;
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
        // Of the times before lanes, when a Task had one Run.
        let subject: Subject = stored::read(&subject)?;
        let place = place(kind, &subject, subject.model.as_deref(), &trigger);
        let lane = enter(tx, kind, u16::try_from(order_version).map_err(unreadable)?, &place)?;
        let priority = place.priority.get();
        tx.conn.run("UPDATE job SET lane_id = ?, priority = ? WHERE id = ?", params![lane.id, priority, id])?;
    }
    Ok(())
}
