//! Opening: one process per data directory, a SQLite that keeps its promises, the schema brought up to date.

use std::io::{Read, Seek, Write};
use std::sync::Arc;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use fettle_app::ports::ledger::LedgerError;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection, SqliteConnection};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::blob::Blobs;
use crate::error::{OrLedger, unreadable};
use crate::lane;
use crate::time::{LedgerTime, after};
use crate::writer::{Writer, WriterParts};
use crate::{DATABASE_FILE, Options, SqliteLedger};

/// Older ones can corrupt a database in WAL mode.
const OLDEST_SQLITE: [u32; 3] = [3, 51, 3];
/// The schema this binary knows; a migration that old binaries cannot live with raises `oldest_reader` to it.
pub(crate) const SCHEMA: i64 = 6;
/// Pages, lists and streams; each connection costs a thread.
const READERS: u32 = 4;
/// A reader that is not free within this long is a sign of overload.
const READER_WAIT: Duration = Duration::from_secs(5);
/// As long as SQLite itself waits for a lock, which only a backup tool or a dying predecessor can hold.
pub(crate) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// More than the statements of this crate: none is prepared twice.
const STATEMENTS: usize = 256;
/// Between two looks at a lock that a predecessor still holds.
const LOCK_POLL: Duration = Duration::from_millis(20);
const LOCK_FILE: &str = "ledger.lock";

pub(crate) static MIGRATIONS: Migrator = sqlx::migrate!();

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "another Fettle (process {owner}) uses the ledger in {data_dir}; stop it, or choose another data folder with --data-dir"
    )]
    InUse { data_dir: Utf8PathBuf, owner: String },
    #[error("{data_dir} lies on {kind}, where SQLite's locks cannot be trusted; choose a local disk")]
    NetworkFileSystem { data_dir: Utf8PathBuf, kind: &'static str },
    #[error("SQLite {found} can corrupt the ledger; 3.51.3 or newer is needed")]
    SqliteTooOld { found: String },
    #[error("the ledger was written by a newer Fettle (schema {needs}, this one knows {SCHEMA}); upgrade this binary")]
    TooNew { needs: i64 },
    #[error("could not bring the ledger's schema up to date")]
    Migrate(#[source] MigrateError),
    #[error("could not prepare {data_dir}")]
    DataDir {
        data_dir: Utf8PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("could not open the ledger")]
    Ledger(#[from] LedgerError),
}

/// Held by the process that may write; the operating system releases it when the process ends, however it ends.
pub(crate) struct DataDirLock {
    _file: fs_err::File,
}

pub(crate) async fn open(data_dir: Utf8PathBuf, options: Options) -> Result<SqliteLedger, OpenError> {
    let failed = |source| OpenError::DataDir { data_dir: data_dir.clone(), source };
    fs_err::create_dir_all(&data_dir).map_err(failed)?;
    refuse_network_file_system(&data_dir)?;
    let lock = lock(&data_dir, options.lock_wait).await?;

    let file = SqliteConnectOptions::new()
        .filename(data_dir.join(DATABASE_FILE))
        .busy_timeout(BUSY_TIMEOUT)
        .statement_cache_capacity(STATEMENTS)
        .foreign_keys(true);
    let writing = file
        .clone()
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .pragma("wal_autocheckpoint", "0");
    let mut conn = SqliteConnection::connect_with(&writing).await.or_ledger()?;
    require_sqlite(&mut conn).await?;
    migrate(&mut conn).await?;
    let persisted = claim(&mut conn).await?;

    let time = LedgerTime::starting(options.clock, options.stopwatch, persisted);
    grant_grace(&mut conn, &time, options.timing.lease).await?;
    let newest = sqlx::query!(
        r#"SELECT (SELECT max(seq) FROM event) AS "event: i64", (SELECT max(seq) FROM delivery) AS "delivery: i64""#
    )
    .fetch_one(&mut conn)
    .await
    .or_ledger()?;
    let newest_event = u64::try_from(newest.event.unwrap_or(0)).map_err(unreadable)?;

    let readers = SqlitePoolOptions::new()
        .max_connections(READERS)
        .acquire_timeout(READER_WAIT)
        .connect_with(file.read_only(true))
        .await
        .or_ledger()?;
    let blobs = Blobs::open(&data_dir, options.ids.clone()).map_err(failed)?;
    let (event_sender, newest_event) = watch::channel(newest_event);
    let (work_sender, work) = watch::channel(0);
    let (job_sender, jobs) = watch::channel(0);
    let (time, slots) = (Arc::new(time), Arc::new(options.slots));
    let writer = Writer::start(WriterParts {
        conn,
        connect: writing,
        time: time.clone(),
        timing: options.timing,
        slots: slots.clone(),
        ids: options.ids.clone(),
        newest_event: event_sender,
        work: work_sender,
        jobs: job_sender,
        newest_delivery: newest.delivery.unwrap_or(0),
        lock,
    });
    let admissions = options.admissions;
    let ledger = SqliteLedger { writer, readers, blobs, time, slots, admissions, newest_event, work, jobs };
    ledger.write(lane::Arrange).await?;
    Ok(ledger)
}

/// A reading connection to a ledger that nobody else has, or can open meanwhile.
pub(crate) async fn alone(data_dir: &Utf8Path) -> Result<(SqliteConnection, DataDirLock), OpenError> {
    let lock = lock(data_dir, Duration::ZERO).await?;
    let file = SqliteConnectOptions::new().filename(data_dir.join(DATABASE_FILE)).busy_timeout(BUSY_TIMEOUT);
    let conn = SqliteConnection::connect_with(&file.read_only(true)).await.or_ledger()?;
    Ok((conn, lock))
}

fn refuse_network_file_system(data_dir: &Utf8Path) -> Result<(), OpenError> {
    /// `f_type` of statfs(2), see linux/magic.h and the file systems' own headers.
    const NETWORK: [(u32, &str); 6] = [
        (0x6969, "NFS"),
        (0xff53_4d42, "CIFS"),
        (0xfe53_4d42, "SMB2"),
        (0x517b, "SMB"),
        (0x00c3_6400, "Ceph"),
        (0x0bd0_0bd0, "Lustre"),
    ];
    let found = rustix::fs::statfs(data_dir.as_std_path())
        .map_err(|error| OpenError::DataDir { data_dir: data_dir.to_owned(), source: error.into() })?;
    // The field's width and sign differ between architectures; the magic numbers have 32 bits.
    let magic = (found.f_type & 0xffff_ffff) as u32;
    match NETWORK.iter().find(|(number, _)| *number == magic) {
        Some((_, kind)) => Err(OpenError::NetworkFileSystem { data_dir: data_dir.to_owned(), kind }),
        None => Ok(()),
    }
}

async fn lock(data_dir: &Utf8Path, wait: Duration) -> Result<DataDirLock, OpenError> {
    let failed = |source| OpenError::DataDir { data_dir: data_dir.to_owned(), source };
    let mut file = fs_err::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(data_dir.join(LOCK_FILE))
        .map_err(failed)?;
    let deadline = Instant::now() + wait;
    loop {
        match file.file().try_lock() {
            Ok(()) => break,
            Err(std::fs::TryLockError::Error(source)) => return Err(failed(source)),
            Err(std::fs::TryLockError::WouldBlock) if Instant::now() < deadline => {
                tokio::time::sleep(LOCK_POLL).await;
            }
            Err(std::fs::TryLockError::WouldBlock) => return Err(in_use(data_dir, &mut file)),
        }
    }
    sign(&mut file).map_err(failed)?;
    Ok(DataDirLock { _file: file })
}

fn in_use(data_dir: &Utf8Path, file: &mut fs_err::File) -> OpenError {
    let mut owner = String::new();
    match file.read_to_string(&mut owner) {
        Ok(_) => OpenError::InUse { data_dir: data_dir.to_owned(), owner: owner.trim().to_owned() },
        Err(source) => OpenError::DataDir { data_dir: data_dir.to_owned(), source },
    }
}

/// Errors with [`OpenError::InUse`] while another process has the ledger open. Waits for nobody and changes nothing.
pub fn refuse_if_in_use(data_dir: &Utf8Path) -> Result<(), OpenError> {
    // Without the file there is no ledger; what else is wrong with it is told by whoever opens the ledger.
    let Ok(mut file) = fs_err::File::open(data_dir.join(LOCK_FILE)) else { return Ok(()) };
    match file.file().try_lock_shared() {
        Err(std::fs::TryLockError::WouldBlock) => Err(in_use(data_dir, &mut file)),
        Ok(()) | Err(std::fs::TryLockError::Error(_)) => Ok(()),
    }
}

/// Leaves the process id for whoever finds the directory in use.
fn sign(file: &mut fs_err::File) -> std::io::Result<()> {
    file.file().set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

async fn require_sqlite(conn: &mut SqliteConnection) -> Result<(), OpenError> {
    let found: String = sqlx::query_scalar("SELECT sqlite_version()").fetch_one(conn).await.or_ledger()?;
    let parts: Vec<u32> = found.split('.').filter_map(|part| part.parse().ok()).collect();
    if parts.as_slice() < OLDEST_SQLITE.as_slice() {
        return Err(OpenError::SqliteTooOld { found });
    }
    Ok(())
}

/// An older binary tolerates migrations it does not know, because old and new meet in every upgrade and rollback.
async fn migrate(conn: &mut SqliteConnection) -> Result<(), OpenError> {
    let mut migrations = Migrator::with_migrations(MIGRATIONS.iter().cloned().collect());
    migrations.set_ignore_missing(true);
    // Not `run`: its `Acquire` bound makes the future of every caller impossible to prove `Send`.
    migrations.run_direct(None, &mut *conn, false).await.map_err(OpenError::Migrate)?;
    let needs = sqlx::query_scalar!("SELECT oldest_reader FROM ledger").fetch_one(conn).await.or_ledger()?;
    if needs > SCHEMA {
        return Err(OpenError::TooNew { needs });
    }
    Ok(())
}

/// Checks the file unless it was closed cleanly, and marks it as in use. Gives the newest time it has seen.
async fn claim(conn: &mut SqliteConnection) -> Result<i64, OpenError> {
    let ledger = sqlx::query!("SELECT time_at, closed FROM ledger").fetch_one(&mut *conn).await.or_ledger()?;
    if ledger.closed == 0 {
        let verdict: String = sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(&mut *conn).await.or_ledger()?;
        if verdict != "ok" {
            return Err(OpenError::Ledger(LedgerError::Corrupt(verdict)));
        }
    }
    sqlx::query!("UPDATE ledger SET closed = 0").execute(conn).await.or_ledger()?;
    Ok(ledger.time_at)
}

/// While no ledger was alive no holder could renew; all of them get a full lease from now.
async fn grant_grace(conn: &mut SqliteConnection, time: &LedgerTime, lease: Duration) -> Result<(), OpenError> {
    let until = after(time.now(), lease).as_microsecond();
    sqlx::query!("UPDATE job SET leased_until = max(leased_until, ?) WHERE leased_until IS NOT NULL", until)
        .execute(conn)
        .await
        .or_ledger()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    fn is_send<T: Send>(_: T) {}

    #[expect(dead_code, reason = "it is enough that this compiles")]
    fn opening_can_be_awaited_anywhere(data_dir: super::Utf8PathBuf, options: super::Options) {
        is_send(super::open(data_dir, options));
    }
}
