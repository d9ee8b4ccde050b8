//! Lanes: where jobs stand in line, and which job is next. The rule is [`fettle_domain::turn`]'s; here it is kept in indexes.

use fettle_app::ports::ledger::{L, Want};
use fettle_domain::id::JobId;
use fettle_domain::job::JobKind;
use fettle_domain::turn::{AGING, Place, Slots};
use sqlx::{SqliteConnection, SqlitePool};
use uuid::Uuid;

use crate::error::{OrLedger, unreadable};
use crate::stored::{self, Subject};
use crate::writer::{Tx, Verb};

/// What a level of priority is worth, in a column's unit.
pub(crate) fn head_start() -> i64 {
    i64::try_from(AGING.as_micros()).expect("minutes are few microseconds")
}

pub(crate) fn place(kind: JobKind, subject: &Subject, trigger: &str) -> Place {
    Place::of(kind, subject.repo.as_ref(), subject.model.as_deref(), trigger)
}

/// The lane at `place`, made when it is the first to stand there.
pub(crate) async fn enter(tx: &mut Tx<'_>, kind: JobKind, order_version: u16, place: &Place) -> L<i64> {
    let kind = kind.name();
    sqlx::query!(
        "INSERT INTO pool (kind, order_version, model) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        kind,
        order_version,
        place.model,
    )
    .execute(&mut *tx.conn)
    .await
    .or_ledger()?;
    sqlx::query_scalar!(
        r#"INSERT INTO lane (pool_id, slots_of, served_at)
           SELECT id, ?4, 0 FROM pool WHERE kind = ?1 AND order_version = ?2 AND model = ?3
           ON CONFLICT (pool_id, slots_of) DO UPDATE SET served_at = served_at
           RETURNING id AS "id!: i64""#,
        kind,
        order_version,
        place.model,
        place.slots_of,
    )
    .fetch_one(&mut *tx.conn)
    .await
    .or_ledger()
}

/// After a job of `lane` began or ceased to stand in line, or took or freed a slot.
pub(crate) async fn refresh(tx: &mut Tx<'_>, lane: i64) -> L<()> {
    let slots_of = sqlx::query_scalar!("SELECT slots_of FROM lane WHERE id = ?", lane)
        .fetch_one(&mut *tx.conn)
        .await
        .or_ledger()?;
    let (slots, head_start) = (tx.slots.of(&slots_of), head_start());
    sqlx::query!(
        "UPDATE lane SET (turn_at, turn_seq) = (
             SELECT max(job.runnable_at, lane.served_at) - job.priority * ?3, job.seq FROM job
             WHERE job.lane_id = lane.id AND job.turn_at IS NOT NULL
               AND (SELECT count(DISTINCT held.task_id) FROM lane AS beside JOIN job AS held ON held.lane_id = beside.id
                    WHERE beside.slots_of = ?1 AND held.leased_until IS NOT NULL) < ?2
             ORDER BY job.turn_at, job.seq LIMIT 1)
         WHERE slots_of = ?1",
        slots_of,
        slots,
        head_start,
    )
    .execute(&mut *tx.conn)
    .await
    .or_ledger()?;
    Ok(())
}

/// The lane's owner has had its turn, in all of its lanes.
pub(crate) async fn serve(tx: &mut Tx<'_>, lane: i64) -> L<()> {
    let now = tx.now.as_microsecond();
    sqlx::query!(
        "UPDATE lane SET served_at = max(served_at, ?) WHERE slots_of = (SELECT slots_of FROM lane WHERE id = ?)",
        now,
        lane,
    )
    .execute(&mut *tx.conn)
    .await
    .or_ledger()?;
    Ok(())
}

/// A pool with what its model can still take.
struct Pool {
    id: i64,
    free: i64,
}

/// Pools that `want` fits, without those whose model is busy. What is held is counted from the jobs at work, which are few; the
/// planner would go through the lanes, and there is one for each repository that ever asked for anything.
async fn pools(conn: &mut SqliteConnection, slots: &Slots, want: &Want) -> L<Vec<Pool>> {
    let (kind, versions) = (want.kind.name(), serde_json::to_string(&want.versions).map_err(unreadable)?);
    let rows = sqlx::query!(
        r#"SELECT id AS "id!: i64", model,
                  (SELECT count(*) FROM job INDEXED BY job_held CROSS JOIN lane ON lane.id = job.lane_id
                   CROSS JOIN pool AS beside ON beside.id = lane.pool_id
                   WHERE job.leased_until IS NOT NULL AND beside.kind = pool.kind AND beside.model = pool.model)
                  AS "held!: i64"
           FROM pool WHERE kind = ? AND order_version IN (SELECT value FROM json_each(?))"#,
        kind,
        versions,
    )
    .fetch_all(conn)
    .await
    .or_ledger()?;
    let free = |model: &str, held: i64| i64::from(slots.of_model(model)) - held;
    let pools = rows.into_iter().map(|row| Pool { id: row.id, free: free(&row.model, row.held) });
    Ok(pools.filter(|pool| pool.free > 0).collect())
}

/// The job whose turn it is among those that `want` fits.
pub(crate) async fn next(tx: &mut Tx<'_>, want: &Want) -> L<Option<JobId>> {
    let mut first: Option<(i64, i64)> = None;
    for pool in pools(tx.conn, tx.slots, want).await? {
        let turn = sqlx::query!(
            r#"SELECT turn_at AS "at!", turn_seq AS "seq!" FROM lane
               WHERE pool_id = ? AND turn_at IS NOT NULL ORDER BY turn_at, turn_seq LIMIT 1"#,
            pool.id,
        )
        .fetch_optional(&mut *tx.conn)
        .await
        .or_ledger()?;
        if let Some(turn) = turn {
            let turn = (turn.at, turn.seq);
            first = Some(first.map_or(turn, |first| first.min(turn)));
        }
    }
    let Some((_, seq)) = first else { return Ok(None) };
    let id = sqlx::query_scalar!(r#"SELECT id AS "id: Uuid" FROM job WHERE seq = ?"#, seq)
        .fetch_one(&mut *tx.conn)
        .await
        .or_ledger()?;
    Ok(Some(JobId::from_uuid(id)))
}

/// Jobs that [`next`] would give one after the other, counted up to `max`.
pub(crate) async fn count_next(readers: &SqlitePool, slots: &Slots, want: &Want, max: u32) -> L<u32> {
    let mut transaction = readers.begin().await.or_ledger()?;
    let (mut count, per_repository) = (0, slots.per_repository);
    for pool in pools(&mut transaction, slots, want).await? {
        let most = pool.free.min(i64::from(max));
        // A lane has at least one that can go, so as many lanes as are asked for are enough.
        let of_pool = sqlx::query_scalar!(
            r#"SELECT coalesce(sum(min(slots - held, queued)), 0) AS "count!: i64" FROM (
                   SELECT CASE WHEN lane.slots_of LIKE 'repo:%' THEN ?3 ELSE ?2 + held END AS slots, held,
                          (SELECT count(*) FROM (SELECT 1 FROM job WHERE lane_id = lane.id AND turn_at IS NOT NULL
                                                 LIMIT ?2)) AS queued
                   FROM (SELECT lane.id, lane.slots_of,
                                (SELECT count(*) FROM lane AS beside JOIN job ON job.lane_id = beside.id
                                 WHERE beside.slots_of = lane.slots_of AND job.leased_until IS NOT NULL) AS held
                         FROM lane WHERE pool_id = ?1 AND turn_at IS NOT NULL LIMIT ?2) AS lane)"#,
            pool.id,
            most,
            per_repository,
        )
        .fetch_one(&mut *transaction)
        .await
        .or_ledger()?;
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

    async fn apply(&self, tx: &mut Tx<'_>) -> L<()> {
        take_in(tx).await?;
        let head_start = head_start();
        sqlx::query!("UPDATE job SET turn_at = NULL WHERE turn_at IS NOT NULL AND state <> 'queued'")
            .execute(&mut *tx.conn)
            .await
            .or_ledger()?;
        sqlx::query!(
            "UPDATE job SET turn_at = runnable_at - priority * ? WHERE state = 'queued' AND turn_at IS NULL",
            head_start
        )
        .execute(&mut *tx.conn)
        .await
        .or_ledger()?;
        let lanes = sqlx::query_scalar!(r#"SELECT min(id) AS "id!: i64" FROM lane GROUP BY slots_of"#)
            .fetch_all(&mut *tx.conn)
            .await
            .or_ledger()?;
        for lane in lanes {
            refresh(tx, lane).await?;
        }
        Ok(())
    }
}

/// Jobs that stand in no lane yet.
async fn take_in(tx: &mut Tx<'_>) -> L<()> {
    let astray = sqlx::query!(
        r#"SELECT job.id AS "id: Uuid", job.kind, job.order_version, task.trigger_kind, task.subject
           FROM job INDEXED BY job_astray JOIN task ON task.id = job.task_id
           WHERE job.lane_id IS NULL AND job.state NOT IN ('done', 'cancelled')"#
    )
    .fetch_all(&mut *tx.conn)
    .await
    .or_ledger()?;
    for row in astray {
        let kind = if row.kind == "run" { JobKind::Run } else { JobKind::Publish };
        let place = place(kind, &stored::read(&row.subject)?, &row.trigger_kind);
        let lane = enter(tx, kind, u16::try_from(row.order_version).map_err(unreadable)?, &place).await?;
        let priority = place.priority.get();
        sqlx::query!("UPDATE job SET lane_id = ?, priority = ? WHERE id = ?", lane, priority, row.id)
            .execute(&mut *tx.conn)
            .await
            .or_ledger()?;
    }
    Ok(())
}
