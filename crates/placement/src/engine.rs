//! An engine as its actor reports it, and what of its state matters for memory.

use crate::id::{DeviceId, EngineId, Epoch, ModelId, PoolId, RecipeId};
use crate::quantity::{Bytes, Millis};
use crate::recipe::SleepLevel;

/// Where an engine sits and what it may take there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat {
    pub engine: EngineId,
    pub model: ModelId,
    pub recipe: RecipeId,
    /// In rank order.
    pub devices: Vec<DeviceId>,
    /// One entry a pool; a device's pool, and the host's where it needs any.
    pub claims: Vec<(PoolId, Bytes)>,
    /// While it loads; one entry a pool.
    pub peaks: Vec<(PoolId, Bytes)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineState {
    /// Has its claim and waits for those that make room.
    Reserved,
    Spawning,
    Loading,
    Ready,
    /// Takes no new requests; those it has may go on until then.
    Draining {
        until: Millis,
    },
    Stopping,
    /// Ended; its bytes are not seen free yet.
    Reclaiming,
    Gone,
    /// Its seat's claims are those of its sleep: some on the device, most on the host.
    Sleeping(SleepLevel),
    /// Failed; not to be tried again before then.
    Backoff {
        until: Millis,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Engine {
    pub id: EngineId,
    pub epoch: Epoch,
    pub seat: Seat,
    pub state: EngineState,
    /// What it was last seen to take; one entry a pool.
    pub observed: Vec<(PoolId, Bytes)>,
    pub inflight: u32,
    /// Sessions whose prefix it keeps.
    pub warm_sessions: u32,
    /// Requests in a thousand seconds.
    pub rate_milli: u32,
    /// How long it would take to load it again.
    pub reload: Millis,
    /// How long it takes to compute one warm session's prefix again.
    pub prefill: Millis,
    /// When it last became ready; while it loads, when it began.
    pub ready_at: Millis,
    pub last_used: Millis,
    pub pinned: bool,
}

/// What an engine's state means for memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// Takes nothing yet. What it will take comes out of what leaves, so the larger of the two counts.
    Reserved,
    /// May take up to its peak.
    Loading,
    Resident,
    Leaving,
    /// Has nothing; what is left behind is nobody's and counts as foreign.
    Absent,
}

impl EngineState {
    pub fn presence(self) -> Presence {
        match self {
            Self::Reserved => Presence::Reserved,
            Self::Spawning | Self::Loading => Presence::Loading,
            Self::Ready | Self::Sleeping(_) => Presence::Resident,
            Self::Draining { .. } | Self::Stopping | Self::Reclaiming => Presence::Leaving,
            Self::Gone | Self::Backoff { .. } => Presence::Absent,
        }
    }
}

/// The amount that `list` names for `pool`.
pub fn on_pool(list: &[(PoolId, Bytes)], pool: &PoolId) -> Bytes {
    list.iter().filter(|(id, _)| id == pool).map(|(_, bytes)| *bytes).sum()
}
