//! An architecture from the `config.json` beside safetensors files, by the fields that vLLM and SGLang read.

use serde::Deserialize;

use super::arch::{ArchError, ArchFacts, Layer, MAX_LAYERS, MAX_WIDTH, bounded, window_period};
use crate::quantity::Bytes;

/// Real ones have a few kilobytes.
pub const MAX_CONFIG: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("the configuration has {length} bytes, more than the limit of {MAX_CONFIG}")]
    TooLong { length: usize },
    #[error("the configuration is not what it should be")]
    Malformed(#[source] serde_json::Error),
    #[error(transparent)]
    Arch(#[from] ArchError),
}

pub fn facts(json: &[u8]) -> Result<ArchFacts, ConfigError> {
    if json.len() > MAX_CONFIG {
        return Err(ConfigError::TooLong { length: json.len() });
    }
    let whole: Whole = serde_json::from_slice(json).map_err(ConfigError::Malformed)?;
    // Models that also see keep what concerns text in a table of its own.
    let config = whole.text_config.unwrap_or(whole.config);
    Ok(config.facts()?)
}

#[derive(Deserialize)]
struct Whole {
    text_config: Option<Config>,
    #[serde(flatten)]
    config: Config,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Config {
    model_type: Option<String>,
    num_hidden_layers: Option<u64>,
    hidden_size: Option<u64>,
    vocab_size: Option<u64>,
    max_position_embeddings: Option<u64>,
    num_attention_heads: Option<u64>,
    num_key_value_heads: Option<u64>,
    head_dim: Option<u64>,
    v_head_dim: Option<u64>,
    kv_lora_rank: Option<u64>,
    qk_rope_head_dim: Option<u64>,
    sliding_window: Option<u64>,
    use_sliding_window: Option<bool>,
    sliding_window_pattern: Option<u64>,
    num_kv_shared_layers: Option<u64>,
    layer_types: Option<Vec<String>>,
    /// Of Nemotron: `M` has a state, `*` attention, `-` and `E` neither.
    hybrid_override_pattern: Option<String>,
    full_attention_interval: Option<u64>,
    attn_layer_period: Option<u64>,
    attn_layer_offset: Option<u64>,
    linear_conv_kernel_dim: Option<u64>,
    linear_num_key_heads: Option<u64>,
    linear_key_head_dim: Option<u64>,
    linear_num_value_heads: Option<u64>,
    linear_value_head_dim: Option<u64>,
    #[serde(alias = "ssm_state_size")]
    mamba_d_state: Option<u64>,
    #[serde(alias = "conv_kernel")]
    mamba_d_conv: Option<u64>,
    mamba_expand: Option<u64>,
    #[serde(alias = "mamba_num_heads")]
    mamba_n_heads: Option<u64>,
    #[serde(alias = "mamba_head_dim")]
    mamba_d_head: Option<u64>,
    #[serde(alias = "n_groups")]
    mamba_n_groups: Option<u64>,
}

/// What a layer is, before its sizes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sort {
    Full,
    Windowed,
    State,
    Stateless,
}

impl Config {
    fn facts(&self) -> Result<ArchFacts, ArchError> {
        let name = self.model_type.clone().unwrap_or_default();
        let count = bounded("num_hidden_layers", needed("num_hidden_layers", self.num_hidden_layers)?, MAX_LAYERS)?;
        let hidden = bounded("hidden_size", needed("hidden_size", self.hidden_size)?, MAX_WIDTH)?;
        let vocab = bounded("vocab_size", needed("vocab_size", self.vocab_size)?, MAX_WIDTH)?;
        let layers = (0..count).map(|nth| self.layer(&name, nth, count, hidden)).collect::<Result<_, _>>()?;
        Ok(ArchFacts { name, layers, hidden, vocab, max_ctx: self.max_position_embeddings.unwrap_or_default() })
    }

    fn layer(&self, name: &str, nth: u64, count: u64, hidden: u64) -> Result<Layer, ArchError> {
        let window = match self.sort(name, nth)? {
            Sort::State => return self.state(name, hidden).map(|state| Layer::Recurrent { state }),
            Sort::Stateless => return Ok(Layer::Stateless),
            Sort::Windowed => {
                self.sliding_window.map(|window| bounded("sliding_window", window, MAX_WIDTH)).transpose()?
            }
            Sort::Full => None,
        };
        if nth >= count.saturating_sub(self.num_kv_shared_layers.unwrap_or_default()) {
            return Ok(Layer::Stateless);
        }
        if let Some(rank) = self.kv_lora_rank {
            let rope = needed("qk_rope_head_dim", self.qk_rope_head_dim)?;
            let row = bounded("kv_lora_rank", rank, MAX_WIDTH)? + bounded("qk_rope_head_dim", rope, MAX_WIDTH)?;
            return Ok(Layer::Latent { row });
        }
        let heads = needed("num_attention_heads", self.num_attention_heads)?;
        let kv_heads = bounded("num_key_value_heads", self.num_key_value_heads.unwrap_or(heads), MAX_WIDTH)?;
        let head = self.head_dim.unwrap_or(hidden / heads.max(1));
        let key = bounded("head_dim", head, MAX_WIDTH)?;
        let value = bounded("v_head_dim", self.v_head_dim.unwrap_or(head), MAX_WIDTH)?;
        if name == "falcon_h1" {
            return self.state(name, hidden).map(|state| Layer::Both { kv_heads, key, value, state });
        }
        Ok(Layer::Attention { kv_heads, key, value, window })
    }

    fn sort(&self, name: &str, nth: u64) -> Result<Sort, ArchError> {
        let place = usize::try_from(nth).unwrap_or(usize::MAX);
        let unknown = |what| ArchError::UnknownLayout { name: name.to_owned(), what };
        if let Some(types) = &self.layer_types {
            return match types.get(place).map(String::as_str) {
                Some("full_attention" | "attention") => Ok(Sort::Full),
                Some("sliding_attention" | "chunked_attention") => Ok(Sort::Windowed),
                Some("linear_attention" | "mamba" | "mamba2") => Ok(Sort::State),
                Some("mlp" | "moe") => Ok(Sort::Stateless),
                Some(_) => Err(unknown("a type in `layer_types`")),
                None => Err(unknown("`layer_types` is too short")),
            };
        }
        if let Some(pattern) = &self.hybrid_override_pattern {
            return match pattern.as_bytes().get(place) {
                Some(b'M') => Ok(Sort::State),
                Some(b'*') => Ok(Sort::Full),
                Some(b'-' | b'E') => Ok(Sort::Stateless),
                _ => Err(unknown("a sign in `hybrid_override_pattern`")),
            };
        }
        if let Some(interval) = self.full_attention_interval.filter(|interval| *interval > 0) {
            return Ok(if (nth + 1).is_multiple_of(interval) { Sort::Full } else { Sort::State });
        }
        if let Some(period) = self.attn_layer_period.filter(|period| *period > 0) {
            let full = nth % period == self.attn_layer_offset.unwrap_or_default();
            return Ok(if full { Sort::Full } else { Sort::State });
        }
        if name.starts_with("mamba") {
            return Ok(Sort::State);
        }
        if self.mamba_d_state.is_some() && name != "falcon_h1" {
            return Err(unknown("a state, and nothing that says in which layers"));
        }
        if self.sliding_window.is_none() || self.use_sliding_window == Some(false) {
            return Ok(Sort::Full);
        }
        let known = window_period(name).map(|period| period as u64);
        Ok(match self.sliding_window_pattern.or(known).filter(|period| *period > 0) {
            Some(period) if (nth + 1).is_multiple_of(period) => Sort::Full,
            Some(_) => Sort::Windowed,
            None if name == "mistral" || name == "mixtral" => Sort::Windowed,
            // It is not known which layers have the window, so the estimate may be too high.
            None => Sort::Full,
        })
    }

    /// Of one sequence in one recurrent layer: the convolution's window in half precision, the state in single.
    fn state(&self, name: &str, hidden: u64) -> Result<Bytes, ArchError> {
        let linear = (
            self.linear_conv_kernel_dim,
            self.linear_num_key_heads.zip(self.linear_key_head_dim),
            self.linear_num_value_heads.zip(self.linear_value_head_dim),
        );
        if let (Some(kernel), Some((key_heads, key)), Some((value_heads, value))) = linear {
            let convolved = product(&[2, key_heads, key]).saturating_add(product(&[value_heads, value]));
            let convolution = Bytes::new(convolved).times(kernel.saturating_sub(1)).times(2);
            return Ok(convolution + Bytes::new(product(&[value_heads, key, value])).times(4));
        }
        let inner = match (self.mamba_n_heads, self.mamba_d_head) {
            (Some(heads), Some(head)) => product(&[heads, head]),
            _ => product(&[self.mamba_expand.unwrap_or(2), hidden]),
        };
        let (Some(size), Some(kernel)) = (self.mamba_d_state, self.mamba_d_conv) else {
            return Err(ArchError::UnknownLayout { name: name.to_owned(), what: "no sizes of its state" });
        };
        let groups = self.mamba_n_groups.unwrap_or_default();
        let convolved = inner.saturating_add(product(&[2, groups, size]));
        Ok(Bytes::new(convolved).times(kernel.saturating_sub(1)).times(2)
            + Bytes::new(product(&[inner, size])).times(4))
    }
}

fn product(factors: &[u64]) -> u64 {
    factors.iter().fold(1, |product, factor| product.saturating_mul(*factor))
}

fn needed(key: &str, value: Option<u64>) -> Result<u64, ArchError> {
    value.ok_or_else(|| ArchError::Missing { key: key.to_owned() })
}
