//! Chat completions: `choices[0]` of an answer or of its chunks.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::answer::{Head, Unreadable, is_error};
use crate::event::{Event, Finish, Usage};
use crate::finish;
use crate::json::{self, Object, text_of};
use crate::story::{Collected, Piece, Story};
use crate::usage::{OpenAiUsage, lenient, write_openai};

#[derive(Debug, Default)]
pub(crate) struct Reader {
    /// Index and id of the call that is open.
    call: (u64, String),
}

#[derive(Deserialize)]
struct Chunk<'a> {
    id: Option<String>,
    #[serde(borrow)]
    choices: Option<Vec<Choice<'a>>>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    index: Option<u64>,
    #[serde(borrow)]
    delta: Option<Said<'a>>,
    #[serde(borrow)]
    message: Option<Said<'a>>,
    #[serde(borrow)]
    finish_reason: Option<Cow<'a, str>>,
    /// vLLM's: the stop text or the number of the stop token.
    #[serde(borrow)]
    stop_reason: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Said<'a> {
    content: Option<String>,
    refusal: Option<String>,
    /// What vLLM, SGLang, llama.cpp and DeepSeek call a thought; newer vLLM calls it `reasoning`.
    reasoning_content: Option<String>,
    reasoning: Option<String>,
    #[serde(borrow)]
    tool_calls: Option<Vec<Call<'a>>>,
}

#[derive(Deserialize)]
struct Call<'a> {
    index: Option<u64>,
    id: Option<String>,
    #[serde(borrow)]
    function: Option<Function<'a>>,
}

#[derive(Deserialize)]
struct Function<'a> {
    name: Option<String>,
    #[serde(borrow)]
    arguments: Option<&'a RawValue>,
}

impl Reader {
    /// One chunk, or a whole answer, which says the same in `message` instead of `delta`.
    pub(crate) fn read(&mut self, json: &str, story: &mut Story) -> Result<(), Unreadable> {
        let chunk: Chunk<'_> = serde_json::from_str(json)?;
        if is_error(chunk.error, json, story) {
            return Ok(());
        }
        story.start(chunk.id);
        if let Some(usage) = lenient::<OpenAiUsage>(chunk.usage) {
            story.usage(Usage::from(usage));
        }
        for choice in chunk.choices.unwrap_or_default() {
            if choice.index.unwrap_or(0) != 0 {
                continue;
            }
            if let Some(said) = choice.delta.or(choice.message) {
                self.say(said, story)?;
            }
            if let Some(reason) = choice.finish_reason {
                let text = choice.stop_reason.and_then(|raw| text_of(raw.get()));
                story.finish(match (finish::of_chat(&reason), text) {
                    (Finish::Stop, Some(text)) => Finish::StopText(Some(text.into_owned())),
                    (finish, _) => finish,
                });
            }
        }
        Ok(())
    }

    fn say(&mut self, said: Said<'_>, story: &mut Story) -> Result<(), Unreadable> {
        story.thinking(said.reasoning_content.or(said.reasoning).unwrap_or_default());
        story.text(said.content.unwrap_or_default());
        story.refusal(said.refusal.unwrap_or_default());
        for (place, call) in (0_u64..).zip(said.tool_calls.unwrap_or_default()) {
            let index = call.index.unwrap_or(place);
            let id = call.id.unwrap_or_default();
            let (name, arguments) = call.function.map_or((None, None), |said| (said.name, said.arguments));
            let other = index != self.call.0 || !(id.is_empty() || id == self.call.1);
            if !story.call_is_open() || other {
                // Arguments for a call that is over cannot be put where they belong.
                let name = name.filter(|name| !name.is_empty()).ok_or(Unreadable)?;
                story.begin_call(id.clone(), name);
                self.call = (index, id);
            }
            if let Some(arguments) = arguments {
                // Some servers say them as an object.
                story.arguments(text_of(arguments.get()).map_or_else(|| arguments.get().to_owned(), Cow::into_owned));
            }
        }
        Ok(())
    }
}

#[derive(Debug, Default)]
pub(crate) struct Writer {
    begun: bool,
    calls: usize,
}

impl Writer {
    pub(crate) fn write(&mut self, event: &Event, head: &Head, collected: &Collected, out: &mut String) {
        if let Event::Failed(failure) = event {
            let bytes = crate::failure::write_stream_error(crate::Protocol::OpenAiChat, failure);
            out.push_str(&String::from_utf8_lossy(&bytes));
            return;
        }
        if !std::mem::replace(&mut self.begun, true) {
            delta(head, out, |delta| {
                delta.put("role", "assistant").put("content", "");
            });
        }
        match event {
            Event::Text(text) => delta(head, out, |delta| {
                delta.put("content", text);
            }),
            Event::Refusal(text) => delta(head, out, |delta| {
                delta.put("refusal", text);
            }),
            Event::Thinking(text) => delta(head, out, |delta| {
                delta.put("reasoning_content", text);
            }),
            Event::CallBegun { id, name } => {
                let index = self.calls;
                self.calls += 1;
                delta(head, out, |delta| {
                    call(delta, index, |call| {
                        call.put("id", id).put("type", "function");
                        call.object("function", |function| {
                            function.put("name", name).put("arguments", "");
                        });
                    });
                });
            }
            Event::CallArguments(arguments) => {
                let index = self.calls.saturating_sub(1);
                delta(head, out, |delta| {
                    call(delta, index, |call| {
                        call.object("function", |function| {
                            function.put("arguments", arguments);
                        });
                    });
                });
            }
            Event::Finished(finish) => {
                chunk(head, out, |chunk| {
                    chunk.list("choices", |choices| {
                        choices.object(|choice| {
                            choice.put("index", 0).object("delta", |_| {});
                            choice.put("logprobs", ()).put("finish_reason", finish::to_chat(finish));
                        });
                    });
                });
                if head.usage {
                    chunk(head, out, |chunk| {
                        chunk.list("choices", |_| {});
                        chunk.object("usage", |usage| write_openai(&collected.usage, usage));
                    });
                }
                out.push_str("data: [DONE]\n\n");
            }
            Event::Started { .. }
            | Event::ThinkingSignature(_)
            | Event::CallEnded
            | Event::Usage(_)
            | Event::Failed(_) => {}
        }
    }
}

fn chunk(head: &Head, out: &mut String, fill: impl FnOnce(&mut Object<'_>)) {
    let json = json::object(|chunk| {
        chunk.put("id", format!("chatcmpl-{}", head.id)).put("object", "chat.completion.chunk");
        chunk.put("created", head.created).put("model", &head.model);
        fill(chunk);
    });
    out.push_str("data: ");
    out.push_str(&json);
    out.push_str("\n\n");
}

fn delta(head: &Head, out: &mut String, fill: impl FnOnce(&mut Object<'_>)) {
    chunk(head, out, |chunk| {
        chunk.list("choices", |choices| {
            choices.object(|choice| {
                choice.put("index", 0).object("delta", fill);
                choice.put("logprobs", ()).put("finish_reason", ());
            });
        });
    });
}

fn call(delta: &mut Object<'_>, index: usize, fill: impl FnOnce(&mut Object<'_>)) {
    delta.list("tool_calls", |calls| {
        calls.object(|call| {
            call.put("index", index);
            fill(call);
        });
    });
}

pub(crate) fn whole(head: &Head, collected: &Collected) -> String {
    json::object(|answer| {
        answer.put("id", format!("chatcmpl-{}", head.id)).put("object", "chat.completion");
        answer.put("created", head.created).put("model", &head.model);
        answer.list("choices", |choices| {
            choices.object(|choice| {
                choice.put("index", 0).object("message", |message| write_message(message, collected));
                choice.put("logprobs", ()).put("finish_reason", finish::to_chat(collected.finish()));
            });
        });
        answer.object("usage", |usage| write_openai(&collected.usage, usage));
    })
}

fn write_message(message: &mut Object<'_>, collected: &Collected) {
    let said = |text: String| (!text.is_empty()).then_some(text);
    let refusals = collected.pieces.iter().filter_map(|piece| match piece {
        Piece::Refusal(text) => Some(text.as_str()),
        _ => None,
    });
    let refusal: String = refusals.collect();
    let calls = || collected.pieces.iter().filter(|piece| matches!(piece, Piece::Call { .. }));
    let text = collected.text(false);
    let nothing_else = calls().next().is_none() && refusal.is_empty();
    message.put("role", "assistant").put("content", if nothing_else { Some(text) } else { said(text) });
    message.put("refusal", said(refusal));
    message.put_some("reasoning_content", said(collected.thinking()));
    if calls().next().is_none() {
        return;
    }
    message.list("tool_calls", |list| {
        for piece in calls() {
            let Piece::Call { id, name, arguments } = piece else { continue };
            list.object(|call| {
                call.put("id", id).put("type", "function");
                call.object("function", |function| {
                    function.put("name", name).put("arguments", arguments);
                });
            });
        }
    });
}
