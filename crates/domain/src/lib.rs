//! The words and rules of Fettle as values: ids, state machines, policies and the reasons they give.
//!
//! Nothing here reads a clock, a file, an environment variable or a random number; `now`, ids and seeds come in as
//! arguments, so every rule can be tested by calling it.

pub mod access;
pub mod account;
pub mod audit_log;
pub mod branch;
pub mod budget;
pub mod choice;
pub mod effect;
pub mod event;
pub mod foreign;
pub mod forwarded;
pub mod id;
pub mod incoming;
pub mod intake;
pub mod issue;
pub mod job;
pub mod label;
pub mod lease;
pub mod loops;
pub mod missed;
pub mod model_profile;
pub mod object;
pub mod oidc;
pub mod outgoing;
pub mod patch;
pub mod path;
pub mod path_policy;
pub mod pod;
pub mod progress;
pub mod proof;
pub mod proof_level;
pub mod proposal;
pub mod publication;
pub mod repo;
pub mod retry;
pub mod run;
pub mod secret;
pub mod session;
pub mod step;
pub mod strength;
pub mod task;
pub mod trace;
pub mod turn;
mod unseen;
pub mod words;
