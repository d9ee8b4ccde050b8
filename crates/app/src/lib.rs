//! Fettle's use cases and the ports they need. Adapters implement the ports; composition roots put them together.
//!
//! No use case knows SQL, HTTP, git or a system call.

pub mod adding;
pub mod admission;
pub mod announcing;
pub mod archive;
pub mod auditing;
pub mod crash;
pub mod depths;
pub mod doorkeeping;
pub mod foreign;
pub mod intake;
pub mod leasing;
pub mod live;
pub mod metrics;
pub mod polling;
pub mod ports;
pub mod publishing;
pub mod reaping;
pub mod reconciling;
pub mod redelivering;
pub mod ringing;
pub mod run_token;
pub mod running;
pub mod sealing;
pub mod serving;
pub mod showing;
pub mod spans;
pub mod stored;
pub mod submit;
pub mod submitting;
pub mod telling;
pub mod vitals;
pub mod words;
