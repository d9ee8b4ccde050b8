//! The V4A patch format (`*** Begin Patch`): read strictly, applied to files only where its context fits once.
//!
//! A patch with line numbers is another format and is refused here; so is a context that fits nowhere or twice.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::encoding::Decoded;
use super::{EditError, Edited, line_of, regions, replace_span};

pub const BEGIN: &str = "*** Begin Patch";
pub const END: &str = "*** End Patch";

/// Files of one patch; a larger change is not one edit.
const MAX_FILES: usize = 50;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilePatch {
    /// As written by the model.
    pub path: String,
    pub change: FileChange,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileChange {
    Add { content: String },
    Delete,
    Update { move_to: Option<String>, hunks: Vec<Hunk> },
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Hunk {
    /// Texts of `@@` lines: each narrows the place to what follows that line.
    pub anchors: Vec<String>,
    pub lines: Vec<HunkLine>,
    /// The hunk ends the file.
    pub at_end: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HunkLine {
    Context(String),
    Remove(String),
    Add(String),
}

impl Hunk {
    /// The lines that must be in the file.
    fn old(&self) -> Vec<&str> {
        self.lines
            .iter()
            .filter_map(|line| match line {
                HunkLine::Context(text) | HunkLine::Remove(text) => Some(text.as_str()),
                HunkLine::Add(_) => None,
            })
            .collect()
    }
}

/// The text is no V4A patch; the sentence says where it goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseError(pub String);

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a line is the head of a hunk with line numbers, as `diff -u` writes it.
pub fn is_numbered_hunk(line: &str) -> bool {
    let Some(rest) = line.trim_start().strip_prefix("@@ -") else { return false };
    rest.starts_with(|c: char| c.is_ascii_digit()) && rest.contains(" +") && rest.contains(" @@")
}

/// Reads one whole patch, from `*** Begin Patch` to `*** End Patch`.
pub fn parse(text: &str) -> Result<Vec<FilePatch>, ParseError> {
    let fail = |sentence: String| Err(ParseError(sentence));
    let mut lines =
        text.trim_matches(['\n', '\r', ' ', '\t']).lines().map(|line| line.trim_end_matches('\r')).peekable();
    if lines.next().map(str::trim_end) != Some(BEGIN) {
        return fail(format!("a patch begins with `{BEGIN}`"));
    }
    let mut files: Vec<FilePatch> = Vec::new();
    loop {
        let Some(line) = lines.next() else { return fail(format!("`{END}` is missing")) };
        if line.trim_end() == END {
            break;
        }
        if files.len() == MAX_FILES {
            return fail(format!("a patch changes at most {MAX_FILES} files"));
        }
        if let Some(path) = line.strip_prefix("*** Add File: ") {
            let mut content = String::new();
            while let Some(added) = lines.next_if(|line| !line.starts_with("*** ")) {
                let Some(added) = added.strip_prefix('+') else {
                    return fail(format!("a line of the new file {path} does not begin with +: {added}"));
                };
                content.push_str(added);
                content.push('\n');
            }
            files.push(FilePatch { path: path.trim().to_owned(), change: FileChange::Add { content } });
        } else if let Some(path) = line.strip_prefix("*** Delete File: ") {
            files.push(FilePatch { path: path.trim().to_owned(), change: FileChange::Delete });
        } else if let Some(path) = line.strip_prefix("*** Update File: ") {
            let move_to =
                lines.next_if(|line| line.starts_with("*** Move to: ")).map(|line| line[13..].trim().to_owned());
            let hunks = parse_hunks(&mut lines)?;
            if hunks.is_empty() && move_to.is_none() {
                return fail(format!("the update of {path} changes nothing"));
            }
            files.push(FilePatch { path: path.trim().to_owned(), change: FileChange::Update { move_to, hunks } });
        } else if !line.trim().is_empty() {
            return fail(format!("expected `*** Update File: `, `*** Add File: ` or `*** Delete File: `, got {line}"));
        }
    }
    if lines.any(|line| !line.trim().is_empty()) {
        return fail(format!("text follows `{END}`"));
    }
    if files.is_empty() {
        return fail("the patch names no file".to_owned());
    }
    for (index, file) in files.iter().enumerate() {
        if files[..index].iter().any(|other| other.path == file.path) {
            return fail(format!("the patch names {} twice", file.path));
        }
    }
    Ok(files)
}

fn parse_hunks<'t>(lines: &mut std::iter::Peekable<impl Iterator<Item = &'t str>>) -> Result<Vec<Hunk>, ParseError> {
    let mut hunks: Vec<Hunk> = Vec::new();
    let mut hunk = Hunk::default();
    while let Some(line) = lines.next_if(|line| !line.starts_with("*** ") || line.trim_end() == "*** End of File") {
        if line.trim_end() == "*** End of File" {
            hunk.at_end = true;
            continue;
        }
        if is_numbered_hunk(line) {
            return Err(ParseError("a hunk carries line numbers".to_owned()));
        }
        if let Some(anchor) = line.strip_prefix("@@") {
            if !hunk.lines.is_empty() {
                hunks.push(std::mem::take(&mut hunk));
            }
            let anchor = anchor.trim();
            if !anchor.is_empty() {
                hunk.anchors.push(anchor.to_owned());
            }
            continue;
        }
        hunk.lines.push(match line.as_bytes().first() {
            Some(b'+') => HunkLine::Add(line[1..].to_owned()),
            Some(b'-') => HunkLine::Remove(line[1..].to_owned()),
            Some(b' ') => HunkLine::Context(line[1..].to_owned()),
            // Editors and models strip the blank of an empty context line.
            None => HunkLine::Context(String::new()),
            Some(_) => return Err(ParseError(format!("a line of a hunk begins with neither blank, + nor -: {line}"))),
        });
    }
    if !hunk.lines.is_empty() {
        hunks.push(hunk);
    }
    // A blank line before the next `***` belongs to no hunk.
    if let Some(last) = hunks.last_mut() {
        while last.lines.len() > 1 && last.lines.last() == Some(&HunkLine::Context(String::new())) {
            last.lines.pop();
        }
    }
    match hunks.iter().find(|hunk| hunk.lines.iter().all(|line| matches!(line, HunkLine::Context(_)))) {
        Some(_) => Err(ParseError("a hunk changes nothing".to_owned())),
        None => Ok(hunks),
    }
}

/// The file after all hunks, or the first reason why one does not fit. Context lines keep the file's bytes.
pub fn apply(bytes: &[u8], hunks: &[Hunk]) -> Result<Edited, ApplyError> {
    let file = Decoded::new(bytes).map_err(|_| ApplyError::Binary)?;
    let lines = Lines::of(file.text());
    let mut placed: Vec<(std::ops::Range<usize>, String)> = Vec::new();
    let mut from = 0;
    for hunk in hunks {
        let (at, length) = lines.place(hunk, from)?;
        placed.extend(lines.pieces(hunk, at));
        from = at + length;
    }
    let first = placed.first().map_or(0, |(span, _)| span.start);
    let first_line = line_of(file.text(), first);
    let mut bytes = bytes.to_vec();
    let mut last_line = first_line;
    // From the end, so that the offsets before stay true.
    for (index, (span, new)) in placed.iter().enumerate().rev() {
        let current = Decoded::new(&bytes).map_err(|_| ApplyError::Binary)?;
        let edited = replace_span(&current, span.clone(), new).map_err(ApplyError::Edit)?;
        if index + 1 == placed.len() {
            last_line = edited.last_line;
        } else {
            let (grown, shrunk) = (new.matches('\n').count(), current.text()[span.clone()].matches('\n').count());
            last_line = (last_line + grown).saturating_sub(shrunk).max(first_line);
        }
        bytes = edited.bytes;
    }
    Ok(Edited { bytes, first_line, last_line })
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApplyError {
    Binary,
    Edit(EditError),
}

struct Lines<'t> {
    text: &'t str,
    lines: Vec<&'t str>,
    starts: Vec<usize>,
}

impl<'t> Lines<'t> {
    fn of(text: &'t str) -> Self {
        let mut starts = Vec::new();
        let mut at = 0;
        for line in text.split_inclusive('\n') {
            starts.push(at);
            at += line.len();
        }
        Self { text, lines: text.lines().collect(), starts }
    }

    /// Index of the first line that the hunk needs and how many it needs.
    fn place(&self, hunk: &Hunk, from: usize) -> Result<(usize, usize), ApplyError> {
        let mut from = from;
        for anchor in &hunk.anchors {
            let found = self.unique(&[anchor.as_str()], from, str::trim)?;
            from = found + 1;
        }
        let old = hunk.old();
        if old.is_empty() {
            return match (hunk.anchors.is_empty(), hunk.at_end || self.lines.is_empty()) {
                (_, true) => Ok((self.lines.len(), 0)),
                (false, false) => Ok((from, 0)),
                (true, false) => Err(ApplyError::Edit(EditError::NoMatch { regions: String::new() })),
            };
        }
        if hunk.at_end {
            let at = self.lines.len().checked_sub(old.len()).filter(|at| *at >= from);
            if let Some(at) = at
                && self.lines[at..].iter().zip(&old).all(|(line, old)| line.trim_end() == old.trim_end())
            {
                return Ok((at, old.len()));
            }
            return Err(self.no_match(&old));
        }
        let at = match self.unique(&old, from, |line| line) {
            Err(ApplyError::Edit(EditError::NoMatch { .. })) => self.unique(&old, from, str::trim_end)?,
            other => other?,
        };
        Ok((at, old.len()))
    }

    fn unique(&self, old: &[&str], from: usize, view: fn(&str) -> &str) -> Result<usize, ApplyError> {
        let window = |at: usize| self.lines[at..at + old.len()].iter().zip(old).all(|(a, b)| view(a) == view(b));
        let last = (self.lines.len() + 1).saturating_sub(old.len());
        let found: Vec<usize> = (from..last).filter(|&at| window(at)).take(4).collect();
        match found.as_slice() {
            [] => Err(self.no_match(old)),
            [at] => Ok(*at),
            many => {
                let lines: Vec<usize> = many.iter().map(|at| at + 1).collect();
                let regions = regions::at_lines(self.text, &lines, old.len());
                Err(ApplyError::Edit(EditError::NotUnique { count: many.len(), lines, regions }))
            }
        }
    }

    fn no_match(&self, old: &[&str]) -> ApplyError {
        ApplyError::Edit(EditError::NoMatch { regions: regions::closest(self.text, &old.join("\n")) })
    }

    /// The spans that change and their new text: runs of removed and added lines; context is not touched.
    fn pieces(&self, hunk: &Hunk, at: usize) -> Vec<(std::ops::Range<usize>, String)> {
        let mut pieces = Vec::new();
        let mut line = at;
        let mut index = 0;
        while index < hunk.lines.len() {
            if matches!(hunk.lines[index], HunkLine::Context(_)) {
                line += 1;
                index += 1;
                continue;
            }
            let first = line;
            let mut added: Vec<&str> = Vec::new();
            while index < hunk.lines.len() {
                match &hunk.lines[index] {
                    HunkLine::Context(_) => break,
                    HunkLine::Remove(_) => line += 1,
                    HunkLine::Add(text) => added.push(text),
                }
                index += 1;
            }
            pieces.push(self.piece(first, line, &added));
        }
        pieces
    }

    /// Lines `first..end` become `added`. The last line's end, or its absence, stays.
    fn piece(&self, first: usize, end: usize, added: &[&str]) -> (std::ops::Range<usize>, String) {
        let start_of = |line: usize| self.starts.get(line).copied().unwrap_or(self.text.len());
        let end_of_text = |line: usize| start_of(line) + self.lines[line].len();
        let joined = added.join("\n");
        if first < end && !added.is_empty() {
            return (start_of(first)..end_of_text(end - 1), joined);
        }
        if first < end {
            // Lines go with their ends; at the end of a file without final newline the end before them goes.
            let unterminated = end == self.lines.len() && !self.text.ends_with('\n');
            let start = if unterminated && first > 0 { end_of_text(first - 1) } else { start_of(first) };
            return (start..start_of(end), String::new());
        }
        if first > 0 {
            let at = end_of_text(first - 1);
            return (at..at, format!("\n{joined}"));
        }
        (0..0, format!("{joined}\n"))
    }
}
