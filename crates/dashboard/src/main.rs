//! `fettle-dashboard`: the ledger's process. Workers reach it over the worker API alone.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Result;
use camino::Utf8PathBuf;
use clap::Parser;
use fettle_api::ProbeTiming;
use fettle_dashboard::{Credentials, Start, listen, start};
use fettle_domain::lease::Timing;
use fettle_git::{Git, GitOptions};
use fettle_runtime::config::Config;
use fettle_runtime::data::DataDir;
use fettle_runtime::environment::Environment;
use fettle_runtime::supervisor::Supervisor;
use fettle_runtime::{install_tls, secrets, shutdown, system, telemetry};
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
    let credentials = Credentials::load(&config, &data, &system::RandomIds)?;
    secrets::exposed(&config, Some(&data), &environment).iter().for_each(|exposed| warn!("{exposed}"));
    let listener = listen(&config.server.listen, "server.listen", &data).await?;
    let internal = listen(&config.server.internal_listen, "server.internal_listen", &data).await?;
    let supervisor = Supervisor::default();
    shutdown::on_signals(supervisor.shutdown().clone())?;
    let git = Git::new(GitOptions { plain_http_on_loopback: true, ..GitOptions::new(data.publisher_mirrors()) })?;
    let test_timing = environment.find("FETTLE_TEST_TIMING").is_some();
    let running = start(Start {
        config: &config,
        data: &data,
        credentials: &credentials,
        git,
        timing: if test_timing { Timing::for_tests() } else { Timing::default() },
        probing: ProbeTiming::default(),
        listener,
        internal: Some(internal),
        supervisor: &supervisor,
    })
    .await?;
    fs_err::write(data.address(), running.address.to_string())?;
    info!("fettle-dashboard listens on http://{}", running.address);
    supervisor.shutdown().cancelled().await;
    running.draining();
    let ended = supervisor.ended().await;
    running.close().await;
    Ok(ended?)
}
