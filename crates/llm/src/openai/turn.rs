//! Folds the chunks of a streamed answer, or one whole answer, into a raw turn.

use fettle_app::ports::model::{Finish, Progress, RawTurn, Usage};
use fettle_domain::words::Voice;
use serde_json::Value;

use super::calls::Calls;
use crate::watch::{Channel, Watcher};

/// A reason to stop that no provider documents is kept this far.
const MAX_FINISH_CHARS: usize = 64;

#[derive(Debug)]
pub(super) struct TurnBuilder {
    text: String,
    text_watcher: Watcher,
    reasoning: String,
    reasoning_watcher: Watcher,
    calls: Calls,
    finish: Option<Finish>,
    usage: Option<Usage>,
    any_choice: bool,
}

impl TurnBuilder {
    pub(super) fn new() -> Self {
        Self {
            text: String::new(),
            text_watcher: Watcher::new(Channel::Text),
            reasoning: String::new(),
            reasoning_watcher: Watcher::new(Channel::Reasoning),
            calls: Calls::default(),
            finish: None,
            usage: None,
            any_choice: false,
        }
    }

    /// Takes one chunk, or the whole answer. What it does not know it passes over.
    pub(super) fn take(&mut self, chunk: &Value, progress: &Progress<'_>) {
        if let Some(usage) = usage(&chunk["usage"]) {
            self.usage = Some(usage);
        }
        // One answer is asked for; a server that sends more marks the others with an index above 0.
        let choices = chunk["choices"].as_array().map_or(&[][..], Vec::as_slice);
        for choice in choices.iter().filter(|choice| choice["index"].as_u64().unwrap_or(0) == 0) {
            self.any_choice = true;
            if let Err(reason) = self.take_choice(choice, progress) {
                self.finish = Some(Finish::Cut(reason));
            }
            if self.is_cut() {
                return;
            }
        }
    }

    /// Whether the watcher ended the turn.
    pub(super) fn is_cut(&self) -> bool {
        matches!(self.finish, Some(Finish::Cut(_)))
    }

    /// Whether the server or the watcher has said why the turn ended.
    pub(super) fn has_finish(&self) -> bool {
        self.finish.is_some()
    }

    pub(super) fn has_choice(&self) -> bool {
        self.any_choice
    }

    /// Whether the model has said anything yet.
    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty() && self.reasoning.is_empty() && self.calls.is_empty()
    }

    pub(super) fn into_turn(self) -> RawTurn {
        RawTurn {
            text: self.text,
            reasoning: self.reasoning,
            calls: self.calls.into_raw(),
            finish: self.finish.unwrap_or(Finish::Missing),
            usage: self.usage,
        }
    }

    fn take_choice(&mut self, choice: &Value, progress: &Progress<'_>) -> Result<(), String> {
        let (said, whole) = match &choice["delta"] {
            Value::Object(_) => (&choice["delta"], false),
            _ => (&choice["message"], true),
        };
        // The two names mean the same thing; servers that send both send it twice.
        let reasoning = match content(&said["reasoning_content"]) {
            none if none.is_empty() => content(&said["reasoning"]),
            some => some,
        };
        let before = self.reasoning.len();
        self.reasoning.push_str(&reasoning);
        let cut = self.reasoning_watcher.look(&self.reasoning);
        if let Some(cut) = &cut {
            self.reasoning.truncate(cut.keep);
        }
        if let Some(piece) = self.reasoning.get(before..).filter(|piece| !piece.is_empty()) {
            progress(Voice::Thought, piece);
        }
        if let Some(cut) = cut {
            return Err(cut.reason);
        }

        let before = self.text.len();
        self.text.push_str(&content(&said["content"]));
        let cut = self.text_watcher.look(&self.text);
        if let Some(cut) = &cut {
            self.text.truncate(cut.keep);
        }
        if let Some(piece) = self.text.get(before..).filter(|piece| !piece.is_empty()) {
            progress(Voice::Said, piece);
        }
        if let Some(cut) = cut {
            return Err(cut.reason);
        }

        if whole {
            self.calls.take_whole(&said["tool_calls"], progress)?;
        } else {
            self.calls.join(&said["tool_calls"], progress)?;
        }
        if let Some(reason) = choice["finish_reason"].as_str().filter(|reason| !reason.is_empty()) {
            self.finish = Some(finish(reason));
        }
        Ok(())
    }
}

/// Text, or the text of a list of parts.
fn content(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        _ => String::new(),
    }
}

fn finish(reason: &str) -> Finish {
    match reason {
        "stop" => Finish::Stop,
        "tool_calls" | "function_call" => Finish::ToolCalls,
        "length" => Finish::Length,
        "content_filter" => Finish::ContentFilter,
        other => Finish::Other(other.chars().take(MAX_FINISH_CHARS).collect()),
    }
}

/// Both figures or none: the governor charges the reserved maximum when they are missing.
fn usage(value: &Value) -> Option<Usage> {
    let prompt_tokens = value["prompt_tokens"].as_u64()?;
    let generated_tokens = value["completion_tokens"].as_u64()?;
    Some(Usage { prompt_tokens, generated_tokens })
}
