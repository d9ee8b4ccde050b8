//! The verbs of a lease. Which state follows is the domain's to say; which job is next, too.

use std::time::Duration;

use fettle_app::ports::ledger::{
    Beat, BeatAnswer, Fenced, Holder, L, Leased, LedgerError, Order, RUN_ORDER_VERSION, RunOrder, Sweep, Then, Wake,
    Want,
};
use fettle_domain::effect::EffectKind;
use fettle_domain::event::EventBody;
use fettle_domain::id::{JobId, RequestId, TaskId, WorkerId};
use fettle_domain::job::{Job, JobKind, JobState, Retry, Until};
use fettle_domain::lease::{Fence, LeaseRef};
use fettle_domain::step::StepKind;
use fettle_domain::task::TaskState;
use fettle_domain::turn::{self, Lane, Slots, Standing, Waiting};
use jiff::Timestamp;
use tokio::sync::MutexGuard;

use super::rows::{LaneRow, Rows, Tx, is_held};
use super::time::{after, until};
use super::{effect, run, task};
use crate::bug::Bug;

/// How far the persisted time may lag, in microseconds.
const PERSIST_EVERY: i64 = 5_000_000;

pub(super) struct Asked<'a> {
    pub(super) who: &'a Holder,
    pub(super) want: &'a Want,
    pub(super) max: u8,
    pub(super) request: RequestId,
    pub(super) seen: Option<&'a Seen<'a>>,
}

/// Of [`Bug::NoRowLock`]: a job as it was at a look, and the lock on what this dashboard writes.
pub(super) struct Seen<'a> {
    index: usize,
    job: Job,
    _own: MutexGuard<'a, ()>,
}

pub(super) fn look<'a>(rows: &Rows, slots: &Slots, want: &Want, own: MutexGuard<'a, ()>) -> Option<Seen<'a>> {
    let index = next(rows, slots, want)?;
    Some(Seen { index, job: rows.jobs[index].job.clone(), _own: own })
}

pub(super) fn lease(tx: &mut Tx<'_>, asked: &Asked<'_>) -> L<Vec<Leased>> {
    let repeated = leased_by_this_request(tx.rows, tx.now, asked)?;
    if !repeated.is_empty() {
        return Ok(repeated);
    }
    let mut leased = Vec::new();
    let deadline = tx.after(tx.timing.lease);
    while leased.len() < usize::from(asked.max) {
        let before = asked.seen.filter(|_| leased.is_empty()).map(|seen| (seen.index, seen.job.clone()));
        let now = || Some(next(tx.rows, tx.slots, asked.want)?).map(|index| (index, tx.rows.jobs[index].job.clone()));
        let Some((index, mut job)) = before.or_else(now) else { break };
        job = job.lease(asked.who.worker, tx.now, deadline).map_err(|e| LedgerError::Unreadable(e.to_string()))?;
        if tx.bug == Some(Bug::AttemptAsFence) {
            job.fence = Fence::new(u64::from(job.counters.attempts) + 1);
        }
        let fence = job.fence;
        let lane = tx.rows.jobs[index].lane;
        serve(tx, lane);
        tx.store(index, job);
        let row = &mut tx.rows.jobs[index];
        row.holder = Some(asked.who.name.clone());
        row.request = Some(asked.request);
        let (kind, task) = (row.job.kind, row.task);
        if kind == JobKind::Run {
            let ordinal = tx.rows.ordinal(tx.rows.jobs[index].job.id)?;
            tx.append(task, EventBody::RunLeased { ordinal, worker: asked.who.name.clone(), fence: fence.get() })?;
        }
        task::refresh(tx, task)?;
        leased.push(grant(tx.rows, index, tx.timing.lease)?);
    }
    if !leased.is_empty() {
        persist_time(tx);
    }
    Ok(leased)
}

fn leased_by_this_request(rows: &Rows, now: Timestamp, asked: &Asked<'_>) -> L<Vec<Leased>> {
    let mut leased = Vec::new();
    for (index, row) in rows.jobs.iter().enumerate() {
        let (JobState::Leased { worker, until: deadline } | JobState::Cancelling { worker, until: deadline }) =
            &row.job.state
        else {
            continue;
        };
        if *worker == asked.who.worker && row.request == Some(asked.request) {
            leased.push(grant(rows, index, until(now, *deadline))?);
        }
    }
    Ok(leased)
}

fn grant(rows: &Rows, index: usize, time_left: Duration) -> L<Leased> {
    let row = &rows.jobs[index];
    let order = match row.job.kind {
        JobKind::Run => Order::Run(Box::new(order(rows, index)?)),
        JobKind::Publish => Order::Publish { task: row.task },
    };
    let lease = LeaseRef { job: row.job.id, fence: row.job.fence };
    Ok(Leased { lease, time_left, attempts: row.job.counters.attempts, order })
}

fn order(rows: &Rows, index: usize) -> L<RunOrder> {
    let row = &rows.jobs[index];
    let task = rows.task(row.task)?;
    let run = &task.runs[rows.run_of(row.job.id)?.1];
    Ok(RunOrder {
        task: task.id,
        run: run.id,
        correlation: task.correlation,
        mode: task.mode,
        repo: task.repo.clone(),
        issue: task.issue.clone(),
        model: run.model.clone(),
        instruction: run.instruction.clone(),
        base: task.base.clone(),
        generation: task.generation,
        spent: run.spent,
        last_failure: row.last_failure.clone(),
    })
}

/// How many slots of `slots_of` are taken.
fn held(rows: &Rows, slots_of: &str) -> usize {
    let held = rows.jobs.iter().filter(|row| is_held(&row.job.state) && rows.lanes[row.lane].slots_of == slots_of);
    held.count() + rows.lingering.iter().filter(|of| *of == slots_of).count()
}

/// The lanes that `want` fits and whose model is not busy, with their free slots.
fn lanes(rows: &Rows, slots: &Slots, want: &Want) -> Vec<Lane> {
    let mut lanes = Vec::new();
    if !want.versions.contains(&RUN_ORDER_VERSION) {
        return lanes;
    }
    let fits = |lane: &LaneRow| lane.kind == want.kind && want.meets(&lane.needs);
    for (id, lane) in rows.lanes.iter().enumerate().filter(|(_, lane)| fits(lane)) {
        if free_of_model(rows, slots, lane.kind, &lane.model) == 0 {
            continue;
        }
        let held = u32::try_from(held(rows, &lane.slots_of)).unwrap_or(u32::MAX);
        let free_slots = slots.of(&lane.slots_of).saturating_sub(held);
        lanes.push(Lane { id: id as u64, served_at: lane.served_at, free_slots });
    }
    lanes
}

fn free_of_model(rows: &Rows, slots: &Slots, kind: JobKind, model: &str) -> u32 {
    let of_model = |lane: usize| rows.lanes[lane].kind == kind && rows.lanes[lane].model == model;
    let held = rows.jobs.iter().filter(|row| is_held(&row.job.state) && of_model(row.lane)).count();
    slots.of_model(model).saturating_sub(u32::try_from(held).unwrap_or(u32::MAX))
}

fn next(rows: &Rows, slots: &Slots, want: &Want) -> Option<usize> {
    let lanes = lanes(rows, slots, want);
    if lanes.is_empty() {
        return None;
    }
    let waiting: Vec<Waiting> = waiting(rows).collect();
    let next = turn::next(&waiting, &lanes)?;
    usize::try_from(next.seq).ok()
}

fn waiting(rows: &Rows) -> impl Iterator<Item = Waiting> + '_ {
    rows.jobs.iter().enumerate().filter_map(|(index, row)| {
        Some(Waiting {
            job: row.job.id,
            seq: index as u64,
            lane: row.lane as u64,
            runnable_at: row.runnable_at?,
            priority: row.priority,
        })
    })
}

/// Runs that [`next`] would give one after the other.
pub(super) fn count_next(rows: &Rows, slots: &Slots, want: &Want, max: u32) -> u32 {
    let mut standing = Vec::new();
    for lane in lanes(rows, slots, want) {
        let own = || waiting(rows).filter(|job| job.lane == lane.id);
        let Some(first) = own().min_by_key(|job| (turn::in_lane(job.runnable_at, job.priority), job.seq)) else {
            continue;
        };
        let row = &rows.lanes[usize::try_from(lane.id).unwrap_or(usize::MAX)];
        let turn = (turn::among_lanes(first.runnable_at, first.priority, lane.served_at), first.seq);
        let free_of_model = free_of_model(rows, slots, want.kind, &row.model);
        standing.push((
            turn,
            Standing {
                slots_of: row.slots_of.clone(),
                model: row.model.clone(),
                free_slots: lane.free_slots,
                free_of_model,
                queued: u32::try_from(own().count()).unwrap_or(u32::MAX),
            },
        ));
    }
    standing.sort_by_key(|(turn, _)| *turn);
    turn::count(standing.into_iter().map(|(_, lane)| lane)).min(max)
}

fn serve(tx: &mut Tx<'_>, lane: usize) {
    let (slots_of, now) = (tx.rows.lanes[lane].slots_of.clone(), tx.now);
    for lane in tx.rows.lanes.iter_mut().filter(|lane| lane.slots_of == slots_of) {
        lane.served_at = lane.served_at.max(now);
    }
}

pub(super) fn persist_time(tx: &mut Tx<'_>) {
    let now = tx.now.as_microsecond();
    if tx.rows.time_at < now - PERSIST_EVERY {
        tx.rows.time_at = now;
    }
}

pub(super) fn renew(tx: &mut Tx<'_>, beat: &Beat) -> L<BeatAnswer> {
    let Some(index) = tx.rows.find_job(beat.lease.job) else { return Ok(BeatAnswer::Lost) };
    let (deadline, fence) = (tx.after(tx.timing.lease), tx.fence_of(index, &beat.lease));
    let job = tx.rows.jobs[index].job.clone();
    let Ok(job) = revived(tx, job, fence).renew(fence, deadline) else { return Ok(BeatAnswer::Lost) };
    tx.store(index, job);
    let row = &tx.rows.jobs[index];
    let (task, kind) = (row.task, row.job.kind);
    if let JobState::Cancelling { .. } = row.job.state {
        let by = tx.rows.task(task)?.cancelled_by.clone().unwrap_or_default();
        return Ok(BeatAnswer::Cancel { reason: format!("cancelled by {by}") });
    }
    let (messages, received) = match kind {
        JobKind::Run => hand_over(tx, beat.lease.job, beat.received)?,
        JobKind::Publish => (Vec::new(), None),
    };
    Ok(BeatAnswer::Renewed { time_left: tx.timing.lease, messages, received })
}

/// With [`Bug::RenewalRevives`], a job whose lease has lapsed is its last holder's again.
fn revived(tx: &Tx<'_>, job: Job, fence: Fence) -> Job {
    match job.state {
        JobState::Queued
            if tx.bug == Some(Bug::RenewalRevives) && job.fence == fence && job.ended_by != Some(fence) =>
        {
            let worker = WorkerId::from_uuid(tx.ids.uuid());
            Job { state: JobState::Leased { worker, until: tx.now }, ..job }
        }
        _ => job,
    }
}

/// Messages that the holder has not been handed; without any under its lease, those that are not journaled.
fn hand_over(tx: &Tx<'_>, job: JobId, received: Option<u64>) -> L<(Vec<String>, Option<u64>)> {
    let (task, nth) = tx.rows.run_of(job)?;
    let row = tx.rows.task(task)?;
    let journaled = || row.runs[nth].steps.iter().filter(|(_, step)| step.kind == StepKind::MessageIn).count() as u64;
    let (all, has) = (row.messages.len() as u64, received.unwrap_or_else(journaled));
    if all <= has {
        return Ok((Vec::new(), received));
    }
    let new = row.messages.iter().skip(usize::try_from(has).unwrap_or(usize::MAX));
    Ok((new.map(|message| format!("{}: {}", message.author, message.content)).collect(), Some(all)))
}

/// A holder's own end of its lease.
pub(super) fn end(
    tx: &mut Tx<'_>,
    lease: &LeaseRef,
    failure: Option<&str>,
    ended: impl FnOnce(Job, Fence, &Tx<'_>) -> Result<Job, fettle_domain::job::Refused>,
) -> L<Fenced> {
    let index = match tx.held(lease) {
        Ok(index) => index,
        Err(fenced) => return Ok(fenced),
    };
    let fence = tx.fence_of(index, lease);
    let job = ended(tx.rows.jobs[index].job.clone(), fence, tx).map_err(|e| LedgerError::Unreadable(e.to_string()))?;
    let attempts_before = tx.rows.jobs[index].job.counters.attempts;
    tx.store(index, job);
    let row = &mut tx.rows.jobs[index];
    if let Some(why) = failure {
        row.last_failure = Some(why.to_owned());
    }
    let (task, kind, again) = (row.task, row.job.kind, !row.job.state.is_final());
    if row.job.counters.attempts > attempts_before {
        let why = failure.unwrap_or_default().to_owned();
        let body = match kind {
            JobKind::Run => EventBody::RunFailed { ordinal: tx.rows.ordinal(lease.job)?, why, again },
            JobKind::Publish => EventBody::PublishFailed { why, again },
        };
        tx.append(task, body)?;
    }
    after_end(tx, index)?;
    Ok(Fenced::Applied)
}

pub(super) fn fail(tx: &mut Tx<'_>, lease: &LeaseRef, why: &str, then: Then) -> L<Fenced> {
    end(tx, lease, Some(why), |job, fence, tx| {
        let retry = match then {
            Then::RetryAfter(wait) => Retry::At(tx.after(wait)),
            Then::Never => Retry::Never,
        };
        job.fail(fence, why, retry)
    })
}

pub(super) fn defer(tx: &mut Tx<'_>, lease: &LeaseRef, wake: Wake, why: &str) -> L<Fenced> {
    end(tx, lease, Some(why), |job, fence, tx| {
        let until = match wake {
            Wake::After(wait) => Until::Time(tx.after(wait)),
            Wake::Event => Until::Event,
        };
        job.defer(fence, until, why)
    })
}

/// A run that died owes its readers a comment; every end shows in the Task.
pub(super) fn after_end(tx: &mut Tx<'_>, index: usize) -> L<()> {
    let row = &tx.rows.jobs[index];
    let task = row.task;
    if row.job.kind == JobKind::Run && matches!(row.job.state, JobState::Dead { .. } | JobState::Cancelled) {
        run::want_what_follows(tx, task)?;
    }
    task::refresh(tx, task)
}

pub(super) fn sweep(tx: &mut Tx<'_>, max: u16, step: Option<Duration>) -> L<Sweep> {
    tx.rows.lingering.clear();
    if let Some(step) = step {
        for row in &mut tx.rows.jobs {
            if let JobState::Leased { until, .. } | JobState::Cancelling { until, .. } | JobState::Delayed { until } =
                &mut row.job.state
            {
                *until = after(*until, step);
            }
        }
    }
    let now = tx.now;
    let deadline = |state: &JobState| match state {
        JobState::Leased { until, .. } | JobState::Cancelling { until, .. } => Some(*until),
        _ => None,
    };
    let due = |state: &JobState| match state {
        JobState::Delayed { until } => Some(*until),
        _ => None,
    };
    let lapsed = earliest(tx.rows, now, max, deadline);
    let due = earliest(tx.rows, now, max, due);
    let mut sweep = Sweep::default();
    for index in lapsed {
        let Some(job) = tx.rows.jobs[index].job.clone().expire(now) else { continue };
        tx.store(index, job);
        let row = &tx.rows.jobs[index];
        let again = !row.job.state.is_final();
        let body = match row.job.kind {
            JobKind::Run => EventBody::RunLapsed { ordinal: tx.rows.ordinal(row.job.id)?, again },
            JobKind::Publish => EventBody::PublishFailed { why: "the publisher's lease ended".to_owned(), again },
        };
        let task = row.task;
        tx.append(task, body)?;
        after_end(tx, index)?;
        sweep.expired += 1;
    }
    for index in due {
        let Some(job) = tx.rows.jobs[index].job.clone().promote(now) else { continue };
        tx.store(index, job);
        let task = tx.rows.jobs[index].task;
        task::refresh(tx, task)?;
        sweep.promoted += 1;
    }
    persist_time(tx);
    Ok(sweep)
}

/// Jobs whose time has come, the earliest first.
fn earliest(rows: &Rows, now: Timestamp, max: u16, time: impl Fn(&JobState) -> Option<Timestamp>) -> Vec<usize> {
    let timed = rows.jobs.iter().enumerate().filter_map(|(index, row)| Some((time(&row.job.state)?, index)));
    let mut come: Vec<_> = timed.filter(|(at, _)| *at <= now).collect();
    come.sort();
    come.into_iter().take(max.into()).map(|(_, index)| index).collect()
}

pub(super) fn redrive(tx: &mut Tx<'_>, id: JobId, by: &str) -> L<()> {
    let index = tx.rows.job(id)?;
    let row = &tx.rows.jobs[index];
    let (task, kind) = (row.task, row.job.kind);
    let job = row.job.clone().redrive().map_err(|refused| LedgerError::Invalid(refused.to_string()))?;
    task::may_become_active(tx.rows, task, kind)?;
    match kind {
        JobKind::Run if tx.rows.task(task)?.state == TaskState::Cancelled => {
            return Err(LedgerError::Invalid(format!("{task} was cancelled; retry it as a new Task")));
        }
        JobKind::Run => {
            let row = tx.rows.task(task)?;
            let published = row.effects.iter().any(|(effect, _)| effect.kind == EffectKind::Push);
            if row.runs.len() > 1 && published {
                return Err(LedgerError::Invalid(format!("another Run's patch of {task} is published")));
            }
            tx.task(task)?.cancelled_by = None;
        }
        JobKind::Publish => {
            if let Some(newer) = tx.rows.unfinished_publish_job(task) {
                let newer = tx.rows.jobs[newer].job.id;
                return Err(LedgerError::Invalid(format!("{newer} publishes for {task} already")));
            }
        }
    }
    tx.store(index, job);
    if tx.rows.task(task)?.state != TaskState::Cancelled {
        tx.append(task, EventBody::Redriven { by: by.to_owned() })?;
    }
    task::refresh(tx, task)
}

/// Wakes what waited for an answer.
pub(super) fn wake(tx: &mut Tx<'_>, task: TaskId) {
    for index in 0..tx.rows.jobs.len() {
        let row = &tx.rows.jobs[index];
        if row.task == task
            && !tx.rows.run_of(row.job.id).is_ok_and(|(_, nth)| tx.rows.tasks[&task].runs[nth].result.is_some())
            && let Some(job) = row.job.clone().wake()
        {
            tx.store(index, job);
        }
    }
}

/// As `effect::cancel_publication`, for the run jobs.
pub(super) fn cancel_runs(tx: &mut Tx<'_>, task: TaskId) -> L<()> {
    for index in tx.rows.run_jobs(task)? {
        if let Some(job) = tx.rows.jobs[index].job.clone().cancel() {
            tx.store(index, job);
        }
    }
    effect::cancel_publication(tx, task)
}
