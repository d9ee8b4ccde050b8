//! Spans that others hang on to, wherever these run: they stand for what was stored, under its id.

use fettle_domain::id::{CorrelationId, TaskId};
use fettle_domain::lease::LeaseRef;
use tracing::{Span, field, info_span};

use crate::ports::ledger::{Delivery, TaskPlan};

/// Around storing a delivery. What intake makes of it comes later, perhaps in another process.
pub fn delivery(delivery: &Delivery) -> Span {
    info_span!("delivery", delivery.id = %delivery.id, correlation.id = %delivery.correlation)
}

/// Around opening a Task. Its Runs and its publishing come later, in other processes.
pub(crate) fn task(plan: &TaskPlan) -> Span {
    info_span!("task", task.id = %plan.id, task.mode = plan.mode.name(), correlation.id = %plan.correlation)
}

/// Around a publish job, whose trace is known once [`in_trace`] was told.
pub(crate) fn publish(task: TaskId, job: &LeaseRef) -> Span {
    info_span!(
        "publish",
        task.id = %task,
        job.id = %job.job,
        lease.fence = job.fence.get(),
        correlation.id = field::Empty,
        outcome = field::Empty,
    )
}

/// The current span is one of this Task's trace.
pub(crate) fn in_trace(correlation: CorrelationId) {
    Span::current().record("correlation.id", field::display(correlation));
}

/// How what the current span is about has ended: a word of a closed set, `failed` being an error.
pub(crate) fn ended(outcome: &'static str) {
    Span::current().record("outcome", outcome);
}
