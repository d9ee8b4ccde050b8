//! Real processes: hosts, keepers and fake engines, killed and counted.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod adopting;
mod hosts;
mod killing;
mod loading;
mod serving;
mod stopping;
