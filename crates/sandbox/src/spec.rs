//! What the trusted side and the helper say to each other. Both come from one build, so the form carries no version.

use camino::Utf8PathBuf;
use fettle_app::ports::sandbox::SandboxLevel;
use serde::{Deserialize, Serialize};

/// Everything the helper needs, all paths absolute and, on the host's side, free of symlinks.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) level: SandboxLevel,
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    /// The working directory, as the command sees it.
    pub(crate) cwd: Utf8PathBuf,
    /// A folder of this command alone: mount point of the new root at `full`, holder of `tmp` and `home` at `landlock`.
    pub(crate) scratch: Utf8PathBuf,
    pub(crate) workspace: Bind,
    pub(crate) mounts: Vec<Bind>,
    /// Read-only parts of the host.
    pub(crate) system: Vec<Bind>,
    /// Links in the root folder, such as `/bin` to `usr/bin`: (link, target).
    pub(crate) symlinks: Vec<(Utf8PathBuf, Utf8PathBuf)>,
    /// Files made for the sandbox, such as `/etc/passwd`: (path inside, content). Used at `full` only.
    pub(crate) files: Vec<(Utf8PathBuf, String)>,
    pub(crate) network: SpecNetwork,
    /// Whether a fresh `/proc` is mounted; container runtimes that mask parts of theirs refuse it.
    pub(crate) proc: bool,
    /// Whether the process numbers are capped, which needs the former and a kernel that can.
    pub(crate) cap: bool,
    pub(crate) landlock_abi: u32,
    pub(crate) temporary_bytes: u64,
    pub(crate) open_files: u32,
    pub(crate) processes: u32,
    pub(crate) cpus: u32,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Bind {
    pub(crate) host: Utf8PathBuf,
    pub(crate) inside: Utf8PathBuf,
    pub(crate) writable: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SpecNetwork {
    None,
    /// A loopback of its own whose listener at [`PROXY_PORT`] is handed to the trusted side.
    Proxy,
    Host,
}

/// Where the proxy listens inside. The network namespace is new, so nothing else can be there yet.
pub(crate) const PROXY_PORT: u16 = 3128;

pub(crate) const WORKSPACE: &str = "/workspace";
pub(crate) const HOME: &str = "/home/fettle";
pub(crate) const TEMPORARY: &str = "/tmp";

/// One line from the helper.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The proxy's listener travels with this line.
    Listening,
    /// The command has ended and nothing of its tree is left; the status is that of `wait`.
    Ended { status: i32 },
    /// The command had more processes than allowed; nothing of its tree is left.
    TooMany,
    /// The init process of the sandbox died without a word, with this status of `wait`.
    Lost { status: i32 },
    /// The sandbox was not entered.
    Refused(Refusal),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Refusal {
    pub(crate) fault: Fault,
    /// What was tried, e.g. "mount /proc".
    pub(crate) step: String,
    pub(crate) detail: String,
    pub(crate) errno: Option<i32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Fault {
    /// The host refuses a part of the walls.
    Walls,
    /// Mounting the fresh `/proc` was refused; the rest may work without it.
    Proc,
    /// Capping the process numbers was refused; other limits may do.
    Cap,
    /// The request cannot be carried out, e.g. a mount point that is a symlink.
    Request,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.step, self.detail)
    }
}
