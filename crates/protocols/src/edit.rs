//! Changes the model's name and the usage option of a body, and leaves every other byte as it is.

use bytes::Bytes;

use crate::protocol::Protocol;
use crate::refused::Refused;

/// What to change before a body goes to an upstream of the same protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edit<'a> {
    /// The name the upstream knows the model by.
    pub model: &'a str,
    /// See to it that a streamed answer ends with its usage. Does nothing where the protocol always says it.
    pub ask_usage: bool,
}

/// Errors: as [`crate::Peek::of`]. A body that needs no change comes back as it is, without a copy.
pub fn edit(protocol: Protocol, body: &Bytes, edit: Edit<'_>) -> Result<Bytes, Refused> {
    let _ = (protocol, body, edit);
    Err(Refused::whole("The body cannot be edited yet."))
}
