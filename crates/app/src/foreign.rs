//! Messages of other programs become deliveries: stored first, taken from the broker afterwards. A crash between the two
//! makes the broker send again and the ledger recognise.
//!
//! Nothing is judged here: [`crate::intake`] decides from what is stored, and lays a copy of what it refuses where people
//! look, so a message that cannot be read takes the same way as all others.

use std::sync::Arc;
use std::time::Duration;

use fettle_domain::id::{CorrelationId, DeliveryId};
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, info, warn};

use crate::crash::{self, Point};
use crate::ports::chain;
use crate::ports::clock::{Clock, IdSource};
use crate::ports::ledger::{Accepted, Delivery, L, Ledger};
use crate::ports::transport::{ForeignInbox, ForeignMessage};
use crate::spans;
use crate::vitals::Pulse;

/// The event of such a delivery.
pub const EVENT: &str = "foreign";
/// Deliveries that are not decided yet; with more, no message is taken.
const MOST_OPEN: u64 = 100;
/// Messages between two looks at how many there are: counting costs as much as storing.
const LOOKED_AFTER: u32 = 20;
/// One wait at the broker; the pulse beats in between.
const WAIT: Duration = Duration::from_secs(10);
/// Between two tries to store a message.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A message without an id of its own that comes again is known by its body for so long. Brokers send again within hours.
const KNOWN_FOR: SignedDuration = SignedDuration::from_hours(24);

/// A wait at the broker, a commit and a confirmation, each with a timeout.
pub const RECEIVED_WITHIN: Duration = Duration::from_secs(3 * 60);

pub struct ForeignIntake {
    pub inbox: Arc<dyn ForeignInbox>,
    pub ledger: Arc<dyn Ledger>,
    pub clock: Arc<dyn Clock>,
    pub ids: Arc<dyn IdSource>,
    /// Beats within [`RECEIVED_WITHIN`].
    pub pulse: Pulse,
}

impl ForeignIntake {
    /// Receives until `shutdown`.
    pub async fn work(&self, shutdown: &CancellationToken) {
        let mut taken = 0;
        while !shutdown.is_cancelled() {
            self.pulse.beat();
            if taken >= LOOKED_AFTER && self.is_crowded().await {
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(PAUSE) => continue,
                }
            }
            let message = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                message = self.inbox.next(WAIT) => message,
            };
            taken = if taken >= LOOKED_AFTER { 0 } else { taken };
            if let Some(message) = message {
                taken += 1;
                self.receive(&message, shutdown).await;
            }
        }
    }

    /// Deliveries are decided one after the other, and webhooks would stand behind all that is taken: the rest waits at the broker.
    async fn is_crowded(&self) -> bool {
        self.ledger.depth().await.is_ok_and(|depth| depth.open_deliveries >= MOST_OPEN)
    }

    /// Until it is stored: an outage of the ledger is not the message's fault, and meanwhile nothing more is read.
    async fn receive(&self, message: &ForeignMessage, shutdown: &CancellationToken) {
        let mut pause = PAUSE;
        while let Err(error) = self.store(message).await {
            warn!("a foreign message waits for the ledger: {error}");
            self.pulse.beat();
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        crash::before(Point::ForeignTaken);
        if let Err(error) = self.inbox.taken(message).await {
            warn!("a foreign message was stored, and will come again to be recognised: {}", chain(&error));
        }
        crash::after(Point::ForeignTaken);
    }

    async fn store(&self, message: &ForeignMessage) -> L<()> {
        let Some(key) = self.key(message).await? else {
            info!("a foreign message without an id came again");
            return Ok(());
        };
        let delivery = Delivery {
            id: DeliveryId::from_uuid(self.ids.uuid()),
            key: key.clone(),
            event: EVENT.to_owned(),
            body: message.body.clone(),
            correlation: CorrelationId::from_uuid(self.ids.uuid()),
            received_at: self.clock.now(),
        };
        let span = spans::delivery(&delivery);
        crash::before(Point::ForeignStore);
        let accepted = self.ledger.accept(delivery).instrument(span).await?;
        crash::after(Point::ForeignStore);
        info!("foreign message {key} {}", if accepted == Accepted::New { "stored" } else { "was known" });
        Ok(())
    }

    /// Under which it is known. `None`: a message without an id that came before.
    async fn key(&self, message: &ForeignMessage) -> L<Option<String>> {
        if let Some(id) = &message.id {
            return Ok(Some(format!("foreign:{id}")));
        }
        let known_as = format!("foreign-body:{}:", hex::encode(Sha256::digest(&message.body)));
        let since = self.clock.now().saturating_sub(KNOWN_FOR).unwrap_or(Timestamp::MIN);
        if message.redelivered && self.ledger.received_since(&known_as, since).await? {
            return Ok(None);
        }
        Ok(Some(format!("{known_as}{}", self.ids.uuid().simple())))
    }
}
