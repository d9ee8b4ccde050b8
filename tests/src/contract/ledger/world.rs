//! The hand-moved surroundings of one case: a ledger, its time, and short words for what cases do all the time.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fettle_app::ports::clock::{Clock, IdSource};
use fettle_app::ports::ledger::{Delivery, Granted, Holder, Leased, Leases, Ledger, Opened, TaskPlan, TaskView, Want};
use fettle_domain::budget::Spent;
use fettle_domain::id::{CorrelationId, DeliveryId, JobId, RequestId, RunId, TaskId, WorkerId};
use fettle_domain::issue::IssueSnapshot;
use fettle_domain::job::JobKind;
use fettle_domain::lease::Timing;
use fettle_domain::object::BlobId;
use fettle_domain::repo::Repo;
use fettle_domain::run::{RunOutcome, RunResult};
use fettle_domain::step::{StepBody, StepKind, StepRecord};
use fettle_domain::task::Mode;
use jiff::Timestamp;
use uuid::Uuid;

/// A ledger under test. Its leases last [`Timing::default`] of its [`ManualTime`].
#[async_trait]
pub trait Subject: Send + Sync + Sized {
    /// The implementation under test.
    fn leases(&self) -> &dyn Leases;
    /// The ledger behind it, often the same.
    fn ledger(&self) -> &dyn Ledger;
    fn time(&self) -> &ManualTime;
    /// Ends it without a goodbye and opens what it left behind.
    async fn crash_and_reopen(self) -> Self;
}

/// Time that moves when a case says so; wall clock and stopwatch go together.
#[derive(Debug, Default)]
pub struct ManualTime(AtomicI64);

/// 2026-01-01T00:00:00Z in microseconds.
const START: i64 = 1_767_225_600_000_000;

impl ManualTime {
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(i64::try_from(by.as_micros()).expect("a test's duration is short"), Ordering::SeqCst);
    }

    pub fn elapsed(&self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.load(Ordering::SeqCst)).expect("time goes forward"))
    }
}

impl Clock for ManualTime {
    fn now(&self) -> Timestamp {
        Timestamp::from_microsecond(START + self.0.load(Ordering::SeqCst)).expect("a test's time is in range")
    }
}

/// Ids that count up from a number of one's own.
#[derive(Debug)]
pub struct CountedIds(AtomicU64, u64);

impl CountedIds {
    pub fn of_space(space: u64) -> Self {
        Self(AtomicU64::new(1), space)
    }
}

impl IdSource for CountedIds {
    fn uuid(&self) -> Uuid {
        Uuid::from_u64_pair(self.1, self.0.fetch_add(1, Ordering::SeqCst))
    }
}

pub struct World<S> {
    subject: Option<S>,
    pub ids: CountedIds,
}

impl<S: Subject> World<S> {
    pub fn of(subject: S) -> Self {
        Self { subject: Some(subject), ids: CountedIds::of_space(0xca5e) }
    }

    pub fn into_subject(self) -> S {
        self.subject.expect("a world has a ledger")
    }

    pub fn subject(&self) -> &S {
        self.subject.as_ref().expect("a world has a ledger")
    }

    pub fn leases(&self) -> &dyn Leases {
        self.subject().leases()
    }

    pub fn ledger(&self) -> &dyn Ledger {
        self.subject().ledger()
    }

    pub fn now(&self) -> Timestamp {
        self.subject().time().now()
    }

    pub fn advance(&self, by: Duration) {
        self.subject().time().advance(by);
    }

    pub async fn crash(&mut self) {
        let subject = self.subject.take().expect("a world has a ledger");
        self.subject = Some(subject.crash_and_reopen().await);
    }

    /// All invariants hold.
    pub async fn finish(&self) {
        assert_eq!(self.ledger().audit().await.unwrap(), Vec::<String>::new());
        self.ledger().probe().await.unwrap();
    }

    /// A quickfix of an issue, by a label.
    pub fn plan(&self, issue: u64) -> TaskPlan {
        TaskPlan {
            id: TaskId::from_uuid(self.ids.uuid()),
            run: RunId::from_uuid(self.ids.uuid()),
            job: JobId::from_uuid(self.ids.uuid()),
            correlation: CorrelationId::from_uuid(self.ids.uuid()),
            intent: format!("77:{issue}:label:{}", self.ids.uuid()),
            mode: Mode::Quickfix,
            repo: Some(repo()),
            issue: IssueSnapshot {
                number: Some(issue),
                title: format!("issue {issue}"),
                body: "it fails".into(),
                author: "ada".into(),
                url: None,
                comments: vec![],
                taken_at: self.now(),
            },
            said: None,
            model: None,
            base: None,
            needs: Default::default(),
            actor: "ada".into(),
            trigger: "label".into(),
            at: self.now(),
            further: Vec::new(),
        }
    }

    pub async fn open(&self, issue: u64) -> TaskId {
        let plan = self.plan(issue);
        let opened = self.ledger().open_task(None, &plan).await.unwrap();
        assert!(matches!(opened, Opened::New { .. }), "{opened:?}");
        plan.id
    }

    pub fn holder(&self) -> Holder {
        Holder { worker: WorkerId::from_uuid(self.ids.uuid()), name: "box/1".into() }
    }

    pub fn request(&self) -> RequestId {
        RequestId::from_uuid(self.ids.uuid())
    }

    pub async fn try_lease(&self, kind: JobKind) -> Option<Leased> {
        let want = want(kind);
        let granted = self.leases().lease(&self.holder(), &want, 1, Duration::ZERO, self.request()).await.unwrap();
        match granted {
            Granted::Leased(mut leased) => {
                assert_eq!(leased.len(), 1);
                leased.pop()
            }
            Granted::Idle => None,
        }
    }

    pub async fn lease(&self, kind: JobKind) -> Leased {
        self.try_lease(kind).await.expect("something is runnable")
    }

    /// Lets every lease lapse and sweeps.
    pub async fn lapse(&self) {
        self.advance(Timing::default().lease + Duration::from_secs(1));
        self.ledger().sweep(100).await.unwrap();
    }

    pub async fn view(&self, task: TaskId) -> TaskView {
        self.ledger().task(task).await.unwrap()
    }

    pub fn delivery(&self, key: &str) -> Delivery {
        Delivery {
            id: DeliveryId::from_uuid(self.ids.uuid()),
            key: key.into(),
            event: "issues".into(),
            body: Bytes::from(format!("{{\"key\":\"{key}\",\"bytes\":\"\u{0}\"}}")),
            correlation: CorrelationId::from_uuid(self.ids.uuid()),
            received_at: self.now(),
        }
    }
}

pub(super) fn want(kind: JobKind) -> Want {
    Want::anything(kind, vec![1])
}

pub(super) fn repo() -> Repo {
    Repo {
        forge_id: 77,
        name: "acme/tools".parse().expect("a repository name"),
        clone_url: "https://forge.test/acme/tools".into(),
        default_branch: "main".into(),
        private: false,
        installation: None,
    }
}

pub(super) fn result(outcome: RunOutcome) -> RunResult {
    RunResult { outcome, base: None, change: None, spent: Spent::default(), model: "coder".into() }
}

pub(super) fn step(seq: u32, title: &str) -> StepRecord {
    StepRecord {
        seq,
        kind: StepKind::ToolCall,
        phase: "fix".into(),
        title: title.into(),
        input: BlobId::of(title.as_bytes()),
        body: StepBody::Inline(serde_json::json!({ "said": title, "big": u64::MAX, "half": 0.5 })),
        workspace: None,
        spent: Spent { calls: seq + 1, generated_tokens: 10, prompt_tokens: 20, wall_s: 1 },
        took_ms: 5,
    }
}
