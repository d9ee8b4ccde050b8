//! What this process was configured with: settings and models, without secrets.

use axum::Json;
use axum::extract::State;
use fettle_app::ports::model::ToolCalls;
use serde::Serialize;
use utoipa::ToSchema;

use super::inference::tool_calls;
use crate::problem::Problem;
use crate::state::{ApiState, ConfiguredModel, Setting};

#[derive(Serialize, ToSchema)]
#[schema(as = Settings)]
pub(crate) struct SettingsBody {
    version: &'static str,
    /// The file that was read; null where everything is a default or comes from the environment.
    config_file: Option<String>,
    /// Every key that has a value, also by default; of secrets, the file that each is read from. Models are listed apart.
    items: Vec<SettingBody>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Setting)]
struct SettingBody {
    /// `server.listen`
    key: String,
    /// As it would stand in the file.
    value: String,
    /// A change counts after a reload, and not only after a restart.
    live: bool,
}

impl From<&Setting> for SettingBody {
    fn from(setting: &Setting) -> Self {
        Self { key: setting.key.clone(), value: setting.value.clone(), live: setting.live }
    }
}

/// The configuration that counts now, and where it comes from.
#[utoipa::path(
    get, path = "/api/v1/system/settings", operation_id = "get_settings", tag = "operations",
    security(("admin_key" = [])),
    responses((status = 200, description = "Of this process", body = SettingsBody))
)]
pub(crate) async fn get_settings(State(api): State<ApiState>) -> Json<SettingsBody> {
    let about = api.about.now();
    Json(SettingsBody {
        version: api.version,
        config_file: about.config_file.clone(),
        items: about.settings.iter().map(SettingBody::from).collect(),
    })
}

#[derive(Serialize, ToSchema)]
pub(crate) struct ModelList {
    /// In the order of the configuration: the first is used unless a Task names another.
    items: Vec<ModelBody>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Model)]
struct ModelBody {
    name: String,
    /// `openai-compatible`, `openai`, `anthropic`, `google` or `ollama`.
    kind: String,
    /// It runs on this machine.
    here: bool,
    /// Where its server is, when it is elsewhere.
    server: Option<String>,
    /// The name that the server knows it by.
    known_as: Option<String>,
    context_tokens: u64,
    /// Runs that use it at a time.
    parallel: Option<u16>,
    /// A key is sent with what it is asked.
    with_key: bool,
    pinned: bool,
    examined: Option<ExaminedBody>,
}

/// How it calls tools, as an examination found.
#[derive(Serialize, ToSchema)]
#[schema(as = Examined)]
struct ExaminedBody {
    /// Null when it calls none well enough.
    dialect: Option<String>,
    /// The way of changing a file that it knows best.
    edits: Option<String>,
    right: Option<u32>,
    asked: Option<u32>,
    /// Why it only talks.
    why: Option<String>,
}

impl From<&ToolCalls> for ExaminedBody {
    fn from(found: &ToolCalls) -> Self {
        match found {
            ToolCalls::Form { dialect, edits, stream: _, right, asked } => Self {
                dialect: Some(dialect.clone()),
                edits: Some(edits.clone()),
                right: Some(*right),
                asked: Some(*asked),
                why: None,
            },
            ToolCalls::ChatOnly { why } => {
                Self { dialect: None, edits: None, right: None, asked: None, why: Some(why.clone()) }
            }
        }
    }
}

impl ModelBody {
    fn new(model: &ConfiguredModel, examined: Option<&ToolCalls>) -> Self {
        Self {
            name: model.name.clone(),
            kind: model.kind.clone(),
            here: model.here,
            server: model.server.clone(),
            known_as: model.known_as.clone(),
            context_tokens: model.context_tokens,
            parallel: model.parallel,
            with_key: model.with_key,
            pinned: model.pinned,
            examined: examined.map(ExaminedBody::from),
        }
    }
}

/// The models that Tasks can name. What an examination found is told where the inference process of this machine knows it.
#[utoipa::path(
    get, path = "/api/v1/models", operation_id = "list_models", tag = "operations", security(("admin_key" = [])),
    responses((status = 200, description = "All that are configured", body = ModelList))
)]
pub(crate) async fn list_models(State(api): State<ApiState>) -> Result<Json<ModelList>, Problem> {
    let examined = tool_calls(&api).await;
    let about = api.about.now();
    let items = about.models.iter().map(|model| ModelBody::new(model, examined.get(&model.name)));
    Ok(Json(ModelList { items: items.collect() }))
}
