//! Control groups (version 2): one an engine, where some are delegated to this process. The kernel then knows every process of an
//! engine, whatever it did to hide, and ends them all at once.

use std::collections::BTreeSet;
use std::io;

use camino::{Utf8Path, Utf8PathBuf};

const MOUNT: &str = "/sys/fs/cgroup";
/// The group in which this process itself runs: a group with processes hands nothing down, so the unit says `Delegate=yes` and
/// `DelegateSubgroup=supervisor`. No other group is ours to divide.
const OWN_GROUP: &str = "supervisor";
/// What groups of engines are called, before their names.
const PREFIX: &str = "engine-";

/// The group in which engines get theirs. `None`: none is delegated.
pub(crate) fn delegated() -> Option<Utf8PathBuf> {
    let own = fs_err::read_to_string("/proc/self/cgroup").ok()?;
    let parent = Utf8Path::new(MOUNT).join(delegated_parent(&own)?);
    let trial = parent.join("probe");
    fs_err::create_dir(&trial).ok()?;
    let usable = trial.join("cgroup.kill").exists();
    fs_err::remove_dir(&trial).ok()?;
    usable.then_some(parent)
}

fn delegated_parent(own: &str) -> Option<&str> {
    let (parent, name) = path_in(own)?.rsplit_once('/')?;
    (name == OWN_GROUP && !parent.is_empty()).then_some(parent)
}

/// The path below the mount, from `/proc/<pid>/cgroup`.
fn path_in(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::/"))
}

/// The group of a process, if it is that of the unit.
pub(crate) fn of_unit(pid: u32, unit: &str) -> Option<Utf8PathBuf> {
    let text = fs_err::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = path_in(&text)?;
    let end = path.split('/').position(|part| part == unit)?;
    let parts: Vec<&str> = path.split('/').take(end + 1).collect();
    Some(Utf8Path::new(MOUNT).join(parts.join("/")))
}

pub(crate) fn path(parent: &Utf8Path, name: &str, epoch: u64) -> Utf8PathBuf {
    parent.join(format!("{PREFIX}{name}-{epoch}"))
}

pub(crate) fn make(parent: &Utf8Path, name: &str, epoch: u64) -> io::Result<Utf8PathBuf> {
    let group = path(parent, name, epoch);
    match fs_err::create_dir(&group) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => Ok(group),
    }
}

/// Groups that engines got, whoever made them.
pub(crate) fn all(parent: &Utf8Path) -> Vec<Utf8PathBuf> {
    let entries = fs_err::read_dir(parent).into_iter().flatten().flatten();
    let groups = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX));
    groups.filter_map(|entry| Utf8PathBuf::from_path_buf(entry.path()).ok()).collect()
}

/// Those in it and below it; none when there is no such group.
pub(crate) fn pids(group: &Utf8Path) -> BTreeSet<u32> {
    let text = fs_err::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let mut found: BTreeSet<u32> = text.lines().filter_map(|line| line.parse().ok()).collect();
    for entry in fs_err::read_dir(group).into_iter().flatten().flatten() {
        if let Some(below) = Utf8Path::from_path(&entry.path()).filter(|path| path.is_dir()) {
            found.extend(pids(below));
        }
    }
    found
}

/// Whether the kernel did it; only root may in a unit's own group.
pub(crate) fn kill(group: &Utf8Path) -> bool {
    fs_err::write(group.join("cgroup.kill"), "1").is_ok()
}

/// Whether the kernel ended a process in it for want of memory.
pub(crate) fn ran_out_of_memory(group: &Utf8Path) -> bool {
    let events = fs_err::read_to_string(group.join("memory.events")).unwrap_or_default();
    events.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count.trim() != "0"))
}

pub(crate) fn remove(group: &Utf8Path) {
    if let Err(e) = fs_err::remove_dir(group)
        && e.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(error = &e as &dyn std::error::Error, "left an engine's control group behind");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_arrangement_of_our_unit_counts_as_delegated() {
        let unit = "1:name=systemd:/x\n0::/system.slice/fettle-inference.service/supervisor\n";
        assert_eq!(delegated_parent(unit), Some("system.slice/fettle-inference.service"));
        assert_eq!(delegated_parent("0::/user.slice/session-1.scope\n"), None);
        assert_eq!(delegated_parent("0::/supervisor\n"), None);
        assert_eq!(delegated_parent("0::/\n"), None);
    }
}
