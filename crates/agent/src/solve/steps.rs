//! The journal as the solve loop uses it: each step is either replayed from an earlier lease or done now and recorded
//! before its result is used.
//!
//! A replay is the same program fed with the same answers, so nothing that was paid is paid again. When a recorded step
//! does not fit what the loop would do now, the rest of the record is left behind and the Run goes on live from there.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fettle_app::ports::journal::{Journal, Stop};
use fettle_app::running::RunEnd;
use fettle_domain::budget::Spent;
use fettle_domain::object::BlobId;
use fettle_domain::step::{MAX_STEP_BODY_BYTES, StepBody, StepKind, StepRecord, WorkspaceState};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::warn;

/// Lets a person watch a Run. Nothing depends on it.
pub trait Watch: Send + Sync {
    /// A phase begins.
    fn phase(&self, name: &str);
    /// A step is done; `replayed` when it comes from an earlier lease.
    fn step(&self, step: &StepRecord, replayed: bool);
    /// A piece of the model's answer as it streams.
    fn streamed(&self, text: &str);
    /// Something worth a line.
    fn note(&self, text: &str);
}

/// Watches nothing.
pub struct Unwatched;

impl Watch for Unwatched {
    fn phase(&self, _name: &str) {}
    fn step(&self, _step: &StepRecord, _replayed: bool) {}
    fn streamed(&self, _text: &str) {}
    fn note(&self, _text: &str) {}
}

pub(crate) struct Steps {
    journal: Arc<dyn Journal>,
    watch: Arc<dyn Watch>,
    recorded: VecDeque<StepRecord>,
    next_seq: u32,
    phase: String,
    spent: Spent,
    /// Milliseconds of all steps; `spent.wall_s` is made of it.
    wall_ms: u64,
}

/// A step's result, to be recorded.
pub(crate) struct Fresh<'a, T> {
    pub(crate) kind: StepKind,
    pub(crate) title: String,
    pub(crate) input: BlobId,
    pub(crate) value: &'a T,
    /// Of this step alone.
    pub(crate) spent: Spent,
    /// The workspace afterwards, when the step changed it.
    pub(crate) workspace: Option<WorkspaceState>,
    pub(crate) took: Duration,
}

impl Steps {
    /// `recorded` as the ledger keeps it: in order, from 0, without gaps.
    pub(crate) fn new(journal: Arc<dyn Journal>, watch: Arc<dyn Watch>, recorded: Vec<StepRecord>) -> Self {
        Self {
            journal,
            watch,
            recorded: recorded.into(),
            next_seq: 0,
            phase: String::new(),
            spent: Spent::default(),
            wall_ms: 0,
        }
    }

    pub(crate) fn enter(&mut self, phase: &str) {
        phase.clone_into(&mut self.phase);
        self.watch.phase(phase);
    }

    /// The number the next step will get.
    pub(crate) fn next_seq(&self) -> u32 {
        self.next_seq
    }

    pub(crate) fn spent(&self) -> Spent {
        self.spent
    }

    pub(crate) fn watch(&self) -> &Arc<dyn Watch> {
        &self.watch
    }

    pub(crate) fn journal(&self) -> &Arc<dyn Journal> {
        &self.journal
    }

    /// Whether the next step is still on record.
    pub(crate) fn replaying(&self) -> bool {
        !self.recorded.is_empty()
    }

    /// The kind of the next recorded step.
    pub(crate) fn next_recorded(&self) -> Option<StepKind> {
        self.recorded.front().map(|step| step.kind)
    }

    /// The recorded result of the next step, if it is the step that the loop is about to do.
    pub(crate) async fn replay<T: DeserializeOwned>(
        &mut self,
        kind: StepKind,
        input: BlobId,
    ) -> Result<Option<T>, RunEnd> {
        let Some(step) = self.recorded.front() else { return Ok(None) };
        let fits = step.seq == self.next_seq && step.kind == kind && step.input == input;
        let value = if fits { self.read(&step.body).await? } else { None };
        match (value, self.recorded.pop_front()) {
            (Some(value), Some(step)) => {
                self.count(&step);
                self.watch.step(&step, true);
                Ok(Some(value))
            }
            _ => {
                warn!(
                    step.seq = self.next_seq,
                    "the record of this Run no longer fits; it goes on from step {}", self.next_seq
                );
                self.recorded.clear();
                Ok(None)
            }
        }
    }

    /// Records a step that was done now. Its result may be used when this has returned.
    pub(crate) async fn record<T: Serialize>(&mut self, fresh: Fresh<'_, T>) -> Result<(), RunEnd> {
        let wall_ms = self.wall_ms + millis(fresh.took);
        let mut spent = self.spent.plus(fresh.spent);
        spent.wall_s = wall_ms / 1000;
        let step = StepRecord {
            seq: self.next_seq,
            kind: fresh.kind,
            phase: self.phase.clone(),
            title: fresh.title,
            input: fresh.input,
            body: self.body(fresh.value).await?,
            workspace: fresh.workspace,
            spent,
            took_ms: millis(fresh.took),
        };
        self.journal.record(&step).await?;
        self.count(&step);
        self.watch.step(&step, false);
        Ok(())
    }

    fn count(&mut self, step: &StepRecord) {
        self.next_seq = step.seq + 1;
        self.spent = step.spent;
        self.wall_ms += step.took_ms;
    }

    async fn body<T: Serialize>(&self, value: &T) -> Result<StepBody, RunEnd> {
        let value =
            serde_json::to_value(value).map_err(|e| refused(format!("a step's result cannot be written: {e}")))?;
        let text = value.to_string();
        if text.len() > MAX_STEP_BODY_BYTES {
            Ok(StepBody::Blob(self.journal.put_blob(Bytes::from(text)).await?))
        } else {
            Ok(StepBody::Inline(value))
        }
    }

    /// `None` when an older or newer version wrote it in another shape.
    async fn read<T: DeserializeOwned>(&self, body: &StepBody) -> Result<Option<T>, RunEnd> {
        Ok(match body {
            StepBody::Inline(value) => serde_json::from_value(value.clone()).ok(),
            StepBody::Blob(id) => serde_json::from_slice(&self.journal.blob(*id).await?).ok(),
        })
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn refused(why: String) -> RunEnd {
    RunEnd::Stopped(Stop::Refused(why))
}

/// The digest of everything that a step depends on.
pub(crate) fn digest<T: Serialize>(input: &T) -> BlobId {
    // Values of our own types: writing them cannot fail, and if it did, the empty digest would only end a replay.
    BlobId::of(&serde_json::to_vec(input).unwrap_or_default())
}
