//! How far repositories were looked at, and when an issue was last asked for.

use fettle_app::ports::ledger::L;
use jiff::Timestamp;
use sqlx::SqlitePool;

use crate::error::OrLedger;
use crate::stored::{self, Subject};
use crate::task;
use crate::time::from_micros;
use crate::writer::{Tx, Verb};

pub(crate) async fn mark(readers: &SqlitePool, repo: u64) -> L<Option<Timestamp>> {
    let repo = task::number(repo)?;
    let mark = sqlx::query_scalar!("SELECT mark_at FROM poll WHERE repo_forge_id = ?", repo)
        .fetch_optional(readers)
        .await
        .or_ledger()?;
    Ok(mark.map(from_micros))
}

pub(crate) struct SetMark {
    pub(crate) repo: u64,
    pub(crate) from: Option<Timestamp>,
    pub(crate) to: Timestamp,
}

impl Verb for SetMark {
    type Out = bool;

    async fn apply(&self, tx: &mut Tx<'_>) -> L<bool> {
        let (repo, to) = (task::number(self.repo)?, self.to.as_microsecond());
        let moved = match self.from.map(Timestamp::as_microsecond) {
            None => {
                sqlx::query!("INSERT INTO poll (repo_forge_id, mark_at) VALUES (?, ?) ON CONFLICT DO NOTHING", repo, to)
                    .execute(&mut *tx.conn)
                    .await
            }
            Some(from) => {
                sqlx::query!("UPDATE poll SET mark_at = ? WHERE repo_forge_id = ? AND mark_at = ?", to, repo, from)
                    .execute(&mut *tx.conn)
                    .await
            }
        };
        Ok(moved.or_ledger()?.rows_affected() == 1)
    }
}

/// When the issue's newest Task was asked for.
pub(crate) async fn last_asked(readers: &SqlitePool, repo: u64, issue: u64) -> L<Option<Timestamp>> {
    let (repo, issue) = (task::number(repo)?, task::number(issue)?);
    let subject = sqlx::query_scalar!(
        "SELECT subject FROM task WHERE repo_forge_id = ? AND issue_number = ? ORDER BY created_at DESC, id DESC LIMIT 1",
        repo,
        issue,
    )
    .fetch_optional(readers)
    .await
    .or_ledger()?;
    subject.map(|subject| Ok(stored::read::<Subject>(&subject)?.issue.taken_at)).transpose()
}
