//! From the bytes of a successful answer to a raw turn. Pure: bytes go in, in pieces of any size.
//!
//! What the server sends decides how it is read, not what was asked for: some ignore `stream`.

use fettle_app::ports::model::{Progress, RawTurn};
use serde_json::Value;

use super::failure::Complaint;
use super::turn::TurnBuilder;
use crate::sse::SseParser;

/// The longest answer that is read. A chunk of one token is about 300 bytes, so this is some 200,000 tokens streamed.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// What is wrong with an answer that began with a success status.
#[derive(Debug, thiserror::Error)]
pub(super) enum DecodeError {
    #[error("the answer is longer than {MAX_ANSWER_BYTES} bytes")]
    TooLong,
    #[error("the server sent something that is no JSON")]
    NotJson(#[source] serde_json::Error),
    #[error("the server sent no answer of a model")]
    NoChoice,
    #[error("the server reported an error within the answer")]
    Reported { complaint: Complaint, nothing_said: bool },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    More,
    /// Nothing that matters can follow.
    Complete,
}

pub(super) struct Decoder {
    shape: Shape,
    turn: TurnBuilder,
    received: usize,
}

enum Shape {
    /// Only blanks so far.
    Unknown,
    Events(SseParser),
    Document(Vec<u8>),
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self { shape: Shape::Unknown, turn: TurnBuilder::new(), received: 0 }
    }

    pub(super) fn push(&mut self, bytes: &[u8], progress: &Progress<'_>) -> Result<Flow, DecodeError> {
        self.received = self.received.saturating_add(bytes.len());
        if self.received > MAX_ANSWER_BYTES {
            return Err(DecodeError::TooLong);
        }
        if let Shape::Unknown = self.shape {
            match bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
                None => return Ok(Flow::More),
                Some(b'{') => self.shape = Shape::Document(Vec::new()),
                Some(_) => self.shape = Shape::Events(SseParser::default()),
            }
        }
        match &mut self.shape {
            Shape::Unknown => Ok(Flow::More),
            Shape::Document(document) => {
                document.extend_from_slice(bytes);
                Ok(Flow::More)
            }
            Shape::Events(parser) => {
                for data in parser.push(bytes) {
                    if self.take_event(&data, progress)? == Flow::Complete {
                        return Ok(Flow::Complete);
                    }
                }
                Ok(Flow::More)
            }
        }
    }

    /// Whether the turn is whole already, though the server may still send its usage.
    pub(super) fn has_finish(&self) -> bool {
        self.turn.has_finish()
    }

    /// The turn, when the stream has ended or nothing more is wanted.
    pub(super) fn end(mut self, progress: &Progress<'_>) -> Result<RawTurn, DecodeError> {
        match std::mem::replace(&mut self.shape, Shape::Unknown) {
            Shape::Unknown => {}
            Shape::Document(document) => {
                self.take_chunk(&serde_json::from_slice(&document).map_err(DecodeError::NotJson)?, progress)?;
            }
            Shape::Events(mut parser) => {
                if let Some(data) = parser.end()
                    && let Err(error) = self.take_event(&data, progress)
                    && !self.has_finish()
                {
                    return Err(error);
                }
            }
        }
        if self.turn.has_choice() { Ok(self.turn.into_turn()) } else { Err(DecodeError::NoChoice) }
    }

    fn take_event(&mut self, data: &str, progress: &Progress<'_>) -> Result<Flow, DecodeError> {
        let data = data.trim();
        // Servers that leave out the blank line between events give several documents at once.
        let (documents, done) = match data.strip_suffix("[DONE]") {
            Some(before) if before.is_empty() || before.ends_with('\n') => (before, true),
            _ => (data, false),
        };
        for chunk in serde_json::Deserializer::from_str(documents).into_iter::<Value>() {
            self.take_chunk(&chunk.map_err(DecodeError::NotJson)?, progress)?;
            if self.turn.is_cut() {
                return Ok(Flow::Complete);
            }
        }
        Ok(if done { Flow::Complete } else { Flow::More })
    }

    fn take_chunk(&mut self, chunk: &Value, progress: &Progress<'_>) -> Result<(), DecodeError> {
        if let Some(complaint) = Complaint::within(chunk) {
            return Err(DecodeError::Reported { complaint, nothing_said: self.turn.is_empty() });
        }
        self.turn.take(chunk, progress);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use fettle_app::ports::model::{Finish, RawArguments, RawCall, Usage};
    use proptest::prelude::*;

    use super::*;

    const STREAM: &str = concat!(
        ": queued\n\nevent: message\n",
        "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\",\"reasoning_content\":\"hm \"}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"reasoning\":\"…\"}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\"Grüße 😀\"}}]}\n\n",
        "data: {\"choices\":[{\"index\":1,\"delta\":{\"content\":\"another answer\"}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"c\",\"function\":{\"name\":\"view\",\"arguments\":\"{\\\"é\"}}]}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,\"function\":{\"name\":null,\"arguments\":\"\\\":1}\"}}]}}]}\n",
        "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"tool_calls\"}],\"error\":null}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":7}}\n\n",
        "data: [DONE]\n\n",
    );

    fn decoded<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<RawTurn, DecodeError> {
        let mut decoder = Decoder::new();
        for piece in pieces {
            if decoder.push(piece, &|_, _| ())? == Flow::Complete {
                break;
            }
        }
        decoder.end(&|_, _| ())
    }

    fn turn() -> RawTurn {
        RawTurn {
            text: "Grüße 😀".into(),
            reasoning: "hm …".into(),
            calls: vec![RawCall {
                index: 0,
                id: Some("c".into()),
                name: Some("view".into()),
                arguments: RawArguments::Text("{\"é\":1}".into()),
            }],
            finish: Finish::ToolCalls,
            usage: Some(Usage { prompt_tokens: 5, generated_tokens: 7 }),
        }
    }

    #[test]
    fn a_stream_cut_at_any_byte_gives_the_same_turn() {
        for stream in [STREAM.to_owned(), STREAM.replace('\n', "\r\n"), STREAM.replace("data: [DONE]\n\n", "")] {
            let bytes = stream.as_bytes();
            for at in 0..=bytes.len() {
                assert_eq!(decoded([&bytes[..at], &bytes[at..]]).unwrap(), turn(), "cut at {at}");
            }
            assert_eq!(decoded(bytes.chunks(1)).unwrap(), turn());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_and_pieces_never_matter(
            noise in proptest::collection::vec(any::<u8>(), 0..40), at in 0..STREAM.len(), size in 1usize..50,
        ) {
            let mut bytes = STREAM.as_bytes().to_vec();
            bytes.splice(at..at, noise);
            let said = |result: Result<RawTurn, DecodeError>| result.map_err(|error| error.to_string());
            prop_assert_eq!(said(decoded(bytes.chunks(size))), said(decoded([bytes.as_slice()])));
        }
    }

    #[test]
    fn a_plain_document_is_read_whatever_was_asked_for() {
        let document = r#" {"choices":[{"message":{"content":[{"type":"text","text":"Grüße 😀"}],"reasoning":"hm …",
            "tool_calls":[{"id":"c","function":{"name":"view","arguments":"{\"é\":1}"}}]},"finish_reason":"tool_calls"}],
            "usage":{"prompt_tokens":5,"completion_tokens":7}}"#;
        assert_eq!(decoded(document.as_bytes().chunks(3)).unwrap(), turn());
    }

    #[test]
    fn an_end_without_a_reason_is_missing_and_wrong_usage_is_none() {
        let stream = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"usage\":{\"prompt_tokens\":-1,\"completion_tokens\":\"9\"}}\n\n";
        let cut = decoded([stream.as_bytes()]).unwrap();
        assert_eq!((cut.text.as_str(), &cut.finish, cut.usage), ("a", &Finish::Missing, None));
    }

    #[test]
    fn what_is_no_answer_says_why() {
        let wrong = |bytes: &str| decoded([bytes.as_bytes()]).expect_err(bytes);
        assert!(matches!(wrong(""), DecodeError::NoChoice));
        assert!(matches!(wrong("<html>\n\n"), DecodeError::NoChoice));
        assert!(matches!(wrong("{}"), DecodeError::NoChoice));
        assert!(matches!(wrong("data: [DONE]\n\n"), DecodeError::NoChoice));
        assert!(matches!(wrong("{\"choices\":"), DecodeError::NotJson(_)));
        assert!(matches!(wrong("data: {\"choices\": [\n\n"), DecodeError::NotJson(_)));
        assert!(matches!(
            wrong("data: {\"error\":\"out of memory\"}\n\n"),
            DecodeError::Reported { nothing_said: true, .. }
        ));
        assert!(matches!(decoded([vec![b'.'; MAX_ANSWER_BYTES + 1].as_slice()]), Err(DecodeError::TooLong)));
    }

    #[test]
    fn the_watcher_ends_the_turn_and_progress_hears_only_what_is_kept() {
        let chunk =
            |text: &str| format!("data: {}\n\n", serde_json::json!({"choices": [{"delta": {"content": text}}]}));
        let heard = std::sync::Mutex::new(String::new());
        let progress = |_, piece: &str| heard.lock().unwrap().push_str(piece);
        let mut decoder = Decoder::new();
        assert_eq!(decoder.push(chunk("Done.\n").as_bytes(), &progress).unwrap(), Flow::More);
        let foreign = chunk("All of it.\n<|im_start|>user\nthanks");
        assert_eq!(decoder.push(foreign.as_bytes(), &progress).unwrap(), Flow::Complete);
        let turn = decoder.end(&progress).unwrap();
        assert_eq!(turn.text, "Done.\nAll of it.\n");
        assert!(matches!(turn.finish, Finish::Cut(_)));
        assert_eq!(*heard.lock().unwrap(), turn.text);
    }
}
