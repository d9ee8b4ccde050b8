//! A response for the caller: each item of output is added, grows, is done, and stands in the last event again.

use serde_json::Value;

use super::FREEFORM;
use crate::answer::Head;
use crate::event::{Event, Finish, Usage};
use crate::failure::Failure;
use crate::json::{self, Object};
use crate::request::ToolKind;
use crate::signature::Maker;
use crate::story::{Collected, Piece};
use crate::usage::write_responses;

#[derive(Debug, Default)]
pub(crate) struct Writer {
    begun: bool,
    sequence: u64,
    open: Option<Open>,
    /// The items that are done, as JSON.
    items: Vec<String>,
}

/// The item that grows. Refusals are messages with a part of another kind.
#[derive(Debug)]
struct Open {
    id: String,
    piece: Piece,
}

impl Writer {
    pub(crate) fn write(&mut self, event: &Event, head: &Head, collected: &Collected, out: &mut String) {
        if matches!(event, Event::Usage(_)) {
            return;
        }
        if !std::mem::replace(&mut self.begun, true) {
            for name in ["response.created", "response.in_progress"] {
                self.event(name, out, |said| {
                    said.object("response", |response| write_response(response, head, "in_progress", &[], None, None));
                });
            }
        }
        match event {
            Event::Text(text) => {
                if !matches!(self.open, Some(Open { piece: Piece::Text(_), .. })) {
                    self.begin(Piece::Text(String::new()), head, out);
                }
                self.grow("response.output_text.delta", text, head, out);
            }
            Event::Refusal(text) => {
                if !matches!(self.open, Some(Open { piece: Piece::Refusal(_), .. })) {
                    self.begin(Piece::Refusal(String::new()), head, out);
                }
                self.grow("response.refusal.delta", text, head, out);
            }
            Event::Thinking(text) => {
                self.begin_thinking(head, out);
                self.grow("response.reasoning_summary_text.delta", text, head, out);
            }
            Event::ThinkingSignature(said) => {
                self.begin_thinking(head, out);
                if let Some(Open { piece: Piece::Thinking { signature, .. }, .. }) = &mut self.open {
                    *signature = Some(said.clone());
                }
                self.end(head, "completed", out);
            }
            Event::CallBegun { id, name } => {
                let (id, name) = (id.clone(), name.clone());
                self.begin(Piece::Call { id, name, arguments: String::new() }, head, out);
            }
            Event::CallArguments(delta) => self.grow("response.function_call_arguments.delta", delta, head, out),
            Event::CallEnded => self.end(head, "completed", out),
            Event::Finished(finish) => {
                let (status, name) = match incomplete(finish) {
                    None => ("completed", "response.completed"),
                    Some(_) => ("incomplete", "response.incomplete"),
                };
                self.end(head, status, out);
                let items = std::mem::take(&mut self.items);
                self.event(name, out, |said| {
                    said.object("response", |response| {
                        write_response(response, head, status, &items, Some(finish), Some(&collected.usage));
                    });
                });
            }
            Event::Failed(failure) => {
                let json = failed_json(head, failure, self.sequence);
                push_event("response.failed", &json, out);
            }
            Event::Started { .. } | Event::Usage(_) => {}
        }
    }

    fn begin_thinking(&mut self, head: &Head, out: &mut String) {
        if !matches!(self.open, Some(Open { piece: Piece::Thinking { .. }, .. })) {
            self.begin(Piece::Thinking { text: String::new(), signature: None }, head, out);
        }
    }

    fn begin(&mut self, piece: Piece, head: &Head, out: &mut String) {
        self.end(head, "completed", out);
        let place = self.items.len();
        let id = item_id(&piece, head, place);
        let item = item_json(&id, &piece, head, "in_progress");
        self.event("response.output_item.added", out, |said| {
            said.put("output_index", place).raw("item", &item);
        });
        match &piece {
            Piece::Text(_) | Piece::Refusal(_) => self.part("response.content_part.added", &id, &piece, out),
            // A thought may have no words; its part comes with the first.
            Piece::Thinking { .. } | Piece::Call { .. } => {}
        }
        self.open = Some(Open { id, piece });
    }

    fn grow(&mut self, name: &str, delta: &str, head: &Head, out: &mut String) {
        let place = self.items.len();
        if let Some(Open { id, piece }) = &self.open
            && matches!(piece, Piece::Thinking { text, .. } if text.is_empty())
        {
            let (id, piece) = (id.clone(), piece.clone());
            self.part("response.reasoning_summary_part.added", &id, &piece, out);
        }
        let Some(Open { id, piece }) = &mut self.open else { return };
        match piece {
            Piece::Text(text) | Piece::Refusal(text) | Piece::Thinking { text, .. } => text.push_str(delta),
            Piece::Call { arguments, name, .. } => {
                arguments.push_str(delta);
                // Its text stands within the arguments and is only known when they are complete.
                if *head.tool(name) == ToolKind::Freeform {
                    return;
                }
            }
        }
        let (id, within) = (id.clone(), within(piece));
        let is_text = matches!(piece, Piece::Text(_));
        self.event(name, out, |said| {
            said.put("item_id", id).put("output_index", place);
            if let Some(index) = within {
                said.put(index, 0);
            }
            said.put("delta", delta);
            if is_text {
                said.list("logprobs", |_| {});
            }
        });
    }

    fn end(&mut self, head: &Head, status: &str, out: &mut String) {
        let Some(Open { id, piece }) = self.open.take() else { return };
        let place = self.items.len();
        match &piece {
            Piece::Text(text) => {
                self.event("response.output_text.done", out, |said| {
                    said.put("item_id", &id).put("output_index", place).put("content_index", 0).put("text", text);
                    said.list("logprobs", |_| {});
                });
                self.part("response.content_part.done", &id, &piece, out);
            }
            Piece::Refusal(text) => {
                self.event("response.refusal.done", out, |said| {
                    said.put("item_id", &id).put("output_index", place).put("content_index", 0).put("refusal", text);
                });
                self.part("response.content_part.done", &id, &piece, out);
            }
            Piece::Thinking { text, .. } if text.is_empty() => {}
            Piece::Thinking { text, .. } => {
                self.event("response.reasoning_summary_text.done", out, |said| {
                    said.put("item_id", &id).put("output_index", place).put("summary_index", 0).put("text", text);
                });
                self.part("response.reasoning_summary_part.done", &id, &piece, out);
            }
            Piece::Call { name, arguments, .. } => self.end_call(&id, name, arguments, head, out),
        }
        let item = item_json(&id, &piece, head, status);
        self.event("response.output_item.done", out, |said| {
            said.put("output_index", place).raw("item", &item);
        });
        self.items.push(item);
    }

    fn end_call(&mut self, id: &str, name: &str, arguments: &str, head: &Head, out: &mut String) {
        let place = self.items.len();
        let (told, _) = told_name(head, name);
        if *head.tool(name) == ToolKind::Freeform {
            let input = freeform(arguments);
            self.event("response.custom_tool_call_input.delta", out, |said| {
                said.put("item_id", id).put("output_index", place).put("delta", &input);
            });
            self.event("response.custom_tool_call_input.done", out, |said| {
                said.put("item_id", id).put("output_index", place).put("input", &input);
            });
        } else {
            self.event("response.function_call_arguments.done", out, |said| {
                said.put("item_id", id).put("output_index", place);
                said.put("arguments", arguments).put("name", told);
            });
        }
    }

    fn part(&mut self, name: &str, id: &str, piece: &Piece, out: &mut String) {
        let place = self.items.len();
        self.event(name, out, |said| {
            said.put("item_id", id).put("output_index", place);
            if let Some(index) = within(piece) {
                said.put(index, 0);
            }
            said.object("part", |part| write_part(part, piece));
        });
    }

    fn event(&mut self, name: &str, out: &mut String, fill: impl FnOnce(&mut Object<'_>)) {
        let json = json::object(|said| {
            said.put("type", name).put("sequence_number", self.sequence);
            fill(said);
        });
        self.sequence += 1;
        push_event(name, &json, out);
    }
}

fn push_event(name: &str, json: &str, out: &mut String) {
    out.push_str("event: ");
    out.push_str(name);
    out.push_str("\ndata: ");
    out.push_str(json);
    out.push_str("\n\n");
}

/// The index that places a part within its item.
fn within(piece: &Piece) -> Option<&'static str> {
    match piece {
        Piece::Text(_) | Piece::Refusal(_) => Some("content_index"),
        Piece::Thinking { .. } => Some("summary_index"),
        Piece::Call { .. } => None,
    }
}

fn item_id(piece: &Piece, head: &Head, place: usize) -> String {
    let prefix = match piece {
        Piece::Text(_) | Piece::Refusal(_) => "msg",
        Piece::Thinking { .. } => "rs",
        Piece::Call { name, .. } if *head.tool(name) == ToolKind::Freeform => "ctc",
        Piece::Call { .. } => "fc",
    };
    format!("{prefix}_{}_{place}", head.id)
}

fn item_json(id: &str, piece: &Piece, head: &Head, status: &str) -> String {
    let begins = status == "in_progress";
    json::object(|item| {
        item.put("id", id);
        match piece {
            Piece::Text(_) | Piece::Refusal(_) => {
                item.put("type", "message").put("status", status).put("role", "assistant");
                item.list("content", |content| {
                    if !begins {
                        content.object(|part| write_part(part, piece));
                    }
                });
            }
            // Thoughts go out as summary, whoever had them: that is what callers show, keep, and send back.
            Piece::Thinking { text, signature } => {
                item.put("type", "reasoning");
                item.list("summary", |summary| {
                    if !begins && !text.is_empty() {
                        summary.object(|part| write_part(part, piece));
                    }
                });
                item.put_some("encrypted_content", signature.as_ref().map(|signature| Maker::OpenAi.told(signature)));
            }
            Piece::Call { id: call, name, arguments } => {
                let (told, namespace) = told_name(head, name);
                if *head.tool(name) == ToolKind::Freeform {
                    let input = if begins { String::new() } else { freeform(arguments) };
                    item.put("type", "custom_tool_call").put("status", status).put("call_id", call);
                    item.put("name", told).put("input", input);
                } else {
                    item.put("type", "function_call").put("status", status).put("call_id", call);
                    item.put("name", told).put_some("namespace", namespace).put("arguments", arguments);
                }
            }
        }
    })
}

fn write_part(part: &mut Object<'_>, piece: &Piece) {
    match piece {
        Piece::Text(text) => {
            part.put("type", "output_text").put("text", text);
            part.list("annotations", |_| {});
            part.list("logprobs", |_| {});
        }
        Piece::Refusal(text) => {
            part.put("type", "refusal").put("refusal", text);
        }
        Piece::Thinking { text, .. } => {
            part.put("type", "summary_text").put("text", text);
        }
        Piece::Call { .. } => {}
    }
}

/// The name and namespace by which the caller knows a tool.
fn told_name<'h>(head: &'h Head, name: &'h str) -> (&'h str, Option<&'h str>) {
    match head.tool(name) {
        ToolKind::Function | ToolKind::Freeform => (name, None),
        ToolKind::Grouped { namespace, name } => (name, Some(namespace)),
    }
}

/// The plain text within the arguments; a model that did not keep to their form wrote it as it is.
fn freeform(arguments: &str) -> String {
    match serde_json::from_str::<Value>(arguments) {
        Ok(Value::Object(fields)) => match fields.get(FREEFORM) {
            Some(Value::String(text)) => text.clone(),
            _ => arguments.to_owned(),
        },
        Ok(Value::String(text)) => text,
        _ => arguments.to_owned(),
    }
}

/// Why a response that ended so is not complete.
fn incomplete(finish: &Finish) -> Option<&'static str> {
    match finish {
        Finish::MaxTokens => Some("max_output_tokens"),
        Finish::Filtered | Finish::Refused => Some("content_filter"),
        Finish::Stop | Finish::StopText(_) | Finish::Calls | Finish::Paused => None,
    }
}

fn write_response(
    response: &mut Object<'_>,
    head: &Head,
    status: &str,
    items: &[String],
    finish: Option<&Finish>,
    usage: Option<&Usage>,
) {
    response.put("id", format!("resp_{}", head.id)).put("object", "response").put("created_at", head.created);
    response.put("status", status).put("background", false).put("error", ());
    match finish.and_then(incomplete) {
        None => {
            response.put("incomplete_details", ());
        }
        Some(reason) => response.object("incomplete_details", |details| {
            details.put("reason", reason);
        }),
    }
    write_rest(response, head, items, usage);
}

fn write_rest(response: &mut Object<'_>, head: &Head, items: &[String], usage: Option<&Usage>) {
    response.put("instructions", ()).put("max_output_tokens", ()).put("model", &head.model);
    response.list("output", |output| {
        for item in items {
            output.raw(item);
        }
    });
    response.put("parallel_tool_calls", true).put("previous_response_id", ()).put("store", false);
    response.put("temperature", ()).put("top_p", ()).put("tool_choice", "auto");
    response.list("tools", |_| {});
    response.put("truncation", "disabled").object("metadata", |_| {});
    match usage {
        None => {
            response.put("usage", ());
        }
        Some(usage) => response.object("usage", |out| write_responses(usage, out)),
    }
}

fn failed_json(head: &Head, failure: &Failure, sequence: u64) -> String {
    json::object(|said| {
        said.put("type", "response.failed").put("sequence_number", sequence);
        said.object("response", |response| {
            response.put("id", format!("resp_{}", head.id)).put("object", "response");
            response.put("created_at", head.created).put("status", "failed").put("background", false);
            response.object("error", |error| {
                error.put("code", failure.openai_code().unwrap_or("server_error"));
                error.put("message", failure.sentence());
            });
            response.put("incomplete_details", ());
            write_rest(response, head, &[], None);
        });
    })
}

/// The end of a stream that somebody else began, of which neither id nor model is known here.
pub(crate) fn failed(failure: &Failure) -> String {
    let head = Head {
        id: "failed".to_owned(),
        model: String::new(),
        created: 0,
        streamed: true,
        usage: true,
        tools: Vec::new(),
    };
    let mut out = String::new();
    push_event("response.failed", &failed_json(&head, failure, 0), &mut out);
    out
}

pub(crate) fn whole(head: &Head, collected: &Collected) -> String {
    let finish = collected.finish();
    let status = if incomplete(finish).is_some() { "incomplete" } else { "completed" };
    let items: Vec<String> = (0..)
        .zip(&collected.pieces)
        .map(|(place, piece)| item_json(&item_id(piece, head, place), piece, head, status))
        .collect();
    json::object(|response| write_response(response, head, status, &items, Some(finish), Some(&collected.usage)))
}
