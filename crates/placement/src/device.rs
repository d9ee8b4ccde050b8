//! Devices and the pools of memory that they draw on, as they were last sampled. Says what was seen, decides nothing.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::{DeviceId, EngineId, IslandId, PoolId};
use crate::quantity::{Bytes, Millis};

/// What an engine can be put on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    pub id: DeviceId,
    pub kind: DeviceKind,
    /// As the driver says: `NVIDIA H200`.
    pub name: String,
    pub cc: ComputeCapability,
    pub numa: Option<u32>,
    pub pool: PoolId,
    pub island: Option<IslandId>,
    /// Whether it may be one of several in a tensor-parallel set.
    pub tp_ok: bool,
    pub celsius: u8,
    pub health: Health,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceKind {
    Gpu,
    /// A MIG slice. Its parent gets no engine of its own.
    Slice {
        parent: DeviceId,
        gi: u32,
        ci: u32,
        mig_profile: String,
    },
    Cpu,
}

/// Major and minor, such as 9.0 of Hopper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct ComputeCapability(pub u8, pub u8);

impl fmt::Display for ComputeCapability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    Ok,
    /// Keeps serving; the last choice for new loads.
    Degraded(String),
    Waiting(WaitingFor),
    /// Gets nothing until somebody acts; the text says what is to be done.
    Quarantined(String),
    Lost,
}

/// What a device needs before it can be used at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitingFor {
    /// Listed by `nvidia-smi` alone: nobody can read its memory.
    Nvml,
    /// CUDA does not start before Fabric Manager does.
    Fabric,
}

impl Health {
    /// Whether a new load may go there.
    pub fn takes_loads(&self) -> bool {
        match self {
            Self::Ok | Self::Degraded(_) => true,
            Self::Waiting(_) | Self::Quarantined(_) | Self::Lost => false,
        }
    }

    /// Whether what runs there goes on: a fabric that is not ready stops new loads only.
    pub fn serves(&self) -> bool {
        match self {
            Self::Ok | Self::Degraded(_) | Self::Waiting(_) => true,
            Self::Quarantined(_) | Self::Lost => false,
        }
    }
}

/// Memory that one or more devices draw on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    pub id: PoolId,
    pub kind: PoolKind,
    /// What can be used at most: total less reserved; unified: `MemTotal` less the floor.
    pub cap: Bytes,
    pub used: Bytes,
    /// As the source says, and not `cap` less `used`; unified: `MemAvailable` less the floor.
    pub free: Bytes,
    pub margin: Bytes,
    pub sampled: Millis,
    pub attribution: Attribution,
    /// The engine that loads there, or for which others are leaving.
    pub lock: Option<EngineId>,
    /// Why nothing new may be loaded, such as the guard's first rung.
    pub frozen: Option<String>,
    pub reserves: Vec<Reserve>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolKind {
    Vram,
    /// Of a GPU instance, shared by its compute instances.
    Slice,
    Coherent,
    /// One memory of GPU and host.
    Unified,
    Host,
}

impl PoolKind {
    /// Whether loads there go one after the other. Engines charge other processes' changes of GPU memory to themselves; host
    /// memory has no such trouble, and a lock on it would put all loads of a machine in one line.
    pub fn locks(self) -> bool {
        match self {
            Self::Vram | Self::Slice | Self::Coherent | Self::Unified => true,
            Self::Host => false,
        }
    }
}

/// Whether bytes are known by process, or only in sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attribution {
    Exact,
    Blind,
}

/// Host software with a limit of memory, such as the worker's slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reserve {
    pub name: String,
    pub claim: Bytes,
    pub observed: Bytes,
}
