//! What columns of text hold: payloads as every ledger writes them, and what people said.

pub(crate) use fettle_app::stored::{Subject, read, write};

/// What a `text` column holds of what somebody said: PostgreSQL's text has no U+0000, and nothing is refused for one.
pub(crate) fn text(said: &str) -> String {
    said.replace('\0', "\u{fffd}")
}
