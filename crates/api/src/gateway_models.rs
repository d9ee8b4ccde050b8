//! What a gateway is told by the dashboard: the models that people added, with their keys. On the internal listener alone, behind a
//! secret that both make of the key of run tokens.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use fettle_app::adding::{Added, AddedModel, Entered};
use fettle_app::ports::chain;
use fettle_domain::model_profile::ModelProfile;
use jiff::Timestamp;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{StatusCode, Url};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::edge;
use crate::problem::{Code, Problem};
use crate::state::ApiState;

/// How soon a model that was added is known.
const ASK_EVERY: Duration = Duration::from_secs(5);
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
const PATH: &str = "/gateway/v1/models";

#[derive(Serialize, Deserialize)]
struct ModelsBody {
    models: Vec<ModelBody>,
}

#[derive(Serialize, Deserialize)]
struct ModelBody {
    profile: ModelProfile,
    /// The secret on this wire.
    key: Option<String>,
    changed_at: Timestamp,
}

pub(crate) fn routes(api: &ApiState) -> Router<ApiState> {
    Router::new()
        .route(PATH, get(list))
        .route_layer(middleware::from_fn(edge::time_limit))
        .route_layer(middleware::from_fn_with_state(api.clone(), require_gateway))
}

async fn require_gateway(State(api): State<ApiState>, request: Request, next: Next) -> Response {
    if api.gateway_key.as_ref().is_some_and(|key| key.admits(request.headers())) {
        return next.run(request).await;
    }
    Problem::new(Code::Unauthenticated, "This is for gateways that have the same key of run tokens.").into_response()
}

async fn list(State(api): State<ApiState>) -> Json<ModelsBody> {
    let added = api.adding.as_ref().map(|adding| adding.now()).unwrap_or_default();
    let body = |model: &AddedModel| ModelBody {
        profile: model.profile.clone(),
        key: model.key.open().map(|key| key.expose_secret().to_owned()),
        changed_at: model.changed_at,
    };
    Json(ModelsBody { models: added.models.iter().map(body).collect() })
}

/// Asks a dashboard by the clock. What it said last counts while it is away.
pub struct GatewayModels {
    http: reqwest::Client,
    url: Url,
    authorization: HeaderValue,
}

#[derive(Debug, thiserror::Error)]
pub enum GatewayModelsError {
    #[error("`{0}` is not the http or https address of a dashboard's internal listener")]
    Address(String),
    #[error("could not set up the HTTP client")]
    Setup(#[source] reqwest::Error),
}

#[derive(Debug, thiserror::Error)]
enum Unanswered {
    #[error("it could not be asked")]
    Asked(#[from] reqwest::Error),
    #[error("it has another key of run tokens: give both the same gateway.run_token_key_file or auth.worker_key_file")]
    AnotherKey,
}

impl GatewayModels {
    /// `dashboard_url`: of the internal listener.
    pub fn new(dashboard_url: &str, secret: &SecretString) -> Result<Self, GatewayModelsError> {
        let address = || GatewayModelsError::Address(dashboard_url.to_owned());
        let mut url = Url::parse(dashboard_url).map_err(|_| address())?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(address());
        }
        url.set_path(PATH);
        let mut authorization =
            HeaderValue::try_from(format!("Bearer {}", secret.expose_secret())).map_err(|_| address())?;
        authorization.set_sensitive(true);
        let http = reqwest::Client::builder().timeout(ANSWER_LIMIT).redirect(Policy::none()).no_proxy().build();
        Ok(Self { http: http.map_err(GatewayModelsError::Setup)?, url, authorization })
    }

    /// Until `stop`.
    pub async fn follow(&self, told: &watch::Sender<Arc<Added>>, stop: &CancellationToken) {
        let mut every = interval(ASK_EVERY);
        let mut trouble: Option<String> = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = every.tick() => {}
            }
            match self.ask().await {
                Ok(added) => {
                    if trouble.take().is_some() {
                        info!("the dashboard tells which models people added");
                    }
                    told.send_if_modified(|before| {
                        let changed = **before != added;
                        if changed {
                            *before = Arc::new(added);
                        }
                        changed
                    });
                }
                Err(error) => {
                    let error = chain(&error);
                    if trouble.as_ref() != Some(&error) {
                        warn!(
                            "models that people add in the browser are not known here, since the dashboard does not tell them: {error}"
                        );
                    }
                    trouble = Some(error);
                }
            }
        }
    }

    async fn ask(&self) -> Result<Added, Unanswered> {
        let asked = self.http.get(self.url.clone()).header(AUTHORIZATION, self.authorization.clone()).send().await?;
        if asked.status() == StatusCode::UNAUTHORIZED {
            return Err(Unanswered::AnotherKey);
        }
        let ModelsBody { models } = asked.error_for_status()?.json().await?;
        let added = |ModelBody { profile, key, changed_at }| AddedModel {
            profile,
            key: key.map_or(Entered::None, |key| Entered::Open(key.into())),
            changed_at,
        };
        Ok(Added { models: models.into_iter().map(added).collect(), ..Added::default() })
    }
}
