//! OpenAI's completions: text that the model goes on from.

mod answer;
mod request;

pub(crate) use answer::{read, whole, write};
pub(crate) use request::{read as read_request, write as write_request};
