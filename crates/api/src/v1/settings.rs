//! What this process was configured with, without secrets.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use crate::state::{ApiState, Setting};

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
