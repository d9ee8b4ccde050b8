//! What lies between one dashboard and the rows: a disk of its own, or the way to a server that it shares with others. Slow
//! now and then, sometimes away, and whatever is written is looked at.

use std::sync::Arc;

use async_trait::async_trait;
use fettle_app::ports::ledger::{L, LedgerError};

use crate::ledger::{Commit, Disk, LEASE_PUBLISH, LEASE_RUN, Rows, SWEEP};
use crate::nature::{Nature, Who};
use crate::together::Together;
use crate::watch::Watch;

/// Verbs between which and their answer nothing can go wrong that the verb itself does not show: reads of loops.
const QUIET: [&str; 4] = ["runnable", "open_deliveries", LEASE_RUN, LEASE_PUBLISH];

pub(crate) struct SimDisk {
    pub(crate) who: Who,
    pub(crate) nature: Arc<Nature>,
    pub(crate) watch: Arc<Watch>,
    /// Absent: nobody else has this ledger.
    pub(crate) together: Option<Arc<Together>>,
}

impl SimDisk {
    /// Nobody looks at leases who could not have heard of their renewals.
    fn reaches_the_server(&self, verb: &'static str) -> L<()> {
        let Some(together) = &self.together else { return Ok(()) };
        if self.nature.is_cut_off(self.who) {
            together.leave(self.who);
            return Err(LedgerError::Unavailable("no route to the ledger".to_owned()));
        }
        if verb == SWEEP && !together.is_present(self.who) {
            return Err(LedgerError::Unavailable("this dashboard is just joining it again".to_owned()));
        }
        Ok(())
    }
}

#[async_trait]
impl Disk for SimDisk {
    async fn before(&self, verb: &'static str) -> L<()> {
        if !self.nature.is_stormy() {
            return self.reaches_the_server(verb);
        }
        self.nature.step(self.who, verb).await;
        if !QUIET.contains(&verb) {
            self.nature.latency(3).await;
        }
        if self.nature.wrong(self.nature.weather.disk) {
            self.nature.latency(5_000).await;
            return Err(LedgerError::Unavailable("the disk is busy".to_owned()));
        }
        self.reaches_the_server(verb)
    }

    async fn after(&self, verb: &'static str) -> L<()> {
        if !self.nature.is_stormy() || QUIET.contains(&verb) {
            return Ok(());
        }
        self.nature.latency(3).await;
        self.nature.step(self.who, verb).await;
        if self.nature.wrong(self.nature.weather.disk / 3) {
            return Err(LedgerError::Unavailable("no answer in time".to_owned()));
        }
        Ok(())
    }

    fn committed(&self, rows: &Rows, commit: &Commit) {
        self.watch.saw(rows, commit);
        if commit.woke
            && let Some(together) = &self.together
        {
            together.tell(self.who, &self.nature);
        }
    }
}
