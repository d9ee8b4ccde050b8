//! The schema, brought up to date by numbered files that are never changed.
//!
//! Which have run is kept in the table `_sqlx_migrations`, as sqlx keeps it: the releases before this one migrated with sqlx, and
//! after a rollback they do again.

use std::sync::LazyLock;

use fettle_app::ports::ledger::{L, LedgerError};
use rusqlite::{Connection, TransactionBehavior, params};
use sha2::{Digest as _, Sha384};

use crate::error::OrLedger;
use crate::sql::{Sql as _, first};

/// The schema this binary knows; a migration that old binaries cannot live with raises `oldest_reader` to it.
pub(crate) const SCHEMA: i64 = 12;

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
        migration(8, "accounts", include_str!("../migrations/0008_accounts.sql")),
        migration(9, "sign_in", include_str!("../migrations/0009_sign_in.sql")),
        migration(10, "runs", include_str!("../migrations/0010_runs.sql")),
        migration(11, "additions", include_str!("../migrations/0011_additions.sql")),
        migration(12, "draft", include_str!("../migrations/0012_draft.sql")),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// As sqlx noted them in the ledgers of the releases before: the files are still the same, and so is their digest.
    const NOTED_BY_SQLX: [&str; 6] = [
        "cd26fddbbdc773cc2edf75feda379914fc2c38f2ffc61cd7da4db2440334738d897d674d373d2c26ef1402667792c455",
        "8863477597ce2298d61eb64c030b5b9396c7ad5cf799f47b6c88ab4d278842cc0eff6eae1827c5f4cf3bfb4a76528e15",
        "ac6d14d1641544707ee031dffc11a77aea8e5ff2b915421fdfd9a028bbea608c7227373c93736ee6db0b376af446ad55",
        "4dec257a916607bc826462f0e032f10cd6b0f4403e8b307b710ea107d553338d4d38650ce20c4bd75424a73049680d9b",
        "3e54f762462cecf4718a4257e48a98f512c476ca3cd9aea9d0467ea796e1c79f028550703c074b0e3b5a1908264b205d",
        "cd8cf83ed445711fa744bd97401868701637c776163c19268f9b6cda5e3b62fa521bfc65fd2896d1b49c56b9fb663f2c",
    ];

    /// A ledger as sqlx left it after the first `count` migrations.
    fn of_sqlx(count: usize) -> Connection {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(APPLIED).unwrap();
        for (migration, checksum) in MIGRATIONS.iter().zip(NOTED_BY_SQLX).take(count) {
            conn.execute_batch(migration.sql).unwrap();
            let noted = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                         VALUES (?, ?, TRUE, ?, 1000)";
            conn.execute(noted, params![migration.version, migration.description, hex::decode(checksum).unwrap()])
                .unwrap();
        }
        conn
    }

    fn versions(conn: &Connection) -> Vec<i64> {
        applied(conn).unwrap().into_iter().map(|applied| applied.version).collect()
    }

    fn all() -> Vec<i64> {
        MIGRATIONS.iter().map(|migration| migration.version).collect()
    }

    #[test]
    fn a_ledger_that_sqlx_migrated_is_taken_on_from_where_it_is() {
        for count in 0..=NOTED_BY_SQLX.len() {
            let mut conn = of_sqlx(count);
            migrate(&mut conn).unwrap();
            assert_eq!(versions(&conn), all());
            conn.execute("INSERT INTO poll (repo_forge_id, mark_at) VALUES (1, 1)", ()).unwrap();
            migrate(&mut conn).unwrap();
            assert_eq!(versions(&conn), all());
        }
    }

    #[test]
    fn lanes_stay_in_their_pools_when_pools_are_made_anew() {
        let mut conn = of_sqlx(6);
        conn.execute_batch(
            "PRAGMA foreign_keys = ON;
             INSERT INTO pool (id, kind, order_version, model) VALUES (7, 'run', 1, 'coder'), (9, 'publish', 1, '');
             INSERT INTO lane (id, pool_id, slots_of, served_at, turn_at, turn_seq) VALUES (3, 9, 'token', 5, 6, 8);",
        )
        .unwrap();
        migrate(&mut conn).unwrap();
        let there: (i64, String, String, i64, i64, i64) = conn
            .query_row(
                "SELECT lane.id, kind, needs, served_at, turn_at, turn_seq FROM lane JOIN pool ON pool.id = pool_id",
                (),
                |row| row.try_into(),
            )
            .unwrap();
        assert_eq!(there, (3, "publish".into(), String::new(), 5, 6, 8));
        conn.execute("INSERT INTO lane (pool_id, slots_of, served_at) VALUES (8, 'x', 0)", ()).unwrap_err();
    }

    #[test]
    fn a_run_keeps_its_journal_and_its_model_when_others_may_stand_beside_it() {
        let mut conn = of_sqlx(6);
        conn.execute_batch(
            r#"PRAGMA foreign_keys = ON;
               INSERT INTO task (id, correlation_id, mode, generation, actor, trigger_kind, state, event_seq, created_at,
                                 updated_at, subject)
                   VALUES (x'01', x'02', 'quickfix', 1, 'ada', 'label', 'running', 1, 5, 5,
                           '{"v":"1","value":{"model":"coder"}}');
               INSERT INTO job (id, kind, task_id, order_version, state, fence, attempts, crashes, crashes_since_step,
                                progress, created_at)
                   VALUES (x'03', 'run', x'01', 1, 'leased', 7, 0, 0, 0, 0, 5), (x'05', 'run', x'01', 1, 'queued', 0, 0, 0, 0, 0, 5);
               INSERT INTO run (id, task_id, job_id, steps, calls, generated_tokens, prompt_tokens, wall_s)
                   VALUES (x'04', x'01', x'03', 1, 2, 3, 4, 5);
               INSERT INTO step (run_id, seq, fence, kind, recorded_at, record) VALUES (x'04', 0, 7, 'base', 5, '{}');"#,
        )
        .unwrap();
        migrate(&mut conn).unwrap();
        let there: (i64, String, i64, i64, i64, i64) = conn
            .query_row(
                "SELECT run.ordinal, run.model, run.steps, run.wall_s, task.leading_run, step.fence
                 FROM task JOIN run ON run.task_id = task.id JOIN step ON step.run_id = run.id",
                (),
                |row| row.try_into(),
            )
            .unwrap();
        assert_eq!(there, (1, "coder".into(), 1, 5, 1, 7));
        let beside =
            "INSERT INTO run (id, task_id, job_id, ordinal, steps, calls, generated_tokens, prompt_tokens, wall_s)
                      VALUES (x'06', x'01', x'05', ?, 0, 0, 0, 0, 0)";
        conn.execute(beside, params![1]).unwrap_err();
        conn.execute(beside, params![2]).unwrap();
        let orphan =
            "INSERT INTO step (run_id, seq, fence, kind, recorded_at, record) VALUES (x'09', 0, 7, 'base', 5, '{}')";
        conn.execute(orphan, ()).unwrap_err();
    }

    #[test]
    fn a_newer_migration_is_tolerated_and_another_or_unfinished_one_is_not() {
        let mut conn = of_sqlx(6);
        conn.execute("UPDATE _sqlx_migrations SET version = 1000 WHERE version = 6", ()).unwrap();
        conn.execute("DROP INDEX job_dead", ()).unwrap();
        migrate(&mut conn).unwrap();
        assert_eq!(versions(&conn), [all(), vec![1000]].concat());

        conn.execute("UPDATE _sqlx_migrations SET checksum = x'00' WHERE version = 3", ()).unwrap();
        assert!(matches!(migrate(&mut conn), Err(MigrateError::Changed(3))));
        conn.execute("UPDATE _sqlx_migrations SET success = FALSE WHERE version = 2", ()).unwrap();
        assert!(matches!(migrate(&mut conn), Err(MigrateError::Unfinished(2))));
    }

    #[test]
    fn a_migration_that_fails_leaves_nothing() {
        let mut conn = of_sqlx(5);
        conn.execute("CREATE INDEX job_dead ON job (seq)", ()).unwrap();
        assert!(matches!(migrate(&mut conn), Err(MigrateError::Execute { version: 6, .. })));
        assert_eq!(versions(&conn), [1, 2, 3, 4, 5]);
        conn.execute("DROP INDEX job_dead", ()).unwrap();
        migrate(&mut conn).unwrap();
        assert_eq!(versions(&conn), all());
    }
}
