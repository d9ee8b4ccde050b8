//! Tasks: list, look at, cancel, retry. Making one is in `submit`, following one in `events`.

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::{AppendHeaders, IntoResponse, Response};
use axum::{Extension, Json};
use fettle_app::ports::ledger::{CancelAnswer, LedgerError, RunView, TaskFilter, TaskView};
use fettle_domain::budget::Spent;
use fettle_domain::effect::{Effect, EffectState, Receipt};
use fettle_domain::id::{CorrelationId, EffectId, JobId, RunId, TaskId};
use fettle_domain::label::Label;
use fettle_domain::patch::Patch;
use fettle_domain::proof::{Level, Proof, SuiteCounts};
use fettle_domain::run::{ProvenChange, RunOutcome};
use fettle_domain::task::{Mode, TaskState};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::cursor;
use crate::auth::Caller;
use crate::extract::{Named, Parameters};
use crate::problem::{Code, Problem, ProblemBody};
use crate::state::ApiState;

const DEFAULT_LIMIT: u16 = 50;
/// A page stays below a megabyte and one short read of the ledger.
const MAX_LIMIT: u16 = 200;
/// Who acts with the admin key.
pub(crate) const ADMIN: &str = "admin";

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListParameters {
    /// Items of a page: 1 to 200, 50 when absent.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u16>,
    /// `next` of the page before.
    after: Option<String>,
    /// Only Tasks in this state.
    state: Option<StateWord>,
}

/// Lists Tasks, newest first.
#[utoipa::path(
    get, path = "/api/v1/tasks", operation_id = "list_tasks", tag = "tasks", params(ListParameters),
    security(("admin_key" = [])),
    responses((status = 200, description = "A page, newest first", body = TaskPage))
)]
pub(crate) async fn list_tasks(
    State(api): State<ApiState>,
    Parameters(parameters): Parameters<ListParameters>,
) -> Result<Json<TaskPage>, Problem> {
    let limit = parameters.limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=MAX_LIMIT).contains(&limit) {
        return Err(Problem::refused("?limit", format!("A page has 1 to {MAX_LIMIT} items, not {limit}.")));
    }
    let after = cursor::after(parameters.after.as_ref(), cursor::read)?;
    let filter = TaskFilter { state: parameters.state.map(TaskState::from) };
    let mut tasks = api.ledger.tasks(filter, after, limit + 1).await?;
    let more = tasks.len() > usize::from(limit);
    tasks.truncate(usize::from(limit));
    let next = tasks
        .last()
        .filter(|_| more)
        .map(|last| cursor::write(&fettle_app::ports::ledger::TaskCursor { created_at: last.created_at, id: last.id }));
    Ok(Json(TaskPage { items: tasks.iter().map(TaskSummary::from).collect(), next }))
}

/// One Task with its Run, effects and what the Proof says.
#[utoipa::path(
    get, path = "/api/v1/tasks/{task_id}", operation_id = "get_task", tag = "tasks",
    params(("task_id" = String, Path, description = "`task_…`")), security(("admin_key" = [])),
    responses((status = 200, description = "The Task", body = TaskBody))
)]
pub(crate) async fn get_task(State(api): State<ApiState>, Named(id): Named<TaskId>) -> Result<Json<TaskBody>, Problem> {
    Ok(Json(TaskBody::from(&api.ledger.task(id).await?)))
}

/// Cancels a Task: at once when nobody works on it, else at its worker's next renewal. Repeating it changes nothing.
#[utoipa::path(
    post, path = "/api/v1/tasks/{task_id}/cancel", operation_id = "cancel_task", tag = "tasks",
    params(("task_id" = String, Path, description = "`task_…`")), security(("admin_key" = [])),
    responses(
        (status = 200, description = "Cancelled", body = TaskBody),
        (status = 202, description = "Its worker will be told", body = TaskBody),
        (status = 409, description = "It had ended", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn cancel_task(
    State(api): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Named(id): Named<TaskId>,
) -> Result<(StatusCode, Json<TaskBody>), Problem> {
    let status = match api.ledger.cancel(id, &caller.actor.name).await? {
        CancelAnswer::Cancelled | CancelAnswer::TooLate { state: TaskState::Cancelled } => StatusCode::OK,
        CancelAnswer::Cancelling => StatusCode::ACCEPTED,
        CancelAnswer::TooLate { state } => {
            return Err(Problem::new(Code::TooLate, format!("The Task is {} already.", state.name())));
        }
    };
    Ok((status, Json(TaskBody::from(&api.ledger.task(id).await?))))
}

/// Goes on with a dead Task, or starts the next generation of a finished one.
#[utoipa::path(
    post, path = "/api/v1/tasks/{task_id}/retry", operation_id = "retry_task", tag = "tasks",
    params(("task_id" = String, Path, description = "`task_…`")), security(("admin_key" = [])),
    responses(
        (status = 200, description = "The same Task goes on", body = TaskBody),
        (status = 201, description = "A new Task; `Location` names it", body = TaskBody),
        (status = 409, description = "It has not ended", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn retry_task(
    State(api): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Named(id): Named<TaskId>,
) -> Result<Response, Problem> {
    let retried = api.ledger.retry(id, &caller.actor.name).await.map_err(|error| match error {
        LedgerError::Invalid(why) => Problem::new(Code::NotPossible, why),
        other => other.into(),
    })?;
    let task = Json(TaskBody::from(&api.ledger.task(retried.task).await?));
    Ok(if retried.new {
        (StatusCode::CREATED, AppendHeaders([(LOCATION, address(retried.task))]), task).into_response()
    } else {
        task.into_response()
    })
}

pub(crate) fn address(id: TaskId) -> String {
    format!("/api/v1/tasks/{id}")
}

#[derive(Serialize, ToSchema)]
pub(crate) struct TaskPage {
    items: Vec<TaskSummary>,
    /// `after` of the next page; null on the last one.
    next: Option<String>,
}

/// A Task as a line of a list.
#[derive(Serialize, ToSchema)]
pub(crate) struct TaskSummary {
    #[schema(value_type = String, example = "task_019aa0c5a3c07d6b9f0e2f3a4b5c6d7e")]
    id: TaskId,
    mode: ModeWord,
    /// `owner/name`; null for a probe.
    repository: Option<String>,
    /// The issue's number; null for a Task made from text.
    issue: Option<u64>,
    issue_url: Option<String>,
    title: String,
    state: StateWord,
    /// How its Run ended: `ready_pr`, `draft_pr`, `question`, `no_change_needed`, `declined`, `unsolved`, `stopped` or
    /// `probe_passed`; null before.
    outcome: Option<String>,
    /// Why it waits or failed, when it does.
    note: Option<String>,
    pull_request: Option<PullRequestBody>,
    /// The model asked for; null for the first configured one.
    model: Option<String>,
    /// Labels that a worker must have for its Runs.
    needs: Vec<String>,
    /// Who asked for it.
    actor: String,
    /// `label`, `comment`, `api`, `foreign` or `cli`.
    trigger: String,
    /// Grows with each new Task of the same issue.
    generation: u32,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Task)]
pub(crate) struct TaskBody {
    #[serde(flatten)]
    summary: TaskSummary,
    /// Names the Task's thread in logs, events and journal.
    #[schema(value_type = String)]
    correlation_id: CorrelationId,
    /// The issue's text as of the trigger: foreign text.
    text: String,
    /// The leading one: its end is or will be the Task's.
    run: RunBody,
    effects: Vec<EffectBody>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Run)]
pub(crate) struct RunBody {
    #[schema(value_type = String)]
    id: RunId,
    /// Among the Task's Runs, from 1.
    ordinal: u16,
    /// The model asked for; null for the first configured one.
    model: Option<String>,
    /// What this Run is told and the others are not.
    instruction: Option<String>,
    #[schema(value_type = String)]
    job_id: JobId,
    job_state: String,
    /// Of the newest lease; 0 before the first.
    fence: u64,
    attempts: u16,
    crashes: u16,
    /// Recorded in the journal.
    steps: u32,
    spent: SpentBody,
    /// Null until the Run has ended.
    result: Option<ResultBody>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = RunResult)]
struct ResultBody {
    outcome: String,
    /// Reasons, questions or what was learned, in words: foreign text where the model wrote it.
    notes: Vec<String>,
    model: String,
    /// The commit the Run started from.
    base: Option<String>,
    change: Option<ChangeBody>,
    proof: Option<ProofBody>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Change)]
struct ChangeBody {
    title: String,
    summary: String,
    files: usize,
    lines_added: u64,
    lines_removed: u64,
}

/// What the Proof says, in short.
#[derive(Serialize, ToSchema)]
#[schema(as = Proof)]
struct ProofBody {
    level: LevelWord,
    /// Why the level is not higher.
    reasons: Vec<ReasonBody>,
    /// Tests that fail on the base and pass on the head.
    new_tests: Vec<String>,
    suite: Option<SuiteBody>,
    commands: usize,
}

#[derive(Serialize, ToSchema)]
#[schema(as = ProofReason)]
struct ReasonBody {
    code: String,
    text: String,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Suite)]
struct SuiteBody {
    base: SuiteCountsBody,
    head: SuiteCountsBody,
    fixed: usize,
    broken: usize,
}

#[derive(Serialize, ToSchema)]
#[schema(as = SuiteCounts)]
struct SuiteCountsBody {
    passed: u32,
    failed: u32,
    skipped: u32,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Spent)]
struct SpentBody {
    calls: u32,
    generated_tokens: u64,
    prompt_tokens: u64,
    wall_s: u64,
}

#[derive(Serialize, ToSchema)]
#[schema(as = PullRequest)]
struct PullRequestBody {
    number: u64,
    url: String,
    draft: bool,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Effect)]
struct EffectBody {
    #[schema(value_type = String)]
    id: EffectId,
    /// `push`, `pull_request`, `comment` or `labels`.
    kind: String,
    /// `wanted`, `intended`, `settled` or `withheld`.
    state: String,
    /// The branch and commit, the address, or the reason for withholding.
    detail: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = TaskState)]
pub(crate) enum StateWord {
    Queued,
    Running,
    Waiting,
    Publishing,
    Done,
    Cancelled,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = Mode)]
pub(crate) enum ModeWord {
    /// One Run with small budgets.
    Quickfix,
    /// Larger budgets, two repairs.
    Refine,
    /// Does nothing and proves the path.
    Probe,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ProofLevel)]
enum LevelWord {
    Unproven,
    Weak,
    Proven,
}

impl From<&TaskView> for TaskSummary {
    fn from(task: &TaskView) -> Self {
        Self {
            id: task.id,
            mode: task.mode.into(),
            repository: task.repo.as_ref().map(|repo| repo.name.to_string()),
            issue: task.issue.number,
            issue_url: task.issue.url.clone(),
            title: task.issue.title.clone(),
            state: task.state.into(),
            outcome: task.outcome().map(str::to_owned),
            note: task.note.clone(),
            pull_request: task.effects.iter().find_map(pull_request),
            model: task.model.clone(),
            needs: Vec::<Label>::from(task.needs.clone()).into_iter().map(String::from).collect(),
            actor: task.actor.clone(),
            trigger: task.trigger.clone(),
            generation: task.generation,
            created_at: task.created_at,
            updated_at: task.updated_at,
        }
    }
}

impl From<&TaskView> for TaskBody {
    fn from(task: &TaskView) -> Self {
        Self {
            summary: task.into(),
            correlation_id: task.correlation,
            text: task.issue.body.clone(),
            run: (&task.run).into(),
            effects: task.effects.iter().map(EffectBody::from).collect(),
        }
    }
}

impl From<&RunView> for RunBody {
    fn from(run: &RunView) -> Self {
        Self {
            id: run.id,
            ordinal: run.ordinal,
            model: run.model.clone(),
            instruction: run.instruction.clone(),
            job_id: run.job,
            job_state: run.job_state.clone(),
            fence: run.fence,
            attempts: run.attempts,
            crashes: run.crashes,
            steps: run.steps,
            spent: run.spent.into(),
            result: run.result.as_ref().map(|result| ResultBody {
                outcome: result.outcome.name().to_owned(),
                notes: notes(&result.outcome),
                model: result.model.clone(),
                base: result.base.map(|commit| commit.to_string()),
                change: result.change.as_ref().map(ChangeBody::from),
                proof: result.change.as_ref().map(|change| ProofBody::from(&change.proof)),
            }),
        }
    }
}

fn notes(outcome: &RunOutcome) -> Vec<String> {
    match outcome {
        RunOutcome::ReadyPr | RunOutcome::ProbePassed => Vec::new(),
        RunOutcome::DraftPr { reasons } => reasons.clone(),
        RunOutcome::Question { questions } => questions.clone(),
        RunOutcome::NoChangeNeeded { why } => vec![why.clone()],
        RunOutcome::Declined { reason } => vec![reason.clone()],
        RunOutcome::Unsolved { notes } => vec![notes.clone()],
        RunOutcome::Stopped { limit, notes } => vec![limit.clone(), notes.clone()],
    }
}

impl From<&ProvenChange> for ChangeBody {
    fn from(change: &ProvenChange) -> Self {
        let sum = |lines: fn(&fettle_domain::patch::Change) -> u32, patch: &Patch| -> u64 {
            patch.changes.iter().map(|change| u64::from(lines(change))).sum()
        };
        Self {
            title: change.title.clone(),
            summary: change.summary.clone(),
            files: change.patch.changes.len(),
            lines_added: sum(|change| change.lines_added, &change.patch),
            lines_removed: sum(|change| change.lines_removed, &change.patch),
        }
    }
}

impl From<&Proof> for ProofBody {
    fn from(proof: &Proof) -> Self {
        Self {
            level: match proof.level {
                Level::Unproven => LevelWord::Unproven,
                Level::Weak => LevelWord::Weak,
                Level::Proven => LevelWord::Proven,
            },
            reasons: proof
                .reasons
                .iter()
                .map(|reason| ReasonBody { code: word(&reason.code), text: reason.text.clone() })
                .collect(),
            new_tests: proof.new_tests.iter().map(|test| test.id.clone()).collect(),
            suite: proof.suite.as_ref().map(|suite| SuiteBody {
                base: suite.base.into(),
                head: suite.head.into(),
                fixed: suite.fixed.len(),
                broken: suite.broken.len(),
            }),
            commands: proof.commands.len(),
        }
    }
}

/// The wire's word of a domain enum whose variants carry nothing.
pub(crate) fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        other => unreachable!("a plain enum is written as a string, not {other:?}"),
    }
}

impl From<SuiteCounts> for SuiteCountsBody {
    fn from(counts: SuiteCounts) -> Self {
        Self { passed: counts.passed, failed: counts.failed, skipped: counts.skipped }
    }
}

impl From<Spent> for SpentBody {
    fn from(spent: Spent) -> Self {
        Self {
            calls: spent.calls,
            generated_tokens: spent.generated_tokens,
            prompt_tokens: spent.prompt_tokens,
            wall_s: spent.wall_s,
        }
    }
}

fn pull_request(effect: &Effect) -> Option<PullRequestBody> {
    match &effect.state {
        EffectState::Settled { receipt: Receipt::PullRequest { number, url, draft } } => {
            Some(PullRequestBody { number: *number, url: url.clone(), draft: *draft })
        }
        _ => None,
    }
}

impl From<&Effect> for EffectBody {
    fn from(effect: &Effect) -> Self {
        let (state, detail) = match &effect.state {
            EffectState::Wanted => ("wanted", None),
            EffectState::Intended { .. } => ("intended", None),
            EffectState::Settled { receipt } => match receipt {
                Receipt::Pushed { branch, commit } => ("settled", Some(format!("{branch} at {commit}"))),
                Receipt::PullRequest { url, .. } => ("settled", Some(url.clone())),
                Receipt::Progress { id, .. } | Receipt::Comment { id } => ("settled", Some(format!("comment {id}"))),
                Receipt::Labels => ("settled", None),
                Receipt::Withheld { reason } => ("withheld", Some(reason.clone())),
            },
        };
        Self { id: effect.id, kind: effect.kind.name().to_owned(), state: state.to_owned(), detail }
    }
}

impl From<TaskState> for StateWord {
    fn from(state: TaskState) -> Self {
        match state {
            TaskState::Queued => Self::Queued,
            TaskState::Running => Self::Running,
            TaskState::Waiting => Self::Waiting,
            TaskState::Publishing => Self::Publishing,
            TaskState::Done => Self::Done,
            TaskState::Cancelled => Self::Cancelled,
        }
    }
}

impl From<StateWord> for TaskState {
    fn from(state: StateWord) -> Self {
        match state {
            StateWord::Queued => Self::Queued,
            StateWord::Running => Self::Running,
            StateWord::Waiting => Self::Waiting,
            StateWord::Publishing => Self::Publishing,
            StateWord::Done => Self::Done,
            StateWord::Cancelled => Self::Cancelled,
        }
    }
}

impl From<Mode> for ModeWord {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Quickfix => Self::Quickfix,
            Mode::Refine => Self::Refine,
            Mode::Probe => Self::Probe,
        }
    }
}

impl From<ModeWord> for Mode {
    fn from(mode: ModeWord) -> Self {
        match mode {
            ModeWord::Quickfix => Self::Quickfix,
            ModeWord::Refine => Self::Refine,
            ModeWord::Probe => Self::Probe,
        }
    }
}
