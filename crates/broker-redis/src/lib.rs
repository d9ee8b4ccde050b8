//! Redis (5.0 to 8, Valkey) as the transport: hints, other programs' messages and announcements on three streams.
//!
//! Nothing here is the truth, so a Redis that was wiped or failed over is only slower for a while. Streams and groups are
//! made when they are missed; entries that a dead process held are claimed; nothing undelivered is ever deleted. Commands
//! newer than 5.0 are not used, and each touches one key.

mod announcer;
mod connection;
mod desk;
mod error;
mod hints;
mod inbox;
mod options;
mod reader;
mod stream;

use std::sync::Arc;

use bytes::Bytes;
use fettle_app::ports::transport::{TransportError, X};

pub use announcer::{EVENTS, RedisAnnouncer};
pub use hints::{HINTS, RedisTransport};
pub use inbox::{DEAD, MESSAGES, RedisInbox};
pub use options::{Limits, RedisOptions, RedisOptionsError};

use connection::{Commands, Server};

/// One Redis, as one process sees it. What is made of it shares a connection for commands; each reader has its own.
pub struct Redis {
    server: Arc<Server>,
    commands: Arc<Commands>,
    process: String,
    limits: Limits,
}

impl Redis {
    /// Connects to nothing yet: a Redis that is away is found when it is there.
    ///
    /// Errors: only options that can never work.
    pub fn new(options: &RedisOptions) -> Result<Self, RedisOptionsError> {
        let server = Arc::new(Server::new(options)?);
        let commands = Arc::new(Commands::new(Arc::clone(&server)));
        Ok(Self { server, commands, process: options.process.clone(), limits: options.limits })
    }

    pub fn transport(&self) -> RedisTransport {
        RedisTransport::new(self)
    }

    pub fn inbox(&self) -> RedisInbox {
        RedisInbox::new(self)
    }

    pub fn announcer(&self) -> RedisAnnouncer {
        RedisAnnouncer::new(Arc::clone(&self.commands))
    }
}

/// Puts one message on stream `agent-tasks`, as another program would. Sent once: a lost answer is `Unreachable`, and the
/// message may be there.
pub async fn submit(options: &RedisOptions, body: &Bytes) -> X<()> {
    let server = Server::new(options).map_err(|error| TransportError::Refused(error.to_string()))?;
    inbox::submit(&server, body).await
}
