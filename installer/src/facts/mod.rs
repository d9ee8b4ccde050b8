//! What is known of a host, as a value: recorded as JSON, replayed in tests, attached to a support bundle. It holds no secret,
//! no serial number, and no guess: what could not be looked at says so.

mod gather;
mod parse;
mod watch;

use std::collections::BTreeMap;

use camino::Utf8PathBuf;
use fettle_app::ports::sandbox::SandboxLevel;
use fettle_runtime::config::PrepareNetwork;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use gather::{Wanted, gather};
pub use watch::{Ask, Files, RealAsk, Uname};

/// The beginning of every reason that root would take away.
pub const NEEDS_ROOT: &str = "needs root";
/// Written by whoever has restored a backup on trial: `{"archive": "…", "verified": "<RFC 3339>"}`.
pub const VERIFIED: &str = "/var/lib/fettle/backups/verified.json";

/// What could be learned of one thing; in JSON the value itself, or `{"unknown": "<why>"}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Seen<T> {
    Unknown(Unknown),
    Known(T),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Tagged", into = "Tagged")]
pub struct Unknown {
    pub why: String,
}

/// A struct would be read from a list of one text as well, which is what many facts are.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Tagged {
    Unknown(String),
}

impl From<Tagged> for Unknown {
    fn from(Tagged::Unknown(why): Tagged) -> Self {
        Self { why }
    }
}

impl From<Unknown> for Tagged {
    fn from(unknown: Unknown) -> Self {
        Self::Unknown(unknown.why)
    }
}

impl<T> Seen<T> {
    pub fn unknown(why: impl Into<String>) -> Self {
        Self::Unknown(Unknown { why: why.into() })
    }

    /// For `?` in a check: what is not known ends it.
    pub fn get(&self) -> Result<&T, &Unknown> {
        match self {
            Self::Known(value) => Ok(value),
            Self::Unknown(unknown) => Err(unknown),
        }
    }

    pub fn known(&self) -> Option<&T> {
        self.get().ok()
    }

    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Seen<U> {
        match self {
            Self::Known(value) => Seen::Known(f(value)),
            Self::Unknown(unknown) => Seen::Unknown(unknown),
        }
    }

    pub fn and_then<U>(self, f: impl FnOnce(T) -> Seen<U>) -> Seen<U> {
        match self {
            Self::Known(value) => f(value),
            Self::Unknown(unknown) => Seen::Unknown(unknown),
        }
    }
}

impl From<&Self> for Unknown {
    fn from(unknown: &Self) -> Self {
        unknown.clone()
    }
}

impl<T> Default for Seen<T> {
    fn default() -> Self {
        Self::unknown("it was not recorded")
    }
}

/// Everything. A record of another host leaves out what nobody looked at.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HostFacts {
    /// Where the record comes from, when it was not made by looking at this host.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub origin: String,
    pub taken: Seen<Timestamp>,
    /// The user who looked.
    pub uid: Seen<u32>,
    pub system: System,
    /// By the path that was asked for; the nearest folder that exists answers.
    pub disks: BTreeMap<Utf8PathBuf, Seen<Disk>>,
    pub memory: Seen<Memory>,
    pub listeners: Seen<Vec<Listener>>,
    pub network: Network,
    pub gpu: Gpu,
    #[serde(skip_serializing_if = "Kubernetes::is_unknown")]
    pub kubernetes: Kubernetes,
    pub names: Names,
    pub installed: Installed,
    pub sandbox: SandboxFacts,
    /// Those that were asked for.
    pub units: Seen<BTreeMap<String, Unit>>,
    /// Programs of those that were asked for which are there.
    pub programs: Seen<Vec<String>>,
    pub updates: Updates,
    pub backup: Backup,
    /// `/etc/fettle/fettle.toml`, as far as checks need it; none when there is no such file.
    pub config: Seen<Option<ConfigFacts>>,
    /// Of the configuration and the folder of secrets; none for what is not there.
    pub attributes: BTreeMap<Utf8PathBuf, Seen<Option<Stat>>>,
    /// The files of secrets that the configuration names, or that are in the folder of secrets.
    pub secrets: Seen<BTreeMap<Utf8PathBuf, SecretFacts>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct System {
    /// `/etc/os-release`.
    pub os: Seen<BTreeMap<String, String>>,
    /// `/etc/NIXOS` is there.
    pub nixos: Seen<bool>,
    /// `/etc/dgx-release` without its serial number; none when there is no such file.
    pub dgx: Seen<Option<BTreeMap<String, String>>>,
    /// The machine's product name.
    pub product: Seen<Option<String>>,
    /// As `uname -r` says it.
    pub kernel: Seen<String>,
    /// As `uname -m` says it.
    pub arch: Seen<String>,
    /// The name of process 1.
    pub init: Seen<String>,
    /// None when there is no systemd.
    pub systemd: Seen<Option<u32>>,
    /// What kind of container this is, if it is one.
    pub container: Seen<Option<String>>,
    /// The controllers of cgroup version 2; none when another version is in charge.
    pub cgroup: Seen<Option<Vec<String>>>,
    pub clock_synchronised: Seen<bool>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    pub free_bytes: u64,
    pub total_bytes: u64,
    pub free_inodes: u64,
    /// 0: the file system makes them as it needs them.
    pub total_inodes: u64,
    /// Tells file systems apart.
    pub device: u64,
    pub read_only: bool,
    pub no_exec: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    pub total_bytes: u64,
    pub available_bytes: u64,
    pub swap_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    Tcp,
    Udp,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    pub protocol: Protocol,
    pub address: std::net::IpAddr,
    pub port: u16,
    /// `name (pid 12)`.
    #[serde(default)]
    pub process: Seen<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Network {
    pub host_name: Seen<String>,
    /// Name servers of `/etc/resolv.conf`.
    pub resolvers: Seen<Vec<String>>,
    /// Proxy variables by their names in lower case, without credentials.
    pub proxies: BTreeMap<String, String>,
    /// By `host:port`: what came of a try to connect.
    pub reach: BTreeMap<String, Attempt>,
}

/// Something that was really tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attempt {
    pub ok: bool,
    /// What was said when it failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub said: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gpu {
    /// NVIDIA's GPUs on the PCI bus.
    pub on_bus: Seen<u32>,
    /// NVIDIA's bridges on the PCI bus: NVSwitches.
    pub switches: Seen<u32>,
    /// The kernel module's version; none when it is not loaded.
    pub driver: Seen<Option<String>>,
    /// Of the GPUs that the driver has taken, in its order.
    pub models: Seen<Vec<String>>,
    /// The library by which GPUs are asked.
    pub nvml: Seen<Option<Utf8PathBuf>>,
    /// Names in `/dev` that begin with `nvidia`.
    pub nodes: Seen<Vec<String>>,
    /// NVIDIA's classes in `/proc/devices`.
    pub classes: Seen<Vec<String>>,
    /// GPU instances that MIG has made.
    pub mig_instances: Seen<u32>,
}

/// What a cluster would collide with.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Kubernetes {
    /// Of those of other clusters, the ones that exist.
    pub paths: Seen<Vec<Utf8PathBuf>>,
    /// IPv4 networks that the host has a route to, the default one left out.
    pub routes: Seen<Vec<String>>,
}

impl Kubernetes {
    fn is_unknown(&self) -> bool {
        *self == Self::default()
    }
}

/// Names and paths that Fettle wants for itself. Users of a directory service are not among them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Names {
    /// Of `fettle` and `fettle-worker`, those that exist.
    pub users: Seen<BTreeMap<String, User>>,
    /// Of these and `docker`, those that exist, with their members.
    pub groups: Seen<BTreeMap<String, Group>>,
    /// Managed paths of ours that exist.
    pub paths: Seen<Vec<Utf8PathBuf>>,
    /// None when there is no Docker socket.
    pub docker_socket: Seen<Option<Stat>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    pub uid: u32,
    pub shell: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    pub gid: u32,
    #[serde(default)]
    pub members: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    File,
    Dir,
    Link,
    Other,
}

/// Links are not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stat {
    pub kind: Kind,
    /// Permission bits, written `"0640"`.
    #[serde(with = "octal")]
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub bytes: u64,
    #[serde(default)]
    pub inode: u64,
}

mod octal {
    use serde::{Deserialize as _, Deserializer, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands the field over so")]
    pub(super) fn serialize<S: Serializer>(mode: &u32, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{mode:04o}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
        let text = String::deserialize(deserializer)?;
        u32::from_str_radix(&text, 8).map_err(serde::de::Error::custom)
    }
}

/// What earlier runs of the installer left.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Installed {
    pub receipt: Seen<ReceiptFacts>,
    pub journal: Seen<JournalFacts>,
    /// The process that holds the installer's lock.
    pub lock: Seen<Option<u32>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ReceiptFacts {
    None,
    /// It is there and makes no sense, and why.
    Unreadable(String),
    Present {
        schema: u32,
        version: String,
        mode: String,
        /// When the release that runs was installed.
        installed: Option<Timestamp>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum JournalFacts {
    None,
    Ended,
    /// With the time at which the run began, as far as it can be read.
    Unfinished(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SandboxFacts {
    /// The namespaces of level `full`, made by an ordinary user.
    pub namespaces: Seen<Attempt>,
    /// The newest landlock ABI that the kernel offers, as far as the sandbox asks (6); 0 when there is none.
    pub landlock_abi: Seen<u32>,
    /// The kernel gives rights in new user namespaces to profiled programs only.
    pub apparmor_restricts: Seen<bool>,
    /// Ours is among the profiles that the kernel has.
    pub profile_loaded: Seen<bool>,
    /// None when there is no SELinux.
    pub selinux_enforces: Seen<Option<bool>>,
    pub max_user_namespaces: Seen<u64>,
    /// Debian's switch; none on kernels that lack it.
    pub unprivileged_clone: Seen<Option<bool>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[derive(Default)]
pub struct Unit {
    /// `loaded`, `not-found`, `masked`, …
    pub load: String,
    /// `active`, `inactive`, `failed`, …
    pub active: String,
    /// `enabled`, `disabled`, `static`, …
    pub enabled: String,
    /// 0: systemd does not watch it.
    pub watchdog_s: u64,
    /// Its files are newer than what systemd has read.
    pub needs_reload: bool,
}

impl Unit {
    pub fn is_there(&self) -> bool {
        self.load == "loaded"
    }

    pub fn is_active(&self) -> bool {
        self.active == "active"
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Updates {
    /// What installs security updates without being asked.
    pub automatic: Seen<Option<String>>,
    pub reboot_required: Seen<bool>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Backup {
    /// The last time a backup was restored on trial and found good.
    pub verified: Seen<Option<Timestamp>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigFacts {
    pub listen: String,
    pub internal_listen: String,
    pub app: bool,
    pub read_token: bool,
    pub write_token: bool,
    pub webhook_secret: bool,
    /// Labels are looked for, and no webhook is needed.
    #[serde(default)]
    pub polls: bool,
    pub min_level: SandboxLevel,
    pub prepare_network: PrepareNetwork,
    /// Models that are asked over plain HTTP on another host.
    #[serde(default)]
    pub plain_models: Vec<String>,
}

/// What may be told about a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretFacts {
    /// None: the configuration names it and it is not there.
    pub file: Option<Stat>,
    #[serde(default)]
    pub strength: Seen<Strength>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strength {
    Empty,
    /// What examples and habits put there.
    Placeholder,
    Short,
    Fine,
}

impl HostFacts {
    pub fn is_root(&self) -> Result<bool, &Unknown> {
        self.uid.get().map(|uid| *uid == 0)
    }

    pub fn disk(&self, path: &str) -> Result<&Disk, &Unknown> {
        static NOT_ASKED: std::sync::LazyLock<Unknown> =
            std::sync::LazyLock::new(|| Unknown { why: "it was not recorded".to_owned() });
        self.disks.get(camino::Utf8Path::new(path)).map_or(Err(&NOT_ASKED), Seen::get)
    }

    /// A unit that systemd does not know is one that is not there.
    pub fn unit(&self, name: &str) -> Result<Unit, &Unknown> {
        Ok(self.units.get()?.get(name).cloned().unwrap_or_default())
    }

    pub fn has_program(&self, name: &str) -> Result<bool, &Unknown> {
        Ok(self.programs.get()?.iter().any(|one| one == name))
    }

    pub fn has_gpu(&self) -> Result<bool, &Unknown> {
        Ok(*self.gpu.on_bus.get()? > 0 || !self.gpu.models.get()?.is_empty())
    }

    /// 1 or 2 inside the Windows Subsystem for Linux.
    pub fn wsl(&self) -> Result<Option<u8>, &Unknown> {
        let kernel = self.system.kernel.get()?;
        Ok(match kernel {
            kernel if kernel.contains("WSL2") || kernel.contains("microsoft-standard") => Some(2),
            kernel if kernel.ends_with("-Microsoft") => Some(1),
            _ => None,
        })
    }

    pub fn os(&self, key: &str) -> Result<&str, &Unknown> {
        Ok(self.system.os.get()?.get(key).map_or("", String::as_str))
    }

    /// For people: `DGX OS 7.4.0 on Ubuntu 24.04.3 LTS`.
    pub fn os_name(&self) -> Result<String, &Unknown> {
        let name = match self.os("PRETTY_NAME")? {
            "" => self.os("ID")?,
            name => name,
        };
        let dgx = self.system.dgx.known().and_then(Option::as_ref);
        let version = dgx.and_then(|dgx| dgx.get("DGX_OTA_VERSION").or_else(|| dgx.get("DGX_SWBUILD_VERSION")));
        Ok(match version {
            Some(version) => format!("DGX OS {version} on {name}"),
            None if dgx.is_some() => format!("DGX OS on {name}"),
            None => name.to_owned(),
        })
    }
}
