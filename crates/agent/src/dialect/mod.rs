//! Turns of a model into calls, and calls and results into what the model is shown: the one parser of Fettle.
//!
//! A repair is lossless and has one reading; a parameter is never invented and a cut-off call never runs. Whatever does
//! not fit becomes a `bad_call` for the model to read. Total: any text and any JSON gives an answer.

use std::collections::HashSet;

use fettle_app::ports::model::{Finish, RawTurn, SentCall};

use crate::edit::patch::{self, FilePatch};
use crate::tools::spec::{self, Given};
use crate::tools::{Call, short};

mod fenced;
mod heredoc;
mod json;
mod native;
mod render;
mod scan;
mod tags;

#[cfg(test)]
mod tests;

pub use render::{instructions, render_results, render_turn};

/// More calls in one message are not looked at together.
const MAX_CALLS: usize = 8;

/// How a model is told to call tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dialect {
    /// The provider's function calling.
    Native,
    Xml,
    Fenced,
}

impl Dialect {
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Xml => "xml",
            Self::Fenced => "fenced",
        }
    }

    /// Where a Run goes after three malformed turns in a row.
    pub fn next(self) -> Option<Self> {
        match self {
            Self::Native => Some(Self::Xml),
            Self::Xml => Some(Self::Fenced),
            Self::Fenced => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct ParsedCall {
    pub id: String,
    pub call: Call,
    /// How the call goes back into the history: canonical, so that a server can parse it again.
    pub sent: SentCall,
}

/// What the caller may do once before the model is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Retry {
    /// Ask again without streaming: the server may have lost part of the call.
    WithoutStreaming,
    /// Ask again with a larger output limit: the answer was cut.
    LargerOutput,
    /// Ask again: the answer repeated itself.
    Again,
}

/// Something that is not a call but was meant as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub code: &'static str,
    /// What the model is shown, beginning with `error[code]: `.
    pub text: String,
    pub retry: Option<Retry>,
}

impl Problem {
    fn bad_call(text: impl std::fmt::Display) -> Self {
        Self { code: "bad_call", text: format!("error[bad_call]: {text} Nothing was executed for it."), retry: None }
    }

    fn cut_off(what: &str) -> Self {
        let problem = Self::bad_call(format!("cut off: {what} ended before it was complete; send it again, shorter."));
        Self { retry: Some(Retry::LargerOutput), ..problem }
    }

    fn with_retry(self, retry: Retry) -> Self {
        Self { retry: Some(retry), ..self }
    }
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct ParsedTurn {
    /// What the model said beside calls and reasoning.
    pub prose: String,
    /// At most eight, in order, `finish` last. All come before the first thing that was malformed.
    pub calls: Vec<ParsedCall>,
    pub problems: Vec<Problem>,
    /// Lossless conversions made, counted per bundle.
    pub repairs: u32,
    /// The output limit or a broken stream ended the answer.
    pub cut_off: bool,
    /// Neither a call nor an attempt at one: the model is reminded of the dialect's form.
    pub reminder: bool,
}

impl ParsedTurn {
    /// Counts for the rule that changes the dialect.
    pub fn is_malformed(&self) -> bool {
        !self.problems.is_empty()
    }
}

/// Reads a turn. `mark` is the Run's random mark of the fenced dialect.
pub fn parse(turn: &RawTurn, dialect: Dialect, mark: &str) -> ParsedTurn {
    let scanned = scan::scan(&turn.text, dialect, mark, turn.reasoning.is_empty());
    let mut found = Vec::new();
    let mut prose = scanned.prose;
    let mut repairs = scanned.repairs;
    if turn.calls.is_empty() {
        found = scanned.found;
        if found.iter().all(|found| !matches!(found, Found::Call { .. } | Found::Bad(_) | Found::Patch(_))) {
            found.extend(foreign_edit(&prose));
        }
    } else {
        let (native, native_repairs) = native::read(&turn.calls);
        repairs += native_repairs;
        // The same call in the text is an echo; another one would leave the order open, so it is named and not run.
        let strange = scanned.found.iter().filter(|text| !native.iter().any(|call| call.same_as(text))).count();
        found.extend(native);
        if strange > 0 {
            found.push(Found::Bad(Problem::bad_call(
                "calls in the text beside native ones are not read; send every call in one form.",
            )));
        }
    }
    let cut = matches!(turn.finish, Finish::Length | Finish::ContentFilter);
    if cut && matches!(found.last(), Some(Found::Call { .. } | Found::Patch(_))) {
        // A server may have closed what the limit cut: the last call of a cut answer is never known to be whole.
        let last = found.pop().expect("it was just seen");
        found.push(Found::Bad(Problem::cut_off(last.name())));
    }
    let mut reading = Reading { turn: ParsedTurn { repairs, ..ParsedTurn::default() }, ids: HashSet::new() };
    for found in found {
        reading.take(found);
    }
    let mut parsed = reading.end();
    parsed.prose = std::mem::take(&mut prose).trim().to_owned();
    parsed.cut_off = cut || parsed.problems.iter().any(|problem| problem.retry == Some(Retry::LargerOutput));
    parsed.reminder = parsed.calls.is_empty() && parsed.problems.is_empty();
    if let (Finish::Cut(_), true) = (&turn.finish, parsed.calls.is_empty()) {
        let again = Problem::bad_call("the answer was stopped because it repeated itself or went on as somebody else.");
        parsed.problems.insert(0, again.with_retry(Retry::Again));
        parsed.reminder = false;
    }
    parsed
}

/// What a shape's parser made of its part of the turn.
#[derive(Debug, Clone, PartialEq)]
enum Found {
    Call {
        id: Option<String>,
        name: String,
        given: Vec<(String, Given)>,
        repairs: u32,
    },
    /// A V4A patch in the text.
    Patch(String),
    Bad(Problem),
}

impl Found {
    fn name(&self) -> &str {
        match self {
            Self::Call { name, .. } => name,
            Self::Patch(_) => "apply_patch",
            Self::Bad(_) => "the call",
        }
    }

    /// Both mean the same call, whatever their form.
    fn same_as(&self, other: &Self) -> bool {
        match (self.resolve(), other.resolve()) {
            (Ok((a, _)), Ok((b, _))) => a == b,
            _ => self == other,
        }
    }

    /// The call that it means, checked, and the repairs it took.
    fn resolve(&self) -> Result<(Call, u32), Problem> {
        match self {
            Self::Bad(problem) => Err(problem.clone()),
            Self::Patch(text) => Ok((patch_call(text)?, 0)),
            Self::Call { name, given, repairs, .. } => {
                if matches!(name.as_str(), "apply_patch" | "applypatch") {
                    return match given.as_slice() {
                        [(_, Given::Raw(text) | Given::Json(serde_json::Value::String(text)))] => {
                            Ok((patch_call(text)?, *repairs))
                        }
                        _ => Err(Problem::bad_call("apply_patch: patch: expected string, got something else.")),
                    };
                }
                let Some((tool, aliased)) = spec::find(name) else {
                    let text = format!("unknown tool \"{}\"; the tools are {}.", short(name), spec::tool_names());
                    return Err(Problem::bad_call(text));
                };
                let (call, converted) = tool.check(given.clone()).map_err(Problem::bad_call)?;
                let repairs = repairs + converted + u32::from(aliased);
                match call {
                    Call::Bash { command, timeout_s } => match heredoc::patch_in(&command) {
                        heredoc::Embedded::Patch(text) => Ok((patch_call(text)?, repairs)),
                        heredoc::Embedded::NumberedDiff => Err(numbered_diff()),
                        heredoc::Embedded::Expanding => Err(Problem::bad_call(
                            "bash: command: quote the delimiter of the patch (<<'EOF'), or the shell changes its text.",
                        )),
                        heredoc::Embedded::None => Ok((Call::Bash { command, timeout_s }, repairs)),
                    },
                    other => Ok((other, repairs)),
                }
            }
        }
    }
}

fn patch_call(text: &str) -> Result<Call, Problem> {
    if text.lines().any(patch::is_numbered_hunk) {
        return Err(numbered_diff());
    }
    let files: Vec<FilePatch> = patch::parse(text)
        .map_err(|e| Problem::bad_call(format!("apply_patch: patch: {e}. Nothing was changed; use str_replace.")))?;
    Ok(Call::ApplyPatch { text: text.to_owned(), files })
}

fn numbered_diff() -> Problem {
    Problem::bad_call("a diff with line numbers is not applied; use str_replace with the exact text.")
}

/// An edit in the prose in a format that is never applied.
fn foreign_edit(prose: &str) -> Option<Found> {
    let markers = prose.lines().any(|line| line.starts_with("<<<<<<< SEARCH"))
        && prose.lines().any(|line| line.starts_with(">>>>>>> REPLACE"));
    if prose.lines().any(patch::is_numbered_hunk) {
        Some(Found::Bad(numbered_diff()))
    } else if markers {
        Some(Found::Bad(Problem::bad_call(
            "search/replace blocks are not applied; use str_replace with path, old and new.",
        )))
    } else {
        None
    }
}

struct Reading {
    turn: ParsedTurn,
    ids: HashSet<String>,
}

impl Reading {
    /// Order matters: after the first thing that is malformed nothing else of the message runs.
    fn take(&mut self, found: Found) {
        if !self.turn.problems.is_empty() {
            if matches!(found, Found::Bad(_)) {
                self.turn.problems.extend(found.resolve().err());
            } else {
                let text = "not executed because a call before it in the same message could not be read.";
                self.turn.problems.push(Problem {
                    code: "skipped",
                    text: format!("error[skipped]: {}: {text}", short(found.name())),
                    retry: None,
                });
            }
            return;
        }
        let (call, repairs) = match found.resolve() {
            Ok(resolved) => resolved,
            Err(problem) => return self.turn.problems.push(problem),
        };
        if self.turn.calls.len() == MAX_CALLS {
            let text = format!("more than {MAX_CALLS} calls in one message; the rest was not executed.");
            return self.turn.problems.push(Problem::bad_call(text));
        }
        self.turn.repairs += repairs;
        let wanted = match found {
            Found::Call { id, .. } => id.filter(|id| !id.trim().is_empty()),
            Found::Patch(_) | Found::Bad(_) => None,
        };
        let id = self.unique_id(wanted);
        let sent = SentCall { id: id.clone(), name: call.tool().to_owned(), arguments: call.arguments() };
        self.turn.calls.push(ParsedCall { id, call, sent });
    }

    fn unique_id(&mut self, wanted: Option<String>) -> String {
        if let Some(id) = wanted
            && self.ids.insert(id.clone())
        {
            return id;
        }
        let mut number = self.turn.calls.len() + 1;
        loop {
            let id = format!("call_{number}");
            if self.ids.insert(id.clone()) {
                return id;
            }
            number += 1;
        }
    }

    /// `finish` counts last, once, and only in a message without faults.
    fn end(self) -> ParsedTurn {
        let mut turn = self.turn;
        let (mut finishes, others): (Vec<_>, Vec<_>) =
            turn.calls.into_iter().partition(|call| matches!(call.call, Call::Finish { .. }));
        turn.calls = others;
        finishes.dedup_by(|a, b| a.call == b.call);
        if finishes.len() > 1 {
            turn.problems.push(Problem::bad_call("finish: summary: given by two calls; send one."));
        } else if turn.problems.is_empty() {
            turn.calls.append(&mut finishes);
        } else if !finishes.is_empty() {
            turn.problems.push(Problem {
                code: "skipped",
                text: "error[skipped]: finish: not executed because the message has a call that could not be read."
                    .to_owned(),
                retry: None,
            });
        }
        turn
    }
}
