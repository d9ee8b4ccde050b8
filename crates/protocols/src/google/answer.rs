//! Google's answers: each chunk is an answer of its own, to be put together.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::answer::{Unreadable, is_error};
use crate::event::{Finish, Usage};
use crate::finish;
use crate::story::Story;
use crate::usage::{GoogleUsage, lenient};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Chunk<'a> {
    #[serde(borrow)]
    candidates: Option<Vec<Candidate<'a>>>,
    #[serde(borrow)]
    usage_metadata: Option<&'a RawValue>,
    #[serde(borrow)]
    prompt_feedback: Option<Feedback<'a>>,
    response_id: Option<String>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Feedback<'a> {
    #[serde(borrow)]
    block_reason: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Candidate<'a> {
    index: Option<u64>,
    #[serde(borrow)]
    content: Option<Content<'a>>,
    #[serde(borrow)]
    finish_reason: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Content<'a> {
    #[serde(borrow)]
    parts: Option<Vec<Part<'a>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Part<'a> {
    text: Option<String>,
    thought: Option<bool>,
    #[serde(borrow)]
    function_call: Option<Call<'a>>,
}

#[derive(Deserialize)]
struct Call<'a> {
    id: Option<String>,
    name: String,
    #[serde(borrow)]
    args: Option<&'a RawValue>,
}

pub(crate) fn read(json: &str, story: &mut Story) -> Result<(), Unreadable> {
    let chunk: Chunk<'_> = serde_json::from_str(json)?;
    if is_error(chunk.error, json, story) {
        return Ok(());
    }
    story.start(chunk.response_id);
    if let Some(usage) = lenient::<GoogleUsage>(chunk.usage_metadata) {
        story.usage(Usage::from(usage));
    }
    if chunk.prompt_feedback.is_some_and(|feedback| feedback.block_reason.is_some()) {
        story.finish(Finish::Filtered);
    }
    for candidate in chunk.candidates.unwrap_or_default() {
        if candidate.index.unwrap_or(0) != 0 {
            continue;
        }
        for part in candidate.content.and_then(|content| content.parts).unwrap_or_default() {
            tell(part, story);
        }
        match candidate.finish_reason.as_deref() {
            None | Some("FINISH_REASON_UNSPECIFIED") => {}
            Some("MALFORMED_FUNCTION_CALL" | "UNEXPECTED_TOOL_CALL" | "MISSING_THOUGHT_SIGNATURE") => {
                story.break_off("The model wrote a tool call that cannot be read.");
            }
            Some(reason) => story.finish(finish::of_google(reason)),
        }
    }
    Ok(())
}

fn tell(part: Part<'_>, story: &mut Story) {
    match (part.text, part.thought) {
        (Some(text), Some(true)) => story.thinking(text),
        (Some(text), _) => story.text(text),
        (None, _) => {}
    }
    if let Some(call) = part.function_call {
        story.begin_call(call.id.unwrap_or_default(), call.name);
        story.arguments(call.args.map_or("{}", RawValue::get).to_owned());
        story.end_call();
    }
}
