//! Anthropic's messages.

mod answer;
mod request;

pub(crate) use answer::{Reader, Writer, read_whole, whole};
pub(crate) use request::{read, write};
