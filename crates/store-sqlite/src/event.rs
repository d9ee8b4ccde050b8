//! Events: appended in the transaction of what they tell of, numbered per Task without gaps.

use fettle_app::ports::ledger::L;
use fettle_domain::event::{Event, EventBody};
use fettle_domain::id::{CorrelationId, TaskId};
use sqlx::SqlitePool;
use uuid::Uuid;

use crate::error::{OrLedger, unreadable};
use crate::stored;
use crate::time::from_micros;
use crate::writer::{Tx, Verb};

pub(crate) async fn append(tx: &mut Tx<'_>, task: TaskId, body: &EventBody) -> L<()> {
    let (id, now, body) = (task.as_uuid(), tx.now.as_microsecond(), stored::write(body)?);
    let numbered = sqlx::query!(
        r#"UPDATE task SET event_seq = event_seq + 1, updated_at = max(updated_at, ?) WHERE id = ?
           RETURNING event_seq, correlation_id AS "correlation_id: Uuid""#,
        now,
        id,
    )
    .fetch_one(&mut *tx.conn)
    .await
    .or_ledger()?;
    let inserted = sqlx::query!(
        "INSERT INTO event (task_id, task_seq, at, correlation_id, body) VALUES (?, ?, ?, ?, ?)",
        id,
        numbered.event_seq,
        now,
        numbered.correlation_id,
        body,
    )
    .execute(&mut *tx.conn)
    .await
    .or_ledger()?;
    tx.newest_event = u64::try_from(inserted.last_insert_rowid()).map_err(unreadable)?;
    Ok(())
}

/// Events after number `after`, in order, of one Task or of all.
pub(crate) async fn list(readers: &SqlitePool, task: Option<TaskId>, after: u64, max: u16) -> L<Vec<Event>> {
    struct Row {
        seq: i64,
        task_id: Uuid,
        task_seq: i64,
        at: i64,
        correlation_id: Uuid,
        body: String,
    }
    let after = i64::try_from(after).unwrap_or(i64::MAX);
    let rows = match task.map(|task| task.as_uuid()) {
        Some(task) => sqlx::query_as!(
            Row,
            r#"SELECT seq AS "seq!", task_id AS "task_id: Uuid", task_seq, at, correlation_id AS "correlation_id: Uuid", body
               FROM event WHERE task_id = ? AND seq > ? ORDER BY task_seq LIMIT ?"#,
            task,
            after,
            max,
        )
        .fetch_all(readers)
        .await,
        None => sqlx::query_as!(
            Row,
            r#"SELECT seq AS "seq!", task_id AS "task_id: Uuid", task_seq, at, correlation_id AS "correlation_id: Uuid", body
               FROM event WHERE seq > ? ORDER BY seq LIMIT ?"#,
            after,
            max,
        )
        .fetch_all(readers)
        .await,
    };
    let event = |row: Row| {
        Ok(Event {
            seq: u64::try_from(row.seq).map_err(unreadable)?,
            task: TaskId::from_uuid(row.task_id),
            task_seq: u64::try_from(row.task_seq).map_err(unreadable)?,
            at: from_micros(row.at),
            correlation: CorrelationId::from_uuid(row.correlation_id),
            body: stored::read(&row.body)?,
        })
    };
    rows.or_ledger()?.into_iter().map(event).collect()
}

/// The last event that other programs were told.
pub(crate) async fn announced(readers: &SqlitePool) -> L<u64> {
    let seq = sqlx::query_scalar!("SELECT announced_seq FROM ledger").fetch_one(readers).await.or_ledger()?;
    u64::try_from(seq).map_err(unreadable)
}

pub(crate) struct SetAnnounced {
    pub(crate) from: u64,
    pub(crate) to: u64,
}

impl Verb for SetAnnounced {
    type Out = bool;

    async fn apply(&self, tx: &mut Tx<'_>) -> L<bool> {
        let seq = |seq: u64| i64::try_from(seq).map_err(unreadable);
        let (from, to) = (seq(self.from)?, seq(self.to)?);
        let moved = sqlx::query!("UPDATE ledger SET announced_seq = ? WHERE announced_seq = ?", to, from)
            .execute(&mut *tx.conn)
            .await
            .or_ledger()?;
        Ok(moved.rows_affected() == 1)
    }
}
