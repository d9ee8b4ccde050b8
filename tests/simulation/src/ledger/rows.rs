//! What the reference ledger keeps, as plain values, and the transaction that a verb changes them in.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use fettle_app::ports::clock::IdSource;
use fettle_app::ports::ledger::{Delivery, Fenced, L, LedgerError, RunPlan};
use fettle_domain::budget::Spent;
use fettle_domain::choice;
use fettle_domain::effect::Effect;
use fettle_domain::event::{Event, EventBody};
use fettle_domain::id::{CorrelationId, JobId, RequestId, RunId, TaskId};
use fettle_domain::issue::IssueSnapshot;
use fettle_domain::job::{Job, JobKind, JobState, Refused};
use fettle_domain::label::Labels;
use fettle_domain::lease::{Fence, LeaseRef, Timing};
use fettle_domain::object::BlobId;
use fettle_domain::publication::Audience;
use fettle_domain::repo::Repo;
use fettle_domain::run::RunResult;
use fettle_domain::step::StepRecord;
use fettle_domain::task::{Mode, TaskState};
use fettle_domain::turn::{Place, Priority, Slots};
use jiff::Timestamp;

use crate::bug::Bug;

/// Everything that is durable.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rows {
    pub(crate) deliveries: Vec<DeliveryRow>,
    pub(crate) intents: BTreeMap<String, TaskId>,
    pub(crate) tasks: BTreeMap<TaskId, TaskRow>,
    /// In the order in which they came.
    pub(crate) jobs: Vec<JobRow>,
    pub(super) lanes: Vec<LaneRow>,
    pub(crate) events: Vec<Event>,
    pub(super) blobs: BTreeMap<BlobId, Bytes>,
    pub(super) announced: u64,
    /// How far repositories were looked at.
    pub(super) marks: BTreeMap<u64, Timestamp>,
    /// The newest ledger time that a restart does not go behind.
    pub(super) time_at: i64,
    /// Of [`Bug::SlotFreedLate`]: whose slots count as taken until the next sweep.
    pub(super) lingering: Vec<String>,
}

#[derive(Debug, Clone)]
pub(crate) struct DeliveryRow {
    pub(crate) delivery: Delivery,
    pub(super) not_before: Option<Timestamp>,
    /// `None`: open.
    pub(crate) verdict: Option<String>,
}

#[derive(Debug, Clone)]
pub(crate) struct TaskRow {
    pub(crate) id: TaskId,
    pub(super) correlation: CorrelationId,
    pub(super) mode: Mode,
    pub(crate) repo: Option<Repo>,
    pub(crate) issue: IssueSnapshot,
    pub(super) model: Option<String>,
    pub(super) needs: Labels,
    pub(super) base: Option<String>,
    pub(super) actor: String,
    pub(super) trigger: String,
    pub(super) generation: u32,
    pub(crate) state: TaskState,
    pub(super) note: Option<String>,
    pub(super) created_at: Timestamp,
    pub(super) updated_at: Timestamp,
    pub(super) ended: bool,
    pub(crate) event_seq: u64,
    pub(crate) cancelled_by: Option<String>,
    /// In their order; the first came with the Task.
    pub(crate) runs: Vec<RunRow>,
    /// The one whose end is the Task's.
    pub(crate) leading: usize,
    /// Its pull request is to be a draft.
    pub(crate) as_draft: bool,
    /// In the order in which they are brought about, with the fence that wrote last.
    pub(crate) effects: Vec<(Effect, Option<Fence>)>,
    pub(crate) messages: Vec<Message>,
}

#[derive(Debug, Clone)]
pub(crate) struct RunRow {
    pub(crate) id: RunId,
    pub(crate) job: JobId,
    pub(super) model: Option<String>,
    pub(super) instruction: Option<String>,
    pub(crate) steps: Vec<(Fence, StepRecord)>,
    pub(super) spent: Spent,
    pub(crate) result: Option<RunResult>,
}

impl RunRow {
    pub(super) fn new(plan: &RunPlan) -> Self {
        let RunPlan { run, job, model, instruction } = plan.clone();
        Self { id: run, job, model, instruction, steps: Vec::new(), spent: Spent::default(), result: None }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(super) author: String,
    pub(super) at: Timestamp,
    pub(crate) content: String,
}

#[derive(Debug, Clone)]
pub(crate) struct JobRow {
    pub(crate) job: Job,
    pub(crate) task: TaskId,
    pub(super) lane: usize,
    pub(super) priority: Priority,
    /// Since when it has been runnable, while it is.
    pub(crate) runnable_at: Option<Timestamp>,
    pub(super) holder: Option<String>,
    pub(super) request: Option<RequestId>,
    pub(super) last_failure: Option<String>,
}

#[derive(Debug, Clone)]
pub(super) struct LaneRow {
    pub(super) kind: JobKind,
    pub(super) model: String,
    pub(super) needs: Labels,
    pub(super) slots_of: String,
    pub(super) served_at: Timestamp,
}

/// What became runnable, for whoever waits.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Wakes {
    pub(super) delivery: bool,
    pub(super) job: bool,
}

/// What a verb works with. A verb checks everything before it changes anything: nothing is rolled back here.
pub(super) struct Tx<'a> {
    pub(super) rows: &'a mut Rows,
    pub(super) now: Timestamp,
    pub(super) timing: Timing,
    pub(super) slots: &'a Slots,
    pub(super) ids: &'a dyn IdSource,
    pub(super) bug: Option<Bug>,
    pub(super) wakes: Wakes,
}

pub(crate) fn is_held(state: &JobState) -> bool {
    matches!(state, JobState::Leased { .. } | JobState::Cancelling { .. })
}

impl TaskRow {
    pub(super) fn audience(&self) -> Audience {
        Audience { mode: self.mode, has_repo: self.repo.is_some(), has_issue: self.issue.number.is_some() }
    }

    /// What at most one active Task may have.
    pub(crate) fn place(&self) -> Option<(u64, u64)> {
        Some((self.repo.as_ref()?.forge_id, self.issue.number?))
    }

    pub(super) fn place_of(&self, kind: JobKind, model: Option<&str>) -> Place {
        Place::of(kind, self.repo.as_ref(), model, &self.needs, &self.trigger)
    }

    pub(crate) fn leading(&self) -> &RunRow {
        &self.runs[self.leading]
    }
}

impl Rows {
    pub(crate) fn find_job(&self, id: JobId) -> Option<usize> {
        self.jobs.iter().position(|row| row.job.id == id)
    }

    pub(super) fn job(&self, id: JobId) -> L<usize> {
        self.find_job(id).ok_or_else(|| LedgerError::NotFound(id.to_string()))
    }

    pub(crate) fn task(&self, id: TaskId) -> L<&TaskRow> {
        self.tasks.get(&id).ok_or_else(|| LedgerError::NotFound(id.to_string()))
    }

    /// The newest publish job of a Task.
    /// One that was cancelled, else the newest.
    pub(crate) fn publish_job(&self, task: TaskId) -> Option<&JobRow> {
        let cancelled = |row: &&JobRow| row.job.kind == JobKind::Publish && row.job.state == JobState::Cancelled;
        self.jobs.iter().rev().filter(|row| row.task == task).find(cancelled).or_else(|| self.newest_publish_job(task))
    }

    /// Of each Task that waits for a person to choose, the last Run with a patch.
    pub(crate) fn to_be_chosen(&self) -> Vec<(TaskId, RunId)> {
        let waits = |run: &&RunRow| {
            let job = self.find_job(run.job).map(|index| &self.jobs[index].job.state);
            run.result.is_some() && matches!(job, Some(JobState::Waiting { .. }))
        };
        let waiting = self.tasks.values().filter(|task| task.state == TaskState::Waiting);
        waiting.filter_map(|task| Some((task.id, task.runs.iter().rev().find(waits)?.id))).collect()
    }

    pub(crate) fn newest_publish_job(&self, task: TaskId) -> Option<&JobRow> {
        self.jobs.iter().rev().find(|row| row.task == task && row.job.kind == JobKind::Publish)
    }

    pub(super) fn unfinished_publish_job(&self, task: TaskId) -> Option<usize> {
        let unfinished =
            |row: &JobRow| row.task == task && row.job.kind == JobKind::Publish && !row.job.state.is_final();
        self.jobs.iter().position(unfinished)
    }

    pub(super) fn active(&self, repo: u64, issue: u64) -> Option<TaskId> {
        let here = |task: &&TaskRow| !task.ended && task.place() == Some((repo, issue));
        self.tasks.values().find(here).map(|task| task.id)
    }

    /// Of each of a Task's Runs.
    pub(super) fn run_jobs(&self, task: TaskId) -> L<Vec<usize>> {
        self.task(task)?.runs.iter().map(|run| self.job(run.job)).collect()
    }

    /// Of the Run that speaks for the Task.
    pub(super) fn run_job(&self, task: TaskId) -> L<usize> {
        let jobs = self.run_jobs(task)?;
        let states: Vec<&JobState> = jobs.iter().map(|&index| &self.jobs[index].job.state).collect();
        let row = self.task(task)?;
        Ok(jobs[choice::speaker(&states, row.leading, row.cancelled_by.is_some())])
    }

    pub(super) fn leading_job(&self, task: TaskId) -> L<usize> {
        self.job(self.task(task)?.leading().job)
    }

    /// The Task and the Run that a job executes.
    pub(super) fn run_of(&self, job: JobId) -> L<(TaskId, usize)> {
        let task = self.jobs[self.job(job)?].task;
        let nth = self.task(task)?.runs.iter().position(|run| run.job == job);
        Ok((task, nth.ok_or_else(|| LedgerError::Invalid(format!("{job} is not a run job")))?))
    }

    /// Which of its Task's Runs a job executes, from 1.
    pub(super) fn ordinal(&self, job: JobId) -> L<u16> {
        Ok(u16::try_from(self.run_of(job)?.1 + 1).unwrap_or(u16::MAX))
    }

    /// The job under `lease`, for a read: a stale holder has nothing to read.
    pub(super) fn held_for_reading(&self, lease: &LeaseRef) -> L<&JobRow> {
        let row = &self.jobs[self.job(lease.job)?];
        match row.job.clone().held_under(lease.fence) {
            Ok(_) => Ok(row),
            Err(refused) => Err(LedgerError::Invalid(format!("stale lease: {refused}"))),
        }
    }

    pub(super) fn fold(&self, task: TaskId) -> L<TaskState> {
        let run = &self.jobs[self.run_job(task)?].job.state;
        Ok(TaskState::fold(run, self.publish_job(task).map(|row| &row.job.state)))
    }
}

impl Tx<'_> {
    pub(super) fn task(&mut self, id: TaskId) -> L<&mut TaskRow> {
        self.rows.tasks.get_mut(&id).ok_or_else(|| LedgerError::NotFound(id.to_string()))
    }

    pub(super) fn after(&self, wait: Duration) -> Timestamp {
        super::time::after(self.now, wait)
    }

    pub(super) fn append(&mut self, task: TaskId, body: EventBody) -> L<()> {
        let (now, seq) = (self.now, self.rows.events.len() as u64 + 1);
        let row = self.task(task)?;
        row.event_seq += 1;
        row.updated_at = row.updated_at.max(now);
        let event = Event { seq, task, task_seq: row.event_seq, at: now, correlation: row.correlation, body };
        self.rows.events.push(event);
        Ok(())
    }

    /// The job under `lease`, or why a write by its holder changes nothing.
    pub(super) fn held(&self, lease: &LeaseRef) -> Result<usize, Fenced> {
        let index = self.rows.find_job(lease.job).ok_or(Fenced::Stale)?;
        let job = &self.rows.jobs[index].job;
        if self.bug == Some(Bug::NoFenceCheck) && is_held(&job.state) {
            return Ok(index);
        }
        match job.clone().held_under(lease.fence) {
            Ok(_) => Ok(index),
            Err(Refused::AlreadyApplied { .. }) => Err(Fenced::AlreadyApplied),
            Err(Refused::Stale { .. } | Refused::NotPossible { .. }) => Err(Fenced::Stale),
        }
    }

    /// The fence that a transition by the holder of `lease` is asked with.
    pub(super) fn fence_of(&self, index: usize, lease: &LeaseRef) -> Fence {
        match self.bug {
            Some(Bug::NoFenceCheck) => self.rows.jobs[index].job.fence,
            _ => lease.fence,
        }
    }

    /// `model`: of a Run.
    pub(super) fn insert_job(&mut self, job: Job, task: TaskId, model: Option<&str>) -> L<()> {
        let place = self.rows.task(task)?.place_of(job.kind, model);
        let lane = self.lane(job.kind, &place);
        let runnable_at = matches!(job.state, JobState::Queued).then_some(self.now);
        self.wakes.job |= runnable_at.is_some();
        self.rows.jobs.push(JobRow {
            job,
            task,
            lane,
            priority: place.priority,
            runnable_at,
            holder: None,
            request: None,
            last_failure: None,
        });
        Ok(())
    }

    fn lane(&mut self, kind: JobKind, place: &Place) -> usize {
        let lanes = &mut self.rows.lanes;
        let same = |lane: &LaneRow| {
            (lane.kind, &lane.model, &lane.needs, &lane.slots_of) == (kind, &place.model, &place.needs, &place.slots_of)
        };
        lanes.iter().position(same).unwrap_or_else(|| {
            lanes.push(LaneRow {
                kind,
                model: place.model.clone(),
                needs: place.needs.clone(),
                slots_of: place.slots_of.clone(),
                served_at: Timestamp::UNIX_EPOCH,
            });
            lanes.len() - 1
        })
    }

    pub(super) fn store(&mut self, index: usize, job: Job) {
        let row = &mut self.rows.jobs[index];
        let (was_held, was) = (is_held(&row.job.state), row.job.state.name());
        row.job = job;
        let (held, queued) = (is_held(&row.job.state), matches!(row.job.state, JobState::Queued));
        if !held {
            row.holder = None;
            row.request = None;
        }
        row.runnable_at = queued.then(|| row.runnable_at.unwrap_or(self.now));
        if row.job.state.name() == was {
            return;
        }
        self.wakes.job |= queued || (was_held && !held);
        if self.bug == Some(Bug::SlotFreedLate) && was_held && !held {
            let slots_of = self.rows.lanes[row.lane].slots_of.clone();
            self.rows.lingering.push(slots_of);
        }
    }
}
