//! Raw deliveries: stored whole before they are answered, closed when a Task or a verdict came of them.

use std::time::Duration;

use fettle_app::ports::ledger::{Accepted, Delivery, LedgerError};
use fettle_domain::id::{CorrelationId, DeliveryId};
use jiff::Timestamp;
use sqlx::PgConnection;

use crate::error::{OrLedger, R, unreadable};
use crate::stored;
use crate::time::{Instant, after};
use crate::writer::{Tx, Verb};

pub(crate) struct Accept {
    pub(crate) delivery: Delivery,
}

impl Verb for Accept {
    type Out = Accepted;

    async fn apply(&self, tx: &mut Tx<'_>) -> R<Accepted> {
        let delivery = &self.delivery;
        // The same one, on its way into another dashboard, is waited for: a duplicate is one of something durable.
        let stored = sqlx::query!(
            "INSERT INTO delivery (id, key, event, correlation_id, received_at, body) VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT DO NOTHING",
            delivery.id.as_uuid(),
            stored::text(&delivery.key),
            stored::text(&delivery.event),
            delivery.correlation.as_uuid(),
            Instant(delivery.received_at),
            delivery.body.as_ref(),
        )
        .execute(&mut *tx.conn)
        .await
        .or_ledger()?;
        if stored.rows_affected() == 0 {
            return Ok(Accepted::Duplicate);
        }
        tx.wakes.delivery();
        Ok(Accepted::New)
    }
}

/// The oldest `max` deliveries that nothing has come of yet and that do not wait.
pub(crate) async fn open(conn: &mut PgConnection, now: Timestamp, max: u16) -> R<Vec<Delivery>> {
    let rows = sqlx::query!(
        "SELECT id, key, event, correlation_id, received_at, body FROM delivery
         WHERE closed_at IS NULL AND (not_before IS NULL OR not_before <= $1) ORDER BY seq LIMIT $2",
        Instant(now),
        i64::from(max),
    )
    .fetch_all(conn)
    .await
    .or_ledger()?;
    let delivery = rows.into_iter().map(|row| Delivery {
        id: DeliveryId::from_uuid(row.id),
        key: row.key,
        event: row.event,
        body: row.body.into(),
        correlation: CorrelationId::from_uuid(row.correlation_id),
        received_at: row.received_at.0,
    });
    Ok(delivery.collect())
}

pub(crate) struct Close {
    pub(crate) id: DeliveryId,
    pub(crate) verdict: String,
}

impl Verb for Close {
    type Out = ();

    async fn apply(&self, tx: &mut Tx<'_>) -> R<()> {
        close(tx, self.id, &self.verdict).await
    }
}

pub(crate) struct Postpone {
    pub(crate) id: DeliveryId,
    pub(crate) wait: Duration,
}

impl Verb for Postpone {
    type Out = ();

    async fn apply(&self, tx: &mut Tx<'_>) -> R<()> {
        let (id, until) = (self.id.as_uuid(), Instant(after(tx.now, self.wait)));
        sqlx::query!("UPDATE delivery SET not_before = $1 WHERE id = $2 AND closed_at IS NULL", until, id)
            .execute(&mut *tx.conn)
            .await
            .or_ledger()?;
        Ok(())
    }
}

/// The first verdict stays.
pub(crate) async fn close(tx: &mut Tx<'_>, id: DeliveryId, verdict: &str) -> R<()> {
    let (uuid, now) = (id.as_uuid(), Instant(tx.now));
    let closed = sqlx::query!(
        "UPDATE delivery SET verdict = coalesce(verdict, $1), closed_at = coalesce(closed_at, $2) WHERE id = $3",
        stored::text(verdict),
        now,
        uuid,
    )
    .execute(&mut *tx.conn)
    .await
    .or_ledger()?;
    match closed.rows_affected() {
        1 => Ok(()),
        0 => Err(LedgerError::NotFound(id.to_string()).into()),
        more => Err(unreadable(format!("{more} deliveries have the id {id}")).into()),
    }
}

/// Whether one has come since then whose key begins with `prefix`.
pub(crate) async fn received_since(conn: &mut PgConnection, prefix: &str, since: Timestamp) -> R<bool> {
    // Beyond every key with the prefix: in UTF-8, as in the index, nothing sorts above it.
    let end = format!("{prefix}{}", char::MAX);
    sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM delivery WHERE key COLLATE "C" >= $1 AND key COLLATE "C" < $2 AND received_at >= $3)
           AS "found!""#,
        prefix,
        end,
        Instant(since),
    )
    .fetch_one(conn)
    .await
    .or_ledger()
}

pub(crate) async fn count_open(conn: &mut PgConnection) -> R<i64> {
    sqlx::query_scalar!(r#"SELECT count(*) AS "count!" FROM delivery WHERE closed_at IS NULL"#)
        .fetch_one(conn)
        .await
        .or_ledger()
}
