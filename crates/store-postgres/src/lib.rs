//! The ledger in PostgreSQL: durable Tasks, Runs, jobs, steps, effects, events and blobs for several dashboards at once; and
//! accounts.
//!
//! There is no leader. Each verb is one short transaction that locks the rows it decides about and goes by the server's clock.
//! State rules are `fettle_domain`'s: a verb loads rows, asks a transition and stores what it gave back. Dashboards tell each
//! other that something happened (`NOTIFY`); whatever is not heard is found by looking, within [`POLL`].

mod account;
mod accounts;
mod addition;
mod api_key;
mod audit;
mod audit_log;
mod blob;
mod database;
mod delivery;
mod effect;
mod error;
mod event;
mod import;
mod job;
mod lane;
mod ledger;
mod listing;
mod lock;
mod message;
mod open;
mod poll;
mod presence;
mod run;
mod session;
mod signing_key;
mod stored;
mod task;
mod time;
mod view;
mod wakes;
mod writer;

use std::sync::Arc;
use std::time::Duration;

use fettle_app::metrics::LedgerMetrics;
use fettle_app::ports::clock::{Clock, IdSource};
use fettle_app::ports::ledger::{Admissions, L};
use fettle_domain::lease::Timing;
use fettle_domain::turn::Slots;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use database::{Database, Tls};
pub use import::{ImportError, import};
pub use open::{OpenError, SCHEMA};

use blob::Blobs;
use writer::Store;

/// What another dashboard did and could not tell is found after this, at the latest.
pub const POLL: Duration = Duration::from_secs(5);

/// What a ledger is opened with.
pub struct Options {
    pub timing: Timing,
    /// How many may be at work at once; of all dashboards together, so these should agree about it.
    pub slots: Slots,
    pub ids: Arc<dyn IdSource>,
    /// Instead of the server's clock; tests move it by hand.
    pub clock: Option<Arc<dyn Clock>>,
    /// Says whether a leased Run may begin. Absent: every one may, and needs no token.
    pub admissions: Option<Arc<dyn Admissions>>,
    /// Of this dashboard, for verbs and reads; it has one more to listen on. All dashboards together must stay below the
    /// server's `max_connections`.
    pub connections: u32,
}

impl Options {
    pub fn new(ids: Arc<dyn IdSource>) -> Self {
        Self { timing: Timing::default(), slots: Slots::default(), ids, clock: None, admissions: None, connections: 12 }
    }
}

/// One dashboard's part in the ledger. Dropping it ends what listens, as a crash would; [`PostgresLedger::close`] waits for
/// what is under way.
pub struct PostgresLedger {
    store: Arc<Store>,
    blobs: Blobs,
    admissions: Option<Arc<dyn Admissions>>,
    newest_event: watch::Receiver<u64>,
    work: watch::Receiver<u64>,
    jobs: watch::Receiver<u64>,
    /// Transactions under way; a caller that gives up leaves its own to end by itself.
    writes: TaskTracker,
    shutdown: CancellationToken,
    /// The session that listens and shows that this dashboard is alive.
    _session: JoinSet<()>,
}

impl PostgresLedger {
    /// Brings the database up to date. Two at once do it one after the other.
    pub async fn migrate(database: &Database) -> Result<(), OpenError> {
        open::migrate(database).await
    }

    /// Whether this binary could join it. Changes nothing.
    pub async fn examine(database: &Database) -> Result<(), OpenError> {
        open::examine(database).await
    }

    /// Joins the ledger, which must have been migrated. If no other dashboard is alive, jobs that were leased get a
    /// full lease, so that an outage executes nothing twice.
    pub async fn open(database: &Database, options: Options) -> Result<Self, OpenError> {
        open::open(database, options).await
    }

    /// What it counts; told to nobody before it is registered.
    pub fn metrics(&self) -> &LedgerMetrics {
        &self.store.metrics
    }

    /// Answers what has been asked, refuses what comes after, and leaves the others.
    pub async fn close(&self) -> L<()> {
        self.shutdown.cancel();
        self.writes.close();
        self.writes.wait().await;
        self.store.pool.close().await;
        Ok(())
    }
}
