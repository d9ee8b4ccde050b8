//! Carries a run out, and back when it fails. Every step is journaled before and after; killed at any instant, the same
//! function goes on from what the journal says.

use camino::{Utf8Path, Utf8PathBuf};

use crate::action::{ActError, Action, ClusterAct, Saving, Trace};
use crate::host::{Attrs, Host, HostError};
use crate::journal::{self, JournalError, OnFailure, Progress, Purpose, Record, Run, Step};
use crate::layout::STAGING;
use crate::receipt::{Receipt, ReceiptError};

/// The installer's own folder: root's alone, outside all service data.
#[derive(Debug, Clone)]
pub struct Home(pub Utf8PathBuf);

impl Home {
    pub fn journal(&self) -> Utf8PathBuf {
        self.0.join("journal.jsonl")
    }

    pub fn receipt(&self) -> Utf8PathBuf {
        self.0.join("receipt.json")
    }

    pub fn saved(&self) -> Utf8PathBuf {
        self.0.join("saved")
    }

    /// Makes the folders that a run itself needs. Their parent is the system's.
    pub fn make(&self, host: &mut dyn Host) -> Result<(), HostError> {
        for folder in [&self.0, &self.saved()] {
            if host.entry(folder)?.is_absent() {
                host.mkdir(folder, &Attrs::root(0o700))?;
            }
        }
        Ok(())
    }
}

/// What a run has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// A step failed, and all that was done before it was taken back.
    Reverted {
        reason: String,
        gate: bool,
    },
    /// A step failed, and what was done stays as was asked for; `resume` tries again.
    Kept {
        reason: String,
        gate: bool,
    },
    /// Taking back failed as well; `resume` tries again.
    Stuck {
        reason: String,
        gate: bool,
        stuck: String,
    },
}

/// Told to whoever watches; nothing of it decides anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event<'a> {
    /// From 1.
    pub number: usize,
    pub of: usize,
    pub step: &'a Step,
    pub phase: Phase,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    Begins,
    Ends,
    Fails(String),
    TakesBack,
    TakenBack,
}

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Receipt(#[from] ReceiptError),
    #[error(
        "an earlier run is unfinished; `fettle-installer resume` goes on with it, `fettle-installer uninstall` takes it back and removes Fettle"
    )]
    Unfinished,
}

/// Where things are, and who watches.
pub struct Runner<'a> {
    pub home: &'a Home,
    pub watch: &'a mut dyn FnMut(Event<'_>),
    /// Why a service does not run although everything was taken back.
    unwell: Option<String>,
}

impl<'a> Runner<'a> {
    pub fn new(home: &'a Home, watch: &'a mut dyn FnMut(Event<'_>)) -> Self {
        Self { home, watch, unwell: None }
    }

    /// Begins a run.
    ///
    /// Errors when an earlier one has not ended, and when the journal or the receipt cannot be written: then nothing was
    /// done that the journal does not tell.
    pub fn start(&mut self, host: &mut dyn Host, run: Run) -> Result<Outcome, RunError> {
        if self.unfinished(host)?.is_some() {
            return Err(RunError::Unfinished);
        }
        self.home.make(host)?;
        journal::begin(host, &self.home.journal(), &run)?;
        self.go_on(host, Progress::new(run))
    }

    /// Goes on with the run on record; none when there is nothing to go on with.
    pub fn resume(&mut self, host: &mut dyn Host) -> Result<Option<Outcome>, RunError> {
        let Some(progress) = self.unfinished(host)? else { return Ok(None) };
        journal::mend(host, &self.home.journal())?;
        self.go_on(host, progress).map(Some)
    }

    /// Turns an unfinished run back, wherever it stands; none when there is nothing unfinished.
    pub fn turn_back(&mut self, host: &mut dyn Host, reason: &str) -> Result<Option<Outcome>, RunError> {
        let Some(mut progress) = self.unfinished(host)? else { return Ok(None) };
        journal::mend(host, &self.home.journal())?;
        let restored = progress.run.purpose == Purpose::Restore && progress.done.len() == progress.run.steps.len();
        if matches!(progress.run.purpose, Purpose::Uninstall { .. }) || restored {
            // Half uninstalled is not worth going back to, and of what a healthy restoration has replaced some may be gone.
            return self.go_on(host, progress).map(Some);
        }
        if progress.turned.is_none() {
            let step = progress.intents.keys().next_back().copied().unwrap_or(0);
            self.note(host, &mut progress, Record::Turn { step, reason: reason.to_owned(), gate: false })?;
        }
        self.go_on(host, progress).map(Some)
    }

    pub fn unfinished(&self, host: &dyn Host) -> Result<Option<Progress>, RunError> {
        Ok(journal::read(host, &self.home.journal())?.filter(|progress| !progress.ended))
    }

    fn go_on(&mut self, host: &mut dyn Host, mut progress: Progress) -> Result<Outcome, RunError> {
        // What it will be follows from this one and the journal alone, however often the run is gone on with.
        let earlier = Receipt::read(host, &self.home.receipt())?;
        if progress.turned.is_none()
            && let Err(failed) = self.forth(host, &mut progress, earlier.as_ref())?
        {
            if progress.run.on_failure == OnFailure::Keep {
                return Ok(Outcome::Kept { reason: failed.reason, gate: failed.gate });
            }
            let Failed { step, reason, gate } = failed;
            self.note(host, &mut progress, Record::Turn { step, reason, gate })?;
        }
        if let Some(turned) = progress.turned.clone()
            && let Err(stuck) = self.back(host, &mut progress)?
        {
            return Ok(Outcome::Stuck { reason: turned.reason, gate: turned.gate, stuck });
        }
        self.end(host, &mut progress, earlier.as_ref())?;
        Ok(match progress.turned {
            None => Outcome::Done,
            Some(turned) => {
                let reason = match self.unwell.take() {
                    None => turned.reason,
                    Some(unwell) => {
                        format!("{}\nWith what was there before it does not run either: {unwell}", turned.reason)
                    }
                };
                Outcome::Reverted { reason, gate: turned.gate }
            }
        })
    }

    fn forth(
        &mut self,
        host: &mut dyn Host,
        progress: &mut Progress,
        earlier: Option<&Receipt>,
    ) -> Result<Result<(), Failed>, RunError> {
        for number in 0..progress.run.steps.len() {
            if progress.done.contains_key(&number) {
                continue;
            }
            let step = progress.run.steps[number].clone();
            self.tell(progress, number, Phase::Begins);
            match self.step(host, progress, number, &step) {
                Ok(after) => {
                    host.boundary("executed");
                    self.note(host, progress, Record::Done { step: number, after })?;
                    if matches!(progress.run.purpose, Purpose::Uninstall { .. }) {
                        // What is taken back is gone from the receipt at once: it never promises what is not there.
                        self.write_receipt(host, progress, earlier)?;
                    }
                    self.tell(progress, number, Phase::Ends);
                }
                Err(StepError::Act(error)) => {
                    let reason = with_causes(&error);
                    self.tell(progress, number, Phase::Fails(reason.clone()));
                    return Ok(Err(Failed { step: number, reason, gate: matches!(error, ActError::Gate(_)) }));
                }
                Err(StepError::Run(error)) => return Err(error),
            }
        }
        Ok(Ok(()))
    }

    fn step(
        &mut self,
        host: &mut dyn Host,
        progress: &mut Progress,
        number: usize,
        step: &Step,
    ) -> Result<Trace, StepError> {
        match step {
            Step::Do { action } => {
                let before = match progress.intents.get(&number) {
                    Some(before) => before.clone(),
                    None => {
                        let saved = self.home.saved().join(&progress.run.id);
                        if host.entry(&saved).map_err(ActError::from)?.is_absent() {
                            host.mkdir(&saved, &Attrs::root(0o700)).map_err(ActError::from)?;
                        }
                        let before = action.before(host, &Saving { folder: &saved, number })?;
                        host.boundary("before intent");
                        let intent = Record::Intent { step: number, before: before.clone() };
                        self.note(host, progress, intent).map_err(StepError::Run)?;
                        host.boundary("intended");
                        before
                    }
                };
                Ok(action.execute(host, &before)?)
            }
            Step::Undo { action, before, after } => {
                if !progress.intents.contains_key(&number) {
                    let intent = Record::Intent { step: number, before: Trace::Nothing };
                    self.note(host, progress, intent).map_err(StepError::Run)?;
                }
                action.revert(host, before, Some(after))?;
                Ok(Trace::Nothing)
            }
        }
    }

    /// Newest first. The inner error says what could not be taken back.
    fn back(&mut self, host: &mut dyn Host, progress: &mut Progress) -> Result<Result<(), String>, RunError> {
        let intended: Vec<usize> = progress.intents.keys().rev().copied().collect();
        for number in intended {
            if progress.undone.contains(&number) {
                continue;
            }
            let before = progress.intents[&number].clone();
            let after = progress.done.get(&number).cloned();
            self.tell(progress, number, Phase::TakesBack);
            let undone = match progress.run.steps[number].clone() {
                Step::Do { action } => action.revert(host, &before, after.as_ref()),
                // Its source may be gone; an old release that is missed is no reason not to go back.
                Step::Undo {
                    action: Action::Release { .. } | Action::Cluster { act: ClusterAct::Place { .. } },
                    ..
                } => Ok(()),
                // Its own `before` is what there was before Fettle: executing on it makes Fettle's part again.
                Step::Undo { action, before, .. } => action.execute(host, &before).map(drop),
            };
            if let (Err(error), Action::Restart { .. }) = (&undone, progress.run.steps[number].action()) {
                // Everything is as it was; that a service does not run with it is told, and keeps nothing else back.
                let unwell = with_causes(error);
                self.tell(progress, number, Phase::Fails(unwell.clone()));
                self.unwell.get_or_insert(unwell);
                self.note(host, progress, Record::Undone { step: number })?;
                continue;
            }
            if let Err(error) = undone {
                let what = progress.run.steps[number].action().describe().what;
                let stuck = format!("could not take back \"{what}\": {}", with_causes(&error));
                self.tell(progress, number, Phase::Fails(stuck.clone()));
                return Ok(Err(stuck));
            }
            host.boundary("taken back");
            self.note(host, progress, Record::Undone { step: number })?;
            self.tell(progress, number, Phase::TakenBack);
        }
        Ok(Ok(()))
    }

    fn end(&self, host: &mut dyn Host, progress: &mut Progress, earlier: Option<&Receipt>) -> Result<(), RunError> {
        self.write_receipt(host, progress, earlier)?;
        host.boundary("receipt written");
        for folder in waiting(&progress.run) {
            host.remove_tree(folder)?;
        }
        self.note(host, progress, Record::End)
    }

    fn write_receipt(
        &self,
        host: &mut dyn Host,
        progress: &Progress,
        earlier: Option<&Receipt>,
    ) -> Result<(), RunError> {
        let receipt = Receipt::after(earlier, progress);
        if earlier != Some(&receipt) {
            receipt.write(host, &self.home.receipt())?;
        }
        Ok(())
    }

    fn note(&self, host: &mut dyn Host, progress: &mut Progress, record: Record) -> Result<(), RunError> {
        journal::append(host, &self.home.journal(), &record)?;
        progress.take(record);
        Ok(())
    }

    fn tell(&mut self, progress: &Progress, number: usize, phase: Phase) {
        let step = &progress.run.steps[number];
        (self.watch)(Event { number: number + 1, of: progress.run.steps.len(), step, phase });
    }
}

struct Failed {
    step: usize,
    reason: String,
    gate: bool,
}

enum StepError {
    Act(ActError),
    Run(RunError),
}

impl From<ActError> for StepError {
    fn from(error: ActError) -> Self {
        Self::Act(error)
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Where a restoration keeps what it exchanges. When it is over, one way or the other, nobody waits for that any more.
fn waiting(run: &Run) -> std::collections::BTreeSet<&Utf8Path> {
    let asides = run.steps.iter().filter_map(|step| match step.action() {
        Action::Swap { aside, .. } => Some(aside),
        _ => None,
    });
    asides.filter_map(|aside| aside.ancestors().find(|path| path.file_name() == Some(STAGING))).collect()
}

/// For whoever removes the installer's own folder at the end of a purge.
pub fn forget(host: &mut dyn Host, home: &Utf8Path) -> Result<(), HostError> {
    host.remove_tree(home)
}

#[cfg(test)]
mod tests;
