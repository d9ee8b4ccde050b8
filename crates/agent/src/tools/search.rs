//! `search`: a linear-time regular expression over the files that are not ignored, definitions of a named symbol first.

use std::fmt::Write as _;
use std::sync::LazyLock;
use std::time::Duration;

use fettle_domain::path::RepoPath;
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use regex::{Regex, RegexBuilder};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::files::{Files, Named};
use super::outcome::{Outcome, Refusal};
use super::read::split_lines;
use super::text::without_control;
use crate::edit::cut_chars;
use crate::edit::encoding::Decoded;
use crate::workspace::walk::{EntryKind, WalkOptions};
use crate::workspace::{FileError, Place};

const DEFAULT_RESULTS: u32 = 50;
const LINE_CHARS: usize = 300;

/// Larger files are generated or data.
const MAX_SEARCHED_BYTES: u64 = 2 * 1024 * 1024;
const MAX_ENTRIES: usize = 100_000;

/// Hits kept for sorting; beyond it they are only counted.
const MAX_KEPT_HITS: usize = 5_000;

/// A search that takes longer says how far it came.
const MAX_TIME: Duration = Duration::from_secs(20);

/// Memory of one compiled pattern.
const PATTERN_BYTES: usize = 4 * 1024 * 1024;

/// What defines a name, in the languages at hand; the name is group 1.
static DEFINITION: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"(?x) ^\s* (?: (?:pub(?:\([^)]*\))?|export|default|async|unsafe|extern(?:\s+\x22[^\x22]*\x22)?|static|const|abstract|final
            |public|private|protected|internal|override|inline|virtual|declare) \s+ )*
        (?: fn | struct | enum | trait | type | mod | union | macro_rules! | class | def | function\*? | interface | namespace
          | func (?:\s*\([^)]*\))? | module | object | val | var | let(?:\s+mut)? | const | static(?:\s+mut)? | \#\s*define )
        \s+ ([A-Za-z_$][A-Za-z0-9_$]*)
        | ^\s*([A-Za-z_$][A-Za-z0-9_$]*) \s* = \s* (?:async\s+)? (?: function\b | \([^)]*\)\s*=> | lambda\b )",
    )
    .expect("the definition pattern is valid")
});

struct Hit {
    path: String,
    line: usize,
    text: String,
    is_definition: bool,
    /// It defines exactly the name that was searched for.
    is_symbol: bool,
}

#[derive(Default)]
struct Hits {
    kept: Vec<Hit>,
    total: usize,
    stopped: Option<&'static str>,
}

enum Scope {
    Files(Place),
    File(RepoPath),
    Output(RepoPath),
    Glob(Box<Gitignore>),
}

impl Files {
    pub(super) fn search(
        &self,
        pattern: &str,
        path: Option<&str>,
        max_results: Option<u32>,
        cancel: &CancellationToken,
    ) -> Outcome {
        let regex = match RegexBuilder::new(pattern).size_limit(PATTERN_BYTES).dfa_size_limit(PATTERN_BYTES).build() {
            Ok(regex) => regex,
            Err(e) => {
                let reason = e.to_string().lines().last().unwrap_or_default().trim().to_owned();
                let text = format!(
                    "search: pattern: expected a regular expression, got {} ({reason}); escape signs like ( [ {{ with \\. \
                     Nothing was changed.",
                    super::short(pattern)
                );
                return Outcome::refused("bad_call", text);
            }
        };
        let scope = match self.scope(path.unwrap_or(".")) {
            Ok(scope) => scope,
            Err(refusal) => return refusal.into(),
        };
        let mut hits = Hits::default();
        match scope {
            Scope::Output(name) => match self.out.read(&name) {
                Ok(content) => {
                    let text = without_control(&String::from_utf8_lossy(&content.bytes));
                    hits.collect(path.unwrap_or_default(), &text, &regex, pattern);
                }
                Err(e) => return self.refuse(path.unwrap_or_default(), e).into(),
            },
            Scope::File(target) => {
                if let Err(e) = self.search_file(&target, &regex, pattern, &mut hits) {
                    return self.refuse(path.unwrap_or_default(), e).into();
                }
            }
            Scope::Files(start) => self.search_folder(&start, None, &regex, pattern, &mut hits, cancel),
            Scope::Glob(glob) => self.search_folder(&Place::Root, Some(&glob), &regex, pattern, &mut hits, cancel),
        }
        hits.render(max_results.unwrap_or(DEFAULT_RESULTS) as usize, self.max_chars)
    }

    fn scope(&self, path: &str) -> Result<Scope, Refusal> {
        let place = match self.named(path)? {
            Named::Output(name) => return Ok(Scope::Output(name)),
            Named::Workspace(place) => place,
        };
        match (self.workspace.is_folder(&place), place) {
            (Ok(true), place) => Ok(Scope::Files(place)),
            (Ok(false), Place::Beneath(path)) => Ok(Scope::File(path)),
            (Err(FileError::NotFound), _) if path.contains(['*', '?', '[', '{']) => {
                let mut builder = GitignoreBuilder::new("");
                let bad = |e: ignore::Error| {
                    Refusal::new("bad_call", format!("search: path: expected a glob, got {path} ({e})."))
                };
                builder.add_line(None, path).map_err(bad)?;
                builder.build().map(|glob| Scope::Glob(Box::new(glob))).map_err(bad)
            }
            (Err(e), _) => Err(self.refuse(path, e)),
            (Ok(false), Place::Root) => Err(self.refuse(path, FileError::NotFound)),
        }
    }

    fn search_folder(
        &self,
        start: &Place,
        glob: Option<&Gitignore>,
        regex: &Regex,
        pattern: &str,
        hits: &mut Hits,
        cancel: &CancellationToken,
    ) {
        let until = Instant::now() + MAX_TIME;
        let walked = self.workspace.walk(start, WalkOptions { depth: usize::MAX, max_entries: MAX_ENTRIES });
        if walked.stopped {
            hits.stopped = Some("the tree is too large; name a folder");
        }
        for entry in walked.entries {
            if cancel.is_cancelled() || Instant::now() > until {
                hits.stopped = Some("the search took too long; name a folder");
                return;
            }
            let EntryKind::File { bytes } = entry.kind else { continue };
            let lossy = entry.path.lossy();
            let wanted = glob.is_none_or(|glob| glob.matched_path_or_any_parents(&lossy, false).is_ignore());
            if wanted && bytes <= MAX_SEARCHED_BYTES {
                // A file that cannot be read has no hits; the folder's other files have.
                drop(self.search_file(&entry.path, regex, pattern, hits));
            }
        }
    }

    fn search_file(&self, path: &RepoPath, regex: &Regex, pattern: &str, hits: &mut Hits) -> Result<(), FileError> {
        let content = self.workspace.read(path)?;
        if let Ok(file) = Decoded::new(&content.bytes) {
            hits.collect(&path.lossy(), file.text(), regex, pattern);
        }
        Ok(())
    }
}

impl Hits {
    fn collect(&mut self, path: &str, text: &str, regex: &Regex, pattern: &str) {
        for (index, line) in split_lines(text).into_iter().enumerate() {
            let Some(found) = regex.find(line) else { continue };
            self.total += 1;
            let name = DEFINITION.captures(line).and_then(|groups| groups.get(1).or(groups.get(2)));
            let defined = name.filter(|name| name.start() < found.end() && found.start() < name.end());
            let is_symbol = defined
                .is_some_and(|name| name.as_str() == pattern.trim_matches(['\\', 'b']) || name.as_str() == pattern);
            if self.kept.len() < MAX_KEPT_HITS || is_symbol {
                let clean = without_control(line);
                let cut = cut_chars(clean.trim_start(), LINE_CHARS);
                let text = if cut.len() < clean.trim_start().len() { format!("{cut}…") } else { cut.to_owned() };
                let is_definition = defined.is_some();
                self.kept.push(Hit { path: path.to_owned(), line: index + 1, text, is_definition, is_symbol });
            }
        }
    }

    /// `path:line: text`, definitions as `path:line: def: text`.
    fn render(mut self, max_results: usize, max_chars: usize) -> Outcome {
        // Stable: within a rank the order of paths and lines stays.
        self.kept.sort_by_key(|hit| !hit.is_symbol);
        let mut text = String::new();
        let mut shown = 0;
        for hit in self.kept.iter().take(max_results) {
            let mark = if hit.is_definition { "def: " } else { "" };
            let line = format!("{}:{}: {mark}{}\n", without_control(&hit.path), hit.line, hit.text);
            // The last lines say what was left out.
            const NOTE_CHARS: usize = 200;
            if text.chars().count() + line.chars().count() + NOTE_CHARS > max_chars && shown > 0 {
                break;
            }
            text.push_str(&line);
            shown += 1;
        }
        let left_out = self.total - shown;
        if left_out > 0 {
            let files: std::collections::BTreeSet<&str> =
                self.kept.iter().skip(shown).map(|hit| hit.path.as_str()).collect();
            writeln!(text, "… {left_out} more in {} files", files.len()).expect("writing to a string cannot fail");
        }
        if self.total == 0 {
            text.push_str("no match\n");
        }
        if let Some(stopped) = self.stopped {
            writeln!(text, "stopped early: {stopped}").expect("writing to a string cannot fail");
        }
        let mut outcome = Outcome::done(text.trim_end().to_owned());
        outcome.result.truncated = left_out > 0 || self.stopped.is_some();
        outcome
    }
}
