//! How a Run turns an issue into a Patch with a Proof: context, tools, edits, dialects, phases and verification.
//!
//! Everything that comes from a model is foreign input. Nothing here talks to a network, a database or a git library.

pub mod conformance;
pub mod dialect;
pub mod ecosystem;
pub mod edit;
pub mod prepare;
mod removal;
pub mod solve;
pub mod tools;
pub mod verify;
pub mod workbench;
pub mod workspace;
