//! The environment of a Run: toolchains of the host and dependencies of the base, ready before any model runs.
//!
//! Prepared from the base only and kept per (lockfiles, toolchain, architecture), so that most Runs find it done. The network is
//! open only here, as far as the operator allows; commands of the agent and of verification have none.

mod cache;
mod install;
mod toolchain;

use std::collections::BTreeMap;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use fettle_app::ports::sandbox::{
    Access, CommandEnd, Mount, Network, Sandbox, SandboxError, SandboxLevel, SandboxLimits,
};
use fettle_domain::object::BlobId;
use fettle_domain::proof::Environment;
use tokio_util::sync::CancellationToken;

pub use toolchain::{Tool, Toolchains};

use crate::ecosystem::{BaseFiles, Commands, Ecosystem};
use crate::workbench::Workbench;
use install::Install;

/// A cold download of a large dependency tree over a slow line.
const INSTALL_TIME: Duration = Duration::from_secs(30 * 60);
/// Dependencies unpacked, e.g. a front end with a browser driver.
const INSTALL_BYTES_MAX: u64 = 16 * 1024 * 1024 * 1024;

#[derive(Debug, Clone)]
pub struct PrepareOptions {
    /// Where prepared dependencies are kept, for all repositories of this worker.
    pub cache_dir: Utf8PathBuf,
    pub network: PrepareNetwork,
    /// The worker's `PATH`, in which toolchains are looked up.
    pub path: String,
    /// Further environment while dependencies are installed, never later: certificate files, registry settings.
    pub install_env: BTreeMap<String, String>,
    /// Further files while dependencies are installed: certificates, `npmrc`, `pip.conf`.
    pub install_mounts: Vec<Mount>,
    /// The text of a `config.toml` for `CARGO_HOME` (source replacement, registries). Visible to tests: no credential.
    pub cargo_config: Option<String>,
    /// Limits of every command that runs with the workbench.
    pub limits: SandboxLimits,
}

/// What package managers are told beside the network.
struct InstallSettings {
    env: BTreeMap<String, String>,
    mounts: Vec<Mount>,
}

impl PrepareOptions {
    /// The settings without whatever may hold a password: addresses of registries, `npmrc`, `pip.conf`.
    fn certificates(&self) -> InstallSettings {
        let is_certificate =
            |name: &str| name.contains("CERT") || name.contains("CAINFO") || name.contains("CA_BUNDLE");
        let mut env = self.install_env.clone();
        env.retain(|name, _| is_certificate(name));
        let mut mounts = self.install_mounts.clone();
        mounts.retain(|mount| env.values().any(|value| value == mount.host.as_str()));
        InstallSettings { env, mounts }
    }
}

/// `[agent.sandbox] prepare_network`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrepareNetwork {
    None,
    /// These hosts (`prepare_hosts`), and those that lockfiles and the tools' own settings name.
    Proxy {
        hosts: Vec<String>,
    },
    Host,
}

#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The Run ends with this name.
    #[error("{name} is not installed on this worker")]
    MissingToolchain { name: String },
    /// The operator's setting stands in the way; the sentence names it.
    #[error("{what} needs the network: {setting}")]
    NetworkNotAllowed { what: String, setting: &'static str },
    #[error("{what} failed: {output}")]
    InstallFailed { what: String, output: String },
    #[error("{what} did not end within {seconds} seconds")]
    TooSlow { what: String, seconds: u64 },
    #[error("preparation was cancelled")]
    Cancelled,
    #[error("the cache of prepared dependencies cannot be used")]
    Cache(#[source] std::io::Error),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

/// What is prepared, and with what.
#[derive(Clone, Copy)]
pub struct PrepareRequest<'a> {
    /// The mirror's key. Install commands see the whole checkout and not only the files that name dependencies, so what
    /// one repository has prepared is never worn by another.
    pub scope: &'a str,
    pub files: &'a BaseFiles,
    /// The base's own files, when `files` hold manifests of a change. A change is not trusted: it names no host, and its
    /// packages are fetched without credentials.
    pub change_of: Option<&'a BaseFiles>,
    pub commands: &'a Commands,
    /// A fresh plain checkout of the base; install commands write into it, so it is of no further use.
    pub checkout: &'a Utf8Path,
    pub sandbox: &'a dyn Sandbox,
    pub options: &'a PrepareOptions,
}

/// The environment of all commands of a Run.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// Without anything that depends on the workspace; see [`Prepared::bench_for`].
    bench: Workbench,
    pub environment: Environment,
    /// What was left out or is unusual, one sentence each.
    pub notes: Vec<String>,
    /// Prepared folders and the names in the workspace under which they must be seen.
    overlays: Vec<(Utf8PathBuf, &'static str)>,
}

/// Prepares the environment, or finds it in the cache. Safe to run many times at once, and after a crash in the middle.
pub async fn prepare(
    request: PrepareRequest<'_>,
    progress: &(dyn Fn(&str) + Send + Sync),
    cancel: &CancellationToken,
) -> Result<Prepared, PrepareError> {
    let PrepareRequest { scope, files, commands, sandbox, options, .. } = request;
    let toolchains = Toolchains::find(&options.path, &commands.ecosystems, files).await?;
    let mut prepared = Prepared {
        bench: Workbench { env: base_env(&toolchains), mounts: toolchains.mounts(), limits: options.limits },
        environment: environment(&toolchains, sandbox, &[]),
        notes: commands.notes.clone(),
        overlays: Vec::new(),
    };
    let mut plan = install::plan(files, commands, &toolchains);
    if let Some(base) = request.change_of {
        plan.keep_hosts_of(&install::plan(base, commands, &toolchains));
    }
    prepared.notes.extend(plan.notes);
    let mut keys = Vec::new();
    for install in &plan.installs {
        let key = install.key(&toolchains.versions(), options.cargo_config.as_deref());
        let key = BlobId::of(format!("{scope}\n{key}").as_bytes());
        let folder = layer(&request, &prepared.bench, install, &key, progress, cancel).await?;
        prepared.wear(install, folder);
        keys.push(key);
    }
    prepared.environment = environment(&toolchains, sandbox, &keys);
    Ok(prepared)
}

impl Prepared {
    /// The workbench for commands in `workspace`. `build_dir` takes what builds produce, outside of the workspace, so that
    /// repeated runs are quick; the agent and verification each have their own.
    pub async fn bench_for(
        &self,
        sandbox: &dyn Sandbox,
        workspace: &Utf8Path,
        build_dir: &Utf8Path,
    ) -> Result<Workbench, PrepareError> {
        fs_err::tokio::create_dir_all(build_dir).await.map_err(PrepareError::Cache)?;
        let mut bench = self.bench.clone();
        bench.mounts.push(read_write(build_dir));
        bench.env.insert("CARGO_TARGET_DIR".into(), build_dir.join("cargo").into_string());
        let inside = sandbox.workspace_inside(workspace);
        for (folder, name) in &self.overlays {
            if sandbox.report().level == SandboxLevel::Landlock {
                copy_into(folder.clone(), workspace.join(name)).await?;
            } else {
                let at = inside.join(name);
                bench.mounts.push(Mount { host: folder.clone(), inside: at, access: Access::ReadOnly });
            }
        }
        Ok(bench)
    }

    /// Adds an installed layer to the environment of tests.
    fn wear(&mut self, install: &Install, folder: Utf8PathBuf) {
        let env = &mut self.bench.env;
        match install.ecosystem {
            Some(Ecosystem::Cargo) => {
                env.insert("CARGO_HOME".into(), folder.to_string());
            }
            Some(Ecosystem::Pytest) => put_first(env, &folder.join("venv/bin")),
            Some(Ecosystem::Npm) => self.overlays.push((folder.join("node_modules"), "node_modules")),
            Some(Ecosystem::Make) | None => {
                env.insert(install::FOLDER_VARIABLE.into(), folder.to_string());
                for name in install::SETUP_FOLDERS {
                    if folder.join(name).is_dir() {
                        self.overlays.retain(|(_, other)| *other != name);
                        self.overlays.push((folder.join(name), name));
                    }
                }
            }
        }
        self.bench.mounts.push(Mount { host: folder.clone(), inside: folder, access: Access::ReadOnly });
    }
}

/// The folder of one layer, from the cache or installed now.
async fn layer(
    request: &PrepareRequest<'_>,
    bench: &Workbench,
    install: &Install,
    key: &BlobId,
    progress: &(dyn Fn(&str) + Send + Sync),
    cancel: &CancellationToken,
) -> Result<Utf8PathBuf, PrepareError> {
    let options = request.options;
    let name = format!("{}-{}", install.name(), &key.to_string()[..24]);
    let claimed = match cache::claim(&options.cache_dir, &name, cancel).await? {
        cache::Claim::Ready(folder) => return Ok(folder),
        cache::Claim::Mine(claimed) => claimed,
    };
    let network = network_for(install, options).await?;
    progress(&format!("preparing: {}", install.what));
    let folder = claimed.folder().to_owned();
    if install.ecosystem == Some(Ecosystem::Cargo)
        && let Some(config) = &options.cargo_config
    {
        fs_err::tokio::write(folder.join("config.toml"), config).await.map_err(PrepareError::Cache)?;
    }
    let mut command = bench.shell(request.checkout, Access::ReadWrite, &install.script);
    command.network = network;
    command.mounts.push(read_write(&folder));
    command.env.remove("CARGO_NET_OFFLINE");
    command.env.insert(install::FOLDER_VARIABLE.into(), folder.to_string());
    command.env.insert("CARGO_HOME".into(), folder.to_string());
    let settings = match request.change_of {
        None => InstallSettings { env: options.install_env.clone(), mounts: options.install_mounts.clone() },
        Some(_) => options.certificates(),
    };
    command.env.extend(settings.env);
    command.mounts.extend(settings.mounts);
    command.limits.time = INSTALL_TIME;
    command.limits.workspace_bytes = INSTALL_BYTES_MAX;
    let output = request.sandbox.run(&command, cancel).await?;
    match output.end {
        CommandEnd::Exited(0) => claimed.complete().await,
        CommandEnd::Cancelled => Err(PrepareError::Cancelled),
        CommandEnd::TimedOut => {
            Err(PrepareError::TooSlow { what: install.what.clone(), seconds: INSTALL_TIME.as_secs() })
        }
        _ => {
            let mut said = tail(&output.output);
            if !output.denied_hosts.is_empty() {
                // The usual cause, and the one an operator can put right.
                let hosts = output.denied_hosts.join(", ");
                said = format!("refused by `[agent.sandbox] prepare_hosts`: {hosts}\n{said}");
            }
            Err(PrepareError::InstallFailed { what: install.what.clone(), output: said })
        }
    }
}

async fn network_for(install: &Install, options: &PrepareOptions) -> Result<Network, PrepareError> {
    match &options.network {
        PrepareNetwork::Host => Ok(Network::Host),
        PrepareNetwork::None if install.is_setup() => Ok(Network::None),
        PrepareNetwork::None => Err(PrepareError::NetworkNotAllowed {
            what: install.what.clone(),
            setting: "`[agent.sandbox] prepare_network` is `none`; set it to `proxy` or `host`",
        }),
        PrepareNetwork::Proxy { hosts } => {
            let mut hosts = hosts.clone();
            hosts.extend(install.hosts.iter().cloned());
            hosts.extend(install::hosts_of_tool(install.ecosystem, &options.path).await);
            hosts.sort();
            hosts.dedup();
            if hosts.is_empty() && install.is_setup() {
                return Ok(Network::None);
            }
            if hosts.is_empty() {
                return Err(PrepareError::NetworkNotAllowed {
                    what: install.what.clone(),
                    setting: "name the registry's hosts in `[agent.sandbox] prepare_hosts`",
                });
            }
            Ok(Network::AllowList { hosts })
        }
    }
}

/// The allow-listed environment. Everything that could make two runs differ is fixed.
fn base_env(toolchains: &Toolchains) -> BTreeMap<String, String> {
    let path = toolchains.path();
    let pairs = [
        ("PATH", path.as_str()),
        ("LANG", "C.UTF-8"),
        ("TZ", "UTC"),
        ("TERM", "dumb"),
        ("CI", "1"),
        ("NO_COLOR", "1"),
        ("GIT_AUTHOR_NAME", "Fettle"),
        ("GIT_AUTHOR_EMAIL", "fettle@localhost"),
        ("GIT_COMMITTER_NAME", "Fettle"),
        ("GIT_COMMITTER_EMAIL", "fettle@localhost"),
        ("CARGO_TERM_COLOR", "never"),
        ("CARGO_NET_OFFLINE", "true"),
        ("NPM_CONFIG_UPDATE_NOTIFIER", "false"),
        // Caches beside the sources would look like a part of the patch where the repository does not ignore them.
        ("PYTHONDONTWRITEBYTECODE", "1"),
        ("PYTEST_ADDOPTS", PYTEST_OPTIONS),
    ];
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The older report family names the file of each test.
pub(crate) const PYTEST_OPTIONS: &str = "-p no:cacheprovider -o junit_family=xunit1";

fn environment(toolchains: &Toolchains, sandbox: &dyn Sandbox, layers: &[BlobId]) -> Environment {
    let architecture = std::env::consts::ARCH.to_owned();
    let sandbox_level = sandbox.report().level.name().to_owned();
    let toolchain = toolchains.versions();
    let digest = BlobId::of(format!("{architecture}\n{sandbox_level}\n{toolchain:?}\n{layers:?}").as_bytes());
    Environment { architecture, sandbox_level, toolchain, digest }
}

fn read_write(folder: &Utf8Path) -> Mount {
    Mount { host: folder.to_owned(), inside: folder.to_owned(), access: Access::ReadWrite }
}

fn put_first(env: &mut BTreeMap<String, String>, folder: &Utf8Path) {
    let path = env.entry("PATH".into()).or_default();
    *path = format!("{folder}:{path}");
}

/// At level `landlock` nothing can be mounted elsewhere. A copy, because hard links would let tests write into the cache.
async fn copy_into(from: Utf8PathBuf, to: Utf8PathBuf) -> Result<(), PrepareError> {
    let copied = tokio::task::spawn_blocking(move || cache::copy_tree(&from, &to)).await;
    copied.map_err(std::io::Error::other).and_then(|result| result).map_err(PrepareError::Cache)
}

/// The last lines of an installer say what went wrong.
fn tail(output: &[u8]) -> String {
    const CHARS_MAX: usize = 1_500;
    let text = String::from_utf8_lossy(output);
    let skip = text.chars().count().saturating_sub(CHARS_MAX);
    text.chars().skip(skip).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_prepared_with_certificates_and_without_what_may_hold_a_password() {
        let settings = [("SSL_CERT_FILE", "/etc/ca.pem"), ("PIP_INDEX_URL", "https://me:pw@nexus.example/simple")];
        let mount = |path: &str| Mount { host: path.into(), inside: path.into(), access: Access::ReadOnly };
        let options = PrepareOptions {
            cache_dir: "/cache".into(),
            network: PrepareNetwork::None,
            path: "/usr/bin".into(),
            install_env: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            install_mounts: vec![mount("/etc/ca.pem"), mount("/etc/npmrc")],
            cargo_config: None,
            limits: SandboxLimits::default(),
        };
        let kept = options.certificates();
        assert_eq!(kept.env.keys().collect::<Vec<_>>(), ["SSL_CERT_FILE"]);
        assert_eq!(kept.mounts, [mount("/etc/ca.pem")]);
    }
}
