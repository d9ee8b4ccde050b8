//! Contract suites: one macro carries all cases of a port, so that every implementation takes the whole of it.

pub mod ledger;

pub use crate::ledger_contract as ledger;
