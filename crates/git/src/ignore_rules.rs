//! Which new files of a workspace stay out of a patch: what the base's own `.gitignore` files say, and a few folders that
//! tools make by themselves.
//!
//! The rules come from the base and not from the workspace, so that a run cannot hide a file by ignoring it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use fettle_app::ports::git::GitError;
use git2::Odb;
use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};

use crate::error::failed;
use crate::objects::{self, Listing};

const FILE_NAME: &[u8] = b".gitignore";
/// A list of patterns this long is not one; reading it would only cost memory.
const MAX_BYTES: usize = 1 << 20;

/// Folders that a package manager or test runner makes, and that nobody edits by hand. Without them a repository that has no
/// `.gitignore` would get its dependencies and caches as part of the patch.
const TOOL_FOLDERS: &[&str] = &[
    "node_modules",
    "__pycache__",
    ".pytest_cache",
    ".mypy_cache",
    ".ruff_cache",
    ".hypothesis",
    ".tox",
    ".nox",
    ".gradle",
];
/// Tools that follow the cache directory convention (cargo's `target`, pytest and others) put this into the folder.
pub(crate) const CACHE_TAG: &str = "CACHEDIR.TAG";
pub(crate) const CACHE_SIGNATURE: &[u8] = b"Signature: 8a477f597d28d172789f06886806bc55";
/// Stands in every Python virtual environment.
pub(crate) const VENV_TAG: &str = "pyvenv.cfg";

/// The rules of one base tree, by the folder they stand in.
pub(crate) struct IgnoreRules {
    by_folder: BTreeMap<Vec<u8>, Gitignore>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ruling {
    Ignored,
    /// Named by a `!` pattern: not even the built-in rules apply.
    Wanted,
    Unmentioned,
}

impl IgnoreRules {
    pub(crate) fn of(odb: &Odb<'_>, base: &Listing) -> Result<Self, GitError> {
        let mut by_folder = BTreeMap::new();
        for (path, leaf) in &base.leaves {
            let (folder, name) = split(path);
            if name != FILE_NAME || !matches!(leaf.mode, 0o100_644 | 0o100_664 | 0o100_755) {
                continue;
            }
            let content = objects::read_blob(odb, leaf.id)?;
            if content.len() > MAX_BYTES {
                continue;
            }
            let mut builder = GitignoreBuilder::new("");
            let text = String::from_utf8_lossy(&content);
            for line in text.trim_start_matches('\u{feff}').lines() {
                // A pattern that does not parse matches nothing, as in git.
                builder.add_line(None, line).ok();
            }
            let rules = builder.build().map_err(failed("while reading a .gitignore of the base"))?;
            by_folder.insert(folder.to_vec(), rules);
        }
        Ok(Self { by_folder })
    }

    /// What the base's rules say of one path; that of a folder it lies in has to be asked before. The nearest file decides.
    pub(crate) fn ruling(&self, path: &[u8], is_folder: bool) -> Ruling {
        let mut folder = split(path).0;
        loop {
            if let Some(rules) = self.by_folder.get(folder) {
                let relative = if folder.is_empty() { path } else { &path[folder.len() + 1..] };
                match rules.matched(Path::new(OsStr::from_bytes(relative)), is_folder) {
                    Match::Ignore(_) => return Ruling::Ignored,
                    Match::Whitelist(_) => return Ruling::Wanted,
                    Match::None => {}
                }
            }
            if folder.is_empty() {
                return Ruling::Unmentioned;
            }
            folder = split(folder).0;
        }
    }
}

pub(crate) fn is_tool_folder(name: &[u8]) -> bool {
    TOOL_FOLDERS.iter().any(|known| known.as_bytes() == name)
}

/// The folder and the last component.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}
