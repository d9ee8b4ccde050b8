//! The forge as seen over a network: issues, comments, pull requests and branches behind requests that get lost, are
//! answered late or never, are applied late, and reads that lag behind writes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use fettle_app::ports::forge::{
    Changed, F, Forge, ForgeError, ForgeReader, ForgeWatch, HookLog, Issue, IssueComment, LabeledEvent, Permission,
    Pull, PullOpened, PullSpec, Reach,
};
use fettle_app::ports::git::{PushError, PushTarget, Pushed, RefPush};
use fettle_domain::incoming::{IncomingUser, IssueState};
use fettle_domain::object::CommitId;
use fettle_domain::repo::{Repo, RepoName};
use jiff::Timestamp;
use secrecy::SecretString;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::bug::Bug;
use crate::ledger::Durable;
use crate::nature::{Nature, Who, lock};
use crate::watch::{Write, may_be_sent};

pub(crate) const LABEL: &str = "ai-help";
pub(crate) const REPO_ID: u64 = 77;
/// A client gives up after this.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// A request is applied at most so long after its client gave up, in milliseconds: queued at a gateway.
const APPLIED_LATE_MS: u64 = 3_000;
/// A read shows a write at most so long after it, in milliseconds.
const READ_LAG_MS: u64 = 5_000;

pub(crate) fn repo() -> Repo {
    Repo {
        forge_id: REPO_ID,
        name: "acme/tools".parse().expect("a repository name"),
        clone_url: "https://forge.test/acme/tools".to_owned(),
        default_branch: "main".to_owned(),
        private: false,
        installation: None,
    }
}

#[derive(Debug, Default)]
pub(crate) struct Shown {
    pub(crate) issues: BTreeMap<u64, ShownIssue>,
    pub(crate) comments: Vec<ShownComment>,
    pub(crate) pulls: Vec<ShownPull>,
    pub(crate) branches: BTreeMap<String, CommitId>,
    next_id: u64,
}

#[derive(Debug, Clone)]
pub(crate) struct ShownIssue {
    pub(crate) labels: Vec<String>,
    pub(crate) labeled: Option<LabeledEvent>,
    changed_at: Timestamp,
}

#[derive(Debug, Clone)]
pub(crate) struct ShownComment {
    pub(crate) id: u64,
    pub(crate) issue: u64,
    pub(crate) body: String,
    at: Timestamp,
    seen_from: Instant,
}

#[derive(Debug, Clone)]
pub(crate) struct ShownPull {
    pub(crate) head: String,
    pull: Pull,
    seen_from: Instant,
}

impl ShownPull {
    pub(crate) fn number(&self) -> u64 {
        self.pull.number
    }
}

impl Shown {
    fn change(&mut self, issue: u64, at: Timestamp) {
        if let Some(issue) = self.issues.get_mut(&issue) {
            issue.changed_at = issue.changed_at.max(at);
        }
    }

    pub(crate) fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

/// How a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Fine,
    /// Not sent.
    Unavailable,
    Limited,
    /// Applied; the answer is lost.
    AnswerLost,
    /// Applied after its client has given up.
    Late,
    /// Never applied, and not answered.
    Vanishes,
}

/// The forge as one process sees it.
#[derive(Clone)]
pub(crate) struct SimForge {
    who: Who,
    nature: Arc<Nature>,
    durable: Durable,
    bug: Option<Bug>,
    pub(crate) shown: Arc<Mutex<Shown>>,
    /// Requests under way: they outlive their senders.
    requests: Arc<Mutex<JoinSet<()>>>,
}

impl SimForge {
    pub(crate) fn new(nature: Arc<Nature>, durable: Durable, bug: Option<Bug>) -> Self {
        Self { who: Who::Outside, nature, durable, bug, shown: Arc::default(), requests: Arc::default() }
    }

    pub(crate) fn seen_by(&self, who: Who) -> Arc<Self> {
        Arc::new(Self { who, ..self.clone() })
    }

    /// A person opens an issue, or sets the label again. Gives the event's id.
    pub(crate) fn label(&self, issue: u64) -> u64 {
        let at = self.at();
        let mut shown = lock(&self.shown);
        let id = shown.id();
        let issue = shown.issues.entry(issue).or_insert_with(|| ShownIssue {
            labels: Vec::new(),
            labeled: None,
            changed_at: at,
        });
        issue.changed_at = at;
        if !issue.labels.iter().any(|label| label == LABEL) {
            issue.labels.push(LABEL.to_owned());
        }
        let actor = IncomingUser { id: 1, login: "ada".to_owned(), is_bot: false };
        issue.labeled = Some(LabeledEvent { id, actor, at });
        id
    }

    /// True time: a forge's clock is right.
    fn at(&self) -> Timestamp {
        let elapsed = i64::try_from(self.nature.elapsed().as_micros()).unwrap_or(i64::MAX / 4);
        Timestamp::from_microsecond(1_767_225_600_000_000 + elapsed).unwrap_or(Timestamp::MAX)
    }

    fn fate(&self) -> Fate {
        if !self.nature.wrong(self.nature.weather.forge) {
            return Fate::Fine;
        }
        match self.nature.dice.below(8) {
            0 => Fate::Unavailable,
            1 => Fate::Limited,
            2 | 3 => Fate::AnswerLost,
            4 | 5 => Fate::Late,
            6 => Fate::Vanishes,
            _ => Fate::Fine,
        }
    }

    async fn read<T>(&self, what: &'static str, look: impl FnOnce(&Shown, Instant) -> F<T> + Send) -> F<T> {
        self.nature.step(self.who, what).await;
        self.nature.latency(if self.nature.is_stormy() { 200 } else { 0 }).await;
        match self.fate() {
            Fate::Fine | Fate::Late => {}
            Fate::Limited => return Err(self.limited()),
            Fate::Unavailable | Fate::AnswerLost => return Err(away()),
            Fate::Vanishes => {
                sleep(REQUEST_TIMEOUT).await;
                return Err(away());
            }
        }
        look(&lock(&self.shown), Instant::now())
    }

    fn limited(&self) -> ForgeError {
        ForgeError::RateLimited { wait: self.nature.dice.millis(1_000, 30_000) }
    }

    /// Once it is sent, a request goes its own way, whatever becomes of its sender.
    async fn send<T: Send + 'static>(
        &self,
        what: &'static str,
        write: &Write<'_>,
        apply: impl FnOnce(&mut Shown, Instant) -> T + Send + 'static,
    ) -> F<T> {
        self.nature.step(self.who, what).await;
        let fate = self.fate();
        match fate {
            Fate::Unavailable => return Err(away()),
            Fate::Limited => return Err(self.limited()),
            Fate::Fine | Fate::AnswerLost | Fate::Late | Fate::Vanishes => {}
        }
        if let Err(why) = may_be_sent(&self.durable.rows(), write) {
            self.nature.breach(format!("I6: {what} without a live intent: {why}"));
        }
        let patience = match fate {
            Fate::Fine => REQUEST_TIMEOUT,
            _ => self.nature.dice.millis(100, 10_000),
        };
        let travel = match fate {
            Fate::Late => patience + self.nature.dice.millis(0, APPLIED_LATE_MS),
            _ => self.nature.dice.millis(0, 300).min(patience),
        };
        // A replica that lags shows it later still.
        let lag = if self.nature.wrong(self.nature.weather.forge) { self.nature.dice.below(READ_LAG_MS) } else { 0 };
        let (answer, answered) = oneshot::channel();
        if fate != Fate::Vanishes {
            let (shown, nature) = (self.shown.clone(), self.nature.clone());
            let mut requests = lock(&self.requests);
            while requests.try_join_next().is_some() {}
            requests.spawn(async move {
                sleep(travel).await;
                nature.note(Who::Outside, || format!("the forge applies {what}"));
                let seen_from = Instant::now() + Duration::from_millis(lag);
                let _ = answer.send(apply(&mut lock(&shown), seen_from));
            });
        }
        let answer = match fate {
            Fate::Fine => timeout(patience, answered).await.ok().and_then(Result::ok),
            _ => {
                sleep(patience).await;
                None
            }
        };
        self.nature.step(self.who, what).await;
        answer.ok_or_else(|| ForgeError::NoAnswer("the forge said nothing".into()))
    }
}

fn away() -> ForgeError {
    ForgeError::Unavailable("the forge answers 503".into())
}

fn gone(what: &str) -> ForgeError {
    ForgeError::NotFound(what.to_owned())
}

#[async_trait]
impl ForgeReader for SimForge {
    async fn repository(&self, name: &RepoName) -> F<Repo> {
        self.read("forge.repository", |_, _| if repo().name == *name { Ok(repo()) } else { Err(gone("repository")) })
            .await
    }

    async fn issue(&self, _repo: &Repo, number: u64) -> F<Issue> {
        let at = self.at();
        self.read("forge.issue", |shown, _| {
            let issue = shown.issues.get(&number).ok_or_else(|| gone("issue"))?;
            Ok(Issue {
                number,
                title: format!("issue {number}"),
                body: "it fails".to_owned(),
                author: "ada".to_owned(),
                url: format!("https://forge.test/acme/tools/issues/{number}"),
                open: true,
                locked: false,
                labels: issue.labels.clone(),
                is_pull_request: false,
                updated_at: at,
            })
        })
        .await
    }

    async fn comments(&self, _repo: &Repo, issue: u64) -> F<Vec<IssueComment>> {
        self.read("forge.comments", |shown, now| Ok(comments(shown, now, issue, ""))).await
    }

    async fn labeled(&self, _repo: &Repo, issue: u64, _label: &str) -> F<Option<LabeledEvent>> {
        let found = |shown: &Shown| shown.issues.get(&issue).and_then(|issue| issue.labeled.clone());
        self.read("forge.labeled", |shown, _| Ok(found(shown))).await
    }

    async fn permission(&self, _repo: &Repo, login: &str) -> F<Permission> {
        let permission = if login == "ada" { Permission::Write } else { Permission::None };
        self.read("forge.permission", |_, _| Ok(permission)).await
    }

    async fn read_token(&self, _repo: &Repo) -> F<Option<SecretString>> {
        self.read("forge.read_token", |_, _| Ok(None)).await
    }

    async fn own_login(&self) -> F<String> {
        Ok("fettle[bot]".to_owned())
    }
}

#[async_trait]
impl ForgeWatch for SimForge {
    async fn reachable(&self, _max: usize) -> F<Reach> {
        Ok(Reach { repositories: vec![repo()], more: false })
    }

    async fn changed_issues(&self, repo: &Repo, label: &str, since: Timestamp, _seen: Option<&str>) -> F<Changed> {
        let at = self.at();
        self.read("forge.changed_issues", |shown, _| {
            let labelled = |issue: &ShownIssue| issue.labels.iter().any(|known| known == label);
            let changed = shown.issues.iter().filter(|(_, issue)| issue.changed_at >= since && labelled(issue));
            let mut issues: Vec<IssueState> = changed
                .map(|(number, issue)| IssueState {
                    number: *number,
                    title: format!("issue {number}"),
                    body: "it fails".to_owned(),
                    author: IncomingUser { id: 1, login: "ada".to_owned(), is_bot: false },
                    labels: issue.labels.clone(),
                    open: true,
                    locked: false,
                    url: format!("{}/issues/{number}", repo.clone_url),
                    is_pull_request: false,
                    updated_at: issue.changed_at,
                })
                .collect();
            issues.sort_by_key(|issue| issue.updated_at);
            Ok(Changed::Issues { issues, cut: false, tag: None, at })
        })
        .await
    }

    async fn hook_attempts(&self, _since: Option<Timestamp>) -> F<HookLog> {
        Ok(HookLog { attempts: Vec::new(), at: self.at() })
    }

    async fn redeliver(&self, attempt: u64) -> F<()> {
        Err(gone(&format!("attempt {attempt}")))
    }
}

/// Those that carry `marker` and that a read shows already.
fn comments(shown: &Shown, now: Instant, issue: u64, marker: &str) -> Vec<IssueComment> {
    let found = shown
        .comments
        .iter()
        .filter(|comment| comment.issue == issue && comment.seen_from <= now && comment.body.contains(marker));
    found
        .map(|comment| IssueComment {
            id: comment.id,
            author: "fettle[bot]".to_owned(),
            author_is_bot: true,
            body: comment.body.clone(),
            created_at: comment.at,
            updated_at: comment.at,
        })
        .collect()
}

#[async_trait]
impl Forge for SimForge {
    async fn write_token(&self, _repo: &Repo) -> F<SecretString> {
        self.read("forge.write_token", |_, _| Ok(SecretString::from("token"))).await
    }

    async fn pulls_by_head(&self, _repo: &Repo, head: &str) -> F<Vec<Pull>> {
        let blind = self.bug == Some(Bug::NoListBeforePost);
        self.read("forge.pulls_by_head", |shown, now| {
            let found = shown.pulls.iter().filter(|pull| pull.head == head && pull.seen_from <= now && !blind);
            Ok(found.map(|pull| pull.pull.clone()).collect())
        })
        .await
    }

    async fn open_pull(&self, _repo: &Repo, spec: &PullSpec) -> F<PullOpened> {
        let asked = spec.clone();
        let apply = move |shown: &mut Shown, seen_from| {
            let Some(tip) = shown.branches.get(&asked.head).copied() else {
                return Err(ForgeError::Refused("head does not exist".to_owned()));
            };
            if shown.pulls.iter().any(|pull| pull.head == asked.head) {
                return Ok(PullOpened::Exists);
            }
            let number = shown.id();
            let pull = Pull {
                number,
                url: format!("https://forge.test/acme/tools/pull/{number}"),
                open: true,
                merged: false,
                draft: asked.draft,
                head_sha: tip.to_string(),
                base: asked.base,
                body: asked.body,
            };
            shown.pulls.push(ShownPull { head: asked.head, pull: pull.clone(), seen_from });
            Ok(PullOpened::Created(pull))
        };
        self.send("forge.open_pull", &Write::Pull { head: &spec.head }, apply).await?
    }

    async fn edit_pull_body(&self, _repo: &Repo, _number: u64, _body: &str) -> F<()> {
        Ok(())
    }

    async fn own_comments(&self, _repo: &Repo, issue: u64, marker: &str) -> F<Vec<IssueComment>> {
        let blind = self.bug == Some(Bug::NoListBeforePost);
        self.read("forge.own_comments", |shown, now| {
            Ok(if blind { Vec::new() } else { comments(shown, now, issue, marker) })
        })
        .await
    }

    async fn put_comment(&self, _repo: &Repo, issue: u64, id: Option<u64>, body: &str) -> F<u64> {
        let (at, text) = (self.at(), body.to_owned());
        let apply = move |shown: &mut Shown, seen_from| match id {
            Some(id) => {
                let comment = shown.comments.iter_mut().find(|comment| comment.id == id);
                comment.ok_or_else(|| gone("comment"))?.body = text;
                Ok(id)
            }
            None => {
                let id = shown.id();
                shown.comments.push(ShownComment { id, issue, body: text, at, seen_from });
                shown.change(issue, at);
                Ok(id)
            }
        };
        self.send("forge.put_comment", &Write::Comment { body }, apply).await?
    }

    async fn delete_comment(&self, _repo: &Repo, id: u64) -> F<()> {
        lock(&self.shown).comments.retain(|comment| comment.id != id);
        Ok(())
    }

    async fn add_labels(&self, _repo: &Repo, issue: u64, labels: &[String]) -> F<()> {
        let labels = labels.to_vec();
        let apply = move |shown: &mut Shown, _| {
            let known = &mut shown.issues.get_mut(&issue).ok_or_else(|| gone("issue"))?.labels;
            known.extend(labels);
            known.sort();
            known.dedup();
            Ok(())
        };
        self.send("forge.add_labels", &Write::Labels { issue }, apply).await?
    }

    async fn remove_label(&self, _repo: &Repo, issue: u64, label: &str) -> F<()> {
        let label = label.to_owned();
        let apply = move |shown: &mut Shown, _| {
            shown.issues.get_mut(&issue).ok_or_else(|| gone("issue"))?.labels.retain(|known| *known != label);
            Ok(())
        };
        self.send("forge.remove_label", &Write::Labels { issue }, apply).await?
    }
}

#[async_trait]
impl RefPush for SimForge {
    async fn push(&self, to: &PushTarget, expect: Option<CommitId>, new: CommitId) -> Result<Pushed, PushError> {
        let branch = to.branch.as_str().to_owned();
        let apply = move |shown: &mut Shown, _| {
            let found = shown.branches.get(&branch).copied();
            if found == Some(new) {
                return Pushed::AlreadyThere;
            }
            if found != expect {
                return Pushed::Conflict { found };
            }
            shown.branches.insert(branch, new);
            Pushed::Moved
        };
        let write = Write::Push { branch: to.branch.as_str(), commit: new };
        self.send("forge.push", &write, apply).await.map_err(|error| match error {
            ForgeError::NoAnswer(cause) => PushError::NoAnswer(cause),
            other => PushError::Unavailable(other.into()),
        })
    }

    async fn remote_tip(&self, to: &PushTarget) -> Result<Option<CommitId>, PushError> {
        let tip = |shown: &Shown| shown.branches.get(to.branch.as_str()).copied();
        self.read("forge.remote_tip", |shown, _| Ok(tip(shown)))
            .await
            .map_err(|error| PushError::Unavailable(error.into()))
    }
}
