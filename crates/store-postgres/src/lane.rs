//! Lanes: where jobs stand in line, and which job is next. The rule is [`fettle_domain::turn`]'s.
//!
//! Leases of a kind are given one after the other, under [`crate::lock::leases`], and nothing else takes a slot. So whoever
//! holds that lock may count: slots can become free meanwhile, and never fewer.

use std::collections::BTreeMap;

use fettle_app::ports::ledger::Want;
use fettle_domain::id::JobId;
use fettle_domain::job::JobKind;
use fettle_domain::turn::{self, AGING, Place, Slots, Standing};
use sqlx::PgConnection;

use crate::error::{OrLedger, R, unreadable};
use crate::stored::Subject;
use crate::time::Instant;
use crate::writer::Tx;

/// `model`: of a Run.
pub(crate) fn place(kind: JobKind, subject: &Subject, model: Option<&str>, trigger: &str) -> Place {
    Place::of(kind, subject.repo.as_ref(), model, &subject.needs, trigger)
}

/// The lane at `place`, made when it is the first to stand there.
pub(crate) async fn enter(tx: &mut Tx<'_>, kind: JobKind, order_version: u16, place: &Place) -> R<i64> {
    if let Some(lane) = lane_at(tx, kind, order_version, place).await? {
        return Ok(lane);
    }
    sqlx::query!(
        "INSERT INTO pool (kind, order_version, model, needs) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
        kind.name(),
        i64::from(order_version),
        place.model,
        place.needs.to_string(),
    )
    .execute(&mut *tx.conn)
    .await
    .or_ledger()?;
    sqlx::query!(
        "INSERT INTO lane (pool_id, slots_of)
         SELECT id, $5 FROM pool WHERE kind = $1 AND order_version = $2 AND model = $3 AND needs = $4
         ON CONFLICT DO NOTHING",
        kind.name(),
        i64::from(order_version),
        place.model,
        place.needs.to_string(),
        place.slots_of,
    )
    .execute(&mut *tx.conn)
    .await
    .or_ledger()?;
    let lane = lane_at(tx, kind, order_version, place).await?;
    Ok(lane.ok_or_else(|| unreadable(format!("the lane of {} is gone", place.slots_of)))?)
}

async fn lane_at(tx: &mut Tx<'_>, kind: JobKind, order_version: u16, place: &Place) -> R<Option<i64>> {
    sqlx::query_scalar!(
        "SELECT lane.id FROM pool JOIN lane ON lane.pool_id = pool.id
         WHERE pool.kind = $1 AND pool.order_version = $2 AND pool.model = $3 AND pool.needs = $4 AND lane.slots_of = $5",
        kind.name(),
        i64::from(order_version),
        place.model,
        place.needs.to_string(),
        place.slots_of,
    )
    .fetch_optional(&mut *tx.conn)
    .await
    .or_ledger()
}

/// The owner of the job's lane has had its turn, in all of its lanes.
pub(crate) async fn serve(tx: &mut Tx<'_>, lane: i64) -> R<()> {
    sqlx::query!(
        "UPDATE lane SET served_at = greatest(served_at, $1) WHERE slots_of = (SELECT slots_of FROM lane WHERE id = $2)",
        Instant(tx.now),
        lane,
    )
    .execute(&mut *tx.conn)
    .await
    .or_ledger()?;
    Ok(())
}

/// What is left of the slots.
struct Room {
    /// Pools that `want` fits and whose model is not busy, with that model.
    pools: BTreeMap<i64, String>,
    /// What each model can still take.
    of_model: BTreeMap<String, i64>,
    /// Whose slots jobs hold, and how many.
    held: BTreeMap<String, i64>,
}

impl Room {
    async fn read(conn: &mut PgConnection, slots: &Slots, want: &Want) -> R<Self> {
        let versions: Vec<i64> = want.versions.iter().map(|&version| i64::from(version)).collect();
        let pools = sqlx::query!(
            r#"SELECT id, model, needs,
                      (SELECT count(*) FROM pool AS beside JOIN lane ON lane.pool_id = beside.id
                       JOIN job ON job.lane_id = lane.id
                       WHERE beside.kind = pool.kind AND beside.model = pool.model AND job.leased_until IS NOT NULL)
                      AS "held!"
               FROM pool WHERE kind = $1 AND order_version = ANY($2)"#,
            want.kind.name(),
            &versions,
        )
        .fetch_all(&mut *conn)
        .await
        .or_ledger()?;
        let held = sqlx::query!(
            r#"SELECT lane.slots_of, count(*) AS "jobs!"
               FROM job JOIN lane ON lane.id = job.lane_id WHERE job.leased_until IS NOT NULL GROUP BY lane.slots_of"#
        )
        .fetch_all(conn)
        .await
        .or_ledger()?;
        let mut room = Self {
            pools: BTreeMap::new(),
            of_model: BTreeMap::new(),
            held: held.into_iter().map(|owner| (owner.slots_of, owner.jobs)).collect(),
        };
        for pool in pools {
            let free = i64::from(slots.of_model(&pool.model)) - pool.held;
            if free > 0 && want.meets(&pool.needs.parse().map_err(unreadable)?) {
                room.of_model.insert(pool.model.clone(), free);
                room.pools.insert(pool.id, pool.model);
            }
        }
        Ok(room)
    }

    fn pools(&self) -> Vec<i64> {
        self.pools.keys().copied().collect()
    }

    fn free(&self, slots: &Slots, slots_of: &str) -> i64 {
        i64::from(slots.of(slots_of)) - self.held.get(slots_of).copied().unwrap_or(0)
    }

    /// Those whose slots are all taken.
    fn full(&self, slots: &Slots) -> Vec<String> {
        self.held.keys().filter(|slots_of| self.free(slots, slots_of) <= 0).cloned().collect()
    }
}

/// The first job of each lane that has room, whose turn is first first; at most `max`. One after the other is tried, because
/// a job that another dashboard has its hand on is not waited for.
pub(crate) async fn next(tx: &mut Tx<'_>, want: &Want, max: i64) -> R<Vec<JobId>> {
    let room = Room::read(tx.conn, tx.slots, want).await?;
    let head_start = i64::try_from(AGING.as_micros()).map_err(unreadable)?;
    let ids = sqlx::query_scalar!(
        "SELECT first.id FROM lane CROSS JOIN LATERAL (
             SELECT job.id, job.runnable_at, job.priority, job.seq FROM job
             WHERE job.lane_id = lane.id AND job.turn_at IS NOT NULL ORDER BY job.turn_at, job.seq LIMIT 1) AS first
         WHERE lane.pool_id = ANY($1) AND NOT lane.slots_of = ANY($2)
         ORDER BY greatest(first.runnable_at, lane.served_at) - first.priority * $3 * interval '1 microsecond', first.seq
         LIMIT $4",
        &room.pools(),
        &room.full(tx.slots),
        head_start as f64,
        max,
    )
    .fetch_all(&mut *tx.conn)
    .await
    .or_ledger()?;
    Ok(ids.into_iter().map(JobId::from_uuid).collect())
}

/// Jobs that leases would give one after the other, counted up to `max`.
pub(crate) async fn count_next(conn: &mut PgConnection, slots: &Slots, want: &Want, max: u32) -> R<u32> {
    let room = Room::read(conn, slots, want).await?;
    let head_start = i64::try_from(AGING.as_micros()).map_err(unreadable)?;
    let lanes = sqlx::query!(
        r#"SELECT lane.pool_id, lane.slots_of, counted.queued AS "queued!" FROM lane CROSS JOIN LATERAL (
               SELECT job.runnable_at, job.priority, job.seq FROM job
               WHERE job.lane_id = lane.id AND job.turn_at IS NOT NULL ORDER BY job.turn_at, job.seq LIMIT 1) AS first
           CROSS JOIN LATERAL (
               SELECT count(*) AS queued FROM (
                   SELECT FROM job WHERE job.lane_id = lane.id AND job.turn_at IS NOT NULL LIMIT $2) AS first_ones) AS counted
           WHERE lane.pool_id = ANY($1)
           ORDER BY greatest(first.runnable_at, lane.served_at) - first.priority * $3 * interval '1 microsecond', first.seq"#,
        &room.pools(),
        i64::from(max),
        head_start as f64,
    )
    .fetch_all(conn)
    .await
    .or_ledger()?;
    let mut standing = Vec::with_capacity(lanes.len());
    for lane in lanes {
        let Some(model) = room.pools.get(&lane.pool_id) else { continue };
        let free_of_model = room.of_model.get(model).copied().unwrap_or(0);
        standing.push(Standing {
            model: model.clone(),
            free_slots: u32::try_from(room.free(slots, &lane.slots_of).max(0)).unwrap_or(u32::MAX),
            free_of_model: u32::try_from(free_of_model.max(0)).unwrap_or(u32::MAX),
            queued: u32::try_from(lane.queued).map_err(unreadable)?,
            slots_of: lane.slots_of,
        });
    }
    Ok(turn::count(standing).min(max))
}
