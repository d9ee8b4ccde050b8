//! `fettle-inference`: the models of this machine, and the gateway to all models.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use camino::Utf8PathBuf;
use clap::Parser;
use fettle_api::{GatewayModels, PartsHealth};
use fettle_app::run_token::RunTokenKey;
use fettle_app::vitals::Vitals;
use fettle_inference::guard;
use fettle_inference::health::Health;
use fettle_inference::{EnginesAre, LISTEN, Start, start};
use fettle_runtime::config::Config;
use fettle_runtime::data::DataDir;
use fettle_runtime::environment::Environment;
use fettle_runtime::supervisor::Supervisor;
use fettle_runtime::systemd::{GATEWAY, Manager, PassedSockets, SocketError};
use fettle_runtime::{install_tls, open_files, secrets, shutdown, system, telemetry};
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::{info, warn};

/// Runs the models of this machine and answers for all models.
#[derive(Parser)]
#[command(version)]
struct Flags {
    /// The configuration; the same file as the dashboard's.
    #[arg(long)]
    config: Option<Utf8PathBuf>,
    /// Where records of engines, usage and quarantines are kept.
    #[arg(long)]
    data_dir: Option<Utf8PathBuf>,
    /// Serve health and metrics at this address, as in 127.0.0.1:9484; without it nothing does.
    #[arg(long, value_name = "ADDRESS")]
    internal_listen: Option<SocketAddr>,
    /// Each engine is a unit of systemd, `fettle-engine@<name>`, and goes on while this process starts anew. For the unit of
    /// this process, which makes the folders that those look into.
    #[arg(long)]
    engine_units: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(clap::Subcommand)]
enum Command {
    Guard(guard::Flags),
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let done = match &flags.command {
        // Without a runtime, whose threads would be in its way.
        Some(Command::Guard(guard)) => guard::watch(guard),
        None => {
            let environment = Environment::of_process();
            // Before the runtime's threads begin.
            let sockets = PassedSockets::take(&environment, &[GATEWAY]);
            serve(&flags, environment, sockets)
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // What and why for a person; a backtrace would only hide it.
            let _ = writeln!(std::io::stderr().lock(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn serve(flags: &Flags, environment: Environment, sockets: Result<PassedSockets, SocketError>) -> Result<()> {
    install_tls();
    let passed = sockets?.listener(GATEWAY);
    let config = Config::load(flags.config.as_deref(), &environment)?;
    let logs = telemetry::init(&config.telemetry, "fettle-inference", &environment).map_err(anyhow::Error::msg)?;
    open_files::take();
    let data = DataDir::open(flags.data_dir.as_deref(), &config, &environment)?;
    secrets::exposed(&config, Some(&data), &environment).iter().for_each(|exposed| warn!("{exposed}"));
    let supervisor = Supervisor::default();
    let _until_the_end = supervisor.while_held();
    let _hangups = shutdown::on_signals(supervisor.shutdown().clone())?;
    let manager = Manager::of(&environment);
    let (registry, vitals) = (Registry::new(), Arc::new(Vitals::default()));
    logs.register(&registry)?;
    let clock = Arc::new(system::SystemClock);
    let health = Arc::new(PartsHealth::new(clock.clone(), vitals.clone(), env!("CARGO_PKG_VERSION")));
    if let Some(address) = flags.internal_listen {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("could not listen on {address}; choose another address with --internal-listen"))?;
        info!("health listens on http://{}", listener.local_addr().context("while listening")?);
        let health = Health { registry: registry.clone(), parts: health.clone() };
        let stop = supervisor.shutdown().clone();
        let serving = fettle_api::serve(listener, health.router(), stop, supervisor.tasks().clone());
        supervisor.spawn("the health listener", serving);
    }
    let run_token_key = run_token_key(&config, &data)?;
    let listener = match passed {
        // It was bound before this process began, and stays open when it ends.
        Some(socket) => TcpListener::from_std(socket).context("while taking the passed socket")?,
        None => {
            let address = config.gateway.listen.as_deref().unwrap_or(LISTEN);
            let refused = || format!("could not listen on {address}; choose another address with gateway.listen");
            TcpListener::bind(address).await.with_context(refused)?
        }
    };
    let (told, added) = watch::channel(Arc::default());
    if let Some(key) = &run_token_key {
        let dashboard = GatewayModels::new(&config.agent.dashboard_url, &key.gateway_secret());
        let dashboard = dashboard.context("agent.dashboard_url")?;
        let stop = supervisor.shutdown().clone();
        supervisor.spawn("the dashboard's word on models", async move { dashboard.follow(&told, &stop).await });
    }
    let running = start(Start {
        config: &config,
        environment: &environment,
        data: &data,
        listener,
        run_token_key,
        engines: if flags.engine_units { EnginesAre::Units } else { EnginesAre::Children },
        clock,
        ids: Arc::new(system::RandomIds),
        registry: &registry,
        vitals: &vitals,
        supervisor: &supervisor,
        added,
    })
    .await?;
    info!(
        "fettle-inference {} answers on http://{}, models: {}",
        env!("CARGO_PKG_VERSION"),
        running.address,
        names(&config)
    );
    manager.feed_watchdog(&vitals, &supervisor);
    health.serving();
    manager.serving(&format!("Serving models on {}", running.address));
    supervisor.shutdown().cancelled().await;
    manager.stopping();
    health.draining();
    let ended = supervisor.ended().await;
    running.close().await;
    Ok(ended?)
}

fn names(config: &Config) -> String {
    let names: Vec<&str> = config.gateway.models.iter().map(|model| model.name.as_str()).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// As the dashboard has it: a secret of its own, or what follows from the service key. Neither, and no Run of a dashboard can ask.
fn run_token_key(config: &Config, data: &DataDir) -> Result<Option<RunTokenKey>> {
    let own = config.gateway.run_token_key_file.as_deref().map(secrets::read_strong).transpose()?;
    let service_key = match &config.auth.worker_key_file {
        Some(file) => Some(secrets::read_strong(file)?),
        // Of a dashboard with the same data folder.
        None => data.worker_key().exists().then(|| secrets::read_strong(&data.worker_key())).transpose()?,
    };
    let key = match (own, service_key) {
        (Some(own), _) => RunTokenKey::new(&own),
        (None, Some(service_key)) => RunTokenKey::choose(None, &service_key),
        (None, None) => {
            warn!(
                "workers will be refused: set auth.worker_key_file, or gateway.run_token_key_file, as the dashboard has it"
            );
            return Ok(None);
        }
    };
    Ok(Some(key.context("gateway.run_token_key_file")?))
}
