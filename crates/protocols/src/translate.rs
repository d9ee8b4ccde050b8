//! A request from one protocol into another, through the neutral form.

use bytes::Bytes;

use crate::json::{self, At, Fields};
use crate::notes::{Dropped, cannot_say};
use crate::protocol::Protocol;
use crate::refused::Refused;
use crate::request::Request;
use crate::{anthropic, chat, completions, google, ollama, responses};

/// More tools than any model can be told of; each call of an answer is looked for among them.
const TOOLS_MAX: usize = 2000;

/// Where a translated request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target<'a> {
    pub protocol: Protocol,
    /// The name the upstream knows the model by.
    pub model: &'a str,
    /// The upstream is an engine of open models: it takes earlier thoughts back as `reasoning_content`, and knows ways
    /// to choose a token that OpenAI's own servers refuse.
    pub takes_thoughts: bool,
    /// What to put where the protocol demands a limit (Anthropic, completions) and the caller gave none.
    pub default_max_tokens: u64,
}

/// A request as the upstream reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Below the server's root, query included: `/v1/messages`, `/v1beta/models/x:streamGenerateContent?alt=sse`.
    pub path: String,
    pub body: Bytes,
    /// Fields of the caller that were left out, fit for a header; bounded.
    pub dropped: Vec<String>,
}

/// Errors: not readable as `protocol`; the sentence names the field. Fields that are not known never fail.
pub fn read_request(protocol: Protocol, body: &[u8]) -> Result<Request, Refused> {
    let at = At::Body;
    let fields = Fields::of(json::body(body)?, &at)?;
    let request = match protocol {
        Protocol::OpenAiChat => chat::read(fields),
        Protocol::OpenAiCompletions => completions::read_request(fields),
        Protocol::OpenAiResponses => responses::read(fields),
        Protocol::AnthropicMessages => anthropic::read(fields),
        Protocol::OllamaChat => ollama::read_chat(fields),
        Protocol::OllamaGenerate => ollama::read_generate(fields),
        Protocol::OpenAiEmbeddings => Err(Refused::whole("Embeddings are passed on as they are, never translated.")),
        Protocol::GoogleGenerate => Err(Refused::whole("Google's interface is not spoken here.")),
    }?;
    if request.tools.len() > TOOLS_MAX {
        return Err(Refused::at("tools", format!("The field `tools` must be a list of at most {TOOLS_MAX} tools.")));
    }
    Ok(request)
}

/// Errors: the request says something that changes its meaning and that the target's protocol cannot say.
pub fn write_request(request: &Request, target: &Target<'_>) -> Result<Written, Refused> {
    let mut dropped = Dropped::of(&request.unsaid)?;
    let body = match target.protocol {
        Protocol::OpenAiChat => chat::write(request, target, &mut dropped),
        Protocol::OpenAiCompletions => completions::write_request(request, target, &mut dropped),
        Protocol::OpenAiResponses => responses::write(request, target, &mut dropped),
        Protocol::AnthropicMessages => anthropic::write(request, target, &mut dropped),
        Protocol::OllamaChat => ollama::write_chat(request, target, &mut dropped),
        Protocol::OllamaGenerate => ollama::write_generate(request, target, &mut dropped),
        Protocol::GoogleGenerate => google::write(request, target, &mut dropped),
        Protocol::OpenAiEmbeddings => Err(cannot_say("messages")),
    }?;
    let path = match target.protocol.path() {
        Some(path) => path.to_owned(),
        None => google::path(target.model, request.stream)?,
    };
    Ok(Written { path, body: body.into(), dropped: dropped.into_names() })
}
