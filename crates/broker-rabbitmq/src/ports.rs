//! The three ports of [`fettle_app::ports::transport`] on RabbitMQ's queues and exchange.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fettle_app::ports::transport::{Announcement, Announcer, ForeignInbox, ForeignMessage, Hint, Transport, X};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

use crate::options::{Limits, RabbitOptions, Target};
use crate::outbound::{Nobody, Outgoing, short};
use crate::publisher::Publisher;
use crate::reader::{Again, Content, Plan, Reader, Taken};
use crate::topology::{DEAD, EVENTS, FOREIGN, HINTS, Place};

const HINT: &[u8] = br#"{"v":1}"#;
/// Hints confirmed together: a few round trips for a long backlog, and none of them long.
const BATCH: u32 = 250;
const REASON_HEADER: &str = "x-fettle-reason";
const JSON: &str = "application/json";

/// Hints on the queue `fettle.hints`. Needs a Tokio runtime when it is made; connects when it is first asked.
pub struct RabbitTransport {
    reader: Reader,
    publisher: Publisher,
}

impl RabbitTransport {
    /// Errors: `Refused`, for an address that is none.
    pub fn new(options: &RabbitOptions, limits: Limits) -> X<Self> {
        let target = Target::of(options)?;
        let plan = Plan { target: target.clone(), queue: HINTS, unsettled: limits.unsettled, again: Again::Anywhere };
        Ok(Self { reader: Reader::start(plan), publisher: Publisher::start(target, "ringer", Place::Queue(HINTS)) })
    }

    /// How often the broker ended the consumer by itself: its queue was deleted, or moved.
    pub fn consumers_ended_by_broker(&self) -> u64 {
        self.reader.ended_by_broker()
    }

    /// Gives back what is in hand and ends both connections.
    pub async fn close(&self) {
        tokio::join!(self.reader.close(), self.publisher.close());
    }
}

#[async_trait]
impl Transport for RabbitTransport {
    async fn ring(&self, count: u32) -> X<()> {
        let mut left = count;
        while left > 0 {
            let batch = left.min(BATCH);
            let hint = || Outgoing::to_queue(HINTS, BasicProperties::default(), Bytes::from_static(HINT));
            self.publisher.send((0..batch).map(|_| hint()).collect()).await?;
            left -= batch;
        }
        Ok(())
    }

    async fn depth(&self) -> X<u64> {
        self.reader.depth().await
    }

    async fn wait(&self, max: Duration) -> Option<Hint> {
        self.reader.next(max).await.map(|taken| Hint(taken.receipt))
    }

    async fn done(&self, hint: Hint) -> X<()> {
        self.reader.settle(hint.0).await
    }
}

/// Messages of other programs on the queue `agent-tasks`, copies for people on `agent-tasks.dead`. Needs a Tokio runtime when
/// it is made; connects when it is first asked.
pub struct RabbitInbox {
    reader: Reader,
    undertaker: Publisher,
}

impl RabbitInbox {
    /// Errors: `Refused`, for an address that is none.
    pub fn new(options: &RabbitOptions, limits: Limits) -> X<Self> {
        let target = Target::of(options)?;
        let plan = Plan { target: target.clone(), queue: FOREIGN, unsettled: limits.unsettled, again: Again::Here };
        Ok(Self { reader: Reader::start(plan), undertaker: Publisher::start(target, "undertaker", Place::Queue(DEAD)) })
    }

    /// Gives back what is in hand and ends both connections.
    pub async fn close(&self) {
        tokio::join!(self.reader.close(), self.undertaker.close());
    }
}

#[async_trait]
impl ForeignInbox for RabbitInbox {
    async fn next(&self, max: Duration) -> Option<ForeignMessage> {
        let Taken { receipt, content: Content { body, id, redelivered } } = self.reader.next(max).await?;
        Some(ForeignMessage { body, id, redelivered, receipt })
    }

    async fn taken(&self, message: &ForeignMessage) -> X<()> {
        self.reader.settle(message.receipt.clone()).await
    }

    async fn bury(&self, body: &Bytes, reason: &str) -> X<()> {
        let mut headers = FieldTable::default();
        headers.insert(REASON_HEADER.into(), AMQPValue::LongString(reason.into()));
        let properties = BasicProperties::default().with_headers(headers);
        self.undertaker.send(vec![Outgoing::to_queue(DEAD, properties, body.clone())]).await
    }

    async fn depth(&self) -> X<u64> {
        self.reader.depth().await
    }

    fn consumers_ended(&self) -> u64 {
        self.reader.ended_by_broker()
    }
}

/// Events on the topic exchange `fettle.events`. Needs a Tokio runtime when it is made; connects when there is one to tell.
pub struct RabbitAnnouncer {
    publisher: Publisher,
}

impl RabbitAnnouncer {
    /// Errors: `Refused`, for an address that is none.
    pub fn new(options: &RabbitOptions) -> X<Self> {
        let target = Target::of(options)?;
        Ok(Self { publisher: Publisher::start(target, "announcer", Place::Topic(EVENTS)) })
    }

    pub async fn close(&self) {
        self.publisher.close().await;
    }
}

#[async_trait]
impl Announcer for RabbitAnnouncer {
    async fn announce(&self, announcements: &[Announcement]) -> X<()> {
        let outgoing = announcements.iter().map(|announcement| {
            let Announcement { kind, id, correlation, body } = announcement;
            let properties = BasicProperties::default()
                .with_message_id(short(id)?)
                .with_correlation_id(short(correlation)?)
                .with_content_type(JSON.into());
            let (key, body) = (short(kind)?, Bytes::copy_from_slice(body.as_bytes()));
            Ok(Outgoing { exchange: EVENTS, key, nobody: Nobody::IsFine, properties, body })
        });
        self.publisher.send(outgoing.collect::<X<_>>()?).await
    }
}
