//! Messages from permitted persons to a running Task, handed to its holder with a renewal.

use fettle_app::ports::ledger::{LedgerError, Message};
use fettle_domain::event::EventBody;
use fettle_domain::id::{JobId, TaskId};
use sqlx::PgConnection;

use crate::error::{OrLedger, R, unreadable};
use crate::time::Instant;
use crate::writer::{Tx, Verb};
use crate::{event, job, stored, task};

pub(crate) struct Post {
    pub(crate) task: TaskId,
    pub(crate) by: String,
    pub(crate) text: String,
}

impl Verb for Post {
    type Out = ();

    async fn apply(&self, tx: &mut Tx<'_>) -> R<()> {
        task::lock(tx, self.task).await?;
        let body = EventBody::TaskJoined { by: self.by.clone(), what: "message".to_owned() };
        event::append(tx, self.task, &body).await?;
        post(tx, self.task, &self.by, &self.text).await
    }
}

/// Keeps the message and wakes what waited for an answer; a Run whose patch waits to be chosen does not.
pub(crate) async fn post(tx: &mut Tx<'_>, task: TaskId, by: &str, text: &str) -> R<()> {
    let (id, now) = (task.as_uuid(), Instant(tx.now));
    // `handed_fence` is of a former rule and says nothing any more; a schema that drops it would shut older binaries out.
    sqlx::query!(
        "INSERT INTO message (task_id, author, posted_at, handed_fence, content) VALUES ($1, $2, $3, 0, $4)",
        id,
        stored::text(by),
        now,
        stored::text(text),
    )
    .execute(&mut *tx.conn)
    .await
    .or_ledger()?;
    let waiting = sqlx::query_scalar!(
        "SELECT id FROM job WHERE task_id = $1 AND state = 'waiting'
         AND NOT EXISTS (SELECT FROM run WHERE run.job_id = job.id AND run.result IS NOT NULL)",
        id,
    )
    .fetch_all(&mut *tx.conn)
    .await
    .or_ledger()?;
    for id in waiting {
        let mut row = job::get(tx.conn, JobId::from_uuid(id)).await?;
        if let Some(woken) = row.job.clone().wake() {
            row.job = woken;
            job::store(tx, &row).await?;
        }
    }
    task::refresh(tx, task).await
}

/// The newest `max` of a Task, the newest last.
pub(crate) async fn list(conn: &mut PgConnection, task: TaskId, max: u16) -> R<Vec<Message>> {
    let id = task.as_uuid();
    let known = sqlx::query_scalar!(r#"SELECT EXISTS (SELECT FROM task WHERE id = $1) AS "is!""#, id)
        .fetch_one(&mut *conn)
        .await
        .or_ledger()?;
    if !known {
        return Err(LedgerError::NotFound(task.to_string()).into());
    }
    let newest = sqlx::query!(
        r#"SELECT author, posted_at AS "posted_at: Instant", content FROM message
           WHERE task_id = $1 ORDER BY seq DESC LIMIT $2"#,
        id,
        i64::from(max),
    )
    .fetch_all(conn)
    .await
    .or_ledger()?;
    Ok(newest.into_iter().rev().map(|row| Message { by: row.author, at: row.posted_at.0, text: row.content }).collect())
}

/// What the holder has not been handed yet, oldest first, and how many of the Task's messages it has then.
///
/// A message that an earlier holder was handed and did not journal before it died is handed over again: each journaled
/// message is one step, in the order they were handed. Who has been handed none under its lease has journaled none, so the
/// journal says where to begin.
pub(crate) async fn hand_over(
    tx: &mut Tx<'_>,
    task: TaskId,
    run_job: JobId,
    received: Option<u64>,
) -> R<(Vec<String>, Option<u64>)> {
    let id = task.as_uuid();
    let all = sqlx::query_scalar!(r#"SELECT count(*) AS "count!" FROM message WHERE task_id = $1"#, id)
        .fetch_one(&mut *tx.conn)
        .await
        .or_ledger()?;
    let all = u64::try_from(all).map_err(unreadable)?;
    if all == received.unwrap_or(0) {
        return Ok((Vec::new(), received));
    }
    let has = match received {
        Some(received) => received,
        None => {
            let journaled = sqlx::query_scalar!(
                r#"SELECT count(*) AS "count!" FROM step JOIN run ON run.id = step.run_id
               WHERE run.job_id = $1 AND step.kind = 'message_in'"#,
                run_job.as_uuid(),
            )
            .fetch_one(&mut *tx.conn)
            .await
            .or_ledger()?;
            u64::try_from(journaled).map_err(unreadable)?
        }
    };
    if all <= has {
        return Ok((Vec::new(), received));
    }
    let messages = sqlx::query!("SELECT author, content FROM message WHERE task_id = $1 ORDER BY seq", id)
        .fetch_all(&mut *tx.conn)
        .await
        .or_ledger()?;
    let new = messages.into_iter().skip(usize::try_from(has).map_err(unreadable)?);
    Ok((new.map(|message| format!("{}: {}", message.author, message.content)).collect(), Some(all)))
}
