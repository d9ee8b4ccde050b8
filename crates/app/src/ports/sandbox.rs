//! Running a command where it can reach nothing but its workspace.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::BoxError;

/// How strong the walls are; found by real attempts at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxLevel {
    /// User namespaces refused: landlock and seccomp only, and no socket at all.
    Landlock,
    /// All namespaces, landlock and seccomp. Whether a cgroup caps memory and processes is [`SandboxReport::cgroup`].
    Full,
}

impl SandboxLevel {
    pub fn name(self) -> &'static str {
        match self {
            Self::Landlock => "landlock",
            Self::Full => "full",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxReport {
    pub level: SandboxLevel,
    /// A delegated cgroup caps memory and processes; otherwise rlimits and a watcher do.
    pub cgroup: bool,
    pub landlock_abi: u32,
    /// What is missing for a stronger level and how to get it, one sentence each.
    pub notes: Vec<String>,
}

/// One command. Nothing of the caller's environment, descriptors, network or files is visible beyond what stands here.
#[derive(Debug, Clone)]
pub struct SandboxCommand {
    /// argv[0] is looked up in `env["PATH"]`, inside.
    pub argv: Vec<String>,
    /// Where on the host the workspace lies; inside it is [`Sandbox::workspace_inside`], the working directory.
    pub workspace: Utf8PathBuf,
    pub workspace_access: Access,
    /// Relative to the workspace; empty for its root.
    pub cwd: Utf8PathBuf,
    /// Further host folders or files, e.g. prepared dependency caches and step outputs.
    pub mounts: Vec<Mount>,
    /// The whole environment. `HOME` and `TMPDIR` are private and set by the sandbox.
    pub env: BTreeMap<String, String>,
    pub network: Network,
    pub limits: SandboxLimits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    ReadOnly,
    ReadWrite,
}

/// A host folder or file and where commands see it, both absolute. At level `landlock` nothing can be moved, so there
/// `inside` must equal `host`. A mount point beneath the workspace is made when it is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub host: Utf8PathBuf,
    pub inside: Utf8PathBuf,
    pub access: Access,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// Loopback of its own, nothing else.
    None,
    /// An HTTP proxy that connects only to these host names (port 443 and 80). For preparation, never for a model's commands.
    /// Unavailable at level `landlock`, where it is refused.
    AllowList { hosts: Vec<String> },
    /// The host's network, for preparation when the operator says so.
    Host,
}

/// Named limits of one command (`agent.md`, section 8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxLimits {
    pub time: Duration,
    pub memory_bytes: u64,
    pub processes: u32,
    pub cpus: u32,
    /// The workspace may grow to this.
    pub workspace_bytes: u64,
    pub temporary_bytes: u64,
    pub open_files: u32,
    /// Output beyond this is counted, not kept (the middle goes).
    pub output_kept_bytes: u64,
    /// Output beyond this ends the command.
    pub output_killed_bytes: u64,
}

impl Default for SandboxLimits {
    fn default() -> Self {
        const MIB: u64 = 1024 * 1024;
        Self {
            time: Duration::from_secs(120),
            memory_bytes: 8 * 1024 * MIB,
            processes: 512,
            cpus: 4,
            workspace_bytes: 4 * 1024 * MIB,
            temporary_bytes: 2 * 1024 * MIB,
            open_files: 4096,
            output_kept_bytes: 10 * MIB,
            output_killed_bytes: 100 * MIB,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxOutput {
    pub end: CommandEnd,
    /// Standard output and error as they came, interleaved.
    pub output: Vec<u8>,
    pub bytes_total: u64,
    pub truncated: bool,
    pub took: Duration,
    /// Hosts that the proxy of [`Network::AllowList`] refused, each once, in order; for the Proof. One that is listed comes with the
    /// reason and the entry that would allow it, all without a comma.
    pub denied_hosts: Vec<String>,
}

impl SandboxOutput {
    pub fn succeeded(&self) -> bool {
        self.end == CommandEnd::Exited(0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommandEnd {
    Exited(i32),
    /// Ended by a signal that Fettle did not send.
    Signalled(i32),
    TimedOut,
    /// A limit was hit.
    Killed(KilledBy),
    Cancelled,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KilledBy {
    Memory,
    /// Where an rlimit or cgroup holds the number of processes, making one more just fails; elsewhere the tree is ended.
    Processes,
    Disk,
    Output,
}

#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The wanted walls cannot be had here; never replaced by weaker ones in silence.
    #[error("{0}")]
    Unavailable(String),
    /// A request that makes no sense (a path that does not exist, an empty argv): the caller's bug.
    #[error("{0}")]
    Invalid(String),
    #[error("could not run the sandboxed command")]
    Failed(#[source] BoxError),
}

#[async_trait]
pub trait Sandbox: Send + Sync {
    fn report(&self) -> &SandboxReport;

    /// The absolute path of the workspace as commands see it.
    fn workspace_inside(&self, workspace: &camino::Utf8Path) -> Utf8PathBuf;

    /// Runs one command to its end. When this returns, or is dropped, its whole process tree is dead.
    async fn run(&self, command: &SandboxCommand, cancel: &CancellationToken) -> Result<SandboxOutput, SandboxError>;
}
