//! OpenAI's responses, as its SDKs and Codex read them. Nothing is stored here, so a request brings its whole history.

mod read;
mod request;
mod write;

pub(crate) use read::{Reader, read_whole};
pub(crate) use request::{read, write};
pub(crate) use write::{Writer, failed, whole};

/// The one argument of a function that stands for a tool which takes plain text.
const FREEFORM: &str = "input";
