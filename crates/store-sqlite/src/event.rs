//! Events: appended in the transaction of what they tell of, numbered per Task without gaps.

use fettle_app::ports::ledger::L;
use fettle_domain::event::{Event, EventBody};
use fettle_domain::id::{CorrelationId, TaskId};
use rusqlite::{Connection, params};
use uuid::Uuid;

use crate::error::unreadable;
use crate::sql::{Sql as _, first};
use crate::stored;
use crate::time::from_micros;
use crate::writer::{Tx, Verb};

/// Tells something of a Task that is not at hand; what a verb has at hand it tells through [`crate::task::TaskRow::tell`].
pub(crate) fn append(tx: &mut Tx<'_>, task: TaskId, body: &EventBody) -> L<()> {
    let (id, now) = (task.as_uuid(), tx.now.as_microsecond());
    let (seq, correlation): (i64, Uuid) = tx.conn.one(
        "UPDATE task SET event_seq = event_seq + 1, updated_at = max(updated_at, ?) WHERE id = ?
         RETURNING event_seq, correlation_id",
        params![now, id],
        |row| row.try_into(),
    )?;
    insert(tx, task, seq, CorrelationId::from_uuid(correlation), body)
}

/// `seq`: what the Task's row says then.
pub(crate) fn insert(tx: &mut Tx<'_>, task: TaskId, seq: i64, correlation: CorrelationId, body: &EventBody) -> L<()> {
    tx.conn.run(
        "INSERT INTO event (task_id, task_seq, at, correlation_id, body) VALUES (?, ?, ?, ?, ?)",
        params![task.as_uuid(), seq, tx.now.as_microsecond(), correlation.as_uuid(), stored::write(body)?],
    )?;
    tx.newest_event = u64::try_from(tx.conn.last_insert_rowid()).map_err(unreadable)?;
    Ok(())
}

/// Events after number `after`, in order, of one Task or of all.
pub(crate) fn list(conn: &Connection, task: Option<TaskId>, after: u64, max: u16) -> L<Vec<Event>> {
    type Row = (i64, Uuid, i64, i64, Uuid, String);
    let after = i64::try_from(after).unwrap_or(i64::MAX);
    let rows: L<Vec<Row>> = match task.map(|task| task.as_uuid()) {
        Some(task) => conn.all(
            "SELECT seq, task_id, task_seq, at, correlation_id, body
             FROM event WHERE task_id = ? AND seq > ? ORDER BY task_seq LIMIT ?",
            params![task, after, max],
            |row| row.try_into(),
        ),
        None => conn.all(
            "SELECT seq, task_id, task_seq, at, correlation_id, body
             FROM event WHERE seq > ? ORDER BY seq LIMIT ?",
            params![after, max],
            |row| row.try_into(),
        ),
    };
    let event = |(seq, task, task_seq, at, correlation, body): Row| {
        Ok(Event {
            seq: u64::try_from(seq).map_err(unreadable)?,
            task: TaskId::from_uuid(task),
            task_seq: u64::try_from(task_seq).map_err(unreadable)?,
            at: from_micros(at),
            correlation: CorrelationId::from_uuid(correlation),
            body: stored::read(&body)?,
        })
    };
    rows?.into_iter().map(event).collect()
}

/// The last event that other programs were told.
pub(crate) fn announced(conn: &Connection) -> L<u64> {
    let seq: i64 = conn.one("SELECT announced_seq FROM ledger", (), first)?;
    u64::try_from(seq).map_err(unreadable)
}

pub(crate) struct SetAnnounced {
    pub(crate) from: u64,
    pub(crate) to: u64,
}

impl Verb for SetAnnounced {
    type Out = bool;

    fn apply(&self, tx: &mut Tx<'_>) -> L<bool> {
        let seq = |seq: u64| i64::try_from(seq).map_err(unreadable);
        let (from, to) = (seq(self.from)?, seq(self.to)?);
        let moved = tx.conn.run("UPDATE ledger SET announced_seq = ? WHERE announced_seq = ?", params![to, from])?;
        Ok(moved == 1)
    }
}
