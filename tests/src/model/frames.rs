//! From an answer to the bytes of the protocol. Pure; pieces have a fixed size, so each run streams alike.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Answer, Conversation, Fault};

/// Characters of text or arguments in one streamed piece: small, so that words, names and JSON tokens are split.
const PIECE_CHARS: usize = 7;
/// Characters per token in the counted usage.
const TOKEN_CHARS: usize = 4;
/// How often a repetition is repeated in an unstreamed answer.
const REPETITIONS: usize = 10_000;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Frame {
    Bytes(String),
    Wait(Duration),
    /// The connection breaks here.
    Break,
}

/// A body, and what is sent after it until the client leaves.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Body {
    pub(super) frames: Vec<Frame>,
    pub(super) endless: Option<Frame>,
}

pub(super) fn usage(answer: &Answer, conversation: &Conversation) -> Value {
    if let Some(usage) = &answer.usage {
        return usage.clone();
    }
    let tokens = |chars: usize| chars.div_ceil(TOKEN_CHARS);
    let prompt: usize = conversation.messages.iter().map(|message| tokens(message.text.chars().count())).sum();
    let calls: usize =
        answer.calls.iter().map(|call| call.name.chars().count() + call.arguments.to_string().chars().count()).sum();
    let generated = tokens(answer.text.chars().count() + answer.reasoning.chars().count() + calls);
    json!({ "prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated })
}

/// An unstreamed answer.
pub(super) fn document(answer: &Answer, conversation: &Conversation, fault: Option<&Fault>) -> Body {
    let mut message = json!({ "role": "assistant", "content": answer.text });
    if !answer.reasoning.is_empty() {
        message["reasoning_content"] = answer.reasoning.clone().into();
    }
    if let Some(Fault::Repetition(unit)) = fault {
        message["content"] = format!("{}{}", answer.text, unit.repeat(REPETITIONS)).into();
    }
    if !answer.calls.is_empty() {
        let calls = answer.calls.iter().enumerate().map(|(at, call)| {
            let name = if fault == Some(&Fault::NamelessCalls) { Value::Null } else { call.name.as_str().into() };
            let arguments = match fault {
                Some(Fault::ArgumentsAsObject) => call.arguments.clone(),
                _ => call.arguments.to_string().into(),
            };
            json!({ "id": call_id(conversation, at), "type": "function",
                    "function": { "name": name, "arguments": arguments } })
        });
        message["tool_calls"] = calls.collect();
    }
    let mut document = json!({
        "id": "chatcmpl-scripted", "object": "chat.completion", "created": 0, "model": conversation.model,
        "choices": [{ "index": 0, "message": message, "finish_reason": finish(answer) }],
    });
    let usage = usage(answer, conversation);
    if !usage.is_null() {
        document["usage"] = usage;
    }
    let text = match fault {
        Some(Fault::ErrorInside(error)) => json!({ "error": error }).to_string(),
        _ => document.to_string(),
    };
    let half = || Frame::Bytes(text.chars().take(text.chars().count() / 2).collect());
    let frames = match fault {
        Some(Fault::MalformedJson) => vec![half()],
        Some(Fault::CutAfter { .. }) => vec![half(), Frame::Break],
        _ => vec![Frame::Bytes(text)],
    };
    Body { frames, endless: None }
}

/// A streamed answer.
pub(super) fn events(answer: &Answer, conversation: &Conversation, fault: Option<&Fault>) -> Body {
    let mut deltas = vec![json!({ "role": "assistant", "content": "" })];
    deltas.extend(pieces(&answer.reasoning).map(|piece| json!({ "reasoning_content": piece })));
    deltas.extend(pieces(&answer.text).map(|piece| json!({ "content": piece })));
    for at in 0..answer.calls.len() {
        deltas
            .extend(fragments(answer, conversation, at, fault).into_iter().map(|call| json!({ "tool_calls": [call] })));
    }
    let mut said: Vec<Frame> =
        deltas.into_iter().map(|delta| event(&chunk(conversation, delta, Value::Null))).collect();
    let mut ending = vec![event(&chunk(conversation, json!({}), finish(answer).into()))];
    let usage = usage(answer, conversation);
    if !usage.is_null() {
        let mut last = chunk(conversation, Value::Null, Value::Null);
        last["choices"] = json!([]);
        last["usage"] = usage;
        ending.push(event(&last));
    }
    let mut endless = None;
    match fault {
        Some(Fault::CutAfter { pieces }) => {
            said.truncate(*pieces);
            ending = vec![Frame::Break];
        }
        Some(Fault::EndsAfter { pieces }) => {
            said.truncate(*pieces);
            ending.clear();
        }
        Some(Fault::StallAfter { pieces, lasting }) => said.insert((*pieces).min(said.len()), Frame::Wait(*lasting)),
        Some(Fault::MalformedJson) => said.insert(1, Frame::Bytes("data: {\"choices\": [{\"delta\": {\n\n".into())),
        Some(Fault::MalformedEvents) => {
            said = vec![Frame::Bytes("<html>no stream\nchoices=1\n\n".into())];
            ending.clear();
        }
        Some(Fault::ErrorInside(error)) => {
            said.truncate(2);
            ending = vec![event(&json!({ "error": error }))];
        }
        Some(Fault::Repetition(unit)) => {
            endless = Some(event(&chunk(conversation, json!({ "content": unit }), Value::Null)));
            ending.clear();
        }
        Some(Fault::NoEndMark) => {}
        _ => ending.push(Frame::Bytes("data: [DONE]\n\n".into())),
    }
    said.extend(ending);
    Body { frames: paced(said, answer.pace), endless }
}

fn paced(frames: Vec<Frame>, pace: Duration) -> Vec<Frame> {
    if pace.is_zero() {
        return frames;
    }
    frames.into_iter().flat_map(|frame| [Frame::Wait(pace), frame]).collect()
}

fn fragments(answer: &Answer, conversation: &Conversation, at: usize, fault: Option<&Fault>) -> Vec<Value> {
    let call = &answer.calls[at];
    let name = match fault {
        Some(Fault::MissingName | Fault::NamelessCalls) => Value::Null,
        _ => call.name.as_str().into(),
    };
    let head = json!({ "index": at, "id": call_id(conversation, at), "type": "function",
                       "function": { "name": name, "arguments": "" } });
    let arguments: Vec<Value> = match fault {
        Some(Fault::ArgumentsAsObject) => vec![call.arguments.clone()],
        _ => pieces(&call.arguments.to_string()).map(Value::from).collect(),
    };
    let more = arguments.into_iter().flat_map(|arguments| {
        let mut fragment = json!({ "index": at, "function": { "arguments": arguments } });
        if fault == Some(&Fault::RepeatedName) {
            fragment["function"]["name"] = name.clone();
        }
        let times = if fault == Some(&Fault::DuplicatedFragments) { 2 } else { 1 };
        std::iter::repeat_n(fragment, times)
    });
    let mut all: Vec<Value> = std::iter::once(head).chain(more).collect();
    if fault == Some(&Fault::MissingIndex) {
        all.iter_mut().filter_map(Value::as_object_mut).for_each(|fragment| {
            fragment.remove("index");
        });
    }
    all
}

/// Unique within the conversation and the same each time it is asked.
fn call_id(conversation: &Conversation, at: usize) -> String {
    let turn = conversation.messages.iter().filter(|message| message.role == "assistant").count();
    format!("call_{turn}_{at}")
}

fn finish(answer: &Answer) -> &str {
    answer.finish.as_deref().unwrap_or(if answer.calls.is_empty() { "stop" } else { "tool_calls" })
}

fn chunk(conversation: &Conversation, delta: Value, finish: Value) -> Value {
    json!({
        "id": "chatcmpl-scripted", "object": "chat.completion.chunk", "created": 0, "model": conversation.model,
        "choices": [{ "index": 0, "delta": delta, "finish_reason": finish }],
    })
}

fn event(value: &Value) -> Frame {
    Frame::Bytes(format!("data: {value}\n\n"))
}

fn pieces(text: &str) -> impl Iterator<Item = String> {
    let chars: Vec<char> = text.chars().collect();
    chars.chunks(PIECE_CHARS).map(String::from_iter).collect::<Vec<_>>().into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation(stream: bool) -> Conversation {
        let body = json!({ "model": "m", "stream": stream, "messages": [{ "role": "user", "content": "12345" }] });
        Conversation::of_body(&body, 1)
    }

    /// The chunks of a stream, and the arguments and names of its calls as joined.
    fn streamed(answer: &Answer) -> (Vec<Value>, String, String) {
        let body = events(answer, &conversation(true), answer.fault_at(1));
        let chunk = |frame: &Frame| match frame {
            Frame::Bytes(event) => serde_json::from_str(event.strip_prefix("data: ")?.trim()).ok(),
            Frame::Wait(_) | Frame::Break => None,
        };
        let chunks: Vec<Value> =
            body.frames.iter().filter_map(chunk).filter(|chunk: &Value| chunk.is_object()).collect();
        let joined = |key: &str| {
            chunks.iter().filter_map(|c| c["choices"][0]["delta"]["tool_calls"][0]["function"][key].as_str()).collect()
        };
        let (arguments, name) = (joined("arguments"), joined("name"));
        (chunks, arguments, name)
    }

    #[test]
    fn a_streamed_call_comes_in_fragments_with_its_finish_and_counted_usage() {
        let answer = Answer::call("view", json!({ "path": "src/lib.rs" })).saying("Let me look.");
        let (chunks, arguments, name) = streamed(&answer);
        assert_eq!((arguments.as_str(), name.as_str()), (r#"{"path":"src/lib.rs"}"#, "view"));
        let finish = chunks.iter().find_map(|chunk| chunk["choices"][0]["finish_reason"].as_str());
        assert_eq!(finish, Some("tool_calls"));
        let usage = &chunks.last().expect("a stream has chunks")["usage"];
        assert_eq!(usage, &json!({ "prompt_tokens": 2, "completion_tokens": 10, "total_tokens": 12 }));
        let whole = document(&answer, &conversation(false), None).frames;
        let [Frame::Bytes(whole)] = whole.as_slice() else { panic!("an unstreamed answer is one document") };
        let whole: Value = serde_json::from_str(whole).expect("an unstreamed answer is JSON");
        assert_eq!(whole["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"], arguments);
        assert_eq!(&whole["usage"], usage);
    }

    #[test]
    fn faults_of_fragments_do_what_they_are_named_after() {
        let call = Answer::call("ls", json!({ "a": 1 }));
        let with = |fault| streamed(&call.clone().with_fault(fault));
        assert_eq!(with(Fault::DuplicatedFragments).1, r#"{"a":1}{"a":1}"#);
        assert_eq!(with(Fault::RepeatedName).2, "lsls");
        assert_eq!(with(Fault::MissingName).2, "");
        assert!(
            with(Fault::MissingIndex).0.iter().all(|c| c["choices"][0]["delta"]["tool_calls"][0]["index"].is_null())
        );
    }
}
