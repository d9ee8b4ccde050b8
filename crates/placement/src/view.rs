//! Everything that a decision may look at: the facts of one moment, who wants what, and the settings.

use serde::{Deserialize, Serialize};

use crate::device::{Device, Pool};
use crate::engine::Engine;
use crate::footprint::Footprints;
use crate::id::{ModelId, OwnerId};
use crate::placement::Barrier;
use crate::quantity::{Bytes, Millis};
use crate::recipe::{ModelSpec, Recipe};
use crate::turns::Turns;

/// The facts. The order of the lists means nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    pub now: Millis,
    pub devices: Vec<Device>,
    pub pools: Vec<Pool>,
    pub engines: Vec<Engine>,
    pub models: Vec<ModelSpec>,
    pub recipes: Vec<Recipe>,
    pub footprints: Footprints,
    /// As the last placement left it.
    pub turns: Turns,
    /// As the last placement left it.
    pub barrier: Option<Barrier>,
}

/// Requests of one owner for one model that no ready engine has taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    pub model: ModelId,
    pub owner: OwnerId,
    pub class: Class,
    /// Requests. With 0 the want only keeps the least number of replicas, and nobody makes room for that.
    pub waiting: u32,
    /// When the oldest of them came.
    pub oldest: Millis,
    /// The least number, kept without requests, and the most.
    pub replicas: (u8, u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    Interactive,
    Batch,
}

/// From an engine's first answer to its first request: the gateway hears of it and sends what waits, within a second.
const IDLE_RESIDENCY: Millis = Millis::secs(2);

/// The settings; `Policy::default()` is what a configuration without these keys means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    pub recipes: RecipeChoice,
    /// A sample older than this says nothing: its pool offers no bytes.
    pub stale_after: Millis,
    /// A load that was just paid for is used for this long, or three times what it took, while there is use for it.
    pub min_residency: Millis,
    /// A want older than this gets its devices emptied.
    pub starve_after: Millis,
    /// Requests in flight have this long when their engine has to go.
    pub drain_deadline: Millis,
    /// A further replica is loaded when requests wait longer than this.
    pub replica_delay: Millis,
    /// An engine without a request for this long ends; `None`: only a lack of memory ends it.
    pub idle_ttl: Option<Millis>,
    /// Turns of an interactive want for each one of a batch want.
    pub interactive_weight: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            recipes: RecipeChoice::Strict,
            stale_after: Millis::secs(2),
            min_residency: Millis::secs(60),
            starve_after: Millis::secs(60),
            drain_deadline: Millis::secs(180),
            replica_delay: Millis::secs(20),
            idle_ttl: None,
            interactive_weight: 8,
        }
    }
}

/// When another recipe than the first may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecipeChoice {
    /// Only when an earlier one can never fit or has just failed: the same request gets the same model.
    Strict,
    /// Also when it fits now and an earlier one would push something out.
    FirstFit,
}

impl Policy {
    /// How long an engine that took `reload` to load is kept once it is ready, while it is asked: thrashing costs more than waiting.
    pub fn residency(&self, reload: Millis) -> Millis {
        self.min_residency.max(reload.times(3))
    }

    /// The same of one that nobody asks: until whoever waited for it has reached it. Kept for as long as its load took, it made the
    /// mean wait a tenth longer in simulation.
    pub fn idle_residency(&self) -> Millis {
        IDLE_RESIDENCY.min(self.min_residency)
    }

    /// The margin of a pool of discrete memory: what others may grow by between a sample and the end of a load.
    pub fn discrete_margin(cap: Bytes) -> Bytes {
        Bytes::mib(512).max(cap.permille(15))
    }
}
