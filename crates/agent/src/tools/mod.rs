//! The seven tools: what a model may do in its workspace, and the words in which it learns what came of it.
//!
//! A refused or failed call is a result for the model, never an error of Fettle; only a sandbox that does not work is.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use camino::{Utf8Path, Utf8PathBuf};
use fettle_app::ports::sandbox::{Access, CommandEnd, Sandbox, SandboxError};
use fettle_domain::object::BlobId;
use fettle_domain::path::RepoPath;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::workbench::Workbench;
use crate::workspace::{FileError, Workspace};

mod call;
mod command;
mod files;
mod outcome;
mod read;
mod search;
pub(crate) mod spec;
pub mod text;
mod write;

#[cfg(test)]
mod tests;

pub use call::Call;
pub(crate) use spec::short;
pub use spec::specs;

use files::Files;
use outcome::Outcome;

/// Names the full output of an earlier step in `path` of `view` and `search`.
pub const OUT_PREFIX: &str = "@out/";

/// Characters of a result at most, per token of the working context: a quarter of it at four characters a token.
const RESULT_CHARS_PER_CONTEXT_TOKEN: u64 = 1;

/// What came of a call; journaled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolResult {
    /// The tool did what was asked; a command also exited with 0.
    pub ok: bool,
    /// Of an error: `no_match`, `outside` and so on.
    pub code: Option<String>,
    /// What the model sees.
    pub text: String,
    pub exit: Option<i32>,
    pub signal: Option<i32>,
    pub timed_out: bool,
    /// Of the whole output, kept or not.
    pub bytes_total: u64,
    /// `text` leaves something out.
    pub truncated: bool,
    /// Lines of files that the model has now seen.
    pub seen: Vec<SeenFile>,
    /// Files that the call itself changed; a command's changes show only in the tree.
    pub wrote: Vec<RepoPath>,
    pub took_ms: u64,
}

impl ToolResult {
    /// For the calls after a failed edit: `failed` is its number in the message, from 1.
    pub fn skipped(failed: usize) -> Self {
        let text = format!("not executed because call {failed} of the same message failed.");
        Outcome::refused("skipped", text).result
    }

    /// The calls after this one in the same message must not run.
    pub fn skips_rest(&self, call: &Call) -> bool {
        !self.ok && (call.is_edit() || matches!(self.code.as_deref(), Some("timed_out" | "killed" | "cancelled")))
    }
}

/// Lines `first..=last` of the file whose bytes have that digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenFile {
    pub path: RepoPath,
    pub digest: BlobId,
    pub first: u64,
    pub last: u64,
    pub lines: u64,
}

/// The result and every byte behind it, as `@out/<step>.log` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executed {
    pub result: ToolResult,
    pub full_output: Bytes,
}

/// What running the repository's tests has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestText {
    pub end: CommandEnd,
    /// Absent when only the exit status is known.
    pub counts: Option<TestCounts>,
    pub failing: Vec<String>,
    /// Of the failing tests, in their order.
    pub messages: Vec<String>,
    /// Something the model should know first, e.g. that no test command was found.
    pub note: Option<String>,
    pub output: Bytes,
    pub bytes_total: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TestCounts {
    pub passed: u32,
    pub failed: u32,
    pub skipped: u32,
}

/// Runs the repository's tests in the workspace; the verification module knows how.
#[async_trait]
pub trait TestRunner: Send + Sync {
    async fn run(
        &self,
        workspace: &Utf8Path,
        target: Option<&str>,
        cancel: &CancellationToken,
    ) -> Result<TestText, SandboxError>;
}

/// The glob of the path policy that forbids changing a path, if one does.
pub type PathRules = Arc<dyn Fn(&RepoPath) -> Option<String> + Send + Sync>;

pub struct ToolBoxOptions {
    pub workspace: Utf8PathBuf,
    /// Of this Run alone, beside the workspace; `<step>.log` files are written here.
    pub out_dir: Utf8PathBuf,
    pub sandbox: Arc<dyn Sandbox>,
    pub bench: Workbench,
    pub path_rules: PathRules,
    pub tests: Arc<dyn TestRunner>,
    pub working_context_tokens: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("could not open {folder}")]
    Folder {
        folder: Utf8PathBuf,
        #[source]
        source: FileError,
    },
    #[error("could not make the folder for outputs")]
    OutDir(#[source] std::io::Error),
}

pub struct ToolBox {
    options: ToolBoxOptions,
    files: Arc<Files>,
    seen: BTreeMap<RepoPath, SeenState>,
}

/// How much of which content of a file was seen.
#[derive(Debug, Clone)]
struct SeenState {
    digest: BlobId,
    lines: u64,
    /// Disjoint, in order, 1-based, both ends included.
    ranges: Vec<(u64, u64)>,
}

impl SeenState {
    fn is_full(&self) -> bool {
        self.lines == 0 || matches!(self.ranges.as_slice(), [(1, last)] if *last >= self.lines)
    }

    fn add(&mut self, first: u64, last: u64) {
        self.ranges.push((first, last));
        self.ranges.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::with_capacity(self.ranges.len());
        for &(first, last) in &self.ranges {
            match merged.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = (*end).max(last),
                _ => merged.push((first, last)),
            }
        }
        self.ranges = merged;
    }
}

impl ToolBox {
    pub fn new(options: ToolBoxOptions) -> Result<Self, OpenError> {
        fs_err::create_dir_all(&options.out_dir).map_err(OpenError::OutDir)?;
        let open = |folder: &Utf8PathBuf| {
            Workspace::open(folder).map_err(|source| OpenError::Folder { folder: folder.clone(), source })
        };
        let files = Arc::new(Files {
            workspace: open(&options.workspace)?,
            out: open(&options.out_dir)?,
            rules: Arc::clone(&options.path_rules),
            max_chars: usize::try_from(options.working_context_tokens * RESULT_CHARS_PER_CONTEXT_TOKEN)
                .unwrap_or(usize::MAX),
        });
        Ok(Self { options, files, seen: BTreeMap::new() })
    }

    /// Runs one call as `step` of the Run. `Err` means that the sandbox does not work, not that the call failed.
    pub async fn execute(
        &mut self,
        step: u32,
        call: &Call,
        access: Access,
        cancel: &CancellationToken,
    ) -> Result<Executed, SandboxError> {
        let started = Instant::now();
        let mut outcome = self.outcome(step, call, access, cancel).await?;
        outcome.result.took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        outcome.limit(self.files.max_chars, step);
        let (result, full_output) = outcome.into_parts();
        self.absorb(step, &result, full_output.clone());
        Ok(Executed { result, full_output })
    }

    /// Takes a result as if the call had just run: what was seen, and `@out/<step>.log`. For replays of the journal.
    pub fn absorb(&mut self, step: u32, result: &ToolResult, full_output: Bytes) {
        for seen in &result.seen {
            let fresh = || SeenState { digest: seen.digest, lines: seen.lines, ranges: Vec::new() };
            let state = self.seen.entry(seen.path.clone()).or_insert_with(fresh);
            if state.digest != seen.digest {
                *state = fresh();
            }
            state.add(seen.first, seen.last);
        }
        let name = RepoPath::parse(format!("{step}.log")).expect("a number is a file name");
        if let Err(e) = self.files.out.write(&name, &full_output, None) {
            tracing::warn!(error = &e as &dyn std::error::Error, step, "could not keep the full output of step {step}");
        }
    }

    /// After the model lost its history nothing counts as seen.
    pub fn forget_seen(&mut self) {
        self.seen.clear();
    }

    async fn outcome(
        &self,
        step: u32,
        call: &Call,
        access: Access,
        cancel: &CancellationToken,
    ) -> Result<Outcome, SandboxError> {
        match call {
            Call::Bash { command, timeout_s } => self.bash(step, command, *timeout_s, access, cancel).await,
            Call::RunTests { target } => self.run_tests(step, target.as_deref(), cancel).await,
            Call::Finish { .. } => Ok(Outcome::done("finished".to_owned())),
            _ if call.is_edit() && access == Access::ReadOnly => {
                Ok(Outcome::refused("read_only", "this phase only reads.".to_owned()))
            }
            _ => {
                let files = Arc::clone(&self.files);
                let seen = call.path().and_then(|path| self.fully_seen(path));
                let (call, cancel) = (call.clone(), cancel.clone());
                // File work blocks; the sizes, entries and times it may take are bounded by the tools themselves.
                let run = tokio::task::spawn_blocking(move || match &call {
                    Call::View { path, start_line, end_line } => files.view(path, *start_line, *end_line),
                    Call::Search { pattern, path, max_results } => {
                        files.search(pattern, path.as_deref(), *max_results, &cancel)
                    }
                    Call::StrReplace { path, old, new } => files.str_replace(path, old, new, seen),
                    Call::Create { path, content } => files.create(path, content, seen),
                    Call::ApplyPatch { files: patches, .. } => files.apply_patch(patches),
                    Call::Bash { .. } | Call::RunTests { .. } | Call::Finish { .. } => {
                        unreachable!("commands and finish have arms of their own")
                    }
                });
                run.await.map_err(|e| SandboxError::Failed(Box::new(e)))
            }
        }
    }

    /// The digest of the content of which every line was seen.
    fn fully_seen(&self, path: &str) -> Option<BlobId> {
        let crate::workspace::Place::Beneath(path) = crate::workspace::Place::parse(path).ok()? else { return None };
        self.seen.get(&path).filter(|state| state.is_full()).map(|state| state.digest)
    }
}
