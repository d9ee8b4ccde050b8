//! The chained log of what was done: appended to in the transaction that does it.

use fettle_domain::audit_log::{Entry, Head, Note};
use sqlx::PgConnection;

use crate::error::{OrLedger, R, unreadable};
use crate::time::Instant;
use crate::writer::{Tx, Verb};
use crate::{lock, stored, task};

struct Row {
    sequence: i64,
    at: Instant,
    actor: String,
    action: String,
    object: String,
    address: String,
    result: String,
    detail: String,
    digest: Vec<u8>,
}

impl TryFrom<Row> for Entry {
    type Error = crate::error::Failed;

    fn try_from(row: Row) -> R<Self> {
        let Row { sequence, at, actor, action, object, address, result, detail, digest } = row;
        Ok(Self {
            sequence: numbered(sequence)?,
            at: at.0,
            note: Note { actor, action, object, address, result, detail },
            digest: whole(digest)?,
        })
    }
}

fn numbered(sequence: i64) -> R<u64> {
    Ok(u64::try_from(sequence).map_err(|_| unreadable("a negative sequence"))?)
}

/// A digest or key of 32 bytes.
pub(crate) fn whole(bytes: Vec<u8>) -> R<[u8; 32]> {
    Ok(bytes.try_into().map_err(|_| unreadable("a digest that has not 32 bytes"))?)
}

/// The last thing that a transaction does.
pub(crate) async fn append(tx: &mut Tx<'_>, note: &Note) -> R<Entry> {
    lock::audit_log(tx.conn).await?;
    let head = sqlx::query!("SELECT sequence, digest FROM audit_log ORDER BY sequence DESC LIMIT 1")
        .fetch_optional(&mut *tx.conn)
        .await
        .or_ledger()?;
    let head = match head {
        Some(head) => Head { sequence: numbered(head.sequence)?, digest: whole(head.digest)? },
        None => Head::EMPTY,
    };
    let entry = head.append(tx.now, note.clone());
    let Note { actor, action, object, address, result, detail } = &entry.note;
    sqlx::query!(
        "INSERT INTO audit_log (sequence, at, actor, action, object, address, result, detail, digest)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        task::number(entry.sequence)?,
        Instant(entry.at),
        stored::text(actor),
        stored::text(action),
        stored::text(object),
        stored::text(address),
        stored::text(result),
        stored::text(detail),
        &entry.digest[..],
    )
    .execute(&mut *tx.conn)
    .await
    .or_ledger()?;
    Ok(entry)
}

pub(crate) struct Append(pub(crate) Note);

impl Verb for Append {
    type Out = Entry;

    async fn apply(&self, tx: &mut Tx<'_>) -> R<Entry> {
        append(tx, &self.0).await
    }
}

/// Those before `before`, the newest first.
pub(crate) async fn newest(conn: &mut PgConnection, before: Option<u64>, limit: u16) -> R<Vec<Entry>> {
    let before = before.and_then(|before| i64::try_from(before).ok()).unwrap_or(i64::MAX);
    let rows = sqlx::query_as!(
        Row,
        "SELECT sequence, at, actor, action, object, address, result, detail, digest
         FROM audit_log WHERE sequence < $1 ORDER BY sequence DESC LIMIT $2",
        before,
        i64::from(limit),
    )
    .fetch_all(conn)
    .await
    .or_ledger()?;
    rows.into_iter().map(Entry::try_from).collect()
}

/// Those after `after`, in their order.
pub(crate) async fn after(conn: &mut PgConnection, after: u64, limit: u16) -> R<Vec<Entry>> {
    let after = i64::try_from(after).unwrap_or(i64::MAX);
    let rows = sqlx::query_as!(
        Row,
        "SELECT sequence, at, actor, action, object, address, result, detail, digest
         FROM audit_log WHERE sequence > $1 ORDER BY sequence LIMIT $2",
        after,
        i64::from(limit),
    )
    .fetch_all(conn)
    .await
    .or_ledger()?;
    rows.into_iter().map(Entry::try_from).collect()
}
