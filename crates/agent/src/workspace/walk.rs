//! Listing a workspace in path order: `.git` and, on wish, ignored files are left out.
//!
//! The `.gitignore` files are read through the same walls as every other file, so a FIFO or a link in their place
//! cannot stop or mislead the walk. Links are listed, never followed.

use cap_std::fs::Dir;
use fettle_domain::path::RepoPath;
use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};

use super::{Place, Workspace, read_regular};

/// Deeper folders are not entered; real trees end far before.
const MAX_DEPTH: usize = 64;

/// A `.gitignore` above this is not one.
const MAX_IGNORE_BYTES: usize = 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    File { bytes: u64 },
    Folder,
    Link,
    Special,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalkEntry {
    pub path: RepoPath,
    pub kind: EntryKind,
}

#[derive(Debug, Clone, Copy)]
pub struct WalkOptions {
    /// Levels below the start; 1 is its direct children.
    pub depth: usize,
    /// The walk stops after this many entries.
    pub max_entries: usize,
}

#[derive(Debug, Default)]
pub struct Walked {
    /// In path order within each folder; a folder stands before its children.
    pub entries: Vec<WalkEntry>,
    /// There was more than `max_entries`.
    pub stopped: bool,
}

impl Workspace {
    /// Everything beneath `start` that no `.gitignore` between the root and the entry excludes.
    pub fn walk(&self, start: &Place, options: WalkOptions) -> Walked {
        let mut walk = Walk { options, walked: Walked::default() };
        let mut rules = Vec::new();
        let Ok(mut folder) = self.root.try_clone() else { return walk.walked };
        let mut prefix: Vec<u8> = Vec::new();
        rules.extend(ignore_rules(&folder, &prefix));
        if let Place::Beneath(path) = start {
            for component in path.components() {
                let Ok(next) = folder.open_dir(component_path(component)) else { return walk.walked };
                folder = next;
                push_component(&mut prefix, component);
                rules.extend(ignore_rules(&folder, &prefix));
            }
        }
        walk.folder(&folder, &prefix, &mut rules, 1);
        walk.walked
    }
}

struct Walk {
    options: WalkOptions,
    walked: Walked,
}

impl Walk {
    fn folder(&mut self, folder: &Dir, prefix: &[u8], rules: &mut Vec<Gitignore>, depth: usize) {
        use std::os::unix::ffi::OsStrExt;
        let Ok(children) = folder.entries() else { return };
        let mut children: Vec<_> = children.flatten().map(|child| (child.file_name(), child)).collect();
        children.sort_by(|(a, _), (b, _)| a.as_bytes().cmp(b.as_bytes()));
        for (name, child) in children {
            if self.walked.stopped {
                return;
            }
            if name.as_bytes().eq_ignore_ascii_case(b".git") {
                continue;
            }
            let mut full = prefix.to_vec();
            push_component(&mut full, name.as_bytes());
            let (Ok(path), Ok(found)) = (RepoPath::parse(&full), child.metadata()) else { continue };
            let is_folder = found.is_dir();
            if is_ignored(rules, &path, is_folder) {
                continue;
            }
            if self.walked.entries.len() >= self.options.max_entries {
                self.walked.stopped = true;
                return;
            }
            let kind = if is_folder {
                EntryKind::Folder
            } else if found.is_symlink() {
                EntryKind::Link
            } else if found.is_file() {
                EntryKind::File { bytes: found.len() }
            } else {
                EntryKind::Special
            };
            self.walked.entries.push(WalkEntry { path, kind });
            if is_folder && depth < self.options.depth.min(MAX_DEPTH) {
                let Ok(inner) = child.open_dir() else { continue };
                let before = rules.len();
                rules.extend(ignore_rules(&inner, &full));
                self.folder(&inner, &full, rules, depth + 1);
                rules.truncate(before);
            }
        }
    }
}

/// The nearest file with an opinion decides, as in git.
fn is_ignored(rules: &[Gitignore], path: &RepoPath, is_folder: bool) -> bool {
    for rule in rules.iter().rev() {
        match rule.matched(super::os_path(path), is_folder) {
            Match::Ignore(_) => return true,
            Match::Whitelist(_) => return false,
            Match::None => {}
        }
    }
    false
}

fn ignore_rules(folder: &Dir, prefix: &[u8]) -> Option<Gitignore> {
    let content = read_regular(folder, ".gitignore".as_ref()).ok()?;
    if content.bytes.len() > MAX_IGNORE_BYTES {
        return None;
    }
    let mut builder = GitignoreBuilder::new(component_path(prefix));
    for line in String::from_utf8_lossy(&content.bytes).lines() {
        // A line that is not a pattern excludes nothing, as in git.
        drop(builder.add_line(None, line));
    }
    builder.build().ok()
}

fn component_path(bytes: &[u8]) -> &std::path::Path {
    use std::os::unix::ffi::OsStrExt;
    std::ffi::OsStr::from_bytes(bytes).as_ref()
}

fn push_component(prefix: &mut Vec<u8>, component: &[u8]) {
    if !prefix.is_empty() {
        prefix.push(b'/');
    }
    prefix.extend_from_slice(component);
}
