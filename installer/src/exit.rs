//! What the exit status tells. Scripts depend on these numbers.

use crate::journal::{Progress, Purpose};
use crate::run::Outcome;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done, or nothing to do.
    Done = 0,
    Unexpected = 1,
    Usage = 2,
    Preflight = 10,
    /// Somebody else changed a file of ours, or the plan does not fit the host any more.
    Conflict = 11,
    /// Something failed, and everything was taken back.
    Reverted = 20,
    /// Something failed, and not everything was taken back.
    NotReverted = 21,
    /// An upgrade did not become healthy; the earlier release runs again.
    GateReverted = 30,
    GateNotReverted = 31,
    /// Another run of the installer is at work.
    Locked = 40,
    Backup = 50,
    /// A bundle or release does not have the content that it names.
    Bundle = 60,
    Skipped = 77,
}

impl Exit {
    pub fn of(outcome: &Outcome, purpose: Purpose) -> Self {
        let upgrading = matches!(purpose, Purpose::Upgrade | Purpose::Rollback);
        match outcome {
            Outcome::Done => Self::Done,
            Outcome::Reverted { gate: true, .. } if upgrading => Self::GateReverted,
            Outcome::Reverted { .. } => Self::Reverted,
            Outcome::Stuck { gate: true, .. } if upgrading => Self::GateNotReverted,
            Outcome::Kept { .. } | Outcome::Stuck { .. } => Self::NotReverted,
        }
    }
}

fn name(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Apply => "apply",
        Purpose::Upgrade => "upgrade",
        Purpose::Rollback => "rollback",
        Purpose::Restore => "restore",
        Purpose::Uninstall { purge: false } => "uninstall",
        Purpose::Uninstall { purge: true } => "uninstall --purge",
    }
}

/// How far a run had come, for people.
pub fn where_it_stands(progress: &Progress) -> String {
    let (done, of) = (progress.done.len(), progress.run.steps.len());
    match &progress.turned {
        None => format!("{}, {done} of {of} steps done", name(progress.run.purpose)),
        Some(turned) => format!("it was being taken back because of: {}", turned.reason),
    }
}
