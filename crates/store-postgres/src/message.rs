//! Messages from permitted persons to a running Task, handed to its holder with a renewal.

use fettle_domain::event::EventBody;
use fettle_domain::id::{JobId, TaskId};
use fettle_domain::lease::Fence;

use crate::error::{OrLedger, R};
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

/// Keeps the message and wakes what waited for an answer.
pub(crate) async fn post(tx: &mut Tx<'_>, task: TaskId, by: &str, text: &str) -> R<()> {
    let (id, now) = (task.as_uuid(), Instant(tx.now));
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
    let waiting = sqlx::query_scalar!("SELECT id FROM job WHERE task_id = $1 AND state = 'waiting'", id,)
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

/// What the holder under `fence` has not been handed yet, oldest first.
///
/// A message that an earlier holder was handed and did not journal before it died is handed over again: each journaled
/// message is one step, in the order they were handed.
pub(crate) async fn hand_over(tx: &mut Tx<'_>, task: TaskId, fence: Fence) -> R<Vec<String>> {
    let (id, fence) = (task.as_uuid(), job::column(fence));
    let pending = sqlx::query!(
        r#"SELECT seq AS "seq!", author, content FROM message WHERE task_id = $1 AND handed_fence < $2
           ORDER BY seq"#,
        id,
        fence,
    )
    .fetch_all(&mut *tx.conn)
    .await
    .or_ledger()?;
    if pending.is_empty() {
        return Ok(Vec::new());
    }
    let counts = sqlx::query!(
        r#"SELECT (SELECT count(*) FROM step JOIN run ON run.id = step.run_id
                   WHERE run.task_id = $1 AND step.kind = 'message_in') AS "journaled!",
                  (SELECT count(*) FROM message WHERE task_id = $1 AND handed_fence = $2) AS "handed!""#,
        id,
        fence,
    )
    .fetch_one(&mut *tx.conn)
    .await
    .or_ledger()?;
    // Those handed under this fence come first or were journaled; only what is left of the journal is skipped.
    let skip = usize::try_from(counts.journaled - counts.handed).unwrap_or(0);
    sqlx::query!("UPDATE message SET handed_fence = $2 WHERE task_id = $1 AND handed_fence < $2", id, fence)
        .execute(&mut *tx.conn)
        .await
        .or_ledger()?;
    Ok(pending.into_iter().skip(skip).map(|message| format!("{}: {}", message.author, message.content)).collect())
}
