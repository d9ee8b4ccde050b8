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
        worker: String,
        fence: u64,
    },
    Step {
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
        why: String,
        again: bool,
    },
    RunLapsed {
        again: bool,
    },
    RunEnded {
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
}
