//! Watches what no rlimit holds: memory, processes and disk. Each watcher ends with the limit that was broken, or never.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fettle_app::ports::sandbox::{KilledBy, SandboxLimits};
use tokio::time::Instant;
use tracing::warn;

use crate::proctree;

/// Between two looks at the process tree. A process that takes 5 GB/s gets half a gigabyte too much.
const TREE_INTERVAL: Duration = Duration::from_millis(100);
const DISK_INTERVAL: Duration = Duration::from_millis(250);
/// A look may take this share of the time at most, however many files or processes there are.
const PAUSE_PER_LOOK: u32 = 8;
/// The helper holds the number of processes and is quicker. This is the net below.
const PROCESS_SLACK: u64 = 64;
/// An empty file costs the disk something too; without this a flood of them would weigh nothing.
const LEAST_BYTES_PER_ENTRY: u64 = 512;

/// Ends when the descendants of `root` hold more memory or are more, counted in threads, than allowed.
pub(crate) async fn tree(root: i32, limits: SandboxLimits) -> KilledBy {
    loop {
        let started = Instant::now();
        match tokio::task::spawn_blocking(move || measure_tree(root, &limits)).await {
            Ok(Ok(Some(broken))) => return broken,
            Ok(Ok(None)) => {}
            Ok(Err(e)) => warn!(error = &e as &dyn std::error::Error, "could not look at the sandbox's processes"),
            Err(_) => std::future::pending().await,
        }
        tokio::time::sleep(TREE_INTERVAL.max(started.elapsed() * PAUSE_PER_LOOK)).await;
    }
}

fn measure_tree(root: i32, limits: &SandboxLimits) -> io::Result<Option<KilledBy>> {
    let processes = proctree::below(root)?;
    let threads: u64 = processes.iter().map(|p| p.threads).sum();
    if threads > u64::from(limits.processes) + PROCESS_SLACK {
        return Ok(Some(KilledBy::Processes));
    }
    let resident: u64 = processes.iter().map(|p| p.resident_bytes).sum();
    if resident <= limits.memory_bytes {
        return Ok(None);
    }
    // Shared pages were counted once for everybody, so look closer before anything is killed.
    let fair: u64 = processes.iter().map(|p| proctree::proportional_bytes(p.pid).unwrap_or(p.resident_bytes)).sum();
    Ok((fair > limits.memory_bytes).then_some(KilledBy::Memory))
}

/// One folder that may grow to a limit.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
}

/// Ends when one of the folders has outgrown its limit. One that was larger from the beginning may stay, or shrink, but not grow.
pub(crate) async fn disk(folders: Vec<Folder>) -> KilledBy {
    let mut allowed: Vec<u64> = folders.iter().map(|folder| folder.bytes).collect();
    let mut first = true;
    loop {
        let started = Instant::now();
        for (folder, allowed) in folders.iter().zip(&mut allowed) {
            let path = folder.path.clone();
            // At the first look the whole is counted: it is the measure for what may stay.
            let enough = if first { u64::MAX } else { *allowed };
            let size = match tokio::task::spawn_blocking(move || folder_bytes(&path, enough)).await {
                Ok(size) => size,
                Err(_) => std::future::pending().await,
            };
            if first {
                *allowed = size.max(*allowed);
            } else if size > *allowed {
                return KilledBy::Disk;
            }
        }
        first = false;
        tokio::time::sleep(DISK_INTERVAL.max(started.elapsed() * PAUSE_PER_LOOK)).await;
    }
}

/// What lies in `folder`, in bytes on disk; stops counting above `enough`. Links are not followed; what vanishes meanwhile is left out.
fn folder_bytes(folder: &Path, enough: u64) -> u64 {
    let mut bytes = 0;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs_err::read_dir(folder) else { continue };
        for entry in entries.flatten() {
            let Ok(facts) = entry.path().symlink_metadata() else { continue };
            const BYTES_PER_BLOCK: u64 = 512; // of st_blocks, whatever the file system's own block
            bytes += (facts.blocks() * BYTES_PER_BLOCK).max(LEAST_BYTES_PER_ENTRY);
            if facts.is_dir() {
                folders.push(entry.path());
            }
            if bytes > enough {
                return bytes;
            }
        }
    }
    bytes
}
