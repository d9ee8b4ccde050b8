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
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::edge;
use crate::extract::Parameters;
use crate::problem::{Code, Problem};
use crate::state::ApiState;

/// A question stays open for so long while nothing changes, so that a model is known a moment after it was added.
const OPEN_FOR: Duration = Duration::from_secs(25);
const ANSWER_LIMIT: Duration = Duration::from_secs(40);
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// Between two answers: dashboards that differ would be asked without end.
const BREATH: Duration = Duration::from_millis(250);
/// After a question without an answer.
const PAUSE: Duration = Duration::from_secs(2);
const PATH: &str = "/gateway/v1/models";

#[derive(Serialize, Deserialize)]
struct ModelsBody {
    /// To be shown with the next question.
    version: String,
    models: Vec<ModelBody>,
    /// Keys are told only where workers cannot ask for them.
    #[serde(default)]
    keys_withheld: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelsParameters {
    /// The version that the gateway knows; it is answered when there is another one.
    seen: Option<String>,
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

async fn list(State(api): State<ApiState>, Parameters(asks): Parameters<ModelsParameters>) -> Json<ModelsBody> {
    let Some(adding) = &api.adding else { return Json(body(&Added::default(), false)) };
    let withheld = api.workers_are_gateways;
    let mut added = adding.follow();
    let news = async {
        loop {
            let body = body(&added.borrow_and_update().clone(), withheld);
            if asks.seen.as_ref() != Some(&body.version) || added.changed().await.is_err() {
                return body;
            }
        }
    };
    let waited = tokio::select! {
        () = api.shutdown.cancelled() => None,
        waited = timeout(OPEN_FOR, news) => waited.ok(),
    };
    Json(waited.unwrap_or_else(|| body(&adding.now(), withheld)))
}

fn body(added: &Added, withheld: bool) -> ModelsBody {
    let body = |model: &AddedModel| ModelBody {
        profile: model.profile.clone(),
        key: model.key.open().filter(|_| !withheld).map(|key| key.expose_secret().to_owned()),
        changed_at: model.changed_at,
    };
    let models: Vec<ModelBody> = added.models.iter().map(body).collect();
    let text = serde_json::to_vec(&models).expect("models are plain data");
    let keys_withheld = withheld && added.models.iter().any(|model| model.key.open().is_some());
    ModelsBody { version: hex::encode(Sha256::digest(text)), models, keys_withheld }
}

/// Asks a dashboard, again and again. What it said last counts while it is away.
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
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_LIMIT)
            .timeout(ANSWER_LIMIT)
            .redirect(Policy::none())
            .no_proxy()
            .build();
        Ok(Self { http: http.map_err(GatewayModelsError::Setup)?, url, authorization })
    }

    /// Until `stop`.
    pub async fn follow(&self, told: &watch::Sender<Arc<Added>>, stop: &CancellationToken) {
        let mut trouble: Option<String> = None;
        let mut seen = None;
        loop {
            let answer = tokio::select! {
                () = stop.cancelled() => return,
                answer = self.ask(seen.as_deref()) => answer,
            };
            match answer {
                Ok((version, added)) => {
                    seen = Some(version);
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
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = sleep(BREATH) => {}
                    }
                }
                Err(error) => {
                    let error = chain(&error);
                    if trouble.as_ref() != Some(&error) {
                        warn!(
                            "models that people add in the browser are not known here, since the dashboard does not tell them: {error}"
                        );
                    }
                    trouble = Some(error);
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = sleep(PAUSE) => {}
                    }
                }
            }
        }
    }

    async fn ask(&self, seen: Option<&str>) -> Result<(String, Added), Unanswered> {
        let mut url = self.url.clone();
        url.set_query(seen.map(|seen| format!("seen={seen}")).as_deref());
        let asked = self.http.get(url).header(AUTHORIZATION, self.authorization.clone()).send().await?;
        if asked.status() == StatusCode::UNAUTHORIZED {
            return Err(Unanswered::AnotherKey);
        }
        let ModelsBody { version, models, keys_withheld } = asked.error_for_status()?.json().await?;
        if keys_withheld {
            warn!(
                "models that people added are asked without their keys: workers know what this gateway shows to the dashboard. Give both, and no worker, the same gateway.run_token_key_file"
            );
        }
        let added = |ModelBody { profile, key, changed_at }| AddedModel {
            profile,
            key: key.map_or(Entered::None, |key| Entered::Open(key.into())),
            changed_at,
        };
        Ok((version, Added { models: models.into_iter().map(added).collect(), ..Added::default() }))
    }
}
