//! What a run meant to do and what it has done, on disk before and after each action. Whoever finds the file after a crash
//! knows where to go on.

use std::collections::BTreeMap;

use camino::Utf8Path;
use serde::{Deserialize, Serialize};

use crate::action::{Action, Trace};
use crate::host::{Host, HostError, HostResult, HostView, sha256};

/// Hexadecimal digits of a line's checksum: enough to tell a torn line from a whole one.
const CHECKSUM_DIGITS: usize = 16;

/// What brought the run about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    Apply,
    Upgrade,
    Rollback,
    /// A backup takes the place of what is there.
    Restore,
    Uninstall {
        purge: bool,
    },
}

/// What happens to what was done when a later step fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    Revert,
    Keep,
}

/// One thing that a run does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "a run has some dozens, and a box would be in everybody's way")]
pub enum Step {
    Do {
        action: Action,
    },
    /// Takes back what an earlier run did.
    Undo {
        action: Action,
        before: Trace,
        after: Trace,
    },
}

impl Step {
    pub fn action(&self) -> &Action {
        match self {
            Self::Do { action } | Self::Undo { action, .. } => action,
        }
    }
}

/// Everything a run needs, so that going on needs no plan, no answers and no network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The plan's hash and the time.
    pub id: String,
    pub purpose: Purpose,
    pub on_failure: OnFailure,
    /// RFC 3339.
    pub started: String,
    pub product: Product,
    /// `systemd` or `nixos`.
    pub mode: String,
    pub steps: Vec<Step>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Product {
    #[serde(default)]
    pub version: String,
    /// The folder's name below `releases`.
    #[serde(default)]
    pub release: String,
}

/// A line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "record")]
pub enum Record {
    Begin {
        run: Box<Run>,
    },
    Intent {
        step: usize,
        before: Trace,
    },
    Done {
        step: usize,
        after: Trace,
    },
    /// From here on the run goes back.
    Turn {
        step: usize,
        reason: String,
        gate: bool,
    },
    /// A step was taken back.
    Undone {
        step: usize,
    },
    /// The receipt was written; nothing is left to do.
    End,
}

#[derive(Serialize, Deserialize)]
struct Line {
    sum: String,
    #[serde(flatten)]
    record: Record,
}

/// Where a run stands: the fold of its records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    pub run: Run,
    pub intents: BTreeMap<usize, Trace>,
    pub done: BTreeMap<usize, Trace>,
    pub turned: Option<Turned>,
    pub undone: Vec<usize>,
    pub ended: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turned {
    pub step: usize,
    pub reason: String,
    /// It was the health gate that did not pass.
    pub gate: bool,
}

impl Progress {
    pub fn new(run: Run) -> Self {
        Self { run, intents: BTreeMap::new(), done: BTreeMap::new(), turned: None, undone: Vec::new(), ended: false }
    }

    pub fn take(&mut self, record: Record) {
        match record {
            Record::Begin { run } => *self = Self::new(*run),
            Record::Intent { step, before } => drop(self.intents.insert(step, before)),
            Record::Done { step, after } => drop(self.done.insert(step, after)),
            Record::Turn { step, reason, gate } => self.turned = Some(Turned { step, reason, gate }),
            Record::Undone { step } => self.undone.push(step),
            Record::End => self.ended = true,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(
        "{path}, line {line}: {what}; this installer cannot go on from it. Use the installer that wrote it, or look at the file"
    )]
    Damaged { path: camino::Utf8PathBuf, line: usize, what: String },
}

/// The last run on record; none when there never was one. A torn last line was never acted upon and is dropped.
pub fn read(host: &dyn HostView, path: &Utf8Path) -> Result<Option<Progress>, JournalError> {
    if host.entry(path)?.is_absent() {
        return Ok(None);
    }
    let bytes = host.read(path)?;
    let lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    let mut progress = None::<Progress>;
    for (number, line) in lines.iter().enumerate() {
        let record = match parse(line) {
            Ok(record) => record,
            Err(_) if number + 1 == lines.len() => break,
            Err(what) => return Err(JournalError::Damaged { path: path.to_owned(), line: number + 1, what }),
        };
        match (&mut progress, record) {
            (_, Record::Begin { run }) => progress = Some(Progress::new(*run)),
            (Some(progress), record) => progress.take(record),
            (None, _) => {
                let what = "it does not begin with a run".to_owned();
                return Err(JournalError::Damaged { path: path.to_owned(), line: number + 1, what });
            }
        }
    }
    Ok(progress)
}

fn parse(line: &[u8]) -> Result<Record, String> {
    let text = line.strip_suffix(b"\n").ok_or("it has no end")?;
    let line: Line = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if line.sum == checksum(&line.record) { Ok(line.record) } else { Err("its checksum does not fit".to_owned()) }
}

fn checksum(record: &Record) -> String {
    let text = serde_json::to_vec(record).expect("a record is plain data");
    sha256(&text)[..CHECKSUM_DIGITS].to_owned()
}

fn line(record: &Record) -> Vec<u8> {
    let line = Line { sum: checksum(record), record: record.clone() };
    let mut text = serde_json::to_vec(&line).expect("a record is plain data");
    text.push(b'\n');
    text
}

/// Starts the journal of a run; the one before is over, and its receipt written.
pub fn begin(host: &mut dyn Host, path: &Utf8Path, run: &Run) -> HostResult<()> {
    let text = line(&Record::Begin { run: Box::new(run.clone()) });
    host.write(path, &text, &crate::host::Attrs::root(0o600))
}

/// Cuts off a torn last line, which the next one would join with. Done before a run is gone on with.
pub fn mend(host: &mut dyn Host, path: &Utf8Path) -> HostResult<()> {
    let bytes = host.read(path)?;
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    if whole < bytes.len() {
        host.write(path, &bytes[..whole], &crate::host::Attrs::root(0o600))?;
    }
    Ok(())
}

/// Durable when it returns.
pub fn append(host: &mut dyn Host, path: &Utf8Path, record: &Record) -> HostResult<()> {
    host.append(path, &line(record))
}
