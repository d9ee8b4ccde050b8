//! `fettle-worker`: leases Runs over the worker API and works on them.

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use camino::Utf8PathBuf;
use clap::Parser;
use fettle_api::WorkerClient;
use fettle_app::running::Stay;
use fettle_git::{Git, GitOptions};
use fettle_runtime::config::Config;
use fettle_runtime::data::DataDir;
use fettle_runtime::environment::Environment;
use fettle_runtime::{install_tls, secrets, shutdown, system, telemetry};
use fettle_worker::{AgentParts, WorkerParts, agent, models, timing, work};
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
    telemetry::init(&config.telemetry.log, config.telemetry.format).map_err(anyhow::Error::msg)?;
    let data = DataDir::open(flags.data_dir.as_deref(), &config, &environment)?;
    secrets::exposed(&config, Some(&data), &environment).iter().for_each(|exposed| warn!("{exposed}"));
    let key_file = config.auth.worker_key_file.clone().unwrap_or_else(|| data.worker_key());
    let key =
        secrets::read(&key_file).context("the worker needs the dashboard's service key (auth.worker_key_file)")?;
    let client =
        || WorkerClient::new(&config.agent.dashboard_url, &key).context("while setting up agent.dashboard_url");
    let (leases, heartbeat_leases) = (Arc::new(client()?), Arc::new(client()?));
    let git = Git::new(GitOptions { plain_http_on_loopback: true, ..GitOptions::new(data.worker_mirrors()) })?;
    let models = models(&config)?;
    let parts = AgentParts {
        config: &config,
        environment: &environment,
        data: &data,
        repositories: Arc::new(git),
        watch: Arc::new(fettle_agent::solve::Unwatched),
        process: "worker",
        keep: false,
    };
    let agent = agent(parts, models).await?;
    let stop = CancellationToken::new();
    shutdown::on_signals(stop.clone())?;
    let stay = if flags.once { Stay::ForOneJob } else { Stay::UntilShutdown };
    info!("working for {} at sandbox level {}", config.agent.dashboard_url, agent.sandbox.report().level.name());
    let ids = Arc::new(system::RandomIds);
    let slots = config.agent.workers;
    let vitals = Arc::default();
    let parts = WorkerParts { leases, heartbeat_leases, ids, timing: timing(&environment), slots, stay, vitals };
    work(agent, parts, &stop).await.with_context(|| format!("{} gives no work", config.agent.dashboard_url))?;
    info!("the worker has let go of everything");
    Ok(())
}
