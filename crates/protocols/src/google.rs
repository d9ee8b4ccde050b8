//! Google's `generateContent` and `streamGenerateContent`, towards upstream only.

mod answer;
mod request;

pub(crate) use answer::read;
pub(crate) use request::{path, write};
