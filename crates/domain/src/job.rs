//! The life of a job as a state machine: each transition takes the job and gives back the next one, or says why not.
//!
//! The ledger reads a row, asks a transition, and writes the result in one transaction. It decides nothing itself.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::id::{JobId, WorkerId};
use crate::lease::Fence;
use crate::retry::{MAX_ATTEMPTS, MAX_CRASHES, MAX_CRASHES_WITHOUT_STEP};

/// Who executes a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// A run; leased by a worker.
    Run,
    /// The Task's wanted effects; leased by the publisher.
    Publish,
}

impl JobKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Publish => "publish",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        [Self::Run, Self::Publish].into_iter().find(|kind| kind.name() == name)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    pub id: JobId,
    pub kind: JobKind,
    /// The newest fence ever issued; outlives its lease.
    pub fence: Fence,
    pub state: JobState,
    /// The fence whose holder ended its lease itself; tells a repeated write from a stale one.
    pub ended_by: Option<Fence>,
    pub counters: Counters,
}

/// Failures and crashes. They count, they never fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Grows only by `fail`.
    pub attempts: u16,
    /// Grows only by expiry.
    pub crashes: u16,
    /// Expiries since the last recorded step.
    pub crashes_since_step: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobState {
    Queued,
    /// Runnable again at a time.
    Delayed {
        until: Timestamp,
    },
    /// Runnable again when something happens.
    Waiting {
        reason: String,
    },
    Leased {
        worker: WorkerId,
        until: Timestamp,
    },
    /// Cancelled while leased; its holder learns it at the next renewal.
    Cancelling {
        worker: WorkerId,
        until: Timestamp,
    },
    Done,
    Dead {
        reason: String,
    },
    Cancelled,
}

/// A transition that changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No live lease has this fence: stop, write nothing.
    #[error("{job} has moved on; its newest fence is {}", newest.get())]
    Stale { job: JobId, newest: Fence },
    /// This fence's holder has ended the lease already; its answer was lost.
    #[error("{job} was already ended by fence {}", fence.get())]
    AlreadyApplied { job: JobId, fence: Fence },
    /// The job's state does not allow it.
    #[error("{job} is {state}")]
    NotPossible { job: JobId, state: &'static str },
}

/// What to do after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Retry {
    At(Timestamp),
    Never,
}

/// What ends the wait of a deferred job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Until {
    Time(Timestamp),
    Event,
}

impl Job {
    /// A new job, runnable at once.
    pub fn queued(id: JobId, kind: JobKind) -> Self {
        Self { id, kind, fence: Fence::NONE, state: JobState::Queued, ended_by: None, counters: Counters::default() }
    }

    /// Gives the job to `worker` under a new fence.
    pub fn lease(self, worker: WorkerId, now: Timestamp, until: Timestamp) -> Result<Self, Refused> {
        match self.state {
            JobState::Queued => {
                Ok(Self { fence: self.fence.next(now), state: JobState::Leased { worker, until }, ..self })
            }
            JobState::Delayed { .. }
            | JobState::Waiting { .. }
            | JobState::Leased { .. }
            | JobState::Cancelling { .. }
            | JobState::Done
            | JobState::Dead { .. }
            | JobState::Cancelled => Err(self.not_possible()),
        }
    }

    /// Extends the lease. A cancelled job keeps its holder until the holder lets go.
    pub fn renew(self, fence: Fence, until: Timestamp) -> Result<Self, Refused> {
        let live = self.held_under(fence)?;
        let state = match live.state {
            JobState::Leased { worker, .. } => JobState::Leased { worker, until },
            JobState::Cancelling { worker, .. } => JobState::Cancelling { worker, until },
            other => other,
        };
        Ok(Self { state, ..live })
    }

    /// Notes that the holder got somewhere: crashes before this step no longer count towards poison.
    pub fn step(self, fence: Fence) -> Result<Self, Refused> {
        let live = self.held_under(fence)?;
        Ok(Self { counters: Counters { crashes_since_step: 0, ..live.counters }, ..live })
    }

    /// The work is done. Also while cancelling: then it was too late to cancel.
    pub fn complete(self, fence: Fence) -> Result<Self, Refused> {
        self.let_go(fence, |_| JobState::Done, JobState::Done)
    }

    /// The holder did its part, more has come meanwhile (a publish job with new wanted effects).
    pub fn again(self, fence: Fence) -> Result<Self, Refused> {
        self.let_go(fence, |_| JobState::Queued, JobState::Cancelled)
    }

    /// Spends an attempt.
    pub fn fail(mut self, fence: Fence, why: &str, then: Retry) -> Result<Self, Refused> {
        self = self.held_under(fence)?;
        self.counters.attempts += 1;
        let next = |job: &Self| match then {
            Retry::At(until) if job.counters.attempts < MAX_ATTEMPTS => JobState::Delayed { until },
            Retry::At(_) => JobState::Dead { reason: format!("failed {MAX_ATTEMPTS} times, last: {why}") },
            Retry::Never => JobState::Dead { reason: why.to_owned() },
        };
        self.let_go(fence, next, JobState::Cancelled)
    }

    /// Spends no attempt: a rate limit, a question to a human.
    pub fn defer(self, fence: Fence, until: Until, why: &str) -> Result<Self, Refused> {
        let next = |_: &Self| match until {
            Until::Time(until) => JobState::Delayed { until },
            Until::Event => JobState::Waiting { reason: why.to_owned() },
        };
        self.let_go(fence, next, JobState::Cancelled)
    }

    /// Spends no attempt and is runnable at once: the worker shuts down.
    pub fn release(self, fence: Fence) -> Result<Self, Refused> {
        self.let_go(fence, |_| JobState::Queued, JobState::Cancelled)
    }

    /// The work is done, but nobody wants what it came to: for one that was stopped alone, without its Task.
    pub fn complete_unwanted(self, fence: Fence) -> Result<Self, Refused> {
        self.let_go(fence, |_| JobState::Done, JobState::Cancelled)
    }

    /// Takes the lease of a holder that went silent. `None` while the lease is live or there is none.
    pub fn expire(mut self, now: Timestamp) -> Option<Self> {
        let cancelling = match self.state {
            JobState::Leased { until, .. } if until <= now => false,
            JobState::Cancelling { until, .. } if until <= now => true,
            _ => return None,
        };
        self.counters.crashes += 1;
        self.counters.crashes_since_step += 1;
        self.state = if cancelling {
            JobState::Cancelled
        } else if self.counters.crashes_since_step >= MAX_CRASHES_WITHOUT_STEP {
            JobState::Dead { reason: format!("its worker died {MAX_CRASHES_WITHOUT_STEP} times without a new step") }
        } else if self.counters.crashes >= MAX_CRASHES {
            JobState::Dead { reason: format!("its worker died {MAX_CRASHES} times") }
        } else {
            JobState::Queued
        };
        Some(self)
    }

    /// Makes a delayed job runnable when its time has come.
    pub fn promote(self, now: Timestamp) -> Option<Self> {
        match self.state {
            JobState::Delayed { until } if until <= now => Some(Self { state: JobState::Queued, ..self }),
            _ => None,
        }
    }

    /// Makes a waiting job runnable because what it waited for has happened.
    pub fn wake(self) -> Option<Self> {
        match self.state {
            JobState::Waiting { .. } => Some(Self { state: JobState::Queued, ..self }),
            _ => None,
        }
    }

    /// Ends a job that waited for a person's decision and has nothing left to do. `None`: it does not wait.
    pub fn settle(self) -> Option<Self> {
        match self.state {
            JobState::Waiting { .. } => Some(Self { state: JobState::Done, ..self }),
            _ => None,
        }
    }

    /// At once when nobody holds it, else as soon as its holder lets go. `None` when there is nothing left to cancel.
    pub fn cancel(self) -> Option<Self> {
        let state = match self.state {
            JobState::Queued | JobState::Delayed { .. } | JobState::Waiting { .. } => JobState::Cancelled,
            JobState::Leased { worker, until } => JobState::Cancelling { worker, until },
            JobState::Cancelling { .. } | JobState::Done | JobState::Dead { .. } | JobState::Cancelled => return None,
        };
        Some(Self { state, ..self })
    }

    /// Starts a dead job over. The fence goes on.
    pub fn redrive(self) -> Result<Self, Refused> {
        match self.state {
            JobState::Dead { .. } => Ok(Self { state: JobState::Queued, counters: Counters::default(), ..self }),
            _ => Err(self.not_possible()),
        }
    }

    /// The job, if `fence` is its live lease.
    pub fn held_under(self, fence: Fence) -> Result<Self, Refused> {
        let live = matches!(self.state, JobState::Leased { .. } | JobState::Cancelling { .. });
        if live && self.fence == fence {
            Ok(self)
        } else if self.ended_by == Some(fence) {
            Err(Refused::AlreadyApplied { job: self.id, fence })
        } else {
            Err(Refused::Stale { job: self.id, newest: self.fence })
        }
    }

    fn let_go(
        self,
        fence: Fence,
        leased_becomes: impl FnOnce(&Self) -> JobState,
        cancelling_becomes: JobState,
    ) -> Result<Self, Refused> {
        let live = self.held_under(fence)?;
        let state = match live.state {
            JobState::Cancelling { .. } => cancelling_becomes,
            _ => leased_becomes(&live),
        };
        Ok(Self { state, ended_by: Some(fence), ..live })
    }

    fn not_possible(&self) -> Refused {
        Refused::NotPossible { job: self.id, state: self.state.name() }
    }
}

impl JobState {
    /// The state's word, as stored and shown.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Delayed { .. } => "delayed",
            Self::Waiting { .. } => "waiting",
            Self::Leased { .. } => "leased",
            Self::Cancelling { .. } => "cancelling",
            Self::Done => "done",
            Self::Dead { .. } => "dead",
            Self::Cancelled => "cancelled",
        }
    }

    /// No transition but `redrive` leads out.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Done | Self::Dead { .. } | Self::Cancelled)
    }
}

#[cfg(test)]
mod tests;
