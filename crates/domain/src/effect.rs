//! Writes to the forge, wanted once and brought about once.

use serde::{Deserialize, Serialize};

use crate::branch::BranchName;
use crate::id::{EffectId, TaskId};
use crate::object::CommitId;

/// In the order they are brought about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EffectKind {
    Push,
    PullRequest,
    Comment,
    Labels,
}

impl EffectKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Push => "push",
            Self::PullRequest => "pull_request",
            Self::Comment => "comment",
            Self::Labels => "labels",
        }
    }
}

/// One row per (Task, kind).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effect {
    pub id: EffectId,
    pub task: TaskId,
    pub kind: EffectKind,
    pub state: EffectState,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EffectState {
    Wanted,
    /// The request may have been sent: read back before sending again.
    Intended {
        intent: Intent,
    },
    Settled {
        receipt: Receipt,
    },
}

/// What is about to be written; durable before the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Intent {
    Push { branch: BranchName, expected: Option<CommitId>, commit: CommitId },
    PullRequest { head: BranchName, base: String, draft: bool },
    Comment { issue: u64, marker: String },
    Labels { issue: u64, add: Vec<String>, remove: Vec<String> },
}

/// What the forge has, as answered or read back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Receipt {
    Pushed {
        branch: BranchName,
        commit: CommitId,
    },
    PullRequest {
        number: u64,
        url: String,
        draft: bool,
    },
    Comment {
        id: u64,
    },
    Labels,
    /// Not written, and why; final.
    Withheld {
        reason: String,
    },
}

/// Finds Fettle's own comment again, whoever wrote it: `<!-- fettle:{task}:{kind} -->`.
pub fn comment_marker(task: TaskId, kind: &str) -> String {
    format!("<!-- fettle:{task}:{kind} -->")
}
