//! What all file tools share: whose file a path names, and the words for what cannot be done with it.

use std::collections::HashSet;

use fettle_domain::path::RepoPath;

use super::outcome::Refusal;
use super::{OUT_PREFIX, PathRules};
use crate::edit::EditError;
use crate::edit::encoding::NotEncodable;
use crate::workspace::walk::{EntryKind, WalkOptions};
use crate::workspace::{FileError, MAX_FILE_BYTES, Place, Workspace};

/// Entries looked at for names like a missing one.
const NEAREST_ENTRIES: usize = 20_000;
const NEAREST_NAMES: usize = 3;

pub(super) struct Files {
    pub(super) workspace: Workspace,
    pub(super) out: Workspace,
    pub(super) rules: PathRules,
    pub(super) max_chars: usize,
}

/// What a path of a call names.
pub(super) enum Named {
    Workspace(Place),
    /// The output of an earlier step.
    Output(RepoPath),
}

impl Files {
    pub(super) fn named(&self, path: &str) -> Result<Named, Refusal> {
        let refuse = |e| self.refuse(path, e);
        match path.strip_prefix(OUT_PREFIX) {
            Some(rest) => match Place::parse(rest).map_err(refuse)? {
                Place::Beneath(path) => Ok(Named::Output(path)),
                Place::Root => Err(self.refuse(path, FileError::NotFound)),
            },
            None => Place::parse(path).map(Named::Workspace).map_err(refuse),
        }
    }

    /// The path of a file that a tool may write.
    pub(super) fn writable(&self, path: &str) -> Result<RepoPath, Refusal> {
        match self.named(path)? {
            Named::Workspace(Place::Beneath(target)) => match (self.rules)(&target) {
                Some(glob) => Err(Refusal::new("forbidden_path", format!("{path} must not be changed (rule {glob})."))),
                None => Ok(target),
            },
            Named::Workspace(Place::Root) | Named::Output(_) => Err(self.refuse(path, FileError::Outside)),
        }
    }

    pub(super) fn refuse(&self, path: &str, e: FileError) -> Refusal {
        let (code, sentence) = match e {
            FileError::Outside => ("outside", format!("{path} is outside the workspace.")),
            FileError::NotFound => ("not_found", self.missing(path)),
            FileError::IsFolder => ("not_found", format!("{path} is a folder, not a file; nothing was changed.")),
            FileError::Special => ("binary", format!("{path} is not a regular file; nothing was changed.")),
            FileError::Link { real } => {
                ("forbidden_path", format!("{path} must not be changed (rule no links; it leads to {real})."))
            }
            FileError::TooLarge { bytes } => {
                ("too_large", format!("{path} has {bytes} bytes, the limit is {MAX_FILE_BYTES}; nothing was changed."))
            }
            FileError::Io(e) => ("io", format!("{path} could not be used ({}); nothing was changed.", e.kind())),
        };
        Refusal::new(code, sentence)
    }

    pub(super) fn refuse_edit(&self, path: &str, e: EditError) -> Refusal {
        let nothing = "nothing was changed";
        match e {
            EditError::NoMatch { regions } if regions.is_empty() => {
                Refusal::new("no_match", format!("old does not occur in {path}; {nothing}."))
            }
            EditError::NoMatch { regions } => Refusal::new(
                "no_match",
                format!("old does not occur in {path}; {nothing}. Closest regions:\n{}", regions.trim_end()),
            ),
            EditError::NotUnique { count, lines, regions } => {
                let mut list = lines.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
                if lines.len() < count {
                    list.push_str(", …");
                }
                let head = format!("old occurs {count} times in {path} (lines {list}); {nothing}.");
                let text = format!("{head} Add surrounding lines until it is unique.\n{}", regions.trim_end());
                Refusal::new("not_unique", text)
            }
            EditError::LineNumbers => Refusal::new(
                "line_numbers",
                "old carries the line numbers printed by view; send the text without them. Nothing was changed."
                    .to_owned(),
            ),
            EditError::NoChange => Refusal::new("no_change", "old and new are equal.".to_owned()),
            EditError::NotEncodable(NotEncodable { character, encoding }) => {
                let name = encoding.name();
                let sentence = format!(
                    "{path} is encoded in {name}, which lacks {character:?} (U+{:04X}); {nothing}.",
                    u32::from(character)
                );
                Refusal::new("not_encodable", sentence)
            }
        }
    }

    pub(super) fn binary(path: &str) -> Refusal {
        Refusal::new("binary", format!("{path} is a binary file; nothing was changed."))
    }

    fn missing(&self, path: &str) -> String {
        let names = if path.starts_with(OUT_PREFIX) { Vec::new() } else { self.nearest(path) };
        let nearest = if names.is_empty() { String::new() } else { format!(" Nearest names: {}.", names.join(", ")) };
        format!("{path} does not exist; nothing was changed.{nearest}")
    }

    /// Files whose names are most like the one asked for.
    fn nearest(&self, path: &str) -> Vec<String> {
        let options = WalkOptions { depth: usize::MAX, max_entries: NEAREST_ENTRIES };
        let wanted = path.trim_end_matches('/');
        let file_name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_lowercase();
        let wanted_name = pairs(&file_name(wanted));
        let wanted_path = pairs(&wanted.to_lowercase());
        let mut scored: Vec<(f64, String)> = self
            .workspace
            .walk(&Place::Root, options)
            .entries
            .into_iter()
            .filter(|entry| matches!(entry.kind, EntryKind::File { .. } | EntryKind::Folder))
            .map(|entry| {
                let path = entry.path.lossy();
                let name = alike(&wanted_name, &pairs(&file_name(&path)));
                let whole = alike(&wanted_path, &pairs(&path.to_lowercase()));
                (name * 2.0 + whole, path)
            })
            // Names with little in common are no help.
            .filter(|(score, _)| *score >= 1.0)
            .collect();
        scored.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        scored.into_iter().take(NEAREST_NAMES).map(|(_, path)| path).collect()
    }
}

fn pairs(text: &str) -> HashSet<(char, char)> {
    let letters: Vec<char> = std::iter::once('^').chain(text.chars()).chain(std::iter::once('$')).collect();
    letters.windows(2).map(|pair| (pair[0], pair[1])).collect()
}

fn alike(a: &HashSet<(char, char)>, b: &HashSet<(char, char)>) -> f64 {
    2.0 * a.intersection(b).count() as f64 / (a.len() + b.len()) as f64
}
