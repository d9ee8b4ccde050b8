//! Several dashboards on one ledger, as `store-postgres` keeps them together: they tell each other that something happened,
//! look by themselves for what they did not hear, and whoever comes back while no other is there gives every lease its full
//! length.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::ledger::MemoryLedger;
use crate::nature::{Nature, Who, lock};

/// What was not heard is found after this.
const POLL: Duration = Duration::from_secs(5);
/// Between two tries to reach the server again.
const AGAIN: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) struct Together {
    /// Rung by the others' commits.
    bells: BTreeMap<Who, Notify>,
    present: Mutex<BTreeSet<Who>>,
}

impl Together {
    /// Of as many dashboards.
    pub(crate) fn of(dashboards: usize) -> Self {
        let bells = (0..dashboards).map(|number| (Who::Dashboard(number), Notify::new())).collect();
        Self { bells, present: Mutex::default() }
    }

    pub(crate) fn is_present(&self, who: Who) -> bool {
        lock(&self.present).contains(&who)
    }

    pub(crate) fn leave(&self, who: Who) {
        lock(&self.present).remove(&who);
    }

    /// A commit of `who` made something runnable.
    pub(crate) fn tell(&self, who: Who, nature: &Nature) {
        for (_, bell) in self.bells.iter().filter(|(other, _)| **other != who) {
            if !nature.wrong(nature.weather.bell) {
                bell.notify_one();
            }
        }
    }

    fn join(&self, who: Who, ledger: &MemoryLedger, nature: &Nature) {
        let mut present = lock(&self.present);
        if present.is_empty() {
            nature.note(who, || "is alone and gives every lease its full length".to_owned());
            ledger.grant_grace();
        }
        present.insert(who);
    }
}

/// The session of a dashboard that lasts as long as its process.
pub(crate) async fn stay(together: Arc<Together>, who: Who, ledger: Arc<MemoryLedger>, nature: Arc<Nature>) {
    loop {
        if nature.is_cut_off(who) {
            together.leave(who);
            sleep(AGAIN).await;
            continue;
        }
        if !together.is_present(who) {
            together.join(who, &ledger, &nature);
        }
        ledger.hear();
        if timeout(POLL, together.bells[&who].notified()).await.is_ok() {
            nature.latency(5).await;
        }
    }
}
