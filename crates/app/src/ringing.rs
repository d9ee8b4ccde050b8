//! Rings the broker's bell: compares what workers could lease with the hints that hang there, and hangs up the difference.
//!
//! Nothing is remembered between two looks. So a hint needs no row beside its job, one that was lost is rung again, and a
//! broker that was wiped is full again at the next look.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::crash::{self, Point};
use crate::ports::chain;
use crate::ports::ledger::Ledger;
use crate::ports::transport::Transport;
use crate::reconciling::{Reconciler, Reconcilers};
use crate::vitals::Pulse;

/// A look without a reason, for what was lost since the last one.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// As many hints hang at most: far more than there are workers to read them, and what scales workers by them is at its
/// end long before. It bounds the count over a backlog of millions, too.
const MOST_HINTS: u32 = 1_000;
/// Looks that fail end within the broker's own timeouts; a pause between them keeps the log readable.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A look is two short questions and a ring, each with a timeout of seconds.
pub const RUNG_WITHIN: Duration = Duration::from_secs(90);

/// How many hints to hang up for `runnable` jobs when `hanging` are there already.
pub fn missing(runnable: u32, hanging: u64) -> u32 {
    u64::from(runnable.min(MOST_HINTS)).saturating_sub(hanging).try_into().unwrap_or(MOST_HINTS)
}

/// Rings until `shutdown`.
pub fn ring(
    ledger: Arc<dyn Ledger>,
    bell: Arc<dyn Transport>,
    reconcilers: &Arc<Reconcilers>,
    pulse: Pulse,
    shutdown: CancellationToken,
) -> impl Future<Output = ()> + Send + use<> {
    let hints = reconcilers.register("hints", LOOK_EVERY);
    async move { run(&*ledger, &*bell, &hints, &pulse, &shutdown).await }
}

async fn run(
    ledger: &dyn Ledger,
    bell: &dyn Transport,
    hints: &Reconciler,
    pulse: &Pulse,
    shutdown: &CancellationToken,
) {
    let mut work = ledger.work();
    let (mut pause, mut away) = (PAUSE, false);
    while !shutdown.is_cancelled() {
        work.mark_unchanged();
        pulse.beat();
        let wait = match hints.run(look(ledger, bell)).await {
            Ok(()) => {
                if std::mem::take(&mut away) {
                    info!("the broker answers again");
                }
                pause = PAUSE;
                LOOK_EVERY
            }
            Err(why) => {
                if !std::mem::replace(&mut away, true) {
                    warn!("nobody can be rung for, workers find work by asking: {why}");
                }
                // Not rung awake: a commit every millisecond must not make a try every millisecond.
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
                continue;
            }
        };
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            _ = work.changed() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

async fn look(ledger: &dyn Ledger, bell: &dyn Transport) -> Result<(), String> {
    let runnable = ledger.runnable(MOST_HINTS).await.map_err(|error| error.to_string())?;
    if runnable == 0 {
        return Ok(());
    }
    let hanging = bell.depth().await.map_err(|error| chain(&error))?;
    let missing = missing(runnable, hanging);
    if missing > 0 {
        crash::before(Point::BrokerRing);
        bell.ring(missing).await.map_err(|error| chain(&error))?;
        crash::after(Point::BrokerRing);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hangs_already_is_not_rung_again_and_no_backlog_floods_the_broker() {
        assert_eq!(missing(0, 0), 0);
        assert_eq!(missing(3, 0), 3);
        assert_eq!(missing(3, 2), 1);
        assert_eq!(missing(3, 7), 0, "stale hints cost their reader one question");
        assert_eq!(missing(u32::MAX, 0), MOST_HINTS);
        assert_eq!(missing(u32::MAX, 990), 10);
        assert_eq!(missing(5, u64::MAX), 0);
    }
}
