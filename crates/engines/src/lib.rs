//! Inference servers as processes: starts them, watches them load, tells which processes they have, ends them, and leaves none
//! behind. Chooses no device, reads no memory of GPUs and keeps no request.
//!
//! Each engine has an actor here and a [`keeper`] above it, and before either there is a [`record`] of it on disk. What an actor
//! does next is computed by [`life`]; what an engine is started with, by its [`driver`].

mod actor;
mod cgroup;
pub mod driver;
pub mod exit;
pub mod host;
pub mod keeper;
mod launch;
pub mod life;
mod log;
pub mod models;
mod probe;
pub mod record;
pub mod settings;
mod sight;
pub mod table;

pub use host::{Engines, LogFrom, LogPart};
pub use log::LogMark;
pub use settings::Settings;
