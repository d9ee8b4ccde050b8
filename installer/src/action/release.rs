//! A release tree on the host, and the link that says which one runs.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use super::{ActError, ActResult, Action, Check, Description, Trace};
use crate::host::{Attrs, Entry, Host, HostView, sha256};
use crate::layout::COMMANDS;

pub const MANIFEST: &str = "manifest.json";
/// The schema that this installer reads.
const SCHEMA: u32 = 1;

/// `manifest.json` of a release tree: every other file in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub schema: u32,
    pub version: String,
    /// As in `uname -m`.
    pub arch: String,
    /// The oldest release that can read what this one writes into the ledger.
    pub oldest_reader: u32,
    /// By path inside the tree.
    pub files: BTreeMap<Utf8PathBuf, ManifestFile>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFile {
    pub sha256: String,
    /// Octal digits.
    pub mode: String,
}

#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("it cannot be read as a manifest: {0}")]
    Unreadable(#[from] serde_json::Error),
    #[error("it has schema {0}, this installer reads {SCHEMA}; use the installer of that release")]
    Newer(u32),
    #[error("it names the path `{0}`, which leaves the tree")]
    Path(Utf8PathBuf),
    #[error("{0:?} is no version, and a folder is called by it")]
    Version(String),
    #[error("the mode `{0}` is not octal")]
    Mode(String),
}

impl Manifest {
    /// Errors when a path could lead out of the tree: the manifest may come from anywhere.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let manifest: Self = serde_json::from_slice(bytes)?;
        if manifest.schema != SCHEMA {
            return Err(ManifestError::Newer(manifest.schema));
        }
        let plain = |path: &Utf8Path| {
            path.components().all(|part| matches!(part, camino::Utf8Component::Normal(_))) && !path.as_str().is_empty()
        };
        if let Some(path) = manifest.files.keys().find(|path| !plain(path)) {
            return Err(ManifestError::Path(path.clone()));
        }
        for file in manifest.files.values() {
            file.mode()?;
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".+-_".contains(&byte);
        if !manifest.version.starts_with(|c: char| c.is_ascii_alphanumeric()) || !manifest.version.bytes().all(plain) {
            return Err(ManifestError::Version(manifest.version));
        }
        Ok(manifest)
    }
}

impl ManifestFile {
    pub fn mode(&self) -> Result<u32, ManifestError> {
        let mode = u32::from_str_radix(&self.mode, 8).ok().filter(|mode| *mode <= 0o777);
        mode.ok_or_else(|| ManifestError::Mode(self.mode.clone()))
    }
}

pub(super) fn describe(action: &Action) -> Description {
    match action {
        Action::Release { source, path, .. } => Description {
            what: format!("copy the release {source} to {path}, every file verified"),
            why: "units call it by its link, so that an upgrade is one rename".to_owned(),
            revert: "the copy is removed".to_owned(),
        },
        Action::SwitchRelease { path, target } => Description {
            what: format!("let {path} lead to {target}"),
            why: "units call the programs through this link".to_owned(),
            revert: "leads to where it led before".to_owned(),
        },
        Action::Link { path, target } => Description {
            what: format!("let {path} lead to {target}"),
            why: "people find the program by its name".to_owned(),
            revert: "is removed, or leads to where it led before".to_owned(),
        },
        _ => unreachable!("only releases are described here"),
    }
}

pub(super) fn check(host: &dyn HostView, path: &Utf8Path, manifest_sha256: &str) -> ActResult<Check> {
    let manifest = path.join(MANIFEST);
    match host.entry(&manifest)? {
        Entry::Absent => return Ok(Check::Needed("it is not there".to_owned())),
        Entry::File { sha256, .. } if sha256 == manifest_sha256 => {}
        _ => return Ok(Check::Foreign(format!("{manifest} is not the one of this release"))),
    }
    match differing(host, path, &read_manifest(host, path)?)? {
        None => Ok(Check::Done),
        Some(file) => Ok(Check::Foreign(format!("{file} is not what the release brought"))),
    }
}

fn read_manifest(host: &dyn HostView, tree: &Utf8Path) -> ActResult<Manifest> {
    let path = tree.join(MANIFEST);
    let refused = |error: ManifestError| ActError::Refused(format!("{path}: {error}"));
    Manifest::parse(&host.read(&path)?).map_err(refused)
}

/// Copies beside the final place and renames: a release folder that exists is whole.
pub(super) fn copy(host: &mut dyn Host, source: &Utf8Path, path: &Utf8Path, manifest_sha256: &str) -> ActResult<Trace> {
    if host.entry(path)?.is_absent() {
        let staging = path.with_file_name(format!(".{}", path.file_name().unwrap_or("release")));
        host.remove_tree(&staging)?;
        let bytes = host.read(&source.join(MANIFEST))?;
        if sha256(&bytes) != manifest_sha256 {
            return Err(ActError::Refused(format!("{source} has changed since the plan was made; make a new plan")));
        }
        let manifest = read_manifest(host, source)?;
        let folder = Attrs::root(0o755);
        host.mkdir(&staging, &folder)?;
        for (name, file) in &manifest.files {
            for parent in folders(name) {
                host.mkdir(&staging.join(parent), &folder)?;
            }
            let mode = file.mode().map_err(|error| ActError::Refused(format!("{source}: {error}")))?;
            host.copy(&source.join(name), &staging.join(name), &Attrs::root(mode))?;
        }
        if let Some(file) = differing(host, &staging, &manifest)? {
            return Err(ActError::Refused(format!(
                "{file} does not have the hash that {source}/{MANIFEST} names; get the release again"
            )));
        }
        host.write(&staging.join(MANIFEST), &bytes, &Attrs::root(0o644))?;
        host.rename(&staging, path)?;
    }
    Ok(Trace::Path { entry: host.entry(path)?, saved: None })
}

/// The first file that is not as the manifest says.
fn differing(host: &dyn HostView, tree: &Utf8Path, manifest: &Manifest) -> ActResult<Option<Utf8PathBuf>> {
    for (name, wanted) in &manifest.files {
        let path = tree.join(name);
        if !matches!(host.entry(&path)?, Entry::File { sha256, .. } if sha256 == wanted.sha256) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Every folder above `name`, outermost first, inside the tree.
fn folders(name: &Utf8Path) -> Vec<&Utf8Path> {
    let mut above: Vec<&Utf8Path> = name.ancestors().skip(1).filter(|path| !path.as_str().is_empty()).collect();
    above.reverse();
    above
}

pub(super) fn check_link(host: &dyn HostView, path: &Utf8Path, target: &Utf8Path) -> ActResult<Check> {
    Ok(match host.entry(path)? {
        Entry::Link { target: now } if now == target => Check::Done,
        Entry::Link { target: now } => Check::Needed(format!("it leads to {now}")),
        Entry::File { .. } if path.starts_with(COMMANDS) => Check::Blocked(format!(
            "{path} is there and not ours; move it away, or say commands = false in the answers"
        )),
        Entry::Absent => Check::Needed("it is not there".to_owned()),
        _ => Check::Blocked(format!("{path} is there and no link; move it away")),
    })
}

pub(super) fn switch(host: &mut dyn Host, path: &Utf8Path, target: &Utf8Path) -> ActResult<Trace> {
    host.link(path, target)?;
    Ok(Trace::Path { entry: host.entry(path)?, saved: None })
}

pub(super) fn remove(host: &mut dyn Host, path: &Utf8Path, before: &Trace) -> ActResult<()> {
    if matches!(before, Trace::Path { entry: Entry::Absent, .. }) {
        host.remove_tree(&path.with_file_name(format!(".{}", path.file_name().unwrap_or("release"))))?;
        host.remove_tree(path)?;
    }
    Ok(())
}

pub(super) fn switch_back(host: &mut dyn Host, path: &Utf8Path, before: &Trace) -> ActResult<()> {
    match before {
        Trace::Path { entry: Entry::Link { target }, .. } => Ok(host.link(path, target)?),
        _ => Ok(host.remove(path)?),
    }
}
