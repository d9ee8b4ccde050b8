//! Measures the release programs: how fast a webhook becomes durable, and what an idle Fettle costs.
//!
//! A figure is judged against another one of the same run, because the machine's own speed is no merit. Nothing here
//! asserts a time: a missed target is printed as missed, and only a lost delivery or a broken program is a failure.

mod disk;
mod idle;
mod intake;
mod load;
mod process;
mod report;
mod server;

pub use idle::idle;
pub use intake::{IntakeOptions, intake};
pub use report::Report;

/// A folder below `folder` for one Fettle, removed when dropped.
fn home(folder: &camino::Utf8Path) -> anyhow::Result<tempfile::TempDir> {
    Ok(tempfile::Builder::new().prefix("fettle-bench-").tempdir_in(folder)?)
}
