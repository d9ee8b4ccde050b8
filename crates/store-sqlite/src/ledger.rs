//! The two ports, each verb handed to the writer or to a reader.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fettle_app::ports::ledger::{
    Accepted, Admission, Beat, BeatAnswer, CancelAnswer, DeadJob, Delivery, Demand, Depth, Fenced, Granted, Holder, L,
    Leases, Ledger, LedgerError, MAX_LEASE_WAIT, Message, OpenJob, Opened, Publication, RUN_ORDER_VERSION, Retried,
    RunPlan, RunStopped, RunView, SeenRepository, Sweep, TaskCursor, TaskFilter, TaskPlan, TaskView, Then, Wake, Want,
};
use fettle_domain::effect::{EffectKind, Intent, Receipt};
use fettle_domain::event::Event;
use fettle_domain::id::{DeliveryId, EffectId, JobId, RequestId, RunId, TaskId};
use fettle_domain::job::JobKind;
use fettle_domain::lease::LeaseRef;
use fettle_domain::object::BlobId;
use fettle_domain::progress::AtWork;
use fettle_domain::run::RunResult;
use fettle_domain::step::{StepBody, StepRecord};
use jiff::Timestamp;
use rusqlite::Connection;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::{SqliteLedger, audit, delivery, effect, event, job, lane, listing, message, poll, run, task, view};

/// Jobs of one lease request and beats of one renewal.
const MAX_AT_ONCE: usize = 32;
/// One page of a list or feed.
const MAX_PAGE: u16 = 500;

/// Counted no further: nobody adds so many workers.
const MOST_RUNNABLE: u32 = 1_000;

/// What a worker of this version is able to do.
fn any_run() -> Want {
    Want::anything(JobKind::Run, vec![RUN_ORDER_VERSION])
}

#[async_trait]
impl Leases for SqliteLedger {
    async fn lease(&self, who: &Holder, want: &Want, max: u8, wait: Duration, request: RequestId) -> L<Granted> {
        if max == 0 || usize::from(max) > MAX_AT_ONCE {
            return Err(LedgerError::Invalid(format!("1 to {MAX_AT_ONCE} jobs can be leased at once, not {max}")));
        }
        let deadline = Instant::now() + wait.min(MAX_LEASE_WAIT);
        let mut jobs = self.jobs.clone();
        loop {
            jobs.mark_unchanged();
            let verb = job::Lease { who: who.clone(), want: want.clone(), max, request };
            let leased = self.write(verb).await?;
            if !leased.is_empty() {
                return Ok(Granted::Leased(leased));
            }
            match tokio::time::timeout_at(deadline, jobs.changed()).await {
                Ok(Ok(())) => {}
                // The time is up, or the ledger is being closed.
                Ok(Err(_)) | Err(_) => return Ok(Granted::Idle),
            }
        }
    }

    async fn renew(&self, beats: &[Beat]) -> L<Vec<BeatAnswer>> {
        if beats.len() > MAX_AT_ONCE {
            return Err(LedgerError::Invalid(format!("at most {MAX_AT_ONCE} leases can be renewed at once")));
        }
        self.write(job::Renew { beats: beats.to_vec() }).await
    }

    async fn record(&self, lease: &LeaseRef, step: &StepRecord) -> L<Fenced> {
        let body = match step.body {
            StepBody::Blob(id) => Some(id),
            StepBody::Inline(_) => None,
        };
        let workspace = step.workspace.map(|state| state.bundle);
        self.blobs.require(body.into_iter().chain(workspace).collect()).await?;
        self.write(run::Record { lease: *lease, step: step.clone() }).await
    }

    async fn steps(&self, lease: &LeaseRef) -> L<Vec<StepRecord>> {
        let lease = *lease;
        self.readers.read(move |conn| run::steps(conn, &lease)).await
    }

    async fn complete_run(&self, lease: &LeaseRef, result: &RunResult) -> L<Fenced> {
        self.blobs.require(result.change.iter().map(|change| change.bundle).collect()).await?;
        self.write(run::Complete { lease: *lease, result: result.clone() }).await
    }

    async fn fail(&self, lease: &LeaseRef, why: &str, then: Then) -> L<Fenced> {
        self.write(job::Fail { lease: *lease, why: why.to_owned(), then }).await
    }

    async fn defer(&self, lease: &LeaseRef, until: Wake, why: &str) -> L<Fenced> {
        self.write(job::Defer { lease: *lease, until, why: why.to_owned() }).await
    }

    async fn release(&self, lease: &LeaseRef) -> L<Fenced> {
        self.write(job::Release { lease: *lease }).await
    }

    async fn put_blob(&self, content: Bytes) -> L<BlobId> {
        self.blobs.put(content).await
    }

    async fn blob(&self, id: BlobId) -> L<Bytes> {
        self.blobs.get(id).await
    }

    async fn admit(&self, lease: &LeaseRef) -> L<Admission> {
        let lease = *lease;
        let held = move |conn: &Connection| view::task_held(conn, &lease);
        let task = self.readers.read(held).await?;
        Ok(match &self.admissions {
            Some(admissions) => admissions.admit(&task).await,
            None => Admission::Go { read_token: None, run_token: None, model: None },
        })
    }
}

#[async_trait]
impl Ledger for SqliteLedger {
    async fn accept(&self, delivery: Delivery) -> L<Accepted> {
        self.write(delivery::Accept { delivery }).await
    }

    async fn received_since(&self, prefix: &str, since: Timestamp) -> L<bool> {
        let prefix = prefix.to_owned();
        self.readers.read(move |conn| delivery::received_since(conn, &prefix, since)).await
    }

    async fn open_deliveries(&self, max: u16) -> L<Vec<Delivery>> {
        let now = self.time.now();
        self.readers.read(move |conn| delivery::open(conn, now, max)).await
    }

    async fn postpone_delivery(&self, id: DeliveryId, wait: Duration) -> L<()> {
        self.write(delivery::Postpone { id, wait }).await
    }

    async fn close_delivery(&self, id: DeliveryId, verdict: &str) -> L<()> {
        self.write(delivery::Close { id, verdict: verdict.to_owned() }).await
    }

    async fn open_task(&self, delivery: Option<DeliveryId>, plan: &TaskPlan) -> L<Opened> {
        self.write(task::Open { delivery, plan: plan.clone() }).await
    }

    async fn active_task(&self, repo_forge_id: u64, issue: u64) -> L<Option<TaskId>> {
        self.readers.read(move |conn| view::active(conn, repo_forge_id, issue)).await
    }

    async fn opened_since(&self, installation: Option<u64>, since: Timestamp) -> L<u64> {
        self.readers.read(move |conn| view::opened_since(conn, installation, since)).await
    }

    async fn actors(&self, repo_forge_id: u64, issue: u64, max: u16) -> L<Vec<String>> {
        self.readers.read(move |conn| view::actors(conn, repo_forge_id, issue, max)).await
    }

    async fn last_asked(&self, repo_forge_id: u64, issue: u64) -> L<Option<Timestamp>> {
        self.readers.read(move |conn| poll::last_asked(conn, repo_forge_id, issue)).await
    }

    async fn poll_mark(&self, repo_forge_id: u64) -> L<Option<Timestamp>> {
        self.readers.read(move |conn| poll::mark(conn, repo_forge_id)).await
    }

    async fn set_poll_mark(&self, repo_forge_id: u64, from: Option<Timestamp>, to: Timestamp) -> L<bool> {
        self.write(poll::SetMark { repo: repo_forge_id, from, to }).await
    }

    async fn post_message(&self, task: TaskId, by: &str, text: &str) -> L<()> {
        self.write(message::Post { task, by: by.to_owned(), text: text.to_owned() }).await
    }

    async fn messages(&self, task: TaskId, max: u16) -> L<Vec<Message>> {
        self.readers.read(move |conn| message::list(conn, task, max.min(MAX_PAGE))).await
    }

    async fn publication(&self, lease: &LeaseRef) -> L<Publication> {
        let lease = *lease;
        self.readers.read(move |conn| view::publication(conn, &lease)).await
    }

    async fn intend(&self, lease: &LeaseRef, effect: EffectId, intent: &Intent) -> L<Fenced> {
        self.write(effect::Intend { lease: *lease, effect, intent: intent.clone() }).await
    }

    async fn settle(&self, lease: &LeaseRef, effect: EffectId, receipt: &Receipt) -> L<Fenced> {
        self.write(effect::Settle { lease: *lease, effect, receipt: receipt.clone() }).await
    }

    async fn complete_publish(&self, lease: &LeaseRef) -> L<Fenced> {
        self.write(effect::CompletePublish { lease: *lease }).await
    }

    async fn want_effects(&self, task: TaskId, kinds: &[EffectKind]) -> L<JobId> {
        self.write(effect::Want { task, kinds: kinds.to_vec() }).await
    }

    async fn at_work(&self, max: u16) -> L<Vec<AtWork>> {
        self.readers.read(move |conn| view::at_work(conn, max.min(MAX_PAGE))).await
    }

    async fn want_progress(&self, task: TaskId) -> L<bool> {
        self.write(effect::WantProgress { task }).await
    }

    async fn add_runs(&self, task: TaskId, by: &str, runs: &[RunPlan]) -> L<()> {
        self.write(run::Add { task, by: by.to_owned(), plans: runs.to_vec() }).await
    }

    async fn choose_run(&self, task: TaskId, run: RunId, draft: bool, by: &str) -> L<()> {
        self.write(run::Choose { task, run, draft, by: by.to_owned() }).await
    }

    async fn stop_run(&self, task: TaskId, run: RunId, by: &str) -> L<RunStopped> {
        self.write(run::Stop { task, run, by: by.to_owned() }).await
    }

    async fn runs(&self, task: TaskId) -> L<Vec<RunView>> {
        let runs = self.readers.read(move |conn| view::runs(conn, task, None)).await?;
        if runs.is_empty() { Err(LedgerError::NotFound(task.to_string())) } else { Ok(runs) }
    }

    async fn cancel(&self, task: TaskId, by: &str) -> L<CancelAnswer> {
        self.write(task::Cancel { task, by: by.to_owned() }).await
    }

    async fn retry(&self, task: TaskId, by: &str) -> L<Retried> {
        self.write(task::Retry { task, by: by.to_owned() }).await
    }

    async fn redrive(&self, job: JobId, by: &str) -> L<()> {
        self.write(job::Redrive { job, by: by.to_owned() }).await
    }

    async fn dead(&self, after: Option<JobId>, max: u16) -> L<Vec<DeadJob>> {
        self.readers.read(move |conn| view::dead(conn, after, max.min(MAX_PAGE))).await
    }

    async fn held_jobs(&self, max: u16) -> L<Vec<OpenJob>> {
        self.readers.read(move |conn| listing::held(conn, max.min(MAX_PAGE))).await
    }

    async fn unheld_jobs(&self, after: Option<JobId>, max: u16) -> L<Vec<OpenJob>> {
        self.readers.read(move |conn| listing::unheld(conn, after, max.min(MAX_PAGE))).await
    }

    async fn seen_repositories(&self, max: u16) -> L<Vec<SeenRepository>> {
        self.readers.read(move |conn| listing::repositories(conn, max.min(MAX_PAGE))).await
    }

    async fn journal(&self, run: RunId, from: u32, max: u16) -> L<Vec<StepRecord>> {
        self.readers.read(move |conn| listing::journal(conn, run, from, max.min(MAX_PAGE))).await
    }

    async fn task(&self, id: TaskId) -> L<TaskView> {
        self.readers.read(move |conn| view::task(conn, id)).await
    }

    async fn tasks(&self, filter: TaskFilter, after: Option<TaskCursor>, max: u16) -> L<Vec<TaskView>> {
        self.readers.read(move |conn| view::tasks(conn, filter, after, max.min(MAX_PAGE))).await
    }

    async fn events(&self, task: Option<TaskId>, after: u64, max: u16) -> L<Vec<Event>> {
        self.readers.read(move |conn| event::list(conn, task, after, max.min(MAX_PAGE))).await
    }

    fn newest_event(&self) -> watch::Receiver<u64> {
        self.newest_event.clone()
    }

    fn work(&self) -> watch::Receiver<u64> {
        self.work.clone()
    }

    async fn runnable(&self, max: u32) -> L<u32> {
        let slots = self.slots.clone();
        self.readers.read(move |conn| lane::count_next(conn, &slots, &any_run(), max)).await
    }

    async fn demand(&self) -> L<Demand> {
        let (slots, now) = (self.slots.clone(), self.time.now());
        let demand = move |conn: &Connection| {
            view::demand(conn, now, lane::count_next(conn, &slots, &any_run(), MOST_RUNNABLE)?)
        };
        self.readers.read(demand).await
    }

    async fn announced(&self) -> L<u64> {
        self.readers.read(event::announced).await
    }

    async fn set_announced(&self, from: u64, to: u64) -> L<bool> {
        self.write(event::SetAnnounced { from, to }).await
    }

    async fn sweep(&self, max: u16) -> L<Sweep> {
        self.write(job::SweepOnce { max }).await
    }

    async fn depth(&self) -> L<Depth> {
        let now = self.time.now();
        self.readers.read(move |conn| view::depth(conn, now)).await
    }

    async fn probe(&self) -> L<()> {
        self.write(job::Probe).await
    }

    async fn audit(&self) -> L<Vec<String>> {
        let (slots, now) = (self.slots.clone(), self.time.now());
        self.readers.read(move |conn| audit::audit(conn, Some(&slots), now)).await
    }
}
