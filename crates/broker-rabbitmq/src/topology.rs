//! What must be there: looked for first, made when absent, used as it is when somebody made it otherwise.

use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use tokio::time::timeout;

use crate::fault::{Fault, not_found};
use crate::link::{CALL_LIMIT, Link, call, close};

pub(crate) const HINTS: &str = "fettle.hints";
pub(crate) const FOREIGN: &str = "agent-tasks";
pub(crate) const DEAD: &str = "agent-tasks.dead";
pub(crate) const EVENTS: &str = "fettle.events";

#[derive(Debug, Clone, Copy)]
pub(crate) enum Place {
    Queue(&'static str),
    /// A topic exchange.
    Topic(&'static str),
}

pub(crate) async fn ensure(link: &Link, place: Place) -> Result<(), Fault> {
    match place {
        Place::Queue(name) => ensure_queue(link, name).await.map(drop),
        Place::Topic(name) => ensure_topic(link, name).await,
    }
}

/// Messages that wait in the queue, without those in somebody's hand.
pub(crate) async fn ensure_queue(link: &Link, name: &str) -> Result<u64, Fault> {
    let during = format!("looking for queue {name}");
    let channel = link.channel().await?;
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let looking = channel.queue_declare(name.into(), passive, FieldTable::default());
    match timeout(CALL_LIMIT, looking).await {
        Err(_) => Err(Fault::Silent { during, limit: CALL_LIMIT }),
        Ok(Ok(queue)) => {
            close(&channel).await;
            Ok(queue.message_count().into())
        }
        Ok(Err(error)) if not_found(&error) => make_queue(link, name).await,
        Ok(Err(error)) => Err(Fault::of(during, error)),
    }
}

async fn make_queue(link: &Link, name: &str) -> Result<u64, Fault> {
    // Limits are the operator's, by policy: an argument that another version does not know would be refused.
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let channel = link.channel().await?;
    let making = channel.queue_declare(name.into(), QueueDeclareOptions::durable(), arguments);
    let queue = call(&format!("making queue {name}"), making).await?;
    close(&channel).await;
    Ok(queue.message_count().into())
}

async fn ensure_topic(link: &Link, name: &str) -> Result<(), Fault> {
    let during = format!("looking for exchange {name}");
    let declare = async |options: ExchangeDeclareOptions| {
        let channel = link.channel().await?;
        let declaring = channel.exchange_declare(name.into(), ExchangeKind::Topic, options, FieldTable::default());
        let declared = timeout(CALL_LIMIT, declaring).await;
        let declared = declared.map_err(|_| Fault::Silent { during: during.clone(), limit: CALL_LIMIT })?;
        if declared.is_ok() {
            close(&channel).await;
        }
        Ok(declared)
    };
    let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let declared = match declare(passive).await? {
        Err(error) if not_found(&error) => declare(durable).await?,
        found => found,
    };
    declared.map_err(|error| Fault::of(during.clone(), error))
}
