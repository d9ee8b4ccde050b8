//! Puts what a reader found into the legal order of events, and what a writer was told into whole pieces.

use crate::event::{Event, Finish, Usage};
use crate::failure::Failure;
use crate::upstream::UpstreamError;

/// The events of one answer while it is read.
#[derive(Debug, Default)]
pub(crate) struct Story {
    events: Vec<Event>,
    started: bool,
    call_open: bool,
    calls: bool,
    finish: Option<Finish>,
    over: bool,
}

impl Story {
    pub(crate) fn take(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    pub(crate) fn has_finish(&self) -> bool {
        self.finish.is_some()
    }

    pub(crate) fn call_is_open(&self) -> bool {
        self.call_open
    }

    pub(crate) fn start(&mut self, id: Option<String>) {
        if !std::mem::replace(&mut self.started, true) {
            self.tell(Event::Started { id });
        }
    }

    /// After its end an answer has nothing to tell.
    fn tell(&mut self, event: Event) {
        if !self.over {
            self.events.push(event);
        }
    }

    pub(crate) fn text(&mut self, text: String) {
        self.say(text, Event::Text);
    }

    pub(crate) fn refusal(&mut self, text: String) {
        self.say(text, Event::Refusal);
    }

    pub(crate) fn thinking(&mut self, text: String) {
        self.say(text, Event::Thinking);
    }

    pub(crate) fn signature(&mut self, signature: String) {
        self.say(signature, Event::ThinkingSignature);
    }

    fn say(&mut self, text: String, event: fn(String) -> Event) {
        if !text.is_empty() {
            self.end_call();
            self.tell(event(text));
        }
    }

    /// `id` is empty where the upstream numbers no calls.
    pub(crate) fn begin_call(&mut self, id: String, name: String) {
        self.end_call();
        self.call_open = true;
        self.calls = true;
        self.tell(Event::CallBegun { id, name });
    }

    pub(crate) fn arguments(&mut self, delta: String) {
        if self.call_open && !delta.is_empty() {
            self.tell(Event::CallArguments(delta));
        }
    }

    pub(crate) fn end_call(&mut self) {
        if std::mem::take(&mut self.call_open) {
            self.tell(Event::CallEnded);
        }
    }

    pub(crate) fn usage(&mut self, usage: Usage) {
        self.tell(Event::Usage(usage));
    }

    /// Said at the end, because several protocols count tokens after it.
    pub(crate) fn finish(&mut self, finish: Finish) {
        self.finish = Some(finish);
    }

    /// The answer is complete.
    pub(crate) fn close(&mut self) {
        let finish = self.finish.take().unwrap_or(Finish::Stop);
        // Ollama and Google call it a stop; who asked for calls is told of calls.
        self.end(Event::Finished(if self.calls && finish == Finish::Stop { Finish::Calls } else { finish }));
    }

    pub(crate) fn fail(&mut self, error: UpstreamError) {
        self.end(Event::Failed(error.to_failure()));
    }

    /// The upstream says something that is not of its protocol, or stops in the middle.
    pub(crate) fn break_off(&mut self, sentence: &str) {
        self.end(Event::Failed(Failure::UpstreamFailed { sentence: sentence.to_owned() }));
    }

    fn end(&mut self, event: Event) {
        self.end_call();
        self.tell(event);
        self.over = true;
    }
}

/// One piece of an answer as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    Text(String),
    Refusal(String),
    Thinking { text: String, signature: Option<String> },
    Call { id: String, name: String, arguments: String },
}

/// What an answer has been so far.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    pub(crate) pieces: Vec<Piece>,
    pub(crate) usage: Usage,
    pub(crate) finish: Option<Finish>,
    pub(crate) failure: Option<Failure>,
}

impl Collected {
    pub(crate) fn add(&mut self, event: &Event) {
        let last = self.pieces.last_mut();
        match (event, last) {
            (Event::Text(delta), Some(Piece::Text(text))) | (Event::Refusal(delta), Some(Piece::Refusal(text))) => {
                text.push_str(delta);
            }
            (Event::Thinking(delta), Some(Piece::Thinking { text, signature: None })) => text.push_str(delta),
            (Event::ThinkingSignature(said), Some(Piece::Thinking { signature: signature @ None, .. })) => {
                *signature = Some(said.clone());
            }
            (Event::CallArguments(delta), Some(Piece::Call { arguments, .. })) => arguments.push_str(delta),
            (Event::Text(text), _) => self.pieces.push(Piece::Text(text.clone())),
            (Event::Refusal(text), _) => self.pieces.push(Piece::Refusal(text.clone())),
            (Event::Thinking(text), _) => {
                self.pieces.push(Piece::Thinking { text: text.clone(), signature: None });
            }
            (Event::ThinkingSignature(said), _) => {
                self.pieces.push(Piece::Thinking { text: String::new(), signature: Some(said.clone()) });
            }
            (Event::CallBegun { id, name }, _) => {
                let (id, name) = (id.clone(), name.clone());
                self.pieces.push(Piece::Call { id, name, arguments: String::new() });
            }
            (Event::Usage(usage), _) => self.usage = *usage,
            (Event::Finished(finish), _) => self.finish = Some(finish.clone()),
            (Event::Failed(failure), _) => self.failure = Some(failure.clone()),
            (Event::Started { .. } | Event::CallArguments(_) | Event::CallEnded, _) => {}
        }
    }

    pub(crate) fn finish(&self) -> &Finish {
        self.finish.as_ref().unwrap_or(&Finish::Stop)
    }

    /// All text, refusals too where the caller's protocol has no place of their own for them.
    pub(crate) fn text(&self, with_refusal: bool) -> String {
        let texts = self.pieces.iter().filter_map(|piece| match piece {
            Piece::Text(text) => Some(text.as_str()),
            Piece::Refusal(text) if with_refusal => Some(text),
            _ => None,
        });
        texts.collect()
    }

    pub(crate) fn thinking(&self) -> String {
        let thoughts = self.pieces.iter().filter_map(|piece| match piece {
            Piece::Thinking { text, .. } => Some(text.as_str()),
            _ => None,
        });
        thoughts.collect()
    }
}
