//! Calls in tags with raw values: Fettle's own `<tool name="…">` and Qwen's `<function=…>`.
//!
//! Values are raw text, so code with quotes, entities and even closing tags comes through: a value ends where its closing
//! tag is followed by the next value or by the end of the call. If closing tags are left over after that, there were two
//! readings, and the call is refused.

use super::scan::Shape;
use super::{Found, Given, Problem};
use crate::tools::short;

struct Form {
    open: &'static str,
    /// After the tool's name.
    open_end: &'static str,
    close: &'static str,
    value_open: &'static str,
    value_open_end: &'static str,
    value_close: &'static str,
    framing: Framing,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// A line break right after the opening tag makes the value a block: that one and the last one do not count, but
    /// `content`, which is a whole file, keeps its last.
    Block,
    /// One line break on each side belongs to the form.
    Always,
}

const FORMS: [Form; 2] = [
    Form {
        open: "<tool name=\"",
        open_end: "\">",
        close: "</tool>",
        value_open: "<arg name=\"",
        value_open_end: "\">",
        value_close: "</arg>",
        framing: Framing::Block,
    },
    Form {
        open: "<function=",
        open_end: ">",
        close: "</function>",
        value_open: "<parameter=",
        value_open_end: ">",
        value_close: "</parameter>",
        framing: Framing::Always,
    },
];

/// The call in tags at the start of `text`, if one is there.
pub(super) fn read(text: &str) -> Option<Shape> {
    FORMS.iter().find(|form| text.starts_with(form.open)).map(|form| form.read(text))
}

impl Form {
    fn read(&self, text: &str) -> Shape {
        let bad = |what: String, length: usize| Shape::one(Found::Bad(Problem::bad_call(what)), length);
        let Some((name, mut at)) = name_in(text, self.open, self.open_end) else {
            if !text.contains('>') {
                return Shape::cut_off("the call", text);
            }
            return bad(format!("the opening tag must be {}name{}.", self.open, self.open_end), self.extent(text, 0));
        };
        let mut given: Vec<(String, Given)> = Vec::new();
        loop {
            let rest = text[at..].trim_start();
            let here = text.len() - rest.len();
            if rest.starts_with(self.close) {
                at = here + self.close.len();
                break;
            }
            if let Some((key, start)) = name_in(rest, self.value_open, self.value_open_end) {
                let start = here + start;
                let Some(length) = self.value_end(&text[start..]) else { return Shape::cut_off(name, text) };
                let value = self.unframe(key, &text[start..start + length]);
                given.push((key.to_owned(), Given::Raw(value.to_owned())));
                at = start + length + self.value_close.len();
                continue;
            }
            let may_go_on = self.close.starts_with(rest)
                || self.value_open.starts_with(rest)
                || (rest.starts_with(self.value_open) && !rest.contains(self.value_open_end));
            if may_go_on {
                return Shape::cut_off(name, text);
            }
            let what = format!("{}: expected {} or {}, got {}.", short(name), self.value_open, self.close, short(rest));
            return bad(what, self.extent(text, here));
        }
        let extent = self.extent(text, at);
        let left_over = &text[at..extent];
        if left_over.contains(self.close) || left_over.contains(self.value_close) {
            let what = format!("{}: {} in a value leaves two readings.", short(name), self.value_close);
            return bad(what, extent);
        }
        Shape::one(Found::Call { id: None, name: name.to_owned(), given, repairs: 0 }, at)
    }

    /// Where the closing tag stands that is followed by the next value or the end of the call.
    fn value_end(&self, text: &str) -> Option<usize> {
        text.match_indices(self.value_close).map(|(at, _)| at).find(|at| {
            let after = text[at + self.value_close.len()..].trim_start();
            let call_ends = after.strip_prefix(self.close).is_some_and(|rest| {
                let line = rest.lines().next().unwrap_or_default();
                line.trim().is_empty() || line.trim_start().starts_with('<')
            });
            call_ends || name_in(after, self.value_open, self.value_open_end).is_some()
        })
    }

    /// To the next call at a line start, or to the end: what would be left over of a misread call lies before it.
    fn extent(&self, text: &str, from: usize) -> usize {
        let next = format!("\n{}", self.open);
        text[from..].find(&next).map_or(text.len(), |at| from + at + 1)
    }

    fn unframe<'v>(&self, key: &str, value: &'v str) -> &'v str {
        let inner = value.strip_prefix("\r\n").or_else(|| value.strip_prefix('\n'));
        match (self.framing, inner) {
            (Framing::Block, None) => value,
            (Framing::Block, Some(inner)) if key == "content" => inner,
            (Framing::Block, Some(inner)) => strip_line_end(inner),
            (Framing::Always, inner) => strip_line_end(inner.unwrap_or(value)),
        }
    }
}

fn strip_line_end(value: &str) -> &str {
    value.strip_suffix("\r\n").or_else(|| value.strip_suffix('\n')).unwrap_or(value)
}

/// The name between `open` and `open_end` and where it all ends; names hold no tags and no line breaks.
fn name_in<'t>(text: &'t str, open: &str, open_end: &str) -> Option<(&'t str, usize)> {
    let rest = text.strip_prefix(open)?;
    let length = rest.find(open_end)?;
    let name = &rest[..length];
    (!name.contains(['\n', '<', '>', '"'])).then_some((name, open.len() + length + open_end.len()))
}
