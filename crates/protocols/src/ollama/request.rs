//! Ollama's chat and generate as requests.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::value::RawValue;

use crate::called::Called;
use crate::chat::{
    of_effort, of_three, read_function, read_stop, texts, to_effort, write_function, write_instructions,
};
use crate::json::{self, At, Fields, List, Object, items, string};
use crate::notes::{Dropped, Notes, cannot_say};
use crate::refused::Refused;
use crate::request::{Format, Image, Input, Message, Part, Request, Role, Sampling, Thinking, ToolChoice, Weight};
use crate::translate::Target;

/// Calls of one turn; their results are looked for among them.
const CALLS_MAX: usize = 1000;

pub(crate) fn read_chat(mut fields: Fields<'_, '_>) -> Result<Request, Refused> {
    let at = *fields.at();
    let mut notes = Notes::default();
    let at_messages = at.key("messages");
    let mut history = History::default();
    for (index, raw) in items(fields.require("messages")?, &at_messages)?.into_iter().enumerate() {
        history.read(raw, &at_messages.item(index), &mut notes)?;
    }
    let mut tools = Vec::new();
    if let Some(raw) = fields.take("tools")? {
        let at = at.key("tools");
        for (index, raw) in items(raw, &at)?.into_iter().enumerate() {
            let at = at.item(index);
            let mut tool = Fields::of(raw, &at)?;
            tools.push(read_function(tool.require("function")?, &at.key("function"))?);
        }
    }
    let request = read_common(&mut fields, Input::Chat(history.messages), &mut notes)?;
    finish_reading(fields, notes, Request { tools, ..request })
}

/// `raw` prompts go to the model as they are, others through its template, like a conversation of one turn.
pub(crate) fn read_generate(mut fields: Fields<'_, '_>) -> Result<Request, Refused> {
    let at = *fields.at();
    let mut notes = Notes::default();
    let prompt = fields.text("prompt")?.unwrap_or_default();
    let suffix = fields.text("suffix")?.filter(|suffix| !suffix.is_empty());
    let system = fields.text("system")?.filter(|system| !system.is_empty());
    let images = read_images(&mut fields)?;
    let input = if fields.bool("raw")?.unwrap_or(false) || suffix.is_some() {
        if !images.is_empty() {
            return Err(at.key("images").unsupported("cannot go with a raw prompt"));
        }
        Input::Text { prompt, suffix }
    } else {
        let mut messages: Vec<Message> =
            system.map(|system| Message { role: Role::System, parts: vec![Part::Text(system)] }).into_iter().collect();
        let parts = [Part::Text(prompt)].into_iter().chain(images).collect();
        messages.push(Message { role: Role::User, parts });
        Input::Chat(messages)
    };
    notes.take(&mut fields, &["template", "context", "width", "height", "steps"], Weight::Meaning)?;
    let request = read_common(&mut fields, input, &mut notes)?;
    finish_reading(fields, notes, request)
}

fn finish_reading(mut fields: Fields<'_, '_>, mut notes: Notes, request: Request) -> Result<Request, Refused> {
    notes.take(&mut fields, &["logprobs", "top_logprobs"], Weight::Meaning)?;
    notes.rest(&fields);
    Ok(Request { unsaid: notes.into_unsaid(), ..request })
}

fn read_common(fields: &mut Fields<'_, '_>, input: Input, notes: &mut Notes) -> Result<Request, Refused> {
    let at = *fields.at();
    let (mut sampling, mut stop, mut max_tokens) = (Sampling::default(), Vec::new(), None);
    if let Some(raw) = fields.take("options")? {
        let at = at.key("options");
        let mut options = Fields::of(raw, &at)?;
        sampling = Sampling {
            temperature: options.number("temperature")?,
            top_p: options.number("top_p")?,
            top_k: options.count("top_k")?,
            min_p: options.number("min_p")?,
            seed: options.integer("seed")?,
            frequency_penalty: options.number("frequency_penalty")?,
            presence_penalty: options.number("presence_penalty")?,
            repeat_penalty: options.number("repeat_penalty")?,
        };
        stop = read_stop(&mut options, "stop")?;
        max_tokens = options.integer("num_predict")?.and_then(|limit| u64::try_from(limit).ok());
        for name in options.rest() {
            notes.hint(&format!("options.{name}"));
        }
    }
    // Memory is the planner's, not the caller's.
    notes.take(fields, &["keep_alive"], Weight::Hint)?;
    Ok(Request {
        model: fields.require_text("model")?,
        stream: fields.bool("stream")?.unwrap_or(true),
        stream_usage: true,
        input,
        tools: Vec::new(),
        tool_choice: ToolChoice::Auto,
        parallel_calls: None,
        sampling,
        stop,
        max_tokens,
        format: read_format(fields)?,
        thinking: read_think(fields)?,
        user: None,
        cache_key: None,
        unsaid: Vec::new(),
    })
}

fn read_format(fields: &mut Fields<'_, '_>) -> Result<Format, Refused> {
    let at = *fields.at();
    let Some(raw) = fields.take("format")? else { return Ok(Format::Text) };
    let at = at.key("format");
    if raw.get().starts_with('{') {
        return Ok(Format::Schema { name: None, schema: json::kept(raw, &at)?, strict: None });
    }
    match string(raw, &at)?.as_ref() {
        "" => Ok(Format::Text),
        "json" => Ok(Format::Json),
        _ => Err(at.wrong("`json` or a schema")),
    }
}

fn read_think(fields: &mut Fields<'_, '_>) -> Result<Option<Thinking>, Refused> {
    let at = *fields.at();
    let Some(raw) = fields.take("think")? else { return Ok(None) };
    let at = at.key("think");
    match raw.get() {
        "true" => Ok(Some(Thinking::On)),
        "false" => Ok(Some(Thinking::Off)),
        _ => {
            let word = string(raw, &at).ok().and_then(|word| of_effort(&word));
            word.map(Some).ok_or_else(|| at.wrong("true, false or an effort"))
        }
    }
}

fn read_images(fields: &mut Fields<'_, '_>) -> Result<Vec<Part>, Refused> {
    let at = *fields.at();
    let Some(raw) = fields.take("images")? else { return Ok(Vec::new()) };
    let at = at.key("images");
    let images = items(raw, &at)?.into_iter().enumerate();
    images
        .map(|(index, raw)| {
            let base64 = string(raw, &at.item(index))?.into_owned();
            let media_type = media_type(&base64).ok_or_else(|| at.item(index).wrong("a picture in base64"))?;
            Ok(Part::Image(Image::Data { media_type: media_type.to_owned(), base64 }))
        })
        .collect()
}

/// Ollama does not say what a picture is, the others ask: its first bytes tell.
fn media_type(base64: &str) -> Option<&'static str> {
    let head = STANDARD.decode(base64.get(..16)?).ok()?;
    match head.as_slice() {
        [0x89, b'P', b'N', b'G', ..] => Some("image/png"),
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        [b'G', b'I', b'F', b'8', ..] => Some("image/gif"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P'] => Some("image/webp"),
        _ => None,
    }
}

/// Ollama's calls may have no ids; results then name the function, or come in the order of the calls.
#[derive(Default)]
struct History {
    messages: Vec<Message>,
    /// Calls that have no result yet: id and name.
    open: Vec<(String, String)>,
    calls: usize,
}

impl History {
    fn read(&mut self, raw: &RawValue, at: &At<'_>, notes: &mut Notes) -> Result<(), Refused> {
        let mut fields = Fields::of(raw, at)?;
        let role = fields.require_text("role")?;
        let text = fields.text("content")?.filter(|text| !text.is_empty()).map(Part::Text);
        let message = match role.as_str() {
            "system" => Message { role: Role::System, parts: text.into_iter().collect() },
            "user" => {
                let parts = text.into_iter().chain(read_images(&mut fields)?).collect();
                Message { role: Role::User, parts }
            }
            "assistant" => Message { role: Role::Assistant, parts: self.read_assistant(&mut fields, text)? },
            "tool" => {
                let (id, name) = (fields.text("tool_call_id")?, fields.text("tool_name")?);
                let call = self.answer(id, name).ok_or_else(|| at.unsupported("answers no call before it"))?;
                let parts = text.into_iter().collect();
                Message { role: Role::User, parts: vec![Part::Result { call, parts, failed: false }] }
            }
            _ => return Err(at.key("role").wrong("`system`, `user`, `assistant` or `tool`")),
        };
        self.messages.push(message);
        for name in fields.rest() {
            notes.hint(&format!("messages.{name}"));
        }
        Ok(())
    }

    fn read_assistant(&mut self, fields: &mut Fields<'_, '_>, text: Option<Part>) -> Result<Vec<Part>, Refused> {
        let at = *fields.at();
        let thinking = fields.text("thinking")?.filter(|text| !text.is_empty());
        let mut parts: Vec<Part> = thinking.map(|text| Part::Thinking { text, signature: None }).into_iter().collect();
        parts.extend(text);
        let Some(raw) = fields.take("tool_calls")? else { return Ok(parts) };
        let at = at.key("tool_calls");
        self.open.clear();
        let calls = items(raw, &at)?;
        if calls.len() > CALLS_MAX {
            return Err(at.wrong(&format!("a list of at most {CALLS_MAX} calls")));
        }
        for (index, raw) in calls.into_iter().enumerate() {
            let at = at.item(index);
            let mut call = Fields::of(raw, &at)?;
            let at_function = at.key("function");
            let mut function = Fields::of(call.require("function")?, &at_function)?;
            let name = function.require_text("name")?;
            let arguments = function.kept_object("arguments")?;
            self.calls += 1;
            let id = call.text("id")?.unwrap_or_else(|| format!("call_{}", self.calls));
            self.open.push((id.clone(), name.clone()));
            let arguments = arguments.map_or_else(|| "{}".to_owned(), |raw| raw.get().to_owned());
            parts.push(Part::Call { id, name, arguments });
        }
        Ok(parts)
    }

    fn answer(&mut self, id: Option<String>, name: Option<String>) -> Option<String> {
        let place = match (&id, &name) {
            (Some(id), _) => self.open.iter().position(|(open, _)| open == id),
            (None, Some(name)) => self.open.iter().position(|(_, open)| open == name),
            (None, None) => (!self.open.is_empty()).then_some(0),
        };
        place.map(|place| self.open.remove(place).0).or(id)
    }
}

pub(crate) fn write_chat(request: &Request, target: &Target<'_>, dropped: &mut Dropped) -> Result<String, Refused> {
    let Input::Chat(messages) = &request.input else {
        return Err(cannot_say("prompt"));
    };
    check_images(messages)?;
    if matches!(request.tool_choice, ToolChoice::Required | ToolChoice::Named(_)) {
        return Err(cannot_say("tool_choice"));
    }
    dropped.add_if("parallel_tool_calls", request.parallel_calls == Some(false) && !request.tools.is_empty());
    Ok(json::object(|body| {
        body.put("model", target.model);
        body.list("messages", |list| {
            let mut called = Called::default();
            for message in write_instructions(list, messages) {
                write_message(list, message, &called, dropped);
                called.note(message);
            }
        });
        if !request.tools.is_empty() && request.tool_choice == ToolChoice::Auto {
            body.list("tools", |tools| {
                for tool in &request.tools {
                    tools.object(|out| {
                        out.put("type", "function").object("function", |function| write_function(function, tool));
                    });
                }
            });
        }
        write_common(body, request, dropped);
    }))
}

pub(crate) fn write_generate(request: &Request, target: &Target<'_>, dropped: &mut Dropped) -> Result<String, Refused> {
    let Input::Text { prompt, suffix } = &request.input else {
        return Err(cannot_say("messages"));
    };
    Ok(json::object(|body| {
        body.put("model", target.model).put("prompt", prompt);
        match suffix {
            // Ollama puts the two into the model's template for it, which a raw prompt would switch off.
            Some(suffix) => body.put("suffix", suffix),
            None => body.put("raw", true),
        };
        write_common(body, request, dropped);
    }))
}

fn check_images(messages: &[Message]) -> Result<(), Refused> {
    let inside = |part: &'_ Part| match part {
        Part::Image(Image::Url(_)) => true,
        Part::Result { parts, .. } => parts.iter().any(|part| matches!(part, Part::Image(Image::Url(_)))),
        _ => false,
    };
    match messages.iter().flat_map(|message| &message.parts).any(inside) {
        true => Err(Refused::at("messages", "This model's server takes pictures as data, not as addresses.")),
        false => Ok(()),
    }
}

fn write_common(body: &mut Object<'_>, request: &Request, dropped: &mut Dropped) {
    body.put("stream", request.stream);
    let sampling = &request.sampling;
    body.object("options", |options| {
        options.put_some("temperature", sampling.temperature).put_some("top_p", sampling.top_p);
        options.put_some("top_k", sampling.top_k).put_some("min_p", sampling.min_p);
        options.put_some("seed", sampling.seed);
        options.put_some("frequency_penalty", sampling.frequency_penalty);
        options.put_some("presence_penalty", sampling.presence_penalty);
        options.put_some("repeat_penalty", sampling.repeat_penalty);
        options.put_some("num_predict", request.max_tokens);
        if !request.stop.is_empty() {
            options.put("stop", &request.stop);
        }
    });
    match &request.format {
        Format::Text => {}
        Format::Json => {
            body.put("format", "json");
        }
        Format::Schema { schema, .. } => {
            body.put("format", schema);
        }
    }
    match request.thinking {
        None => {}
        Some(Thinking::Off) => {
            body.put("think", false);
        }
        Some(Thinking::On) => {
            body.put("think", true);
        }
        Some(effort) => {
            body.put_some("think", to_effort(effort).map(of_three));
        }
    }
    dropped.add_if("user", request.user.is_some());
    dropped.add_if("prompt_cache_key", request.cache_key.is_some());
}

fn write_message(list: &mut List<'_>, message: &Message, called: &Called<'_>, dropped: &mut Dropped) {
    match message.role {
        Role::System => list.object(|out| {
            out.put("role", "system").put("content", texts(&message.parts));
        }),
        Role::Assistant => list.object(|out| write_assistant(out, &message.parts)),
        Role::User => write_user(list, &message.parts, called, dropped),
    }
}

fn write_user(list: &mut List<'_>, parts: &[Part], called: &Called<'_>, dropped: &mut Dropped) {
    let mut own = parts.is_empty();
    for part in parts {
        let Part::Result { call, parts, failed } = part else {
            own = true;
            continue;
        };
        dropped.add_if("tool_result.is_error", *failed);
        list.object(|out| {
            out.put("role", "tool").put("content", texts(parts));
            out.put("tool_call_id", call).put_some("tool_name", called.name(call));
            write_images(out, parts);
        });
    }
    if own {
        list.object(|out| {
            out.put("role", "user").put("content", texts(parts));
            write_images(out, parts);
        });
    }
}

fn write_images(out: &mut Object<'_>, parts: &[Part]) {
    let images = parts.iter().filter_map(|part| match part {
        Part::Image(Image::Data { base64, .. }) => Some(base64),
        _ => None,
    });
    let images: Vec<&String> = images.collect();
    if !images.is_empty() {
        out.put("images", images);
    }
}

fn write_assistant(out: &mut Object<'_>, parts: &[Part]) {
    out.put("role", "assistant").put("content", texts(parts));
    let thoughts: String = parts
        .iter()
        .filter_map(|part| match part {
            Part::Thinking { text, .. } => Some(text.as_str()),
            _ => None,
        })
        .collect();
    out.put_some("thinking", (!thoughts.is_empty()).then_some(thoughts));
    let calls = || parts.iter().filter(|part| matches!(part, Part::Call { .. }));
    if calls().next().is_none() {
        return;
    }
    out.list("tool_calls", |list| {
        for part in calls() {
            let Part::Call { id, name, arguments } = part else { continue };
            list.object(|call| {
                call.put("id", id).object("function", |function| {
                    function.put("name", name).raw("arguments", &json::arguments_object(arguments));
                });
            });
        }
    });
}
