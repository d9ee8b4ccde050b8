//! The forge's state and what a test or a demo does to it from outside of HTTP, as people do on the forge's pages.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use camino::{Utf8Path, Utf8PathBuf};
use fettle_domain::repo::RepoName;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;

use super::access::{AppKey, PatAccess, Secret};
use super::fault::Fault;
use super::git::{self, RefUpdate};
use super::hook::Hook;
use super::model::{Comment, Issue, IssueEvent, PullState, Repository, Role, User};
use super::server::Recorded;

/// The App as GitHub knows it: its public half.
pub struct AppOptions {
    pub id: u64,
    /// `fettle` acts as `fettle[bot]`.
    pub slug: String,
    pub installation: u64,
    pub public_key: AppKey,
    /// GitHub gives one hour.
    pub token_life: Duration,
    /// Whether whoever installed it lets it write to contents; else it reads them.
    pub writes_contents: bool,
}

impl AppOptions {
    pub fn new(public_key: AppKey) -> Self {
        let token_life = Duration::from_secs(3600);
        Self { id: 4711, slug: "fettle".to_owned(), installation: 815, public_key, token_life, writes_contents: true }
    }
}

/// All of a forge but its socket.
pub struct Forge {
    pub(super) url: String,
    pub(super) folder: Utf8PathBuf,
    pub(super) app: Option<AppOptions>,
    pub(super) inner: Mutex<Inner>,
    /// Bumped after each request and each change.
    changes: watch::Sender<u64>,
    /// Sends webhooks; made once, because making it reads the system's certificates.
    pub(super) deliveries: OnceLock<reqwest::Result<reqwest::Client>>,
}

pub(super) struct Inner {
    pub(super) next_id: u64,
    pub(super) users: BTreeMap<String, User>,
    pub(super) repositories: Vec<Repository>,
    pub(super) secrets: BTreeMap<String, Secret>,
    pub(super) faults: Vec<Fault>,
    pub(super) requests: Vec<Recorded>,
    pub(super) ref_updates: Vec<RefUpdate>,
    pub(super) lag: Duration,
    /// The App's webhook.
    pub(super) hook: Option<Hook>,
}

impl Forge {
    /// `url` is where the forge will be served. `folder` gets the bare repositories.
    pub fn new(url: String, folder: Utf8PathBuf, app: Option<AppOptions>) -> anyhow::Result<Self> {
        fs_err::create_dir_all(folder.join("repositories"))?;
        let mut inner = Inner {
            next_id: 1000,
            users: BTreeMap::new(),
            repositories: Vec::new(),
            secrets: BTreeMap::new(),
            faults: Vec::new(),
            requests: Vec::new(),
            ref_updates: Vec::new(),
            lag: Duration::ZERO,
            hook: None,
        };
        if let Some(app) = &app {
            inner.user(&format!("{}[bot]", app.slug));
        }
        Ok(Self {
            url,
            folder,
            app,
            inner: Mutex::new(inner),
            changes: watch::Sender::new(0),
            deliveries: OnceLock::new(),
        })
    }

    /// Base URL of the REST API and of clone URLs. Below `/api/v3` the API answers too, as on GitHub Enterprise Server.
    pub fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder of the forge's state panics")
    }

    pub(super) fn changed(&self) {
        self.changes.send_modify(|n| *n += 1);
    }

    /// Waits until `holds`, looking after every request and change. Fails after `limit` with `what`.
    pub async fn until(&self, what: &str, limit: Duration, holds: impl Fn(&Self) -> bool) -> anyhow::Result<()> {
        let mut changes = self.changes.subscribe();
        let waiting = async {
            while !holds(self) {
                if changes.changed().await.is_err() {
                    break;
                }
            }
        };
        tokio::time::timeout(limit, waiting).await.with_context(|| format!("while waiting until {what}"))
    }

    /// What the forge's clock shows, in whole seconds.
    pub fn clock(&self) -> Timestamp {
        now()
    }

    // Repositories

    /// A public repository whose `main` has one commit with these files; contents that start with `#!` are executable.
    pub async fn create_repository(&self, name: &str, files: &[(&str, &str)]) -> anyhow::Result<RepoName> {
        let name: RepoName = name.parse()?;
        git::create(&self.bare(&name)).await?;
        git::commit(&self.bare(&name), "main", None, files, "Initial commit").await?;
        self.register(&name, "main".to_owned());
        Ok(name)
    }

    /// A public repository with the branches and tags of the one at `path`; its HEAD names the default branch.
    pub async fn import_repository(&self, name: &str, path: &Utf8Path) -> anyhow::Result<RepoName> {
        let name: RepoName = name.parse()?;
        git::create(&self.bare(&name)).await?;
        let branch = git::import(path, &self.bare(&name)).await?;
        self.register(&name, branch);
        Ok(name)
    }

    fn register(&self, name: &RepoName, default_branch: String) {
        let mut inner = self.lock();
        inner.user(name.owner());
        let id = inner.id();
        inner.repositories.push(Repository {
            id,
            name: name.clone(),
            former: Vec::new(),
            private: false,
            default_branch,
            roles: BTreeMap::from([(name.owner().to_owned(), Role::Admin)]),
            issues: BTreeMap::new(),
            labels: BTreeMap::new(),
            created_at: now(),
        });
    }

    pub fn set_private(&self, repo: &RepoName, private: bool) {
        self.with(repo, |repository, _| repository.private = private);
    }

    /// Calls under the old name are sent on, as on GitHub.
    pub fn rename(&self, repo: &RepoName, to: &str) -> anyhow::Result<RepoName> {
        let to: RepoName = to.parse()?;
        let new = self.bare(&to);
        fs_err::create_dir_all(new.parent().context("a folder for the owner")?)?;
        fs_err::rename(self.bare(repo), new)?;
        self.with(repo, |repository, inner| {
            inner.user(to.owner());
            repository.former.push(std::mem::replace(&mut repository.name, to.clone()));
        });
        Ok(to)
    }

    /// The forge's numeric id.
    pub fn repository_id(&self, repo: &RepoName) -> u64 {
        self.with(repo, |repository, _| repository.id)
    }

    pub fn clone_url(&self, repo: &RepoName) -> String {
        format!("{}/{repo}.git", self.url)
    }

    /// The bare repository on disk.
    pub fn bare(&self, repo: &RepoName) -> Utf8PathBuf {
        self.folder.join("repositories").join(repo.owner()).join(format!("{}.git", repo.name()))
    }

    /// One more commit on top of `branch`, made by a person; a new branch starts at the default branch.
    pub async fn commit(&self, repo: &RepoName, branch: &str, files: &[(&str, &str)]) -> anyhow::Result<String> {
        let parent = match self.tip(repo, branch).await? {
            Some(tip) => Some(tip),
            None => self.tip(repo, &self.with(repo, |repository, _| repository.default_branch.clone())).await?,
        };
        let commit = git::commit(&self.bare(repo), branch, parent.as_deref(), files, "A person's change").await?;
        self.moved(repo, &format!("refs/heads/{branch}"), &commit);
        Ok(commit)
    }

    /// Where a branch is; `None`: it does not exist.
    pub async fn tip(&self, repo: &RepoName, branch: &str) -> anyhow::Result<Option<String>> {
        git::resolve(&self.bare(repo), &format!("refs/heads/{branch}")).await
    }

    /// What `git <arguments>` prints in the bare repository.
    pub async fn git(&self, repo: &RepoName, arguments: &[&str]) -> anyhow::Result<String> {
        git::run(&self.bare(repo), arguments, &[]).await
    }

    /// Open pull requests follow their head branch.
    pub(super) fn moved(&self, repo: &RepoName, full_ref: &str, commit: &str) {
        self.with(repo, |repository, _| {
            for issue in repository.issues.values_mut().filter(|issue| issue.open) {
                if let Some(pull) = &mut issue.pull
                    && full_ref == format!("refs/heads/{}", pull.head)
                {
                    commit.clone_into(&mut pull.head_sha);
                    issue.updated_at = now();
                }
            }
        });
        self.changed();
    }

    // People and their credentials

    /// A login that ends in `[bot]` is a bot. Gives the user's id.
    pub fn add_user(&self, login: &str) -> u64 {
        self.lock().user(login).id
    }

    pub fn set_role(&self, repo: &RepoName, login: &str, role: Option<Role>) {
        self.add_user(login);
        self.with(repo, |repository, _| match role {
            Some(role) => repository.roles.insert(login.to_owned(), role),
            None => repository.roles.remove(login),
        });
    }

    /// A personal access token, for every repository.
    pub fn add_token(&self, login: &str, access: PatAccess) -> String {
        let mut inner = self.lock();
        inner.user(login);
        let id = inner.id();
        let token = format!("github_pat_{id}{login}");
        inner.secrets.insert(token.clone(), Secret::pat(login, access));
        token
    }

    /// The token is no longer taken.
    pub fn revoke_token(&self, token: &str) {
        self.lock().secrets.remove(token);
    }

    // Issues

    /// Gives the new issue's number.
    pub fn create_issue(&self, repo: &RepoName, author: &str, title: &str, body: &str) -> u64 {
        self.add_user(author);
        let number = self.with(repo, |repository, inner| {
            let issue = Issue::new(repository, inner, author, title, body);
            let number = issue.number;
            repository.issues.insert(number, issue);
            number
        });
        self.changed();
        number
    }

    /// Gives the comment's id.
    pub fn comment(&self, repo: &RepoName, issue: u64, author: &str, body: &str) -> u64 {
        self.add_user(author);
        self.with_issue(repo, issue, |issue, inner| issue.comment(inner, author, body).id)
    }

    pub fn edit_comment(&self, repo: &RepoName, issue: u64, comment: u64, body: &str) {
        self.with_issue(repo, issue, |issue, _| {
            let found = issue.comments.iter_mut().find(|c| c.id == comment).expect("the comment exists");
            found.edit(body);
        });
    }

    pub fn delete_comment(&self, repo: &RepoName, issue: u64, comment: u64) {
        self.with_issue(repo, issue, |issue, _| issue.comments.retain(|c| c.id != comment));
    }

    pub fn edit_issue(&self, repo: &RepoName, issue: u64, title: &str, body: &str) {
        self.with_issue(repo, issue, |issue, _| {
            title.clone_into(&mut issue.title);
            body.clone_into(&mut issue.body);
            issue.updated_at = now();
        });
    }

    /// Sets the label as `by`; gives the `labeled` event's id. Setting it again makes no event, as on GitHub.
    pub fn label(&self, repo: &RepoName, issue: u64, label: &str, by: &str) -> u64 {
        self.add_user(by);
        self.with(repo, |repository, inner| {
            repository.label_id(inner, label);
            let issue = repository.issues.get_mut(&issue).expect("the issue exists");
            issue.label(inner, label, by);
            let set = issue.events.iter().rev().find(|e| e.kind == "labeled" && e.label.as_deref() == Some(label));
            set.expect("a label that is set has its event").id
        })
    }

    pub fn unlabel(&self, repo: &RepoName, issue: u64, label: &str, by: &str) {
        self.with_issue(repo, issue, |issue, inner| {
            issue.unlabel(inner, label, by);
        });
    }

    pub fn set_open(&self, repo: &RepoName, issue: u64, open: bool, by: &str) {
        self.with_issue(repo, issue, |issue, inner| {
            issue.open = open;
            issue.event(inner, if open { "reopened" } else { "closed" }, by, None);
        });
    }

    pub fn set_locked(&self, repo: &RepoName, issue: u64, locked: bool) {
        self.with_issue(repo, issue, |issue, _| issue.locked = locked);
    }

    pub fn set_pull_state(&self, repo: &RepoName, number: u64, state: PullState) {
        self.with_issue(repo, number, |issue, _| {
            issue.open = state == PullState::Open;
            let pull = issue.pull.as_mut().expect("the issue is a pull request");
            pull.merged_at = (state == PullState::Merged).then(now);
        });
    }

    /// As it is now, with its comments, events and pull request.
    pub fn issue(&self, repo: &RepoName, number: u64) -> Option<Issue> {
        self.with(repo, |repository, _| repository.issues.get(&number).cloned())
    }

    /// Every issue that is a pull request, whatever its state, lowest number first.
    pub fn pulls(&self, repo: &RepoName) -> Vec<Issue> {
        self.with(repo, |repository, _| repository.issues.values().filter(|i| i.pull.is_some()).cloned().collect())
    }

    // What was seen, and what goes wrong

    /// In the order of their arrival.
    pub fn requests(&self) -> Vec<Recorded> {
        self.lock().requests.clone()
    }

    /// Refs moved by pushes, in order.
    pub fn ref_updates(&self) -> Vec<RefUpdate> {
        self.lock().ref_updates.clone()
    }

    pub fn forget_requests(&self) {
        self.lock().requests.clear();
    }

    pub fn inject(&self, fault: Fault) {
        self.lock().faults.push(fault);
    }

    /// Faults that have not yet happened as often as wanted.
    pub fn faults_left(&self) -> usize {
        self.lock().faults.iter().filter(|fault| !fault.is_spent()).count()
    }

    /// For how long lists do not show what was just written. What was written before keeps its own time.
    pub fn set_read_lag(&self, lag: Duration) {
        self.lock().lag = lag;
    }

    /// Panics when the forge has no such repository: the caller made it.
    pub(super) fn with<R>(&self, repo: &RepoName, act: impl FnOnce(&mut Repository, &mut Inner) -> R) -> R {
        let mut inner = self.lock();
        let at = inner.find(repo.owner(), repo.name()).expect("the repository exists");
        inner.with(at, act)
    }

    pub(super) fn with_issue<R>(
        &self,
        repo: &RepoName,
        issue: u64,
        act: impl FnOnce(&mut Issue, &mut Inner) -> R,
    ) -> R {
        let result = self
            .with(repo, |repository, inner| act(repository.issues.get_mut(&issue).expect("the issue exists"), inner));
        self.changed();
        result
    }
}

impl Inner {
    pub(super) fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub(super) fn user(&mut self, login: &str) -> &User {
        if !self.users.contains_key(login) {
            let user =
                User { id: self.id(), login: login.to_owned(), bot: login.ends_with("[bot]"), created_at: now() };
            self.users.insert(login.to_owned(), user);
        }
        &self.users[login]
    }

    /// Names are compared without regard to case, as on GitHub.
    pub(super) fn find(&self, owner: &str, name: &str) -> Option<usize> {
        self.repositories.iter().position(|repository| {
            repository.name.owner().eq_ignore_ascii_case(owner) && repository.name.name().eq_ignore_ascii_case(name)
        })
    }

    /// The id of the repository that had this name.
    pub(super) fn find_former(&self, owner: &str, name: &str) -> Option<u64> {
        let same =
            |former: &RepoName| former.owner().eq_ignore_ascii_case(owner) && former.name().eq_ignore_ascii_case(name);
        self.repositories.iter().find(|repository| repository.former.iter().any(same)).map(|repository| repository.id)
    }

    /// Both a repository and the rest, to be changed together.
    pub(super) fn with<R>(&mut self, at: usize, act: impl FnOnce(&mut Repository, &mut Inner) -> R) -> R {
        let mut repository = self.repositories.remove(at);
        let result = act(&mut repository, self);
        self.repositories.insert(at, repository);
        result
    }

    pub(super) fn visible_at(&self) -> Instant {
        Instant::now() + self.lag
    }
}

impl Repository {
    pub(super) fn label_id(&mut self, inner: &mut Inner, label: &str) -> u64 {
        *self.labels.entry(label.to_owned()).or_insert_with(|| inner.id())
    }

    pub(super) fn next_number(&self) -> u64 {
        self.issues.last_key_value().map_or(1, |(number, _)| number + 1)
    }
}

impl Issue {
    pub(super) fn new(repository: &Repository, inner: &mut Inner, author: &str, title: &str, body: &str) -> Self {
        Self {
            id: inner.id(),
            number: repository.next_number(),
            title: title.to_owned(),
            body: body.to_owned(),
            author: author.to_owned(),
            labels: BTreeSet::new(),
            open: true,
            locked: false,
            comments: Vec::new(),
            events: Vec::new(),
            pull: None,
            created_at: now(),
            updated_at: now(),
            visible_at: inner.visible_at(),
        }
    }

    pub(super) fn comment(&mut self, inner: &mut Inner, author: &str, body: &str) -> &Comment {
        self.updated_at = now();
        self.comments.push(Comment {
            id: inner.id(),
            author: author.to_owned(),
            body: body.to_owned(),
            created_at: now(),
            updated_at: now(),
            edits: 0,
            visible_at: inner.visible_at(),
        });
        self.comments.last().expect("just pushed")
    }

    pub(super) fn label(&mut self, inner: &mut Inner, label: &str, by: &str) {
        if self.labels.insert(label.to_owned()) {
            self.event(inner, "labeled", by, Some(label));
        }
    }

    /// Whether it was set.
    pub(super) fn unlabel(&mut self, inner: &mut Inner, label: &str, by: &str) -> bool {
        let was = self.labels.remove(label);
        if was {
            self.event(inner, "unlabeled", by, Some(label));
        }
        was
    }

    pub(super) fn event(&mut self, inner: &mut Inner, kind: &'static str, by: &str, label: Option<&str>) {
        self.updated_at = now();
        self.events.push(IssueEvent {
            id: inner.id(),
            kind,
            actor: by.to_owned(),
            label: label.map(str::to_owned),
            at: now(),
            visible_at: inner.visible_at(),
        });
    }
}

impl Comment {
    pub(super) fn edit(&mut self, body: &str) {
        body.clone_into(&mut self.body);
        self.edits += 1;
        self.updated_at = now();
    }
}

/// The forge is another machine with a clock of its own, and GitHub's runs in whole seconds.
#[expect(clippy::disallowed_methods, reason = "another machine's clock, not the tested program's")]
pub(super) fn now() -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second()).expect("the present is a timestamp")
}
