//! The usage records on disk: files of lines that are only appended to, numbered, the oldest dropped when there are too many.
//! One task writes. A disk that does not take them holds nobody up: records wait in memory, a limited number of them.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err::File;
use tokio::sync::Notify;
use tracing::{error, info};

use super::UsageRecord;

/// Some forty thousand records: small enough to be read whole.
const SEGMENT_BYTES: u64 = 16 << 20;
/// A gigabyte in all, some two million requests; whoever pulls has long had the oldest.
const SEGMENTS: u64 = 64;
/// Records that wait for a disk, some 500 bytes each. Above it they are only counted.
const MOST_WAITING: usize = 20_000;
/// Written together, so that a busy second is one write.
const BATCH: usize = 1_000;
/// Between two tries to write to a disk that does not take it.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// Records are gathered for so long before they are written.
const GATHER: Duration = Duration::from_millis(50);
/// Of one page for whoever pulls.
const PAGE_RECORDS: usize = 1_000;
/// A longer line is none of ours.
const MAX_LINE_BYTES: u64 = 16 * 1024;

/// Takes records from anywhere; [`Store::run`] writes them.
#[derive(Debug)]
pub(crate) struct Store {
    folder: Utf8PathBuf,
    waiting: Mutex<VecDeque<UsageRecord>>,
    more: Notify,
    writable: AtomicBool,
    lost: AtomicU64,
}

/// Reads what was written, from another task or process.
#[derive(Debug, Clone)]
pub struct UsageReader {
    folder: Utf8PathBuf,
}

/// Records after a cursor, the oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    pub records: Vec<UsageRecord>,
    /// Where the next page begins. Opaque.
    pub next: String,
    /// There is more now.
    pub more: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("the cursor is not one of the usage records")]
    Cursor,
    #[error("the usage records cannot be read")]
    Io(#[source] std::io::Error),
}

impl Store {
    /// Nothing is written yet; the folder is made and tried, so that the first request knows whether it can be counted.
    pub(crate) fn open(folder: &Utf8Path) -> Self {
        let store = Self {
            folder: folder.to_owned(),
            waiting: Mutex::new(VecDeque::new()),
            more: Notify::new(),
            writable: AtomicBool::new(true),
            lost: AtomicU64::new(0),
        };
        store.tell(Writer::open(folder).err());
        store
    }

    pub(crate) fn is_writable(&self) -> bool {
        self.writable.load(Ordering::Relaxed)
    }

    /// Records that found neither disk nor memory.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    pub(crate) fn append(&self, records: impl IntoIterator<Item = UsageRecord>) {
        let mut waiting = self.waiting();
        for record in records {
            if waiting.len() < MOST_WAITING {
                waiting.push_back(record);
            } else {
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
        let any = !waiting.is_empty();
        drop(waiting);
        if any {
            self.more.notify_one();
        }
    }

    pub(crate) fn reader(&self) -> UsageReader {
        UsageReader { folder: self.folder.clone() }
    }

    /// Writes until it is dropped. May be dropped at any time: what a write in progress holds is written, the rest waits.
    pub(crate) async fn run(self: &Arc<Self>) {
        loop {
            if self.is_writable() {
                self.more.notified().await;
                tokio::time::sleep(GATHER).await;
            } else {
                // Also without records: whoever has a budget brings none as long as nothing can be written.
                tokio::time::sleep(TRY_AGAIN).await;
            }
            self.flush().await;
        }
    }

    /// Writes what waits, once. True: all that was tried is on disk.
    pub(crate) async fn flush(self: &Arc<Self>) -> bool {
        let store = Arc::clone(self);
        let written = tokio::task::spawn_blocking(move || store.write_waiting()).await;
        written.unwrap_or(false)
    }

    fn write_waiting(&self) -> bool {
        let mut writer = match Writer::open(&self.folder) {
            Ok(writer) => writer,
            Err(error) => {
                self.tell(Some(error));
                return false;
            }
        };
        loop {
            let batch: Vec<UsageRecord> = self.waiting().iter().take(BATCH).cloned().collect();
            if batch.is_empty() {
                self.tell(None);
                return true;
            }
            if let Err(error) = writer.write(&batch) {
                self.tell(Some(error));
                return false;
            }
            self.waiting().drain(..batch.len());
        }
    }

    fn tell(&self, failed: Option<std::io::Error>) {
        let before = self.writable.swap(failed.is_none(), Ordering::Relaxed);
        match failed {
            Some(failure) if before => error!(
                error = &failure as &dyn std::error::Error,
                "usage cannot be written; requests with a budget are refused, others counted in memory"
            ),
            None if !before => info!("usage is written again"),
            _ => {}
        }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, VecDeque<UsageRecord>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The newest file, open at its end.
struct Writer {
    folder: Utf8PathBuf,
    number: u64,
    file: File,
    bytes: u64,
}

impl Writer {
    fn open(folder: &Utf8Path) -> std::io::Result<Self> {
        fs_err::create_dir_all(folder)?;
        let number = segments(folder)?.last().copied().unwrap_or(1);
        let mut file = append_to(&path(folder, number))?;
        let mut bytes = file.seek(SeekFrom::End(0))?;
        // A line that a crash has cut off stays unreadable, and takes no other with it.
        if bytes > 0 {
            let mut last = [0];
            let mut read = File::open(path(folder, number))?;
            read.seek(SeekFrom::Start(bytes - 1))?;
            std::io::Read::read_exact(&mut read, &mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
                bytes += 1;
            }
        }
        Ok(Self { folder: folder.to_owned(), number, file, bytes })
    }

    fn write(&mut self, records: &[UsageRecord]) -> std::io::Result<()> {
        if self.bytes >= SEGMENT_BYTES {
            self.number += 1;
            self.file = append_to(&path(&self.folder, self.number))?;
            self.bytes = 0;
            for old in segments(&self.folder)?.into_iter().filter(|number| number + SEGMENTS <= self.number) {
                fs_err::remove_file(path(&self.folder, old))?;
            }
        }
        let mut lines = Vec::new();
        for record in records {
            serde_json::to_writer(&mut lines, record)?;
            lines.push(b'\n');
        }
        self.file.write_all(&lines)?;
        self.file.sync_data()?;
        self.bytes += u64::try_from(lines.len()).unwrap_or(u64::MAX);
        Ok(())
    }
}

impl UsageReader {
    /// `after`: `None` from the oldest on. A cursor whose file is dropped goes on with the oldest there is. Blocks.
    pub fn read(&self, after: Option<&str>) -> Result<Page, ReadError> {
        let (mut number, mut offset) = match after {
            None => (0, 0),
            Some(cursor) => parse(cursor).ok_or(ReadError::Cursor)?,
        };
        let segments = match segments(&self.folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            other => other.map_err(ReadError::Io)?,
        };
        let mut records = Vec::new();
        let first = number;
        for segment in segments.into_iter().filter(|one| *one >= first) {
            if segment != number {
                (number, offset) = (segment, 0);
            }
            let mut file = File::open(path(&self.folder, number)).map_err(ReadError::Io)?;
            file.seek(SeekFrom::Start(offset)).map_err(ReadError::Io)?;
            let mut lines = BufReader::new(file);
            loop {
                if records.len() == PAGE_RECORDS {
                    return Ok(Page { records, next: cursor(number, offset), more: true });
                }
                let mut line = Vec::new();
                let read = std::io::Read::take(&mut lines, MAX_LINE_BYTES).read_until(b'\n', &mut line);
                let read = read.map_err(ReadError::Io)?;
                // One without its end is still being written, or was cut off by a crash and has its end already.
                if line.last() != Some(&b'\n') && (read as u64) < MAX_LINE_BYTES {
                    break;
                }
                offset += read as u64;
                records.extend(serde_json::from_slice(&line).ok());
            }
        }
        Ok(Page { records, next: cursor(number, offset), more: false })
    }
}

fn append_to(path: &Utf8Path) -> std::io::Result<File> {
    fs_err::OpenOptions::new().create(true).append(true).open(path)
}

fn path(folder: &Utf8Path, number: u64) -> Utf8PathBuf {
    folder.join(format!("usage-{number:08}.jsonl"))
}

/// In order.
fn segments(folder: &Utf8Path) -> std::io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs_err::read_dir(folder)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("usage-")?.strip_suffix(".jsonl"));
        numbers.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn cursor(number: u64, offset: u64) -> String {
    format!("1.{number}.{offset}")
}

fn parse(cursor: &str) -> Option<(u64, u64)> {
    let (number, offset) = cursor.strip_prefix("1.")?.split_once('.')?;
    Some((number.parse().ok()?, offset.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use uuid::Uuid;

    use super::*;
    use crate::usage::{End, UsageBy};

    fn record(nth: u128) -> UsageRecord {
        UsageRecord {
            id: Uuid::from_u128(nth),
            ended_at: Timestamp::UNIX_EPOCH,
            request: format!("req{nth}"),
            correlation: String::new(),
            owner: "ada".to_owned(),
            run: None,
            model: "coder".to_owned(),
            target: "e1".to_owned(),
            recipe: Some("r".to_owned()),
            end: End::Complete,
            attempts: 1,
            prompt_tokens: 10,
            cached_tokens: 5,
            output_tokens: 3,
            estimated: false,
            queue_ms: 0,
            first_byte_ms: Some(1),
            total_ms: 2,
            gpu_micros: 3,
            millijoules: 4,
            cost_micros: 5,
        }
    }

    fn folder() -> (tempfile::TempDir, Utf8PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(folder.path().join("usage")).unwrap();
        (folder, path)
    }

    fn ids(page: &Page) -> Vec<u128> {
        page.records.iter().map(|record| record.id.as_u128()).collect()
    }

    #[tokio::test]
    async fn what_was_used_is_added_up_by_name_from_an_instant_on() {
        let home = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(Utf8Path::from_path(home.path()).unwrap()));
        let at = |nth: u128, second: i64, owner: &str, gpu_micros: u64| UsageRecord {
            ended_at: Timestamp::from_second(second).unwrap(),
            owner: owner.to_owned(),
            gpu_micros,
            prompt_tokens: 10,
            ..record(nth)
        };
        store.append([at(1, 50, "ada", 9_000_000), at(2, 100, "ada", 1_500_000), at(3, 101, "ben", 4_000_000)]);
        store.append([UsageRecord { end: End::Cancelled, ..at(4, 102, "ada", 500_000) }]);
        assert!(store.flush().await);
        let sums = store.reader().sums(UsageBy::Owner, Timestamp::from_second(100).unwrap()).unwrap();
        let told: Vec<_> = sums
            .iter()
            .map(|one| (&*one.name, one.requests, one.unfinished, one.prompt_tokens, one.gpu_seconds))
            .collect();
        assert_eq!(told, [("ben", 1, 0, 10, 4.0), ("ada", 2, 1, 20, 2.0)]);
    }

    #[tokio::test]
    async fn records_come_out_in_their_order_and_after_the_cursor_only_new_ones() {
        let (_kept, path) = folder();
        let store = Arc::new(Store::open(&path));
        store.append((1..=1_500).map(record));
        assert!(store.flush().await);
        let first = store.reader().read(None).unwrap();
        assert_eq!((first.records.len(), first.more), (1_000, true));
        let second = store.reader().read(Some(&first.next)).unwrap();
        assert_eq!((ids(&second)[0], second.records.len(), second.more), (1_001, 500, false));
        store.append([record(9_999)]);
        assert!(store.flush().await);
        assert_eq!(ids(&store.reader().read(Some(&second.next)).unwrap()), [9_999]);
        assert!(matches!(store.reader().read(Some("x")), Err(ReadError::Cursor)));
    }

    #[tokio::test]
    async fn a_line_that_a_crash_cut_off_takes_no_other_with_it() {
        let (_kept, path) = folder();
        let store = Arc::new(Store::open(&path));
        store.append([record(1)]);
        assert!(store.flush().await);
        let mut file = append_to(&super::path(&path, 1)).unwrap();
        file.write_all(b"{\"id\":\"0000").unwrap();
        let cut = store.reader().read(None).unwrap();
        assert_eq!(ids(&cut), [1]);
        let again = Arc::new(Store::open(&path));
        again.append([record(2)]);
        assert!(again.flush().await);
        assert_eq!(ids(&again.reader().read(Some(&cut.next)).unwrap()), [2]);
        assert_eq!(ids(&again.reader().read(None).unwrap()), [1, 2]);
    }

    #[tokio::test]
    async fn a_disk_that_takes_nothing_makes_records_wait_and_the_excess_is_counted() {
        let (kept, path) = folder();
        fs_err::write(kept.path().join("usage"), b"a file where the folder should be").unwrap();
        let store = Arc::new(Store::open(&path));
        assert!(!store.is_writable());
        store.append((0..MOST_WAITING as u128 + 3).map(record));
        assert!(!store.flush().await);
        assert_eq!(store.lost(), 3);
        fs_err::remove_file(&path).unwrap();
        assert!(store.flush().await && store.is_writable());
        assert_eq!(ids(&store.reader().read(None).unwrap())[..2], [0, 1]);
    }

    #[test]
    fn a_full_file_is_followed_by_another_and_too_old_ones_go() {
        let (_kept, path) = folder();
        let mut writer = Writer::open(&path).unwrap();
        for nth in 0..=SEGMENTS {
            writer.bytes = SEGMENT_BYTES;
            writer.write(&[record(u128::from(nth))]).unwrap();
        }
        let kept = segments(&path).unwrap();
        assert_eq!((kept.len() as u64, kept[0]), (SEGMENTS, 3));
        let reader = UsageReader { folder: path };
        let gone = reader.read(Some("1.1.0")).unwrap();
        assert_eq!(gone.records.len() as u64, SEGMENTS, "it goes on with the oldest that is left");
    }
}
