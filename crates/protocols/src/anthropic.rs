//! Anthropic's messages.

mod answer;
mod request;

pub(crate) use answer::{Reader, Writer, read_whole, whole};
pub(crate) use request::{read, write};

/// A thought that is only known encrypted has no words, and its data as signature behind this.
const REDACTED: &str = "redacted:";
