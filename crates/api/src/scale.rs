//! How many workers could be of use, as a number for whoever adds and removes them.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use fettle_app::ports::ledger::Demand;
use serde::Serialize;
use utoipa::ToSchema;

use crate::problem::{Code, Problem};
use crate::state::ApiState;

/// What the ledger itself knows of Runs; a broker's queue may be behind it.
#[derive(Serialize, ToSchema)]
#[schema(as = Scale)]
pub(crate) struct ScaleBody {
    /// Runs that a worker could begin now, with those whose worker has gone silent.
    runnable: u64,
    /// Runs that a worker holds.
    leased: u64,
    /// Both together: as many workers as would all have something to do.
    busy: u64,
    /// How long the first of the runnable ones has waited.
    oldest_runnable_s: u64,
}

impl From<Demand> for ScaleBody {
    fn from(demand: Demand) -> Self {
        let Demand { runnable, leased, oldest_runnable_s } = demand;
        Self { runnable, leased, busy: runnable + leased, oldest_runnable_s }
    }
}

/// What the work at hand asks for, for KEDA and the like. With the key of `auth.scale_key_file`, which can do nothing else, or
/// the admin or the service key.
#[utoipa::path(
    get, path = "/v1/scale", operation_id = "get_scale", tag = "operations", security(("admin_key" = [])),
    responses((status = 200, description = "Runs that wait and Runs that are worked on", body = ScaleBody))
)]
pub(crate) async fn get_scale(State(api): State<ApiState>, headers: HeaderMap) -> Result<Response, Problem> {
    let keys = [Some(&api.admin_key), Some(&api.worker_key), api.scale_key.as_ref()];
    if !keys.into_iter().flatten().any(|key| key.admits(&headers)) {
        return Err(Problem::new(
            Code::Unauthenticated,
            "Send the key of `auth.scale_key_file`: `Authorization: Bearer …`.",
        ));
    }
    let demand = api.ledger.demand().await?;
    Ok(Json(ScaleBody::from(demand)).into_response())
}
