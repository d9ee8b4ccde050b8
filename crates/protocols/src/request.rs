//! A request in the one form that every protocol is translated through.

use serde_json::value::RawValue;

use crate::answer::Head;

/// What a caller asks for.
#[derive(Debug, Clone)]
pub struct Request {
    /// The model as the caller named it.
    pub model: String,
    pub stream: bool,
    /// The caller wants token counts in a streamed answer.
    pub stream_usage: bool,
    pub input: Input,
    pub tools: Vec<Tool>,
    pub tool_choice: ToolChoice,
    /// `Some(false)`: one tool call a turn at most.
    pub parallel_calls: Option<bool>,
    pub sampling: Sampling,
    pub stop: Vec<String>,
    /// Most tokens of the answer, thinking included.
    pub max_tokens: Option<u64>,
    pub format: Format,
    pub thinking: Option<Thinking>,
    /// Whom the caller asks for, opaque.
    pub user: Option<String>,
    pub cache_key: Option<String>,
    /// What the caller said and no other protocol can be told.
    pub unsaid: Vec<Unsaid>,
}

impl Request {
    /// What the answer to this request is called. `id`: unique, without a protocol's prefix. `created`: seconds since
    /// 1970.
    pub fn head(&self, id: String, created: i64) -> Head {
        let unlike = self.tools.iter().filter(|tool| tool.kind != ToolKind::Function);
        Head {
            id,
            model: self.model.clone(),
            created,
            streamed: self.stream,
            usage: self.stream_usage,
            tools: unlike.map(|tool| (tool.name.clone(), tool.kind.clone())).collect(),
        }
    }
}

/// A field that has no place in the neutral form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsaid {
    pub field: String,
    pub weight: Weight,
}

/// What leaving a field out does to the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// Little: it is dropped, and the caller told.
    Hint,
    /// The caller would get something else than was asked for: the request is refused.
    Meaning,
}

#[derive(Debug, Clone)]
pub enum Input {
    /// A conversation, which the server puts into the model's template.
    Chat(Vec<Message>),
    /// Text that the model goes on from as it stands.
    Text { prompt: String, suffix: Option<String> },
}

#[derive(Debug, Clone)]
pub struct Message {
    pub role: Role,
    pub parts: Vec<Part>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    System,
    User,
    Assistant,
}

#[derive(Debug, Clone)]
pub enum Part {
    Text(String),
    Image(Image),
    /// `signature` is what the server that thought it wants back; text may be empty where only that is known.
    Thinking {
        text: String,
        signature: Option<String>,
    },
    /// `arguments` is a JSON text as the model wrote it.
    Call {
        id: String,
        name: String,
        arguments: String,
    },
    Result {
        call: String,
        parts: Vec<Part>,
        failed: bool,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Image {
    Url(String),
    /// `base64` as it came, not decoded.
    Data {
        media_type: String,
        base64: String,
    },
}

#[derive(Debug, Clone)]
pub struct Tool {
    pub name: String,
    pub description: Option<String>,
    /// JSON schema of the arguments, byte for byte as the caller wrote it: key order is part of what the model sees.
    pub schema: Option<Box<RawValue>>,
    pub strict: Option<bool>,
    pub kind: ToolKind,
}

/// How the caller's protocol tells of a tool. Upstream it is a function in any case.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ToolKind {
    #[default]
    Function,
    /// Takes one text, not JSON (`custom` of OpenAI Responses). Upstream: a function with the one argument `input`.
    Freeform,
    /// Stands as `name` in a group of tools. [`Tool::name`] is the two together.
    Grouped { namespace: String, name: String },
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ToolChoice {
    #[default]
    Auto,
    None,
    Required,
    Named(String),
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sampling {
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_k: Option<u64>,
    pub min_p: Option<f64>,
    pub seed: Option<i64>,
    pub frequency_penalty: Option<f64>,
    pub presence_penalty: Option<f64>,
    pub repeat_penalty: Option<f64>,
}

#[derive(Debug, Clone, Default)]
pub enum Format {
    #[default]
    Text,
    /// Any JSON object.
    Json,
    Schema {
        name: Option<String>,
        schema: Box<RawValue>,
        strict: Option<bool>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thinking {
    Off,
    /// As the model does by itself.
    On,
    /// At most so many tokens of it.
    Budget(u64),
    Effort(Effort),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effort {
    Minimal,
    Low,
    Medium,
    High,
    Highest,
}
