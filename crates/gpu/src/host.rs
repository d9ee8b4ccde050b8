//! The host's memory and what the kernel knows of GPUs as parts of it. Reads `/proc` and `/sys`; writes nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fettle_placement::quantity::Bytes;
use sysinfo::{MemoryRefreshKind, System};

/// How the kernel names the PID namespace that the machine itself is in (`PROC_PID_INIT_INO`).
const HOST_PIDS: &str = "pid:[4026531836]";

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// `MemTotal`.
    pub total: Bytes,
    /// `MemAvailable`.
    pub available: Bytes,
    pub cgroup: Option<Cgroup>,
    /// NVML numbers processes as the machine does. Whoever is in a PID namespace of its own cannot tell whose they are.
    pub host_pids: bool,
    /// NUMA nodes with memory.
    pub nodes: BTreeMap<u32, Node>,
    /// The NUMA node that a GPU is near, by its PCI bus id as NVML writes it.
    pub near: BTreeMap<String, u32>,
}

/// The limit that this container has for all of its processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cgroup {
    /// `MemTotal` where there is no lower one.
    pub limit: Bytes,
    /// Without page cache, which is given back when somebody needs it.
    pub used: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    pub free: Bytes,
    /// Pages of files that can be dropped without writing them.
    pub clean_files: Bytes,
}

#[derive(Debug, thiserror::Error)]
#[error("could not read the host's memory: {0}")]
pub struct HostError(String);

/// The host now. `buses` are PCI bus ids of GPUs.
pub fn observe(buses: &[String]) -> Result<Host, HostError> {
    let mut system = System::new().map_err(|e| HostError(e.to_string()))?;
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    if system.total_memory() == 0 {
        return Err(HostError("/proc/meminfo tells no MemTotal".to_owned()));
    }
    let cgroup = system
        .cgroup_limits()
        .map(|limits| Cgroup { limit: Bytes::new(limits.total_memory), used: Bytes::new(limits.rss) });
    Ok(Host {
        total: Bytes::new(system.total_memory()),
        available: Bytes::new(system.available_memory()),
        cgroup,
        host_pids: fs_err::read_link("/proc/self/ns/pid").is_ok_and(|link| link == Path::new(HOST_PIDS)),
        nodes: nodes(Path::new("/sys/devices/system/node")),
        near: near(Path::new("/sys/bus/pci/devices"), buses),
    })
}

fn nodes(folder: &Path) -> BTreeMap<u32, Node> {
    let Ok(entries) = fs_err::read_dir(folder) else { return BTreeMap::new() };
    let nodes = entries.filter_map(Result::ok).filter_map(|entry| {
        let number = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
        Some((number, node(&fs_err::read_to_string(entry.path().join("meminfo")).ok()?)?))
    });
    nodes.collect()
}

/// `Node 0 MemTotal: 1024 kB` and its like; `None` for a node without memory.
fn node(meminfo: &str) -> Option<Node> {
    let field = |name: &str| {
        let line =
            meminfo.lines().find_map(|line| line.split_once(name).filter(|(before, _)| before.ends_with(' ')))?;
        let kib: u64 = line.1.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(Bytes::new(kib.saturating_mul(1024)))
    };
    field("MemTotal:").filter(|total| *total > Bytes::ZERO)?;
    // Dirty pages and those being written are among the pages of files, on either list.
    let files = field("Active(file):")?.signed() + field("Inactive(file):")?.signed();
    let clean = files - field("Dirty:")?.signed() - field("Writeback:")?.signed();
    Some(Node { free: field("MemFree:")?, clean_files: Bytes::there(clean) })
}

fn near(folder: &Path, buses: &[String]) -> BTreeMap<String, u32> {
    let found = buses.iter().filter_map(|bus| {
        let text = fs_err::read_to_string(sysfs_device(folder, bus)?.join("numa_node")).ok()?;
        // -1 where the firmware does not say.
        Some((bus.clone(), text.trim().parse().ok()?))
    });
    found.collect()
}

/// NVML writes `00000000:1B:00.0`, the kernel `0000:1b:00.0`.
fn sysfs_device(folder: &Path, bus: &str) -> Option<PathBuf> {
    let (domain, rest) = bus.split_once(':')?;
    let domain = u32::from_str_radix(domain, 16).ok()?;
    Some(folder.join(format!("{domain:04x}:{}", rest.to_ascii_lowercase())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = "\
Node 1 MemTotal:       1000 kB
Node 1 MemFree:         400 kB
Node 1 Active(file):    200 kB
Node 1 Inactive(file):  100 kB
Node 1 Dirty:            30 kB
Node 1 Writeback:        20 kB
";

    #[test]
    fn a_nodes_free_and_clean_memory_is_read_and_one_without_memory_is_none() {
        assert_eq!(node(NODE), Some(Node { free: Bytes::new(400 << 10), clean_files: Bytes::new(250 << 10) }));
        assert_eq!(node("Node 2 MemTotal:  0 kB\nNode 2 MemFree: 0 kB\n"), None);
    }

    #[test]
    fn a_gpu_is_near_the_node_that_the_kernel_names() {
        let folder = tempfile::tempdir().unwrap();
        for (device, node) in [("0000:1b:00.0", "1\n"), ("000f:01:00.0", "-1\n")] {
            fs_err::create_dir_all(folder.path().join(device)).unwrap();
            fs_err::write(folder.path().join(device).join("numa_node"), node).unwrap();
        }
        let buses = ["00000000:1B:00.0", "0000000F:01:00.0", "00000000:99:00.0"].map(str::to_owned);
        assert_eq!(near(folder.path(), &buses), BTreeMap::from([(buses[0].clone(), 1)]));
    }

    #[test]
    fn this_host_has_memory_and_no_more_of_it_available_than_there_is() {
        let host = observe(&[]).unwrap();
        assert!(host.total > Bytes::ZERO && host.available <= host.total, "{host:?}");
    }
}
