//! The unmodified nvml-wrapper over a fake library: whole machines, and what goes wrong with them.

mod bench;
mod devices;
mod driver;
mod trouble;
