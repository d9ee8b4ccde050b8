//! Messages as requests.

use serde_json::value::RawValue;

use crate::json::{self, At, Fields, List, Object, items, string};
use crate::notes::{Dropped, Notes, cannot_say};
use crate::refused::Refused;
use crate::request::{
    Effort, Format, Image, Input, Message, Part, Request, Role, Sampling, Thinking, Tool, ToolChoice, ToolKind, Weight,
};
use crate::signature::{Maker, REDACTED};
use crate::translate::Target;

/// The least budget for thoughts that Anthropic takes.
const BUDGET_MIN: u64 = 1024;

pub(crate) fn read(mut fields: Fields<'_, '_>) -> Result<Request, Refused> {
    let at = *fields.at();
    let mut notes = Notes::default();
    let mut messages = Vec::new();
    if let Some(raw) = fields.take("system")? {
        let parts = read_content(raw, &at.key("system"), &mut notes)?;
        messages.push(Message { role: Role::System, parts });
    }
    let at_messages = at.key("messages");
    for (index, raw) in items(fields.require("messages")?, &at_messages)?.into_iter().enumerate() {
        messages.push(read_message(raw, &at_messages.item(index), &mut notes)?);
    }
    let tools = read_tools(&mut fields, &mut notes)?;
    let (tool_choice, parallel_calls) = read_tool_choice(&mut fields)?;
    let (effort, format) = read_output_config(&mut fields)?;
    let thinking = read_thinking(&mut fields)?;
    let max_tokens = fields.count("max_tokens")?.ok_or_else(|| at.key("max_tokens").missing())?;
    let user = match fields.take("metadata")? {
        Some(raw) => Fields::of(raw, &at.key("metadata"))?.text("user_id")?,
        None => None,
    };
    let request = Request {
        model: fields.require_text("model")?,
        stream: fields.bool("stream")?.unwrap_or(false),
        stream_usage: true,
        input: Input::Chat(messages),
        tools,
        tool_choice,
        parallel_calls,
        sampling: Sampling {
            temperature: fields.number("temperature")?,
            top_p: fields.number("top_p")?,
            top_k: fields.count("top_k")?,
            ..Sampling::default()
        },
        stop: crate::chat::read_stop(&mut fields, "stop_sequences")?,
        max_tokens: Some(max_tokens),
        format,
        // An effort says more than that there are thoughts; that there are none says more than an effort.
        thinking: match (thinking, effort) {
            (Some(Thinking::On) | None, Some(effort)) => Some(Thinking::Effort(effort)),
            (thinking, _) => thinking,
        },
        user,
        cache_key: None,
        unsaid: Vec::new(),
    };
    notes.take(&mut fields, &["container", "mcp_servers"], Weight::Meaning)?;
    notes.rest(&fields);
    Ok(Request { unsaid: notes.into_unsaid(), ..request })
}

fn read_output_config(fields: &mut Fields<'_, '_>) -> Result<(Option<Effort>, Format), Refused> {
    let at = *fields.at();
    let Some(raw) = fields.take("output_config")? else { return Ok((None, Format::Text)) };
    let at = at.key("output_config");
    let mut config = Fields::of(raw, &at)?;
    let effort = match config.string("effort")?.as_deref() {
        None => None,
        Some("low") => Some(Effort::Low),
        Some("medium") => Some(Effort::Medium),
        Some("high") => Some(Effort::High),
        Some("xhigh" | "max") => Some(Effort::Highest),
        Some(_) => return Err(at.key("effort").wrong("one of `low`, `medium`, `high`, `xhigh` and `max`")),
    };
    let Some(raw) = config.take("format")? else { return Ok((effort, Format::Text)) };
    let at = at.key("format");
    let mut format = Fields::of(raw, &at)?;
    if format.require_text("type")? != "json_schema" {
        return Err(at.key("type").wrong("`json_schema`"));
    }
    let schema = format.kept_object("schema")?.ok_or_else(|| at.key("schema").missing())?;
    Ok((effort, Format::Schema { name: None, schema, strict: Some(true) }))
}

fn read_thinking(fields: &mut Fields<'_, '_>) -> Result<Option<Thinking>, Refused> {
    let at = *fields.at();
    let Some(raw) = fields.take("thinking")? else { return Ok(None) };
    let at = at.key("thinking");
    let mut thinking = Fields::of(raw, &at)?;
    match thinking.require_text("type")?.as_str() {
        "enabled" => Ok(Some(thinking.count("budget_tokens")?.map_or(Thinking::On, Thinking::Budget))),
        "adaptive" | "between_tools" => Ok(Some(Thinking::On)),
        "disabled" => Ok(Some(Thinking::Off)),
        _ => Err(at.key("type").wrong("`enabled`, `adaptive`, `between_tools` or `disabled`")),
    }
}

fn read_tools(fields: &mut Fields<'_, '_>, notes: &mut Notes) -> Result<Vec<Tool>, Refused> {
    let at = *fields.at();
    let mut tools = Vec::new();
    let Some(raw) = fields.take("tools")? else { return Ok(tools) };
    let at = at.key("tools");
    for (index, raw) in items(raw, &at)?.into_iter().enumerate() {
        let at = at.item(index);
        let mut tool = Fields::of(raw, &at)?;
        let kind = tool.text("type")?.unwrap_or_else(|| "custom".to_owned());
        if kind != "custom" {
            // An offer to the model that only Anthropic's servers and models know; without it the model does without.
            notes.hint(&format!("tools.{kind}"));
            continue;
        }
        tools.push(Tool {
            name: tool.require_text("name")?,
            description: tool.text("description")?,
            schema: tool.kept_object("input_schema")?,
            strict: tool.bool("strict")?,
            kind: ToolKind::Function,
        });
        for name in tool.rest() {
            notes.hint(&format!("tools.{name}"));
        }
    }
    Ok(tools)
}

fn read_tool_choice(fields: &mut Fields<'_, '_>) -> Result<(ToolChoice, Option<bool>), Refused> {
    let at = *fields.at();
    let Some(raw) = fields.take("tool_choice")? else { return Ok((ToolChoice::Auto, None)) };
    let at = at.key("tool_choice");
    let mut choice = Fields::of(raw, &at)?;
    let parallel = choice.bool("disable_parallel_tool_use")?.map(|disable| !disable);
    let choice = match choice.require_text("type")?.as_str() {
        "auto" => ToolChoice::Auto,
        "any" => ToolChoice::Required,
        "none" => ToolChoice::None,
        "tool" => ToolChoice::Named(choice.require_text("name")?),
        _ => return Err(at.key("type").wrong("`auto`, `any`, `tool` or `none`")),
    };
    Ok((choice, parallel))
}

fn read_message(raw: &RawValue, at: &At<'_>, notes: &mut Notes) -> Result<Message, Refused> {
    let mut fields = Fields::of(raw, at)?;
    let role = match fields.require_text("role")?.as_str() {
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "system" => Role::System,
        _ => return Err(at.key("role").wrong("`user`, `assistant` or `system`")),
    };
    let parts = read_content(fields.require("content")?, &at.key("content"), notes)?;
    for name in fields.rest() {
        notes.hint(&format!("messages.{name}"));
    }
    Ok(Message { role, parts })
}

/// A text, or a list of blocks.
fn read_content(raw: &RawValue, at: &At<'_>, notes: &mut Notes) -> Result<Vec<Part>, Refused> {
    if raw.get().starts_with('"') {
        let text = string(raw, at)?.into_owned();
        return Ok(if text.is_empty() { Vec::new() } else { vec![Part::Text(text)] });
    }
    if !raw.get().starts_with('[') {
        return Err(at.wrong("a string or a list of blocks"));
    }
    let mut parts = Vec::new();
    for (index, raw) in items(raw, at)?.into_iter().enumerate() {
        parts.push(read_block(raw, &at.item(index), notes)?);
    }
    Ok(parts)
}

fn read_block(raw: &RawValue, at: &At<'_>, notes: &mut Notes) -> Result<Part, Refused> {
    let mut block = Fields::of(raw, at)?;
    let part = match block.require_text("type")?.as_str() {
        "text" => Part::Text(block.require_text("text")?),
        "image" => Part::Image(read_image(block.require("source")?, &at.key("source"))?),
        "document" => {
            let at = at.key("source");
            let mut source = Fields::of(block.require("source")?, &at)?;
            if source.require_text("type")? != "text" {
                return Err(at.key("type").unsupported("cannot be translated unless it is `text`"));
            }
            Part::Text(source.require_text("data")?)
        }
        "thinking" => Part::Thinking {
            text: block.require_text("thinking")?,
            signature: block.text("signature")?.filter(|said| !said.is_empty()).map(|said| Maker::Anthropic.read(said)),
        },
        "redacted_thinking" => {
            let data = block.require_text("data")?;
            Part::Thinking { text: String::new(), signature: Some(format!("{REDACTED}{data}")) }
        }
        "tool_use" => {
            let (id, name) = (block.require_text("id")?, block.require_text("name")?);
            let input = block.kept_object("input")?;
            Part::Call { id, name, arguments: input.map_or_else(|| "{}".to_owned(), |raw| raw.get().to_owned()) }
        }
        "tool_result" => {
            let call = block.require_text("tool_use_id")?;
            let parts = match block.take("content")? {
                Some(raw) => read_content(raw, &at.key("content"), notes)?,
                None => Vec::new(),
            };
            if parts.iter().any(|part| !matches!(part, Part::Text(_) | Part::Image(_))) {
                return Err(at.key("content").wrong("text and pictures"));
            }
            Part::Result { call, parts, failed: block.bool("is_error")?.unwrap_or(false) }
        }
        _ => return Err(at.unsupported("is a block of a kind that cannot be translated")),
    };
    for name in block.rest() {
        notes.hint(name);
    }
    Ok(part)
}

fn read_image(raw: &RawValue, at: &At<'_>) -> Result<Image, Refused> {
    let mut source = Fields::of(raw, at)?;
    match source.require_text("type")?.as_str() {
        "base64" => {
            Ok(Image::Data { media_type: source.require_text("media_type")?, base64: source.require_text("data")? })
        }
        "url" => Ok(Image::Url(source.require_text("url")?)),
        _ => Err(at.key("type").unsupported("cannot be translated unless it is `base64` or `url`")),
    }
}

pub(crate) fn write(request: &Request, target: &Target<'_>, dropped: &mut Dropped) -> Result<String, Refused> {
    let Input::Chat(messages) = &request.input else {
        return Err(cannot_say("prompt"));
    };
    if matches!(request.format, Format::Json) {
        return Err(cannot_say("json_object"));
    }
    check_calls(messages)?;
    let first_turn = messages.iter().position(|message| message.role != Role::System).unwrap_or(messages.len());
    let (system, turns) = messages.split_at(first_turn);
    if turns.is_empty() {
        return Err(Refused::at("messages", "The field `messages` must hold a turn of the user."));
    }
    let max_tokens = request.max_tokens.unwrap_or(target.default_max_tokens);
    Ok(json::object(|body| {
        body.put("model", target.model).put("max_tokens", max_tokens);
        if !system.is_empty() {
            body.list("system", |blocks| {
                for part in system.iter().flat_map(|message| &message.parts) {
                    write_block(blocks, part, dropped);
                }
            });
        }
        body.list("messages", |list| write_turns(list, turns, dropped));
        if request.stream {
            body.put("stream", true);
        }
        write_tools(body, request);
        write_sampling(body, &request.sampling, thinks(request.thinking), dropped);
        if !request.stop.is_empty() {
            body.put("stop_sequences", &request.stop);
        }
        write_thinking(body, request, max_tokens, dropped);
        if let Some(user) = &request.user {
            body.object("metadata", |metadata| {
                metadata.put("user_id", user);
            });
        }
        dropped.add_if("prompt_cache_key", request.cache_key.is_some());
    }))
}

/// Here arguments are an object, and what a model once wrote in place of one cannot be said.
fn check_calls(messages: &[Message]) -> Result<(), Refused> {
    for part in messages.iter().flat_map(|message| &message.parts) {
        if let Part::Call { name, arguments, .. } = part
            && !(arguments.trim().is_empty() || json::is_object(arguments))
        {
            let sentence = format!("The arguments of an earlier call of `{name}` must be a JSON object.");
            return Err(Refused::at("messages", sentence));
        }
    }
    Ok(())
}

/// Turns of one role in a row become one: calls must meet all their results in the very next turn.
fn write_turns(list: &mut List<'_>, turns: &[Message], dropped: &mut Dropped) {
    for group in turns.chunk_by(|one, next| one.role == next.role) {
        let role = match group[0].role {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        };
        let parts = || group.iter().flat_map(|message| &message.parts);
        list.object(|out| {
            out.put("role", role).list("content", |content| {
                // Results come first, or the server does not find them.
                for part in parts().filter(|part| matches!(part, Part::Result { .. })) {
                    write_block(content, part, dropped);
                }
                for part in parts().filter(|part| !matches!(part, Part::Result { .. })) {
                    write_block(content, part, dropped);
                }
            });
        });
    }
}

fn write_block(list: &mut List<'_>, part: &Part, dropped: &mut Dropped) {
    match part {
        // Empty texts are refused there.
        Part::Text(text) if text.trim().is_empty() => {}
        Part::Text(text) => list.object(|block| {
            block.put("type", "text").put("text", text);
        }),
        Part::Image(image) => list.object(|block| write_image(block, image)),
        Part::Thinking { text, signature } => {
            let signature = signature.as_deref().unwrap_or_default();
            match (signature.strip_prefix(REDACTED), Maker::Anthropic.own(signature)) {
                (Some(data), _) => list.object(|block| {
                    block.put("type", "redacted_thinking").put("data", data);
                }),
                (None, Some(signature)) => list.object(|block| {
                    block.put("type", "thinking").put("thinking", text).put("signature", signature);
                }),
                (None, None) => dropped.add("thinking"), // another server's, which this one would not believe
            }
        }
        Part::Call { id, name, arguments } => list.object(|block| {
            block.put("type", "tool_use").put("id", call_id(id)).put("name", name);
            block.raw("input", if arguments.trim().is_empty() { "{}" } else { arguments });
        }),
        Part::Result { call, parts, failed } => list.object(|block| {
            block.put("type", "tool_result").put("tool_use_id", call_id(call));
            block.list("content", |content| {
                for part in parts {
                    write_block(content, part, dropped);
                }
            });
            block.put_some("is_error", failed.then_some(true));
        }),
    }
}

fn write_image(block: &mut Object<'_>, image: &Image) {
    block.put("type", "image").object("source", |source| match image {
        Image::Url(url) => {
            source.put("type", "url").put("url", url);
        }
        Image::Data { media_type, base64 } => {
            source.put("type", "base64").put("media_type", media_type).put("data", base64);
        }
    });
}

/// Ids of other servers may hold what Anthropic's may not (Kimi's are `functions.read:0`).
fn call_id(id: &str) -> String {
    id.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' || c == '-' { c } else { '_' }).collect()
}

fn write_tools(body: &mut Object<'_>, request: &Request) {
    if request.tools.is_empty() {
        return;
    }
    body.list("tools", |tools| {
        for tool in &request.tools {
            tools.object(|out| {
                out.put("name", &tool.name).put_some("description", tool.description.as_ref());
                match &tool.schema {
                    Some(schema) => out.put("input_schema", schema),
                    None => out.raw("input_schema", r#"{"type":"object","properties":{}}"#),
                };
                out.put_some("strict", tool.strict.filter(|strict| *strict));
            });
        }
    });
    let (kind, name) = match &request.tool_choice {
        ToolChoice::Auto => ("auto", None),
        ToolChoice::None => ("none", None),
        ToolChoice::Required => ("any", None),
        ToolChoice::Named(name) => ("tool", Some(name)),
    };
    if request.tool_choice == ToolChoice::Auto && request.parallel_calls.is_none() {
        return;
    }
    body.object("tool_choice", |choice| {
        choice.put("type", kind).put_some("name", name);
        if request.tool_choice != ToolChoice::None {
            choice.put_some("disable_parallel_tool_use", request.parallel_calls.map(|parallel| !parallel));
        }
    });
}

/// Whether a thought is asked for in the way that takes most ways of choosing a token away.
fn thinks(thinking: Option<Thinking>) -> bool {
    matches!(thinking, Some(Thinking::On | Thinking::Budget(_)))
}

/// Claude takes either a temperature or `top_p`, and neither while it thinks. Source: Anthropic's documentation of
/// extended thinking and of the migration to Claude 4.
fn write_sampling(body: &mut Object<'_>, sampling: &Sampling, thinks: bool, dropped: &mut Dropped) {
    // OpenAI's range ends at 2, Anthropic's at 1.
    let warm = sampling.temperature.map(|temperature| temperature.clamp(0.0, 1.0));
    let temperature = warm.filter(|_| !thinks);
    let top_p = sampling.top_p.filter(|_| !thinks && temperature.is_none());
    let top_k = sampling.top_k.filter(|_| !thinks);
    body.put_some("temperature", temperature).put_some("top_p", top_p).put_some("top_k", top_k);
    // A thinking model's temperature is 1.
    dropped
        .add_if("temperature", sampling.temperature != temperature && !(thinks && sampling.temperature == Some(1.0)));
    dropped.add_if("top_p", sampling.top_p != top_p);
    dropped.add_if("top_k", sampling.top_k != top_k);
    dropped.add_if("min_p", sampling.min_p.is_some());
    dropped.add_if("seed", sampling.seed.is_some());
    dropped.add_if("frequency_penalty", sampling.frequency_penalty.is_some());
    dropped.add_if("presence_penalty", sampling.presence_penalty.is_some());
    dropped.add_if("repeat_penalty", sampling.repeat_penalty.is_some());
}

fn write_thinking(body: &mut Object<'_>, request: &Request, max_tokens: u64, dropped: &mut Dropped) {
    let kind = |body: &mut Object<'_>, kind: &str| {
        body.object("thinking", |thinking| {
            thinking.put("type", kind);
        });
    };
    let mut effort = None;
    match request.thinking {
        None => {}
        Some(Thinking::Off) => kind(body, "disabled"),
        Some(Thinking::On) => kind(body, "adaptive"),
        // The budget must leave room for the answer.
        Some(Thinking::Budget(_)) if max_tokens <= BUDGET_MIN => dropped.add("thinking.budget_tokens"),
        Some(Thinking::Budget(budget)) => body.object("thinking", |thinking| {
            thinking.put("type", "enabled").put("budget_tokens", budget.clamp(BUDGET_MIN, max_tokens - 1));
        }),
        Some(Thinking::Effort(wanted)) => effort = Some(wanted),
    }
    let schema = match &request.format {
        Format::Schema { schema, .. } => Some(schema),
        Format::Text | Format::Json => None,
    };
    if effort.is_none() && schema.is_none() {
        return;
    }
    body.object("output_config", |config| {
        config.put_some("effort", effort.map(effort_word));
        if let Some(schema) = schema {
            config.object("format", |format| {
                format.put("type", "json_schema").put("schema", schema);
            });
        }
    });
}

fn effort_word(effort: Effort) -> &'static str {
    match effort {
        Effort::Minimal | Effort::Low => "low",
        Effort::Medium => "medium",
        Effort::High => "high",
        Effort::Highest => "max",
    }
}
