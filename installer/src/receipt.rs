//! What the installer has done to this host and how to take it back: written whole, by rename, at the end of each run and
//! after each step of an uninstallation. Receipts of every released version must load, for ever.

use camino::Utf8Path;
use serde::{Deserialize, Serialize};

use crate::action::{Action, Trace};
use crate::host::{Attrs, Host, HostError, HostView};
use crate::journal::{Product, Progress, Purpose, Step};
use crate::layout;

pub const SCHEMA: u32 = 1;
/// Generations that can be gone back to; older releases are removed.
pub const GENERATIONS: usize = 3;

/// Every field has a default, and what is not known here is kept as it is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Receipt {
    pub schema: u32,
    pub plan_id: String,
    pub product: Product,
    pub mode: String,
    /// RFC 3339.
    pub created: String,
    pub actions: Vec<Recorded>,
    /// Oldest first; the last one runs.
    pub generations: Vec<Generation>,
    #[serde(flatten)]
    pub others: serde_json::Map<String, serde_json::Value>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Recorded {
    Known(Box<Entry>),
    /// An action of another version of the installer.
    Unknown(serde_json::Value),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    pub id: String,
    pub action: Action,
    /// What was there before the *first* installation.
    pub before: Trace,
    pub after: Trace,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Generation {
    pub n: u32,
    pub version: String,
    /// The folder's name below `releases`.
    pub release: String,
    /// RFC 3339.
    pub installed: String,
}

#[derive(Debug, thiserror::Error)]
pub enum ReceiptError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("{path} cannot be read as a receipt: {source}")]
    Unreadable { path: camino::Utf8PathBuf, source: serde_json::Error },
    #[error(
        "{path} has schema {found}, this installer knows up to {SCHEMA}; use the newer installer in the release that wrote it"
    )]
    Newer { path: camino::Utf8PathBuf, found: u32 },
}

impl Receipt {
    /// None when nothing is installed.
    pub fn read(host: &dyn HostView, path: &Utf8Path) -> Result<Option<Self>, ReceiptError> {
        if host.entry(path)?.is_absent() {
            return Ok(None);
        }
        let bytes = host.read(path)?;
        let receipt: Self = serde_json::from_slice(&bytes)
            .map_err(|source| ReceiptError::Unreadable { path: path.to_owned(), source })?;
        if receipt.schema > SCHEMA {
            return Err(ReceiptError::Newer { path: path.to_owned(), found: receipt.schema });
        }
        Ok(Some(receipt))
    }

    /// Written in one step; removed when nothing is left to take back.
    pub fn write(&self, host: &mut dyn Host, path: &Utf8Path) -> Result<(), HostError> {
        if self.actions.is_empty() {
            return host.remove(path);
        }
        let mut text = serde_json::to_vec_pretty(self).expect("a receipt is plain data");
        text.push(b'\n');
        host.write(path, &text, &Attrs::root(0o600))
    }

    /// False when only what an uninstallation keeps is left.
    pub fn is_installed(&self) -> bool {
        self.known().any(|entry| matches!(entry.action, Action::SwitchRelease { .. } | Action::NixosModule { .. }))
    }

    /// The numbers of the workers that are installed here.
    pub fn workers(&self) -> Vec<u8> {
        let units = self.known().filter_map(|entry| match &entry.action {
            Action::Start { unit } => Some(unit),
            _ => None,
        });
        units.filter_map(|unit| unit.strip_prefix("fettle-worker@")?.strip_suffix(".service")?.parse().ok()).collect()
    }

    /// Whether the inference service is installed here.
    pub fn has_inference(&self) -> bool {
        self.known().any(|entry| matches!(&entry.action, Action::Start { unit } if unit == layout::INFERENCE))
    }

    pub fn find(&self, id: &str) -> Option<&Entry> {
        self.known().find(|entry| entry.id == id)
    }

    pub fn known(&self) -> impl DoubleEndedIterator<Item = &Entry> {
        self.actions.iter().filter_map(|recorded| match recorded {
            Recorded::Known(entry) => Some(entry.as_ref()),
            Recorded::Unknown(_) => None,
        })
    }

    /// What a later version did and this one cannot take back.
    pub fn unknown(&self) -> impl Iterator<Item = &serde_json::Value> {
        self.actions.iter().filter_map(|recorded| match recorded {
            Recorded::Known(_) => None,
            Recorded::Unknown(value) => Some(value),
        })
    }

    /// The receipt after a run that stands at `progress`. Computing it twice changes nothing.
    pub fn after(earlier: Option<&Self>, progress: &Progress) -> Self {
        let mut receipt = earlier.cloned().unwrap_or_default();
        let run = &progress.run;
        let forth = progress.turned.is_none();
        for (number, step) in run.steps.iter().enumerate() {
            match step {
                Step::Do { action } if action.is_lasting() && forth => {
                    if let (Some(before), Some(after)) = (progress.intents.get(&number), progress.done.get(&number)) {
                        receipt.put(action, before, after);
                    }
                }
                Step::Undo { action, .. } if forth && progress.done.contains_key(&number) => {
                    receipt.drop_known(&action.key());
                }
                Step::Do { .. } | Step::Undo { .. } => {}
            }
        }
        if forth && !matches!(run.purpose, Purpose::Uninstall { .. }) {
            receipt.schema = SCHEMA;
            receipt.plan_id.clone_from(&run.id);
            receipt.mode.clone_from(&run.mode);
            receipt.product = run.product.clone();
            if receipt.created.is_empty() {
                receipt.created.clone_from(&run.started);
            }
            receipt.note_generation(run);
        }
        receipt
    }

    fn put(&mut self, action: &Action, before: &Trace, after: &Trace) {
        let id = action.key();
        let known = self.actions.iter_mut().find_map(|recorded| match recorded {
            Recorded::Known(entry) if entry.id == id => Some(entry),
            _ => None,
        });
        match known {
            // The first `before` stays: uninstalling leads to the host as it was before Fettle.
            Some(entry) => (entry.action, entry.after) = (action.clone(), after.clone()),
            None => {
                let entry = Entry { id, action: action.clone(), before: before.clone(), after: after.clone() };
                self.actions.push(Recorded::Known(Box::new(entry)));
            }
        }
    }

    fn drop_known(&mut self, id: &str) {
        self.actions.retain(|recorded| !matches!(recorded, Recorded::Known(entry) if entry.id == id));
    }

    fn note_generation(&mut self, run: &crate::journal::Run) {
        let Product { version, release } = run.product.clone();
        if release.is_empty() || self.generations.last().is_some_and(|last| last.release == release) {
            return;
        }
        let n = self.generations.last().map_or(1, |last| last.n + 1);
        self.generations.push(Generation { n, version, release, installed: run.started.clone() });
        let surplus = self.generations.len().saturating_sub(GENERATIONS);
        self.generations.drain(..surplus);
    }
}
