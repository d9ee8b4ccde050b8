//! Where a Run's words are told while its model says them. Nothing depends on it: who does not listen misses them.

use async_trait::async_trait;
use fettle_domain::id::TaskId;
use fettle_domain::lease::LeaseRef;
use fettle_domain::words::Piece;

use super::ledger::L;

/// Pieces of one model call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words {
    pub lease: LeaseRef,
    pub task: TaskId,
    /// Counts the calls of a lease, tries among them; the newest is the one at work.
    pub call: u32,
    /// The number that the step will have.
    pub step: u32,
    /// How many pieces of the call come before these.
    pub from: u32,
    pub pieces: Vec<Piece>,
    /// The call has ended.
    pub over: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// So many pieces of the call are there; the next words begin with the one after.
    Has(u32),
    /// No live lease has this fence.
    Stale,
}

/// Implemented by the dashboard's [`crate::words::Ear`] and by the worker API's client.
#[async_trait]
pub trait Listen: Send + Sync {
    async fn hear(&self, words: Words) -> L<Heard>;
}
