//! Keeps the comment on an issue up to date while a Run is at work on it. It only wants the edit; the publisher writes it in its
//! turn, and what the comment then says is of that moment, so edits that wait become one.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fettle_domain::progress::is_due;

use crate::ports::clock::Clock;
use crate::ports::ledger::Ledger;
use crate::reconciling::{Reconcile, Trouble};
use crate::vitals::Pulse;

/// More Runs than this are not at work at once.
const MAX_AT_WORK: u16 = 1000;

pub struct Teller {
    pub ledger: Arc<dyn Ledger>,
    pub clock: Arc<dyn Clock>,
    /// Its period, and so the least time between two edits of a comment.
    pub every: Duration,
}

#[async_trait]
impl Reconcile for Teller {
    async fn tick(&mut self, pulse: &Pulse) -> Result<(), Trouble> {
        let now = self.clock.now();
        for at_work in self.ledger.at_work(MAX_AT_WORK).await?.iter().filter(|at_work| is_due(at_work, now, self.every))
        {
            pulse.beat();
            self.ledger.want_progress(at_work.task).await?;
        }
        Ok(())
    }
}
