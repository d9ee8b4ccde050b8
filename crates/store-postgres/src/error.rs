//! PostgreSQL's errors in the ledger's words: who can do something about it, and what; and whether the same transaction once
//! more may succeed.

use fettle_app::ports::ledger::LedgerError;
use sqlx::error::DatabaseError;

/// Why a statement or a verb failed.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) error: LedgerError,
    /// Another transaction was in the way and has won; once more, this one sees what the other did.
    pub(crate) again: bool,
}

/// Within a transaction. The ports give a [`LedgerError`], which has no word for "once more".
pub(crate) type R<T> = Result<T, Failed>;

impl From<LedgerError> for Failed {
    fn from(error: LedgerError) -> Self {
        Self { error, again: false }
    }
}

impl From<Failed> for LedgerError {
    fn from(failed: Failed) -> Self {
        failed.error
    }
}

/// SQLSTATE codes, see <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
const SERIALIZATION_FAILURE: &str = "40001";
const DEADLOCK: &str = "40P01";
const UNIQUE: &str = "23505";
const DISK_FULL: &str = "53100";
const DATA_CORRUPTED: &str = "XX001";
const INDEX_CORRUPTED: &str = "XX002";
/// Classes of codes: their first two characters.
const DATA: &str = "22";
const CONSTRAINT: &str = "23";

pub(crate) fn from_sqlx(error: sqlx::Error) -> Failed {
    let code = match &error {
        sqlx::Error::Database(database) => code_of(database.as_ref()),
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => return unreadable(error).into(),
        _ => None,
    };
    // Of a database's error, sqlx's own text is the server's sentence; it holds no address and no password.
    let text = error.to_string();
    let Some(code) = code else { return LedgerError::Unavailable(text).into() };
    let error = match code.as_str() {
        DISK_FULL => LedgerError::Full,
        DATA_CORRUPTED | INDEX_CORRUPTED => LedgerError::Corrupt(text),
        SERIALIZATION_FAILURE | DEADLOCK => LedgerError::Unavailable(text),
        code if code.starts_with(CONSTRAINT) || code.starts_with(DATA) => LedgerError::Invalid(text),
        _ => LedgerError::Unavailable(text),
    };
    // A unique index decides races of identity: the loser looks again and finds the winner's row.
    Failed { error, again: matches!(code.as_str(), SERIALIZATION_FAILURE | DEADLOCK | UNIQUE) }
}

fn code_of(error: &dyn DatabaseError) -> Option<String> {
    error.code().map(|code| code.into_owned())
}

/// A stored value that the code cannot have written.
pub(crate) fn unreadable(what: impl std::fmt::Display) -> LedgerError {
    LedgerError::Unreadable(what.to_string())
}

/// Turns `sqlx` results into the ledger's at the end of a call chain.
pub(crate) trait OrLedger<T> {
    fn or_ledger(self) -> R<T>;
}

impl<T> OrLedger<T> for Result<T, sqlx::Error> {
    fn or_ledger(self) -> R<T> {
        self.map_err(from_sqlx)
    }
}
