//! The contract of the port `Ledger`, on the reference ledger.

/// The suite itself, read where it lies: the crate that holds it builds all programs.
#[expect(unreachable_pub, dead_code, clippy::unwrap_used, reason = "it is written for another crate")]
#[path = "../../src/contract/ledger/mod.rs"]
mod suite;

/// As the suite's macro calls it.
mod contract {
    pub(crate) use crate::suite as ledger;
}

use std::sync::Arc;

use async_trait::async_trait;
use fettle_app::ports::ledger::{Leases, Ledger};
use fettle_domain::lease::Timing;
use fettle_simulation::{Durable, MemoryLedger, Surroundings};

use contract::ledger::{CountedIds, ManualTime, Subject, slots};

crate::ledger_contract!(memory with lanes, InMemory::open(Durable::default(), Arc::default(), 1));

struct InMemory {
    ledger: MemoryLedger,
    durable: Durable,
    time: Arc<ManualTime>,
    /// Ids of a reopened ledger must not repeat those of its predecessor.
    openings: u64,
}

impl InMemory {
    fn open(durable: Durable, time: Arc<ManualTime>, openings: u64) -> Self {
        let watch = time.clone();
        let around = Surroundings {
            clock: time.clone(),
            stopwatch: Arc::new(move || watch.elapsed()),
            ids: Arc::new(CountedIds::of_space(openings)),
            timing: Timing::default(),
            slots: slots(),
            admissions: None,
        };
        Self { ledger: MemoryLedger::open(durable.clone(), around), durable, time, openings }
    }
}

#[async_trait]
impl Subject for InMemory {
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
        Self::open(self.durable, self.time, self.openings + 1)
    }
}
