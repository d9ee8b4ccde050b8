//! All parts of inference put together: who samples, who plans, who runs engines, who answers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use camino::Utf8PathBuf;
use fettle_app::ports::clock::{Clock, IdSource};
use fettle_app::ports::serving::Since;
use fettle_app::serving::{self, Notice, NoticeKind, Placer};
use fettle_app::vitals::Vitals;
use fettle_engines::settings::{Answers, Command, Launcher, Limits, LlamaServer, Program, Programs};
use fettle_engines::{Engines, Settings as EngineSettings};
use fettle_gateway::{Gateway, Parts, Provider, ProviderKind, ProviderModel, Queue, Settings, StaticKey, Told};
use fettle_placement::id::OwnerId;
use fettle_placement::quantity::Bytes;
use fettle_placement::recipe::EngineKind;
use fettle_placement::view::Class;
use fettle_runtime::config::{Config, EngineConfig, ModelConfig, ModelKind};
use fettle_runtime::data::DataDir;
use fettle_runtime::environment::Environment;
use fettle_runtime::secrets;
use fettle_runtime::supervisor::Supervisor;
use prometheus::Registry;
use secrecy::SecretString;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use crate::admin::{Admin, Events, Served};
use crate::catalog::catalog;
use crate::devices::Devices;
use crate::metrics::StatusCollector;
use crate::quarantine::Quarantine;

/// Where the gateway listens unless the configuration says something else.
pub const LISTEN: &str = "127.0.0.1:8484";
/// Whoever asks on this machine without a key.
const LOCAL: &str = "local";
/// Orders of people about devices that wait for the sampler.
const ORDERS: usize = 16;
/// The placer steps four times a second, and a step takes milliseconds.
const PLACED_WITHIN: Duration = Duration::from_secs(10);
/// The program beside ours that outlives no engine and lets none outlive it.
const KEEPER: &str = "fettle-engine-keeper";

/// What inference is started with.
pub struct Start<'a> {
    pub config: &'a Config,
    pub environment: &'a Environment,
    pub data: &'a DataDir,
    pub listener: TcpListener,
    /// Keys beyond those of `gateway.keys_file`, such as the workers' of the same process.
    pub keys: Vec<StaticKey>,
    pub clock: Arc<dyn Clock>,
    pub ids: Arc<dyn IdSource>,
    pub registry: &'a Registry,
    pub vitals: &'a Arc<Vitals>,
    pub supervisor: &'a Supervisor,
}

pub struct Running {
    /// Of the gateway.
    pub address: SocketAddr,
    engines: Arc<Engines>,
}

impl Running {
    /// Ends the engines that end with this process; the last thing before it does.
    pub async fn close(self) {
        self.engines.close().await;
    }
}

/// Starts all parts. What is not there (a GPU, a model's files, an engine's program) is told and stops nothing else.
pub async fn start(start: Start<'_>) -> Result<Running> {
    let Start { config, environment, data, listener, keys, clock, ids, registry, vitals, supervisor } = start;
    let address = listener.local_addr().context("while listening")?;
    let since = Since::now_is_zero();
    let (catalog, refused) = catalog(config);
    for (model, why) in &refused {
        error!(model, "the model `{model}` is not served: {why:#}");
    }
    let served = Arc::new(Served::of(&catalog));
    let engines = Arc::new(Engines::open(engine_settings(config, environment, data)?, since)?);

    let (world, sampled) = watch::channel(Arc::default());
    let first_epoch = u64::try_from(clock.now().as_millisecond()).unwrap_or_default();
    let placer = Placer::new(catalog, first_epoch);
    // Requests that come before the first step wait; they are not told that their model is unknown.
    let (supply, supplied) = watch::channel(Arc::new(placer.at_first()));
    let (meters, metered) = watch::channel(Arc::default());
    let (in_change, changing) = watch::channel(false);
    let (status, told_status) = watch::channel(Arc::default());
    let (orders, ordered) = mpsc::channel(ORDERS);

    let settings = gateway_settings(config, data, keys, address)?;
    let parts = Parts { supply: supplied, meters: metered, clock: clock.clone(), ids };
    let (gateway, Told { demand, load }) = Gateway::new(settings, parts, registry)?;
    registry.register(Box::new(StatusCollector::new(told_status.clone(), engines.clone())?))?;

    let stop = supervisor.shutdown().clone();
    let devices = Devices::new(&config.gpu, Quarantine::open(data.quarantine()), since);
    supervisor.spawn("the device watch", devices.watch(world, changing, ordered, stop.clone()));

    let pulse = vitals.pulse("placer", PLACED_WITHIN);
    let events = Arc::new(Events::default());
    let ports = serving::Ports {
        host: engines.clone(),
        world: sampled,
        demand,
        load,
        supply,
        meters,
        in_change,
        status,
        notices: Box::new(recorder(events.clone(), clock)),
        pulse,
    };
    let stopped = stop.clone();
    supervisor.spawn("the placer", async move {
        if let Err(error) = serving::run(placer, ports, since, stopped).await {
            error!("models of this machine are not served: {error}");
        }
    });

    let router = gateway.router();
    supervisor.spawn("the gateway's books", gateway.run(stop.clone()));
    let serving = fettle_api::serve(listener, router, stop.clone(), supervisor.tasks().clone());
    supervisor.spawn("the gateway", serving);

    let admin = Admin { status: told_status, catalog: served, engines: engines.clone(), events, orders };
    match admin_socket(data) {
        Ok(socket) => {
            let server = axum::serve(socket, admin.router());
            supervisor.spawn("the admin socket", async move {
                let served = server.with_graceful_shutdown(async move { stop.cancelled().await }).await;
                if let Err(error) = served {
                    error!("the admin socket: {error}");
                }
            });
        }
        Err(error) => {
            warn!("`fettle gpus` and `fettle models` will find nobody: {error:#}");
            // The sampler goes on for as long as somebody could order.
            supervisor.spawn("the admin socket", async move {
                stop.cancelled().await;
                drop(admin);
            });
        }
    }
    Ok(Running { address, engines })
}

/// What was done and why, for the log and for whoever asks later.
fn recorder(events: Arc<Events>, clock: Arc<dyn Clock>) -> impl Fn(Notice) + Send + Sync {
    move |notice| {
        let Notice { kind, model, engine, text } = &notice;
        let engine = engine.as_ref().map(tracing::field::display);
        match kind {
            NoticeKind::Failed | NoticeKind::Leaked => warn!(model.id = %model, engine.id = engine, "{text}"),
            _ => info!(model.id = %model, engine.id = engine, "{text}"),
        }
        events.push(clock.now().to_string(), &notice);
    }
}

fn admin_socket(data: &DataDir) -> Result<UnixListener> {
    let path = data.inference_socket();
    // Nobody else has this data folder, so what lies there is of an earlier life.
    match fs_err::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    UnixListener::bind(&path).with_context(|| format!("could not listen on {path}"))
}

fn engine_settings(config: &Config, environment: &Environment, data: &DataDir) -> Result<EngineSettings> {
    let keeper = std::env::current_exe().context("while looking for this program's folder")?;
    let keeper = Utf8PathBuf::try_from(keeper)?.with_file_name(KEEPER);
    let environment: BTreeMap<String, String> =
        environment.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    Ok(EngineSettings {
        folder: data.engines(),
        logs: data.engine_logs(),
        cache: data.engine_home(),
        keeper,
        launcher: Launcher::Direct,
        environment,
        programs: programs(config),
        limits: Limits::default(),
    })
}

/// What workers show: their requests can wait for those of people.
pub fn workers_key(key: SecretString) -> StaticKey {
    StaticKey { key, owner: OwnerId::new("workers"), class: Class::Batch, models: None }
}

/// Programs as configured, else by their usual names.
fn programs(config: &Config) -> Programs {
    let configured = |kind| config.gpu.engines.get(&kind);
    let program = |kind: EngineKind, usual: &str| match configured(kind) {
        Some(EngineConfig { program, args, .. }) => Program { program: program.clone(), args: args.clone() },
        None => Program { program: usual.into(), args: Vec::new() },
    };
    Programs {
        llama_server: Some(LlamaServer {
            program: program(EngineKind::LlamaServer, "llama-server"),
            cache_ram: Bytes::ZERO,
        }),
        vllm: Some(program(EngineKind::Vllm, "vllm")),
        sglang: Some(program(EngineKind::Sglang, "sglang")),
        ollama: Some(program(EngineKind::Ollama, "ollama")),
        command: configured(EngineKind::Command).map(|EngineConfig { program, args, health }| Command {
            argv: std::iter::once(program.to_string()).chain(args.iter().cloned()).collect(),
            health: health.clone().unwrap_or_else(|| "/health".to_owned()),
            answers: Answers::Chat,
        }),
    }
}

fn gateway_settings(
    config: &Config,
    data: &DataDir,
    mut keys: Vec<StaticKey>,
    address: SocketAddr,
) -> Result<Settings> {
    if let Some(file) = &config.gateway.keys_file {
        keys.extend(static_keys(file)?);
    }
    let open = address.ip().is_loopback() && config.gateway.keys_file.is_none();
    let elsewhere = config.gateway.models.iter().filter(|model| !model.is_local());
    let mut names = BTreeMap::new();
    let mut providers = Vec::new();
    for model in elsewhere {
        let provider = provider(model)?;
        names.insert(model.name.clone(), vec![format!("{}/{}", provider.name, model.wire_name())]);
        providers.push(provider);
    }
    Ok(Settings {
        keys,
        without_key: open.then(|| OwnerId::new(LOCAL)),
        names,
        providers,
        queue: Queue { max_wait: config.gateway.max_wait.0, ..Queue::default() },
        ..Settings::new(data.usage())
    })
}

/// Each configured model is a provider of its own: it has its own server and key.
fn provider(model: &ModelConfig) -> Result<Provider> {
    let kind = match model.kind {
        ModelKind::OpenaiCompatible => ProviderKind::OpenAiCompatible,
        ModelKind::Openai => ProviderKind::OpenAi,
        ModelKind::Anthropic => ProviderKind::Anthropic,
        ModelKind::Google => ProviderKind::Google,
        ModelKind::Ollama => ProviderKind::Ollama,
    };
    let listed = ProviderModel { name: model.wire_name().to_owned(), context_tokens: Some(model.context), price: None };
    Ok(Provider {
        base_url: model.server().map(str::to_owned),
        api_key: model.api_key_file.as_deref().map(secrets::read).transpose()?,
        models: vec![listed],
        ..Provider::new(model.name.replace('/', "-"), kind)
    })
}

/// One key a line: whose it is, a space, the key. Empty lines and those that begin with `#` say nothing.
fn static_keys(file: &camino::Utf8Path) -> Result<Vec<StaticKey>> {
    use secrecy::ExposeSecret as _;
    let text = secrets::read(file)?;
    let lines = text.expose_secret().lines().map(str::trim).enumerate();
    let keys = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')).map(|(nth, line)| {
        let (owner, key) = line
            .split_once(char::is_whitespace)
            .with_context(|| format!("{file}, line {}: it needs a name, a space and a key", nth + 1))?;
        Ok(StaticKey {
            key: SecretString::from(key.trim().to_owned()),
            owner: OwnerId::new(owner),
            class: Class::Interactive,
            models: None,
        })
    });
    let keys = keys.collect::<Result<Vec<_>>>()?;
    anyhow::ensure!(!keys.is_empty(), "{file} has no key: nobody could ask");
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use camino::Utf8Path;

    use super::*;

    fn keys(text: &str) -> Result<Vec<StaticKey>> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys");
        fs_err::write(&file, text).unwrap();
        static_keys(Utf8Path::from_path(&file).unwrap())
    }

    #[test]
    fn keys_have_names() {
        let keys = keys("# people\nalice sk-one\n\nci   sk-two\n").unwrap();
        assert_eq!(keys.iter().map(|key| key.owner.to_string()).collect::<Vec<_>>(), ["alice", "ci"]);
    }

    #[test]
    fn a_key_without_a_name_is_refused_by_its_line_and_not_repeated() {
        let error = format!("{:#}", keys("alice sk-one\nsk-secret\n").map(|_| ()).unwrap_err());
        assert!(error.contains("line 2") && !error.contains("sk-secret"), "{error}");
    }
}
