//! How far repositories were looked at, and when an issue was last asked for.

use jiff::Timestamp;
use sqlx::PgConnection;

use crate::error::{OrLedger, R};
use crate::stored::{self, Subject};
use crate::task;
use crate::time::Instant;
use crate::writer::{Tx, Verb};

pub(crate) async fn mark(conn: &mut PgConnection, repo: u64) -> R<Option<Timestamp>> {
    let repo = task::number(repo)?;
    let mark = sqlx::query_scalar!("SELECT mark_at FROM poll WHERE repo_forge_id = $1", repo)
        .fetch_optional(conn)
        .await
        .or_ledger()?;
    Ok(mark.map(|mark| mark.0))
}

pub(crate) struct SetMark {
    pub(crate) repo: u64,
    pub(crate) from: Option<Timestamp>,
    pub(crate) to: Timestamp,
}

impl Verb for SetMark {
    type Out = bool;

    async fn apply(&self, tx: &mut Tx<'_>) -> R<bool> {
        let (repo, to) = (task::number(self.repo)?, Instant(self.to));
        let moved = match self.from.map(Instant) {
            None => {
                sqlx::query!(
                    "INSERT INTO poll (repo_forge_id, mark_at) VALUES ($1, $2) ON CONFLICT DO NOTHING",
                    repo,
                    to
                )
                .execute(&mut *tx.conn)
                .await
            }
            Some(from) => {
                sqlx::query!("UPDATE poll SET mark_at = $1 WHERE repo_forge_id = $2 AND mark_at = $3", to, repo, from)
                    .execute(&mut *tx.conn)
                    .await
            }
        };
        Ok(moved.or_ledger()?.rows_affected() == 1)
    }
}

/// When the issue's newest Task was asked for.
pub(crate) async fn last_asked(conn: &mut PgConnection, repo: u64, issue: u64) -> R<Option<Timestamp>> {
    let (repo, issue) = (task::number(repo)?, task::number(issue)?);
    let subject = sqlx::query_scalar!(
        "SELECT subject FROM task WHERE repo_forge_id = $1 AND issue_number = $2
         ORDER BY created_at DESC, id DESC LIMIT 1",
        repo,
        issue,
    )
    .fetch_optional(conn)
    .await
    .or_ledger()?;
    subject.map(|subject| Ok(stored::read::<Subject>(&subject)?.issue.taken_at)).transpose()
}
