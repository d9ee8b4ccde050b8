//! What intake asks.

use std::sync::Arc;

use async_trait::async_trait;
use fettle_app::ports::forge::{F, ForgeError, ForgeReader, Issue, IssueComment, LabeledEvent, Permission};
use fettle_domain::repo::{Repo, RepoName};
use secrecy::SecretString;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::access::Purpose;
use crate::exchange::{Answer, Call, PER_PAGE, route};
use crate::wire::{AppWire, CommentWire, EventWire, IssueWire, PermissionWire, RepoWire, UserWire, not_a_repository};
use crate::{GitHub, MAX_CACHED_PERMISSIONS, PERMISSION_TTL};

/// The newest comments that a reader gets.
const MAX_COMMENTS: usize = 200;
/// GitHub takes at most 2,500 comments per issue; twice that, so that a list is never cut in silence.
pub(crate) const MAX_PAGES: u32 = 50;

#[async_trait]
impl ForgeReader for GitHub {
    async fn repository(&self, name: &RepoName) -> F<Repo> {
        let (installation, client) = self.introduce(name).await?;
        let call = Call::read(route(&["repos", name.owner(), name.name()]), format!("repository {name}"));
        let found: RepoWire = self.exchange(&client, &call).await?.parse()?;
        found.into_repo(installation).map_err(not_a_repository)
    }

    async fn issue(&self, repo: &Repo, number: u64) -> F<Issue> {
        let call = Call::read(in_repo(repo, &["issues", &number.to_string()]), format!("issue {number}"));
        Ok(self.ask(repo, Purpose::Read, &call).await?.parse::<IssueWire>()?.into())
    }

    async fn comments(&self, repo: &Repo, issue: u64) -> F<Vec<IssueComment>> {
        let list = List::of_issue(repo, issue, "comments");
        let mut newest_first: Vec<CommentWire> = Vec::new();
        let mut pages = self.newest_page(&list).await?;
        loop {
            newest_first.extend(pages.items.into_iter().rev());
            if newest_first.len() >= MAX_COMMENTS || pages.number == 1 {
                break;
            }
            pages = self.page(&list, pages.number - 1).await?;
        }
        newest_first.truncate(MAX_COMMENTS);
        Ok(newest_first.into_iter().rev().map(IssueComment::from).collect())
    }

    async fn labeled(&self, repo: &Repo, issue: u64, label: &str) -> F<Option<LabeledEvent>> {
        let list = List::of_issue(repo, issue, "events");
        let mut page = self.newest_page::<EventWire>(&list).await?;
        loop {
            let found = page.items.into_iter().filter_map(|event| event.labeled(label)).max_by_key(|e| (e.at, e.id));
            if found.is_some() || page.number == 1 {
                return Ok(found);
            }
            page = self.page(&list, page.number - 1).await?;
        }
    }

    async fn permission(&self, repo: &Repo, login: &str) -> F<Permission> {
        let key = (repo.forge_id, login.to_ascii_lowercase());
        if let Some(known) = self.known_permission(&key) {
            return Ok(known);
        }
        let path = in_repo(repo, &["collaborators", login, "permission"]);
        let asked_at = Instant::now();
        let permission = match self.ask(repo, Purpose::Read, &Call::read(path, format!("user {login}"))).await {
            Ok(answer) => answer.parse::<PermissionWire>()?.into(),
            // An account that is gone, or a bot, which cannot be a collaborator: an answer, and not worth a retry.
            Err(ForgeError::NotFound(_)) => Permission::None,
            Err(other) => return Err(other),
        };
        let mut cache = self.permissions.lock().expect("no holder of the permission cache panics");
        cache.retain(|_, (_, since)| since.elapsed() < PERMISSION_TTL);
        if cache.len() >= MAX_CACHED_PERMISSIONS {
            cache.clear();
        }
        cache.insert(key, (permission, asked_at));
        Ok(permission)
    }

    async fn read_token(&self, repo: &Repo) -> F<Option<SecretString>> {
        self.token(repo, Purpose::Checkout).await
    }

    async fn own_login(&self) -> F<String> {
        if let Some(known) = &*self.own_login.now() {
            return Ok(known.clone());
        }
        let access = self.access.now();
        let me = self.who_am_i().await?;
        let login = match self.is_app() {
            true => format!("{}[bot]", me.parse::<AppWire>()?.slug),
            false => me.parse::<UserWire>()?.login,
        };
        // Not for whoever comes with other tokens since.
        if Arc::ptr_eq(&access, &self.access.now()) {
            self.own_login.set(Some(login.clone()));
        }
        Ok(login)
    }
}

impl GitHub {
    fn known_permission(&self, key: &(u64, String)) -> Option<Permission> {
        let cache = self.permissions.lock().expect("no holder of the permission cache panics");
        cache.get(key).filter(|(_, since)| since.elapsed() < PERMISSION_TTL).map(|(permission, _)| *permission)
    }

    /// Lists run oldest first, so the newest items are at the end.
    async fn newest_page<T: DeserializeOwned>(&self, list: &List<'_>) -> F<Page<T>> {
        let first = self.page(list, 1).await?;
        match first.last {
            Some(last) if last > MAX_PAGES => Err(too_long(list)),
            Some(last) if last > 1 => self.page(list, last).await,
            _ => Ok(first),
        }
    }

    pub(crate) async fn every_page<T: DeserializeOwned>(&self, list: &List<'_>) -> F<Vec<T>> {
        let mut items = Vec::new();
        for number in 1..=MAX_PAGES {
            let page = self.page(list, number).await?;
            items.extend(page.items);
            if page.last.is_none_or(|last| last <= number) {
                return Ok(items);
            }
        }
        Err(too_long(list))
    }

    async fn page<T: DeserializeOwned>(&self, list: &List<'_>, number: u32) -> F<Page<T>> {
        let (size, page) = (PER_PAGE.to_string(), number.to_string());
        let mut query = list.query.to_vec();
        query.extend([("per_page", size.as_str()), ("page", page.as_str())]);
        let call = Call::read(list.path.clone(), list.subject.clone()).query(&query);
        let answer: Answer = self.ask(list.repo, Purpose::Read, &call).await?;
        Ok(Page { number, last: answer.last_page(), items: answer.parse()? })
    }
}

/// A list that GitHub gives in pages.
pub(crate) struct List<'a> {
    repo: &'a Repo,
    path: String,
    query: &'a [(&'a str, &'a str)],
    subject: String,
}

impl<'a> List<'a> {
    /// The issue's `comments` or `events`.
    pub(crate) fn of_issue(repo: &'a Repo, issue: u64, what: &str) -> Self {
        let path = in_repo(repo, &["issues", &issue.to_string(), what]);
        Self { repo, path, query: &[], subject: format!("issue {issue}") }
    }

    pub(crate) fn of_pulls(repo: &'a Repo, query: &'a [(&'a str, &'a str)]) -> Self {
        Self { repo, path: in_repo(repo, &["pulls"]), query, subject: format!("repository {}", repo.name) }
    }
}

struct Page<T> {
    number: u32,
    /// Absent on the last page.
    last: Option<u32>,
    items: Vec<T>,
}

fn too_long(list: &List<'_>) -> ForgeError {
    ForgeError::Refused(format!("{} has a list of more than {MAX_PAGES} pages", list.subject))
}

/// A path below the repository.
pub(crate) fn in_repo(repo: &Repo, rest: &[&str]) -> String {
    let mut segments = vec!["repos", repo.name.owner(), repo.name.name()];
    segments.extend(rest);
    route(&segments)
}
