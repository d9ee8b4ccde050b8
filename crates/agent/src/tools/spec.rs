//! The seven tools as a table: names, parameters, what else models call them; schemas and checks both come from it.

use fettle_app::ports::model::ToolSpec;
use serde_json::{Map, Value, json};

use super::call::Call;

pub(crate) struct Tool {
    pub(crate) name: &'static str,
    description: &'static str,
    pub(crate) parameters: &'static [Parameter],
    aliases: &'static [&'static str],
}

pub(crate) struct Parameter {
    pub(crate) name: &'static str,
    kind: Kind,
    required: bool,
    aliases: &'static [&'static str],
}

#[derive(Clone, Copy)]
enum Kind {
    /// Lengths in characters.
    Text {
        min: Option<u64>,
        max: Option<u64>,
    },
    Integer {
        min: u64,
        max: Option<u64>,
    },
}

/// A value as a dialect found it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Given {
    /// Typed by JSON.
    Json(Value),
    /// Raw text of a dialect without types.
    Raw(String),
}

const PATH_ALIASES: &[&str] = &["file_path", "file", "filename", "filepath", "file_name"];

const fn text(name: &'static str, min: Option<u64>, max: Option<u64>, aliases: &'static [&'static str]) -> Parameter {
    Parameter { name, kind: Kind::Text { min, max }, required: true, aliases }
}

const fn optional(parameter: Parameter) -> Parameter {
    Parameter { required: false, ..parameter }
}

const fn integer(name: &'static str, max: Option<u64>, aliases: &'static [&'static str]) -> Parameter {
    Parameter { name, kind: Kind::Integer { min: 1, max }, required: false, aliases }
}

pub(crate) const TOOLS: &[Tool] = &[
    Tool {
        name: "bash",
        description: "Runs a command in a fresh shell at the workspace root, without network and with stdin closed. \
            Whatever still runs when it returns is ended. Prefer the other tools for reading and editing files.",
        parameters: &[
            text("command", Some(1), Some(16_000), &["cmd", "script", "bash_command", "shell_command"]),
            integer("timeout_s", Some(1800), &["timeout", "timeout_seconds", "timeout_secs", "timeout_sec"]),
        ],
        aliases: &[
            "execute_bash",
            "run_bash",
            "shell",
            "sh",
            "run_command",
            "execute_command",
            "terminal",
            "run_shell_command",
        ],
    },
    Tool {
        name: "view",
        description: "Shows lines of a file with their numbers (200 by default, at most 400), or a folder two levels deep. \
            `@out/<step>.log` is the full output of an earlier step.",
        parameters: &[
            text("path", None, None, PATH_ALIASES),
            integer("start_line", None, &["start", "line_start", "from_line", "from"]),
            integer("end_line", None, &["end", "line_end", "to_line", "to"]),
        ],
        aliases: &["view_file", "read_file", "read", "open_file", "cat", "show"],
    },
    Tool {
        name: "search",
        description: "Searches files for a regular expression, line by line; definitions of an exactly named symbol come first. \
            `path` is a folder, a file or a glob.",
        parameters: &[
            text("pattern", Some(1), Some(1000), &["query", "regex", "q"]),
            optional(text("path", None, None, &["dir", "directory", "file_path", "file", "folder", "glob", "include"])),
            integer("max_results", Some(200), &["limit", "max", "max_count", "head_limit"]),
        ],
        aliases: &["grep", "search_files", "search_code", "code_search", "find_in_files", "ripgrep", "rg"],
    },
    Tool {
        name: "str_replace",
        description: "Replaces the one occurrence of `old` in a file by `new`. `old` must be copied exactly and stand there \
            once; give enough surrounding lines, and leave out the line numbers that view prints.",
        parameters: &[
            text("path", None, None, PATH_ALIASES),
            text("old", Some(1), None, &["old_str", "old_string", "old_text", "search"]),
            text("new", None, None, &["new_str", "new_string", "new_text", "replace", "replacement"]),
        ],
        aliases: &["edit", "edit_file", "string_replace", "replace_in_file", "search_replace", "replace"],
    },
    Tool {
        name: "create",
        description: "Writes a new file, or rewrites a file that was seen in full in this run. `content` is the whole file.",
        parameters: &[
            text("path", None, None, PATH_ALIASES),
            text("content", None, Some(400_000), &["contents", "file_text", "file_content", "text"]),
        ],
        aliases: &["create_file", "write_file", "write", "new_file", "save_file"],
    },
    Tool {
        name: "run_tests",
        description: "Runs the repository's tests in the workspace: all of them, or one file or test id as `target`.",
        parameters: &[optional(text(
            "target",
            None,
            Some(500),
            &["test", "tests", "path", "file", "test_id", "name", "test_file"],
        ))],
        aliases: &["run_test", "test", "tests", "execute_tests"],
    },
    Tool {
        name: "finish",
        description: "Ends the phase: `summary` says what was done and why. Call it alone or last.",
        parameters: &[text("summary", Some(1), Some(4000), &["message", "result", "text", "answer"])],
        aliases: &["submit", "done", "complete", "task_complete", "attempt_completion", "finish_task"],
    },
];

/// The seven tools as a model is offered them.
pub fn specs() -> Vec<ToolSpec> {
    TOOLS
        .iter()
        .map(|tool| ToolSpec {
            name: tool.name.to_owned(),
            description: tool.description.to_owned(),
            parameters: tool.schema(),
        })
        .collect()
}

/// The tool of that name or alias, and whether it was an alias.
pub(crate) fn find(name: &str) -> Option<(&'static Tool, bool)> {
    if let Some(tool) = TOOLS.iter().find(|tool| tool.name == name) {
        return Some((tool, false));
    }
    let lower = name.to_ascii_lowercase().replace('-', "_");
    let bare = lower.strip_prefix("functions.").unwrap_or(&lower);
    TOOLS.iter().find(|tool| tool.name == bare || tool.aliases.contains(&bare)).map(|tool| (tool, true))
}

/// `bash, view, …` for messages.
pub(crate) fn tool_names() -> String {
    TOOLS.iter().map(|tool| tool.name).collect::<Vec<_>>().join(", ")
}

impl Tool {
    fn schema(&self) -> Value {
        let properties: Map<String, Value> =
            self.parameters.iter().map(|parameter| (parameter.name.to_owned(), parameter.schema())).collect();
        let required: Vec<&str> = self.parameters.iter().filter(|p| p.required).map(|p| p.name).collect();
        json!({"type": "object", "additionalProperties": false, "required": required, "properties": properties})
    }

    /// `Parameters of view: path (string, required), start_line (integer ≥ 1)`.
    pub(crate) fn parameter_list(&self) -> String {
        let list: Vec<String> = self
            .parameters
            .iter()
            .map(|p| format!("{} ({}{})", p.name, p.kind.describe(), if p.required { ", required" } else { "" }))
            .collect();
        format!("Parameters of {}: {}.", self.name, list.join(", "))
    }

    /// The given values as a call, with the number of lossless conversions, or the sentence of `bad_call`.
    pub(crate) fn check(&self, given: Vec<(String, Given)>) -> Result<(Call, u32), String> {
        let refuse =
            |name: &str, text: String| Err(format!("{}: {name}: {text}. {}", self.name, self.parameter_list()));
        let mut repairs = 0;
        let mut values: Map<String, Value> = Map::new();
        for (name, value) in given {
            let exact = self.parameters.iter().find(|p| p.name == name);
            let parameter = match exact.or_else(|| self.parameters.iter().find(|p| p.aliases.contains(&name.as_str())))
            {
                Some(parameter) => parameter,
                None => return refuse(&short(&name), "unknown parameter".to_owned()),
            };
            repairs += u32::from(exact.is_none());
            if value == Given::Json(Value::Null) && !parameter.required {
                repairs += 1;
                continue;
            }
            let (value, repaired) = match parameter.kind.convert(value) {
                Ok(converted) => converted,
                Err(got) => {
                    return refuse(parameter.name, format!("expected {}, got {got}", parameter.kind.describe()));
                }
            };
            repairs += u32::from(repaired);
            if values.insert(parameter.name.to_owned(), value).is_some() {
                return refuse(parameter.name, "given twice".to_owned());
            }
        }
        if let Some(missing) = self.parameters.iter().find(|p| p.required && !values.contains_key(p.name)) {
            return refuse(missing.name, format!("expected {}, got nothing", missing.kind.describe()));
        }
        Ok((Call::from_checked(self.name, &values), repairs))
    }
}

impl Parameter {
    fn schema(&self) -> Value {
        let mut schema = Map::new();
        let mut put = |key: &str, value: Option<u64>| {
            if let Some(value) = value {
                schema.insert(key.to_owned(), value.into());
            }
        };
        let kind = match self.kind {
            Kind::Text { min, max } => {
                put("minLength", min);
                put("maxLength", max);
                "string"
            }
            Kind::Integer { min, max } => {
                put("minimum", Some(min));
                put("maximum", max);
                "integer"
            }
        };
        schema.insert("type".to_owned(), kind.into());
        Value::Object(schema)
    }
}

impl Kind {
    fn describe(self) -> String {
        match self {
            Self::Text { min: None, max: None } => "string".to_owned(),
            Self::Text { min: Some(min), max: None } => format!("string of at least {min} character"),
            Self::Text { min, max: Some(max) } => format!("string of {} to {max} characters", min.unwrap_or(0)),
            Self::Integer { min, max: None } => format!("integer ≥ {min}"),
            Self::Integer { min, max: Some(max) } => format!("integer from {min} to {max}"),
        }
    }

    /// The value in its type and whether it was converted; else what was got, shortened.
    fn convert(self, value: Given) -> Result<(Value, bool), String> {
        match (self, value) {
            (Self::Text { min, max }, Given::Raw(text) | Given::Json(Value::String(text))) => {
                let length = text.chars().count() as u64;
                if min.is_some_and(|min| length < min) || max.is_some_and(|max| length > max) {
                    return Err(format!("{length} characters"));
                }
                Ok((Value::String(text), false))
            }
            (Self::Integer { min, max }, value) => {
                let (number, converted, got) = match value {
                    Given::Json(Value::Number(number)) => {
                        // `5.0` and `5` are the same number.
                        let whole = number.as_u64().or_else(|| {
                            let float = number.as_f64()?;
                            (float.fract() == 0.0 && (0.0..1e15).contains(&float)).then_some(float as u64)
                        });
                        (whole, number.as_u64().is_none(), number.to_string())
                    }
                    Given::Json(Value::String(text)) => {
                        (text.trim().parse().ok(), true, format!("\"{}\"", short(&text)))
                    }
                    Given::Raw(text) => (text.trim().parse().ok(), false, short(&text)),
                    Given::Json(other) => (None, false, short(&other.to_string())),
                };
                match number.filter(|&n: &u64| n >= min && max.is_none_or(|max| n <= max)) {
                    Some(number) => Ok((number.into(), converted)),
                    None => Err(got),
                }
            }
            (Self::Text { .. }, Given::Json(other)) => Err(short(&other.to_string())),
        }
    }
}

/// A value for a message: enough to recognise it.
pub(crate) fn short(text: &str) -> String {
    const MAX_CHARS: usize = 80;
    let cut = crate::edit::cut_chars(text, MAX_CHARS);
    let line = cut.replace('\n', "⏎");
    if cut.len() < text.len() { format!("{line}…") } else { line }
}
