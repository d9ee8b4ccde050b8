//! How fast this disk makes 4 KiB durable: the measure that a durable answer is compared with.

use std::io::{Seek as _, SeekFrom, Write as _};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use camino::Utf8Path;
use tokio::time::Instant;

/// A page of the ledger's log.
const PAGE: usize = 4096;
/// Written once before, so that only data has to reach the disk, as when the ledger's log is reused.
const PAGES: u64 = 1024;
/// Long enough for hundreds of flushes on a fast disk and for some on a slow one.
const TIME: Duration = Duration::from_millis(400);
const TMPFS_MAGIC: u32 = 0x0102_1994;
const RAMFS_MAGIC: u32 = 0x8584_58f6;

/// Beyond this between a round's begin and its end, its ratios mean little.
pub const STEADY: f64 = 1.5;

/// What one thread reached, flush after flush.
#[derive(Debug, Clone, Copy)]
pub struct Flushes {
    pub per_second: f64,
    pub median: Duration,
    pub p99: Duration,
}

/// Whether the disk was the same before and after a round.
pub fn is_steady(before: &Flushes, after: &Flushes) -> bool {
    before.per_second.max(after.per_second) <= STEADY * before.per_second.min(after.per_second)
}

/// Errors when `folder` lies in memory: nothing there is durable.
pub fn require_disk(folder: &Utf8Path) -> anyhow::Result<()> {
    let found = rustix::fs::statfs(folder.as_std_path()).with_context(|| format!("while looking at {folder}"))?;
    // The field's width and sign differ between architectures; the magic numbers have 32 bits.
    let magic = (found.f_type & 0xffff_ffff) as u32;
    ensure!(
        !matches!(magic, TMPFS_MAGIC | RAMFS_MAGIC),
        "{folder} lies in memory; name a folder on a disk by --folder"
    );
    Ok(())
}

/// Overwrites pages of a file, each followed by `fdatasync`; blocks.
pub fn flush(folder: &Utf8Path) -> anyhow::Result<Flushes> {
    let path = folder.join("flushes");
    let mut file = fs_err::File::create(&path)?;
    let page = [7; PAGE];
    (0..PAGES).try_for_each(|_| file.write_all(&page))?;
    file.sync_all()?;
    let started = Instant::now();
    let mut took = Vec::new();
    while started.elapsed() < TIME {
        if (took.len() as u64).is_multiple_of(PAGES) {
            file.seek(SeekFrom::Start(0))?;
        }
        let began = Instant::now();
        file.write_all(&page)?;
        file.sync_data()?;
        took.push(began.elapsed());
    }
    let per_second = took.len() as f64 / started.elapsed().as_secs_f64();
    took.sort_unstable();
    fs_err::remove_file(&path)?;
    Ok(Flushes { per_second, median: took[took.len() / 2], p99: took[took.len() * 99 / 100] })
}
