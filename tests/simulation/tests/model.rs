//! The ledger in SQLite beside the reference ledger: any sequence of verbs, and each answer and all that can be read
//! afterwards is the same.

/// What is asked and how it is compared, read where it lies: the crate that holds it builds all programs.
#[expect(unreachable_pub, dead_code, unused_imports, clippy::unwrap_used, reason = "it is written for another crate")]
#[path = "../../src/contract/ledger/mod.rs"]
mod suite;

/// As the suite is called where it lies.
mod contract {
    pub(crate) use crate::suite as ledger;
}

mod reference;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use camino::Utf8PathBuf;
use fettle_app::ports::ledger::{Leases, Ledger};
use fettle_store_sqlite::{Options, SqliteLedger, Stopwatch};

use contract::ledger::sequences::{self, Fresh};
use contract::ledger::{CountedIds, ManualTime, Subject};
use reference::InMemory;

/// Each verb is a commit, each sequence a new file.
const SEQUENCES: u32 = 80;

#[test]
fn sqlite_answers_as_the_reference_does() {
    sequences::compare::<OnDisk, InMemory>(SEQUENCES);
}

struct OnDisk {
    ledger: SqliteLedger,
    time: Arc<ManualTime>,
    data: tempfile::TempDir,
    openings: u64,
}

struct Elapsed(Arc<ManualTime>);

impl Stopwatch for Elapsed {
    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

impl OnDisk {
    async fn open(data: tempfile::TempDir, time: Arc<ManualTime>, openings: u64) -> Self {
        let path = Utf8PathBuf::from_path_buf(data.path().to_owned()).expect("temporary paths are UTF-8");
        let stopwatch = Arc::new(Elapsed(time.clone()));
        let ids = Arc::new(CountedIds::of_space(openings));
        let options = Options { stopwatch, slots: sequences::slots(), ..Options::new(time.clone(), ids) };
        Self { ledger: SqliteLedger::open(path, options).await.expect("the ledger opens"), time, data, openings }
    }
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

impl Fresh for OnDisk {
    const NAME: &'static str = "SQLite";

    async fn fresh() -> Self {
        Self::open(tempfile::tempdir().expect("a temporary folder can be made"), Arc::default(), 1).await
    }
}

impl Fresh for InMemory {
    const NAME: &'static str = "the reference";

    async fn fresh() -> Self {
        Self::empty(sequences::slots())
    }
}
