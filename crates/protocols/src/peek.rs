//! What routing, queueing and budgets need to know of a request, found without building a tree of it.

use serde_json::value::RawValue;

use crate::json::{self, At, Fields};
use crate::protocol::Protocol;
use crate::refused::Refused;

/// How much of a conversation's beginning tells it from others.
pub const PREFIX_BYTES: usize = 2048;
/// A string without a blank or an escape that is longer than this is a file in base64: no tokenizer reads it as text.
const BINARY_BYTES: usize = 4096;
/// What a picture costs at most where its provider says so (Anthropic: about 1600 tokens for the largest).
const PICTURE_TOKENS: u64 = 1600;
const BYTES_PER_TOKEN: u64 = 4;

/// The parts of a body that the gateway decides by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peek {
    pub model: String,
    pub stream: bool,
    /// What keeps a conversation at one engine: `prompt_cache_key`, else `user`, else `metadata.user_id`.
    pub session: Option<String>,
    /// The first [`PREFIX_BYTES`] of what the model reads first (system, then messages), as it stands in the body; to
    /// hash.
    pub prefix: Vec<u8>,
    /// Bytes of what the model reads, JSON syntax included.
    pub prompt_bytes: u64,
    /// `prompt_bytes` as tokens, rounded up: four bytes a token, and a fixed number for each picture.
    pub prompt_tokens: u64,
    /// `max_tokens`, `max_completion_tokens`, `max_output_tokens` or `options.num_predict`.
    pub max_tokens: Option<u64>,
    /// The answer's usage will be in the stream: the caller asked for it, or the protocol always says it.
    pub usage_in_stream: bool,
    /// How many answers are asked for; 1 unless said.
    pub choices: u32,
    /// How many prompts stand in one request (completions and embeddings take lists).
    pub prompts: u32,
}

impl Peek {
    /// Errors: no JSON object, no model, or a field that decides something has a wrong type or stands twice.
    pub fn of(protocol: Protocol, body: &[u8]) -> Result<Self, Refused> {
        let at = At::Body;
        let mut fields = Fields::of(json::body(body)?, &at)?;
        let model = fields.require_text("model")?;
        if model.is_empty() {
            return Err(at.key("model").wrong("the name of a model"));
        }
        // Ollama streams unless told not to.
        let stream =
            fields.bool("stream")?.unwrap_or(matches!(protocol, Protocol::OllamaChat | Protocol::OllamaGenerate));
        let session = session(&mut fields)?;
        let usage_in_stream = !usage_is_optional(protocol) || include_usage(&mut fields)?;
        let choices =
            u32::try_from(fields.count("n")?.unwrap_or(1)).map_err(|_| at.key("n").wrong("a small number"))?;
        let max_tokens = max_tokens(protocol, &mut fields)?;
        let read = what_is_read(protocol, &mut fields)?;
        let prompts = match protocol {
            Protocol::OpenAiCompletions | Protocol::OpenAiEmbeddings => read.last().map_or(1, |raw| prompts(raw)),
            _ => 1,
        };
        if let (Protocol::OpenAiEmbeddings, true) = (protocol, read.is_empty()) {
            return Err(at.key("input").missing());
        }
        let size = read.iter().chain(fields.take("tools")?.iter()).fold(Size::default(), |size, raw| size.add(raw));
        Ok(Self {
            model,
            stream,
            session,
            prefix: read.iter().flat_map(|raw| raw.get().bytes()).take(PREFIX_BYTES).collect(),
            prompt_bytes: size.bytes,
            prompt_tokens: size.tokens(),
            max_tokens,
            usage_in_stream,
            choices: choices.max(1),
            prompts,
        })
    }
}

/// Whether a stream says its usage only when asked.
pub(crate) fn usage_is_optional(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::OpenAiChat | Protocol::OpenAiCompletions)
}

fn session(fields: &mut Fields<'_, '_>) -> Result<Option<String>, Refused> {
    let at = *fields.at();
    let (key, user) = (fields.text("prompt_cache_key")?, fields.text("user")?);
    let metadata = match fields.take("metadata")? {
        Some(raw) => Fields::of(raw, &at.key("metadata"))?.text("user_id")?,
        None => None,
    };
    Ok(key.or(user).or(metadata).filter(|session| !session.is_empty()))
}

fn include_usage(fields: &mut Fields<'_, '_>) -> Result<bool, Refused> {
    let at = *fields.at();
    let Some(raw) = fields.take("stream_options")? else { return Ok(false) };
    Ok(Fields::of(raw, &at.key("stream_options"))?.bool("include_usage")?.unwrap_or(false))
}

fn max_tokens(protocol: Protocol, fields: &mut Fields<'_, '_>) -> Result<Option<u64>, Refused> {
    let at = *fields.at();
    match protocol {
        Protocol::OllamaChat | Protocol::OllamaGenerate => {
            let Some(raw) = fields.take("options")? else { return Ok(None) };
            // Negative: no limit (-1), or until the context is full (-2).
            let limit = Fields::of(raw, &at.key("options"))?.integer("num_predict")?;
            Ok(limit.and_then(|limit| u64::try_from(limit).ok()))
        }
        Protocol::OpenAiChat => {
            let newer = fields.count("max_completion_tokens")?;
            Ok(newer.or(fields.count("max_tokens")?))
        }
        Protocol::OpenAiResponses => fields.count("max_output_tokens"),
        Protocol::OpenAiCompletions
        | Protocol::OpenAiEmbeddings
        | Protocol::AnthropicMessages
        | Protocol::GoogleGenerate => fields.count("max_tokens"),
    }
}

/// What becomes the prompt, in the order in which the model reads it.
fn what_is_read<'a>(protocol: Protocol, fields: &mut Fields<'a, '_>) -> Result<Vec<&'a RawValue>, Refused> {
    let names: &[&str] = match protocol {
        Protocol::OpenAiChat | Protocol::OllamaChat => &["messages"],
        Protocol::OpenAiCompletions => &["prompt"],
        Protocol::OpenAiEmbeddings => &["input"],
        Protocol::OpenAiResponses => &["instructions", "input"],
        Protocol::AnthropicMessages => &["system", "messages"],
        Protocol::OllamaGenerate => &["system", "prompt"],
        Protocol::GoogleGenerate => &["systemInstruction", "contents"],
    };
    let mut read = Vec::new();
    for name in names {
        read.extend(fields.take(name)?);
    }
    Ok(read)
}

/// A string or a list of token numbers is one prompt; a list of either is several.
fn prompts(raw: &RawValue) -> u32 {
    match serde_json::from_str::<Prompts>(raw.get()) {
        Ok(Prompts(many)) => many.max(1),
        Err(_) => 1,
    }
}

struct Prompts(u32);

impl<'de> serde::Deserialize<'de> for Prompts {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(CountPrompts)
    }
}

struct CountPrompts;

impl<'de> serde::de::Visitor<'de> for CountPrompts {
    type Value = Prompts;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Prompts, A::Error> {
        let mut many = 0_u32;
        while let Some(item) = seq.next_element::<&'de RawValue>()? {
            if item.get().starts_with(['"', '[']) {
                many = many.saturating_add(1);
            }
        }
        Ok(Prompts(many))
    }
}

#[derive(Default)]
struct Size {
    bytes: u64,
    binary: u64,
    pictures: u64,
}

impl Size {
    fn add(mut self, raw: &RawValue) -> Self {
        let text = raw.get().as_bytes();
        self.bytes += text.len() as u64;
        let mut from = 0;
        for quote in memchr::memchr_iter(b'"', text).chain([text.len()]) {
            let between = &text[from..quote];
            if between.len() > BINARY_BYTES && memchr::memchr2(b' ', b'\\', between).is_none() {
                self.binary += between.len() as u64;
                self.pictures += 1;
            }
            from = quote + 1;
        }
        self
    }

    fn tokens(&self) -> u64 {
        (self.bytes - self.binary).div_ceil(BYTES_PER_TOKEN) + self.pictures * PICTURE_TOKENS
    }
}
