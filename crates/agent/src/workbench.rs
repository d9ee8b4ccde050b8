//! Where commands of one Run find their tools: the environment and the mounts that preparation made.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use fettle_app::ports::sandbox::{Access, Mount, Network, SandboxCommand, SandboxLimits};

/// Built once per Run by preparation; every command of the agent and of verification runs with it.
#[derive(Debug, Clone, Default)]
pub struct Workbench {
    /// The allow-listed environment: `PATH LANG TZ TERM CI`, the fixed git identity and what the toolchains need.
    pub env: BTreeMap<String, String>,
    /// Toolchains and dependency caches, read-only.
    pub mounts: Vec<Mount>,
    pub limits: SandboxLimits,
}

impl Workbench {
    /// `sh -c command` in `workspace`, without network.
    pub fn shell(&self, workspace: &Utf8Path, access: Access, command: &str) -> SandboxCommand {
        SandboxCommand {
            argv: vec!["/bin/sh".into(), "-c".into(), command.into()],
            workspace: workspace.to_owned(),
            workspace_access: access,
            cwd: Utf8PathBuf::new(),
            mounts: self.mounts.clone(),
            env: self.env.clone(),
            network: Network::None,
            limits: self.limits,
        }
    }
}
