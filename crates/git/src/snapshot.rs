//! A folder becomes a tree, read as plain files: no index, filter, hook or attribute of the folder is asked.
//!
//! The folder is what an agent's commands left behind. Symlinks are stored and never followed; the top `.git` is not read.
//! `Invalid` refuses, by path: a repository inside the folder (a submodule's folder must stay empty), a set-id file, a name
//! that some file system takes for `.git`, a tracked path that became a device, FIFO or socket, an unreadable file, and a new
//! file larger than forges take. Left out: new devices, FIFOs and sockets (git has no such entry), empty folders, what the
//! base ignores, and the folders in `ignore_rules` that tools make. Every file is hashed; no time stamp is trusted.
//! Nothing may run in the folder meanwhile.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{ErrorKind, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use camino::Utf8Path;
use fettle_app::ports::git::GitError;
use fettle_domain::object::TreeId;
use fettle_domain::patch::FileMode;
use fs_err::os::unix::fs::OpenOptionsExt;
use git2::{ObjectType, Odb, Oid, Repository};

use crate::checkout::threads;
use crate::error::failed;
use crate::ignore_rules::{CACHE_SIGNATURE, CACHE_TAG, IgnoreRules, Ruling, VENV_TAG, is_tool_folder};
use crate::names;
use crate::objects::{self, Leaf, Listing};

/// Forges refuse files above 100 MB.
const MAX_NEW_FILE_BYTES: u64 = 100 << 20;
/// A workspace with more is not a change but a build that was not ignored.
const MAX_FILES: usize = 1_000_000;
/// Folders nested deeper were made to hurt.
const MAX_DEPTH: usize = 500;
/// Files a thread takes at once.
const FILES_AT_ONCE: usize = 32;

pub(crate) fn snapshot(repo: &Repository, base: TreeId, folder: &Utf8Path) -> Result<TreeId, GitError> {
    let odb = objects::store(repo)?;
    let listing = objects::list_all(&odb, base)?;
    let rules = IgnoreRules::of(&odb, &listing)?;
    let mut walk = Walk { root: folder.as_std_path(), base: &listing, rules: &rules, found: Vec::new() };
    walk.folder(&mut Vec::new(), Reading::Everything, 0)?;
    let mut leaves = hash_all(&odb, &listing, folder.as_std_path(), &walk.found)?;
    for (path, leaf) in &listing.leaves {
        // A submodule stands in the workspace as an empty folder at most; its entry is kept unless something took its place.
        let replaced = || {
            let below: Vec<u8> = [path.as_slice(), b"/"].concat();
            leaves.contains_key(path)
                || leaves.range(below.clone()..).next().is_some_and(|(other, _)| other.starts_with(&below))
        };
        if leaf.mode == FileMode::Submodule.git_mode() && !replaced() {
            leaves.insert(path.clone(), *leaf);
        }
    }
    objects::write_tree(&odb, &leaves)
}

/// Inside an ignored folder only what the base tracks is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    Everything,
    TrackedOnly,
}

struct Found {
    path: Vec<u8>,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    File { executable: bool },
    Link,
}

struct Walk<'a> {
    root: &'a Path,
    base: &'a Listing,
    rules: &'a IgnoreRules,
    found: Vec<Found>,
}

impl Walk<'_> {
    fn folder(&mut self, path: &mut Vec<u8>, reading: Reading, depth: usize) -> Result<(), GitError> {
        if depth > MAX_DEPTH {
            return Err(refused(path, "is nested too deeply"));
        }
        let entries =
            fs_err::read_dir(self.root.join(OsStr::from_bytes(path))).map_err(|error| unreadable(path, error))?;
        for entry in entries {
            let entry = entry.map_err(|error| unreadable(path, error))?;
            let name = entry.file_name().into_vec();
            if depth == 0 && name == b".git" {
                continue;
            }
            let length = path.len();
            if length > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            self.entry(&entry, &name, path, reading, depth)?;
            path.truncate(length);
        }
        Ok(())
    }

    fn entry(
        &mut self,
        entry: &fs_err::DirEntry,
        name: &[u8],
        path: &mut Vec<u8>,
        reading: Reading,
        depth: usize,
    ) -> Result<(), GitError> {
        let kind = entry.file_type().map_err(|error| unreadable(path, error))?;
        let tracked = self.base.leaves.get(path.as_slice());
        let reading = match self.new_reading(path, name, kind.is_dir(), tracked, reading) {
            Some(reading) => reading,
            None => return Ok(()),
        };
        if names::is_refused(name) {
            return Err(refused(path, "holds a repository of its own, or has a name that could stand for one"));
        }
        if kind.is_dir() {
            if tracked.is_some_and(|leaf| leaf.mode == FileMode::Submodule.git_mode()) {
                let mut inside = fs_err::read_dir(entry.path()).map_err(|error| unreadable(path, error))?;
                return match inside.next() {
                    None => Ok(()),
                    Some(_) => Err(refused(path, "is a submodule and cannot be filled")),
                };
            }
            return self.folder(path, reading, depth + 1);
        }
        let kind = if kind.is_symlink() {
            Kind::Link
        } else if kind.is_file() {
            let metadata = entry.metadata().map_err(|error| unreadable(path, error))?;
            if metadata.mode() & 0o6000 != 0 {
                return Err(refused(path, "has a set-user-id or set-group-id bit"));
            }
            if tracked.is_none() && metadata.len() > MAX_NEW_FILE_BYTES {
                return Err(refused(path, "is new and larger than 100 MiB"));
            }
            Kind::File { executable: metadata.mode() & 0o100 != 0 }
        } else if tracked.is_some() {
            return Err(refused(path, "has become a device, FIFO or socket"));
        } else {
            return Ok(());
        };
        if self.found.len() >= MAX_FILES {
            return Err(GitError::Invalid(format!(
                "the workspace has more than {MAX_FILES} files that are not ignored"
            )));
        }
        self.found.push(Found { path: path.clone(), kind });
        Ok(())
    }

    /// How to read this entry, or `None` to leave it out.
    fn new_reading(
        &self,
        path: &[u8],
        name: &[u8],
        is_folder: bool,
        tracked: Option<&Leaf>,
        reading: Reading,
    ) -> Option<Reading> {
        let in_base = tracked.is_some() || self.base.trees.contains_key(path);
        if reading == Reading::TrackedOnly {
            return in_base.then_some(Reading::TrackedOnly);
        }
        let ignored = match self.rules.ruling(path, is_folder) {
            Ruling::Ignored => true,
            Ruling::Wanted => false,
            Ruling::Unmentioned => is_folder && !in_base && self.is_made_by_tools(path, name),
        };
        match (ignored, in_base) {
            (false, _) => Some(Reading::Everything),
            (true, true) => Some(Reading::TrackedOnly),
            (true, false) => None,
        }
    }

    fn is_made_by_tools(&self, path: &[u8], name: &[u8]) -> bool {
        let folder = self.root.join(OsStr::from_bytes(path));
        let is_cache = || {
            let mut start = [0; CACHE_SIGNATURE.len()];
            open_plain(&folder.join(CACHE_TAG))
                .is_ok_and(|mut tag| tag.read_exact(&mut start).is_ok() && start == *CACHE_SIGNATURE)
        };
        is_tool_folder(name) || is_cache() || open_plain(&folder.join(VENV_TAG)).is_ok()
    }
}

/// Opens a regular file without following a link in its place or waiting for a FIFO's other end.
fn open_plain(path: &Path) -> std::io::Result<fs_err::File> {
    let file = fs_err::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(ErrorKind::InvalidInput.into()) }
}

/// Reads, names and stores everything that was found.
fn hash_all(odb: &Odb<'_>, base: &Listing, root: &Path, found: &[Found]) -> Result<BTreeMap<Vec<u8>, Leaf>, GitError> {
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let work = || -> Result<Vec<(usize, Leaf)>, GitError> {
        let mut leaves = Vec::new();
        let mut buffer = Vec::new();
        loop {
            let start = next.fetch_add(FILES_AT_ONCE, Ordering::Relaxed);
            if start >= found.len() || stop.load(Ordering::Relaxed) {
                return Ok(leaves);
            }
            for (number, file) in found.iter().enumerate().skip(start).take(FILES_AT_ONCE) {
                let before = base.leaves.get(&file.path);
                let leaf = hash_one(odb, before, root.join(OsStr::from_bytes(&file.path)), file, &mut buffer)
                    .inspect_err(|_| stop.store(true, Ordering::Relaxed))?;
                leaves.push((number, leaf));
            }
        }
    };
    let parts: Vec<Result<Vec<(usize, Leaf)>, GitError>> = std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads()).map(|_| scope.spawn(work)).collect();
        let mine = work();
        let theirs = helpers.into_iter().map(|helper| helper.join().expect("a hashing thread does not panic"));
        std::iter::once(mine).chain(theirs).collect()
    });
    let mut leaves = BTreeMap::new();
    for part in parts {
        leaves.extend(part?.into_iter().map(|(number, leaf)| (found[number].path.clone(), leaf)));
    }
    Ok(leaves)
}

fn hash_one(
    odb: &Odb<'_>,
    before: Option<&Leaf>,
    place: PathBuf,
    file: &Found,
    buffer: &mut Vec<u8>,
) -> Result<Leaf, GitError> {
    buffer.clear();
    let mode = match file.kind {
        Kind::Link => {
            let target = fs_err::read_link(&place).map_err(|error| unreadable(&file.path, error))?;
            buffer.extend_from_slice(target.as_os_str().as_bytes());
            FileMode::Symlink
        }
        Kind::File { executable } => {
            open_plain(&place)
                .and_then(|mut open| open.read_to_end(buffer))
                .map_err(|error| unreadable(&file.path, error))?;
            if executable { FileMode::Executable } else { FileMode::Regular }
        }
    };
    let id = Oid::hash_object(ObjectType::Blob, buffer).map_err(failed("while naming a content"))?;
    let unchanged = before.is_some_and(|before| before.id == id);
    if !unchanged {
        objects::write(odb, ObjectType::Blob, buffer)?;
    }
    Ok(Leaf::replacing(before, mode, id))
}

fn refused(path: &[u8], why: &str) -> GitError {
    GitError::Invalid(format!("`{}` {why}", String::from_utf8_lossy(path).escape_debug()))
}

fn unreadable(path: &[u8], error: std::io::Error) -> GitError {
    refused(path, &format!("cannot be read: {}", error.kind()))
}
