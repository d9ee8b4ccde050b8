//! What the forge remembers.

use std::collections::{BTreeMap, BTreeSet};

use fettle_domain::repo::RepoName;
use jiff::Timestamp;
use tokio::time::Instant;

/// What a user may do in a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Read,
    Triage,
    Write,
    Maintain,
    Admin,
}

impl Role {
    pub(super) fn role_name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Triage => "triage",
            Self::Write => "write",
            Self::Maintain => "maintain",
            Self::Admin => "admin",
        }
    }

    /// The legacy four levels.
    pub(super) fn permission(self) -> &'static str {
        match self {
            Self::Read | Self::Triage => "read",
            Self::Write | Self::Maintain => "write",
            Self::Admin => "admin",
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct User {
    pub(super) id: u64,
    pub(super) login: String,
    pub(super) bot: bool,
    pub(super) created_at: Timestamp,
}

#[derive(Debug, Clone)]
pub(super) struct Repository {
    pub(super) id: u64,
    pub(super) name: RepoName,
    /// Names it had before; calls under them are sent on.
    pub(super) former: Vec<RepoName>,
    pub(super) private: bool,
    pub(super) default_branch: String,
    pub(super) roles: BTreeMap<String, Role>,
    /// Issues and pull requests share one sequence of numbers.
    pub(super) issues: BTreeMap<u64, Issue>,
    pub(super) labels: BTreeMap<String, u64>,
    pub(super) created_at: Timestamp,
}

#[derive(Debug, Clone)]
pub struct Issue {
    pub id: u64,
    pub number: u64,
    pub title: String,
    pub body: String,
    pub author: String,
    pub labels: BTreeSet<String>,
    pub open: bool,
    pub locked: bool,
    pub comments: Vec<Comment>,
    pub events: Vec<IssueEvent>,
    /// This issue is a pull request.
    pub pull: Option<Pull>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub(super) visible_at: Instant,
}

#[derive(Debug, Clone)]
pub struct Comment {
    pub id: u64,
    pub author: String,
    pub body: String,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// How often the text was replaced.
    pub edits: u32,
    pub(super) visible_at: Instant,
}

#[derive(Debug, Clone)]
pub struct IssueEvent {
    pub id: u64,
    /// `labeled`, `unlabeled`, `closed`, `reopened`.
    pub kind: &'static str,
    pub actor: String,
    pub label: Option<String>,
    pub at: Timestamp,
    pub(super) visible_at: Instant,
}

#[derive(Debug, Clone)]
pub struct Pull {
    pub head: String,
    pub base: String,
    pub head_sha: String,
    pub base_sha: String,
    pub commits: u64,
    pub draft: bool,
    pub merged_at: Option<Timestamp>,
}

/// How a person leaves a pull request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullState {
    Open,
    Closed,
    Merged,
}
