//! Whether this process makes progress and may get work, as a background probe of the ledger knows it.
//!
//! A request only reads what the probe found, so a stuck ledger cannot block the answer that tells of it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use fettle_app::ports::clock::Clock;
use fettle_app::ports::ledger::{Ledger, LedgerError};
use fettle_app::vitals::{Pulse, Vital, Vitals};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use utoipa::ToSchema;

use crate::metrics::HttpMetrics;
use crate::state::ApiState;

pub(crate) const ROUTES: [&str; 5] = ["/healthz", "/livez", "/health/live", "/readyz", "/health/ready"];

/// The times of probing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeTiming {
    /// Between two probes.
    pub every: Duration,
    /// What one probe may take.
    pub timeout: Duration,
    /// Without a good probe for this long the process is not healthy. With the next scrape a stuck ledger shows within
    /// 30 s.
    pub patience: Duration,
}

impl Default for ProbeTiming {
    fn default() -> Self {
        Self { every: Duration::from_secs(5), timeout: Duration::from_secs(10), patience: Duration::from_secs(20) }
    }
}

impl ProbeTiming {
    /// The times of tests with real processes.
    pub const fn for_tests() -> Self {
        Self {
            every: Duration::from_millis(50),
            timeout: Duration::from_millis(100),
            patience: Duration::from_millis(300),
        }
    }
}

/// What the process says of itself.
pub struct Health {
    timing: ProbeTiming,
    clock: Arc<dyn Clock>,
    stage: Stage,
    ledger: Mutex<Probed>,
    vitals: Arc<Vitals>,
    probes: Pulse,
}

#[derive(Debug, Clone)]
struct Probed {
    /// The last good probe; at first the start of the process.
    good_at: Instant,
    /// When the current good or bad stretch began.
    since: Timestamp,
    failing: bool,
}

/// Where a process stands between its start and its end.
pub(crate) struct Stage(Mutex<(Phase, Timestamp)>);

impl Stage {
    pub(crate) fn starting(at: Timestamp) -> Self {
        Self(Mutex::new((Phase::Starting, at)))
    }

    pub(crate) fn enter(&self, phase: Phase, at: Timestamp) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (phase, at);
    }

    pub(crate) fn check(&self) -> Check {
        let (phase, since) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let detail = match phase {
            Phase::Serving => None,
            Phase::Starting => Some("starting".to_owned()),
            Phase::Draining => Some("draining".to_owned()),
        };
        Check { name: "serving".to_owned(), ok: detail.is_none(), since, detail }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Starting,
    Serving,
    Draining,
}

impl Health {
    /// Starting: healthy for the time of one patience, not ready. It tells of all `vitals`, and adds one for the probe.
    pub fn new(timing: ProbeTiming, clock: Arc<dyn Clock>, vitals: Arc<Vitals>) -> Self {
        let since = clock.now();
        let probes = vitals.pulse("ledger probe", timing.patience + timing.every);
        let probed = Probed { good_at: Instant::now(), since, failing: false };
        Self { timing, clock, stage: Stage::starting(since), ledger: Mutex::new(probed), vitals, probes }
    }

    /// All parts run; requests may come.
    pub fn serving(&self) {
        self.stage.enter(Phase::Serving, self.clock.now());
    }

    /// No new work, please: the process is about to end.
    pub fn draining(&self) {
        self.stage.enter(Phase::Draining, self.clock.now());
    }

    /// Makes progress: the ledger took a write not long ago.
    pub fn is_live(&self) -> bool {
        self.checks().iter().all(|check| check.ok)
    }

    /// Live, and neither starting nor draining.
    pub fn is_ready(&self) -> bool {
        self.stage.check().ok && self.is_live()
    }

    /// Probes the ledger and reads its depth into the metrics until `stop`. Never returns an error: what fails is what
    /// health tells.
    pub async fn watch(&self, ledger: &dyn Ledger, metrics: &HttpMetrics, stop: &CancellationToken) {
        let mut ticks = interval(self.timing.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.probe(ledger, metrics) => {}
            }
        }
    }

    /// May be dropped at any point.
    async fn probe(&self, ledger: &dyn Ledger, metrics: &HttpMetrics) {
        match timeout(self.timing.timeout, ledger.probe()).await {
            Ok(Ok(())) => self.probed(None),
            // A ledger that says no, because its disk is full, is not one that hangs: starting again would not help.
            Ok(Err(error)) => return self.probed(Some(error)),
            Err(_) => return self.probed(Some(LedgerError::Unavailable("the probe timed out".to_owned()))),
        }
        match timeout(self.timing.timeout, ledger.depth()).await {
            Ok(Ok(depth)) => metrics.depth(&depth),
            Ok(Err(error)) => warn!(error = &error as &dyn std::error::Error, "could not read the ledger's depth"),
            Err(_) => warn!("reading the ledger's depth timed out"),
        }
    }

    fn probed(&self, failure: Option<LedgerError>) {
        if !matches!(failure, Some(LedgerError::Unavailable(_))) {
            self.probes.beat();
        }
        let mut probed = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = probed.failing != failure.is_some();
        probed.failing = failure.is_some();
        if changed {
            probed.since = self.clock.now();
        }
        match failure {
            Some(error) => warn!(error = &error as &dyn std::error::Error, "the ledger did not pass its probe"),
            None => {
                probed.good_at = Instant::now();
                if changed {
                    info!("the ledger passes its probe again");
                }
            }
        }
    }

    fn checks(&self) -> Vec<Check> {
        std::iter::once(self.ledger_check()).chain(parts(&self.vitals, self.clock.now())).collect()
    }

    fn ledger_check(&self) -> Check {
        let probed = self.ledger.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let silent = probed.good_at.elapsed();
        let ok = silent < self.timing.patience;
        let detail = (!ok).then(|| format!("no write has succeeded for {} s", silent.as_secs()));
        Check { name: "ledger".to_owned(), ok, since: probed.since, detail }
    }
}

/// The health of a process that is nothing but its parts.
pub struct PartsHealth {
    clock: Arc<dyn Clock>,
    vitals: Arc<Vitals>,
    version: &'static str,
    stage: Stage,
}

impl PartsHealth {
    /// Starting: healthy, and not ready.
    pub fn new(clock: Arc<dyn Clock>, vitals: Arc<Vitals>, version: &'static str) -> Self {
        let stage = Stage::starting(clock.now());
        Self { clock, vitals, version, stage }
    }

    /// All parts run; requests may come.
    pub fn serving(&self) {
        self.stage.enter(Phase::Serving, self.clock.now());
    }

    /// What is under way is brought to an end.
    pub fn draining(&self) {
        self.stage.enter(Phase::Draining, self.clock.now());
    }

    /// The answer to whether the process makes progress.
    pub fn live(&self) -> Response {
        answer(self.version, parts(&self.vitals, self.clock.now()).collect())
    }

    /// The answer to whether it may get work.
    pub fn ready(&self) -> Response {
        let live = parts(&self.vitals, self.clock.now());
        answer(self.version, std::iter::once(self.stage.check()).chain(live).collect())
    }
}

/// One check for each part that must come round.
pub(crate) fn parts(vitals: &Vitals, now: Timestamp) -> impl Iterator<Item = Check> {
    vitals.observe().into_iter().map(move |vital: Vital| Check {
        name: vital.name.to_owned(),
        ok: vital.is_well(),
        since: now.saturating_sub(SignedDuration::try_from(vital.silent).unwrap_or_default()).unwrap_or(now),
        detail: (!vital.is_well()).then(|| format!("it has not come round for {} s", vital.silent.as_secs())),
    })
}

/// The health of this process.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = Health)]
pub(crate) struct HealthBody {
    status: Status,
    version: String,
    checks: Vec<Check>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = HealthStatus)]
enum Status {
    Ok,
    Failing,
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = HealthCheck)]
pub(crate) struct Check {
    pub(crate) name: String,
    pub(crate) ok: bool,
    /// When the check last turned; of a part, when it last came round.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) since: Timestamp,
    /// What is wrong, when something is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) detail: Option<String>,
}

/// Whether the process makes progress. Also at `/livez` and `/health/live`.
#[utoipa::path(
    get, path = "/healthz", operation_id = "get_health", tag = "operations",
    responses((status = 200, description = "All checks pass", body = HealthBody), (status = 503, description = "A check fails; it is named", body = HealthBody))
)]
pub(crate) async fn get_health(State(api): State<ApiState>) -> Response {
    answer(api.version, api.health.checks())
}

/// Whether the process may get work. Also at `/health/ready`.
#[utoipa::path(
    get, path = "/readyz", operation_id = "get_readiness", tag = "operations",
    responses((status = 200, description = "All checks pass", body = HealthBody), (status = 503, description = "A check fails; it is named", body = HealthBody))
)]
pub(crate) async fn get_readiness(State(api): State<ApiState>) -> Response {
    let checks = std::iter::once(api.health.stage.check()).chain(api.health.checks());
    answer(api.version, checks.collect())
}

pub(crate) fn answer(version: &str, checks: Vec<Check>) -> Response {
    let ok = checks.iter().all(|check| check.ok);
    let (code, status) =
        if ok { (StatusCode::OK, Status::Ok) } else { (StatusCode::SERVICE_UNAVAILABLE, Status::Failing) };
    (code, Json(HealthBody { status, version: version.to_owned(), checks })).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Still;

    impl Clock for Still {
        fn now(&self) -> Timestamp {
            Timestamp::UNIX_EPOCH
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_that_stands_still_is_named_while_the_ledger_is_well() {
        let vitals = Arc::new(Vitals::default());
        let health = Health::new(ProbeTiming::default(), Arc::new(Still), vitals.clone());
        let pulse = vitals.pulse("publisher", Duration::from_secs(10));
        health.serving();
        assert!(health.is_ready());
        tokio::time::advance(Duration::from_secs(11)).await;
        health.probed(None);
        let failing: Vec<Check> = health.checks().into_iter().filter(|check| !check.ok).collect();
        assert_eq!(failing.iter().map(|check| check.name.as_str()).collect::<Vec<_>>(), ["publisher"]);
        assert!(failing[0].detail.as_ref().is_some_and(|detail| detail.contains("11 s")), "{failing:?}");
        assert!(!health.is_live() && !health.is_ready());
        pulse.beat();
        assert!(health.is_ready());
    }
}
