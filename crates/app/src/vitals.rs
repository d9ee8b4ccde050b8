//! Proof that the parts of a process get anywhere. Each beats when it has come round, whatever came of it; one that has been
//! silent for too long is named, in `/healthz` and to the supervisor's watchdog. Nothing here beats by a timer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// All parts of one process that must not stand still.
#[derive(Debug, Default)]
pub struct Vitals(Mutex<Vec<Part>>);

#[derive(Debug)]
struct Part {
    name: &'static str,
    within: Duration,
    beaten: Instant,
}

/// A part, as it is seen now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vital {
    pub name: &'static str,
    /// How long it has been silent, and how long it may be.
    pub silent: Duration,
    pub within: Duration,
}

impl Vital {
    pub fn is_well(&self) -> bool {
        self.silent <= self.within
    }
}

impl Vitals {
    /// A part that beats at least once `within` this time; its first beat is now.
    pub fn pulse(self: &Arc<Self>, name: &'static str, within: Duration) -> Pulse {
        let mut parts = lock(&self.0);
        parts.push(Part { name, within, beaten: Instant::now() });
        Pulse { vitals: self.clone(), part: parts.len() - 1 }
    }

    /// Every part, in the order in which they were made.
    pub fn observe(&self) -> Vec<Vital> {
        let vital = |part: &Part| Vital { name: part.name, silent: part.beaten.elapsed(), within: part.within };
        lock(&self.0).iter().map(vital).collect()
    }
}

/// One part's way to say that it has come round.
#[derive(Debug, Clone)]
pub struct Pulse {
    vitals: Arc<Vitals>,
    part: usize,
}

impl Pulse {
    pub fn beat(&self) {
        lock(&self.vitals.0)[self.part].beaten = Instant::now();
    }
}

fn lock(parts: &Mutex<Vec<Part>>) -> MutexGuard<'_, Vec<Part>> {
    parts.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_part_that_does_not_come_round_in_time_is_named_until_it_does() {
        let vitals = Arc::new(Vitals::default());
        let quick = vitals.pulse("quick", Duration::from_secs(5));
        let _slow = vitals.pulse("slow", Duration::from_secs(60));
        let ill = || {
            vitals.observe().into_iter().filter(|vital| !vital.is_well()).map(|vital| vital.name).collect::<Vec<_>>()
        };
        assert_eq!(ill(), Vec::<&str>::new());
        tokio::time::advance(Duration::from_secs(6)).await;
        assert_eq!(ill(), ["quick"]);
        quick.beat();
        assert_eq!(ill(), Vec::<&str>::new());
    }
}
