//! Raw deliveries: stored whole before they are answered, closed when a Task or a verdict came of them.

use std::collections::BTreeSet;
use std::time::Duration;

use fettle_app::ports::ledger::{Accepted, Delivery, L, LedgerError};
use fettle_domain::id::{CorrelationId, DeliveryId};
use jiff::Timestamp;
use rusqlite::{Connection, params};
use serde::Serialize;

use crate::error::unreadable;
use crate::sql::{Sql as _, first};
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
/// Ids and bodies travel as one blob that SQLite cuts up: as JSON text they would be escaped and parsed.
pub(crate) fn accept_all(tx: &mut Tx<'_>, newest: i64, asked: &mut [&mut AcceptAsk]) -> L<i64> {
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
    let lowest = newest + 1;
    let stored = tx.conn.run(
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
        params![lowest, blob, packed],
    )?;

    let all_new = usize::try_from(stored) == Ok(asked.len());
    let new: BTreeSet<i64> = if all_new {
        BTreeSet::new()
    } else {
        tx.conn.all("SELECT seq FROM delivery WHERE seq >= ?", params![lowest], first)?.into_iter().collect()
    };
    let mut last = newest;
    for (seq, ask) in (lowest..).zip(asked.iter_mut()) {
        ask.out = if all_new || new.contains(&seq) { Accepted::New } else { Accepted::Duplicate };
        last = seq;
    }
    if stored > 0 {
        tx.wakes.delivery();
    }
    Ok(last)
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
