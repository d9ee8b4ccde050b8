//! Jobs: rows to and from [`Job`], and the verbs of a lease. Which state follows is the domain's to say.

use std::time::Duration;

use fettle_app::ports::ledger::{
    Beat, BeatAnswer, Fenced, Holder, Leased, LedgerError, Order, RUN_ORDER_VERSION, Sweep, Then, Wake, Want,
};
use fettle_domain::event::EventBody;
use fettle_domain::id::{JobId, RequestId, TaskId, WorkerId};
use fettle_domain::job::{Counters, Job, JobKind, JobState, Refused, Retry, Until};
use fettle_domain::lease::{Fence, LeaseRef};
use fettle_domain::task::TaskState;
use fettle_domain::turn::{self, Place, Priority};
use jiff::Timestamp;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::error::{OrLedger, R, unreadable};
use crate::time::{Instant, after, until};
use crate::writer::{Tx, Verb};
use crate::{effect, event, lane, message, run, stored, task};

/// Jobs that may be in others' hands before a lease gives up for the moment; as many as a renewal or a sweep holds at once.
const LOOKED_AT: i64 = 32;

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
    runnable_at: Option<Timestamp>,
    priority: Priority,
    lane: i64,
    /// The state's name as it was read.
    was: &'static str,
}

pub(crate) async fn find(conn: &mut PgConnection, id: JobId) -> R<Option<JobRow>> {
    let uuid = id.as_uuid();
    let row = sqlx::query!(
        r#"SELECT kind, task_id, state, fence, ended_by, attempts, crashes, crashes_since_step,
                  delayed_until, leased_until, worker_id, holder,
                  request_id, reason, last_failure, progress,
                  runnable_at AS "runnable_at: Instant", priority, lane_id
           FROM job WHERE id = $1"#,
        uuid,
    )
    .fetch_optional(conn)
    .await
    .or_ledger()?;
    let Some(row) = row else { return Ok(None) };

    let bad = |what: &str| unreadable(format!("{id} has no {what}"));
    let fence = |value: i64| u64::try_from(value).map(Fence::new).map_err(|_| bad("valid fence"));
    let count = |value: i64| u16::try_from(value).map_err(|_| bad("valid counters"));
    let (until, worker) = (row.delayed_until.or(row.leased_until), row.worker_id);
    let state = state_of(&row.state, until, worker, row.reason).map_err(|what| unreadable(format!("{id} {what}")))?;
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
        runnable_at: row.runnable_at.map(|Instant(at)| at),
        priority: Priority::new(u8::try_from(row.priority).map_err(|_| bad("valid priority"))?),
        lane: row.lane_id,
        job,
        task: TaskId::from_uuid(row.task_id),
        holder: row.holder,
        request: row.request_id.map(RequestId::from_uuid),
        last_failure: row.last_failure,
        progress: u64::try_from(row.progress).map_err(|_| bad("valid progress"))?,
    }))
}

/// A job's state from its columns; `until` is whichever time it has. Otherwise what it lacks.
pub(crate) fn state_of(
    state: &str,
    until: Option<Instant>,
    worker: Option<Uuid>,
    reason: Option<String>,
) -> Result<JobState, String> {
    let until = || until.map(|Instant(until)| until).ok_or("has no time");
    let worker = || worker.map(WorkerId::from_uuid).ok_or("has no holder");
    let reason = || reason.ok_or("has no reason");
    Ok(match state {
        "queued" => JobState::Queued,
        "delayed" => JobState::Delayed { until: until()? },
        "waiting" => JobState::Waiting { reason: reason()? },
        "leased" => JobState::Leased { worker: worker()?, until: until()? },
        "cancelling" => JobState::Cancelling { worker: worker()?, until: until()? },
        "done" => JobState::Done,
        "dead" => JobState::Dead { reason: reason()? },
        "cancelled" => JobState::Cancelled,
        other => return Err(format!("has the unknown state `{other}`")),
    })
}

pub(crate) async fn get(conn: &mut PgConnection, id: JobId) -> R<JobRow> {
    Ok(find(conn, id).await?.ok_or_else(|| LedgerError::NotFound(id.to_string()))?)
}

pub(crate) async fn insert(tx: &mut Tx<'_>, job: &Job, task: TaskId, place: &Place) -> R<()> {
    let lane = lane::enter(tx, job.kind, RUN_ORDER_VERSION, place).await?;
    let (id, task, kind, now) = (job.id.as_uuid(), task.as_uuid(), job.kind.name(), Instant(tx.now));
    let state = job.state.name();
    let queued = matches!(job.state, JobState::Queued);
    let runnable_at = queued.then_some(now);
    let turn_at = queued.then(|| Instant(turn::in_lane(tx.now, place.priority)));
    sqlx::query!(
        "INSERT INTO job (id, kind, task_id, order_version, state, fence, attempts, crashes, crashes_since_step,
                          runnable_at, progress, created_at, priority, lane_id, turn_at)
         VALUES ($1, $2, $3, $4, $5, 0, 0, 0, 0, $6, 0, $7, $8, $9, $10)",
        id,
        kind,
        task,
        i64::from(RUN_ORDER_VERSION),
        state,
        runnable_at,
        now,
        i64::from(place.priority.get()),
        lane,
        turn_at,
    )
    .execute(&mut *tx.conn)
    .await
    .or_ledger()?;
    if queued {
        tx.wakes.job(job.kind);
    }
    Ok(())
}

pub(crate) async fn store(tx: &mut Tx<'_>, row: &JobRow) -> R<()> {
    let job = &row.job;
    let (mut worker, mut leased_until, mut delayed_until, mut reason) = (None, None, None, None);
    match &job.state {
        JobState::Leased { worker: by, until } | JobState::Cancelling { worker: by, until } => {
            worker = Some(by.as_uuid());
            leased_until = Some(Instant(*until));
        }
        JobState::Delayed { until } => delayed_until = Some(Instant(*until)),
        JobState::Waiting { reason: why } | JobState::Dead { reason: why } => reason = Some(stored::text(why)),
        JobState::Queued | JobState::Done | JobState::Cancelled => {}
    }
    let holder = row.holder.as_deref().filter(|_| worker.is_some()).map(stored::text);
    let last_failure = row.last_failure.as_deref().map(stored::text);
    let request = row.request.map(|id| id.as_uuid()).filter(|_| worker.is_some());
    let fence = column(job.fence);
    let ended_by = job.ended_by.map(column);
    let Counters { attempts, crashes, crashes_since_step } = job.counters;
    let progress = i64::try_from(row.progress).unwrap_or(i64::MAX);
    let (id, state) = (job.id.as_uuid(), job.state.name());
    let queued = matches!(job.state, JobState::Queued);
    let runnable_at = queued.then(|| row.runnable_at.unwrap_or(tx.now));
    let turn_at = runnable_at.map(|at| Instant(turn::in_lane(at, row.priority)));
    sqlx::query!(
        "UPDATE job SET state = $1, fence = $2, ended_by = $3, attempts = $4, crashes = $5, crashes_since_step = $6,
                runnable_at = $7, turn_at = $17, delayed_until = $8, leased_until = $9, worker_id = $10, holder = $11, request_id = $12,
                reason = $13, last_failure = $14, progress = $15
         WHERE id = $16",
        state,
        fence,
        ended_by,
        i64::from(attempts),
        i64::from(crashes),
        i64::from(crashes_since_step),
        runnable_at.map(Instant),
        delayed_until,
        leased_until,
        worker,
        holder,
        request,
        reason,
        last_failure,
        progress,
        id,
        turn_at,
    )
    .execute(&mut *tx.conn)
    .await
    .or_ledger()?;
    let is_held = |state: &str| matches!(state, "leased" | "cancelling");
    // A slot that was freed is somebody else's chance.
    if state != row.was && (queued || (is_held(row.was) && !is_held(state))) {
        tx.wakes.job(job.kind);
    }
    Ok(())
}

/// PostgreSQL's integers are signed; a fence is microseconds since 1970 and fits for 292,000 years.
pub(crate) fn column(fence: Fence) -> i64 {
    i64::try_from(fence.get()).unwrap_or(i64::MAX)
}

/// What a refusal means to a lease holder. `Err` only for a caller's bug.
pub(crate) fn fenced(refused: &Refused) -> R<Fenced> {
    match refused {
        Refused::Stale { .. } => Ok(Fenced::Stale),
        Refused::AlreadyApplied { .. } => Ok(Fenced::AlreadyApplied),
        Refused::NotPossible { .. } => Err(LedgerError::Invalid(refused.to_string()).into()),
    }
}

/// Locks the Task of a job and gives the job's row. `None`: nobody knows it.
async fn lock(tx: &mut Tx<'_>, id: JobId) -> R<Option<JobRow>> {
    let uuid = id.as_uuid();
    let task = sqlx::query_scalar!("SELECT task_id FROM job WHERE id = $1", uuid)
        .fetch_optional(&mut *tx.conn)
        .await
        .or_ledger()?;
    let Some(task) = task else { return Ok(None) };
    task::lock(tx, TaskId::from_uuid(task)).await?;
    find(tx.conn, id).await
}

/// The job under `lease`, its Task locked, or why a write by its holder changes nothing.
pub(crate) async fn held(tx: &mut Tx<'_>, lease: &LeaseRef) -> R<Result<JobRow, Fenced>> {
    // A job nobody knows is one of a ledger that was restored from an older backup.
    let Some(row) = lock(tx, lease.job).await? else { return Ok(Err(Fenced::Stale)) };
    match row.job.clone().held_under(lease.fence) {
        Ok(_) => Ok(Ok(row)),
        Err(refused) => Ok(Err(fenced(&refused)?)),
    }
}

/// As [`held`], for a read: a stale holder has nothing to read.
pub(crate) async fn held_for_reading(conn: &mut PgConnection, lease: &LeaseRef) -> R<JobRow> {
    let row = get(conn, lease.job).await?;
    match row.job.clone().held_under(lease.fence) {
        Ok(_) => Ok(row),
        Err(refused) => Err(LedgerError::Invalid(format!("stale lease: {refused}")).into()),
    }
}

/// How leases were asked for, and what came of it.
pub(crate) enum Chosen {
    Leased(Vec<Leased>),
    /// Nothing is runnable.
    Nothing,
    /// Something is, and others had their hands on it.
    Contended,
}

/// What is next in line.
enum Choice {
    Job(Box<JobRow>),
    /// Something is, and others had their hands on it.
    Contended,
    Nothing,
}

pub(crate) struct Lease {
    pub(crate) who: Holder,
    pub(crate) want: Want,
    pub(crate) max: u8,
    pub(crate) request: RequestId,
}

impl Verb for Lease {
    type Out = Chosen;

    async fn apply(&self, tx: &mut Tx<'_>) -> R<Chosen> {
        crate::lock::request(tx.conn, self.request).await?;
        let repeated = self.leased_by_this_request(tx).await?;
        if !repeated.is_empty() {
            return Ok(Chosen::Leased(repeated));
        }
        crate::lock::leases(tx.conn, self.want.kind).await?;
        let mut leased = Vec::new();
        let deadline = after(tx.now, tx.timing.lease);
        while leased.len() < usize::from(self.max) {
            let mut row = match self.choose(tx).await? {
                Choice::Job(row) => row,
                Choice::Contended if leased.is_empty() => return Ok(Chosen::Contended),
                Choice::Contended | Choice::Nothing => break,
            };
            row.job = row.job.lease(self.who.worker, tx.now, deadline).map_err(unreadable)?;
            row.holder = Some(self.who.name.clone());
            row.request = Some(self.request);
            row.progress = 0;
            lane::serve(tx, row.lane).await?;
            store(tx, &row).await?;
            if row.job.kind == JobKind::Run {
                let ordinal = run::ordinal(tx.conn, row.job.id).await?;
                let body = EventBody::RunLeased { ordinal, worker: self.who.name.clone(), fence: row.job.fence.get() };
                event::append(tx, row.task, &body).await?;
            }
            task::refresh(tx, row.task).await?;
            leased.push(grant(tx, &row, tx.timing.lease).await?);
        }
        if leased.is_empty() {
            return Ok(Chosen::Nothing);
        }
        Ok(Chosen::Leased(leased))
    }
}

impl Lease {
    async fn leased_by_this_request(&self, tx: &mut Tx<'_>) -> R<Vec<Leased>> {
        let (request, worker) = (self.request.as_uuid(), self.who.worker.as_uuid());
        let ids = sqlx::query_scalar!(
            "SELECT id FROM job WHERE request_id = $1 AND worker_id = $2 ORDER BY seq",
            request,
            worker,
        )
        .fetch_all(&mut *tx.conn)
        .await
        .or_ledger()?;
        let mut leased = Vec::with_capacity(ids.len());
        for id in ids {
            let row = get(tx.conn, JobId::from_uuid(id)).await?;
            let deadline = match row.job.state {
                JobState::Leased { until, .. } | JobState::Cancelling { until, .. } => until,
                _ => continue,
            };
            leased.push(grant(tx, &row, until(tx.now, deadline)).await?);
        }
        Ok(leased)
    }

    /// The job whose turn it is, locked with its Task. Nobody is waited for: whoever has it in hand cancels it, or has just
    /// let go of it. So the order of these locks does not matter.
    async fn choose(&self, tx: &mut Tx<'_>) -> R<Choice> {
        let mut choice = Choice::Nothing;
        for id in lane::next(tx, &self.want, LOOKED_AT).await? {
            let locked = sqlx::query_scalar!(
                "SELECT job.id FROM job JOIN task ON task.id = job.task_id
                 WHERE job.id = $1 AND job.state = 'queued' FOR NO KEY UPDATE OF task, job SKIP LOCKED",
                id.as_uuid(),
            )
            .fetch_optional(&mut *tx.conn)
            .await
            .or_ledger()?;
            if locked.is_some() {
                return Ok(Choice::Job(Box::new(get(tx.conn, id).await?)));
            }
            choice = Choice::Contended;
        }
        Ok(choice)
    }
}

async fn grant(tx: &mut Tx<'_>, row: &JobRow, time_left: Duration) -> R<Leased> {
    let order = match row.job.kind {
        JobKind::Run => Order::Run(Box::new(run::order(tx, row).await?)),
        JobKind::Publish => Order::Publish { task: row.task },
    };
    let lease = LeaseRef { job: row.job.id, fence: row.job.fence };
    Ok(Leased { lease, time_left, attempts: row.job.counters.attempts, order })
}

pub(crate) struct Renew {
    pub(crate) beats: Vec<Beat>,
}

impl Verb for Renew {
    type Out = Vec<BeatAnswer>;

    async fn apply(&self, tx: &mut Tx<'_>) -> R<Vec<BeatAnswer>> {
        let jobs: Vec<Uuid> = self.beats.iter().map(|beat| beat.lease.job.as_uuid()).collect();
        // In the order of their ids, as everybody who needs several.
        sqlx::query!(
            "SELECT id FROM task WHERE id IN (SELECT task_id FROM job WHERE id = ANY($1))
             ORDER BY id FOR NO KEY UPDATE",
            &jobs,
        )
        .fetch_all(&mut *tx.conn)
        .await
        .or_ledger()?;
        let mut answers = Vec::with_capacity(self.beats.len());
        for beat in &self.beats {
            answers.push(renew(tx, beat).await?);
        }
        Ok(answers)
    }
}

async fn renew(tx: &mut Tx<'_>, beat: &Beat) -> R<BeatAnswer> {
    let Some(mut row) = find(tx.conn, beat.lease.job).await? else { return Ok(BeatAnswer::Lost) };
    let Ok(job) = row.job.renew(beat.lease.fence, after(tx.now, tx.timing.lease)) else { return Ok(BeatAnswer::Lost) };
    row.job = job;
    row.progress = beat.progress;
    store(tx, &row).await?;
    match row.job.state {
        JobState::Cancelling { .. } => Ok(BeatAnswer::Cancel { reason: task::cancel_reason(tx, row.task).await? }),
        _ => {
            let (messages, received) = match row.job.kind {
                JobKind::Run => message::hand_over(tx, row.task, row.job.id, beat.received).await?,
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

    async fn apply(&self, tx: &mut Tx<'_>) -> R<Fenced> {
        let mut row = match held(tx, &self.lease).await? {
            Ok(row) => row,
            Err(fenced) => return Ok(fenced),
        };
        let then = match self.then {
            Then::RetryAfter(wait) => Retry::At(after(tx.now, wait)),
            Then::Never => Retry::Never,
        };
        row.job = row.job.fail(self.lease.fence, &self.why, then).map_err(unreadable)?;
        row.last_failure = Some(self.why.clone());
        store(tx, &row).await?;
        let (why, again) = (self.why.clone(), !row.job.state.is_final());
        let body = match row.job.kind {
            JobKind::Run => {
                let ordinal = run::ordinal(tx.conn, row.job.id).await?;
                EventBody::RunFailed { ordinal, why, again }
            }
            JobKind::Publish => EventBody::PublishFailed { why, again },
        };
        event::append(tx, row.task, &body).await?;
        after_end(tx, &row).await?;
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

    async fn apply(&self, tx: &mut Tx<'_>) -> R<Fenced> {
        let mut row = match held(tx, &self.lease).await? {
            Ok(row) => row,
            Err(fenced) => return Ok(fenced),
        };
        let until = match self.until {
            Wake::After(wait) => Until::Time(after(tx.now, wait)),
            Wake::Event => Until::Event,
        };
        row.job = row.job.defer(self.lease.fence, until, &self.why).map_err(unreadable)?;
        row.last_failure = Some(self.why.clone());
        store(tx, &row).await?;
        after_end(tx, &row).await?;
        Ok(Fenced::Applied)
    }
}

pub(crate) struct Release {
    pub(crate) lease: LeaseRef,
}

impl Verb for Release {
    type Out = Fenced;

    async fn apply(&self, tx: &mut Tx<'_>) -> R<Fenced> {
        let mut row = match held(tx, &self.lease).await? {
            Ok(row) => row,
            Err(fenced) => return Ok(fenced),
        };
        row.job = row.job.release(self.lease.fence).map_err(unreadable)?;
        store(tx, &row).await?;
        after_end(tx, &row).await?;
        Ok(Fenced::Applied)
    }
}

/// A run that died owes its readers a comment, and one that was stopped may have been the last that the others waited for; every end
/// shows in the Task.
pub(crate) async fn after_end(tx: &mut Tx<'_>, row: &JobRow) -> R<()> {
    if row.job.kind == JobKind::Run && matches!(row.job.state, JobState::Dead { .. } | JobState::Cancelled) {
        run::want_what_follows(tx, row.task).await?;
    }
    task::refresh(tx, row.task).await
}

/// At most `max` lapsed leases and as many due delays; safe on all dashboards at once, each takes what no other has in hand.
pub(crate) struct SweepOnce {
    pub(crate) max: u16,
}

impl Verb for SweepOnce {
    type Out = Sweep;

    async fn apply(&self, tx: &mut Tx<'_>) -> R<Sweep> {
        tx.presence.require(tx.conn).await?;
        let (now, max) = (Instant(tx.now), i64::from(self.max));
        let lapsed = sqlx::query_scalar!(
            "SELECT job.id FROM job JOIN task ON task.id = job.task_id WHERE job.leased_until <= $1
             ORDER BY job.leased_until LIMIT $2 FOR NO KEY UPDATE OF task, job SKIP LOCKED",
            now,
            max,
        )
        .fetch_all(&mut *tx.conn)
        .await
        .or_ledger()?;
        let due = sqlx::query_scalar!(
            "SELECT job.id FROM job JOIN task ON task.id = job.task_id WHERE job.delayed_until <= $1
             ORDER BY job.delayed_until LIMIT $2 FOR NO KEY UPDATE OF task, job SKIP LOCKED",
            now,
            max,
        )
        .fetch_all(&mut *tx.conn)
        .await
        .or_ledger()?;

        let mut sweep = Sweep::default();
        for id in lapsed {
            sweep.expired += u32::from(expire(tx, JobId::from_uuid(id)).await?);
        }
        for id in due {
            let mut row = get(tx.conn, JobId::from_uuid(id)).await?;
            let Some(job) = row.job.promote(tx.now) else { continue };
            row.job = job;
            store(tx, &row).await?;
            task::refresh(tx, row.task).await?;
            sweep.promoted += 1;
        }
        Ok(sweep)
    }
}

async fn expire(tx: &mut Tx<'_>, id: JobId) -> R<bool> {
    let mut row = get(tx.conn, id).await?;
    let Some(job) = row.job.expire(tx.now) else { return Ok(false) };
    row.job = job;
    store(tx, &row).await?;
    let again = !row.job.state.is_final();
    let body = match row.job.kind {
        JobKind::Run => EventBody::RunLapsed { ordinal: run::ordinal(tx.conn, row.job.id).await?, again },
        JobKind::Publish => EventBody::PublishFailed { why: "the publisher's lease ended".to_owned(), again },
    };
    event::append(tx, row.task, &body).await?;
    after_end(tx, &row).await?;
    Ok(true)
}

/// A real write that changes nothing people see.
pub(crate) struct Probe;

impl Verb for Probe {
    type Out = ();

    async fn apply(&self, tx: &mut Tx<'_>) -> R<()> {
        let now = Instant(tx.now);
        sqlx::query!("UPDATE ledger SET probed_at = greatest(probed_at, $1)", now)
            .execute(&mut *tx.conn)
            .await
            .or_ledger()?;
        Ok(())
    }
}

pub(crate) struct Redrive {
    pub(crate) job: JobId,
    pub(crate) by: String,
}

impl Verb for Redrive {
    type Out = ();

    async fn apply(&self, tx: &mut Tx<'_>) -> R<()> {
        redrive(tx, self.job, &self.by).await
    }
}

/// Starts a dead job over in its own Task, which becomes active again.
pub(crate) async fn redrive(tx: &mut Tx<'_>, id: JobId, by: &str) -> R<()> {
    let row = lock(tx, id).await?;
    let mut row = row.ok_or_else(|| LedgerError::NotFound(id.to_string()))?;
    row.job = row.job.redrive().map_err(|refused| LedgerError::Invalid(refused.to_string()))?;
    task::may_become_active(tx, row.task, row.job.kind).await?;
    match row.job.kind {
        JobKind::Run if task::get(tx, row.task).await?.state == TaskState::Cancelled => {
            return Err(LedgerError::Invalid(format!("{} was cancelled; retry it as a new Task", row.task)).into());
        }
        JobKind::Run => {
            if run::count(tx.conn, row.task).await? > 1 && effect::is_published(tx.conn, row.task).await? {
                return Err(LedgerError::Invalid(format!("another Run's patch of {} is published", row.task)).into());
            }
            // A wish to stop that came too late is no wish about what is begun now.
            sqlx::query!("UPDATE task SET cancelled_by = NULL WHERE id = $1", row.task.as_uuid())
                .execute(&mut *tx.conn)
                .await
                .or_ledger()?;
        }
        JobKind::Publish => {
            if let Some(newer) = effect::unfinished_publish_job(tx.conn, row.task).await? {
                return Err(LedgerError::Invalid(format!("{newer} publishes for {} already", row.task)).into());
            }
        }
    }
    store(tx, &row).await?;
    // One that was cancelled stays so: what goes on is its last word to the issue, and no news of the Task.
    if task::get(tx, row.task).await?.state != TaskState::Cancelled {
        event::append(tx, row.task, &EventBody::Redriven { by: by.to_owned() }).await?;
    }
    task::refresh(tx, row.task).await
}
