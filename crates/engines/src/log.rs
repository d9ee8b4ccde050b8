//! An engine's log as it grows: two files of bounded size, written by its keeper. Reads only.

use std::collections::VecDeque;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;

use camino::{Utf8Path, Utf8PathBuf};

/// Of one line; a longer one is cut.
const LINE_BYTES: usize = 4096;
/// Read at once; what is more waits for the next look.
const AT_ONCE: u64 = 4 << 20;

/// Follows a log from where it began to, over the change of files.
#[derive(Debug)]
pub(crate) struct Tail {
    path: Utf8PathBuf,
    inode: u64,
    offset: u64,
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
        let (inode, offset) = fs_err::metadata(&path).map_or((0, 0), |about| (about.ino(), about.len()));
        Self { path, inode, offset, partial: Vec::new(), bytes: 0, lines: VecDeque::new(), keep }
    }

    /// Reads what is new and gives each line to `see`, which says whether it counts as progress.
    pub(crate) fn look(&mut self, mut see: impl FnMut(&str) -> bool) -> io::Result<()> {
        let about = match fs_err::metadata(&self.path) {
            Ok(about) => about,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        };
        if about.ino() != self.inode {
            // The file we read has become the older one, if it was not replaced twice meanwhile.
            let older = older(&self.path);
            if fs_err::metadata(&older).is_ok_and(|about| about.ino() == self.inode) {
                self.read(&older, &mut see)?;
            }
            (self.inode, self.offset) = (about.ino(), 0);
        }
        let path = self.path.clone();
        self.read(&path, &mut see)
    }

    fn read(&mut self, path: &Utf8Path, see: &mut impl FnMut(&str) -> bool) -> io::Result<()> {
        let mut file = fs_err::File::open(path)?;
        file.seek(SeekFrom::Start(self.offset))?;
        let mut new = Vec::new();
        self.offset += file.take(AT_ONCE).read_to_end(&mut new)? as u64;
        for byte in new {
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

/// As rolling-file names it.
fn older(path: &Utf8Path) -> Utf8PathBuf {
    Utf8PathBuf::from(format!("{path}.1"))
}

/// The last `max_bytes` of both files, from the beginning of a line on.
pub(crate) fn read_end(path: &Utf8Path, max_bytes: u64) -> io::Result<String> {
    let mut text = Vec::new();
    for part in [older(path), path.to_owned()] {
        match fs_err::File::open(&part) {
            Ok(mut file) => {
                let length = file.metadata()?.len();
                file.seek(SeekFrom::Start(length.saturating_sub(max_bytes)))?;
                file.take(max_bytes).read_to_end(&mut text)?;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    let max = usize::try_from(max_bytes).unwrap_or(usize::MAX);
    if text.len() <= max {
        return Ok(String::from_utf8_lossy(&text).into_owned());
    }
    let cut = &text[text.len() - max..];
    let from = cut.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    Ok(String::from_utf8_lossy(&cut[from..]).into_owned())
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
        assert_eq!(read_end(&path, 17).unwrap(), "10%\r20%\rfour\n");
        assert!(read_end(&path, 1000).unwrap().starts_with("of an earlier life\none\n"));
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
