//! The one writer. Reads what a Task wants on the forge, validates the proposal on objects it rebuilt itself, and brings
//! each effect about once: intent (durable, fenced), request, receipt. After any doubt it reads back before it writes.
//!
//! No other part of Fettle holds a write token, and nothing here believes the worker: tree, diff and texts are made anew.

mod effects;
mod pace;
pub mod proposal;
pub mod texts;

use std::sync::Arc;
use std::time::Duration;

use fettle_domain::effect::{Effect, EffectKind, EffectState, Receipt};
use fettle_domain::id::RequestId;
use fettle_domain::job::JobKind;
use fettle_domain::lease::Timing;
use fettle_domain::path_policy::PathPolicy;
use fettle_domain::retry::{back_off, mend_pause};
use fettle_domain::secret::KnownSecrets;
use fettle_domain::task::Mode;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error, field, info, info_span, warn};

use crate::crash::{self, Point};
use crate::leasing::{Heart, HeldLease};
use crate::live::Live;
use crate::ports::chain;
use crate::ports::clock::IdSource;
use crate::ports::forge::{Forge, ForgeError};
use crate::ports::git::{GitError, PushError, RefPush, Repositories};
use crate::ports::journal::Stop;
use crate::ports::ledger::{
    Fenced, Granted, Holder, L, Ledger, LedgerError, MAX_LEASE_WAIT, Order, Publication, Then, Wake, Want,
};
use crate::spans;
use crate::vitals::Pulse;

pub use pace::Pace;

/// What the marker of a Task's one comment ends with.
pub(crate) const RESULT_COMMENT: &str = "result";
/// Between two tries to reach a ledger that does not answer.
const LEDGER_PAUSE: Duration = Duration::from_secs(1);
/// The longest forge request; a write begins only while the lease lasts longer than this.
const FORGE_WRITE: Duration = Duration::from_secs(10);
/// A write that is under way when the work must stop may take this long to be answered: a forge request's time and a
/// little, below the 20 s in which a process lets go of everything.
const WIND_DOWN: Duration = Duration::from_secs(15);
/// A read-back that finds nothing is repeated once after this: forges read from replicas that lag.
const READ_BACK_PAUSE: Duration = Duration::from_secs(2);

/// A comment whose answer was lost may be applied some seconds later, and a replica may show it some seconds after that.
/// Before, it is not posted again.
const UNSEEN_FOR: Duration = Duration::from_secs(15);

/// The longest that the publisher may take to come round: a fetch and a push of two minutes each, and what surrounds them.
pub const PUBLISHED_WITHIN: Duration = Duration::from_secs(6 * 60);

/// What the operator decides about publishing.
#[derive(Debug, Default)]
pub struct PublishOptions {
    pub paths: PathPolicy,
    pub secrets: KnownSecrets,
    /// The label whose presence triggered; a Task triggered by it is not published once it is gone.
    pub trigger_label: String,
}

pub struct Publisher {
    pub ledger: Arc<dyn Ledger>,
    /// For heartbeats, used from their own thread and runtime.
    pub forge: Arc<dyn Forge>,
    pub repositories: Arc<dyn Repositories>,
    pub push: Arc<dyn RefPush>,
    pub ids: Arc<dyn IdSource>,
    pub holder: Holder,
    pub timing: Timing,
    pub heart: Heart,
    /// Taken once for each effect.
    pub options: Live<PublishOptions>,
    /// Beats within [`PUBLISHED_WITHIN`].
    pub pulse: Pulse,
    pub pace: Pace,
}

/// Why a publish job did not come to its end.
#[derive(Debug)]
pub(crate) enum Halt {
    /// The lease is gone, or the work must stop.
    Stopped(Stop),
    /// The forge limits us; spends nothing.
    Limited(Duration),
    /// Try again later; spends an attempt.
    Again(String),
    /// As [`Halt::Again`], once somebody may have mended it: the forge denies us.
    Mend(String),
    /// As [`Halt::Again`], and not before [`UNSEEN_FOR`]: what was sent may still come to light.
    Unseen(String),
}

impl Halt {
    /// For the span of what it ended.
    fn word(&self) -> &'static str {
        match self {
            Self::Stopped(_) => "stopped",
            Self::Limited(_) => "limited",
            Self::Again(_) | Self::Mend(_) | Self::Unseen(_) => "failed",
        }
    }
}

impl From<Stop> for Halt {
    fn from(stop: Stop) -> Self {
        Self::Stopped(stop)
    }
}

impl From<LedgerError> for Halt {
    fn from(error: LedgerError) -> Self {
        Self::Again(error.to_string())
    }
}

impl From<ForgeError> for Halt {
    fn from(error: ForgeError) -> Self {
        match error {
            ForgeError::RateLimited { wait } => Self::Limited(wait),
            denied @ ForgeError::Denied(_) => Self::Mend(chain(&denied)),
            other => Self::Again(chain(&other)),
        }
    }
}

impl From<GitError> for Halt {
    fn from(error: GitError) -> Self {
        match error {
            denied @ GitError::Denied { .. } => Self::Mend(chain(&denied)),
            other => Self::Again(chain(&other)),
        }
    }
}

impl From<PushError> for Halt {
    fn from(error: PushError) -> Self {
        match error {
            PushError::Denied => Self::Mend(chain(&error)),
            other => Self::Again(chain(&other)),
        }
    }
}

impl Publisher {
    /// Publishes until `shutdown`.
    pub async fn work(&self, shutdown: &CancellationToken) {
        let mut request = RequestId::from_uuid(self.ids.uuid());
        while !shutdown.is_cancelled() {
            self.pulse.beat();
            let want = Want::anything(JobKind::Publish, vec![1]);
            let granted = tokio::select! {
                // A lease that is here already is let go of in order, and not left to lapse.
                biased;
                granted = self.ledger.lease(&self.holder, &want, 1, MAX_LEASE_WAIT, request) => granted,
                () = shutdown.cancelled() => break,
            };
            match granted {
                Ok(granted) => {
                    request = RequestId::from_uuid(self.ids.uuid());
                    if let Granted::Leased(jobs) = granted {
                        for job in jobs {
                            crash::before(Point::PublishLeased);
                            if let Order::Publish { task } = job.order {
                                let span = spans::publish(task, &job.lease);
                                match HeldLease::start(
                                    job.lease,
                                    job.time_left,
                                    self.timing,
                                    self.heart,
                                    self.heartbeats(),
                                ) {
                                    Ok(held) => self.execute(&held, job.attempts, shutdown).instrument(span).await,
                                    Err(e) => error!(job.id = %job.lease.job, "could not start a heartbeat: {e}"),
                                }
                            }
                        }
                    }
                }
                Err(error) => {
                    warn!("the publisher could not lease: {error}");
                    tokio::select! {
                        biased;
                        () = shutdown.cancelled() => {}
                        () = tokio::time::sleep(LEDGER_PAUSE) => {}
                    }
                }
            }
        }
    }

    fn heartbeats(&self) -> Arc<dyn crate::ports::ledger::Leases> {
        self.ledger.clone()
    }

    async fn execute(&self, held: &HeldLease, attempts: u16, shutdown: &CancellationToken) {
        let lease = held.lease();
        let work = held.work_token();
        let publishing = self.publish(held);
        tokio::pin!(publishing);
        let mut end = tokio::select! {
            biased;
            end = &mut publishing => Some(end),
            () = work.cancelled() => None,
            () = shutdown.cancelled() => {
                held.end(Stop::Shutdown);
                None
            }
        };
        if end.is_none() && !matches!(held.ended(), None | Some(Stop::Lost)) {
            // It begins nothing more, but what it has sent goes on without it: its answer belongs in the ledger.
            end = tokio::time::timeout(WIND_DOWN, &mut publishing).await.ok();
        }
        let end = end.unwrap_or_else(|| Err(Halt::Stopped(held.ended().unwrap_or(Stop::Lost))));
        spans::ended(end.as_ref().err().map_or("done", Halt::word));
        let said = match end {
            Ok(()) => {
                crash::before(Point::PublishComplete);
                let said = self.ledger.complete_publish(&lease).await;
                crash::after(Point::PublishComplete);
                said
            }
            Err(Halt::Stopped(Stop::Lost)) => Ok(Fenced::Stale),
            Err(Halt::Stopped(why)) => {
                info!("letting go of {}: {why}", lease.job);
                self.ledger.release(&lease).await
            }
            Err(Halt::Limited(wait)) => {
                info!("the forge limits our rate; {} goes on in {} s", lease.job, wait.as_secs());
                self.ledger.defer(&lease, Wake::After(wait), "the forge limits our rate").await
            }
            Err(Halt::Again(why)) => self.try_again(held, attempts, &why, Duration::ZERO).await,
            Err(Halt::Mend(why)) => {
                let pause = mend_pause(self.timing.back_off, attempts);
                self.try_again(held, attempts, &why, pause).await
            }
            Err(Halt::Unseen(why)) => self.try_again(held, attempts, &why, UNSEEN_FOR).await,
        };
        match said {
            Ok(Fenced::Applied | Fenced::AlreadyApplied) => {}
            Ok(Fenced::Stale) => warn!("{} is no longer ours; nothing more was written", lease.job),
            Err(error) => error!("could not end {}: {error}; its lease will expire", lease.job),
        }
    }

    async fn try_again(&self, held: &HeldLease, attempts: u16, why: &str, at_least: Duration) -> L<Fenced> {
        let lease = held.lease();
        warn!("could not publish {}, trying again: {why}", lease.job);
        let (_, jitter) = self.ids.uuid().as_u64_pair();
        let wait = back_off(self.timing.back_off, attempts, (jitter & 0xffff) as u16).max(at_least);
        self.ledger.fail(&lease, why, Then::RetryAfter(wait)).await
    }

    /// Brings about every wanted effect that is not settled, in order.
    async fn publish(&self, held: &HeldLease) -> Result<(), Halt> {
        let mut publication = self.ledger.publication(&held.lease()).await?;
        spans::in_trace(publication.task.correlation);
        crash::after(Point::PublishLeased);
        if publication.task.mode == Mode::Probe {
            return Ok(());
        }
        let owner = publication.task.repo.as_ref().and_then(|repo| repo.installation);
        self.pace.may_begin(owner)?;
        match self.bring_about(held, &mut publication).await {
            Ok(()) => {
                self.pace.answered(owner);
                Ok(())
            }
            Err(Halt::Limited(told)) => Err(Halt::Limited(self.pace.limited(owner, told))),
            Err(halt) => Err(halt),
        }
    }

    async fn bring_about(&self, held: &HeldLease, publication: &mut Publication) -> Result<(), Halt> {
        let mut story = Story::of(publication);
        let unsettled = |effect: &&Effect| !matches!(effect.state, EffectState::Settled { .. });
        let effects = publication.task.effects.clone();
        for effect in effects.iter().filter(unsettled) {
            held.ready(Duration::ZERO).await?;
            self.pulse.beat();
            // Texts name the branch that was really pushed, which is another one when its name was taken.
            if let Some((branch, _)) = &story.pushed {
                publication.branch = branch.clone();
            }
            let span = info_span!(
                "effect",
                task.id = %publication.task.id,
                job.id = %held.lease().job,
                effect.kind = effect.kind.name(),
                effect.id = %effect.id,
                outcome = field::Empty,
            );
            let brought = async {
                let brought = self.bring(held, publication, effect, &story).await;
                spans::ended(match &brought {
                    Ok(Receipt::Withheld { .. }) => "withheld",
                    Ok(_) => "done",
                    Err(halt) => halt.word(),
                });
                brought
            };
            let receipt = brought.instrument(span).await?;
            story.note(&receipt);
        }
        Ok(())
    }

    async fn bring(
        &self,
        held: &HeldLease,
        publication: &Publication,
        effect: &Effect,
        story: &Story,
    ) -> Result<Receipt, Halt> {
        match effect.kind {
            EffectKind::Progress => self.tell_progress(held, publication, effect, story).await,
            EffectKind::Push => self.push_branch(held, publication, effect).await,
            EffectKind::PullRequest => self.open_pull_request(held, publication, effect, story).await,
            EffectKind::Comment => self.comment(held, publication, effect, story).await,
            EffectKind::Labels => self.label(held, publication, effect, story).await,
        }
    }

    /// Records the receipt under the fence; a stale holder stops here.
    async fn settle(&self, held: &HeldLease, effect: &Effect, receipt: Receipt) -> Result<Receipt, Halt> {
        match self.ledger.settle(&held.lease(), effect.id, &receipt).await? {
            Fenced::Applied | Fenced::AlreadyApplied => Ok(receipt),
            Fenced::Stale => Err(Halt::Stopped(Stop::Lost)),
        }
    }
}

/// What earlier effects brought, for the texts of later ones.
#[derive(Debug, Default, Clone)]
pub(crate) struct Story {
    pushed: Option<(fettle_domain::branch::BranchName, fettle_domain::object::CommitId)>,
    pull: Option<(u64, String, bool)>,
    /// The Task's one comment, so that a replica that lags cannot hide it.
    comment: Option<u64>,
    withheld: Option<String>,
}

impl Story {
    fn of(publication: &Publication) -> Self {
        let mut story = Self::default();
        for effect in &publication.task.effects {
            match &effect.state {
                EffectState::Settled { receipt } => story.note(receipt),
                EffectState::Wanted | EffectState::Intended { .. } => {
                    if let Some(Receipt::Progress { id, .. } | Receipt::Comment { id }) = effect.before {
                        story.comment = Some(id);
                    }
                }
            }
        }
        story
    }

    fn note(&mut self, receipt: &Receipt) {
        match receipt {
            Receipt::Pushed { branch, commit } => self.pushed = Some((branch.clone(), *commit)),
            Receipt::PullRequest { number, url, draft } => self.pull = Some((*number, url.clone(), *draft)),
            Receipt::Progress { id, .. } | Receipt::Comment { id } => self.comment = Some(*id),
            Receipt::Withheld { reason } => {
                self.withheld.get_or_insert_with(|| reason.clone());
            }
            Receipt::Labels => {}
        }
    }
}
