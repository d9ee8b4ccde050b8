//! Server-sent events, cut out of bytes that arrive in pieces of any size.
//!
//! Follows the WHATWG rules for line ends (`\n`, `\r\n`, `\r`), comments and unknown fields. Lines are collected as
//! bytes, so a piece may end within a character. Bytes that are no UTF-8 become the replacement character.

/// The data lines of one event, joined by line feeds.
pub(crate) type EventData = String;

#[derive(Debug, Default)]
pub(crate) struct SseParser {
    line: Vec<u8>,
    /// The last byte was a carriage return: a line feed right after it belongs to the same line end.
    after_return: bool,
    /// A byte order mark counts only on the first line.
    past_first_line: bool,
    data: Option<EventData>,
}

impl SseParser {
    /// The events that `bytes` completes, in order.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<EventData> {
        let mut events = Vec::new();
        for &byte in bytes {
            let line_feed_of_pair = byte == b'\n' && self.after_return;
            self.after_return = byte == b'\r';
            match byte {
                b'\n' if line_feed_of_pair => {}
                b'\n' | b'\r' => events.extend(self.end_line()),
                _ => self.line.push(byte),
            }
        }
        events
    }

    /// What the server had begun when the stream ended. The rules drop it; some servers leave out the last blank line.
    pub(crate) fn end(&mut self) -> Option<EventData> {
        if !self.line.is_empty() {
            self.end_line();
        }
        self.data.take()
    }

    fn end_line(&mut self) -> Option<EventData> {
        let bytes = std::mem::take(&mut self.line);
        let text = String::from_utf8_lossy(&bytes);
        let line = if self.past_first_line { text.as_ref() } else { text.trim_start_matches('\u{feff}') };
        self.past_first_line = true;
        if line.is_empty() {
            return self.data.take();
        }
        // A line that begins with a colon is a comment: its field name is empty, like any unknown one it is passed over.
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        if field == "data" {
            let value = value.strip_prefix(' ').unwrap_or(value);
            match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(pieces: &[&[u8]]) -> Vec<EventData> {
        let mut parser = SseParser::default();
        let mut events: Vec<_> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
        events.extend(parser.end());
        events
    }

    #[test]
    fn comments_unknown_fields_and_every_line_end_are_understood() {
        let stream = "\u{feff}: hello\r\nid: 7\r\nevent: x\r\ndata: one\r\n\r\nretry\rdata:two\r\rdata: a\ndata:  b\n\ndata: rest";
        assert_eq!(all(&[stream.as_bytes()]), ["one", "two", "a\n b", "rest"]);
    }

    proptest! {
        #[test]
        fn events_do_not_depend_on_where_the_bytes_are_split(
            stream in "(data: [aé\u{1F600}]{0,5}|:c|x: y|data)?(\n|\r\n|\r){1,2}(data: [bß]{0,4}(\n|\r\n|\r){0,3}){0,4}",
            cuts in proptest::collection::vec(0usize..80, 0..8),
        ) {
            let bytes = stream.as_bytes();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<_> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(all(&pieces), all(&[bytes]));
        }
    }
}
