//! Reconcilers without input: each tick compares what is with what should be and does the difference.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::ports::ledger::Ledger;
use crate::reconciling::{Reconciler, Reconcilers};
use crate::vitals::Pulse;

/// Expired leases and due delays are found within this.
const SWEEP_EVERY: Duration = Duration::from_millis(500);
/// One short transaction; the next tick takes the rest.
const SWEEP_BATCH: u16 = 200;
/// The invariants are checked this often.
const AUDIT_EVERY: Duration = Duration::from_secs(60);

/// A reconciler that takes longer for one round than this is stuck: it does a short transaction every 0.5 s.
pub const RECONCILED_WITHIN: Duration = Duration::from_secs(20);

/// Sweeps and audits until `shutdown`.
pub fn reconcile(
    ledger: Arc<dyn Ledger>,
    reconcilers: &Arc<Reconcilers>,
    pulse: Pulse,
    shutdown: CancellationToken,
) -> impl Future<Output = ()> + Send + use<> {
    let (sweep, audit) = (reconcilers.register("sweep", SWEEP_EVERY), reconcilers.register("audit", AUDIT_EVERY));
    async move { run(&*ledger, &sweep, &audit, &pulse, &shutdown).await }
}

async fn run(
    ledger: &dyn Ledger,
    sweeping: &Reconciler,
    auditing: &Reconciler,
    pulse: &Pulse,
    shutdown: &CancellationToken,
) {
    let mut sweep = tokio::time::interval(SWEEP_EVERY);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut audit = tokio::time::interval_at(tokio::time::Instant::now() + AUDIT_EVERY, AUDIT_EVERY);
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            _ = sweep.tick() => match sweeping.run(ledger.sweep(SWEEP_BATCH)).await {
                Ok(swept) if swept.expired > 0 => info!("{} leases expired", swept.expired),
                Ok(_) => {}
                Err(error) => warn!("could not sweep: {error}"),
            },
            _ = audit.tick() => match auditing.run(ledger.audit()).await {
                Ok(breaches) => breaches.iter().for_each(|breach| error!("invariant violated: {breach}")),
                Err(error) => warn!("could not audit: {error}"),
            },
        }
        pulse.beat();
    }
}
