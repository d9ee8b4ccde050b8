//! A request from one protocol into another, through the neutral form.

use bytes::Bytes;

use crate::protocol::Protocol;
use crate::refused::Refused;
use crate::request::Request;

/// Where a translated request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target<'a> {
    pub protocol: Protocol,
    /// The name the upstream knows the model by.
    pub model: &'a str,
    /// The upstream takes earlier thoughts back as `reasoning_content` (local engines do; OpenAI's own chat does not).
    pub takes_thoughts: bool,
    /// What to put where the protocol demands a limit (Anthropic) and the caller gave none.
    pub default_max_tokens: u64,
}

/// A request as the upstream reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Below the server's root, query included: `/v1/messages`, `/v1beta/models/x:streamGenerateContent?alt=sse`.
    pub path: String,
    pub body: Bytes,
    /// Fields of the caller that were left out, fit for a header; bounded.
    pub dropped: Vec<String>,
}

/// Errors: not readable as `protocol`; the sentence names the field. Fields that are not known never fail.
pub fn read_request(protocol: Protocol, body: &[u8]) -> Result<Request, Refused> {
    let _ = (protocol, body);
    Err(Refused::whole("The body cannot be read yet."))
}

/// Errors: the request says something that changes its meaning and that the target's protocol cannot say.
pub fn write_request(request: &Request, target: &Target<'_>) -> Result<Written, Refused> {
    let _ = (request, target);
    Err(Refused::whole("The request cannot be written yet."))
}
