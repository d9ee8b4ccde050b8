//! How a Run ends: exactly one visible outcome, never silence.

use serde::{Deserialize, Serialize};

use crate::budget::Spent;
use crate::object::{BlobId, CommitId};
use crate::patch::Patch;
use crate::proof::Proof;

/// The outcome people are shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum RunOutcome {
    /// A patch that its Proof shows to be a fix.
    ReadyPr,
    /// A patch, and why it is not proven.
    DraftPr {
        reasons: Vec<String>,
    },
    Question {
        questions: Vec<String>,
    },
    NoChangeNeeded {
        why: String,
    },
    Declined {
        reason: String,
    },
    /// No patch; what was learned.
    Unsolved {
        notes: String,
    },
    /// A limit or loop rule ended it; what was learned.
    Stopped {
        limit: String,
        notes: String,
    },
    /// The probe came through.
    ProbePassed,
}

impl RunOutcome {
    pub fn name(&self) -> &'static str {
        match self {
            Self::ReadyPr => "ready_pr",
            Self::DraftPr { .. } => "draft_pr",
            Self::Question { .. } => "question",
            Self::NoChangeNeeded { .. } => "no_change_needed",
            Self::Declined { .. } => "declined",
            Self::Unsolved { .. } => "unsolved",
            Self::Stopped { .. } => "stopped",
            Self::ProbePassed => "probe_passed",
        }
    }
}

/// All that a Run hands over when it completes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunResult {
    pub outcome: RunOutcome,
    /// The commit the Run started from; absent when it ended before the repository was read.
    pub base: Option<CommitId>,
    /// Present exactly for `ready_pr` and `draft_pr`.
    pub change: Option<ProvenChange>,
    pub spent: Spent,
    /// The model's name, as configured.
    pub model: String,
}

/// A patch with its Proof, ready to become a proposal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProvenChange {
    pub patch: Patch,
    /// The `PatchBundle` with every new content.
    pub bundle: BlobId,
    pub proof: Proof,
    /// One line, from the model: foreign text.
    pub title: String,
    /// What and why, from the model: foreign text.
    pub summary: String,
}
