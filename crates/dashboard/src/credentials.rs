//! Every secret of the dashboard, read once from its file.

use anyhow::{Context as _, Result, bail};
use camino::Utf8Path;
use fettle_api::WebhookSecrets;
use fettle_app::ports::clock::IdSource;
use fettle_app::run_token::RunTokenKey;
use fettle_github::GitHubAuth;
use fettle_runtime::config::Config;
use fettle_runtime::data::DataDir;
use fettle_runtime::secrets;
use secrecy::{ExposeSecret as _, SecretString};

pub struct Credentials {
    pub admin_key: SecretString,
    /// The admin key was made at this start.
    pub first_start: bool,
    pub worker_key: SecretString,
    run_token_key: Option<SecretString>,
    pub scale_key: Option<SecretString>,
    pub webhook: Option<SecretString>,
    pub webhook_previous: Option<SecretString>,
    read_token: Option<SecretString>,
    write_token: Option<SecretString>,
    app_key: Option<SecretString>,
    model_keys: Vec<SecretString>,
    broker_password: Option<SecretString>,
    worker_broker_password: Option<SecretString>,
    store_password: Option<SecretString>,
    pub(crate) oidc_secret: Option<SecretString>,
}

impl Credentials {
    /// Reads all files that the configuration names; makes the admin and the worker key where they are missing.
    pub fn load(config: &Config, data: &DataDir, ids: &dyn IdSource) -> Result<Self> {
        let forge = &config.forge;
        let (admin_key, first_start) = match &config.auth.admin_key_file {
            Some(file) => (shared(file)?, false),
            None => secrets::read_or_make(&data.admin_key(), random(ids))?,
        };
        let worker_key = match &config.auth.worker_key_file {
            Some(file) => shared(file)?,
            None => secrets::read_or_make(&data.worker_key(), random(ids))?.0,
        };
        let optional = |file: &Option<camino::Utf8PathBuf>| file.as_deref().map(read).transpose();
        let strong = |file: &Option<camino::Utf8PathBuf>| file.as_deref().map(shared).transpose();
        let credentials = Self {
            admin_key,
            first_start,
            worker_key,
            run_token_key: strong(&config.gateway.run_token_key_file)?,
            scale_key: strong(&config.auth.scale_key_file)?,
            webhook: strong(&forge.webhook_secret_file)?,
            webhook_previous: strong(&forge.webhook_secret_previous_file)?,
            read_token: optional(&forge.read_token_file)?,
            write_token: optional(&forge.write_token_file)?,
            app_key: optional(&forge.app_key_file)?,
            model_keys: config
                .gateway
                .models
                .iter()
                .filter_map(|m| m.api_key_file.as_deref())
                .map(read)
                .collect::<Result<_>>()?,
            broker_password: optional(&config.transport.password_file)?,
            worker_broker_password: optional(&config.transport.worker_password_file)?,
            store_password: optional(&config.store.password_file)?,
            oidc_secret: config.auth.oidc.as_ref().map_or(Ok(None), |oidc| optional(&oidc.client_secret_file))?,
        };
        credentials.check()?;
        Ok(credentials)
    }

    fn check(&self) -> Result<()> {
        let same = |a: &Option<SecretString>, b: &Option<SecretString>| match (a, b) {
            (Some(a), Some(b)) => a.expose_secret() == b.expose_secret(),
            _ => false,
        };
        if same(&self.read_token, &self.write_token) {
            bail!(
                "forge.read_token_file and forge.write_token_file hold the same token; workers need one of their own that can only read"
            );
        }
        Ok(())
    }

    /// What tokens of Runs are signed with, and checked with in this process.
    pub fn run_token_key(&self) -> Result<RunTokenKey> {
        RunTokenKey::choose(self.run_token_key.as_ref(), &self.worker_key).context("gateway.run_token_key_file")
    }

    /// How the forge is asked.
    pub fn forge_auth(&self, config: &Config) -> GitHubAuth {
        match (config.forge.app_id, &self.app_key) {
            (Some(app_id), Some(key)) => GitHubAuth::App { app_id, private_key: key.clone() },
            _ if self.read_token.is_some() || self.write_token.is_some() => {
                GitHubAuth::Tokens { read: self.read_token.clone(), write: self.write_token.clone() }
            }
            _ => GitHubAuth::Anonymous,
        }
    }

    /// Whether the configuration says with what the forge is asked; else people may enter tokens.
    pub(crate) fn reaches_forge(&self, config: &Config) -> bool {
        !matches!(self.forge_auth(config), GitHubAuth::Anonymous)
    }

    /// Whether anything can be written to the forge.
    pub fn can_write(&self, config: &Config) -> bool {
        self.write_token.is_some() || (config.forge.app_id.is_some() && self.app_key.is_some())
    }

    /// Keys of secrets that differ in `fresh` and are read at start only.
    pub fn needing_restart(&self, fresh: &Self) -> Vec<String> {
        let one = |secret: &SecretString| Some(secret.expose_secret().to_owned());
        let optional = |secret: &Option<SecretString>| secret.as_ref().and_then(one);
        let all = |secrets: &[SecretString]| secrets.iter().filter_map(one).collect::<Vec<_>>();
        let differing = [
            ("the admin key", one(&self.admin_key) != one(&fresh.admin_key)),
            ("auth.worker_key_file", one(&self.worker_key) != one(&fresh.worker_key)),
            ("gateway.run_token_key_file", optional(&self.run_token_key) != optional(&fresh.run_token_key)),
            ("auth.scale_key_file", optional(&self.scale_key) != optional(&fresh.scale_key)),
            ("forge.read_token_file", optional(&self.read_token) != optional(&fresh.read_token)),
            ("forge.write_token_file", optional(&self.write_token) != optional(&fresh.write_token)),
            ("forge.app_key_file", optional(&self.app_key) != optional(&fresh.app_key)),
            ("transport.password_file", optional(&self.broker_password) != optional(&fresh.broker_password)),
            ("store.password_file", optional(&self.store_password) != optional(&fresh.store_password)),
            ("auth.oidc.client_secret_file", optional(&self.oidc_secret) != optional(&fresh.oidc_secret)),
            ("gateway.models", all(&self.model_keys) != all(&fresh.model_keys)),
        ];
        differing.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key.to_owned()).collect()
    }

    /// What deliveries are checked with.
    pub(crate) fn webhook_secrets(&self) -> Option<WebhookSecrets> {
        let current = self.webhook.clone()?;
        Some(WebhookSecrets { current, previous: self.webhook_previous.clone() })
    }

    /// All of them with a name, to be searched for in whatever leaves.
    pub fn known(&self) -> Vec<(&'static str, SecretString)> {
        let named = [
            ("admin key", Some(&self.admin_key)),
            ("worker key", Some(&self.worker_key)),
            ("key of run tokens", self.run_token_key.as_ref()),
            ("scale key", self.scale_key.as_ref()),
            ("webhook secret", self.webhook.as_ref()),
            ("previous webhook secret", self.webhook_previous.as_ref()),
            ("read token", self.read_token.as_ref()),
            ("write token", self.write_token.as_ref()),
            ("app key", self.app_key.as_ref()),
            ("broker password", self.broker_password.as_ref()),
            ("workers' broker password", self.worker_broker_password.as_ref()),
            ("database password", self.store_password.as_ref()),
            ("sign-in provider's secret", self.oidc_secret.as_ref()),
        ];
        let named = named.into_iter().filter_map(|(name, secret)| Some((name, secret?.clone())));
        named.chain(self.model_keys.iter().map(|key| ("model key", key.clone()))).collect()
    }
}

fn read(path: &Utf8Path) -> Result<SecretString> {
    secrets::read(path).context("while reading the secrets that the configuration names")
}

/// One that others know as well.
fn shared(path: &Utf8Path) -> Result<SecretString> {
    secrets::read_strong(path).context("while reading the secrets that the configuration names")
}

/// 256 bits from two ids' random parts and their times; the random parts alone hold 148 bits.
fn random(ids: &dyn IdSource) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..16].copy_from_slice(ids.uuid().as_bytes());
    bytes[16..].copy_from_slice(ids.uuid().as_bytes());
    bytes
}
