//! `view`: numbered lines of a file, or a folder.

use std::fmt::Write as _;

use fettle_domain::object::BlobId;
use fettle_domain::path::RepoPath;

use super::SeenFile;
use super::files::{Files, Named};
use super::outcome::Outcome;
use super::text::without_control;
use crate::edit::cut_chars;
use crate::edit::encoding::{Decoded, Encoding, LineEnds};
use crate::workspace::walk::{EntryKind, WalkOptions};
use crate::workspace::{FileError, Place};

const DEFAULT_LINES: u64 = 200;
const MAX_LINES: u64 = 400;
const LINE_CHARS: usize = 500;

const FOLDER_LEVELS: usize = 2;
const FOLDER_ENTRIES: usize = 200;

/// Room for the header of a view.
const HEADER_CHARS: usize = 400;

impl Files {
    pub(super) fn view(&self, path: &str, start: Option<u64>, end: Option<u64>) -> Outcome {
        let named = match self.named(path) {
            Ok(named) => named,
            Err(refusal) => return refusal.into(),
        };
        let shown = match named {
            Named::Output(name) => self.out.read(&name).map(|content| {
                let text = without_control(&String::from_utf8_lossy(&content.bytes));
                self.lines(path, &text, &[], start, end, None)
            }),
            Named::Workspace(place) => self.view_place(path, &place, start, end),
        };
        shown.unwrap_or_else(|e| self.refuse(path, e).into())
    }

    fn view_place(
        &self,
        path: &str,
        place: &Place,
        start: Option<u64>,
        end: Option<u64>,
    ) -> Result<Outcome, FileError> {
        if self.workspace.is_folder(place)? {
            return Ok(self.folder(path, place));
        }
        let Place::Beneath(target) = place else { return Err(FileError::IsFolder) };
        let content = self.workspace.read(target)?;
        let Ok(file) = Decoded::new(&content.bytes) else { return Ok(Self::binary(path).into()) };
        let mut unusual = Vec::new();
        match file.ends() {
            LineEnds::Lf => {}
            LineEnds::CrLf => unusual.push("crlf"),
            LineEnds::Mixed => unusual.push("mixed line ends"),
        }
        if file.has_bom() {
            unusual.push("bom");
        }
        if file.encoding() != Encoding::Utf8 {
            unusual.push(file.encoding().name());
        }
        if !file.text().is_empty() && !file.text().ends_with('\n') {
            unusual.push("no final newline");
        }
        let seen = Some((target, BlobId::of(&content.bytes)));
        Ok(self.lines(path, file.text(), &unusual, start, end, seen))
    }

    fn lines(
        &self,
        path: &str,
        text: &str,
        unusual: &[&str],
        start: Option<u64>,
        end: Option<u64>,
        seen: Option<(&RepoPath, BlobId)>,
    ) -> Outcome {
        let lines = split_lines(text);
        let total = lines.len() as u64;
        let first = start.unwrap_or(1);
        if let Some(end) = end.filter(|end| *end < first) {
            let sentence = format!("view: end_line: expected integer ≥ {first}, got {end}. Nothing was changed.");
            return Outcome::refused("bad_call", sentence);
        }
        if first > total.max(1) {
            let sentence =
                format!("view: start_line: expected integer from 1 to {total}, got {first}. Nothing was changed.");
            return Outcome::refused("bad_call", sentence);
        }
        let wanted = end.unwrap_or(first.saturating_add(DEFAULT_LINES - 1));
        let last = wanted.min(first.saturating_add(MAX_LINES - 1)).min(total);
        let budget = self.max_chars.saturating_sub(HEADER_CHARS);
        let mut body = String::new();
        let (mut chars, mut shown) = (0, first.saturating_sub(1));
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for number in first..=last {
            let line = lines[usize::try_from(number - 1).expect("a line number of a text fits")];
            let clean = without_control(line);
            let cut = cut_chars(&clean, LINE_CHARS);
            chars += cut.chars().count() + 8;
            if chars > budget && number > first {
                break;
            }
            let mark = if cut.len() < clean.len() { "…" } else { "" };
            writeln!(body, "{number}\t{cut}{mark}").expect("writing to a string cannot fail");
            shown = number;
            // A line that is cut or holds hidden signs was not seen as it is.
            if cut == line {
                match ranges.last_mut() {
                    Some((_, end)) if *end + 1 == number => *end = number,
                    _ => ranges.push((number, number)),
                }
            }
        }
        let mut header = match total {
            0 => format!("{path} · empty"),
            _ => format!("{path} · lines {first}–{shown} of {total}"),
        };
        for word in unusual {
            write!(header, " · {word}").expect("writing to a string cannot fail");
        }
        let mut outcome = Outcome::done(format!("{header}\n{body}").trim_end_matches('\n').to_owned());
        outcome.result.truncated = shown < wanted.min(total);
        if let Some((path, digest)) = seen {
            if total == 0 {
                ranges.push((0, 0));
            }
            outcome.result.seen = ranges
                .into_iter()
                .map(|(first, last)| SeenFile { path: path.clone(), digest, first, last, lines: total })
                .collect();
        }
        outcome
    }

    fn folder(&self, path: &str, place: &Place) -> Outcome {
        let options = WalkOptions { depth: FOLDER_LEVELS, max_entries: FOLDER_ENTRIES };
        let walked = self.workspace.walk(place, options);
        let above = match place {
            Place::Root => 0,
            Place::Beneath(path) => path.as_bytes().len() + 1,
        };
        let mut text = format!("{path} · folder · {} entries", walked.entries.len());
        if walked.stopped {
            text.push_str(" (more left out)");
        }
        for entry in &walked.entries {
            let name = String::from_utf8_lossy(entry.path.as_bytes().get(above..).unwrap_or_default()).into_owned();
            let sign = match entry.kind {
                EntryKind::File { .. } => "",
                EntryKind::Folder => "/",
                EntryKind::Link => " (link)",
                EntryKind::Special => " (not a regular file)",
            };
            write!(text, "\n{}{sign}", without_control(&name)).expect("writing to a string cannot fail");
        }
        let mut outcome = Outcome::done(text);
        outcome.result.truncated = walked.stopped;
        outcome
    }
}

/// Lines without their ends; a final newline begins no line.
pub(super) fn split_lines(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.split('\n').collect();
    if lines.last() == Some(&"") {
        lines.pop();
    }
    lines
}
