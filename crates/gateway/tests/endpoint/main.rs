//! The gateway over real sockets, in front of a server that answers as it is told.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod access;
mod counting;
mod passing;
mod translating;
mod trouble;
mod upstream;
mod waiting;
mod world;
