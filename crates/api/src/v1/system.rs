//! How the process itself is doing, for its operator.

use axum::Json;
use axum::extract::State;
use fettle_app::reconciling::Reconciled;
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use crate::state::ApiState;

/// What runs by the clock in this process.
#[derive(Serialize, ToSchema)]
pub(crate) struct ReconcilerList {
    items: Vec<Reconciler>,
}

#[derive(Serialize, ToSchema)]
struct Reconciler {
    /// `sweep`, `audit`, `hints`, `announcements`, `poll`, `redelivery`; those that this process has.
    name: &'static str,
    period_s: f64,
    /// `null` before the first run.
    #[schema(value_type = Option<String>, format = DateTime)]
    last_started_at: Option<Timestamp>,
    /// Of the last run that has ended, as the outcome is.
    last_duration_ms: Option<u64>,
    last_outcome: Option<Outcome>,
    /// Why the last run failed, if it did.
    last_failure: Option<String>,
    failures_in_a_row: u32,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ReconcilerOutcome)]
enum Outcome {
    Ok,
    Failed,
}

impl From<Reconciled> for Reconciler {
    fn from(one: Reconciled) -> Self {
        let outcome = one.last.as_ref().map(|last| if last.failure.is_none() { Outcome::Ok } else { Outcome::Failed });
        Self {
            name: one.name,
            period_s: one.period.as_secs_f64(),
            last_started_at: one.last_started_at,
            last_duration_ms: one.last.as_ref().map(|last| u64::try_from(last.took.as_millis()).unwrap_or(u64::MAX)),
            last_outcome: outcome,
            last_failure: one.last.and_then(|last| last.failure),
            failures_in_a_row: one.failures_in_a_row,
        }
    }
}

/// What this process does by the clock, and how the last run of each went.
#[utoipa::path(
    get, path = "/api/v1/system/reconcilers", operation_id = "list_reconcilers", tag = "operations",
    security(("admin_key" = [])),
    responses((status = 200, description = "All of this process", body = ReconcilerList))
)]
pub(crate) async fn list_reconcilers(State(api): State<ApiState>) -> Json<ReconcilerList> {
    Json(ReconcilerList { items: api.reconcilers.observe().into_iter().map(Reconciler::from).collect() })
}
