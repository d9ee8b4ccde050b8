//! Where the ledger is kept: a file of this machine, or a PostgreSQL that several dashboards share.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use fettle_app::metrics::LedgerMetrics;
use fettle_app::ports::accounts::Accounts;
use fettle_app::ports::additions::Additions;
use fettle_app::ports::clock::{Clock, IdSource};
use fettle_app::ports::ledger::{Admissions, L, Ledger};
use fettle_domain::lease::Timing;
use fettle_domain::turn::Slots;
use fettle_runtime::config::{Config, Store as Wanted};
use fettle_runtime::data::DataDir;
use fettle_runtime::secrets;
use fettle_store_postgres::{Database, PostgresLedger, Tls};
use fettle_store_sqlite::SqliteLedger;

/// Held by a dashboard whose ledger is elsewhere.
const LOCK_FILE: &str = "dashboard.lock";

/// What either kind is opened with.
pub(crate) struct Opening {
    pub(crate) timing: Timing,
    pub(crate) slots: Slots,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) ids: Arc<dyn IdSource>,
    pub(crate) admissions: Arc<dyn Admissions>,
}

/// An open ledger, whichever the configuration asks for.
#[derive(Clone)]
pub(crate) enum Store {
    File(Arc<SqliteLedger>),
    /// With the lock of the data folder, which the file would have.
    Postgres {
        ledger: Arc<PostgresLedger>,
        _lock: Arc<fs_err::File>,
    },
}

/// Keys and addresses in a data folder are one dashboard's.
fn lock(data: &DataDir) -> Result<fs_err::File> {
    let path = data.root().join(LOCK_FILE);
    let file = fs_err::OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
    match file.file().try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            bail!("another dashboard is running on {}; give this one a folder of its own with --data-dir", data.root())
        }
        Err(std::fs::TryLockError::Error(error)) => Err(error).with_context(|| format!("while locking {path}")),
    }
}

impl Store {
    pub(crate) async fn open(config: &Config, data: &DataDir, opening: Opening) -> Result<Self> {
        let Opening { timing, slots, clock, ids, admissions } = opening;
        Ok(match database(&config.store)? {
            None => {
                let options = fettle_store_sqlite::Options {
                    timing,
                    slots,
                    admissions: Some(admissions),
                    ..fettle_store_sqlite::Options::new(clock, ids)
                };
                Self::File(Arc::new(SqliteLedger::open(data.ledger(), options).await?))
            }
            Some(database) => {
                let _lock = Arc::new(lock(data)?);
                let defaults = fettle_store_postgres::Options::new(ids);
                let options = fettle_store_postgres::Options {
                    timing,
                    slots,
                    admissions: Some(admissions),
                    connections: config.store.connections.unwrap_or(defaults.connections),
                    ..defaults
                };
                Self::Postgres { ledger: Arc::new(PostgresLedger::open(&database, options).await?), _lock }
            }
        })
    }

    pub(crate) fn ledger(&self) -> Arc<dyn Ledger> {
        match self {
            Self::File(ledger) => ledger.clone(),
            Self::Postgres { ledger, .. } => ledger.clone(),
        }
    }

    pub(crate) fn metrics(&self) -> &LedgerMetrics {
        match self {
            Self::File(ledger) => ledger.metrics(),
            Self::Postgres { ledger, .. } => ledger.metrics(),
        }
    }

    pub(crate) fn accounts(&self) -> Arc<dyn Accounts> {
        match self {
            Self::File(ledger) => ledger.clone(),
            Self::Postgres { ledger, .. } => ledger.clone(),
        }
    }

    pub(crate) fn additions(&self) -> Arc<dyn Additions> {
        match self {
            Self::File(ledger) => ledger.clone(),
            Self::Postgres { ledger, .. } => ledger.clone(),
        }
    }

    /// Returns when it can serve no more by itself; a database is waited for instead.
    pub(crate) async fn ended(&self) {
        match self {
            Self::File(ledger) => ledger.ended().await,
            Self::Postgres { .. } => std::future::pending().await,
        }
    }

    pub(crate) async fn close(&self) -> L<()> {
        match self {
            Self::File(ledger) => ledger.close().await,
            Self::Postgres { ledger, .. } => ledger.close().await,
        }
    }
}

/// Brings the configured database up to date and says what it did. A file is brought up to date by whoever opens it.
pub async fn migrate(config: &Config) -> Result<String> {
    let Some(database) = database(&config.store)? else {
        return Ok(
            "the ledger is a file in the data folder, which each start brings up to date; there is nothing to do"
                .into(),
        );
    };
    PostgresLedger::migrate(&database).await?;
    Ok(format!("the ledger's database has schema {}", fettle_store_postgres::SCHEMA))
}

/// `None`: the ledger is a file.
pub fn database(config: &Wanted) -> Result<Option<Database>> {
    let Some(url) = &config.url else { return Ok(None) };
    let password = config.password_file.as_deref().map(secrets::read).transpose();
    let ca = config.ca_file.as_deref().map(fs_err::read_to_string).transpose();
    let ca = ca.context("while reading store.ca_file")?;
    Ok(Some(Database {
        url: url.clone(),
        user: config.user.clone(),
        password: password.context("while reading store.password_file")?,
        tls: if config.is_verified() { Tls::Verify { ca } } else { Tls::Off },
    }))
}
