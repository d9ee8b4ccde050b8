//! What happened, as a stream that any program may read in its own way.

use std::sync::Arc;

use async_trait::async_trait;
use fettle_app::ports::transport::{Announcement, Announcer, X};

use crate::connection::Commands;

/// The stream of announcements: fields `kind`, `id`, `correlation`, `body`.
pub const EVENTS: &str = "fettle.events";
/// Announcements that are kept, about: 20 MB at 1 KiB each, days for a listener that is away. The ledger has them all.
const KEPT: u32 = 20_000;
/// In one transaction, which blocks the server meanwhile.
const ANNOUNCED_AT_ONCE: usize = 100;

pub struct RedisAnnouncer {
    commands: Arc<Commands>,
}

impl RedisAnnouncer {
    pub(crate) fn new(commands: Arc<Commands>) -> Self {
        Self { commands }
    }
}

#[async_trait]
impl Announcer for RedisAnnouncer {
    async fn announce(&self, announcements: &[Announcement]) -> X<()> {
        for together in announcements.chunks(ANNOUNCED_AT_ONCE) {
            // All or none: a gap that is filled by a repetition would change the order.
            let mut pipeline = redis::pipe();
            pipeline.atomic();
            for Announcement { kind, id, correlation, body } in together {
                pipeline.cmd("XADD").arg(EVENTS).arg("MAXLEN").arg("~").arg(KEPT).arg("*");
                pipeline.arg(&[("kind", kind), ("id", id), ("correlation", correlation), ("body", body)]);
            }
            self.commands.run::<()>(&pipeline).await?;
        }
        Ok(())
    }
}
