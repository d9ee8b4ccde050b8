//! How far repositories were looked at, and when an issue was last asked for.

use fettle_app::ports::ledger::L;
use jiff::Timestamp;
use rusqlite::{Connection, params};

use crate::sql::{Sql as _, first};
use crate::stored::{self, Subject};
use crate::task;
use crate::time::from_micros;
use crate::writer::{Tx, Verb};

pub(crate) fn mark(conn: &Connection, repo: u64) -> L<Option<Timestamp>> {
    let repo = task::number(repo)?;
    let mark = conn.maybe("SELECT mark_at FROM poll WHERE repo_forge_id = ?", params![repo], first)?;
    Ok(mark.map(from_micros))
}

pub(crate) struct SetMark {
    pub(crate) repo: u64,
    pub(crate) from: Option<Timestamp>,
    pub(crate) to: Timestamp,
}

impl Verb for SetMark {
    type Out = bool;

    fn apply(&self, tx: &mut Tx<'_>) -> L<bool> {
        let (repo, to) = (task::number(self.repo)?, self.to.as_microsecond());
        let moved = match self.from.map(Timestamp::as_microsecond) {
            None => tx.conn.run(
                "INSERT INTO poll (repo_forge_id, mark_at) VALUES (?, ?) ON CONFLICT DO NOTHING",
                params![repo, to],
            ),
            Some(from) => tx
                .conn
                .run("UPDATE poll SET mark_at = ? WHERE repo_forge_id = ? AND mark_at = ?", params![to, repo, from]),
        };
        Ok(moved? == 1)
    }
}

/// When the issue's newest Task was asked for.
pub(crate) fn last_asked(conn: &Connection, repo: u64, issue: u64) -> L<Option<Timestamp>> {
    let (repo, issue) = (task::number(repo)?, task::number(issue)?);
    let subject: Option<String> = conn.maybe(
        "SELECT subject FROM task WHERE repo_forge_id = ? AND issue_number = ?
         ORDER BY created_at DESC, id DESC LIMIT 1",
        params![repo, issue],
        first,
    )?;
    subject.map(|subject| Ok(stored::read::<Subject>(&subject)?.issue.taken_at)).transpose()
}
