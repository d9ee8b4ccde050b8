//! `[gateway]` and `[gpu]`: models elsewhere and models on this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use camino::Utf8PathBuf;
use fettle_domain::budget::MIN_CONTEXT_TOKENS;
pub use fettle_domain::model_profile::ModelKind;
use fettle_domain::model_profile::plain_name;
use fettle_placement::recipe::{EngineKind, KvType, RunsOn};
use fettle_placement::view::RecipeChoice;
use serde::{Deserialize, Serialize};

use super::{Size, Span};

/// Devices in one set: no single machine has more.
const MAX_TP: u8 = 16;

/// The models, and where they are served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gateway {
    /// Where models are served to workers and other programs; default: `127.0.0.1:8484`. Others than this machine reach it
    /// only with `keys_file`.
    pub listen: Option<String>,
    /// Where workers find the gateway, as in `http://gpu-host:8484`; default: with `fettle up` its own, else none, and workers
    /// speak to each model's server themselves.
    pub url: Option<String>,
    /// Keys of people and programs, one a line: a name, a space, the key. Absent: whoever reaches a loopback address may ask.
    pub keys_file: Option<Utf8PathBuf>,
    /// What the dashboard signs the tokens of Runs with, and the gateway checks them with: at least 32 characters. Absent: a key
    /// made of the service key, which workers have as well.
    pub run_token_key_file: Option<Utf8PathBuf>,
    /// `auto`: a model of this machine is asked some hundred small questions when it is first ready, and is called tools by as it
    /// answered best. `off`: only when somebody asks for it, by `fettle models check`.
    pub conformance: Conformance,
    /// How long a request waits for a model that has to be loaded.
    pub max_wait: Span,
    /// Where `fettle models add NAME` finds models, an `http` or `https` URL: below it a folder for each, with its files and their
    /// `SHA256SUMS`.
    pub mirror: Option<String>,
    /// Where `fettle models add` keeps them; default: `models` in the data folder.
    pub models_dir: Option<Utf8PathBuf>,
    /// The first one is used unless a Task names another.
    pub models: Vec<ModelConfig>,
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            listen: None,
            url: None,
            keys_file: None,
            run_token_key_file: None,
            conformance: Conformance::Auto,
            max_wait: Span(Duration::from_secs(300)),
            mirror: None,
            models_dir: None,
            models: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Conformance {
    #[default]
    Auto,
    Off,
}

/// `[[gateway.models]]`: one elsewhere has `base_url`, one on this machine has `path` or `recipes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// What people call it.
    pub name: String,
    /// What its server speaks.
    #[serde(default)]
    pub kind: ModelKind,
    /// As the server documents it, mostly ending in `/v1`; may be left out for `openai`, `anthropic`, `google` and `ollama`.
    #[serde(default)]
    pub base_url: Option<String>,
    /// The name that the server knows it by; default: `name`.
    #[serde(default)]
    pub model: Option<String>,
    #[serde(default)]
    pub api_key_file: Option<Utf8PathBuf>,
    /// The window in tokens. Runs need 32768: less is refused of a server elsewhere, and of this machine only others can use it.
    #[serde(default = "default_context")]
    pub context: u64,
    /// Runs that use it at a time, by all workers together; default: as many as there are workers.
    #[serde(default)]
    pub parallel: Option<u16>,
    /// Weights on this machine: a GGUF file, or a folder of safetensors.
    #[serde(default)]
    pub path: Option<Utf8PathBuf>,
    /// How to run it, in the order of preference; default: one GPU, by the engine that fits the file.
    #[serde(default)]
    pub recipes: Vec<RecipeConfig>,
    /// The least number of engines, loaded without being asked for, and the most.
    #[serde(default = "default_replicas")]
    pub replicas: [u8; 2],
    /// Once loaded, it is never pushed out by others.
    #[serde(default)]
    pub pinned: bool,
}

/// `[[gateway.models.recipes]]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecipeConfig {
    pub engine: EngineKind,
    /// Another file than `path`, or one within it.
    #[serde(default)]
    pub file: Option<Utf8PathBuf>,
    #[serde(default = "default_on")]
    pub device: RunsOn,
    /// GPUs that hold it together.
    #[serde(default = "default_tp")]
    pub tp: u8,
    /// Tokens of one sequence; default: the model's `context`.
    #[serde(default)]
    pub context: Option<u32>,
    /// Sequences at once.
    #[serde(default = "default_sequences")]
    pub parallel: u16,
    /// What an element of the KV cache is stored as.
    #[serde(default = "default_kv")]
    pub kv: KvType,
    /// What it takes of each device, where Fettle cannot read that from the files; `command` needs it.
    #[serde(default)]
    pub memory: Option<Size>,
    /// Further arguments of the engine; those that Fettle decides itself are refused.
    #[serde(default)]
    pub args: Vec<String>,
}

fn default_context() -> u64 {
    65_536
}

fn default_replicas() -> [u8; 2] {
    [0, 1]
}

fn default_on() -> RunsOn {
    RunsOn::Gpu
}

fn default_tp() -> u8 {
    1
}

fn default_sequences() -> u16 {
    4
}

fn default_kv() -> KvType {
    KvType::F16
}

impl ModelConfig {
    /// One on an OpenAI-compatible server.
    pub fn elsewhere(name: impl Into<String>, base_url: impl Into<String>, context: u64) -> Self {
        Self {
            name: name.into(),
            kind: ModelKind::OpenaiCompatible,
            base_url: Some(base_url.into()),
            model: None,
            api_key_file: None,
            context,
            parallel: None,
            path: None,
            recipes: Vec::new(),
            replicas: default_replicas(),
            pinned: false,
        }
    }

    /// Whether an engine of this machine runs it.
    pub fn is_local(&self) -> bool {
        self.path.is_some() || !self.recipes.is_empty()
    }

    /// Where its server is; `None` for a model of this machine.
    pub fn server(&self) -> Option<&str> {
        if self.is_local() {
            return None;
        }
        self.base_url.as_deref().or(self.kind.default_url())
    }

    /// Whether a Run's prompt has room in its window.
    pub fn serves_runs(&self) -> bool {
        self.context >= MIN_CONTEXT_TOKENS
    }

    /// The name that its server knows it by.
    pub fn wire_name(&self) -> &str {
        self.model.as_deref().unwrap_or(&self.name)
    }

    fn check(&self) -> Result<(), String> {
        let refused = |what: String| Err(format!("gateway.models `{}`: {what}", self.name));
        if self.name.is_empty() || self.name.contains(char::is_whitespace) {
            return refused("a name is one word".into());
        }
        match (self.is_local(), self.server()) {
            (true, _) if self.base_url.is_some() => {
                return refused(
                    "base_url is for a server elsewhere, path and recipes are for this machine: give one of them"
                        .into(),
                );
            }
            (true, _) if self.api_key_file.is_some() => {
                return refused(
                    "api_key_file is for a server elsewhere; engines of this machine get keys of their own".into(),
                );
            }
            (false, None) => {
                return refused(
                    "base_url is missing: where does its server listen? For a model on this machine give path".into(),
                );
            }
            (false, Some(url)) if !(url.starts_with("http://") || url.starts_with("https://")) => {
                return refused(format!("base_url `{url}` is not an http or https URL"));
            }
            _ => {}
        }
        if self.context == 0 {
            return refused("context is 0: it could read nothing".into());
        }
        if self.parallel == Some(0) {
            return refused("parallel is 0: no Run could use it".into());
        }
        if !self.is_local() && !self.serves_runs() {
            return refused(format!(
                "context {} is too small, since the prompt alone would fill it; {MIN_CONTEXT_TOKENS} tokens are needed",
                self.context
            ));
        }
        if self.replicas[1] == 0 || self.replicas[0] > self.replicas[1] {
            return refused("replicas are the least and the most, as in [0, 2]".into());
        }
        let mut seen = BTreeSet::new();
        for recipe in &self.recipes {
            recipe.check(self).or_else(refused)?;
            if !seen.insert(format!("{recipe:?}")) {
                return refused("two recipes are the same".into());
            }
        }
        Ok(())
    }
}

impl RecipeConfig {
    /// One that says nothing but its engine.
    pub fn of(engine: EngineKind) -> Self {
        Self {
            engine,
            file: None,
            device: default_on(),
            tp: default_tp(),
            context: None,
            parallel: default_sequences(),
            kv: default_kv(),
            memory: None,
            args: Vec::new(),
        }
    }

    fn check(&self, model: &ModelConfig) -> Result<(), String> {
        if self.file.is_none() && model.path.is_none() && self.engine != EngineKind::Command {
            return Err("a recipe needs weights: give the model a path, or the recipe a file".into());
        }
        if self.tp == 0 || self.tp > MAX_TP {
            return Err(format!("tp is {}: from 1 to {MAX_TP} GPUs can hold a model together", self.tp));
        }
        if self.tp > 1 && self.device == RunsOn::Cpu {
            return Err("tp is for GPUs: on the CPU it is 1".into());
        }
        if self.parallel == 0 {
            return Err("parallel of a recipe is 0: it could answer nobody".into());
        }
        match (self.engine, self.memory) {
            (EngineKind::Command, None) => Err(
                "a recipe for `command` needs memory, as in memory = \"20GiB\": Fettle cannot know what that program takes".into(),
            ),
            (_, Some(Size(0))) => Err("memory is 0: nothing runs in that".into()),
            _ => Ok(()),
        }
    }
}

impl Gateway {
    pub(super) fn check(&self) -> Result<(), String> {
        let address = match self.listen.as_deref().map(str::parse::<SocketAddr>) {
            Some(Ok(address)) => Some(address),
            Some(Err(_)) => return Err("gateway.listen is not an address and port such as 127.0.0.1:8484".to_owned()),
            None => None,
        };
        if let Some(address) = address.filter(|address| !address.ip().is_loopback())
            && self.keys_file.is_none()
        {
            return Err(format!(
                "gateway.listen: others than this machine reach {address}, so gateway.keys_file has to say who may ask"
            ));
        }
        if let Some(url) = &self.url
            && !(url.starts_with("http://") || url.starts_with("https://"))
        {
            return Err(format!("gateway.url: `{url}` is not an http or https URL"));
        }
        if let Some(url) = &self.mirror
            && !(url.starts_with("http://") || url.starts_with("https://"))
        {
            return Err(format!("gateway.mirror: `{url}` is not an http or https URL"));
        }
        if let Some(path) = self.models_dir.as_ref().filter(|path| !path.is_absolute()) {
            return Err(format!("gateway.models_dir: `{path}` is not an absolute path"));
        }
        let mut names: Vec<&str> = self.models.iter().map(|model| model.name.as_str()).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("gateway.models: two models are called `{}`", pair[0]));
        }
        // As which they are asked for at the gateway, where a slash stands between server and model.
        let mut plain: Vec<(String, &str)> = names.iter().map(|name| (plain_name(name), *name)).collect();
        plain.sort_unstable();
        if let Some(pair) = plain.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(format!("gateway.models: `{}` and `{}` differ by a slash alone", pair[0].1, pair[1].1));
        }
        self.models.iter().try_for_each(ModelConfig::check)
    }
}

/// The devices of this machine, and how engines are put there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gpu {
    /// `off`: NVML is not looked for, and only recipes for the CPU run here.
    pub mode: GpuMode,
    /// NVIDIA's library, where it is at none of the usual places.
    pub nvml_lib: Option<Utf8PathBuf>,
    /// Memory of the host that no engine gets.
    pub host_reserve: Size,
    /// Whether a later recipe may be used because it fits now (`first-fit`), or only when an earlier one cannot run (`strict`).
    pub recipes: RecipeChoice,
    /// How long an engine that was loaded is kept at least.
    pub min_residency: Span,
    /// Who has waited for longer gets devices emptied.
    pub starve_after: Span,
    /// How long requests in flight have when their engine has to go.
    pub drain_deadline: Span,
    /// A further replica is loaded when requests wait for longer.
    pub replica_delay: Span,
    /// An engine that nobody asked for so long ends; `0s`: it stays until its memory is needed.
    pub idle_ttl: Span,
    /// Programs of engines, by their kind.
    pub engines: BTreeMap<EngineKind, EngineConfig>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GpuMode {
    #[default]
    Auto,
    Off,
}

/// `[gpu.engines.<kind>]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineConfig {
    /// A path, or a name that is looked for in `PATH`.
    pub program: Utf8PathBuf,
    /// Further arguments. For `command` all of them, with `{socket} {port} {model} {devices} {claim_bytes} {ctx} {parallel}`.
    #[serde(default)]
    pub args: Vec<String>,
    /// For `command`: the path that answers with success when it takes requests; default: `/health`.
    #[serde(default)]
    pub health: Option<String>,
}

impl Default for Gpu {
    fn default() -> Self {
        let policy = fettle_placement::view::Policy::default();
        let span = |millis: fettle_placement::quantity::Millis| Span(Duration::from_millis(millis.get()));
        Self {
            mode: GpuMode::Auto,
            nvml_lib: None,
            host_reserve: Size(8 << 30),
            recipes: policy.recipes,
            min_residency: span(policy.min_residency),
            starve_after: span(policy.starve_after),
            drain_deadline: span(policy.drain_deadline),
            replica_delay: span(policy.replica_delay),
            idle_ttl: Span(Duration::ZERO),
            engines: BTreeMap::new(),
        }
    }
}

impl Gpu {
    pub(super) fn check(&self) -> Result<(), String> {
        if let Some(path) = self.nvml_lib.as_ref().filter(|path| !path.is_absolute()) {
            return Err(format!("gpu.nvml_lib: `{path}` is not an absolute path"));
        }
        for (kind, engine) in &self.engines {
            if engine.program.as_str().is_empty() {
                return Err(format!("gpu.engines.{}: program is empty", kind.name()));
            }
            match &engine.health {
                Some(_) if *kind != EngineKind::Command => {
                    return Err(format!("gpu.engines.{}: health is for `command`; this one's is known", kind.name()));
                }
                Some(path) if !path.starts_with('/') => {
                    return Err(format!("gpu.engines.command: health is a path, as in `/v1/models`, and not `{path}`"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}
