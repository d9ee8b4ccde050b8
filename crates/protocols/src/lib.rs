//! What each inference interface says on the wire, as values: bytes in, bytes out. No I/O, clock, randomness or async;
//! ids and times are arguments.
//!
//! The same protocol on both sides: [`Peek`] finds what routing needs, [`edit()`] changes the model and the usage option
//! and nothing else, [`Watch`] reads the answer as it passes. Different ones: [`read_request`] and [`write_request`]
//! through [`Request`], [`AnswerReader`] and [`AnswerWriter`] through [`Event`].

mod answer;
mod anthropic;
mod called;
mod chat;
mod completions;
mod edit;
mod event;
mod failure;
mod finish;
mod frames;
mod google;
mod json;
mod models;
mod notes;
mod ollama;
mod peek;
mod protocol;
mod refused;
mod request;
mod responses;
mod signature;
mod story;
mod translate;
mod upstream;
mod usage;
mod watch;

pub use answer::{AnswerReader, AnswerWriter, Elapsed, Head};
pub use edit::{Edit, edit};
pub use event::{Event, Finish, Usage};
pub use failure::{ErrorAnswer, Failure, RETRY_AFTER_MAX, RETRY_AFTER_MIN, write_error, write_stream_error};
pub use models::{ModelEntry, write_count_tokens, write_model, write_models, write_ollama_show, write_ollama_version};
pub use peek::{PREFIX_BYTES, Peek};
pub use protocol::{Family, Framing, Protocol};
pub use refused::Refused;
pub use request::{
    Effort, Format, Image, Input, Message, Part, Request, Role, Sampling, Thinking, Tool, ToolChoice, ToolKind, Unsaid,
    Weight,
};
pub use translate::{Target, Written, read_request, write_request};
pub use upstream::{UpstreamError, read_error};
pub use watch::{Seen, Watch, WatchOptions};
