//! Cuts a streamed answer into its events, wherever the network cut it.

use bytes::{Bytes, BytesMut};
use memchr::memchr;

use crate::protocol::Framing;

/// One event. The largest that is known is a whole answer at the end of a Responses stream.
pub(crate) const FRAME_MAX: usize = 32 * 1024 * 1024;

/// Bytes that wait for the end of their event. Each byte is looked at once.
#[derive(Debug)]
pub(crate) struct Frames {
    framing: Framing,
    waiting: BytesMut,
    /// Where the line that is not complete yet begins.
    line: usize,
    /// Up to where no end of a line was found.
    seen: usize,
}

/// An event does not end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

impl Frames {
    pub(crate) fn new(framing: Framing) -> Self {
        Self { framing, waiting: BytesMut::new(), line: 0, seen: 0 }
    }

    pub(crate) fn push(&mut self, chunk: &[u8]) {
        self.waiting.extend_from_slice(chunk);
    }

    /// The next whole event, with the blank line or line feed that ends it.
    pub(crate) fn next(&mut self) -> Result<Option<Bytes>, TooLong> {
        while let Some(found) = memchr(b'\n', &self.waiting[self.seen..]) {
            let feed = self.seen + found;
            let blank = matches!(&self.waiting[self.line..feed], b"" | b"\r");
            self.seen = feed + 1;
            self.line = feed + 1;
            if blank || self.framing == Framing::Lines {
                return Ok(Some(self.take(feed + 1)));
            }
        }
        self.seen = self.waiting.len();
        if self.waiting.len() > FRAME_MAX { Err(TooLong) } else { Ok(None) }
    }

    /// What waits: at the end of a stream an event that lost its end, or that of a server that ends without one.
    pub(crate) fn rest(&mut self) -> Bytes {
        let whole = self.waiting.len();
        self.take(whole)
    }

    fn take(&mut self, bytes: usize) -> Bytes {
        self.line = 0;
        self.seen = 0;
        self.waiting.split_to(bytes).freeze()
    }
}

/// The data of one frame: for events their `data` lines, for lines the line. `None`: a comment, or nothing.
pub(crate) fn data(framing: Framing, frame: &Bytes) -> Option<Bytes> {
    if framing == Framing::Lines {
        let text = frame.trim_ascii();
        return (!text.is_empty()).then(|| frame.slice_ref(text));
    }
    let mut first: Option<&[u8]> = None;
    // Of several lines one text is made; it grows in place, as there may be very many of them.
    let mut joined: Option<Vec<u8>> = None;
    let mut rest: &[u8] = frame;
    while !rest.is_empty() {
        let end = memchr(b'\n', rest).unwrap_or(rest.len());
        let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
        rest = &rest[(end + 1).min(rest.len())..];
        let Some(value) = line.strip_prefix(b"data:") else { continue };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        let Some(before) = first else {
            first = Some(value);
            continue;
        };
        let joined = joined.get_or_insert_with(|| before.to_vec());
        joined.push(b'\n');
        joined.extend_from_slice(value);
    }
    let data = joined.map(Bytes::from).or_else(|| first.map(|value| frame.slice_ref(value)));
    data.filter(|data| !data.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_one_event_are_one_text() {
        let joined = |frame: &'static [u8]| data(Framing::Sse, &Bytes::from_static(frame));
        assert_eq!(joined(b"data: {\ndata:\r\n: x\ndata:  1}\n\n").unwrap(), "{\n\n 1}");
        assert_eq!(joined(b"data:\n\n"), None);
    }

    /// As many as fit. Were each line to copy those before it, this would take half an hour.
    #[test]
    fn an_event_of_millions_of_lines_takes_no_longer_than_its_bytes() {
        const LINES: usize = FRAME_MAX / 6;
        let frame = Bytes::from("data:\n".repeat(LINES));
        assert_eq!(data(Framing::Sse, &frame).map(|data| data.len()), Some(LINES - 1));
    }
}
