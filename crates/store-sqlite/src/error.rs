//! SQLite's errors in the ledger's words: who can do something about it, and what.

use fettle_app::ports::ledger::LedgerError;
use rusqlite::Error;

/// Primary result codes, see <https://www.sqlite.org/rescode.html>.
const BUSY: i32 = 5;
const LOCKED: i32 = 6;
const IO_ERROR: i32 = 10;
const CORRUPT: i32 = 11;
const FULL: i32 = 13;
const CONSTRAINT: i32 = 19;
const NOT_A_DATABASE: i32 = 26;

/// The low byte of an extended result code is its primary code.
fn primary_code(error: &Error) -> Option<i32> {
    error.sqlite_error().map(|error| error.extended_code & 0xff)
}

pub(crate) fn from_sqlite(error: Error) -> LedgerError {
    match primary_code(&error) {
        Some(FULL) => LedgerError::Full,
        // After a failed fsync nobody knows what reached the disk; trying again would only look like success.
        Some(IO_ERROR | CORRUPT | NOT_A_DATABASE) => LedgerError::Corrupt(error.to_string()),
        Some(CONSTRAINT) => LedgerError::Invalid(error.to_string()),
        Some(BUSY | LOCKED) | Some(_) => LedgerError::Unavailable(error.to_string()),
        None => match error {
            Error::FromSqlConversionFailure(..)
            | Error::IntegralValueOutOfRange(..)
            | Error::InvalidColumnType(..)
            | Error::Utf8Error(..) => unreadable(error),
            _ => LedgerError::Unavailable(error.to_string()),
        },
    }
}

/// The same error once more, for the other members of a failed group.
pub(crate) fn copy(error: &LedgerError) -> LedgerError {
    match error {
        LedgerError::Unavailable(why) => LedgerError::Unavailable(why.clone()),
        LedgerError::Full => LedgerError::Full,
        LedgerError::Invalid(why) => LedgerError::Invalid(why.clone()),
        LedgerError::NotFound(what) => LedgerError::NotFound(what.clone()),
        LedgerError::Unreadable(why) => LedgerError::Unreadable(why.clone()),
        LedgerError::Corrupt(why) => LedgerError::Corrupt(why.clone()),
    }
}

/// A stored value that the code cannot have written.
pub(crate) fn unreadable(what: impl std::fmt::Display) -> LedgerError {
    LedgerError::Unreadable(what.to_string())
}

/// Whether the failure is the file's, not the request's: then nothing else would succeed either.
pub(crate) fn concerns_the_file(error: &LedgerError) -> bool {
    matches!(error, LedgerError::Full | LedgerError::Corrupt(_) | LedgerError::Unavailable(_))
}

/// Turns `rusqlite` results into the ledger's at the end of a call chain.
pub(crate) trait OrLedger<T> {
    fn or_ledger(self) -> Result<T, LedgerError>;
}

impl<T> OrLedger<T> for Result<T, Error> {
    fn or_ledger(self) -> Result<T, LedgerError> {
        self.map_err(from_sqlite)
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;
    use crate::sql::{Sql as _, first};

    #[test]
    fn each_reader_of_an_error_learns_what_to_do() {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch("CREATE TABLE t (x BLOB UNIQUE); PRAGMA max_page_count = 10").unwrap();
        assert!(matches!(conn.run("INSERT INTO t VALUES (zeroblob(100000))", ()), Err(LedgerError::Full)));

        conn.run("INSERT INTO t VALUES (1)", ()).unwrap();
        assert!(matches!(conn.run("INSERT INTO t VALUES (1)", ()), Err(LedgerError::Invalid(_))));

        assert!(matches!(conn.one("SELECT 'text'", (), first::<i64>), Err(LedgerError::Unreadable(_))));
        assert!(matches!(conn.one("SELECT 1 WHERE 0", (), first::<i64>), Err(LedgerError::Unavailable(_))));
    }
}
