//! What is looked for without having been told: repositories, issues that changed, deliveries that failed.

use async_trait::async_trait;
use fettle_app::ports::forge::{Changed, F, ForgeError, ForgeWatch, HookLog, Reach};
use fettle_domain::incoming::IssueState;
use fettle_domain::missed::Attempt;
use fettle_domain::repo::Repo;
use http::Method;
use jiff::Timestamp;
use octocrab::Octocrab;
use serde::de::DeserializeOwned;

use crate::GitHub;
use crate::access::Purpose;
use crate::exchange::{Answer, Call, PER_PAGE, route};
use crate::reader::{MAX_PAGES, in_repo};
use crate::wire::{AttemptWire, InstallationWire, IssueWire, ListedBody, ListedWire, not_a_repository};

/// Of one look: a thousand issues that changed since the last one. The next look takes the rest.
const MAX_ISSUE_PAGES: u32 = 10;
/// Three thousand attempts are looked through at most; an App that is subscribed to more than Fettle needs has many.
const MAX_ATTEMPT_PAGES: u32 = 30;

#[async_trait]
impl ForgeWatch for GitHub {
    async fn reachable(&self, max: usize) -> F<Reach> {
        let repositories = match self.as_app() {
            Some(app) => self.installed(app, max).await?,
            None => self.writable(max).await?,
        };
        let more = repositories.len() > max;
        Ok(Reach { repositories: repositories.into_iter().take(max).collect(), more })
    }

    async fn changed_issues(&self, repo: &Repo, label: &str, since: Timestamp, seen: Option<&str>) -> F<Changed> {
        let since = since.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let mut issues: Vec<IssueState> = Vec::new();
        let (mut first, mut cut) = (None, false);
        for number in 1..=MAX_ISSUE_PAGES {
            let (size, page) = (PER_PAGE.to_string(), number.to_string());
            let query = [
                ("state", "open"),
                ("labels", label),
                ("since", since.as_str()),
                ("sort", "updated"),
                ("direction", "asc"),
                ("per_page", size.as_str()),
                ("page", page.as_str()),
            ];
            let call = Call::read(in_repo(repo, &["issues"]), format!("repository {}", repo.name)).query(&query);
            let call = call.that_can_wait();
            let answer = self.ask(repo, Purpose::Read, &call.unless(seen.filter(|_| number == 1))).await?;
            if answer.unchanged {
                return Ok(Changed::Nothing);
            }
            issues.extend(answer.parse::<Vec<IssueWire>>()?.into_iter().map(IssueState::from));
            cut = answer.last_page().is_some_and(|last| last > number);
            // What changes while the pages are read belongs to the next look.
            first.get_or_insert(answer);
            if !cut {
                break;
            }
        }
        let first = first.ok_or_else(|| ForgeError::Refused("a list without a page".to_owned()))?;
        Ok(Changed::Issues { issues, cut, tag: first.tag(), at: dated(&first)? })
    }

    async fn hook_attempts(&self, since: Option<Timestamp>) -> F<HookLog> {
        let app = self.app()?;
        let size = PER_PAGE.to_string();
        let mut attempts: Vec<(String, Attempt)> = Vec::new();
        let (mut at, mut cursor): (Option<Timestamp>, Option<String>) = (None, None);
        for _ in 0..MAX_ATTEMPT_PAGES {
            let mut query = vec![("per_page", size.as_str())];
            query.extend(cursor.as_deref().map(|cursor| ("cursor", cursor)));
            let call = Call::read(route(&["app", "hook", "deliveries"]), "list of deliveries").query(&query);
            let answer = self.exchange(app, &call).await?;
            at = at.or(Some(dated(&answer)?));
            let page: Vec<AttemptWire> = answer.parse()?;
            let reached = page.last().is_none_or(|oldest| since.is_some_and(|since| oldest.delivered_at < since));
            attempts.extend(page.into_iter().map(<(String, Attempt)>::from));
            cursor = answer.next_cursor();
            if reached || cursor.is_none() {
                break;
            }
        }
        let at = at.ok_or_else(|| ForgeError::Refused("a list without a page".to_owned()))?;
        Ok(HookLog { attempts, at })
    }

    async fn redeliver(&self, attempt: u64) -> F<()> {
        let path = route(&["app", "hook", "deliveries", &attempt.to_string(), "attempts"]);
        let call = Call::preparing(Method::POST, path, format!("delivery {attempt}"));
        Ok(self.exchange(self.app()?, &call).await.map(drop)?)
    }
}

impl GitHub {
    fn app(&self) -> F<&Octocrab> {
        self.as_app().ok_or_else(|| ForgeError::Denied("only a GitHub App has a list of deliveries".to_owned()))
    }

    /// All that the App was installed on, a few more than `max` at most.
    async fn installed(&self, app: &Octocrab, max: usize) -> F<Vec<Repo>> {
        let listed = Call::read(route(&["app", "installations"]), "list of installations");
        let installations: Vec<InstallationWire> = self.pages(app, &listed, |page| page, usize::MAX).await?;
        let mut found = Vec::new();
        for installation in installations.into_iter().filter(InstallationWire::is_active) {
            let client = match self.as_installation(installation.id).await {
                Ok(client) => client,
                // Taken away since it was listed.
                Err(ForgeError::NotFound(_) | ForgeError::Denied(_)) => continue,
                Err(other) => return Err(other),
            };
            let listed = Call::read(route(&["installation", "repositories"]), "list of repositories");
            let all = self.pages(&client, &listed, |body: ListedBody| body.repositories, max - found.len()).await?;
            found.extend(at_work(all, Some(installation.id))?);
            if found.len() > max {
                break;
            }
        }
        Ok(found)
    }

    /// All that the token may push to.
    async fn writable(&self, max: usize) -> F<Vec<Repo>> {
        let listed = Call::read(route(&["user", "repos"]), "list of repositories");
        let all: Vec<ListedWire> = self.pages(&self.as_writer()?, &listed, |page| page, usize::MAX).await?;
        let found = at_work(all.into_iter().filter(ListedWire::can_push).collect(), None)?;
        Ok(found.into_iter().take(max + 1).collect())
    }

    /// Every page of a list, until there is more than `enough`.
    async fn pages<T: DeserializeOwned, I>(
        &self,
        client: &Octocrab,
        list: &Call,
        items: impl Fn(T) -> Vec<I>,
        enough: usize,
    ) -> F<Vec<I>> {
        let size = PER_PAGE.to_string();
        let mut found = Vec::new();
        for number in 1..=MAX_PAGES {
            let page = number.to_string();
            let call = list.clone().query(&[("per_page", size.as_str()), ("page", page.as_str())]);
            let answer = self.exchange(client, &call).await?;
            found.extend(items(answer.parse()?));
            if found.len() > enough || answer.last_page().is_none_or(|last| last <= number) {
                break;
            }
        }
        Ok(found)
    }
}

fn at_work(all: Vec<ListedWire>, installation: Option<u64>) -> F<Vec<Repo>> {
    let work = all.into_iter().filter(ListedWire::is_at_work);
    work.map(|listed| listed.repo.into_repo(installation).map_err(not_a_repository)).collect()
}

/// Our own clock may be wrong, so an answer without the forge's is none.
fn dated(answer: &Answer) -> F<Timestamp> {
    answer.date().ok_or_else(|| ForgeError::Refused("an answer without a date".to_owned()))
}
