//! What routing, queueing and budgets need to know of a request, found without building a tree of it.

use serde_json::value::RawValue;

use crate::json::{self, At, Fields};
use crate::protocol::Protocol;
use crate::refused::Refused;

/// How much of a conversation's beginning tells it from others.
pub const PREFIX_BYTES: usize = 2048;
/// A longer string in base64, where a file may stand, is one: no tokenizer reads it as text.
const BINARY_BYTES: usize = 4096;
/// Where files stand: OpenAI's pictures, sound and files, Anthropic's and Google's data, Ollama's pictures.
const FILE_FIELDS: [&str; 5] = ["url", "image_url", "data", "file_data", "images"];
/// What a picture costs at most where its provider says so (Anthropic: about 1600 tokens for the largest).
const PICTURE_TOKENS: u64 = 1600;
const BYTES_PER_TOKEN: u64 = 4;
/// Of other scripts than ASCII: about a token each character of three bytes, often more.
const FOREIGN_BYTES_PER_TOKEN: u64 = 3;
/// No model's name is longer, and each request's is written down.
const NAME_CHARS: usize = 256;
/// What limits an answer, whatever it is called: servers read names of other interfaces as well (`n_predict` is llama.cpp's), and
/// each has its own order among them.
const LIMITS: [&str; 4] = ["max_completion_tokens", "max_tokens", "max_output_tokens", "n_predict"];
/// What says how many answers are written. `best_of` are written and one of them shown; `n_cmpl` is llama.cpp's.
const CHOICES: [&str; 3] = ["n", "best_of", "n_cmpl"];
/// All that decides something here or in [`crate::edit`]. Some servers read names in any case.
const DECIDING: [&str; 13] = [
    "model",
    "stream",
    "stream_options",
    "options",
    "prompt_cache_key",
    "user",
    "metadata",
    "messages",
    "prompt",
    "input",
    "instructions",
    "system",
    "tools",
];

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
    /// The largest limit that is said under any of the names that servers read. `None`: one of them is "without", or none is said.
    pub max_tokens: Option<u64>,
    /// Two limits are said, and not the same: which one counts is the server's choice.
    pub limits_differ: bool,
    /// The answer's usage will be in the stream: the caller asked for it, or the protocol always says it.
    pub usage_in_stream: bool,
    /// How many answers are written; 1 unless said.
    pub choices: u32,
    /// How many prompts stand in one request (completions and embeddings take lists).
    pub prompts: u32,
}

impl Peek {
    /// Errors: no JSON object, no model, or a field that decides something has a wrong type or stands twice.
    pub fn of(protocol: Protocol, body: &[u8]) -> Result<Self, Refused> {
        let at = At::Body;
        let mut fields = Fields::of(json::body(body)?, &at)?;
        fields.refuse_lookalikes(&[&DECIDING[..], &LIMITS, &CHOICES].concat())?;
        let model = fields.require_text("model")?;
        if !is_name(&model) {
            return Err(at
                .key("model")
                .wrong(&format!("the name of a model, {NAME_CHARS} printable characters at most")));
        }
        // Ollama streams unless told not to.
        let stream =
            fields.bool("stream")?.unwrap_or(matches!(protocol, Protocol::OllamaChat | Protocol::OllamaGenerate));
        let session = session(&mut fields)?;
        let usage_in_stream = !usage_is_optional(protocol) || include_usage(&mut fields)?;
        let choices = choices(&mut fields)?;
        let limits = limits(&mut fields)?;
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
            max_tokens: limits.iter().copied().max_by_key(|limit| limit.unwrap_or(u64::MAX)).flatten(),
            limits_differ: limits.iter().any(|limit| *limit != limits[0]),
            usage_in_stream,
            choices,
            prompts,
        })
    }
}

impl Peek {
    /// How many answers are written for the whole request.
    pub fn answers(&self) -> u64 {
        u64::from(self.choices.max(1)).saturating_mul(u64::from(self.prompts.max(1)))
    }
}

/// Letters and signs that show as themselves: no controls, and none of the marks that hide or turn round what stands beside them.
fn is_name(model: &str) -> bool {
    let printable = |c: char| c.is_alphanumeric() || c.is_ascii_graphic() || c == ' ';
    !model.is_empty() && model.chars().all(printable) && model.chars().count() <= NAME_CHARS
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
    let at = at.key("stream_options");
    let mut options = Fields::of(raw, &at)?;
    options.refuse_lookalikes(&["include_usage"])?;
    Ok(options.bool("include_usage")?.unwrap_or(false))
}

fn choices(fields: &mut Fields<'_, '_>) -> Result<u32, Refused> {
    let mut most = 1;
    for name in CHOICES {
        let said = fields.count(name)?.unwrap_or(1);
        most = most.max(u32::try_from(said).map_err(|_| fields.at().key(name).wrong("a small number"))?);
    }
    Ok(most)
}

/// Each limit that is said; `None` is one that says "without".
fn limits(fields: &mut Fields<'_, '_>) -> Result<Vec<Option<u64>>, Refused> {
    // Negative: no limit (-1), or until the context is full (-2).
    let predicted = |fields: &mut Fields<'_, '_>, name| {
        let said = fields.integer(name)?;
        Ok::<_, Refused>(said.map(|limit| u64::try_from(limit).ok()))
    };
    let at = *fields.at();
    let mut limits = Vec::new();
    for name in LIMITS {
        match name {
            "n_predict" => limits.extend(predicted(fields, name)?),
            _ => limits.extend(fields.count(name)?.map(Some)),
        }
    }
    // Ollama's; elsewhere it is nobody's, and may be anything.
    if let Some(raw) = fields.take("options")?.filter(|raw| raw.get().starts_with('{')) {
        let at = at.key("options");
        let mut options = Fields::of(raw, &at)?;
        options.refuse_lookalikes(&["num_predict"])?;
        limits.extend(predicted(&mut options, "num_predict")?);
    }
    Ok(limits)
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
    /// Of the bytes, those that are not ASCII.
    foreign: u64,
    binary: u64,
    pictures: u64,
}

impl Size {
    fn add(mut self, raw: &RawValue) -> Self {
        let json = raw.get();
        self.bytes += json.len() as u64;
        self.foreign += json.bytes().filter(|byte| !byte.is_ascii()).count() as u64;
        let mut field = "";
        for (text, after) in strings(json) {
            if after.trim_start().starts_with(':') {
                field = text;
            } else if FILE_FIELDS.contains(&field) && is_file(text) {
                self.binary += text.len() as u64;
                self.pictures += 1;
            }
        }
        self
    }

    fn tokens(&self) -> u64 {
        let ascii = self.bytes - self.binary - self.foreign;
        ascii.div_ceil(BYTES_PER_TOKEN)
            + self.foreign.div_ceil(FOREIGN_BYTES_PER_TOKEN)
            + self.pictures * PICTURE_TOKENS
    }
}

/// The strings of a JSON text as they stand in it, names of fields among them, each with what comes after it.
fn strings(json: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut rest = json;
    std::iter::from_fn(move || {
        let begin = memchr::memchr(b'"', rest.as_bytes())? + 1;
        let mut end = begin;
        loop {
            end += memchr::memchr2(b'"', b'\\', &rest.as_bytes()[end..])?;
            if rest.as_bytes()[end] == b'"' {
                break;
            }
            // What is escaped may be a quote, and is ASCII.
            end += 2;
        }
        let text = &rest[begin..end];
        rest = &rest[end + 1..];
        Some((text, rest))
    })
}

/// In base64, alone or as the data of a URL. JSON may escape the slash.
fn is_file(text: &str) -> bool {
    let base64 = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'\\' | b'-' | b'_' | b'=');
    let data = match text.strip_prefix("data:") {
        Some(url) => url.split_once(',').map_or("", |(_, data)| data),
        None => text,
    };
    data.len() > BINARY_BYTES && data.bytes().all(base64)
}
