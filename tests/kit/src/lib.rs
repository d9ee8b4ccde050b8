//! What tests and benchmarks share without knowing anything of Fettle: programs that are started and ended, real brokers,
//! figures with their targets. Depends on no crate of the workspace, so whoever measures one of them builds little.

pub mod brokers;
pub mod measure;
mod process;
pub mod skip;

pub use process::Process;
