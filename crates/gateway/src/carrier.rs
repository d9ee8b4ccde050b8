//! An answer on its way from a target's protocol to the caller's: unchanged where both are the same, else through events.
//! Bytes in, bytes out; it waits for nothing.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fettle_protocols::{
    AnswerReader, AnswerWriter, Elapsed, Event, Failure, Head, Protocol, Seen, UpstreamError, Usage, Watch,
    WatchOptions, write_stream_error,
};
use tokio::time::Instant;

pub(crate) struct Carrier {
    to: Protocol,
    streamed: bool,
    way: Way,
}

enum Way {
    Same(Box<Watch>),
    Other(Box<Translation>),
}

struct Translation {
    reader: AnswerReader,
    /// `None` once the answer is written.
    writer: Option<AnswerWriter>,
    usage: Option<Usage>,
    begun: Instant,
    /// When the first piece of the answer proper came.
    content: Option<Instant>,
    answer_bytes: u64,
    ended: bool,
    failed: Option<Failure>,
}

/// How an answer stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    Going,
    /// It came to its end as its protocol says so.
    Ended,
    Failed(Trouble),
}

/// An error in place of an answer or in the middle of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) failure: Failure,
    pub(crate) worth_retrying: bool,
}

impl Carrier {
    pub(crate) fn same(protocol: Protocol, options: WatchOptions) -> Self {
        let streamed = options.streamed;
        Self { to: protocol, streamed, way: Way::Same(Box::new(Watch::new(protocol, options))) }
    }

    pub(crate) fn other(from: Protocol, to: Protocol, head: Head) -> Self {
        let streamed = head.streamed;
        let translation = Translation {
            reader: AnswerReader::new(from, streamed),
            writer: Some(AnswerWriter::new(to, head)),
            usage: None,
            content: None,
            begun: Instant::now(),
            answer_bytes: 0,
            ended: false,
            failed: None,
        };
        Self { to, streamed, way: Way::Other(Box::new(translation)) }
    }

    /// What goes to the caller for `chunk`; may be empty.
    pub(crate) fn push(&mut self, chunk: Bytes) -> Bytes {
        match &mut self.way {
            Way::Same(watch) => watch.push(chunk),
            Way::Other(translation) => {
                let events = translation.reader.push(&chunk);
                translation.write(events)
            }
        }
    }

    /// The target has closed: what is left to say. A stream that was cut off ends with an error in the caller's protocol.
    pub(crate) fn finish(&mut self) -> Bytes {
        match &mut self.way {
            Way::Same(watch) => {
                let rest = watch.finish();
                let seen = watch.seen();
                let failure = match &seen.error {
                    Some(error) => Some(error.to_failure()),
                    None if self.streamed && !is_over(seen) => Some(broken_off()),
                    None => None,
                };
                match failure {
                    Some(failure) if self.streamed => join(rest, write_stream_error(self.to, &failure)),
                    _ => rest,
                }
            }
            Way::Other(translation) => {
                let events = translation.reader.finish();
                let written = translation.write(events);
                match translation.writer.take().map(AnswerWriter::finish) {
                    Some(Ok(rest)) => join(written, rest),
                    Some(Err(failure)) => {
                        translation.failed.get_or_insert(failure);
                        written
                    }
                    None => written,
                }
            }
        }
    }

    /// Ends a stream that cannot go on.
    pub(crate) fn fail(&mut self, failure: Failure) -> Bytes {
        match &mut self.way {
            Way::Same(_) => write_stream_error(self.to, &failure),
            Way::Other(translation) => {
                let written = translation.write(vec![Event::Failed(failure)]);
                let rest = translation.writer.take().and_then(|writer| writer.finish().ok());
                join(written, rest.unwrap_or_default())
            }
        }
    }

    pub(crate) fn usage(&self) -> Option<Usage> {
        match &self.way {
            Way::Same(watch) => watch.seen().usage,
            Way::Other(translation) => translation.usage,
        }
    }

    /// Of what the model wrote, so far.
    pub(crate) fn answer_bytes(&self) -> u64 {
        match &self.way {
            Way::Same(watch) => watch.seen().answer_bytes,
            Way::Other(translation) => translation.answer_bytes,
        }
    }

    /// A whole answer that is none.
    pub(crate) fn is_unread(&self) -> bool {
        matches!(&self.way, Way::Same(watch) if watch.seen().unread)
    }

    /// A piece of the answer proper has been in it.
    pub(crate) fn content(&self) -> bool {
        match &self.way {
            Way::Same(watch) => watch.seen().content,
            Way::Other(translation) => translation.content.is_some(),
        }
    }

    pub(crate) fn has_failed(&self) -> bool {
        match &self.way {
            Way::Same(watch) => watch.seen().error.is_some(),
            Way::Other(translation) => translation.failed.is_some(),
        }
    }

    pub(crate) fn standing(&self) -> Standing {
        match &self.way {
            Way::Same(watch) => match (&watch.seen().error, is_over(watch.seen())) {
                (Some(error), _) => Standing::Failed(trouble(error)),
                (None, true) => Standing::Ended,
                (None, false) => Standing::Going,
            },
            Way::Other(translation) => match (&translation.failed, translation.ended) {
                (Some(failure), _) => {
                    Standing::Failed(Trouble { worth_retrying: is_ours(failure), failure: failure.clone() })
                }
                (None, true) => Standing::Ended,
                (None, false) => Standing::Going,
            },
        }
    }
}

impl Translation {
    fn write(&mut self, events: Vec<Event>) -> Bytes {
        let mut written = Bytes::new();
        for event in events {
            match &event {
                Event::Usage(usage) => self.usage = Some(*usage),
                Event::Finished(_) => {
                    self.ended = true;
                    let first = self.content.map_or(Duration::ZERO, |content| content - self.begun);
                    let elapsed = Elapsed { total: self.begun.elapsed(), first };
                    self.writer.iter_mut().for_each(|writer| writer.set_elapsed(elapsed));
                }
                Event::Failed(failure) => self.failed = Some(failure.clone()),
                Event::Started { .. } => {}
                Event::Text(text)
                | Event::Refusal(text)
                | Event::Thinking(text)
                | Event::CallBegun { name: text, .. }
                | Event::CallArguments(text) => {
                    self.content.get_or_insert_with(Instant::now);
                    self.answer_bytes += text.len() as u64;
                }
                Event::ThinkingSignature(_) | Event::CallEnded => {
                    self.content.get_or_insert_with(Instant::now);
                }
            }
            if let Some(writer) = &mut self.writer {
                written = join(written, writer.write(&event));
            }
        }
        written
    }
}

/// Some servers leave out the mark after an answer's last event. Of an answer that cannot be read nobody knows its end.
fn is_over(seen: &Seen) -> bool {
    seen.ended || seen.finish.is_some() || seen.unread
}

pub(crate) fn trouble(error: &UpstreamError) -> Trouble {
    Trouble { failure: error.to_failure(), worth_retrying: error.worth_retrying() }
}

pub(crate) fn broken_off() -> Failure {
    Failure::UpstreamFailed { sentence: "The model's server broke off its answer.".to_owned() }
}

fn is_ours(failure: &Failure) -> bool {
    matches!(failure, Failure::UpstreamFailed { .. } | Failure::UpstreamSlow { .. } | Failure::RateLimited { .. })
}

fn join(one: Bytes, other: Bytes) -> Bytes {
    if one.is_empty() {
        return other;
    }
    if other.is_empty() {
        return one;
    }
    let mut joined = BytesMut::with_capacity(one.len() + other.len());
    joined.extend_from_slice(&one);
    joined.extend_from_slice(&other);
    joined.freeze()
}
