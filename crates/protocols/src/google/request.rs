//! `generateContent` as request. The model stands in the path.

use crate::called::Called;
use crate::chat::texts;
use crate::json::{self, List, Object};
use crate::notes::{Dropped, cannot_say};
use crate::refused::Refused;
use crate::request::{Effort, Format, Image, Input, Message, Part, Request, Role, Thinking, ToolChoice};
use crate::translate::Target;

/// Gemini 3 asks for a signature with each turn's first call and gives this word to histories of other models.
/// Source: Google's documentation of thought signatures.
const UNSIGNED: &str = "skip_thought_signature_validator";

pub(crate) fn write(request: &Request, target: &Target<'_>, dropped: &mut Dropped) -> Result<String, Refused> {
    let Input::Chat(messages) = &request.input else {
        return Err(cannot_say("prompt"));
    };
    check(messages)?;
    let first_turn = messages.iter().position(|message| message.role != Role::System).unwrap_or(messages.len());
    let (system, turns) = messages.split_at(first_turn);
    if turns.is_empty() {
        return Err(Refused::at("messages", "The field `messages` must hold a turn of the user."));
    }
    Ok(json::object(|body| {
        if !system.is_empty() {
            body.object("systemInstruction", |instruction| {
                instruction.list("parts", |parts| {
                    for message in system {
                        write_text(parts, &texts(&message.parts));
                    }
                });
            });
        }
        body.list("contents", |contents| write_turns(contents, turns, target, dropped));
        write_tools(body, request, dropped);
        body.object("generationConfig", |config| write_config(config, request, dropped));
        dropped.add_if("user", request.user.is_some());
        dropped.add_if("prompt_cache_key", request.cache_key.is_some());
    }))
}

/// The path of `model`. Errors: a name that would leave its place in the path.
pub(crate) fn path(model: &str, stream: bool) -> Result<String, Refused> {
    let fit = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if model.is_empty() || !model.chars().all(fit) || model.contains("..") {
        return Err(Refused::at("model", "The name of this model cannot stand in a path."));
    }
    let method = if stream { "streamGenerateContent?alt=sse" } else { "generateContent" };
    Ok(format!("/v1beta/models/{model}:{method}"))
}

fn check(messages: &[Message]) -> Result<(), Refused> {
    let mut called = Called::default();
    for message in messages {
        for part in &message.parts {
            let inner = match part {
                Part::Result { call, parts, .. } => {
                    if called.name(call).is_none() {
                        return Err(Refused::at("messages", "A tool's result must come after its call."));
                    }
                    parts
                }
                _ => std::slice::from_ref(part),
            };
            if inner.iter().any(|part| matches!(part, Part::Image(Image::Url(_)))) {
                return Err(Refused::at("messages", "This model's server takes pictures as data, not as addresses."));
            }
        }
        called.note(message);
    }
    Ok(())
}

/// Turns of one role in a row become one, as calls must meet all their results in the next. Instructions in the middle
/// of a conversation have no role of their own here and are said by the user.
fn write_turns(contents: &mut List<'_>, turns: &[Message], target: &Target<'_>, dropped: &mut Dropped) {
    let mut called = Called::default();
    let is_model = |message: &Message| message.role == Role::Assistant;
    for group in turns.chunk_by(|one, next| is_model(one) == is_model(next)) {
        contents.object(|content| {
            content.put("role", if is_model(&group[0]) { "model" } else { "user" });
            content.list("parts", |parts| {
                let mut first_call = true;
                for part in group.iter().flat_map(|message| &message.parts) {
                    let signed = matches!(part, Part::Call { .. }) && std::mem::take(&mut first_call);
                    write_part(parts, part, &called, signed && wants_signatures(target.model), dropped);
                }
            });
        });
        group.iter().for_each(|message| called.note(message));
    }
}

fn wants_signatures(model: &str) -> bool {
    !(model.starts_with("gemini-1") || model.starts_with("gemini-2"))
}

fn write_text(parts: &mut List<'_>, text: &str) {
    parts.object(|part| {
        part.put("text", text);
    });
}

fn write_part(parts: &mut List<'_>, part: &Part, called: &Called<'_>, signed: bool, dropped: &mut Dropped) {
    match part {
        Part::Text(text) => write_text(parts, text),
        Part::Image(image) => write_image(parts, image),
        Part::Thinking { .. } => dropped.add("thinking"),
        Part::Call { name, arguments, .. } => parts.object(|out| {
            out.object("functionCall", |call| {
                call.put("name", name).raw("args", &json::arguments_object(arguments));
            });
            out.put_some("thoughtSignature", signed.then_some(UNSIGNED));
        }),
        Part::Result { call, parts: inner, failed } => {
            parts.object(|out| {
                out.object("functionResponse", |response| {
                    response.put("name", called.name(call).unwrap_or_default());
                    response.object("response", |said| {
                        said.put(if *failed { "error" } else { "output" }, texts(inner));
                    });
                });
            });
            for part in inner {
                if let Part::Image(image) = part {
                    write_image(parts, image);
                }
            }
        }
    }
}

fn write_image(parts: &mut List<'_>, image: &Image) {
    let Image::Data { media_type, base64 } = image else { return };
    parts.object(|out| {
        out.object("inlineData", |data| {
            data.put("mimeType", media_type).put("data", base64);
        });
    });
}

fn write_tools(body: &mut Object<'_>, request: &Request, dropped: &mut Dropped) {
    if request.tools.is_empty() {
        return;
    }
    dropped.add_if("parallel_tool_calls", request.parallel_calls == Some(false));
    body.list("tools", |tools| {
        tools.object(|tool| {
            tool.list("functionDeclarations", |functions| {
                for tool in &request.tools {
                    functions.object(|function| {
                        function.put("name", &tool.name).put_some("description", tool.description.as_ref());
                        function.put_some("parametersJsonSchema", tool.schema.as_ref());
                    });
                }
            });
        });
    });
    let (mode, only) = match &request.tool_choice {
        ToolChoice::Auto => return,
        ToolChoice::None => ("NONE", None),
        ToolChoice::Required => ("ANY", None),
        ToolChoice::Named(name) => ("ANY", Some([name])),
    };
    body.object("toolConfig", |config| {
        config.object("functionCallingConfig", |calling| {
            calling.put("mode", mode).put_some("allowedFunctionNames", only);
        });
    });
}

fn write_config(config: &mut Object<'_>, request: &Request, dropped: &mut Dropped) {
    let sampling = &request.sampling;
    config.put_some("temperature", sampling.temperature).put_some("topP", sampling.top_p);
    config.put_some("topK", sampling.top_k).put_some("seed", sampling.seed);
    config.put_some("presencePenalty", sampling.presence_penalty);
    config.put_some("frequencyPenalty", sampling.frequency_penalty);
    dropped.add_if("min_p", sampling.min_p.is_some());
    dropped.add_if("repeat_penalty", sampling.repeat_penalty.is_some());
    config.put_some("maxOutputTokens", request.max_tokens);
    if !request.stop.is_empty() {
        config.put("stopSequences", &request.stop);
    }
    match &request.format {
        Format::Text => {}
        Format::Json => {
            config.put("responseMimeType", "application/json");
        }
        Format::Schema { schema, .. } => {
            config.put("responseMimeType", "application/json").put("responseJsonSchema", schema);
        }
    }
    let Some(thinking) = request.thinking else { return };
    config.object("thinkingConfig", |out| {
        out.put("includeThoughts", thinking != Thinking::Off);
        match thinking {
            Thinking::Off => out.put("thinkingBudget", 0),
            Thinking::On => out,
            Thinking::Budget(tokens) => out.put("thinkingBudget", tokens),
            Thinking::Effort(effort) => out.put(
                "thinkingLevel",
                match effort {
                    Effort::Minimal => "MINIMAL",
                    Effort::Low => "LOW",
                    Effort::Medium => "MEDIUM",
                    Effort::High | Effort::Highest => "HIGH",
                },
            ),
        };
    });
}
