//! Where a span stands. Nothing is stored for it: the trace of a Task has the digits of its correlation id, and the spans that
//! others hang on to have digits of the id of what they stand for. So programs that never met, and those that come after a
//! crash, write into one tree.

use std::fmt;
use std::num::{NonZeroU64, NonZeroU128};
use std::str::FromStr;

use uuid::Uuid;

use crate::id::CorrelationId;

/// A trace: the digits of a correlation id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceId(NonZeroU128);

/// A span in its trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanId(NonZeroU64);

/// What a request's `traceparent` says: the span that caused it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    pub trace: TraceId,
    pub span: SpanId,
}

/// The text is not a `traceparent` as <https://www.w3.org/TR/trace-context/> has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent")]
pub struct NoTraceParent;

impl TraceId {
    /// Nothing for the id that is all zeros, which names no trace.
    pub fn of(correlation: CorrelationId) -> Option<Self> {
        NonZeroU128::new(correlation.as_uuid().as_u128()).map(Self)
    }

    /// The correlation id whose trace this is.
    pub fn correlation(self) -> CorrelationId {
        CorrelationId::from_uuid(Uuid::from_u128(self.0.get()))
    }

    pub fn bytes(self) -> [u8; 16] {
        self.0.get().to_be_bytes()
    }
}

impl SpanId {
    /// The span that stands for what has this id: its last 16 digits. Of the UUIDs we make they are never all zeros.
    pub fn of(id: Uuid) -> Option<Self> {
        let (_, low) = id.as_u64_pair();
        Self::from_digits(low)
    }

    pub fn from_digits(digits: u64) -> Option<Self> {
        NonZeroU64::new(digits).map(Self)
    }

    pub fn bytes(self) -> [u8; 8] {
        self.0.get().to_be_bytes()
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-01", self.trace, self.span)
    }
}

impl FromStr for TraceParent {
    type Err = NoTraceParent;

    /// Later versions may have more behind the four parts; version `ff` is none.
    fn from_str(text: &str) -> Result<Self, NoTraceParent> {
        let mut parts = text.split('-');
        let mut part = |length: usize| {
            let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            parts.next().filter(|part| part.len() == length && part.bytes().all(digit)).ok_or(NoTraceParent)
        };
        let (version, trace, span, _flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
        if version == "ff" || (version == "00" && parts.next().is_some()) {
            return Err(NoTraceParent);
        }
        let trace = u128::from_str_radix(trace, 16).ok().and_then(NonZeroU128::new).ok_or(NoTraceParent)?;
        let span = u64::from_str_radix(span, 16).ok().and_then(NonZeroU64::new).ok_or(NoTraceParent)?;
        Ok(Self { trace: TraceId(trace), span: SpanId(span) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVEN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_trace_has_its_tasks_correlation_id_and_leads_back_to_it() {
        let parent: TraceParent = GIVEN.parse().unwrap();
        let correlation = parent.trace.correlation();
        assert_eq!(correlation.to_string(), "corr_4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(TraceId::of(correlation), Some(parent.trace));
        assert_eq!(parent.to_string(), GIVEN);
        assert_eq!(TraceId::of(CorrelationId::from_uuid(Uuid::nil())), None);
    }

    #[test]
    fn a_thing_has_the_last_digits_of_its_id_as_its_span() {
        let id = Uuid::parse_str("01a22a58-b9a0-7000-8123-456789abcdef").unwrap();
        assert_eq!(SpanId::of(id).unwrap().to_string(), "8123456789abcdef");
    }

    #[test]
    fn what_is_no_traceparent_is_not_taken_for_one() {
        let later = GIVEN.replacen("00", "01", 1) + "-more";
        assert!(later.parse::<TraceParent>().is_ok());
        for wrong in [
            "",
            "00",
            &GIVEN.to_uppercase(),
            &GIVEN.replacen("00", "ff", 1),
            &GIVEN.replace("4bf9", "4bf"),
            &GIVEN.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &GIVEN.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &format!("{GIVEN}-more"),
            &GIVEN.replace("4bf9", "+bf9"),
        ] {
            assert_eq!(wrong.parse::<TraceParent>(), Err(NoTraceParent), "{wrong}");
        }
    }
}
