//! When to connect again, and what to say until then.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, warn};

use crate::fault::Fault;

/// Short enough for a queue that was deleted.
const FIRST: Duration = Duration::from_millis(500);
/// A broker takes longer than this to start; its clients should not take much longer to notice.
const LONGEST: Duration = Duration::from_secs(15);
/// A connection that lasted this long was good: its end is a new fault, not the last one again.
const STEADY: Duration = Duration::from_secs(30);

#[derive(Default)]
pub(crate) struct BackOff {
    last: Option<Failed>,
}

struct Failed {
    fault: Fault,
    at: Instant,
    pause: Duration,
}

impl BackOff {
    /// The fault of the last connection, as long as it is too early for the next.
    pub(crate) fn forbids(&self) -> Option<Fault> {
        self.last.as_ref().filter(|last| last.at.elapsed() < last.pause).map(|last| last.fault.clone())
    }

    /// A connection that began at `began` has ended or could not be made.
    pub(crate) fn failed(&mut self, what: &str, began: Instant, fault: Fault) {
        let again = self.last.take().filter(|_| began.elapsed() < STEADY);
        let pause = again.map_or(FIRST, |last| LONGEST.min(last.pause * 2));
        // Once each time that something new is wrong; a broker that is away for a night fills no log.
        if pause == FIRST {
            warn!(error = &fault as &dyn std::error::Error, "no connection to the broker for {what}; trying again");
        } else {
            debug!(error = &fault as &dyn std::error::Error, "still no connection to the broker for {what}");
        }
        self.last = Some(Failed { fault, at: Instant::now(), pause });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault() -> Fault {
        Fault::Unfit("away".to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_and_begin_anew_after_a_good_connection() {
        let mut back_off = BackOff::default();
        assert!(back_off.forbids().is_none());
        for pause in [500, 1000, 2000, 4000, 8000, 15_000, 15_000] {
            back_off.failed("a test", Instant::now(), fault());
            tokio::time::advance(Duration::from_millis(pause - 1)).await;
            assert!(back_off.forbids().is_some(), "{pause}");
            tokio::time::advance(Duration::from_millis(1)).await;
            assert!(back_off.forbids().is_none(), "{pause}");
        }
        let began = Instant::now();
        tokio::time::advance(STEADY).await;
        back_off.failed("a test", began, fault());
        tokio::time::advance(FIRST).await;
        assert!(back_off.forbids().is_none());
    }
}
