//! `fettle.toml`: the same file on every deployment. Unknown keys are refused with their line; `FETTLE_<SECTION>__<KEY>`
//! overrides single keys; a secret is always the path of a file.

use camino::{Utf8Path, Utf8PathBuf};
use fettle_app::ports::sandbox::SandboxLevel;
use fettle_domain::access::Role;
use fettle_domain::forwarded::Network;
use fettle_domain::label::{Labels, Need};
use fettle_domain::path_policy::PathPolicy;
use fettle_domain::repo::RepoName;
use fettle_domain::task::Mode;
use fettle_domain::turn::PER_REPOSITORY;
use serde::{Deserialize, Serialize};

use crate::environment::Environment;
use crate::reload::Values;
use crate::telemetry::LogFormat;
use crate::units::{Size, Span};

mod gateway;
mod intake;
mod store;
mod transport;

pub use gateway::{Conformance, EngineConfig, Gateway, Gpu, GpuMode, ModelConfig, ModelKind, RecipeConfig};
pub use intake::IntakeMode;
pub use store::{Store, Tls};
pub use transport::{BrokerKind, Transport, kind_of};

/// Prefix of the variables that override keys; the double underscore keeps clear of what Kubernetes injects.
const PREFIX: &str = "FETTLE_";

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub server: Server,
    pub store: Store,
    pub transport: Transport,
    pub forge: Forge,
    pub agent: Agent,
    pub gateway: Gateway,
    pub gpu: Gpu,
    pub auth: Auth,
    pub telemetry: Telemetry,
}

/// Where the dashboard listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Address of webhooks and API, and with `fettle up` of health and metrics. Behind a reverse proxy, leave it on loopback.
    pub listen: String,
    /// Address of the worker API, health and metrics; only `fettle-dashboard` opens it, `fettle up` needs none.
    pub internal_listen: String,
    /// Addresses and networks of reverse proxies whose `X-Forwarded-For` says who asks; from others it is ignored. Limits, lock-outs,
    /// sessions and the audit log go by it.
    pub trusted_proxies: Vec<Network>,
    /// In a cluster: the labels that workers' pods have, as in `app.kubernetes.io/component=worker`; people see these pods and their
    /// logs. The chart sets it, with `dashboard.workerView.enabled`; without it no pod is looked at.
    pub worker_pods: Option<String>,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8080".into(),
            internal_listen: "127.0.0.1:8081".into(),
            trusted_proxies: Vec::new(),
            worker_pods: None,
        }
    }
}

/// The forge and what asks for work there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Forge {
    /// The API's base URL; change it for GitHub Enterprise Server.
    pub api_url: String,
    /// Hosts that repository URLs may name.
    pub hosts: Vec<String>,
    /// The GitHub App's id; with it, tokens are minted per repository and hour.
    pub app_id: Option<u64>,
    /// The App's private key (PEM).
    pub app_key_file: Option<Utf8PathBuf>,
    /// A personal access token that can read; the worker's.
    pub read_token_file: Option<Utf8PathBuf>,
    /// A personal access token that can write contents, pull requests and issues; the publisher's alone.
    pub write_token_file: Option<Utf8PathBuf>,
    /// How work comes in: `webhook`, or `poll` where the forge cannot reach this host.
    pub intake: IntakeMode,
    /// How often repositories are looked at for labels that no webhook told of; default: `60s`, below webhooks `10m`.
    pub poll_every: Option<Span>,
    /// The repositories that are looked at; default: where the App is installed, or with `poll` where the token may write.
    pub poll_repositories: Vec<RepoName>,
    /// How often an App's failed webhook deliveries are asked for again; default: `5m`.
    pub redeliver_every: Option<Span>,
    /// The webhook's secret. Without it, webhooks are refused.
    pub webhook_secret_file: Option<Utf8PathBuf>,
    /// The secret before the last change, accepted as well while you rotate.
    pub webhook_secret_previous_file: Option<Utf8PathBuf>,
    /// The label that asks for work.
    pub label: String,
    /// The mode of a Task that the label asked for.
    pub label_mode: Mode,
    /// How often the comment on an issue may be edited while its Task is at work; `0s`: only the result is told.
    pub progress_every: Span,
    /// Numeric ids of bots that may trigger; all others are ignored.
    pub allowed_bots: Vec<u64>,
    /// Tasks that webhooks and labels may open in 24 hours.
    pub daily_tasks: u64,
    /// Rules beyond the built-in ones on which paths a patch may touch.
    pub paths: PathPolicy,
}

impl Default for Forge {
    fn default() -> Self {
        Self {
            api_url: "https://api.github.com".into(),
            hosts: vec!["github.com".into()],
            app_id: None,
            app_key_file: None,
            read_token_file: None,
            write_token_file: None,
            intake: IntakeMode::Webhook,
            poll_every: None,
            poll_repositories: Vec::new(),
            redeliver_every: None,
            webhook_secret_file: None,
            webhook_secret_previous_file: None,
            label: "ai-help".into(),
            label_mode: Mode::Quickfix,
            progress_every: Span(fettle_domain::progress::EVERY),
            allowed_bots: Vec::new(),
            daily_tasks: fettle_app::intake::DAILY_TASKS,
            paths: PathPolicy::default(),
        }
    }
}

/// The longest that a Run may take: whoever goes on with it for longer waits for nothing.
const LONGEST_DRAIN: Span = Span(std::time::Duration::from_secs(4 * 60 * 60));

/// How workers work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Agent {
    /// Runs at a time in this process.
    pub workers: u16,
    /// What this worker has and others have not, as in `["gpu", "arm64"]`.
    pub labels: Labels,
    /// Which repositories' Runs need a worker with which labels.
    pub needs: Vec<Need>,
    /// Tasks of one repository that are worked on at a time, by all workers together.
    pub per_repository: u16,
    /// The dashboard's internal address, for `fettle-worker`.
    pub dashboard_url: String,
    /// How long a `fettle-worker` that is told to end goes on with the Run that it holds, before it lets go of it. At most what
    /// whoever ends it waits, less 60 s.
    pub drain_finish: Span,
    /// Mirrors, prepared environments and workspaces; default: inside the data folder.
    pub cache_dir: Option<Utf8PathBuf>,
    pub sandbox: Sandbox,
}

impl Default for Agent {
    fn default() -> Self {
        Self {
            workers: 1,
            labels: Labels::default(),
            needs: Vec::new(),
            per_repository: PER_REPOSITORY,
            dashboard_url: "http://127.0.0.1:8081".into(),
            drain_finish: Span(std::time::Duration::ZERO),
            cache_dir: None,
            sandbox: Sandbox::default(),
        }
    }
}

impl Agent {
    /// A sentence for each need that workers of this configuration do not meet; others may.
    pub fn unmet_needs(&self) -> Vec<String> {
        let unmet = self.needs.iter().filter(|need| !self.labels.meet(&need.labels));
        let told = unmet.map(|need| {
            let of = String::from(need.repositories.clone());
            format!(
                "Runs of {of} need a worker with `{}`, and agent.labels is `{}`: they wait for another worker",
                need.labels, self.labels
            )
        });
        told.collect()
    }
}

/// The walls around everything a model or a repository runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sandbox {
    /// The weakest level on which Runs are accepted: `full` or `landlock`.
    pub min_level: SandboxLevel,
    /// The network of environment preparation (never of the model): `none`, `proxy` or `host`.
    pub prepare_network: PrepareNetwork,
    /// Host names that the preparation proxy connects to: your package registries.
    pub prepare_hosts: Vec<String>,
    pub memory: Size,
    pub processes: u32,
    pub workspace: Size,
    pub temporary: Size,
    /// The longest run of a whole test suite.
    pub suite_time: Span,
}

impl Default for Sandbox {
    fn default() -> Self {
        Self {
            min_level: SandboxLevel::Landlock,
            prepare_network: PrepareNetwork::Proxy,
            prepare_hosts: Vec::new(),
            memory: Size(8 << 30),
            processes: 512,
            workspace: Size(4 << 30),
            temporary: Size(2 << 30),
            suite_time: Span(std::time::Duration::from_secs(30 * 60)),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrepareNetwork {
    None,
    #[default]
    Proxy,
    Host,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Auth {
    /// The key that workers show to the dashboard; default: `worker.key` in the data folder, made at the first start.
    pub worker_key_file: Option<Utf8PathBuf>,
    /// The key that may ask `/v1/scale` how many workers are of use, and nothing else.
    pub scale_key_file: Option<Utf8PathBuf>,
    /// The key of people and their tools; absent: one that the first start writes into the data folder. Several dashboards
    /// need the same.
    pub admin_key_file: Option<Utf8PathBuf>,
    /// The keys that secrets which people enter in the browser are sealed with, one a line, the newest last; default: `secrets.key` in
    /// the data folder. With a database, where there may be several dashboards, none is made, and all of them need the same file.
    pub secrets_key_file: Option<Utf8PathBuf>,
    /// Whether people may make accounts for themselves, as viewers: `closed` or `open`.
    pub registration: Registration,
    /// A provider that signs people in, by OpenID Connect.
    pub oidc: Option<Oidc>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Oidc {
    /// As the sign-in page shows it.
    pub name: String,
    /// To the letter as the provider writes it.
    pub issuer: String,
    pub client_id: String,
    /// Absent for a public client.
    pub client_secret_file: Option<Utf8PathBuf>,
    /// Where people open Fettle, such as `https://fettle.example.org`. The provider has to know
    /// `<public_url>/api/auth/oidc/callback` as the address to come back to.
    pub public_url: String,
    /// Who has a verified e-mail address of one of these domains may sign in.
    #[serde(default)]
    pub allowed_domains: Vec<String>,
    /// And who has one of these addresses.
    #[serde(default)]
    pub allowed_emails: Vec<String>,
    /// Of whoever comes for the first time.
    #[serde(default = "least_role")]
    pub role: Role,
}

fn least_role() -> Role {
    Role::Viewer
}

impl Oidc {
    fn check(&self) -> Result<(), String> {
        if self.allowed_domains.is_empty() && self.allowed_emails.is_empty() {
            return Err("auth.oidc lets nobody in: set allowed_domains or allowed_emails".into());
        }
        if let Some(odd) = self.allowed_domains.iter().find(|domain| domain.is_empty() || domain.contains(['@', '*'])) {
            return Err(format!("auth.oidc.allowed_domains: `{odd}` is not a domain such as example.org"));
        }
        for (key, text) in [("name", &self.name), ("client_id", &self.client_id)] {
            if text.trim().is_empty() {
                return Err(format!("auth.oidc.{key} is empty"));
            }
        }
        for (key, url) in [("issuer", &self.issuer), ("public_url", &self.public_url)] {
            let plain = ["http://127.", "http://localhost", "http://[::1]"];
            if !url.starts_with("https://") && !plain.iter().any(|here| url.starts_with(here)) {
                return Err(format!("auth.oidc.{key}: `{url}` is not an address that begins with https://"));
            }
            if url.contains(['@', '?', '#']) {
                return Err(format!("auth.oidc.{key} holds more than an address"));
            }
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Registration {
    #[default]
    Closed,
    Open,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// What is logged, as in `info,fettle_git=debug`.
    pub log: String,
    pub format: LogFormat,
    /// Where traces of Tasks are sent, by OTLP over HTTP, as in `http://127.0.0.1:4318`; without it none are made. Credentials
    /// are the business of a collector beside Fettle, which hands on.
    pub otlp_endpoint: Option<String>,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { log: "info".into(), format: LogFormat::Auto, otlp_endpoint: None }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("could not read {path}")]
    Read {
        path: Utf8PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The text names line and key.
    #[error("{path}: {what}")]
    Refused { path: String, what: String },
    #[error("the variable {name} is refused: {what}")]
    Variable { name: String, what: String },
    #[error("{0}")]
    Invalid(String),
}

impl Config {
    /// The file (or, without one, the defaults) with the environment's overrides, checked.
    pub fn load(path: Option<&Utf8Path>, environment: &Environment) -> Result<Self, ConfigError> {
        let (name, text) = match path {
            Some(path) => {
                let text = fs_err::read_to_string(path)
                    .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
                (path.to_string(), text)
            }
            None => ("the built-in configuration".to_owned(), String::new()),
        };
        let mut config = Self::parse(&name, &text, environment)?;
        let folder = path.and_then(Utf8Path::parent).unwrap_or(Utf8Path::new(""));
        let credentials = environment.find("CREDENTIALS_DIRECTORY").map(Utf8Path::new);
        for file in config.secret_paths() {
            *file = located(file, folder, credentials);
        }
        let models = config.gateway.models.iter_mut();
        let weights = models.flat_map(|model| {
            // Beside a path, a recipe's file is one within it.
            let alone = model.path.is_none();
            let files = model.recipes.iter_mut().filter(move |_| alone).flat_map(|recipe| &mut recipe.file);
            model.path.iter_mut().chain(files)
        });
        for file in [&mut config.transport.ca_file, &mut config.store.ca_file].into_iter().flatten().chain(weights) {
            // Whole, because engines are started elsewhere.
            let placed = folder.join(&*file);
            *file = camino::absolute_utf8(&placed).unwrap_or(placed);
        }
        Ok(config)
    }

    fn secret_paths(&mut self) -> impl Iterator<Item = &mut Utf8PathBuf> {
        let Self { store, forge, gateway, auth, transport, .. } = self;
        let single = [
            &mut forge.app_key_file,
            &mut forge.read_token_file,
            &mut forge.write_token_file,
            &mut forge.webhook_secret_file,
            &mut forge.webhook_secret_previous_file,
            &mut store.password_file,
            &mut auth.admin_key_file,
            &mut auth.worker_key_file,
            &mut auth.scale_key_file,
            &mut transport.password_file,
            &mut transport.worker_password_file,
            &mut gateway.keys_file,
            &mut gateway.run_token_key_file,
        ];
        let oidc = auth.oidc.as_mut().map(|oidc| &mut oidc.client_secret_file);
        let models = gateway.models.iter_mut().map(|model| &mut model.api_key_file);
        single.into_iter().chain(oidc).chain(models).flatten()
    }

    /// Like [`Config::load`], from text.
    pub fn parse(name: &str, text: &str, environment: &Environment) -> Result<Self, ConfigError> {
        let refused = |e: toml::de::Error| ConfigError::Refused {
            path: name.to_owned(),
            what: e.to_string().trim_end().to_owned(),
        };
        // Read as it stands first: errors then name the line in the user's own file.
        let plain: Self = toml::from_str(text).map_err(refused)?;
        let overrides: Vec<(&str, &str)> = environment.iter().filter(|(key, _)| overrides_a_key(key)).collect();
        let (config, path) = if overrides.is_empty() {
            (plain, name.to_owned())
        } else {
            (with_overrides(text, &overrides)?, format!("{name} with the FETTLE_ variables"))
        };
        config.check().map_err(|what| ConfigError::Refused { path, what })?;
        Ok(config)
    }

    /// Every secret that is named here: its key and file.
    pub fn secret_files(&self) -> Vec<(String, &Utf8Path)> {
        let forge = &self.forge;
        let oidc_secret = self.auth.oidc.as_ref().map_or(&None, |oidc| &oidc.client_secret_file);
        let named = [
            ("forge.app_key_file", &forge.app_key_file),
            ("forge.read_token_file", &forge.read_token_file),
            ("forge.write_token_file", &forge.write_token_file),
            ("forge.webhook_secret_file", &forge.webhook_secret_file),
            ("forge.webhook_secret_previous_file", &forge.webhook_secret_previous_file),
            ("store.password_file", &self.store.password_file),
            ("auth.admin_key_file", &self.auth.admin_key_file),
            ("auth.worker_key_file", &self.auth.worker_key_file),
            ("auth.scale_key_file", &self.auth.scale_key_file),
            ("auth.secrets_key_file", &self.auth.secrets_key_file),
            ("auth.oidc.client_secret_file", oidc_secret),
            ("transport.password_file", &self.transport.password_file),
            ("transport.worker_password_file", &self.transport.worker_password_file),
            ("gateway.keys_file", &self.gateway.keys_file),
            ("gateway.run_token_key_file", &self.gateway.run_token_key_file),
        ];
        let named = named.into_iter().filter_map(|(key, file)| Some((key.to_owned(), file.as_deref()?)));
        let models = self.gateway.models.iter().filter_map(|model| {
            Some((format!("gateway.models `{}`: api_key_file", model.name), model.api_key_file.as_deref()?))
        });
        named.chain(models).collect()
    }

    /// Every key that has a value, by its full name, as in `server.listen`. Secrets are paths of files here too.
    pub fn values(&self) -> Values {
        let table = toml::Table::try_from(self).expect("a configuration came from TOML and can be written as such");
        let mut values = Values::new();
        flatten("", table, &mut values);
        values
    }

    /// A worker runs what strangers wrote. What it gets is not what else is kept from it, by whichever key it is named; and
    /// systemd tells secrets apart by their file names.
    fn check_secrets(&self) -> Result<(), String> {
        let files = self.secret_files();
        let is_workers = |key: &str| {
            matches!(key, "auth.worker_key_file" | "forge.read_token_file" | "transport.worker_password_file")
                || key.starts_with("gateway.models")
        };
        let (workers, others): (Vec<_>, Vec<_>) = files.iter().partition(|(key, _)| is_workers(key));
        for (key, file) in workers {
            if let Some((other, _)) = others.iter().find(|(_, other)| other.file_name() == file.file_name()) {
                return Err(format!(
                    "{key} and {other} name one file, {file}: workers get the first, and the second must never reach them, so these must be two secrets of different names"
                ));
            }
        }
        Ok(())
    }

    /// Errors with a sentence about the first setting that cannot work.
    fn check(&self) -> Result<(), String> {
        let invalid = Err::<(), String>;
        for (key, address) in
            [("server.listen", &self.server.listen), ("server.internal_listen", &self.server.internal_listen)]
        {
            if address.parse::<std::net::SocketAddr>().is_err() {
                return invalid(format!("{key}: `{address}` is not an address and port such as 127.0.0.1:8080"));
            }
        }
        if self.forge.app_id.is_some() != self.forge.app_key_file.is_some() {
            return invalid("forge.app_id and forge.app_key_file belong together: give both or neither".into());
        }
        if self.forge.read_token_file.is_some() && self.forge.read_token_file == self.forge.write_token_file {
            return invalid(
                "forge.read_token_file and forge.write_token_file are one file: a token cannot be narrowed, so workers need one of their own that can only read".into(),
            );
        }
        self.check_secrets()?;
        if self.forge.label.trim().is_empty() {
            return invalid("forge.label is empty".into());
        }
        match self.forge.label_mode {
            Mode::Quickfix | Mode::Refine => {}
            Mode::Probe => {
                return invalid(
                    "forge.label_mode is `probe`, which changes nothing: a label asks for `quickfix` or `refine`"
                        .into(),
                );
            }
        }
        if self.agent.per_repository == 0 {
            return invalid("agent.per_repository is 0: nothing would ever run".into());
        }
        if self.agent.workers == 0 {
            return invalid("agent.workers is 0: nothing would ever run".into());
        }
        if self.agent.drain_finish > LONGEST_DRAIN {
            return invalid(format!("agent.drain_finish: {} is more than {LONGEST_DRAIN}", self.agent.drain_finish));
        }
        self.store.check()?;
        self.auth.oidc.as_ref().map_or(Ok(()), Oidc::check)?;
        self.forge.check_intake()?;
        self.transport.check()?;
        self.agent.sandbox.check()?;
        crate::telemetry::filter(&self.telemetry.log)?;
        self.telemetry.otlp_endpoint.as_deref().map_or(Ok(()), crate::telemetry::check_endpoint)?;
        self.gateway.check()?;
        self.gpu.check()?;
        let urls = self.gateway.models.iter().filter_map(|model| {
            Some((format!("gateway.models `{}`: base_url", model.name), "api_key_file", model.base_url.as_ref()?))
        });
        for (key, instead, url) in
            urls.chain([("forge.api_url".to_owned(), "the forge's secrets", &self.forge.api_url)])
        {
            if url.contains(['@', '?', '#']) {
                // Not repeated: it may be the secret itself, and this file is not one.
                return invalid(format!(
                    "{key} holds more than an address: a user, a password or a key has no place in this file; use {instead}"
                ));
            }
        }
        Ok(())
    }
}

impl Sandbox {
    fn check(&self) -> Result<(), String> {
        for (key, size) in [("memory", self.memory), ("workspace", self.workspace), ("temporary", self.temporary)] {
            if size.0 == 0 {
                return Err(format!("agent.sandbox.{key} is 0: no command could run"));
            }
        }
        if self.processes == 0 {
            return Err("agent.sandbox.processes is 0: no command could run".into());
        }
        if self.suite_time.0.is_zero() {
            return Err("agent.sandbox.suite_time is 0: no test suite could end in time".into());
        }
        match self.prepare_hosts.iter().find(|entry| !is_host(entry)) {
            Some(entry) => Err(format!(
                "agent.sandbox.prepare_hosts: `{entry}` is not a host; write the name alone, as in `packages.example.org`, or with a port, as in `nexus.internal:8443`"
            )),
            None => Ok(()),
        }
    }
}

/// A host's name or address, alone or with a port; an IPv6 address with a port stands in brackets.
fn is_host(entry: &str) -> bool {
    use std::net::{Ipv6Addr, SocketAddrV6};
    if entry.parse::<Ipv6Addr>().is_ok() || entry.parse::<SocketAddrV6>().is_ok() {
        return true;
    }
    let (name, port) = entry.split_once(':').map_or((entry, None), |(name, port)| (name, Some(port)));
    let labels = name.strip_suffix('.').unwrap_or(name).split('.');
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port != 0)) && labels.into_iter().all(is_label)
}

/// Where a secret lies: handed over under its file name by systemd (`LoadCredential=`) or a mounted Secret, else at its path,
/// which counts from the configuration's folder. So one file is right under systemd, NixOS and Helm.
fn located(file: &Utf8Path, folder: &Utf8Path, credentials: Option<&Utf8Path>) -> Utf8PathBuf {
    let handed = credentials.zip(file.file_name()).map(|(credentials, name)| credentials.join(name));
    handed.filter(|path| path.exists()).unwrap_or_else(|| folder.join(file))
}

/// Whether a variable of that name is one that overrides a key of the configuration.
pub fn overrides_a_key(variable: &str) -> bool {
    variable.strip_prefix(PREFIX).is_some_and(|rest| rest.contains("__"))
}

fn with_overrides(text: &str, overrides: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let mut table: toml::Table = toml::from_str(text).unwrap_or_default();
    for (name, value) in overrides {
        let refused = |what: String| ConfigError::Variable { name: (*name).to_owned(), what };
        let path: Vec<String> = name[PREFIX.len()..].split("__").map(str::to_lowercase).collect();
        let candidates = [Some(toml::Value::String((*value).to_owned())), value_of(value)];
        let mut outcome = Err(refused("it names no key".into()));
        for candidate in candidates.into_iter().flatten() {
            let mut tried = table.clone();
            set(&mut tried, &path, candidate).map_err(&refused)?;
            match tried.clone().try_into::<Config>() {
                Ok(_) => {
                    outcome = Ok(tried);
                    break;
                }
                Err(e) => outcome = Err(refused(e.message().to_owned())),
            }
        }
        table = outcome?;
    }
    table.try_into().map_err(|e: toml::de::Error| ConfigError::Invalid(e.message().to_owned()))
}

fn flatten(above: &str, table: toml::Table, values: &mut Values) {
    for (key, value) in table {
        let name = if above.is_empty() { key } else { format!("{above}.{key}") };
        match value {
            toml::Value::Table(inner) => flatten(&name, inner, values),
            value => {
                values.insert(name, value);
            }
        }
    }
}

/// The text as a TOML value (number, boolean, list), if it is one.
fn value_of(text: &str) -> Option<toml::Value> {
    toml::from_str::<toml::Table>(&format!("v = {text}")).ok()?.remove("v")
}

fn set(table: &mut toml::Table, path: &[String], value: toml::Value) -> Result<(), String> {
    match path {
        [] => Err("it names no key".into()),
        [key] => {
            table.insert(key.clone(), value);
            Ok(())
        }
        [section, rest @ ..] => {
            match table.entry(section.clone()).or_insert_with(|| toml::Value::Table(toml::Table::new())) {
                toml::Value::Table(inner) => set(inner, rest, value),
                _ => Err(format!("`{section}` is not a section")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn oidc(more: &str, issuer: &str) -> String {
        let issuer = if issuer.is_empty() { "https://id.example.org" } else { issuer };
        format!(
            "[auth.oidc]\nname = 'Example'\nissuer = '{issuer}'\nclient_id = 'fettle'\npublic_url = 'https://fettle.example.org'\n{more}\n"
        )
    }

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse("fettle.toml", text, &Environment::default())
    }

    #[test]
    fn a_provider_of_sign_ins_brings_a_secret_that_no_worker_gets() {
        let config = parse(&oidc("allowed_emails = ['ada@example.org']\nclient_secret_file = 's'", "")).unwrap();
        let provider = config.auth.oidc.as_ref().unwrap();
        assert_eq!((provider.role, provider.public_url.as_str()), (Role::Viewer, "https://fettle.example.org"));
        assert!(config.secret_files().iter().any(|(key, file)| key == "auth.oidc.client_secret_file" && *file == "s"));
        let folder = tempfile::tempdir().unwrap();
        let file = Utf8Path::from_path(folder.path()).unwrap().join("fettle.toml");
        fs_err::write(&file, oidc("allowed_domains = ['a.b']\nclient_secret_file = 's'", "")).unwrap();
        let config = Config::load(Some(&file), &Environment::default()).unwrap();
        let placed = config.auth.oidc.unwrap().client_secret_file.unwrap();
        assert_eq!(Some(placed.as_path()), file.parent().map(|folder| folder.join("s")).as_deref());
    }

    #[test]
    fn an_empty_file_is_the_default_and_an_unknown_key_is_refused_with_its_line() {
        assert_eq!(parse("").unwrap(), Config::default());
        let error = parse("[server]\nlisten = \"127.0.0.1:1\"\nlissten = 3\n").unwrap_err().to_string();
        assert!(error.contains("lissten") && error.contains("line 3"), "{error}");
    }

    #[test]
    fn variables_override_single_keys_and_a_wrong_one_is_named() {
        let environment = Environment::from_pairs([
            ("FETTLE_SERVER__LISTEN", "0.0.0.0:9000"),
            ("FETTLE_FORGE__DAILY_TASKS", "5"),
            ("FETTLE_AGENT__SANDBOX__MIN_LEVEL", "full"),
            ("FETTLE_FORGE__ALLOWED_BOTS", "[1, 2]"),
            ("FETTLE_PORT", "ignored: no double underscore"),
        ]);
        let config = Config::parse("x", "[forge]\nlabel = \"help\"\n", &environment).unwrap();
        assert_eq!((config.server.listen.as_str(), config.forge.daily_tasks), ("0.0.0.0:9000", 5));
        assert_eq!((config.forge.label.as_str(), &config.forge.allowed_bots), ("help", &vec![1, 2]));
        assert_eq!(config.agent.sandbox.min_level, SandboxLevel::Full);
        let wrong = Environment::from_pairs([("FETTLE_SERVER__LISTTEN", "x")]);
        let error = Config::parse("x", "", &wrong).unwrap_err().to_string();
        assert!(error.contains("FETTLE_SERVER__LISTTEN"), "{error}");
    }

    #[test]
    fn a_secret_is_found_among_credentials_by_name_else_beside_the_configuration() {
        let home = tempfile::tempdir().unwrap();
        let home = Utf8Path::from_path(home.path()).unwrap();
        fs_err::create_dir(home.join("credentials")).unwrap();
        fs_err::write(home.join("credentials/worker"), "k").unwrap();
        let text = "[auth]\nworker_key_file = '/etc/fettle/secrets/worker'\n\
                    [forge]\nread_token_file = 'secrets/read'\nwrite_token_file = '/elsewhere/write'\n";
        fs_err::write(home.join("fettle.toml"), text).unwrap();
        let credentials = home.join("credentials");
        let environment = Environment::from_pairs([("CREDENTIALS_DIRECTORY", credentials.as_str())]);
        let config = Config::load(Some(&home.join("fettle.toml")), &environment).unwrap();
        assert_eq!(config.auth.worker_key_file, Some(credentials.join("worker")));
        assert_eq!(config.forge.read_token_file, Some(home.join("secrets/read")));
        assert_eq!(config.forge.write_token_file, Some("/elsewhere/write".into()));
    }

    #[test]
    fn settings_that_cannot_work_are_refused_with_a_sentence() {
        for (text, word) in [
            ("[server]\nlisten = \"here\"", "server.listen"),
            ("[forge]\napi_url = \"https://user:word@host/api\"", "forge.api_url"),
            ("[[gateway.models]]\nname = \"m\"\nbase_url = \"http://h/v1?key=x\"", "base_url"),
            (
                "[forge]\nwrite_token_file = \"a/x\"\n[[gateway.models]]\nname = \"m\"\nbase_url = \"http://h/v1\"\napi_key_file = \"b/x\"",
                "two secrets",
            ),
            ("[forge]\napp_id = 7", "app_key_file"),
            ("[transport]\nuser = \"f\"", "no transport.url"),
            ("[transport]\nurl = \"redis://:word@h\"", "password_file"),
            ("[transport]\nurl = \"kafka://h\"", "redis://"),
            ("[transport]\nurl = \"amqp://h\"\nsentinel_master = \"m\"", "sentinel_master"),
            ("[transport]\nurl = \"amqp://h\"\nuser = \"f\"", "belong together"),
            ("[transport]\nurl = \"amqp://h\"\npassword_file = \"p\"\nworker_password_file = \"q/p\"", "two secrets"),
            ("[store]\npassword_file = \"p\"", "no store.url"),
            ("[server]\ntrusted_proxies = [\"proxy\"]", "`proxy` is neither an address nor a network"),
            (&oidc("", ""), "lets nobody in"),
            (&oidc("allowed_domains = ['*.example.org']", ""), "`*.example.org` is not a domain"),
            (&oidc("allowed_domains = ['a.b']\nrole = 'root'", ""), "role"),
            (&oidc("allowed_domains = ['a.b']\nallowed = 1", ""), "unknown field `allowed`"),
            (&oidc("allowed_domains = ['a.b']", "http://id.example.org"), "begins with https://"),
            (&oidc("allowed_domains = ['a.b']", "https://u:p@id.example.org"), "more than an address"),
            ("[store]\nurl = \"postgres://f:word@h/f\"", "store.password_file"),
            ("[store]\nurl = \"mysql://h/f\"", "postgres://"),
            ("[store]\nurl = \"postgres://h\"", "names no database"),
            ("[store]\nurl = \"postgres://h/f\"\ntls = \"off\"\nca_file = \"c\"", "of no use"),
            ("[store]\nurl = \"postgres://h/f\"\nconnections = 1", "below 4"),
            ("[forge]\nread_token_file = \"/a\"\nwrite_token_file = \"/a\"", "one file"),
            ("[agent]\nworkers = 0", "workers"),
            ("[agent]\nper_repository = 0", "per_repository"),
            ("[[gateway.models]]\nname = \"m\"\nbase_url = \"http://h/v1\"\nparallel = 0", "parallel is 0"),
            ("[agent.sandbox]\nmemory = \"8\"", "unit"),
            ("[agent.sandbox]\nmemory = 8", "write it with a unit, as in `8 GiB`"),
            ("[agent.sandbox]\nsuite_time = 30", "write it with a unit, as in `30m`"),
            ("[agent.sandbox]\nsuite_time = \"0s\"", "suite_time is 0"),
            ("[agent.sandbox]\nworkspace = \"0 GiB\"", "workspace is 0"),
            ("[agent.sandbox]\nprocesses = 0", "processes is 0"),
            ("[agent.sandbox]\nprepare_hosts = [\"a.b\", \"https://a.b/c\"]", "`https://a.b/c` is not a host"),
            ("[forge]\nlabel_mode = \"probe\"", "label_mode"),
            ("[forge]\nintake = \"inbox\"", "webhook"),
            ("[forge]\npoll_every = \"0s\"", "forge.poll_every: 0s is not between 100ms and 86400s"),
            ("[forge]\nredeliver_every = 5", "write it with a unit"),
            ("[forge]\npoll_repositories = [\"hello\"]", "owner/name"),
            ("[forge]\nintake = \"poll\"\nlabel = \"a,b\"", "has a comma"),
            ("[telemetry]\nlog = \"fettle=loud\"", "telemetry.log: `fettle=loud`"),
            ("[telemetry]\notlp_endpoint = \"127.0.0.1:4318\"", "telemetry.otlp_endpoint"),
            ("[telemetry]\notlp_endpoint = \"https://me:key@collector\"", "without user and password"),
            ("[[gateway.models]]\nname = \"a\"\nbase_url = \"http://x\"\ncontext = 1000", "32768 tokens are needed"),
            ("[[gateway.models]]\nname = \"a\"\npath = \"/m.gguf\"\ncontext = 0", "context is 0"),
            ("[[gateway.models]]\nname = \"a\"\nbase_url = \"ftp://x\"", "base_url"),
            ("[gpu.engines.vllm]\nprogram = \"vllm\"\nhealth = \"/ok\"", "health is for `command`"),
            ("[gpu.engines.command]\nprogram = \"x\"\nhealth = \"ok\"", "health is a path"),
            ("[gateway]\nmodels_dir = \"models\"", "not an absolute path"),
            ("[gateway]\nmirror = \"ftp://x\"", "gateway.mirror"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(word) && error.starts_with("fettle.toml: "), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_looked_for_follows_from_mode_and_credentials() {
        let tokens = "read_token_file = 'r'\nwrite_token_file = 'w'\n";
        let app = "app_id = 7\napp_key_file = 'k'\n";
        let seconds = |text: String| {
            let forge = parse(&format!("[forge]\n{text}")).unwrap().forge;
            (forge.looks_every().map(|every| every.as_secs()), forge.redelivers_every().map(|every| every.as_secs()))
        };
        assert_eq!(seconds(String::new()), (None, None));
        assert_eq!(seconds("intake = 'poll'".into()), (None, None));
        assert_eq!(seconds(tokens.into()), (None, None));
        assert_eq!(seconds(format!("{tokens}poll_repositories = ['o/r']")), (Some(600), None));
        assert_eq!(seconds(format!("{tokens}intake = 'poll'")), (Some(60), None));
        assert_eq!(seconds(app.into()), (Some(600), None));
        assert_eq!(seconds(format!("{app}webhook_secret_file = 's'")), (Some(600), Some(300)));
        assert_eq!(seconds(format!("{app}webhook_secret_file = 's'\nintake = 'poll'")), (Some(60), None));
        let own = format!("{app}webhook_secret_file = 's'\npoll_every = '1h'\nredeliver_every = '7m'");
        assert_eq!(seconds(own), (Some(3600), Some(420)));
    }

    #[test]
    fn registries_are_named_by_host_and_maybe_port() {
        for host in ["a.b", "a.b.", "nexus:8443", "10.0.0.1:80", "::1", "[::1]:8443", "a_b-c.d"] {
            assert!(is_host(host), "{host}");
        }
        for other in ["", ".", "a..b", "https://a.b", "a.b/c", "a.b:", "a.b:0", "a.b:x", "*.a.b", "a b", "user@a.b"] {
            assert!(!is_host(other), "{other}");
        }
    }

    #[test]
    fn weights_count_from_the_configuration_and_a_recipes_file_from_its_models_folder() {
        let folder = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(folder.path()).unwrap();
        let text = "[[gateway.models]]\nname = 'a'\npath = 'weights'\nrecipes = [{ engine = 'llama-server', file = 'q4.gguf' }]\n\
                    [[gateway.models]]\nname = 'b'\nrecipes = [{ engine = 'llama-server', file = 'b.gguf' }]\n";
        let file = root.join("fettle.toml");
        fs_err::write(&file, text).unwrap();
        let config = Config::load(Some(&file), &Environment::default()).unwrap();
        let files = |nth: usize| config.gateway.models[nth].recipes[0].file.clone().unwrap();
        assert_eq!(config.gateway.models[0].path, Some(root.join("weights")));
        assert_eq!((files(0), files(1)), ("q4.gguf".into(), root.join("b.gguf")));
    }
}
