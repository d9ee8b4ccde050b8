//! The names of the branches Fettle writes, and no others.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::TaskId;
use crate::task::Mode;

/// Everything Fettle pushes lies beneath this prefix.
pub const PREFIX: &str = "ai-agent/";

/// A branch beneath [`PREFIX`], without `refs/heads/`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BranchName(String);

impl BranchName {
    /// `ai-agent/{mode}-issue-{n}`, with `-g{k}` from generation 2; `ai-agent/{mode}-task-{id}` without an issue.
    pub fn of(mode: Mode, issue: Option<u64>, task: TaskId, generation: u32) -> Self {
        let subject = match issue {
            Some(number) => format!("issue-{number}"),
            None => format!("task-{}", task.as_uuid().simple()),
        };
        let suffix = if generation > 1 { format!("-g{generation}") } else { String::new() };
        Self(format!("{PREFIX}{}-{subject}{suffix}", mode.name()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn full_ref(&self) -> String {
        format!("refs/heads/{}", self.0)
    }
}

impl fmt::Display for BranchName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
