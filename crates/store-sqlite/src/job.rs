//! Jobs: rows to and from [`Job`], and the verbs of a lease. Which state follows is the domain's to say.

use std::time::Duration;

use fettle_app::ports::ledger::{
    Beat, BeatAnswer, Fenced, Holder, L, Leased, LedgerError, Order, RUN_ORDER_VERSION, Sweep, Then, Wake, Want,
};
use fettle_domain::event::EventBody;
use fettle_domain::id::{JobId, RequestId, TaskId, WorkerId};
use fettle_domain::job::{Counters, Job, JobKind, JobState, Refused, Retry, Until};
use fettle_domain::lease::{Fence, LeaseRef};
use fettle_domain::task::TaskState;
use fettle_domain::turn::{self, Place, Priority};
use rusqlite::{Connection, params};
use uuid::Uuid;

use crate::error::unreadable;
use crate::lane::{self, Lane, Turn};
use crate::sql::{Sql as _, first};
use crate::task::{self, TaskRow};
use crate::time::{after, from_micros, until, whole_micros};
use crate::writer::{Tx, Verb};
use crate::{effect, event, message, run};

/// How far the persisted time may lag: a restart gives every lease its full length anyway, and an idle ledger writes
/// nothing in between.
const PERSIST_EVERY: Duration = Duration::from_secs(5);

/// A job with what its row keeps beside the state.
#[derive(Debug, Clone)]
pub(crate) struct JobRow {
    pub(crate) job: Job,
    pub(crate) task: TaskId,
    /// Of the live lease, for people.
    pub(crate) holder: Option<String>,
    /// That the live lease answered.
    pub(crate) request: Option<RequestId>,
    pub(crate) last_failure: Option<String>,
    pub(crate) progress: u64,
    /// Since when it has been runnable, while it is.
    runnable_at: Option<i64>,
    priority: Priority,
    /// Absent for a job of an older binary that ended before there were lanes.
    lane: Option<Lane>,
    /// The state's name as it was read.
    was: &'static str,
}

pub(crate) fn find(conn: &Connection, id: JobId) -> L<Option<JobRow>> {
    struct Row {
        kind: String,
        task_id: Uuid,
        state: String,
        fence: i64,
        ended_by: Option<i64>,
        attempts: i64,
        crashes: i64,
        crashes_since_step: i64,
        delayed_until: Option<i64>,
        leased_until: Option<i64>,
        worker_id: Option<Uuid>,
        holder: Option<String>,
        request_id: Option<Uuid>,
        reason: Option<String>,
        last_failure: Option<String>,
        progress: i64,
        runnable_at: Option<i64>,
        priority: i64,
        lane_id: Option<i64>,
        slots_of: Option<String>,
    }
    let row = conn.maybe(
        "SELECT kind, task_id, state, fence, ended_by, attempts, crashes, crashes_since_step, delayed_until, leased_until,
                worker_id, holder, request_id, reason, last_failure, progress, runnable_at, priority, lane_id, slots_of
         FROM job LEFT JOIN lane ON lane.id = job.lane_id WHERE job.id = ?",
        params![id.as_uuid()],
        |row| {
            Ok(Row {
                kind: row.get(0)?,
                task_id: row.get(1)?,
                state: row.get(2)?,
                fence: row.get(3)?,
                ended_by: row.get(4)?,
                attempts: row.get(5)?,
                crashes: row.get(6)?,
                crashes_since_step: row.get(7)?,
                delayed_until: row.get(8)?,
                leased_until: row.get(9)?,
                worker_id: row.get(10)?,
                holder: row.get(11)?,
                request_id: row.get(12)?,
                reason: row.get(13)?,
                last_failure: row.get(14)?,
                progress: row.get(15)?,
                runnable_at: row.get(16)?,
                priority: row.get(17)?,
                lane_id: row.get(18)?,
                slots_of: row.get(19)?,
            })
        },
    )?;
    let Some(row) = row else { return Ok(None) };

    let bad = |what: &str| unreadable(format!("{id} has no {what}"));
    let fence = |value: i64| u64::try_from(value).map(Fence::new).map_err(|_| bad("valid fence"));
    let count = |value: i64| u16::try_from(value).map_err(|_| bad("valid counters"));
    let lease = || -> L<_> {
        let worker = WorkerId::from_uuid(row.worker_id.ok_or_else(|| bad("holder"))?);
        Ok((worker, from_micros(row.leased_until.ok_or_else(|| bad("deadline"))?)))
    };
    let reason = || row.reason.clone().ok_or_else(|| bad("reason"));
    let state = match row.state.as_str() {
        "queued" => JobState::Queued,
        "delayed" => JobState::Delayed { until: from_micros(row.delayed_until.ok_or_else(|| bad("time"))?) },
        "waiting" => JobState::Waiting { reason: reason()? },
        "leased" => lease().map(|(worker, until)| JobState::Leased { worker, until })?,
        "cancelling" => lease().map(|(worker, until)| JobState::Cancelling { worker, until })?,
        "done" => JobState::Done,
        "dead" => JobState::Dead { reason: reason()? },
        "cancelled" => JobState::Cancelled,
        other => return Err(unreadable(format!("{id} has the unknown state `{other}`"))),
    };
    let job = Job {
        id,
        kind: JobKind::named(&row.kind).ok_or_else(|| bad("known kind"))?,
        fence: fence(row.fence)?,
        state,
        ended_by: row.ended_by.map(fence).transpose()?,
        counters: Counters {
            attempts: count(row.attempts)?,
            crashes: count(row.crashes)?,
            crashes_since_step: count(row.crashes_since_step)?,
        },
    };
    let was = job.state.name();
    Ok(Some(JobRow {
        was,
        runnable_at: row.runnable_at,
        priority: Priority::new(u8::try_from(row.priority).map_err(|_| bad("valid priority"))?),
        lane: row.lane_id.zip(row.slots_of).map(|(id, slots_of)| Lane { id, slots_of }),
        job,
        task: TaskId::from_uuid(row.task_id),
        holder: row.holder,
        request: row.request_id.map(RequestId::from_uuid),
        last_failure: row.last_failure,
        progress: u64::try_from(row.progress).map_err(|_| bad("valid progress"))?,
    }))
}

pub(crate) fn get(conn: &Connection, id: JobId) -> L<JobRow> {
    find(conn, id)?.ok_or_else(|| LedgerError::NotFound(id.to_string()))
}

/// A new row, queued or ended already.
pub(crate) fn insert(tx: &mut Tx<'_>, job: Job, task: TaskId, place: &Place) -> L<JobRow> {
    let lane = lane::enter(tx, job.kind, RUN_ORDER_VERSION, place)?;
    let now = tx.now.as_microsecond();
    let (state, priority) = (job.state.name(), place.priority);
    let runnable_at = matches!(job.state, JobState::Queued).then_some(now);
    let turn_at = runnable_at.map(|at| turn::in_lane(from_micros(at), priority).as_microsecond());
    tx.conn.run(
        "INSERT INTO job (id, kind, task_id, order_version, state, fence, attempts, crashes, crashes_since_step,
                          runnable_at, progress, created_at, priority, lane_id, turn_at)
         VALUES (?, ?, ?, ?, ?, 0, 0, 0, 0, ?, 0, ?, ?, ?, ?)",
        params![
            job.id.as_uuid(),
            job.kind.name(),
            task.as_uuid(),
            RUN_ORDER_VERSION,
            state,
            runnable_at,
            now,
            priority.get(),
            lane.id,
            turn_at
        ],
    )?;
    if runnable_at.is_some() {
        lane::refresh(tx, &lane, Turn::Kept)?;
        tx.wakes.job(job.kind);
    }
    Ok(JobRow {
        was: state,
        runnable_at,
        priority,
        lane: Some(lane),
        job,
        task,
        holder: None,
        request: None,
        last_failure: None,
        progress: 0,
    })
}

pub(crate) fn store(tx: &mut Tx<'_>, row: &JobRow) -> L<()> {
    let job = &row.job;
    let (mut worker, mut leased_until, mut delayed_until, mut reason) = (None, None, None, None);
    match &job.state {
        JobState::Leased { worker: by, until } | JobState::Cancelling { worker: by, until } => {
            worker = Some(by.as_uuid());
            leased_until = Some(until.as_microsecond());
        }
        JobState::Delayed { until } => delayed_until = Some(until.as_microsecond()),
        JobState::Waiting { reason: why } | JobState::Dead { reason: why } => reason = Some(why.as_str()),
        JobState::Queued | JobState::Done | JobState::Cancelled => {}
    }
    let holder = row.holder.as_deref().filter(|_| worker.is_some());
    let request = row.request.map(|id| id.as_uuid()).filter(|_| worker.is_some());
    let Counters { attempts, crashes, crashes_since_step } = job.counters;
    let state = job.state.name();
    let queued = matches!(job.state, JobState::Queued);
    let runnable_at = queued.then(|| row.runnable_at.unwrap_or(tx.now.as_microsecond()));
    let turn_at = runnable_at.map(|at| turn::in_lane(from_micros(at), row.priority).as_microsecond());
    tx.conn.run(
        "UPDATE job SET state = ?, fence = ?, ended_by = ?, attempts = ?, crashes = ?, crashes_since_step = ?,
                runnable_at = ?, turn_at = ?, delayed_until = ?, leased_until = ?, worker_id = ?, holder = ?,
                request_id = ?, reason = ?, last_failure = ?, progress = ?
         WHERE id = ?",
        params![
            state,
            column(job.fence),
            job.ended_by.map(column),
            attempts,
            crashes,
            crashes_since_step,
            runnable_at,
            turn_at,
            delayed_until,
            leased_until,
            worker,
            holder,
            request,
            reason,
            row.last_failure,
            i64::try_from(row.progress).unwrap_or(i64::MAX),
            job.id.as_uuid()
        ],
    )?;
    if row.was == state {
        return Ok(());
    }
    let is_held = |state: &str| matches!(state, "leased" | "cancelling");
    if let Some(lane) = &row.lane {
        let turn = if is_held(state) && !is_held(row.was) { Turn::Had } else { Turn::Kept };
        lane::refresh(tx, lane, turn)?;
    }
    // A slot that was freed is somebody else's chance.
    if queued || (is_held(row.was) && !is_held(state)) {
        tx.wakes.job(job.kind);
    }
    Ok(())
}

/// SQLite's integers are signed; a fence is microseconds since 1970 and fits for 292,000 years.
pub(crate) fn column(fence: Fence) -> i64 {
    i64::try_from(fence.get()).unwrap_or(i64::MAX)
}

/// What a refusal means to a lease holder. `Err` only for a caller's bug.
pub(crate) fn fenced(refused: &Refused) -> L<Fenced> {
    match refused {
        Refused::Stale { .. } => Ok(Fenced::Stale),
        Refused::AlreadyApplied { .. } => Ok(Fenced::AlreadyApplied),
        Refused::NotPossible { .. } => Err(LedgerError::Invalid(refused.to_string())),
    }
}

/// The job under `lease`, or why a write by its holder changes nothing.
pub(crate) fn held(tx: &mut Tx<'_>, lease: &LeaseRef) -> L<Result<JobRow, Fenced>> {
    // A job nobody knows is one of a ledger that was restored from an older backup.
    let Some(row) = find(tx.conn, lease.job)? else { return Ok(Err(Fenced::Stale)) };
    match row.job.clone().held_under(lease.fence) {
        Ok(_) => Ok(Ok(row)),
        Err(refused) => Ok(Err(fenced(&refused)?)),
    }
}

/// As [`held`], for a read: a stale holder has nothing to read.
pub(crate) fn held_for_reading(conn: &Connection, lease: &LeaseRef) -> L<JobRow> {
    let row = get(conn, lease.job)?;
    match row.job.clone().held_under(lease.fence) {
        Ok(_) => Ok(row),
        Err(refused) => Err(LedgerError::Invalid(format!("stale lease: {refused}"))),
    }
}

pub(crate) struct Lease {
    pub(crate) who: Holder,
    pub(crate) want: Want,
    pub(crate) max: u8,
    pub(crate) request: RequestId,
}

impl Verb for Lease {
    type Out = Vec<Leased>;

    fn apply(&self, tx: &mut Tx<'_>) -> L<Vec<Leased>> {
        let repeated = self.leased_by_this_request(tx)?;
        if !repeated.is_empty() {
            return Ok(repeated);
        }
        let mut leased = Vec::new();
        let deadline = after(tx.now, tx.timing.lease);
        while leased.len() < usize::from(self.max) {
            let Some(id) = lane::next(tx, &self.want)? else { break };
            let mut row = get(tx.conn, id)?;
            row.job = row.job.lease(self.who.worker, tx.now, deadline).map_err(unreadable)?;
            row.holder = Some(self.who.name.clone());
            row.request = Some(self.request);
            row.progress = 0;
            store(tx, &row)?;
            let mut task = task::get(tx, row.task)?;
            if row.job.kind == JobKind::Run {
                let ordinal = run::ordinal(tx.conn, row.job.id)?;
                let body = EventBody::RunLeased { ordinal, worker: self.who.name.clone(), fence: row.job.fence.get() };
                task.tell(tx, &body)?;
                // Who is at work speaks for the Task.
                task.follow(tx, &row, None)?;
                task.store(tx)?;
            } else {
                let parts = task::parts(tx, row.task)?;
                if task.follow(tx, &parts.run, parts.publish.as_ref())? {
                    task.store(tx)?;
                }
            }
            leased.push(grant(tx, &row, task, tx.timing.lease)?);
        }
        if !leased.is_empty() {
            persist_time(tx)?;
        }
        Ok(leased)
    }
}

impl Lease {
    fn leased_by_this_request(&self, tx: &mut Tx<'_>) -> L<Vec<Leased>> {
        let (request, worker) = (self.request.as_uuid(), self.who.worker.as_uuid());
        let ids: Vec<Uuid> = tx.conn.all(
            "SELECT id FROM job WHERE request_id = ? AND worker_id = ? ORDER BY seq",
            params![request, worker],
            first,
        )?;
        let mut leased = Vec::with_capacity(ids.len());
        for id in ids {
            let row = get(tx.conn, JobId::from_uuid(id))?;
            let deadline = match row.job.state {
                JobState::Leased { until, .. } | JobState::Cancelling { until, .. } => until,
                _ => continue,
            };
            let task = task::get(tx, row.task)?;
            leased.push(grant(tx, &row, task, until(tx.now, deadline))?);
        }
        Ok(leased)
    }
}

fn grant(tx: &mut Tx<'_>, row: &JobRow, task: TaskRow, time_left: Duration) -> L<Leased> {
    let order = match row.job.kind {
        JobKind::Run => Order::Run(Box::new(run::order(tx, row, task)?)),
        JobKind::Publish => Order::Publish { task: row.task },
    };
    let lease = LeaseRef { job: row.job.id, fence: row.job.fence };
    Ok(Leased { lease, time_left, attempts: row.job.counters.attempts, order })
}

/// So that a ledger restarted under a clock set back does not go back with it.
fn persist_time(tx: &mut Tx<'_>) -> L<()> {
    let now = tx.now.as_microsecond();
    let stale = now - whole_micros(PERSIST_EVERY);
    tx.conn.run("UPDATE ledger SET time_at = ? WHERE time_at < ?", params![now, stale])?;
    Ok(())
}

pub(crate) struct Renew {
    pub(crate) beats: Vec<Beat>,
}

impl Verb for Renew {
    type Out = Vec<BeatAnswer>;

    fn apply(&self, tx: &mut Tx<'_>) -> L<Vec<BeatAnswer>> {
        let mut answers = Vec::with_capacity(self.beats.len());
        for beat in &self.beats {
            answers.push(renew(tx, beat)?);
        }
        Ok(answers)
    }
}

fn renew(tx: &mut Tx<'_>, beat: &Beat) -> L<BeatAnswer> {
    let Some(mut row) = find(tx.conn, beat.lease.job)? else { return Ok(BeatAnswer::Lost) };
    let Ok(job) = row.job.renew(beat.lease.fence, after(tx.now, tx.timing.lease)) else { return Ok(BeatAnswer::Lost) };
    row.job = job;
    row.progress = beat.progress;
    store(tx, &row)?;
    match row.job.state {
        JobState::Cancelling { .. } => Ok(BeatAnswer::Cancel { reason: task::cancel_reason(tx, row.task)? }),
        _ => {
            let (messages, received) = match row.job.kind {
                JobKind::Run => message::hand_over(tx, row.task, row.job.id, beat.received)?,
                JobKind::Publish => (Vec::new(), None),
            };
            Ok(BeatAnswer::Renewed { time_left: tx.timing.lease, messages, received })
        }
    }
}

pub(crate) struct Fail {
    pub(crate) lease: LeaseRef,
    pub(crate) why: String,
    pub(crate) then: Then,
}

impl Verb for Fail {
    type Out = Fenced;

    fn apply(&self, tx: &mut Tx<'_>) -> L<Fenced> {
        let mut row = match held(tx, &self.lease)? {
            Ok(row) => row,
            Err(fenced) => return Ok(fenced),
        };
        let then = match self.then {
            Then::RetryAfter(wait) => Retry::At(after(tx.now, wait)),
            Then::Never => Retry::Never,
        };
        row.job = row.job.fail(self.lease.fence, &self.why, then).map_err(unreadable)?;
        row.last_failure = Some(self.why.clone());
        store(tx, &row)?;
        let (why, again) = (self.why.clone(), !row.job.state.is_final());
        let body = match row.job.kind {
            JobKind::Run => EventBody::RunFailed { ordinal: run::ordinal(tx.conn, row.job.id)?, why, again },
            JobKind::Publish => EventBody::PublishFailed { why, again },
        };
        event::append(tx, row.task, &body)?;
        after_end(tx, &row)?;
        Ok(Fenced::Applied)
    }
}

pub(crate) struct Defer {
    pub(crate) lease: LeaseRef,
    pub(crate) until: Wake,
    pub(crate) why: String,
}

impl Verb for Defer {
    type Out = Fenced;

    fn apply(&self, tx: &mut Tx<'_>) -> L<Fenced> {
        let mut row = match held(tx, &self.lease)? {
            Ok(row) => row,
            Err(fenced) => return Ok(fenced),
        };
        let until = match self.until {
            Wake::After(wait) => Until::Time(after(tx.now, wait)),
            Wake::Event => Until::Event,
        };
        row.job = row.job.defer(self.lease.fence, until, &self.why).map_err(unreadable)?;
        row.last_failure = Some(self.why.clone());
        store(tx, &row)?;
        after_end(tx, &row)?;
        Ok(Fenced::Applied)
    }
}

pub(crate) struct Release {
    pub(crate) lease: LeaseRef,
}

impl Verb for Release {
    type Out = Fenced;

    fn apply(&self, tx: &mut Tx<'_>) -> L<Fenced> {
        let mut row = match held(tx, &self.lease)? {
            Ok(row) => row,
            Err(fenced) => return Ok(fenced),
        };
        row.job = row.job.release(self.lease.fence).map_err(unreadable)?;
        store(tx, &row)?;
        after_end(tx, &row)?;
        Ok(Fenced::Applied)
    }
}

/// A run that died owes its readers a comment, and one that was stopped may have been the last that the others waited for; every end
/// shows in the Task.
pub(crate) fn after_end(tx: &mut Tx<'_>, row: &JobRow) -> L<()> {
    if row.job.kind == JobKind::Run && matches!(row.job.state, JobState::Dead { .. } | JobState::Cancelled) {
        run::want_what_follows(tx, row.task)?;
    }
    task::refresh(tx, row.task)
}

pub(crate) struct SweepOnce {
    pub(crate) max: u16,
}

impl Verb for SweepOnce {
    type Out = Sweep;

    fn apply(&self, tx: &mut Tx<'_>) -> L<Sweep> {
        if let Some(step) = tx.time.forward_step() {
            move_deadlines(tx, step)?;
            tx.stepped = Some(step);
        }
        let now = tx.now.as_microsecond();
        let lapsed: Vec<Uuid> = tx.conn.all(
            "SELECT id FROM job WHERE leased_until <= ? ORDER BY leased_until LIMIT ?",
            params![now, self.max],
            first,
        )?;
        let due: Vec<Uuid> = tx.conn.all(
            "SELECT id FROM job WHERE delayed_until <= ? ORDER BY delayed_until LIMIT ?",
            params![now, self.max],
            first,
        )?;

        let mut sweep = Sweep::default();
        for id in lapsed {
            sweep.expired += u32::from(expire(tx, JobId::from_uuid(id))?);
        }
        for id in due {
            let mut row = get(tx.conn, JobId::from_uuid(id))?;
            let Some(job) = row.job.promote(tx.now) else { continue };
            row.job = job;
            store(tx, &row)?;
            task::refresh(tx, row.task)?;
            sweep.promoted += 1;
        }
        persist_time(tx)?;
        Ok(sweep)
    }
}

fn expire(tx: &mut Tx<'_>, id: JobId) -> L<bool> {
    let mut row = get(tx.conn, id)?;
    let Some(job) = row.job.expire(tx.now) else { return Ok(false) };
    row.job = job;
    store(tx, &row)?;
    let again = !row.job.state.is_final();
    let body = match row.job.kind {
        JobKind::Run => EventBody::RunLapsed { ordinal: run::ordinal(tx.conn, row.job.id)?, again },
        JobKind::Publish => EventBody::PublishFailed { why: "the publisher's lease ended".to_owned(), again },
    };
    event::append(tx, row.task, &body)?;
    after_end(tx, &row)?;
    Ok(true)
}

/// After a forward step of the wall clock: live leases keep the time they had left, and so do delays, since what is waited for
/// has not come nearer.
fn move_deadlines(tx: &mut Tx<'_>, step: Duration) -> L<()> {
    let step = whole_micros(step);
    tx.conn.run("UPDATE job SET leased_until = leased_until + ? WHERE leased_until IS NOT NULL", params![step])?;
    tx.conn.run("UPDATE job SET delayed_until = delayed_until + ? WHERE delayed_until IS NOT NULL", params![step])?;
    Ok(())
}

/// A real write that changes nothing people see.
pub(crate) struct Probe;

impl Verb for Probe {
    type Out = ();

    fn apply(&self, tx: &mut Tx<'_>) -> L<()> {
        let now = tx.now.as_microsecond();
        tx.conn.run("UPDATE ledger SET time_at = max(time_at, ?)", params![now])?;
        Ok(())
    }
}

pub(crate) struct Redrive {
    pub(crate) job: JobId,
    pub(crate) by: String,
}

impl Verb for Redrive {
    type Out = ();

    fn apply(&self, tx: &mut Tx<'_>) -> L<()> {
        redrive(tx, self.job, &self.by)
    }
}

/// Starts a dead job over in its own Task, which becomes active again.
pub(crate) fn redrive(tx: &mut Tx<'_>, id: JobId, by: &str) -> L<()> {
    let mut row = get(tx.conn, id)?;
    row.job = row.job.redrive().map_err(|refused| LedgerError::Invalid(refused.to_string()))?;
    task::may_become_active(tx, row.task, row.job.kind)?;
    match row.job.kind {
        JobKind::Run if task::get(tx, row.task)?.state == TaskState::Cancelled => {
            return Err(LedgerError::Invalid(format!("{} was cancelled; retry it as a new Task", row.task)));
        }
        JobKind::Run => {
            if run::count(tx.conn, row.task)? > 1 && effect::is_published(tx.conn, row.task)? {
                return Err(LedgerError::Invalid(format!("another Run's patch of {} is published", row.task)));
            }
            // A wish to stop that came too late is no wish about what is begun now.
            tx.conn.run("UPDATE task SET cancelled_by = NULL WHERE id = ?", params![row.task.as_uuid()])?;
        }
        JobKind::Publish => {
            if let Some(newer) = effect::unfinished_publish_job(tx.conn, row.task)? {
                return Err(LedgerError::Invalid(format!("{} publishes for {} already", newer.job.id, row.task)));
            }
        }
    }
    store(tx, &row)?;
    // One that was cancelled stays so: what goes on is its last word to the issue, and no news of the Task.
    if task::get(tx, row.task)?.state != TaskState::Cancelled {
        event::append(tx, row.task, &EventBody::Redriven { by: by.to_owned() })?;
    }
    task::refresh(tx, row.task)
}
