//! What the model is shown of calls: how to make them, its own earlier ones, and their results.

use std::fmt::Write as _;

use fettle_app::ports::model::{Message, ToolSpec};
use serde_json::Value;

use super::{Dialect, ParsedCall, ParsedTurn, Problem};

/// How calls are made, for the system prompt. `mark` is the Run's random mark of the fenced dialect.
pub fn instructions(dialect: Dialect, specs: &[ToolSpec], mark: &str) -> String {
    let form = match dialect {
        Dialect::Native => {
            return "Call tools by function calling. At most 8 calls in a message; they run in order. Every turn needs a \
                    call until you call finish.\n"
                .to_owned();
        }
        Dialect::Xml => {
            "Call tools in your text, each call beginning at the start of a line:\n\n\
             <tool name=\"view\"><arg name=\"path\">src/main.rs</arg></tool>\n\n\
             <tool name=\"str_replace\">\n<arg name=\"path\">src/main.rs</arg>\n<arg name=\"old\">\nfirst line\nsecond line\n</arg>\n\
             <arg name=\"new\">\nother line\n</arg>\n</tool>\n\n\
             Values are raw text: escape nothing. When a value begins on the line after its tag, the line breaks next to the \
             tags do not count, except that content keeps its last line break.\n"
                .to_owned()
        }
        Dialect::Fenced => format!(
            "Call a tool by a code fence at the start of a line. Short values stand on `key: value` lines; long ones between \
             lines that begin with @@ and end with the mark {mark}:\n\n\
             ```tool view\npath: src/main.rs\n```\n\n\
             ```tool str_replace\npath: src/main.rs\n@@old {mark}\nfirst line\nsecond line\n@@new {mark}\nother line\n\
             @@end {mark}\n```\n\n\
             Values are raw text: escape nothing. A message that ends in one ```bash block runs it.\n"
        ),
    };
    let mut text = form;
    text.push_str(
        "At most 8 calls in a message; they run in order. Every turn needs a call until you call finish.\n\nTools:\n",
    );
    for spec in specs {
        writeln!(text, "- {}: {}", spec.name, spec.description).expect("writing to a string cannot fail");
        let Some(properties) = spec.parameters.get("properties").and_then(Value::as_object) else { continue };
        let required = spec.parameters.get("required").and_then(Value::as_array);
        for (name, schema) in properties {
            let kind = schema.get("type").and_then(Value::as_str).unwrap_or("string");
            let needed = required.is_some_and(|names| names.iter().any(|other| other.as_str() == Some(name)));
            let needed = if needed { ", required" } else { "" };
            writeln!(text, "  - {name} ({kind}{needed})").expect("writing to a string cannot fail");
        }
    }
    text
}

/// The model's turn as history keeps it: prose and the calls that were valid, in the dialect's own form.
pub fn render_turn(dialect: Dialect, mark: &str, turn: &ParsedTurn) -> Message {
    if dialect == Dialect::Native {
        return Message::Assistant {
            text: turn.prose.clone(),
            calls: turn.calls.iter().map(|call| call.sent.clone()).collect(),
        };
    }
    let mut text = turn.prose.clone();
    for call in &turn.calls {
        if !text.is_empty() {
            text.push_str("\n\n");
        }
        text.push_str(&render_call(dialect, mark, call));
    }
    Message::Assistant { text, calls: Vec::new() }
}

/// One call in a text dialect, so that parsing it gives the same call.
fn render_call(dialect: Dialect, mark: &str, call: &ParsedCall) -> String {
    if let crate::tools::Call::ApplyPatch { text, .. } = &call.call {
        return text.trim_end().to_owned();
    }
    let no_values = serde_json::Map::new();
    let values = call.sent.arguments.as_object().unwrap_or(&no_values);
    let mut out = String::new();
    let name = &call.sent.name;
    match dialect {
        Dialect::Native | Dialect::Xml => {
            write!(out, "<tool name=\"{name}\">").expect("writing to a string cannot fail");
            for (key, value) in values {
                let value = plain(value);
                let value = match (value.contains('\n'), key.as_str()) {
                    (false, _) => value,
                    (true, "content") => format!("\n{value}"),
                    (true, _) => format!("\n{value}\n"),
                };
                write!(out, "\n<arg name=\"{key}\">{value}</arg>").expect("writing to a string cannot fail");
            }
            out.push_str("\n</tool>");
        }
        Dialect::Fenced => {
            let (long, short): (Vec<_>, Vec<_>) =
                values.iter().map(|(key, value)| (key, plain(value))).partition(|(key, value)| {
                    matches!(key.as_str(), "old" | "new" | "content") || value.contains('\n') || value.trim() != value
                });
            writeln!(out, "```tool {name}").expect("writing to a string cannot fail");
            for (key, value) in short {
                writeln!(out, "{key}: {value}").expect("writing to a string cannot fail");
            }
            let any_long = !long.is_empty();
            for (key, value) in long {
                // This form cannot say that a file has no final newline.
                let whole = key == "content" && (value.is_empty() || value.ends_with('\n'));
                let line_end = if whole { "" } else { "\n" };
                write!(out, "@@{key} {mark}\n{value}{line_end}").expect("writing to a string cannot fail");
            }
            if any_long {
                writeln!(out, "@@end {mark}").expect("writing to a string cannot fail");
            }
            out.push_str("```");
        }
    }
    out
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Results and problems of one turn as they go back: a tool message for each native call, else one user message.
///
/// `results` stand in the order of the turn's calls. Nothing to say gives no message.
pub fn render_results(dialect: Dialect, results: &[(&ParsedCall, &str)], problems: &[Problem]) -> Vec<Message> {
    let problem_text = problems.iter().map(|problem| problem.text.as_str()).collect::<Vec<_>>().join("\n");
    if dialect == Dialect::Native {
        let mut messages: Vec<Message> = results
            .iter()
            .map(|(call, text)| Message::Tool { call_id: call.id.clone(), text: (*text).to_owned() })
            .collect();
        if !problem_text.is_empty() {
            messages.push(Message::User { text: problem_text });
        }
        return messages;
    }
    let mut text = String::new();
    for (number, (call, result)) in results.iter().enumerate() {
        let name = call.call.tool();
        writeln!(text, "<result call=\"{}\" tool=\"{name}\">\n{}\n</result>", number + 1, result.trim_end())
            .expect("writing to a string cannot fail");
    }
    text.push_str(&problem_text);
    if text.is_empty() { Vec::new() } else { vec![Message::User { text }] }
}
