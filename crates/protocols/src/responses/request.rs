//! Responses as requests: a list of items, which become turns.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::FREEFORM;
use crate::chat::{EFFORTS, image_of, of_effort, texts, to_effort, url_of};
use crate::json::{self, At, Fields, List, Object, items, string};
use crate::notes::{Dropped, Notes, cannot_say};
use crate::refused::Refused;
use crate::request::{
    Format, Input, Message, Part, Request, Role, Sampling, Thinking, Tool, ToolChoice, ToolKind, Weight,
};
use crate::signature::Maker;
use crate::translate::Target;

/// What a tool that takes plain text is to a server that knows only functions.
const FREEFORM_SCHEMA: &str =
    r#"{"type":"object","properties":{"input":{"type":"string"}},"required":["input"],"additionalProperties":false}"#;

pub(crate) fn read(mut fields: Fields<'_, '_>) -> Result<Request, Refused> {
    let at = *fields.at();
    refuse_stored(&mut fields)?;
    let mut notes = Notes::default();
    let mut turns = Turns::default();
    if let Some(text) = fields.text("instructions")?.filter(|text| !text.is_empty()) {
        turns.add(Role::System, vec![Part::Text(text)]);
    }
    let input = fields.require("input")?;
    if input.get().starts_with('"') {
        turns.add(Role::User, vec![Part::Text(string(input, &at.key("input"))?.into_owned())]);
    } else {
        let at = at.key("input");
        for (index, raw) in items(input, &at)?.into_iter().enumerate() {
            turns.read(raw, &at.item(index), &mut notes)?;
        }
    }
    let tools = read_tools(&mut fields, &mut notes)?;
    let tool_choice = read_tool_choice(&mut fields)?;
    let request = Request {
        model: fields.require_text("model")?,
        stream: fields.bool("stream")?.unwrap_or(false),
        stream_usage: true,
        input: Input::Chat(turns.messages),
        tools,
        tool_choice,
        parallel_calls: fields.bool("parallel_tool_calls")?,
        sampling: Sampling {
            temperature: fields.number("temperature")?,
            top_p: fields.number("top_p")?,
            ..Sampling::default()
        },
        stop: Vec::new(),
        max_tokens: fields.count("max_output_tokens")?,
        format: read_format(&mut fields, &mut notes)?,
        thinking: read_reasoning(&mut fields)?,
        user: fields.text("user")?,
        cache_key: fields.text("prompt_cache_key")?,
        unsaid: Vec::new(),
    };
    read_include(&mut fields, &mut notes)?;
    notes.take(&mut fields, &["top_logprobs", "moderation"], Weight::Meaning)?;
    // Nothing is stored here, so `store` asks for what is not given and loses nothing that was there.
    notes.take(&mut fields, &["store"], Weight::Hint)?;
    notes.rest(&fields);
    Ok(Request { unsaid: notes.into_unsaid(), ..request })
}

/// What would have to be remembered from an earlier request.
fn refuse_stored(fields: &mut Fields<'_, '_>) -> Result<(), Refused> {
    let at = *fields.at();
    for name in ["previous_response_id", "conversation", "prompt"] {
        if fields.take(name)?.is_some() {
            let why = "cannot be followed, because nothing is stored here; send the whole conversation in `input`";
            return Err(at.key(name).unsupported(why));
        }
    }
    if fields.bool("background")?.unwrap_or(false) {
        return Err(at.key("background").unsupported("is not possible here, because nothing is stored"));
    }
    Ok(())
}

/// Signed thoughts are given back in any case; whatever else could be included does not exist here.
fn read_include(fields: &mut Fields<'_, '_>, notes: &mut Notes) -> Result<(), Refused> {
    let at = *fields.at();
    let Some(raw) = fields.take("include")? else { return Ok(()) };
    let at = at.key("include");
    for (index, raw) in items(raw, &at)?.into_iter().enumerate() {
        if string(raw, &at.item(index))? != "reasoning.encrypted_content" {
            notes.hint("include");
        }
    }
    Ok(())
}

fn read_reasoning(fields: &mut Fields<'_, '_>) -> Result<Option<Thinking>, Refused> {
    let at = *fields.at();
    let Some(raw) = fields.take("reasoning")? else { return Ok(None) };
    let at = at.key("reasoning");
    let Some(word) = Fields::of(raw, &at)?.text("effort")? else { return Ok(None) };
    of_effort(&word).map(Some).ok_or_else(|| at.key("effort").wrong(EFFORTS))
}

fn read_format(fields: &mut Fields<'_, '_>, notes: &mut Notes) -> Result<Format, Refused> {
    let at = *fields.at();
    let Some(raw) = fields.take("text")? else { return Ok(Format::Text) };
    let at = at.key("text");
    let mut text = Fields::of(raw, &at)?;
    let format = text.take("format")?;
    for name in text.rest() {
        notes.hint(&format!("text.{name}"));
    }
    let Some(raw) = format else { return Ok(Format::Text) };
    let at = at.key("format");
    let mut format = Fields::of(raw, &at)?;
    match format.require_text("type")?.as_str() {
        "text" => Ok(Format::Text),
        "json_object" => Ok(Format::Json),
        "json_schema" => {
            let schema = format.kept_object("schema")?.ok_or_else(|| at.key("schema").missing())?;
            Ok(Format::Schema { name: format.text("name")?, schema, strict: format.bool("strict")? })
        }
        _ => Err(at.key("type").wrong("`text`, `json_object` or `json_schema`")),
    }
}

fn read_tools(fields: &mut Fields<'_, '_>, notes: &mut Notes) -> Result<Vec<Tool>, Refused> {
    let at = *fields.at();
    let mut tools = Vec::new();
    let Some(raw) = fields.take("tools")? else { return Ok(tools) };
    let at = at.key("tools");
    for (index, raw) in items(raw, &at)?.into_iter().enumerate() {
        read_tool(raw, &at.item(index), None, &mut tools, notes)?;
    }
    Ok(tools)
}

fn read_tool(
    raw: &RawValue,
    at: &At<'_>,
    group: Option<&str>,
    tools: &mut Vec<Tool>,
    notes: &mut Notes,
) -> Result<(), Refused> {
    let mut tool = Fields::of(raw, at)?;
    match (tool.require_text("type")?.as_str(), group) {
        ("function", _) => {
            let name = tool.require_text("name")?;
            tools.push(Tool {
                name: joined(group, &name),
                description: tool.text("description")?,
                schema: tool.kept_object("parameters")?,
                strict: tool.bool("strict")?,
                kind: match group {
                    None => ToolKind::Function,
                    Some(namespace) => ToolKind::Grouped { namespace: namespace.to_owned(), name },
                },
            });
        }
        ("custom", None) => tools.push(read_freeform(&mut tool)?),
        ("namespace", None) => {
            let name = tool.require_text("name")?;
            let at = at.key("tools");
            for (index, raw) in items(tool.require("tools")?, &at)?.into_iter().enumerate() {
                read_tool(raw, &at.item(index), Some(&name), tools, notes)?;
            }
        }
        // An offer to the model that only OpenAI's servers and models know; without it the model does without.
        (kind, _) => notes.hint(&format!("tools.{kind}")),
    }
    Ok(())
}

/// A grammar is told in words: servers that know only functions cannot keep a model to it.
fn read_freeform(tool: &mut Fields<'_, '_>) -> Result<Tool, Refused> {
    let at = *tool.at();
    let name = tool.require_text("name")?;
    let mut description = tool.text("description")?.unwrap_or_default();
    if let Some(raw) = tool.take("format")?
        && let Some(grammar) = Fields::of(raw, &at.key("format"))?.text("definition")?
    {
        description.push_str("\n\nThe argument `input` must match this grammar:\n");
        description.push_str(&grammar);
    }
    let schema = RawValue::from_string(FREEFORM_SCHEMA.to_owned()).ok();
    Ok(Tool { name, description: Some(description), schema, strict: None, kind: ToolKind::Freeform })
}

/// The one name of a tool in a group.
fn joined(group: Option<&str>, name: &str) -> String {
    group.map_or_else(|| name.to_owned(), |group| format!("{group}__{name}"))
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
            _ => Err(at.wrong("`auto`, `none`, `required` or a tool")),
        };
    }
    let mut choice = Fields::of(raw, &at)?;
    match choice.require_text("type")?.as_str() {
        "function" | "custom" => Ok(ToolChoice::Named(choice.require_text("name")?)),
        _ => Err(at.key("type").wrong("`function` or `custom`")),
    }
}

/// Items of one turn stand one after another: thoughts, words and calls of the model, results of the tools.
#[derive(Default)]
struct Turns {
    messages: Vec<Message>,
}

impl Turns {
    fn add(&mut self, role: Role, parts: Vec<Part>) {
        let is_result = |parts: &[Part]| matches!(parts, [Part::Result { .. }, ..]);
        match self.messages.last_mut() {
            Some(last)
                if last.role == role && (role == Role::Assistant || is_result(&last.parts) && is_result(&parts)) =>
            {
                last.parts.extend(parts);
            }
            _ => self.messages.push(Message { role, parts }),
        }
    }

    fn read(&mut self, raw: &RawValue, at: &At<'_>, notes: &mut Notes) -> Result<(), Refused> {
        let mut item = Fields::of(raw, at)?;
        let kind = item.text("type")?.unwrap_or_else(|| "message".to_owned());
        match kind.as_str() {
            "message" => {
                let role = match item.require_text("role")?.as_str() {
                    "system" | "developer" => Role::System,
                    "user" => Role::User,
                    "assistant" => Role::Assistant,
                    _ => return Err(at.key("role").wrong("`user`, `assistant`, `system` or `developer`")),
                };
                let parts = read_content(item.require("content")?, &at.key("content"), notes)?;
                self.add(role, parts);
            }
            "function_call" => {
                let name = joined(item.text("namespace")?.as_deref(), &item.require_text("name")?);
                let id = item.require_text("call_id")?;
                let arguments = item.require_text("arguments")?;
                self.add(Role::Assistant, vec![Part::Call { id, name, arguments }]);
            }
            "custom_tool_call" => {
                let input = item.require_text("input")?;
                let arguments = json::object(|out| {
                    out.put(FREEFORM, input);
                });
                let (id, name) = (item.require_text("call_id")?, item.require_text("name")?);
                self.add(Role::Assistant, vec![Part::Call { id, name, arguments }]);
            }
            "function_call_output" | "custom_tool_call_output" => {
                let call = item.require_text("call_id")?;
                let parts = read_content(item.require("output")?, &at.key("output"), notes)?;
                self.add(Role::User, vec![Part::Result { call, parts, failed: false }]);
            }
            "reasoning" => {
                if let Some(part) = read_thought(&mut item)? {
                    self.add(Role::Assistant, vec![part]);
                }
            }
            // Records of what OpenAI's servers did by themselves; nobody waits for an answer to them.
            "web_search_call" | "file_search_call" | "image_generation_call" | "code_interpreter_call" => {
                notes.hint(&format!("input.{kind}"));
            }
            _ => return Err(at.key("type").unsupported("names an item of a kind that cannot be translated")),
        }
        Ok(())
    }
}

/// The thought in full where it is known, else its summary.
fn read_thought(item: &mut Fields<'_, '_>) -> Result<Option<Part>, Refused> {
    let at = *item.at();
    let mut told = Vec::new();
    for key in ["content", "summary"] {
        let Some(raw) = item.take(key)? else { continue };
        let at = at.key(key);
        let mut texts = Vec::new();
        for (index, raw) in items(raw, &at)?.into_iter().enumerate() {
            texts.push(Fields::of(raw, &at.item(index))?.require_text("text")?);
        }
        told.push(texts.join("\n\n"));
    }
    let text = told.into_iter().find(|text| !text.is_empty()).unwrap_or_default();
    let said = item.text("encrypted_content")?.filter(|said| !said.is_empty());
    let signature = said.map(|said| Maker::OpenAi.read(said));
    Ok((!text.is_empty() || signature.is_some()).then_some(Part::Thinking { text, signature }))
}

fn read_content(raw: &RawValue, at: &At<'_>, notes: &mut Notes) -> Result<Vec<Part>, Refused> {
    if raw.get().starts_with('"') {
        let text: Cow<'_, str> = string(raw, at)?;
        return Ok(if text.is_empty() { Vec::new() } else { vec![Part::Text(text.into_owned())] });
    }
    if !raw.get().starts_with('[') {
        return Err(at.wrong("a string or a list of parts"));
    }
    let mut parts = Vec::new();
    for (index, raw) in items(raw, at)?.into_iter().enumerate() {
        let at = at.item(index);
        let mut part = Fields::of(raw, &at)?;
        parts.push(match part.require_text("type")?.as_str() {
            "input_text" | "output_text" | "text" | "summary_text" => Part::Text(part.require_text("text")?),
            "refusal" => Part::Text(part.require_text("refusal")?),
            "input_image" => {
                if part.text("detail")?.is_some_and(|detail| detail != "auto") {
                    notes.hint("input_image.detail");
                }
                let url = part.text("image_url")?;
                let missing = || at.unsupported("needs `image_url`; no files are stored here");
                Part::Image(image_of(url.ok_or_else(missing)?))
            }
            _ => return Err(at.unsupported("is of a kind that cannot be translated; text and pictures can")),
        });
    }
    Ok(parts)
}

pub(crate) fn write(request: &Request, target: &Target<'_>, dropped: &mut Dropped) -> Result<String, Refused> {
    let Input::Chat(messages) = &request.input else {
        return Err(cannot_say("prompt"));
    };
    if !request.stop.is_empty() {
        return Err(cannot_say("stop"));
    }
    let first_turn = messages.iter().position(|message| message.role != Role::System).unwrap_or(messages.len());
    let (system, turns) = messages.split_at(first_turn);
    Ok(json::object(|body| {
        body.put("model", target.model);
        if !system.is_empty() {
            let parts: Vec<String> = system.iter().map(|message| texts(&message.parts)).collect();
            body.put("instructions", parts.join("\n\n"));
        }
        body.list("input", |list| {
            for message in turns {
                write_message(list, message, dropped);
            }
        });
        if request.stream {
            body.put("stream", true);
        }
        // The whole conversation comes with each request, thoughts too.
        body.put("store", false).list("include", |include| include.put("reasoning.encrypted_content"));
        write_tools(body, request);
        write_sampling(body, &request.sampling, dropped);
        body.put_some("max_output_tokens", request.max_tokens);
        write_format(body, &request.format);
        if let Some(thinking) = request.thinking {
            body.object("reasoning", |out| {
                out.put_some("effort", to_effort(thinking));
                out.put_some("summary", (thinking != Thinking::Off).then_some("auto"));
            });
        }
        body.put_some("prompt_cache_key", request.cache_key.as_ref()).put_some("user", request.user.as_ref());
    }))
}

fn write_sampling(body: &mut Object<'_>, sampling: &Sampling, dropped: &mut Dropped) {
    body.put_some("temperature", sampling.temperature).put_some("top_p", sampling.top_p);
    dropped.add_if("top_k", sampling.top_k.is_some());
    dropped.add_if("min_p", sampling.min_p.is_some());
    dropped.add_if("seed", sampling.seed.is_some());
    dropped.add_if("frequency_penalty", sampling.frequency_penalty.is_some());
    dropped.add_if("presence_penalty", sampling.presence_penalty.is_some());
    dropped.add_if("repeat_penalty", sampling.repeat_penalty.is_some());
}

fn write_format(body: &mut Object<'_>, format: &Format) {
    match format {
        Format::Text => {}
        Format::Json => body.object("text", |text| {
            text.object("format", |out| {
                out.put("type", "json_object");
            });
        }),
        Format::Schema { name, schema, strict } => body.object("text", |text| {
            text.object("format", |out| {
                out.put("type", "json_schema").put("name", name.as_deref().unwrap_or("answer"));
                out.put("schema", schema).put_some("strict", *strict);
            });
        }),
    }
}

fn write_tools(body: &mut Object<'_>, request: &Request) {
    if request.tools.is_empty() {
        return;
    }
    body.list("tools", |tools| {
        for tool in &request.tools {
            tools.object(|out| {
                out.put("type", "function");
                crate::chat::write_function(out, tool);
                // Left out, it would be taken for `true`, which many a schema is not made for.
                out.put("strict", tool.strict.unwrap_or(false));
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
            choice.put("type", "function").put("name", name);
        }),
    }
    body.put_some("parallel_tool_calls", request.parallel_calls);
}

/// One message becomes several items; texts and pictures that follow one another stay together.
fn write_message(list: &mut List<'_>, message: &Message, dropped: &mut Dropped) {
    let said = |part: &Part| matches!(part, Part::Text(_) | Part::Image(_));
    for group in message.parts.chunk_by(|one, next| said(one) && said(next)) {
        match &group[0] {
            Part::Text(_) | Part::Image(_) => list.object(|item| write_said(item, message.role, group)),
            Part::Thinking { text, signature } => match signature.as_deref().and_then(|said| Maker::OpenAi.own(said)) {
                Some(signature) => list.object(|item| {
                    item.put("type", "reasoning").list("summary", |summary| write_texts(summary, "summary_text", text));
                    item.put("encrypted_content", signature);
                }),
                None => dropped.add("thinking"), // another server's, which this one would not believe
            },
            Part::Call { id, name, arguments } => list.object(|item| {
                item.put("type", "function_call").put("call_id", id).put("name", name).put("arguments", arguments);
            }),
            Part::Result { call, parts, failed } => {
                dropped.add_if("tool_result.is_error", *failed);
                list.object(|item| {
                    item.put("type", "function_call_output").put("call_id", call);
                    if parts.iter().any(|part| matches!(part, Part::Image(_))) {
                        item.list("output", |output| write_parts(output, Role::User, parts));
                    } else {
                        item.put("output", texts(parts));
                    }
                });
            }
        }
    }
}

fn write_texts(list: &mut List<'_>, kind: &str, text: &str) {
    if !text.is_empty() {
        list.object(|part| {
            part.put("type", kind).put("text", text);
        });
    }
}

fn write_said(item: &mut Object<'_>, role: Role, parts: &[Part]) {
    let role_word = match role {
        Role::System => "developer",
        Role::User => "user",
        Role::Assistant => "assistant",
    };
    item.put("type", "message").put("role", role_word);
    item.list("content", |content| write_parts(content, role, parts));
}

fn write_parts(list: &mut List<'_>, role: Role, parts: &[Part]) {
    let kind = if role == Role::Assistant { "output_text" } else { "input_text" };
    for part in parts {
        match part {
            Part::Text(text) => write_texts(list, kind, text),
            Part::Image(image) => list.object(|part| {
                part.put("type", "input_image").put("image_url", url_of(image)).put("detail", "auto");
            }),
            Part::Thinking { .. } | Part::Call { .. } | Part::Result { .. } => {}
        }
    }
}
