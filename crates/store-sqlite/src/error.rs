//! SQLite's errors in the ledger's words: who can do something about it, and what.

use fettle_app::ports::ledger::LedgerError;
use sqlx::error::DatabaseError;

/// Primary result codes, see <https://www.sqlite.org/rescode.html>.
const BUSY: i32 = 5;
const LOCKED: i32 = 6;
const IO_ERROR: i32 = 10;
const CORRUPT: i32 = 11;
const FULL: i32 = 13;
const CONSTRAINT: i32 = 19;
const NOT_A_DATABASE: i32 = 26;

/// The low byte of an extended result code is its primary code.
fn primary_code(error: &dyn DatabaseError) -> Option<i32> {
    error.code()?.parse::<i32>().ok().map(|code| code & 0xff)
}

pub(crate) fn from_sqlx(error: sqlx::Error) -> LedgerError {
    let code = match &error {
        sqlx::Error::Database(database) => primary_code(database.as_ref()),
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => return unreadable(error),
        _ => None,
    };
    match code {
        Some(FULL) => LedgerError::Full,
        // After a failed fsync nobody knows what reached the disk; trying again would only look like success.
        Some(IO_ERROR | CORRUPT | NOT_A_DATABASE) => LedgerError::Corrupt(error.to_string()),
        Some(CONSTRAINT) => LedgerError::Invalid(error.to_string()),
        Some(BUSY | LOCKED) | Some(_) | None => LedgerError::Unavailable(error.to_string()),
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

/// Turns `sqlx` results into the ledger's at the end of a call chain.
pub(crate) trait OrLedger<T> {
    fn or_ledger(self) -> Result<T, LedgerError>;
}

impl<T> OrLedger<T> for Result<T, sqlx::Error> {
    fn or_ledger(self) -> Result<T, LedgerError> {
        self.map_err(from_sqlx)
    }
}

#[cfg(test)]
mod tests {
    use sqlx::ConnectOptions;
    use sqlx::sqlite::SqliteConnectOptions;

    use super::*;

    #[tokio::test]
    async fn each_reader_of_an_error_learns_what_to_do() {
        let mut conn = SqliteConnectOptions::new().in_memory(true).connect().await.unwrap();
        sqlx::query("CREATE TABLE t (x BLOB UNIQUE)").execute(&mut conn).await.unwrap();
        sqlx::query("PRAGMA max_page_count = 10").execute(&mut conn).await.unwrap();
        let full = sqlx::query("INSERT INTO t VALUES (zeroblob(100000))").execute(&mut conn).await.unwrap_err();
        assert!(matches!(from_sqlx(full), LedgerError::Full));

        sqlx::query("INSERT INTO t VALUES (1)").execute(&mut conn).await.unwrap();
        let twice = sqlx::query("INSERT INTO t VALUES (1)").execute(&mut conn).await.unwrap_err();
        assert!(matches!(from_sqlx(twice), LedgerError::Invalid(_)));

        let unreadable = sqlx::query_scalar::<_, i64>("SELECT 'text'").fetch_one(&mut conn).await.unwrap_err();
        assert!(matches!(from_sqlx(unreadable), LedgerError::Unreadable(_)));
        assert!(matches!(from_sqlx(sqlx::Error::PoolTimedOut), LedgerError::Unavailable(_)));
    }
}
