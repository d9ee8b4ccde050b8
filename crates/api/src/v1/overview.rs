//! How much waits, is at work and lies given up, and from where to follow on.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use crate::problem::Problem;
use crate::state::ApiState;

/// Of one moment.
#[derive(Serialize, ToSchema)]
#[schema(as = Overview)]
pub(crate) struct OverviewBody {
    /// The newest event's number; following after it misses nothing that comes after this answer.
    newest_event: u64,
    version: &'static str,
    jobs: JobCounts,
    /// How long the first runnable job has waited.
    oldest_runnable_s: u64,
    /// Webhooks and messages that nobody has looked at yet.
    open_deliveries: u64,
    ready: ReadyBody,
    /// `list_pods` has an answer: this runs in a cluster, and may see workers' pods.
    shows_pods: bool,
}

/// What has to be there before an issue can become a pull request.
#[derive(Serialize, ToSchema)]
#[schema(as = Ready)]
struct ReadyBody {
    /// There is a model to ask.
    model: bool,
    /// The forge lets us write.
    forge: bool,
    /// Labels reach us: by webhooks, or since some repository is looked at.
    repository: bool,
}

impl ReadyBody {
    fn of(api: &ApiState) -> Self {
        let about = api.about.now();
        let added = api.adding.as_ref().map(|adding| adding.now()).unwrap_or_default();
        Self {
            model: !about.models.is_empty() || !added.models.is_empty(),
            forge: api.adding.as_ref().is_none_or(|adding| adding.can_write()),
            repository: about.forge.webhooks || about.forge.looks || !added.repositories.is_empty(),
        }
    }
}

/// Runs and publish jobs together.
#[derive(Serialize, ToSchema)]
struct JobCounts {
    runnable: u64,
    /// Runnable again at a time.
    delayed: u64,
    /// Runnable again when something happens.
    waiting: u64,
    leased: u64,
    /// Given up; a person decides.
    dead: u64,
}

/// The queue in numbers, and the newest event.
#[utoipa::path(
    get, path = "/api/v1/overview", operation_id = "get_overview", tag = "operations",
    security(("admin_key" = [])),
    responses((status = 200, description = "Of this moment", body = OverviewBody))
)]
pub(crate) async fn get_overview(State(api): State<ApiState>) -> Result<Json<OverviewBody>, Problem> {
    // Read first: an event of meanwhile is told twice rather than not at all.
    let newest_event = *api.ledger.newest_event().borrow();
    let depth = api.ledger.depth().await?;
    Ok(Json(OverviewBody {
        newest_event,
        version: api.version,
        jobs: JobCounts {
            runnable: depth.runnable,
            delayed: depth.delayed,
            waiting: depth.waiting,
            leased: depth.leased,
            dead: depth.dead,
        },
        oldest_runnable_s: depth.oldest_runnable_s,
        open_deliveries: depth.open_deliveries,
        ready: ReadyBody::of(&api),
        shows_pods: api.pods.is_some(),
    }))
}
