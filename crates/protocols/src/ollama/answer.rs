//! Ollama's lines. A whole answer is one line that says all.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::answer::{Elapsed, Head, Unreadable, is_error};
use crate::event::{Event, Finish, Usage};
use crate::finish;
use crate::json::{self, Object};
use crate::protocol::Protocol;
use crate::story::{Collected, Piece, Story};

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    message: Option<Message<'a>>,
    response: Option<String>,
    thinking: Option<String>,
    done: Option<bool>,
    #[serde(borrow)]
    done_reason: Option<Cow<'a, str>>,
    prompt_eval_count: Option<u64>,
    eval_count: Option<u64>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
struct Message<'a> {
    content: Option<String>,
    thinking: Option<String>,
    #[serde(borrow)]
    tool_calls: Option<Vec<Call<'a>>>,
}

#[derive(Deserialize)]
struct Call<'a> {
    id: Option<String>,
    #[serde(borrow)]
    function: Function<'a>,
}

#[derive(Deserialize)]
struct Function<'a> {
    name: String,
    #[serde(borrow)]
    arguments: Option<&'a RawValue>,
}

pub(crate) fn read(json: &str, story: &mut Story) -> Result<(), Unreadable> {
    let line: Line<'_> = serde_json::from_str(json)?;
    if is_error(line.error, json, story) {
        return Ok(());
    }
    story.start(None);
    let message = line.message.unwrap_or_default();
    story.thinking(line.thinking.or(message.thinking).unwrap_or_default());
    story.text(line.response.or(message.content).unwrap_or_default());
    for call in message.tool_calls.unwrap_or_default() {
        story.begin_call(call.id.unwrap_or_default(), call.function.name);
        story.arguments(call.function.arguments.map_or("{}", RawValue::get).to_owned());
        story.end_call();
    }
    if line.done == Some(true) {
        let (prompt, output) = (line.prompt_eval_count.unwrap_or(0), line.eval_count.unwrap_or(0));
        story.usage(Usage { prompt, output, ..Usage::default() });
        story.finish(finish::of_ollama(line.done_reason.as_deref()));
        story.close();
    }
    Ok(())
}

#[derive(Debug)]
pub(crate) struct Writer {
    protocol: Protocol,
    /// Ollama says a call at once.
    call: Option<(String, String, String)>,
}

impl Writer {
    pub(crate) fn new(protocol: Protocol) -> Self {
        Self { protocol, call: None }
    }

    pub(crate) fn write(
        &mut self,
        event: &Event,
        head: &Head,
        collected: &Collected,
        elapsed: Elapsed,
        out: &mut String,
    ) {
        if !matches!(event, Event::CallArguments(_)) {
            self.write_call(head, out);
        }
        let generate = self.protocol == Protocol::OllamaGenerate;
        match event {
            Event::Text(text) | Event::Refusal(text) => {
                line(head, out, |line| say(line, generate, text, None, &[]));
            }
            Event::Thinking(text) => line(head, out, |line| say(line, generate, "", Some(text), &[])),
            Event::CallBegun { id, name } => self.call = Some((id.clone(), name.clone(), String::new())),
            Event::CallArguments(delta) => {
                if let Some((_, _, arguments)) = &mut self.call {
                    arguments.push_str(delta);
                }
            }
            Event::Finished(finish) => line(head, out, |line| {
                write_said(line, generate, "", None, &[]);
                end(line, finish, &collected.usage, elapsed);
            }),
            Event::Failed(failure) => {
                let bytes: Bytes = crate::failure::write_stream_error(self.protocol, failure);
                out.push_str(&String::from_utf8_lossy(&bytes));
            }
            Event::Started { .. } | Event::ThinkingSignature(_) | Event::CallEnded | Event::Usage(_) => {}
        }
    }

    fn write_call(&mut self, head: &Head, out: &mut String) {
        let Some((id, name, arguments)) = self.call.take() else { return };
        if self.protocol == Protocol::OllamaChat {
            line(head, out, |line| say(line, false, "", None, &[Piece::Call { id, name, arguments }]));
        }
    }
}

pub(crate) fn whole(protocol: Protocol, head: &Head, collected: &Collected, elapsed: Elapsed) -> String {
    let thinking = collected.thinking();
    let thinking = (!thinking.is_empty()).then_some(thinking);
    json::object(|line| {
        begin(line, head);
        let generate = protocol == Protocol::OllamaGenerate;
        write_said(line, generate, &collected.text(true), thinking.as_deref(), &collected.pieces);
        end(line, collected.finish(), &collected.usage, elapsed);
    })
}

fn line(head: &Head, out: &mut String, fill: impl FnOnce(&mut Object<'_>)) {
    out.push_str(&json::object(|line| {
        begin(line, head);
        fill(line);
    }));
    out.push('\n');
}

fn begin(line: &mut Object<'_>, head: &Head) {
    line.put("model", &head.model).put("created_at", json::instant(head.created));
}

/// A piece of a streamed answer, which goes on.
fn say(line: &mut Object<'_>, generate: bool, text: &str, thinking: Option<&str>, pieces: &[Piece]) {
    write_said(line, generate, text, thinking, pieces);
    line.put("done", false);
}

/// Generated text has no calls.
fn write_said(line: &mut Object<'_>, generate: bool, text: &str, thinking: Option<&str>, pieces: &[Piece]) {
    if generate {
        line.put("response", text).put_some("thinking", thinking);
        return;
    }
    line.object("message", |message| {
        message.put("role", "assistant").put("content", text).put_some("thinking", thinking);
        if !pieces.iter().any(|piece| matches!(piece, Piece::Call { .. })) {
            return;
        }
        message.list("tool_calls", |calls| {
            for piece in pieces {
                let Piece::Call { id, name, arguments } = piece else { continue };
                calls.object(|call| {
                    call.put("id", id).object("function", |function| {
                        function.put("name", name).raw("arguments", &json::arguments_object(arguments));
                    });
                });
            }
        });
    });
}

fn end(line: &mut Object<'_>, finish: &Finish, usage: &Usage, elapsed: Elapsed) {
    let nanos = |time: std::time::Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    line.put("done", true).put("done_reason", finish::to_ollama(finish));
    line.put("total_duration", nanos(elapsed.total)).put("load_duration", 0);
    line.put("prompt_eval_count", usage.prompt).put("prompt_eval_duration", nanos(elapsed.first));
    line.put("eval_count", usage.output);
    line.put("eval_duration", nanos(elapsed.total.saturating_sub(elapsed.first)));
}
