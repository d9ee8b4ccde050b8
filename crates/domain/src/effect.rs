//! Writes to the forge, wanted once and brought about once.

use serde::{Deserialize, Serialize};

use crate::branch::BranchName;
use crate::id::{EffectId, TaskId};
use crate::object::CommitId;

/// In the order they are brought about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EffectKind {
    /// The comment while the Run is at work.
    Progress,
    Push,
    PullRequest,
    Comment,
    Labels,
}

impl EffectKind {
    pub const ALL: [Self; 5] = [Self::Progress, Self::Push, Self::PullRequest, Self::Comment, Self::Labels];

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Progress => "progress",
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
    /// What it brought the last time, when it is wanted once more.
    pub before: Option<Receipt>,
}

impl Effect {
    pub fn new(id: EffectId, task: TaskId, kind: EffectKind, state: EffectState) -> Self {
        Self { id, task, kind, state, before: None }
    }
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
    Progress { issue: u64, marker: String },
    Push { branch: BranchName, expected: Option<CommitId>, commit: CommitId },
    PullRequest { head: BranchName, base: String, draft: bool },
    Comment { issue: u64, marker: String },
    Labels { issue: u64, add: Vec<String>, remove: Vec<String> },
}

/// What the forge has, as answered or read back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Receipt {
    /// The comment tells of this phase.
    Progress {
        id: u64,
        phase: String,
    },
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

impl Intent {
    pub fn effect(&self) -> EffectKind {
        match self {
            Self::Progress { .. } => EffectKind::Progress,
            Self::Push { .. } => EffectKind::Push,
            Self::PullRequest { .. } => EffectKind::PullRequest,
            Self::Comment { .. } => EffectKind::Comment,
            Self::Labels { .. } => EffectKind::Labels,
        }
    }

    /// For people who follow the Task.
    pub fn told(&self) -> String {
        match self {
            Self::Progress { issue, .. } => format!("progress on #{issue}"),
            Self::Push { branch, commit, .. } => format!("push {} to {branch}", commit.short()),
            Self::PullRequest { head, base, draft: true } => format!("draft pull request from {head} to {base}"),
            Self::PullRequest { head, base, draft: false } => format!("pull request from {head} to {base}"),
            Self::Comment { issue, .. } => format!("comment on #{issue}"),
            Self::Labels { issue, .. } => format!("labels of #{issue}"),
        }
    }
}

impl Receipt {
    /// `None` for what any effect may end with.
    pub fn effect(&self) -> Option<EffectKind> {
        match self {
            Self::Progress { .. } => Some(EffectKind::Progress),
            Self::Pushed { .. } => Some(EffectKind::Push),
            Self::PullRequest { .. } => Some(EffectKind::PullRequest),
            Self::Comment { .. } => Some(EffectKind::Comment),
            Self::Labels => Some(EffectKind::Labels),
            Self::Withheld { .. } => None,
        }
    }

    /// For people who follow the Task.
    pub fn told(&self) -> String {
        match self {
            Self::Progress { id, phase } => format!("comment {id} tells of {phase}"),
            Self::Pushed { branch, commit } => format!("{branch} is at {}", commit.short()),
            Self::PullRequest { number, draft: true, .. } => format!("draft pull request #{number}"),
            Self::PullRequest { number, draft: false, .. } => format!("pull request #{number}"),
            Self::Comment { id } => format!("comment {id}"),
            Self::Labels => "labels set".to_owned(),
            Self::Withheld { reason } => format!("not written: {reason}"),
        }
    }

    pub fn url(&self) -> Option<&str> {
        match self {
            Self::PullRequest { url, .. } => Some(url),
            Self::Progress { .. }
            | Self::Pushed { .. }
            | Self::Comment { .. }
            | Self::Labels
            | Self::Withheld { .. } => None,
        }
    }
}

/// Finds Fettle's own comment again, whoever wrote it: `<!-- fettle:{task}:{kind} -->`.
pub fn comment_marker(task: TaskId, kind: &str) -> String {
    format!("<!-- fettle:{task}:{kind} -->")
}
