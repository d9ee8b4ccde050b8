//! Whether Fettle can be installed on a host, and what an operator does about each thing that is in the way. Facts go in,
//! findings come out; nothing is asked of the host here.

mod cluster;
mod gpu;
mod names;
mod network;
mod room;
mod sandbox;
mod system;

use std::collections::BTreeSet;

use crate::facts::{HostFacts, Unknown};
use crate::report::{Check, Finding, Outcome};

pub use sandbox::level;

/// How Fettle is carried on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    Systemd,
    Nixos,
    K3s,
}

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Self::Systemd => "systemd",
            Self::Nixos => "nixos",
            Self::K3s => "k3s",
        }
    }
}

/// Ports that Fettle will listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ports {
    pub public: u16,
    pub internal: u16,
    /// Where models are served, and health of that is told; none without the inference service.
    pub inference: Option<[u16; 2]>,
    /// One port each, from 9201 on.
    pub workers: u8,
}

impl Default for Ports {
    fn default() -> Self {
        Self { public: 8080, internal: 8081, inference: Some([8484, 8485]), workers: 1 }
    }
}

/// The release that is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    pub version: String,
    /// As `uname -m` says it.
    pub arch: String,
    pub bytes: u64,
    /// It is built here by Nix instead of being unpacked.
    pub flake: bool,
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Purpose {
    /// Nothing: somebody wants to know. Not being root is no failure then.
    #[default]
    Look,
    Apply,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    pub mode: Mode,
    pub ports: Ports,
    /// None when there is none at hand yet.
    pub release: Option<Release>,
    pub purpose: Purpose,
    /// Where backups go, if not beside the data.
    pub backups: Option<camino::Utf8PathBuf>,
    /// Where models of this host are kept.
    pub models: Option<camino::Utf8PathBuf>,
    pub cluster: Cluster,
}

/// What matters in mode k3s alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// Networks of pods and services.
    pub networks: Vec<String>,
    /// The k3s of this host was installed by us.
    pub ours: bool,
    /// GPUs are to be used by pods.
    pub gpus: bool,
    /// Whether this host becomes a cluster, or joins one.
    pub serves: bool,
}

impl Default for Cluster {
    fn default() -> Self {
        let networks = ["10.42.0.0/16", "10.43.0.0/16"].map(str::to_owned).into();
        Self { networks, ours: false, gpus: false, serves: true }
    }
}

impl Context {
    pub fn of(mode: Mode) -> Self {
        Self {
            mode,
            ports: Ports::default(),
            release: None,
            purpose: Purpose::default(),
            backups: None,
            models: None,
            cluster: Cluster::default(),
        }
    }
}

/// Why there is no mode for a host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{0}; to try Fettle here, run `fettle up`, which needs neither systemd nor root")]
    NoServices(String),
    #[error(
        "{0} is not a system that Fettle is tested on; run `fettle up` to try it, or install with --mode systemd --ignore PF004"
    )]
    Unsupported(String),
    #[error("{0}")]
    WrongMode(String),
    #[error("the host could not be looked at: {0}; name the mode with --mode")]
    Unknown(String),
}

impl Refusal {
    pub(crate) fn is_unsupported(&self) -> bool {
        matches!(self, Self::Unsupported(_))
    }
}

/// The mode for this host; `asked` wins where both could work.
pub fn select(facts: &HostFacts, asked: Option<Mode>) -> Result<Mode, Refusal> {
    let unknown = |unknown: &Unknown| Refusal::Unknown(unknown.why.clone());
    let system = &facts.system;
    if facts.wsl().map_err(unknown)? == Some(1) {
        return Err(Refusal::NoServices("this is WSL 1, which has no services, no namespaces and no GPU".to_owned()));
    }
    if system.init.get().map_err(unknown)? != "systemd" {
        let init = system.init.get().map_err(unknown)?;
        let what = match system.container.known().and_then(Option::as_deref) {
            Some(kind) => format!("this is a container ({kind}) without systemd"),
            None if facts.wsl().map_err(unknown)? == Some(2) => {
                "this is WSL 2 without systemd (systemd=true in /etc/wsl.conf would start it)".to_owned()
            }
            None => format!("systemd does not run here: process 1 is {init}"),
        };
        return Err(Refusal::NoServices(what));
    }
    let nixos = *system.nixos.get().map_err(unknown)?;
    match (nixos, asked) {
        (true, Some(Mode::K3s)) => Err(Refusal::WrongMode(
            "this is NixOS, which has a k3s of its own: use the module `nixosModules.k3s` of Fettle's flake".to_owned(),
        )),
        (true, Some(Mode::Systemd)) => Err(Refusal::WrongMode(
            "this is NixOS, which would undo what mode systemd writes to /etc; use --mode nixos".to_owned(),
        )),
        (true, None | Some(Mode::Nixos)) => Ok(Mode::Nixos),
        (false, Some(Mode::Nixos)) => {
            Err(Refusal::WrongMode("this is not NixOS: /etc/NIXOS is not there; use --mode systemd".to_owned()))
        }
        (false, None | Some(Mode::Systemd)) if system::is_supported(facts).map_err(|error| unknown(&error))? => {
            Ok(Mode::Systemd)
        }
        (false, Some(Mode::K3s)) if system::is_supported(facts).map_err(|error| unknown(&error))? => Ok(Mode::K3s),
        (false, None | Some(Mode::Systemd | Mode::K3s)) => Err(Refusal::Unsupported(facts.os_name().map_err(unknown)?)),
    }
}

/// In the order in which they are shown.
fn all() -> impl Iterator<Item = &'static Check<Context>> {
    [
        system::CHECKS,
        room::CHECKS,
        network::PORTS,
        gpu::CHECKS,
        names::CHECKS,
        sandbox::CHECKS,
        network::CHECKS,
        names::NEIGHBOURS,
        cluster::CHECKS,
    ]
    .into_iter()
    .flatten()
}

/// Those that say something about the mode.
pub fn checks(facts: &HostFacts, context: &Context) -> Vec<Finding> {
    let k3s = context.mode == Mode::K3s;
    let of_cluster = |check: &&Check<Context>| cluster::CHECKS.iter().any(|one| one.id == check.id);
    let concerns =
        |check: &&Check<Context>| if k3s { !cluster::OF_SERVICES.contains(&check.id) } else { !of_cluster(check) };
    all().filter(concerns).map(|check| check.find(facts, context)).collect()
}

/// The ids in `typed`, which may hold several each, separated by commas. Errors with a sentence about one that no check has.
pub fn ids(typed: &[String]) -> Result<BTreeSet<&'static str>, String> {
    let wanted = typed.iter().flat_map(|list| list.split(',')).map(str::trim).filter(|id| !id.is_empty());
    wanted
        .map(|id| {
            let known = all().find(|check| check.id.eq_ignore_ascii_case(id)).map(|check| check.id);
            known.ok_or_else(|| {
                format!("--ignore {id}: no check has this id; `fettle-installer preflight` lists them all")
            })
        })
        .collect()
}

/// Turns failures of these checks into warnings.
pub fn ignore(findings: &mut [Finding], ids: &BTreeSet<&'static str>) {
    for finding in findings.iter_mut().filter(|one| one.outcome == Outcome::Fail && ids.contains(one.id)) {
        finding.outcome = Outcome::Warn;
        finding.ignored = true;
    }
}

/// `1.5 TiB`: two digits that matter are enough for people.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut tenths = u128::from(bytes) * 10;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    let (whole, rest) = (tenths / 10, tenths % 10);
    if rest == 0 || whole >= 100 || unit == 0 {
        format!("{whole} {}", UNITS[unit])
    } else {
        format!("{whole}.{rest} {}", UNITS[unit])
    }
}

const GIB: u64 = 1 << 30;
