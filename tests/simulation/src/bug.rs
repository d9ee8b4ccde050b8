//! Bugs that are planted into the simulated surroundings, to see whether the simulation finds them. Product code has none of
//! them, and no switch for one.

use clap::ValueEnum;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Bug {
    /// A holder's write counts whatever fence it shows.
    NoFenceCheck,
    /// A slot counts as taken until the next sweep.
    SlotFreedLate,
    /// The forge shows neither pull requests nor comments before they are written again.
    NoListBeforePost,
    /// The receipt of a push is stored together with its intent.
    ReceiptBeforeRequest,
    /// A foreign message is taken from the broker when it is read, before it is stored.
    AckBeforeCommit,
    /// A lease's number is that of the attempt.
    AttemptAsFence,
    /// A Run's end and what follows from it are two transactions.
    TornHandOver,
    /// A renewal that comes after the lease has lapsed takes the job back.
    RenewalRevives,
    /// Which job is leased is decided by what a dashboard read before, and the row is not locked: its own writes wait for
    /// that, those of other dashboards do not.
    NoRowLock,
}
