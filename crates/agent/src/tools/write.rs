//! `str_replace`, `create` and accepted patches: every write is checked, whole and of exactly the named bytes.

use std::fmt::Write as _;
use std::time::Duration;

use fettle_domain::object::BlobId;
use fettle_domain::path::RepoPath;
use similar::{ChangeTag, TextDiff};

use super::SeenFile;
use super::files::Files;
use super::outcome::{Outcome, Refusal};
use super::read::split_lines;
use crate::edit::encoding::Decoded;
use crate::edit::patch::{self, ApplyError, FileChange, FilePatch};
use crate::edit::{self, EditError, Edited, elided, numbered, syntax};
use crate::workspace::{FileContent, FileError, MAX_FILE_BYTES};

/// Shown around a changed region.
const CONTEXT_LINES: usize = 4;
const LINE_CHARS: usize = 500;

/// Of a changed region; a longer one is known to whoever wrote it.
const REGION_LINES: usize = 60;

/// Counting changed lines of a rewrite is not worth more.
const DIFF_TIME: Duration = Duration::from_secs(1);

/// A file to write and what it was, so that a failed patch can be taken back.
struct Write {
    path: RepoPath,
    before: Option<FileContent>,
    /// `None` removes the file.
    after: Option<Vec<u8>>,
    mode: Option<u32>,
    report: String,
}

impl Files {
    pub(super) fn str_replace(&self, path: &str, old: &str, new: &str, seen: Option<BlobId>) -> Outcome {
        self.try_str_replace(path, old, new, seen).unwrap_or_else(Outcome::from)
    }

    fn try_str_replace(&self, path: &str, old: &str, new: &str, seen: Option<BlobId>) -> Result<Outcome, Refusal> {
        let target = self.writable(path)?;
        let before = self.existing(path, &target)?;
        let file = Decoded::new(&before.bytes).map_err(|_| Self::binary(path))?;
        let edited = edit::str_replace(&file, old, new).map_err(|e| self.refuse_edit(path, e))?;
        self.fits(path, &edited.bytes)?;
        self.workspace.write(&target, &edited.bytes, None).map_err(|e| self.refuse(path, e))?;
        let text = self.changed_region(path, file.text(), &edited);
        Ok(written(text, target, seen == Some(BlobId::of(&before.bytes)), &edited.bytes))
    }

    pub(super) fn create(&self, path: &str, content: &str, seen: Option<BlobId>) -> Outcome {
        self.try_create(path, content, seen).unwrap_or_else(Outcome::from)
    }

    fn try_create(&self, path: &str, content: &str, seen: Option<BlobId>) -> Result<Outcome, Refusal> {
        let target = self.writable(path)?;
        let before = self.workspace.read_for_writing(&target).map_err(|e| self.refuse(path, e))?;
        let Some(before) = before else {
            refuse_placeholder(content, None)?;
            self.fits(path, content.as_bytes())?;
            self.workspace.write(&target, content.as_bytes(), None).map_err(|e| self.refuse(path, e))?;
            let mut text = format!("created {path}: +{}", split_lines(content).len());
            push_syntax(&mut text, path, None, content);
            return Ok(written(text, target, true, content.as_bytes()));
        };
        if seen != Some(BlobId::of(&before.bytes)) {
            return Err(Self::exists_unseen(path));
        }
        let file = Decoded::new(&before.bytes).map_err(|_| Self::binary(path))?;
        refuse_placeholder(content, Some(file.text()))?;
        let edited = edit::rewrite(&file, content).map_err(|e| match e {
            EditError::NoChange => {
                Refusal::new("no_change", format!("{path} has this content already; nothing was changed."))
            }
            e => self.refuse_edit(path, e),
        })?;
        self.fits(path, &edited.bytes)?;
        self.workspace.write(&target, &edited.bytes, None).map_err(|e| self.refuse(path, e))?;
        let (added, removed) = changed_lines(file.text(), &content.replace("\r\n", "\n"));
        let mut text = format!("rewrote {path}: +{added} −{removed}");
        push_syntax(&mut text, path, Some(file.text()), content);
        Ok(written(text, target, true, &edited.bytes))
    }

    pub(super) fn apply_patch(&self, patches: &[FilePatch]) -> Outcome {
        self.try_apply_patch(patches).unwrap_or_else(Outcome::from)
    }

    /// All files or none: everything is computed before the first write, and a write that fails takes back those before.
    fn try_apply_patch(&self, patches: &[FilePatch]) -> Result<Outcome, Refusal> {
        let mut writes: Vec<Write> = Vec::new();
        for patch in patches {
            writes.extend(self.plan(patch)?);
        }
        for (index, write) in writes.iter().enumerate() {
            let clash = writes[..index].iter().any(|other| other.path == write.path);
            if clash {
                let text = format!("apply_patch: {} is changed twice. Nothing was changed.", write.path);
                return Err(Refusal::new("bad_call", text));
            }
        }
        for (done, write) in writes.iter().enumerate() {
            let result = match &write.after {
                Some(bytes) => self.workspace.write(&write.path, bytes, write.mode),
                None => self.workspace.remove(&write.path),
            };
            if let Err(e) = result {
                self.take_back(&writes[..done])?;
                return Err(self.refuse(&write.path.lossy(), e));
            }
        }
        let text = writes.iter().map(|write| write.report.as_str()).collect::<Vec<_>>().join("\n");
        let mut outcome = Outcome::done(text);
        outcome.result.wrote = writes.into_iter().map(|write| write.path).collect();
        Ok(outcome)
    }

    fn plan(&self, patch: &FilePatch) -> Result<Vec<Write>, Refusal> {
        let path = patch.path.as_str();
        let target = self.writable(path)?;
        match &patch.change {
            FileChange::Add { content } => {
                let before = self.workspace.read_for_writing(&target).map_err(|e| self.refuse(path, e))?;
                if before.is_some() {
                    return Err(Self::exists_unseen(path));
                }
                refuse_placeholder(content, None)?;
                self.fits(path, content.as_bytes())?;
                let mut report = format!("created {path}: +{}", split_lines(content).len());
                push_syntax(&mut report, path, None, content);
                let after = Some(content.clone().into_bytes());
                Ok(vec![Write { path: target, before: None, after, mode: None, report }])
            }
            FileChange::Delete => {
                let before = Some(self.existing(path, &target)?);
                let report = format!("deleted {path}");
                Ok(vec![Write { path: target, before, after: None, mode: None, report }])
            }
            FileChange::Update { move_to, hunks } => {
                let before = self.existing(path, &target)?;
                let edited = patch::apply(&before.bytes, hunks).map_err(|e| match e {
                    ApplyError::Binary => Self::binary(path),
                    ApplyError::Edit(e) => self.refuse_edit(path, e),
                })?;
                self.fits(path, &edited.bytes)?;
                let report = match Decoded::new(&before.bytes) {
                    Ok(file) => self.changed_region(path, file.text(), &edited),
                    Err(_) => return Err(Self::binary(path)),
                };
                let Some(move_to) = move_to else {
                    let after = Some(edited.bytes);
                    return Ok(vec![Write { path: target, before: Some(before), after, mode: None, report }]);
                };
                let moved = self.writable(move_to)?;
                if self.workspace.read_for_writing(&moved).map_err(|e| self.refuse(move_to, e))?.is_some() {
                    return Err(Self::exists_unseen(move_to));
                }
                let mode = Some(before.mode);
                let report = format!("{report}\nmoved {path} to {move_to}");
                Ok(vec![
                    Write { path: moved, before: None, after: Some(edited.bytes), mode, report },
                    Write { path: target, before: Some(before), after: None, mode: None, report: String::new() },
                ])
            }
        }
    }

    fn take_back(&self, writes: &[Write]) -> Result<(), Refusal> {
        for write in writes.iter().rev() {
            let result = match &write.before {
                Some(before) => self.workspace.write(&write.path, &before.bytes, Some(before.mode)),
                None => self.workspace.remove(&write.path),
            };
            if let Err(e) = result {
                let text = format!("the patch failed half way and {} could not be restored: {e}.", write.path);
                return Err(Refusal::new("io", text));
            }
        }
        Ok(())
    }

    fn existing(&self, path: &str, target: &RepoPath) -> Result<FileContent, Refusal> {
        let found = self.workspace.read_for_writing(target).map_err(|e| self.refuse(path, e))?;
        found.ok_or_else(|| self.refuse(path, FileError::NotFound))
    }

    fn exists_unseen(path: &str) -> Refusal {
        let text = format!("{path} exists and was not seen in full in this run; view it, or use str_replace.");
        Refusal::new("exists_unseen", text)
    }

    fn fits(&self, path: &str, bytes: &[u8]) -> Result<(), Refusal> {
        let size = bytes.len() as u64;
        if size > MAX_FILE_BYTES { Err(self.refuse(path, FileError::TooLarge { bytes: size })) } else { Ok(()) }
    }

    fn changed_region(&self, path: &str, before: &str, edited: &Edited) -> String {
        let mut text = format!("changed {path}, lines {}–{}", edited.first_line, edited.last_line);
        if let Ok(after) = Decoded::new(&edited.bytes) {
            let first = edited.first_line.saturating_sub(CONTEXT_LINES).max(1);
            let last = (edited.last_line + CONTEXT_LINES).min(first + REGION_LINES - 1);
            write!(text, "\n{}", numbered(after.text(), first, last, LINE_CHARS).trim_end())
                .expect("writing to a string cannot fail");
            push_syntax(&mut text, path, Some(before), after.text());
        }
        text
    }
}

fn refuse_placeholder(content: &str, before: Option<&str>) -> Result<(), Refusal> {
    match elided::placeholder(content, before) {
        None => Ok(()),
        Some(line) => {
            let head =
                format!("content replaces code by a placeholder (\"{line}\"); send the whole file or use str_replace.");
            Err(Refusal::new("elided_content", format!("{head} Nothing was changed.")))
        }
    }
}

fn push_syntax(text: &mut String, path: &str, before: Option<&str>, after: &str) {
    if let Some(line) = syntax::report(path, before, after) {
        text.push('\n');
        text.push_str(&line);
    }
}

/// A write by a tool; the model knows the whole file when it knew it before, or wrote it whole.
fn written(text: String, path: RepoPath, is_known: bool, bytes: &[u8]) -> Outcome {
    let mut outcome = Outcome::done(text);
    if is_known {
        let lines = Decoded::new(bytes).map_or(0, |file| split_lines(file.text()).len() as u64);
        let first = lines.min(1);
        outcome.result.seen =
            vec![SeenFile { path: path.clone(), digest: BlobId::of(bytes), first, last: lines, lines }];
    }
    outcome.result.wrote = vec![path];
    outcome
}

fn changed_lines(before: &str, after: &str) -> (usize, usize) {
    let diff = TextDiff::configure().timeout(DIFF_TIME).diff_lines(before, after);
    let count = |tag| diff.iter_all_changes().filter(|change| change.tag() == tag).count();
    (count(ChangeTag::Insert), count(ChangeTag::Delete))
}
