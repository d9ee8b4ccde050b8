//! What waits for a worker, what is at work, and who holds it.

use axum::Json;
use axum::extract::State;
use fettle_app::ports::ledger::{OpenJob, Stands};
use fettle_domain::id::{JobId, TaskId, WorkerId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::cursor;
use crate::extract::Parameters;
use crate::problem::Problem;
use crate::state::ApiState;

/// Held jobs, and as many that nobody holds: what a person can look through at once. The overview counts all.
const MAX_JOBS: u16 = 100;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct QueueParameters {
    /// `next` of the page before.
    after: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Queue)]
pub(crate) struct QueueBody {
    /// First those that are held, then those that nobody holds in the order in which they came.
    items: Vec<OpenJobBody>,
    /// There are more than are listed.
    cut: bool,
    /// `after` of the next page, which has further ones that nobody holds; null when there is none.
    next: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = OpenJob)]
struct OpenJobBody {
    #[schema(value_type = String)]
    job_id: JobId,
    /// `run` or `publish`.
    kind: String,
    #[schema(value_type = String)]
    task_id: TaskId,
    /// Of the Task: foreign text.
    title: String,
    repository: Option<String>,
    state: OpenState,
    /// Of a runnable one: since when it could have begun.
    #[schema(value_type = Option<String>, format = DateTime)]
    since: Option<Timestamp>,
    /// Of a delayed one: when it is runnable again. Of a held one: when it goes to another, unless its holder is heard of.
    #[schema(value_type = Option<String>, format = DateTime)]
    until: Option<Timestamp>,
    #[schema(value_type = Option<String>)]
    worker_id: Option<WorkerId>,
    /// Host and process of its holder.
    worker: Option<String>,
    attempts: u16,
    crashes: u16,
    last_failure: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = OpenJobState)]
enum OpenState {
    Held,
    /// Held, and its holder is told to stop.
    Cancelling,
    Runnable,
    Delayed,
    Waiting,
}

impl From<OpenJob> for OpenJobBody {
    fn from(job: OpenJob) -> Self {
        let (state, since, until, holder) = match job.stands {
            Stands::Runnable { since } => (OpenState::Runnable, Some(since), None, None),
            Stands::Delayed { until } => (OpenState::Delayed, None, Some(until), None),
            Stands::Waiting => (OpenState::Waiting, None, None, None),
            Stands::Held { by, name, until, cancelling } => {
                let state = if cancelling { OpenState::Cancelling } else { OpenState::Held };
                (state, None, Some(until), Some((by, name)))
            }
        };
        let (worker_id, worker) = holder.unzip();
        Self {
            job_id: job.job,
            kind: job.kind.name().to_owned(),
            task_id: job.task,
            title: job.title,
            repository: job.repo.map(|repo| repo.to_string()),
            state,
            since,
            until,
            worker_id,
            worker,
            attempts: job.attempts,
            crashes: job.crashes,
            last_failure: job.last_failure,
        }
    }
}

/// Jobs that have not ended: who holds which, and what waits for what. Those that were given up are among the dead ones. What is
/// held is on the first page alone.
#[utoipa::path(
    get, path = "/api/v1/queue", operation_id = "get_queue", tag = "operations", security(("admin_key" = [])), params(QueueParameters),
    responses((status = 200, description = "At most 100 that are held, and 100 that are not", body = QueueBody))
)]
pub(crate) async fn get_queue(
    State(api): State<ApiState>,
    Parameters(parameters): Parameters<QueueParameters>,
) -> Result<Json<QueueBody>, Problem> {
    let after = cursor::after(parameters.after.as_ref(), cursor::read_id)?.map(JobId::from_uuid);
    let mut items = match after {
        None => api.ledger.held_jobs(MAX_JOBS + 1).await?,
        Some(_) => Vec::new(),
    };
    let mut unheld = api.ledger.unheld_jobs(after, MAX_JOBS + 1).await?;
    let more = unheld.len() > MAX_JOBS.into();
    let cut = more || items.len() > MAX_JOBS.into();
    items.truncate(MAX_JOBS.into());
    unheld.truncate(MAX_JOBS.into());
    let next = unheld.last().filter(|_| more).map(|last| cursor::write_id(last.job.as_uuid()));
    items.append(&mut unheld);
    Ok(Json(QueueBody { items: items.into_iter().map(OpenJobBody::from).collect(), cut, next }))
}

#[derive(Serialize, ToSchema)]
pub(crate) struct WorkerList {
    items: Vec<WorkerBody>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Worker)]
struct WorkerBody {
    #[schema(value_type = String)]
    id: WorkerId,
    /// Host and process.
    name: String,
    jobs: Vec<OpenJobBody>,
}

/// Whoever holds jobs: workers, and publishers. The ledger does not know of one that holds none.
#[utoipa::path(
    get, path = "/api/v1/workers", operation_id = "list_workers", tag = "operations", security(("admin_key" = [])),
    responses((status = 200, description = "By name, with what each holds", body = WorkerList))
)]
pub(crate) async fn list_workers(State(api): State<ApiState>) -> Result<Json<WorkerList>, Problem> {
    let mut items: Vec<WorkerBody> = Vec::new();
    for job in api.ledger.held_jobs(MAX_JOBS).await? {
        let Stands::Held { by, name, .. } = &job.stands else { continue };
        let (id, name) = (*by, name.clone());
        match items.iter_mut().find(|one| one.id == id) {
            Some(one) => one.jobs.push(job.into()),
            None => items.push(WorkerBody { id, name, jobs: vec![job.into()] }),
        }
    }
    items.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(Json(WorkerList { items }))
}
