//! Reads an answer that passes through unchanged: usage, why it ended, whether anything of it was seen.

use bytes::Bytes;

use crate::event::{Finish, Usage};
use crate::failure::UpstreamError;
use crate::protocol::Protocol;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchOptions {
    pub streamed: bool,
    /// The model's name as the caller said it; another one in the answer is replaced by it. `None`: left as it is.
    pub model: Option<String>,
    /// The usage was asked for by us, not by the caller: its chunk is taken out again.
    pub hide_usage: bool,
}

/// What was learned of an answer so far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    pub usage: Option<Usage>,
    pub finish: Option<Finish>,
    /// A piece of the answer proper (text, thought, tool call, vector) has been in it.
    pub content: bool,
    /// The answer came to its end as its protocol says so. A stream that stops without was cut off.
    pub ended: bool,
    /// An error in place of, or in the middle of, the answer. A streamed one is not passed on.
    pub error: Option<UpstreamError>,
}

/// An answer passing by. Feed it every chunk, send on what it gives back, and [`Watch::finish`] at the end.
#[derive(Debug)]
pub struct Watch {
    seen: Seen,
}

impl Watch {
    pub fn new(protocol: Protocol, options: WatchOptions) -> Self {
        let _ = (protocol, options);
        Self { seen: Seen::default() }
    }

    /// What goes to the caller for `chunk`; empty while an event is incomplete. Chunks may be cut anywhere.
    pub fn push(&mut self, chunk: Bytes) -> Bytes {
        chunk
    }

    /// What is left when the upstream has closed.
    pub fn finish(&mut self) -> Bytes {
        Bytes::new()
    }

    pub fn seen(&self) -> &Seen {
        &self.seen
    }
}
