//! What to start for a recipe, one driver an engine: an order becomes arguments, environment and addresses, and its log lines
//! become facts. Everything here is computed; nothing is read or started.

mod command;
mod flags;
mod llama_server;
mod ollama;
mod sglang;
#[cfg(test)]
mod tests;
mod vllm;

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use fettle_app::ports::serving::{Endpoint, ExitClass, LaunchDevice, LaunchOrder};
use fettle_placement::engine::Seat;
use fettle_placement::id::{DeviceId, EngineId, Epoch, PoolId};
use fettle_placement::quantity::Bytes;
use fettle_placement::recipe::{EngineKind, KvType, Recipe, RunsOn};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::settings::{Answers, Programs};

/// What the edge has ready for an engine.
#[derive(Debug, Clone)]
pub struct Place {
    /// The engine's own folder, readable by nobody else.
    pub folder: Utf8PathBuf,
    pub cache: Utf8PathBuf,
    /// Free on loopback a moment ago.
    pub port: u16,
    pub key: SecretString,
}

/// An engine as it is to be started.
#[derive(Debug, Clone)]
pub struct Launch {
    pub argv: Vec<String>,
    pub env: BTreeMap<String, String>,
    /// Beside the records, for its eyes only.
    pub files: Vec<(Utf8PathBuf, String)>,
    pub endpoint: Endpoint,
    pub key: Option<SecretString>,
    /// The model's name in requests to it.
    pub model: String,
    pub api: Api,
}

/// How a running engine is asked things.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Api {
    pub engine: EngineKind,
    /// Answers with success when requests are taken.
    pub health: String,
    /// Answers with success to the right key alone, or, where the engine knows no keys, at all.
    pub guarded: String,
    pub probe: Probe,
}

/// The one-token request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Probe {
    Chat,
    Embeddings,
    /// Loads the model as a side effect; afterwards `/api/ps` must show all of it on the device.
    Ollama,
}

/// Why an order cannot be carried out as it is; one sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Refused {
    pub class: ExitClass,
    pub why: String,
}

impl Refused {
    fn flag(why: impl Into<String>) -> Self {
        Self { class: ExitClass::BadFlag, why: why.into() }
    }

    pub(crate) fn not_started(why: impl Into<String>) -> Self {
        Self { class: ExitClass::NotStarted, why: why.into() }
    }
}

/// What `order` means for its engine.
pub fn plan(order: &LaunchOrder, programs: &Programs, place: &Place) -> Result<Launch, Refused> {
    let kind = order.recipe.engine;
    let absent = || {
        Refused::not_started(match kind {
            EngineKind::Command => "its program is not configured: name it with gpu.engines.command.program".to_owned(),
            kind => format!("no program for {} is configured", name(kind)),
        })
    };
    let mut launch = match kind {
        EngineKind::LlamaServer => llama_server::plan(order, programs.llama_server.as_ref().ok_or_else(absent)?, place),
        EngineKind::Vllm => vllm::plan(order, programs.vllm.as_ref().ok_or_else(absent)?, place),
        EngineKind::Sglang => sglang::plan(order, programs.sglang.as_ref().ok_or_else(absent)?, place),
        EngineKind::Ollama => ollama::plan(order, programs.ollama.as_ref().ok_or_else(absent)?, place),
        EngineKind::Command => command::plan(order, programs.command.as_ref().ok_or_else(absent)?, place),
    }?;
    launch.env.extend(surroundings(order, place));
    Ok(launch)
}

/// Why a recipe could not be started wherever it is put: flags that the planner dictates, a template that names what is not
/// there, a cache that the engine does not have.
pub fn refusal(recipe: &Recipe, weights: &Utf8Path, programs: &Programs) -> Option<Refused> {
    let device = LaunchDevice { id: DeviceId::new("any"), nth: Some(0) };
    let claim = Bytes::gib(1);
    let order = LaunchOrder {
        seat: Seat {
            engine: EngineId::new(recipe.model.as_str()),
            model: recipe.model.clone(),
            recipe: recipe.id.clone(),
            devices: vec![device.id.clone(); usize::from(recipe.tp)],
            claims: vec![(PoolId::new("any"), claim)],
            peaks: vec![(PoolId::new("any"), claim)],
        },
        epoch: Epoch(0),
        recipe: recipe.clone(),
        weights: weights.to_owned(),
        devices: vec![device; usize::from(recipe.tp)],
        claim,
        scratch: Bytes::ZERO,
        total: claim,
        free: claim,
    };
    let place = Place { folder: "/".into(), cache: "/".into(), port: 1, key: SecretString::default() };
    plan(&order, programs, &place).err()
}

/// As people and configuration call it.
pub fn name(kind: EngineKind) -> &'static str {
    match kind {
        EngineKind::LlamaServer => "llama-server",
        EngineKind::Vllm => "vLLM",
        EngineKind::Sglang => "SGLang",
        EngineKind::Ollama => "ollama",
        EngineKind::Command => "the command",
    }
}

/// Tokens that the cache holds, if `line` of the log says it.
pub fn kv_tokens(kind: EngineKind, line: &str) -> Option<u64> {
    match kind {
        EngineKind::LlamaServer => llama_server::kv_tokens(line),
        EngineKind::Vllm => vllm::kv_tokens(line),
        EngineKind::Sglang => sglang::kv_tokens(line),
        // It prints what its runner, a llama.cpp, says.
        EngineKind::Ollama => llama_server::kv_tokens(line),
        EngineKind::Command => None,
    }
}

/// Whether `line` tells only that we asked whether it is ready, which is no progress.
pub fn is_echo(api: &Api, line: &str) -> bool {
    line.contains(&format!("GET {}", api.health))
}

fn surroundings(order: &LaunchOrder, place: &Place) -> BTreeMap<String, String> {
    [
        // Numbers of devices mean the same to everybody.
        ("CUDA_DEVICE_ORDER", "PCI_BUS_ID".to_owned()),
        ("CUDA_VISIBLE_DEVICES", visible(order)),
        ("HF_HUB_OFFLINE", "1".to_owned()),
        ("HOME", place.cache.to_string()),
        ("XDG_CACHE_HOME", place.cache.join("cache").to_string()),
        // Or Python keeps its last words, which say why it died, in a buffer.
        ("PYTHONUNBUFFERED", "1".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// Devices as the engine has to be told. vLLM and SGLang read numbers; a slice has none and goes by its UUID everywhere.
fn visible(order: &LaunchOrder) -> String {
    let numbers = matches!(order.recipe.engine, EngineKind::Vllm | EngineKind::Sglang);
    let names = order.devices.iter().filter(|_| order.recipe.on == RunsOn::Gpu).map(|device| match device.nth {
        Some(nth) if numbers => nth.to_string(),
        _ => device.id.to_string(),
    });
    names.collect::<Vec<_>>().join(",")
}

/// Longest path of a Unix socket, without the byte that ends it (`sun_path`).
const SOCKET_PATH: usize = 107;

fn socket(place: &Place) -> Result<Utf8PathBuf, Refused> {
    let path = place.folder.join("engine.sock");
    if path.as_str().len() > SOCKET_PATH {
        let why = format!("the folder of engines is {} bytes too deep for a socket", path.as_str().len() - SOCKET_PATH);
        return Err(Refused::not_started(why));
    }
    Ok(path)
}

fn loopback(place: &Place) -> Endpoint {
    Endpoint::Tcp(([127, 0, 0, 1], place.port).into())
}

fn on_gpu_only(order: &LaunchOrder) -> Result<(), Refused> {
    match order.recipe.on {
        RunsOn::Gpu => Ok(()),
        RunsOn::Cpu => Err(Refused::flag(format!(
            "{} runs on GPUs only; a recipe for the CPU needs llama-server",
            name(order.recipe.engine)
        ))),
    }
}

fn no_such_cache(order: &LaunchOrder) -> Refused {
    let kv = match order.recipe.kv {
        KvType::F32 => "f32",
        KvType::F16 => "f16",
        KvType::Bf16 => "bf16",
        KvType::Fp8 => "fp8",
        KvType::Q8_0 => "q8_0",
        KvType::Q5_1 => "q5_1",
        KvType::Q5_0 => "q5_0",
        KvType::Q4_1 => "q4_1",
        KvType::Q4_0 => "q4_0",
    };
    Refused::flag(format!("{} has no cache of type {kv}", name(order.recipe.engine)))
}

/// `part / whole`, rounded down to so many decimals, as a decimal fraction: a share that is rounded up could be more than
/// there is.
fn fraction(part: u64, whole: u64, decimals: u32) -> String {
    let scale = 10u128.pow(decimals);
    let scaled = u128::from(part) * scale / u128::from(whole.max(1));
    format!("{}.{:0width$}", scaled / scale, scaled % scale, width = decimals as usize)
}

fn probe_of(answers: Answers) -> Probe {
    match answers {
        Answers::Chat => Probe::Chat,
        Answers::Embeddings => Probe::Embeddings,
    }
}

fn path_of(folder: &Utf8Path, name: &str) -> Utf8PathBuf {
    folder.join(name)
}
