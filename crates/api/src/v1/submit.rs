//! Making a Task: in the API's own form, or in the four fields of foreign producers.

use axum::Json;
use axum::extract::{Extension, State};
use axum::http::header::LOCATION;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{AppendHeaders, IntoResponse, Response};
use fettle_app::ports::ledger::Opened;
use fettle_app::submit::NewTask;
use fettle_domain::task::Mode;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::runs::{self, NewRun};
use super::tasks::{self, ModeWord, TaskBody};
use crate::auth::{Caller, Detail};
use crate::edge::Exchange;
use crate::extract::{self, Body};
use crate::problem::Problem;
use crate::state::ApiState;

/// A URL with a long path still fits; anything longer is no repository.
const MAX_REPOSITORY_CHARS: usize = 300;
const MAX_TITLE_CHARS: usize = 500;
/// GitHub's limit for an issue's body.
const MAX_TEXT_CHARS: usize = 65_536;
pub(crate) const MAX_NAME_CHARS: usize = 200;
const MAX_KEY_CHARS: usize = 200;

/// Makes a Task. An issue with an active Task is joined; the same `Idempotency-Key` again gives the same Task.
#[utoipa::path(
    post, path = "/api/v1/tasks", operation_id = "create_task", tag = "tasks", security(("admin_key" = [])),
    params(("Idempotency-Key" = Option<String>, Header, description = "The same key again is the same request; at most 200 characters")),
    request_body = CreateTask,
    responses(
        (status = 200, description = "Joined the issue's active Task, or a repetition", body = SubmittedBody),
        (status = 201, description = "A new Task; `Location` names it", body = SubmittedBody),
    )
)]
pub(crate) async fn create_task(
    State(api): State<ApiState>,
    Extension(exchange): Extension<Exchange>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    Body(body): Body<Value>,
) -> Result<Response, Problem> {
    let order = CreateTask::read(body)?;
    let mut request = order.into_request(exchange, &caller.actor.name)?;
    request.idempotency_key = idempotency_key(&headers)?;
    let submitted = api.submit.submit(request).await?;
    let task = TaskBody::from(&api.ledger.task(submitted.task).await?);
    let (status, opened) = match submitted.opened {
        Opened::New { .. } => (StatusCode::CREATED, OpenedWord::New),
        Opened::Joined { .. } => (StatusCode::OK, OpenedWord::Joined),
        Opened::Duplicate { .. } => (StatusCode::OK, OpenedWord::Duplicate),
    };
    let location = AppendHeaders([(LOCATION, tasks::address(submitted.task))]);
    let detail = Extension(Detail(submitted.task.to_string()));
    Ok((status, location, detail, Json(SubmittedBody { opened, task })).into_response())
}

#[derive(Serialize, ToSchema)]
#[schema(as = Submitted)]
pub(crate) struct SubmittedBody {
    opened: OpenedWord,
    task: TaskBody,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = Opened)]
enum OpenedWord {
    New,
    /// The issue has an active Task; the request became a message to it.
    Joined,
    /// The same request was seen before.
    Duplicate,
}

#[derive(ToSchema)]
#[schema(as = NewTask)]
#[serde(untagged)]
pub(crate) enum CreateTask {
    Native(NativeTask),
    Foreign(ForeignTask),
}

/// The API's own form. Unknown fields are refused.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NativeTask {
    /// `owner/name`, or its https or ssh URL. Only a probe goes without.
    repository: Option<String>,
    /// The issue's number; instead of `text`.
    issue: Option<u64>,
    /// What to do, when there is no issue.
    text: Option<TaskText>,
    /// `quickfix` when absent.
    mode: Option<ModeWord>,
    /// A configured model's name; absent for the first one.
    model: Option<String>,
    /// Runs beside the first, which is `model`'s: they work on the same Task, and a person chooses among their patches.
    #[serde(default)]
    further: Vec<NewRun>,
    /// The base branch; absent for the repository's default.
    base: Option<String>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct TaskText {
    title: String,
    body: String,
}

/// The message of foreign producers. Unknown fields are ignored.
#[derive(Deserialize, ToSchema)]
pub(crate) struct ForeignTask {
    /// https or ssh URL on a configured forge.
    repo_url: String,
    issue_id: IssueId,
    /// `quickfix` when absent.
    mode: Option<ModeWord>,
    /// The login whose permission decides.
    trigger_user: String,
}

#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
enum IssueId {
    Number(u64),
    Digits(String),
}

impl CreateTask {
    /// `repo_url` tells the foreign form.
    fn read(body: Value) -> Result<Self, Problem> {
        if body.get("repo_url").is_some() {
            extract::convert(body).map(Self::Foreign)
        } else {
            extract::convert(body).map(Self::Native)
        }
    }

    fn into_request(self, exchange: Exchange, actor: &str) -> Result<NewTask, Problem> {
        match self {
            Self::Native(task) => task.into_request(exchange, actor),
            Self::Foreign(task) => task.into_request(exchange),
        }
    }
}

impl NativeTask {
    fn into_request(self, exchange: Exchange, actor: &str) -> Result<NewTask, Problem> {
        let mode = self.mode.map_or(Mode::Quickfix, Mode::from);
        if mode != Mode::Probe {
            if self.repository.is_none() {
                return Err(Problem::refused("/repository", "Name the repository: `owner/name` or its URL."));
            }
            if self.issue.is_some() == self.text.is_some() {
                return Err(Problem::refused("/issue", "Give either `issue` or `text`."));
            }
        }
        if self.issue == Some(0) {
            return Err(Problem::refused("/issue", "Issues are numbered from 1."));
        }
        fits("/repository", self.repository.as_deref(), MAX_REPOSITORY_CHARS)?;
        fits("/model", self.model.as_deref(), MAX_NAME_CHARS)?;
        fits("/base", self.base.as_deref(), MAX_NAME_CHARS)?;
        if let Some(text) = &self.text {
            fits("/text/title", Some(&text.title), MAX_TITLE_CHARS)?;
            if text.body.chars().count() > MAX_TEXT_CHARS {
                return Err(Problem::refused("/text/body", format!("At most {MAX_TEXT_CHARS} characters.")));
            }
        }
        Ok(NewTask {
            further: runs::further(self.further, "/further")?,
            repository: self.repository,
            issue: self.issue,
            text: self.text.map(|text| (text.title, text.body)),
            mode,
            model: self.model,
            base: self.base,
            actor: actor.to_owned(),
            trigger: "api",
            idempotency_key: None,
            correlation: exchange.correlation,
        })
    }
}

impl ForeignTask {
    fn into_request(self, exchange: Exchange) -> Result<NewTask, Problem> {
        let issue = match self.issue_id {
            IssueId::Number(number) => Some(number),
            IssueId::Digits(text) => text.parse().ok(),
        };
        let issue = issue.filter(|number| *number > 0);
        let issue = issue.ok_or_else(|| Problem::refused("/issue_id", "Give the issue's number, from 1."))?;
        fits("/repo_url", Some(&self.repo_url), MAX_REPOSITORY_CHARS)?;
        fits("/trigger_user", Some(&self.trigger_user), MAX_NAME_CHARS)?;
        Ok(NewTask {
            further: Vec::new(),
            repository: Some(self.repo_url),
            issue: Some(issue),
            text: None,
            mode: self.mode.map_or(Mode::Quickfix, Mode::from),
            model: None,
            base: None,
            actor: self.trigger_user,
            trigger: "foreign",
            idempotency_key: None,
            correlation: exchange.correlation,
        })
    }
}

pub(crate) fn fits(pointer: &str, text: Option<&str>, max_chars: usize) -> Result<(), Problem> {
    match text {
        Some(text) if text.trim().is_empty() => Err(Problem::refused(pointer, "It must not be empty.")),
        Some(text) if text.chars().count() > max_chars => {
            Err(Problem::refused(pointer, format!("At most {max_chars} characters.")))
        }
        _ => Ok(()),
    }
}

pub(crate) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    match value.to_str() {
        Ok(key) if !key.trim().is_empty() && key.len() <= MAX_KEY_CHARS => Ok(Some(key.trim().to_owned())),
        _ => Err(Problem::refused("Idempotency-Key", format!("1 to {MAX_KEY_CHARS} visible ASCII characters."))),
    }
}
