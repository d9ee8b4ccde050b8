//! Ollama's `/api/chat` and `/api/generate`.

mod answer;
mod request;

pub(crate) use answer::{Writer, read, whole};
pub(crate) use request::{read_chat, read_generate, write_chat, write_generate};
