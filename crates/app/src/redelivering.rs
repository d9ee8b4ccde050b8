//! Asks the forge for deliveries that did not arrive: GitHub does not repeat one by itself. What comes then is a webhook like any
//! other, with the id that it had.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fettle_domain::missed::{Attempt, Lost, lost};
use jiff::{SignedDuration, Timestamp};
use tracing::{debug, info};

use crate::intake::{EVENTS, HOOK_KEY};
use crate::ports::forge::{ForgeError, ForgeWatch, HookLog};
use crate::ports::ledger::{L, Ledger};
use crate::reconciling::{Reconcile, Trouble};
use crate::vitals::Pulse;

/// Between two looks at what failed.
pub const EVERY: Duration = Duration::from_secs(300);
/// Deliveries that are asked for in one run: GitHub allows some 80 such requests a minute.
const MAX_AT_ONCE: usize = 50;
/// A look begins so far before the last one: an attempt is listed some time after it was made.
const OVERLAP: SignedDuration = SignedDuration::from_secs(300);

pub struct Redeliverer {
    pub ledger: Arc<dyn Ledger>,
    pub forge: Arc<dyn ForgeWatch>,
    /// The pause after the second attempt to deliver an event; each further one waits twice as long.
    pub pause: Duration,
    /// Everything before has arrived or was given up. `None`: nobody has looked yet.
    pub settled_until: Option<Timestamp>,
}

#[async_trait]
impl Reconcile for Redeliverer {
    async fn tick(&mut self, pulse: &Pulse) -> Result<(), Trouble> {
        let since = self.settled_until.and_then(|until| until.saturating_sub(OVERLAP).ok());
        let HookLog { attempts, at } = self.forge.hook_attempts(since).await?;
        pulse.beat();
        let ours: Vec<Attempt> = attempts
            .into_iter()
            .filter(|(event, _)| EVENTS.contains(&event.as_str()))
            .map(|(_, attempt)| attempt)
            .collect();
        let missing = self.missing(lost(&ours, at)).await?;
        let pause = SignedDuration::try_from(self.pause).unwrap_or(SignedDuration::MAX);
        for event in missing.iter().filter(|event| event.is_due(at, pause)).take(MAX_AT_ONCE) {
            pulse.beat();
            match self.forge.redeliver(event.attempt).await {
                Ok(()) => info!("{HOOK_KEY}{} did not arrive and was asked for again", event.guid),
                // Too old, or gone: nothing can be done about this one.
                Err(error @ (ForgeError::NotFound(_) | ForgeError::Refused(_))) => {
                    debug!("{HOOK_KEY}{} cannot be delivered again: {error}", event.guid);
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.settled_until = Some(missing.first().map_or(at, |oldest| oldest.first_at.min(at)));
        Ok(())
    }
}

impl Redeliverer {
    /// Those that the ledger has not, whatever the forge heard of our answer.
    async fn missing(&self, lost: Vec<Lost>) -> L<Vec<Lost>> {
        let mut missing = Vec::new();
        for event in lost {
            let key = format!("{HOOK_KEY}{}", event.guid);
            if !self.ledger.received_since(&key, Timestamp::UNIX_EPOCH).await? {
                missing.push(event);
            }
        }
        Ok(missing)
    }
}
