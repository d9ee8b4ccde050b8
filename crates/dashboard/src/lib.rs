//! The dashboard's composition root: ledger, forge, intake, publisher, reconcilers and the HTTP edge in one process.

mod about;
mod credentials;
mod exchange;
mod lookout;
mod pods;
mod store;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use camino::Utf8Path;
use fettle_api::{ApiState, Health, HttpMetrics, InferenceClient, Parts, ProbeTiming, Tryout};
use fettle_app::adding::{self, Added, Adding, KnownModels, READ_EVERY, ReadAgain};
use fettle_app::admission::Gate;
use fettle_app::announcing::{ANNOUNCED_WITHIN, announce};
use fettle_app::auditing::Auditing;
use fettle_app::depths::{BrokerGauges, MEASURED_WITHIN, measure};
use fettle_app::doorkeeping::{Doorkeeper, Foreign, Registration, SWEPT_EVERY, Sweep};
use fettle_app::foreign::{ForeignIntake, RECEIVED_WITHIN};
use fettle_app::intake::{Intake, PROCESSED_WITHIN, ReadWebhook};
use fettle_app::leasing::Heart;
use fettle_app::live::Live;
use fettle_app::ports::chain;
use fettle_app::ports::clock::{Clock, IdSource};
use fettle_app::ports::git::Repositories;
use fettle_app::ports::ledger::{Holder, L, Ledger};
use fettle_app::ports::pods::ShowPods;
use fettle_app::ports::transport::Broker;
use fettle_app::publishing::{PUBLISHED_WITHIN, Pace, Publisher};
use fettle_app::reaping::{RECONCILED_WITHIN, reconcile};
use fettle_app::reconciling::{Reconcilers, WORKED_WITHIN};
use fettle_app::ringing::{RUNG_WITHIN, ring};
use fettle_app::run_token::RunTokens;
use fettle_app::showing::Showing;
use fettle_app::submitting::Submitting;
use fettle_app::telling::Teller;
use fettle_app::vitals::Vitals;
use fettle_app::words::Ear;
use fettle_domain::id::WorkerId;
use fettle_domain::incoming::Incoming;
use fettle_domain::lease::Timing;
use fettle_domain::oidc::Allowed;
use fettle_domain::turn::Slots;
use fettle_git::Git;
use fettle_github::{GitHub, GitHubOptions, Timeouts, Url};
use fettle_oidc::{Options as ProviderOptions, Provider};
use fettle_runtime::config::{self, Config};
use fettle_runtime::data::DataDir;
use fettle_runtime::environment::Environment;
use fettle_runtime::sealing_keys::SealingKeys;
use fettle_runtime::supervisor::Supervisor;
use fettle_runtime::system;
use prometheus::Registry;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::info;

use exchange::{Publishing, Told};
use lookout::Lookout;

pub use credentials::Credentials;
pub use exchange::{Exchange, KEYS};
pub use pods::pods;
pub use store::{database, migrate};

use store::{Opening, Store};

/// What a dashboard is started with.
pub struct Start<'a> {
    pub config: &'a Config,
    /// Where it was read from; absent: from nowhere but the environment.
    pub config_file: Option<&'a Utf8Path>,
    pub data: &'a DataDir,
    pub credentials: &'a Credentials,
    /// The publisher's repositories.
    pub git: Git,
    /// What stands between this process and others, if anything.
    pub broker: Option<Broker>,
    pub timing: Timing,
    pub probing: ProbeTiming,
    pub listener: TcpListener,
    /// Workers' pods, where people may see them.
    pub pods: Option<Arc<dyn ShowPods>>,
    /// Where the gateway of models is, if anywhere: it may begin to serve later.
    pub gateway: Option<String>,
    /// For the worker API, health and metrics; absent in one process, whose one listener carries health and metrics too.
    pub internal: Option<TcpListener>,
    /// Owns every task of the dashboard.
    /// Metrics of the process; others of its parts may be there as well.
    pub registry: Registry,
    pub supervisor: &'a Supervisor,
}

/// A dashboard that serves.
pub struct Running {
    pub address: SocketAddr,
    /// Where health is told, when that is elsewhere.
    pub internal_address: Option<SocketAddr>,
    pub ledger: Arc<dyn Ledger>,
    pub ids: Arc<dyn IdSource>,
    /// Hears what models say, for workers in this process.
    pub words: Arc<Ear>,
    /// For further parts of this process, such as workers: `/healthz` tells of them too.
    pub vitals: Arc<Vitals>,
    pub exchange: Exchange,
    /// What people added, for a gateway in this process.
    pub added: watch::Receiver<Arc<Added>>,
    store: Store,
    health: Arc<Health>,
}

impl Running {
    /// For programs on this machine.
    fn write_addresses(&self, data: &DataDir) -> Result<()> {
        match self.internal_address {
            Some(address) => fs_err::write(data.internal_address(), address.to_string())?,
            // One that another program left here would lead astray.
            None => match fs_err::remove_file(data.internal_address()) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
                Ok(()) | Err(_) => {}
            },
        }
        Ok(fs_err::write(data.address(), self.address.to_string())?)
    }

    /// Not ready for new work from now on; what is being answered is still answered.
    pub fn draining(&self) {
        self.health.draining();
    }

    /// Ends the ledger after all tasks have ended.
    pub async fn close(&self) {
        if let Err(error) = self.store.close().await {
            tracing::warn!("the ledger did not close cleanly: {error}; it recovers at the next start");
        }
    }
}

/// The socket that was passed to this process, else [`listen`].
pub async fn passed_or_listen(
    passed: Option<std::net::TcpListener>,
    address: &str,
    key: &str,
    data: &DataDir,
) -> Result<TcpListener> {
    match passed {
        Some(passed) => TcpListener::from_std(passed).context("while taking over a passed socket"),
        None => listen(address, key, data).await,
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

/// How the ledger is probed; quicker for tests with real processes when `FETTLE_TEST_PROBING` is set.
pub fn probing(environment: &Environment) -> ProbeTiming {
    match environment.find("FETTLE_TEST_PROBING") {
        Some(_) => ProbeTiming {
            every: Duration::from_millis(100),
            timeout: Duration::from_secs(1),
            patience: Duration::from_secs(1),
        },
        None => ProbeTiming::default(),
    }
}

/// Builds all parts and starts their tasks. Contacts nobody: the forge is asked when there is work.
pub async fn start(start: Start<'_>) -> Result<Running> {
    let Start {
        config,
        config_file,
        data,
        credentials,
        git,
        broker,
        timing,
        probing,
        listener,
        pods,
        gateway,
        internal,
        registry,
        supervisor,
    } = start;
    let shutdown = supervisor.shutdown().clone();
    let clock: Arc<dyn Clock> = Arc::new(system::SystemClock);
    let ids: Arc<dyn IdSource> = Arc::new(system::RandomIds);
    let api_url: Url = config.forge.api_url.parse().context("forge.api_url is not a URL")?;
    let options =
        GitHubOptions { base_url: Some(api_url), auth: credentials.forge_auth(config), timeouts: Timeouts::default() };
    let forge = Arc::new(GitHub::new(options)?);
    let intake_options = Live::new(exchange::intake_options(config));
    let (told, added) = watch::channel(Arc::default());
    let publishing = Publishing::new(Told::of(config, credentials), added.clone());
    let run_tokens = RunTokens { key: credentials.run_token_key()?, clock: clock.clone() };
    let configured: Vec<String> = config.gateway.models.iter().map(|model| model.name.clone()).collect();
    let models = KnownModels::new(configured.clone(), added.clone());
    let opening = Opening {
        timing,
        slots: slots(config),
        clock: clock.clone(),
        ids: ids.clone(),
        admissions: Arc::new(Gate {
            forge: forge.clone(),
            options: publishing.options.clone(),
            run_tokens: Some(run_tokens.clone()),
            models: models.clone(),
        }),
    };
    let store = Store::open(config, data, opening).await.context("while opening the ledger")?;
    store.metrics().register(&registry)?;
    let ledger = store.ledger();
    let registration = match config.auth.registration {
        config::Registration::Closed => Registration::Closed,
        config::Registration::Open => Registration::Open,
    };
    let secrets = Arc::new(system::RandomSecrets);
    let opened = Doorkeeper::open(store.accounts(), clock.clone(), ids.clone(), secrets, registration).await;
    let (mut door, setup_token) = opened.context("while opening the accounts")?;
    door.foreign = config.auth.oidc.as_ref().map(|oidc| foreign(oidc, credentials)).transpose()?;
    let door = Arc::new(door);
    let adding = Adding::open(adding::Parts {
        store: store.additions(),
        forge: forge.clone(),
        forge_url: config.forge.api_url.clone(),
        forge_configured: credentials.reaches_forge(config),
        hosts: config.forge.hosts.clone(),
        configured,
        ring: Arc::new(SealingKeys::of(config, data)),
        clock: clock.clone(),
        random: Arc::new(system::RandomSecrets),
        told,
    });
    let adding = Arc::new(adding.await.context("while reading what people added in the browser")?);
    let metrics = HttpMetrics::register(&registry)?;
    let vitals = Arc::new(Vitals::default());
    let health = Arc::new(Health::new(probing, clock.clone(), vitals.clone()));
    let reconcilers = Arc::new(Reconcilers::new(clock.clone()));

    let submit = Arc::new(Submitting {
        ledger: ledger.clone(),
        forge: forge.clone(),
        clock: clock.clone(),
        ids: ids.clone(),
        hosts: config.forge.hosts.clone(),
        models,
        options: intake_options.clone(),
    });
    let intake = Intake {
        ledger: ledger.clone(),
        forge: forge.clone(),
        reader: Arc::new(Webhooks),
        submit: submit.clone(),
        dead_letters: broker.as_ref().map(|broker| broker.inbox.clone()),
        clock: clock.clone(),
        ids: ids.clone(),
        options: intake_options.clone(),
        pulse: vitals.pulse("intake", PROCESSED_WITHIN),
    };
    let repositories: Arc<dyn Repositories> = Arc::new(git.clone());
    let changes =
        Arc::new(Showing { ledger: ledger.clone(), forge: forge.clone(), repositories: repositories.clone() });
    let publisher = Publisher {
        ledger: ledger.clone(),
        forge: forge.clone(),
        repositories,
        push: Arc::new(git),
        ids: ids.clone(),
        holder: Holder {
            worker: WorkerId::from_uuid(ids.uuid()),
            name: format!("publisher on {}", system::process_name()),
        },
        timing,
        heart: Heart::Apart,
        options: publishing.options.clone(),
        pulse: vitals.pulse("publisher", PUBLISHED_WITHIN),
        pace: Pace::new(timing.write_gap),
    };
    let gateway_key = run_tokens.key.gateway_secret();
    let words = Arc::new(Ear::new(ledger.clone(), publishing.options.clone()));
    let tries = Tryout { gateway, tokens: run_tokens, ids: ids.clone() };
    let api = ApiState::new(Parts {
        ledger: ledger.clone(),
        words: words.clone(),
        submit,
        audit: Arc::new(Auditing { ledger: ledger.clone(), forge: forge.clone() }),
        changes,
        clock: clock.clone(),
        ids: ids.clone(),
        door: Some(door.clone()),
        trusted_proxies: config.server.trusted_proxies.clone(),
        admin_key: credentials.admin_key.clone(),
        worker_key: credentials.worker_key.clone(),
        scale_key: credentials.scale_key.clone(),
        webhook: credentials.webhook_secrets(),
        health: health.clone(),
        reconcilers: reconcilers.clone(),
        metrics: metrics.clone(),
        registry: registry.clone(),
        inference: Some(InferenceClient::at(data.inference_socket().as_std_path())?),
        pods,
        publishing: publishing.options.clone(),
        about: about::about(config, config_file),
        adding: Some(adding.clone()),
        tries: Some(Arc::new(tries)),
        gateway_key: Some(gateway_key),
        workers_are_gateways: config.gateway.run_token_key_file.is_none(),
        version: env!("CARGO_PKG_VERSION"),
        shutdown: shutdown.clone(),
    });

    let address = listener.local_addr().context("while listening")?;
    let stop = shutdown.clone();
    supervisor.spawn("intake", async move { intake.work(&stop).await });
    let stop = shutdown.clone();
    supervisor.spawn("the publisher", async move { publisher.work(&stop).await });
    let (written, stop) = (store.clone(), shutdown.clone());
    supervisor.spawn("the ledger's writer", async move {
        tokio::select! {
            () = written.ended() => {}
            () = stop.cancelled() => {}
        }
    });
    let pulse = vitals.pulse("reconciler", RECONCILED_WITHIN);
    supervisor.spawn("the reconciler", reconcile(ledger.clone(), &reconcilers, pulse, shutdown.clone()));
    lookout::spawn(Lookout {
        config,
        ledger: ledger.clone(),
        forge,
        clock: clock.clone(),
        ids: ids.clone(),
        options: intake_options.clone(),
        reconcilers: &reconcilers,
        vitals: &vitals,
        supervisor,
        added: added.clone(),
    });
    let (own, pulse) = (reconcilers.register("additions", READ_EVERY), vitals.pulse("additions", WORKED_WITHIN));
    let (mut again, stop) = (ReadAgain(adding), shutdown.clone());
    supervisor.spawn("the reading of additions", async move { own.work(&mut again, &pulse, &stop).await });
    let (renewed, stop) = (publishing.clone(), shutdown.clone());
    supervisor.spawn("the keys that must not leave", async move {
        renewed.follow(&stop).await;
        // Whoever told it may end first.
        stop.cancelled().await;
    });
    if let Some(every) = config.forge.tells_every() {
        let mut teller = Teller { ledger: ledger.clone(), clock: clock.clone(), every };
        let (own, pulse) = (reconcilers.register("progress", every), vitals.pulse("progress", WORKED_WITHIN));
        let stop = shutdown.clone();
        supervisor.spawn("the teller of progress", async move { own.work(&mut teller, &pulse, &stop).await });
    }
    let (own, pulse) = (reconcilers.register("accounts", SWEPT_EVERY), vitals.pulse("accounts", WORKED_WITHIN));
    let (mut sweep, stop) = (Sweep(door), shutdown.clone());
    supervisor.spawn("the sweep of sessions", async move { own.work(&mut sweep, &pulse, &stop).await });
    match broker {
        Some(broker) => {
            let foreign = ForeignIntake {
                inbox: broker.inbox.clone(),
                ledger: ledger.clone(),
                clock,
                ids: ids.clone(),
                pulse: vitals.pulse("foreign messages", RECEIVED_WITHIN),
            };
            let gauges = BrokerGauges::register(&registry, &broker)?;
            spawn_broker(broker, ledger.clone(), foreign, gauges, &reconcilers, &vitals, supervisor);
        }
        // Whoever connects one later is told what happens from then on.
        None => forget_unannounced(&*ledger).await.context("while opening the ledger")?,
    }
    let (watched, probed, stop) = (health.clone(), ledger.clone(), shutdown.clone());
    supervisor.spawn("the watch over the ledger", async move { watched.watch(&*probed, &metrics, &stop).await });
    let exchange = Exchange {
        intake: intake_options,
        publishing,
        api: api.clone(),
        config_file: config_file.map(Utf8Path::to_owned),
    };
    let (mut router, mut internal_address) = (fettle_api::router(api.clone()), None);
    if let Some(internal) = internal {
        let address = internal.local_addr().context("while listening for workers")?;
        info!("the worker API listens on {address}");
        let internal_router = fettle_api::internal_router(api.clone());
        let serving = fettle_api::serve(internal, internal_router, shutdown.clone(), supervisor.tasks().clone());
        supervisor.spawn("the worker API", serving);
        (router, internal_address) = (fettle_api::public_router(api), Some(address));
    }
    supervisor.spawn("the API", fettle_api::serve(listener, router, shutdown, supervisor.tasks().clone()));
    health.serving();
    if let Some(token) = &setup_token {
        tell_setup_token(token, address)?;
    }
    let running = Running { address, internal_address, ledger, ids, words, vitals, exchange, added, store, health };
    running.write_addresses(data)?;
    Ok(running)
}

/// Who else says who people are. It is asked when somebody wants to sign in.
fn foreign(oidc: &config::Oidc, credentials: &Credentials) -> Result<Foreign> {
    let provider = Provider::new(ProviderOptions {
        issuer: oidc.issuer.clone(),
        client_id: oidc.client_id.clone(),
        client_secret: credentials.oidc_secret.clone(),
        redirect_url: format!("{}/api/auth/oidc/callback", oidc.public_url.trim_end_matches('/')),
    });
    Ok(Foreign {
        provider: Arc::new(provider.context("auth.oidc")?),
        name: oidc.name.clone(),
        allowed: Allowed { domains: oidc.allowed_domains.clone(), emails: oidc.allowed_emails.clone() },
        role: oidc.role,
    })
}

/// To the terminal alone: what is logged is kept and collected, and this makes an admin. After the `#`, browsers send it to
/// nobody.
fn tell_setup_token(token: &SecretString, listening: SocketAddr) -> Result<()> {
    use std::io::Write as _;
    let (token, address) = (token.expose_secret(), reached_at(listening));
    writeln!(std::io::stderr(), "There is no admin yet. Make the first one, once: http://{address}/setup#token={token}")
        .context("while telling the setup token")
}

/// Where a browser of this machine finds what listens there.
fn reached_at(listening: SocketAddr) -> SocketAddr {
    let ip = match listening.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listening.port())
}

fn slots(config: &Config) -> Slots {
    let models = &config.gateway.models;
    let limited = models.iter().filter_map(|model| Some((model.name.clone(), model.parallel?.into())));
    Slots {
        per_repository: config.agent.per_repository.into(),
        per_model: limited.collect(),
        default_model: models.first().map(|model| model.name.clone()).unwrap_or_default(),
    }
}

/// What goes to the broker, and what comes from it.
fn spawn_broker(
    broker: Broker,
    ledger: Arc<dyn Ledger>,
    foreign: ForeignIntake,
    gauges: BrokerGauges,
    reconcilers: &Arc<Reconcilers>,
    vitals: &Arc<Vitals>,
    supervisor: &Supervisor,
) {
    let (measured, pulse) = (broker.clone(), vitals.pulse("broker's depths", MEASURED_WITHIN));
    let stop = supervisor.shutdown().clone();
    supervisor.spawn("the broker's depths", async move { measure(measured, gauges, pulse, &stop).await });
    let stop = supervisor.shutdown().clone();
    supervisor.spawn("foreign messages", async move { foreign.work(&stop).await });
    let (pulse, stop) = (vitals.pulse("ringer", RUNG_WITHIN), supervisor.shutdown().clone());
    supervisor.spawn("the ringer", ring(ledger.clone(), broker.bell, reconcilers, pulse, stop));
    let (pulse, stop) = (vitals.pulse("announcer", ANNOUNCED_WITHIN), supervisor.shutdown().clone());
    supervisor.spawn("the announcer", announce(ledger, broker.announcer, reconcilers, pulse, stop));
}

async fn forget_unannounced(ledger: &dyn Ledger) -> L<()> {
    let newest = *ledger.newest_event().borrow();
    ledger.set_announced(ledger.announced().await?, newest).await?;
    Ok(())
}

/// Reads deliveries as GitHub writes them.
struct Webhooks;

impl ReadWebhook for Webhooks {
    fn read(&self, event: &str, body: &[u8]) -> Result<Incoming, String> {
        fettle_github::webhook::normalise(event, body).map_err(|error| chain(&error))
    }
}
