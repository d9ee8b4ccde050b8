//! The schema, brought up to date by numbered files that are never changed.
//!
//! Which have run is kept in the table `_sqlx_migrations`, as sqlx keeps it: the releases before this one migrated with sqlx, and
//! after a rollback they do again.

use std::fmt;
use std::sync::LazyLock;

use fettle_app::ports::ledger::{L, LedgerError};
use rusqlite::{Connection, TransactionBehavior, params};
use sha2::{Digest as _, Sha384};

use crate::error::OrLedger;
use crate::sql::{Sql as _, first};

/// The schema this binary knows; a migration that old binaries cannot live with raises `oldest_reader` to it.
pub(crate) const SCHEMA: i64 = 7;

pub(crate) struct Migration {
    pub(crate) version: i64,
    description: &'static str,
    sql: &'static str,
    /// SHA-384 of the file.
    pub(crate) checksum: Vec<u8>,
}

/// In their order.
pub(crate) static MIGRATIONS: LazyLock<Vec<Migration>> = LazyLock::new(|| {
    let migration = |version, description, sql: &'static str| Migration {
        version,
        description,
        sql,
        checksum: Sha384::digest(sql).to_vec(),
    };
    vec![
        migration(1, "ledger", include_str!("../migrations/0001_ledger.sql")),
        migration(2, "intake", include_str!("../migrations/0002_intake.sql")),
        migration(3, "announced", include_str!("../migrations/0003_announced.sql")),
        migration(4, "lanes", include_str!("../migrations/0004_lanes.sql")),
        migration(5, "poll", include_str!("../migrations/0005_poll.sql")),
        migration(6, "dead", include_str!("../migrations/0006_dead.sql")),
        migration(7, "needs", include_str!("../migrations/0007_needs.sql")),
    ]
});

/// As sqlx makes it.
const APPLIED: &str = "CREATE TABLE IF NOT EXISTS _sqlx_migrations (
    version BIGINT PRIMARY KEY,
    description TEXT NOT NULL,
    installed_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
    success BOOLEAN NOT NULL,
    checksum BLOB NOT NULL,
    execution_time BIGINT NOT NULL
)";

#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    #[error("migration {0} was begun and not finished")]
    Unfinished(i64),
    #[error("migration {0} is not the one of this release")]
    Changed(i64),
    #[error("while executing migration {version}")]
    Execute {
        version: i64,
        #[source]
        source: LedgerError,
    },
    #[error("could not read which migrations have run")]
    Ledger(#[from] LedgerError),
}

/// A row about a migration that has run.
pub(crate) struct Applied {
    pub(crate) version: i64,
    pub(crate) success: bool,
    pub(crate) checksum: Vec<u8>,
}

pub(crate) fn applied(conn: &Connection) -> L<Vec<Applied>> {
    conn.all("SELECT version, success, checksum FROM _sqlx_migrations ORDER BY version", (), |row| {
        Ok(Applied { version: row.get(0)?, success: row.get(1)?, checksum: row.get(2)? })
    })
}

/// Runs what has not run yet. An older binary tolerates migrations it does not know, because old and new meet in every
/// upgrade and rollback; the schema number that a file needs is in its row of `ledger`.
pub(crate) fn migrate(conn: &mut Connection) -> Result<(), MigrateError> {
    conn.run(APPLIED, ())?;
    let applied = applied(conn)?;
    if let Some(unfinished) = applied.iter().find(|applied| !applied.success) {
        return Err(MigrateError::Unfinished(unfinished.version));
    }
    for migration in MIGRATIONS.iter() {
        match applied.iter().find(|applied| applied.version == migration.version) {
            Some(applied) if applied.checksum == migration.checksum => {}
            Some(_) => return Err(MigrateError::Changed(migration.version)),
            None => {
                migration.apply(conn).map_err(|source| MigrateError::Execute { version: migration.version, source })?
            }
        }
    }
    Ok(())
}

impl Migration {
    /// With its row, or not at all.
    fn apply(&self, conn: &mut Connection) -> L<()> {
        let transaction = conn.transaction_with_behavior(TransactionBehavior::Immediate).or_ledger()?;
        transaction.execute_batch(self.sql).or_ledger()?;
        // How long it took is of interest to nobody; sqlx, too, writes this before it knows.
        transaction.run(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES (?, ?, 1, ?, -1)",
            params![self.version, self.description, self.checksum],
        )?;
        transaction.commit().or_ledger()
    }
}

/// The number that a binary must know to use this file.
pub(crate) fn oldest_reader(conn: &Connection) -> L<i64> {
    conn.one("SELECT oldest_reader FROM ledger", (), first)
}

impl fmt::Debug for Migration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "migration {} ({})", self.version, self.description)
    }
}
