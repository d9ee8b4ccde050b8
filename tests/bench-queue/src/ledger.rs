//! A ledger of its own for each measurement, and the verbs as dashboard and worker use them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use camino::Utf8Path;
use fettle_app::ports::clock::{Clock, IdSource as _};
use fettle_app::ports::ledger::{
    Fenced, Granted, Holder, Leased, Leases as _, Ledger as _, Opened, RUN_ORDER_VERSION, TaskPlan, Want,
};
use fettle_domain::budget::Spent;
use fettle_domain::id::{CorrelationId, JobId, RequestId, RunId, TaskId, WorkerId};
use fettle_domain::issue::IssueSnapshot;
use fettle_domain::job::JobKind;
use fettle_domain::lease::LeaseRef;
use fettle_domain::repo::Repo;
use fettle_domain::run::{RunOutcome, RunResult};
use fettle_domain::task::Mode;
use fettle_runtime::system::{RandomIds, SystemClock};
use fettle_store_sqlite::{Options, SqliteLedger};
use fettle_test_kit::measure::home;

/// A text of an issue, as large as the payload of everybody else's jobs.
pub(crate) const PAYLOAD_BYTES: usize = 1024;
/// There is a job for whoever asks; longer means that something is wrong.
const LEASE_WAIT: Duration = Duration::from_secs(10);

/// An open ledger with its folder, which is removed when dropped.
pub(crate) struct Measured {
    pub(crate) ledger: Arc<SqliteLedger>,
    clock: Arc<dyn Clock>,
    /// Numbers issues, so that none has two Tasks.
    issues: AtomicU64,
    payload: usize,
    _folder: Option<tempfile::TempDir>,
}

impl Measured {
    /// A new one in a folder below `folder`.
    pub(crate) async fn new(folder: &Utf8Path) -> anyhow::Result<Arc<Self>> {
        let own = home(folder)?;
        let path = Utf8Path::from_path(own.path()).context("a folder's name is text")?.to_owned();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let options = Options::new(clock.clone(), Arc::new(RandomIds));
        let mut measured = Self::open(&path, options, clock, PAYLOAD_BYTES).await?;
        measured._folder = Some(own);
        Ok(Arc::new(measured))
    }

    /// The one in `folder`, which stays. `clock` is also the options'.
    pub(crate) async fn open(
        folder: &Utf8Path,
        options: Options,
        clock: Arc<dyn Clock>,
        payload: usize,
    ) -> anyhow::Result<Self> {
        let ledger = SqliteLedger::open(folder, options).await.context("while opening a ledger")?;
        Ok(Self { ledger: Arc::new(ledger), clock, issues: AtomicU64::new(1), payload, _folder: None })
    }

    /// A Task of its own issue in that repository, durable when it returns.
    pub(crate) async fn open_task(&self, repository: u64) -> anyhow::Result<TaskId> {
        let plan = self.plan(repository);
        match self.ledger.open_task(None, &plan).await? {
            Opened::New { task, .. } => Ok(task),
            other => bail!("a new intent was taken for an old one: {other:?}"),
        }
    }

    fn plan(&self, repository: u64) -> TaskPlan {
        let issue = self.issues.fetch_add(1, Ordering::Relaxed);
        let now = self.clock.now();
        TaskPlan {
            id: TaskId::from_uuid(RandomIds.uuid()),
            run: RunId::from_uuid(RandomIds.uuid()),
            job: JobId::from_uuid(RandomIds.uuid()),
            correlation: CorrelationId::from_uuid(RandomIds.uuid()),
            intent: format!("{repository}:{issue}:label:{}", RandomIds.uuid()),
            // Nothing is wanted at a forge, so its publish job, which `complete_run` queues, has no effects.
            mode: Mode::Probe,
            repo: Some(repo(repository)),
            issue: IssueSnapshot {
                number: Some(issue),
                title: format!("issue {issue}"),
                body: "x".repeat(self.payload),
                author: "ann".to_owned(),
                url: None,
                comments: Vec::new(),
                taken_at: now,
            },
            said: None,
            model: None,
            base: None,
            needs: Default::default(),
            actor: "ann".to_owned(),
            trigger: "label".to_owned(),
            at: now,
            further: Vec::new(),
        }
    }

    /// The Run whose turn it is.
    pub(crate) async fn lease(&self, who: &Holder) -> anyhow::Result<Leased> {
        let (want, request) = (any_run(), RequestId::from_uuid(RandomIds.uuid()));
        match self.ledger.lease(who, &want, 1, LEASE_WAIT, request).await? {
            Granted::Leased(mut leased) => leased.pop().context("a grant holds a lease"),
            Granted::Idle => bail!("no job within {LEASE_WAIT:?}, though there is one for each who asks"),
        }
    }

    pub(crate) async fn complete(&self, lease: &LeaseRef) -> anyhow::Result<()> {
        let done = self.ledger.complete_run(lease, &nothing_to_do()).await?;
        ensure!(done == Fenced::Applied, "a live lease was refused: {done:?}");
        Ok(())
    }

    /// The whole life of a Run: opened, leased, completed, each durable before the next.
    pub(crate) async fn cycle(&self, repository: u64, who: &Holder) -> anyhow::Result<()> {
        self.open_task(repository).await?;
        let leased = self.lease(who).await?;
        self.complete(&leased.lease).await
    }

    /// Errors unless all invariants hold and `tasks` were opened, each worked on or none of them.
    pub(crate) async fn require(&self, tasks: u64) -> anyhow::Result<()> {
        let breaches = self.ledger.audit().await?;
        ensure!(breaches.is_empty(), "the ledger contradicts itself: {}", breaches.join("; "));
        let demand = self.ledger.demand().await?;
        ensure!(demand.leased == 0, "{} Runs are still leased", demand.leased);
        let depth = self.ledger.depth().await?;
        // A Run that was completed has left its publish job, which nobody leases here.
        ensure!(
            depth.runnable == tasks && depth.dead == 0,
            "{tasks} Tasks were opened and {} jobs are queued",
            depth.runnable,
        );
        Ok(())
    }
}

pub(crate) fn holder() -> Holder {
    Holder { worker: WorkerId::from_uuid(RandomIds.uuid()), name: "bench/1".to_owned() }
}

pub(crate) fn any_run() -> Want {
    Want::anything(JobKind::Run, vec![RUN_ORDER_VERSION])
}

/// The result of a Run that had nothing to do.
pub(crate) fn nothing_to_do() -> RunResult {
    RunResult {
        outcome: RunOutcome::ProbePassed,
        base: None,
        change: None,
        spent: Spent::default(),
        model: "bench".to_owned(),
    }
}

/// `number`: from 1.
pub(crate) fn repo(number: u64) -> Repo {
    let name = format!("octo/r{number}");
    Repo {
        forge_id: number,
        clone_url: format!("https://forge.invalid/{name}.git"),
        name: name.parse().expect("a valid name"),
        default_branch: "main".to_owned(),
        private: false,
        installation: Some(1),
    }
}
