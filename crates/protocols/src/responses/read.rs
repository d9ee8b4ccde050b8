//! A response as answer: items of output, streamed as typed events.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::answer::{Unreadable, is_error};
use crate::event::{Finish, Usage};
use crate::finish;
use crate::signature::Maker;
use crate::story::Story;
use crate::upstream::read_error_event;
use crate::usage::{ResponsesUsage, lenient};

#[derive(Debug, Default)]
pub(crate) struct Reader {
    /// The open call has had a piece of its arguments.
    arguments_seen: bool,
    /// A piece of the open message, or of the open thought, has come as a delta.
    deltas_seen: bool,
}

#[derive(Deserialize)]
struct Said<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    delta: Option<String>,
    #[serde(borrow)]
    item: Option<Item<'a>>,
    #[serde(borrow)]
    response: Option<Response<'a>>,
}

#[derive(Deserialize)]
struct Response<'a> {
    id: Option<String>,
    #[serde(borrow)]
    output: Option<Vec<Item<'a>>>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
    #[serde(borrow)]
    status: Option<Cow<'a, str>>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    incomplete_details: Option<Incomplete>,
}

#[derive(Deserialize)]
struct Incomplete {
    reason: Option<String>,
}

#[derive(Deserialize)]
struct Item<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    call_id: Option<String>,
    name: Option<String>,
    arguments: Option<String>,
    content: Option<Vec<Part>>,
    summary: Option<Vec<Part>>,
    encrypted_content: Option<String>,
}

#[derive(Deserialize)]
struct Part {
    text: Option<String>,
    refusal: Option<String>,
}

impl Reader {
    pub(crate) fn read(&mut self, json: &str, story: &mut Story) -> Result<(), Unreadable> {
        let said: Said<'_> = serde_json::from_str(json)?;
        match said.r#type.as_ref() {
            "response.created" => story.start(said.response.and_then(|response| response.id)),
            "response.output_item.added" => {
                let item = said.item.ok_or(Unreadable)?;
                self.deltas_seen = false;
                self.arguments_seen = false;
                if item.r#type == "function_call" {
                    story.begin_call(item.call_id.unwrap_or_default(), item.name.ok_or(Unreadable)?);
                }
            }
            "response.output_text.delta" => self.say(said.delta, story, Story::text),
            "response.refusal.delta" => self.say(said.delta, story, Story::refusal),
            "response.reasoning_text.delta" | "response.reasoning_summary_text.delta" => {
                self.say(said.delta, story, Story::thinking);
            }
            "response.function_call_arguments.delta" => {
                self.arguments_seen = true;
                story.arguments(said.delta.unwrap_or_default());
            }
            "response.output_item.done" => self.end_item(said.item.ok_or(Unreadable)?, story)?,
            "response.completed" | "response.incomplete" | "response.failed" => {
                tell_end(said.response.ok_or(Unreadable)?, json, story);
                story.close();
            }
            "error" => story.fail(read_error_event(json)),
            _ => {} // beginnings and ends that say nothing more, tools that run at the server, whatever is new
        }
        Ok(())
    }

    fn say(&mut self, delta: Option<String>, story: &mut Story, say: fn(&mut Story, String)) {
        self.deltas_seen = true;
        say(story, delta.unwrap_or_default());
    }

    /// What came in deltas is not told again.
    fn end_item(&mut self, item: Item<'_>, story: &mut Story) -> Result<(), Unreadable> {
        match item.r#type.as_ref() {
            "function_call" if story.call_is_open() => {
                if !self.arguments_seen {
                    story.arguments(item.arguments.unwrap_or_default());
                }
                story.end_call();
            }
            "reasoning" if self.deltas_seen => {
                story.signature(Maker::OpenAi.read(item.encrypted_content.unwrap_or_default()))
            }
            "message" if self.deltas_seen => {}
            _ => tell_item(item, story)?,
        }
        Ok(())
    }
}

fn tell_item(item: Item<'_>, story: &mut Story) -> Result<(), Unreadable> {
    match item.r#type.as_ref() {
        "message" => {
            for part in item.content.unwrap_or_default() {
                story.text(part.text.unwrap_or_default());
                story.refusal(part.refusal.unwrap_or_default());
            }
        }
        "reasoning" => {
            let thoughts = item.content.filter(|parts| !parts.is_empty()).or(item.summary).unwrap_or_default();
            for part in thoughts {
                story.thinking(part.text.unwrap_or_default());
            }
            story.signature(Maker::OpenAi.read(item.encrypted_content.unwrap_or_default()));
        }
        "function_call" => {
            story.begin_call(item.call_id.unwrap_or_default(), item.name.ok_or(Unreadable)?);
            story.arguments(item.arguments.unwrap_or_default());
            story.end_call();
        }
        _ => {}
    }
    Ok(())
}

fn tell_end(response: Response<'_>, json: &str, story: &mut Story) {
    if let Some(usage) = lenient::<ResponsesUsage>(response.usage) {
        story.usage(Usage::from(usage));
    }
    let reason = response.incomplete_details.and_then(|details| details.reason);
    match response.status.as_deref() {
        Some("failed" | "cancelled") => {
            let words = response.error.map_or(json, RawValue::get);
            story.fail(read_error_event(words));
        }
        Some("incomplete") => story.finish(finish::of_incomplete(reason.as_deref())),
        _ => story.finish(Finish::Stop),
    }
}

pub(crate) fn read_whole(json: &str, story: &mut Story) -> Result<(), Unreadable> {
    let mut response: Response<'_> = serde_json::from_str(json)?;
    if is_error(response.error, json, story) {
        return Ok(());
    }
    story.start(response.id.take());
    for item in response.output.take().ok_or(Unreadable)? {
        tell_item(item, story)?;
    }
    tell_end(response, json, story);
    Ok(())
}
