//! What a worker says of itself, on a listener of its own: its parts, whether it reaches the dashboard, and whether it holds
//! a lease. A worker without this listener works just the same.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use fettle_app::leasing::Holdings;
use fettle_app::ports::clock::Clock;
use fettle_app::vitals::Vitals;
use jiff::SignedDuration;
use prometheus::{Gauge, GaugeVec, IntGauge, Opts, Registry, TEXT_FORMAT, TextEncoder};

use crate::health::{Check, Phase, Stage, answer, parts};
use crate::worker_client::Contact;

/// What a worker's health is made of.
pub struct WorkerHealthParts {
    pub clock: Arc<dyn Clock>,
    pub vitals: Arc<Vitals>,
    pub contact: Arc<Contact>,
    pub holdings: Arc<Holdings>,
    /// A dashboard that has not answered for so long makes the worker not ready: a lease's length, after which it holds none.
    pub away_after: Duration,
    pub version: &'static str,
    /// Metrics of the process; those of its other parts are there as well.
    pub registry: Registry,
}

/// Starting at first: healthy, and not ready.
pub struct WorkerHealth {
    parts: WorkerHealthParts,
    stage: Stage,
    metrics: Metrics,
}

/// Set when they are read.
struct Metrics {
    leases: IntGauge,
    away: Gauge,
    silence: GaugeVec,
}

impl Metrics {
    fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let leases = IntGauge::new("fettle_worker_leases", "Leases that this worker holds")?;
        let away = Gauge::new("fettle_worker_dashboard_away_seconds", "How long the dashboard has not answered")?;
        let silence = GaugeVec::new(
            Opts::new("fettle_part_silence_seconds", "How long a part of the process has not come round"),
            &["part"],
        )?;
        registry.register(Box::new(leases.clone()))?;
        registry.register(Box::new(away.clone()))?;
        registry.register(Box::new(silence.clone()))?;
        Ok(Self { leases, away, silence })
    }
}

impl WorkerHealth {
    /// Errors when one of the names of its metrics is taken.
    pub fn new(parts: WorkerHealthParts) -> Result<Self, prometheus::Error> {
        let stage = Stage::starting(parts.clock.now());
        let metrics = Metrics::register(&parts.registry)?;
        Ok(Self { parts, stage, metrics })
    }

    /// The sandbox is built and leases are asked for.
    pub fn serving(&self) {
        self.stage.enter(Phase::Serving, self.parts.clock.now());
    }

    /// What is held is brought to an end, and nothing new is taken.
    pub fn draining(&self) {
        self.stage.enter(Phase::Draining, self.parts.clock.now());
    }

    /// The listener's routes: health under all its names, `/leased`, `/metrics`.
    pub fn router(self: Arc<Self>) -> Router {
        let (live, ready) = (get(get_health), get(get_readiness));
        Router::new()
            .route("/healthz", live.clone())
            .route("/livez", live.clone())
            .route("/health/live", live)
            .route("/readyz", ready.clone())
            .route("/health/ready", ready)
            .route("/leased", get(get_leased))
            .route("/metrics", get(get_metrics))
            .with_state(self)
    }

    fn live(&self) -> Vec<Check> {
        parts(&self.parts.vitals, self.parts.clock.now()).collect()
    }

    fn dashboard(&self) -> Check {
        let (now, away) = (self.parts.clock.now(), self.parts.contact.away());
        let ok = away < self.parts.away_after;
        Check {
            name: "dashboard".to_owned(),
            ok,
            since: now.saturating_sub(SignedDuration::try_from(away).unwrap_or_default()).unwrap_or(now),
            detail: (!ok).then(|| format!("it has not answered for {} s", away.as_secs())),
        }
    }
}

async fn get_health(State(health): State<Arc<WorkerHealth>>) -> Response {
    answer(health.parts.version, health.live())
}

async fn get_readiness(State(health): State<Arc<WorkerHealth>>) -> Response {
    let checks = [health.stage.check(), health.dashboard()].into_iter().chain(health.live());
    answer(health.parts.version, checks.collect())
}

/// Whether a lease is held: what a scaler counts as a worker that has found its work.
async fn get_leased(State(health): State<Arc<WorkerHealth>>) -> (StatusCode, &'static str) {
    match health.parts.holdings.count() {
        0 => (StatusCode::SERVICE_UNAVAILABLE, "no lease\n"),
        _ => (StatusCode::OK, "leased\n"),
    }
}

async fn get_metrics(State(health): State<Arc<WorkerHealth>>) -> Response {
    let metrics = &health.metrics;
    metrics.leases.set(i64::try_from(health.parts.holdings.count()).unwrap_or(i64::MAX));
    metrics.away.set(health.parts.contact.away().as_secs_f64());
    metrics.silence.reset();
    for vital in health.parts.vitals.observe() {
        // Slots share a name; the one that has been silent for longest speaks for them.
        let gauge = metrics.silence.with_label_values(&[vital.name]);
        gauge.set(gauge.get().max(vital.silent.as_secs_f64()));
    }
    match TextEncoder::new().encode_to_string(&health.parts.registry.gather()) {
        Ok(text) => ([(CONTENT_TYPE, TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "the metrics could not be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
