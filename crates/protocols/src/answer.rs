//! An answer from one protocol into another, through events.

use bytes::Bytes;

use crate::event::Event;
use crate::failure::Failure;
use crate::protocol::Protocol;

/// Reads an upstream's successful answer, whole or streamed, cut anywhere.
#[derive(Debug)]
pub struct AnswerReader {
    protocol: Protocol,
    streamed: bool,
}

impl AnswerReader {
    pub fn new(protocol: Protocol, streamed: bool) -> Self {
        Self { protocol, streamed }
    }

    pub fn push(&mut self, chunk: &[u8]) -> Vec<Event> {
        let _ = (chunk, self.protocol, self.streamed);
        Vec::new()
    }

    /// The upstream has closed. An answer without its end yields `Event::Failed`.
    pub fn finish(&mut self) -> Vec<Event> {
        Vec::new()
    }
}

/// What an answer is called towards the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Unique part of the answer's id and of its items' ids, without the protocol's prefix (`chatcmpl-`, `msg_`).
    pub id: String,
    /// The model as the caller named it.
    pub model: String,
    /// Seconds since 1970.
    pub created: i64,
    pub streamed: bool,
    /// The caller wants usage in the stream, where the protocol leaves that open.
    pub usage: bool,
}

/// Writes an answer for the caller. Streamed: each event's bytes at once. Whole: all bytes at [`AnswerWriter::finish`].
#[derive(Debug)]
pub struct AnswerWriter {
    protocol: Protocol,
    head: Head,
}

impl AnswerWriter {
    pub fn new(protocol: Protocol, head: Head) -> Self {
        Self { protocol, head }
    }

    pub fn write(&mut self, event: &Event) -> Bytes {
        let _ = (event, self.protocol, &self.head);
        Bytes::new()
    }

    /// What is written while nothing is to say, to keep the connection alive; empty where a protocol has no such thing.
    pub fn ping(&self) -> Bytes {
        Bytes::new()
    }

    /// The end of the stream, or the whole answer. Errors: the events ended with a failure before an end; a streamed
    /// answer has said so already.
    pub fn finish(self) -> Result<Bytes, Failure> {
        Ok(Bytes::new())
    }
}
