//! What of a model's architecture decides how much memory a conversation takes: the state that each layer keeps.

use crate::quantity::Bytes;

/// More than any model has; a file that says more is damaged or hostile.
pub const MAX_LAYERS: u64 = 1024;
/// Heads, sizes of heads and rows; as above.
pub(crate) const MAX_WIDTH: u64 = 1 << 24;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchFacts {
    /// As the file says: `qwen3`, `deepseek2`.
    pub name: String,
    pub layers: Vec<Layer>,
    pub hidden: u64,
    pub vocab: u64,
    /// Tokens of context that it was trained for.
    pub max_ctx: u64,
}

/// What one layer keeps of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// A row of keys and one of values for each token, of the last `window` only if there is one.
    Attention {
        kv_heads: u64,
        key: u64,
        value: u64,
        window: Option<u64>,
    },
    /// One compressed row for each token, which no device can have a part of.
    Latent {
        row: u64,
    },
    /// The same however long the sequence is.
    Recurrent {
        state: Bytes,
    },
    Both {
        kv_heads: u64,
        key: u64,
        value: u64,
        state: Bytes,
    },
    /// Nothing: it looks at the cache of another layer, or at none.
    Stateless,
}

/// A model of which it cannot be said what it takes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArchError {
    #[error("`{key}` is missing")]
    Missing { key: String },
    #[error("`{key}` is {value}, more than the limit of {limit}")]
    TooLarge { key: String, value: u64, limit: u64 },
    /// It keeps something for which there is no formula.
    #[error("architecture `{name}` keeps a state of unknown size: {what}")]
    UnknownLayout { name: String, what: &'static str },
}

pub(crate) fn bounded(key: &str, value: u64, limit: u64) -> Result<u64, ArchError> {
    if value > limit {
        return Err(ArchError::TooLarge { key: key.to_owned(), value, limit });
    }
    Ok(value)
}

/// Every `period`-th layer sees everything, the others a window: of those that a file does not tell, as llama.cpp and vLLM have
/// them built in.
pub(crate) fn window_period(architecture: &str) -> Option<usize> {
    match architecture {
        "gemma2" | "gpt-oss" | "gpt_oss" => Some(2),
        "gemma3" | "gemma3_text" => Some(6),
        "cohere2" | "exaone4" | "olmo2" | "smallthinker" => Some(4),
        _ => None,
    }
}
