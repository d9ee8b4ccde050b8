//! `fettle-worker`: leases Runs over the worker API and works on them.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use camino::Utf8PathBuf;
use clap::Parser;
use fettle_api::{Contact, WorkerClient, WorkerHealth, WorkerHealthParts};
use fettle_app::leasing::Holdings;
use fettle_app::live::Live;
use fettle_app::metrics::{ModelMetrics, RunMetrics};
use fettle_app::running::{Drain, Stay};
use fettle_app::vitals::Vitals;
use fettle_git::{Git, GitOptions};
use fettle_runtime::config::Config;
use fettle_runtime::data::DataDir;
use fettle_runtime::environment::Environment;
use fettle_runtime::reload::Reload;
use fettle_runtime::supervisor::Supervisor;
use fettle_runtime::systemd::Manager;
use fettle_runtime::{install_tls, secrets, shutdown, system, telemetry};
use fettle_worker::{AgentParts, KEYS, WorkerParts, agent, measured, models, timing, work};
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Works on Runs of a Fettle dashboard.
#[derive(Parser)]
#[command(version)]
struct Flags {
    /// The configuration; the same file as the dashboard's.
    #[arg(long)]
    config: Option<Utf8PathBuf>,
    /// Where mirrors, prepared environments and workspaces are kept.
    #[arg(long)]
    data_dir: Option<Utf8PathBuf>,
    /// Serve health and metrics at this address, as in 127.0.0.1:9201; without it nothing listens.
    #[arg(long, value_name = "ADDRESS")]
    internal_listen: Option<SocketAddr>,
    /// One job, if there is one, and then end.
    #[arg(long)]
    once: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // What and why for a person; a backtrace would only hide it.
            let _ = writeln!(std::io::stderr().lock(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    install_tls();
    let flags = Flags::parse();
    let environment = Environment::of_process();
    fettle_runtime::arm_crash_point(&environment);
    let config = Config::load(flags.config.as_deref(), &environment)?;
    let logs = telemetry::init(&config.telemetry, "fettle-worker", &environment).map_err(anyhow::Error::msg)?;
    let data = DataDir::open(flags.data_dir.as_deref(), &config, &environment)?;
    secrets::exposed(&config, Some(&data), &environment).iter().for_each(|exposed| warn!("{exposed}"));
    let key_file = config.auth.worker_key_file.clone().unwrap_or_else(|| data.worker_key());
    let key = secrets::read_strong(&key_file)
        .context("the worker needs the dashboard's service key (auth.worker_key_file)")?;
    let dashboard = config.agent.dashboard_url.clone();
    let contact = Arc::new(Contact::default());
    let client = || {
        let client = WorkerClient::new(&dashboard, &key).context("while setting up agent.dashboard_url")?;
        anyhow::Ok(Arc::new(client.telling(contact.clone())))
    };
    let (leases, heartbeat_leases) = (client()?, client()?);

    let supervisor = Supervisor::default();
    let _until_the_end = supervisor.while_held();
    let drain = Drain { finish: config.agent.drain_finish.0, at_once: CancellationToken::new() };
    // With nothing to wait for, the second signal ends the process.
    let at_once = (!drain.finish.is_zero()).then(|| drain.at_once.clone());
    let hangups = shutdown::on_signals_in_turn(supervisor.shutdown().clone(), at_once)?;
    let manager = Manager::of(&environment);
    let registry = Registry::new();
    logs.register(&registry)?;
    let (vitals, holdings) = (Arc::new(Vitals::default()), Arc::new(Holdings::default()));
    let health = Arc::new(WorkerHealth::new(WorkerHealthParts {
        clock: Arc::new(system::SystemClock),
        vitals: vitals.clone(),
        contact,
        holdings: holdings.clone(),
        away_after: timing(&environment).lease,
        version: env!("CARGO_PKG_VERSION"),
        registry: registry.clone(),
    })?);
    // Health is told until the last lease is let go of, which is after the order to shut down.
    let told = CancellationToken::new();
    if let Some(address) = flags.internal_listen {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("could not listen on {address}; choose another address with --internal-listen"))?;
        info!("health listens on http://{}", listener.local_addr().context("while listening")?);
        let serving = fettle_api::serve(listener, health.clone().router(), told.clone(), supervisor.tasks().clone());
        supervisor.spawn("the health listener", serving);
    }

    let git = Git::new(GitOptions { plain_http_on_loopback: true, ..GitOptions::new(data.worker_mirrors()) })?;
    let paths = Live::new(config.forge.paths.clone());
    let parts = AgentParts {
        config: &config,
        environment: &environment,
        data: &data,
        repositories: Arc::new(git),
        watch: Arc::new(fettle_agent::solve::Unwatched),
        process: "worker",
        keep: false,
        paths: paths.clone(),
        gateway: config.gateway.url.clone(),
    };
    let (run_metrics, model_metrics) = (RunMetrics::default(), ModelMetrics::default());
    run_metrics.register(&registry)?;
    model_metrics.register(&registry)?;
    let models = measured(models(&config, config.gateway.url.as_deref())?, &model_metrics);
    let agent = agent(parts, models).await?;
    let status = format!("Working for {dashboard} at sandbox level {}", agent.sandbox.report().level.name());
    info!("working for {dashboard} at sandbox level {}", agent.sandbox.report().level.name());
    let parts = WorkerParts {
        listener: Some(leases.clone()),
        leases,
        heartbeat_leases,
        bell: fettle_broker::of_worker(&config.transport)?,
        ids: Arc::new(system::RandomIds),
        labels: config.agent.labels.clone(),
        timing: timing(&environment),
        slots: config.agent.workers,
        stay: if flags.once { Stay::ForOneJob } else { Stay::UntilShutdown },
        holdings,
        metrics: run_metrics,
        vitals: vitals.clone(),
        drain,
    };
    let (tell, ended) = oneshot::channel();
    let (stop, last) = (supervisor.shutdown().clone(), told.drop_guard());
    supervisor.spawn("the worker", async move {
        let _last = last;
        let _nobody_asks = tell.send(work(agent, parts, &stop).await);
        // After one job, or when it is refused work, it ends by itself and the process with it.
        stop.cancel();
    });
    health.serving();
    manager.feed_watchdog(&vitals, &supervisor);
    manager.serving(&status);
    let reload = Reload {
        path: flags.config,
        environment,
        started: config,
        keys: KEYS,
        filter: logs.filter.clone(),
        manager: manager.clone(),
        status,
    };
    let stop = supervisor.shutdown().clone();
    supervisor.spawn("the reloader", async move {
        let apply = |config: &Config| {
            paths.set(config.forge.paths.clone());
            Ok(Vec::new())
        };
        reload.work(hangups, apply, &stop).await;
    });
    supervisor.shutdown().cancelled().await;
    manager.stopping();
    health.draining();
    supervisor.ended().await?;
    ended.await.context("the worker ended without a word")?.with_context(|| format!("{dashboard} gives no work"))?;
    info!("the worker has let go of everything");
    Ok(())
}
