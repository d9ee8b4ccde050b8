//! The dashboard's composition root: ledger, forge, intake, publisher, reconcilers and the HTTP edge in one process.

mod credentials;

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use fettle_api::{ApiState, Health, HttpMetrics, Parts, ProbeTiming, WebhookSecrets};
use fettle_app::admission::Gate;
use fettle_app::intake::{Intake, PROCESSED_WITHIN, ReadWebhook};
use fettle_app::ports::chain;
use fettle_app::ports::clock::{Clock, IdSource};
use fettle_app::ports::ledger::{Holder, Ledger};
use fettle_app::publishing::{PUBLISHED_WITHIN, PublishOptions, Publisher};
use fettle_app::reaping::{RECONCILED_WITHIN, reconcile};
use fettle_app::submitting::Submitting;
use fettle_app::vitals::Vitals;
use fettle_domain::id::WorkerId;
use fettle_domain::incoming::Incoming;
use fettle_domain::intake::IntakeRules;
use fettle_domain::lease::Timing;
use fettle_git::Git;
use fettle_github::{GitHub, GitHubOptions, Timeouts, Url};
use fettle_runtime::config::Config;
use fettle_runtime::data::DataDir;
use fettle_runtime::supervisor::Supervisor;
use fettle_runtime::system;
use fettle_store_sqlite::{Options, SqliteLedger};
use prometheus::Registry;
use tokio::net::TcpListener;
use tracing::info;

pub use credentials::Credentials;

/// What a dashboard is started with.
pub struct Start<'a> {
    pub config: &'a Config,
    pub data: &'a DataDir,
    pub credentials: &'a Credentials,
    /// The publisher's repositories.
    pub git: Git,
    pub timing: Timing,
    pub probing: ProbeTiming,
    pub listener: TcpListener,
    /// For the worker API; absent in one process.
    pub internal: Option<TcpListener>,
    /// Owns every task of the dashboard.
    pub supervisor: &'a Supervisor,
}

/// A dashboard that serves.
pub struct Running {
    pub address: SocketAddr,
    pub ledger: Arc<SqliteLedger>,
    pub ids: Arc<dyn IdSource>,
    /// For further parts of this process, such as workers: `/healthz` tells of them too.
    pub vitals: Arc<Vitals>,
    health: Arc<Health>,
}

impl Running {
    /// Not ready for new work from now on; what is being answered is still answered.
    pub fn draining(&self) {
        self.health.draining();
    }

    /// Ends the ledger after all tasks have ended.
    pub async fn close(&self) {
        if let Err(error) = self.ledger.close().await {
            tracing::warn!("the ledger did not close cleanly: {error}; it recovers at the next start");
        }
    }
}

/// Listens on `address`, which `key` of the configuration names.
///
/// Errors: when another process has the address because it runs on this data folder, that is what is told, since another
/// address would not help.
pub async fn listen(address: &str, key: &str, data: &DataDir) -> Result<TcpListener> {
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(listener),
        Err(error) => {
            fettle_store_sqlite::refuse_if_in_use(&data.ledger())?;
            Err(error).with_context(|| format!("could not listen on {address}; choose another address with {key}"))
        }
    }
}

/// Builds all parts and starts their tasks. Contacts nobody: the forge is asked when there is work.
pub async fn start(start: Start<'_>) -> Result<Running> {
    let Start { config, data, credentials, git, timing, probing, listener, internal, supervisor } = start;
    let shutdown = supervisor.shutdown().clone();
    let clock: Arc<dyn Clock> = Arc::new(system::SystemClock);
    let ids: Arc<dyn IdSource> = Arc::new(system::RandomIds);
    let api_url: Url = config.forge.api_url.parse().context("forge.api_url is not a URL")?;
    let options =
        GitHubOptions { base_url: Some(api_url), auth: credentials.forge_auth(config), timeouts: Timeouts::default() };
    let forge = Arc::new(GitHub::new(options)?);
    let options = Options {
        timing,
        admissions: Some(Arc::new(Gate { forge: forge.clone(), trigger_label: config.forge.label.clone() })),
        ..Options::new(clock.clone(), ids.clone())
    };
    let ledger = Arc::new(SqliteLedger::open(data.ledger(), options).await.context("while opening the ledger")?);
    let registry = Registry::new();
    let metrics = HttpMetrics::register(&registry)?;
    let vitals = Arc::new(Vitals::default());
    let health = Arc::new(Health::new(probing, clock.clone(), vitals.clone()));

    let intake = Intake {
        ledger: ledger.clone(),
        forge: forge.clone(),
        reader: Arc::new(Webhooks),
        clock: clock.clone(),
        ids: ids.clone(),
        rules: IntakeRules {
            label: config.forge.label.clone(),
            label_mode: config.forge.label_mode,
            allowed_bots: config.forge.allowed_bots.clone(),
        },
        daily_tasks: config.forge.daily_tasks,
        pulse: vitals.pulse("intake", PROCESSED_WITHIN),
    };
    let publisher = Publisher {
        ledger: ledger.clone(),
        forge: forge.clone(),
        repositories: Arc::new(git.clone()),
        push: Arc::new(git),
        ids: ids.clone(),
        holder: Holder {
            worker: WorkerId::from_uuid(ids.uuid()),
            name: format!("publisher on {}", system::process_name()),
        },
        timing,
        options: PublishOptions {
            paths: config.forge.paths.clone(),
            secrets: credentials.known(),
            trigger_label: config.forge.label.clone(),
        },
        pulse: vitals.pulse("publisher", PUBLISHED_WITHIN),
    };
    let submit = Submitting {
        ledger: ledger.clone(),
        forge: forge.clone(),
        clock: clock.clone(),
        ids: ids.clone(),
        hosts: config.forge.hosts.clone(),
        models: config.gateway.models.iter().map(|model| model.name.clone()).collect(),
    };
    let api = ApiState::new(Parts {
        ledger: ledger.clone(),
        submit: Arc::new(submit),
        clock,
        ids: ids.clone(),
        admin_key: credentials.admin_key.clone(),
        worker_key: credentials.worker_key.clone(),
        webhook: credentials
            .webhook
            .clone()
            .map(|current| WebhookSecrets { current, previous: credentials.webhook_previous.clone() }),
        health: health.clone(),
        metrics: metrics.clone(),
        registry,
        version: env!("CARGO_PKG_VERSION"),
        shutdown: shutdown.clone(),
    });

    let address = listener.local_addr().context("while listening")?;
    let stop = shutdown.clone();
    supervisor.spawn("intake", async move { intake.work(&stop).await });
    let stop = shutdown.clone();
    supervisor.spawn("the publisher", async move { publisher.work(&stop).await });
    let (written, stop) = (ledger.clone(), shutdown.clone());
    supervisor.spawn("the ledger's writer", async move {
        tokio::select! {
            () = written.ended() => {}
            () = stop.cancelled() => {}
        }
    });
    let (reconciled, stop): (Arc<dyn Ledger>, _) = (ledger.clone(), shutdown.clone());
    let pulse = vitals.pulse("reconciler", RECONCILED_WITHIN);
    supervisor.spawn("the reconciler", async move { reconcile(reconciled, pulse, &stop).await });
    let (watched, probed, stop) = (health.clone(), ledger.clone(), shutdown.clone());
    supervisor.spawn("the watch over the ledger", async move { watched.watch(&*probed, &metrics, &stop).await });
    if let Some(internal) = internal {
        info!("the worker API listens on {}", internal.local_addr().context("while listening for workers")?);
        let router = fettle_api::worker_router(api.clone());
        let serving = fettle_api::serve(internal, router, shutdown.clone(), supervisor.tasks().clone());
        supervisor.spawn("the worker API", serving);
    }
    supervisor
        .spawn("the API", fettle_api::serve(listener, fettle_api::router(api), shutdown, supervisor.tasks().clone()));
    health.serving();
    Ok(Running { address, ledger, ids, vitals, health })
}

/// Reads deliveries as GitHub writes them.
struct Webhooks;

impl ReadWebhook for Webhooks {
    fn read(&self, event: &str, body: &[u8]) -> Result<Incoming, String> {
        fettle_github::webhook::normalise(event, body).map_err(|error| chain(&error))
    }
}
