//! One journaled piece of a Run, written before its result is used, so that a crash repeats nothing that was recorded.

use serde::{Deserialize, Serialize};

use crate::budget::Spent;
use crate::object::{BlobId, TreeId};

/// A step's body above this goes to a blob.
pub const MAX_STEP_BODY_BYTES: usize = 256 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// The base commit, prepared environment and commands the Run works with.
    Base,
    ModelCall,
    ToolCall,
    Verify,
    Decide,
    /// A message from a permitted person, joined to the conversation.
    MessageIn,
}

impl StepKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::ModelCall => "model_call",
            Self::ToolCall => "tool_call",
            Self::Verify => "verify",
            Self::Decide => "decide",
            Self::MessageIn => "message_in",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepRecord {
    /// From 0, without gaps, per Run.
    pub seq: u32,
    pub kind: StepKind,
    /// `triage`, `base_green`, `reproduce`, `fix`, `verify`, `repair`.
    pub phase: String,
    /// One line for people: `view src/lib.rs`, `model call: 812 tokens`.
    pub title: String,
    /// Digest of everything the step depended on. A replay whose digest differs has diverged and goes on live.
    pub input: BlobId,
    /// The result, as JSON of the step's kind, or a blob that holds it.
    pub body: StepBody,
    /// The workspace after the step, as changes to the base; absent when unchanged since the step before.
    pub workspace: Option<WorkspaceState>,
    pub spent: Spent,
    pub took_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepBody {
    Inline(serde_json::Value),
    Blob(BlobId),
}

/// A workspace as its tree and the `PatchBundle` that makes it from the base, so that any worker can rebuild it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkspaceState {
    pub tree: TreeId,
    pub bundle: BlobId,
}
