//! What a recipe takes of each pool, in parts that can be measured one by one.

use std::collections::BTreeMap;

use crate::id::RecipeId;
use crate::quantity::{Bytes, Millis};

/// Bytes on one device, before slack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Parts {
    pub weights: Bytes,
    pub kv: Bytes,
    /// Scratch memory of one batch.
    pub compute: Bytes,
    /// Driver and libraries.
    pub context: Bytes,
    /// Projector, draft model, adapters.
    pub extra: Bytes,
}

impl Parts {
    pub fn sum(&self) -> Bytes {
        self.weights + self.kv + self.compute + self.context + self.extra
    }
}

/// What is added to an estimate: `estimate * (1 + permille / 1000) + bytes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slack {
    pub permille: u32,
    pub bytes: Bytes,
}

impl Slack {
    pub const NONE: Self = Self { permille: 0, bytes: Bytes::ZERO };
    /// An unproven estimate is not trusted.
    pub const FIRST: Self = Self { permille: 100, bytes: Bytes::gib(1) };
    /// Allocators round, whatever was learned.
    pub const LEAST: Self = Self { permille: 20, bytes: Bytes::mib(256) };

    pub fn on(self, estimate: Bytes) -> Bytes {
        estimate.permille(1000 + self.permille) + self.bytes
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footprint {
    /// One for each device of the tensor-parallel set.
    pub shards: Vec<Parts>,
    pub slack: Slack,
    /// Beside the devices, on the host.
    pub host: Bytes,
    /// The highest use while loading, in thousandths of the claim; 1000: loading takes no more than serving.
    pub peak_permille: u32,
    /// How long a load takes, measured or foreseen.
    pub load: Millis,
    pub source: Source,
}

/// Where a footprint comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Formula,
    /// The engine was told its limit, so it takes no more.
    Dictated,
    Observed {
        loads: u32,
    },
}

impl Footprint {
    /// The claim of each device, in the order of the set.
    pub fn claims(&self) -> impl Iterator<Item = Bytes> {
        self.shards.iter().map(|parts| self.slack.on(parts.sum()))
    }

    pub fn peak(&self, claim: Bytes) -> Bytes {
        claim.permille(self.peak_permille)
    }
}

pub type Footprints = BTreeMap<RecipeId, Footprint>;
