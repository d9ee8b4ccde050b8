//! Workers' pods and the end of their logs, where Fettle runs in a cluster.

use axum::Json;
use axum::extract::State;
use fettle_app::ports::pods::{Pod, PodsError, ShowPods};
use fettle_domain::pod::{self, PodName};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::extract::{Named, Parameters};
use crate::problem::{Code, Problem, ProblemBody};
use crate::state::ApiState;

const DEFAULT_LINES: u16 = 200;
/// What a person scrolls through.
const MAX_LINES: u16 = 2_000;

#[derive(Serialize, ToSchema)]
pub(crate) struct PodList {
    /// The newest first.
    items: Vec<PodBody>,
    /// There are more than are listed.
    cut: bool,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Pod)]
struct PodBody {
    name: String,
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
    phase: String,
    /// Where each Run has a pod of its own: it holds a Run.
    ready: bool,
    restarts: u32,
    node: Option<String>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// Why it does not run, or how it ended: foreign text.
    why: Option<String>,
}

impl From<Pod> for PodBody {
    fn from(pod: Pod) -> Self {
        let Pod { name, phase, ready, restarts, node, created_at, why } = pod;
        Self { name, phase, ready, restarts, node, created_at, why }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = PodLog)]
pub(crate) struct PodLogBody {
    /// Foreign text, without control characters.
    text: String,
    /// Of the asked lines the first are left out, since they are too long together.
    cut: bool,
    /// Lines that may hold a secret and are not shown.
    hidden_lines: usize,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct LogParameters {
    /// The last so many; 200 without, and 2000 at most.
    #[param(minimum = 1, maximum = 2000)]
    lines: Option<u16>,
}

fn pods(api: &ApiState) -> Result<&dyn ShowPods, Problem> {
    let none = || {
        Problem::new(
            Code::NotFound,
            "This dashboard looks at no pods: it runs outside of a cluster, or may not see them.",
        )
    };
    api.pods.as_deref().ok_or_else(none)
}

fn problem(error: PodsError) -> Problem {
    match &error {
        PodsError::NotFound(pod) => Problem::new(Code::NotFound, format!("No worker has the pod {pod}.")),
        PodsError::NotYet(pod, why) => Problem::new(Code::NotPossible, format!("{pod} has no log yet: {why}.")),
        PodsError::Refused(_) => {
            Problem::new(Code::Unavailable, "The cluster does not let this dashboard see pods.").because(error)
        }
        PodsError::Unavailable(_) => Problem::new(Code::Unavailable, "The cluster did not answer.").because(error),
    }
}

/// Pods of workers, where Fettle runs in a cluster and may see them.
#[utoipa::path(
    get, path = "/api/v1/pods", operation_id = "list_pods", tag = "operations", security(("admin_key" = [])),
    responses(
        (status = 200, description = "Up to 200 of this moment", body = PodList),
        (status = 404, description = "There is no cluster, or its pods are not looked at", body = ProblemBody,
         content_type = "application/problem+json"),
    )
)]
pub(crate) async fn list_pods(State(api): State<ApiState>) -> Result<Json<PodList>, Problem> {
    let pods = pods(&api)?.list().await.map_err(problem)?;
    Ok(Json(PodList { items: pods.items.into_iter().map(PodBody::from).collect(), cut: pods.cut }))
}

/// The end of what the worker in a pod has logged.
#[utoipa::path(
    get, path = "/api/v1/pods/{name}/log", operation_id = "get_pod_log", tag = "operations", security(("admin_key" = [])),
    params(("name" = String, Path, description = "Of `list_pods`"), LogParameters),
    responses(
        (status = 200, description = "The last lines, without those that may hold a secret", body = PodLogBody),
        (status = 404, description = "No worker has such a pod, or there is no cluster", body = ProblemBody,
         content_type = "application/problem+json"),
        (status = 409, description = "It has not begun yet", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn get_pod_log(
    State(api): State<ApiState>,
    Named(name): Named<String>,
    Parameters(parameters): Parameters<LogParameters>,
) -> Result<Json<PodLogBody>, Problem> {
    let pods = pods(&api)?;
    let lines = parameters.lines.unwrap_or(DEFAULT_LINES);
    if lines == 0 || lines > MAX_LINES {
        return Err(Problem::refused("?lines", format!("It is a number from 1 to {MAX_LINES}.")));
    }
    let name = PodName::parse(&name).ok_or_else(|| Problem::new(Code::NotFound, "No pod can have this name."))?;
    let log = pods.log(&name, lines).await.map_err(problem)?;
    let shown = pod::readable(&api.publishing.now().secrets, &log.text);
    Ok(Json(PodLogBody { text: shown.text, cut: log.cut, hidden_lines: shown.hidden }))
}
