//! The ledger in one SQLite file: durable Tasks, Runs, jobs, steps, effects and events for a single process.
//!
//! One thread owns the only writing connection and commits whatever has queued since its last fsync as one transaction; a few
//! read-only connections serve everything else. State rules are `fettle_domain`'s: a verb loads rows,
//! asks a transition and stores what it gave back. Blobs are files beside the database, named by their content.

mod account;
mod addition;
mod audit;
mod blob;
mod delivery;
mod effect;
mod error;
mod event;
mod export;
mod job;
mod lane;
mod ledger;
mod line;
mod listing;
mod message;
mod migrate;
mod open;
mod poll;
mod readers;
mod run;
mod snapshot;
mod sql;
mod task;
mod time;
mod view;
mod writer;

#[cfg(test)]
mod plans;

use std::sync::Arc;
use std::time::Duration;

use camino::Utf8PathBuf;
use fettle_app::metrics::LedgerMetrics;
use fettle_app::ports::clock::{Clock, IdSource};
use fettle_app::ports::ledger::{Admissions, L};
use fettle_domain::lease::Timing;
use fettle_domain::turn::Slots;
use tokio::sync::watch;

pub use export::{ExportError, export};
pub use migrate::MigrateError;
pub use open::{OpenError, refuse_if_in_use};
pub use snapshot::{Checked, SnapshotError, check_snapshot, snapshot};
pub use time::{RunningStopwatch, Stopwatch};

use fettle_app::stored;

use blob::Blobs;
use readers::Readers;
use time::LedgerTime;
use writer::{Verb, Writer};

/// The database's name beneath the data directory.
pub const DATABASE_FILE: &str = "ledger.db";

/// What a ledger is opened with.
pub struct Options {
    pub timing: Timing,
    pub clock: Arc<dyn Clock>,
    pub ids: Arc<dyn IdSource>,
    /// Measures the time since opening; tests move it by hand.
    pub stopwatch: Arc<dyn Stopwatch>,
    /// How much may be at work at once.
    pub slots: Slots,
    /// Says whether a leased Run may begin. Absent: every one may, and needs no token.
    pub admissions: Option<Arc<dyn Admissions>>,
    /// How long to wait for a previous process to let go of the data directory: a restart overlaps a little.
    pub lock_wait: Duration,
}

impl Options {
    pub fn new(clock: Arc<dyn Clock>, ids: Arc<dyn IdSource>) -> Self {
        Self {
            timing: Timing::default(),
            clock,
            ids,
            stopwatch: Arc::new(RunningStopwatch::start()),
            slots: Slots::default(),
            admissions: None,
            lock_wait: Duration::from_secs(2),
        }
    }
}

/// The ledger of one process. Dropping it stops the writer at once, as a crash would; [`SqliteLedger::close`] ends it
/// cleanly.
pub struct SqliteLedger {
    writer: Writer,
    readers: Readers,
    blobs: Blobs,
    time: Arc<LedgerTime>,
    slots: Arc<Slots>,
    admissions: Option<Arc<dyn Admissions>>,
    newest_event: watch::Receiver<u64>,
    work: watch::Receiver<u64>,
    jobs: watch::Receiver<u64>,
    metrics: LedgerMetrics,
}

impl SqliteLedger {
    /// Opens or creates the ledger beneath `data_dir`. Jobs that were leased when the last process ended get a full
    /// lease, so that a restart executes nothing twice.
    pub async fn open(data_dir: impl Into<Utf8PathBuf>, options: Options) -> Result<Self, OpenError> {
        open::open(data_dir.into(), options).await
    }

    /// What it counts; told to nobody before it is registered.
    pub fn metrics(&self) -> &LedgerMetrics {
        &self.metrics
    }

    /// Answers what has been asked, refuses what comes after, and leaves a checkpointed file that needs no check.
    pub async fn close(&self) -> L<()> {
        // The writer's connection is the last to close: it checkpoints.
        self.readers.close().await;
        self.writer.close().await
    }

    /// Waits until nothing can be written any more: after [`SqliteLedger::close`], or when the writer has ended by itself,
    /// because the file is damaged or by a bug.
    pub async fn ended(&self) {
        self.writer.ended().await;
    }

    async fn write<V: Verb>(&self, verb: V) -> L<V::Out> {
        self.writer.write(verb).await
    }
}
