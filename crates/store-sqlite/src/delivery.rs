//! Raw deliveries: stored whole before they are answered, closed when a Task or a verdict came of them.

use std::collections::BTreeSet;
use std::time::Duration;

use fettle_app::ports::ledger::{Accepted, Delivery, L, LedgerError};
use fettle_domain::id::{CorrelationId, DeliveryId};
use jiff::Timestamp;
use serde::Serialize;
use sqlx::SqlitePool;
use uuid::Uuid;

use crate::error::{OrLedger, unreadable};
use crate::time::{after, from_micros};
use crate::writer::{AcceptAsk, Tx, Verb};

/// A delivery's place in the one blob that carries a group's ids and bodies: 16 bytes id, 16 bytes correlation, body.
#[derive(Serialize)]
struct Packed<'a> {
    at: usize,
    bytes: usize,
    key: &'a str,
    event: &'a str,
    received_at: i64,
}

const ID_BYTES: usize = 16;

/// Stores a group of deliveries in one statement and notes in each whether it was new. Returns the newest row number.
///
/// Ids and bodies travel as one blob that SQLite cuts up: bound one by one they would cost a thread hop each, and as
/// JSON text they would be escaped and parsed.
pub(crate) async fn accept_all(tx: &mut Tx<'_>, newest: i64, asked: &mut [&mut AcceptAsk]) -> L<i64> {
    let mut blob = Vec::with_capacity(asked.iter().map(|ask| ask.delivery.body.len() + 2 * ID_BYTES).sum());
    let mut packed = Vec::with_capacity(asked.len());
    for ask in asked.iter() {
        let delivery = &ask.delivery;
        packed.push(Packed {
            at: blob.len() + 1,
            bytes: delivery.body.len(),
            key: &delivery.key,
            event: &delivery.event,
            received_at: delivery.received_at.as_microsecond(),
        });
        blob.extend_from_slice(delivery.id.as_uuid().as_bytes());
        blob.extend_from_slice(delivery.correlation.as_uuid().as_bytes());
        blob.extend_from_slice(&delivery.body);
    }
    let packed = serde_json::to_string(&packed).map_err(|e| LedgerError::Invalid(e.to_string()))?;
    let first = newest + 1;
    let stored = sqlx::query!(
        "INSERT INTO delivery (seq, id, key, event, correlation_id, received_at, body)
         SELECT ?1 + item.key,
                substr(?2, item.value ->> 'at', 16),
                item.value ->> 'key',
                item.value ->> 'event',
                substr(?2, (item.value ->> 'at') + 16, 16),
                item.value ->> 'received_at',
                substr(?2, (item.value ->> 'at') + 32, item.value ->> 'bytes')
         FROM json_each(?3) AS item WHERE true
         ON CONFLICT DO NOTHING",
        first,
        blob,
        packed,
    )
    .execute(&mut *tx.conn)
    .await
    .or_ledger()?
    .rows_affected();

    let all_new = usize::try_from(stored) == Ok(asked.len());
    let new: BTreeSet<i64> = if all_new {
        BTreeSet::new()
    } else {
        sqlx::query_scalar!(r#"SELECT seq AS "seq!" FROM delivery WHERE seq >= ?"#, first)
            .fetch_all(&mut *tx.conn)
            .await
            .or_ledger()?
            .into_iter()
            .collect()
    };
    let mut last = newest;
    for (seq, ask) in (first..).zip(asked.iter_mut()) {
        ask.out = if all_new || new.contains(&seq) { Accepted::New } else { Accepted::Duplicate };
        last = seq;
    }
    if stored > 0 {
        tx.wakes.delivery();
    }
    Ok(last)
}

/// The oldest `max` deliveries that nothing has come of yet and that do not wait.
pub(crate) async fn open(readers: &SqlitePool, now: Timestamp, max: u16) -> L<Vec<Delivery>> {
    let now = now.as_microsecond();
    let rows = sqlx::query!(
        r#"SELECT id AS "id: Uuid", key, event, correlation_id AS "correlation_id: Uuid", received_at, body
           FROM delivery WHERE closed_at IS NULL AND coalesce(not_before, 0) <= ? ORDER BY seq LIMIT ?"#,
        now,
        max,
    )
    .fetch_all(readers)
    .await
    .or_ledger()?;
    let delivery = rows.into_iter().map(|row| Delivery {
        id: DeliveryId::from_uuid(row.id),
        key: row.key,
        event: row.event,
        body: row.body.into(),
        correlation: CorrelationId::from_uuid(row.correlation_id),
        received_at: from_micros(row.received_at),
    });
    Ok(delivery.collect())
}

/// Whether one has come since then whose key begins with `prefix`.
pub(crate) async fn received_since(readers: &SqlitePool, prefix: &str, since: Timestamp) -> L<bool> {
    // Beyond every key with the prefix: in UTF-8, as in the index, nothing sorts above it.
    let end = format!("{prefix}{}", char::MAX);
    let since = since.as_microsecond();
    let found = sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT 1 FROM delivery WHERE key >= ? AND key < ? AND received_at >= ?) AS "found: bool""#,
        prefix,
        end,
        since,
    )
    .fetch_one(readers)
    .await
    .or_ledger()?;
    Ok(found)
}

pub(crate) struct Close {
    pub(crate) id: DeliveryId,
    pub(crate) verdict: String,
}

impl Verb for Close {
    type Out = ();

    async fn apply(&self, tx: &mut Tx<'_>) -> L<()> {
        close(tx, self.id, &self.verdict).await
    }
}

pub(crate) struct Postpone {
    pub(crate) id: DeliveryId,
    pub(crate) wait: Duration,
}

impl Verb for Postpone {
    type Out = ();

    async fn apply(&self, tx: &mut Tx<'_>) -> L<()> {
        let (id, until) = (self.id.as_uuid(), after(tx.now, self.wait).as_microsecond());
        sqlx::query!("UPDATE delivery SET not_before = ? WHERE id = ? AND closed_at IS NULL", until, id)
            .execute(&mut *tx.conn)
            .await
            .or_ledger()?;
        Ok(())
    }
}

/// The first verdict stays.
pub(crate) async fn close(tx: &mut Tx<'_>, id: DeliveryId, verdict: &str) -> L<()> {
    let (uuid, now) = (id.as_uuid(), tx.now.as_microsecond());
    let closed = sqlx::query!(
        "UPDATE delivery SET verdict = coalesce(verdict, ?), closed_at = coalesce(closed_at, ?) WHERE id = ?",
        verdict,
        now,
        uuid,
    )
    .execute(&mut *tx.conn)
    .await
    .or_ledger()?;
    match closed.rows_affected() {
        1 => Ok(()),
        0 => Err(LedgerError::NotFound(id.to_string())),
        more => Err(unreadable(format!("{more} deliveries have the id {id}"))),
    }
}

pub(crate) async fn count_open(readers: &SqlitePool) -> L<i64> {
    sqlx::query_scalar!("SELECT count(*) FROM delivery WHERE closed_at IS NULL").fetch_one(readers).await.or_ledger()
}
