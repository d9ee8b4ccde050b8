//! The REST API: which call does what, to whom it is allowed, and in which words it is refused.

use std::collections::BTreeMap;

use http::{HeaderValue, Response, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::access::{Caller, Credential, Need, Secret};
use super::git;
use super::hook::HookAttempt;
use super::json::{Links, permissions};
use super::model::{Issue, Pull, Repository};
use super::refusal::Refusal;
use super::server::{Body, bytes_body, json_response};
use super::state::{Forge, Inner, now};

/// GitHub's default and maximum.
const DEFAULT_PER_PAGE: usize = 30;
const MAX_PER_PAGE: usize = 100;
/// GitHub's limit for bodies of issues, comments and pull requests, in characters.
const MAX_TEXT: usize = 65_536;

type Reply = Result<Response<Body>, Refusal>;

pub(super) struct RestRequest {
    method: String,
    segments: Vec<String>,
    path: String,
    query: BTreeMap<String, String>,
    body: Option<Value>,
}

impl RestRequest {
    pub(super) fn new(method: &str, path: &str, query: &str, body: Option<Value>) -> Self {
        // Percent-encoding in a path is form encoding without the `+`.
        let decode = |text: &str| {
            let text = format!("v={}", text.replace('+', "%2B"));
            url::form_urlencoded::parse(text.as_bytes()).next().map(|(_, v)| v.into_owned()).unwrap_or_default()
        };
        Self {
            method: method.to_owned(),
            segments: path.split('/').skip(1).map(decode).collect(),
            path: path.to_owned(),
            query: url::form_urlencoded::parse(query.as_bytes()).into_owned().collect(),
            body,
        }
    }

    fn text(&self, field: &str) -> Option<&str> {
        self.body.as_ref()?.get(field)?.as_str()
    }

    fn number(&self, name: &str, default: usize) -> usize {
        let given = self.query.get(name).and_then(|text| text.parse().ok());
        given.filter(|n| *n > 0).unwrap_or(default)
    }

    fn required(&self, resource: &str, field: &str) -> Result<&str, Refusal> {
        let text = self.text(field).filter(|text| !text.is_empty()).ok_or_else(|| Refusal::missing(resource, field))?;
        if text.chars().count() > MAX_TEXT {
            let words = format!("{field} is too long (maximum is {MAX_TEXT} characters)");
            return Err(Refusal::invalid(json!({ "resource": resource, "code": "custom", "message": words })));
        }
        Ok(text)
    }
}

pub(super) async fn answer(forge: &Forge, caller: &Caller, request: &RestRequest) -> Response<Body> {
    let reply = if caller.credential == Credential::Invalid {
        Err(Refusal::bad_credentials())
    } else {
        dispatch(forge, caller, request).await
    };
    reply.unwrap_or_else(Refusal::into_response)
}

async fn dispatch(forge: &Forge, caller: &Caller, request: &RestRequest) -> Reply {
    let segments: Vec<&str> = request.segments.iter().map(String::as_str).collect();
    match (request.method.as_str(), segments.as_slice()) {
        ("GET", ["app"]) => app(forge, caller),
        ("GET", ["app", "installations"]) => installations(forge, caller, request),
        ("GET", ["installation", "repositories"]) => installed(forge, caller, request),
        ("GET", ["user", "repos"]) => own_repositories(forge, caller, request),
        ("GET", ["app", "hook", "deliveries"]) => hook_deliveries(forge, caller, request),
        ("POST", ["app", "hook", "deliveries", id, "attempts"]) => redeliver(forge, caller, id).await,
        ("POST", ["app", "installations", id, "access_tokens"]) => mint(forge, caller, id, request),
        ("GET", ["user"]) => user(forge, caller),
        ("GET", ["repos", owner, name, "installation"]) => installation(forge, caller, owner, name),
        (method, ["repos", owner, name, rest @ ..]) => {
            if let Some(id) = former(forge, owner, name) {
                return Err(elsewhere(forge, method, id, request));
            }
            RepoCall { forge, caller, request, owner, name }.dispatch(method, rest).await
        }
        (method, ["repositories", id, rest @ ..]) => {
            let name = {
                let inner = forge.lock();
                let found = inner.repositories.iter().find(|repository| repository.id.to_string() == *id);
                found.ok_or_else(Refusal::not_found)?.name.clone()
            };
            RepoCall { forge, caller, request, owner: name.owner(), name: name.name() }.dispatch(method, rest).await
        }
        _ => Err(Refusal::not_found()),
    }
}

/// The id of a repository that has another name by now.
fn former(forge: &Forge, owner: &str, name: &str) -> Option<u64> {
    let inner = forge.lock();
    if inner.find(owner, name).is_some() { None } else { inner.find_former(owner, name) }
}

/// To the same thing below the repository's id; what is not a read keeps its method.
fn elsewhere(forge: &Forge, method: &str, id: u64, request: &RestRequest) -> Refusal {
    let rest: String = request.path.split('/').skip(4).map(|segment| format!("/{segment}")).collect();
    let query = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(&request.query).finish();
    let mark = if query.is_empty() { "" } else { "?" };
    let (status, words) = if method == "GET" { (301, "Moved Permanently") } else { (307, "Temporary Redirect") };
    let location = format!("{}/repositories/{id}{rest}{mark}{query}", forge.url);
    Refusal::new(status, words).with("location", location)
}

fn links(forge: &Forge) -> Links<'_> {
    Links { root: &forge.url }
}

fn app(forge: &Forge, caller: &Caller) -> Reply {
    match (&forge.app, &caller.credential) {
        (Some(app), Credential::App) => Ok(json_response(200, links(forge).app(&mut forge.lock(), app))),
        _ => Err(Refusal::new(401, "A JSON web token could not be decoded")),
    }
}

fn user(forge: &Forge, caller: &Caller) -> Reply {
    let login = match &caller.credential {
        Credential::ReadToken { login } | Credential::WriteToken { login } => login,
        Credential::Installation { .. } => return Err(Refusal::forbidden("Resource not accessible by integration")),
        Credential::Anonymous | Credential::App | Credential::Invalid => return Err(Refusal::requires_authentication()),
    };
    let user = forge.lock().user(login).clone();
    Ok(json_response(200, links(forge).me(&user)))
}

fn installation(forge: &Forge, caller: &Caller, owner: &str, name: &str) -> Reply {
    let (Some(app), Credential::App) = (&forge.app, &caller.credential) else {
        return Err(Refusal::new(401, "A JSON web token could not be decoded"));
    };
    let mut inner = forge.lock();
    let at = inner.find(owner, name).ok_or_else(Refusal::not_found)?;
    Ok(json_response(200, inner.with(at, |repository, inner| links(forge).installation(inner, app, repository))))
}

fn installations(forge: &Forge, caller: &Caller, request: &RestRequest) -> Reply {
    let (Some(app), Credential::App) = (&forge.app, &caller.credential) else {
        return Err(Refusal::new(401, "A JSON web token could not be decoded"));
    };
    let mut inner = forge.lock();
    // One, on whatever repositories there are; whose it is follows from the first.
    let mut all = match inner.repositories.is_empty() {
        true => Vec::new(),
        false => vec![inner.with(0, |repository, inner| links(forge).installation(inner, app, repository))],
    };
    for installation in &mut all {
        // In this list, GitHub describes an account as a user and an enterprise at once.
        for (name, value) in [("name", json!("octo")), ("slug", json!("octo")), ("created_at", json!(now()))] {
            installation["account"][name] = value;
        }
        installation["account"]["updated_at"] = json!(now());
    }
    Ok(page(forge, request, all))
}

fn installed(forge: &Forge, caller: &Caller, request: &RestRequest) -> Reply {
    if !matches!(caller.credential, Credential::Installation { .. }) {
        return Err(Refusal::forbidden(
            "You must authenticate with an installation access token in order to list repositories for an installation.",
        ));
    }
    let all = repositories(forge, |id| caller.covers(id));
    let total = all.len();
    let mut response = page(forge, request, all);
    let shown = response.extensions().get::<Value>().cloned().unwrap_or_default();
    let selection = if caller.covers_all() { "all" } else { "selected" };
    let body = json!({ "total_count": total, "repository_selection": selection, "repositories": shown });
    let links = response.headers_mut().remove(http::header::LINK);
    let mut whole = json_response(200, body);
    if let Some(links) = links {
        whole.headers_mut().insert(http::header::LINK, links);
    }
    Ok(whole)
}

/// Personal access tokens are for every repository; what they may do there is the same everywhere.
fn own_repositories(forge: &Forge, caller: &Caller, request: &RestRequest) -> Reply {
    let push = match &caller.credential {
        Credential::WriteToken { .. } => true,
        Credential::ReadToken { .. } => false,
        Credential::Installation { .. } => return Err(Refusal::forbidden("Resource not accessible by integration")),
        Credential::Anonymous | Credential::App | Credential::Invalid => return Err(Refusal::requires_authentication()),
    };
    let mut all = repositories(forge, |_| true);
    for repository in &mut all {
        repository["permissions"] =
            json!({ "admin": false, "maintain": false, "push": push, "triage": push, "pull": true });
    }
    Ok(page(forge, request, all))
}

fn repositories(forge: &Forge, shown: impl Fn(u64) -> bool) -> Vec<Value> {
    let mut inner = forge.lock();
    let places: Vec<usize> = (0..inner.repositories.len()).filter(|at| shown(inner.repositories[*at].id)).collect();
    let one = |at: usize| inner.with(at, |repository, inner| links(forge).repository(inner, repository));
    places.into_iter().map(one).collect()
}

fn hook_deliveries(forge: &Forge, caller: &Caller, request: &RestRequest) -> Reply {
    if caller.credential != Credential::App {
        return Err(Refusal::new(401, "A JSON web token could not be decoded"));
    }
    let size = request.number("per_page", DEFAULT_PER_PAGE).min(MAX_PER_PAGE);
    let inner = forge.lock();
    let attempts = inner.hook.iter().flat_map(|hook| hook.attempts.iter().rev());
    // The cursor is the newest attempt that was not shown yet.
    let cursor = request.query.get("cursor").and_then(|text| text.parse::<u64>().ok());
    let mut rest = attempts.filter(|attempt| cursor.is_none_or(|cursor| attempt.id <= cursor));
    let shown: Vec<Value> = rest.by_ref().take(size).map(HookAttempt::listed).collect();
    let mut response = json_response(200, Value::Array(shown));
    if let Some(next) = rest.next() {
        let link = format!("<{}{}?per_page={size}&cursor={}>; rel=\"next\"", forge.url, request.path, next.id);
        response.headers_mut().insert(http::header::LINK, HeaderValue::try_from(link).expect("an encoded link"));
    }
    Ok(response)
}

/// Tries once more; GitHub answers before it does.
async fn redeliver(forge: &Forge, caller: &Caller, id: &str) -> Reply {
    if caller.credential != Credential::App {
        return Err(Refusal::new(401, "A JSON web token could not be decoded"));
    }
    let id: u64 = id.parse().map_err(|_| Refusal::not_found())?;
    match forge.send_again(id).await {
        Some(_) => Ok(json_response(202, json!({}))),
        None => Err(Refusal::not_found()),
    }
}

/// A token for some of the repositories and some of the permissions, or all of either.
fn mint(forge: &Forge, caller: &Caller, id: &str, request: &RestRequest) -> Reply {
    let (Some(app), Credential::App) = (&forge.app, &caller.credential) else {
        return Err(Refusal::new(401, "A JSON web token could not be decoded"));
    };
    if id != app.installation.to_string() {
        return Err(Refusal::not_found());
    }
    let mut inner = forge.lock();
    let listed = |field: &str| request.body.as_ref().and_then(|body| body.get(field)?.as_array().cloned());
    let covers = |wanted: &[Value], by: fn(&Repository) -> Value| {
        let ids: Vec<u64> = inner.repositories.iter().filter(|r| wanted.contains(&by(r))).map(|r| r.id).collect();
        if ids.len() == wanted.len() {
            Ok(ids)
        } else {
            Err(Refusal::new(
                422,
                "There is at least one repository that does not exist or is not accessible to the parent installation.",
            ))
        }
    };
    let repositories = match (listed("repository_ids"), listed("repositories")) {
        (Some(ids), _) => Some(covers(&ids, |repository| json!(repository.id))?),
        (None, Some(names)) => Some(covers(&names, |repository| json!(repository.name.name()))?),
        (None, None) => None,
    };
    let mut given = permissions();
    if !app.writes_contents {
        given["contents"] = json!("read");
    }
    let wanted =
        request.body.as_ref().and_then(|body| body.get("permissions").cloned()).unwrap_or_else(|| given.clone());
    let mut wanted: BTreeMap<String, String> =
        serde_json::from_value(wanted).map_err(|_| Refusal::new(422, "Invalid request."))?;
    for (name, level) in &wanted {
        let granted = given[name].as_str() == Some("write") || given[name].as_str() == Some(level);
        if !granted {
            return Err(Refusal::new(422, "The permissions requested are not granted to this installation."));
        }
    }
    wanted.insert("metadata".to_owned(), "read".to_owned());
    let token = format!("ghs_{}", inner.id());
    let expires_at = now() + jiff::SignedDuration::try_from(app.token_life).unwrap_or(jiff::SignedDuration::ZERO);
    let answer = json!({
        "token": token,
        "expires_at": expires_at,
        "permissions": wanted,
        "repository_selection": if repositories.is_some() { "selected" } else { "all" },
    });
    let secret = Secret::installation(format!("{}[bot]", app.slug), repositories, wanted, expires_at);
    inner.secrets.insert(token, secret);
    Ok(json_response(201, answer))
}

/// A call about one repository.
struct RepoCall<'a> {
    forge: &'a Forge,
    caller: &'a Caller,
    request: &'a RestRequest,
    owner: &'a str,
    name: &'a str,
}

const METADATA: Need = Need { permission: "metadata", write: false };
const CONTENTS: Need = Need { permission: "contents", write: false };
const WRITE_CONTENTS: Need = Need { permission: "contents", write: true };
const READ_ISSUES: Need = Need { permission: "issues", write: false };
const WRITE_ISSUES: Need = Need { permission: "issues", write: true };
const READ_PULLS: Need = Need { permission: "pull_requests", write: false };
const WRITE_PULLS: Need = Need { permission: "pull_requests", write: true };

impl RepoCall<'_> {
    /// Runs `act` on the repository, if the caller may.
    fn with<R>(
        &self,
        need: Need,
        act: impl FnOnce(&mut Repository, &mut Inner) -> Result<R, Refusal>,
    ) -> Result<R, Refusal> {
        let mut inner = self.forge.lock();
        let at = inner.find(self.owner, self.name).ok_or_else(Refusal::not_found)?;
        let (id, private) = (inner.repositories[at].id, inner.repositories[at].private);
        self.caller.may(id, private, need)?;
        inner.with(at, act)
    }

    fn with_issue<R>(
        &self,
        need: Need,
        number: &str,
        act: impl FnOnce(&mut Repository, &mut Issue, &mut Inner) -> Result<R, Refusal>,
    ) -> Result<R, Refusal> {
        self.with(need, |repository, inner| {
            let number: u64 = number.parse().map_err(|_| Refusal::not_found())?;
            let mut issue = repository.issues.remove(&number).ok_or_else(Refusal::not_found)?;
            let result = act(repository, &mut issue, inner);
            repository.issues.insert(number, issue);
            result
        })
    }

    async fn dispatch(&self, method: &str, rest: &[&str]) -> Reply {
        match (method, rest) {
            ("POST", ["pulls"]) => self.open_pull().await,
            ("POST", ["git", "refs"]) => self.make_ref(),
            ("GET", ["git", "ref", kind, branch @ ..]) => self.git_ref(kind, &branch.join("/")).await,
            _ => self.plain(method, rest),
        }
    }

    fn plain(&self, method: &str, rest: &[&str]) -> Reply {
        let links = links(self.forge);
        match (method, rest) {
            ("GET", []) => {
                self.with(METADATA, |repository, inner| Ok(json_response(200, links.repository(inner, repository))))
            }
            ("GET", ["collaborators", login, "permission"]) => self.permission(login),
            ("GET", ["issues"]) => self.issues(),
            ("GET", ["issues", number]) => self.with_issue(READ_ISSUES, number, |repository, issue, inner| {
                Ok(json_response(200, links.issue(inner, repository, issue)))
            }),
            ("GET", ["issues", number, "comments"]) => {
                self.with_issue(READ_ISSUES, number, |repository, issue, inner| {
                    let shown = issue.comments.iter().filter(|c| c.visible_at <= Instant::now());
                    let items = shown.map(|c| links.comment(inner, repository, issue, c)).collect();
                    Ok(self.page(items))
                })
            }
            ("POST", ["issues", number, "comments"]) => self.post_comment(number),
            ("PATCH", ["issues", "comments", id]) => self.edit_comment(id),
            ("DELETE", ["issues", "comments", id]) => self.delete_comment(id),
            ("GET", ["issues", number, "events"]) => {
                self.with_issue(READ_ISSUES, number, |repository, issue, inner| {
                    let shown = issue.events.iter().filter(|e| e.visible_at <= Instant::now());
                    let items = shown.map(|e| links.event(inner, repository, e)).collect();
                    Ok(self.page(items))
                })
            }
            ("POST", ["issues", number, "labels"]) => self.add_labels(number),
            ("DELETE", ["issues", number, "labels", label]) => self.remove_label(number, label),
            ("GET", ["pulls"]) => self.pulls(),
            ("GET", ["pulls", number]) => self.with_pull(READ_PULLS, number, |repository, issue, pull, inner| {
                Ok(json_response(200, links.full_pull(inner, repository, issue, &pull.clone())))
            }),
            ("PATCH", ["pulls", number]) => self.edit_pull(number),
            _ => Err(Refusal::not_found()),
        }
    }

    fn permission(&self, login: &str) -> Reply {
        if self.caller.credential == Credential::Anonymous {
            return Err(Refusal::requires_authentication());
        }
        self.with(METADATA, |repository, inner| {
            let known = inner.users.values().find(|user| user.login.eq_ignore_ascii_case(login)).cloned();
            let user = known.filter(|user| !user.bot).ok_or_else(Refusal::not_found)?;
            let role = repository.roles.get(&user.login).copied();
            Ok(json_response(200, links(self.forge).permission(&user, role, repository.private)))
        })
    }

    fn issues(&self) -> Reply {
        let query = &self.request.query;
        let state = query.get("state").map_or("open", String::as_str).to_owned();
        let wanted: Vec<&str> = query.get("labels").map(|l| l.split(',').collect()).unwrap_or_default();
        let since: Option<jiff::Timestamp> = query.get("since").and_then(|since| since.parse().ok());
        self.with(READ_ISSUES, |repository, inner| {
            let repository = &*repository;
            let has = |issue: &Issue, label: &str| issue.labels.iter().any(|known| known.eq_ignore_ascii_case(label));
            let shown = repository.issues.values().rev().filter(|issue| {
                (state == "all" || (state == "open") == issue.open)
                    && wanted.iter().all(|label| has(issue, label))
                    && since.is_none_or(|since| since <= issue.updated_at)
                    && issue.visible_at <= Instant::now()
            });
            let mut shown: Vec<&Issue> = shown.collect();
            if query.get("sort").is_some_and(|sort| sort == "updated") {
                shown.sort_by_key(|issue| std::cmp::Reverse((issue.updated_at, issue.number)));
            }
            if query.get("direction").is_some_and(|direction| direction == "asc") {
                shown.reverse();
            }
            let items = shown.into_iter().map(|issue| links(self.forge).issue(inner, repository, issue)).collect();
            Ok(self.page(items))
        })
    }

    fn post_comment(&self, number: &str) -> Reply {
        let body = self.request.required("IssueComment", "body");
        let author = self.caller.author();
        self.with_issue(WRITE_ISSUES, number, |repository, issue, inner| {
            let comment = issue.comment(inner, author, body?).clone();
            Ok(json_response(201, links(self.forge).comment(inner, repository, issue, &comment)))
        })
    }

    fn edit_comment(&self, id: &str) -> Reply {
        let body = self.request.required("IssueComment", "body");
        self.with_comment(id, |repository, issue, at, inner| {
            issue.comments[at].edit(body?);
            let comment = issue.comments[at].clone();
            Ok(json_response(200, links(self.forge).comment(inner, repository, issue, &comment)))
        })
    }

    fn delete_comment(&self, id: &str) -> Reply {
        self.with_comment(id, |_, issue, at, _| {
            issue.comments.remove(at);
            Ok(no_content())
        })
    }

    fn with_comment<R>(
        &self,
        id: &str,
        act: impl FnOnce(&mut Repository, &mut Issue, usize, &mut Inner) -> Result<R, Refusal>,
    ) -> Result<R, Refusal> {
        let found = self.with(WRITE_ISSUES, |repository, _| {
            let id: u64 = id.parse().map_err(|_| Refusal::not_found())?;
            let place = repository
                .issues
                .values()
                .find_map(|issue| Some((issue.number, issue.comments.iter().position(|comment| comment.id == id)?)));
            place.ok_or_else(Refusal::not_found)
        })?;
        self.with_issue(WRITE_ISSUES, &found.0.to_string(), |repository, issue, inner| {
            act(repository, issue, found.1, inner)
        })
    }

    fn add_labels(&self, number: &str) -> Reply {
        let body = self.request.body.as_ref();
        let list = body.and_then(|body| body.get("labels").or(Some(body))?.as_array());
        let labels: Vec<String> =
            list.into_iter().flatten().filter_map(|label| Some(label.as_str()?.to_owned())).collect();
        let by = self.caller.author();
        self.with_issue(WRITE_ISSUES, number, |repository, issue, inner| {
            for label in &labels {
                repository.label_id(inner, label);
                issue.label(inner, label, by);
            }
            Ok(json_response(200, json!(links(self.forge).labels(repository, issue))))
        })
    }

    fn remove_label(&self, number: &str, label: &str) -> Reply {
        let by = self.caller.author();
        self.with_issue(WRITE_ISSUES, number, |repository, issue, inner| {
            if !issue.unlabel(inner, label, by) {
                return Err(Refusal::new(404, "Label does not exist"));
            }
            Ok(json_response(200, json!(links(self.forge).labels(repository, issue))))
        })
    }

    fn pulls(&self) -> Reply {
        let query = &self.request.query;
        let state = query.get("state").map_or("open", String::as_str).to_owned();
        // As on GitHub, a head without its owner is no filter.
        let head = query.get("head").and_then(|head| head.split_once(':'));
        let base = query.get("base");
        self.with(READ_PULLS, |repository, inner| {
            let repository = &*repository;
            let shown = repository.issues.values().rev().filter_map(|issue| Some((issue, issue.pull.as_ref()?)));
            let shown = shown.filter(|(issue, pull)| {
                (state == "all" || (state == "open") == issue.open)
                    && head.is_none_or(|(owner, branch)| {
                        owner.eq_ignore_ascii_case(repository.name.owner()) && branch == pull.head
                    })
                    && base.is_none_or(|base| *base == pull.base)
                    && issue.visible_at <= Instant::now()
            });
            let items = shown.map(|(issue, pull)| links(self.forge).pull(inner, repository, issue, pull)).collect();
            Ok(self.page(items))
        })
    }

    fn with_pull<R>(
        &self,
        need: Need,
        number: &str,
        act: impl FnOnce(&mut Repository, &mut Issue, &Pull, &mut Inner) -> Result<R, Refusal>,
    ) -> Result<R, Refusal> {
        self.with_issue(need, number, |repository, issue, inner| {
            let pull = issue.pull.clone().ok_or_else(Refusal::not_found)?;
            act(repository, issue, &pull, inner)
        })
    }

    fn edit_pull(&self, number: &str) -> Reply {
        self.with_pull(WRITE_PULLS, number, |repository, issue, pull, inner| {
            if let Some(title) = self.request.text("title") {
                title.clone_into(&mut issue.title);
            }
            if let Some(body) = self.request.text("body") {
                body.clone_into(&mut issue.body);
            }
            match self.request.text("state") {
                Some("closed") => issue.open = false,
                Some("open") => issue.open = true,
                _ => {}
            }
            issue.updated_at = now();
            Ok(json_response(200, links(self.forge).full_pull(inner, repository, issue, pull)))
        })
    }

    /// Nobody makes one this way; what is asked for cannot be.
    fn make_ref(&self) -> Reply {
        self.with(WRITE_CONTENTS, |_, _| Ok(()))?;
        let sha = self.request.required("Reference", "sha")?;
        match sha.bytes().all(|byte| byte == b'0') {
            true => Err(Refusal::new(422, "Object does not exist")),
            false => Err(Refusal::new(501, "this forge makes references by pushes alone")),
        }
    }

    async fn open_pull(&self) -> Reply {
        let repo = self.with(WRITE_PULLS, |repository, _| Ok(repository.name.clone()))?;
        let title = self.request.required("PullRequest", "title")?;
        let base = self.request.required("PullRequest", "base")?;
        let head = self.request.required("PullRequest", "head")?;
        let head = head.strip_prefix(&format!("{}:", repo.owner())).unwrap_or(head);
        let bare = self.forge.bare(&repo);
        let broken = |error: anyhow::Error| Refusal::new(500, &format!("{error:#}"));
        let tip = async |branch: &str, field: &str| {
            let found = git::resolve(&bare, &format!("refs/heads/{branch}")).await.map_err(broken)?;
            let error = json!({ "resource": "PullRequest", "code": "invalid", "field": field });
            found.ok_or_else(|| Refusal::invalid(error))
        };
        let (head_sha, base_sha) = (tip(head, "head").await?, tip(base, "base").await?);
        let range = format!("{base_sha}..{head_sha}");
        let commits = git::run(&bare, &["rev-list", "--count", &range], &[]).await.map_err(broken)?;
        let commits: u64 = commits.trim().parse().unwrap_or(0);
        if commits == 0 {
            return Err(Refusal::pull(format!("No commits between {base} and {head}")));
        }
        let draft = self.request.body.as_ref().is_some_and(|body| body["draft"] == true);
        let body = self.request.text("body").unwrap_or_default();
        let (head, base) = (head.to_owned(), base.to_owned());
        let pull = Pull { head, base, head_sha, base_sha, commits, draft, merged_at: None };
        self.with(WRITE_PULLS, |repository, inner| {
            let same = |issue: &Issue| {
                let other = issue.pull.as_ref();
                issue.open && other.is_some_and(|other| (&other.head, &other.base) == (&pull.head, &pull.base))
            };
            if repository.issues.values().any(same) {
                let words = format!("A pull request already exists for {}:{}.", repo.owner(), pull.head);
                return Err(Refusal::pull(words));
            }
            let mut issue = Issue::new(repository, inner, self.caller.author(), title, body);
            issue.pull = Some(pull.clone());
            let answer = links(self.forge).full_pull(inner, repository, &issue, &pull);
            repository.issues.insert(issue.number, issue);
            Ok(json_response(201, answer))
        })
    }

    async fn git_ref(&self, kind: &str, name: &str) -> Reply {
        let repo = self.with(CONTENTS, |repository, _| Ok(repository.name.clone()))?;
        let full = format!("refs/{kind}/{name}");
        let found = git::resolve(&self.forge.bare(&repo), &full).await;
        let sha = found.map_err(|e| Refusal::new(500, &format!("{e:#}")))?.ok_or_else(Refusal::not_found)?;
        self.with(CONTENTS, |repository, _| Ok(json_response(200, links(self.forge).git_ref(repository, &full, &sha))))
    }

    fn page(&self, items: Vec<Value>) -> Response<Body> {
        page(self.forge, self.request, items)
    }
}

/// One page of a list, with the links to the others.
fn page(forge: &Forge, request: &RestRequest, items: Vec<Value>) -> Response<Body> {
    let size = request.number("per_page", DEFAULT_PER_PAGE).min(MAX_PER_PAGE);
    let page = request.number("page", 1);
    let last = items.len().div_ceil(size).max(1);
    let shown: Vec<Value> = items.into_iter().skip((page - 1).saturating_mul(size)).take(size).collect();
    let mut response = json_response(200, Value::Array(shown));
    let to = |page: usize, rel: &str| {
        let mut query = request.query.clone();
        query.insert("page".to_owned(), page.to_string());
        let query = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
        format!("<{}{}?{query}>; rel=\"{rel}\"", forge.url, request.path)
    };
    let mut all = Vec::new();
    if page > 1 {
        all.extend([to(page - 1, "prev")]);
    }
    if page < last {
        all.extend([to(page + 1, "next"), to(last, "last")]);
    }
    if page > 1 {
        all.extend([to(1, "first")]);
    }
    if !all.is_empty() {
        let link = HeaderValue::try_from(all.join(", ")).expect("encoded links");
        response.headers_mut().insert(http::header::LINK, link);
    }
    response
}

fn no_content() -> Response<Body> {
    let mut response = Response::new(bytes_body(""));
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}
