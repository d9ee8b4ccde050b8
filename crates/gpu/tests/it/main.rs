//! The unmodified nvml-wrapper over a fake library: whole machines, and what goes wrong with them.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod bench;
mod devices;
mod driver;
mod trouble;
