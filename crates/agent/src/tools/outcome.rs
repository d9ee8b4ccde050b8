//! A result while it is made: one way to say "done" and one to say "refused".

use bytes::Bytes;

use super::text::head_and_tail;
use super::{OUT_PREFIX, ToolResult};

/// Why a tool did not do it: the code and the sentence after `error[code]: `, which says whether anything changed.
pub(super) struct Refusal {
    code: &'static str,
    sentence: String,
}

impl Refusal {
    pub(super) fn new(code: &'static str, sentence: String) -> Self {
        Self { code, sentence }
    }
}

impl From<Refusal> for Outcome {
    fn from(refusal: Refusal) -> Self {
        Self::refused(refusal.code, refusal.sentence)
    }
}

pub(super) struct Outcome {
    pub(super) result: ToolResult,
    /// Every byte behind the text; the text itself when absent.
    pub(super) output: Option<Bytes>,
}

impl Outcome {
    pub(super) fn done(text: String) -> Self {
        Self {
            result: ToolResult {
                ok: true,
                code: None,
                text,
                exit: None,
                signal: None,
                timed_out: false,
                bytes_total: 0,
                truncated: false,
                seen: Vec::new(),
                wrote: Vec::new(),
                took_ms: 0,
            },
            output: None,
        }
    }

    /// The result of a [`Refusal`].
    pub(super) fn refused(code: &'static str, sentence: String) -> Self {
        let mut outcome = Self::done(format!("error[{code}]: {sentence}"));
        outcome.result.ok = false;
        outcome.result.code = Some(code.to_owned());
        outcome
    }

    /// No result is larger than a quarter of the working context, whichever tool made it.
    pub(super) fn limit(&mut self, max_chars: usize, step: u32) {
        let full = &self.result.text;
        if full.chars().count() <= max_chars {
            return;
        }
        // The note needs room of its own.
        const NOTE_CHARS: usize = 120;
        let half = max_chars.saturating_sub(NOTE_CHARS) / 2;
        let (cut, _) = head_and_tail(full, half, half, &format!("{OUT_PREFIX}{step}.log"));
        let full = std::mem::replace(&mut self.result.text, cut);
        self.output.get_or_insert_with(|| Bytes::from(full));
        self.result.truncated = true;
        // Lines in the middle were not shown, so nothing of this result counts as seen.
        self.result.seen.clear();
    }

    pub(super) fn into_parts(self) -> (ToolResult, Bytes) {
        let mut result = self.result;
        let output = self.output.unwrap_or_else(|| Bytes::from(result.text.clone()));
        if result.bytes_total == 0 {
            result.bytes_total = output.len() as u64;
        }
        (result, output)
    }
}
