//! The contract of the port `Ledger`, on the reference ledger.

/// The suite itself, read where it lies: the crate that holds it builds all programs.
#[expect(unreachable_pub, dead_code, clippy::unwrap_used, reason = "it is written for another crate")]
#[path = "../../src/contract/ledger/mod.rs"]
mod suite;

/// As the suite's macro calls it.
mod contract {
    pub(crate) use crate::suite as ledger;
}

mod reference;

use contract::ledger::slots;
use reference::InMemory;

crate::ledger_contract!(memory with lanes, InMemory::empty(slots()));
