//! The GPUs and the memory of this host, as values of `placement`: NVML through nvml-wrapper, the host through sysinfo. Decides
//! nothing about engines, never resets or changes a device, and never lets a stuck driver hold up its caller.

pub mod driver;
pub mod guard;
pub mod health;
pub mod host;
pub mod islands;
pub mod load;
pub mod machine;
pub mod memory_kind;
pub mod observe;
mod raw;
pub mod xids;
