//! What the installer may see of a host, and what it may do to it. Everything else is decided from values.

#[cfg(test)]
pub mod fake;
mod real;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

pub use real::RealHost;

/// Who owns a path, by name; a number where the host has no name for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub user: String,
    pub group: String,
}

impl Owner {
    pub fn root() -> Self {
        Self::new("root", "root")
    }

    pub fn new(user: &str, group: &str) -> Self {
        Self { user: user.to_owned(), group: group.to_owned() }
    }
}

/// Permission bits and owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attrs {
    pub mode: u32,
    pub owner: Owner,
}

impl Attrs {
    pub fn root(mode: u32) -> Self {
        Self { mode, owner: Owner::root() }
    }
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Entry {
    Absent,
    File {
        sha256: String,
        #[serde(flatten)]
        attrs: Attrs,
    },
    Dir {
        #[serde(flatten)]
        attrs: Attrs,
    },
    Link {
        target: Utf8PathBuf,
    },
    /// A device, socket or pipe: never ours.
    Other,
}

impl Entry {
    pub fn is_absent(&self) -> bool {
        *self == Self::Absent
    }
}

/// A unit as systemd sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UnitState {
    pub enabled: bool,
    /// Active, or on its way there.
    pub active: bool,
    /// There is no such unit.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub absent: bool,
}

/// What a program said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    pub ok: bool,
    /// Both streams, cut to what a person would read.
    pub text: String,
}

/// An HTTP answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("{what} {path}")]
    Path {
        what: &'static str,
        path: Utf8PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// A program ended badly or could not be started; the text names it and holds what it said.
    #[error("{0}")]
    Program(String),
}

pub type HostResult<T> = Result<T, HostError>;

/// Reads only: what `detect`, `preflight`, `plan` and `--dry-run` are given.
pub trait HostView {
    /// Links are not followed.
    fn entry(&self, path: &Utf8Path) -> HostResult<Entry>;
    fn read(&self, path: &Utf8Path) -> HostResult<Vec<u8>>;
    /// Names in a folder, sorted; none when there is no such folder.
    fn list(&self, folder: &Utf8Path) -> HostResult<Vec<String>>;
    fn unit(&self, name: &str) -> HostResult<UnitState>;
    fn has_user(&self, name: &str) -> HostResult<bool>;
    fn has_group(&self, name: &str) -> HostResult<bool>;
    /// Runs a program that changes nothing, such as `fettle check-config`, without the caller's environment.
    fn ask(&self, program: &Utf8Path, arguments: &[&str]) -> HostResult<Said>;
    /// Asks a server on this host.
    fn get(&self, url: &str) -> HostResult<Answer>;
    /// Asks this host by the name in the URL, whatever that name means elsewhere. Whether its certificate is trusted is not what
    /// is asked.
    fn through_ingress(&self, url: &str) -> HostResult<Answer>;
}

/// What is done to units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnitVerb {
    Enable,
    Disable,
    Start,
    Stop,
    /// Only what runs.
    TryRestart,
}

/// Changes. Each is durable when it returns, and safe to repeat.
pub trait Host: HostView {
    /// Makes or replaces a file in one step: nobody sees half of it.
    fn write(&mut self, path: &Utf8Path, bytes: &[u8], attrs: &Attrs) -> HostResult<()>;
    /// Adds to the end of a file, which is made when absent (0600).
    fn append(&mut self, path: &Utf8Path, bytes: &[u8]) -> HostResult<()>;
    /// Makes a folder, or gives an existing one these attributes. Its parent must exist.
    fn mkdir(&mut self, path: &Utf8Path, attrs: &Attrs) -> HostResult<()>;
    fn set_attrs(&mut self, path: &Utf8Path, attrs: &Attrs) -> HostResult<()>;
    /// Copies one file's content.
    fn copy(&mut self, from: &Utf8Path, to: &Utf8Path, attrs: &Attrs) -> HostResult<()>;
    fn rename(&mut self, from: &Utf8Path, to: &Utf8Path) -> HostResult<()>;
    /// Makes or replaces a symbolic link in one step.
    fn link(&mut self, path: &Utf8Path, target: &Utf8Path) -> HostResult<()>;
    /// Removes a file or link; nothing when absent.
    fn remove(&mut self, path: &Utf8Path) -> HostResult<()>;
    /// Removes a folder if it is empty; false when it is not.
    fn rmdir(&mut self, path: &Utf8Path) -> HostResult<bool>;
    /// Removes a folder with all in it; nothing when absent. Never follows links.
    fn remove_tree(&mut self, path: &Utf8Path) -> HostResult<()>;
    fn units(&mut self, verb: UnitVerb, unit: &str) -> HostResult<()>;
    /// Makes systemd read its unit files again.
    fn daemon_reload(&mut self) -> HostResult<()>;
    /// Makes the users and groups of a sysusers.d file.
    fn sysusers(&mut self, file: &Utf8Path) -> HostResult<()>;
    /// Removes a user with its primary group, or a group alone; nothing when absent.
    fn remove_user(&mut self, name: &str) -> HostResult<()>;
    fn load_apparmor(&mut self, profile: &Utf8Path) -> HostResult<()>;
    fn unload_apparmor(&mut self, profile: &Utf8Path) -> HostResult<()>;
    /// Runs a program of ours or the system's that changes the host, such as `nixos-rebuild`.
    fn change(&mut self, program: &Utf8Path, arguments: &[&str]) -> HostResult<Said>;
    /// The same with something on its standard input: the one way on which a secret is handed to a program.
    fn feed(&mut self, program: &Utf8Path, arguments: &[&str], input: &[u8]) -> HostResult<Said>;
    /// Brings a file from elsewhere; what it must be is for the caller to compare.
    fn fetch(&mut self, url: &str, path: &Utf8Path, attrs: &Attrs) -> HostResult<()>;
    /// Ends every process of a control group and of those below it; nothing when there is no such group.
    fn end_processes(&mut self, group: &Utf8Path) -> HostResult<()>;
    /// Bytes nobody can guess.
    fn random(&mut self, count: usize) -> HostResult<Vec<u8>>;
    /// Between looks at something that takes its time.
    fn pause(&mut self);
    /// A place between two durable facts, at which tests end the process.
    fn boundary(&mut self, name: &str);
}

pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes))
}

/// Between two looks at something that takes its time.
pub const PAUSE: std::time::Duration = std::time::Duration::from_millis(500);
