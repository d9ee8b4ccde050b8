//! Chat completions as requests.

use serde_json::value::RawValue;

use crate::json::{self, At, Fields, List, Object, items, string};
use crate::notes::{Dropped, Notes, cannot_say};
use crate::refused::Refused;
use crate::request::{
    Effort, Format, Image, Input, Message, Part, Request, Role, Sampling, Thinking, Tool, ToolChoice, ToolKind, Weight,
};
use crate::translate::Target;

/// Leaving one of these out gives the caller something else.
const MEANING: &[&str] = &[
    "logprobs",
    "logit_bias",
    "audio",
    "functions",
    "function_call",
    "web_search_options",
    "moderation",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structured_outputs",
];

pub(crate) fn read(mut fields: Fields<'_, '_>) -> Result<Request, Refused> {
    let at = *fields.at();
    let mut notes = Notes::default();
    let model = fields.require_text("model")?;
    let messages = read_messages(fields.require("messages")?, &at.key("messages"), &mut notes)?;
    let (tools, tool_choice) = read_tools(&mut fields, &mut notes)?;
    let newer_limit = fields.count("max_completion_tokens")?;
    let request = Request {
        model,
        stream: fields.bool("stream")?.unwrap_or(false),
        stream_usage: read_stream_options(&mut fields)?,
        input: Input::Chat(messages),
        tools,
        tool_choice,
        parallel_calls: fields.bool("parallel_tool_calls")?,
        sampling: read_sampling(&mut fields)?,
        stop: read_stop(&mut fields, "stop")?,
        max_tokens: newer_limit.or(fields.count("max_tokens")?),
        format: read_format(&mut fields)?,
        thinking: read_thinking(&mut fields, &mut notes)?,
        user: fields.text("user")?,
        cache_key: fields.text("prompt_cache_key")?,
        unsaid: Vec::new(),
    };
    if fields.count("n")?.unwrap_or(1) > 1 {
        notes.meaning("n");
    }
    read_modalities(&mut fields, &mut notes)?;
    notes.take(&mut fields, MEANING, Weight::Meaning)?;
    notes.rest(&fields);
    Ok(Request { unsaid: notes.into_unsaid(), ..request })
}

fn read_modalities(fields: &mut Fields<'_, '_>, notes: &mut Notes) -> Result<(), Refused> {
    let at = *fields.at();
    let Some(raw) = fields.take("modalities")? else { return Ok(()) };
    let at = at.key("modalities");
    for (index, raw) in items(raw, &at)?.into_iter().enumerate() {
        if string(raw, &at.item(index))? != "text" {
            notes.meaning("modalities");
        }
    }
    Ok(())
}

fn read_stream_options(fields: &mut Fields<'_, '_>) -> Result<bool, Refused> {
    let at = *fields.at();
    let Some(raw) = fields.take("stream_options")? else { return Ok(false) };
    Ok(Fields::of(raw, &at.key("stream_options"))?.bool("include_usage")?.unwrap_or(false))
}

/// The names that OpenAI's chat and completions share with the engines that speak them.
pub(crate) fn read_sampling(fields: &mut Fields<'_, '_>) -> Result<Sampling, Refused> {
    Ok(Sampling {
        temperature: fields.number("temperature")?,
        top_p: fields.number("top_p")?,
        // vLLM's -1 means all.
        top_k: fields.integer("top_k")?.and_then(|top_k| u64::try_from(top_k).ok()),
        min_p: fields.number("min_p")?,
        seed: fields.integer("seed")?,
        frequency_penalty: fields.number("frequency_penalty")?,
        presence_penalty: fields.number("presence_penalty")?,
        repeat_penalty: fields.number("repetition_penalty")?,
    })
}

/// One text or a list of them.
pub(crate) fn read_stop(fields: &mut Fields<'_, '_>, key: &str) -> Result<Vec<String>, Refused> {
    let at = *fields.at();
    let Some(raw) = fields.take(key)? else { return Ok(Vec::new()) };
    let at = at.key(key);
    if raw.get().starts_with('"') {
        return Ok(vec![string(raw, &at)?.into_owned()]);
    }
    let texts = items(raw, &at)?.into_iter().enumerate();
    texts.map(|(index, raw)| Ok(string(raw, &at.item(index))?.into_owned())).collect()
}

fn read_format(fields: &mut Fields<'_, '_>) -> Result<Format, Refused> {
    let at = *fields.at();
    let Some(raw) = fields.take("response_format")? else { return Ok(Format::Text) };
    let at = at.key("response_format");
    let mut format = Fields::of(raw, &at)?;
    match format.require_text("type")?.as_str() {
        "text" => Ok(Format::Text),
        "json_object" => Ok(Format::Json),
        "json_schema" => {
            let at = at.key("json_schema");
            let mut inner = Fields::of(format.require("json_schema")?, &at)?;
            let schema = inner.kept_object("schema")?.ok_or_else(|| at.key("schema").missing())?;
            Ok(Format::Schema { name: inner.text("name")?, schema, strict: inner.bool("strict")? })
        }
        _ => Err(at.key("type").wrong("`text`, `json_object` or `json_schema`")),
    }
}

fn read_thinking(fields: &mut Fields<'_, '_>, notes: &mut Notes) -> Result<Option<Thinking>, Refused> {
    let at = *fields.at();
    let effort = match fields.string("reasoning_effort")? {
        Some(word) => Some(of_effort(&word).ok_or_else(|| at.key("reasoning_effort").wrong(EFFORTS))?),
        None => None,
    };
    // How vLLM and SGLang switch the thoughts of a model whose template knows the switch.
    let Some(raw) = fields.take("chat_template_kwargs")? else { return Ok(effort) };
    let at = at.key("chat_template_kwargs");
    let mut template = Fields::of(raw, &at)?;
    let switch = template.bool("enable_thinking")?.map(|on| if on { Thinking::On } else { Thinking::Off });
    if template.rest().next().is_some() {
        notes.hint("chat_template_kwargs");
    }
    Ok(effort.or(switch))
}

pub(crate) const EFFORTS: &str = "one of `none`, `minimal`, `low`, `medium`, `high`, `xhigh` and `max`";

pub(crate) fn of_effort(word: &str) -> Option<Thinking> {
    Some(match word {
        "none" => Thinking::Off,
        "minimal" => Thinking::Effort(Effort::Minimal),
        "low" => Thinking::Effort(Effort::Low),
        "medium" => Thinking::Effort(Effort::Medium),
        "high" => Thinking::Effort(Effort::High),
        "xhigh" | "max" => Thinking::Effort(Effort::Highest),
        _ => return None,
    })
}

/// The nearest effort; a budget in tokens is one of the three that every model knows.
pub(crate) fn to_effort(thinking: Thinking) -> Option<&'static str> {
    const LOW_TOKENS: u64 = 4096;
    const MEDIUM_TOKENS: u64 = 16_384;
    match thinking {
        Thinking::Off => Some("none"),
        Thinking::On => None,
        Thinking::Budget(tokens) if tokens <= LOW_TOKENS => Some("low"),
        Thinking::Budget(tokens) if tokens <= MEDIUM_TOKENS => Some("medium"),
        Thinking::Budget(_) | Thinking::Effort(Effort::High) => Some("high"),
        Thinking::Effort(Effort::Minimal) => Some("minimal"),
        Thinking::Effort(Effort::Low) => Some("low"),
        Thinking::Effort(Effort::Medium) => Some("medium"),
        Thinking::Effort(Effort::Highest) => Some("xhigh"),
    }
}

/// The efforts that open models and their engines know.
pub(crate) fn of_three(effort: &'static str) -> &'static str {
    match effort {
        "minimal" => "low",
        "xhigh" => "high",
        effort => effort,
    }
}

fn read_tools(fields: &mut Fields<'_, '_>, notes: &mut Notes) -> Result<(Vec<Tool>, ToolChoice), Refused> {
    let at = *fields.at();
    let mut tools = Vec::new();
    if let Some(raw) = fields.take("tools")? {
        let at = at.key("tools");
        for (index, raw) in items(raw, &at)?.into_iter().enumerate() {
            let at = at.item(index);
            let mut tool = Fields::of(raw, &at)?;
            match tool.require_text("type")?.as_str() {
                "function" => tools.push(read_function(tool.require("function")?, &at.key("function"))?),
                _ => return Err(at.key("type").wrong("`function`")),
            }
            notes.rest(&tool);
        }
    }
    Ok((tools, read_tool_choice(fields)?))
}

/// A function as OpenAI's chat and Ollama describe it.
pub(crate) fn read_function(raw: &RawValue, at: &At<'_>) -> Result<Tool, Refused> {
    let mut function = Fields::of(raw, at)?;
    Ok(Tool {
        name: function.require_text("name")?,
        description: function.text("description")?,
        schema: function.kept_object("parameters")?,
        strict: function.bool("strict")?,
        kind: ToolKind::Function,
    })
}

fn read_tool_choice(fields: &mut Fields<'_, '_>) -> Result<ToolChoice, Refused> {
    let at = *fields.at();
    let Some(raw) = fields.take("tool_choice")? else { return Ok(ToolChoice::Auto) };
    let at = at.key("tool_choice");
    if raw.get().starts_with('"') {
        return match string(raw, &at)?.as_ref() {
            "auto" => Ok(ToolChoice::Auto),
            "none" => Ok(ToolChoice::None),
            "required" => Ok(ToolChoice::Required),
            _ => Err(at.wrong("`auto`, `none`, `required` or a function")),
        };
    }
    let mut choice = Fields::of(raw, &at)?;
    if choice.require_text("type")? != "function" {
        return Err(at.key("type").wrong("`function`"));
    }
    let at = at.key("function");
    Ok(ToolChoice::Named(Fields::of(choice.require("function")?, &at)?.require_text("name")?))
}

fn read_messages(raw: &RawValue, at: &At<'_>, notes: &mut Notes) -> Result<Vec<Message>, Refused> {
    let messages = items(raw, at)?.into_iter().enumerate();
    messages.map(|(index, raw)| read_message(raw, &at.item(index), notes)).collect()
}

fn read_message(raw: &RawValue, at: &At<'_>, notes: &mut Notes) -> Result<Message, Refused> {
    let mut fields = Fields::of(raw, at)?;
    let message = match fields.require_text("role")?.as_str() {
        "system" | "developer" => Message { role: Role::System, parts: read_content(&mut fields, notes)? },
        "user" => Message { role: Role::User, parts: read_content(&mut fields, notes)? },
        "assistant" => Message { role: Role::Assistant, parts: read_assistant(&mut fields, notes)? },
        "tool" => {
            let call = fields.require_text("tool_call_id")?;
            let parts = read_content(&mut fields, notes)?;
            Message { role: Role::User, parts: vec![Part::Result { call, parts, failed: false }] }
        }
        _ => return Err(at.key("role").wrong("`system`, `developer`, `user`, `assistant` or `tool`")),
    };
    for name in fields.rest() {
        notes.hint(&format!("messages.{name}"));
    }
    Ok(message)
}

fn read_assistant(fields: &mut Fields<'_, '_>, notes: &mut Notes) -> Result<Vec<Part>, Refused> {
    let at = *fields.at();
    let mut parts = Vec::new();
    let thought = fields.text("reasoning_content")?;
    if let Some(text) = thought.or(fields.text("reasoning")?).filter(|text| !text.is_empty()) {
        parts.push(Part::Thinking { text, signature: None });
    }
    parts.extend(read_content(fields, notes)?);
    parts.extend(fields.text("refusal")?.map(Part::Text));
    if let Some(raw) = fields.take("tool_calls")? {
        let at = at.key("tool_calls");
        for (index, raw) in items(raw, &at)?.into_iter().enumerate() {
            let at = at.item(index);
            let mut call = Fields::of(raw, &at)?;
            let at_function = at.key("function");
            let mut function = Fields::of(call.require("function")?, &at_function)?;
            let name = function.require_text("name")?;
            let arguments = function.text("arguments")?.unwrap_or_default();
            parts.push(Part::Call { id: call.require_text("id")?, name, arguments });
        }
    }
    if fields.take("function_call")?.is_some() {
        return Err(at.key("function_call").unsupported("is no longer read; say it with `tool_calls`"));
    }
    Ok(parts)
}

fn read_content(fields: &mut Fields<'_, '_>, notes: &mut Notes) -> Result<Vec<Part>, Refused> {
    let at = *fields.at();
    let Some(raw) = fields.take("content")? else { return Ok(Vec::new()) };
    let at = at.key("content");
    if raw.get().starts_with('"') {
        let text = string(raw, &at)?.into_owned();
        return Ok(if text.is_empty() { Vec::new() } else { vec![Part::Text(text)] });
    }
    if !raw.get().starts_with('[') {
        return Err(at.wrong("a string or a list of parts"));
    }
    let parts = items(raw, &at)?.into_iter().enumerate();
    parts.map(|(index, raw)| read_part(raw, &at.item(index), notes)).collect()
}

fn read_part(raw: &RawValue, at: &At<'_>, notes: &mut Notes) -> Result<Part, Refused> {
    let mut part = Fields::of(raw, at)?;
    let read = match part.require_text("type")?.as_str() {
        "text" => Part::Text(part.require_text("text")?),
        "refusal" => Part::Text(part.require_text("refusal")?),
        "image_url" => {
            let at = at.key("image_url");
            let mut image = Fields::of(part.require("image_url")?, &at)?;
            let url = image.require_text("url")?;
            if image.text("detail")?.is_some_and(|detail| detail != "auto") {
                notes.hint("image_url.detail");
            }
            Part::Image(image_of(url))
        }
        _ => return Err(at.unsupported("is of a kind that cannot be translated; `text` and `image_url` can")),
    };
    notes.rest(&part);
    Ok(read)
}

/// `data:image/png;base64,…` holds the picture itself.
pub(crate) fn image_of(url: String) -> Image {
    let data = url.strip_prefix("data:").and_then(|rest| rest.split_once(";base64,"));
    match data {
        Some((media_type, base64)) => Image::Data { media_type: media_type.to_owned(), base64: base64.to_owned() },
        None => Image::Url(url),
    }
}

pub(crate) fn url_of(image: &Image) -> String {
    match image {
        Image::Url(url) => url.clone(),
        Image::Data { media_type, base64 } => format!("data:{media_type};base64,{base64}"),
    }
}

pub(crate) fn write(request: &Request, target: &Target<'_>, dropped: &mut Dropped) -> Result<String, Refused> {
    let Input::Chat(messages) = &request.input else {
        return Err(cannot_say("prompt"));
    };
    Ok(json::object(|body| {
        body.put("model", target.model);
        body.list("messages", |list| {
            let turns = write_instructions(list, messages);
            for message in turns {
                write_message(list, message, target, dropped);
            }
        });
        if request.stream {
            body.put("stream", true).object("stream_options", |options| {
                options.put("include_usage", true);
            });
        }
        write_tools(body, request);
        write_sampling(body, &request.sampling, target, dropped);
        if !request.stop.is_empty() {
            body.put("stop", &request.stop);
        }
        // OpenAI's own models refuse the older name, engines do not all know the newer one.
        let limit = if target.takes_thoughts { "max_tokens" } else { "max_completion_tokens" };
        body.put_some(limit, request.max_tokens);
        write_format(body, &request.format);
        write_thinking(body, request.thinking, target);
        if !target.takes_thoughts {
            body.put_some("prompt_cache_key", request.cache_key.as_ref());
        }
        body.put_some("user", request.user.as_ref());
    }))
}

fn write_tools(body: &mut Object<'_>, request: &Request) {
    if request.tools.is_empty() {
        return;
    }
    body.list("tools", |tools| {
        for tool in &request.tools {
            tools.object(|out| {
                out.put("type", "function").object("function", |function| {
                    write_function(function, tool);
                    function.put_some("strict", tool.strict);
                });
            });
        }
    });
    match &request.tool_choice {
        ToolChoice::Auto => {}
        ToolChoice::None => {
            body.put("tool_choice", "none");
        }
        ToolChoice::Required => {
            body.put("tool_choice", "required");
        }
        ToolChoice::Named(name) => body.object("tool_choice", |choice| {
            choice.put("type", "function").object("function", |function| {
                function.put("name", name);
            });
        }),
    }
    body.put_some("parallel_tool_calls", request.parallel_calls);
}

pub(crate) fn write_function(function: &mut Object<'_>, tool: &Tool) {
    function.put("name", &tool.name).put_some("description", tool.description.as_ref());
    function.put_some("parameters", tool.schema.as_ref());
}

/// Engines know more ways to choose a token than OpenAI.
pub(crate) fn write_sampling(body: &mut Object<'_>, sampling: &Sampling, target: &Target<'_>, dropped: &mut Dropped) {
    body.put_some("temperature", sampling.temperature).put_some("top_p", sampling.top_p);
    body.put_some("seed", sampling.seed);
    body.put_some("frequency_penalty", sampling.frequency_penalty);
    body.put_some("presence_penalty", sampling.presence_penalty);
    if target.takes_thoughts {
        body.put_some("top_k", sampling.top_k).put_some("min_p", sampling.min_p);
        body.put_some("repetition_penalty", sampling.repeat_penalty);
    } else {
        dropped.add_if("top_k", sampling.top_k.is_some());
        dropped.add_if("min_p", sampling.min_p.is_some());
        dropped.add_if("repeat_penalty", sampling.repeat_penalty.is_some());
    }
}

fn write_format(body: &mut Object<'_>, format: &Format) {
    match format {
        Format::Text => {}
        Format::Json => body.object("response_format", |out| {
            out.put("type", "json_object");
        }),
        Format::Schema { name, schema, strict } => body.object("response_format", |out| {
            out.put("type", "json_schema").object("json_schema", |inner| {
                inner.put("name", name.as_deref().unwrap_or("answer")).put("schema", schema);
                inner.put_some("strict", *strict);
            });
        }),
    }
}

fn write_thinking(body: &mut Object<'_>, thinking: Option<Thinking>, target: &Target<'_>) {
    let Some(thinking) = thinking else { return };
    match thinking {
        // Templates of open models know no efforts, but a switch.
        Thinking::Off | Thinking::On if target.takes_thoughts => body.object("chat_template_kwargs", |out| {
            out.put("enable_thinking", thinking == Thinking::On);
        }),
        _ if target.takes_thoughts => {
            body.put_some("reasoning_effort", to_effort(thinking).map(of_three));
        }
        _ => {
            body.put_some("reasoning_effort", to_effort(thinking));
        }
    }
}

/// Instructions before the first turn as one message: templates of many open models take no second one. What is left
/// comes back.
pub(crate) fn write_instructions<'m>(list: &mut List<'_>, messages: &'m [Message]) -> &'m [Message] {
    let first_turn = messages.iter().position(|message| message.role != Role::System).unwrap_or(messages.len());
    let (system, turns) = messages.split_at(first_turn);
    if !system.is_empty() {
        let all: Vec<String> = system.iter().map(|message| texts(&message.parts)).collect();
        list.object(|out| {
            out.put("role", "system").put("content", all.join("\n\n"));
        });
    }
    turns
}

fn write_message(list: &mut List<'_>, message: &Message, target: &Target<'_>, dropped: &mut Dropped) {
    match message.role {
        Role::System => list.object(|out| {
            out.put("role", "system").put("content", texts(&message.parts));
        }),
        Role::Assistant => list.object(|out| write_assistant(out, &message.parts, target, dropped)),
        Role::User => write_user(list, &message.parts, dropped),
    }
}

/// Results are messages of their own, before what else the turn says. Pictures in them follow as the user's.
fn write_user(list: &mut List<'_>, parts: &[Part], dropped: &mut Dropped) {
    let mut said: Vec<&Part> = Vec::new();
    for part in parts {
        match part {
            Part::Result { call, parts, failed } => {
                dropped.add_if("tool_result.is_error", *failed);
                list.object(|out| {
                    out.put("role", "tool").put("tool_call_id", call).put("content", texts(parts));
                });
                said.extend(parts.iter().filter(|part| matches!(part, Part::Image(_))));
            }
            other => said.push(other),
        }
    }
    if said.is_empty() && !parts.is_empty() {
        return;
    }
    list.object(|out| {
        out.put("role", "user");
        match said.as_slice() {
            [] => {
                out.put("content", "");
            }
            [Part::Text(text)] => {
                out.put("content", text);
            }
            many => out.list("content", |content| {
                for part in many {
                    write_part(content, part);
                }
            }),
        }
    });
}

fn write_part(content: &mut List<'_>, part: &Part) {
    match part {
        Part::Text(text) => content.object(|out| {
            out.put("type", "text").put("text", text);
        }),
        Part::Image(image) => content.object(|out| {
            out.put("type", "image_url").object("image_url", |inner| {
                inner.put("url", url_of(image));
            });
        }),
        Part::Thinking { .. } | Part::Call { .. } | Part::Result { .. } => {}
    }
}

fn write_assistant(out: &mut Object<'_>, parts: &[Part], target: &Target<'_>, dropped: &mut Dropped) {
    let text = texts(parts);
    let calls = || parts.iter().filter(|part| matches!(part, Part::Call { .. }));
    let none = calls().next().is_none();
    out.put("role", "assistant").put("content", if text.is_empty() && !none { None } else { Some(text) });
    let thoughts: Vec<&str> = parts
        .iter()
        .filter_map(|part| match part {
            Part::Thinking { text, .. } if !text.is_empty() => Some(text.as_str()),
            _ => None,
        })
        .collect();
    if !thoughts.is_empty() && target.takes_thoughts {
        out.put("reasoning_content", thoughts.concat());
    }
    dropped.add_if("thinking", !thoughts.is_empty() && !target.takes_thoughts);
    if none {
        return;
    }
    out.list("tool_calls", |list| {
        for part in calls() {
            let Part::Call { id, name, arguments } = part else { continue };
            list.object(|call| {
                call.put("id", id).put("type", "function").object("function", |function| {
                    function.put("name", name).put("arguments", arguments);
                });
            });
        }
    });
}

/// The texts of `parts`, a line break between two.
pub(crate) fn texts(parts: &[Part]) -> String {
    let texts = parts.iter().filter_map(|part| match part {
        Part::Text(text) => Some(text.as_str()),
        _ => None,
    });
    texts.collect::<Vec<_>>().join("\n")
}
