//! `fettle-dashboard`: the ledger's process. Workers reach it over the worker API alone.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use camino::Utf8PathBuf;
use clap::{Parser, Subcommand};
use fettle_dashboard::{Credentials, KEYS, Start, migrate, passed_or_listen, pods, probing, start};
use fettle_domain::lease::Timing;
use fettle_git::{Git, GitOptions};
use fettle_runtime::config::Config;
use fettle_runtime::data::DataDir;
use fettle_runtime::environment::Environment;
use fettle_runtime::reload::Reload;
use fettle_runtime::supervisor::Supervisor;
use fettle_runtime::systemd::{INTERNAL, Manager, PUBLIC, PassedSockets, SocketError};
use fettle_runtime::{install_tls, open_files, secrets, shutdown, system, telemetry};
use prometheus::Registry;
use tracing::{info, warn};

/// Webhooks, API, ledger and publisher of Fettle.
#[derive(Parser)]
#[command(version)]
struct Flags {
    #[arg(long)]
    config: Option<Utf8PathBuf>,
    /// Where ledger, mirrors and keys are kept.
    #[arg(long)]
    data_dir: Option<Utf8PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Bring the ledger's database up to date and end; before the first start and before an upgrade.
    Migrate,
}

fn main() -> ExitCode {
    let environment = Environment::of_process();
    // Before the runtime's threads begin.
    let sockets = PassedSockets::take(&environment, &[PUBLIC, INTERNAL]);
    match run(environment, sockets) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // What and why for a person; a backtrace would only hide it.
            let _ = writeln!(std::io::stderr().lock(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(environment: Environment, sockets: Result<PassedSockets, SocketError>) -> Result<()> {
    install_tls();
    let flags = Flags::parse();
    let mut sockets = sockets?;
    fettle_runtime::arm_crash_point(&environment);
    let config = Config::load(flags.config.as_deref(), &environment)?;
    if let Some(Command::Migrate) = flags.command {
        let done = migrate(&config).await.context("while bringing the ledger's database up to date")?;
        writeln!(std::io::stdout(), "{done}")?;
        return Ok(());
    }
    let logs = telemetry::init(&config.telemetry, "fettle-dashboard", &environment).map_err(anyhow::Error::msg)?;
    open_files::take();
    let data = DataDir::open(flags.data_dir.as_deref(), &config, &environment)?;
    let credentials = Credentials::load(&config, &data, &system::RandomIds)?;
    secrets::exposed(&config, Some(&data), &environment).iter().for_each(|exposed| warn!("{exposed}"));
    let server = &config.server;
    let listener = passed_or_listen(sockets.listener(PUBLIC), &server.listen, "server.listen", &data).await?;
    let internal = sockets.listener(INTERNAL);
    let internal = passed_or_listen(internal, &server.internal_listen, "server.internal_listen", &data).await?;
    let supervisor = Supervisor::default();
    let _until_the_end = supervisor.while_held();
    let hangups = shutdown::on_signals(supervisor.shutdown().clone())?;
    let manager = Manager::of(&environment);
    let git = Git::new(GitOptions { plain_http_on_loopback: true, ..GitOptions::new(data.publisher_mirrors()) })?;
    let registry = Registry::new();
    logs.register(&registry)?;
    let test_timing = environment.find("FETTLE_TEST_TIMING").is_some();
    let running = start(Start {
        config: &config,
        config_file: flags.config.as_deref(),
        data: &data,
        credentials: &credentials,
        git,
        broker: fettle_broker::of_dashboard(&config.transport)?,
        timing: if test_timing { Timing::for_tests() } else { Timing::default() },
        probing: probing(&environment),
        listener,
        pods: pods(&config, &environment)?,
        gateway: config.gateway.url.clone(),
        internal: Some(internal),
        registry,
        supervisor: &supervisor,
    })
    .await?;
    info!("fettle-dashboard listens on http://{}", running.address);
    manager.feed_watchdog(&running.vitals, &supervisor);
    let status = format!("Serving on {}", running.address);
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
    let (exchange, stop) = (running.exchange.clone(), supervisor.shutdown().clone());
    supervisor.spawn("the reloader", async move {
        let apply = |config: &Config| {
            let fresh = Credentials::load(config, &data, &system::RandomIds).map_err(|error| format!("{error:#}"))?;
            exchange.apply(config, &fresh);
            Ok(credentials.needing_restart(&fresh))
        };
        reload.work(hangups, apply, &stop).await;
    });
    supervisor.shutdown().cancelled().await;
    manager.stopping();
    running.draining();
    let ended = supervisor.ended().await;
    running.close().await;
    Ok(ended?)
}
