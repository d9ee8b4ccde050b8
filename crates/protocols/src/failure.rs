//! What can go wrong for a caller, and how each protocol says so. Never says a path, a key, or what an upstream said.

use std::time::Duration;

use bytes::Bytes;

use crate::protocol::Protocol;
use crate::refused::Refused;

/// Why a request gets no answer. `sentence` is for people and goes out as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Not readable, or not sayable in the target's protocol.
    BadBody {
        field: Option<String>,
        sentence: String,
    },
    BodyTooLarge {
        limit_bytes: u64,
    },
    ContextTooLong {
        sentence: String,
    },
    BadKey {
        sentence: String,
    },
    NotAllowed {
        sentence: String,
    },
    UnknownModel {
        model: String,
    },
    UnknownPath,
    WrongMethod,
    QueueFull {
        sentence: String,
        retry_after: Duration,
    },
    /// An upstream takes no more for now.
    RateLimited {
        sentence: String,
        retry_after: Duration,
    },
    BudgetSpent {
        sentence: String,
    },
    CannotPlaceNow {
        sentence: String,
        retry_after: Duration,
    },
    CannotPlaceEver {
        sentence: String,
    },
    UpstreamFailed {
        sentence: String,
    },
    UpstreamSlow {
        sentence: String,
    },
    /// Our own fault.
    Internal,
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        Self::BadBody { field: refused.field, sentence: refused.sentence }
    }
}

/// Bounds of `Retry-After`: one SDK gives up above 120 s, the other sleeps as long as told.
pub const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// An answer in place of the one asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorAnswer {
    pub status: u16,
    /// Names in lower case; `content-type` is among them.
    pub headers: Vec<(&'static str, String)>,
    pub body: Bytes,
}

pub fn write_error(protocol: Protocol, failure: &Failure) -> ErrorAnswer {
    let _ = (protocol, failure);
    ErrorAnswer { status: 500, headers: Vec::new(), body: Bytes::new() }
}

/// What ends a stream that has already begun. For a pass-through; a translated one says it with
/// [`crate::AnswerWriter`] and [`crate::Event::Failed`].
pub fn write_stream_error(protocol: Protocol, failure: &Failure) -> Bytes {
    let _ = (protocol, failure);
    Bytes::new()
}

/// What an upstream's error means, without its words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpstreamError {
    /// It cannot read what was sent.
    BadRequest,
    ContextTooLong,
    BadKey,
    NotAllowed,
    UnknownModel,
    /// Its limit of requests or tokens in a time.
    RateLimited {
        retry_after: Option<Duration>,
    },
    /// The account behind its key has nothing left.
    NoCredit,
    /// It takes no more now, or is down.
    Overloaded {
        retry_after: Option<Duration>,
    },
    Slow,
    Failed,
}

impl UpstreamError {
    /// Whether the same request may go better elsewhere or later.
    pub fn worth_retrying(&self) -> bool {
        matches!(self, Self::RateLimited { .. } | Self::Overloaded { .. } | Self::Slow | Self::Failed)
    }

    /// What the caller is told.
    pub fn to_failure(&self) -> Failure {
        Failure::Internal
    }
}

/// Reads an upstream's answer with a status of 400 or more. `retry_after` is that header's value as it came.
pub fn read_error(protocol: Protocol, status: u16, retry_after: Option<&str>, body: &[u8]) -> UpstreamError {
    let _ = (protocol, status, retry_after, body);
    UpstreamError::Failed
}
