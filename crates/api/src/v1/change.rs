//! What a Task's Run has changed, and what was observed about it.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse as _, Response};
use fettle_app::ports::ledger::TaskView;
use fettle_app::showing::{MAX_DIFF_BYTES, ShowError};
use fettle_domain::id::{RunId, TaskId};
use fettle_domain::proof::Proof;
use fettle_domain::run::ProvenChange;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::tasks::word;
use crate::extract::{Named, Parameters};
use crate::problem::{Code, Problem, ProblemBody};
use crate::revision;
use crate::state::ApiState;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ChangeParameters {
    /// Of this Run; absent for the leading one.
    #[param(value_type = Option<String>)]
    run: Option<RunId>,
}

/// A change as text.
#[derive(Serialize, ToSchema)]
#[schema(as = PatchText)]
pub(crate) struct PatchBody {
    /// The commit it stands on.
    base: String,
    /// As `git diff` prints it: foreign text.
    diff: String,
    /// Whether `diff` ends before the change does.
    cut: bool,
}

/// The change of a Task's Run, as `git diff` prints it.
#[utoipa::path(
    get, path = "/api/v1/tasks/{task_id}/patch", operation_id = "get_patch", tag = "tasks",
    params(("task_id" = String, Path, description = "`task_…`"), ChangeParameters), security(("admin_key" = [])),
    responses(
        (status = 200, description = "The change", body = PatchBody),
        (status = 404, description = "There is none, or not yet", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn get_patch(
    State(api): State<ApiState>,
    Named(id): Named<TaskId>,
    Parameters(parameters): Parameters<ChangeParameters>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let task = api.ledger.task(id).await?;
    let change = change(&api, &task, parameters.run).await?;
    // These two make the text; rebuilding it takes a checkout.
    let (base, head) = (change.proof.base.to_string(), change.proof.head_tree.to_string());
    let tag = revision::tag(&[base.as_bytes(), head.as_bytes()]);
    if revision::is_known(&headers, &tag) {
        return Ok(revision::not_modified(tag));
    }
    let diff = api.changes.diff(&task, &change).await.map_err(|error| match error {
        ShowError::Ledger(error) => error.into(),
        ShowError::NoRepository => none(),
        ShowError::Forge(_) | ShowError::Git(_) => {
            Problem::new(Code::Unavailable, "The change could not be rebuilt on its base just now.").because(error)
        }
    })?;
    let body = Json(PatchBody { base, cut: diff.len() >= MAX_DIFF_BYTES, diff });
    Ok((revision::revised(tag), body).into_response())
}

/// Of `run`, or of the leading one.
async fn change(api: &ApiState, task: &TaskView, run: Option<RunId>) -> Result<ProvenChange, Problem> {
    let result = match run.filter(|run| *run != task.run.id) {
        None => task.run.result.clone(),
        Some(id) => {
            let run = api.ledger.runs(task.id).await?.into_iter().find(|run| run.id == id);
            run.ok_or_else(|| Problem::new(Code::NotFound, "This Task has no such Run."))?.result
        }
    };
    result.and_then(|result| result.change).ok_or_else(none)
}

fn none() -> Problem {
    Problem::new(Code::NotFound, "This Task has no change, or not yet.")
}

/// Everything that was observed about a change.
#[derive(Serialize, ToSchema)]
#[schema(as = WholeProof)]
pub(crate) struct WholeProofBody {
    /// `proven`, `weak` or `unproven`.
    level: String,
    base: String,
    head_tree: String,
    architecture: String,
    /// `full` or `landlock`.
    sandbox: String,
    /// `rustc 1.95.0 (…)`, one line a tool.
    toolchain: Vec<String>,
    /// Why the level is not higher.
    reasons: Vec<String>,
    new_tests: Vec<NewTestBody>,
    /// By what the suite said of them; only those that changed or are in doubt.
    suite: Option<SuiteNamesBody>,
    checks: Vec<CheckBody>,
    touched_tests: Vec<TouchedTestBody>,
    commands: Vec<CommandBody>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = NewTest)]
struct NewTestBody {
    id: String,
    /// `passed`, `failed`, `skipped` or `absent`, one for each run of the test alone upon the base.
    base: Vec<String>,
    head: Vec<String>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = SuiteNames)]
struct SuiteNamesBody {
    fixed: Vec<String>,
    broken: Vec<String>,
    vanished: Vec<String>,
    known_failures: Vec<String>,
    flaky: Vec<String>,
    timed_out: bool,
}

/// A build, lint or format command before and after.
#[derive(Serialize, ToSchema)]
#[schema(as = ProofCheck)]
struct CheckBody {
    name: String,
    base_exit: Option<i32>,
    head_exit: Option<i32>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = TouchedTest)]
struct TouchedTestBody {
    path: String,
    /// `extended`, `changed` or `deleted`.
    how: String,
    base_version_on_head: String,
}

#[derive(Serialize, ToSchema)]
#[schema(as = ProofCommand)]
struct CommandBody {
    purpose: String,
    command: String,
    /// `repository`, `operator`, `ecosystem` or `model`.
    source: String,
    tree: String,
    exit: Option<i32>,
    timed_out: bool,
    took_ms: u64,
}

/// Everything that was observed about the change of a Task's Run.
#[utoipa::path(
    get, path = "/api/v1/tasks/{task_id}/proof", operation_id = "get_proof", tag = "tasks",
    params(("task_id" = String, Path, description = "`task_…`"), ChangeParameters), security(("admin_key" = [])),
    responses(
        (status = 200, description = "The whole Proof", body = WholeProofBody),
        (status = 404, description = "There is none, or not yet", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn get_proof(
    State(api): State<ApiState>,
    Named(id): Named<TaskId>,
    Parameters(parameters): Parameters<ChangeParameters>,
) -> Result<Json<WholeProofBody>, Problem> {
    let task = api.ledger.task(id).await?;
    Ok(Json(WholeProofBody::from(&change(&api, &task, parameters.run).await?.proof)))
}

impl From<&Proof> for WholeProofBody {
    fn from(proof: &Proof) -> Self {
        Self {
            level: word(&proof.level),
            base: proof.base.to_string(),
            head_tree: proof.head_tree.to_string(),
            architecture: proof.env.architecture.clone(),
            sandbox: proof.env.sandbox_level.clone(),
            toolchain: proof.env.toolchain.clone(),
            reasons: proof.reasons.iter().map(|reason| reason.text.clone()).collect(),
            new_tests: proof
                .new_tests
                .iter()
                .map(|test| NewTestBody {
                    id: test.id.clone(),
                    base: test.base.iter().map(word).collect(),
                    head: test.head.iter().map(word).collect(),
                })
                .collect(),
            suite: proof.suite.as_ref().map(|suite| SuiteNamesBody {
                fixed: suite.fixed.clone(),
                broken: suite.broken.clone(),
                vanished: suite.vanished.clone(),
                known_failures: suite.known_failures.clone(),
                flaky: suite.flaky.clone(),
                timed_out: suite.timed_out,
            }),
            checks: proof
                .checks
                .iter()
                .map(|check| CheckBody {
                    name: check.name.clone(),
                    base_exit: check.base_exit,
                    head_exit: check.head_exit,
                })
                .collect(),
            touched_tests: proof
                .touched_tests
                .iter()
                .map(|test| TouchedTestBody {
                    path: test.path.to_string(),
                    how: word(&test.how),
                    base_version_on_head: word(&test.base_version_on_head),
                })
                .collect(),
            commands: proof
                .commands
                .iter()
                .map(|command| CommandBody {
                    purpose: command.purpose.clone(),
                    command: command.command.clone(),
                    source: word(&command.source),
                    tree: command.tree.to_string(),
                    exit: command.exit,
                    timed_out: command.timed_out,
                    took_ms: command.took_ms,
                })
                .collect(),
        }
    }
}
