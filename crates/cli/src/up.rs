//! `fettle up`: dashboard and worker in one process, with the ledger between them.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use fettle_agent::solve::Unwatched;
use fettle_app::live::Live;
use fettle_app::metrics::{ModelMetrics, RunMetrics};
use fettle_app::running::{Drain, Stay};
use fettle_dashboard::{Credentials, Running, Start};
use fettle_git::{Git, GitOptions};
use fettle_runtime::config::{Config, IntakeMode};
use fettle_runtime::data::DataDir;
use fettle_runtime::environment::Environment;
use fettle_runtime::reload::{Keys, Reload};
use fettle_runtime::supervisor::Supervisor;
use fettle_runtime::systemd::Manager;
use fettle_runtime::{open_files, secrets, shutdown, system, telemetry};
use fettle_worker::{AgentParts, WorkerParts, timing};
use prometheus::Registry;
use tokio::net::TcpListener;
use tracing::{error, info, warn};

use crate::Common;

pub(crate) async fn run(common: &Common, environment: &Environment) -> Result<()> {
    let config = Config::load(common.config.as_deref(), environment)?;
    let logs = telemetry::init(&config.telemetry, "fettle", environment).map_err(anyhow::Error::msg)?;
    open_files::take();
    let data = DataDir::open(common.data_dir.as_deref(), &config, environment)?;
    let credentials = Credentials::load(&config, &data, &system::RandomIds)?;
    secrets::exposed(&config, Some(&data), environment).iter().for_each(|exposed| warn!("{exposed}"));
    let listener = fettle_dashboard::listen(&config.server.listen, "server.listen", &data).await?;
    let models = gateway_listener(&config).await?;
    let supervisor = Supervisor::default();
    let _until_the_end = supervisor.while_held();
    let hangups = shutdown::on_signals(supervisor.shutdown().clone())?;
    let manager = Manager::of(environment);
    // One process, one cache: publisher and worker share the mirrors.
    let git = Git::new(GitOptions { plain_http_on_loopback: true, ..GitOptions::new(data.publisher_mirrors()) })?;
    let timing = timing(environment);
    let registry = Registry::new();
    logs.register(&registry)?;
    let running = fettle_dashboard::start(Start {
        config: &config,
        config_file: common.config.as_deref(),
        data: &data,
        credentials: &credentials,
        git: git.clone(),
        broker: fettle_broker::of_dashboard(&config.transport)?,
        timing,
        probing: fettle_dashboard::probing(environment),
        listener,
        pods: fettle_dashboard::pods(&config, environment)?,
        gateway: Some(fettle_inference::reached_at(models.local_addr()?)),
        internal: None,
        registry: registry.clone(),
        supervisor: &supervisor,
    })
    .await?;
    tell(&config, &data, &credentials, &running);
    let inference = fettle_inference::start(fettle_inference::Start {
        config: &config,
        environment,
        data: &data,
        listener: models,
        run_token_key: Some(credentials.run_token_key()?),
        engines: fettle_inference::EnginesAre::Children,
        clock: Arc::new(system::SystemClock),
        ids: running.ids.clone(),
        registry: &registry,
        vitals: &running.vitals,
        supervisor: &supervisor,
        added: running.added.clone(),
    })
    .await?;
    info!("models are served on http://{}, by the APIs of OpenAI, Anthropic and Ollama", inference.address);
    let gateway = inference.url.clone();
    config.agent.unmet_needs().iter().for_each(|unmet| warn!("missing: {unmet}"));

    let paths = Live::new(config.forge.paths.clone());
    let parts = AgentParts {
        config: &config,
        environment,
        data: &data,
        repositories: Arc::new(git),
        watch: Arc::new(Unwatched),
        process: "up",
        keep: false,
        paths: paths.clone(),
        gateway: Some(gateway.clone()),
    };
    let (run_metrics, model_metrics) = (RunMetrics::default(), ModelMetrics::default());
    run_metrics.register(&registry)?;
    model_metrics.register(&registry)?;
    let models = fettle_worker::measured(fettle_worker::models(&config, Some(&gateway))?, &model_metrics);
    match fettle_worker::agent(parts, models).await {
        Ok(agent) => {
            let report = agent.sandbox.report();
            info!("sandbox level {}", report.level.name());
            report.notes.iter().for_each(|note| warn!("sandbox: {note}"));
            let (ids, ledger, slots) = (running.ids.clone(), running.ledger.clone(), config.agent.workers);
            let parts = WorkerParts {
                leases: ledger.clone(),
                heartbeat_leases: ledger,
                listener: Some(running.words.clone()),
                // The ledger is here: it wakes whoever waits for it.
                bell: None,
                ids,
                labels: config.agent.labels.clone(),
                timing,
                slots,
                stay: Stay::UntilShutdown,
                holdings: Arc::default(),
                metrics: run_metrics,
                vitals: running.vitals.clone(),
                // The ledger ends with it.
                drain: Drain::default(),
            };
            let stop = supervisor.shutdown().clone();
            supervisor.spawn("the worker", async move {
                if let Err(error) = fettle_worker::work(agent, parts, &stop).await {
                    error!("the worker cannot go on: {error}");
                }
            });
        }
        // Intake and publishing go on: Tasks wait for a worker that can work safely.
        Err(error) => error!("no Runs are worked on here: {error:#}"),
    }
    manager.feed_watchdog(&running.vitals, &supervisor);
    let status = format!("Serving on {}", running.address);
    manager.serving(&status);
    let reload = Reload {
        path: common.config.clone(),
        environment: environment.clone(),
        started: config,
        keys: Keys { read: &[""], ..fettle_dashboard::KEYS },
        filter: logs.filter.clone(),
        manager: manager.clone(),
        status,
    };
    let (exchange, stop) = (running.exchange.clone(), supervisor.shutdown().clone());
    supervisor.spawn("the reloader", async move {
        let apply = |config: &Config| {
            let fresh = Credentials::load(config, &data, &system::RandomIds).map_err(|error| format!("{error:#}"))?;
            exchange.apply(config, &fresh);
            paths.set(config.forge.paths.clone());
            Ok(credentials.needing_restart(&fresh))
        };
        reload.work(hangups, apply, &stop).await;
    });
    supervisor.shutdown().cancelled().await;
    manager.stopping();
    running.draining();
    let ended = supervisor.ended().await;
    inference.close().await;
    running.close().await;
    info!("fettle has stopped");
    Ok(ended?)
}

/// The usual address is taken where another Fettle has it; one that somebody chose is not exchanged for another.
async fn gateway_listener(config: &Config) -> Result<TcpListener> {
    if let Some(address) = &config.gateway.listen {
        let refused = || format!("could not listen on {address}; choose another address with gateway.listen");
        return TcpListener::bind(address).await.with_context(refused);
    }
    match TcpListener::bind(fettle_inference::LISTEN).await {
        Ok(listener) => Ok(listener),
        Err(error) => {
            warn!(
                "models are served on another port than {}: {error}; gateway.listen chooses one",
                fettle_inference::LISTEN
            );
            TcpListener::bind("127.0.0.1:0").await.context("could not listen on any port of loopback")
        }
    }
}

/// What listens, what is configured, what is missing and what to do next.
fn tell(config: &Config, data: &DataDir, credentials: &Credentials, running: &Running) {
    let (address, added) = (running.address, running.added.borrow().clone());
    info!("fettle {} listens on http://{address}; state is in {}", env!("CARGO_PKG_VERSION"), data.root());
    if credentials.first_start {
        info!("first start: the admin key is in {}; the CLI on this machine finds it by itself", data.admin_key());
    }
    match config.gateway.models.first() {
        Some(first) => info!(
            "models: {} configured, `{}` is used unless a Task names another",
            config.gateway.models.len(),
            first.name
        ),
        None if !added.models.is_empty() => info!("models: {} that were added in the browser", added.models.len()),
        None => warn!(
            "missing: no model. Add one in the browser, on the page Models, or a [[gateway.models]] entry to the configuration, with name and base_url, or with name and path for one on this machine"
        ),
    }
    if credentials.webhook.is_some() {
        info!(
            "webhooks are accepted at http://{address}/webhooks/github; label `{}` asks for work",
            config.forge.label
        );
    } else {
        match config.forge.intake {
            IntakeMode::Poll => {
                info!("no webhook is needed: label `{}` asks for work, and is looked for", config.forge.label)
            }
            IntakeMode::Webhook => warn!(
                "missing: no webhook secret, so webhooks are refused. Set forge.webhook_secret_file, or forge.intake = \"poll\" where the forge cannot reach this host"
            ),
        }
    }
    if credentials.can_write(config) || added.forge.write.open().is_some() {
        info!("the forge is {}", config.forge.api_url);
    } else {
        warn!(
            "missing: no write access to the forge. Enter tokens in the browser, on the page Repositories, or set forge.app_id and forge.app_key_file, or forge.write_token_file"
        );
    }
    info!("next: `fettle doctor` checks this machine; `fettle fix --repo . --issue FILE` works without any forge");
}
