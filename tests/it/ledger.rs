//! The ledger's contract on SQLite, and what only a file can show.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use camino::Utf8PathBuf;
use fettle_app::ports::ledger::{Leases, Ledger};
use fettle_store_sqlite::{Options, SqliteLedger, Stopwatch};
use fettle_tests::contract;
use fettle_tests::contract::ledger::{CountedIds, ManualTime, Subject};

contract::ledger!(sqlite, OnDisk::create().await);

struct OnDisk {
    ledger: SqliteLedger,
    time: Arc<ManualTime>,
    data: tempfile::TempDir,
    /// Ids of a reopened ledger must not repeat those of its predecessor.
    openings: u64,
}

/// Time as the store's stopwatch.
struct Elapsed(Arc<ManualTime>);

impl Stopwatch for Elapsed {
    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

impl OnDisk {
    async fn create() -> Self {
        Self::open(tempfile::tempdir().unwrap(), Arc::default(), 1).await
    }

    async fn open(data: tempfile::TempDir, time: Arc<ManualTime>, openings: u64) -> Self {
        let ledger = SqliteLedger::open(path(&data), options(&time, openings)).await.unwrap();
        Self { ledger, time, data, openings }
    }
}

fn path(data: &tempfile::TempDir) -> Utf8PathBuf {
    Utf8PathBuf::from_path_buf(data.path().to_owned()).unwrap()
}

fn options(time: &Arc<ManualTime>, openings: u64) -> Options {
    let stopwatch = Arc::new(Elapsed(time.clone()));
    Options { stopwatch, ..Options::new(time.clone(), Arc::new(CountedIds::of_space(openings))) }
}

#[async_trait]
impl Subject for OnDisk {
    fn leases(&self) -> &dyn Leases {
        &self.ledger
    }

    fn ledger(&self) -> &dyn Ledger {
        &self.ledger
    }

    fn time(&self) -> &ManualTime {
        &self.time
    }

    async fn crash_and_reopen(self) -> Self {
        let Self { ledger, time, data, openings } = self;
        drop(ledger);
        Self::open(data, time, openings + 1).await
    }
}
