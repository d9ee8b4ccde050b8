//! What the HTTP edge counts, and `/metrics`.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use fettle_app::ports::ledger::Depth;
use fettle_app::reconciling::Reconciled;
use prometheus::{
    Gauge, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TEXT_FORMAT, TextEncoder,
};
use tokio::time::Instant;

use crate::health;
use crate::problem::{Code, Problem};
use crate::state::ApiState;

/// From a webhook's half millisecond to a long poll's 25 s.
const BUCKETS_S: [f64; 13] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 15.0, 30.0];
/// The error rate looks back over this many slots of [`SLOT`]: five minutes.
const SLOTS: usize = 30;
const SLOT: Duration = Duration::from_secs(10);

/// The edge's metrics. Labels are closed sets: method, route template, status class, verdict, state.
#[derive(Clone)]
pub struct HttpMetrics {
    duration: HistogramVec,
    requests: IntCounterVec,
    error_rate: Gauge,
    recent: Arc<Recent>,
    deliveries: IntCounterVec,
    jobs: IntGaugeVec,
    oldest_runnable: IntGauge,
    open_deliveries: IntGauge,
    reconciler_runs: IntCounterVec,
    reconciler_successes: IntGaugeVec,
    /// Two readers at once would count what has happened since twice.
    catching_up: Arc<Mutex<()>>,
}

impl HttpMetrics {
    /// Errors when one of the names is taken in `registry`.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let duration = HistogramVec::new(
            HistogramOpts::new("http_request_duration_seconds", "Time from a request's head to its answer's head")
                .buckets(BUCKETS_S.to_vec()),
            &["method", "route", "status"],
        )?;
        let requests = IntCounterVec::new(
            Opts::new("http_requests_total", "HTTP requests answered"),
            &["method", "route", "status"],
        )?;
        let error_rate =
            Gauge::new("error_rate_percent", "Share of answers with status 500 or above in the last five minutes")?;
        let deliveries = IntCounterVec::new(
            Opts::new("fettle_webhook_deliveries_total", "Webhook deliveries by what became of them"),
            &["verdict"],
        )?;
        let jobs = IntGaugeVec::new(Opts::new("fettle_jobs", "Jobs by state"), &["state"])?;
        let oldest_runnable =
            IntGauge::new("fettle_job_oldest_runnable_seconds", "Age of the job that has been runnable for longest")?;
        let open_deliveries =
            IntGauge::new("fettle_deliveries_open", "Deliveries stored and not yet turned into a Task or a rejection")?;
        let reconciler_runs = IntCounterVec::new(
            Opts::new("fettle_reconciler_runs_total", "Runs of what runs by the clock, by how they ended"),
            &["name", "outcome"],
        )?;
        let reconciler_successes = IntGaugeVec::new(
            Opts::new("fettle_reconciler_last_success_seconds", "When it last ran and did not fail, in Unix time"),
            &["name"],
        )?;
        registry.register(Box::new(duration.clone()))?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(error_rate.clone()))?;
        registry.register(Box::new(deliveries.clone()))?;
        registry.register(Box::new(jobs.clone()))?;
        registry.register(Box::new(oldest_runnable.clone()))?;
        registry.register(Box::new(open_deliveries.clone()))?;
        registry.register(Box::new(reconciler_runs.clone()))?;
        registry.register(Box::new(reconciler_successes.clone()))?;
        for verdict in Verdict::ALL {
            deliveries.with_label_values(&[verdict.name()]);
        }
        let recent = Arc::new(Recent::new());
        Ok(Self {
            duration,
            requests,
            error_rate,
            recent,
            deliveries,
            jobs,
            oldest_runnable,
            open_deliveries,
            reconciler_runs,
            reconciler_successes,
            catching_up: Arc::default(),
        })
    }

    pub(crate) fn observe(&self, method: &Method, route: &str, status: StatusCode, took: Duration) {
        let labels = [method_label(method), route, status_class(status)];
        self.duration.with_label_values(&labels).observe(took.as_secs_f64());
        self.requests.with_label_values(&labels).inc();
        // A probe that says "not healthy" did its job; it reports the failure and is none.
        if !health::ROUTES.contains(&route) {
            self.recent.count(status.is_server_error(), Instant::now());
        }
    }

    pub(crate) fn delivery(&self, verdict: Verdict) {
        self.deliveries.with_label_values(&[verdict.name()]).inc();
    }

    pub(crate) fn depth(&self, depth: &Depth) {
        let states = [
            ("runnable", depth.runnable),
            ("delayed", depth.delayed),
            ("waiting", depth.waiting),
            ("leased", depth.leased),
            ("dead", depth.dead),
        ];
        for (state, count) in states {
            self.jobs.with_label_values(&[state]).set(gauge(count));
        }
        self.oldest_runnable.set(gauge(depth.oldest_runnable_s));
        self.open_deliveries.set(gauge(depth.open_deliveries));
    }

    /// Counted where they run, and brought up to date when somebody reads.
    fn reconcilers(&self, observed: &[Reconciled]) {
        let _alone = self.catching_up.lock().unwrap_or_else(PoisonError::into_inner);
        for one in observed {
            for (outcome, total) in [("ok", one.succeeded), ("failed", one.failed)] {
                let counter = self.reconciler_runs.with_label_values(&[one.name, outcome]);
                counter.inc_by(total.saturating_sub(counter.get()));
            }
            if let Some(at) = one.last_success_at {
                self.reconciler_successes.with_label_values(&[one.name]).set(at.as_second());
            }
        }
    }
}

/// What became of a webhook delivery.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Verdict {
    New,
    Duplicate,
    Ping,
    /// An event that intake has no use for.
    Ignored,
    BadSignature,
    Refused,
    Unavailable,
}

impl Verdict {
    const ALL: [Self; 7] =
        [Self::New, Self::Duplicate, Self::Ping, Self::Ignored, Self::BadSignature, Self::Refused, Self::Unavailable];

    fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Duplicate => "duplicate",
            Self::Ping => "ping",
            Self::Ignored => "ignored",
            Self::BadSignature => "bad_signature",
            Self::Refused => "refused",
            Self::Unavailable => "unavailable",
        }
    }
}

/// `GET /metrics`: open to the machine itself, with the admin key to others.
pub(crate) async fn get_metrics(State(api): State<ApiState>, request: Request) -> Response {
    if !(is_local(&request) || api.admin_key.admits(request.headers())) {
        return Problem::new(
            Code::Unauthenticated,
            "Metrics are for this machine, or for the bearer of the admin key.",
        )
        .into_response();
    }
    api.metrics.reconcilers(&api.reconcilers.observe());
    api.metrics.error_rate.set(api.metrics.recent.percent(Instant::now()));
    match TextEncoder::new().encode_to_string(&api.registry.gather()) {
        Ok(text) => ([(CONTENT_TYPE, TEXT_FORMAT)], text).into_response(),
        Err(error) => Problem::new(Code::Internal, "The metrics could not be written.").because(error).into_response(),
    }
}

/// A loopback peer that speaks for itself. A reverse proxy on this machine is a loopback peer too, and says so.
fn is_local(request: &Request) -> bool {
    let loopback = request
        .extensions()
        .get::<ConnectInfo<SocketAddr>>()
        .is_some_and(|ConnectInfo(peer)| peer.ip().to_canonical().is_loopback());
    loopback && !is_forwarded(request.headers())
}

fn is_forwarded(headers: &HeaderMap) -> bool {
    ["forwarded", "x-forwarded-for", "x-real-ip", "via"].iter().any(|name| headers.contains_key(*name))
}

fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

fn status_class(status: StatusCode) -> &'static str {
    match status.as_u16() {
        100..=199 => "1xx",
        200..=299 => "2xx",
        300..=399 => "3xx",
        400..=499 => "4xx",
        _ => "5xx",
    }
}

fn gauge(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Answers of the last five minutes, in slots of ten seconds.
struct Recent {
    started: Instant,
    slots: Mutex<[Slot; SLOTS]>,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    /// Which ten seconds since the start, counted from 1; 0 is an unused slot.
    number: u64,
    answers: u64,
    errors: u64,
}

impl Recent {
    fn new() -> Self {
        Self { started: Instant::now(), slots: Mutex::new([Slot::default(); SLOTS]) }
    }

    fn count(&self, is_error: bool, now: Instant) {
        let number = self.number(now);
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = &mut slots[usize::try_from(number % SLOTS as u64).expect("below the number of slots")];
        if slot.number != number {
            *slot = Slot { number, ..Slot::default() };
        }
        slot.answers += 1;
        slot.errors += u64::from(is_error);
    }

    /// 0 when nothing was answered.
    fn percent(&self, now: Instant) -> f64 {
        let newest = self.number(now);
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = slots.iter().filter(|slot| slot.number > 0 && slot.number + SLOTS as u64 > newest);
        let (answers, errors) = recent.fold((0, 0), |(a, e), slot| (a + slot.answers, e + slot.errors));
        if answers == 0 { 0.0 } else { 100.0 * errors as f64 / answers as f64 }
    }

    fn number(&self, now: Instant) -> u64 {
        now.duration_since(self.started).as_secs() / SLOT.as_secs() + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_rate_forgets_what_is_older_than_five_minutes() {
        let recent = Recent::new();
        let at = |seconds| recent.started + Duration::from_secs(seconds);
        recent.count(true, at(0));
        recent.count(false, at(100));
        recent.count(false, at(100));
        recent.count(true, at(100));
        assert_eq!(recent.percent(at(100)), 50.0);
        assert_eq!(recent.percent(at(299)), 50.0);
        assert!((recent.percent(at(310)) - 100.0 / 3.0).abs() < 1e-9);
        assert_eq!(recent.percent(at(500)), 0.0);
        recent.count(true, at(1000));
        assert_eq!(recent.percent(at(1000)), 100.0);
    }
}
