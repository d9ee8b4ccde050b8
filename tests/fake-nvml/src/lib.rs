//! A stand-in for NVIDIA's `libnvidia-ml.so.1`: what it answers is in a JSON file beside it, read again at every call, so a test
//! changes the machine under a running process. It knows only what Fettle asks, and never a real GPU.
//!
//! The unmodified nvml-wrapper loads it through a path. Each test has a copy in a folder of its own, so several of them, with
//! different machines, live in one process.

mod abi;
mod install;
mod state;

pub use install::Installed;
pub use state::{Fabric, Gpu, Link, Memory, Process, Remapped, Slice, State, code};
