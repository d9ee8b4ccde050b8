//! A call that passed every check: what the tools execute and the journal keeps.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::edit::patch::FilePatch;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "tool", rename_all = "snake_case")]
pub enum Call {
    Bash {
        command: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout_s: Option<u32>,
    },
    View {
        path: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        start_line: Option<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        end_line: Option<u64>,
    },
    Search {
        pattern: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        max_results: Option<u32>,
    },
    StrReplace {
        path: String,
        old: String,
        new: String,
    },
    Create {
        path: String,
        content: String,
    },
    RunTests {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target: Option<String>,
    },
    Finish {
        summary: String,
    },
    /// Not announced, only accepted: a V4A patch. `text` is what the model wrote.
    ApplyPatch {
        text: String,
        files: Vec<FilePatch>,
    },
}

impl Call {
    /// From values that [`super::spec::Tool::check`] has typed.
    pub(crate) fn from_checked(tool: &str, values: &Map<String, Value>) -> Self {
        let find = |name: &str| values.get(name).and_then(Value::as_str).map(str::to_owned);
        let get = |name: &str| find(name).expect("a checked call has its required parameters");
        let number = |name: &str| values.get(name).and_then(Value::as_u64);
        let small = |name: &str| number(name).and_then(|n| u32::try_from(n).ok());
        match tool {
            "bash" => Self::Bash { command: get("command"), timeout_s: small("timeout_s") },
            "view" => Self::View { path: get("path"), start_line: number("start_line"), end_line: number("end_line") },
            "search" => Self::Search { pattern: get("pattern"), path: find("path"), max_results: small("max_results") },
            "str_replace" => Self::StrReplace { path: get("path"), old: get("old"), new: get("new") },
            "create" => Self::Create { path: get("path"), content: get("content") },
            "run_tests" => Self::RunTests { target: find("target") },
            _ => Self::Finish { summary: get("summary") },
        }
    }

    /// The tool's name; `apply_patch` for an accepted patch.
    pub fn tool(&self) -> &'static str {
        match self {
            Self::Bash { .. } => "bash",
            Self::View { .. } => "view",
            Self::Search { .. } => "search",
            Self::StrReplace { .. } => "str_replace",
            Self::Create { .. } => "create",
            Self::RunTests { .. } => "run_tests",
            Self::Finish { .. } => "finish",
            Self::ApplyPatch { .. } => "apply_patch",
        }
    }

    /// The arguments by their canonical names, absent options left out.
    pub fn arguments(&self) -> Value {
        let mut arguments = match self {
            Self::Bash { command, timeout_s } => json!({"command": command, "timeout_s": timeout_s}),
            Self::View { path, start_line, end_line } => {
                json!({"path": path, "start_line": start_line, "end_line": end_line})
            }
            Self::Search { pattern, path, max_results } => {
                json!({"pattern": pattern, "path": path, "max_results": max_results})
            }
            Self::StrReplace { path, old, new } => json!({"path": path, "old": old, "new": new}),
            Self::Create { path, content } => json!({"path": path, "content": content}),
            Self::RunTests { target } => json!({"target": target}),
            Self::Finish { summary } => json!({"summary": summary}),
            Self::ApplyPatch { text, .. } => json!({"patch": text}),
        };
        if let Value::Object(map) = &mut arguments {
            map.retain(|_, value| !value.is_null());
        }
        arguments
    }

    /// The path the call names, as the model wrote it.
    pub fn path(&self) -> Option<&str> {
        match self {
            Self::View { path, .. } | Self::StrReplace { path, .. } | Self::Create { path, .. } => Some(path),
            Self::Search { path, .. } => path.as_deref(),
            Self::ApplyPatch { files, .. } => files.first().map(|file| file.path.as_str()),
            Self::Bash { .. } | Self::RunTests { .. } | Self::Finish { .. } => None,
        }
    }

    /// It changes files by itself, so that the calls after it count on its success.
    pub fn is_edit(&self) -> bool {
        matches!(self, Self::StrReplace { .. } | Self::Create { .. } | Self::ApplyPatch { .. })
    }

    /// It changes nothing, so that neighbours may overlap.
    pub fn is_read(&self) -> bool {
        matches!(self, Self::View { .. } | Self::Search { .. })
    }

    /// One line for people: `view src/lib.rs`.
    pub fn title(&self) -> String {
        let about = match self {
            Self::Bash { command, .. } => command,
            Self::Search { pattern, .. } => pattern,
            Self::RunTests { target } => target.as_deref().unwrap_or("all"),
            Self::Finish { summary } => summary,
            Self::View { path, .. } | Self::StrReplace { path, .. } | Self::Create { path, .. } => path,
            Self::ApplyPatch { files, .. } => return format!("apply_patch {} files", files.len()),
        };
        format!("{} {}", self.tool(), super::spec::short(about.trim()))
    }
}
