//! The words of each protocol for why a model stopped.

use crate::event::Finish;

/// A reason that is not known is an end like any other.
pub(crate) fn of_chat(reason: &str) -> Finish {
    match reason {
        "length" => Finish::MaxTokens,
        "tool_calls" | "function_call" => Finish::Calls,
        "content_filter" => Finish::Filtered,
        _ => Finish::Stop,
    }
}

pub(crate) fn to_chat(finish: &Finish) -> &'static str {
    match finish {
        Finish::Stop | Finish::StopText(_) | Finish::Paused => "stop",
        Finish::MaxTokens => "length",
        Finish::Calls => "tool_calls",
        Finish::Filtered | Finish::Refused => "content_filter",
    }
}

/// The reason for which a response of OpenAI's is incomplete.
pub(crate) fn of_incomplete(reason: Option<&str>) -> Finish {
    match reason {
        Some("content_filter") => Finish::Filtered,
        _ => Finish::MaxTokens,
    }
}

pub(crate) fn of_anthropic(reason: &str, text: Option<String>) -> Finish {
    match reason {
        "max_tokens" | "model_context_window_exceeded" => Finish::MaxTokens,
        "stop_sequence" => Finish::StopText(text),
        "tool_use" => Finish::Calls,
        "refusal" => Finish::Refused,
        "pause_turn" => Finish::Paused,
        _ => Finish::Stop,
    }
}

pub(crate) fn to_anthropic(finish: &Finish) -> &'static str {
    match finish {
        Finish::Stop | Finish::StopText(None) => "end_turn",
        Finish::StopText(Some(_)) => "stop_sequence",
        Finish::MaxTokens => "max_tokens",
        Finish::Calls => "tool_use",
        Finish::Filtered | Finish::Refused => "refusal",
        Finish::Paused => "pause_turn",
    }
}

pub(crate) fn of_ollama(reason: Option<&str>) -> Finish {
    match reason {
        Some("length") => Finish::MaxTokens,
        _ => Finish::Stop,
    }
}

pub(crate) fn to_ollama(finish: &Finish) -> &'static str {
    match finish {
        Finish::MaxTokens => "length",
        Finish::Stop | Finish::StopText(_) | Finish::Calls | Finish::Filtered | Finish::Refused | Finish::Paused => {
            "stop"
        }
    }
}

pub(crate) fn of_google(reason: &str) -> Finish {
    match reason {
        "MAX_TOKENS" => Finish::MaxTokens,
        "SAFETY" | "RECITATION" | "BLOCKLIST" | "PROHIBITED_CONTENT" | "SPII" | "IMAGE_SAFETY" | "LANGUAGE" => {
            Finish::Filtered
        }
        _ => Finish::Stop,
    }
}
