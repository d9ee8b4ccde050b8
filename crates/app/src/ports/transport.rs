//! What may stand between processes: a bell that tells workers to look, a door for other programs' messages, and a way to
//! tell them what happened. None of it is the truth. Whatever is lost here is found again in the ledger.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::BoxError;

/// By what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// Try again later; nothing is lost meanwhile but time.
    #[error("the broker cannot be reached")]
    Unreachable(#[source] BoxError),
    /// Somebody has to change something: rights, a policy, a stream that is something else.
    #[error("the broker refused: {0}")]
    Refused(String),
}

pub type X<T> = Result<T, TransportError>;

/// "Something may be runnable": names no job and grants nothing; its reader leases whatever the ledger offers.
///
/// Hints may be lost, repeated, reordered and late. They are not written with the jobs that they tell of: whoever rings
/// compares what is runnable with what still hangs here, again and again, so a broker that was wiped is full again at once.
#[async_trait]
pub trait Transport: Send + Sync {
    /// Hangs up `count` hints, each for one reader. Durable at the broker when it returns, as far as that is durable.
    async fn ring(&self, count: u32) -> X<()>;
    /// Hints that nobody has taken yet.
    async fn depth(&self) -> X<u64>;
    /// The next hint, for a worker that is free; may be called by several at a time. `None` after `max`, and on a fault, then
    /// not before a short pause: the adapter connects anew by itself. Dropped meanwhile, it loses no hint for good.
    async fn wait(&self, max: Duration) -> Option<Hint>;
    /// Right after the lease was asked for, whatever the answer. A hint that is not done comes again to somebody, within a
    /// minute.
    async fn done(&self, hint: Hint) -> X<()>;
}

/// A hint, by what its adapter knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hint(pub String);

/// Beyond this a message of another program is not read whole.
pub const MAX_FOREIGN_BYTES: usize = fettle_domain::foreign::MAX_BYTES;

/// A message of another program, on queue or stream `agent-tasks`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignMessage {
    /// As it came; cut to [`MAX_FOREIGN_BYTES`] + 1, which is enough to see that it is too large.
    pub body: Bytes,
    /// What makes it the same message when it comes again: the AMQP `message_id`, the Redis entry's id.
    pub id: Option<String>,
    /// It may have come before.
    pub redelivered: bool,
    /// By what its adapter knows it.
    pub receipt: String,
}

/// Foreign messages in; intake alone reads them, so no worker can make Tasks.
#[async_trait]
pub trait ForeignInbox: Send + Sync {
    /// The next message. `None` after `max`, and on a fault, as with [`Transport::wait`].
    async fn next(&self, max: Duration) -> Option<ForeignMessage>;
    /// After the ledger has it. One that was not taken comes again.
    async fn taken(&self, message: &ForeignMessage) -> X<()>;
    /// A copy for people, with a readable reason, on queue or stream `agent-tasks.dead`. Confirmed when it returns.
    async fn bury(&self, body: &Bytes, reason: &str) -> X<()>;
    /// Messages that nobody has taken yet.
    async fn depth(&self) -> X<u64>;
    /// How often the broker ended our consumer by itself: its queue was deleted, or moved.
    fn consumers_ended(&self) -> u64 {
        0
    }
}

/// Something that happened, for other programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// `TaskCreated`, …: the AMQP routing key, the field `kind` of a Redis entry.
    pub kind: String,
    /// Unique, and the same when it is told again.
    pub id: String,
    pub correlation: String,
    /// JSON.
    pub body: String,
}

/// Events out, at least once, in the order of each Task: exchange or stream `fettle.events`.
#[async_trait]
pub trait Announcer: Send + Sync {
    /// Confirmed by the broker when it returns. That nobody listens is no error.
    async fn announce(&self, announcements: &[Announcement]) -> X<()>;
}

/// What a dashboard does with a broker.
#[derive(Clone)]
pub struct Broker {
    pub bell: Arc<dyn Transport>,
    pub inbox: Arc<dyn ForeignInbox>,
    pub announcer: Arc<dyn Announcer>,
    pub is_rabbitmq: bool,
}
