//! Where Tasks were asked for, and where labels are looked for.

use axum::Json;
use axum::extract::State;
use fettle_app::ports::ledger::TaskView;
use fettle_domain::id::TaskId;
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use crate::problem::Problem;
use crate::state::ApiState;

/// Each is a read of its newest Task besides.
const MAX_REPOSITORIES: u16 = 100;

#[derive(Serialize, ToSchema)]
pub(crate) struct RepositoryList {
    items: Vec<RepositoryBody>,
    /// There are more than are listed.
    cut: bool,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Repository)]
struct RepositoryBody {
    name: String,
    /// `forge.poll_repositories` names it.
    configured: bool,
    tasks: u64,
    /// Of the Tasks, those that have not ended.
    open: u64,
    newest: Option<NewestBody>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = NewestTask)]
struct NewestBody {
    #[schema(value_type = String)]
    task_id: TaskId,
    /// Foreign text.
    title: String,
    state: String,
    outcome: Option<String>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
}

impl From<&TaskView> for NewestBody {
    fn from(task: &TaskView) -> Self {
        Self {
            task_id: task.id,
            title: task.issue.title.clone(),
            state: task.state.name().to_owned(),
            outcome: task.outcome().map(str::to_owned),
            created_at: task.created_at,
        }
    }
}

/// Repositories that Tasks were asked for in, the one with the newest first, and those that are configured.
#[utoipa::path(
    get, path = "/api/v1/repositories", operation_id = "list_repositories", tag = "operations",
    security(("admin_key" = [])),
    responses((status = 200, description = "At most 100 besides those configured", body = RepositoryList))
)]
pub(crate) async fn list_repositories(State(api): State<ApiState>) -> Result<Json<RepositoryList>, Problem> {
    let about = api.about.now();
    let mut seen = api.ledger.seen_repositories(MAX_REPOSITORIES + 1).await?;
    let cut = seen.len() > MAX_REPOSITORIES.into();
    seen.truncate(MAX_REPOSITORIES.into());
    let mut items: Vec<RepositoryBody> = Vec::new();
    for one in seen {
        let newest = api.ledger.task(one.newest).await?;
        let name = newest.repo.as_ref().map(|repo| repo.name.to_string()).unwrap_or_default();
        items.push(RepositoryBody {
            configured: about.repositories.contains(&name),
            name,
            tasks: one.tasks,
            open: one.open,
            newest: Some(NewestBody::from(&newest)),
        });
    }
    let unseen: Vec<_> =
        about.repositories.iter().filter(|name| items.iter().all(|one| one.name != **name)).cloned().collect();
    items.extend(unseen.into_iter().map(|name| RepositoryBody {
        name,
        configured: true,
        tasks: 0,
        open: 0,
        newest: None,
    }));
    Ok(Json(RepositoryList { items, cut }))
}
