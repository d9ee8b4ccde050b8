//! What happened to a Task, in order, for people and programs that follow it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::id::{CorrelationId, TaskId};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Over all Tasks; grows, may have gaps for a reader that filters.
    pub seq: u64,
    pub task: TaskId,
    /// Of this Task, from 1, without gaps.
    pub task_seq: u64,
    pub at: Timestamp,
    pub correlation: CorrelationId,
    pub body: EventBody,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum EventBody {
    TaskCreated {
        title: String,
        mode: String,
        trigger: String,
    },
    TaskJoined {
        by: String,
        what: String,
    },
    RunLeased {
        /// Which of the Task's Runs, from 1.
        #[serde(default = "first", skip_serializing_if = "is_first")]
        ordinal: u16,
        worker: String,
        fence: u64,
    },
    Step {
        /// Which of the Task's Runs, from 1.
        #[serde(default = "first", skip_serializing_if = "is_first")]
        ordinal: u16,
        seq: u32,
        kind: String,
        phase: String,
        title: String,
        calls: u32,
        generated_tokens: u64,
        prompt_tokens: u64,
        took_ms: u64,
    },
    RunFailed {
        /// Which of the Task's Runs, from 1.
        #[serde(default = "first", skip_serializing_if = "is_first")]
        ordinal: u16,
        why: String,
        again: bool,
    },
    RunLapsed {
        /// Which of the Task's Runs, from 1.
        #[serde(default = "first", skip_serializing_if = "is_first")]
        ordinal: u16,
        again: bool,
    },
    RunEnded {
        /// Which of the Task's Runs, from 1.
        #[serde(default = "first", skip_serializing_if = "is_first")]
        ordinal: u16,
        outcome: String,
        level: Option<String>,
    },
    EffectIntended {
        effect: String,
        what: String,
    },
    EffectSettled {
        effect: String,
        what: String,
        url: Option<String>,
    },
    PublishFailed {
        why: String,
        again: bool,
    },
    CancelRequested {
        by: String,
    },
    TaskCancelled,
    TaskDone {
        outcome: String,
        pull_request: Option<u64>,
    },
    Redriven {
        by: String,
    },
    /// Further Runs, of these models in their order; `None`: the first configured one.
    RunsAdded {
        by: String,
        models: Vec<Option<String>>,
    },
    /// Of several patches, this Run's is published.
    RunChosen {
        by: String,
        ordinal: u16,
        /// As a draft, whatever its proof says.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        draft: bool,
    },
    /// A person stopped this Run; the others go on.
    RunStopped {
        by: String,
        ordinal: u16,
    },
}

/// Most Tasks have one Run, whose number is not worth its bytes.
fn first() -> u16 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_first(ordinal: &u16) -> bool {
    *ordinal == 1
}
