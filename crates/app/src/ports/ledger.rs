//! The ledger: the only truth about Tasks, Runs, jobs, steps and effects.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fettle_domain::branch::BranchName;
use fettle_domain::budget::Spent;
use fettle_domain::effect::{Effect, EffectKind, EffectState, Intent, Receipt};
use fettle_domain::event::Event;
use fettle_domain::id::{CorrelationId, DeliveryId, EffectId, JobId, RequestId, RunId, TaskId, WorkerId};
use fettle_domain::issue::IssueSnapshot;
use fettle_domain::job::JobKind;
use fettle_domain::label::Labels;
use fettle_domain::lease::LeaseRef;
use fettle_domain::object::BlobId;
use fettle_domain::progress::AtWork;
use fettle_domain::repo::{Repo, RepoName};
use fettle_domain::run::RunResult;
use fettle_domain::step::StepRecord;
use fettle_domain::task::{Mode, TaskState};
use jiff::Timestamp;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::model::ModelInfo;

/// A blob above this is refused: patches are limited far below, logs are cut before.
pub const MAX_BLOB_BYTES: usize = 64 * 1024 * 1024;
/// The longest that `lease` waits for work.
pub const MAX_LEASE_WAIT: Duration = Duration::from_secs(25);

#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The only one to retry.
    #[error("the ledger is not available: {0}")]
    Unavailable(String),
    /// Reads go on; writes wait for the operator.
    #[error("the ledger's disk is full")]
    Full,
    /// The caller's bug.
    #[error("the ledger refused the request: {0}")]
    Invalid(String),
    #[error("{0} does not exist")]
    NotFound(String),
    /// One stored value is not what this binary writes; everything else goes on.
    #[error("a stored value cannot be read: {0}")]
    Unreadable(String),
    /// The file itself: stop, and restore from a backup.
    #[error("the ledger is damaged: {0}")]
    Corrupt(String),
}

pub type L<T> = Result<T, LedgerError>;

/// What a fenced write did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fenced {
    Applied,
    /// By this very fence; the answer had been lost.
    AlreadyApplied,
    /// No live lease matches; nothing changed. Stop.
    Stale,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    pub worker: WorkerId,
    /// Host and process, for people.
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    pub kind: JobKind,
    /// Payload versions this holder understands.
    pub versions: Vec<u16>,
    /// What this holder has, and so may be needed. `None`: whatever is needed.
    pub labels: Option<Labels>,
}

impl Want {
    /// Whatever labels a job needs.
    pub fn anything(kind: JobKind, versions: Vec<u16>) -> Self {
        Self { kind, versions, labels: None }
    }

    pub fn meets(&self, needs: &Labels) -> bool {
        self.labels.as_ref().is_none_or(|labels| labels.meet(needs))
    }
}

/// The newest version of [`RunOrder`].
pub const RUN_ORDER_VERSION: u16 = 1;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Granted {
    Leased(Vec<Leased>),
    /// Nothing runnable.
    Idle,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Leased {
    pub lease: LeaseRef,
    /// From now; clocks of worker and ledger are never compared.
    pub time_left: Duration,
    /// Failures so far; the next back-off grows with them.
    pub attempts: u16,
    pub order: Order,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    Run(Box<RunOrder>),
    Publish { task: TaskId },
}

/// All a worker needs to know of a Run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunOrder {
    pub task: TaskId,
    pub run: RunId,
    pub correlation: CorrelationId,
    pub mode: Mode,
    /// Absent for a probe.
    pub repo: Option<Repo>,
    pub issue: IssueSnapshot,
    /// Absent: the first configured model.
    pub model: Option<String>,
    /// What this Run is told over and above the issue; foreign text of a permitted person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instruction: Option<String>,
    /// The base branch; absent for the repository's default.
    pub base: Option<String>,
    pub generation: u32,
    /// Spent by earlier leases of this Run.
    pub spent: Spent,
    /// The last failure of this job, for the log.
    pub last_failure: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    pub lease: LeaseRef,
    /// Grows while the holder gets anywhere.
    pub progress: u64,
    /// How many of the Task's messages the holder has, from the first one on: the `received` of the last answer that reached
    /// it. `None`: it was handed none under this lease.
    pub received: Option<u64>,
}

impl Beat {
    /// Of a holder that was handed no message.
    pub fn new(lease: LeaseRef, progress: u64) -> Self {
        Self { lease, progress, received: None }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BeatAnswer {
    Renewed {
        time_left: Duration,
        /// From permitted persons, those that the holder has not; they join before the next model call. An answer that is
        /// lost comes again.
        messages: Vec<String>,
        /// What the next beat says.
        received: Option<u64>,
    },
    Cancel {
        reason: String,
    },
    Lost,
}

/// After a failure. Durations, because the clocks of holder and ledger are never compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Then {
    RetryAfter(Duration),
    /// The job is dead.
    Never,
}

/// What makes a deferred job runnable again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wake {
    After(Duration),
    Event,
}

/// The verbs of a lease holder (worker, publisher). Implemented by each ledger and by the worker API's client.
#[async_trait]
pub trait Leases: Send + Sync {
    /// Up to `max` (1..=32) jobs that match `want`; waits up to `wait` ([`MAX_LEASE_WAIT`]) for one to become runnable.
    /// The same `request` again returns the same leases.
    async fn lease(&self, who: &Holder, want: &Want, max: u8, wait: Duration, request: RequestId) -> L<Granted>;
    /// One answer for each beat, in order; at most 32.
    async fn renew(&self, beats: &[Beat]) -> L<Vec<BeatAnswer>>;
    /// Appends to the Run's journal; idempotent per (run, seq) and fence.
    async fn record(&self, lease: &LeaseRef, step: &StepRecord) -> L<Fenced>;
    /// The Run's journal in order, to replay after leasing.
    async fn steps(&self, lease: &LeaseRef) -> L<Vec<StepRecord>>;
    /// Ends a run job: its result, the publish job with the wanted effects and the events commit together.
    async fn complete_run(&self, lease: &LeaseRef, result: &RunResult) -> L<Fenced>;
    /// Spends an attempt.
    async fn fail(&self, lease: &LeaseRef, why: &str, then: Then) -> L<Fenced>;
    /// Spends none.
    async fn defer(&self, lease: &LeaseRef, until: Wake, why: &str) -> L<Fenced>;
    /// Spends none; runnable at once.
    async fn release(&self, lease: &LeaseRef) -> L<Fenced>;
    /// Durable when it returns. At most [`MAX_BLOB_BYTES`].
    async fn put_blob(&self, content: Bytes) -> L<BlobId>;
    async fn blob(&self, id: BlobId) -> L<Bytes>;
    /// Whether the leased Run may begin, asked once per lease before anything is spent.
    async fn admit(&self, lease: &LeaseRef) -> L<Admission>;
}

/// Whether a leased Run may begin.
#[derive(Debug, Clone)]
pub enum Admission {
    Go {
        /// Read access to the Run's one repository; the dashboard mints it, the worker keeps it in memory. `None`: none
        /// needed or none configured there.
        read_token: Option<SecretString>,
        /// What the Run shows to the gateway of models. `None`: the dashboard makes none.
        run_token: Option<SecretString>,
        /// The model that the Run asks, where only the gateway knows it. `None`: the worker's configuration has it.
        model: Option<ModelInfo>,
    },
    /// A person has taken the wish back since; the sentence says how.
    Withdrawn { reason: String },
    /// The forge could not be asked. Spends nothing.
    Later { wait: Duration, why: String },
    /// The forge refuses us. Somebody has to mend that; another try may find it mended.
    Refused { why: String },
}

/// Answers for a ledger, which has checked the lease before it asks. Implemented by [`crate::admission::Gate`].
#[async_trait]
pub trait Admissions: Send + Sync {
    /// `task.run` is the Run that was leased, whichever leads.
    async fn admit(&self, task: &TaskView) -> Admission;
}

/// A webhook or foreign message as it arrived, or a label as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    pub id: DeliveryId,
    /// Unique: `github:<X-GitHub-Delivery>`, `poll:<repository id>:<event id>`.
    pub key: String,
    /// `issues`, `issue_comment`, … or `foreign`, `polled`.
    pub event: String,
    pub body: Bytes,
    pub correlation: CorrelationId,
    pub received_at: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    New,
    Duplicate,
}

/// A Task to be opened, decided by intake.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskPlan {
    pub id: TaskId,
    pub run: RunId,
    pub job: JobId,
    pub correlation: CorrelationId,
    /// Unique; see [`fettle_domain`]'s intake rules: repository id, issue, trigger kind, trigger object.
    pub intent: String,
    pub mode: Mode,
    pub repo: Option<Repo>,
    pub issue: IssueSnapshot,
    /// What the person said with the trigger; a Task that is at work already gets it as a message.
    pub said: Option<String>,
    pub model: Option<String>,
    pub base: Option<String>,
    /// Labels that a worker must have for its Runs.
    pub needs: Labels,
    /// The login that triggered it, or `admin`.
    pub actor: String,
    /// `label`, `comment`, `api`, `foreign`, `cli`.
    pub trigger: String,
    pub at: Timestamp,
    /// Runs beside the first, at most [`fettle_domain::choice::MAX_RUNS`] together.
    pub further: Vec<RunPlan>,
}

/// A further Run of a Task, beside those it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunPlan {
    pub run: RunId,
    pub job: JobId,
    /// Absent: the first configured model.
    pub model: Option<String>,
    /// What this Run is told and the others are not.
    pub instruction: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opened {
    New {
        task: TaskId,
        generation: u32,
    },
    /// The issue has an active Task; the trigger became a message to it.
    Joined {
        task: TaskId,
    },
    /// The same intent was seen before.
    Duplicate {
        task: TaskId,
    },
}

/// What the shown Task consists of.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskView {
    pub id: TaskId,
    pub correlation: CorrelationId,
    pub mode: Mode,
    pub repo: Option<Repo>,
    pub issue: IssueSnapshot,
    pub model: Option<String>,
    /// The base branch; absent for the repository's default.
    pub base: Option<String>,
    /// Labels that a worker must have for its Runs.
    pub needs: Labels,
    pub actor: String,
    pub trigger: String,
    pub generation: u32,
    /// Its pull request is to be a draft, whatever its proof says.
    pub as_draft: bool,
    pub state: TaskState,
    /// Why it waits or failed, when it does.
    pub note: Option<String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// The leading one: its end is or will be the Task's. The first, until another one's patch is published.
    pub run: RunView,
    /// In the order of [`EffectKind`].
    pub effects: Vec<Effect>,
}

impl TaskView {
    /// How it ended, as people are told; `failed` when its Run was given up without a result, or its pull request before it was
    /// open. `None`: not yet.
    pub fn outcome(&self) -> Option<&'static str> {
        // Beside another Run at work, or with a patch that is one of several, the leading one's end is not the Task's.
        if matches!(self.state, TaskState::Queued | TaskState::Running) || self.run.job_state == "waiting" {
            return None;
        }
        match &self.run.result {
            Some(_) if self.is_publishing_given_up() => Some("failed"),
            Some(result) => Some(result.outcome.name()),
            None => (self.state == TaskState::Done).then_some("failed"),
        }
    }

    /// It has ended, and a pull request that was to be opened is not.
    fn is_publishing_given_up(&self) -> bool {
        let open = |effect: &Effect| {
            effect.kind == EffectKind::PullRequest && !matches!(effect.state, EffectState::Settled { .. })
        };
        self.state == TaskState::Done && self.effects.iter().any(open)
    }

    /// Whether a patch of it is pushed or is to be.
    pub fn is_published(&self) -> bool {
        self.effects.iter().any(|effect| effect.kind == EffectKind::Push)
    }

    /// The branch that a pull request of this Task goes into.
    pub fn base_branch(&self, repo: &Repo) -> String {
        self.base.clone().unwrap_or_else(|| repo.default_branch.clone())
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct RunView {
    pub id: RunId,
    /// Among the Task's Runs, from 1.
    pub ordinal: u16,
    /// Absent: the first configured model.
    pub model: Option<String>,
    /// What this Run is told and the others are not.
    pub instruction: Option<String>,
    pub job: JobId,
    pub job_state: String,
    pub fence: u64,
    pub attempts: u16,
    pub crashes: u16,
    pub steps: u32,
    pub spent: Spent,
    pub result: Option<RunResult>,
}

/// What the publisher reads when it has leased a publish job.
#[derive(Debug, Clone, PartialEq)]
pub struct Publication {
    pub task: TaskView,
    pub branch: BranchName,
    /// The run job died without a result; the comment says so.
    pub run_failure: Option<String>,
    /// Of the Run's newest step, empty before the first; [`CHOICE`](fettle_domain::progress::CHOICE) while its patch waits to be
    /// chosen. `None`: the Run has ended.
    pub phase: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TaskFilter {
    pub state: Option<TaskState>,
}

/// Position in the list, newest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskCursor {
    pub created_at: Timestamp,
    pub id: TaskId,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CancelAnswer {
    /// Nobody worked on it.
    Cancelled,
    /// Its holder is told at the next renewal.
    Cancelling,
    /// It had ended.
    TooLate { state: TaskState },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunStopped {
    /// Nobody worked on it.
    AtOnce,
    /// Its holder is told at the next renewal.
    Stopping,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retried {
    pub task: TaskId,
    /// A dead Task goes on; a finished one gets a new Task of the next generation.
    pub new: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Depth {
    pub runnable: u64,
    pub delayed: u64,
    pub waiting: u64,
    pub leased: u64,
    pub dead: u64,
    pub oldest_runnable_s: u64,
    pub open_deliveries: u64,
}

/// From a permitted person to a Task: foreign text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub by: String,
    pub at: Timestamp,
    pub text: String,
}

/// A job that was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadJob {
    pub job: JobId,
    pub kind: JobKind,
    pub task: TaskId,
    /// Why it was given up.
    pub reason: String,
    /// What its holder said last.
    pub last_failure: Option<String>,
    pub attempts: u16,
    pub crashes: u16,
}

/// A job that has neither ended nor been given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenJob {
    pub job: JobId,
    pub kind: JobKind,
    pub task: TaskId,
    /// Of its Task: foreign text.
    pub title: String,
    pub repo: Option<RepoName>,
    pub stands: Stands,
    pub attempts: u16,
    pub crashes: u16,
    /// What its holder said last.
    pub last_failure: Option<String>,
}

/// Where an open job stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stands {
    Runnable {
        since: Timestamp,
    },
    Delayed {
        until: Timestamp,
    },
    /// Runnable again when something happens.
    Waiting,
    Held {
        by: WorkerId,
        /// Host and process, for people.
        name: String,
        /// By then the holder has to have told that it is still there.
        until: Timestamp,
        /// Its holder is told to stop.
        cancelling: bool,
    },
}

/// A repository that Tasks were asked for in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeenRepository {
    pub forge_id: u64,
    pub tasks: u64,
    /// Of them, those that have not ended.
    pub open: u64,
    pub newest: TaskId,
}

/// What Runs ask of workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Demand {
    /// Could be leased now, or will be at the next sweep since its lease has lapsed.
    pub runnable: u64,
    pub leased: u64,
    /// Of the runnable ones.
    pub oldest_runnable_s: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sweep {
    pub expired: u32,
    pub promoted: u32,
}

/// The rest of the ledger, for intake, publisher, API and reconcilers inside the dashboard.
#[async_trait]
pub trait Ledger: Leases {
    /// Durable before `Ok`.
    async fn accept(&self, delivery: Delivery) -> L<Accepted>;
    /// Whether a delivery has come since then whose key begins with `prefix`.
    async fn received_since(&self, prefix: &str, since: Timestamp) -> L<bool>;
    /// Deliveries not yet turned into a Task or a rejection, oldest first, without those that were postponed.
    async fn open_deliveries(&self, max: u16) -> L<Vec<Delivery>>;
    /// The delivery cannot be decided now and is not among the open ones for so long.
    async fn postpone_delivery(&self, id: DeliveryId, wait: Duration) -> L<()>;
    /// The delivery needs nothing (an unknown event, an unrelated label) or was refused; the reason is kept.
    async fn close_delivery(&self, id: DeliveryId, verdict: &str) -> L<()>;
    /// Opens, joins or recognises; closes `delivery` in the same transaction when there is one.
    async fn open_task(&self, delivery: Option<DeliveryId>, plan: &TaskPlan) -> L<Opened>;
    /// The Task that an issue has at work. `None`: there is none.
    async fn active_task(&self, repo_forge_id: u64, issue: u64) -> L<Option<TaskId>>;
    /// How many Tasks webhooks have opened since then for this installation, or without one.
    async fn opened_since(&self, installation: Option<u64>, since: Timestamp) -> L<u64>;
    /// Who triggered an issue's Tasks, the newest first.
    async fn actors(&self, repo_forge_id: u64, issue: u64, max: u16) -> L<Vec<String>>;
    /// When an issue's newest Task was asked for, by the clock of the forge that carried the wish. `None`: it has none.
    async fn last_asked(&self, repo_forge_id: u64, issue: u64) -> L<Option<Timestamp>>;
    /// From where a repository is to be looked at for labels. `None`: nobody has looked yet.
    async fn poll_mark(&self, repo_forge_id: u64) -> L<Option<Timestamp>>;
    /// Moves it from `from` to `to`; `false` when another dashboard has moved it meanwhile.
    async fn set_poll_mark(&self, repo_forge_id: u64, from: Option<Timestamp>, to: Timestamp) -> L<bool>;
    /// A message to a Task, handed to its Run before the next model call.
    async fn post_message(&self, task: TaskId, by: &str, text: &str) -> L<()>;
    /// What a Task was told, the newest last; of very many, the newest `max`.
    async fn messages(&self, task: TaskId, max: u16) -> L<Vec<Message>>;

    async fn publication(&self, lease: &LeaseRef) -> L<Publication>;
    /// Before the request. Replaces an earlier intent of the same effect.
    async fn intend(&self, lease: &LeaseRef, effect: EffectId, intent: &Intent) -> L<Fenced>;
    /// After it, or after a read-back.
    async fn settle(&self, lease: &LeaseRef, effect: EffectId, receipt: &Receipt) -> L<Fenced>;
    /// Ends a publish job whose effects are all settled; with more wanted meanwhile it is queued again.
    async fn complete_publish(&self, lease: &LeaseRef) -> L<Fenced>;
    /// Adds effects to the Task's unfinished publish job or makes a new one.
    async fn want_effects(&self, task: TaskId, kinds: &[EffectKind]) -> L<JobId>;

    /// Tasks whose Runs are at work on an issue.
    async fn at_work(&self, max: u16) -> L<Vec<AtWork>>;
    /// Wants [`EffectKind::Progress`] while the Task's Run is at work; `false`: it is not any more.
    async fn want_progress(&self, task: TaskId) -> L<bool>;

    /// Further Runs for a Task nothing of which is published or on its way. `Invalid` says why not.
    async fn add_runs(&self, task: TaskId, by: &str, runs: &[RunPlan]) -> L<()>;
    /// Publishes the patch of this one of a Task's Runs, once all have ended and several have a patch; with `draft` as a draft,
    /// whatever its proof says. `Invalid`: there is no choice to make, or the Run has no patch.
    async fn choose_run(&self, task: TaskId, run: RunId, draft: bool, by: &str) -> L<()>;
    /// Stops one of a Task's Runs; the others go on. What it has done is kept and is no choice any more. `Invalid`: it has ended, or
    /// no other goes on.
    async fn stop_run(&self, task: TaskId, run: RunId, by: &str) -> L<RunStopped>;
    /// All of a Task, in their order.
    async fn runs(&self, task: TaskId) -> L<Vec<RunView>>;

    async fn cancel(&self, task: TaskId, by: &str) -> L<CancelAnswer>;
    async fn retry(&self, task: TaskId, by: &str) -> L<Retried>;
    /// Takes a dead job up again in its own Task. `Invalid`: it is not dead, or its issue has another Task at work.
    async fn redrive(&self, job: JobId, by: &str) -> L<()>;
    /// The newest first; those after `after` in this order. None when there is no such job.
    async fn dead(&self, after: Option<JobId>, max: u16) -> L<Vec<DeadJob>>;
    /// Jobs under a lease, the one first whose holder has to be heard of first.
    async fn held_jobs(&self, max: u16) -> L<Vec<OpenJob>>;
    /// Open jobs that nobody holds, in the order in which they came; those after `after`, which may have been leased or ended
    /// since. None when there is no such job.
    async fn unheld_jobs(&self, after: Option<JobId>, max: u16) -> L<Vec<OpenJob>>;
    /// The one with the newest Task first.
    async fn seen_repositories(&self, max: u16) -> L<Vec<SeenRepository>>;
    /// Of a Run's journal, in order: steps from number `from` on.
    async fn journal(&self, run: RunId, from: u32, max: u16) -> L<Vec<StepRecord>>;

    async fn task(&self, id: TaskId) -> L<TaskView>;
    /// Newest first, strictly after the cursor.
    async fn tasks(&self, filter: TaskFilter, after: Option<TaskCursor>, max: u16) -> L<Vec<TaskView>>;
    /// Of one Task or of all, with `seq` greater than `after`, in order.
    async fn events(&self, task: Option<TaskId>, after: u64, max: u16) -> L<Vec<Event>>;
    /// The newest event number; changes wake whoever follows.
    fn newest_event(&self) -> watch::Receiver<u64>;
    /// Bumped when a delivery was accepted or a job became runnable.
    fn work(&self) -> watch::Receiver<u64>;

    /// Runs that a worker could lease now, counted up to `max`.
    async fn runnable(&self, max: u32) -> L<u32>;
    async fn demand(&self) -> L<Demand>;
    /// The number of the last event that other programs were told.
    async fn announced(&self) -> L<u64>;
    /// Moves it from `from` to `to`; `false` when another dashboard has moved it meanwhile.
    async fn set_announced(&self, from: u64, to: u64) -> L<bool>;

    /// Expires lapsed leases and promotes delayed jobs; bounded per call, safe to run twice.
    async fn sweep(&self, max: u16) -> L<Sweep>;
    async fn depth(&self) -> L<Depth>;
    /// A real write transaction, to know that the ledger is not stuck.
    async fn probe(&self) -> L<()>;
    /// Breaches of I1–I9, one sentence each; empty when all hold.
    async fn audit(&self) -> L<Vec<String>>;
}
