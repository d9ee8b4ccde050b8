//! A copy of the ledger in one file, made while the ledger is in use, and the check that such a copy is whole.
//!
//! Neither takes the ledger's lock nor writes to it. A copy is made by the owner of the ledger's files alone: whoever opens
//! them may have to make the files of the write-ahead log, and in another's name the ledger could not open them any more.

use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};

use camino::{Utf8Path, Utf8PathBuf};
use fettle_app::ports::ledger::LedgerError;
use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags, params};
use serde::Serialize;

use crate::error::{OrLedger, unreadable};
use crate::migrate::{self, MIGRATIONS, SCHEMA};
use crate::open::{blocking, reading};
use crate::sql::{Sql as _, first};
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
    let (path, to) = (data_dir.join(DATABASE_FILE), to.to_owned());
    blocking(move || copy(path, &to)).await
}

fn copy(path: Utf8PathBuf, to: &Utf8Path) -> Result<(), SnapshotError> {
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
    let conn = reading(&path).or_ledger()?;
    // One reading transaction: the writer goes on meanwhile, and the copy holds what was committed when it began.
    let copied = conn.run("VACUUM INTO ?", params![to.as_str()]);
    let closed = conn.close().map_err(|(_, error)| error).or_ledger();
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
    let file = file.to_owned();
    blocking(move || {
        let conn = untouched(&file).or_ledger()?;
        let checked = check(&conn)?;
        conn.close().map_err(|(_, error)| error).or_ledger()?;
        Ok(checked)
    })
    .await
}

/// Opens a file that nobody changes: without locks, without its log, and without making anything beside it.
fn untouched(file: &Utf8Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(format!("file:{}?immutable=1", quoted(file)), flags)
}

/// As a URI has it: what means something there is written as its number.
fn quoted(file: &Utf8Path) -> String {
    file.as_str().replace('%', "%25").replace('?', "%3f").replace('#', "%23")
}

fn check(conn: &Connection) -> Result<Checked, LedgerError> {
    let mut checked =
        Checked { newest_migration: 0, unknown_migrations: Vec::new(), oldest_reader: 0, findings: pages(conn)? };
    if !checked.findings.is_empty() {
        // Whatever else would be read from damaged pages is worth nothing.
        return Ok(checked);
    }
    let tables: i64 =
        conn.one("SELECT count(*) FROM sqlite_schema WHERE name IN ('_sqlx_migrations', 'ledger')", (), first)?;
    if tables != 2 {
        checked.findings.push("it is a database, and no ledger".to_owned());
        return Ok(checked);
    }
    migrations(conn, &mut checked)?;
    let (needs, at): (i64, i64) = conn.one("SELECT oldest_reader, time_at FROM ledger", (), |row| row.try_into())?;
    checked.oldest_reader = needs;
    if needs > SCHEMA {
        checked.findings.push(format!(
            "it needs a program that knows schema {needs}, this one knows {SCHEMA}; use a newer release"
        ));
    }
    if checked.findings.is_empty() {
        // Leases are judged at the ledger's own last instant: now, all of them would have lapsed.
        let at = Timestamp::from_microsecond(at).map_err(unreadable)?;
        checked.findings.extend(audit::audit(conn, None, at)?);
    }
    Ok(checked)
}

fn pages(conn: &Connection) -> Result<Vec<String>, LedgerError> {
    let verdict: Vec<String> = conn.all("PRAGMA integrity_check(100)", (), first)?;
    let mut findings: Vec<String> = verdict.into_iter().filter(|line| line != "ok").collect();
    if findings.is_empty() {
        let rows: Vec<(String, String)> =
            conn.all("PRAGMA foreign_key_check", (), |row| Ok((row.get(0)?, row.get(2)?)))?;
        for (table, parent) in rows.into_iter().take(MAX_FINDINGS) {
            findings.push(format!("a row of {table} refers to a row of {parent} that is not there"));
        }
    }
    Ok(findings)
}

/// An unknown one is no finding: after a rollback the older release works on the newer schema.
fn migrations(conn: &Connection, checked: &mut Checked) -> Result<(), LedgerError> {
    let mut seen = BTreeSet::new();
    for applied in migrate::applied(conn)? {
        let version = applied.version;
        seen.insert(version);
        checked.newest_migration = version;
        if !applied.success {
            checked.findings.push(format!("migration {version} was begun and not finished"));
        }
        match MIGRATIONS.iter().find(|migration| migration.version == version) {
            None => checked.unknown_migrations.push(version),
            Some(known) if known.checksum != applied.checksum => {
                checked.findings.push(format!("migration {version} is not the one of this release"));
            }
            Some(_) => {}
        }
    }
    // Migrations run in their order, so the first one is in every ledger; later ones run when it is opened next.
    if MIGRATIONS.first().is_some_and(|first| !seen.contains(&first.version)) {
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

    fn change(file: &Utf8Path, sql: &str) {
        let conn = Connection::open(file).unwrap();
        conn.execute_batch("PRAGMA foreign_keys = OFF").unwrap();
        conn.execute_batch(sql).unwrap();
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
            change(&copy, sql);
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
        );
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
