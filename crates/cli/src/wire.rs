//! What the API tells, as far as people are shown it. Unknown fields and words pass, so that an older command still reads
//! a newer dashboard.

use jiff::Timestamp;
use serde::Deserialize;

#[derive(Deserialize)]
pub(crate) struct Page {
    pub(crate) items: Vec<Summary>,
    pub(crate) next: Option<String>,
}

#[derive(Deserialize)]
pub(crate) struct Summary {
    pub(crate) id: String,
    pub(crate) mode: String,
    pub(crate) repository: Option<String>,
    pub(crate) issue: Option<u64>,
    pub(crate) issue_url: Option<String>,
    pub(crate) title: String,
    pub(crate) state: String,
    pub(crate) outcome: Option<String>,
    pub(crate) note: Option<String>,
    pub(crate) pull_request: Option<PullRequest>,
    pub(crate) model: Option<String>,
    /// A dashboard of before there were labels says nothing.
    #[serde(default)]
    pub(crate) needs: Vec<String>,
    pub(crate) actor: String,
    pub(crate) trigger: String,
    pub(crate) created_at: Timestamp,
}

#[derive(Deserialize)]
pub(crate) struct PullRequest {
    pub(crate) number: u64,
    pub(crate) url: String,
    pub(crate) draft: bool,
}

#[derive(Deserialize)]
pub(crate) struct Task {
    #[serde(flatten)]
    pub(crate) summary: Summary,
    pub(crate) run: Run,
    pub(crate) effects: Vec<Effect>,
}

#[derive(Deserialize)]
pub(crate) struct Run {
    pub(crate) id: String,
    /// Among the Task's Runs.
    #[serde(default = "first")]
    pub(crate) ordinal: u16,
    pub(crate) model: Option<String>,
    pub(crate) job_state: String,
    /// Those that failed.
    pub(crate) attempts: u16,
    pub(crate) crashes: u16,
    pub(crate) steps: u32,
    pub(crate) spent: Spent,
    pub(crate) result: Option<RunResult>,
}

#[derive(Deserialize)]
pub(crate) struct Runs {
    /// The id of the one whose end is the Task's.
    pub(crate) leading: String,
    pub(crate) items: Vec<Run>,
}

#[derive(Deserialize)]
pub(crate) struct Spent {
    pub(crate) calls: u32,
    pub(crate) generated_tokens: u64,
    pub(crate) prompt_tokens: u64,
    pub(crate) wall_s: u64,
}

#[derive(Deserialize)]
pub(crate) struct RunResult {
    pub(crate) outcome: String,
    pub(crate) notes: Vec<String>,
    pub(crate) model: String,
    pub(crate) base: Option<String>,
    pub(crate) change: Option<Change>,
    pub(crate) proof: Option<Proof>,
}

#[derive(Deserialize)]
pub(crate) struct Change {
    pub(crate) title: String,
    pub(crate) summary: String,
    pub(crate) files: usize,
    pub(crate) lines_added: u64,
    pub(crate) lines_removed: u64,
}

#[derive(Deserialize)]
pub(crate) struct Proof {
    pub(crate) level: String,
    pub(crate) reasons: Vec<Reason>,
    pub(crate) new_tests: Vec<String>,
    pub(crate) suite: Option<Suite>,
}

#[derive(Deserialize)]
pub(crate) struct Reason {
    pub(crate) text: String,
}

#[derive(Deserialize)]
pub(crate) struct Suite {
    pub(crate) base: Counts,
    pub(crate) head: Counts,
}

#[derive(Deserialize)]
pub(crate) struct Counts {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
}

#[derive(Deserialize)]
pub(crate) struct Effect {
    pub(crate) kind: String,
    pub(crate) state: String,
    pub(crate) detail: Option<String>,
}

/// `data` of one message of an event feed.
#[derive(Deserialize)]
pub(crate) struct Event {
    pub(crate) at: Timestamp,
    pub(crate) what: What,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum What {
    TaskCreated {
        title: String,
        mode: String,
        trigger: String,
    },
    TaskJoined {
        by: String,
        message: String,
    },
    RunLeased {
        #[serde(default = "first")]
        run: u16,
        worker: String,
    },
    Step {
        #[serde(default = "first")]
        run: u16,
        kind: String,
        phase: String,
        title: String,
        calls: u32,
        generated_tokens: u64,
    },
    RunFailed {
        #[serde(default = "first")]
        run: u16,
        why: String,
        again: bool,
    },
    RunLapsed {
        #[serde(default = "first")]
        run: u16,
        again: bool,
    },
    RunEnded {
        #[serde(default = "first")]
        run: u16,
        outcome: String,
        level: Option<String>,
    },
    EffectIntended {
        effect: String,
        detail: String,
    },
    EffectSettled {
        effect: String,
        detail: String,
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
    RunsAdded {
        by: String,
        models: Vec<Option<String>>,
    },
    RunChosen {
        by: String,
        run: u16,
        #[serde(default)]
        draft: bool,
    },
    RunStopped {
        by: String,
        run: u16,
    },
    #[serde(other)]
    Unknown,
}

/// A dashboard of before there were several says nothing.
fn first() -> u16 {
    1
}
