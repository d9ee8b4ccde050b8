//! The sandbox on the real kernel, at every level that this host allows. A level that it does not allow is named on the output.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "all of this is test code, and a skipped level must be seen"
)]

mod limits;
mod network;
mod tools;
mod walls;
mod world;
