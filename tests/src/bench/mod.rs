//! Measures the release programs: how fast a webhook becomes durable, and what an idle Fettle costs.
//!
//! A figure is judged against another one of the same run, because the machine's own speed is no merit. Nothing here
//! asserts a time: a missed target is printed as missed, and only a lost delivery or a broken program is a failure.

mod api;
mod guard;
mod idle;
mod intake;
mod load;
mod recovery;
mod server;

pub use api::{ApiOptions, api};
pub use fettle_test_kit::measure::report::Report;
pub use guard::guard;
pub use idle::idle;
pub use intake::{IntakeOptions, intake};
pub use recovery::recovery;
