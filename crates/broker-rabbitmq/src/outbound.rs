//! Messages out: published and confirmed, one batch after the other.

use std::time::Duration;

use bytes::Bytes;
use fettle_app::ports::transport::{TransportError, X};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::time::timeout;
use tracing::warn;

use crate::fault::Fault;
use crate::link::{Link, News, call};
use crate::options::{RabbitOptions, Target};
use crate::topology::{self, FOREIGN, Place};

/// Until a batch is on the disks of the broker's nodes.
const CONFIRM_LIMIT: Duration = Duration::from_secs(10);
/// Survives the broker's restart.
const PERSISTENT: u8 = 2;

pub(crate) struct Outgoing {
    /// The empty one leads to the queue that the key names.
    pub(crate) exchange: &'static str,
    pub(crate) key: ShortString,
    pub(crate) nobody: Nobody,
    pub(crate) properties: BasicProperties,
    pub(crate) body: Bytes,
}

/// When no queue takes a message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nobody {
    IsAnError,
    IsFine,
}

impl Outgoing {
    pub(crate) fn to_queue(queue: &'static str, properties: BasicProperties, body: Bytes) -> Self {
        Self { exchange: "", key: queue.into(), nobody: Nobody::IsAnError, properties, body }
    }
}

/// A word of the protocol. Refuses more than 255 bytes: the library would end the connection instead.
pub(crate) fn short(text: &str) -> X<ShortString> {
    ShortString::try_new(text)
        .map_err(|_| TransportError::Refused(format!("the protocol has no room for {} bytes in one word", text.len())))
}

/// A connection that only publishes.
pub(crate) struct Outbound {
    link: Link,
    /// `None` after a batch whose end was not awaited: its confirms must not be taken for those of the next.
    channel: Option<Channel>,
}

impl Outbound {
    pub(crate) async fn open(target: &Target, role: &str, place: Place) -> Result<Self, Fault> {
        let link = Link::open(target, role).await?;
        topology::ensure(&link, place).await?;
        Ok(Self { link, channel: None })
    }

    /// All of the batch is confirmed, or something of it is not.
    ///
    /// Errors: what fails leaves this connection of no use, but for [`Sent::Blocked`].
    pub(crate) async fn send(&mut self, batch: &[Outgoing]) -> Result<Sent, Fault> {
        if self.link.is_blocked() {
            return Ok(Sent::Blocked);
        }
        let channel = match self.channel.take() {
            Some(channel) => channel,
            None => {
                let channel = self.link.channel().await?;
                call("asking for confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
                channel
            }
        };
        tokio::select! {
            confirmed = timeout(CONFIRM_LIMIT, publish(&channel, batch)) => match confirmed {
                Ok(confirmed) => confirmed?,
                Err(_) => return Err(Fault::Silent { during: "publishing".to_owned(), limit: CONFIRM_LIMIT }),
            },
            news = self.link.news() => match news {
                News::Blocked => {
                    warn!("the broker takes no messages at the moment: it is short of memory or disk");
                    return Ok(Sent::Blocked);
                }
                News::Lost(fault) => return Err(fault),
            },
        }
        self.channel = Some(channel);
        Ok(Sent::Confirmed)
    }

    /// Waits for the connection's end.
    pub(crate) async fn lost(&mut self) -> Fault {
        self.link.lost().await
    }

    pub(crate) async fn close(self) {
        self.link.close().await;
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    Confirmed,
    /// The broker takes nothing until further notice. What was begun may still arrive.
    Blocked,
}

pub(crate) fn blocked() -> Fault {
    Fault::Unfit("the broker takes no messages at the moment: it is short of memory or disk".to_owned())
}

async fn publish(channel: &Channel, batch: &[Outgoing]) -> Result<(), Fault> {
    let mut confirms = Vec::with_capacity(batch.len());
    for Outgoing { exchange, key, nobody, properties, body } in batch {
        let options = BasicPublishOptions { mandatory: *nobody == Nobody::IsAnError, immediate: false };
        let properties = properties.clone().with_delivery_mode(PERSISTENT);
        let publishing = channel.basic_publish((*exchange).into(), key.clone(), options, body, properties);
        confirms.push(publishing.await.map_err(|error| Fault::of("publishing", error))?);
    }
    // A message that was returned is confirmed as well, and which of a batch it was is not certain: one is enough.
    for confirm in confirms {
        match confirm.await.map_err(|error| Fault::of("publishing", error))? {
            Confirmation::Ack(None) => {}
            Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)) => {
                let key = &returned.delivery.routing_key;
                return Err(Fault::Unfit(format!("no queue takes what is sent to {key}: {}", returned.reply_text)));
            }
            Confirmation::Nack(None) => return Err(Fault::Unfit("the broker could not keep a message".to_owned())),
            Confirmation::NotRequested => return Err(Fault::Unfit("a message was not confirmed".to_owned())),
        }
    }
    Ok(())
}

/// Leaves one message on `agent-tasks`, as another program would, over a connection of its own.
pub async fn submit(options: &RabbitOptions, body: &Bytes) -> X<()> {
    let target = Target::of(options)?;
    let mut outbound = Outbound::open(&target, "submit", Place::Queue(FOREIGN)).await?;
    let properties = BasicProperties::default().with_content_type("application/json".into());
    let sent = outbound.send(&[Outgoing::to_queue(FOREIGN, properties, body.clone())]).await?;
    outbound.close().await;
    match sent {
        Sent::Confirmed => Ok(()),
        Sent::Blocked => Err(blocked().into()),
    }
}
