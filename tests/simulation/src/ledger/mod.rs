//! The reference ledger: both ports in memory, over the same pure functions as the real ones and small enough to be read.
//!
//! Each verb is one function on plain values, applied under one lock, so it happens whole or not at all. What is durable is
//! [`Durable`]; a ledger over it can be dropped at any moment and another one opened, as after a crash. It keeps no index
//! and looks at everything each time: with some dozens of jobs that is quick.

mod audit;
mod effect;
mod job;
mod rows;
mod run;
mod task;
mod time;
mod view;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fettle_app::ports::clock::{Clock, IdSource};
use fettle_app::ports::ledger::{
    Accepted, Admission, Admissions, Beat, BeatAnswer, CancelAnswer, DeadJob, Delivery, Demand, Depth, Fenced, Granted,
    Holder, L, Leases, Ledger, LedgerError, MAX_BLOB_BYTES, MAX_LEASE_WAIT, Message, OpenJob, Opened, Publication,
    RUN_ORDER_VERSION, Retried, RunPlan, RunStopped, RunView, SeenRepository, Sweep, TaskCursor, TaskFilter, TaskPlan,
    TaskView, Then, Wake, Want,
};
use fettle_domain::effect::{EffectKind, Intent, Receipt};
use fettle_domain::event::Event;
use fettle_domain::id::{DeliveryId, EffectId, JobId, RequestId, RunId, TaskId};
use fettle_domain::job::{JobKind, JobState};
use fettle_domain::lease::{LeaseRef, Timing};
use fettle_domain::object::BlobId;
use fettle_domain::progress::AtWork;
use fettle_domain::run::RunResult;
use fettle_domain::step::StepRecord;
use fettle_domain::turn::Slots;
use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

pub(crate) use self::audit::audit;
use self::rows::{DeliveryRow, Tx, Wakes};
pub(crate) use self::rows::{JobRow, Rows, TaskRow, is_held};
use self::time::LedgerTime;
use crate::bug::Bug;

/// Jobs of one lease request and beats of one renewal.
const MAX_AT_ONCE: usize = 32;
/// One page of a list or feed.
const MAX_PAGE: u16 = 500;

/// The verb `lease`, by what was wanted.
pub(crate) const LEASE_RUN: &str = "lease run";
pub(crate) const LEASE_PUBLISH: &str = "lease publish";
pub(crate) const SWEEP: &str = "sweep";

/// Between look and write, with [`Bug::NoRowLock`].
const LOOKED_BEFORE: Duration = Duration::from_millis(20);

/// What outlives the process.
#[derive(Debug, Clone, Default)]
pub struct Durable(Arc<Mutex<Rows>>);

impl Durable {
    pub(crate) fn rows(&self) -> MutexGuard<'_, Rows> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What lies between a caller and the rows, and who looks at each commit. A ledger without one answers at once.
#[async_trait]
pub(crate) trait Disk: Send + Sync {
    /// Before the commit: an error means that nothing was changed.
    async fn before(&self, verb: &'static str) -> L<()>;
    /// After it, before the answer: an error means that the caller does not know.
    async fn after(&self, verb: &'static str) -> L<()>;
    fn committed(&self, rows: &Rows, commit: &Commit);
}

/// A change that happened.
#[derive(Debug)]
pub(crate) struct Commit {
    pub(crate) verb: &'static str,
    /// Of a holder's write that counted.
    pub(crate) by: Option<LeaseRef>,
    /// Somebody asked for a job and got none.
    pub(crate) idle: bool,
    /// Something became runnable.
    pub(crate) woke: bool,
}

/// What a ledger is opened with.
pub struct Surroundings {
    pub clock: Arc<dyn Clock>,
    /// Time since some start.
    pub stopwatch: Arc<dyn Fn() -> Duration + Send + Sync>,
    pub ids: Arc<dyn IdSource>,
    pub timing: Timing,
    pub slots: Slots,
    /// Absent: every Run may begin, and needs no token.
    pub admissions: Option<Arc<dyn Admissions>>,
}

pub struct MemoryLedger {
    durable: Durable,
    around: Surroundings,
    time: LedgerTime,
    disk: Option<Arc<dyn Disk>>,
    bug: Option<Bug>,
    /// Held by each write, and from look to write by a lease; with [`Bug::NoRowLock`] alone.
    own_writes: tokio::sync::Mutex<()>,
    jobs: Notify,
    /// One channel for each follower: those of one channel are woken in an order that tokio draws by lot.
    work: Mutex<Vec<watch::Sender<u64>>>,
    newest_event: Mutex<Vec<watch::Sender<u64>>>,
}

/// What a worker of this version is able to do.
fn any_run() -> Want {
    Want::anything(JobKind::Run, vec![RUN_ORDER_VERSION])
}

impl MemoryLedger {
    /// Jobs that were leased when the last ledger ended get a full lease.
    pub fn open(durable: Durable, around: Surroundings) -> Self {
        let ledger = Self::open_on(durable, around, None, None);
        ledger.grant_grace();
        ledger
    }

    /// While no ledger was open nobody could renew: every lease gets its full length.
    pub(crate) fn grant_grace(&self) {
        let grace = time::after(self.time.now(&self.around), self.around.timing.lease);
        for row in &mut self.durable.rows().jobs {
            if let JobState::Leased { until, .. } | JobState::Cancelling { until, .. } = &mut row.job.state {
                *until = (*until).max(grace);
            }
        }
    }

    /// Somebody else, or nobody, has committed something: whoever waits looks.
    pub(crate) fn hear(&self) {
        let events = self.durable.rows().events.len() as u64;
        ring(&self.newest_event, |count| *count = events);
        ring(&self.work, |count| *count += 1);
        self.jobs.notify_waiters();
    }

    pub(crate) fn open_on(
        durable: Durable,
        around: Surroundings,
        disk: Option<Arc<dyn Disk>>,
        bug: Option<Bug>,
    ) -> Self {
        let time = LedgerTime::starting(&around, durable.rows().time_at);
        Self {
            durable,
            around,
            time,
            disk,
            bug,
            own_writes: tokio::sync::Mutex::default(),
            jobs: Notify::new(),
            work: Mutex::default(),
            newest_event: Mutex::default(),
        }
    }

    async fn write<T>(&self, verb: &'static str, change: impl FnOnce(&mut Tx<'_>) -> L<T> + Send) -> L<T> {
        self.commit(verb, change, |_| (None, false)).await
    }

    async fn write_fenced(
        &self,
        verb: &'static str,
        lease: &LeaseRef,
        change: impl FnOnce(&mut Tx<'_>) -> L<Fenced> + Send,
    ) -> L<Fenced> {
        let by = *lease;
        self.commit(verb, change, |said| ((*said == Fenced::Applied).then_some(by), false)).await
    }

    async fn commit<T>(
        &self,
        verb: &'static str,
        change: impl FnOnce(&mut Tx<'_>) -> L<T> + Send,
        told: impl FnOnce(&T) -> (Option<LeaseRef>, bool) + Send,
    ) -> L<T> {
        if let Some(disk) = &self.disk {
            disk.before(verb).await?;
        }
        let own = match self.bug {
            Some(Bug::NoRowLock) if !matches!(verb, LEASE_RUN | LEASE_PUBLISH) => Some(self.own_writes.lock().await),
            _ => None,
        };
        let said = {
            let mut rows = self.durable.rows();
            let now = self.time.now(&self.around);
            let events = rows.events.len();
            let mut tx = Tx {
                rows: &mut rows,
                now,
                timing: self.around.timing,
                slots: &self.around.slots,
                ids: &*self.around.ids,
                bug: self.bug,
                wakes: Wakes::default(),
            };
            let said = change(&mut tx)?;
            let wakes = tx.wakes;
            if let Some(disk) = &self.disk {
                let (by, idle) = told(&said);
                let woke = wakes.job || wakes.delivery;
                disk.committed(&rows, &Commit { verb, by, idle, woke });
            }
            if rows.events.len() > events {
                ring(&self.newest_event, |count| *count = rows.events.len() as u64);
            }
            drop(rows);
            if wakes.job || wakes.delivery {
                ring(&self.work, |count| *count += 1);
            }
            if wakes.job {
                self.jobs.notify_waiters();
            }
            said
        };
        drop(own);
        if let Some(disk) = &self.disk {
            disk.after(verb).await?;
        }
        Ok(said)
    }

    /// With [`Bug::NoRowLock`], the job that is next, and some time passes.
    async fn looked_before(&self, want: &Want) -> Option<job::Seen<'_>> {
        if self.bug != Some(Bug::NoRowLock) {
            return None;
        }
        let own = self.own_writes.lock().await;
        let seen = job::look(&self.durable.rows(), &self.around.slots, want, own)?;
        tokio::time::sleep(LOOKED_BEFORE).await;
        Some(seen)
    }

    async fn read<T>(&self, verb: &'static str, look: impl FnOnce(&Rows, Timestamp) -> L<T> + Send) -> L<T> {
        if let Some(disk) = &self.disk {
            disk.before(verb).await?;
        }
        let found = look(&self.durable.rows(), self.time.now(&self.around));
        if let Some(disk) = &self.disk {
            disk.after(verb).await?;
        }
        found
    }
}

fn ring(followers: &Mutex<Vec<watch::Sender<u64>>>, change: impl Fn(&mut u64)) {
    for follower in followers.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        follower.send_modify(&change);
    }
}

fn follow(followers: &Mutex<Vec<watch::Sender<u64>>>, from: u64) -> watch::Receiver<u64> {
    let (sender, receiver) = watch::channel(from);
    followers.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
    receiver
}

#[async_trait]
impl Leases for MemoryLedger {
    async fn lease(&self, who: &Holder, want: &Want, max: u8, wait: Duration, request: RequestId) -> L<Granted> {
        if max == 0 || usize::from(max) > MAX_AT_ONCE {
            return Err(LedgerError::Invalid(format!("1 to {MAX_AT_ONCE} jobs can be leased at once, not {max}")));
        }
        let deadline = Instant::now() + wait.min(MAX_LEASE_WAIT);
        loop {
            let changed = self.jobs.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let seen = self.looked_before(want).await;
            let asked = job::Asked { who, want, max, request, seen: seen.as_ref() };
            let verb = match want.kind {
                JobKind::Run => LEASE_RUN,
                JobKind::Publish => LEASE_PUBLISH,
            };
            let told = |leased: &Vec<_>| (None, leased.is_empty());
            let leased = self.commit(verb, |tx| job::lease(tx, &asked), told).await?;
            if !leased.is_empty() {
                return Ok(Granted::Leased(leased));
            }
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                return Ok(Granted::Idle);
            }
        }
    }

    async fn renew(&self, beats: &[Beat]) -> L<Vec<BeatAnswer>> {
        if beats.len() > MAX_AT_ONCE {
            return Err(LedgerError::Invalid(format!("at most {MAX_AT_ONCE} leases can be renewed at once")));
        }
        self.write("renew", |tx| beats.iter().map(|beat| job::renew(tx, beat)).collect()).await
    }

    async fn record(&self, lease: &LeaseRef, step: &StepRecord) -> L<Fenced> {
        self.write_fenced("record", lease, |tx| run::record(tx, lease, step)).await
    }

    async fn steps(&self, lease: &LeaseRef) -> L<Vec<StepRecord>> {
        self.read("steps", |rows, _| {
            rows.held_for_reading(lease)?;
            let (task, nth) = rows.run_of(lease.job)?;
            Ok(rows.task(task)?.runs[nth].steps.iter().map(|(_, step)| step.clone()).collect())
        })
        .await
    }

    async fn complete_run(&self, lease: &LeaseRef, result: &RunResult) -> L<Fenced> {
        let said = self.write_fenced("complete_run", lease, |tx| run::complete(tx, lease, result)).await?;
        if self.bug == Some(Bug::TornHandOver) && said == Fenced::Applied {
            self.write("what follows", |tx| {
                let task = tx.rows.jobs[tx.rows.job(lease.job)?].task;
                run::want_what_follows(tx, task)?;
                task::refresh(tx, task)
            })
            .await?;
        }
        Ok(said)
    }

    async fn fail(&self, lease: &LeaseRef, why: &str, then: Then) -> L<Fenced> {
        self.write_fenced("fail", lease, |tx| job::fail(tx, lease, why, then)).await
    }

    async fn defer(&self, lease: &LeaseRef, until: Wake, why: &str) -> L<Fenced> {
        self.write_fenced("defer", lease, |tx| job::defer(tx, lease, until, why)).await
    }

    async fn release(&self, lease: &LeaseRef) -> L<Fenced> {
        self.write_fenced("release", lease, |tx| job::end(tx, lease, None, |job, fence, _| job.release(fence))).await
    }

    async fn put_blob(&self, content: Bytes) -> L<BlobId> {
        if content.len() > MAX_BLOB_BYTES {
            return Err(LedgerError::Invalid(format!("a blob has at most {MAX_BLOB_BYTES} bytes")));
        }
        self.write("put_blob", |tx| {
            let id = BlobId::of(&content);
            tx.rows.blobs.insert(id, content);
            Ok(id)
        })
        .await
    }

    async fn blob(&self, id: BlobId) -> L<Bytes> {
        let found = |rows: &Rows| rows.blobs.get(&id).cloned();
        self.read("blob", |rows, _| found(rows).ok_or_else(|| LedgerError::NotFound(format!("blob {id}")))).await
    }

    async fn admit(&self, lease: &LeaseRef) -> L<Admission> {
        let task = self
            .read("admit", |rows, _| {
                let held = rows.held_for_reading(lease)?.task;
                let leased = view::runs(rows, held)?.into_iter().find(|run| run.job == lease.job);
                let task = view::task(rows, held)?;
                Ok(TaskView { run: leased.unwrap_or_else(|| task.run.clone()), ..task })
            })
            .await?;
        Ok(match &self.around.admissions {
            Some(admissions) => admissions.admit(&task).await,
            None => Admission::Go { read_token: None, run_token: None, model: None },
        })
    }
}

#[async_trait]
impl Ledger for MemoryLedger {
    async fn accept(&self, delivery: Delivery) -> L<Accepted> {
        self.write("accept", |tx| {
            if tx.rows.deliveries.iter().any(|row| row.delivery.key == delivery.key) {
                return Ok(Accepted::Duplicate);
            }
            tx.rows.deliveries.push(DeliveryRow { delivery, not_before: None, verdict: None });
            tx.wakes.delivery = true;
            Ok(Accepted::New)
        })
        .await
    }

    async fn received_since(&self, prefix: &str, since: Timestamp) -> L<bool> {
        self.read("received_since", |rows, _| {
            let fits = |row: &DeliveryRow| row.delivery.key.starts_with(prefix) && row.delivery.received_at >= since;
            Ok(rows.deliveries.iter().any(fits))
        })
        .await
    }

    async fn open_deliveries(&self, max: u16) -> L<Vec<Delivery>> {
        self.read("open_deliveries", |rows, now| {
            let open = |row: &&DeliveryRow| row.verdict.is_none() && row.not_before.is_none_or(|at| at <= now);
            Ok(rows.deliveries.iter().filter(open).take(max.into()).map(|row| row.delivery.clone()).collect())
        })
        .await
    }

    async fn postpone_delivery(&self, id: DeliveryId, wait: Duration) -> L<()> {
        self.write("postpone_delivery", |tx| {
            let until = tx.after(wait);
            if let Some(row) = tx.rows.deliveries.iter_mut().find(|row| row.delivery.id == id && row.verdict.is_none())
            {
                row.not_before = Some(until);
            }
            Ok(())
        })
        .await
    }

    async fn close_delivery(&self, id: DeliveryId, verdict: &str) -> L<()> {
        self.write("close_delivery", |tx| task::close_delivery(tx, id, verdict)).await
    }

    async fn open_task(&self, delivery: Option<DeliveryId>, plan: &TaskPlan) -> L<Opened> {
        self.write("open_task", |tx| task::open_and_close(tx, delivery, plan)).await
    }

    async fn active_task(&self, repo_forge_id: u64, issue: u64) -> L<Option<TaskId>> {
        self.read("active_task", |rows, _| Ok(rows.active(repo_forge_id, issue))).await
    }

    async fn opened_since(&self, installation: Option<u64>, since: Timestamp) -> L<u64> {
        self.read("opened_since", |rows, _| Ok(view::opened_since(rows, installation, since))).await
    }

    async fn actors(&self, repo_forge_id: u64, issue: u64, max: u16) -> L<Vec<String>> {
        self.read("actors", |rows, _| Ok(view::actors(rows, repo_forge_id, issue, max))).await
    }

    async fn post_message(&self, task: TaskId, by: &str, text: &str) -> L<()> {
        self.write("post_message", |tx| task::post_message(tx, task, by, text)).await
    }

    async fn messages(&self, task: TaskId, max: u16) -> L<Vec<Message>> {
        self.read("messages", |rows, _| view::messages(rows, task, max)).await
    }

    async fn publication(&self, lease: &LeaseRef) -> L<Publication> {
        self.read("publication", |rows, _| view::publication(rows, lease)).await
    }

    async fn intend(&self, lease: &LeaseRef, effect: EffectId, intent: &Intent) -> L<Fenced> {
        self.write_fenced("intend", lease, |tx| effect::intend(tx, lease, effect, intent)).await
    }

    async fn settle(&self, lease: &LeaseRef, effect: EffectId, receipt: &Receipt) -> L<Fenced> {
        self.write_fenced("settle", lease, |tx| effect::settle(tx, lease, effect, receipt)).await
    }

    async fn complete_publish(&self, lease: &LeaseRef) -> L<Fenced> {
        self.write_fenced("complete_publish", lease, |tx| effect::complete_publish(tx, lease)).await
    }

    async fn want_effects(&self, task: TaskId, kinds: &[EffectKind]) -> L<JobId> {
        self.write("want_effects", |tx| effect::want_effects(tx, task, kinds)).await
    }

    async fn at_work(&self, max: u16) -> L<Vec<AtWork>> {
        self.read("at_work", |rows, _| view::at_work(rows, max)).await
    }

    async fn want_progress(&self, task: TaskId) -> L<bool> {
        self.write("want_progress", |tx| effect::want_progress(tx, task)).await
    }

    async fn add_runs(&self, task: TaskId, by: &str, runs: &[RunPlan]) -> L<()> {
        self.write("add_runs", |tx| run::add(tx, task, by, runs)).await
    }

    async fn choose_run(&self, task: TaskId, run: RunId, draft: bool, by: &str) -> L<()> {
        self.write("choose_run", |tx| run::choose(tx, task, run, draft, by)).await
    }

    async fn stop_run(&self, task: TaskId, run: RunId, by: &str) -> L<RunStopped> {
        self.write("stop_run", |tx| run::stop(tx, task, run, by)).await
    }

    async fn runs(&self, task: TaskId) -> L<Vec<RunView>> {
        self.read("runs", |rows, _| view::runs(rows, task)).await
    }

    async fn cancel(&self, task: TaskId, by: &str) -> L<CancelAnswer> {
        self.write("cancel", |tx| task::cancel(tx, task, by)).await
    }

    async fn retry(&self, task: TaskId, by: &str) -> L<Retried> {
        self.write("retry", |tx| task::retry(tx, task, by)).await
    }

    async fn redrive(&self, job: JobId, by: &str) -> L<()> {
        self.write("redrive", |tx| job::redrive(tx, job, by)).await
    }

    async fn dead(&self, after: Option<JobId>, max: u16) -> L<Vec<DeadJob>> {
        self.read("dead", |rows, _| Ok(view::dead(rows, after, max.min(MAX_PAGE)))).await
    }

    async fn held_jobs(&self, max: u16) -> L<Vec<OpenJob>> {
        self.read("held_jobs", |rows, _| view::held(rows, max.min(MAX_PAGE))).await
    }

    async fn unheld_jobs(&self, after: Option<JobId>, max: u16) -> L<Vec<OpenJob>> {
        self.read("unheld_jobs", |rows, _| view::unheld(rows, after, max.min(MAX_PAGE))).await
    }

    async fn seen_repositories(&self, max: u16) -> L<Vec<SeenRepository>> {
        self.read("seen_repositories", |rows, _| Ok(view::repositories(rows, max.min(MAX_PAGE)))).await
    }

    async fn journal(&self, run: RunId, from: u32, max: u16) -> L<Vec<StepRecord>> {
        self.read("journal", |rows, _| view::journal(rows, run, from, max.min(MAX_PAGE))).await
    }

    async fn task(&self, id: TaskId) -> L<TaskView> {
        self.read("task", |rows, _| view::task(rows, id)).await
    }

    async fn tasks(&self, filter: TaskFilter, after: Option<TaskCursor>, max: u16) -> L<Vec<TaskView>> {
        self.read("tasks", |rows, _| view::tasks(rows, filter, after, max.min(MAX_PAGE))).await
    }

    async fn events(&self, task: Option<TaskId>, after: u64, max: u16) -> L<Vec<Event>> {
        self.read("events", |rows, _| {
            let wanted = |event: &&Event| event.seq > after && task.is_none_or(|task| event.task == task);
            Ok(rows.events.iter().filter(wanted).take(max.min(MAX_PAGE).into()).cloned().collect())
        })
        .await
    }

    fn newest_event(&self) -> watch::Receiver<u64> {
        follow(&self.newest_event, self.durable.rows().events.len() as u64)
    }

    fn work(&self) -> watch::Receiver<u64> {
        follow(&self.work, 0)
    }

    async fn runnable(&self, max: u32) -> L<u32> {
        self.read("runnable", |rows, _| Ok(job::count_next(rows, &self.around.slots, &any_run(), max))).await
    }

    async fn demand(&self) -> L<Demand> {
        self.read("demand", |rows, now| Ok(view::demand(rows, &self.around.slots, now))).await
    }

    async fn last_asked(&self, repo_forge_id: u64, issue: u64) -> L<Option<Timestamp>> {
        self.read("last_asked", |rows, _| {
            let of_issue = rows.tasks.values().filter(|task| {
                task.repo.as_ref().is_some_and(|repo| repo.forge_id == repo_forge_id)
                    && task.issue.number == Some(issue)
            });
            Ok(of_issue.max_by_key(|task| (task.created_at, task.id)).map(|task| task.issue.taken_at))
        })
        .await
    }

    async fn poll_mark(&self, repo_forge_id: u64) -> L<Option<Timestamp>> {
        self.read("poll_mark", |rows, _| Ok(rows.marks.get(&repo_forge_id).copied())).await
    }

    async fn set_poll_mark(&self, repo_forge_id: u64, from: Option<Timestamp>, to: Timestamp) -> L<bool> {
        self.write("set_poll_mark", |tx| {
            let moves = tx.rows.marks.get(&repo_forge_id).copied() == from;
            if moves {
                tx.rows.marks.insert(repo_forge_id, to);
            }
            Ok(moves)
        })
        .await
    }

    async fn announced(&self) -> L<u64> {
        self.read("announced", |rows, _| Ok(rows.announced)).await
    }

    async fn set_announced(&self, from: u64, to: u64) -> L<bool> {
        self.write("set_announced", |tx| {
            let moves = tx.rows.announced == from;
            if moves {
                tx.rows.announced = to;
            }
            Ok(moves)
        })
        .await
    }

    async fn sweep(&self, max: u16) -> L<Sweep> {
        self.write(SWEEP, |tx| {
            let step = self.time.forward_step(&self.around);
            let swept = job::sweep(tx, max, step)?;
            if let Some(step) = step {
                self.time.follow(step);
            }
            Ok(swept)
        })
        .await
    }

    async fn depth(&self) -> L<Depth> {
        self.read("depth", |rows, now| Ok(view::depth(rows, now))).await
    }

    async fn probe(&self) -> L<()> {
        self.write("probe", |tx| {
            tx.rows.time_at = tx.rows.time_at.max(tx.now.as_microsecond());
            Ok(())
        })
        .await
    }

    async fn audit(&self) -> L<Vec<String>> {
        self.read("audit", |rows, now| Ok(audit(rows, &self.around.slots, now))).await
    }
}
