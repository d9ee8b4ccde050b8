//! What a reload exchanges in a running dashboard, and from which keys each piece is made.

use std::sync::{Arc, Mutex, PoisonError};

use camino::Utf8PathBuf;
use fettle_api::ApiState;
use fettle_app::adding::Added;
use fettle_app::intake::IntakeOptions;
use fettle_app::live::Live;
use fettle_app::publishing::PublishOptions;
use fettle_domain::intake::IntakeRules;
use fettle_domain::path_policy::PathPolicy;
use fettle_domain::secret::KnownSecrets;
use fettle_runtime::config::Config;
use fettle_runtime::reload::{Keys, LOG};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::Credentials;
use crate::about::about;

/// The keys of a dashboard.
pub const KEYS: Keys = Keys {
    live: &[
        LOG,
        "forge.label",
        "forge.label_mode",
        "forge.allowed_bots",
        "forge.daily_tasks",
        "agent.needs",
        "forge.paths",
        "forge.webhook_secret_file",
        "forge.webhook_secret_previous_file",
    ],
    read: &[
        "server",
        "store",
        "transport",
        "agent.per_repository",
        "agent.needs",
        "forge",
        "gateway",
        "auth",
        "telemetry",
    ],
};

/// The pieces of a running dashboard that can be exchanged.
#[derive(Clone)]
pub struct Exchange {
    pub(crate) intake: Live<IntakeOptions>,
    pub(crate) publishing: Publishing,
    pub(crate) api: ApiState,
    pub(crate) config_file: Option<Utf8PathBuf>,
}

impl Exchange {
    /// Whatever begins from now on goes by these.
    pub fn apply(&self, config: &Config, credentials: &Credentials) {
        self.intake.set(intake_options(config));
        self.publishing.set(Told::of(config, credentials));
        self.api.set_about(about(config, self.config_file.as_deref()));
        self.api.set_webhook_secrets(credentials.webhook_secrets().as_ref());
    }
}

pub(crate) fn intake_options(config: &Config) -> IntakeOptions {
    let forge = &config.forge;
    let rules = IntakeRules {
        label: forge.label.clone(),
        label_mode: forge.label_mode,
        allowed_bots: forge.allowed_bots.clone(),
    };
    IntakeOptions { rules, daily_tasks: forge.daily_tasks, needs: config.agent.needs.clone() }
}

/// What the publisher goes by: the configuration, and the keys that people added.
#[derive(Clone)]
pub(crate) struct Publishing {
    pub(crate) options: Live<PublishOptions>,
    told: Arc<Mutex<Told>>,
    added: watch::Receiver<Arc<Added>>,
}

pub(crate) struct Told {
    paths: PathPolicy,
    trigger_label: String,
    secrets: Vec<(&'static str, SecretString)>,
}

impl Told {
    pub(crate) fn of(config: &Config, credentials: &Credentials) -> Self {
        Self {
            paths: config.forge.paths.clone(),
            trigger_label: config.forge.label.clone(),
            secrets: credentials.known(),
        }
    }
}

impl Publishing {
    pub(crate) fn new(told: Told, added: watch::Receiver<Arc<Added>>) -> Self {
        let publishing =
            Self { options: Live::new(PublishOptions::default()), told: Arc::new(Mutex::new(told)), added };
        publishing.renew();
        publishing
    }

    fn set(&self, told: Told) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = told;
        self.renew();
    }

    fn renew(&self) {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let added = self.added.borrow();
        let configured = told.secrets.iter().map(|(name, secret)| (*name, secret.expose_secret()));
        let added = added.secrets().map(|(name, secret)| (name, secret.expose_secret()));
        self.options.set(PublishOptions {
            paths: told.paths.clone(),
            secrets: KnownSecrets::new(configured.chain(added)),
            trigger_label: told.trigger_label.clone(),
        });
    }

    /// Until `stop`: whatever key is added is searched for in what leaves.
    pub(crate) async fn follow(mut self, stop: &CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = self.added.changed() => match changed {
                    Ok(()) => self.renew(),
                    Err(_) => return,
                },
            }
        }
    }
}
