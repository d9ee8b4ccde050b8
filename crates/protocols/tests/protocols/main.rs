//! The protocols from outside: recorded bodies and answers, and properties over made ones.

mod errors;
mod fixture;
mod hostile;
mod passing;
mod translated;
mod written;
