//! A delegated cgroup (version 2) per command, where there is one: the kernel then holds memory, processes and processors.
//!
//! A group with processes cannot hand controllers down, so the worker must not sit in the delegated group itself. The unit says
//! `Delegate=yes` and `DelegateSubgroup=supervisor`; only that arrangement is recognised, never somebody else's group.

use std::io;
use std::path::{Path, PathBuf};

use fettle_app::ports::sandbox::SandboxLimits;
use tracing::warn;

/// The name of the group in which the worker itself runs.
const OWN_GROUP: &str = "supervisor";
const MOUNT: &str = "/sys/fs/cgroup";
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];
/// Scheduling period of `cpu.max`, in microseconds; the kernel's default.
const CPU_PERIOD: u64 = 100_000;
/// The helper's own processes at level `full`.
const HELPER_PROCESSES: u32 = 2;

/// The group in which commands get theirs.
#[derive(Debug, Clone)]
pub(crate) struct Delegation {
    parent: PathBuf,
}

impl Delegation {
    /// The error is the sentence for the report: why there is none and how to get it.
    pub(crate) fn find() -> Result<Self, String> {
        let own = fs_err::read_to_string("/proc/self/cgroup").map_err(|e| e.to_string())?;
        let parent = delegated_parent(&own).ok_or(
            "no delegated cgroup, so a watcher caps memory and processes: start the worker by systemd with Delegate=yes and \
             DelegateSubgroup=supervisor",
        )?;
        let delegation = Self { parent: Path::new(MOUNT).join(parent) };
        delegation
            .enable()
            .map_err(|e| format!("the delegated cgroup cannot be used, so a watcher caps memory and processes: {e}"))?;
        Ok(delegation)
    }

    fn enable(&self) -> io::Result<()> {
        let wanted = CONTROLLERS.map(|name| format!("+{name}")).join(" ");
        fs_err::write(self.parent.join("cgroup.subtree_control"), wanted)?;
        let trial = Group::make(self, "probe", &SandboxLimits::default())?;
        fs_err::metadata(trial.path.join("cgroup.kill")).map(drop)
    }
}

/// The path of the delegated group, relative to the mount, from the content of `/proc/self/cgroup`.
fn delegated_parent(own: &str) -> Option<&str> {
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let (parent, name) = path.rsplit_once('/')?;
    (name == OWN_GROUP && !parent.is_empty()).then_some(parent)
}

/// The group of one command; removed on drop.
#[derive(Debug)]
pub(crate) struct Group {
    path: PathBuf,
}

impl Group {
    pub(crate) fn make(delegation: &Delegation, name: &str, limits: &SandboxLimits) -> io::Result<Self> {
        let group = Self { path: delegation.parent.join(format!("command-{name}")) };
        fs_err::create_dir(&group.path)?;
        group.set("memory.max", &limits.memory_bytes.to_string())?;
        group.set("memory.oom.group", "1")?;
        // Swap is absent on many hosts, and so is its file.
        if group.path.join("memory.swap.max").exists() {
            group.set("memory.swap.max", "0")?;
        }
        group.set("pids.max", &(limits.processes + HELPER_PROCESSES).to_string())?;
        group.set("cpu.max", &format!("{} {CPU_PERIOD}", u64::from(limits.cpus.max(1)) * CPU_PERIOD))?;
        Ok(group)
    }

    fn set(&self, file: &str, value: &str) -> io::Result<()> {
        fs_err::write(self.path.join(file), value)
    }

    pub(crate) fn take_in(&self, pid: i32) -> io::Result<()> {
        self.set("cgroup.procs", &pid.to_string())
    }

    pub(crate) fn kill(&self) {
        if let Err(e) = self.set("cgroup.kill", "1") {
            warn!(error = &e as &dyn std::error::Error, "could not kill a command's cgroup");
        }
    }

    /// Whether the kernel ended the command because its memory was used up.
    pub(crate) fn ran_out_of_memory(&self) -> bool {
        fs_err::read_to_string(self.path.join("memory.events")).is_ok_and(|text| oom_kills(&text) > 0)
    }
}

fn oom_kills(events: &str) -> u64 {
    events
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill "))
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or(0)
}

impl Drop for Group {
    fn drop(&mut self) {
        // The processes are dead by now; the kernel may still be taking the last of them apart.
        if let Err(e) = fs_err::remove_dir(&self.path)
            && e.kind() != io::ErrorKind::NotFound
        {
            warn!(error = &e as &dyn std::error::Error, "left a command's cgroup behind");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_arrangement_of_our_unit_counts_as_delegated() {
        let unit = "1:name=systemd:/x\n0::/system.slice/fettle-worker.service/supervisor\n";
        assert_eq!(delegated_parent(unit), Some("system.slice/fettle-worker.service"));
        assert_eq!(delegated_parent("0::/user.slice/user-1000.slice/session-1.scope\n"), None);
        assert_eq!(delegated_parent("0::/\n"), None);
        assert_eq!(delegated_parent("0::/supervisor\n"), None);
        assert_eq!(delegated_parent("4:memory:/supervisor\n"), None);
    }

    #[test]
    fn kills_are_read_from_the_events() {
        assert_eq!(oom_kills("low 0\noom 3\noom_kill 2\noom_group_kill 1\n"), 2);
        assert_eq!(oom_kills("low 0\n"), 0);
    }
}
