//! What the use cases need from outside, in their own words. Each port is as small as its use.

pub mod accounts;
pub mod additions;
pub mod clock;
pub mod forge;
pub mod git;
pub mod journal;
pub mod ledger;
pub mod model;
pub mod pods;
pub mod provider;
pub mod sandbox;
pub mod serving;
pub mod transport;
pub mod words;

/// Characters of a reason that is stored and shown; the rest is in the log.
const MAX_REASON_CHARS: usize = 1_000;

/// An error with its causes on one line, for a log or a reason: `while reading x: y: z`.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text.chars().take(MAX_REASON_CHARS).collect()
}

/// The cause of an error, from whichever library it came.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;
