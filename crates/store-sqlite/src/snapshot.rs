//! A copy of the ledger in one file, made while the ledger is in use, and the check that such a copy is whole.
//!
//! Neither takes the ledger's lock nor writes to it. A copy is made by the owner of the ledger's files alone: whoever opens
//! them may have to make the files of the write-ahead log, and in another's name the ledger could not open them any more.

use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};

use camino::{Utf8Path, Utf8PathBuf};
use fettle_app::ports::ledger::LedgerError;
use jiff::Timestamp;
use serde::Serialize;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _, Row as _, SqliteConnection};

use crate::error::{OrLedger, unreadable};
use crate::open::{BUSY_TIMEOUT, MIGRATIONS, SCHEMA};
use crate::{DATABASE_FILE, audit};

/// Sentences of one check; more of the same help nobody.
const MAX_FINDINGS: usize = 100;

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("there is no ledger at {0}")]
    Absent(Utf8PathBuf),
    /// Opening it could leave files that its owner cannot write.
    #[error("{path} belongs to user {owner}; run this as that user, as in `runuser -u` or `sudo -u`")]
    NotOwner { path: Utf8PathBuf, owner: u32 },
    #[error("could not write {path}")]
    Write {
        path: Utf8PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("could not read {path}")]
    Read {
        path: Utf8PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("could not read the ledger")]
    Ledger(#[from] LedgerError),
}

/// What a copy is like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// The newest migration in it; 0 when it holds none.
    pub newest_migration: i64,
    /// Migrations that this program does not know: a newer one has run on it. It can still be used here.
    pub unknown_migrations: Vec<i64>,
    pub oldest_reader: i64,
    /// Why it is no whole ledger: one sentence each. Empty when it is.
    pub findings: Vec<String>,
}

/// Copies the ledger beneath `data_dir` to `to`, durably and readable by the caller alone. `to` is new or empty.
pub async fn snapshot(data_dir: &Utf8Path, to: &Utf8Path) -> Result<(), SnapshotError> {
    let path = data_dir.join(DATABASE_FILE);
    let found = match fs_err::metadata(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(SnapshotError::Absent(path)),
        found => found.map_err(|source| SnapshotError::Read { path: path.clone(), source })?,
    };
    if found.uid() != rustix::process::geteuid().as_raw() {
        return Err(SnapshotError::NotOwner { path, owner: found.uid() });
    }
    let write = |source| SnapshotError::Write { path: to.to_owned(), source };
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    let file = fs_err::OpenOptions::from_options(options).open(to).map_err(write)?;
    let options = SqliteConnectOptions::new().filename(&path).busy_timeout(BUSY_TIMEOUT).read_only(true);
    let mut conn = options.connect().await.or_ledger()?;
    // One reading transaction: the writer goes on meanwhile, and the copy holds what was committed when it began.
    let copied = sqlx::query("VACUUM INTO ?").bind(to.as_str()).execute(&mut conn).await.or_ledger();
    let closed = conn.close().await.or_ledger();
    copied?;
    closed?;
    file.sync_all().map_err(write)
}

/// Reads every page of a copy, its references, its schema and the invariants of its rows. It is not changed, and no file is
/// made beside it.
///
/// Errors when it cannot be read at all; what else is wrong with it is in the findings.
pub async fn check_snapshot(file: &Utf8Path) -> Result<Checked, SnapshotError> {
    if !file.exists() {
        return Err(SnapshotError::Absent(file.to_owned()));
    }
    let options = SqliteConnectOptions::new().filename(file).read_only(true).immutable(true);
    let mut conn = options.connect().await.or_ledger()?;
    let checked = check(&mut conn).await;
    conn.close().await.or_ledger()?;
    Ok(checked?)
}

async fn check(conn: &mut SqliteConnection) -> Result<Checked, LedgerError> {
    let mut checked =
        Checked { newest_migration: 0, unknown_migrations: Vec::new(), oldest_reader: 0, findings: pages(conn).await? };
    if !checked.findings.is_empty() {
        // Whatever else would be read from damaged pages is worth nothing.
        return Ok(checked);
    }
    let tables: i64 =
        sqlx::query_scalar("SELECT count(*) FROM sqlite_schema WHERE name IN ('_sqlx_migrations', 'ledger')")
            .fetch_one(&mut *conn)
            .await
            .or_ledger()?;
    if tables != 2 {
        checked.findings.push("it is a database, and no ledger".to_owned());
        return Ok(checked);
    }
    migrations(conn, &mut checked).await?;
    let row = sqlx::query("SELECT oldest_reader, time_at FROM ledger").fetch_one(&mut *conn).await.or_ledger()?;
    checked.oldest_reader = row.try_get(0).or_ledger()?;
    if checked.oldest_reader > SCHEMA {
        let needs = checked.oldest_reader;
        checked.findings.push(format!(
            "it needs a program that knows schema {needs}, this one knows {SCHEMA}; use a newer release"
        ));
    }
    if checked.findings.is_empty() {
        // Leases are judged at the ledger's own last instant: now, all of them would have lapsed.
        let at: i64 = row.try_get(1).or_ledger()?;
        let at = Timestamp::from_microsecond(at).map_err(unreadable)?;
        checked.findings.extend(audit::audit(conn, None, at).await?);
    }
    Ok(checked)
}

async fn pages(conn: &mut SqliteConnection) -> Result<Vec<String>, LedgerError> {
    let verdict: Vec<String> =
        sqlx::query_scalar("PRAGMA integrity_check(100)").fetch_all(&mut *conn).await.or_ledger()?;
    let mut findings: Vec<String> = verdict.into_iter().filter(|line| line != "ok").collect();
    if findings.is_empty() {
        let rows = sqlx::query("PRAGMA foreign_key_check").fetch_all(conn).await.or_ledger()?;
        for row in rows.iter().take(MAX_FINDINGS) {
            let (table, parent): (String, String) = (row.try_get(0).or_ledger()?, row.try_get(2).or_ledger()?);
            findings.push(format!("a row of {table} refers to a row of {parent} that is not there"));
        }
    }
    Ok(findings)
}

/// An unknown one is no finding: after a rollback the older release works on the newer schema.
async fn migrations(conn: &mut SqliteConnection, checked: &mut Checked) -> Result<(), LedgerError> {
    let rows = sqlx::query("SELECT version, success, checksum FROM _sqlx_migrations ORDER BY version")
        .fetch_all(conn)
        .await
        .or_ledger()?;
    let mut applied = BTreeSet::new();
    for row in rows {
        let version: i64 = row.try_get(0).or_ledger()?;
        let (success, checksum): (bool, Vec<u8>) = (row.try_get(1).or_ledger()?, row.try_get(2).or_ledger()?);
        applied.insert(version);
        checked.newest_migration = version;
        if !success {
            checked.findings.push(format!("migration {version} was begun and not finished"));
        }
        match MIGRATIONS.iter().find(|migration| migration.version == version) {
            None => checked.unknown_migrations.push(version),
            Some(known) if known.checksum.as_ref() != checksum.as_slice() => {
                checked.findings.push(format!("migration {version} is not the one of this release"));
            }
            Some(_) => {}
        }
    }
    // Migrations run in their order, so the first one is in every ledger; later ones run when it is opened next.
    if MIGRATIONS.iter().map(|migration| migration.version).min().is_some_and(|first| !applied.contains(&first)) {
        checked.findings.push("the first migration has never run on it".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use fettle_app::ports::clock::{Clock, IdSource};
    use fettle_app::ports::ledger::{Delivery, Ledger as _};
    use fettle_domain::id::{CorrelationId, DeliveryId};
    use uuid::Uuid;

    use super::*;
    use crate::{Options, SqliteLedger};

    struct Fixed(AtomicU64);

    impl Clock for Fixed {
        fn now(&self) -> Timestamp {
            Timestamp::UNIX_EPOCH
        }
    }

    impl IdSource for Fixed {
        fn uuid(&self) -> Uuid {
            Uuid::from_u128(u128::from(self.0.fetch_add(1, Ordering::Relaxed)))
        }
    }

    fn delivery(number: u128) -> Delivery {
        Delivery {
            id: DeliveryId::from_uuid(Uuid::from_u128(number)),
            key: format!("github:{number}"),
            event: "issues".to_owned(),
            body: vec![b'x'; 1 << 14].into(),
            correlation: CorrelationId::from_uuid(Uuid::from_u128(number)),
            received_at: Timestamp::UNIX_EPOCH,
        }
    }

    async fn open(data: &Utf8Path) -> SqliteLedger {
        let fixed = || Arc::new(Fixed(AtomicU64::new(1000)));
        SqliteLedger::open(data, Options::new(fixed(), fixed())).await.unwrap()
    }

    /// A folder with a copy of a ledger of ten deliveries, which is still open.
    async fn copied() -> (tempfile::TempDir, SqliteLedger, Utf8PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let data = Utf8Path::from_path(folder.path()).unwrap();
        let ledger = open(data).await;
        for number in 0..10 {
            ledger.accept(delivery(number)).await.unwrap();
        }
        let copy = data.join("copy");
        snapshot(data, &copy).await.unwrap();
        (folder, ledger, copy)
    }

    async fn change(file: &Utf8Path, sql: &'static str) {
        let mut conn = SqliteConnectOptions::new().filename(file).foreign_keys(false).connect().await.unwrap();
        sqlx::query(sql).execute(&mut conn).await.unwrap();
        conn.close().await.unwrap();
    }

    #[tokio::test]
    async fn a_copy_made_while_the_ledger_is_written_is_whole_and_can_be_worked_on() {
        let folder = tempfile::tempdir().unwrap();
        let data = Utf8Path::from_path(folder.path()).unwrap();
        let ledger = open(data).await;
        ledger.accept(delivery(0)).await.unwrap();
        let copy = data.join("copy");
        let writes = async {
            for number in 1..40 {
                ledger.accept(delivery(number)).await.unwrap();
            }
        };
        let (copied, ()) = tokio::join!(snapshot(data, &copy), writes);
        copied.unwrap();
        let checked = check_snapshot(&copy).await.unwrap();
        assert_eq!((checked.findings, checked.unknown_migrations), (vec![], vec![]));
        assert_eq!(fs_err::metadata(&copy).unwrap().mode() & 0o777, 0o600);
        let beside: Vec<String> = data.read_dir_utf8().unwrap().map(|e| e.unwrap().file_name().to_owned()).collect();
        assert!(!beside.iter().any(|name| name.starts_with("copy-")), "{beside:?}");
        let elsewhere = tempfile::tempdir().unwrap();
        let elsewhere = Utf8Path::from_path(elsewhere.path()).unwrap();
        fs_err::rename(&copy, elsewhere.join(DATABASE_FILE)).unwrap();
        let restored = open(elsewhere).await;
        assert!((1..=40).contains(&restored.depth().await.unwrap().open_deliveries));
        assert_eq!(restored.audit().await.unwrap(), Vec::<String>::new());
        assert_eq!(ledger.depth().await.unwrap().open_deliveries, 40);
    }

    #[tokio::test]
    async fn what_is_no_whole_ledger_is_told() {
        for (sql, told) in [
            ("UPDATE ledger SET oldest_reader = 99", "schema 99"),
            ("UPDATE _sqlx_migrations SET checksum = x'00' WHERE version = 1", "not the one of this release"),
            ("DELETE FROM _sqlx_migrations", "never run"),
            ("DROP TABLE ledger", "no ledger"),
            ("INSERT INTO intent (key, task_id) VALUES ('k', x'00')", "not there"),
        ] {
            let (_folder, _ledger, copy) = copied().await;
            assert_eq!(check_snapshot(&copy).await.unwrap().findings, Vec::<String>::new());
            change(&copy, sql).await;
            let findings = check_snapshot(&copy).await.unwrap().findings;
            assert!(findings.iter().any(|finding| finding.contains(told)), "{sql}: {findings:?}");
        }
    }

    #[tokio::test]
    async fn after_a_rollback_a_newer_schema_is_told_and_no_damage() {
        let (_folder, _ledger, copy) = copied().await;
        change(
            &copy,
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (999, 'x', 1, x'00', 0)",
        )
        .await;
        let checked = check_snapshot(&copy).await.unwrap();
        assert_eq!((checked.findings, checked.unknown_migrations), (vec![], vec![999]));
    }

    #[tokio::test]
    async fn torn_and_foreign_files_are_refused_or_told() {
        let (_folder, _ledger, copy) = copied().await;
        let bytes = fs_err::read(&copy).unwrap();
        let holed = [&bytes[..8192], &[0xa5; 4096], &bytes[12288..]].concat();
        for damaged in [&bytes[..bytes.len() / 2], holed.as_slice(), b"no database at all".as_slice(), b""] {
            fs_err::write(&copy, damaged).unwrap();
            let checked = check_snapshot(&copy).await;
            assert!(!checked.as_ref().is_ok_and(|checked| checked.findings.is_empty()), "{checked:?}");
        }
    }

    #[tokio::test]
    async fn nothing_is_made_where_there_is_no_ledger() {
        let folder = tempfile::tempdir().unwrap();
        let data = Utf8Path::from_path(folder.path()).unwrap();
        assert!(matches!(snapshot(data, &data.join("copy")).await, Err(SnapshotError::Absent(_))));
        assert_eq!(data.read_dir_utf8().unwrap().count(), 0);
    }
}
