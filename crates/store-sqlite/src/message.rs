//! Messages from permitted persons to a running Task, handed to its holder with a renewal.

use fettle_app::ports::ledger::{L, LedgerError, Message};
use fettle_domain::event::EventBody;
use fettle_domain::id::{JobId, TaskId};
use rusqlite::{Connection, params};
use uuid::Uuid;

use crate::error::unreadable;
use crate::sql::{Sql as _, first};
use crate::time::from_micros;
use crate::writer::{Tx, Verb};
use crate::{event, job, task};

pub(crate) struct Post {
    pub(crate) task: TaskId,
    pub(crate) by: String,
    pub(crate) text: String,
}

impl Verb for Post {
    type Out = ();

    fn apply(&self, tx: &mut Tx<'_>) -> L<()> {
        task::get(tx, self.task)?;
        let body = EventBody::TaskJoined { by: self.by.clone(), what: "message".to_owned() };
        event::append(tx, self.task, &body)?;
        post(tx, self.task, &self.by, &self.text)
    }
}

/// Keeps the message and wakes what waited for an answer; a Run whose patch waits to be chosen does not.
pub(crate) fn post(tx: &mut Tx<'_>, task: TaskId, by: &str, text: &str) -> L<()> {
    let (id, now) = (task.as_uuid(), tx.now.as_microsecond());
    // `handed_fence` is of a former rule and says nothing any more; a schema that drops it would shut older binaries out.
    tx.conn.run(
        "INSERT INTO message (task_id, author, posted_at, handed_fence, content) VALUES (?, ?, ?, 0, ?)",
        params![id, by, now, text],
    )?;
    let waiting: Vec<Uuid> = tx.conn.all(
        "SELECT id FROM job WHERE task_id = ? AND state = 'waiting'
             AND NOT EXISTS (SELECT 1 FROM run WHERE run.job_id = job.id AND run.result IS NOT NULL)",
        params![id],
        first,
    )?;
    for id in waiting {
        let mut row = job::get(tx.conn, JobId::from_uuid(id))?;
        if let Some(woken) = row.job.clone().wake() {
            row.job = woken;
            job::store(tx, &row)?;
        }
    }
    task::refresh(tx, task)
}

/// The newest `max` of a Task, the newest last.
pub(crate) fn list(conn: &Connection, task: TaskId, max: u16) -> L<Vec<Message>> {
    let id = task.as_uuid();
    let known: i64 = conn.one("SELECT count(*) FROM task WHERE id = ?", params![id], first)?;
    if known == 0 {
        return Err(LedgerError::NotFound(task.to_string()));
    }
    let mut newest: Vec<Message> = conn.all(
        "SELECT author, posted_at, content FROM message WHERE task_id = ? ORDER BY seq DESC LIMIT ?",
        params![id, max],
        |row| Ok(Message { by: row.get(0)?, at: from_micros(row.get(1)?), text: row.get(2)? }),
    )?;
    newest.reverse();
    Ok(newest)
}

/// What the holder has not been handed yet, oldest first, and how many of the Task's messages it has then.
///
/// A message that an earlier holder was handed and did not journal before it died is handed over again: each journaled
/// message is one step, in the order they were handed. Who has been handed none under its lease has journaled none, so the
/// journal says where to begin.
pub(crate) fn hand_over(
    tx: &mut Tx<'_>,
    task: TaskId,
    run_job: JobId,
    received: Option<u64>,
) -> L<(Vec<String>, Option<u64>)> {
    let id = task.as_uuid();
    let all: i64 = tx.conn.one("SELECT count(*) FROM message WHERE task_id = ?", params![id], first)?;
    let all = u64::try_from(all).map_err(unreadable)?;
    if all == received.unwrap_or(0) {
        return Ok((Vec::new(), received));
    }
    let has = match received {
        Some(received) => received,
        None => {
            let journaled: i64 = tx.conn.one(
                "SELECT count(*) FROM step JOIN run ON run.id = step.run_id
                 WHERE run.job_id = ? AND step.kind = 'message_in'",
                params![run_job.as_uuid()],
                first,
            )?;
            u64::try_from(journaled).map_err(unreadable)?
        }
    };
    if all <= has {
        return Ok((Vec::new(), received));
    }
    let messages: Vec<(String, String)> =
        tx.conn.all("SELECT author, content FROM message WHERE task_id = ? ORDER BY seq", params![id], |row| {
            row.try_into()
        })?;
    let new = messages.into_iter().skip(usize::try_from(has).map_err(unreadable)?);
    Ok((new.map(|(author, content)| format!("{author}: {content}")).collect(), Some(all)))
}
