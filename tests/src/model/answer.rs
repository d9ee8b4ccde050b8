//! What a script answers, and how that answer goes wrong.

use std::time::Duration;

use serde_json::{Value, json};

#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    pub name: String,
    pub arguments: Value,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Answer {
    pub text: String,
    pub reasoning: String,
    pub calls: Vec<Call>,
    /// `stop`, or `tool_calls` when there are calls, unless given.
    pub finish: Option<String>,
    /// The `usage` object to send instead of the counted one; `null` leaves it out.
    pub usage: Option<Value>,
    /// The time between two pieces of a stream.
    pub pace: Duration,
    pub fault: Option<Fault>,
    /// How often the same conversation must be sent until `fault` passes; for ever if absent.
    pub fault_attempts: Option<u32>,
}

/// A way in which servers fail. Faults in how a call is streamed leave the answer to an unstreamed request whole, as
/// with the real servers; the others do not care how they were asked.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// An error status instead of an answer.
    Status { status: u16, headers: Vec<(String, String)>, body: Value },
    /// Not a byte, not even a status, for this long; then the answer.
    Stall(Duration),
    /// Goes silent after so many pieces for this long, then goes on. Streams only.
    StallAfter { pieces: usize, lasting: Duration },
    /// The connection breaks after so many pieces. Without a stream it breaks within the body.
    CutAfter { pieces: usize },
    /// The stream ends in good order after so many pieces, without a reason and end mark.
    EndsAfter { pieces: usize },
    /// Something that begins like a JSON document and is none.
    MalformedJson,
    /// Lines that are no event stream. Streams only.
    MalformedEvents,
    /// An error object within the stream after the first piece, or instead of the answer without a stream.
    ErrorInside(Value),
    /// Each fragment of the arguments comes twice. Streams only.
    DuplicatedFragments,
    /// The name comes with each fragment. Streams only.
    RepeatedName,
    /// The name of each call is null. Streams only.
    MissingName,
    /// The name of each call is null, streamed or not.
    NamelessCalls,
    /// Fragments carry no index. Streams only.
    MissingIndex,
    /// Arguments are an object where text belongs, streamed or not.
    ArgumentsAsObject,
    /// The text is followed by this, again and again until the client leaves. Without a stream, ten thousand times.
    Repetition(String),
    /// One plain JSON document although a stream was asked for.
    IgnoresStream,
    /// No `[DONE]` at the end. Streams only.
    NoEndMark,
}

impl Fault {
    /// 429 with the error object of OpenAI, and with `Retry-After` in seconds if given.
    pub fn busy(retry_after_s: Option<u64>) -> Self {
        let headers = retry_after_s.map(|seconds| ("retry-after".to_owned(), seconds.to_string()));
        let body = json!({ "error": { "message": "slow down", "type": "rate_limit_error", "code": "rate_limited" } });
        Self::Status { status: 429, headers: headers.into_iter().collect(), body }
    }

    /// An error status with a sentence.
    pub fn status(status: u16, sentence: &str) -> Self {
        let body = json!({ "error": { "message": sentence, "type": "server_error", "code": status } });
        Self::Status { status, headers: Vec::new(), body }
    }

    /// What OpenAI answers to a prompt that does not fit.
    pub fn context_exceeded() -> Self {
        let message = "This model's maximum context length is 1 token.";
        let body = json!({ "error": { "message": message, "code": "context_length_exceeded" } });
        Self::Status { status: 400, headers: Vec::new(), body }
    }
}

impl Answer {
    /// A turn without text and calls.
    pub fn empty() -> Self {
        Self::default()
    }

    pub fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    /// One native call.
    pub fn call(name: &str, arguments: Value) -> Self {
        Self::empty().and_call(name, arguments)
    }

    /// A call in the XML text dialect; an argument that is no text is written as JSON.
    pub fn xml_call(name: &str, arguments: &[(&str, Value)]) -> Self {
        let arguments = arguments.iter().map(|(key, value)| {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            format!("<arg name=\"{key}\">{value}</arg>")
        });
        Self::text(format!("<tool name=\"{name}\">{}</tool>", arguments.collect::<String>()))
    }

    /// A call in the fenced text dialect with one-line values.
    pub fn fenced_call(name: &str, arguments: &[(&str, &str)]) -> Self {
        let lines: String = arguments.iter().map(|(key, value)| format!("{key}: {value}\n")).collect();
        Self::text(format!("```tool {name}\n{lines}```"))
    }

    /// A lone block, which the fenced dialect takes for a call of `bash`.
    pub fn bash_block(command: &str) -> Self {
        Self::text(format!("```bash\n{command}\n```"))
    }

    #[must_use]
    pub fn and_call(mut self, name: &str, arguments: Value) -> Self {
        self.calls.push(Call { name: name.to_owned(), arguments });
        self
    }

    /// Prose before the answer's own text and calls.
    #[must_use]
    pub fn saying(mut self, prose: &str) -> Self {
        self.text.insert_str(0, prose);
        self
    }

    #[must_use]
    pub fn reasoning(mut self, reasoning: &str) -> Self {
        self.reasoning = reasoning.to_owned();
        self
    }

    #[must_use]
    pub fn finishing(mut self, reason: &str) -> Self {
        self.finish = Some(reason.to_owned());
        self
    }

    /// Sends `usage` as it is, right or wrong; `null` leaves it out.
    #[must_use]
    pub fn with_usage(mut self, usage: Value) -> Self {
        self.usage = Some(usage);
        self
    }

    /// A slow stream: waits between pieces.
    #[must_use]
    pub fn paced(mut self, pace: Duration) -> Self {
        self.pace = pace;
        self
    }

    #[must_use]
    pub fn with_fault(mut self, fault: Fault) -> Self {
        self.fault = Some(fault);
        self
    }

    /// Fails the first `times` times that this conversation is sent, then answers.
    #[must_use]
    pub fn failing_first(mut self, times: u32, fault: Fault) -> Self {
        self.fault = Some(fault);
        self.fault_attempts = Some(times);
        self
    }

    /// The fault that holds for this attempt, counted from 1.
    pub fn fault_at(&self, attempt: u32) -> Option<&Fault> {
        self.fault.as_ref().filter(|_| self.fault_attempts.is_none_or(|times| attempt <= times))
    }
}
