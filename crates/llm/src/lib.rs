//! Turns what model servers send over the wire into raw turns for `app`'s [`Model`](fettle_app::ports::model::Model)
//! port.
//!
//! Nothing here parses, validates or repairs a tool call: `agent` alone does, so there is one parser. Nothing here
//! retries either, because only the caller knows its budget.

mod openai;
mod sse;
mod watch;

pub use openai::{OpenAiCompatible, OpenAiOptions, OptionsError, STALL_LIMIT};
