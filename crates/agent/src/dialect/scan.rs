//! Walks the text of a turn once, line start by line start: what is reasoning, what is a call in one of the accepted
//! shapes, what is prose.
//!
//! A complete call protects its content (code that holds `<think>` or a fence stays intact), reasoning and prose fences
//! protect theirs (an example there is no call). A call in a fence counts only when the fence ends the message.

use super::json::{self, JsonError};
use super::{Dialect, Found, Given, Problem, fenced, native, tags};
use crate::edit::patch;
use crate::tools::short;

/// Openers of reasoning and what ends it.
const REASONING: &[(&str, &[&str])] = &[
    ("<think>", &["</think>"]),
    ("<thinking>", &["</thinking>"]),
    ("<reasoning>", &["</reasoning>"]),
    ("[THINK]", &["[/THINK]"]),
    ("<|channel|>analysis<|message|>", &["<|end|>", "<|channel|>final<|message|>", "<|channel|>commentary"]),
];

/// Ends of reasoning whose opener the chat template had put into the prompt.
const STRAY_ENDS: &[&str] = &["</think>", "</thinking>", "</reasoning>", "[/THINK]"];

/// Tokens of chat templates that leak into text.
const LEAKED: &[&str] = &[
    "<|im_end|>",
    "<|im_start|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|python_tag|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|start|>",
    "<|channel|>final<|message|>",
    "<end_of_turn>",
    "<｜end▁of▁sentence｜>",
    "</s>",
];

/// Lines by which a model goes on as somebody else: the rest of the turn is its invention.
const FOREIGN_TURNS: &[&str] = &[
    "<|im_start|>user",
    "<|im_start|>tool",
    "<|im_start|>system",
    "<|start_header_id|>user",
    "<|start|>user",
    "<|start|>functions.",
    "<start_of_turn>user",
    "<|user|>",
    "[INST]",
    "<tool_response>",
    "<result call=",
];

pub(super) struct Scanned {
    /// Without calls, reasoning and leaked tokens.
    pub(super) prose: String,
    pub(super) found: Vec<Found>,
    pub(super) repairs: u32,
}

/// One shape at the start of a text: what it means and how many bytes it takes.
pub(super) struct Shape {
    pub(super) found: Vec<Found>,
    pub(super) length: usize,
    pub(super) repairs: u32,
}

impl Shape {
    pub(super) fn one(found: Found, length: usize) -> Self {
        Self { found: vec![found], length, repairs: 0 }
    }

    /// The text ends inside the call; everything from its start belongs to it.
    pub(super) fn cut_off(name: &str, text: &str) -> Self {
        Self::one(Found::Bad(Problem::cut_off(&short(name))), text.len())
    }

    fn is_cut_off(&self) -> bool {
        matches!(self.found.last(), Some(Found::Bad(problem)) if problem.retry == Some(super::Retry::LargerOutput))
    }
}

pub(super) fn leaked_token(text: &str) -> Option<&'static str> {
    LEAKED.iter().find(|token| text.starts_with(**token)).copied()
}

/// Reads the text. `reasoning_inside`: the provider sent no reasoning apart, so an end without opener closes it here.
pub(super) fn scan(text: &str, dialect: Dialect, mark: &str, reasoning_inside: bool) -> Scanned {
    let mut scan =
        Scan { dialect, mark, shell_blocks: 0, out: Scanned { prose: String::new(), found: Vec::new(), repairs: 0 } };
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        let line_start = rest.trim_start_matches([' ', '\t']);
        let indent = rest.len() - line_start.len();
        if FOREIGN_TURNS.iter().any(|start| line_start.starts_with(start)) {
            break;
        }
        if let Some((opener, ends)) = REASONING.iter().find(|(opener, _)| line_start.starts_with(opener)) {
            let inside = &line_start[opener.len()..];
            let end = ends.iter().filter_map(|end| inside.find(end).map(|found| found + end.len())).min();
            scan.out.repairs += 1;
            // Reasoning that is never closed holds whatever follows.
            let Some(end) = end else { break };
            at += indent + opener.len() + end;
            continue;
        }
        if let Some(token) = leaked_token(line_start) {
            scan.out.repairs += 1;
            at += indent + token.len();
            continue;
        }
        let shape = scan.shape(line_start).or_else(|| scan.whole_message(line_start));
        if let Some(shape) = shape {
            scan.out.repairs += shape.repairs;
            scan.out.found.extend(shape.found);
            at += indent + shape.length;
            continue;
        }
        if let Some(fence) = Fence::at(rest) {
            at += scan.fence(rest, &fence);
            continue;
        }
        let line = rest.split_inclusive('\n').next().unwrap_or(rest);
        if let Some(end) = stray_end(line) {
            scan.out.repairs += 1;
            if reasoning_inside {
                scan.out.prose.clear();
                scan.out.found.clear();
            } else {
                scan.out.prose.push_str(&line[..end.start]);
            }
            at += end.end;
            continue;
        }
        scan.prose_line(line);
        at += line.len();
    }
    scan.out
}

fn stray_end(line: &str) -> Option<std::ops::Range<usize>> {
    STRAY_ENDS.iter().filter_map(|end| line.find(end).map(|at| at..at + end.len())).min_by_key(|range| range.start)
}

struct Scan<'m> {
    dialect: Dialect,
    mark: &'m str,
    shell_blocks: u32,
    out: Scanned,
}

impl Scan<'_> {
    /// A call that begins right here, in any accepted shape.
    fn shape(&self, text: &str) -> Option<Shape> {
        if let Some(shape) = tags::read(text) {
            return Some(shape);
        }
        if text.starts_with("<tool_call>") {
            return Some(hermes(text));
        }
        if text.starts_with("[TOOL_CALLS]") {
            return Some(mistral(text));
        }
        if text.lines().next().is_some_and(|line| line.trim_end() == patch::BEGIN) {
            return Some(patch_block(text));
        }
        fenced::read(text, self.mark)
    }

    /// A message that is nothing but one call as a JSON object.
    fn whole_message(&self, text: &str) -> Option<Shape> {
        if !self.out.prose.trim().is_empty() || !text.starts_with('{') {
            return None;
        }
        let (found, length) = bare_object(text)?;
        text[length..].trim().is_empty().then(|| Shape::one(found, text.len()))
    }

    /// A code fence that is not a call itself; says how many bytes it takes.
    fn fence(&mut self, text: &str, fence: &Fence<'_>) -> usize {
        let inner = &text[fence.opener..];
        if let Some((shapes, length)) = self.calls_inside(inner, fence) {
            self.out.found.extend(shapes);
            return fence.opener + length;
        }
        let closing = fence.closing(inner);
        let end = closing.as_ref().map_or(text.len(), |closing| fence.opener + closing.end);
        if matches!(fence.info, "bash" | "sh" | "shell") {
            self.shell_blocks += 1;
            if let Some(found) = self.lone_shell_block(text, inner, closing.as_ref(), end) {
                self.out.found.push(found);
                return text.len();
            }
        }
        self.out.prose.push_str(&text[..end]);
        end
    }

    /// Calls at the start of a fence, if the fence then ends the message.
    fn calls_inside(&self, inner: &str, fence: &Fence<'_>) -> Option<(Vec<Found>, usize)> {
        let mut found = Vec::new();
        let mut at = 0;
        loop {
            let rest = inner[at..].trim_start();
            let start = inner.len() - rest.len();
            if let Some(shape) = self.shape(rest) {
                at = start + shape.length;
                let cut_off = shape.is_cut_off();
                found.extend(shape.found);
                if cut_off {
                    return Some((found, inner.len()));
                }
            } else if let Some((object, length)) = bare_object(rest) {
                found.push(object);
                at = start + length;
            } else {
                break;
            }
        }
        if found.is_empty() {
            return None;
        }
        let rest = inner[at..].trim_start();
        let after = match rest.split_inclusive('\n').next() {
            Some(line) if fence.is_closed_by(line) => &rest[line.len()..],
            Some(_) => return None,
            None => rest,
        };
        after.trim().is_empty().then_some((found, inner.len()))
    }

    /// The bash-only floor: the one shell block of a message, at its end, is a call.
    fn lone_shell_block(
        &self,
        text: &str,
        inner: &str,
        closing: Option<&std::ops::Range<usize>>,
        end: usize,
    ) -> Option<Found> {
        let lone = self.dialect == Dialect::Fenced && self.shell_blocks == 1 && self.out.found.is_empty();
        if !lone {
            return None;
        }
        let Some(closing) = closing else { return Some(Found::Bad(Problem::cut_off("the bash block"))) };
        if !text[end..].trim().is_empty() {
            return None;
        }
        let command = inner[..closing.start].strip_suffix('\n').unwrap_or(&inner[..closing.start]);
        let given = vec![("command".to_owned(), Given::Raw(command.to_owned()))];
        Some(Found::Call { id: None, name: "bash".to_owned(), given, repairs: 0 })
    }

    fn prose_line(&mut self, line: &str) {
        let mut kept = line.trim_end();
        while let Some(token) = LEAKED.iter().find(|token| kept.ends_with(**token)) {
            kept = kept[..kept.len() - token.len()].trim_end();
            self.out.repairs += 1;
        }
        self.out.prose.push_str(kept);
        if line.ends_with('\n') {
            self.out.prose.push('\n');
        }
    }
}

/// `{"name": …, "arguments": …}` of a known tool, and its length.
fn bare_object(text: &str) -> Option<(Found, usize)> {
    if !text.starts_with('{') {
        return None;
    }
    let parsed = json::parse_prefix(text).ok()?;
    let found = native::from_object(&parsed.value, parsed.repairs)?;
    match &found {
        Found::Call { name, .. } if crate::tools::spec::find(name).is_some() => Some((found, parsed.length)),
        _ => None,
    }
}

/// `<tool_call>` around a JSON object or around Qwen's tags.
fn hermes(text: &str) -> Shape {
    const OPEN: &str = "<tool_call>";
    const CLOSE: &str = "</tool_call>";
    let inner = text[OPEN.len()..].trim_start();
    let start = text.len() - inner.len();
    if let Some(mut shape) = tags::read(inner) {
        let rest = &inner[shape.length..];
        let closed = rest.trim_start();
        shape.length = match closed.strip_prefix(CLOSE) {
            Some(after) => text.len() - after.len(),
            None => start + shape.length,
        };
        return shape;
    }
    if inner.is_empty() {
        return Shape::cut_off("the call", text);
    }
    let parsed = match json::parse_prefix(inner) {
        Ok(parsed) => parsed,
        Err(JsonError::CutOff) => return Shape::cut_off("the call", text),
        Err(JsonError::Invalid(what)) => {
            let length = text.find(CLOSE).map_or(text.len(), |at| at + CLOSE.len());
            return Shape::one(Found::Bad(Problem::bad_call(format!("tool_call: not JSON: {what}."))), length);
        }
    };
    let rest = inner[parsed.length..].trim_start();
    let length = text.len() - rest.len();
    match rest.strip_prefix(CLOSE) {
        Some(after) => {
            let found = native::from_object(&parsed.value, parsed.repairs).unwrap_or_else(|| {
                Found::Bad(Problem::bad_call("tool_call: expected an object with name and arguments."))
            });
            Shape::one(found, text.len() - after.len())
        }
        None if CLOSE.starts_with(rest) => Shape::cut_off("the call", text),
        None => {
            let length = text.find(CLOSE).map_or(length, |at| at + CLOSE.len());
            Shape::one(Found::Bad(Problem::bad_call("tool_call: text follows the JSON object.")), length)
        }
    }
}

/// `[TOOL_CALLS][{…}, …]`, or `[TOOL_CALLS]name{…}` and `[TOOL_CALLS]name[ARGS]{…}`, repeated for each call.
fn mistral(text: &str) -> Shape {
    const OPEN: &str = "[TOOL_CALLS]";
    let inner = text[OPEN.len()..].trim_start();
    let start = text.len() - inner.len();
    let bad = |what: &str| Shape::one(Found::Bad(Problem::bad_call(format!("[TOOL_CALLS]: {what}."))), text.len());
    let (name, arguments) = if inner.starts_with(['[', '{']) {
        (None, start)
    } else {
        let Some(at) = inner.find(['{', '[']) else { return Shape::cut_off("the call", text) };
        let mut arguments = start + at;
        if let Some(json) = text[arguments..].find('{').filter(|_| text[arguments..].starts_with('[')) {
            arguments += json;
        }
        (Some(inner[..at].trim().to_owned()), arguments)
    };
    let parsed = match json::parse_prefix(&text[arguments..]) {
        Ok(parsed) => parsed,
        Err(JsonError::CutOff) => return Shape::cut_off(name.as_deref().unwrap_or("the call"), text),
        Err(JsonError::Invalid(what)) => return bad(&what),
    };
    let length = arguments + parsed.length;
    let values = match (name, parsed.value) {
        (Some(name), value) => vec![serde_json::json!({"name": name, "arguments": value})],
        (None, serde_json::Value::Array(items)) => items,
        (None, value) => vec![value],
    };
    let mut found = Vec::with_capacity(values.len());
    for value in &values {
        match native::from_object(value, 0) {
            Some(call) => found.push(call),
            None => return bad("expected objects with name and arguments"),
        }
    }
    Shape { found, length, repairs: parsed.repairs }
}

fn patch_block(text: &str) -> Shape {
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        at += line.len();
        if line.trim_end() == patch::END {
            return Shape::one(Found::Patch(text[..at].to_owned()), at);
        }
    }
    Shape::cut_off("the patch", text)
}

/// The opener of a code fence as CommonMark has it.
pub(super) struct Fence<'t> {
    sign: char,
    signs: usize,
    pub(super) info: &'t str,
    /// Bytes of the opening line.
    pub(super) opener: usize,
}

impl<'t> Fence<'t> {
    pub(super) fn at(text: &'t str) -> Option<Self> {
        let line = text.split_inclusive('\n').next()?;
        let body = line.trim_start_matches(' ');
        let sign = body.chars().next().filter(|c| matches!(c, '`' | '~'))?;
        let info = body.trim_start_matches(sign);
        let signs = body.len() - info.len();
        let fits = line.len() - body.len() <= 3 && signs >= 3 && !(sign == '`' && info.contains('`'));
        fits.then(|| Self { sign, signs, info: info.trim(), opener: line.len() })
    }

    pub(super) fn is_closed_by(&self, line: &str) -> bool {
        let body = line.trim_start_matches(' ');
        let signs = body.len() - body.trim_start_matches(self.sign).len();
        line.len() - body.len() <= 3 && signs >= self.signs && body[signs..].trim().is_empty()
    }

    /// The closing line within the text after the opener.
    fn closing(&self, inner: &str) -> Option<std::ops::Range<usize>> {
        let mut at = 0;
        for line in inner.split_inclusive('\n') {
            if self.is_closed_by(line) {
                return Some(at..at + line.len());
            }
            at += line.len();
        }
        None
    }
}
