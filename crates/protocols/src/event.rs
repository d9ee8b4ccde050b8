//! An answer in the one form that every protocol is translated through: a sequence of events, streamed or not.

use crate::failure::Failure;

/// One step of an answer. Legal order: at most one `Started` first; then texts, thoughts and calls, where a call's
/// `CallArguments` and `CallEnded` come between its `CallBegun` and the next one's; `Usage` at any time, the last one
/// counts; then `Finished`. After `Failed` nothing comes.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The upstream has begun to answer. What it calls the answer, if it says so.
    Started {
        id: Option<String>,
    },
    Text(String),
    /// What the model says instead of what was asked for, where the protocol tells that apart.
    Refusal(String),
    Thinking(String),
    /// What the server that thought it wants back with the thought before.
    ThinkingSignature(String),
    CallBegun {
        id: String,
        name: String,
    },
    CallArguments(String),
    CallEnded,
    Usage(Usage),
    Finished(Finish),
    /// The upstream broke off. Its words are not in it.
    Failed(Failure),
}

/// Why a model stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finish {
    Stop,
    /// One of the caller's stop texts, where the server says which.
    StopText(Option<String>),
    MaxTokens,
    Calls,
    Filtered,
    /// The model refused, in the words of a protocol that knows this as an end.
    Refused,
    /// An answer that goes on when the conversation is sent again as it is (Anthropic's `pause_turn`).
    Paused,
}

/// Tokens of one request. `cached` and `cache_write` are parts of `prompt`, `thinking` is a part of `output`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    pub prompt: u64,
    pub cached: u64,
    pub cache_write: u64,
    pub output: u64,
    pub thinking: u64,
}
