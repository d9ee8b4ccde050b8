//! The ledger in PostgreSQL beside the reference ledger: any sequence of verbs, as for SQLite in `tests/simulation`.

/// Read where it lies: a test of the crate that holds it needs it as well.
#[path = "../../simulation/tests/reference/mod.rs"]
mod reference;

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use fettle_app::ports::clock::Clock;
use fettle_app::ports::ledger::{Leases, Ledger};
use fettle_store_postgres::{Database, Options, PostgresLedger};
use fettle_tests::contract::ledger::sequences::{self, Fresh};
use fettle_tests::contract::ledger::{CountedIds, ManualTime, Subject};
use fettle_tests::{contract, postgres};

use super::nobody_is_there;
use reference::InMemory;

/// Each verb is some round trips, each sequence a new database. `PROPTEST_CASES=10000` asks for more.
const SEQUENCES: u32 = 12;

#[test]
fn postgres_answers_as_the_reference_does() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    if runtime.block_on(postgres::migrated()).unwrap().is_some() {
        sequences::compare::<OnServer, InMemory>(SEQUENCES);
    }
}

struct OnServer {
    ledger: PostgresLedger,
    url: String,
    time: Arc<ManualTime>,
    openings: u64,
}

impl OnServer {
    async fn open(url: String, time: Arc<ManualTime>, openings: u64) -> Self {
        let (clock, ids): (Arc<dyn Clock>, _) = (time.clone(), Arc::new(CountedIds::of_space(openings)));
        let options = Options { connections: 2, slots: sequences::slots(), clock: Some(clock), ..Options::new(ids) };
        let ledger = PostgresLedger::open(&Database::at(&url), options).await.expect("the ledger opens");
        Self { ledger, url, time, openings }
    }
}

#[async_trait]
impl Subject for OnServer {
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
        let Self { ledger, url, time, openings } = self;
        drop(ledger);
        nobody_is_there(&url).await;
        Self::open(url, time, openings + 1).await
    }
}

impl Fresh for OnServer {
    const NAME: &'static str = "PostgreSQL";

    async fn fresh() -> Self {
        /// Of the sequence before: thousands of databases would fill a disk.
        static LAST: Mutex<Option<String>> = Mutex::new(None);
        let url = postgres::migrated().await.expect("a database can be made").expect("it was there a moment ago");
        let last = LAST.lock().expect("no holder panics").replace(url.clone());
        if let Some(last) = last {
            postgres::forget(&last).await.expect("a database can be dropped");
        }
        Self::open(url, Arc::default(), 1).await
    }
}

impl Fresh for InMemory {
    const NAME: &'static str = "the reference";

    async fn fresh() -> Self {
        Self::empty(sequences::slots())
    }
}
