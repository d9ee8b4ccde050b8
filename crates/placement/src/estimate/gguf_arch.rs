//! An architecture from the metadata of a GGUF file, by the keys that llama.cpp reads.

use std::collections::BTreeMap;

use super::arch::{ArchError, ArchFacts, Layer, MAX_LAYERS, MAX_WIDTH, bounded, window_period};
use super::gguf::Value;
use crate::quantity::Bytes;

pub(super) fn facts(keys: &BTreeMap<String, Value>) -> Result<ArchFacts, ArchError> {
    let name = match keys.get("general.architecture") {
        Some(Value::Text(name)) => name.clone(),
        _ => return Err(ArchError::Missing { key: "general.architecture".to_owned() }),
    };
    let keys = Keys { keys, name: &name };
    let count = bounded("block_count", keys.number("block_count")?, MAX_LAYERS)?;
    let hidden = bounded("embedding_length", keys.number("embedding_length")?, MAX_WIDTH)?;
    let vocab = keys.optional("vocab_size")?.or_else(|| keys.vocabulary()).unwrap_or_default();
    let layers = (0..count).map(|nth| layer(&keys, nth, count, hidden)).collect::<Result<_, _>>()?;
    let max_ctx = keys.optional("context_length")?.unwrap_or_default();
    Ok(ArchFacts { layers, hidden, vocab: bounded("vocab_size", vocab, MAX_WIDTH)?, max_ctx, name: name.clone() })
}

struct Keys<'k> {
    keys: &'k BTreeMap<String, Value>,
    name: &'k str,
}

impl Keys<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.keys.get(&format!("{}.{key}", self.name))
    }

    /// Of a key that has one value for all layers.
    fn optional(&self, key: &str) -> Result<Option<u64>, ArchError> {
        match self.get(key) {
            Some(Value::Number(value)) => bounded(key, *value, MAX_WIDTH).map(Some),
            _ => Ok(None),
        }
    }

    fn number(&self, key: &str) -> Result<u64, ArchError> {
        self.optional(key)?.ok_or_else(|| ArchError::Missing { key: format!("{}.{key}", self.name) })
    }

    /// Of a key that may have a list with one value for each layer.
    fn of_layer(&self, key: &str, layer: u64) -> Result<Option<u64>, ArchError> {
        match self.get(key) {
            Some(Value::List(list)) => {
                let value = usize::try_from(layer).ok().and_then(|layer| list.get(layer)).copied();
                value.map(|value| bounded(key, value, MAX_WIDTH)).transpose()
            }
            _ => self.optional(key),
        }
    }

    fn is_list(&self, key: &str) -> bool {
        matches!(self.get(key), Some(Value::List(_)))
    }

    fn vocabulary(&self) -> Option<u64> {
        match self.keys.get("tokenizer.ggml.tokens") {
            Some(Value::Long(count)) => Some(*count),
            _ => None,
        }
    }
}

fn layer(keys: &Keys, nth: u64, count: u64, hidden: u64) -> Result<Layer, ArchError> {
    let recurrent_alone = matches!(keys.name, "mamba" | "mamba2" | "rwkv6" | "rwkv7" | "rwkv6qwen2" | "arwkv7");
    if recurrent_alone {
        return state(keys, hidden).map(|state| Layer::Recurrent { state });
    }
    if let Some(period) = keys.optional("full_attention_interval")?.filter(|period| *period > 0)
        && !(nth + 1).is_multiple_of(period)
    {
        return state(keys, hidden).map(|state| Layer::Recurrent { state });
    }
    let shared = keys.optional("attention.shared_kv_layers")?.unwrap_or_default();
    if nth >= count.saturating_sub(shared) {
        return Ok(Layer::Stateless);
    }
    let heads = keys.of_layer("attention.head_count", nth)?;
    let heads = heads.ok_or_else(|| ArchError::Missing { key: format!("{}.attention.head_count", keys.name) })?;
    let kv_heads = keys.of_layer("attention.head_count_kv", nth)?.unwrap_or(heads);
    if kv_heads == 0 {
        // Of a hybrid: a layer without key heads has a state, or is a feed-forward layer alone.
        let feed_forward = keys.is_list("feed_forward_length") && keys.of_layer("feed_forward_length", nth)? != Some(0);
        let none = feed_forward && keys.name.starts_with("nemotron");
        return if none { Ok(Layer::Stateless) } else { state(keys, hidden).map(|state| Layer::Recurrent { state }) };
    }
    if let (Some(rank), Some(_)) =
        (keys.optional("attention.kv_lora_rank")?, keys.optional("attention.key_length_mla")?)
    {
        return Ok(Layer::Latent { row: rank + keys.number("rope.dimension_count")? });
    }
    // Hidden size by heads is what the keys say that are missing, and nothing else: it is far off for many models.
    let head = hidden / heads.max(1);
    let key = keys.optional("attention.key_length")?.unwrap_or(head);
    let value = keys.optional("attention.value_length")?.unwrap_or(head);
    if keys.name == "falcon-h1" {
        return state(keys, hidden).map(|state| Layer::Both { kv_heads, key, value, state });
    }
    let window = window(keys, nth)?;
    let (key, value) = match window {
        Some(_) => (
            keys.optional("attention.key_length_swa")?.unwrap_or(key),
            keys.optional("attention.value_length_swa")?.unwrap_or(value),
        ),
        None => (key, value),
    };
    Ok(Layer::Attention { kv_heads, key, value, window })
}

/// Where neither file nor architecture say which layers have the window, all see everything: an estimate may be too high.
fn window(keys: &Keys, nth: u64) -> Result<Option<u64>, ArchError> {
    let window = keys.optional("attention.sliding_window")?.filter(|window| *window > 0);
    let pattern = "attention.sliding_window_pattern";
    let windowed = if keys.is_list(pattern) {
        keys.of_layer(pattern, nth)? == Some(1)
    } else {
        let known = window_period(keys.name).map(|period| period as u64);
        let period = keys.optional(pattern)?.or(known).filter(|period| *period > 0);
        period.is_some_and(|period| !(nth + 1).is_multiple_of(period))
    };
    Ok(window.filter(|_| windowed))
}

/// Of one sequence in one recurrent layer, in single precision.
fn state(keys: &Keys, hidden: u64) -> Result<Bytes, ArchError> {
    let floats = |count: u64| Bytes::new(count).times(4);
    if let Some(cache) = keys.optional("shortconv.l_cache")? {
        return Ok(floats(hidden.saturating_mul(cache.saturating_sub(1))));
    }
    if let Some(head) = keys.optional("wkv.head_size")? {
        return Ok(floats(hidden.saturating_mul(head)) + floats(hidden.saturating_mul(2)));
    }
    let (inner, size) = (keys.optional("ssm.inner_size")?, keys.optional("ssm.state_size")?);
    let (Some(inner), Some(size), Some(kernel)) = (inner, size, keys.optional("ssm.conv_kernel")?) else {
        return Err(ArchError::UnknownLayout { name: keys.name.to_owned(), what: "no `ssm` keys" });
    };
    let groups = keys.optional("ssm.group_count")?.unwrap_or_default();
    let convolved = inner.saturating_add(groups.saturating_mul(size).saturating_mul(2));
    Ok(floats(kernel.saturating_sub(1).saturating_mul(convolved)) + floats(size.saturating_mul(inner)))
}
