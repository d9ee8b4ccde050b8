//! The protocols from outside: recorded bodies and answers, and properties over made ones.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod errors;
mod fixture;
mod hostile;
mod passing;
mod translated;
mod written;
