//! The composition root of `fettle-inference`: samples the devices, keeps the models that are asked for loaded, and tells why.

pub mod admin;
pub mod catalog;
pub mod devices;
pub mod examiner;
pub mod guard;
pub mod health;
pub mod kept_lessons;
pub mod keys;
mod meters;
pub mod metrics;
pub mod quarantine;
mod start;

pub use start::{EnginesAre, LISTEN, Running, Start, reached_at, start};
