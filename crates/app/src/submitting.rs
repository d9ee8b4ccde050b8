//! A Task asked for through the API, the CLI or a foreign message: checked against the forge like any trigger.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fettle_domain::choice::MAX_RUNS;
use fettle_domain::id::{JobId, RunId, TaskId};
use fettle_domain::issue::IssueSnapshot;
use fettle_domain::label::needs_of;
use fettle_domain::repo::{Repo, RepoName};
use fettle_domain::task::Mode;
use sha2::{Digest as _, Sha256};
use tracing::Instrument as _;

use crate::adding::KnownModels;
use crate::foreign;
use crate::intake::IntakeOptions;
use crate::live::Live;
use crate::ports::clock::{Clock, IdSource};
use crate::ports::forge::{Forge, ForgeError};
use crate::ports::ledger::{Ledger, Opened, RunPlan, TaskPlan, TaskView};
use crate::spans;
use crate::submit::{FurtherRun, Missing, NewTask, SubmitError, SubmitTask, Submitted};

/// When the forge does not answer, the asker may try again after this.
const RETRY_AFTER: Duration = Duration::from_secs(10);
/// Title and body of a Task without an issue.
const MAX_TEXT_BYTES: usize = 64 * 1024;
/// The trigger of what the API's callers ask for.
const API: &str = "api";
/// The login that stands for the holder of the admin key.
const ADMIN: &str = "admin";

pub struct Submitting {
    pub ledger: Arc<dyn Ledger>,
    pub forge: Arc<dyn Forge>,
    pub clock: Arc<dyn Clock>,
    pub ids: Arc<dyn IdSource>,
    /// Hosts that repository URLs may name: the forge's own.
    pub hosts: Vec<String>,
    pub models: KnownModels,
    /// For what a repository needs; taken once for each request.
    pub options: Live<IntakeOptions>,
}

#[async_trait]
impl SubmitTask for Submitting {
    async fn submit(&self, request: NewTask) -> Result<Submitted, SubmitError> {
        let models = self.models.names();
        known_models(&models, request.model.as_ref(), "/model")?;
        for (nth, run) in request.further.iter().enumerate() {
            known_models(&models, run.model.as_ref(), &format!("/further/{nth}/model"))?;
        }
        if request.further.len() >= MAX_RUNS || (request.mode == Mode::Probe && !request.further.is_empty()) {
            return Err(invalid("/further", format!("a Task has at most {MAX_RUNS} Runs, a probe one")));
        }
        let repo = match &request.repository {
            Some(text) => Some(self.repository(text).await?),
            None if request.mode == Mode::Probe => None,
            None => return Err(invalid("/repository", "a repository is needed".into())),
        };
        if let Some(repo) = repo.as_ref().filter(|_| is_to_be_asked_for(&request)) {
            self.check_permission(repo, &request.actor).await?;
        }
        let issue = self.issue(&request, repo.as_ref()).await?;
        let object = request.idempotency_key.clone().unwrap_or_else(|| self.ids.uuid().simple().to_string());
        let plan = TaskPlan {
            id: TaskId::from_uuid(self.ids.uuid()),
            run: RunId::from_uuid(self.ids.uuid()),
            job: JobId::from_uuid(self.ids.uuid()),
            correlation: request.correlation,
            intent: format!("{}:{object}", request.trigger),
            mode: request.mode,
            needs: needs_of(&self.options.now().needs, repo.as_ref().map(|repo| &repo.name)),
            repo,
            issue,
            said: None,
            model: request.model,
            base: request.base,
            actor: request.actor,
            trigger: request.trigger.to_owned(),
            at: self.clock.now(),
            further: request.further.into_iter().map(|run| plan_run(&*self.ids, run)).collect(),
        };
        let opening = self.ledger.open_task(None, &plan).instrument(spans::task(&plan));
        let opened = opening.await.map_err(SubmitError::Ledger)?;
        if let Opened::Duplicate { task } = opened {
            let made = self.ledger.task(task).await.map_err(SubmitError::Ledger)?;
            let runs = self.ledger.runs(task).await.map_err(SubmitError::Ledger)?;
            let beside = runs.iter().skip(1).map(|run| (&run.model, &run.instruction));
            let asked = plan.further.iter().map(|run| (&run.model, &run.instruction));
            // Others may have been added since.
            let same_runs = asked.clone().eq(beside.take(asked.len()));
            if !is_what_was_asked(&made, &plan) || !same_runs {
                return Err(invalid(
                    "/idempotency_key",
                    format!("the key has made {task} from another request; give this one a key of its own"),
                ));
            }
        }
        let (Opened::New { task, .. } | Opened::Joined { task } | Opened::Duplicate { task }) = &opened;
        Ok(Submitted { task: *task, opened })
    }

    async fn add_runs(
        &self,
        task: TaskId,
        by: &str,
        runs: Vec<FurtherRun>,
        key: Option<&str>,
    ) -> Result<Vec<RunId>, SubmitError> {
        let models = self.models.names();
        for (nth, run) in runs.iter().enumerate() {
            known_models(&models, run.model.as_ref(), &format!("/runs/{nth}/model"))?;
        }
        let plans = runs.into_iter().map(|run| plan_run(&*self.ids, run)).collect();
        add_plans(&*self.ledger, task, by, plans, key).await
    }
}

/// Adds Runs to a Task; with a `key` once, however often the same are asked for.
pub async fn add_plans(
    ledger: &dyn Ledger,
    task: TaskId,
    by: &str,
    mut plans: Vec<RunPlan>,
    key: Option<&str>,
) -> Result<Vec<RunId>, SubmitError> {
    let ids = |plans: &[RunPlan]| plans.iter().map(|plan| plan.run).collect();
    let Some(key) = key else {
        ledger.add_runs(task, by, &plans).await.map_err(SubmitError::Ledger)?;
        return Ok(ids(&plans));
    };
    for (nth, plan) in plans.iter_mut().enumerate() {
        plan.run = run_of_key(task, key, nth);
    }
    if are_added(ledger, task, key, &plans).await? {
        return Ok(ids(&plans));
    }
    match ledger.add_runs(task, by, &plans).await {
        Ok(()) => Ok(ids(&plans)),
        // The same request may have come at once.
        Err(error) => match are_added(ledger, task, key, &plans).await? {
            true => Ok(ids(&plans)),
            false => Err(SubmitError::Ledger(error)),
        },
    }
}

/// Whether the Task has these Runs already. Refuses a key that has added others.
async fn are_added(ledger: &dyn Ledger, task: TaskId, key: &str, plans: &[RunPlan]) -> Result<bool, SubmitError> {
    let runs = ledger.runs(task).await.map_err(SubmitError::Ledger)?;
    let found: Vec<_> =
        plans.iter().map(|plan| runs.iter().find(|run| run.id == plan.run).map(|run| (plan, run))).collect();
    if found.iter().all(Option::is_none) {
        return Ok(false);
    }
    let same = found.iter().all(|found| {
        found.is_some_and(|(plan, run)| (&run.model, &run.instruction) == (&plan.model, &plan.instruction))
    });
    let further = run_of_key(task, key, plans.len());
    if same && !runs.iter().any(|run| run.id == further) {
        return Ok(true);
    }
    let why = "the key has added other Runs to this Task; give this request a key of its own";
    Err(invalid("/idempotency_key", why.into()))
}

/// The id of the `nth` Run that a request with this key adds to a Task. Being the same each time, it keeps the Run from being added
/// twice.
fn run_of_key(task: TaskId, key: &str, nth: usize) -> RunId {
    let digest = Sha256::new().chain_update(task.as_uuid().as_bytes()).chain_update(nth.to_string()).chain_update([0]);
    let digest: [u8; 32] = digest.chain_update(key).finalize().into();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    RunId::from_uuid(uuid::Builder::from_random_bytes(bytes).into_uuid())
}

/// Refuses a model that nobody configured or added.
fn known_models(models: &[String], model: Option<&String>, pointer: &str) -> Result<(), SubmitError> {
    let Some(model) = model.filter(|model| !models.contains(model)) else { return Ok(()) };
    let known = if models.is_empty() { "there is none yet".into() } else { models.join(", ") };
    Err(invalid(pointer, format!("there is no model `{model}`; known: {known}")))
}

/// A Run with new ids.
pub fn plan_run(ids: &dyn IdSource, run: FurtherRun) -> RunPlan {
    let (id, job) = (RunId::from_uuid(ids.uuid()), JobId::from_uuid(ids.uuid()));
    RunPlan { run: id, job, model: run.model, instruction: run.instruction }
}

/// Whoever may ask the API for a Task was allowed to by role. A message names whom it likes: there, `admin` is a login like
/// others.
fn is_to_be_asked_for(request: &NewTask) -> bool {
    request.trigger == foreign::EVENT || request.trigger != API && request.actor != ADMIN
}

impl Submitting {
    async fn repository(&self, text: &str) -> Result<Repo, SubmitError> {
        let name = parse_repository(text, &self.hosts)?;
        self.forge.repository(&name).await.map_err(|error| by_reaction(error, Missing::Repository(name.to_string())))
    }

    async fn check_permission(&self, repo: &Repo, login: &str) -> Result<(), SubmitError> {
        match self.forge.permission(repo, login).await {
            Ok(permission) if permission.may_trigger() => Ok(()),
            Ok(_) | Err(ForgeError::NotFound(_)) => Err(SubmitError::NotPermitted(login.to_owned())),
            Err(error) => Err(by_reaction(error, Missing::Login(login.to_owned()))),
        }
    }

    async fn issue(&self, request: &NewTask, repo: Option<&Repo>) -> Result<IssueSnapshot, SubmitError> {
        let now = self.clock.now();
        match (request.issue, &request.text, repo) {
            (Some(number), None, Some(repo)) => {
                let missing = Missing::Issue { repository: repo.name.to_string(), number };
                let issue = self.forge.issue(repo, number).await.map_err(|error| by_reaction(error, missing))?;
                if issue.is_pull_request {
                    return Err(invalid("/issue", format!("#{number} is a pull request, not an issue")));
                }
                if !issue.open {
                    return Err(invalid("/issue", format!("issue #{number} is closed")));
                }
                Ok(IssueSnapshot {
                    number: Some(number),
                    title: issue.title,
                    body: issue.body,
                    author: issue.author,
                    url: Some(issue.url),
                    comments: Vec::new(),
                    taken_at: now,
                })
            }
            (None, Some((title, body)), _) => {
                if title.trim().is_empty() {
                    return Err(invalid("/text/title", "the title is empty".into()));
                }
                if title.len() + body.len() > MAX_TEXT_BYTES {
                    return Err(invalid(
                        "/text",
                        format!("title and body together are larger than {} KiB", MAX_TEXT_BYTES / 1024),
                    ));
                }
                Ok(IssueSnapshot {
                    number: None,
                    title: title.clone(),
                    body: body.clone(),
                    author: request.actor.clone(),
                    url: None,
                    comments: Vec::new(),
                    taken_at: now,
                })
            }
            (None, None, _) if request.mode == Mode::Probe => Ok(IssueSnapshot {
                number: None,
                title: "probe".into(),
                body: String::new(),
                author: request.actor.clone(),
                url: None,
                comments: Vec::new(),
                taken_at: now,
            }),
            (Some(_), Some(_), _) => Err(invalid("/text", "give an issue or a text, not both".into())),
            _ => Err(invalid("/issue", "give an issue number or a text".into())),
        }
    }
}

/// Whether the Task came of the same request. An issue's text may have been edited since.
fn is_what_was_asked(made: &TaskView, plan: &TaskPlan) -> bool {
    let repo = |repo: &Option<Repo>| repo.as_ref().map(|repo| repo.forge_id);
    let text = |issue: &IssueSnapshot| issue.number.is_none().then(|| (issue.title.clone(), issue.body.clone()));
    (made.mode, repo(&made.repo), made.issue.number, text(&made.issue), &made.model, &made.base)
        == (plan.mode, repo(&plan.repo), plan.issue.number, text(&plan.issue), &plan.model, &plan.base)
}

/// `owner/name`, or an https or ssh URL on one of `hosts` with user info stripped.
pub fn parse_repository(text: &str, hosts: &[String]) -> Result<RepoName, SubmitError> {
    let text = text.trim();
    let nothing = || invalid("/repository", format!("`{text}` names no repository"));
    let named = |path: &str| path.parse().map_err(|error| invalid("/repository", format!("{error}")));
    let (host, path) = if let Some(rest) = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")) {
        rest.split_once('/').ok_or_else(nothing)?
    } else if let Some(rest) = text.strip_prefix("ssh://") {
        rest.split_once('/').ok_or_else(nothing)?
    } else if let Some((host, path)) = text.split_once(':').filter(|(host, _)| host.contains('@')) {
        (host, path)
    } else {
        return named(text);
    };
    let host = host.rsplit('@').next().unwrap_or(host);
    if !hosts.iter().any(|known| known.eq_ignore_ascii_case(host)) {
        return Err(SubmitError::UnknownHost { host: host.to_owned(), known: hosts.join(", ") });
    }
    let path = path.trim_matches('/');
    named(path.strip_suffix(".git").unwrap_or(path))
}

fn invalid(pointer: &str, detail: String) -> SubmitError {
    SubmitError::Invalid { pointer: pointer.to_owned(), detail }
}

pub(crate) fn by_reaction(error: ForgeError, what: Missing) -> SubmitError {
    match error {
        ForgeError::NotFound(_) | ForgeError::Denied(_) | ForgeError::Refused(_) => SubmitError::NotFound(what),
        ForgeError::RateLimited { wait } => {
            SubmitError::Unavailable { what: "the forge".into(), retry_after: wait, cause: error.into() }
        }
        ForgeError::NoAnswer(_) | ForgeError::Unavailable(_) => {
            SubmitError::Unavailable { what: "the forge".into(), retry_after: RETRY_AFTER, cause: error.into() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_is_named_by_path_or_by_a_url_on_the_configured_forge() {
        let hosts = vec!["github.com".to_owned()];
        for text in [
            "o/r",
            "https://github.com/o/r",
            "https://user:pw@github.com/o/r.git",
            "git@github.com:o/r.git",
            "ssh://git@github.com/o/r/",
        ] {
            assert_eq!(parse_repository(text, &hosts).unwrap().to_string(), "o/r", "{text}");
        }
        for text in [
            "https://evil.example/o/r",
            "https://github.com.evil.example/o/r",
            "o",
            "o/r/x",
            "https://github.com/o",
            "../r",
        ] {
            assert!(parse_repository(text, &hosts).is_err(), "{text}");
        }
    }
}
