//! Calls in a code fence: ```` ```tool str_replace ````, `key: value` lines, long values between lines with the Run's mark.

use super::scan::{Fence, Shape};
use super::{Found, Given, Problem};
use crate::tools::short;

/// The call in a fence at the start of `text`, if one is there.
pub(super) fn read(text: &str, mark: &str) -> Option<Shape> {
    let fence = Fence::at(text)?;
    let mut words = fence.info.split_whitespace();
    if words.next() != Some("tool") {
        return None;
    }
    let name = words.next().unwrap_or_default().to_owned();
    let mut reader = Reader { text, at: fence.opener, mark };
    Some(match reader.body(&fence) {
        Ok(given) if name.is_empty() => {
            drop(given);
            Shape::one(Found::Bad(Problem::bad_call("the fence must begin with ```tool and a tool's name.")), reader.at)
        }
        Ok(given) => Shape::one(Found::Call { id: None, name, given, repairs: 0 }, reader.at),
        Err(Fault::CutOff) => Shape::cut_off(&name, text),
        Err(Fault::Bad(what)) => {
            let end = reader.after_closing(&fence);
            Shape::one(Found::Bad(Problem::bad_call(format!("{}: {what}", short(&name)))), end)
        }
    })
}

enum Fault {
    CutOff,
    Bad(String),
}

struct Reader<'t> {
    text: &'t str,
    at: usize,
    mark: &'t str,
}

impl<'t> Reader<'t> {
    fn line(&mut self) -> Option<&'t str> {
        let line = self.text[self.at..].split_inclusive('\n').next()?;
        self.at += line.len();
        Some(line)
    }

    /// All values up to the closing fence.
    fn body(&mut self, fence: &Fence<'_>) -> Result<Vec<(String, Given)>, Fault> {
        let mut given = Vec::new();
        loop {
            let line = self.line().ok_or(Fault::CutOff)?;
            if fence.is_closed_by(line) {
                return Ok(given);
            }
            let trimmed = line.trim();
            if trimmed.is_empty() {
                continue;
            }
            if trimmed.starts_with("@@") {
                let key = self.marked(trimmed).ok_or_else(|| self.wrong_mark(trimmed))?;
                self.long_values(key.to_owned(), &mut given)?;
                continue;
            }
            match trimmed.split_once(':') {
                Some((key, value)) if is_key(key) => given.push((key.to_owned(), Given::Raw(value.trim().to_owned()))),
                _ if !line.ends_with('\n') => return Err(Fault::CutOff),
                _ => {
                    return Err(Fault::Bad(format!(
                        "expected `key: value` or `@@key {}`, got {}.",
                        self.mark,
                        short(trimmed)
                    )));
                }
            }
        }
    }

    /// Values between marked lines, until `@@end`.
    fn long_values(&mut self, first: String, given: &mut Vec<(String, Given)>) -> Result<(), Fault> {
        let mut key = first;
        let mut start = self.at;
        loop {
            let before = self.at;
            let line = self.line().ok_or(Fault::CutOff)?;
            let Some(next) = self.marked(line.trim_end()).map(str::to_owned) else { continue };
            let value = &self.text[start..before];
            // The line break before the mark belongs to the form; a whole file keeps its last.
            let value = if key == "content" { value } else { value.strip_suffix('\n').unwrap_or(value) };
            given.push((std::mem::take(&mut key), Given::Raw(value.to_owned())));
            if next == "end" {
                return Ok(());
            }
            key = next;
            start = self.at;
        }
    }

    /// The key of a line `@@key mark`.
    fn marked(&self, line: &'t str) -> Option<&'t str> {
        let key = line.strip_prefix("@@")?.strip_suffix(self.mark)?.strip_suffix(' ')?;
        is_key(key).then_some(key)
    }

    fn wrong_mark(&self, line: &str) -> Fault {
        if self.at >= self.text.len() {
            return Fault::CutOff;
        }
        Fault::Bad(format!("expected the mark {} after @@key, got {}.", self.mark, short(line)))
    }

    /// Where the fence ends that could not be read.
    fn after_closing(&mut self, fence: &Fence<'_>) -> usize {
        while let Some(line) = self.line() {
            if fence.is_closed_by(line) {
                break;
            }
        }
        self.at
    }
}

fn is_key(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
}
