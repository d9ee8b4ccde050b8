//! Opening: a database that somebody has migrated, connections that keep the ledger's promises, a place among the dashboards.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use fettle_app::metrics::LedgerMetrics;
use fettle_app::ports::ledger::LedgerError;
use futures::FutureExt as _;
use sqlx::migrate::{Migrate as _, MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _, PgConnection};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::blob::Blobs;
use crate::database::Database;
use crate::error::{Failed, OrLedger};
use crate::presence::{self, Presence, Session};
use crate::wakes::Bells;
use crate::writer::Store;
use crate::{Options, PostgresLedger};

/// The schema this binary knows; a migration that old binaries cannot live with raises `oldest_reader` to it.
pub const SCHEMA: i64 = 10;
/// A connection that is not free within this long is a sign of overload.
const CONNECTION_WAIT: Duration = Duration::from_secs(5);
/// Unused for longer, a connection is asked whether it still lives before it is lent.
const TRUSTED: Duration = Duration::from_secs(1);
/// More than the statements of this crate: none is prepared twice.
const STATEMENTS: usize = 256;
/// After this much silence either side gives up a connection; see [`crate::presence`].
pub(crate) const SILENCE: Duration = Duration::from_secs(20);

/// What the server is to keep, of each session.
const SETTINGS: [(&str, &str); 10] = [
    ("application_name", "fettle"),
    // An answer must outlive the server.
    ("synchronous_commit", "on"),
    // What the locks of `lock.rs` are made for.
    ("default_transaction_isolation", "read committed"),
    // Whatever holds a lock longer is not at work any more; a sixth of a lease.
    ("lock_timeout", "5s"),
    // Enough for 64 MiB over a slow line.
    ("statement_timeout", "20s"),
    // The other side has died in the middle.
    ("idle_in_transaction_session_timeout", "20s"),
    // Together with the next two: SILENCE.
    ("tcp_keepalives_idle", "5"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
    // The same while something is unanswered.
    ("tcp_user_timeout", "20s"),
];

static MIGRATIONS: Migrator = sqlx::migrate!();

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "the address of the ledger's database cannot be used; it reads like postgres://user:password@host/database"
    )]
    Address(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("could not reach the ledger's database")]
    Unreachable(#[source] LedgerError),
    #[error("the database holds no ledger, or an older one (it lacks schema {lacks}); run `fettle-dashboard migrate`")]
    NotMigrated { lacks: i64 },
    #[error("the ledger was written by a newer Fettle (schema {needs}, this one knows {SCHEMA}); upgrade this binary")]
    TooNew { needs: i64 },
    #[error("could not bring the ledger's schema up to date")]
    Migrate(#[source] MigrateError),
    #[error("could not open the ledger")]
    Ledger(#[from] LedgerError),
}

impl From<Failed> for OpenError {
    fn from(failed: Failed) -> Self {
        Self::Ledger(failed.error)
    }
}

pub(crate) async fn open(database: &Database, options: Options) -> Result<PostgresLedger, OpenError> {
    let connect = connect_options(database)?;
    examine(database).await?;

    let pool = PgPoolOptions::new()
        .max_connections(options.connections)
        .acquire_timeout(CONNECTION_WAIT)
        .test_before_acquire(false)
        .before_acquire(|conn, seen| {
            Box::pin(async move {
                if seen.idle_for > TRUSTED {
                    conn.ping().await?;
                }
                Ok(true)
            })
        })
        .connect_lazy_with(connect.clone());
    let bells = Bells::new();
    let (newest_event, work, jobs) = (bells.newest_event.subscribe(), bells.work.subscribe(), bells.jobs.subscribe());
    let store = Arc::new(Store {
        pool,
        timing: options.timing,
        slots: options.slots,
        ids: options.ids,
        clock: options.clock,
        bells,
        presence: Presence::default(),
        metrics: LedgerMetrics::default(),
    });
    let session = Session::join(&store, &connect).await?;
    let mut staying = JoinSet::new();
    let shutdown = CancellationToken::new();
    let stay = presence::stay(store.clone(), connect, session);
    staying.spawn(shutdown.clone().run_until_cancelled_owned(stay).map(|_| ()));
    Ok(PostgresLedger {
        store,
        blobs: Blobs::new(),
        admissions: options.admissions,
        newest_event,
        work,
        jobs,
        writes: TaskTracker::new(),
        shutdown,
        _session: staying,
    })
}

pub(crate) async fn examine(database: &Database) -> Result<(), OpenError> {
    let mut conn = session(database).await?;
    require_migrated(&mut conn).await?;
    require_reader(&mut conn).await?;
    conn.close().await.or_ledger()?;
    Ok(())
}

pub(crate) async fn migrate(database: &Database) -> Result<(), OpenError> {
    let mut conn = session(database).await?;
    // A migration may take its time, and another one is waited for.
    for setting in ["SET lock_timeout = 0", "SET statement_timeout = 0"] {
        sqlx::query(setting).execute(&mut conn).await.or_ledger()?;
    }
    let mut migrations = Migrator::with_migrations(MIGRATIONS.iter().cloned().collect());
    // An older binary tolerates migrations it does not know, because old and new meet in every upgrade and rollback.
    migrations.set_ignore_missing(true);
    // Under an advisory lock of the database. Not `run`: its `Acquire` bound makes the future of every caller impossible to
    // prove `Send`.
    migrations.run_direct(None, &mut conn, false).await.map_err(OpenError::Migrate)?;
    require_reader(&mut conn).await?;
    conn.close().await.or_ledger()?;
    Ok(())
}

/// A connection for something that is done once and takes its time.
pub(crate) async fn session(database: &Database) -> Result<PgConnection, OpenError> {
    connected(&connect_options(database)?).await
}

fn connect_options(database: &Database) -> Result<PgConnectOptions, OpenError> {
    Ok(database.options()?.statement_cache_capacity(STATEMENTS).options(SETTINGS))
}

async fn connected(options: &PgConnectOptions) -> Result<PgConnection, OpenError> {
    match tokio::time::timeout(SILENCE, options.connect()).await {
        Ok(connected) => connected.or_ledger().map_err(|failed| OpenError::Unreachable(failed.error)),
        Err(_) => {
            let why = format!("no answer within {} s", SILENCE.as_secs());
            Err(OpenError::Unreachable(LedgerError::Unavailable(why)))
        }
    }
}

async fn require_migrated(conn: &mut PgConnection) -> Result<(), OpenError> {
    // To be asked first: reading a table that is not there is an error like any other.
    let known: bool = sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL")
        .fetch_one(&mut *conn)
        .await
        .or_ledger()?;
    let applied: BTreeSet<i64> = if known {
        let migrations = conn.list_applied_migrations("_sqlx_migrations").await.map_err(OpenError::Migrate)?;
        migrations.into_iter().map(|migration| migration.version).collect()
    } else {
        BTreeSet::new()
    };
    match MIGRATIONS.iter().map(|migration| migration.version).find(|version| !applied.contains(version)) {
        Some(lacks) => Err(OpenError::NotMigrated { lacks }),
        None => Ok(()),
    }
}

async fn require_reader(conn: &mut PgConnection) -> Result<(), OpenError> {
    let needs = sqlx::query_scalar!("SELECT oldest_reader FROM ledger").fetch_one(conn).await.or_ledger()?;
    if needs > SCHEMA {
        return Err(OpenError::TooNew { needs });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    fn is_send<T: Send>(_: T) {}

    #[expect(dead_code, reason = "it is enough that this compiles")]
    fn opening_can_be_awaited_anywhere(database: &'static super::Database, options: super::Options) {
        is_send(super::open(database, options));
        is_send(super::migrate(database));
    }
}
