//! Changes the model's name and the usage option of a body, and leaves every other byte as it is.

use std::ops::Range;

use bytes::Bytes;
use serde_json::value::RawValue;

use crate::json::{self, At, Fields};
use crate::peek::usage_is_optional;
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
    let at = At::Body;
    let mut fields = Fields::of(json::body(body)?, &at)?;
    let mut changes = Vec::new();
    let model = fields.require("model")?;
    if json::string(model, &at.key("model"))? != edit.model {
        changes.push(Change { span: span(body, model), text: quoted(edit.model) });
    }
    if edit.ask_usage && usage_is_optional(protocol) && fields.bool("stream")? == Some(true) {
        changes.extend(ask_usage(body, model, &mut fields)?);
    }
    Ok(apply(body, changes))
}

/// Bytes of the body that give way to others.
pub(crate) struct Change {
    pub(crate) span: Range<usize>,
    pub(crate) text: String,
}

fn ask_usage(body: &[u8], model: &RawValue, fields: &mut Fields<'_, '_>) -> Result<Option<Change>, Refused> {
    const WANTED: &str = "\"include_usage\":true";
    let at = At::Body;
    let at = at.key("stream_options");
    let Some(options) = fields.take_null("stream_options")? else {
        let end = span(body, model).end;
        return Ok(Some(Change { span: end..end, text: format!(",\"stream_options\":{{{WANTED}}}") }));
    };
    let place = span(body, options);
    if options.get() == "null" {
        return Ok(Some(Change { span: place, text: format!("{{{WANTED}}}") }));
    }
    let mut inner = Fields::of(options, &at)?;
    Ok(match inner.take_null("include_usage")? {
        Some(raw) if raw.get() == "true" => None,
        Some(raw) => Some(Change { span: span(body, raw), text: "true".to_owned() }),
        None => {
            let comma = if inner.is_empty() { "" } else { "," };
            Some(Change { span: place.start + 1..place.start + 1, text: format!("{WANTED}{comma}") })
        }
    })
}

/// Where `raw`, which was read out of `whole`, stands in it.
pub(crate) fn span(whole: &[u8], raw: &RawValue) -> Range<usize> {
    let start = raw.get().as_ptr() as usize - whole.as_ptr() as usize;
    start..start + raw.get().len()
}

pub(crate) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// `changes` do not overlap.
pub(crate) fn apply(whole: &Bytes, mut changes: Vec<Change>) -> Bytes {
    if changes.is_empty() {
        return whole.clone();
    }
    changes.sort_by_key(|change| (change.span.start, change.span.end));
    let grown: usize = changes.iter().map(|change| change.text.len()).sum();
    let mut out = Vec::with_capacity(whole.len() + grown);
    let mut from = 0;
    for change in changes {
        out.extend_from_slice(&whole[from..change.span.start]);
        out.extend_from_slice(change.text.as_bytes());
        from = change.span.end;
    }
    out.extend_from_slice(&whole[from..]);
    out.into()
}
