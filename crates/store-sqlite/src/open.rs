//! Opening: one process per data directory, a SQLite that keeps its promises, the schema brought up to date.

use std::io::{Read, Seek, Write};
use std::sync::Arc;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use fettle_app::metrics::LedgerMetrics;
use fettle_app::ports::ledger::LedgerError;
use rusqlite::{Connection, OpenFlags, params};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::blob::Blobs;
use crate::error::{OrLedger, unreadable};
use crate::lane;
use crate::migrate::{self, MigrateError, SCHEMA};
use crate::readers::Readers;
use crate::sql::{Sql as _, first};
use crate::time::{LedgerTime, after};
use crate::writer::{Writer, WriterParts};
use crate::{DATABASE_FILE, Options, SqliteLedger};

/// Older ones can corrupt a database in WAL mode.
const OLDEST_SQLITE: [u32; 3] = [3, 51, 3];
/// As long as SQLite itself waits for a lock, which only a backup tool or a dying predecessor can hold.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// More than the statements of this crate: none is prepared twice.
const STATEMENTS: usize = 256;
/// What a full group changes stays in memory until it is committed; with SQLite's 2 MiB, pages would go out and in again.
const WRITER_CACHE_KIB: i64 = 32 * 1024;
/// Between two looks at a lock that a predecessor still holds.
const LOCK_POLL: Duration = Duration::from_millis(20);
const LOCK_FILE: &str = "ledger.lock";

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

    let file = data_dir.join(DATABASE_FILE);
    let (clock, stopwatch, lease) = (options.clock, options.stopwatch, options.timing.lease);
    let ids = options.ids.clone();
    let metrics = LedgerMetrics::default();
    let of_readers = metrics.clone();
    let prepared = blocking(move || -> Result<Prepared, OpenError> {
        let mut conn = writing(&file).or_ledger()?;
        require_sqlite(&conn)?;
        migrate(&mut conn)?;
        let time = LedgerTime::starting(clock, stopwatch, claim(&conn)?);
        grant_grace(&conn, &time, lease)?;
        let newest_event = newest_event(&conn)?;
        let readers = Readers::open(file.clone(), of_readers)?;
        let blobs = Blobs::open(&data_dir, ids).map_err(|source| OpenError::DataDir { data_dir, source })?;
        Ok(Prepared { conn, file, readers, blobs, time, newest_event, lock })
    });
    let Prepared { conn, file, readers, blobs, time, newest_event, lock } = prepared.await?;

    let (event_sender, newest_event) = watch::channel(newest_event);
    let (work_sender, work) = watch::channel(0);
    let (job_sender, jobs) = watch::channel(0);
    let (time, slots) = (Arc::new(time), Arc::new(options.slots));
    let writer = Writer::start(WriterParts {
        conn,
        file,
        time: time.clone(),
        timing: options.timing,
        slots: slots.clone(),
        ids: options.ids,
        newest_event: event_sender,
        work: work_sender,
        jobs: job_sender,
        metrics: metrics.clone(),
        lock,
    })?;
    let admissions = options.admissions;
    let ledger = SqliteLedger { writer, readers, blobs, time, slots, admissions, newest_event, work, jobs, metrics };
    ledger.write(lane::Arrange).await?;
    Ok(ledger)
}

/// What was read and made before the writer begins.
struct Prepared {
    conn: Connection,
    file: Utf8PathBuf,
    readers: Readers,
    blobs: Blobs,
    time: LedgerTime,
    newest_event: u64,
    /// Held also when nobody waits for the opening any more.
    lock: DataDirLock,
}

/// Runs `work`, which may wait for the disk, on a thread of its own.
pub(crate) async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<LedgerError> + Send + 'static,
{
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|join| LedgerError::Unavailable(join.to_string()))?
}

/// The connection that writes, and makes the file when it is not there.
pub(crate) fn writing(file: &Utf8Path) -> rusqlite::Result<Connection> {
    let conn = connection(file, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
    conn.pragma_update(None, "journal_mode", "wal")?;
    conn.pragma_update(None, "synchronous", "full")?;
    conn.pragma_update(None, "wal_autocheckpoint", 0)?;
    conn.pragma_update(None, "cache_size", -WRITER_CACHE_KIB)?;
    Ok(conn)
}

pub(crate) fn reading(file: &Utf8Path) -> rusqlite::Result<Connection> {
    connection(file, OpenFlags::SQLITE_OPEN_READ_ONLY)
}

fn connection(file: &Utf8Path, access: OpenFlags) -> rusqlite::Result<Connection> {
    // A connection is used by one thread at a time, so SQLite need not lock it for each call.
    let conn = Connection::open_with_flags(file, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    conn.pragma_update(None, "foreign_keys", true)?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(conn)
}

/// A reading connection to a ledger that nobody else has, or can open meanwhile.
pub(crate) async fn alone(data_dir: &Utf8Path) -> Result<(Connection, DataDirLock), OpenError> {
    let lock = lock(data_dir, Duration::ZERO).await?;
    let conn = reading(&data_dir.join(DATABASE_FILE)).or_ledger()?;
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

fn require_sqlite(conn: &Connection) -> Result<(), OpenError> {
    let found: String = conn.one("SELECT sqlite_version()", (), first)?;
    let parts: Vec<u32> = found.split('.').filter_map(|part| part.parse().ok()).collect();
    if parts.as_slice() < OLDEST_SQLITE.as_slice() {
        return Err(OpenError::SqliteTooOld { found });
    }
    Ok(())
}

fn migrate(conn: &mut Connection) -> Result<(), OpenError> {
    migrate::migrate(conn).map_err(OpenError::Migrate)?;
    let needs = migrate::oldest_reader(conn)?;
    if needs > SCHEMA {
        return Err(OpenError::TooNew { needs });
    }
    Ok(())
}

/// Checks the file unless it was closed cleanly, and marks it as in use. Gives the newest time it has seen.
fn claim(conn: &Connection) -> Result<i64, OpenError> {
    let (time_at, closed): (i64, bool) = conn.one("SELECT time_at, closed FROM ledger", (), |row| row.try_into())?;
    if !closed {
        let verdict: String = conn.one("PRAGMA quick_check(1)", (), first)?;
        if verdict != "ok" {
            return Err(OpenError::Ledger(LedgerError::Corrupt(verdict)));
        }
    }
    conn.run("UPDATE ledger SET closed = 0", ())?;
    Ok(time_at)
}

/// While no ledger was alive no holder could renew; all of them get a full lease from now.
fn grant_grace(conn: &Connection, time: &LedgerTime, lease: Duration) -> Result<(), OpenError> {
    let until = after(time.now(), lease).as_microsecond();
    conn.run("UPDATE job SET leased_until = max(leased_until, ?) WHERE leased_until IS NOT NULL", params![until])?;
    Ok(())
}

/// The number of the last event; 0 when there is none.
fn newest_event(conn: &Connection) -> Result<u64, OpenError> {
    let newest: i64 = conn.one("SELECT coalesce(max(seq), 0) FROM event", (), first)?;
    Ok(u64::try_from(newest).map_err(unreadable)?)
}

#[cfg(test)]
mod tests {
    fn is_send<T: Send>(_: T) {}

    #[expect(dead_code, reason = "it is enough that this compiles")]
    fn opening_can_be_awaited_anywhere(data_dir: super::Utf8PathBuf, options: super::Options) {
        is_send(super::open(data_dir, options));
    }
}
