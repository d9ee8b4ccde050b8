//! Looks for labels that no webhook told of. What is found is stored as a delivery like any other, so that intake decides about
//! all of them in one way, and a label that a webhook has told of as well is one wish.
//!
//! Nothing is judged here but whether a label is news. Commands in comments are not looked for.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fettle_domain::id::{CorrelationId, DeliveryId};
use fettle_domain::incoming::{Incoming, IncomingIssue, IssueChange, IssueState};
use fettle_domain::missed::{FIRST_LOOK, Look, news_from, next_mark};
use fettle_domain::repo::{Repo, RepoName};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{Instrument as _, info, warn};

use crate::adding::Added;
use crate::intake::IntakeOptions;
use crate::live::Live;
use crate::ports::clock::{Clock, IdSource};
use crate::ports::forge::{Changed, ForgeError, ForgeWatch, Reach};
use crate::ports::ledger::{Accepted, Delivery, Ledger, LedgerError};
use crate::reconciling::{Reconcile, Trouble};
use crate::spans;
use crate::vitals::Pulse;

/// The event of such a delivery.
pub const EVENT: &str = "polled";
/// Between two looks of somebody who has no webhooks. A label waits half of it on the average.
pub const EVERY: Duration = Duration::from_secs(60);
/// Between two looks below webhooks, for those that were lost.
pub const EVERY_BELOW_WEBHOOKS: Duration = Duration::from_secs(600);
/// Repositories that are looked at. GitHub allows 900 requests a minute and counts 5,000 an hour of those that have news.
const MAX_REPOSITORIES: usize = 300;
/// A repository that Fettle was given a moment ago is looked at within this.
const REPOSITORIES_EVERY: Duration = Duration::from_secs(600);
/// An installation takes two requests, and there may be a hundred.
const LISTED_WITHIN: Duration = Duration::from_secs(120);

pub struct Poller {
    pub ledger: Arc<dyn Ledger>,
    pub forge: Arc<dyn ForgeWatch>,
    pub clock: Arc<dyn Clock>,
    pub ids: Arc<dyn IdSource>,
    /// For the label; taken once for each look.
    pub options: Live<IntakeOptions>,
    /// Which of the forge's repositories are looked at.
    pub at: LookAt,
    /// Those that people added are looked at as well.
    pub added: watch::Receiver<Arc<Added>>,
    pub remembered: Remembered,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LookAt {
    /// Whatever our credentials can write to.
    Reachable,
    Named(Vec<RepoName>),
}

/// What a process remembers between two looks. Lost at its end, it costs some requests.
#[derive(Default)]
pub struct Remembered {
    repositories: Option<Listed>,
    /// By repository: the question that was answered with nothing, and the answer's tag.
    quiet: HashMap<u64, Quiet>,
}

struct Listed {
    repositories: Vec<Repo>,
    asked: Instant,
    /// What had been added then.
    added: Vec<RepoName>,
}

#[derive(PartialEq, Eq)]
struct Question {
    label: String,
    since: Timestamp,
}

struct Quiet {
    question: Question,
    tag: String,
}

/// A label that was found, as a delivery's body.
#[derive(Serialize, Deserialize)]
#[serde(tag = "v")]
enum Found {
    #[serde(rename = "1")]
    V1 { incoming: Box<IncomingIssue> },
}

/// Reads the body of a delivery whose event is [`EVENT`]. Errors with a sentence.
pub fn read(body: &[u8]) -> Result<Incoming, String> {
    let Found::V1 { incoming } = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    Ok(Incoming::Issue(incoming))
}

#[async_trait]
impl Reconcile for Poller {
    async fn tick(&mut self, pulse: &Pulse) -> Result<(), Trouble> {
        let repositories = self.repositories(pulse).await?;
        let mut away = None;
        let mut seen = 0;
        for repo in &repositories {
            pulse.beat();
            match self.look(repo, pulse).await {
                Ok(()) => seen += 1,
                // Of this repository alone: it was taken from us, or has no issues.
                Err(LookError::Forge(
                    error @ (ForgeError::NotFound(_) | ForgeError::Denied(_) | ForgeError::Refused(_)),
                )) => {
                    warn!("{} is not looked at for a while: {error}", repo.name);
                    self.remembered.leave_out(repo);
                    away = Some(error);
                }
                Err(LookError::Forge(error)) => return Err(error.into()),
                Err(LookError::Ledger(error)) => return Err(error.into()),
            }
        }
        // All of them is no matter of one repository.
        match away {
            Some(error) if seen == 0 => Err(error.into()),
            Some(_) | None => Ok(()),
        }
    }
}

impl Remembered {
    /// Until the list of repositories is read again.
    fn leave_out(&mut self, repo: &Repo) {
        if let Some(listed) = &mut self.repositories {
            listed.repositories.retain(|known| known.forge_id != repo.forge_id);
        }
    }
}

enum LookError {
    Forge(ForgeError),
    Ledger(LedgerError),
}

impl From<ForgeError> for LookError {
    fn from(error: ForgeError) -> Self {
        Self::Forge(error)
    }
}

impl From<LedgerError> for LookError {
    fn from(error: LedgerError) -> Self {
        Self::Ledger(error)
    }
}

impl Poller {
    async fn repositories(&mut self, pulse: &Pulse) -> Result<Vec<Repo>, Trouble> {
        let added = self.added.borrow().repositories.clone();
        if let Some(listed) = &self.remembered.repositories
            && !listed.repositories.is_empty()
            && listed.asked.elapsed() < REPOSITORIES_EVERY
            && listed.added == added
        {
            return Ok(listed.repositories.clone());
        }
        let asked = Instant::now();
        let found = self.find_repositories(&added, pulse).await?;
        self.remembered.quiet.retain(|id, _| found.iter().any(|repo| repo.forge_id == *id));
        self.remembered.repositories = Some(Listed { repositories: found.clone(), asked, added });
        Ok(found)
    }

    async fn find_repositories(&self, added: &[RepoName], pulse: &Pulse) -> Result<Vec<Repo>, Trouble> {
        let (mut found, named) = match &self.at {
            LookAt::Reachable => (self.find_reachable().await?, [].as_slice()),
            LookAt::Named(named) => (Vec::new(), named.as_slice()),
        };
        let mut away = None;
        for name in named.iter().chain(added).take(MAX_REPOSITORIES) {
            if found.iter().any(|repo: &Repo| repo.name == *name) {
                continue;
            }
            pulse.beat();
            match self.forge.repository(name).await {
                // One that was renamed is found by its old name too.
                Ok(repo) if found.iter().any(|known| known.forge_id == repo.forge_id) => {}
                Ok(repo) => found.push(repo),
                Err(error @ (ForgeError::NotFound(_) | ForgeError::Denied(_))) => {
                    warn!("{name} is not looked at: {error}");
                    away = Some(error);
                }
                Err(error) => return Err(error.into()),
            }
        }
        match away {
            Some(error) if found.is_empty() => Err(error.into()),
            Some(_) | None => Ok(found),
        }
    }

    async fn find_reachable(&self) -> Result<Vec<Repo>, Trouble> {
        let asked = tokio::time::timeout(LISTED_WITHIN, self.forge.reachable(MAX_REPOSITORIES)).await;
        let Reach { repositories, more } = asked.map_err(|_| {
            Trouble::new(format!("the list of repositories was not complete within {} s", LISTED_WITHIN.as_secs()))
        })??;
        if more {
            warn!(
                "only {MAX_REPOSITORIES} repositories are looked at; name those that matter in forge.poll_repositories"
            );
        }
        Ok(repositories)
    }

    /// What is new in one repository.
    async fn look(&mut self, repo: &Repo, pulse: &Pulse) -> Result<(), LookError> {
        let options = self.options.now();
        let label = &options.rules.label;
        let mark = self.ledger.poll_mark(repo.forge_id).await?;
        let first = || self.clock.now().saturating_sub(FIRST_LOOK).unwrap_or(Timestamp::MIN);
        let mut question = Question { label: label.clone(), since: mark.unwrap_or_else(first) };
        let (issues, cut, tag, at, news_from) = loop {
            let quiet = self.remembered.quiet.get(&repo.forge_id).filter(|quiet| quiet.question == question);
            let seen = quiet.map(|quiet| quiet.tag.as_str());
            let (issues, cut, tag, at) = match self.forge.changed_issues(repo, label, question.since, seen).await? {
                Changed::Nothing => return Ok(()),
                Changed::Issues { issues, cut, tag, at } => (issues, cut, tag, at),
            };
            let news_from = news_from(mark, at);
            if mark.is_some() || question.since <= news_from {
                break (issues, cut, tag, at, news_from);
            }
            // A first question goes by our own clock. That is ahead of the forge's, so it left out what is news there.
            question.since = news_from;
        };
        let look = Look { now: at, last_change: issues.last().map(|issue| issue.updated_at), cut };
        for issue in issues.into_iter().filter(|issue| !issue.is_pull_request) {
            pulse.beat();
            self.take(repo, label, issue, news_from).await?;
        }
        match next_mark(mark, &look) {
            // Moved by another dashboard, which has seen the same.
            Some(next) => {
                self.ledger.set_poll_mark(repo.forge_id, mark, next).await?;
            }
            None => {
                if let Some(tag) = tag.filter(|_| look.last_change.is_none()) {
                    self.remembered.quiet.insert(repo.forge_id, Quiet { question, tag });
                }
            }
        }
        Ok(())
    }

    /// Stores the issue's label as a delivery, if it is news.
    async fn take(&self, repo: &Repo, label: &str, issue: IssueState, news_from: Timestamp) -> Result<(), LookError> {
        let event = match self.forge.labeled(repo, issue.number, label).await {
            Ok(event) => event,
            // Of this issue alone: it has gone elsewhere since, or has more events than anybody reads.
            Err(error @ (ForgeError::NotFound(_) | ForgeError::Refused(_))) => {
                warn!("{}#{} is not looked at: {error}", repo.name, issue.number);
                None
            }
            Err(error) => return Err(error.into()),
        };
        // The event may be missing while lists lag behind; the issue is among those of the next look as well.
        let Some(event) = event.filter(|event| event.at >= news_from) else { return Ok(()) };
        let key = format!("poll:{}:{}", repo.forge_id, event.id);
        let incoming = IncomingIssue {
            change: IssueChange::Labeled { label: label.to_owned() },
            repo: repo.clone(),
            sender: event.actor,
            issue,
        };
        let found = Found::V1 { incoming: Box::new(incoming) };
        let body = serde_json::to_vec(&found).expect("texts and numbers are JSON");
        let delivery = Delivery {
            id: DeliveryId::from_uuid(self.ids.uuid()),
            key: key.clone(),
            event: EVENT.to_owned(),
            body: body.into(),
            correlation: CorrelationId::from_uuid(self.ids.uuid()),
            received_at: self.clock.now(),
        };
        let span = spans::delivery(&delivery);
        if self.ledger.accept(delivery).instrument(span).await? == Accepted::New {
            info!("{key}: a label was found that is new here");
        }
        Ok(())
    }
}
