//! Backups: made while Fettle runs, verified by restoring them into a scratch folder, and restored by a journaled run.

mod archive;
mod command;
mod create;
mod error;
mod manifest;
mod places;
mod restore;
mod secrets;
mod store;
mod verify;

#[cfg(test)]
mod tests;

pub use command::{Backup, Restore};
pub(crate) use command::{backup, before_upgrade, discard_leftovers, restore};
pub use error::BackupError;
