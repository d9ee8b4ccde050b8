//! Completions: `choices[0].text` of an answer or of its chunks.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::answer::{Head, Unreadable, is_error};
use crate::event::{Event, Finish, Usage};
use crate::finish;
use crate::json::{self, Object};
use crate::story::{Collected, Story};
use crate::usage::{OpenAiUsage, lenient, write_openai};

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
    text: Option<String>,
    #[serde(borrow)]
    finish_reason: Option<Cow<'a, str>>,
}

pub(crate) fn read(json: &str, story: &mut Story) -> Result<(), Unreadable> {
    let chunk: Chunk<'_> = serde_json::from_str(json)?;
    if is_error(chunk.error, json, story) {
        return Ok(());
    }
    story.start(chunk.id);
    if let Some(usage) = lenient::<OpenAiUsage>(chunk.usage) {
        story.usage(Usage::from(usage));
    }
    for choice in chunk.choices.unwrap_or_default().into_iter().filter(|choice| choice.index.unwrap_or(0) == 0) {
        story.text(choice.text.unwrap_or_default());
        if let Some(reason) = choice.finish_reason {
            story.finish(finish::of_chat(&reason));
        }
    }
    Ok(())
}

/// Thoughts and calls have no place in plain text.
pub(crate) fn write(event: &Event, head: &Head, collected: &Collected, out: &mut String) {
    match event {
        Event::Text(text) | Event::Refusal(text) => chunk(head, text, None, out),
        Event::Finished(finish) => {
            chunk(head, "", Some(finish), out);
            if head.usage {
                event_line(out, |chunk| {
                    begin(chunk, head);
                    chunk.list("choices", |_| {});
                    chunk.object("usage", |usage| write_openai(&collected.usage, usage));
                });
            }
            out.push_str("data: [DONE]\n\n");
        }
        Event::Failed(failure) => {
            let bytes = crate::failure::write_stream_error(crate::Protocol::OpenAiCompletions, failure);
            out.push_str(&String::from_utf8_lossy(&bytes));
        }
        Event::Started { .. }
        | Event::Thinking(_)
        | Event::ThinkingSignature(_)
        | Event::CallBegun { .. }
        | Event::CallArguments(_)
        | Event::CallEnded
        | Event::Usage(_) => {}
    }
}

pub(crate) fn whole(head: &Head, collected: &Collected) -> String {
    json::object(|answer| {
        begin(answer, head);
        answer.list("choices", |choices| {
            choices.object(|choice| write_choice(choice, &collected.text(true), Some(collected.finish())));
        });
        answer.object("usage", |usage| write_openai(&collected.usage, usage));
    })
}

fn chunk(head: &Head, text: &str, finish: Option<&Finish>, out: &mut String) {
    event_line(out, |chunk| {
        begin(chunk, head);
        chunk.list("choices", |choices| choices.object(|choice| write_choice(choice, text, finish)));
    });
}

fn event_line(out: &mut String, fill: impl FnOnce(&mut Object<'_>)) {
    out.push_str("data: ");
    out.push_str(&json::object(fill));
    out.push_str("\n\n");
}

fn begin(answer: &mut Object<'_>, head: &Head) {
    answer.put("id", format!("cmpl-{}", head.id)).put("object", "text_completion");
    answer.put("created", head.created).put("model", &head.model);
}

fn write_choice(choice: &mut Object<'_>, text: &str, finish: Option<&Finish>) {
    let reason = finish.map(|finish| match finish {
        Finish::Calls => "stop", // plain text has no calls to end with
        other => finish::to_chat(other),
    });
    choice.put("index", 0).put("text", text).put("logprobs", ()).put("finish_reason", reason);
}
