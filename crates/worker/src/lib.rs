//! A worker's composition root: builds the agent from the configuration and keeps it working.

mod measured;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use camino::Utf8PathBuf;
use fettle_agent::prepare::{PrepareNetwork, PrepareOptions};
use fettle_agent::solve::{Agent, AgentOptions, ThroughGateway, Watch, clear_leftovers};
use fettle_app::leasing::{Heart, Holdings};
use fettle_app::live::Live;
use fettle_app::metrics::RunMetrics;
use fettle_app::ports::clock::IdSource;
use fettle_app::ports::git::Repositories;
use fettle_app::ports::ledger::{Holder, Leases, LedgerError};
use fettle_app::ports::model::{Model, ModelInfo};
use fettle_app::ports::sandbox::{Access, Mount, Sandbox, SandboxLevel, SandboxLimits};
use fettle_app::ports::transport::Transport;
use fettle_app::ports::words::Listen;
use fettle_app::running::{Drain, Stay, WORKED_WITHIN, Worker};
use fettle_app::vitals::Vitals;
use fettle_domain::id::WorkerId;
use fettle_domain::label::Labels;
use fettle_domain::lease::Timing;
use fettle_domain::path_policy::PathPolicy;
use fettle_llm::{OpenAiCompatible, OpenAiOptions};
use fettle_runtime::config::{self, Config, ModelConfig, ModelKind};
use fettle_runtime::data::DataDir;
use fettle_runtime::environment::Environment;
use fettle_runtime::reload::{Keys, LOG};
use fettle_runtime::{secrets, system};
use fettle_sandbox::{ProcessSandbox, SandboxOptions, helper_beside_current_exe};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Files under `HOME` that say where packages come from; shown to preparation, never to tests or models.
const REGISTRY_FILES: [&str; 3] = [".npmrc", ".config/pip/pip.conf", ".pip/pip.conf"];
/// The same, for the whole machine.
const SYSTEM_REGISTRY_FILES: [&str; 2] = ["/etc/pip.conf", "/etc/npmrc"];
/// Variables that say where certificates and packages are; passed to preparation alone.
const INSTALL_VARIABLES: [&str; 11] = [
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "CARGO_HTTP_CAINFO",
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "PIP_CERT",
    "PIP_FIND_LINKS",
    "NPM_CONFIG_REGISTRY",
    "npm_config_registry",
];

pub use measured::measured;

/// The keys of a worker.
pub const KEYS: Keys = Keys {
    live: &[LOG, "forge.paths"],
    read: &["store", "transport", "agent", "gateway", "auth", "telemetry", "forge.paths", "forge.read_token_file"],
};

/// What an agent is built from.
pub struct AgentParts<'a> {
    pub config: &'a Config,
    pub environment: &'a Environment,
    pub data: &'a DataDir,
    pub repositories: Arc<dyn Repositories>,
    pub watch: Arc<dyn Watch>,
    /// Names this process's scratch folder.
    pub process: &'a str,
    /// Folders of Runs stay.
    pub keep: bool,
    /// Which paths a change may touch; taken anew for each Run.
    pub paths: Live<PathPolicy>,
    /// Where models are asked that only a gateway knows, as in `http://gpu-host:8484`.
    pub gateway: Option<String>,
}

/// The sandbox at the strongest level that this host allows; refused below `agent.sandbox.min_level`.
pub async fn sandbox(config: &Config, data: &DataDir, process: &str) -> Result<Arc<dyn Sandbox>> {
    let options = SandboxOptions {
        helper: helper_beside_current_exe()?,
        min_level: config.agent.sandbox.min_level,
        max_level: SandboxLevel::Full,
        scratch: data.scratch(process).join("sandbox"),
    };
    Ok(Arc::new(ProcessSandbox::probe(options).await?))
}

/// The agent with sandbox and models. Contacts nobody.
pub async fn agent(parts: AgentParts<'_>, models: Vec<Arc<dyn Model>>) -> Result<Agent> {
    let AgentParts { config, environment, data, repositories, watch, process, keep, paths, gateway } = parts;
    let scratch = data.scratch(process);
    clear_leftovers(&scratch).await.with_context(|| format!("while clearing {scratch}"))?;
    let sandbox = sandbox(config, data, process).await?;
    let options = AgentOptions {
        scratch: scratch.join("runs"),
        base_cache: data.bases(),
        prepare: prepare_options(config, environment, data)?,
        suite_time: config.agent.sandbox.suite_time.0,
        paths,
        read_token: config.forge.read_token_file.as_deref().map(secrets::read).transpose()?,
        keep_folders: keep,
    };
    let through_gateway = gateway.map(|gateway| -> Arc<ThroughGateway> {
        Arc::new(move |info| at_gateway(&gateway, info).map_err(|error| format!("{error:#}")))
    });
    Ok(Agent { repositories, sandbox, models, through_gateway, options, watch })
}

fn prepare_options(config: &Config, environment: &Environment, data: &DataDir) -> Result<PrepareOptions> {
    let walls = &config.agent.sandbox;
    let network = match walls.prepare_network {
        config::PrepareNetwork::None => PrepareNetwork::None,
        config::PrepareNetwork::Proxy => PrepareNetwork::Proxy { hosts: walls.prepare_hosts.clone() },
        config::PrepareNetwork::Host => PrepareNetwork::Host,
    };
    let install_env: BTreeMap<String, String> = INSTALL_VARIABLES
        .iter()
        .filter_map(|name| environment.find(name).map(|value| ((*name).to_owned(), value.to_owned())))
        .collect();
    let home = environment.home();
    let own = home.iter().flat_map(|home| REGISTRY_FILES.iter().map(move |file| home.join(file)));
    let files = own.chain(SYSTEM_REGISTRY_FILES.iter().map(Utf8PathBuf::from));
    let named = [
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE",
        "NODE_EXTRA_CA_CERTS",
        "CARGO_HTTP_CAINFO",
        "PIP_CERT",
        "PIP_FIND_LINKS",
    ];
    let files = files.chain(named.iter().filter_map(|name| environment.find(name)).map(Utf8PathBuf::from));
    let mut install_mounts: Vec<Mount> = files
        .filter(|path| path.is_absolute() && path.exists())
        .map(|path| Mount { host: path.clone(), inside: path, access: Access::ReadOnly })
        .collect();
    install_mounts.dedup();
    let cargo_home = environment.find("CARGO_HOME").map(Utf8PathBuf::from).or_else(|| home.map(|h| h.join(".cargo")));
    let cargo_config = cargo_home.map(|folder| folder.join("config.toml")).filter(|file| file.is_file());
    let cargo_config = cargo_config.map(fs_err::read_to_string).transpose()?;
    Ok(PrepareOptions {
        cache_dir: data.prepared(),
        network,
        path: environment.find("PATH").unwrap_or("/usr/local/bin:/usr/bin:/bin").to_owned(),
        install_env,
        install_mounts,
        cargo_config,
        limits: SandboxLimits {
            memory_bytes: walls.memory.0,
            processes: walls.processes,
            workspace_bytes: walls.workspace.0,
            temporary_bytes: walls.temporary.0,
            ..SandboxLimits::default()
        },
    })
}

/// The configured models, the first being the default. With a gateway, as in `http://gpu-host:8484`, none is asked but that, and
/// no provider's key is read.
pub fn models(config: &Config, gateway: Option<&str>) -> Result<Vec<Arc<dyn Model>>> {
    let through = |model| match gateway {
        Some(gateway) => through(gateway, model),
        None => self::model(model),
    };
    config.gateway.models.iter().map(through).collect()
}

fn through(gateway: &str, config: &ModelConfig) -> Result<Arc<dyn Model>> {
    at_gateway(gateway, ModelInfo { name: config.name.clone(), context_tokens: config.context })
}

fn at_gateway(gateway: &str, info: ModelInfo) -> Result<Arc<dyn Model>> {
    let (url, name) = (format!("{}/v1", gateway.trim_end_matches('/')), info.name.clone());
    let options = OpenAiOptions { is_gateway: true, ..OpenAiOptions::new(info, url, name) };
    Ok(Arc::new(OpenAiCompatible::new(options).context("while setting up the gateway (gateway.url)")?))
}

/// One model's client.
pub fn model(config: &ModelConfig) -> Result<Arc<dyn Model>> {
    let server = match (config.kind, config.server()) {
        (ModelKind::OpenaiCompatible | ModelKind::Openai, Some(server)) => server,
        _ => bail!("the model `{}` is reached through the gateway: set gateway.url", config.name),
    };
    let info = ModelInfo { name: config.name.clone(), context_tokens: config.context };
    let wire_name = config.wire_name().to_owned();
    let mut options = OpenAiOptions::new(info, server.to_owned(), wire_name);
    options.api_key = config.api_key_file.as_deref().map(secrets::read).transpose()?;
    let model =
        OpenAiCompatible::new(options).with_context(|| format!("while setting up the model `{}`", config.name))?;
    Ok(Arc::new(model))
}

/// How a worker gets its work.
pub struct WorkerParts {
    pub leases: Arc<dyn Leases>,
    /// Used from other threads and runtimes: a client of its own where that matters.
    pub heartbeat_leases: Arc<dyn Leases>,
    /// Hears what models say, for people who watch.
    pub listener: Option<Arc<dyn Listen>>,
    /// A broker's bell, where this worker listens to one.
    pub bell: Option<Arc<dyn Transport>>,
    pub ids: Arc<dyn IdSource>,
    /// What this worker has, for Runs that need it.
    pub labels: Labels,
    pub timing: Timing,
    /// Runs at a time.
    pub slots: u16,
    pub stay: Stay,
    pub holdings: Arc<Holdings>,
    pub metrics: RunMetrics,
    /// Each slot is a part of the process that must come round.
    pub vitals: Arc<Vitals>,
    pub drain: Drain,
}

/// Works until `shutdown`, then lets go of what it holds.
///
/// Errors when the ledger refuses to lease: asking again changes nothing.
pub async fn work(agent: Agent, parts: WorkerParts, shutdown: &CancellationToken) -> Result<(), LedgerError> {
    let shutdown = shutdown.child_token();
    let agent = Arc::new(agent);
    let mut slots: JoinSet<Result<(), LedgerError>> = JoinSet::new();
    for _ in 0..parts.slots {
        let worker = Arc::new(Worker {
            leases: parts.leases.clone(),
            heartbeat_leases: parts.heartbeat_leases.clone(),
            runner: agent.clone(),
            listener: parts.listener.clone(),
            ids: parts.ids.clone(),
            holder: Holder { worker: WorkerId::from_uuid(parts.ids.uuid()), name: system::process_name() },
            labels: parts.labels.clone(),
            timing: parts.timing,
            heart: Heart::Apart,
            bell: parts.bell.clone(),
            holdings: parts.holdings.clone(),
            metrics: parts.metrics.clone(),
            pulse: parts.vitals.pulse("worker", WORKED_WITHIN),
            drain: parts.drain.clone(),
        });
        slots.spawn(slot(worker, parts.stay, shutdown.clone()));
    }
    let mut refused = Ok(());
    while let Some(ended) = slots.join_next().await {
        if let Ok(Err(error)) = ended {
            refused = Err(error);
            shutdown.cancel();
        }
    }
    refused
}

/// One Run after the other. A Run that panics takes nothing with it but its lease, which lapses and counts as a crash; so a
/// job that does this again and again ends after three.
async fn slot(worker: Arc<Worker>, stay: Stay, shutdown: CancellationToken) -> Result<(), LedgerError> {
    let mut turn = JoinSet::new();
    loop {
        let (worker, shutdown) = (worker.clone(), shutdown.clone());
        turn.spawn(async move { worker.work(stay, &shutdown).await });
        match turn.join_next().await {
            Some(Ok(ended)) => return ended,
            Some(Err(error)) if stay == Stay::UntilShutdown => {
                tracing::error!("a Run brought down its slot, which begins anew: {error}");
            }
            Some(Err(error)) => {
                return Err(LedgerError::Unavailable(format!("the Run brought down its slot: {error}")));
            }
            None => return Ok(()),
        }
    }
}

/// The lease times, shortened for tests with real processes when `FETTLE_TEST_TIMING` is set.
pub fn timing(environment: &Environment) -> Timing {
    if environment.find("FETTLE_TEST_TIMING").is_some() { Timing::for_tests() } else { Timing::default() }
}

/// The longest that a stopped worker may take to let go.
pub const DRAIN: Duration = Duration::from_secs(25);
