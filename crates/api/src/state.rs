//! What the handlers work with, put together once by the composition root.

use std::ops::Deref;
use std::sync::Arc;

use fettle_app::adding::Adding;
use fettle_app::auditing::AuditForge;
use fettle_app::doorkeeping::Doorkeeper;
use fettle_app::live::Live;
use fettle_app::ports::clock::{Clock, IdSource};
use fettle_app::ports::ledger::Ledger;
use fettle_app::ports::model::TryModel;
use fettle_app::ports::pods::ShowPods;
use fettle_app::publishing::PublishOptions;
use fettle_app::reconciling::Reconcilers;
use fettle_app::showing::ShowChange;
use fettle_app::submit::SubmitTask;
use fettle_app::words::Ear;
use fettle_domain::forwarded::Network;
use prometheus::Registry;
use secrecy::SecretString;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::Key;
use crate::auth::limits::Limits;
use crate::feeds::Feeds;
use crate::health::Health;
use crate::inference_client::InferenceClient;
use crate::metrics::HttpMetrics;
use crate::problem::{Code, Problem};
use crate::webhook::Verifier;

/// Blobs in flight at once: up to 64 MiB of memory each.
pub(crate) const MAX_BLOBS_IN_FLIGHT: usize = 4;
/// Large webhook bodies in memory at once: each is read whole, up to 25 MiB, before its signature can be checked.
pub(crate) const MAX_LARGE_WEBHOOKS: usize = 4;

/// What the API needs from the composition root.
pub struct Parts {
    pub ledger: Arc<dyn Ledger>,
    /// What models say now.
    pub words: Arc<Ear>,
    pub submit: Arc<dyn SubmitTask>,
    pub audit: Arc<dyn AuditForge>,
    pub changes: Arc<dyn ShowChange>,
    pub clock: Arc<dyn Clock>,
    pub ids: Arc<dyn IdSource>,
    /// Absent: there are no accounts, and the admin key alone opens the API.
    pub door: Option<Arc<Doorkeeper>>,
    /// `server.trusted_proxies`.
    pub trusted_proxies: Vec<Network>,
    /// Of `admin.key`.
    pub admin_key: SecretString,
    /// Of `auth.worker_key_file`.
    pub worker_key: SecretString,
    /// Of `auth.scale_key_file`.
    pub scale_key: Option<SecretString>,
    /// Absent: webhooks are refused.
    pub webhook: Option<WebhookSecrets>,
    pub health: Arc<Health>,
    pub reconcilers: Arc<Reconcilers>,
    pub metrics: HttpMetrics,
    /// All metrics of the process, for `/metrics`.
    pub registry: Registry,
    /// Absent: this machine has no inference process to ask.
    pub inference: Option<InferenceClient>,
    /// Absent: there is no cluster, or nobody may look at pods.
    pub pods: Option<Arc<dyn ShowPods>>,
    /// What is searched for in what leaves is searched for in logs.
    pub publishing: Live<PublishOptions>,
    pub about: About,
    /// Absent: nothing can be added to the configuration.
    pub adding: Option<Arc<Adding>>,
    /// Absent: there is no gateway to ask.
    pub tries: Option<Arc<dyn TryModel>>,
    /// What a gateway shows that wants to know the models that were added. Absent: none may.
    pub gateway_key: Option<SecretString>,
    /// Workers can make that as well, and so it is told no keys of models.
    pub workers_are_gateways: bool,
    /// The program's version, as health and the start page tell it.
    pub version: &'static str,
    /// Ends event streams and long polls, so that the server can drain.
    pub shutdown: CancellationToken,
}

/// What the process was configured with, as far as it is shown. Holds no secret.
#[derive(Debug, Clone, Default)]
pub struct About {
    /// Absent: none was read.
    pub config_file: Option<String>,
    pub settings: Vec<Setting>,
    /// Those that are looked at for labels because they are named.
    pub repositories: Vec<String>,
    /// The first is used unless a Task names another.
    pub models: Vec<ConfiguredModel>,
    pub forge: AboutForge,
}

#[derive(Debug, Clone, Default)]
pub struct AboutForge {
    /// Of its API.
    pub address: String,
    /// The label that asks for work.
    pub label: String,
    /// Webhooks are accepted.
    pub webhooks: bool,
    /// Labels are looked for in whatever the configured credentials reach, or in repositories that it names.
    pub looks: bool,
}

#[derive(Debug, Clone)]
pub struct Setting {
    pub key: String,
    pub value: String,
    /// A reload exchanges it.
    pub live: bool,
}

#[derive(Debug, Clone)]
pub struct ConfiguredModel {
    pub name: String,
    pub kind: String,
    /// On this machine.
    pub here: bool,
    /// Without user and password.
    pub server: Option<String>,
    pub known_as: Option<String>,
    pub context_tokens: u64,
    pub parallel: Option<u16>,
    pub with_key: bool,
    pub pinned: bool,
}

/// Two secrets, so that one can be replaced without losing a delivery.
pub struct WebhookSecrets {
    pub current: SecretString,
    pub previous: Option<SecretString>,
}

/// Shared by all handlers; cheap to clone.
#[derive(Clone)]
pub struct ApiState(Arc<Inner>);

pub struct Inner {
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) words: Arc<Ear>,
    pub(crate) submit: Arc<dyn SubmitTask>,
    pub(crate) audit: Arc<dyn AuditForge>,
    pub(crate) changes: Arc<dyn ShowChange>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) ids: Arc<dyn IdSource>,
    pub(crate) door: Option<Arc<Doorkeeper>>,
    pub(crate) trusted_proxies: Vec<Network>,
    pub(crate) limits: Limits,
    /// What is carried out though nobody waits for its answer any more: a write with its line in the audit log. Whoever asked waits
    /// for it, and each ends within the time of a request.
    pub(crate) noting: TaskTracker,
    pub(crate) admin_key: Key,
    pub(crate) worker_key: Key,
    pub(crate) scale_key: Option<Key>,
    pub(crate) webhook: Live<Option<Verifier>>,
    pub(crate) health: Arc<Health>,
    pub(crate) reconcilers: Arc<Reconcilers>,
    pub(crate) metrics: HttpMetrics,
    pub(crate) registry: Registry,
    pub(crate) inference: Option<InferenceClient>,
    pub(crate) pods: Option<Arc<dyn ShowPods>>,
    pub(crate) publishing: Live<PublishOptions>,
    pub(crate) about: Live<About>,
    pub(crate) adding: Option<Arc<Adding>>,
    pub(crate) tries: Option<Arc<dyn TryModel>>,
    pub(crate) gateway_key: Option<Key>,
    pub(crate) workers_are_gateways: bool,
    pub(crate) version: &'static str,
    pub(crate) shutdown: CancellationToken,
    pub(crate) feeds: Arc<Feeds>,
    pub(crate) blobs_in_flight: Semaphore,
    pub(crate) large_webhooks: Semaphore,
}

impl ApiState {
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(Inner {
            ledger: parts.ledger,
            words: parts.words,
            submit: parts.submit,
            audit: parts.audit,
            changes: parts.changes,
            clock: parts.clock,
            ids: parts.ids,
            door: parts.door,
            trusted_proxies: parts.trusted_proxies,
            limits: Limits::default(),
            noting: TaskTracker::new(),
            admin_key: Key::new(&parts.admin_key),
            worker_key: Key::new(&parts.worker_key),
            scale_key: parts.scale_key.as_ref().map(Key::new),
            webhook: Live::new(parts.webhook.as_ref().map(Verifier::new)),
            health: parts.health,
            reconcilers: parts.reconcilers,
            metrics: parts.metrics,
            registry: parts.registry,
            inference: parts.inference,
            pods: parts.pods,
            publishing: parts.publishing,
            about: Live::new(parts.about),
            adding: parts.adding,
            tries: parts.tries,
            gateway_key: parts.gateway_key.as_ref().map(Key::new),
            workers_are_gateways: parts.workers_are_gateways,
            version: parts.version,
            shutdown: parts.shutdown,
            feeds: Arc::default(),
            blobs_in_flight: Semaphore::new(MAX_BLOBS_IN_FLIGHT),
            large_webhooks: Semaphore::new(MAX_LARGE_WEBHOOKS),
        }))
    }

    pub(crate) fn adding(&self) -> Result<&Arc<Adding>, Problem> {
        let none = || Problem::new(Code::NotConfigured, "Nothing can be added here beside the configuration.");
        self.adding.as_ref().ok_or_else(none)
    }

    /// What is shown from now on.
    pub fn set_about(&self, about: About) {
        self.about.set(about);
    }

    /// Deliveries that come from now on are checked with these.
    pub fn set_webhook_secrets(&self, secrets: Option<&WebhookSecrets>) {
        self.webhook.set(secrets.map(Verifier::new));
    }
}

impl Deref for ApiState {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}
