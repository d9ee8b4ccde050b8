//! Reads an answer that passes through unchanged: usage, why it ended, whether anything of it was seen.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};
use memchr::memmem;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::edit::{Change, apply, quoted, span};
use crate::event::{Finish, Usage};
use crate::finish;
use crate::frames::{self, Frames};
use crate::json::text_of;
use crate::protocol::Protocol;
use crate::upstream::{UpstreamError, read_error_event};
use crate::usage::{AnthropicUsage, OpenAiUsage, ResponsesUsage, lenient};

/// A whole answer that is held back so that it can be read; a longer one passes unread.
const WHOLE_MAX: usize = 64 * 1024 * 1024;
/// What stands around the text in one of Anthropic's deltas.
const ANTHROPIC_DELTA_BYTES: usize = 80;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchOptions {
    pub streamed: bool,
    /// The model's name as the caller said it; another one in the answer is replaced by it. `None`: left as it is.
    pub model: Option<String>,
    /// The usage was asked for by us, not by the caller: its chunk is taken out again.
    pub hide_usage: bool,
}

/// What was learned of an answer so far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    pub usage: Option<Usage>,
    pub finish: Option<Finish>,
    /// A piece of the answer proper (text, thought, tool call, vector) has been in it.
    pub content: bool,
    /// Of what the model wrote, as it stands in JSON: a lower bound of its tokens where nobody says their number.
    pub answer_bytes: u64,
    /// The answer came to its end as its protocol says so. A stream that stops without was cut off.
    pub ended: bool,
    /// An error in place of, or in the middle of, the answer. Neither it nor what comes after it is passed on.
    pub error: Option<UpstreamError>,
    /// The answer is too long, or no JSON: it passed as it came, and nothing of it is known.
    pub unread: bool,
}

/// An answer passing by. Feed it every chunk, send on what it gives back, and [`Watch::finish`] at the end.
#[derive(Debug)]
pub struct Watch {
    protocol: Protocol,
    options: WatchOptions,
    held: Held,
    seen: Seen,
}

#[derive(Debug)]
enum Held {
    Stream(Frames),
    Whole(BytesMut),
}

impl Watch {
    pub fn new(protocol: Protocol, options: WatchOptions) -> Self {
        let held =
            if options.streamed { Held::Stream(Frames::new(protocol.framing())) } else { Held::Whole(BytesMut::new()) };
        Self { protocol, options, held, seen: Seen::default() }
    }

    /// What goes to the caller for `chunk`; empty while an event is incomplete. Chunks may be cut anywhere.
    pub fn push(&mut self, chunk: Bytes) -> Bytes {
        if self.seen.unread {
            return chunk;
        }
        let Held::Stream(frames) = &mut self.held else { return self.hold(&chunk) };
        frames.push(&chunk);
        let mut out = BytesMut::new();
        while let Held::Stream(frames) = &mut self.held {
            match frames.next() {
                Ok(Some(frame)) => {
                    if let Some(frame) = self.pass(frame) {
                        out.extend_from_slice(&frame);
                    }
                }
                Ok(None) => break,
                Err(frames::TooLong) => {
                    out.extend_from_slice(&frames.rest());
                    self.seen.unread = true;
                    break;
                }
            }
        }
        out.freeze()
    }

    /// What is left when the upstream has closed: of a stream that was cut nothing, of a whole answer all.
    pub fn finish(&mut self) -> Bytes {
        match &mut self.held {
            Held::Whole(whole) => {
                let whole = whole.split().freeze();
                self.pass_whole(whole)
            }
            // A server may leave out the blank line after its last event. Half an event is of no use to anybody.
            Held::Stream(frames) => {
                let rest = frames.rest();
                let whole = frames::data(self.protocol.framing(), &rest)
                    .is_some_and(|data| data == "[DONE]" || serde_json::from_slice::<&RawValue>(&data).is_ok());
                if whole { self.pass(rest).unwrap_or_default() } else { Bytes::new() }
            }
        }
    }

    pub fn seen(&self) -> &Seen {
        &self.seen
    }

    fn hold(&mut self, chunk: &[u8]) -> Bytes {
        let Held::Whole(whole) = &mut self.held else { return Bytes::new() };
        whole.extend_from_slice(chunk);
        if whole.len() <= WHOLE_MAX {
            return Bytes::new();
        }
        self.seen.unread = true;
        whole.split().freeze()
    }

    /// One event on its way. `None`: it does not go on.
    fn pass(&mut self, frame: Bytes) -> Option<Bytes> {
        if self.seen.error.is_some() {
            return None;
        }
        let Some(data) = frames::data(self.protocol.framing(), &frame) else { return Some(frame) };
        if data == "[DONE]" {
            self.seen.ended = true;
            return Some(frame);
        }
        let look = self.look(&data)?;
        if self.options.hide_usage && look.only_usage {
            return None;
        }
        // Data that is not one slice of its frame stood on several lines; nobody sends JSON so.
        let within = frame.as_ptr_range().contains(&data.as_ptr());
        if !within { Some(frame) } else { Some(apply(&frame, self.renamed(&frame, &look))) }
    }

    fn pass_whole(&mut self, whole: Bytes) -> Bytes {
        // What is skipped over is not looked at, and could be anything.
        if str::from_utf8(&whole).is_err() {
            self.seen.unread = true;
            return whole;
        }
        let Some(look) = self.look(&whole) else { return Bytes::new() };
        self.seen.ended = !self.seen.unread;
        let changes = self.renamed(&whole, &look);
        apply(&whole, changes)
    }

    fn renamed(&self, whole: &[u8], look: &Look<'_>) -> Vec<Change> {
        let Some(wanted) = &self.options.model else { return Vec::new() };
        let other = look.model.filter(|raw| text_of(raw.get()).is_some_and(|name| name != wanted.as_str()));
        other.map(|raw| Change { span: span(whole, raw), text: quoted(wanted) }).into_iter().collect()
    }

    /// Learns of one JSON text. `None`: it is an error.
    fn look<'a>(&mut self, data: &'a [u8]) -> Option<Look<'a>> {
        let look = match self.protocol {
            Protocol::OpenAiChat | Protocol::OpenAiCompletions | Protocol::OpenAiEmbeddings => self.look_at_chat(data),
            Protocol::OpenAiResponses => self.look_at_responses(data),
            Protocol::AnthropicMessages => self.look_at_anthropic(data),
            Protocol::OllamaChat | Protocol::OllamaGenerate => self.look_at_ollama(data),
            Protocol::GoogleGenerate => Ok(Look::default()),
        };
        match look {
            Ok(look) => self.seen.error.is_none().then_some(look),
            Err(_) => {
                self.seen.unread = !self.options.streamed;
                Some(Look::default())
            }
        }
    }

    fn fail(&mut self, error: &RawValue, data: &[u8]) {
        // `"error": null` stands in some answers that are none.
        if error.get() != "null" {
            self.seen.error = Some(read_error_event(&String::from_utf8_lossy(data)));
        }
    }

    fn wrote<'a>(&mut self, parts: impl IntoIterator<Item = Option<&'a RawValue>>) {
        for part in parts.into_iter().flatten().filter(|part| full(Some(part))) {
            self.seen.content = true;
            self.seen.answer_bytes += part.get().len() as u64;
        }
    }

    fn look_at_chat<'a>(&mut self, data: &'a [u8]) -> serde_json::Result<Look<'a>> {
        let said: Chat<'a> = serde_json::from_slice(data)?;
        if let Some(error) = said.error {
            self.fail(error, data);
        }
        let usage = lenient::<OpenAiUsage>(said.usage).map(Usage::from);
        self.seen.usage = usage.or(self.seen.usage);
        let choices = said.choices.unwrap_or_default();
        for choice in &choices {
            let said = [&choice.delta, &choice.message].into_iter().flatten();
            self.wrote([choice.text].into_iter().chain(said.flat_map(Delta::parts)));
            if let Some(reason) = &choice.finish_reason {
                self.seen.finish = Some(finish::of_chat(reason));
            }
        }
        self.seen.content |= full(said.data);
        Ok(Look { model: said.model, only_usage: usage.is_some() && choices.is_empty() && self.options.streamed })
    }

    fn look_at_responses<'a>(&mut self, data: &'a [u8]) -> serde_json::Result<Look<'a>> {
        if !self.options.streamed {
            let answer: Response<'a> = serde_json::from_slice(data)?;
            self.wrote([answer.output]);
            return Ok(self.learn_response(answer, data));
        }
        let said: ResponsesEvent<'a> = serde_json::from_slice(data)?;
        if said.r#type.ends_with(".delta") {
            self.seen.content = true;
            self.wrote([said.delta]);
        }
        self.seen.ended |= matches!(said.r#type.as_ref(), "response.completed" | "response.incomplete");
        if said.r#type == "error" {
            self.seen.error = Some(read_error_event(&String::from_utf8_lossy(data)));
        }
        Ok(said.response.map(|answer| self.learn_response(answer, data)).unwrap_or_default())
    }

    fn learn_response<'a>(&mut self, answer: Response<'a>, data: &[u8]) -> Look<'a> {
        if let Some(error) = answer.error {
            self.fail(error, if self.options.streamed { error.get().as_bytes() } else { data });
        }
        self.seen.usage = lenient::<ResponsesUsage>(answer.usage).map(Usage::from).or(self.seen.usage);
        let reason = answer.incomplete_details.and_then(|details| details.reason);
        match answer.status.as_deref() {
            Some("completed") => self.seen.finish = Some(Finish::Stop),
            Some("incomplete") => self.seen.finish = Some(finish::of_incomplete(reason.as_deref())),
            _ => {}
        }
        Look { model: answer.model, only_usage: false }
    }

    fn look_at_anthropic<'a>(&mut self, data: &'a [u8]) -> serde_json::Result<Look<'a>> {
        // Most events are these, and nothing of them is needed but that they came.
        if self.seen.content && memmem::find(data, b"\"content_block_delta\"").is_some() {
            self.seen.answer_bytes += data.len().saturating_sub(ANTHROPIC_DELTA_BYTES) as u64;
            return Ok(Look::default());
        }
        let said: Anthropic<'a> = serde_json::from_slice(data)?;
        match said.r#type.as_deref() {
            Some("error") => self.fail(said.error.unwrap_or(RawValue::TRUE), data),
            Some("message_stop") => self.seen.ended = true,
            Some("content_block_delta") => {
                self.seen.content = true;
                self.seen.answer_bytes += data.len().saturating_sub(ANTHROPIC_DELTA_BYTES) as u64;
            }
            _ => {}
        }
        self.wrote([said.content]);
        let message = said.message.unwrap_or_default();
        for usage in [message.usage, said.usage] {
            if let Some(usage) = lenient::<AnthropicUsage>(usage) {
                self.seen.usage = Some(usage.over(self.seen.usage));
            }
        }
        let delta: Stopped<'a> = lenient(said.delta).unwrap_or_default();
        if let Some(reason) = said.stop_reason.or(delta.stop_reason) {
            let text = said.stop_sequence.or(delta.stop_sequence).map(Cow::into_owned);
            self.seen.finish = Some(finish::of_anthropic(&reason, text));
        }
        Ok(Look { model: message.model.or(said.model), only_usage: false })
    }

    fn look_at_ollama<'a>(&mut self, data: &'a [u8]) -> serde_json::Result<Look<'a>> {
        let said: Ollama<'a> = serde_json::from_slice(data)?;
        if let Some(error) = said.error {
            self.fail(error, data);
        }
        let message = said.message.unwrap_or_default();
        let parts = [said.response, said.thinking, message.content, message.thinking, message.tool_calls];
        self.wrote(parts);
        if said.done == Some(true) {
            self.seen.ended = true;
            self.seen.finish = Some(finish::of_ollama(said.done_reason.as_deref()));
            let (prompt, output) = (said.prompt_eval_count.unwrap_or(0), said.eval_count.unwrap_or(0));
            self.seen.usage = Some(Usage { prompt, output, ..Usage::default() });
        }
        Ok(Look { model: said.model, only_usage: false })
    }
}

/// What decides how one JSON text goes on.
#[derive(Default)]
struct Look<'a> {
    model: Option<&'a RawValue>,
    /// A chunk that is there for the usage and says nothing else.
    only_usage: bool,
}

/// Whether there is something in it: not `null`, `""` or `[]`.
fn full(raw: Option<&RawValue>) -> bool {
    raw.is_some_and(|raw| !matches!(raw.get(), "null" | "\"\"" | "[]"))
}

#[derive(Deserialize)]
struct Chat<'a> {
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    #[serde(borrow)]
    choices: Option<Vec<Choice<'a>>>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    delta: Option<Delta<'a>>,
    #[serde(borrow)]
    message: Option<Delta<'a>>,
    #[serde(borrow)]
    text: Option<&'a RawValue>,
    #[serde(borrow)]
    finish_reason: Option<Cow<'a, str>>,
}

#[derive(Deserialize, Default)]
struct Delta<'a> {
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    #[serde(borrow)]
    reasoning_content: Option<&'a RawValue>,
    #[serde(borrow)]
    reasoning: Option<&'a RawValue>,
    #[serde(borrow)]
    refusal: Option<&'a RawValue>,
    #[serde(borrow)]
    tool_calls: Option<&'a RawValue>,
}

impl<'a> Delta<'a> {
    fn parts(&self) -> [Option<&'a RawValue>; 5] {
        [self.content, self.reasoning_content, self.reasoning, self.refusal, self.tool_calls]
    }
}

#[derive(Deserialize)]
struct ResponsesEvent<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(borrow)]
    response: Option<Response<'a>>,
    #[serde(borrow)]
    delta: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Response<'a> {
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
    #[serde(borrow)]
    status: Option<Cow<'a, str>>,
    incomplete_details: Option<Incomplete>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    #[serde(borrow)]
    output: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Incomplete {
    reason: Option<String>,
}

#[derive(Deserialize)]
struct Anthropic<'a> {
    #[serde(borrow)]
    r#type: Option<Cow<'a, str>>,
    #[serde(borrow)]
    message: Option<AnthropicMessage<'a>>,
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    #[serde(borrow)]
    delta: Option<&'a RawValue>,
    #[serde(borrow)]
    stop_reason: Option<Cow<'a, str>>,
    #[serde(borrow)]
    stop_sequence: Option<Cow<'a, str>>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
struct AnthropicMessage<'a> {
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
struct Stopped<'a> {
    #[serde(borrow)]
    stop_reason: Option<Cow<'a, str>>,
    #[serde(borrow)]
    stop_sequence: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Ollama<'a> {
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    #[serde(borrow)]
    message: Option<OllamaMessage<'a>>,
    #[serde(borrow)]
    response: Option<&'a RawValue>,
    #[serde(borrow)]
    thinking: Option<&'a RawValue>,
    done: Option<bool>,
    #[serde(borrow)]
    done_reason: Option<Cow<'a, str>>,
    prompt_eval_count: Option<u64>,
    eval_count: Option<u64>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
struct OllamaMessage<'a> {
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    #[serde(borrow)]
    thinking: Option<&'a RawValue>,
    #[serde(borrow)]
    tool_calls: Option<&'a RawValue>,
}
