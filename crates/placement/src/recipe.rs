//! Models and the ways to run them, as configured.

use serde::{Deserialize, Serialize};

use crate::device::ComputeCapability;
use crate::id::{ModelId, RecipeId};
use crate::quantity::Bytes;

/// A model on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSpec {
    pub id: ModelId,
    /// In the order of preference that the configuration declares; a list sorted by digest has lost it.
    pub recipes: Vec<RecipeId>,
}

/// How to run one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    pub id: RecipeId,
    pub model: ModelId,
    pub engine: EngineKind,
    /// Version or digest of the engine's program.
    pub build: String,
    /// Of the weights, as the file says: `q4_k_m`, `fp8`.
    pub quant: String,
    pub kv: KvType,
    pub on: RunsOn,
    /// Devices in its tensor-parallel set, at least 1.
    pub tp: u8,
    /// Tokens of one sequence.
    pub ctx: u32,
    /// Sequences at once.
    pub parallel: u16,
    pub min_cc: ComputeCapability,
    pub sleep: SleepLevel,
    pub flags: Vec<String>,
}

/// The CPU is never a fallback: only a recipe that says so runs there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunsOn {
    Gpu,
    Cpu,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineKind {
    LlamaServer,
    Vllm,
    Sglang,
    Ollama,
    Command,
}

/// Type of an element of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvType {
    F32,
    F16,
    Bf16,
    Fp8,
    Q8_0,
    Q5_1,
    Q5_0,
    Q4_1,
    Q4_0,
}

impl KvType {
    /// Bytes of a row of the cache. Quantised types are stored in blocks of 32 with their scales, which count.
    pub fn row(self, elements: u64) -> Bytes {
        let (block, bytes) = match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Fp8 => (1, 1),
            Self::Q8_0 => (32, 34),
            Self::Q5_1 => (32, 24),
            Self::Q5_0 => (32, 22),
            Self::Q4_1 => (32, 20),
            Self::Q4_0 => (32, 18),
        };
        Bytes::new(bytes).times(elements.div_ceil(block))
    }
}

impl EngineKind {
    /// As in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::LlamaServer => "llama-server",
            Self::Vllm => "vllm",
            Self::Sglang => "sglang",
            Self::Ollama => "ollama",
            Self::Command => "command",
        }
    }

    /// How an engine divides a model among the devices of its set.
    pub fn divides(self) -> Divides {
        match self {
            Self::LlamaServer | Self::Ollama => Divides::ByLayer,
            Self::Vllm | Self::Sglang | Self::Command => Divides::ByHead,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Divides {
    /// Each device has some layers whole, the last one the output as well.
    ByLayer,
    /// Each device has a share of every layer.
    ByHead,
}

/// What an engine can give back of its memory without ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SleepLevel {
    /// It cannot sleep.
    Never,
    /// Weights move to host memory.
    Host,
}
