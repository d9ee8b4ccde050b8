//! Hints: a stream that workers read as one group. An entry says nothing but its version.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fettle_app::ports::transport::{Hint, Transport, X};

use crate::Redis;
use crate::connection::Commands;
use crate::desk::{Desk, Unwanted};
use crate::options::Limits;
use crate::reader::{Reader, Reading};
use crate::stream::Stream;

/// The stream of hints. The braces keep every key of ours that begins so in one slot.
pub const HINTS: &str = "{fettle}:hints";
const STREAM: Stream = Stream { key: HINTS, group: "workers" };
const FIELDS: &[(&str, &str)] = &[("v", "1")];
/// Hints in one round trip: some tens of kilobytes.
const RUNG_AT_ONCE: u32 = 500;
/// Hints of one read: more than a process has slots.
const READ_AT_ONCE: usize = 16;

pub struct RedisTransport {
    commands: Arc<Commands>,
    reading: Reading,
    limits: Limits,
}

impl RedisTransport {
    pub(crate) fn new(redis: &Redis) -> Self {
        let reading = Reading::new(Reader {
            server: Arc::clone(&redis.server),
            stream: STREAM,
            consumer: redis.process.clone(),
            limits: redis.limits,
            at_once: READ_AT_ONCE,
            anew: FIELDS,
            desk: Arc::new(Desk::new(Unwanted::PutBack, redis.limits.unsettled_after)),
        });
        Self { commands: Arc::clone(&redis.commands), reading, limits: redis.limits }
    }
}

#[async_trait]
impl Transport for RedisTransport {
    async fn ring(&self, count: u32) -> X<()> {
        STREAM.ensure_group(&self.commands).await?;
        let mut left = count;
        while left > 0 {
            let now = left.min(RUNG_AT_ONCE);
            let mut pipeline = redis::pipe();
            for _ in 0..now {
                pipeline.cmd("XADD").arg(HINTS).arg("*").arg(FIELDS);
            }
            self.commands.run::<()>(&pipeline).await?;
            left -= now;
        }
        Ok(())
    }

    async fn depth(&self) -> X<u64> {
        STREAM.unread_and_fresh(&self.commands, self.limits.unsettled_after).await
    }

    async fn wait(&self, max: Duration) -> Option<Hint> {
        self.reading.next(max).await.map(|entry| Hint(entry.id))
    }

    async fn done(&self, Hint(id): Hint) -> X<()> {
        self.reading.desk().settled(&id);
        STREAM.settle(&self.commands, &id).await
    }
}
