//! Which engine runs on which device, as values: the devices and their memory, what a model takes, the plan with its reasons
//! and refusals, and a simulator to judge plans by.
//!
//! Nothing here reads a clock, a file, an environment variable or a random number, and nothing is decided by a floating-point
//! number: the same facts give the same plan on every machine. Whoever calls it samples the devices before and carries the
//! plan out after.

#![deny(clippy::float_arithmetic)]

pub mod claim;
pub mod device;
pub mod engine;
pub mod estimate;
pub mod footprint;
pub mod id;
pub mod memory_ledger;
pub mod placement;
pub mod plan;
pub mod quantity;
pub mod recipe;
pub mod reclaim;
pub mod simulate;
#[cfg(test)]
mod testing;
mod turns;
pub mod view;

pub use plan::plan;
pub use turns::Turns;
