//! Messages as answers: blocks of content, streamed as `message_start`, `content_block_*`, `message_delta`,
//! `message_stop`.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::answer::{Head, Unreadable};
use crate::event::{Event, Finish, Usage};
use crate::finish;
use crate::json::{self, Object};
use crate::signature::{Maker, REDACTED};
use crate::story::{Collected, Piece, Story};
use crate::upstream::read_error_event;
use crate::usage::{AnthropicUsage, lenient, write_anthropic};

#[derive(Debug, Default)]
pub(crate) struct Reader {
    usage: Option<Usage>,
    /// Arguments that came with the beginning of a call; they count if no deltas follow.
    whole_input: Option<String>,
}

#[derive(Deserialize)]
struct Said<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(borrow)]
    message: Option<Message<'a>>,
    #[serde(borrow)]
    content_block: Option<Block<'a>>,
    #[serde(borrow)]
    delta: Option<Delta<'a>>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Message<'a> {
    id: Option<String>,
    #[serde(borrow)]
    content: Option<Vec<Block<'a>>>,
    #[serde(borrow)]
    stop_reason: Option<Cow<'a, str>>,
    stop_sequence: Option<String>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
    #[serde(borrow)]
    r#type: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Block<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    text: Option<String>,
    thinking: Option<String>,
    signature: Option<String>,
    data: Option<String>,
    id: Option<String>,
    name: Option<String>,
    #[serde(borrow)]
    input: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(borrow)]
    r#type: Option<Cow<'a, str>>,
    text: Option<String>,
    thinking: Option<String>,
    signature: Option<String>,
    partial_json: Option<String>,
    #[serde(borrow)]
    stop_reason: Option<Cow<'a, str>>,
    stop_sequence: Option<String>,
}

impl Reader {
    pub(crate) fn read(&mut self, json: &str, story: &mut Story) -> Result<(), Unreadable> {
        let said: Said<'_> = serde_json::from_str(json)?;
        match said.r#type.as_ref() {
            "message_start" => {
                let message = said.message.ok_or(Unreadable)?;
                story.start(message.id);
                self.count(message.usage, story);
            }
            "content_block_start" => {
                let block = said.content_block.ok_or(Unreadable)?;
                self.whole_input = block.input.map(|input| input.get().to_owned());
                tell_block(block, story)?;
            }
            "content_block_delta" => self.tell_delta(said.delta.ok_or(Unreadable)?, story),
            "content_block_stop" if story.call_is_open() => {
                story.arguments(self.whole_input.take().unwrap_or_default());
                story.end_call();
            }
            "message_delta" => {
                self.count(said.usage, story);
                if let Some(delta) = said.delta
                    && let Some(reason) = delta.stop_reason
                {
                    story.finish(finish::of_anthropic(&reason, delta.stop_sequence));
                }
            }
            "message_stop" => story.close(),
            "error" => story.fail(read_error_event(json)),
            _ => {} // `ping`, and whatever is new
        }
        Ok(())
    }

    fn tell_delta(&mut self, delta: Delta<'_>, story: &mut Story) {
        match delta.r#type.as_deref() {
            Some("text_delta") => story.text(delta.text.unwrap_or_default()),
            Some("thinking_delta") => story.thinking(delta.thinking.unwrap_or_default()),
            Some("signature_delta") => story.signature(Maker::Anthropic.read(delta.signature.unwrap_or_default())),
            Some("input_json_delta") => {
                let json = delta.partial_json.unwrap_or_default();
                if !json.is_empty() {
                    self.whole_input = None;
                }
                story.arguments(json);
            }
            _ => {}
        }
    }

    fn count(&mut self, usage: Option<&RawValue>, story: &mut Story) {
        if let Some(usage) = lenient::<AnthropicUsage>(usage) {
            let usage = usage.over(self.usage);
            self.usage = Some(usage);
            story.usage(usage);
        }
    }
}

fn tell_block(block: Block<'_>, story: &mut Story) -> Result<(), Unreadable> {
    match block.r#type.as_ref() {
        "text" => story.text(block.text.unwrap_or_default()),
        "thinking" => {
            story.thinking(block.thinking.unwrap_or_default());
            story.signature(Maker::Anthropic.read(block.signature.unwrap_or_default()));
        }
        "redacted_thinking" => story.signature(format!("{REDACTED}{}", block.data.unwrap_or_default())),
        "tool_use" => story.begin_call(block.id.unwrap_or_default(), block.name.ok_or(Unreadable)?),
        _ => {} // tools that run at the server are never asked for in a translated request
    }
    Ok(())
}

pub(crate) fn read_whole(json: &str, story: &mut Story) -> Result<(), Unreadable> {
    let message: Message<'_> = serde_json::from_str(json)?;
    if message.r#type.as_deref() == Some("error") {
        story.fail(read_error_event(json));
        return Ok(());
    }
    story.start(message.id);
    for block in message.content.ok_or(Unreadable)? {
        let input = block.input.map(|input| input.get().to_owned());
        tell_block(block, story)?;
        if story.call_is_open() {
            story.arguments(input.unwrap_or_else(|| "{}".to_owned()));
            story.end_call();
        }
    }
    if let Some(usage) = lenient::<AnthropicUsage>(message.usage) {
        story.usage(usage.over(None));
    }
    if let Some(reason) = message.stop_reason {
        story.finish(finish::of_anthropic(&reason, message.stop_sequence));
    }
    Ok(())
}

#[derive(Debug, Default)]
pub(crate) struct Writer {
    begun: bool,
    open: Option<Open>,
    index: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    Text,
    Thinking,
    Call,
}

impl Writer {
    pub(crate) fn write(&mut self, event: &Event, head: &Head, collected: &Collected, out: &mut String) {
        if matches!(event, Event::Started { .. } | Event::Usage(_)) {
            return; // usage that is known before the first piece belongs into the beginning
        }
        if let Event::Failed(failure) = event {
            let bytes = crate::failure::write_stream_error(crate::Protocol::AnthropicMessages, failure);
            out.push_str(&String::from_utf8_lossy(&bytes));
            return;
        }
        if !std::mem::replace(&mut self.begun, true) {
            begin(head, &collected.usage, out);
        }
        match event {
            Event::Text(text) | Event::Refusal(text) => {
                self.open(Open::Text, out, |block| {
                    block.put("type", "text").put("text", "");
                });
                self.delta(out, |delta| {
                    delta.put("type", "text_delta").put("text", text);
                });
            }
            Event::Thinking(text) => {
                self.open_thinking(out);
                self.delta(out, |delta| {
                    delta.put("type", "thinking_delta").put("thinking", text);
                });
            }
            Event::ThinkingSignature(signature) => self.sign(signature, out),
            Event::CallBegun { id, name } => {
                self.close(out);
                self.open(Open::Call, out, |block| {
                    block.put("type", "tool_use").put("id", id).put("name", name).object("input", |_| {});
                });
            }
            Event::CallArguments(arguments) => self.delta(out, |delta| {
                delta.put("type", "input_json_delta").put("partial_json", arguments);
            }),
            Event::CallEnded => self.close(out),
            Event::Finished(finish) => {
                self.close(out);
                event_lines("message_delta", out, |said| {
                    said.object("delta", |delta| write_stop(delta, finish));
                    said.object("usage", |usage| write_anthropic(&collected.usage, usage));
                });
                event_lines("message_stop", out, |_| {});
            }
            Event::Started { .. } | Event::Usage(_) | Event::Failed(_) => {}
        }
    }

    /// A ping is no first event; before that a comment does.
    pub(crate) fn ping(&self) -> Bytes {
        let ping: &[u8] = if self.begun { b"event: ping\ndata: {\"type\":\"ping\"}\n\n" } else { b": \n\n" };
        Bytes::from_static(ping)
    }

    fn sign(&mut self, signature: &str, out: &mut String) {
        if let Some(data) = signature.strip_prefix(REDACTED) {
            self.close(out);
            self.open(Open::Thinking, out, |block| {
                block.put("type", "redacted_thinking").put("data", data);
            });
        } else {
            self.open_thinking(out);
            self.delta(out, |delta| {
                delta.put("type", "signature_delta").put("signature", Maker::Anthropic.told(signature));
            });
        }
        self.close(out);
    }

    fn open_thinking(&mut self, out: &mut String) {
        self.open(Open::Thinking, out, |block| {
            block.put("type", "thinking").put("thinking", "").put("signature", "");
        });
    }

    fn open(&mut self, kind: Open, out: &mut String, fill: impl FnOnce(&mut Object<'_>)) {
        if self.open == Some(kind) {
            return;
        }
        self.close(out);
        self.open = Some(kind);
        event_lines("content_block_start", out, |said| {
            said.put("index", self.index).object("content_block", fill);
        });
    }

    fn delta(&self, out: &mut String, fill: impl FnOnce(&mut Object<'_>)) {
        event_lines("content_block_delta", out, |said| {
            said.put("index", self.index).object("delta", fill);
        });
    }

    fn close(&mut self, out: &mut String) {
        if self.open.take().is_some() {
            event_lines("content_block_stop", out, |said| {
                said.put("index", self.index);
            });
            self.index += 1;
        }
    }
}

fn event_lines(name: &str, out: &mut String, fill: impl FnOnce(&mut Object<'_>)) {
    let json = json::object(|said| {
        said.put("type", name);
        fill(said);
    });
    out.push_str("event: ");
    out.push_str(name);
    out.push_str("\ndata: ");
    out.push_str(&json);
    out.push_str("\n\n");
}

fn begin(head: &Head, usage: &Usage, out: &mut String) {
    event_lines("message_start", out, |said| {
        said.object("message", |message| {
            write_head(message, head);
            message.list("content", |_| {});
            message.put("stop_reason", ()).put("stop_sequence", ());
            message.object("usage", |out| write_anthropic(usage, out));
        });
    });
}

fn write_head(message: &mut Object<'_>, head: &Head) {
    message.put("id", format!("msg_{}", head.id)).put("type", "message").put("role", "assistant");
    message.put("model", &head.model);
}

fn write_stop(out: &mut Object<'_>, finish: &Finish) {
    let text = match finish {
        Finish::StopText(text) => text.as_deref(),
        _ => None,
    };
    out.put("stop_reason", finish::to_anthropic(finish)).put("stop_sequence", text);
}

pub(crate) fn whole(head: &Head, collected: &Collected) -> String {
    json::object(|message| {
        write_head(message, head);
        message.list("content", |content| {
            for piece in &collected.pieces {
                content.object(|block| write_piece(block, piece));
            }
        });
        write_stop(message, collected.finish());
        message.object("usage", |usage| write_anthropic(&collected.usage, usage));
    })
}

fn write_piece(block: &mut Object<'_>, piece: &Piece) {
    match piece {
        Piece::Text(text) | Piece::Refusal(text) => {
            block.put("type", "text").put("text", text);
        }
        Piece::Thinking { text, signature } => {
            let signature = signature.as_deref().unwrap_or_default();
            match signature.strip_prefix(REDACTED) {
                Some(data) if text.is_empty() => block.put("type", "redacted_thinking").put("data", data),
                _ => block
                    .put("type", "thinking")
                    .put("thinking", text)
                    .put("signature", Maker::Anthropic.told(signature)),
            };
        }
        Piece::Call { id, name, arguments } => {
            block.put("type", "tool_use").put("id", id).put("name", name);
            block.raw("input", &json::arguments_object(arguments));
        }
    }
}
