//! What routing, queueing and budgets need to know of a request, found without building a tree of it.

use crate::protocol::Protocol;
use crate::refused::Refused;

/// How much of a conversation's beginning tells it from others.
pub const PREFIX_BYTES: usize = 2048;

/// The parts of a body that the gateway decides by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peek {
    pub model: String,
    pub stream: bool,
    /// What keeps a conversation at one engine: `prompt_cache_key`, else `user`, else `metadata.user_id`.
    pub session: Option<String>,
    /// The first [`PREFIX_BYTES`] of what the model reads (system, tools, messages) as they stand in the body; to hash.
    pub prefix: Vec<u8>,
    /// Bytes of what the model reads, JSON syntax included.
    pub prompt_bytes: u64,
    /// `prompt_bytes` as tokens, rounded up: four bytes a token, and a fixed number for each image.
    pub prompt_tokens: u64,
    /// `max_tokens`, `max_completion_tokens`, `max_output_tokens` or `num_predict`.
    pub max_tokens: Option<u64>,
    /// The answer's usage will be in the stream because the caller asked, or because the protocol always says it.
    pub usage_in_stream: bool,
    /// How many answers are asked for; 1 unless said.
    pub choices: u32,
    /// How many prompts stand in one request (completions and embeddings take lists).
    pub prompts: u32,
}

impl Peek {
    /// Errors: no JSON object, no model, a field that decides something has a wrong type or stands twice.
    pub fn of(protocol: Protocol, body: &[u8]) -> Result<Self, Refused> {
        let _ = (protocol, body);
        Err(Refused::whole("The body cannot be read yet."))
    }
}
