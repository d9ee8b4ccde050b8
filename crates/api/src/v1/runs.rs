//! Several Runs of one Task, side by side, and the pull request that is made from one of them.

use axum::extract::State;
use axum::http::header::LOCATION;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{AppendHeaders, IntoResponse, Response};
use axum::{Extension, Json};
use fettle_app::ports::ledger::{LedgerError, RunStopped};
use fettle_app::submit::{FurtherRun, SubmitError};
use fettle_domain::choice::MAX_RUNS;
use fettle_domain::id::{RunId, TaskId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::submit::{MAX_NAME_CHARS, fits, idempotency_key};
use super::tasks::{self, RunBody, TaskBody};
use crate::auth::Caller;
use crate::extract::{Body, Named};
use crate::problem::{Code, Problem, ProblemBody};
use crate::state::ApiState;

/// Longer ones belong into the issue, where the other Runs can read them too.
const MAX_INSTRUCTION_CHARS: usize = 4_000;

/// All Runs of a Task, in the order in which they were asked for.
#[utoipa::path(
    get, path = "/api/v1/tasks/{task_id}/runs", operation_id = "list_runs", tag = "runs",
    params(("task_id" = String, Path, description = "`task_…`")), security(("admin_key" = [])),
    responses((status = 200, description = "All of them", body = Runs))
)]
pub(crate) async fn list_runs(State(api): State<ApiState>, Named(task): Named<TaskId>) -> Result<Json<Runs>, Problem> {
    let view = api.ledger.task(task).await?;
    let runs = api.ledger.runs(task).await?;
    Ok(Json(Runs { leading: view.run.id, items: runs.iter().map(RunBody::from).collect() }))
}

#[derive(Serialize, ToSchema)]
pub(crate) struct Runs {
    /// Its end is or will be the Task's.
    #[schema(value_type = String)]
    leading: RunId,
    items: Vec<RunBody>,
}

/// A Run beside the others.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewRun {
    /// A configured model's name; absent for the first one.
    model: Option<String>,
    /// What this Run is told and the others are not; at most 4,000 characters.
    instruction: Option<String>,
}

/// `pointer` is that of the list.
pub(crate) fn further(runs: Vec<NewRun>, pointer: &str) -> Result<Vec<FurtherRun>, Problem> {
    if runs.len() > MAX_RUNS {
        return Err(Problem::refused(pointer, format!("A Task has at most {MAX_RUNS} Runs.")));
    }
    for (nth, run) in runs.iter().enumerate() {
        fits(&format!("{pointer}/{nth}/model"), run.model.as_deref(), MAX_NAME_CHARS)?;
        fits(&format!("{pointer}/{nth}/instruction"), run.instruction.as_deref(), MAX_INSTRUCTION_CHARS)?;
    }
    Ok(runs.into_iter().map(|run| FurtherRun { model: run.model, instruction: run.instruction }).collect())
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewRuns {
    /// At least one; a Task has at most eight in all.
    #[schema(min_items = 1, max_items = 8)]
    runs: Vec<NewRun>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct NewRunIds {
    /// In the order in which they were asked for.
    #[schema(value_type = Vec<String>)]
    run_ids: Vec<RunId>,
}

/// Adds Runs to a Task, which work beside the others. When all have ended and several have a patch, a person chooses one.
#[utoipa::path(
    post, path = "/api/v1/tasks/{task_id}/runs", operation_id = "add_runs", tag = "runs",
    params(
        ("task_id" = String, Path, description = "`task_…`"),
        ("Idempotency-Key" = Option<String>, Header, description = "The same key again for this Task adds nothing; at most 200 characters"),
    ),
    security(("admin_key" = [])), request_body = NewRuns,
    responses(
        (status = 201, description = "They stand in line; also when the request is a repetition", body = NewRunIds),
        (status = 409, description = "The Task is cancelled, has its pull request, or has as many Runs as it may", body = ProblemBody,
         content_type = "application/problem+json"),
    )
)]
pub(crate) async fn add_runs(
    State(api): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Named(task): Named<TaskId>,
    headers: HeaderMap,
    Body(body): Body<NewRuns>,
) -> Result<Response, Problem> {
    if body.runs.is_empty() {
        return Err(Problem::refused("/runs", "Name at least one Run: `{\"model\": …}`, or `{}` for the first model."));
    }
    let runs = further(body.runs, "/runs")?;
    let key = idempotency_key(&headers)?;
    let run_ids =
        api.submit.add_runs(task, &caller.actor.name, runs, key.as_deref()).await.map_err(|error| match error {
            SubmitError::Ledger(LedgerError::Invalid(why)) => Problem::new(Code::NotPossible, why),
            other => other.into(),
        })?;
    Ok((StatusCode::CREATED, Json(NewRunIds { run_ids })).into_response())
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewPullRequest {
    /// Of this Task, with a patch.
    #[schema(value_type = String)]
    run_id: RunId,
    /// Opens it as a draft, whatever its proof says. What is not proven is a draft anyway.
    #[serde(default)]
    draft: bool,
}

/// Makes the Task's pull request from the patch of one of its Runs. Choosing the same one again changes nothing.
#[utoipa::path(
    post, path = "/api/v1/tasks/{task_id}/prs", operation_id = "create_pull_request", tag = "runs",
    params(("task_id" = String, Path, description = "`task_…`")), security(("admin_key" = [])), request_body = NewPullRequest,
    responses(
        (status = 200, description = "It had been chosen before", body = TaskBody),
        (status = 201, description = "It is being published; the Task tells of it", body = TaskBody),
        (status = 409, description = "A Run is at work, this one has no patch, or another one was chosen", body = ProblemBody,
         content_type = "application/problem+json"),
    )
)]
pub(crate) async fn create_pull_request(
    State(api): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Named(task): Named<TaskId>,
    Body(body): Body<NewPullRequest>,
) -> Result<Response, Problem> {
    match api.ledger.choose_run(task, body.run_id, body.draft, &caller.actor.name).await {
        Ok(()) => {
            let shown = Json(TaskBody::from(&api.ledger.task(task).await?));
            Ok((StatusCode::CREATED, AppendHeaders([(LOCATION, tasks::address(task))]), shown).into_response())
        }
        Err(LedgerError::Invalid(why)) => {
            let view = api.ledger.task(task).await?;
            let is_chosen = view.run.id == body.run_id && view.is_published();
            if is_chosen {
                Ok(Json(TaskBody::from(&view)).into_response())
            } else {
                Err(Problem::new(Code::NotPossible, why))
            }
        }
        Err(other) => Err(other.into()),
    }
}

/// Stops one of a Task's Runs while the others go on. To stop the last one, cancel the Task.
#[utoipa::path(
    post, path = "/api/v1/tasks/{task_id}/runs/{run_id}/stop", operation_id = "stop_run", tag = "runs",
    params(
        ("task_id" = String, Path, description = "`task_…`"),
        ("run_id" = String, Path, description = "`run_…`, one of the Task's"),
    ),
    security(("admin_key" = [])),
    responses(
        (status = 200, description = "Nobody worked on it, and nobody will", body = Runs),
        (status = 202, description = "Its worker stops at its next sign of life", body = Runs),
        (status = 409, description = "It has ended, or no other Run of the Task goes on", body = ProblemBody,
         content_type = "application/problem+json"),
    )
)]
pub(crate) async fn stop_run(
    State(api): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Named((task, run)): Named<(TaskId, RunId)>,
) -> Result<Response, Problem> {
    let stopped = api.ledger.stop_run(task, run, &caller.actor.name).await.map_err(|error| match error {
        LedgerError::Invalid(why) => Problem::new(Code::NotPossible, why),
        other => other.into(),
    })?;
    let status = match stopped {
        RunStopped::AtOnce => StatusCode::OK,
        RunStopped::Stopping => StatusCode::ACCEPTED,
    };
    let runs = list_runs(State(api), Named(task)).await?;
    Ok((status, runs).into_response())
}
