//! Hints, other programs' messages and announcements over RabbitMQ. Nothing here is the truth: what a broker loses or repeats
//! costs time.
//!
//! Whoever reads and whoever publishes have a connection each, because a broker that is short of memory stops listening to
//! publishers. Each connection is one task's: it connects when somebody asks, makes what is absent, works, and begins anew
//! after any fault; the library's own recovery is off. A queue that exists is used as it is.

mod back_off;
mod fault;
mod link;
mod options;
mod outbound;
mod ports;
mod publisher;
mod reader;
mod task;
mod topology;

pub use options::{Limits, RabbitOptions};
pub use outbound::submit;
pub use ports::{RabbitAnnouncer, RabbitInbox, RabbitTransport};
