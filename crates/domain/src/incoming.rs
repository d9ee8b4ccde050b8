//! What a webhook told us, reduced to what intake decides with. Foreign text throughout: nothing in it is trusted until
//! the forge has confirmed it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::repo::Repo;

/// One webhook delivery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Incoming {
    /// The forge's test that we listen.
    Ping,
    /// Something happened to an issue (or to a pull request, which the forge tells as an issue too).
    Issue(Box<IncomingIssue>),
    /// Counted and ignored.
    Other { event: String, action: Option<String> },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IncomingIssue {
    pub change: IssueChange,
    /// With the App installation that sent it, when one did.
    pub repo: Repo,
    /// Who did it; not necessarily who wrote the issue.
    pub sender: IncomingUser,
    /// As it was after the change.
    pub issue: IssueState,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum IssueChange {
    Opened,
    /// The delivery does not carry the event's id: resolve it with the forge.
    Labeled {
        label: String,
    },
    Commented {
        comment: IncomingComment,
    },
    /// `issues.edited`, `issue_comment.deleted` and the like, as the forge names them.
    Other {
        name: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IncomingUser {
    pub id: u64,
    pub login: String,
    pub is_bot: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssueState {
    pub number: u64,
    pub title: String,
    pub body: String,
    pub author: IncomingUser,
    pub labels: Vec<String>,
    pub open: bool,
    pub locked: bool,
    pub url: String,
    pub is_pull_request: bool,
    pub updated_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IncomingComment {
    pub id: u64,
    pub author: IncomingUser,
    pub body: String,
    pub url: String,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}
