//! Health and metrics of `fettle-inference`, on a listener that callers of models do not reach.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use fettle_app::vitals::Vitals;
use prometheus::{Registry, TEXT_FORMAT, TextEncoder};

#[derive(Clone)]
pub struct Health {
    pub registry: Registry,
    pub vitals: Arc<Vitals>,
}

impl Health {
    pub fn router(self) -> Router {
        let mut router = Router::new().route("/metrics", get(metrics));
        for path in ["/healthz", "/livez", "/health/live", "/readyz", "/health/ready"] {
            router = router.route(path, get(health));
        }
        router.with_state(self)
    }
}

/// Well as long as each part comes round.
async fn health(State(health): State<Health>) -> Response {
    let still: Vec<&str> =
        health.vitals.observe().into_iter().filter(|part| !part.is_well()).map(|part| part.name).collect();
    if still.is_empty() {
        (StatusCode::OK, "ok\n").into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("stands still: {}\n", still.join(", "))).into_response()
    }
}

async fn metrics(State(health): State<Health>) -> Response {
    match TextEncoder::new().encode_to_string(&health.registry.gather()) {
        Ok(text) => ([(CONTENT_TYPE, TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
