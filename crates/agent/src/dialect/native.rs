//! Calls that a provider sent as calls: names and arguments as faulty servers leave them.

use fettle_app::ports::model::{RawArguments, RawCall};
use serde_json::Value;

use super::json::{self, JsonError};
use super::{Found, Given, Problem, Retry};
use crate::tools::{short, spec};

/// All native calls of a turn, identical ones with one id counted once.
pub(super) fn read(calls: &[RawCall]) -> (Vec<Found>, u32) {
    let mut kept: Vec<&RawCall> = Vec::new();
    let mut repairs = 0;
    for call in calls {
        let twin = kept.iter().any(|other| {
            let same_place = other.index == call.index || (call.id.is_some() && other.id == call.id);
            same_place && other.name == call.name && other.arguments == call.arguments
        });
        if twin {
            repairs += 1;
        } else {
            kept.push(call);
        }
    }
    let found = kept.into_iter().map(one).collect();
    (found, repairs)
}

fn one(call: &RawCall) -> Found {
    let Some((name, name_repairs)) = name_of(call.name.as_deref().unwrap_or_default()) else {
        let text = format!("the call has no tool name; the tools are {}.", spec::tool_names());
        return Found::Bad(Problem::bad_call(text).with_retry(Retry::WithoutStreaming));
    };
    match object_of(&call.arguments) {
        Ok((given, repairs)) => Found::Call { id: call.id.clone(), name, given, repairs: repairs + name_repairs },
        Err(Fault::CutOff) => Found::Bad(Problem::cut_off(&short(&name))),
        Err(Fault::Twice) => Found::Bad(
            Problem::bad_call(format!("{}: the arguments hold two different objects.", short(&name)))
                .with_retry(Retry::WithoutStreaming),
        ),
        // Servers that send fragments twice leave no JSON either.
        Err(Fault::Invalid(got)) => Found::Bad(
            Problem::bad_call(format!(
                "{}: arguments: expected a JSON object, got {got}. {}",
                short(&name),
                spec::find(&name).map(|(tool, _)| tool.parameter_list()).unwrap_or_default()
            ))
            .with_retry(Retry::WithoutStreaming),
        ),
    }
}

/// The name without leaked tokens, and once when a server repeated it for each fragment; `None` when there is none.
fn name_of(raw: &str) -> Option<(String, u32)> {
    let trimmed = raw.split("<|").next().unwrap_or_default().trim();
    if trimmed.is_empty() || trimmed == "null" {
        return None;
    }
    let mut repairs = u32::from(trimmed != raw);
    if spec::find(trimmed).is_some() {
        return Some((trimmed.to_owned(), repairs));
    }
    let repeated = (1..=trimmed.len() / 2).find(|&length| {
        trimmed.is_char_boundary(length)
            && trimmed.len().is_multiple_of(length)
            && trimmed.as_bytes().chunks(length).all(|chunk| chunk == &trimmed.as_bytes()[..length])
            && spec::find(&trimmed[..length]).is_some()
    });
    let name = match repeated {
        Some(length) => {
            repairs += 1;
            &trimmed[..length]
        }
        None => trimmed,
    };
    Some((name.to_owned(), repairs))
}

enum Fault {
    CutOff,
    Twice,
    Invalid(String),
}

fn object_of(arguments: &RawArguments) -> Result<(Vec<(String, Given)>, u32), Fault> {
    match arguments {
        RawArguments::Json(value) => from_value(value.clone(), 0),
        RawArguments::Text(text) => from_text(text),
    }
}

fn from_text(text: &str) -> Result<(Vec<(String, Given)>, u32), Fault> {
    let text = text.trim();
    if text.is_empty() {
        // A call without parameters; whether the tool allows that is checked like any other call.
        return Ok((Vec::new(), 0));
    }
    let first = json::parse_prefix(text).map_err(|e| match e {
        JsonError::CutOff => Fault::CutOff,
        JsonError::Invalid(what) => Fault::Invalid(format!("{} ({what})", short(text))),
    })?;
    let mut repairs = first.repairs;
    let mut rest = text[first.length..].trim_start();
    while !rest.is_empty() {
        if let Some(token) = super::scan::leaked_token(rest) {
            repairs += 1;
            rest = rest[token.len()..].trim_start();
            continue;
        }
        match json::parse_prefix(rest) {
            Ok(second) if second.value == first.value => {
                repairs += 1;
                rest = rest[second.length..].trim_start();
            }
            Ok(_) => return Err(Fault::Twice),
            Err(_) => return Err(Fault::Invalid(format!("text after the object: {}", short(rest)))),
        }
    }
    from_value(first.value, repairs)
}

/// An object's members; an object inside a string (encoded twice) is unwrapped once.
fn from_value(value: Value, repairs: u32) -> Result<(Vec<(String, Given)>, u32), Fault> {
    match value {
        Value::Object(map) => Ok((map.into_iter().map(|(name, value)| (name, Given::Json(value))).collect(), repairs)),
        Value::Null => Ok((Vec::new(), repairs)),
        Value::String(text) if text.trim_start().starts_with('{') => {
            let inner = json::parse_prefix(&text).map_err(|e| match e {
                JsonError::CutOff => Fault::CutOff,
                JsonError::Invalid(what) => Fault::Invalid(format!("{} ({what})", short(&text))),
            })?;
            match (inner.value, text[inner.length..].trim()) {
                (object @ Value::Object(_), "") => from_value(object, repairs + inner.repairs + 1),
                _ => Err(Fault::Invalid(short(&text))),
            }
        }
        other => Err(Fault::Invalid(short(&other.to_string()))),
    }
}

/// A call written as one JSON object: `{"name": …, "arguments": {…}}`. `None` when the object is something else.
pub(super) fn from_object(value: &Value, repairs: u32) -> Option<Found> {
    let object = value.as_object()?;
    if let Some(function) = object.get("function").filter(|inner| inner.is_object()) {
        return from_object(function, repairs);
    }
    let name = object.get("name");
    let arguments = object.get("arguments").or_else(|| object.get("parameters"));
    if name.is_none() && arguments.is_none() {
        return None;
    }
    let call = RawCall {
        index: 0,
        id: object.get("id").and_then(Value::as_str).map(str::to_owned),
        name: name.and_then(Value::as_str).map(str::to_owned),
        arguments: RawArguments::Json(arguments.cloned().unwrap_or(Value::Null)),
    };
    Some(match one(&call) {
        Found::Call { id, name, given, repairs: more } => Found::Call { id, name, given, repairs: repairs + more },
        other => other,
    })
}
