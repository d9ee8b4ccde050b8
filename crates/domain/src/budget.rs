//! What a Run may spend, and the one decision whether the next model call fits.

use serde::{Deserialize, Serialize};

use crate::task::Mode;

/// Calls held back so that a stopped Run can still write down what it learned.
pub const DISTIL_RESERVE_CALLS: u32 = 1;

/// A model's window below this is refused: the prompt alone would fill it.
pub const MIN_CONTEXT_TOKENS: u64 = 32_768;

/// The ceilings of one Run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    pub calls: u32,
    /// At this many calls the model is told once what is left.
    pub soft_calls: u32,
    pub generated_tokens: u64,
    /// Cached tokens included.
    pub prompt_tokens: u64,
    pub wall_s: u64,
    pub triage_calls: u32,
    pub reproduce_calls: u32,
    pub fix_calls: u32,
    pub repairs: u32,
    pub repair_calls: u32,
}

impl Limits {
    pub const fn for_mode(mode: Mode) -> Self {
        match mode {
            Mode::Quickfix | Mode::Probe => Self {
                calls: 75,
                soft_calls: 60,
                generated_tokens: 120_000,
                prompt_tokens: 4_000_000,
                wall_s: 45 * 60,
                triage_calls: 5,
                reproduce_calls: 12,
                fix_calls: 36,
                repairs: 1,
                repair_calls: 12,
            },
            Mode::Refine => Self {
                calls: 150,
                soft_calls: 100,
                generated_tokens: 300_000,
                prompt_tokens: 10_000_000,
                wall_s: 120 * 60,
                triage_calls: 10,
                reproduce_calls: 20,
                fix_calls: 60,
                repairs: 2,
                repair_calls: 20,
            },
        }
    }
}

/// What a Run has spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Spent {
    pub calls: u32,
    pub generated_tokens: u64,
    pub prompt_tokens: u64,
    /// Seconds since the Run first started, over all its leases.
    pub wall_s: u64,
}

impl Spent {
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            calls: self.calls + other.calls,
            generated_tokens: self.generated_tokens + other.generated_tokens,
            prompt_tokens: self.prompt_tokens + other.prompt_tokens,
            wall_s: self.wall_s + other.wall_s,
        }
    }
}

/// The next call, at its largest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallRequest {
    pub prompt_tokens: u64,
    pub max_generated_tokens: u64,
    pub purpose: Purpose,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Work,
    /// May use the reserve.
    Distil,
}

/// Which limit stopped a Run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    #[error("the limit of model calls is reached")]
    Calls,
    #[error("the limit of generated tokens is reached")]
    GeneratedTokens,
    #[error("the limit of prompt tokens is reached")]
    PromptTokens,
    #[error("the limit of wall time is reached")]
    WallTime,
}

/// The tokens that `request` may generate out of what `limits` leave after `spent`; the first limit it would break if
/// none. A call never gets more than what is left, so a Run ends at its ceiling and not one call beyond it.
pub fn admit(limits: &Limits, spent: &Spent, request: &CallRequest) -> Result<u64, Limit> {
    let reserve = match request.purpose {
        Purpose::Work => DISTIL_RESERVE_CALLS,
        Purpose::Distil => 0,
    };
    if spent.calls + 1 + reserve > limits.calls {
        return Err(Limit::Calls);
    }
    if spent.wall_s >= limits.wall_s {
        return Err(Limit::WallTime);
    }
    let left = limits.generated_tokens.saturating_sub(spent.generated_tokens);
    if left == 0 {
        return Err(Limit::GeneratedTokens);
    }
    if spent.prompt_tokens + request.prompt_tokens > limits.prompt_tokens {
        return Err(Limit::PromptTokens);
    }
    Ok(request.max_generated_tokens.min(left))
}
