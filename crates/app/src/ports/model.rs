//! A language model as the solve loop sees it: a conversation goes in, one raw turn comes out.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fettle_domain::id::{CorrelationId, RunId};
use fettle_domain::words::Voice;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::BoxError;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// As configured: `[[gateway.models]] name`.
    pub name: String,
    /// The window in tokens, prompt and answer together.
    pub context_tokens: u64,
}

/// One small question, by the way on which Runs ask. Errors with a sentence for whoever wants to know whether a model answers.
#[async_trait]
pub trait TryModel: Send + Sync {
    async fn try_model(&self, name: &str) -> Result<Answered, String>;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    pub took: Duration,
    /// What it said, as it said it.
    pub text: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelRequest {
    pub messages: Vec<Message>,
    /// Offered by the provider's own function calling; empty with text dialects.
    pub tools: Vec<ToolSpec>,
    pub max_tokens: u64,
    pub stream: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "snake_case")]
pub enum Message {
    System {
        text: String,
    },
    User {
        text: String,
    },
    /// Only calls that were valid are ever sent back as calls.
    Assistant {
        text: String,
        calls: Vec<SentCall>,
    },
    Tool {
        call_id: String,
        text: String,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SentCall {
    pub id: String,
    pub name: String,
    pub arguments: Value,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ToolSpec {
    pub name: String,
    pub description: String,
    /// JSON Schema of the arguments.
    pub parameters: Value,
}

/// What came back, unparsed: whether a call is valid is for `agent` alone to say.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct RawTurn {
    pub text: String,
    /// Sent apart by the provider; leaked reasoning inside `text` is dropped by the parser.
    pub reasoning: String,
    pub calls: Vec<RawCall>,
    pub finish: Finish,
    pub usage: Option<Usage>,
}

/// A native call as streamed: fragments of one index joined in order, nothing repaired.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct RawCall {
    pub index: u32,
    pub id: Option<String>,
    /// As joined from the stream; may be absent, empty or repeated by faulty servers.
    pub name: Option<String>,
    pub arguments: RawArguments,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RawArguments {
    /// Joined text, to be parsed as JSON.
    Text(String),
    /// Some servers send an object instead of a string.
    Json(Value),
}

impl Default for RawArguments {
    fn default() -> Self {
        Self::Text(String::new())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    #[default]
    Stop,
    ToolCalls,
    /// The output limit cut the answer.
    Length,
    ContentFilter,
    /// Fettle's stream watcher cut it: endless repetition or a foreign turn.
    Cut(String),
    /// The stream ended without saying why.
    Missing,
    Other(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    pub prompt_tokens: u64,
    pub generated_tokens: u64,
}

/// By what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// 429, or a busy engine. Nothing was generated.
    #[error("the model is busy{}", said.as_ref().map(|said| format!(": {said}")).unwrap_or_default())]
    Busy {
        retry_after: Option<std::time::Duration>,
        /// Its server's own words, fit to show.
        said: Option<String>,
    },
    /// 5xx, a broken connection or stream, a stall: try again, bounded.
    #[error("the model did not answer")]
    Unavailable(#[source] BoxError),
    /// The prompt does not fit the window.
    #[error("the prompt is longer than the model's window")]
    ContextExceeded,
    /// 400, 401, 403, 404: trying again changes nothing.
    #[error("the model refused the request: {0}")]
    Refused(String),
    #[error("the model call was cancelled")]
    Cancelled,
}

/// Told each piece as it streams. An alias, because `async_trait` would give the `&str` one fixed lifetime.
pub type Progress<'a> = dyn Fn(Voice, &str) + Send + Sync + 'a;

/// Who asks. A gateway is shown it with each request; it is recorded nowhere, and no provider sees it.
#[derive(Debug, Clone)]
pub struct RunAccess {
    /// As the dashboard made it for this lease.
    pub token: Option<SecretString>,
    /// Its requests go where the beginning of its conversation is warm.
    pub run: RunId,
    pub correlation: CorrelationId,
}

/// How a model calls tools, as an examination found. Names are those of `agent`: what travels between programs of different
/// versions is text, and who does not know a name goes on as if nobody had examined the model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolCalls {
    Form {
        dialect: String,
        /// The way of changing a file that it knows best.
        edits: String,
        /// Answers with calls may be streamed.
        stream: bool,
        /// Right answers, of those asked.
        right: u32,
        asked: u32,
    },
    /// It calls none well enough; the sentence says how well.
    ChatOnly { why: String },
}

#[async_trait]
pub trait Model: Send + Sync {
    fn info(&self) -> &ModelInfo;

    /// `None`: nobody has examined it, or its server does not tell.
    async fn tool_calls(&self) -> Option<ToolCalls> {
        None
    }

    /// The same model, asked by one Run.
    fn for_run(&self, run: RunAccess) -> Arc<dyn Model>;

    /// One call. The adapter owns connect and stall timeouts (15 min without a byte) and retries nothing.
    /// `progress` is told each piece of the answer as it streams, for people who watch.
    async fn call(
        &self,
        request: &ModelRequest,
        progress: &Progress<'_>,
        cancel: &CancellationToken,
    ) -> Result<RawTurn, ModelError>;
}
