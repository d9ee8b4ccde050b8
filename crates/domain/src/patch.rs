//! A change as git sees it: two trees and what differs between them, byte-exact.

use serde::{Deserialize, Serialize};

use crate::object::{CommitId, ObjectId, TreeId};
use crate::path::RepoPath;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Patch {
    pub base: CommitId,
    pub base_tree: TreeId,
    pub head_tree: TreeId,
    /// In path order. A rename is a deletion and an addition.
    pub changes: Vec<Change>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub path: RepoPath,
    /// Absent when the path is new.
    pub before: Option<Entry>,
    /// Absent when the path is deleted.
    pub after: Option<Entry>,
    pub lines_added: u32,
    pub lines_removed: u32,
    pub binary: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub mode: FileMode,
    pub object: ObjectId,
    pub size_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileMode {
    Regular,
    Executable,
    Symlink,
    Submodule,
}

impl FileMode {
    /// The mode as git writes it in a tree.
    pub fn git_mode(self) -> i32 {
        match self {
            Self::Regular => 0o100_644,
            Self::Executable => 0o100_755,
            Self::Symlink => 0o120_000,
            Self::Submodule => 0o160_000,
        }
    }

    pub fn from_git_mode(mode: i32) -> Option<Self> {
        match mode {
            0o100_644 | 0o100_664 => Some(Self::Regular),
            0o100_755 => Some(Self::Executable),
            0o120_000 => Some(Self::Symlink),
            0o160_000 => Some(Self::Submodule),
            _ => None,
        }
    }
}

impl Patch {
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    pub fn lines_changed(&self) -> u64 {
        self.changes.iter().map(|c| u64::from(c.lines_added) + u64::from(c.lines_removed)).sum()
    }
}
