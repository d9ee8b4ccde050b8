//! All parts of inference put together: who samples, who plans, who runs engines, who answers.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use camino::Utf8PathBuf;
use fettle_app::adding::{Added, AddedModel};
use fettle_app::ports::clock::{Clock, IdSource};
use fettle_app::ports::serving::{EngineHost as _, Since};
use fettle_app::run_token::RunTokenKey;
use fettle_app::serving::{self, Notice, NoticeKind, Placer};
use fettle_app::vitals::Vitals;
use fettle_domain::model_profile::plain_name;
use fettle_engines::settings::{Answers, Command, Launcher, Limits, LlamaServer, Program, Programs};
use fettle_engines::{Engines, Settings as EngineSettings};
use fettle_gateway::{
    self as gateway, Gateway, Parts, Provider, ProviderKind, ProviderModel, Providers, Queue, Settings, StaticKey, Told,
};
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
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::admin::{Admin, Events, Served};
use crate::catalog::{self, catalog};
use crate::devices::Devices;
use crate::examiner::{self, Examiner};
use crate::guard::{Guarding, guard};
use crate::kept_lessons;
use crate::keys;
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

/// The program that starts and stops units.
const SYSTEMCTL: &str = "systemctl";

/// How engines are started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnginesAre {
    /// Children, which end with this process.
    Children,
    /// Units `fettle-engine@<name>`, which outlive it. Their unit names the folders that systemd makes for this process.
    Units,
}

/// What inference is started with.
pub struct Start<'a> {
    pub config: &'a Config,
    pub environment: &'a Environment,
    pub data: &'a DataDir,
    pub listener: TcpListener,
    /// What tokens of Runs are checked with. `None`: nothing is known of Runs here.
    pub run_token_key: Option<RunTokenKey>,
    pub engines: EnginesAre,
    pub clock: Arc<dyn Clock>,
    pub ids: Arc<dyn IdSource>,
    pub registry: &'a Registry,
    pub vitals: &'a Arc<Vitals>,
    pub supervisor: &'a Supervisor,
    /// Models that people added in the browser.
    pub added: watch::Receiver<Arc<Added>>,
}

pub struct Running {
    /// Of the gateway.
    pub address: SocketAddr,
    /// Where the same machine reaches it.
    pub url: String,
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
    let Start {
        config,
        environment,
        data,
        listener,
        run_token_key,
        engines,
        clock,
        ids,
        registry,
        vitals,
        supervisor,
        added,
    } = start;
    let address = listener.local_addr().context("while listening")?;
    let since = Since::now_is_zero();
    let (catalog, refused) = catalog(config);
    for (model, why) in &refused {
        error!(model, "the model `{model}` is not served: {why:#}");
    }
    for missing in catalog::missing_programs(&catalog, config, environment) {
        warn!(model = missing.model, "{missing}");
    }
    let served = Arc::new(Served::of(&catalog));
    let engines = Arc::new(Engines::open(engine_settings(config, environment, data, engines)?, since)?);

    let (world, sampled) = watch::channel(Arc::default());
    let (tell_examined, examined) = watch::channel(Arc::default());
    let (wishes, wished) = mpsc::channel(ORDERS);
    let key = SecretString::from(ids.uuid().to_string());
    let (own_key, url) = (examiners_key(key.clone()), reached_at(address));
    let known = catalog.clone();
    let recipes = catalog.models.iter().flat_map(|model| &model.recipes);
    let files_of_weights = recipes.map(|recipe| recipe.weights.clone()).filter(|path| path.is_file()).collect();
    let first_epoch = u64::try_from(clock.now().as_millisecond()).unwrap_or_default();
    let (kept, keep) = kept_lessons::open(data.loads());
    let placer = Placer::new(catalog, kept, first_epoch);
    // Requests that come before the first step wait; they are not told that their model is unknown.
    let (supply, supplied) = watch::channel(Arc::new(placer.at_first()));
    let (meters, metered) = watch::channel(Arc::default());
    let (in_change, changing) = watch::channel(false);
    let (status, told_status) = watch::channel(Arc::default());
    let (orders, ordered) = mpsc::channel(ORDERS);
    let (model_orders, models_ordered) = mpsc::channel(ORDERS);

    let mut settings = Settings { run_token_key, ..gateway_settings(config, data, address)? };
    settings.keys.push(own_key);
    let parts =
        Parts { supply: supplied.clone(), meters: metered, examined: examined.clone(), clock: clock.clone(), ids };
    let (gateway, Told { demand, load }) = Gateway::new(settings, parts, registry)?;
    let examiner = Examiner::new(
        config,
        &known,
        examiner::Parts {
            mode: config.gateway.conformance,
            url: url.clone(),
            key,
            folder: data.examined(),
            supply: supplied,
            demand: demand.clone(),
            wishes: wished,
            added: added.clone(),
            told: tell_examined,
            clock: clock.clone(),
        },
    );
    registry.register(Box::new(StatusCollector::new(told_status.clone(), engines.clone())?))?;

    let stop = supervisor.shutdown().clone();
    // Where it is needed, nothing is loaded before it is there.
    let (closed, guarded) = watch::channel(Some("the guard over this machine's memory is not running yet".to_owned()));
    let guarding = Guarding {
        folder: data.guard(),
        world: sampled.clone(),
        engines: engines.processes(),
        status: told_status.clone(),
        files: files_of_weights,
        meminfo: environment.find("FETTLE_TEST_MEMINFO").map(Utf8PathBuf::from),
        closed,
    };
    supervisor.spawn("the guard's owner", guard(guarding, stop.clone()));
    let devices = Devices::new(&config.gpu, Quarantine::open(data.quarantine()), since, guarded);
    supervisor.spawn("the device watch", devices.watch(world, changing, ordered, stop.clone()));

    supervisor.spawn("the examiner", examiner.run(stop.clone()));
    let pulse = vitals.pulse("placer", PLACED_WITHIN);
    let events = Arc::new(Events::default());
    let ports = serving::Ports {
        host: engines.clone(),
        world: sampled,
        demand,
        load,
        orders: models_ordered,
        supply,
        meters,
        in_change,
        status,
        notices: Box::new(recorder(events.clone(), clock)),
        lessons: Box::new(keep),
        pulse,
    };
    let stopped = stop.clone();
    supervisor.spawn("the placer", async move {
        if let Err(error) = serving::run(placer, ports, since, stopped).await {
            error!("models of this machine are not served: {error}");
        }
    });

    let (providers, stop_providing) = (gateway.providers(), stop.clone());
    supervisor.spawn("the models that people added", async move {
        provide(&providers, added, &stop_providing).await;
        // Whoever tells them may end first.
        stop_providing.cancelled().await;
    });
    let (router, usage) = (gateway.router(), gateway.usage());
    supervisor.spawn("the gateway's books", gateway.run(stop.clone()));
    let serving = fettle_api::serve(listener, router, stop.clone(), supervisor.tasks().clone());
    supervisor.spawn("the gateway", serving);

    let admin = Admin {
        model_orders,
        usage,
        status: told_status,
        catalog: served,
        engines: engines.clone(),
        events,
        orders,
        wishes,
        examined,
    };
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
    Ok(Running { address, url, engines })
}

/// Where a gateway is asked from this machine: a listener on every address is on loopback too.
pub fn reached_at(address: SocketAddr) -> String {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    format!("http://{}", SocketAddr::new(ip, address.port()))
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
    let listener = UnixListener::bind(&path).with_context(|| format!("could not listen on {path}"))?;
    // The folder keeps others out, where it is as we make it.
    fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn engine_settings(
    config: &Config,
    environment: &Environment,
    data: &DataDir,
    engines: EnginesAre,
) -> Result<EngineSettings> {
    let (launcher, folder, logs) = match engines {
        EnginesAre::Children => (Launcher::Direct, data.engines(), data.engine_logs()),
        EnginesAre::Units => {
            let made = "--engine-units is for the unit fettle-inference.service, for which systemd makes folders";
            let runtime = environment.runtime_dir().with_context(|| format!("{made}: RUNTIME_DIRECTORY names none"))?;
            let logs = environment.logs_dir().with_context(|| format!("{made}: LOGS_DIRECTORY names none"))?;
            (Launcher::Systemd { systemctl: SYSTEMCTL.into() }, runtime.join("engines"), logs.join("engines"))
        }
    };
    let keeper = std::env::current_exe().context("while looking for this program's folder")?;
    let keeper = Utf8PathBuf::try_from(keeper)?.with_file_name(KEEPER);
    let environment: BTreeMap<String, String> =
        environment.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    Ok(EngineSettings {
        folder,
        logs,
        cache: data.engine_home(),
        keeper,
        launcher,
        environment,
        programs: programs(config),
        limits: Limits::default(),
    })
}

/// An examination comes after whoever waits.
fn examiners_key(key: SecretString) -> StaticKey {
    StaticKey { key, owner: OwnerId::new("examiner"), class: Class::Batch, models: None }
}

/// Programs as configured, else by their usual names.
pub(crate) fn programs(config: &Config) -> Programs {
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

fn gateway_settings(config: &Config, data: &DataDir, address: SocketAddr) -> Result<Settings> {
    let keys = config.gateway.keys_file.as_deref().map(keys::read).transpose()?.unwrap_or_default();
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

fn kind(kind: ModelKind) -> ProviderKind {
    match kind {
        ModelKind::OpenaiCompatible => ProviderKind::OpenAiCompatible,
        ModelKind::Openai => ProviderKind::OpenAi,
        ModelKind::Anthropic => ProviderKind::Anthropic,
        ModelKind::Google => ProviderKind::Google,
        ModelKind::Ollama => ProviderKind::Ollama,
    }
}

/// Until `stop`: the gateway has whatever was added.
async fn provide(providers: &Providers, mut added: watch::Receiver<Arc<Added>>, stop: &CancellationToken) {
    loop {
        let served = added.borrow_and_update().models.iter().map(served).collect();
        for (name, error) in providers.set(served) {
            error!(model = name, "the model `{name}`, which somebody added, is not served: {error}");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = added.changed() => if changed.is_err() { return },
        }
    }
}

fn served(model: &AddedModel) -> gateway::Served {
    let AddedModel { profile, key, .. } = model;
    let listed = ProviderModel {
        name: profile.wire_name().to_owned(),
        context_tokens: Some(profile.context_tokens),
        price: None,
    };
    let provider = Provider {
        base_url: profile.server().map(str::to_owned),
        api_key: key.open().cloned(),
        models: vec![listed],
        ..Provider::new(profile.name.clone(), kind(profile.kind))
    };
    gateway::Served { name: profile.name.clone(), provider }
}

/// Each configured model is a provider of its own: it has its own server and key.
fn provider(model: &ModelConfig) -> Result<Provider> {
    let listed = ProviderModel { name: model.wire_name().to_owned(), context_tokens: Some(model.context), price: None };
    Ok(Provider {
        base_url: model.server().map(str::to_owned),
        api_key: model.api_key_file.as_deref().map(secrets::read).transpose()?,
        models: vec![listed],
        ..Provider::new(plain_name(&model.name), kind(model.kind))
    })
}
