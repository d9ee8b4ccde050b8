//! What an installation consists of. Each action can be described, checked, executed and taken back; executing is safe to
//! repeat with the same `before`, so a run that was killed anywhere simply goes on.

mod cluster;
pub(crate) mod file;
mod gate;
mod nixos;
mod release;
mod swap;
mod system;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use crate::answers::SecretFrom;
use crate::host::{Attrs, Entry, Host, HostError, HostView, UnitState};

pub use cluster::{Act as ClusterAct, Kind as AddOnKind, Places, Release as HelmRelease, Wanted as Awaited};
pub use gate::Gate;
pub use release::{MANIFEST, Manifest, ManifestError, ManifestFile};

/// Whose a path is, once it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keeping {
    /// The installer's: replaced by the next release, removed with it. An edit by somebody else is a conflict.
    Managed,
    /// Written once, then the operator's; only `--purge` removes it.
    Seeded,
    /// The installer's, but only `--purge` removes it.
    Kept,
    /// The system's: a folder that most hosts have, made where it is missing, and never changed.
    System,
}

/// Some actions matter on one way only: units must be read again after they were written, and, on the way back, after they
/// were removed. Such an action stands on both sides of what it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    Forth,
    Back,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum Action {
    Dir {
        path: Utf8PathBuf,
        attrs: Attrs,
        keeping: Keeping,
    },
    File {
        path: Utf8PathBuf,
        attrs: Attrs,
        text: String,
        keeping: Keeping,
        why: String,
    },
    /// Random bytes in hexadecimal, never shown.
    GenerateSecret {
        path: Utf8PathBuf,
        bytes: usize,
        why: String,
    },
    /// A secret that the operator has in another file.
    CopySecret {
        from: SecretFrom,
        path: Utf8PathBuf,
    },
    /// A secret that the operator puts there: a new value of it is told to the units that have it.
    WatchSecret {
        path: Utf8PathBuf,
    },
    /// A symbolic link, so that people find a program by its name.
    Link {
        path: Utf8PathBuf,
        target: Utf8PathBuf,
    },
    /// A release tree, copied and verified file by file.
    Release {
        source: Utf8PathBuf,
        path: Utf8PathBuf,
        manifest_sha256: String,
    },
    SwitchRelease {
        path: Utf8PathBuf,
        target: Utf8PathBuf,
    },
    Users {
        file: Utf8PathBuf,
        users: Vec<String>,
    },
    /// The configuration as the release about to run reads it.
    CheckConfig {
        program: Utf8PathBuf,
        config: Utf8PathBuf,
    },
    AppArmor {
        profile: Utf8PathBuf,
    },
    Reload {
        way: Way,
    },
    Enable {
        unit: String,
    },
    Start {
        unit: String,
    },
    Restart {
        units: Vec<String>,
        way: Way,
    },
    /// Something else's unit, stopped and disabled; taken back, it is as it was.
    Retire {
        unit: String,
    },
    /// Units, in this order. Taken back, those that ran are started again, in the reverse order.
    Stop {
        units: Vec<String>,
    },
    /// What is at `from` takes the place of what is at `path`, which is kept at `aside` until somebody removes it. All three
    /// are on one file system.
    Swap {
        from: Utf8PathBuf,
        path: Utf8PathBuf,
        aside: Utf8PathBuf,
    },
    /// Does nothing, until it is taken back: then what services left behind while they ran goes with them.
    Sweep {
        units: Vec<String>,
        folders: Vec<Utf8PathBuf>,
        files: Vec<Utf8PathBuf>,
    },
    /// The module that NixOS imports. Its owner laid a placeholder out for it, which is there again afterwards.
    NixosModule {
        path: Utf8PathBuf,
        text: String,
    },
    /// `nixos-rebuild switch`.
    NixosRebuild {
        way: Way,
    },
    /// The smoke list of the release that now runs, tried by its own installer.
    Smoke {
        program: Utf8PathBuf,
    },
    /// Ends well when the installed services answer.
    HealthGate {
        gate: Gate,
    },
    /// Of mode k3s.
    Cluster {
        act: ClusterAct,
    },
}

/// What was there before an action, or is there after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "of")]
pub enum Trace {
    Nothing,
    Path {
        entry: Entry,
        /// Where the old content is kept.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        saved: Option<Utf8PathBuf>,
    },
    /// The users that were not there.
    Users {
        absent: Vec<String>,
    },
    Unit {
        state: UnitState,
    },
    /// The units that ran.
    Active {
        units: Vec<String>,
    },
    /// What something was set to; none when it was not there.
    Value {
        text: Option<String>,
    },
    /// The revision of a release that ran; none when there was none.
    Revision {
        number: Option<u32>,
    },
    /// What was there of others where pods leave something behind.
    Places(Places),
}

/// Whether there is something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    Done,
    /// With what would change, for people.
    Needed(String),
    /// Somebody else has changed it since, or made it before us.
    Foreign(String),
    /// It cannot be done here, and why.
    Blocked(String),
}

/// For `--explain` and progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// An imperative sentence without its full stop.
    pub what: String,
    pub why: String,
    pub revert: String,
}

#[derive(Debug, thiserror::Error)]
pub enum ActError {
    #[error(transparent)]
    Host(#[from] HostError),
    /// What was found is not what the plan was made for.
    #[error("{0}")]
    Refused(String),
    #[error("the health gate did not pass: {0}")]
    Gate(String),
}

pub type ActResult<T> = Result<T, ActError>;

/// Where old content is kept until it is not needed any more.
pub struct Saving<'a> {
    pub folder: &'a Utf8Path,
    /// Tells apart what one run saves.
    pub number: usize,
}

impl Action {
    /// The identity across runs: the same thing in the next release has the same key.
    pub fn key(&self) -> String {
        match self {
            Self::Dir { path, .. } => format!("dir:{path}"),
            Self::File { path, .. } => format!("file:{path}"),
            Self::GenerateSecret { path, .. } | Self::CopySecret { path, .. } | Self::WatchSecret { path } => {
                format!("secret:{path}")
            }
            Self::Link { path, .. } => format!("link:{path}"),
            Self::Release { path, .. } => format!("release:{path}"),
            Self::SwitchRelease { path, .. } => format!("switch:{path}"),
            Self::Users { file, .. } => format!("users:{file}"),
            Self::CheckConfig { config, .. } => format!("check-config:{config}"),
            Self::AppArmor { profile } => format!("apparmor:{profile}"),
            Self::Reload { way: Way::Forth } => "reload:forth".to_owned(),
            Self::Reload { way: Way::Back } => "reload:back".to_owned(),
            Self::Enable { unit } => format!("enable:{unit}"),
            Self::Start { unit } => format!("start:{unit}"),
            Self::Retire { unit } => format!("retire:{unit}"),
            Self::Restart { way: Way::Forth, .. } => "restart:forth".to_owned(),
            Self::Restart { way: Way::Back, .. } => "restart:back".to_owned(),
            Self::Stop { .. } => "stop".to_owned(),
            Self::Sweep { .. } => "sweep".to_owned(),
            Self::Swap { path, .. } => format!("swap:{path}"),
            Self::HealthGate { .. } => "gate".to_owned(),
            Self::NixosModule { .. } => "nixos-module".to_owned(),
            Self::NixosRebuild { way: Way::Forth } => "nixos-rebuild:forth".to_owned(),
            Self::NixosRebuild { way: Way::Back } => "nixos-rebuild:back".to_owned(),
            Self::Smoke { .. } => "smoke".to_owned(),
            Self::Cluster { act } => act.key(),
        }
    }

    /// Whether it leaves something behind that an uninstallation takes back.
    pub fn is_lasting(&self) -> bool {
        if let Self::Cluster { act } = self {
            return act.is_lasting();
        }
        let passing = matches!(self, Self::CheckConfig { .. } | Self::Restart { .. } | Self::HealthGate { .. });
        !passing && !matches!(self, Self::Smoke { .. } | Self::Stop { .. } | Self::Swap { .. })
    }

    /// Whether an uninstallation leaves it: data, configuration, secrets, and the users who own them. `--purge` does not.
    pub fn is_kept(&self) -> bool {
        match self {
            Self::Dir { keeping, .. } | Self::File { keeping, .. } => {
                matches!(keeping, Keeping::Seeded | Keeping::Kept)
            }
            Self::GenerateSecret { .. } | Self::CopySecret { .. } | Self::WatchSecret { .. } | Self::Users { .. } => {
                true
            }
            _ => false,
        }
    }

    pub fn describe(&self) -> Description {
        match self {
            Self::Dir { .. }
            | Self::File { .. }
            | Self::GenerateSecret { .. }
            | Self::CopySecret { .. }
            | Self::WatchSecret { .. } => file::describe(self),
            Self::Release { .. } | Self::SwitchRelease { .. } | Self::Link { .. } => release::describe(self),
            Self::Swap { .. } => swap::describe(self),
            Self::HealthGate { gate } => gate.describe(),
            Self::Cluster { act } => act.describe(),
            Self::NixosModule { .. } | Self::NixosRebuild { .. } => nixos::describe(self),
            _ => system::describe(self),
        }
    }

    /// `known` is what the receipt says that we left there.
    pub fn check(&self, host: &dyn HostView, known: Option<&Trace>) -> ActResult<Check> {
        match self {
            Self::Dir { path, attrs, keeping } => file::check_dir(host, path, attrs, *keeping),
            Self::File { path, attrs, text, keeping, .. } => {
                file::check_file(host, path, attrs, text.as_bytes(), *keeping, known)
            }
            Self::GenerateSecret { path, .. } => file::check_secret(host, path, known),
            Self::CopySecret { from, path } => file::check_copied(host, from, path, known),
            Self::WatchSecret { path } => file::check_watched(host, path, known),
            Self::Link { path, target } => release::check_link(host, path, target),
            Self::Release { path, manifest_sha256, .. } => release::check(host, path, manifest_sha256),
            Self::SwitchRelease { path, target } => release::check_link(host, path, target),
            Self::Swap { from, .. } => swap::check(host, from),
            Self::HealthGate { gate } => gate.check(host),
            Self::Cluster { act } => act.check(host, known),
            Self::NixosModule { path, text } => nixos::check(host, path, text, known),
            // Whether it is needed follows from what else is done; the planner drops it.
            Self::NixosRebuild { .. } => Ok(Check::Needed(String::new())),
            Self::Sweep { .. } if known.is_some() => Ok(Check::Done),
            _ => system::check(self, host),
        }
    }

    /// What is there now, saved so far as reverting needs it. Called once, before the intent is journaled.
    pub fn before(&self, host: &mut dyn Host, saving: &Saving<'_>) -> ActResult<Trace> {
        match self {
            Self::File { path, .. } | Self::CopySecret { path, .. } | Self::NixosModule { path, .. } => {
                file::save(host, path, saving)
            }
            Self::Dir { path, .. }
            | Self::GenerateSecret { path, .. }
            | Self::Release { path, .. }
            | Self::Swap { path, .. }
            | Self::WatchSecret { path }
            | Self::Link { path, .. }
            | Self::SwitchRelease { path, .. } => Ok(Trace::Path { entry: host.entry(path)?, saved: None }),
            Self::Cluster { act } => act.before(host, saving),
            _ => system::before(self, host),
        }
    }

    /// Safe to repeat with the same `before`. Returns what is there afterwards.
    pub fn execute(&self, host: &mut dyn Host, before: &Trace) -> ActResult<Trace> {
        match self {
            Self::Dir { path, attrs, .. } => file::make_dir(host, path, attrs),
            Self::File { path, attrs, text, keeping, .. } => {
                file::write(host, path, attrs, text.as_bytes(), *keeping, before)
            }
            Self::GenerateSecret { path, bytes, .. } => file::generate(host, path, *bytes),
            Self::CopySecret { from, path } => file::copy_secret(host, from, path),
            Self::WatchSecret { path } => file::seen(host, path),
            Self::Link { path, target } => release::switch(host, path, target),
            Self::Release { source, path, manifest_sha256 } => release::copy(host, source, path, manifest_sha256),
            Self::SwitchRelease { path, target } => release::switch(host, path, target),
            Self::Swap { from, path, aside } => swap::execute(host, from, path, aside),
            Self::HealthGate { gate } => gate.wait(host),
            Self::Cluster { act } => act.execute(host),
            Self::NixosModule { path, text } => nixos::write(host, path, text, before),
            Self::NixosRebuild { way: Way::Forth } => nixos::rebuild(host),
            Self::NixosRebuild { way: Way::Back } => Ok(Trace::Nothing),
            _ => system::execute(self, host),
        }
    }

    /// Makes `before` true again; safe to repeat. `after` is what we left, absent when the action may not have ended.
    pub fn revert(&self, host: &mut dyn Host, before: &Trace, after: Option<&Trace>) -> ActResult<()> {
        match self {
            Self::Dir { path, keeping, .. } => file::revert_dir(host, path, *keeping, before),
            // The operator's: whatever is in it now is meant.
            Self::File { path, keeping: Keeping::Seeded, .. }
                if matches!(before, Trace::Path { entry: Entry::File { .. }, .. }) =>
            {
                file::revert_attrs(host, path, before)
            }
            Self::WatchSecret { .. } => Ok(()),
            Self::File { path, .. }
            | Self::GenerateSecret { path, .. }
            | Self::CopySecret { path, .. }
            | Self::NixosModule { path, .. } => file::revert_file(host, path, before, after),
            Self::Release { path, .. } => release::remove(host, path, before),
            Self::SwitchRelease { path, .. } | Self::Link { path, .. } => release::switch_back(host, path, before),
            Self::Swap { from, path, aside } => swap::revert(host, from, path, aside, before),
            Self::HealthGate { .. } | Self::NixosRebuild { way: Way::Forth } => Ok(()),
            Self::NixosRebuild { way: Way::Back } => nixos::rebuild(host).map(drop),
            Self::Cluster { act } => act.revert(host, before, after),
            _ => system::revert(self, host, before),
        }
    }
}
