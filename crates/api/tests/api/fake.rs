//! A ledger in memory that moves jobs by the domain's own transitions, and can be stuck, down or full.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fettle_app::ports::ledger::{
    Accepted, Admission, Beat, BeatAnswer, CancelAnswer, DeadJob, Delivery, Demand, Depth, Fenced, Granted, Holder, L,
    Leased, Leases, Ledger, LedgerError, Message, OpenJob, Opened, Order, Publication, Retried, RunOrder, RunPlan,
    RunStopped, RunView, SeenRepository, Stands, Sweep, TaskCursor, TaskFilter, TaskPlan, TaskView, Then, Wake, Want,
};
use fettle_app::ports::model::ModelInfo;
use fettle_domain::budget::Spent;
use fettle_domain::effect::{Effect, EffectKind, EffectState, Intent, Receipt};
use fettle_domain::event::{Event, EventBody};
use fettle_domain::id::{DeliveryId, EffectId, JobId, RequestId, RunId, TaskId};
use fettle_domain::job::{Job, JobKind, JobState, Refused, Retry, Until};
use fettle_domain::lease::{Fence, LeaseRef};
use fettle_domain::object::BlobId;
use fettle_domain::progress::AtWork;
use fettle_domain::run::RunResult;
use fettle_domain::step::StepRecord;
use fettle_domain::task::TaskState;
use jiff::{SignedDuration, Timestamp};
use secrecy::SecretString;
use tokio::sync::watch;
use uuid::Uuid;

use crate::world::start;

const LEASE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Well,
    /// Does not answer.
    Stuck,
    Down,
    Full,
}

pub(crate) struct FakeLedger {
    mood: watch::Sender<Mood>,
    newest: watch::Sender<u64>,
    work: watch::Sender<u64>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    deliveries: BTreeMap<String, Delivery>,
    tasks: Vec<TaskView>,
    jobs: BTreeMap<JobId, Job>,
    granted: BTreeMap<RequestId, Vec<Leased>>,
    steps: BTreeMap<JobId, Vec<StepRecord>>,
    blobs: BTreeMap<BlobId, Bytes>,
    messages: Vec<String>,
    events: Vec<Event>,
}

impl FakeLedger {
    pub(crate) fn new() -> Self {
        Self {
            mood: watch::Sender::new(Mood::Well),
            newest: watch::Sender::new(0),
            work: watch::Sender::new(0),
            inner: Mutex::default(),
        }
    }

    pub(crate) fn feel(&self, mood: Mood) {
        self.mood.send_replace(mood);
    }

    pub(crate) fn deliveries(&self) -> Vec<Delivery> {
        self.inner.lock().unwrap().deliveries.values().cloned().collect()
    }

    /// What an event's transaction would do to the shown Task.
    pub(crate) fn tell(&self, task: TaskId, body: EventBody) {
        let mut inner = self.inner.lock().unwrap();
        if let EventBody::TaskDone { .. } = body {
            inner.task(task).unwrap().state = TaskState::Done;
        }
        self.push(&mut inner, task, body);
    }

    /// Many events at once, which ring the bell once.
    pub(crate) fn tell_often(&self, task: TaskId, bodies: impl Iterator<Item = EventBody>) {
        let mut inner = self.inner.lock().unwrap();
        let correlation = inner.task(task).unwrap().correlation;
        let told = inner.events.iter().filter(|event| event.task == task).count() as u64;
        for (task_seq, body) in (told + 1..).zip(bodies) {
            let seq = inner.events.len() as u64 + 1;
            inner.events.push(Event { seq, task, task_seq, at: start(), correlation, body });
        }
        self.newest.send_replace(inner.events.len() as u64);
    }

    pub(crate) fn settle_pull_request(&self, task: TaskId, number: u64) {
        let mut inner = self.inner.lock().unwrap();
        let id = EffectId::from_uuid(Uuid::from_u128(u128::from(number)));
        let url = format!("https://forge.example/acme/widget/pull/{number}");
        let state = EffectState::Settled { receipt: Receipt::PullRequest { number, url, draft: false } };
        inner.task(task).unwrap().effects.push(Effect::new(id, task, EffectKind::PullRequest, state));
    }

    pub(crate) fn job_state(&self, job: JobId) -> JobState {
        self.inner.lock().unwrap().jobs[&job].state.clone()
    }

    fn push(&self, inner: &mut Inner, task: TaskId, body: EventBody) {
        let seq = inner.events.len() as u64 + 1;
        let task_seq = inner.events.iter().filter(|event| event.task == task).count() as u64 + 1;
        let correlation = inner.task(task).unwrap().correlation;
        inner.events.push(Event { seq, task, task_seq, at: start(), correlation, body });
        self.newest.send_replace(seq);
    }

    async fn well(&self) -> L<()> {
        let mut mood = self.mood.subscribe();
        let mood = *mood.wait_for(|mood| *mood != Mood::Stuck).await.unwrap();
        match mood {
            Mood::Down => Err(LedgerError::Unavailable("secret cause".to_owned())),
            Mood::Full => Err(LedgerError::Full),
            Mood::Well | Mood::Stuck => Ok(()),
        }
    }

    fn fenced(&self, lease: &LeaseRef, next: impl FnOnce(Job) -> Result<Job, Refused>) -> L<Fenced> {
        let mut inner = self.inner.lock().unwrap();
        let job = inner.jobs.get(&lease.job).cloned().ok_or(LedgerError::NotFound(lease.job.to_string()))?;
        match next(job) {
            Ok(job) => {
                inner.jobs.insert(lease.job, job);
                Ok(Fenced::Applied)
            }
            Err(Refused::AlreadyApplied { .. }) => Ok(Fenced::AlreadyApplied),
            Err(Refused::Stale { .. }) => Ok(Fenced::Stale),
            Err(other) => Err(LedgerError::Invalid(other.to_string())),
        }
    }
}

impl Inner {
    fn open_jobs(&self) -> Vec<OpenJob> {
        let open = self.jobs.values().filter_map(|job| {
            let stands = match job.state.clone() {
                JobState::Queued => Stands::Runnable { since: start() },
                JobState::Delayed { until } => Stands::Delayed { until },
                JobState::Waiting { .. } => Stands::Waiting,
                JobState::Leased { worker: by, until } => {
                    Stands::Held { by, name: "worker-1".to_owned(), until, cancelling: false }
                }
                JobState::Cancelling { worker: by, until } => {
                    Stands::Held { by, name: "worker-1".to_owned(), until, cancelling: true }
                }
                JobState::Done | JobState::Dead { .. } | JobState::Cancelled => return None,
            };
            let task = self.tasks.iter().find(|task| task.run.job == job.id)?;
            Some(OpenJob {
                job: job.id,
                kind: job.kind,
                task: task.id,
                title: task.issue.title.clone(),
                repo: task.repo.as_ref().map(|repo| repo.name.clone()),
                stands,
                attempts: job.counters.attempts,
                crashes: job.counters.crashes,
                last_failure: None,
            })
        });
        open.collect()
    }

    fn task(&mut self, id: TaskId) -> L<&mut TaskView> {
        self.tasks.iter_mut().find(|task| task.id == id).ok_or_else(|| LedgerError::NotFound(id.to_string()))
    }
}

#[async_trait]
impl Leases for FakeLedger {
    async fn lease(&self, who: &Holder, want: &Want, max: u8, _wait: Duration, request: RequestId) -> L<Granted> {
        self.well().await?;
        let mut inner = self.inner.lock().unwrap();
        if let Some(leases) = inner.granted.get(&request) {
            return Ok(Granted::Leased(leases.clone()));
        }
        let runnable = |job: &&Job| job.kind == want.kind && job.state == JobState::Queued;
        let jobs: Vec<Job> = inner.jobs.values().filter(runnable).take(usize::from(max)).cloned().collect();
        let mut leases = Vec::new();
        for job in jobs {
            let job = job.lease(who.worker, start(), start() + LEASE).unwrap();
            let task = inner.tasks.iter().find(|task| task.run.job == job.id).unwrap();
            let order = Order::Run(Box::new(RunOrder {
                task: task.id,
                run: task.run.id,
                correlation: task.correlation,
                mode: task.mode,
                repo: task.repo.clone(),
                issue: task.issue.clone(),
                model: task.model.clone(),
                instruction: None,
                base: task.base.clone(),
                generation: task.generation,
                spent: task.run.spent,
                last_failure: None,
            }));
            let lease = LeaseRef { job: job.id, fence: job.fence };
            leases.push(Leased { lease, time_left: LEASE, attempts: job.counters.attempts, order });
            inner.jobs.insert(job.id, job);
        }
        if leases.is_empty() {
            return Ok(Granted::Idle);
        }
        inner.granted.insert(request, leases.clone());
        Ok(Granted::Leased(leases))
    }

    async fn renew(&self, beats: &[Beat]) -> L<Vec<BeatAnswer>> {
        self.well().await?;
        let mut inner = self.inner.lock().unwrap();
        let messages = std::mem::take(&mut inner.messages);
        let answer = |beat: &Beat| match inner.jobs.get(&beat.lease.job) {
            Some(job) if job.clone().held_under(beat.lease.fence).is_err() => BeatAnswer::Lost,
            Some(Job { state: JobState::Cancelling { .. }, .. }) => {
                BeatAnswer::Cancel { reason: "cancelled by admin".to_owned() }
            }
            Some(_) => BeatAnswer::Renewed {
                time_left: LEASE,
                received: Some(messages.len() as u64),
                messages: messages.clone(),
            },
            None => BeatAnswer::Lost,
        };
        Ok(beats.iter().map(answer).collect())
    }

    async fn record(&self, lease: &LeaseRef, step: &StepRecord) -> L<Fenced> {
        self.well().await?;
        let fenced = self.fenced(lease, |job| job.step(lease.fence))?;
        let mut inner = self.inner.lock().unwrap();
        let steps = inner.steps.entry(lease.job).or_default();
        if fenced == Fenced::Applied && steps.iter().any(|known| known.seq == step.seq) {
            return Ok(Fenced::AlreadyApplied);
        }
        if fenced == Fenced::Applied {
            steps.push(step.clone());
        }
        Ok(fenced)
    }

    async fn steps(&self, lease: &LeaseRef) -> L<Vec<StepRecord>> {
        self.well().await?;
        Ok(self.inner.lock().unwrap().steps.get(&lease.job).cloned().unwrap_or_default())
    }

    async fn complete_run(&self, lease: &LeaseRef, result: &RunResult) -> L<Fenced> {
        self.well().await?;
        let fenced = self.fenced(lease, |job| job.complete(lease.fence))?;
        let mut inner = self.inner.lock().unwrap();
        let task = inner.tasks.iter_mut().find(|task| task.run.job == lease.job).unwrap();
        if fenced == Fenced::Applied {
            task.run.result = Some(result.clone());
            task.state = TaskState::Publishing;
        }
        Ok(fenced)
    }

    async fn fail(&self, lease: &LeaseRef, why: &str, then: Then) -> L<Fenced> {
        self.well().await?;
        let then = match then {
            Then::RetryAfter(wait) => Retry::At(start() + wait),
            Then::Never => Retry::Never,
        };
        self.fenced(lease, |job| job.fail(lease.fence, why, then))
    }

    async fn defer(&self, lease: &LeaseRef, until: Wake, why: &str) -> L<Fenced> {
        self.well().await?;
        let until = match until {
            Wake::After(wait) => Until::Time(start() + wait),
            Wake::Event => Until::Event,
        };
        self.fenced(lease, |job| job.defer(lease.fence, until, why))
    }

    async fn release(&self, lease: &LeaseRef) -> L<Fenced> {
        self.well().await?;
        self.fenced(lease, |job| job.release(lease.fence))
    }

    async fn put_blob(&self, content: Bytes) -> L<BlobId> {
        self.well().await?;
        let id = BlobId::of(&content);
        self.inner.lock().unwrap().blobs.insert(id, content);
        Ok(id)
    }

    async fn blob(&self, id: BlobId) -> L<Bytes> {
        self.well().await?;
        self.inner.lock().unwrap().blobs.get(&id).cloned().ok_or_else(|| LedgerError::NotFound(id.to_string()))
    }

    async fn admit(&self, lease: &LeaseRef) -> L<Admission> {
        self.well().await?;
        let live = self.inner.lock().unwrap().jobs.contains_key(&lease.job);
        Ok(match live {
            true => Admission::Go {
                read_token: Some(SecretString::from("read-only-token")),
                run_token: Some(SecretString::from("fettle_run.token")),
                model: Some(ModelInfo { name: "added".into(), context_tokens: 65_536 }),
            },
            false => Admission::Withdrawn { reason: "the issue was closed meanwhile".to_owned() },
        })
    }
}

#[async_trait]
impl Ledger for FakeLedger {
    async fn accept(&self, delivery: Delivery) -> L<Accepted> {
        self.well().await?;
        let mut inner = self.inner.lock().unwrap();
        if inner.deliveries.contains_key(&delivery.key) {
            return Ok(Accepted::Duplicate);
        }
        inner.deliveries.insert(delivery.key.clone(), delivery);
        Ok(Accepted::New)
    }

    async fn open_task(&self, _delivery: Option<DeliveryId>, plan: &TaskPlan) -> L<Opened> {
        self.well().await?;
        let mut inner = self.inner.lock().unwrap();
        let number = inner.tasks.len();
        // Three in the same microsecond, so that a page can end between equals.
        let created_at = start() + SignedDuration::from_micros((number / 3) as i64);
        inner.jobs.insert(plan.job, Job::queued(plan.job, JobKind::Run));
        inner.tasks.push(TaskView {
            id: plan.id,
            correlation: plan.correlation,
            mode: plan.mode,
            repo: plan.repo.clone(),
            issue: plan.issue.clone(),
            model: plan.model.clone(),
            base: plan.base.clone(),
            needs: plan.needs.clone(),
            actor: plan.actor.clone(),
            trigger: plan.trigger.clone(),
            generation: 1,
            as_draft: false,
            state: TaskState::Queued,
            note: None,
            created_at,
            updated_at: created_at,
            run: RunView {
                id: plan.run,
                ordinal: 1,
                model: plan.model.clone(),
                instruction: None,
                job: plan.job,
                job_state: "queued".to_owned(),
                fence: Fence::NONE.get(),
                attempts: 0,
                crashes: 0,
                steps: 0,
                spent: Spent::default(),
                result: None,
            },
            effects: Vec::new(),
        });
        let (title, mode) = (plan.issue.title.clone(), plan.mode.name().to_owned());
        self.push(&mut inner, plan.id, EventBody::TaskCreated { title, mode, trigger: plan.trigger.clone() });
        Ok(Opened::New { task: plan.id, generation: 1 })
    }

    async fn post_message(&self, _task: TaskId, _by: &str, text: &str) -> L<()> {
        self.inner.lock().unwrap().messages.push(text.to_owned());
        Ok(())
    }

    async fn messages(&self, _task: TaskId, _max: u16) -> L<Vec<Message>> {
        let texts = self.inner.lock().unwrap().messages.clone();
        Ok(texts.into_iter().map(|text| Message { by: "admin".to_owned(), at: start(), text }).collect())
    }

    async fn add_runs(&self, _: TaskId, _: &str, _: &[RunPlan]) -> L<()> {
        Err(LedgerError::Invalid("one Run is enough here".to_owned()))
    }

    async fn choose_run(&self, _: TaskId, _: RunId, _: bool, _: &str) -> L<()> {
        Err(LedgerError::Invalid("there is nothing to choose here".to_owned()))
    }

    async fn stop_run(&self, _: TaskId, run: RunId, _: &str) -> L<RunStopped> {
        Err(LedgerError::Invalid(format!("{run} has no other beside it that goes on; cancel the Task instead")))
    }

    async fn runs(&self, task: TaskId) -> L<Vec<RunView>> {
        Ok(vec![self.task(task).await?.run])
    }

    async fn cancel(&self, task: TaskId, _by: &str) -> L<CancelAnswer> {
        self.well().await?;
        let mut inner = self.inner.lock().unwrap();
        let (job, state) = inner.task(task).map(|task| (task.run.job, task.state))?;
        let Some(job) = inner.jobs[&job].clone().cancel() else {
            return Ok(CancelAnswer::TooLate { state });
        };
        let cancelled = job.state == JobState::Cancelled;
        inner.jobs.insert(job.id, job);
        if cancelled {
            inner.task(task)?.state = TaskState::Cancelled;
            self.push(&mut inner, task, EventBody::TaskCancelled);
            return Ok(CancelAnswer::Cancelled);
        }
        Ok(CancelAnswer::Cancelling)
    }

    async fn retry(&self, task: TaskId, _by: &str) -> L<Retried> {
        self.well().await?;
        let mut inner = self.inner.lock().unwrap();
        match inner.task(task)?.state {
            TaskState::Done => Ok(Retried { task, new: true }),
            state => Err(LedgerError::Invalid(format!("{task} is {}", state.name()))),
        }
    }

    async fn dead(&self, _after: Option<JobId>, _max: u16) -> L<Vec<DeadJob>> {
        self.well().await?;
        Ok(Vec::new())
    }

    async fn held_jobs(&self, max: u16) -> L<Vec<OpenJob>> {
        self.well().await?;
        let mut open = self.inner.lock().unwrap().open_jobs();
        open.retain(|job| matches!(job.stands, Stands::Held { .. }));
        open.truncate(max.into());
        Ok(open)
    }

    async fn unheld_jobs(&self, after: Option<JobId>, max: u16) -> L<Vec<OpenJob>> {
        self.well().await?;
        // Ids are given in their order here.
        let mut open = self.inner.lock().unwrap().open_jobs();
        open.retain(|job| !matches!(job.stands, Stands::Held { .. }) && after.is_none_or(|after| job.job > after));
        open.truncate(max.into());
        Ok(open)
    }

    async fn seen_repositories(&self, max: u16) -> L<Vec<SeenRepository>> {
        self.well().await?;
        let tasks = self.inner.lock().unwrap().tasks.clone();
        let mut seen: Vec<SeenRepository> = Vec::new();
        for (repo, task) in tasks.iter().rev().filter_map(|task| Some((task.repo.as_ref()?, task))) {
            let open = u64::from(!matches!(task.state, TaskState::Done | TaskState::Cancelled));
            match seen.iter_mut().find(|one| one.forge_id == repo.forge_id) {
                Some(one) => (one.tasks, one.open) = (one.tasks + 1, one.open + open),
                None => seen.push(SeenRepository { forge_id: repo.forge_id, tasks: 1, open, newest: task.id }),
            }
        }
        seen.truncate(max.into());
        Ok(seen)
    }

    async fn journal(&self, run: RunId, from: u32, max: u16) -> L<Vec<StepRecord>> {
        self.well().await?;
        let inner = self.inner.lock().unwrap();
        let task = inner.tasks.iter().find(|task| task.run.id == run);
        let job = task.ok_or_else(|| LedgerError::NotFound(run.to_string()))?.run.job;
        let steps = inner.steps.get(&job).into_iter().flatten();
        Ok(steps.filter(|step| step.seq >= from).take(max.into()).cloned().collect())
    }

    async fn task(&self, id: TaskId) -> L<TaskView> {
        self.well().await?;
        self.inner.lock().unwrap().task(id).cloned()
    }

    async fn tasks(&self, filter: TaskFilter, after: Option<TaskCursor>, max: u16) -> L<Vec<TaskView>> {
        self.well().await?;
        let key = |task: &TaskView| (task.created_at, task.id);
        let mut tasks = self.inner.lock().unwrap().tasks.clone();
        tasks.sort_by_key(|task| std::cmp::Reverse(key(task)));
        tasks.retain(|task| filter.state.is_none_or(|state| task.state == state));
        tasks.retain(|task| after.is_none_or(|after| key(task) < (after.created_at, after.id)));
        tasks.truncate(usize::from(max));
        Ok(tasks)
    }

    async fn events(&self, task: Option<TaskId>, after: u64, max: u16) -> L<Vec<Event>> {
        self.well().await?;
        let inner = self.inner.lock().unwrap();
        let wanted = |event: &&Event| event.seq > after && task.is_none_or(|task| event.task == task);
        Ok(inner.events.iter().filter(wanted).take(usize::from(max)).cloned().collect())
    }

    fn newest_event(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    fn work(&self) -> watch::Receiver<u64> {
        self.work.subscribe()
    }

    async fn depth(&self) -> L<Depth> {
        self.well().await?;
        let inner = self.inner.lock().unwrap();
        let runnable = inner.jobs.values().filter(|job| job.state == JobState::Queued).count() as u64;
        Ok(Depth {
            runnable,
            oldest_runnable_s: 42,
            open_deliveries: inner.deliveries.len() as u64,
            ..Depth::default()
        })
    }

    async fn probe(&self) -> L<()> {
        self.well().await
    }

    // The HTTP edge asks for none of these.

    async fn open_deliveries(&self, _max: u16) -> L<Vec<Delivery>> {
        unreachable!("intake's")
    }

    async fn postpone_delivery(&self, _id: DeliveryId, _wait: Duration) -> L<()> {
        unreachable!("intake's")
    }

    async fn close_delivery(&self, _id: DeliveryId, _verdict: &str) -> L<()> {
        unreachable!("intake's")
    }

    async fn active_task(&self, _repo: u64, _issue: u64) -> L<Option<TaskId>> {
        unreachable!("intake's")
    }

    async fn opened_since(&self, _installation: Option<u64>, _since: Timestamp) -> L<u64> {
        unreachable!("intake's")
    }

    async fn actors(&self, _repo: u64, _issue: u64, _max: u16) -> L<Vec<String>> {
        unreachable!("intake's")
    }

    async fn last_asked(&self, _repo: u64, _issue: u64) -> L<Option<Timestamp>> {
        unreachable!("intake's")
    }

    async fn poll_mark(&self, _repo: u64) -> L<Option<Timestamp>> {
        unreachable!("the poller's")
    }

    async fn set_poll_mark(&self, _repo: u64, _from: Option<Timestamp>, _to: Timestamp) -> L<bool> {
        unreachable!("the poller's")
    }

    async fn publication(&self, _lease: &LeaseRef) -> L<Publication> {
        unreachable!("the publisher's")
    }

    async fn intend(&self, _lease: &LeaseRef, _effect: EffectId, _intent: &Intent) -> L<Fenced> {
        unreachable!("the publisher's")
    }

    async fn settle(&self, _lease: &LeaseRef, _effect: EffectId, _receipt: &Receipt) -> L<Fenced> {
        unreachable!("the publisher's")
    }

    async fn complete_publish(&self, _lease: &LeaseRef) -> L<Fenced> {
        unreachable!("the publisher's")
    }

    async fn want_effects(&self, _task: TaskId, _kinds: &[EffectKind]) -> L<JobId> {
        unreachable!("the publisher's")
    }

    async fn at_work(&self, _max: u16) -> L<Vec<AtWork>> {
        unreachable!("the teller's")
    }

    async fn want_progress(&self, _task: TaskId) -> L<bool> {
        unreachable!("the teller's")
    }

    async fn redrive(&self, _job: JobId, _by: &str) -> L<()> {
        Err(LedgerError::Invalid("it is not dead".into()))
    }

    async fn received_since(&self, _prefix: &str, _since: Timestamp) -> L<bool> {
        unreachable!("intake's")
    }

    async fn runnable(&self, _max: u32) -> L<u32> {
        unreachable!("the ringer's")
    }

    async fn demand(&self) -> L<Demand> {
        self.well().await?;
        let inner = self.inner.lock().unwrap();
        let runs = || inner.jobs.values().filter(|job| job.kind == JobKind::Run);
        let runnable = runs().filter(|job| matches!(job.state, JobState::Queued)).count() as u64;
        let leased = runs().filter(|job| matches!(job.state, JobState::Leased { .. })).count() as u64;
        Ok(Demand { runnable, leased, oldest_runnable_s: 0 })
    }

    async fn announced(&self) -> L<u64> {
        unreachable!("the announcer's")
    }

    async fn set_announced(&self, _from: u64, _to: u64) -> L<bool> {
        unreachable!("the announcer's")
    }

    async fn sweep(&self, _max: u16) -> L<Sweep> {
        unreachable!("the reconciler's")
    }

    async fn audit(&self) -> L<Vec<String>> {
        unreachable!("the reconciler's")
    }
}
