//! Byte-exact edits: what a model names as text becomes a change of exactly those bytes, or a refusal that says why.
//!
//! Pure: bytes in, bytes out. Nothing is applied fuzzily, nothing outside the named span changes, and `$`, `\` and `&`
//! mean themselves.

use std::fmt::Write as _;
use std::time::Duration;

pub mod elided;
pub mod encoding;
pub mod patch;
mod regions;
pub mod syntax;

#[cfg(test)]
mod tests;

use encoding::{Decoded, NotEncodable};
use similar::{ChangeTag, TextDiff};

/// Occurrences named by line in `not_unique`; more say nothing new.
const LISTED_OCCURRENCES: usize = 10;

/// Occurrences counted; beyond it the number no longer matters to anybody.
const COUNTED_OCCURRENCES: usize = 1000;

/// A longer search for the smallest difference is not worth it; the result stays right, with fewer lines kept as they are.
const DIFF_TIME: Duration = Duration::from_secs(2);

/// Why an edit was not made. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EditError {
    NoMatch { regions: String },
    NotUnique { count: usize, lines: Vec<usize>, regions: String },
    LineNumbers,
    NoChange,
    NotEncodable(NotEncodable),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edited {
    pub bytes: Vec<u8>,
    /// The changed lines in the new file, 1-based, both ends included.
    pub first_line: usize,
    pub last_line: usize,
}

/// Replaces the one occurrence of `old`. Line ends of both are those of the file.
pub fn str_replace(file: &Decoded<'_>, old: &str, new: &str) -> Result<Edited, EditError> {
    // In the view `\r\n` stands only where a lone `\r` precedes a line end; then it is meant as it is.
    let old = if file.text().contains(old) { old.to_owned() } else { old.replace("\r\n", "\n") };
    let new = new.replace("\r\n", "\n");
    if old == new {
        return Err(EditError::NoChange);
    }
    let found = occurrences(file.text(), &old);
    match found.as_slice() {
        [] if carries_line_numbers(&old) => Err(EditError::LineNumbers),
        [] => Err(EditError::NoMatch { regions: regions::closest(file.text(), &old) }),
        [start] => replace_span(file, *start..*start + old.len(), &new),
        many => {
            let lines: Vec<usize> = many.iter().map(|&at| line_of(file.text(), at)).collect();
            let regions = regions::at_lines(file.text(), &lines, old.lines().count());
            Err(EditError::NotUnique {
                count: many.len(),
                lines: lines.into_iter().take(LISTED_OCCURRENCES).collect(),
                regions,
            })
        }
    }
}

/// The whole file as `content`. Lines that stay keep their bytes; byte order mark and encoding are kept.
pub fn rewrite(file: &Decoded<'_>, content: &str) -> Result<Edited, EditError> {
    let content = content.replace("\r\n", "\n");
    if content == file.text() {
        return Err(EditError::NoChange);
    }
    replace_span(file, 0..file.text().len(), &content)
}

/// Replaces a span of the view by `new` (with `\n` line ends) and leaves every byte outside it.
pub(crate) fn replace_span(file: &Decoded<'_>, span: std::ops::Range<usize>, new: &str) -> Result<Edited, EditError> {
    let raw = file.raw_span(span.clone());
    let old = &file.text()[span.clone()];
    let mut middle = Vec::new();
    for (text, end) in with_line_ends(file, span.start, old, new) {
        match end {
            Piece::Raw(range) => middle.extend_from_slice(&file.bytes()[range]),
            Piece::Text(line_end) => {
                let (line, terminated) = match text.strip_suffix('\n') {
                    Some(line) => (line, true),
                    None => (text, false),
                };
                file.encode_into(line, &mut middle).map_err(EditError::NotEncodable)?;
                if terminated {
                    file.encode_into(line_end, &mut middle).map_err(EditError::NotEncodable)?;
                }
            }
        }
    }
    let mut bytes = Vec::with_capacity(file.bytes().len() + middle.len());
    bytes.extend_from_slice(&file.bytes()[..raw.start]);
    bytes.extend_from_slice(&middle);
    bytes.extend_from_slice(&file.bytes()[raw.end..]);
    let first_line = line_of(file.text(), span.start);
    let added = new.strip_suffix('\n').unwrap_or(new).matches('\n').count();
    Ok(Edited { bytes, first_line, last_line: first_line + added })
}

enum Piece {
    /// A line that stays: these bytes of the file.
    Raw(std::ops::Range<usize>),
    /// A new line and the line end it takes.
    Text(&'static str),
}

/// The lines of `new`, each with the line end of the line it replaces or follows; in a file of mixed ends, lines that
/// stay are found by a line diff and keep their bytes.
fn with_line_ends<'n>(file: &Decoded<'_>, start: usize, old: &str, new: &'n str) -> Vec<(&'n str, Piece)> {
    let following = file.line_end_near(start + old.len());
    let ends = file.line_ends(start..start + old.len());
    let uniform = match ends.first() {
        None => Some(following),
        Some(first) if ends.iter().all(|end| end == first) => Some(*first),
        Some(_) => None,
    };
    if let Some(end) = uniform {
        return new.split_inclusive('\n').map(|line| (line, Piece::Text(end))).collect();
    }
    let old_lines: Vec<&str> = old.split_inclusive('\n').collect();
    let new_lines: Vec<&'n str> = new.split_inclusive('\n').collect();
    let mut offsets = Vec::with_capacity(old_lines.len());
    let mut at = start;
    for line in &old_lines {
        offsets.push(at..at + line.len());
        at += line.len();
    }
    let end_of = |line: usize| ends.get(line).copied().unwrap_or(following);
    let diff = TextDiff::configure().timeout(DIFF_TIME).diff_slices(&old_lines, &new_lines);
    let mut pieces = Vec::with_capacity(new_lines.len());
    let mut removed = 0..0;
    let mut last_old = None;
    for change in diff.iter_all_changes() {
        match (change.tag(), change.old_index(), change.new_index()) {
            (ChangeTag::Equal, Some(old_index), Some(new_index)) => {
                pieces.push((new_lines[new_index], Piece::Raw(file.raw_span(offsets[old_index].clone()))));
                removed = 0..0;
                last_old = Some(old_index);
            }
            (ChangeTag::Delete, Some(old_index), _) => {
                removed = if removed.is_empty() { old_index..old_index + 1 } else { removed.start..old_index + 1 };
                last_old = Some(old_index);
            }
            (ChangeTag::Insert, _, Some(new_index)) => {
                let line = if removed.is_empty() { last_old.unwrap_or(0) } else { removed.start };
                if removed.len() > 1 {
                    removed.start += 1;
                }
                pieces.push((new_lines[new_index], Piece::Text(end_of(line))));
            }
            _ => {}
        }
    }
    pieces
}

/// Byte offsets of every occurrence, overlapping ones too: `aa` is not unique in `aaa`.
fn occurrences(text: &str, needle: &str) -> Vec<usize> {
    let mut found = Vec::new();
    let step = needle.chars().next().map_or(1, char::len_utf8);
    let mut from = 0;
    while let Some(at) = text[from..].find(needle) {
        found.push(from + at);
        if found.len() >= COUNTED_OCCURRENCES {
            break;
        }
        from += at + step;
    }
    found
}

/// The 1-based line that holds the byte offset.
pub(crate) fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset].iter().filter(|&&b| b == b'\n').count() + 1
}

/// Every line begins with a number and a tab, and the numbers count up: the model copied `view`'s margin.
fn carries_line_numbers(old: &str) -> bool {
    let mut expected = None;
    let mut lines = 0;
    for line in old.lines().filter(|line| !line.trim().is_empty()) {
        let Some((number, _)) = line.trim_start().split_once('\t') else { return false };
        let Ok(number) = number.parse::<u64>() else { return false };
        if expected.is_some_and(|expected| number < expected) {
            return false;
        }
        expected = Some(number.saturating_add(1));
        lines += 1;
    }
    lines > 0
}

/// `number<TAB>line` for the lines `first..=last` (1-based) of `text`, each cut at `max_chars`.
pub(crate) fn numbered(text: &str, first: usize, last: usize, max_chars: usize) -> String {
    let mut out = String::new();
    for (index, line) in text.lines().enumerate().skip(first.saturating_sub(1)).take((last + 1).saturating_sub(first)) {
        let cut = cut_chars(line, max_chars);
        let mark = if cut.len() < line.len() { "…" } else { "" };
        writeln!(out, "{}\t{cut}{mark}", index + 1).expect("writing to a string cannot fail");
    }
    out
}

/// The first `max` characters.
pub(crate) fn cut_chars(text: &str, max: usize) -> &str {
    text.char_indices().nth(max).map_or(text, |(at, _)| &text[..at])
}
