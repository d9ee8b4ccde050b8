//! Requests that make no sense are refused before anything is started.

use camino::{Utf8Component, Utf8Path, Utf8PathBuf};
use fettle_app::ports::sandbox::{Access, Mount, SandboxCommand, SandboxError, SandboxLevel};

use crate::spec::Bind;

/// Belong to the sandbox itself.
const RESERVED: [&str; 4] = ["/proc", "/dev", "/sys", "/.private"];

pub(crate) fn command(command: &SandboxCommand) -> Result<(), SandboxError> {
    if command.argv.first().is_none_or(String::is_empty) {
        return invalid("the command is empty");
    }
    let texts = command.argv.iter().chain(command.env.keys()).chain(command.env.values());
    if texts.clone().any(|text| text.contains('\0')) {
        return invalid("the command or its environment contains a zero byte");
    }
    if let Some(key) = command.env.keys().find(|key| key.is_empty() || key.contains('=')) {
        return invalid(format!("{key:?} is no name of an environment variable"));
    }
    if command.cwd.components().any(|part| !matches!(part, Utf8Component::Normal(_) | Utf8Component::CurDir)) {
        return invalid(format!("the working directory {} leads out of the workspace", command.cwd));
    }
    Ok(())
}

/// The host's side without symlinks; it must exist and be a folder.
pub(crate) fn workspace(path: &Utf8Path, inside: Utf8PathBuf, access: Access) -> Result<Bind, SandboxError> {
    let host = canonical(path)?;
    if !host.is_dir() {
        return invalid(format!("the workspace {path} is not a folder"));
    }
    Ok(Bind { host, inside, writable: access == Access::ReadWrite })
}

pub(crate) fn mounts(mounts: &[Mount], workspace: &Utf8Path, level: SandboxLevel) -> Result<Vec<Bind>, SandboxError> {
    mounts.iter().map(|mount| one_mount(mount, workspace, level)).collect()
}

fn one_mount(mount: &Mount, workspace: &Utf8Path, level: SandboxLevel) -> Result<Bind, SandboxError> {
    let Mount { host, inside, access } = mount;
    let plain = inside.components().all(|part| matches!(part, Utf8Component::RootDir | Utf8Component::Normal(_)));
    if !inside.is_absolute() || !plain || inside.parent().is_none() {
        return invalid(format!("{inside} cannot be a mount point: it must be absolute and without .."));
    }
    if inside == workspace || RESERVED.iter().any(|reserved| inside.starts_with(reserved)) {
        return invalid(format!("{inside} cannot be a mount point: it belongs to the sandbox"));
    }
    if level == SandboxLevel::Landlock && host != inside {
        return Err(SandboxError::Unavailable(format!(
            "{host} cannot appear as {inside}: at sandbox level landlock nothing can be moved"
        )));
    }
    Ok(Bind { host: canonical(host)?, inside: inside.clone(), writable: *access == Access::ReadWrite })
}

fn canonical(path: &Utf8Path) -> Result<Utf8PathBuf, SandboxError> {
    if !path.is_absolute() {
        return invalid(format!("{path} is not absolute"));
    }
    path.canonicalize_utf8().or_else(|e| invalid(format!("{path} cannot be mounted: {e}")))
}

fn invalid<T>(why: impl Into<String>) -> Result<T, SandboxError> {
    Err(SandboxError::Invalid(why.into()))
}
