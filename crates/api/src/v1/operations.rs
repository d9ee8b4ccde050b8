//! For operators: jobs that were given up, and whether ledger and forge agree with themselves and each other.

use axum::extract::State;
use axum::{Extension, Json};
use fettle_app::auditing::ForgeAudit;
use fettle_app::ports::ledger::{DeadJob, LedgerError};
use fettle_domain::access::{Action, Object};
use fettle_domain::id::{JobId, TaskId};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::cursor;
use crate::auth::Caller;
use crate::extract::{Named, Parameters};
use crate::problem::{Code, Problem, ProblemBody};
use crate::state::ApiState;

/// Of one answer; whoever has more dead jobs than this has one reason for most of them.
const MAX_DEAD: u16 = 200;
/// Tasks that are compared with the forge unless asked otherwise: a hundred questions at most.
const COMPARED: u16 = 50;
/// More would not be answered within the time that a request has.
const MAX_COMPARED: u16 = 100;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct DeadParameters {
    /// `next` of the page before.
    after: Option<String>,
}

/// Jobs that were given up, the newest first. A job of a Task that was tried again since is not among them.
#[utoipa::path(
    get, path = "/api/v1/dead-jobs", operation_id = "list_dead_jobs", tag = "operations", security(("admin_key" = [])), params(DeadParameters),
    responses((status = 200, description = "At most 200", body = DeadJobs))
)]
pub(crate) async fn list_dead_jobs(
    State(api): State<ApiState>,
    Parameters(parameters): Parameters<DeadParameters>,
) -> Result<Json<DeadJobs>, Problem> {
    let after = cursor::after(parameters.after.as_ref(), cursor::read_id)?.map(JobId::from_uuid);
    let mut dead = api.ledger.dead(after, MAX_DEAD + 1).await?;
    let more = dead.len() > MAX_DEAD.into();
    dead.truncate(MAX_DEAD.into());
    let next = dead.last().filter(|_| more).map(|last| cursor::write_id(last.job.as_uuid()));
    Ok(Json(DeadJobs { items: dead.into_iter().map(DeadJobBody::from).collect(), next }))
}

/// Takes a dead job up again, in its own Task, with its journal: attempts and crashes count anew.
#[utoipa::path(
    post, path = "/api/v1/jobs/{job_id}/redrive", operation_id = "redrive_job", tag = "operations",
    params(("job_id" = String, Path, description = "`job_…`")), security(("admin_key" = [])),
    responses(
        (status = 200, description = "It is queued again", body = RedrivenBody),
        (status = 409, description = "It is not dead, or its issue has another Task at work", body = ProblemBody,
         content_type = "application/problem+json"),
    )
)]
pub(crate) async fn redrive_job(
    State(api): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Named(job): Named<JobId>,
) -> Result<Json<RedrivenBody>, Problem> {
    api.ledger.redrive(job, &caller.actor.name).await.map_err(|error| match error {
        LedgerError::Invalid(why) => Problem::new(Code::NotPossible, why),
        other => other.into(),
    })?;
    Ok(Json(RedrivenBody { job_id: job }))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct AuditParameters {
    /// Also ask the forge about the newest Tasks: for maintainers.
    #[serde(default)]
    forge: bool,
    /// How many: 1 to 100, 50 when absent.
    #[param(minimum = 1, maximum = 100)]
    tasks: Option<u16>,
}

/// Looks for breaches of the invariants: of the ledger, and on request of what the forge has. Changes nothing.
#[utoipa::path(
    get, path = "/api/v1/audit", operation_id = "audit", tag = "operations", params(AuditParameters),
    security(("admin_key" = [])),
    responses((status = 200, description = "What was found; no breach when the lists are empty", body = AuditBody))
)]
pub(crate) async fn audit(
    State(api): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Parameters(parameters): Parameters<AuditParameters>,
) -> Result<Json<AuditBody>, Problem> {
    if parameters.forge {
        caller.may(Action::ForgeAudit, Object::Shared)?;
    }
    let tasks = parameters.tasks.unwrap_or(COMPARED);
    if !(1..=MAX_COMPARED).contains(&tasks) {
        return Err(Problem::refused("?tasks", format!("1 to {MAX_COMPARED} Tasks can be compared, not {tasks}.")));
    }
    let ledger = api.ledger.audit().await?;
    let forge = match parameters.forge {
        true => Some(ForgeAuditBody::from(api.audit.audit(tasks).await?)),
        false => None,
    };
    Ok(Json(AuditBody { ledger, forge }))
}

#[derive(Serialize, ToSchema)]
pub(crate) struct DeadJobs {
    items: Vec<DeadJobBody>,
    /// `after` of the next page; null on the last one.
    next: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = DeadJob)]
struct DeadJobBody {
    #[schema(value_type = String, example = "job_019aa0c5a3c07d6b9f0e2f3a4b5c6d7e")]
    job_id: JobId,
    /// `run` or `publish`.
    kind: String,
    #[schema(value_type = String)]
    task_id: TaskId,
    /// Why it was given up.
    reason: String,
    /// What its holder said last; null when its holders only died.
    last_failure: Option<String>,
    attempts: u16,
    crashes: u16,
}

impl From<DeadJob> for DeadJobBody {
    fn from(dead: DeadJob) -> Self {
        Self {
            job_id: dead.job,
            kind: dead.kind.name().to_owned(),
            task_id: dead.task,
            reason: dead.reason,
            last_failure: dead.last_failure,
            attempts: dead.attempts,
            crashes: dead.crashes,
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = Redriven)]
pub(crate) struct RedrivenBody {
    #[schema(value_type = String)]
    job_id: JobId,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Audit)]
pub(crate) struct AuditBody {
    /// Breaches of I1 to I9, one sentence each.
    ledger: Vec<String>,
    /// Null unless asked for.
    forge: Option<ForgeAuditBody>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = ForgeAudit)]
struct ForgeAuditBody {
    /// Tasks that have written something and could be compared.
    compared: u32,
    /// Breaches of I10, one sentence each.
    breaches: Vec<String>,
    /// Tasks that the forge gave no answer about, and why.
    unasked: Vec<UnaskedBody>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Unasked)]
struct UnaskedBody {
    #[schema(value_type = String)]
    task_id: TaskId,
    why: String,
}

impl From<ForgeAudit> for ForgeAuditBody {
    fn from(audit: ForgeAudit) -> Self {
        let unasked = audit.unasked.into_iter().map(|(task_id, why)| UnaskedBody { task_id, why }).collect();
        Self { compared: audit.compared, breaches: audit.breaches, unasked }
    }
}
