//! Token counts as each protocol says them.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::event::Usage;
use crate::json::Object;

/// OpenAI's chat and completions; of vLLM, SGLang and llama.cpp too.
#[derive(Deserialize, Default)]
pub(crate) struct OpenAiUsage {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    prompt_tokens_details: Option<Details>,
    completion_tokens_details: Option<Details>,
}

/// OpenAI's Responses.
#[derive(Deserialize, Default)]
pub(crate) struct ResponsesUsage {
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    input_tokens_details: Option<Details>,
    output_tokens_details: Option<Details>,
}

#[derive(Deserialize, Default)]
struct Details {
    cached_tokens: Option<u64>,
    cache_write_tokens: Option<u64>,
    reasoning_tokens: Option<u64>,
}

/// Anthropic's, which counts what came from the cache beside `input_tokens`, not in it.
#[derive(Deserialize, Default)]
pub(crate) struct AnthropicUsage {
    input_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    output_tokens_details: Option<ThinkingTokens>,
}

#[derive(Deserialize, Default)]
struct ThinkingTokens {
    thinking_tokens: Option<u64>,
}

/// Google's. `candidatesTokenCount` is without the thoughts.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
pub(crate) struct GoogleUsage {
    prompt_token_count: Option<u64>,
    cached_content_token_count: Option<u64>,
    candidates_token_count: Option<u64>,
    thoughts_token_count: Option<u64>,
    tool_use_prompt_token_count: Option<u64>,
}

/// Counts that are said in a way of their own are no reason to lose an answer: they count as not said.
pub(crate) fn lenient<'a, T: Deserialize<'a>>(raw: Option<&'a RawValue>) -> Option<T> {
    raw.and_then(|raw| serde_json::from_str(raw.get()).ok())
}

impl From<OpenAiUsage> for Usage {
    fn from(said: OpenAiUsage) -> Self {
        let prompt = said.prompt_tokens_details.unwrap_or_default();
        Self {
            prompt: said.prompt_tokens.unwrap_or(0),
            cached: prompt.cached_tokens.unwrap_or(0),
            cache_write: prompt.cache_write_tokens.unwrap_or(0),
            output: said.completion_tokens.unwrap_or(0),
            thinking: said.completion_tokens_details.and_then(|details| details.reasoning_tokens).unwrap_or(0),
        }
    }
}

impl From<ResponsesUsage> for Usage {
    fn from(said: ResponsesUsage) -> Self {
        let input = said.input_tokens_details.unwrap_or_default();
        Self {
            prompt: said.input_tokens.unwrap_or(0),
            cached: input.cached_tokens.unwrap_or(0),
            cache_write: input.cache_write_tokens.unwrap_or(0),
            output: said.output_tokens.unwrap_or(0),
            thinking: said.output_tokens_details.and_then(|details| details.reasoning_tokens).unwrap_or(0),
        }
    }
}

impl AnthropicUsage {
    /// A stream says its counts twice; the later ones count, and what they leave out stays.
    pub(crate) fn over(self, before: Option<Usage>) -> Usage {
        let before = before.unwrap_or_default();
        let cached = self.cache_read_input_tokens.unwrap_or(before.cached);
        let cache_write = self.cache_creation_input_tokens.unwrap_or(before.cache_write);
        let fresh_before = before.prompt.saturating_sub(before.cached).saturating_sub(before.cache_write);
        let fresh = self.input_tokens.unwrap_or(fresh_before);
        Usage {
            prompt: fresh.saturating_add(cached).saturating_add(cache_write),
            cached,
            cache_write,
            output: self.output_tokens.unwrap_or(before.output),
            thinking: self.output_tokens_details.and_then(|said| said.thinking_tokens).unwrap_or(before.thinking),
        }
    }
}

impl From<GoogleUsage> for Usage {
    fn from(said: GoogleUsage) -> Self {
        let thinking = said.thoughts_token_count.unwrap_or(0);
        Self {
            prompt: said.prompt_token_count.unwrap_or(0).saturating_add(said.tool_use_prompt_token_count.unwrap_or(0)),
            cached: said.cached_content_token_count.unwrap_or(0),
            cache_write: 0,
            output: said.candidates_token_count.unwrap_or(0).saturating_add(thinking),
            thinking,
        }
    }
}

pub(crate) fn write_openai(usage: &Usage, out: &mut Object<'_>) {
    out.put("prompt_tokens", usage.prompt).put("completion_tokens", usage.output);
    out.put("total_tokens", usage.prompt.saturating_add(usage.output));
    out.object("prompt_tokens_details", |details| {
        details.put("cached_tokens", usage.cached);
    });
    out.object("completion_tokens_details", |details| {
        details.put("reasoning_tokens", usage.thinking);
    });
}

pub(crate) fn write_responses(usage: &Usage, out: &mut Object<'_>) {
    out.put("input_tokens", usage.prompt);
    out.object("input_tokens_details", |details| {
        details.put("cached_tokens", usage.cached).put("cache_write_tokens", usage.cache_write);
    });
    out.put("output_tokens", usage.output);
    out.object("output_tokens_details", |details| {
        details.put("reasoning_tokens", usage.thinking);
    });
    out.put("total_tokens", usage.prompt.saturating_add(usage.output));
}

pub(crate) fn write_anthropic(usage: &Usage, out: &mut Object<'_>) {
    let fresh = usage.prompt.saturating_sub(usage.cached).saturating_sub(usage.cache_write);
    out.put("input_tokens", fresh);
    out.put("cache_creation_input_tokens", usage.cache_write).put("cache_read_input_tokens", usage.cached);
    out.put("output_tokens", usage.output);
    if usage.thinking > 0 {
        out.object("output_tokens_details", |details| {
            details.put("thinking_tokens", usage.thinking);
        });
    }
}
