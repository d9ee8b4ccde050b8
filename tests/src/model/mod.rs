//! A model server that speaks the OpenAI protocol and answers from a script: the model of the demo, the end-to-end
//! and the crash tests.
//!
//! What it answers depends on the conversation in the request alone, so a worker that died and asks again is answered
//! as before. Faults are part of an answer, and so are the servers that this protocol is known for.

#[cfg(test)]
mod adapter;
mod answer;
mod conversation;
mod frames;
mod script;
mod server;

pub use answer::{Answer, Call, Fault};
pub use conversation::{Conversation, Said};
pub use script::{Phases, Script};
pub use server::{ModelServer, Recorded, serve};
