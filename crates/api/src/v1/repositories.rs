//! Where Tasks were asked for, and where labels are looked for; repositories that people add.

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use fettle_app::ports::ledger::TaskView;
use fettle_domain::id::TaskId;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::auth::Detail;
use crate::extract::{Body, Named};
use crate::problem::{Code, Problem};
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
    /// It was added here, and can be removed.
    added: bool,
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

/// Repositories that Tasks were asked for in, the one with the newest first, and those that are configured or added.
#[utoipa::path(
    get, path = "/api/v1/repositories", operation_id = "list_repositories", tag = "operations",
    security(("admin_key" = [])),
    responses((status = 200, description = "At most 100 besides those configured or added", body = RepositoryList))
)]
pub(crate) async fn list_repositories(State(api): State<ApiState>) -> Result<Json<RepositoryList>, Problem> {
    let about = api.about.now();
    let added = api.adding.as_ref().map(|adding| adding.now()).unwrap_or_default();
    let added: Vec<String> = added.repositories.iter().map(ToString::to_string).collect();
    let mut seen = api.ledger.seen_repositories(MAX_REPOSITORIES + 1).await?;
    let cut = seen.len() > MAX_REPOSITORIES.into();
    seen.truncate(MAX_REPOSITORIES.into());
    let mut items: Vec<RepositoryBody> = Vec::new();
    for one in seen {
        let newest = api.ledger.task(one.newest).await?;
        let name = newest.repo.as_ref().map(|repo| repo.name.to_string()).unwrap_or_default();
        items.push(RepositoryBody {
            configured: about.repositories.contains(&name),
            added: added.contains(&name),
            name,
            tasks: one.tasks,
            open: one.open,
            newest: Some(NewestBody::from(&newest)),
        });
    }
    let listed = about.repositories.iter().chain(&added);
    for name in listed {
        if items.iter().any(|one| one.name == *name) {
            continue;
        }
        items.push(RepositoryBody {
            name: name.clone(),
            configured: about.repositories.contains(name),
            added: added.contains(name),
            tasks: 0,
            open: 0,
            newest: None,
        });
    }
    Ok(Json(RepositoryList { items, cut }))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WantedRepository {
    /// `owner/name`, or its URL on the forge.
    repository: String,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct AddedRepository {
    /// As the forge writes it.
    name: String,
    default_branch: String,
    private: bool,
}

/// Adds a repository: issues in it are looked at for the label that asks for work, within the period of looking.
#[utoipa::path(
    post, path = "/api/v1/repositories", operation_id = "add_repository", tag = "operations",
    security(("admin_key" = [])), request_body = WantedRepository,
    responses(
        (status = 200, description = "It was there already", body = AddedRepository),
        (status = 201, description = "It was added", body = AddedRepository),
    )
)]
pub(crate) async fn add_repository(
    State(api): State<ApiState>,
    Body(body): Body<WantedRepository>,
) -> Result<(StatusCode, Extension<Detail>, Json<AddedRepository>), Problem> {
    let (repo, is_new) = api.adding()?.add_repository(&body.repository).await?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    let added =
        AddedRepository { name: repo.name.to_string(), default_branch: repo.default_branch, private: repo.private };
    Ok((status, Extension(Detail(added.name.clone())), Json(added)))
}

/// Removes a repository that was added. Its Tasks stay, and go on.
#[utoipa::path(
    delete, path = "/api/v1/repositories/{owner}/{name}", operation_id = "remove_repository", tag = "operations",
    security(("admin_key" = [])), params(("owner" = String, Path,), ("name" = String, Path,)),
    responses((status = 204, description = "It is looked at no more"))
)]
pub(crate) async fn remove_repository(
    State(api): State<ApiState>,
    Named((owner, name)): Named<(String, String)>,
) -> Result<StatusCode, Problem> {
    let unknown = |_| Problem::new(Code::NotFound, "Nothing of that name was added here.");
    let name = format!("{owner}/{name}").parse().map_err(unknown)?;
    api.adding()?.remove_repository(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}
