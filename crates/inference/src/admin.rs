//! The admin API of `fettle gpus` and `fettle models`: what is where and why, and orders about devices. It is told from the last
//! step of the placer and asks nobody. Served on a Unix socket that only this user reaches.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use camino::Utf8PathBuf;
use fettle_app::ports::model::ToolCalls;
use fettle_app::ports::serving::{Meter, ModelOrder};
use fettle_app::serving::{Catalog, Notice, Status};
use fettle_engines::{Engines, LogFrom, LogMark, LogPart};
use fettle_gateway::{UsageBy, UsageReader, Used};
use fettle_placement::device::{Device, Health, Pool};
use fettle_placement::engine::EngineState;
use fettle_placement::id::{DeviceId, ModelId, OwnerId, RecipeId};
use fettle_placement::memory_ledger::Account;
use fettle_placement::plan;
use fettle_placement::quantity::Bytes;
use fettle_placement::view::{Class, Policy, Want};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use crate::devices::Order;
use crate::examiner::{Report, Wish};

/// Whoever asks waits for it so long; a driver that wakes its GPUs may take longer.
const FIRST_LOOK: Duration = Duration::from_secs(4);
/// Of a log, for whoever did not look yet: a screen or ten.
const LOG_AT_FIRST: Bytes = Bytes::new(64 << 10);
/// Events that are kept for whoever looks later.
const MAX_EVENTS: usize = 1_000;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeviceView {
    pub id: String,
    pub name: String,
    pub pool: String,
    pub island: Option<String>,
    /// `ok`, `degraded`, `waiting`, `quarantined` or `lost`.
    pub health: String,
    /// Why it is not `ok`, and what is to be done.
    pub why: Option<String>,
    pub gpu_percent: Option<u32>,
    pub memory_percent: Option<u32>,
    pub watts: Option<f64>,
    pub celsius: Option<u32>,
    pub busy_seconds: Option<f64>,
    pub joules: Option<f64>,
}

/// Bytes of one pool, as the memory ledger counts them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PoolView {
    pub id: String,
    pub kind: String,
    pub cap: u64,
    pub free: u64,
    pub claimed: u64,
    pub foreign: u64,
    pub available: u64,
    /// Kept free for what grows unseen.
    pub margin: u64,
    /// How far what is told as used and as free differ.
    pub skew: u64,
    /// Why it offers nothing, if it does not.
    pub closed: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EngineView {
    pub id: String,
    pub model: String,
    pub recipe: String,
    pub state: String,
    pub devices: Vec<String>,
    pub claims: Vec<(String, u64)>,
    pub observed: Vec<(String, u64)>,
    pub in_flight: u32,
    pub reload_ms: u64,
    pub pinned: bool,
    /// The file or folder that it was told to load; absent where a program knows by itself.
    pub weights: Option<Utf8PathBuf>,
    /// Why it is there, in one sentence.
    pub why: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RefusalView {
    pub model: String,
    pub owner: String,
    pub why: String,
    /// Seconds; absent: asking again is of no use.
    pub retry_after: Option<u64>,
}

/// Everything at once, so that what belongs together is of one moment.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct StatusView {
    pub devices: Vec<DeviceView>,
    pub pools: Vec<PoolView>,
    pub models: Vec<String>,
    pub engines: Vec<EngineView>,
    pub refused: Vec<RefusalView>,
    /// Of models that were examined, also of those elsewhere.
    #[serde(default)]
    pub tool_calls: BTreeMap<String, ToolCalls>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EventView {
    /// RFC 3339.
    pub at: String,
    pub kind: String,
    pub model: String,
    pub engine: Option<String>,
    pub text: String,
}

/// A part of an engine's log.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LogView {
    pub engine: String,
    pub text: String,
    /// Where it goes on; to be given as `from` together with the engine's name.
    pub next: String,
}

#[derive(Debug, Deserialize)]
struct LogQuery {
    /// An engine or a model.
    name: String,
    from: Option<String>,
}

#[derive(Debug, Deserialize)]
struct ExamineBody {
    model: String,
    /// Also where its server may want money for that; absent in a request of before.
    #[serde(default)]
    may_cost: bool,
}

#[derive(Debug, Deserialize)]
struct ModelBody {
    model: String,
}

#[derive(Debug, Deserialize)]
struct PlanBody {
    model: String,
    requests: u32,
}

/// What would be done, in sentences.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PlanView {
    pub reasons: Vec<String>,
    pub refusals: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct UsageQuery {
    by: UsageBy,
    /// RFC 3339.
    since: String,
}

#[derive(Debug, Deserialize)]
struct QuarantineBody {
    why: String,
}

/// The last events, newest last.
#[derive(Debug, Default)]
pub struct Events(Mutex<VecDeque<EventView>>);

impl Events {
    pub fn push(&self, at: String, notice: &Notice) {
        let mut events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if events.len() == MAX_EVENTS {
            events.pop_front();
        }
        events.push_back(EventView {
            at,
            kind: notice.kind.name().to_owned(),
            model: notice.model.to_string(),
            engine: notice.engine.as_ref().map(ToString::to_string),
            text: notice.text.clone(),
        });
    }

    fn all(&self) -> Vec<EventView> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

/// What the API tells and whom it orders.
#[derive(Clone)]
pub struct Admin {
    pub status: watch::Receiver<Arc<Status>>,
    pub catalog: Arc<Served>,
    pub engines: Arc<Engines>,
    pub events: Arc<Events>,
    pub orders: mpsc::Sender<Order>,
    pub model_orders: mpsc::Sender<(ModelId, ModelOrder)>,
    pub usage: UsageReader,
    pub wishes: mpsc::Sender<Wish>,
    pub examined: watch::Receiver<Arc<BTreeMap<String, ToolCalls>>>,
}

/// What the configuration has for this machine, as far as it is shown.
#[derive(Debug, Default)]
pub struct Served {
    pub models: Vec<String>,
    pub weights: BTreeMap<RecipeId, Utf8PathBuf>,
    pub policy: Policy,
}

impl Served {
    pub fn of(catalog: &Catalog) -> Self {
        let recipes = catalog.models.iter().flat_map(|model| &model.recipes);
        let named = recipes.filter(|recipe| recipe.weights != "");
        Self {
            policy: catalog.policy.clone(),
            models: catalog.models.iter().map(|model| model.id.to_string()).collect(),
            weights: named.map(|recipe| (recipe.recipe.id.clone(), recipe.weights.clone())).collect(),
        }
    }
}

impl Admin {
    pub fn router(self) -> Router {
        Router::new()
            .route("/admin/v1/status", get(status))
            .route("/admin/v1/events", get(events))
            .route("/admin/v1/examine", post(examine))
            .route("/admin/v1/examine/forget", post(forget))
            .route("/admin/v1/log", get(log))
            .route("/admin/v1/plan", post(would))
            .route("/admin/v1/models/{order}", post(order_model))
            .route("/admin/v1/usage", get(usage))
            .route("/admin/v1/devices/{id}/quarantine", post(quarantine))
            .route("/admin/v1/devices/{id}/release", post(release))
            .with_state(self)
    }
}

/// Right after the start nobody has looked yet, which is not the same as a machine without devices.
async fn status(State(admin): State<Admin>) -> Result<Json<StatusView>, (StatusCode, String)> {
    let mut told = admin.status.clone();
    let looked = told.wait_for(|status| !status.devices.is_empty());
    match tokio::time::timeout(FIRST_LOOK, looked).await {
        Ok(Ok(status)) => Ok(Json(StatusView {
            tool_calls: BTreeMap::clone(&admin.examined.borrow()),
            ..view(&status, &admin.catalog)
        })),
        _ => {
            Err((StatusCode::SERVICE_UNAVAILABLE, "the devices are still being looked for; ask again soon".to_owned()))
        }
    }
}

async fn events(State(admin): State<Admin>) -> Json<Vec<EventView>> {
    Json(admin.events.all())
}

async fn log(State(admin): State<Admin>, Query(query): Query<LogQuery>) -> Result<Json<LogView>, (StatusCode, String)> {
    let bad = || (StatusCode::BAD_REQUEST, "`from` is not what an earlier part ended with".to_owned());
    let from = match &query.from {
        None => LogFrom::Last(LOG_AT_FIRST),
        Some(text) => LogFrom::Mark(mark(text).ok_or_else(bad)?),
    };
    let unread =
        |error: std::io::Error| (StatusCode::INTERNAL_SERVER_ERROR, format!("its log cannot be read: {error}"));
    match admin.engines.log(&query.name, from).await.map_err(unread)? {
        Some(LogPart { engine, text, end }) => {
            Ok(Json(LogView { engine: engine.to_string(), text, next: format!("{}-{}", end.inode, end.offset) }))
        }
        None => {
            let known = admin.catalog.models.contains(&query.name);
            let why = if known { "has never been loaded here" } else { "is no model or engine of this machine" };
            Err((StatusCode::NOT_FOUND, format!("`{}` {why}", query.name)))
        }
    }
}

fn mark(text: &str) -> Option<LogMark> {
    let (inode, offset) = text.split_once('-')?;
    Some(LogMark { inode: inode.parse().ok()?, offset: offset.parse().ok()? })
}

async fn quarantine(
    State(admin): State<Admin>,
    Path(id): Path<String>,
    Json(body): Json<QuarantineBody>,
) -> Result<StatusCode, (StatusCode, String)> {
    let device = known(&admin, &id)?;
    order(&admin, Order::Quarantine { device, why: body.why }).await
}

async fn release(State(admin): State<Admin>, Path(id): Path<String>) -> Result<StatusCode, (StatusCode, String)> {
    let device = known(&admin, &id)?;
    order(&admin, Order::Release(device)).await
}

/// Asks the model some hundred questions and answers when that is done, minutes later.
async fn examine(
    State(admin): State<Admin>,
    Json(body): Json<ExamineBody>,
) -> Result<Json<Report>, (StatusCode, String)> {
    let gone = || (StatusCode::SERVICE_UNAVAILABLE, "the process is shutting down".to_owned());
    let (answer, answered) = oneshot::channel();
    let wish = Wish::Examine { model: body.model, may_cost: body.may_cost, answer };
    admin.wishes.try_send(wish).map_err(|_| {
        (StatusCode::SERVICE_UNAVAILABLE, "other models are being examined; ask again when they are done".to_owned())
    })?;
    answered.await.map_err(|_| gone())?.map(Json).map_err(|why| (StatusCode::CONFLICT, why))
}

/// What was found of the model counts no longer.
async fn forget(State(admin): State<Admin>, Json(body): Json<ModelBody>) -> Result<StatusCode, (StatusCode, String)> {
    let (answer, answered) = oneshot::channel();
    admin.wishes.try_send(Wish::Forget { model: body.model, answer }).map_err(|_| {
        (StatusCode::SERVICE_UNAVAILABLE, "models are being examined; ask again when they are done".to_owned())
    })?;
    let gone = |_| (StatusCode::SERVICE_UNAVAILABLE, "the process is shutting down".to_owned());
    answered.await.map_err(gone)?.map_err(|why| (StatusCode::CONFLICT, why))?;
    Ok(StatusCode::NO_CONTENT)
}

/// What would be done if so many asked for a model now. Nothing is.
async fn would(State(admin): State<Admin>, Json(body): Json<PlanBody>) -> Result<Json<PlanView>, (StatusCode, String)> {
    let status = admin.status.borrow().clone();
    let model = local(&admin, &body.model)?;
    let want = Want {
        model,
        owner: OwnerId::new("a dry run"),
        class: Class::Interactive,
        waiting: body.requests,
        oldest: status.view.now,
        replicas: (0, u8::MAX),
    };
    let policy = admin.catalog.policy.clone();
    // Of a thousand devices it takes a millisecond.
    let placement = plan(&status.view, &[want], &policy);
    Ok(Json(PlanView {
        reasons: placement.reasons.iter().map(ToString::to_string).collect(),
        refusals: placement.refusals.iter().map(|unmet| unmet.refusal.to_string()).collect(),
    }))
}

async fn order_model(
    State(admin): State<Admin>,
    Path(order): Path<ModelOrder>,
    Json(body): Json<ModelBody>,
) -> Result<StatusCode, (StatusCode, String)> {
    let model = local(&admin, &body.model)?;
    let gone = |_| (StatusCode::SERVICE_UNAVAILABLE, "the process is shutting down".to_owned());
    admin.model_orders.send((model, order)).await.map_err(gone)?;
    Ok(StatusCode::ACCEPTED)
}

fn local(admin: &Admin, model: &str) -> Result<ModelId, (StatusCode, String)> {
    match admin.catalog.models.iter().any(|known| known == model) {
        true => Ok(ModelId::new(model)),
        false => Err((StatusCode::NOT_FOUND, format!("this machine runs no model `{model}`"))),
    }
}

async fn usage(
    State(admin): State<Admin>,
    Query(query): Query<UsageQuery>,
) -> Result<Json<Vec<Used>>, (StatusCode, String)> {
    let since = query.since.parse::<Timestamp>();
    let since = since.map_err(|_| (StatusCode::BAD_REQUEST, "`since` is no instant by RFC 3339".to_owned()))?;
    let reader = admin.usage.clone();
    // Hundreds of megabytes where a box has been busy for months.
    let summed = tokio::task::spawn_blocking(move || reader.sums(query.by, since)).await;
    let unread = |error: String| (StatusCode::INTERNAL_SERVER_ERROR, error);
    let summed = summed.map_err(|error| unread(error.to_string()))?;
    summed.map(Json).map_err(|error| unread(format!("what was used cannot be read: {error}")))
}

/// By its whole id or the beginning of one.
fn known(admin: &Admin, id: &str) -> Result<DeviceId, (StatusCode, String)> {
    let status = admin.status.borrow();
    let mut named = status.devices.iter().filter(|device| device.id.as_str().starts_with(id));
    match (named.next(), named.next()) {
        (Some(device), None) => Ok(device.id.clone()),
        (Some(_), Some(_)) => Err((StatusCode::CONFLICT, format!("more than one device begins with `{id}`"))),
        (None, _) => Err((StatusCode::NOT_FOUND, format!("there is no device `{id}`; `fettle gpus` lists them"))),
    }
}

async fn order(admin: &Admin, order: Order) -> Result<StatusCode, (StatusCode, String)> {
    let gone = |_| (StatusCode::SERVICE_UNAVAILABLE, "the process is shutting down".to_owned());
    admin.orders.send(order).await.map_err(gone)?;
    Ok(StatusCode::ACCEPTED)
}

/// Models as configured, also those that no engine runs.
pub fn view(status: &Status, served: &Served) -> StatusView {
    let meter = |device: &Device| status.meters.iter().find(|meter| meter.device == device.id);
    StatusView {
        devices: status.devices.iter().map(|device| device_view(device, meter(device))).collect(),
        pools: status.pools.iter().map(|(pool, account)| pool_view(pool, account)).collect(),
        models: served.models.clone(),
        engines: status.engines.iter().map(|engine| engine_view(engine, served)).collect(),
        tool_calls: BTreeMap::new(),
        refused: status
            .refused
            .iter()
            .map(|refused| RefusalView {
                model: refused.model.to_string(),
                owner: refused.owner.to_string(),
                why: refused.why.clone(),
                retry_after: refused.refusal.retry_after(),
            })
            .collect(),
    }
}

fn device_view(device: &Device, meter: Option<&Meter>) -> DeviceView {
    let (health, why) = match &device.health {
        Health::Ok => ("ok", None),
        Health::Degraded(why) => ("degraded", Some(why.clone())),
        Health::Waiting(what) => ("waiting", Some(format!("{what:?}").to_lowercase())),
        Health::Quarantined(why) => ("quarantined", Some(why.clone())),
        Health::Lost => ("lost", None),
    };
    DeviceView {
        id: device.id.to_string(),
        name: device.name.clone(),
        pool: device.pool.to_string(),
        island: device.island.as_ref().map(ToString::to_string),
        health: health.to_owned(),
        why,
        gpu_percent: meter.and_then(|meter| meter.gpu_percent),
        memory_percent: meter.and_then(|meter| meter.memory_percent),
        watts: meter.and_then(|meter| meter.milliwatts).map(|milliwatts| f64::from(milliwatts) / 1e3),
        celsius: meter.and_then(|meter| meter.celsius),
        busy_seconds: meter.map(|meter| meter.busy.as_secs_f64()),
        joules: meter.and_then(|meter| meter.millijoules).map(|millijoules| millijoules as f64 / 1e3),
    }
}

fn pool_view(pool: &Pool, account: &Account) -> PoolView {
    PoolView {
        id: pool.id.to_string(),
        kind: format!("{:?}", pool.kind).to_lowercase(),
        cap: pool.cap.get(),
        free: pool.free.get(),
        claimed: account.holds().get(),
        foreign: account.foreign().get(),
        available: account.avail().get(),
        margin: pool.margin.get(),
        skew: account.skew().get(),
        closed: account.closed().map(ToString::to_string),
    }
}

fn engine_view(status: &fettle_app::serving::EngineStatus, served: &Served) -> EngineView {
    let engine = &status.engine;
    let amounts = |list: &[(fettle_placement::id::PoolId, fettle_placement::quantity::Bytes)]| {
        list.iter().map(|(pool, bytes)| (pool.to_string(), bytes.get())).collect()
    };
    EngineView {
        id: engine.id.to_string(),
        model: engine.seat.model.to_string(),
        recipe: engine.seat.recipe.to_string(),
        state: state_name(engine.state).to_owned(),
        devices: engine.seat.devices.iter().map(ToString::to_string).collect(),
        claims: amounts(&engine.seat.claims),
        observed: amounts(&engine.observed),
        in_flight: engine.inflight,
        reload_ms: engine.reload.get(),
        pinned: engine.pinned,
        weights: served.weights.get(&engine.seat.recipe).cloned(),
        why: status.why.clone(),
    }
}

pub(crate) fn state_name(state: EngineState) -> &'static str {
    match state {
        EngineState::Reserved => "reserved",
        EngineState::Spawning => "spawning",
        EngineState::Loading => "loading",
        EngineState::Ready => "ready",
        EngineState::Draining { .. } => "draining",
        EngineState::Stopping => "stopping",
        EngineState::Reclaiming => "reclaiming",
        EngineState::Gone => "gone",
        EngineState::Sleeping(_) => "sleeping",
        EngineState::Backoff { .. } => "backoff",
    }
}
