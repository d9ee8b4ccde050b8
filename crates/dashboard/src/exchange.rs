//! What a reload exchanges in a running dashboard, and from which keys each piece is made.

use camino::Utf8PathBuf;
use fettle_api::ApiState;
use fettle_app::intake::IntakeOptions;
use fettle_app::live::Live;
use fettle_app::publishing::PublishOptions;
use fettle_domain::intake::IntakeRules;
use fettle_runtime::config::Config;
use fettle_runtime::reload::{Keys, LOG};

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
    pub(crate) publishing: Live<PublishOptions>,
    pub(crate) api: ApiState,
    pub(crate) config_file: Option<Utf8PathBuf>,
}

impl Exchange {
    /// Whatever begins from now on goes by these.
    pub fn apply(&self, config: &Config, credentials: &Credentials) {
        self.intake.set(intake_options(config));
        self.publishing.set(publish_options(config, credentials));
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

pub(crate) fn publish_options(config: &Config, credentials: &Credentials) -> PublishOptions {
    PublishOptions {
        paths: config.forge.paths.clone(),
        secrets: credentials.known(),
        trigger_label: config.forge.label.clone(),
    }
}
