//! What the use cases need from outside, in their own words. Each port is as small as its use.

pub mod clock;
pub mod forge;
pub mod git;
pub mod journal;
pub mod ledger;
pub mod model;
pub mod sandbox;

/// The cause of an error, from whichever library it came.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;
