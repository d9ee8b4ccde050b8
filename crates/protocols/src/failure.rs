//! What can go wrong for a caller, and how each protocol says so. Never says a path, a key, or what an upstream said.

use std::time::Duration;

use bytes::Bytes;

use crate::json;
use crate::protocol::{Family, Protocol};
use crate::refused::Refused;

/// Bounds of `Retry-After`: one SDK gives up above 120 s, the other sleeps as long as told.
pub const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

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

impl Failure {
    /// What people read.
    pub fn sentence(&self) -> String {
        match self {
            Self::BadBody { sentence, .. }
            | Self::ContextTooLong { sentence }
            | Self::BadKey { sentence }
            | Self::NotAllowed { sentence }
            | Self::QueueFull { sentence, .. }
            | Self::RateLimited { sentence, .. }
            | Self::BudgetSpent { sentence }
            | Self::CannotPlaceNow { sentence, .. }
            | Self::CannotPlaceEver { sentence }
            | Self::UpstreamFailed { sentence }
            | Self::UpstreamSlow { sentence } => sentence.clone(),
            Self::BodyTooLarge { limit_bytes } => {
                format!("The body is larger than {limit_bytes} bytes.")
            }
            Self::UnknownModel { model } => format!("There is no model `{}` here.", shortened(model)),
            Self::UnknownPath => "There is nothing at this path.".to_owned(),
            Self::WrongMethod => "This path does not take this method.".to_owned(),
            Self::Internal => "The gateway failed.".to_owned(),
        }
    }

    /// The HTTP status towards a caller of `family`.
    pub fn status(&self, family: Family) -> u16 {
        self.row(family).status
    }

    fn row(&self, family: Family) -> Row {
        let anthropic = family == Family::Anthropic;
        match self {
            Self::BadBody { .. } => Row::new(400, BAD_REQUEST, None, BAD_REQUEST),
            Self::BodyTooLarge { .. } => Row::new(413, BAD_REQUEST, None, "request_too_large"),
            Self::ContextTooLong { .. } => Row::new(400, BAD_REQUEST, Some("context_length_exceeded"), BAD_REQUEST),
            Self::BadKey { .. } => Row::new(401, BAD_REQUEST, Some("invalid_api_key"), "authentication_error"),
            Self::NotAllowed { .. } => Row::new(403, BAD_REQUEST, Some("not_allowed"), "permission_error"),
            Self::UnknownModel { .. } => Row::new(404, BAD_REQUEST, Some("model_not_found"), "not_found_error"),
            Self::UnknownPath => Row::new(404, BAD_REQUEST, None, "not_found_error"),
            Self::WrongMethod => Row::new(405, BAD_REQUEST, None, BAD_REQUEST),
            Self::QueueFull { .. } | Self::RateLimited { .. } => {
                Row::new(429, "rate_limit_error", Some("rate_limit_exceeded"), "rate_limit_error")
            }
            Self::BudgetSpent { .. } => {
                let status = if anthropic { 402 } else { 429 };
                Row::new(status, "rate_limit_error", Some("insufficient_quota"), "billing_error")
            }
            Self::CannotPlaceNow { .. } => {
                let status = if anthropic { 529 } else { 503 };
                Row::new(status, SERVER, Some("model_unavailable"), "overloaded_error")
            }
            Self::CannotPlaceEver { .. } => Row::new(503, SERVER, Some("model_unplaceable"), "api_error"),
            Self::UpstreamFailed { .. } => Row::new(502, SERVER, Some("upstream_error"), "api_error"),
            Self::UpstreamSlow { .. } => Row::new(504, SERVER, Some("timeout"), "timeout_error"),
            Self::Internal => Row::new(500, SERVER, None, "api_error"),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::QueueFull { retry_after, .. }
            | Self::RateLimited { retry_after, .. }
            | Self::CannotPlaceNow { retry_after, .. } => Some((*retry_after).clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX)),
            _ => None,
        }
    }

    /// SDKs try 429 and 5xx again by themselves, which is idle where nothing will change.
    fn asks_not_to_retry(&self) -> bool {
        matches!(self, Self::BudgetSpent { .. } | Self::CannotPlaceEver { .. })
    }

    fn param(&self) -> Option<&str> {
        match self {
            Self::BadBody { field, .. } => field.as_deref(),
            Self::UnknownModel { .. } => Some("model"),
            _ => None,
        }
    }

    /// The `code` of OpenAI's errors.
    pub(crate) fn openai_code(&self) -> Option<&'static str> {
        self.row(Family::OpenAi).code
    }
}

const BAD_REQUEST: &str = "invalid_request_error";
const SERVER: &str = "server_error";

/// One row of the table of section 8 of the design.
struct Row {
    status: u16,
    openai: &'static str,
    code: Option<&'static str>,
    anthropic: &'static str,
}

impl Row {
    const fn new(status: u16, openai: &'static str, code: Option<&'static str>, anthropic: &'static str) -> Self {
        Self { status, openai, code, anthropic }
    }
}

/// An answer in place of the one asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorAnswer {
    pub status: u16,
    /// Names in lower case; `content-type` is among them.
    pub headers: Vec<(&'static str, String)>,
    pub body: Bytes,
}

pub fn write_error(protocol: Protocol, failure: &Failure) -> ErrorAnswer {
    let family = protocol.family();
    let mut headers = vec![("content-type", "application/json".to_owned())];
    if let Some(wait) = failure.retry_after() {
        // Rounded up: who comes a moment too early is sent away again.
        headers.push(("retry-after", wait.as_millis().div_ceil(1000).to_string()));
    }
    if failure.asks_not_to_retry() {
        headers.push(("x-should-retry", "false".to_owned()));
    }
    ErrorAnswer { status: failure.status(family), headers, body: error_json(family, failure).into() }
}

/// What ends a stream that has already begun, for a pass-through. A translated one says it with
/// [`crate::AnswerWriter`] and [`crate::Event::Failed`].
pub fn write_stream_error(protocol: Protocol, failure: &Failure) -> Bytes {
    if protocol == Protocol::OpenAiResponses {
        return crate::responses::failed(failure).into();
    }
    let json = error_json(protocol.family(), failure);
    match protocol.family() {
        Family::OpenAi | Family::Google => format!("data: {json}\n\n").into(),
        Family::Anthropic => format!("event: error\ndata: {json}\n\n").into(),
        Family::Ollama => format!("{json}\n").into(),
    }
}

fn error_json(family: Family, failure: &Failure) -> String {
    let row = failure.row(family);
    json::object(|out| match family {
        Family::OpenAi => out.object("error", |error| {
            error.put("message", failure.sentence()).put("type", row.openai);
            error.put("param", failure.param()).put("code", row.code);
        }),
        Family::Anthropic => {
            out.put("type", "error");
            out.object("error", |error| {
                error.put("type", row.anthropic).put("message", failure.sentence());
            });
        }
        Family::Ollama => {
            out.put("error", failure.sentence());
        }
        Family::Google => out.object("error", |error| {
            error.put("code", row.status).put("message", failure.sentence());
        }),
    })
}

/// A name that a caller sent, fit to be said back.
fn shortened(name: &str) -> String {
    const LONGEST: usize = 200; // longer than any model's name, shorter than a page
    let kept: String = name.chars().filter(|c| !c.is_control()).take(LONGEST).collect();
    kept.replace('`', "'")
}
