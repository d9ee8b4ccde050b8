//! An engine's log as it grows: two files of bounded size, written by its keeper. Reads only.

use std::collections::VecDeque;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;

use camino::{Utf8Path, Utf8PathBuf};
use fettle_placement::id::EngineId;

use crate::record::file_name;

/// A model has no more engines: they are counted in a byte.
const MAX_NUMBER: u8 = u8::MAX;
/// Of one line; a longer one is cut.
const LINE_BYTES: usize = 4096;
/// Read at once; what is more waits for the next look.
pub(crate) const AT_ONCE: u64 = 4 << 20;

/// A place in a log, which finds its file again when that has become the older one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogMark {
    pub inode: u64,
    pub offset: u64,
}

impl LogMark {
    /// Where it ends now; also of one that is not there yet.
    fn end_of(path: &Utf8Path) -> Self {
        fs_err::metadata(path)
            .map_or(Self { inode: 0, offset: 0 }, |about| Self { inode: about.ino(), offset: about.len() })
    }

    /// What was written since, at most `most` bytes of each file.
    pub(crate) fn read_on(&mut self, path: &Utf8Path, most: u64) -> io::Result<Vec<u8>> {
        let mut new = Vec::new();
        let about = match fs_err::metadata(path) {
            Ok(about) => about,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(new),
            Err(e) => return Err(e),
        };
        if about.ino() != self.inode {
            // The file we read has become the older one, if it was not replaced twice meanwhile.
            let older = older(path);
            if let Some(before) = fs_err::metadata(&older).ok().filter(|before| before.ino() == self.inode) {
                self.offset += read_from(&older, self.offset, most, &mut new)?;
                if self.offset < before.len() {
                    return Ok(new);
                }
            }
            *self = Self { inode: about.ino(), offset: 0 };
        }
        self.offset += read_from(path, self.offset, most, &mut new)?;
        Ok(new)
    }
}

fn read_from(path: &Utf8Path, offset: u64, most: u64, into: &mut Vec<u8>) -> io::Result<u64> {
    let mut file = fs_err::File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    Ok(file.take(most).read_to_end(into)? as u64)
}

/// Follows a log from where it began to, over the change of files.
#[derive(Debug)]
pub(crate) struct Tail {
    path: Utf8PathBuf,
    mark: LogMark,
    /// The beginning of a line that has no end yet.
    partial: Vec<u8>,
    /// Bytes of the lines that counted.
    pub(crate) bytes: u64,
    /// The last lines, oldest first.
    pub(crate) lines: VecDeque<String>,
    keep: usize,
}

impl Tail {
    /// Of what comes from now on.
    pub(crate) fn from_end(path: Utf8PathBuf, keep: usize) -> Self {
        let mark = LogMark::end_of(&path);
        Self { path, mark, partial: Vec::new(), bytes: 0, lines: VecDeque::new(), keep }
    }

    /// Reads what is new and gives each line to `see`, which says whether it counts as progress.
    pub(crate) fn look(&mut self, mut see: impl FnMut(&str) -> bool) -> io::Result<()> {
        for byte in self.mark.read_on(&self.path, AT_ONCE)? {
            // A bar that goes back to the beginning of its line is a line each time.
            if byte != b'\n' && byte != b'\r' {
                if self.partial.len() < LINE_BYTES {
                    self.partial.push(byte);
                }
                continue;
            }
            let line = String::from_utf8_lossy(&self.partial).into_owned();
            self.partial.clear();
            if line.is_empty() {
                continue;
            }
            if see(&line) {
                self.bytes += line.len() as u64;
            }
            if self.lines.len() == self.keep {
                self.lines.pop_front();
            }
            self.lines.push_back(line);
        }
        Ok(())
    }
}

/// The log of the engine `name`, or of the engine of the model `name` that wrote last.
pub(crate) fn find(logs: &Utf8Path, name: &str) -> io::Result<Option<(EngineId, Utf8PathBuf)>> {
    let of_model = (1..=MAX_NUMBER).map(|number| format!("{name}.{number}"));
    let mut newest: Option<(std::time::SystemTime, EngineId, Utf8PathBuf)> = None;
    for engine in std::iter::once(name.to_owned()).chain(of_model).map(EngineId::new) {
        let path = path_of(logs, &engine);
        let written = match fs_err::metadata(&path) {
            Ok(about) => about.modified()?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        if newest.as_ref().is_none_or(|(before, ..)| *before < written) {
            newest = Some((written, engine, path));
        }
    }
    Ok(newest.map(|(_, engine, path)| (engine, path)))
}

/// Where an engine's keeper writes.
pub(crate) fn path_of(logs: &Utf8Path, engine: &EngineId) -> Utf8PathBuf {
    logs.join(format!("{}.log", file_name(engine)))
}

/// As rolling-file names it.
fn older(path: &Utf8Path) -> Utf8PathBuf {
    Utf8PathBuf::from(format!("{path}.1"))
}

/// The last `most` bytes of both files, from the beginning of a line on, and where they end.
pub(crate) fn read_end(path: &Utf8Path, most: u64) -> io::Result<(Vec<u8>, LogMark)> {
    let end = LogMark::end_of(path);
    let mut text = Vec::new();
    let missing = most.saturating_sub(end.offset);
    let older = older(path);
    if let Some(before) = fs_err::metadata(&older).ok().filter(|_| missing > 0) {
        read_from(&older, before.len().saturating_sub(missing), missing, &mut text)?;
    }
    let cut = end.offset > most || !text.is_empty();
    if end.inode != 0 {
        let from = end.offset.saturating_sub(most);
        read_from(path, from, end.offset - from, &mut text)?;
    }
    // What was cut off may have been the beginning of its first line.
    if cut && text.len() as u64 >= most {
        let first = text.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        text.drain(..first);
    }
    Ok((text, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(path: &Utf8Path, text: &str) {
        use std::io::Write;
        fs_err::OpenOptions::new().append(true).create(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn lines_are_seen_once_even_when_the_file_is_changed_under_the_reader() {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(folder.path()).unwrap().join("log");
        append(&path, "of an earlier life\n");
        let mut tail = Tail::from_end(path.clone(), 10);
        let mut seen = Vec::new();
        append(&path, "one\ntw");
        tail.look(|line| {
            seen.push(line.to_owned());
            true
        })
        .unwrap();
        append(&path, "o\nthree\n");
        fs_err::rename(&path, older(&path)).unwrap();
        append(&path, "10%\r20%\rfour\n");
        tail.look(|line| {
            seen.push(line.to_owned());
            line != "three"
        })
        .unwrap();
        tail.look(|line| {
            seen.push(line.to_owned());
            true
        })
        .unwrap();
        assert_eq!(seen, ["one", "two", "three", "10%", "20%", "four"]);
        assert_eq!(tail.bytes, 3 + 3 + 3 + 3 + 4);
        let end = |most| String::from_utf8(read_end(&path, most).unwrap().0).unwrap();
        assert_eq!(end(17), "10%\r20%\rfour\n");
        assert_eq!(end(9), "");
        assert!(end(1000).starts_with("of an earlier life\none\n"));
    }

    #[test]
    fn a_mark_reads_all_of_a_file_that_was_changed_before_it_goes_on_with_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(folder.path()).unwrap().join("log");
        append(&path, "one\n");
        let (text, mut mark) = read_end(&path, 100).unwrap();
        assert_eq!(text, b"one\n");
        append(&path, "two\nthree\n");
        fs_err::rename(&path, older(&path)).unwrap();
        append(&path, "four\n");
        assert_eq!(mark.read_on(&path, 4).unwrap(), b"two\n");
        assert_eq!(mark.read_on(&path, 100).unwrap(), b"three\nfour\n");
        assert_eq!(mark.read_on(&path, 100).unwrap(), b"");
    }

    #[test]
    fn a_model_has_the_log_of_whichever_engine_of_it_wrote_last() {
        let folder = tempfile::tempdir().unwrap();
        let logs = Utf8Path::from_path(folder.path()).unwrap();
        let (first, second) = (EngineId::new("mistral:7b.1"), EngineId::new("mistral:7b.2"));
        assert_eq!(find(logs, "mistral:7b").unwrap(), None);
        append(&path_of(logs, &second), "x\n");
        append(&path_of(logs, &first), "x\n");
        let earlier = std::time::SystemTime::UNIX_EPOCH;
        std::fs::File::open(path_of(logs, &first)).unwrap().set_modified(earlier).unwrap();
        assert_eq!(find(logs, "mistral:7b").unwrap().unwrap().0, second);
        assert_eq!(find(logs, "mistral:7b.1").unwrap().unwrap().0, first);
        assert_eq!(find(logs, "../mistral:7b").unwrap(), None);
    }

    #[test]
    fn only_so_many_lines_are_kept_and_only_so_much_of_each() {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(folder.path()).unwrap().join("log");
        let mut tail = Tail::from_end(path.clone(), 2);
        append(&path, &format!("a\nb\n{}\n", "x".repeat(2 * LINE_BYTES)));
        tail.look(|_| true).unwrap();
        assert_eq!(tail.lines.iter().map(String::len).collect::<Vec<_>>(), [1, LINE_BYTES]);
    }
}
