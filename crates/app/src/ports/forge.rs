//! The forge: what intake asks of it and what the publisher writes to it.

use std::time::Duration;

use async_trait::async_trait;
use fettle_domain::incoming::{IncomingUser, IssueState};
use fettle_domain::missed::Attempt;
use fettle_domain::repo::{Repo, RepoName};
use jiff::Timestamp;
use secrecy::SecretString;

use super::BoxError;

/// By what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum ForgeError {
    /// A write was sent and its result is unknown: read back first.
    #[error("the forge did not answer")]
    NoAnswer(#[source] BoxError),
    #[error("the forge limits our rate; next try in {} s", wait.as_secs())]
    RateLimited { wait: Duration },
    /// Not sent, or a read that failed.
    #[error("the forge could not be reached")]
    Unavailable(#[source] BoxError),
    /// 422 and other final answers, in the forge's words.
    #[error("the forge refused: {0}")]
    Refused(String),
    /// 401, 403: no or too weak credentials.
    #[error("the forge denied access: {0}")]
    Denied(String),
    #[error("the forge has no such {0}")]
    NotFound(String),
}

pub type F<T> = Result<T, ForgeError>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issue {
    pub number: u64,
    pub title: String,
    pub body: String,
    pub author: String,
    pub url: String,
    pub open: bool,
    pub locked: bool,
    pub labels: Vec<String>,
    pub is_pull_request: bool,
    pub updated_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssueComment {
    pub id: u64,
    pub author: String,
    pub author_is_bot: bool,
    pub body: String,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabeledEvent {
    pub id: u64,
    pub actor: IncomingUser,
    pub at: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Permission {
    None,
    Read,
    Triage,
    Write,
    Admin,
}

impl Permission {
    /// Triage users can label, so labelling alone is not enough to trigger.
    pub fn may_trigger(self) -> bool {
        self >= Self::Write
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pull {
    pub number: u64,
    pub url: String,
    pub open: bool,
    pub merged: bool,
    pub draft: bool,
    pub head_sha: String,
    pub base: String,
    pub body: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullSpec {
    pub title: String,
    pub body: String,
    pub head: String,
    pub base: String,
    pub draft: bool,
}

/// Reads for intake. Timeout 10 s each; nothing here writes.
#[async_trait]
pub trait ForgeReader: Send + Sync {
    async fn repository(&self, name: &RepoName) -> F<Repo>;
    async fn issue(&self, repo: &Repo, number: u64) -> F<Issue>;
    /// Oldest first, at most 200: the newest are kept.
    async fn comments(&self, repo: &Repo, issue: u64) -> F<Vec<IssueComment>>;
    /// The newest time that the label was set, as the issue's event tells it.
    async fn labeled(&self, repo: &Repo, issue: u64, label: &str) -> F<Option<LabeledEvent>>;
    async fn permission(&self, repo: &Repo, login: &str) -> F<Permission>;
    /// A token that can read this one repository for at most an hour, or the configured read token; `None` for a public
    /// repository without credentials.
    async fn read_token(&self, repo: &Repo) -> F<Option<SecretString>>;
    /// Who we are on the forge, to know our own comments: `fettle[bot]`.
    async fn own_login(&self) -> F<String>;
}

/// With what we come to the forge, where people may change that while the process runs.
#[async_trait]
pub trait ForgeAccess: ForgeReader {
    fn can_write(&self) -> bool;
    /// Whose token this is; refused or denied when it is nobody's.
    async fn login_of(&self, token: &SecretString) -> F<String>;
    /// Whether we may write code there. Denied when not, with the forge's words. Asks for what cannot be, so that nothing is written.
    async fn may_write(&self, repo: &Repo) -> F<()>;
    /// From now on, in the place of those before. Never called for an App.
    fn use_tokens(&self, read: Option<SecretString>, write: Option<SecretString>);
}

/// What nobody told us, for whoever looks. Timeout 10 s for each request; nothing here writes what a user sees.
#[async_trait]
pub trait ForgeWatch: ForgeReader {
    /// The repositories that our credentials can write to; `max` of them, and whether there are more.
    async fn reachable(&self, max: usize) -> F<Reach>;
    /// Open issues with `label` that have changed since then (to the second), the oldest change first. `seen` is the tag of
    /// an earlier answer to the same question.
    async fn changed_issues(&self, repo: &Repo, label: &str, since: Timestamp, seen: Option<&str>) -> F<Changed>;
    /// Attempts to deliver to our webhook, back to `since` or as far as the forge keeps them. Only an App has such a list.
    async fn hook_attempts(&self, since: Option<Timestamp>) -> F<HookLog>;
    /// Asks for an attempt to be made again. It comes as a webhook with the same id.
    async fn redeliver(&self, attempt: u64) -> F<()>;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    pub repositories: Vec<Repo>,
    pub more: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// Nothing, since the answer that was tagged. Costs nothing of the rate limit.
    Nothing,
    Issues {
        issues: Vec<IssueState>,
        /// There are more, changed later still.
        cut: bool,
        tag: Option<String>,
        /// By the forge's clock.
        at: Timestamp,
    },
}

/// What the forge remembers of its deliveries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookLog {
    /// With the event that each delivers: `issues`, `issue_comment`, …
    pub attempts: Vec<(String, Attempt)>,
    /// By the forge's clock.
    pub at: Timestamp,
}

/// Writes, for the publisher alone.
#[async_trait]
pub trait Forge: ForgeReader {
    /// One repository, at most an hour, never leaves the publisher.
    async fn write_token(&self, repo: &Repo) -> F<SecretString>;
    /// With any state.
    async fn pulls_by_head(&self, repo: &Repo, head: &str) -> F<Vec<Pull>>;
    async fn open_pull(&self, repo: &Repo, pull: &PullSpec) -> F<PullOpened>;
    async fn edit_pull_body(&self, repo: &Repo, number: u64, body: &str) -> F<()>;
    /// Own comments that carry `marker`, lowest id first.
    async fn own_comments(&self, repo: &Repo, issue: u64, marker: &str) -> F<Vec<IssueComment>>;
    /// `None` posts, `Some` edits; gives the comment's id.
    async fn put_comment(&self, repo: &Repo, issue: u64, id: Option<u64>, body: &str) -> F<u64>;
    async fn delete_comment(&self, repo: &Repo, id: u64) -> F<()>;
    async fn add_labels(&self, repo: &Repo, issue: u64, labels: &[String]) -> F<()>;
    /// A label that is not there is no error.
    async fn remove_label(&self, repo: &Repo, issue: u64, label: &str) -> F<()>;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PullOpened {
    Created(Pull),
    /// 422 "already exists": list and adopt.
    Exists,
}
