//! Completions as requests.

use crate::chat::{read_sampling, read_stop, write_sampling};
use crate::json::{self, Fields, items, string};
use crate::notes::{Dropped, Notes, cannot_say};
use crate::refused::Refused;
use crate::request::{Format, Input, Request, Thinking, ToolChoice, Weight};
use crate::translate::Target;

const MEANING: &[&str] = &[
    "echo",
    "logprobs",
    "logit_bias",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structured_outputs",
];

pub(crate) fn read(mut fields: Fields<'_, '_>) -> Result<Request, Refused> {
    let at = *fields.at();
    let mut notes = Notes::default();
    let raw = fields.require("prompt")?;
    let at_prompt = at.key("prompt");
    let prompt = if raw.get().starts_with('[') {
        match items(raw, &at_prompt)?.as_slice() {
            [one] if one.get().starts_with('"') => string(one, &at_prompt.item(0))?.into_owned(),
            _ => return Err(at_prompt.unsupported("cannot be translated unless it is one text")),
        }
    } else {
        string(raw, &at_prompt)?.into_owned()
    };
    let stream_usage = match fields.take("stream_options")? {
        Some(raw) => Fields::of(raw, &at.key("stream_options"))?.bool("include_usage")?.unwrap_or(false),
        None => false,
    };
    let request = Request {
        model: fields.require_text("model")?,
        stream: fields.bool("stream")?.unwrap_or(false),
        stream_usage,
        input: Input::Text { prompt, suffix: fields.text("suffix")? },
        tools: Vec::new(),
        tool_choice: ToolChoice::Auto,
        parallel_calls: None,
        sampling: read_sampling(&mut fields)?,
        stop: read_stop(&mut fields, "stop")?,
        max_tokens: fields.count("max_tokens")?,
        format: Format::Text,
        thinking: None,
        user: fields.text("user")?,
        cache_key: None,
        unsaid: Vec::new(),
    };
    for name in ["n", "best_of"] {
        if fields.count(name)?.unwrap_or(1) > 1 {
            notes.meaning(name);
        }
    }
    notes.take(&mut fields, MEANING, Weight::Meaning)?;
    notes.rest(&fields);
    Ok(Request { unsaid: notes.into_unsaid(), ..request })
}

pub(crate) fn write(request: &Request, target: &Target<'_>, dropped: &mut Dropped) -> Result<String, Refused> {
    let Input::Text { prompt, suffix } = &request.input else {
        return Err(cannot_say("messages"));
    };
    if !matches!(request.format, Format::Text) {
        return Err(cannot_say("format"));
    }
    dropped.add_if("think", request.thinking.is_some_and(|thinking| thinking != Thinking::Off));
    Ok(json::object(|body| {
        body.put("model", target.model).put("prompt", prompt).put_some("suffix", suffix.as_ref());
        if request.stream {
            body.put("stream", true).object("stream_options", |options| {
                options.put("include_usage", true);
            });
        }
        write_sampling(body, &request.sampling, target, dropped);
        if !request.stop.is_empty() {
            body.put("stop", &request.stop);
        }
        // Left out, OpenAI's servers stop after 16 tokens.
        body.put("max_tokens", request.max_tokens.unwrap_or(target.default_max_tokens));
        body.put_some("user", request.user.as_ref());
    }))
}
