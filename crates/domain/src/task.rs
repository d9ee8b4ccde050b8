//! What somebody asked for, and the state people are shown: a fold over its jobs, outcomes and effects.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::job::JobState;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// One Run with small budgets.
    Quickfix,
    /// Larger budgets, two repairs.
    Refine,
    /// Does nothing and proves the path from intake to publisher.
    Probe,
}

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Self::Quickfix => "quickfix",
            Self::Refine => "refine",
            Self::Probe => "probe",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown mode `{0}`: expected `quickfix`, `refine` or `probe`")]
pub struct UnknownMode(pub String);

impl FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(text: &str) -> Result<Self, UnknownMode> {
        match text {
            "quickfix" => Ok(Self::Quickfix),
            "refine" => Ok(Self::Refine),
            "probe" => Ok(Self::Probe),
            other => Err(UnknownMode(other.chars().take(40).collect())),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    Queued,
    Running,
    /// For a person, a time or a repaired forge; the reason is shown beside it.
    Waiting,
    Publishing,
    Done,
    Cancelled,
}

impl TaskState {
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Cancelled)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Publishing => "publishing",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
        }
    }

    /// The shown state from the Task's run job and its newest publish job.
    ///
    /// `publish`: one that was cancelled, else the newest; what comes after a cancellation is only its last word.
    ///
    /// The publish job counts once the run has ended: before, it tells of progress or of an earlier end. A dead run job still
    /// owes its readers a comment, so it counts as publishing until its publish job has ended.
    pub fn fold(run: &JobState, publish: Option<&JobState>) -> Self {
        match run {
            JobState::Queued => Self::Queued,
            JobState::Delayed { .. } | JobState::Waiting { .. } => Self::Waiting,
            JobState::Leased { .. } | JobState::Cancelling { .. } => Self::Running,
            JobState::Cancelled => Self::Cancelled,
            JobState::Done | JobState::Dead { .. } => match publish {
                None | Some(JobState::Done | JobState::Dead { .. }) => Self::Done,
                Some(JobState::Cancelled) => Self::Cancelled,
                Some(JobState::Waiting { .. }) => Self::Waiting,
                Some(
                    JobState::Queued | JobState::Delayed { .. } | JobState::Leased { .. } | JobState::Cancelling { .. },
                ) => Self::Publishing,
            },
        }
    }
}
