//! The two ports, each verb a transaction of its own.

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
use sqlx::PgConnection;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::error::R;
use crate::job::Chosen;
use crate::writer::within;
use crate::{
    POLL, PostgresLedger, audit, blob, delivery, effect, event, job, lane, listing, message, poll, run, task, view,
};

/// Jobs of one lease request and beats of one renewal.
const MAX_AT_ONCE: usize = 32;
/// One page of a list or feed.
const MAX_PAGE: u16 = 500;
/// Until a job that others had in hand is looked at again: they have it for a few milliseconds.
const CONTENDED: Duration = Duration::from_millis(50);
/// Counted no further: nobody adds so many workers.
const MOST_RUNNABLE: u32 = 1_000;
/// Jobs that one transaction of a sweep takes: their Tasks are locked as long as it takes.
const SWEEP_AT_ONCE: u16 = 20;

/// What a worker of this version is able to do.
fn any_run() -> Want {
    Want::anything(JobKind::Run, vec![RUN_ORDER_VERSION])
}

impl PostgresLedger {
    async fn require_blobs(&self, ids: Vec<BlobId>) -> L<()> {
        if ids.is_empty() {
            return Ok(());
        }
        within(async {
            let mut lent = self.store.lend().await?;
            let required = blob::require(&mut lent, &ids).await;
            lent.give_back(required)
        })
        .await
    }

    async fn demanded(&self, conn: &mut PgConnection) -> R<Demand> {
        let runnable = lane::count_next(conn, &self.store.slots, &any_run(), MOST_RUNNABLE).await?;
        let now = self.store.now(conn).await?;
        view::demand(conn, now, runnable).await
    }

    async fn audited(&self, conn: &mut PgConnection) -> R<Vec<String>> {
        // After an outage every lease looks as if nobody had swept.
        self.store.presence.require(conn).await?;
        let now = self.store.now(conn).await?;
        audit::audit(conn, &self.store.slots, now).await
    }
}

#[async_trait]
impl Leases for PostgresLedger {
    async fn lease(&self, who: &Holder, want: &Want, max: u8, wait: Duration, request: RequestId) -> L<Granted> {
        if max == 0 || usize::from(max) > MAX_AT_ONCE {
            return Err(LedgerError::Invalid(format!("1 to {MAX_AT_ONCE} jobs can be leased at once, not {max}")));
        }
        let deadline = Instant::now() + wait.min(MAX_LEASE_WAIT);
        let mut jobs = self.jobs.clone();
        loop {
            jobs.mark_unchanged();
            let verb = job::Lease { who: who.clone(), want: want.clone(), max, request };
            let next = match self.write(verb).await? {
                Chosen::Leased(leased) => return Ok(Granted::Leased(leased)),
                Chosen::Nothing => Instant::now() + POLL,
                // Whoever had it in hand does not ring when it only let go.
                Chosen::Contended => Instant::now() + CONTENDED,
            };
            tokio::select! {
                () = tokio::time::sleep_until(deadline) => return Ok(Granted::Idle),
                () = self.shutdown.cancelled() => return Ok(Granted::Idle),
                _ = jobs.changed() => {}
                () = tokio::time::sleep_until(next) => {}
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
        self.require_blobs(body.into_iter().chain(workspace).collect()).await?;
        self.write(run::Record { lease: *lease, step: step.clone() }).await
    }

    async fn steps(&self, lease: &LeaseRef) -> L<Vec<StepRecord>> {
        within(async {
            let mut reading = self.store.reading().await?;
            let steps = run::steps(&mut reading, lease).await;
            reading.end(steps).await
        })
        .await
    }

    async fn complete_run(&self, lease: &LeaseRef, result: &RunResult) -> L<Fenced> {
        self.require_blobs(result.change.iter().map(|change| change.bundle).collect()).await?;
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
        within(async {
            let mut lent = self.store.lend().await?;
            let put = self.blobs.put(&mut lent, content).await;
            lent.give_back(put)
        })
        .await
    }

    async fn blob(&self, id: BlobId) -> L<Bytes> {
        within(async {
            let mut lent = self.store.lend().await?;
            let got = self.blobs.get(&mut lent, id).await;
            lent.give_back(got)
        })
        .await
    }

    async fn admit(&self, lease: &LeaseRef) -> L<Admission> {
        let task = within(async {
            let mut reading = self.store.reading().await?;
            let task = view::task_held(&mut reading, lease).await;
            reading.end(task).await
        })
        .await?;
        Ok(match &self.admissions {
            Some(admissions) => admissions.admit(&task).await,
            None => Admission::Go { read_token: None, run_token: None, model: None },
        })
    }
}

#[async_trait]
impl Ledger for PostgresLedger {
    async fn accept(&self, delivery: Delivery) -> L<Accepted> {
        self.write(delivery::Accept { delivery }).await
    }

    async fn received_since(&self, prefix: &str, since: Timestamp) -> L<bool> {
        within(async {
            let mut reading = self.store.reading().await?;
            let found = delivery::received_since(&mut reading, prefix, since).await;
            reading.end(found).await
        })
        .await
    }

    async fn open_deliveries(&self, max: u16) -> L<Vec<Delivery>> {
        within(async {
            let mut reading = self.store.reading().await?;
            let now = self.store.now(&mut reading).await?;
            let open = delivery::open(&mut reading, now, max).await;
            reading.end(open).await
        })
        .await
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
        within(async {
            let mut reading = self.store.reading().await?;
            let active = view::active(&mut reading, repo_forge_id, issue).await;
            reading.end(active).await
        })
        .await
    }

    async fn opened_since(&self, installation: Option<u64>, since: Timestamp) -> L<u64> {
        within(async {
            let mut reading = self.store.reading().await?;
            let opened = view::opened_since(&mut reading, installation, since).await;
            reading.end(opened).await
        })
        .await
    }

    async fn actors(&self, repo_forge_id: u64, issue: u64, max: u16) -> L<Vec<String>> {
        within(async {
            let mut reading = self.store.reading().await?;
            let actors = view::actors(&mut reading, repo_forge_id, issue, max).await;
            reading.end(actors).await
        })
        .await
    }

    async fn last_asked(&self, repo_forge_id: u64, issue: u64) -> L<Option<Timestamp>> {
        within(async {
            let mut reading = self.store.reading().await?;
            let asked = poll::last_asked(&mut reading, repo_forge_id, issue).await;
            reading.end(asked).await
        })
        .await
    }

    async fn poll_mark(&self, repo_forge_id: u64) -> L<Option<Timestamp>> {
        within(async {
            let mut reading = self.store.reading().await?;
            let mark = poll::mark(&mut reading, repo_forge_id).await;
            reading.end(mark).await
        })
        .await
    }

    async fn set_poll_mark(&self, repo_forge_id: u64, from: Option<Timestamp>, to: Timestamp) -> L<bool> {
        self.write(poll::SetMark { repo: repo_forge_id, from, to }).await
    }

    async fn post_message(&self, task: TaskId, by: &str, text: &str) -> L<()> {
        self.write(message::Post { task, by: by.to_owned(), text: text.to_owned() }).await
    }

    async fn messages(&self, task: TaskId, max: u16) -> L<Vec<Message>> {
        within(async {
            let mut reading = self.store.reading().await?;
            let messages = message::list(&mut reading, task, max.min(MAX_PAGE)).await;
            reading.end(messages).await
        })
        .await
    }

    async fn publication(&self, lease: &LeaseRef) -> L<Publication> {
        within(async {
            let mut reading = self.store.reading().await?;
            let publication = view::publication(&mut reading, lease).await;
            reading.end(publication).await
        })
        .await
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
        within(async {
            let mut reading = self.store.reading().await?;
            let at_work = view::at_work(&mut reading, max.min(MAX_PAGE)).await;
            reading.end(at_work).await
        })
        .await
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
        let runs = within(async {
            let mut reading = self.store.reading().await?;
            let runs = view::runs(&mut reading, task, None).await;
            reading.end(runs).await
        })
        .await?;
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
        within(async {
            let mut reading = self.store.reading().await?;
            let dead = view::dead(&mut reading, after, max.min(MAX_PAGE)).await;
            reading.end(dead).await
        })
        .await
    }

    async fn held_jobs(&self, max: u16) -> L<Vec<OpenJob>> {
        within(async {
            let mut reading = self.store.reading().await?;
            let found = listing::held(&mut reading, max.min(MAX_PAGE)).await;
            reading.end(found).await
        })
        .await
    }

    async fn unheld_jobs(&self, after: Option<JobId>, max: u16) -> L<Vec<OpenJob>> {
        within(async {
            let mut reading = self.store.reading().await?;
            let found = listing::unheld(&mut reading, after, max.min(MAX_PAGE)).await;
            reading.end(found).await
        })
        .await
    }

    async fn seen_repositories(&self, max: u16) -> L<Vec<SeenRepository>> {
        within(async {
            let mut reading = self.store.reading().await?;
            let found = listing::repositories(&mut reading, max.min(MAX_PAGE)).await;
            reading.end(found).await
        })
        .await
    }

    async fn journal(&self, run: RunId, from: u32, max: u16) -> L<Vec<StepRecord>> {
        within(async {
            let mut reading = self.store.reading().await?;
            let found = listing::journal(&mut reading, run, from, max.min(MAX_PAGE)).await;
            reading.end(found).await
        })
        .await
    }

    async fn task(&self, id: TaskId) -> L<TaskView> {
        within(async {
            let mut reading = self.store.reading().await?;
            let task = view::task(&mut reading, id).await;
            reading.end(task).await
        })
        .await
    }

    async fn tasks(&self, filter: TaskFilter, after: Option<TaskCursor>, max: u16) -> L<Vec<TaskView>> {
        within(async {
            let mut reading = self.store.reading().await?;
            let tasks = view::tasks(&mut reading, filter, after, max.min(MAX_PAGE)).await;
            reading.end(tasks).await
        })
        .await
    }

    async fn events(&self, task: Option<TaskId>, after: u64, max: u16) -> L<Vec<Event>> {
        within(async {
            let mut reading = self.store.reading().await?;
            let events = event::list(&mut reading, task, after, max.min(MAX_PAGE)).await;
            reading.end(events).await
        })
        .await
    }

    fn newest_event(&self) -> watch::Receiver<u64> {
        self.newest_event.clone()
    }

    fn work(&self) -> watch::Receiver<u64> {
        self.work.clone()
    }

    async fn sweep(&self, max: u16) -> L<Sweep> {
        let mut whole = Sweep::default();
        let mut left = max;
        while left > 0 {
            let at_once = left.min(SWEEP_AT_ONCE);
            let swept = self.write(job::SweepOnce { max: at_once }).await?;
            whole.expired += swept.expired;
            whole.promoted += swept.promoted;
            if swept.expired.max(swept.promoted) < u32::from(at_once) {
                break;
            }
            left -= at_once;
        }
        Ok(whole)
    }

    async fn depth(&self) -> L<Depth> {
        within(async {
            let mut reading = self.store.reading().await?;
            let now = self.store.now(&mut reading).await?;
            let depth = view::depth(&mut reading, now).await;
            reading.end(depth).await
        })
        .await
    }

    async fn runnable(&self, max: u32) -> L<u32> {
        within(async {
            let mut reading = self.store.reading().await?;
            let count = lane::count_next(&mut reading, &self.store.slots, &any_run(), max).await;
            reading.end(count).await
        })
        .await
    }

    async fn demand(&self) -> L<Demand> {
        within(async {
            let mut reading = self.store.reading().await?;
            let demand = self.demanded(&mut reading).await;
            reading.end(demand).await
        })
        .await
    }

    async fn announced(&self) -> L<u64> {
        within(async {
            let mut reading = self.store.reading().await?;
            let seq = event::announced(&mut reading).await;
            reading.end(seq).await
        })
        .await
    }

    async fn set_announced(&self, from: u64, to: u64) -> L<bool> {
        self.write(event::SetAnnounced { from, to }).await
    }

    async fn probe(&self) -> L<()> {
        self.write(job::Probe).await
    }

    async fn audit(&self) -> L<Vec<String>> {
        within(async {
            let mut reading = self.store.reading().await?;
            let breaches = self.audited(&mut reading).await;
            reading.end(breaches).await
        })
        .await
    }
}
