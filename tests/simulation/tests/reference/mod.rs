//! The reference ledger under hand-moved time, as the contract asks for one; read by whoever has `contract` beside it.

use std::sync::Arc;

use async_trait::async_trait;
use fettle_app::ports::ledger::{Leases, Ledger};
use fettle_domain::lease::Timing;
use fettle_domain::turn::Slots;
use fettle_simulation::{Durable, MemoryLedger, Surroundings};

use super::contract::ledger::{CountedIds, ManualTime, Subject};

pub(crate) struct InMemory {
    ledger: MemoryLedger,
    durable: Durable,
    time: Arc<ManualTime>,
    slots: Slots,
    /// Ids of a reopened ledger must not repeat those of its predecessor.
    openings: u64,
}

impl InMemory {
    pub(crate) fn empty(slots: Slots) -> Self {
        Self::open(Durable::default(), Arc::default(), slots, 1)
    }

    fn open(durable: Durable, time: Arc<ManualTime>, slots: Slots, openings: u64) -> Self {
        let watch = time.clone();
        let around = Surroundings {
            clock: time.clone(),
            stopwatch: Arc::new(move || watch.elapsed()),
            ids: Arc::new(CountedIds::of_space(openings)),
            timing: Timing::default(),
            slots: slots.clone(),
            admissions: None,
        };
        Self { ledger: MemoryLedger::open(durable.clone(), around), durable, time, slots, openings }
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
        Self::open(self.durable, self.time, self.slots, self.openings + 1)
    }
}
