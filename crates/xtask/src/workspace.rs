//! What cargo says about this workspace, and where things lie in it.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use cargo_metadata::camino::{Utf8Path, Utf8PathBuf};
use cargo_metadata::{Metadata, MetadataCommand, Package, TargetKind};

const PREFIX: &str = "fettle-";
const CRASH_POINTS: &str = "crash-points";

pub(crate) struct Workspace {
    metadata: Metadata,
}

impl Workspace {
    /// The workspace that this program was built in.
    pub(crate) fn load() -> anyhow::Result<Self> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let metadata = MetadataCommand::new().manifest_path(manifest).no_deps().exec().context("while asking cargo")?;
        Ok(Self { metadata })
    }

    pub(crate) fn root(&self) -> &Utf8Path {
        &self.metadata.workspace_root
    }

    pub(crate) fn members(&self) -> impl Iterator<Item = &Package> {
        self.metadata.workspace_packages().into_iter()
    }

    pub(crate) fn has_binary(&self, name: &str) -> bool {
        self.members()
            .flat_map(|package| &package.targets)
            .any(|target| target.name == name && target.kind.contains(&TargetKind::Bin))
    }

    pub(crate) fn version(&self, package: &str) -> Option<String> {
        self.members().find(|member| member.name == package).map(|member| member.version.to_string())
    }

    /// The folder of all that is built, within the workspace or wherever cargo is told to put it.
    pub(crate) fn target(&self) -> &Utf8Path {
        &self.metadata.target_directory
    }

    /// Where a build in `profile`'s folder leaves what is called `name`.
    pub(crate) fn built(&self, folder: &str, name: &str) -> Utf8PathBuf {
        self.metadata.target_directory.join(folder).join(name)
    }

    /// Cargo, at the root of the workspace, and only with the dependencies that are locked.
    pub(crate) fn cargo(&self, subcommand: &str) -> Command {
        let mut command = Command::new("cargo");
        command.current_dir(self.root()).args([subcommand, "--locked"]);
        command
    }

    /// `--features` that arm the crash points in every member that has them, as tests need it.
    pub(crate) fn crash_points(&self) -> Vec<String> {
        let features: Vec<String> = self
            .members()
            .filter(|package| package.features.contains_key(CRASH_POINTS))
            .map(|package| format!("{}/{CRASH_POINTS}", package.name))
            .collect();
        if features.is_empty() { Vec::new() } else { vec!["--features".to_owned(), features.join(",")] }
    }

    /// What git tracks, and what it would track if it were added; relative to the root.
    pub(crate) fn files(&self) -> anyhow::Result<Vec<Utf8PathBuf>> {
        let output = Command::new("git")
            .current_dir(self.root())
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .output()
            .context("while starting git")?;
        ensure!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr).trim());
        let listed = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
        let mut files: Vec<Utf8PathBuf> = listed
            .split_terminator('\0')
            .map(Utf8PathBuf::from)
            .filter(|file| self.root().join(file).exists())
            .collect();
        files.sort();
        files.dedup();
        Ok(files)
    }
}

/// A member's name without the prefix that all of them share: its row in the tables.
pub(crate) fn short(package: &str) -> &str {
    package.strip_prefix(PREFIX).unwrap_or(package)
}
