//! Contract suites: one macro carries all cases of a port, so that every implementation takes the whole of it.

#[expect(clippy::unwrap_used, reason = "cases are tests that more than one crate runs")]
pub mod accounts;
#[expect(clippy::unwrap_used, reason = "cases are tests that more than one crate runs")]
pub mod ledger;
#[expect(clippy::unwrap_used, reason = "cases are tests that more than one crate runs")]
pub mod transport;

pub use crate::accounts_contract as accounts;
pub use crate::ledger_contract as ledger;
pub use crate::transport_contract as transport;
