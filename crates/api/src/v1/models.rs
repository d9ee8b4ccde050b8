//! The models that Tasks can name: those of the configuration, and those that people add here.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use fettle_app::adding::{AddedModel, Entered, KeyChange};
use fettle_app::ports::model::ToolCalls;
use fettle_domain::model_profile::{ModelKind, ModelProfile};
use jiff::Timestamp;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::inference::tool_calls;
use crate::auth::{Caller, Detail};
use crate::extract::{Body, Named};
use crate::problem::{Code, Problem};
use crate::state::{ApiState, ConfiguredModel};

/// A model that answers one word later is too slow for people who look at a button; a request ends a little later.
const TRY_LIMIT: Duration = Duration::from_secs(25);
/// Of one account within a minute: each costs tokens, and comes before whatever Runs ask.
const TRIES: u32 = 20;
/// Of its answer.
const MAX_SHOWN_CHARS: usize = 300;

#[derive(Serialize, ToSchema)]
pub(crate) struct ModelList {
    /// In the order of the configuration, then those that were added, by name: the first is used unless a Task names another.
    items: Vec<ModelBody>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Model)]
pub(crate) struct ModelBody {
    name: String,
    /// `openai-compatible`, `openai`, `anthropic`, `google` or `ollama`.
    kind: String,
    /// It runs on this machine.
    here: bool,
    /// It was added here and can be changed; others are changed in the configuration.
    added: bool,
    /// Where its server is, when it is elsewhere.
    server: Option<String>,
    /// The name that the server knows it by.
    known_as: Option<String>,
    context_tokens: u64,
    /// Runs that use it at a time.
    parallel: Option<u16>,
    /// A key is sent with what it is asked.
    with_key: bool,
    /// Why the key that was entered cannot be used; it has to be entered again.
    key_lost: Option<String>,
    pinned: bool,
    /// Of one that was added.
    #[schema(value_type = Option<String>, format = DateTime)]
    changed_at: Option<Timestamp>,
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
    fn configured(model: &ConfiguredModel, examined: Option<&ToolCalls>) -> Self {
        Self {
            name: model.name.clone(),
            kind: model.kind.clone(),
            here: model.here,
            added: false,
            server: model.server.clone(),
            known_as: model.known_as.clone(),
            context_tokens: model.context_tokens,
            parallel: model.parallel,
            with_key: model.with_key,
            key_lost: None,
            pinned: model.pinned,
            changed_at: None,
            examined: examined.map(ExaminedBody::from),
        }
    }

    fn added(model: &AddedModel, examined: Option<&ToolCalls>) -> Self {
        let AddedModel { profile, key, changed_at } = model;
        Self {
            name: profile.name.clone(),
            kind: profile.kind.name().to_owned(),
            here: false,
            added: true,
            server: profile.server().map(str::to_owned),
            known_as: profile.known_as.clone(),
            context_tokens: profile.context_tokens,
            parallel: None,
            with_key: !matches!(key, Entered::None),
            key_lost: match key {
                Entered::Lost(why) => Some(why.to_string()),
                Entered::None | Entered::Open(_) => None,
            },
            pinned: false,
            changed_at: Some(*changed_at),
            examined: examined.map(ExaminedBody::from),
        }
    }
}

/// The models that Tasks can name. What an examination found is told where the inference process of this machine knows it.
#[utoipa::path(
    get, path = "/api/v1/models", operation_id = "list_models", tag = "models", security(("admin_key" = [])),
    responses((status = 200, description = "All there are", body = ModelList))
)]
pub(crate) async fn list_models(State(api): State<ApiState>) -> Result<Json<ModelList>, Problem> {
    let examined = tool_calls(&api).await;
    let about = api.about.now();
    let configured = about.models.iter().map(|model| ModelBody::configured(model, examined.get(&model.name)));
    let added = api.adding.as_ref().map(|adding| adding.now()).unwrap_or_default();
    let added = added.models.iter().map(|model| ModelBody::added(model, examined.get(&model.profile.name)));
    Ok(Json(ModelList { items: configured.chain(added).collect() }))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WantedModel {
    /// `openai-compatible`, `openai`, `anthropic`, `google` or `ollama`.
    kind: String,
    /// As the server documents it, mostly ending in `/v1`; may be left out but for `openai-compatible`.
    #[serde(default)]
    base_url: Option<String>,
    /// The name that the server knows it by, if that is another.
    #[serde(default)]
    known_as: Option<String>,
    /// Its window: prompt and answer together.
    context_tokens: u64,
    /// What its server is shown. Kept sealed, and never shown again. Absent: as it was.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    api_key: Option<SecretString>,
    /// Takes the key away that it has.
    #[serde(default)]
    without_key: bool,
}

/// Adds a model on a server elsewhere, or changes one that was added. It can be named a moment later.
///
/// A key goes to the server that it was entered for alone: with another address it has to be entered again.
#[utoipa::path(
    put, path = "/api/v1/models/{name}", operation_id = "put_model", tag = "models", security(("admin_key" = [])),
    params(("name" = String, Path, description = "What people call it: one word")), request_body = WantedModel,
    responses(
        (status = 200, description = "It was changed", body = ModelBody),
        (status = 201, description = "It was added", body = ModelBody),
    )
)]
pub(crate) async fn put_model(
    State(api): State<ApiState>,
    Named(name): Named<String>,
    Body(body): Body<WantedModel>,
) -> Result<(StatusCode, Extension<Detail>, Json<ModelBody>), Problem> {
    let kinds = || ModelKind::ALL.map(ModelKind::name).join(", ");
    let kind = ModelKind::parse(&body.kind)
        .ok_or_else(|| Problem::refused("/kind", format!("`{}` is none of: {}.", body.kind, kinds())))?;
    let given = |text: Option<String>| text.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
    let (base_url, known_as) = (given(body.base_url), given(body.known_as));
    let key = match (body.api_key, body.without_key) {
        (Some(_), true) => return Err(Problem::refused("/without_key", "Give a key, or take it away: not both.")),
        (Some(key), false) => KeyChange::New(key),
        (None, true) => KeyChange::Take,
        (None, false) => KeyChange::Keep,
    };
    let of_key = match &key {
        KeyChange::New(_) => ", with a new key",
        KeyChange::Take => ", without a key",
        KeyChange::Keep => "",
    };
    let profile = ModelProfile { name: name.clone(), kind, base_url, known_as, context_tokens: body.context_tokens };
    let adding = api.adding()?;
    let is_new = adding.put_model(profile, key).await?;
    let now = adding.now();
    let gone = || Problem::new(Code::NotFound, format!("`{name}` was removed by somebody else a moment ago."));
    let model = now.model(&name).ok_or_else(gone)?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    let server = model.profile.server().unwrap_or_default();
    let detail = Detail(format!("{} at {server}{of_key}", model.profile.kind.name()));
    Ok((status, Extension(detail), Json(ModelBody::added(model, None))))
}

/// Removes a model that was added, with its key. Runs that ask it wait for one of that name.
#[utoipa::path(
    delete, path = "/api/v1/models/{name}", operation_id = "remove_model", tag = "models", security(("admin_key" = [])),
    params(("name" = String, Path,)), responses((status = 204, description = "It is gone"))
)]
pub(crate) async fn remove_model(
    State(api): State<ApiState>,
    Named(name): Named<String>,
) -> Result<StatusCode, Problem> {
    api.adding()?.remove_model(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Serialize, ToSchema)]
pub(crate) struct TriedModel {
    answered: bool,
    milliseconds: u64,
    /// What it said, cut at 300 characters. Foreign text.
    text: Option<String>,
    /// Why it did not answer.
    why: Option<String>,
}

/// Asks a model one small question, by the way on which Runs ask. Costs some tokens; one of this machine is loaded for it.
#[utoipa::path(
    post, path = "/api/v1/models/{name}/try", operation_id = "try_model", tag = "models", security(("admin_key" = [])),
    params(("name" = String, Path,)), responses((status = 200, description = "Whether it answers", body = TriedModel))
)]
pub(crate) async fn try_model(
    State(api): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Named(name): Named<String>,
) -> Result<Json<TriedModel>, Problem> {
    let (about, added) = (api.about.now(), api.adding.as_ref().map(|adding| adding.now()).unwrap_or_default());
    if about.models.iter().all(|model| model.name != name) && added.model(&name).is_none() {
        return Err(Problem::new(Code::NotFound, format!("No model is called `{name}`.")));
    }
    let tries = api.tries.as_ref();
    let tries = tries.ok_or_else(|| Problem::new(Code::NotConfigured, "There is no gateway to ask models at."))?;
    api.limits.take(format!("try {}", caller.actor.name), TRIES)?;
    let asked = tokio::time::Instant::now();
    let tried = tokio::time::timeout(TRY_LIMIT, tries.try_model(&name)).await;
    let took = |took: Duration| u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    Ok(Json(match tried {
        Ok(Ok(answered)) => TriedModel {
            answered: true,
            milliseconds: took(answered.took),
            text: Some(answered.text.chars().take(MAX_SHOWN_CHARS).collect()),
            why: None,
        },
        Ok(Err(why)) => TriedModel { answered: false, milliseconds: took(asked.elapsed()), text: None, why: Some(why) },
        Err(_) => TriedModel {
            answered: false,
            milliseconds: took(TRY_LIMIT),
            text: None,
            why: Some(format!(
                "It has not answered within {} s. If it runs on this machine it may still be loading: try again.",
                TRY_LIMIT.as_secs()
            )),
        },
    }))
}

#[derive(Serialize, ToSchema)]
pub(crate) struct RotatedSecrets {
    /// Names the key that seals from now on.
    key: String,
    /// Secrets that were sealed anew.
    resealed: u32,
    /// Models whose key no longer opens; it has to be entered again.
    lost: Vec<String>,
    /// Names of keys that nothing needs any more.
    retired: Vec<String>,
    /// Fettle made the new key itself and has thrown the retired ones away. Else the operator takes them out of his file.
    own_file: bool,
}

/// Seals all secrets that people entered with another key.
#[utoipa::path(
    post, path = "/api/v1/secrets/rotate", operation_id = "rotate_secrets", tag = "operations",
    security(("admin_key" = [])),
    responses((status = 200, description = "All that open are sealed with the newest key", body = RotatedSecrets))
)]
pub(crate) async fn rotate_secrets(State(api): State<ApiState>) -> Result<Json<RotatedSecrets>, Problem> {
    let rotated = api.adding()?.rotate().await?;
    Ok(Json(RotatedSecrets {
        key: rotated.key,
        resealed: rotated.resealed,
        lost: rotated.lost,
        retired: rotated.retired,
        own_file: rotated.own_file,
    }))
}
