//! Health and metrics of `fettle-inference`, on a listener that callers of models do not reach.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use fettle_api::PartsHealth;
use prometheus::{Registry, TEXT_FORMAT, TextEncoder};

#[derive(Clone)]
pub struct Health {
    pub registry: Registry,
    pub parts: Arc<PartsHealth>,
}

impl Health {
    pub fn router(self) -> Router {
        let mut router = Router::new().route("/metrics", get(metrics));
        for path in ["/healthz", "/livez", "/health/live"] {
            router = router.route(path, get(live));
        }
        for path in ["/readyz", "/health/ready"] {
            router = router.route(path, get(ready));
        }
        router.with_state(self)
    }
}

async fn live(State(health): State<Health>) -> Response {
    health.parts.live()
}

async fn ready(State(health): State<Health>) -> Response {
    health.parts.ready()
}

async fn metrics(State(health): State<Health>) -> Response {
    match TextEncoder::new().encode_to_string(&health.registry.gather()) {
        Ok(text) => ([(CONTENT_TYPE, TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
