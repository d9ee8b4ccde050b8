//! An answer from one protocol into another, through events.

use std::time::Duration;

use bytes::{Bytes, BytesMut};

use crate::event::Event;
use crate::failure::Failure;
use crate::frames::{self, FRAME_MAX, Frames};
use crate::protocol::Protocol;
use crate::request::ToolKind;
use crate::story::{Collected, Story};
use crate::upstream::read_error_event;
use crate::{anthropic, chat, completions, google, ollama, responses};

/// Reads an upstream's successful answer, whole or streamed, cut anywhere.
#[derive(Debug)]
pub struct AnswerReader {
    protocol: Protocol,
    held: Held,
    reader: Reader,
    story: Story,
}

#[derive(Debug)]
enum Held {
    Stream(Frames),
    Whole(BytesMut),
}

#[derive(Debug)]
enum Reader {
    Chat(chat::Reader),
    Completions,
    Responses(responses::Reader),
    Anthropic(anthropic::Reader),
    Ollama,
    Google,
    /// Vectors are no answer that could be told in events.
    Embeddings,
}

/// A text that is not of the upstream's protocol.
#[derive(Debug)]
pub(crate) struct Unreadable;

impl From<serde_json::Error> for Unreadable {
    fn from(_: serde_json::Error) -> Self {
        Self
    }
}

impl AnswerReader {
    pub fn new(protocol: Protocol, streamed: bool) -> Self {
        let held = if streamed { Held::Stream(Frames::new(protocol.framing())) } else { Held::Whole(BytesMut::new()) };
        let reader = match protocol {
            Protocol::OpenAiChat => Reader::Chat(chat::Reader::default()),
            Protocol::OpenAiCompletions => Reader::Completions,
            Protocol::OpenAiEmbeddings => Reader::Embeddings,
            Protocol::OpenAiResponses => Reader::Responses(responses::Reader::default()),
            Protocol::AnthropicMessages => Reader::Anthropic(anthropic::Reader::default()),
            Protocol::OllamaChat | Protocol::OllamaGenerate => Reader::Ollama,
            Protocol::GoogleGenerate => Reader::Google,
        };
        Self { protocol, held, reader, story: Story::default() }
    }

    /// What the bytes up to here tell. After `Finished` or `Failed` nothing comes any more.
    pub fn push(&mut self, chunk: &[u8]) -> Vec<Event> {
        if self.story.is_over() {
            return Vec::new();
        }
        match &mut self.held {
            Held::Whole(whole) if whole.len() + chunk.len() > FRAME_MAX => {
                self.story.break_off("The model's server gave an answer that is too long.");
            }
            Held::Whole(whole) => whole.extend_from_slice(chunk),
            Held::Stream(frames) => {
                frames.push(chunk);
                self.read_frames();
            }
        }
        self.story.take()
    }

    /// The upstream has closed. An answer without its end yields `Event::Failed`.
    pub fn finish(&mut self) -> Vec<Event> {
        if self.story.is_over() {
            return Vec::new();
        }
        match &mut self.held {
            Held::Whole(whole) => {
                let whole = whole.split().freeze();
                self.read_whole(&whole);
            }
            Held::Stream(frames) => {
                // A server may leave out what ends its last event.
                let rest = frames.rest();
                self.read_frame(&rest);
                if self.story.has_finish() {
                    self.story.close();
                }
                self.story.break_off("The model's server broke off in the middle of its answer.");
            }
        }
        self.story.take()
    }

    fn read_frames(&mut self) {
        while !self.story.is_over() {
            let Held::Stream(frames) = &mut self.held else { return };
            match frames.next() {
                Ok(Some(frame)) => self.read_frame(&frame),
                Ok(None) => return,
                Err(frames::TooLong) => self.story.break_off("The model's server sent an event without an end."),
            }
        }
    }

    fn read_frame(&mut self, frame: &Bytes) {
        let Some(data) = frames::data(self.protocol.framing(), frame) else { return };
        if self.story.is_over() {
            return;
        }
        if data == "[DONE]" {
            self.story.close();
            return;
        }
        let Ok(json) = str::from_utf8(&data) else { return self.unreadable() };
        let story = &mut self.story;
        let read = match &mut self.reader {
            Reader::Chat(reader) => reader.read(json, story),
            Reader::Completions => completions::read(json, story),
            Reader::Responses(reader) => reader.read(json, story),
            Reader::Anthropic(reader) => reader.read(json, story),
            Reader::Ollama => ollama::read(json, story),
            Reader::Google => google::read(json, story),
            Reader::Embeddings => Err(Unreadable),
        };
        if read.is_err() {
            self.unreadable();
        }
    }

    fn read_whole(&mut self, whole: &[u8]) {
        let Ok(json) = str::from_utf8(whole) else { return self.unreadable() };
        let story = &mut self.story;
        let read = match &mut self.reader {
            Reader::Chat(reader) => reader.read(json, story),
            Reader::Completions => completions::read(json, story),
            Reader::Responses(_) => responses::read_whole(json, story),
            Reader::Anthropic(_) => anthropic::read_whole(json, story),
            Reader::Ollama => ollama::read(json, story),
            Reader::Google => google::read(json, story),
            Reader::Embeddings => Err(Unreadable),
        };
        match read {
            Ok(()) => self.story.close(),
            Err(Unreadable) => self.unreadable(),
        }
    }

    fn unreadable(&mut self) {
        self.story.break_off("The model's server gave an answer that cannot be read.");
    }
}

/// Whether `json` is an error in place of an answer; then the story ends with it.
pub(crate) fn is_error(error: Option<&serde_json::value::RawValue>, json: &str, story: &mut Story) -> bool {
    let is = error.is_some_and(|error| error.get() != "null");
    if is {
        story.fail(read_error_event(json));
    }
    is
}

/// What an answer is called towards the caller; [`crate::Request::head`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Unique part of the answer's id and of its items' ids, without the protocol's prefix (`chatcmpl-`, `msg_`).
    pub id: String,
    /// The model as the caller named it.
    pub model: String,
    /// Seconds since 1970.
    pub created: i64,
    pub streamed: bool,
    /// The caller wants usage in the stream, where the protocol leaves that open.
    pub usage: bool,
    /// The tools that are no plain functions to the caller, by the name that the upstream knows.
    pub tools: Vec<(String, ToolKind)>,
}

impl Head {
    pub(crate) fn tool(&self, name: &str) -> &ToolKind {
        self.tools.iter().find(|(known, _)| known == name).map_or(&ToolKind::Function, |(_, kind)| kind)
    }
}

/// How long an answer took; Ollama says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Elapsed {
    pub total: Duration,
    /// Until the first piece of the answer.
    pub first: Duration,
}

/// Writes an answer for the caller. Streamed: each event's bytes at once. Whole: all bytes at [`AnswerWriter::finish`].
#[derive(Debug)]
pub struct AnswerWriter {
    protocol: Protocol,
    head: Head,
    collected: Collected,
    writer: Writer,
    calls: usize,
    elapsed: Elapsed,
    over: bool,
}

#[derive(Debug)]
enum Writer {
    Chat(chat::Writer),
    Completions,
    Responses(responses::Writer),
    Anthropic(anthropic::Writer),
    Ollama(ollama::Writer),
    /// Google is spoken towards upstream only, and vectors are not told in events.
    Nothing,
}

impl AnswerWriter {
    pub fn new(protocol: Protocol, head: Head) -> Self {
        let writer = match protocol {
            Protocol::OpenAiChat => Writer::Chat(chat::Writer::default()),
            Protocol::OpenAiCompletions => Writer::Completions,
            Protocol::OpenAiResponses => Writer::Responses(responses::Writer::default()),
            Protocol::AnthropicMessages => Writer::Anthropic(anthropic::Writer::default()),
            Protocol::OllamaChat | Protocol::OllamaGenerate => Writer::Ollama(ollama::Writer::new(protocol)),
            Protocol::OpenAiEmbeddings | Protocol::GoogleGenerate => Writer::Nothing,
        };
        let collected = Collected::default();
        Self { protocol, head, collected, writer, calls: 0, elapsed: Elapsed::default(), over: false }
    }

    /// Said with the end, where the protocol says such a thing; to be set before `Event::Finished` is written.
    pub fn set_elapsed(&mut self, elapsed: Elapsed) {
        self.elapsed = elapsed;
    }

    /// The caller's bytes for `event`; empty for a whole answer, and for what the caller's protocol does not say.
    pub fn write(&mut self, event: &Event) -> Bytes {
        if self.over {
            return Bytes::new();
        }
        let named;
        let event = match event {
            Event::CallBegun { id, name } => {
                self.calls += 1;
                // An upstream that numbers no calls must not make two turns' calls look the same.
                let id = if id.is_empty() { format!("call_{}_{}", self.head.id, self.calls) } else { id.clone() };
                named = Event::CallBegun { id, name: name.clone() };
                &named
            }
            other => other,
        };
        self.over = matches!(event, Event::Finished(_) | Event::Failed(_));
        // Streamed, the pieces are needed again only where the last event repeats them.
        let piece = !matches!(event, Event::Usage(_) | Event::Finished(_) | Event::Failed(_));
        if !(piece && self.head.streamed) {
            self.collected.add(event);
        }
        if !self.head.streamed {
            return Bytes::new();
        }
        let mut out = String::new();
        let (head, collected) = (&self.head, &self.collected);
        match &mut self.writer {
            Writer::Chat(writer) => writer.write(event, head, collected, &mut out),
            Writer::Completions => completions::write(event, head, collected, &mut out),
            Writer::Responses(writer) => writer.write(event, head, collected, &mut out),
            Writer::Anthropic(writer) => writer.write(event, head, collected, &mut out),
            Writer::Ollama(writer) => writer.write(event, head, collected, self.elapsed, &mut out),
            Writer::Nothing => {}
        }
        out.into()
    }

    /// What is written while nothing is to say, to keep the connection alive; empty where a protocol has no such thing.
    pub fn ping(&self) -> Bytes {
        match (self.head.streamed, &self.writer) {
            (true, Writer::Anthropic(writer)) => writer.ping(),
            (true, Writer::Chat(_) | Writer::Completions | Writer::Responses(_)) => Bytes::from_static(b": \n\n"),
            (_, Writer::Ollama(_) | Writer::Nothing) | (false, _) => Bytes::new(),
        }
    }

    /// The whole answer; nothing for a streamed one, which is complete with its last event. Errors: the events ended
    /// with a failure, which a streamed answer has said already, or without an end.
    pub fn finish(self) -> Result<Bytes, Failure> {
        let Self { protocol, head, collected, over, elapsed, .. } = self;
        if let Some(failure) = collected.failure {
            return Err(failure);
        }
        if !over {
            return Err(Failure::Internal);
        }
        if head.streamed {
            return Ok(Bytes::new());
        }
        let whole = match protocol {
            Protocol::OpenAiChat => chat::whole(&head, &collected),
            Protocol::OpenAiCompletions => completions::whole(&head, &collected),
            Protocol::OpenAiResponses => responses::whole(&head, &collected),
            Protocol::AnthropicMessages => anthropic::whole(&head, &collected),
            Protocol::OllamaChat | Protocol::OllamaGenerate => ollama::whole(protocol, &head, &collected, elapsed),
            Protocol::OpenAiEmbeddings | Protocol::GoogleGenerate => return Err(Failure::Internal),
        };
        Ok(whole.into())
    }
}
