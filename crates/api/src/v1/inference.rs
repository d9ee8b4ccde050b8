//! Devices, placements and what happened to them, as the inference process of this machine tells it.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use fettle_app::ports::model::ToolCalls;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::problem::{Code, Problem, ProblemBody};
use crate::state::ApiState;

/// Of what happened; a person looks no further back.
const MAX_EVENTS: usize = 200;

#[derive(Serialize, Deserialize, ToSchema)]
pub(crate) struct Device {
    id: String,
    name: String,
    /// The memory that it draws on.
    pool: String,
    /// Devices of one are joined by a fast link.
    island: Option<String>,
    /// `ok`, `degraded`, `waiting`, `quarantined` or `lost`.
    health: String,
    /// Why it is not `ok`, and what is to be done.
    why: Option<String>,
    gpu_percent: Option<u32>,
    memory_percent: Option<u32>,
    watts: Option<f64>,
    celsius: Option<u32>,
}

/// Bytes, as the memory ledger counts them.
#[derive(Serialize, Deserialize, ToSchema)]
pub(crate) struct Pool {
    id: String,
    kind: String,
    #[serde(rename(deserialize = "cap"))]
    capacity_bytes: u64,
    #[serde(rename(deserialize = "free"))]
    free_bytes: u64,
    /// By engines of Fettle.
    #[serde(rename(deserialize = "claimed"))]
    claimed_bytes: u64,
    /// By other programs.
    #[serde(rename(deserialize = "foreign"))]
    foreign_bytes: u64,
    /// That an engine could still have.
    #[serde(rename(deserialize = "available"))]
    available_bytes: u64,
    /// Why it offers nothing, if it does not.
    closed: Option<String>,
}

#[derive(Serialize, Deserialize, ToSchema)]
pub(crate) struct PlacedEngine {
    id: String,
    model: String,
    recipe: String,
    /// `reserved`, `spawning`, `loading`, `ready`, `draining`, `stopping`, `reclaiming`, `sleeping`, `backoff` or `gone`.
    state: String,
    devices: Vec<String>,
    in_flight: u32,
    pinned: bool,
    /// Why it is there, in one sentence.
    why: String,
}

#[derive(Serialize, Deserialize, ToSchema)]
pub(crate) struct RefusedModel {
    model: String,
    /// Who asked for it.
    owner: String,
    why: String,
}

#[derive(Deserialize)]
struct Status {
    devices: Vec<Device>,
    pools: Vec<Pool>,
    models: Vec<String>,
    engines: Vec<PlacedEngine>,
    refused: Vec<RefusedModel>,
    #[serde(default)]
    tool_calls: BTreeMap<String, ToolCalls>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct DeviceList {
    items: Vec<Device>,
    pools: Vec<Pool>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct Placements {
    engines: Vec<PlacedEngine>,
    /// Models that somebody waits for, and why in vain.
    refused: Vec<RefusedModel>,
    /// Models of this machine, loaded or not.
    models: Vec<String>,
}

#[derive(Serialize, Deserialize, ToSchema)]
pub(crate) struct PlacementEvent {
    #[schema(format = DateTime)]
    at: String,
    kind: String,
    model: String,
    engine: Option<String>,
    text: String,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct PlacementEvents {
    items: Vec<PlacementEvent>,
}

async fn ask<T: serde::de::DeserializeOwned>(api: &ApiState, what: &str) -> Result<T, Problem> {
    let away =
        || Problem::new(Code::NotFound, "No inference process runs beside this one, so it has no devices to tell of.");
    let Some(inference) = &api.inference else { return Err(away()) };
    inference.get(what).await.map_err(|error| match error.is_away() {
        true => away(),
        false => Problem::new(Code::Unavailable, "The inference process did not answer as it should.").because(error),
    })
}

/// Of examined models; nothing where nobody can be asked.
pub(super) async fn tool_calls(api: &ApiState) -> BTreeMap<String, ToolCalls> {
    ask::<Status>(api, "status").await.map(|status| status.tool_calls).unwrap_or_default()
}

/// GPUs and whatever else models run on, with memory, load, power and temperature of this moment.
#[utoipa::path(
    get, path = "/api/v1/inference/devices", operation_id = "list_devices", tag = "inference",
    security(("admin_key" = [])),
    responses(
        (status = 200, description = "All of this machine", body = DeviceList),
        (status = 404, description = "No inference process runs here", body = ProblemBody,
         content_type = "application/problem+json"),
    )
)]
pub(crate) async fn list_devices(State(api): State<ApiState>) -> Result<Json<DeviceList>, Problem> {
    let status: Status = ask(&api, "status").await?;
    Ok(Json(DeviceList { items: status.devices, pools: status.pools }))
}

/// Which model is where and why, and which is not and why not.
#[utoipa::path(
    get, path = "/api/v1/inference/placements", operation_id = "list_placements", tag = "inference",
    security(("admin_key" = [])),
    responses(
        (status = 200, description = "Of this moment", body = Placements),
        (status = 404, description = "No inference process runs here", body = ProblemBody,
         content_type = "application/problem+json"),
    )
)]
pub(crate) async fn list_placements(State(api): State<ApiState>) -> Result<Json<Placements>, Problem> {
    let status: Status = ask(&api, "status").await?;
    Ok(Json(Placements { engines: status.engines, refused: status.refused, models: status.models }))
}

/// Loads, evictions and refusals, the newest first.
#[utoipa::path(
    get, path = "/api/v1/inference/events", operation_id = "list_placement_events", tag = "inference",
    security(("admin_key" = [])),
    responses(
        (status = 200, description = "The last 200", body = PlacementEvents),
        (status = 404, description = "No inference process runs here", body = ProblemBody,
         content_type = "application/problem+json"),
    )
)]
pub(crate) async fn list_placement_events(State(api): State<ApiState>) -> Result<Json<PlacementEvents>, Problem> {
    let mut items: Vec<PlacementEvent> = ask(&api, "events").await?;
    items.reverse();
    items.truncate(MAX_EVENTS);
    Ok(Json(PlacementEvents { items }))
}
