//! From an accepted delivery, a webhook, a label that was found or another program's message, to a Task: read it, ask the forge
//! what only the forge knows, decide, and open the Task.
//!
//! A delivery stays open until its verdict is stored. A forge that does not answer defers; it never allows.

use std::sync::Arc;
use std::time::Duration;

use fettle_domain::id::{JobId, RunId, TaskId};
use fettle_domain::incoming::{Incoming, IncomingIssue, IssueChange};
use fettle_domain::intake::{BOT_TURNS, Command, IntakeRules, Trigger, bots_talk_alone, intent_key, trigger_of};
use fettle_domain::issue::{CommentSnapshot, IssueSnapshot};
use fettle_domain::label::{Need, needs_of};
use fettle_domain::repo::Repo;
use fettle_domain::task::Mode;
use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, error, field, info, info_span, warn};

use crate::crash::{self, Point};
use crate::foreign;
use crate::live::Live;
use crate::polling;
use crate::ports::chain;
use crate::ports::clock::{Clock, IdSource};
use crate::ports::forge::{Forge, ForgeError, IssueComment, LabeledEvent};
use crate::ports::ledger::{Delivery, Ledger, LedgerError, Opened, TaskPlan};
use crate::ports::transport::{ForeignInbox, TransportError};
use crate::spans;
use crate::submit::{Missing, NewTask, SubmitError, SubmitTask, Submitted};
use crate::vitals::Pulse;

/// Events that can start or steer a Task. Others are counted and not stored: an App may be subscribed to many.
pub const EVENTS: [&str; 2] = ["issues", "issue_comment"];
/// Before the forge's id of a delivery that it sent.
pub const HOOK_KEY: &str = "github:";
/// Deliveries read at a time.
const BATCH: u16 = 50;
/// Open deliveries are looked at again this often even if nothing rings.
const FALLBACK_POLL: Duration = Duration::from_secs(5);
/// A delivery whose forge did not answer waits this long at first, then half as long as it has waited already, up to
/// [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_secs(2);
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// After a write that the ledger did not take.
const LEDGER_PAUSE: Duration = Duration::from_secs(1);
/// A forge that refuses us is asked again for so long: an operator may be granting a permission just now.
const REFUSED_FOR: Duration = Duration::from_secs(6 * 3600);
/// A wish that could not be decided for so long is not fulfilled out of the blue. GitHub keeps deliveries about as long.
const AWAY_FOR: Duration = Duration::from_secs(3 * 24 * 3600);
/// A label that a delivery tells of may be missing for this long in the list of events, which lags behind.
const EVENT_LAG: SignedDuration = SignedDuration::from_secs(120);
/// Comments a model may see at most: the newest before the trigger.
const MAX_COMMENTS: usize = 30;
/// Tasks an installation may open in a day by webhooks, unless configured.
pub const DAILY_TASKS: u64 = 100;

/// The longest that intake may take for one delivery: some dozen requests of 10 s each, at a forge that barely answers.
pub const PROCESSED_WITHIN: Duration = Duration::from_secs(6 * 60);

/// Reads a delivery's body. Implemented by `github`.
pub trait ReadWebhook: Send + Sync {
    /// Errors with a sentence when the body is not what the event should carry.
    fn read(&self, event: &str, body: &[u8]) -> Result<Incoming, String>;
}

/// What the operator decides about intake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IntakeOptions {
    pub rules: IntakeRules,
    /// Tasks an installation (or, without one, this appliance) may open in 24 h by webhooks.
    pub daily_tasks: u64,
    /// Which repositories' Runs need which workers.
    pub needs: Vec<Need>,
}

pub struct Intake {
    pub ledger: Arc<dyn Ledger>,
    pub forge: Arc<dyn Forge>,
    pub reader: Arc<dyn ReadWebhook>,
    /// Opens what foreign messages ask for.
    pub submit: Arc<dyn SubmitTask>,
    /// Where a copy of a refused foreign message goes; absent without a broker.
    pub dead_letters: Option<Arc<dyn ForeignInbox>>,
    pub clock: Arc<dyn Clock>,
    pub ids: Arc<dyn IdSource>,
    /// Taken once for each delivery.
    pub options: Live<IntakeOptions>,
    /// Beats within [`PROCESSED_WITHIN`].
    pub pulse: Pulse,
}

/// Why a delivery has no verdict yet.
enum Later {
    Forge(ForgeError),
    Ledger(LedgerError),
    /// The forge does not list yet what the delivery tells.
    Lags,
    Broker(TransportError),
}

impl From<ForgeError> for Later {
    fn from(error: ForgeError) -> Self {
        Self::Forge(error)
    }
}

impl From<LedgerError> for Later {
    fn from(error: LedgerError) -> Self {
        Self::Ledger(error)
    }
}

/// What was decided about a delivery.
enum Verdict {
    /// The ledger has opened, joined or recognised a Task and closed the delivery.
    Opened(Opened),
    /// As [`Verdict::Opened`], and the delivery is still to be closed, with this word.
    Ordered(String),
    /// Nothing to do, or refused; the reason is kept.
    Closed(String),
}

impl Intake {
    /// Processes deliveries until `shutdown`.
    pub async fn work(&self, shutdown: &CancellationToken) {
        let mut rung = self.ledger.work();
        let mut due: Option<Instant> = None;
        while !shutdown.is_cancelled() {
            rung.mark_unchanged();
            self.pulse.beat();
            due = due.filter(|due| *due > Instant::now());
            match self.ledger.open_deliveries(BATCH).await {
                Ok(deliveries) => {
                    let more = deliveries.len() == usize::from(BATCH);
                    for delivery in deliveries {
                        if shutdown.is_cancelled() {
                            break;
                        }
                        self.pulse.beat();
                        let span = info_span!(
                            "intake",
                            delivery.id = %delivery.id,
                            correlation.id = %delivery.correlation,
                            outcome = field::Empty,
                        );
                        if let Some(wait) = self.process(&delivery).instrument(span).await {
                            let then = Instant::now() + wait;
                            due = Some(due.map_or(then, |due| due.min(then)));
                        }
                    }
                    if more {
                        continue;
                    }
                }
                Err(error) => warn!("could not read open deliveries: {error}"),
            }
            let pause = due.map_or(FALLBACK_POLL, |due| due.saturating_duration_since(Instant::now()));
            tokio::select! {
                biased;
                () = shutdown.cancelled() => {}
                _ = rung.changed() => {}
                () = tokio::time::sleep(pause.min(FALLBACK_POLL)) => {}
            }
        }
    }

    /// Brings a delivery to its verdict, or postpones it: for how long.
    async fn process(&self, delivery: &Delivery) -> Option<Duration> {
        let age = self.clock.now().duration_since(delivery.received_at).try_into().unwrap_or(Duration::ZERO);
        let decided = match self.decide(delivery).await {
            Err(Later::Forge(error)) if gives_up(&error, age) => closed(error.to_string()),
            other => other,
        };
        let wait = match decided {
            Ok(Verdict::Opened(opened)) => {
                let (task, how, outcome) = match opened {
                    Opened::New { task, .. } => (task, "opened", "opened"),
                    Opened::Joined { task } => (task, "joined", "joined"),
                    Opened::Duplicate { task } => (task, "already known", "duplicate"),
                };
                spans::ended(outcome);
                info!(task.id = %task, correlation.id = %delivery.correlation, "{task} {how} by {}", delivery.key);
                return None;
            }
            Ok(verdict @ (Verdict::Ordered(_) | Verdict::Closed(_))) => match self.close(delivery, &verdict).await {
                Ok(()) => {
                    spans::ended("closed");
                    return None;
                }
                Err(error) => {
                    warn!("could not close {}: {error}", delivery.key);
                    wait_after(age)
                }
            },
            Err(Later::Forge(ForgeError::RateLimited { wait })) => wait,
            Err(Later::Forge(error)) => {
                warn!(error = &error as &dyn std::error::Error, "{} waits for the forge", delivery.key);
                wait_after(age)
            }
            Err(Later::Lags) => FIRST_WAIT,
            Err(Later::Broker(error)) => {
                warn!("{} is refused, and waits for the broker to take a copy: {}", delivery.key, chain(&error));
                wait_after(age)
            }
            Err(Later::Ledger(error)) => {
                error!("could not open a Task for {}: {error}", delivery.key);
                wait_after(age)
            }
        };
        spans::ended("postponed");
        if let Err(error) = self.ledger.postpone_delivery(delivery.id, wait).await {
            warn!("could not postpone {}: {error}", delivery.key);
            // It will be among the next ones; a ledger that takes no writes is not asked all the time.
            tokio::time::sleep(LEDGER_PAUSE).await;
        }
        Some(wait)
    }

    async fn close(&self, delivery: &Delivery, verdict: &Verdict) -> Result<(), LedgerError> {
        let (key, correlation) = (&delivery.key, &delivery.correlation);
        match verdict {
            Verdict::Opened(_) => {}
            Verdict::Ordered(what) => {
                self.ledger.close_delivery(delivery.id, what).await?;
                info!(correlation.id = %correlation, "{key} {what}");
            }
            Verdict::Closed(why) => {
                self.ledger.close_delivery(delivery.id, why).await?;
                info!(correlation.id = %correlation, "{key} asks for nothing: {why}");
            }
        }
        Ok(())
    }

    async fn decide(&self, delivery: &Delivery) -> Result<Verdict, Later> {
        if delivery.event == foreign::EVENT {
            return self.decide_foreign(delivery).await;
        }
        let read = match delivery.event.as_str() {
            polling::EVENT => polling::read(&delivery.body),
            event => self.reader.read(event, &delivery.body),
        };
        let incoming = match read {
            Ok(Incoming::Issue(incoming)) => incoming,
            Ok(Incoming::Ping | Incoming::Other { .. }) => return closed("an event that asks for nothing"),
            Err(why) => return closed(format!("unreadable: {why}")),
        };
        let options = self.options.now();
        let options = &*options;
        match trigger_of(&incoming, &options.rules) {
            Trigger::None(why) => closed(why),
            Trigger::Label => self.labeled(delivery, &incoming, options).await,
            Trigger::Command { command: Command::Stop, .. } => self.stop(&incoming, &options.rules).await,
            Trigger::Command { command: Command::Fix(mode), comment_id, at, said } => {
                let repo = self.known_repo(&incoming).await?;
                let wish = Wish {
                    intent: intent_key(repo.forge_id, incoming.issue.number, "comment", comment_id),
                    mode,
                    actor: incoming.sender.login.clone(),
                    trigger: "comment",
                    at,
                    said,
                };
                self.open(delivery, &incoming, options, repo, wish).await
            }
        }
    }

    /// A message is never dropped: refused, it is laid where people look, and only then closed.
    async fn decide_foreign(&self, delivery: &Delivery) -> Result<Verdict, Later> {
        let refused = match self.submit_foreign(delivery).await? {
            Ok(opened) => return Ok(Verdict::Ordered(opened)),
            Err(refused) => refused,
        };
        if let Some(inbox) = &self.dead_letters {
            crash::before(Point::ForeignBury);
            inbox.bury(&delivery.body, &refused).await.map_err(Later::Broker)?;
            crash::after(Point::ForeignBury);
        }
        closed(refused)
    }

    /// What came of it, or the reason why nothing does.
    async fn submit_foreign(&self, delivery: &Delivery) -> Result<Result<String, String>, Later> {
        let task = match fettle_domain::foreign::read(&delivery.body) {
            Ok(task) => task,
            Err(refusal) => return Ok(Err(refusal.to_string())),
        };
        let request = NewTask {
            further: Vec::new(),
            repository: Some(task.repo_url),
            issue: Some(task.issue),
            text: None,
            mode: task.mode,
            model: None,
            base: None,
            actor: task.user,
            trigger: foreign::EVENT,
            // The delivery's own: a crash before it is closed finds the Task that was opened.
            idempotency_key: Some(delivery.key.clone()),
            correlation: delivery.correlation,
        };
        crash::before(Point::IntakeOpen);
        let submitted = self.submit.submit(request).await;
        crash::after(Point::IntakeOpen);
        match submitted {
            Ok(Submitted { opened: Opened::New { task, .. }, .. }) => Ok(Ok(format!("opened {task}"))),
            Ok(Submitted { opened: Opened::Joined { task }, .. }) => Ok(Ok(format!("joined {task}"))),
            Ok(Submitted { opened: Opened::Duplicate { task }, .. }) => Ok(Ok(format!("duplicate of {task}"))),
            Err(error) => refusal_of(error).map(Err),
        }
    }

    async fn labeled(
        &self,
        delivery: &Delivery,
        incoming: &IncomingIssue,
        options: &IntakeOptions,
    ) -> Result<Verdict, Later> {
        let rules = &options.rules;
        let number = incoming.issue.number;
        let repo = self.known_repo(incoming).await?;
        let found = self.forge.labeled(&repo, number, &rules.label).await?;
        // An older event by somebody else, who may have more rights, is not the one that this delivery tells of.
        let event = match found {
            Some(event) if told_by_sender(incoming, &event) => event,
            other => {
                let now = self.forge.issue(&repo, number).await?;
                let young = self.clock.now().duration_since(delivery.received_at) < EVENT_LAG;
                if young && now.labels.iter().any(|label| rules.is_trigger(label)) {
                    return Err(Later::Lags);
                }
                return closed(match other {
                    Some(event) => format!("the label is {}'s by now", event.actor.login),
                    None => "the label was never set or is gone".to_owned(),
                });
            }
        };
        // Whoever asked in another way since has been heard. The same label again is for its intent to recognise.
        if self.ledger.last_asked(repo.forge_id, number).await?.is_some_and(|last| event.at < last) {
            return closed("the label is older than the issue's last Task");
        }
        let wish = Wish {
            intent: intent_key(repo.forge_id, number, "label", event.id),
            mode: rules.label_mode,
            actor: event.actor.login,
            trigger: "label",
            at: event.at,
            said: None,
        };
        self.open(delivery, incoming, options, repo, wish).await
    }

    async fn stop(&self, incoming: &IncomingIssue, rules: &IntakeRules) -> Result<Verdict, Later> {
        let repo = self.known_repo(incoming).await?;
        let actor = &incoming.sender.login;
        if let Some(why) = self.may_not_ask(incoming, rules, &repo, actor).await? {
            return closed(why);
        }
        match self.ledger.active_task(repo.forge_id, incoming.issue.number).await? {
            Some(task) => {
                self.ledger.cancel(task, actor).await?;
                closed(format!("cancelled {task}"))
            }
            None => closed("nothing to stop"),
        }
    }

    async fn open(
        &self,
        delivery: &Delivery,
        incoming: &IncomingIssue,
        options: &IntakeOptions,
        repo: Repo,
        wish: Wish,
    ) -> Result<Verdict, Later> {
        if let Some(why) = self.may_not_ask(incoming, &options.rules, &repo, &wish.actor).await? {
            return closed(why);
        }
        let now = self.forge.issue(&repo, incoming.issue.number).await?;
        if !now.open || now.locked {
            return closed("the issue is closed or locked");
        }
        if wish.trigger == "label" && !now.labels.iter().any(|label| options.rules.is_trigger(label)) {
            return closed("the label was taken off again");
        }
        if self.opened_today(&repo).await? >= options.daily_tasks {
            return closed(format!("the daily limit of {} Tasks is reached", options.daily_tasks));
        }
        let earlier = self.ledger.actors(repo.forge_id, incoming.issue.number, BOT_TURNS).await?;
        if bots_talk_alone(&wish.actor, &earlier) {
            return closed(format!("bots have asked for {BOT_TURNS} Tasks in a row on this issue; now a person must"));
        }
        let mut comments = self.comments_before(&repo, incoming.issue.number, wish.at).await?;
        let own_words = wish.said.iter().map(|said| CommentSnapshot { author: wish.actor.clone(), body: said.clone() });
        comments.extend(own_words);
        let plan = TaskPlan {
            id: TaskId::from_uuid(self.ids.uuid()),
            run: RunId::from_uuid(self.ids.uuid()),
            job: JobId::from_uuid(self.ids.uuid()),
            correlation: delivery.correlation,
            intent: wish.intent,
            mode: wish.mode,
            needs: needs_of(&self.options.now().needs, Some(&repo.name)),
            repo: Some(repo),
            // The text as the trigger carried it: what was edited afterwards, nobody with write access has approved.
            issue: IssueSnapshot {
                number: Some(incoming.issue.number),
                title: incoming.issue.title.clone(),
                body: incoming.issue.body.clone(),
                author: incoming.issue.author.login.clone(),
                url: Some(incoming.issue.url.clone()),
                comments,
                taken_at: wish.at,
            },
            said: wish.said,
            model: None,
            base: None,
            actor: wish.actor,
            trigger: wish.trigger.to_owned(),
            at: self.clock.now(),
            further: Vec::new(),
        };
        crash::before(Point::IntakeOpen);
        let opened = self.ledger.open_task(Some(delivery.id), &plan).instrument(spans::task(&plan)).await?;
        crash::after(Point::IntakeOpen);
        Ok(Verdict::Opened(opened))
    }

    /// The repository as the forge knows it now: the delivery's word is not taken for its clone URL.
    async fn known_repo(&self, incoming: &IncomingIssue) -> Result<Repo, Later> {
        let repo = self.forge.repository(&incoming.repo.name).await?;
        Ok(Repo { installation: incoming.repo.installation.or(repo.installation), ..repo })
    }

    /// Why `login` may not order work here, if so.
    async fn may_not_ask(
        &self,
        incoming: &IncomingIssue,
        rules: &IntakeRules,
        repo: &Repo,
        login: &str,
    ) -> Result<Option<String>, Later> {
        let sender = &incoming.sender;
        if sender.login == login && rules.is_allowed_bot(sender) {
            return Ok(None);
        }
        self.not_permitted(repo, login).await
    }

    async fn not_permitted(&self, repo: &Repo, login: &str) -> Result<Option<String>, Later> {
        match self.forge.permission(repo, login).await {
            Ok(permission) if permission.may_trigger() => Ok(None),
            Ok(permission) => Ok(Some(format!("{login} has permission {permission:?}, write is needed"))),
            Err(ForgeError::NotFound(_)) => Ok(Some(format!("{login} is no collaborator"))),
            Err(error) => Err(error.into()),
        }
    }

    async fn opened_today(&self, repo: &Repo) -> Result<u64, Later> {
        let since = self.clock.now().saturating_sub(SignedDuration::from_hours(24)).unwrap_or(Timestamp::MIN);
        Ok(self.ledger.opened_since(repo.installation, since).await?)
    }

    /// By people who may write, made before the trigger and not edited since.
    async fn comments_before(&self, repo: &Repo, issue: u64, at: Timestamp) -> Result<Vec<CommentSnapshot>, Later> {
        let early =
            |comment: &IssueComment| comment.created_at < at && comment.updated_at <= at && !comment.author_is_bot;
        let all = self.forge.comments(repo, issue).await?;
        let mut kept = Vec::new();
        for comment in all.into_iter().filter(early) {
            if self.not_permitted(repo, &comment.author).await?.is_none() {
                kept.push(CommentSnapshot { author: comment.author, body: comment.body });
            }
        }
        let surplus = kept.len().saturating_sub(MAX_COMMENTS);
        Ok(kept.split_off(surplus))
    }
}

/// The word for a dead letter and what it means, unless the trouble is not the message's.
fn refusal_of(error: SubmitError) -> Result<String, Later> {
    let word = match error {
        SubmitError::UnknownHost { .. } => "unknown_host",
        SubmitError::NotPermitted(_) | SubmitError::NotFound(Missing::Login(_)) => "not_permitted",
        SubmitError::NotFound(Missing::Repository(_)) => "not_installed",
        SubmitError::NotFound(Missing::Issue { .. }) => "issue_not_found",
        SubmitError::Invalid { ref pointer, .. } if pointer == "/repository" => "bad_field:repo_url",
        SubmitError::Invalid { .. } => "bad_field:issue_id",
        SubmitError::Ledger(error) => return Err(error.into()),
        SubmitError::Unavailable { retry_after, cause, .. } => {
            return Err(match cause.downcast::<ForgeError>() {
                Ok(error) => Later::Forge(*error),
                Err(_) => Later::Forge(ForgeError::RateLimited { wait: retry_after }),
            });
        }
    };
    Ok(format!("{word}: {error}"))
}

/// Asking for ever would leave the delivery open for ever.
fn gives_up(error: &ForgeError, age: Duration) -> bool {
    match error {
        // A repository or issue that we may not see is as good as none.
        ForgeError::NotFound(_) => true,
        ForgeError::Denied(_) | ForgeError::Refused(_) => age > REFUSED_FOR,
        ForgeError::RateLimited { .. } | ForgeError::Unavailable(_) | ForgeError::NoAnswer(_) => age > AWAY_FOR,
    }
}

fn wait_after(age: Duration) -> Duration {
    (age / 2).clamp(FIRST_WAIT, LONGEST_WAIT)
}

/// A new issue has no older events that could be taken for this one.
fn told_by_sender(incoming: &IncomingIssue, event: &LabeledEvent) -> bool {
    match incoming.change {
        IssueChange::Labeled { .. } => event.actor.login.eq_ignore_ascii_case(&incoming.sender.login),
        IssueChange::Opened | IssueChange::Commented { .. } | IssueChange::Other { .. } => true,
    }
}

/// What the forge confirmed of a trigger.
struct Wish {
    intent: String,
    mode: Mode,
    actor: String,
    trigger: &'static str,
    at: Timestamp,
    /// The person's own words beside the command.
    said: Option<String>,
}

fn closed(why: impl Into<String>) -> Result<Verdict, Later> {
    Ok(Verdict::Closed(why.into()))
}
