//! What a plan says: what to do, why, against which alternatives, and why not. All of it is shown to people in one sentence each.

use std::fmt;

use crate::device::ComputeCapability;
use crate::engine::Seat;
use crate::id::{DeviceId, EngineId, Epoch, IslandId, ModelId, OwnerId, RecipeId};
use crate::quantity::{Bytes, Millis};
use crate::turns::Turns;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Placement {
    /// In order: those that make room stand before the load that they make it for.
    pub intents: Vec<Intent>,
    pub reasons: Vec<Reason>,
    pub refusals: Vec<Unmet>,
    /// Its engines take no new requests while it stands.
    pub barrier: Option<Barrier>,
    /// For the next view.
    pub turns: Turns,
}

/// What an engine's actor is asked to do. One with an old epoch is void.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Intent {
    /// Take the locks of its pools in the order of their ids, add the claim, wait until those before it in the list are gone
    /// and their memory is seen free, look again whether it is admitted, spawn.
    Load(Seat),
    Wake(EngineId, Epoch),
    Sleep(EngineId, Epoch),
    /// Take no new requests; those in flight may go on until then.
    Drain(EngineId, Epoch, Millis),
    /// The barrier that asked to drain is gone: take requests again.
    Resume(EngineId, Epoch),
    Stop(EngineId, Epoch),
}

/// Devices that are being emptied for a want that has waited too long. Nothing else is put there meanwhile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Barrier {
    pub model: ModelId,
    pub recipe: RecipeId,
    pub devices: Vec<DeviceId>,
    /// Those that have to go.
    pub engines: Vec<EngineId>,
    /// From then on they go with requests in flight.
    pub until: Millis,
}

/// How much stopping an engine costs others, in milliseconds: its reload times how often it is asked, and what its warm
/// sessions pay to compute their prefixes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Cost(pub u64);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// No load is needed: one is on its way.
    Underway {
        model: ModelId,
        engine: EngineId,
        ready_in: Millis,
    },
    Chosen {
        model: ModelId,
        recipe: RecipeId,
        engine: EngineId,
        devices: Vec<DeviceId>,
        how: How,
        load: Millis,
        instead_of: Vec<Alternative>,
    },
    /// An earlier recipe was not used.
    PassedOver {
        model: ModelId,
        recipe: RecipeId,
        why: Refusal,
    },
    MadeRoom {
        engine: EngineId,
        model: ModelId,
        cost: Cost,
        asleep: bool,
    },
    Unused {
        engine: EngineId,
        idle: Millis,
    },
    Unhealthy {
        engine: EngineId,
        device: DeviceId,
    },
    Drained {
        engine: EngineId,
    },
    Emptying {
        model: ModelId,
        devices: Vec<DeviceId>,
        engines: Vec<EngineId>,
        within: Millis,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum How {
    Woken,
    /// The device on which least is left over.
    BestFit {
        left_over: Bytes,
    },
    /// Devices of one island; aligned sets leave whole sets for others.
    Set {
        island: IslandId,
        aligned: bool,
        left_over: Bytes,
    },
    MakingRoom {
        victims: Vec<EngineId>,
        cost: Cost,
    },
    /// For a barrier, whose deadline may have ended requests.
    Emptied {
        victims: Vec<EngineId>,
    },
}

/// What else could have been done, and why it was not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alternative {
    pub devices: Vec<DeviceId>,
    pub but: But,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum But {
    LeavesOver(Bytes),
    Degraded,
    CutsASet,
    Costs(Cost),
}

/// A want that got nothing, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmet {
    pub model: ModelId,
    pub owner: OwnerId,
    pub refusal: Refusal,
}

/// The first four are final: asking again is of no use until the machine or its configuration changes. Of the others each says
/// after how long asking again may be of use, at the latest where that can be known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// `largest`: what the roomiest device of the wanted kind has when nothing but reserves is on it.
    TooBig {
        need: Bytes,
        largest: Bytes,
    },
    ComputeCapability {
        need: ComputeCapability,
        best: ComputeCapability,
    },
    NoIsland {
        tp: u8,
    },
    /// No recipe, or none of which is known what it takes.
    NoRecipe,
    HostMemory {
        need: Bytes,
        available: Bytes,
        eta: Millis,
    },
    Stale {
        eta: Millis,
    },
    Frozen {
        why: String,
        eta: Millis,
    },
    FabricPending {
        eta: Millis,
    },
    Quarantined {
        device: DeviceId,
        eta: Millis,
    },
    Backoff {
        until: Millis,
        eta: Millis,
    },
    Pinned {
        engines: Vec<EngineId>,
        eta: Millis,
    },
    /// Processes that are not ours have the memory.
    Foreign {
        bytes: Bytes,
        eta: Millis,
    },
    Busy {
        need: Bytes,
        by: Vec<Blocker>,
        eta: Millis,
    },
}

impl Refusal {
    /// `None`: it is final.
    pub fn eta(&self) -> Option<Millis> {
        match self {
            Self::TooBig { .. } | Self::ComputeCapability { .. } | Self::NoIsland { .. } | Self::NoRecipe => None,
            Self::HostMemory { eta, .. }
            | Self::Stale { eta }
            | Self::Frozen { eta, .. }
            | Self::FabricPending { eta }
            | Self::Quarantined { eta, .. }
            | Self::Backoff { eta, .. }
            | Self::Pinned { eta, .. }
            | Self::Foreign { eta, .. }
            | Self::Busy { eta, .. } => Some(*eta),
        }
    }

    pub fn is_final(&self) -> bool {
        self.eta().is_none()
    }

    /// For `Retry-After`, in whole seconds: 1 to 60, since one SDK gives up above 120 and another sleeps as long as told.
    pub fn retry_after(&self) -> Option<u64> {
        self.eta().map(|eta| eta.get().div_ceil(1000).clamp(1, 60))
    }
}

/// What is in the way for now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blocker {
    InFlight {
        engine: EngineId,
        requests: u32,
    },
    /// It was loaded a short while ago.
    Protected {
        engine: EngineId,
        for_more: Millis,
    },
    /// It loads or leaves; one at a time in a pool.
    Changing {
        engine: EngineId,
    },
    /// Room is made for that model.
    Barrier {
        of: ModelId,
    },
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Millis::new(self.0).fmt(f)
    }
}

impl fmt::Display for Intent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Load(seat) => write!(f, "load {} on {}", seat.engine, list(&seat.devices)),
            Self::Wake(engine, _) => write!(f, "wake {engine}"),
            Self::Sleep(engine, _) => write!(f, "sleep {engine}"),
            Self::Drain(engine, ..) => write!(f, "drain {engine}"),
            Self::Resume(engine, _) => write!(f, "resume {engine}"),
            Self::Stop(engine, _) => write!(f, "stop {engine}"),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Underway { model, engine, ready_in } => write!(f, "{model}: {engine} is ready in {ready_in}"),
            Self::Chosen { model, recipe, engine: _, devices, how, load, instead_of } => {
                write!(f, "{model}: {recipe} on {}, {how}, ready in {load}", list(devices))?;
                instead_of.iter().try_for_each(|other| write!(f, "; not {}", other))
            }
            Self::PassedOver { model, recipe, why } => write!(f, "{model}: not {recipe}: {why}"),
            Self::MadeRoom { engine, model, cost, asleep: false } => {
                write!(f, "{engine} stops for {model}, which costs others {cost}")
            }
            Self::MadeRoom { engine, model, cost: _, asleep: true } => write!(f, "{engine} sleeps for {model}"),
            Self::Unused { engine, idle } => write!(f, "{engine} was not asked for {idle}"),
            Self::Unhealthy { engine, device } => write!(f, "{engine} leaves {device}, which is quarantined or lost"),
            Self::Drained { engine } => write!(f, "{engine} has been drained"),
            Self::Emptying { model, devices, engines, within } if engines.is_empty() => {
                write!(f, "{model} has waited too long: {} kept for it, for {within} at most", list(devices))
            }
            Self::Emptying { model, devices, engines, within } => {
                let devices = list(devices);
                write!(f, "{model} has waited too long: {devices} emptied of {} within {within}", list(engines))
            }
        }
    }
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Woken => f.write_str("woken"),
            Self::BestFit { left_over } => write!(f, "best fit with {left_over} left over"),
            Self::Set { island, aligned, left_over } => {
                let set = if *aligned { "an aligned set" } else { "a set" };
                write!(f, "{set} of island {island} with {left_over} left over")
            }
            Self::MakingRoom { victims, cost } => write!(f, "in place of {}, which costs others {cost}", list(victims)),
            Self::Emptied { victims } if victims.is_empty() => f.write_str("kept for it"),
            Self::Emptied { victims } => write!(f, "emptied of {}", list(victims)),
        }
    }
}

impl fmt::Display for Alternative {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", list(&self.devices))?;
        match &self.but {
            But::LeavesOver(bytes) => write!(f, "({bytes} left over)"),
            But::Degraded => f.write_str("(degraded)"),
            But::CutsASet => f.write_str("(cuts a set)"),
            But::Costs(cost) => write!(f, "(costs {cost})"),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooBig { need, largest: Bytes::ZERO } => write!(
                f,
                "needs {need}, and there is no GPU for it; `device = \"cpu\"` in its recipe puts it on the processor"
            ),
            Self::TooBig { need, largest } => write!(f, "needs {need} on a device, the largest has {largest}"),
            Self::ComputeCapability { need, best } => {
                write!(f, "needs compute capability {need}, the best device has {best}")
            }
            Self::NoIsland { tp } => write!(f, "needs {tp} devices that reach each other, there are not as many"),
            Self::NoRecipe => f.write_str("no recipe says how to run it and what it takes"),
            Self::HostMemory { need, available, eta } => {
                write!(f, "needs {need} of the host, which has {available}; again in {eta}")
            }
            Self::Stale { eta } => write!(f, "its devices have not been seen lately; again in {eta}"),
            Self::Frozen { why, eta } => write!(f, "no loads for now: {why}; again in {eta}"),
            Self::FabricPending { eta } => write!(f, "the fabric between the devices is not ready; again in {eta}"),
            Self::Quarantined { device, eta } => write!(f, "{device} is quarantined or lost; again in {eta}"),
            Self::Backoff { until: _, eta } => write!(f, "its last load failed; tried again in {eta}"),
            Self::Pinned { engines, eta } => {
                write!(f, "pinned engines are in the way: {}; again in {eta}", list(engines))
            }
            Self::Foreign { bytes, eta } => write!(f, "{bytes} are used by others; again in {eta}"),
            Self::Busy { need, by, eta } => {
                write!(f, "needs {need}; ")?;
                by.iter().try_for_each(|blocker| write!(f, "{blocker}; "))?;
                write!(f, "at the latest in {eta}")
            }
        }
    }
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InFlight { engine, requests: 1 } => write!(f, "{engine} has a request in flight"),
            Self::InFlight { engine, requests } => write!(f, "{engine} has {requests} requests in flight"),
            Self::Protected { engine, for_more } => write!(f, "{engine} is protected for {for_more} more"),
            Self::Changing { engine } => write!(f, "{engine} loads or leaves"),
            Self::Barrier { of } => write!(f, "room is made for {of}"),
        }
    }
}

fn list<T: fmt::Display>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    items.join(" ")
}
