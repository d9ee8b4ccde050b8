//! A worker: lease a Run, keep its lease, let the runner do the work, and hand over the result exactly once.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fettle_domain::id::RequestId;
use fettle_domain::label::Labels;
use fettle_domain::lease::Timing;
use fettle_domain::object::BlobId;
use fettle_domain::retry::{back_off, mend_pause};
use fettle_domain::run::{RunOutcome, RunResult};
use fettle_domain::step::{StepKind, StepRecord};
use secrecy::SecretString;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error, field, info, info_span, warn};

use crate::crash::{self, Point};
use crate::leasing::{Heart, HeldLease, Holdings};
use crate::metrics::RunMetrics;
use crate::ports::chain;
use crate::ports::clock::IdSource;
use crate::ports::journal::{Journal, Stop};
use crate::ports::ledger::{
    Admission, Fenced, Granted, Holder, Leased, Leases, LedgerError, MAX_LEASE_WAIT, Order, RUN_ORDER_VERSION,
    RunOrder, Then, Wake, Want,
};
use crate::ports::model::ModelInfo;
use crate::ports::transport::{Hint, Transport};
use crate::ports::words::Listen;
use crate::spans;
use crate::vitals::Pulse;
use crate::words::Speech;

/// Between two tries to reach a ledger that does not answer.
const LEDGER_PAUSE: Duration = Duration::from_secs(1);
/// As long as the pause between two lease requests grows: a dashboard that comes back is found within this.
const LONGEST_LEASE_PAUSE: Duration = Duration::from_secs(5);
/// A worker that hears no bell asks for a lease this often.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// A job is released within this after the order to shut down.
const RELEASE_WITHIN: Duration = Duration::from_secs(20);

/// A slot comes round with every request for a lease, and every few seconds of a Run. A model or a test that is silent for
/// long is the agent's matter and does not count.
pub const WORKED_WITHIN: Duration = Duration::from_secs(60);
/// Between two beats during a Run.
const BEAT_EVERY: Duration = Duration::from_secs(5);

/// Carries out one Run. Implemented by `agent`'s solve loop.
#[async_trait]
pub trait Runner: Send + Sync {
    async fn run(&self, order: &RunOrder, context: RunContext) -> Result<RunResult, RunEnd>;
}

/// What a Run gets beside its order.
pub struct RunContext {
    pub journal: Arc<dyn Journal>,
    /// The steps of earlier leases, to replay.
    pub recorded: Vec<StepRecord>,
    /// Read access to the Run's repository.
    pub read_token: Option<SecretString>,
    /// What the Run shows to the gateway of models.
    pub run_token: Option<SecretString>,
    /// A model that only the gateway knows.
    pub model: Option<ModelInfo>,
    /// Is told what the model says while it says it.
    pub speech: Arc<Speech>,
    /// Cancelled when the work must stop.
    pub cancel: CancellationToken,
}

/// A Run that did not come to a result.
#[derive(Debug, thiserror::Error)]
pub enum RunEnd {
    #[error(transparent)]
    Stopped(#[from] Stop),
    /// Something outside failed; another try may succeed. Spends an attempt.
    #[error("{0}")]
    Retry(String),
    /// Something outside failed that takes a while to mend, or a person. Spends an attempt, as [`RunEnd::Retry`], and waits longer.
    #[error("{0}")]
    Mend(String),
    /// A limit of someone else's; spends nothing.
    #[error("{why}")]
    Defer { wait: Duration, why: String },
    /// Trying again changes nothing.
    #[error("{0}")]
    Never(String),
}

/// When a worker loop ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stay {
    UntilShutdown,
    /// One lease request; one job, if there is one.
    ForOneJob,
}

/// How a worker ends that is told to.
#[derive(Debug, Clone, Default)]
pub struct Drain {
    /// How long it goes on with a Run that it holds; zero: it lets go of it at once.
    pub finish: Duration,
    /// Cancelled when it shall wait no longer.
    pub at_once: CancellationToken,
}

impl Drain {
    /// Returns when a Run that is held has to be let go of. Not to be begun anew while it waits.
    async fn over(&self, shutdown: &CancellationToken) {
        shutdown.cancelled().await;
        if self.finish.is_zero() {
            return;
        }
        info!("the Run that is held may go on for {} s; no other is taken", self.finish.as_secs());
        tokio::select! {
            () = tokio::time::sleep(self.finish) => {}
            () = self.at_once.cancelled() => {}
        }
    }
}

pub struct Worker {
    pub leases: Arc<dyn Leases>,
    /// For heartbeats, used from their own thread and runtime.
    pub heartbeat_leases: Arc<dyn Leases>,
    pub runner: Arc<dyn Runner>,
    /// Hears what models say. `None`: nobody does.
    pub listener: Option<Arc<dyn Listen>>,
    pub ids: Arc<dyn IdSource>,
    pub holder: Holder,
    /// Needed by some Runs.
    pub labels: Labels,
    pub timing: Timing,
    pub heart: Heart,
    /// A broker's bell; without one, the ledger holds a request until there is work.
    pub bell: Option<Arc<dyn Transport>>,
    /// Counts what is held by all slots.
    pub holdings: Arc<Holdings>,
    /// Of all slots.
    pub metrics: RunMetrics,
    /// Beats within [`WORKED_WITHIN`].
    pub pulse: Pulse,
    pub drain: Drain,
}

impl Worker {
    /// Works until `shutdown`. On it, a job in progress goes on as long as [`Worker::drain`] says, and is then released, journal
    /// and all, within 20 s.
    ///
    /// Errors when the ledger refuses to lease: asking again changes nothing.
    pub async fn work(&self, stay: Stay, shutdown: &CancellationToken) -> Result<(), LedgerError> {
        let mut wait = LEDGER_PAUSE;
        let mut request = RequestId::from_uuid(self.ids.uuid());
        let mut hint = None;
        while !shutdown.is_cancelled() {
            self.pulse.beat();
            crash::before(Point::WorkerLease);
            let want = Want {
                kind: fettle_domain::job::JobKind::Run,
                versions: vec![RUN_ORDER_VERSION],
                labels: Some(self.labels.clone()),
            };
            // Who listens to a bell waits there; for a single job it waits where a job is sure to be seen.
            let patience =
                if self.bell.is_some() && stay == Stay::UntilShutdown { Duration::ZERO } else { MAX_LEASE_WAIT };
            let granted = tokio::select! {
                // A lease that is here already is let go of in order, and not left to lapse.
                biased;
                granted = self.leases.lease(&self.holder, &want, 1, patience, request) => granted,
                () = shutdown.cancelled() => break,
            };
            self.done(hint.take()).await;
            match granted {
                Ok(granted) => {
                    crash::after(Point::WorkerLease);
                    wait = LEDGER_PAUSE;
                    request = RequestId::from_uuid(self.ids.uuid());
                    match granted {
                        Granted::Leased(jobs) => {
                            for leased in jobs {
                                self.execute(leased, shutdown).await;
                            }
                        }
                        Granted::Idle if stay == Stay::UntilShutdown => hint = self.listen(shutdown).await,
                        Granted::Idle => {}
                    }
                    if stay == Stay::ForOneJob {
                        return Ok(());
                    }
                }
                Err(error @ LedgerError::Invalid(_)) => return Err(error),
                // The same request again: a lease whose answer was lost is given back to us.
                Err(error) => {
                    warn!(worker.id = %self.holder.worker, "could not lease, asking again in {} s: {error}", wait.as_secs());
                    pause(wait, shutdown).await;
                    wait = (wait * 2).min(LONGEST_LEASE_PAUSE);
                }
            }
        }
        Ok(())
    }

    /// A hint, or none after [`ASK_EVERY`]: then the ledger is asked all the same, since hints may be lost.
    async fn listen(&self, shutdown: &CancellationToken) -> Option<Hint> {
        let bell = self.bell.as_ref()?;
        let hint = tokio::select! {
            biased;
            () = shutdown.cancelled() => None,
            hint = bell.wait(ASK_EVERY) => hint,
        };
        if hint.is_some() {
            crash::before(Point::WorkerHint);
        }
        hint
    }

    async fn done(&self, hint: Option<Hint>) {
        let (Some(hint), Some(bell)) = (hint, &self.bell) else { return };
        crash::after(Point::WorkerHint);
        if let Err(error) = bell.done(hint).await {
            warn!("a hint will come again: {}", chain(&error));
        }
    }

    async fn execute(&self, leased: Leased, shutdown: &CancellationToken) {
        crash::before(Point::WorkerLeased);
        let Order::Run(order) = &leased.order else {
            error!(job.id = %leased.lease.job, "a worker was given a publish job");
            return;
        };
        let beating = self.heartbeat_leases.clone();
        let held = match HeldLease::start(leased.lease, leased.time_left, self.timing, self.heart, beating) {
            Ok(held) => Arc::new(held),
            Err(e) => {
                error!(job.id = %leased.lease.job, "could not start a heartbeat: {e}");
                return;
            }
        };
        let _holding = self.holdings.hold();
        crash::after(Point::WorkerLeased);
        let span = info_span!(
            "run",
            task.id = %order.task,
            run.id = %order.run,
            job.id = %leased.lease.job,
            correlation.id = %order.correlation,
            lease.fence = leased.lease.fence.get(),
            outcome = field::Empty,
        );
        async {
            info!("leased {} for {}", leased.lease.job, order.task);
            let begun = Instant::now();
            let end = self.run(order, &held, shutdown).await;
            let outcome = word(&end);
            spans::ended(outcome);
            self.metrics.ended(outcome, begun.elapsed(), end.as_ref().ok().map(|result| result.spent));
            self.hand_over(&held, leased.attempts, end, shutdown).await;
        }
        .instrument(span)
        .await;
    }

    async fn run(
        &self,
        order: &RunOrder,
        held: &Arc<HeldLease>,
        shutdown: &CancellationToken,
    ) -> Result<RunResult, RunEnd> {
        let lease = held.lease();
        let recorded = persist(held, || self.leases.steps(&lease)).await?;
        let (read_token, run_token, model) = match persist(held, || self.leases.admit(&lease)).await? {
            Admission::Go { read_token, run_token, model } => (read_token, run_token, model),
            Admission::Withdrawn { reason } => return Ok(withdrawn(order, reason)),
            Admission::Later { wait, why } => return Err(RunEnd::Defer { wait, why }),
            Admission::Refused { why } => return Err(RunEnd::Mend(why)),
        };
        let journal = Arc::new(LedgerJournal { leases: self.leases.clone(), held: held.clone() });
        let speech = Arc::new(Speech::default());
        let told = speech.clone();
        let cancel = held.work_token();
        let context = RunContext { journal, recorded, read_token, run_token, model, speech, cancel };
        let working = self.runner.run(order, context);
        tokio::pin!(working);
        let telling = async {
            match &self.listener {
                Some(listener) => told.tell(lease, order.task, &**listener).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(telling);
        let over = self.drain.over(shutdown);
        tokio::pin!(over);
        let mut beats = tokio::time::interval(BEAT_EVERY);
        loop {
            tokio::select! {
                biased;
                result = &mut working => return result,
                () = &mut over => break,
                // It comes only as long as this task is polled beside the Run.
                _ = beats.tick() => self.pulse.beat(),
                never = &mut telling => match never {},
            }
        }
        held.end(Stop::Shutdown);
        // The runner sees its token and stops; if it does not, dropping it kills what it started.
        match tokio::time::timeout(RELEASE_WITHIN, working).await {
            Ok(result) => result,
            Err(_) => Err(RunEnd::Stopped(Stop::Shutdown)),
        }
    }

    async fn hand_over(
        &self,
        held: &HeldLease,
        attempts: u16,
        end: Result<RunResult, RunEnd>,
        shutdown: &CancellationToken,
    ) {
        let lease = held.lease();
        let said = match &end {
            Ok(result) => {
                crash::before(Point::WorkerComplete);
                let said = persist(held, || self.leases.complete_run(&lease, result)).await;
                crash::after(Point::WorkerComplete);
                info!(outcome = result.outcome.name(), "{} ended: {}", lease.job, result.outcome.name());
                said
            }
            Err(RunEnd::Retry(why)) => {
                warn!("{} failed and will be tried again: {why}", lease.job);
                let (_, jitter) = self.ids.uuid().as_u64_pair();
                let wait = back_off(self.timing.back_off, attempts, (jitter & 0xffff) as u16);
                persist(held, || self.leases.fail(&lease, why, Then::RetryAfter(wait))).await
            }
            Err(RunEnd::Mend(why)) => {
                let wait = mend_pause(self.timing.back_off, attempts);
                warn!("{} failed and will be tried again in {} s: {why}", lease.job, wait.as_secs());
                persist(held, || self.leases.fail(&lease, why, Then::RetryAfter(wait))).await
            }
            Err(RunEnd::Never(why)) => {
                error!("{} failed for good: {why}", lease.job);
                persist(held, || self.leases.fail(&lease, why, Then::Never)).await
            }
            Err(RunEnd::Defer { wait, why }) => {
                info!("{} waits {} s: {why}", lease.job, wait.as_secs());
                persist(held, || self.leases.defer(&lease, Wake::After(*wait), why)).await
            }
            Err(RunEnd::Stopped(Stop::Lost)) => Err(Stop::Lost),
            Err(RunEnd::Stopped(Stop::Refused(why))) => {
                error!("{} cannot go on: {why}", lease.job);
                let retry = Then::RetryAfter(back_off(self.timing.back_off, attempts, u16::MAX));
                self.leases.fail(&lease, why, retry).await.map_err(|_| Stop::Lost)
            }
            Err(RunEnd::Stopped(why @ (Stop::Cancelled(_) | Stop::Shutdown))) => {
                info!("letting go of {}: {why}", lease.job);
                let release = self.leases.release(&lease);
                let patience = if shutdown.is_cancelled() { RELEASE_WITHIN } else { self.timing.give_up };
                match tokio::time::timeout(patience, release).await {
                    Ok(said) => said.map_err(|_| Stop::Lost),
                    Err(_) => Err(Stop::Lost),
                }
            }
        };
        match said {
            Ok(Fenced::Applied | Fenced::AlreadyApplied) => {}
            Ok(Fenced::Stale) | Err(_) => warn!("{} is no longer ours; nothing was written", lease.job),
        }
    }
}

/// How a Run ended, for its span.
fn word(end: &Result<RunResult, RunEnd>) -> &'static str {
    match end {
        Ok(result) => result.outcome.name(),
        Err(RunEnd::Retry(_) | RunEnd::Mend(_) | RunEnd::Never(_) | RunEnd::Stopped(Stop::Refused(_))) => "failed",
        Err(RunEnd::Defer { .. }) => "deferred",
        Err(RunEnd::Stopped(Stop::Cancelled(_))) => "cancelled",
        Err(RunEnd::Stopped(Stop::Lost | Stop::Shutdown)) => "released",
    }
}

/// The result of a Run that nobody waits for any more; nothing was spent on it by this lease.
fn withdrawn(order: &RunOrder, reason: String) -> RunResult {
    RunResult {
        outcome: RunOutcome::Declined { reason },
        base: None,
        change: None,
        spent: order.spent,
        model: order.model.clone().unwrap_or_default(),
    }
}

/// Repeats a verb while the ledger is away, as long as the lease may still be ours.
async fn persist<T, Fut>(held: &HeldLease, verb: impl Fn() -> Fut) -> Result<T, Stop>
where
    Fut: Future<Output = Result<T, LedgerError>>,
{
    loop {
        held.ready(Duration::ZERO).await?;
        match verb().await {
            Ok(value) => return Ok(value),
            Err(LedgerError::Unavailable(why)) => {
                warn!("the ledger does not answer, trying again: {why}");
                tokio::time::sleep(LEDGER_PAUSE).await;
            }
            Err(LedgerError::Full) => {
                warn!("the ledger's disk is full, trying again");
                tokio::time::sleep(LEDGER_PAUSE * 5).await;
            }
            Err(
                error @ (LedgerError::Invalid(_)
                | LedgerError::NotFound(_)
                | LedgerError::Unreadable(_)
                | LedgerError::Corrupt(_)),
            ) => {
                return Err(Stop::Refused(error.to_string()));
            }
        }
    }
}

async fn pause(wait: Duration, shutdown: &CancellationToken) {
    tokio::select! {
        biased;
        () = shutdown.cancelled() => {}
        () = tokio::time::sleep(wait) => {}
    }
}

/// The journal of a leased Run: every write under its fence.
struct LedgerJournal {
    leases: Arc<dyn Leases>,
    held: Arc<HeldLease>,
}

#[async_trait]
impl Journal for LedgerJournal {
    async fn record(&self, step: &StepRecord) -> Result<(), Stop> {
        let lease = self.held.lease();
        let point = match step.kind {
            StepKind::ModelCall => Some(Point::WorkerModelRecord),
            StepKind::ToolCall => Some(Point::WorkerToolRecord),
            StepKind::Verify => Some(Point::WorkerVerifyRecord),
            StepKind::Base | StepKind::Decide | StepKind::MessageIn => None,
        };
        if let Some(point) = point {
            crash::before(point);
        }
        let said = persist(&self.held, || self.leases.record(&lease, step)).await?;
        if let Some(point) = point {
            crash::after(point);
        }
        match said {
            Fenced::Applied | Fenced::AlreadyApplied => {
                self.held.progress();
                Ok(())
            }
            Fenced::Stale => {
                self.held.end(Stop::Lost);
                Err(Stop::Lost)
            }
        }
    }

    async fn put_blob(&self, content: Bytes) -> Result<BlobId, Stop> {
        persist(&self.held, || self.leases.put_blob(content.clone())).await
    }

    async fn blob(&self, id: BlobId) -> Result<Bytes, Stop> {
        persist(&self.held, || self.leases.blob(id)).await
    }

    fn take_messages(&self) -> Vec<String> {
        self.held.take_messages()
    }

    fn ended(&self) -> Option<Stop> {
        self.held.ended()
    }
}
