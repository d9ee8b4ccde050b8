//! The snapshot of an issue that a Task works on.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What a model may see of an issue: the text as of the trigger. Foreign text throughout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssueSnapshot {
    /// Absent for a Task made from plain text.
    pub number: Option<u64>,
    pub title: String,
    pub body: String,
    pub author: String,
    pub url: Option<String>,
    /// By people with write access, made before the trigger and not edited after it, oldest first.
    pub comments: Vec<CommentSnapshot>,
    /// When the trigger happened.
    pub taken_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommentSnapshot {
    pub author: String,
    pub body: String,
}
