//! Raw deliveries: stored whole before they are answered, closed when a Task or a verdict came of them.

use std::time::Duration;

use fettle_app::ports::ledger::{Accepted, Delivery, L, LedgerError};
use fettle_domain::id::{CorrelationId, DeliveryId};
use jiff::Timestamp;
use rusqlite::{Connection, params};

use crate::error::unreadable;
use crate::sql::{Sql as _, first};
use crate::time::{after, from_micros};
use crate::writer::{Tx, Verb};

/// What a delivery adds to the log beside its body: its share of index pages.
const LOG_BYTES: usize = 8 * 1024;

pub(crate) struct Accept {
    pub(crate) delivery: Delivery,
}

impl Verb for Accept {
    type Out = Accepted;

    fn apply(&self, tx: &mut Tx<'_>) -> L<Accepted> {
        let Delivery { id, key, event, body, correlation, received_at } = &self.delivery;
        let stored = tx.conn.run(
            "INSERT INTO delivery (id, key, event, correlation_id, received_at, body) VALUES (?, ?, ?, ?, ?, ?)
             ON CONFLICT DO NOTHING",
            params![id.as_uuid(), key, event, correlation.as_uuid(), received_at.as_microsecond(), &body[..]],
        )?;
        if stored == 0 {
            return Ok(Accepted::Duplicate);
        }
        tx.wakes.delivery();
        Ok(Accepted::New)
    }

    fn body_bytes(&self) -> usize {
        self.delivery.body.len()
    }

    fn log_bytes(&self) -> usize {
        self.delivery.body.len() + LOG_BYTES
    }
}

/// The oldest `max` deliveries that nothing has come of yet and that do not wait.
pub(crate) fn open(conn: &Connection, now: Timestamp, max: u16) -> L<Vec<Delivery>> {
    let now = now.as_microsecond();
    conn.all(
        "SELECT id, key, event, correlation_id, received_at, body
         FROM delivery WHERE closed_at IS NULL AND coalesce(not_before, 0) <= ? ORDER BY seq LIMIT ?",
        params![now, max],
        |row| {
            Ok(Delivery {
                id: DeliveryId::from_uuid(row.get(0)?),
                key: row.get(1)?,
                event: row.get(2)?,
                correlation: CorrelationId::from_uuid(row.get(3)?),
                received_at: from_micros(row.get(4)?),
                body: row.get::<_, Vec<u8>>(5)?.into(),
            })
        },
    )
}

/// Whether one has come since then whose key begins with `prefix`.
pub(crate) fn received_since(conn: &Connection, prefix: &str, since: Timestamp) -> L<bool> {
    // Beyond every key with the prefix: in UTF-8, as in the index, nothing sorts above it.
    let end = format!("{prefix}{}", char::MAX);
    let since = since.as_microsecond();
    conn.one(
        "SELECT EXISTS (SELECT 1 FROM delivery WHERE key >= ? AND key < ? AND received_at >= ?)",
        params![prefix, end, since],
        first,
    )
}

pub(crate) struct Close {
    pub(crate) id: DeliveryId,
    pub(crate) verdict: String,
}

impl Verb for Close {
    type Out = ();

    fn apply(&self, tx: &mut Tx<'_>) -> L<()> {
        close(tx, self.id, &self.verdict)
    }
}

pub(crate) struct Postpone {
    pub(crate) id: DeliveryId,
    pub(crate) wait: Duration,
}

impl Verb for Postpone {
    type Out = ();

    fn apply(&self, tx: &mut Tx<'_>) -> L<()> {
        let (id, until) = (self.id.as_uuid(), after(tx.now, self.wait).as_microsecond());
        tx.conn.run("UPDATE delivery SET not_before = ? WHERE id = ? AND closed_at IS NULL", params![until, id])?;
        Ok(())
    }
}

/// The first verdict stays.
pub(crate) fn close(tx: &mut Tx<'_>, id: DeliveryId, verdict: &str) -> L<()> {
    let (uuid, now) = (id.as_uuid(), tx.now.as_microsecond());
    let closed = tx.conn.run(
        "UPDATE delivery SET verdict = coalesce(verdict, ?), closed_at = coalesce(closed_at, ?) WHERE id = ?",
        params![verdict, now, uuid],
    )?;
    match closed {
        1 => Ok(()),
        0 => Err(LedgerError::NotFound(id.to_string())),
        more => Err(unreadable(format!("{more} deliveries have the id {id}"))),
    }
}

pub(crate) fn count_open(conn: &Connection) -> L<i64> {
    conn.one("SELECT count(*) FROM delivery WHERE closed_at IS NULL", (), first)
}
