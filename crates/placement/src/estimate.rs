//! What a recipe takes of each device, computed from the headers of the model's files. Files are foreign input: they are parsed
//! within bounds, and a layout without a formula is refused rather than guessed.
//!
//! ```text
//! weights = bytes of the tensors placed on the device; what every device needs counts on each
//! kv      = sum over the layers on it of (row of K + row of V) * tokens
//!           tokens = ctx * parallel, with a sliding window min(ctx, window) * parallel + batch
//!           a latent cache has one row, recurrent state does not depend on ctx
//! compute = scratch memory of one batch; the logits dominate
//! ```
//!
//! What is left of the truth is learned from loads, see [`residuals`].

pub mod arch;
mod bytes;
pub mod config;
pub mod gguf;
mod gguf_arch;
pub mod measured;
pub mod residuals;
pub mod safetensors;
pub mod weights;

use crate::footprint::Parts;
use crate::quantity::Bytes;
use crate::recipe::{Divides, EngineKind, Recipe};
use arch::{ArchFacts, Layer};
use weights::Weights;

/// A model as its files describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFacts {
    pub arch: ArchFacts,
    pub weights: Weights,
}

/// Before slack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Estimate {
    /// In rank order.
    pub shards: Vec<Parts>,
    /// Of the host.
    pub host: Bytes,
}

/// What `recipe` takes of each of its devices. `context` is what driver and libraries take of each, as measured, see
/// [`measured::CONTEXT`].
pub fn estimate(model: &ModelFacts, recipe: &Recipe, context: Bytes) -> Estimate {
    let tp = usize::from(recipe.tp.max(1));
    let divides = recipe.engine.divides();
    let shards = (0..tp)
        .map(|rank| {
            let share = Share { rank, tp, divides };
            Parts {
                weights: weights_of(model, share),
                kv: kv_of(&model.arch, recipe, share),
                compute: compute_of(&model.arch, recipe),
                context,
                extra: Bytes::ZERO,
            }
        })
        .collect();
    // The embeddings are looked up on the host by llama.cpp, always.
    let host = match divides {
        Divides::ByLayer => model.weights.embedding,
        Divides::ByHead => Bytes::ZERO,
    };
    Estimate { shards, host }
}

/// The part of one device.
#[derive(Clone, Copy)]
struct Share {
    rank: usize,
    tp: usize,
    divides: Divides,
}

impl Share {
    /// Whether a layer is on it. The output counts as the layer after the last.
    fn has(self, layer: usize, layers: usize) -> bool {
        match self.divides {
            Divides::ByHead => true,
            Divides::ByLayer => layer * self.tp / (layers + 1) == self.rank,
        }
    }

    fn heads(self, heads: u64) -> u64 {
        match self.divides {
            Divides::ByHead => heads.div_ceil(self.tp as u64),
            Divides::ByLayer => heads,
        }
    }

    fn part(self, bytes: Bytes) -> Bytes {
        match self.divides {
            Divides::ByHead => bytes.share(self.tp as u64),
            Divides::ByLayer => bytes,
        }
    }
}

fn weights_of(model: &ModelFacts, share: Share) -> Bytes {
    let weights = &model.weights;
    let layers = weights.layers.len();
    let kv_heads = |layer: usize| match model.arch.layers.get(layer) {
        Some(Layer::Attention { kv_heads, .. }) => *kv_heads,
        _ => 1,
    };
    let of_layer = |(nth, layer): (usize, &weights::LayerWeights)| match share.divides {
        Divides::ByLayer => layer.divided + layer.kv + layer.whole,
        // A key head that two devices need is on both.
        Divides::ByHead => {
            let (heads, all) = (share.heads(kv_heads(nth)), kv_heads(nth).max(1));
            share.part(layer.divided) + layer.kv.share(all).times(heads) + layer.whole
        }
    };
    let of_layers: Bytes =
        weights.layers.iter().enumerate().filter(|(nth, _)| share.has(*nth, layers)).map(of_layer).sum();
    // A model without an output of its own uses its embeddings, on the device as well.
    let output = if weights.output == Bytes::ZERO { weights.embedding } else { weights.output };
    let ends = match share.divides {
        Divides::ByHead => share.part(weights.embedding + weights.output) + weights.whole,
        Divides::ByLayer if share.has(layers, layers) => output + weights.whole,
        Divides::ByLayer => Bytes::ZERO,
    };
    of_layers + ends
}

/// `pad(window)` as llama.cpp has it.
const WINDOW_PADDING: u64 = 256;

fn kv_of(arch: &ArchFacts, recipe: &Recipe, share: Share) -> Bytes {
    let (ctx, parallel) = (u64::from(recipe.ctx), u64::from(recipe.parallel.max(1)));
    let layers = arch.layers.iter().enumerate().filter(|(nth, _)| share.has(*nth, arch.layers.len()));
    let of_layer = |(_, layer): (usize, &Layer)| match *layer {
        Layer::Attention { kv_heads, key, value, window } => {
            let tokens = match window {
                None => ctx.saturating_mul(parallel),
                Some(window) => {
                    let kept = ctx.min(window.next_multiple_of(WINDOW_PADDING));
                    kept.saturating_mul(parallel).saturating_add(measured::batch(recipe.engine))
                }
            };
            let heads = share.heads(kv_heads);
            let row = |size: u64| recipe.kv.row(heads.saturating_mul(size));
            (row(key) + row(value)).times(tokens)
        }
        Layer::Latent { row } => recipe.kv.row(row).times(ctx.saturating_mul(parallel)),
        Layer::Recurrent { state } => share.part(state).times(parallel),
        Layer::Both { kv_heads, key, value, state } => {
            let heads = share.heads(kv_heads);
            let row = recipe.kv.row(heads.saturating_mul(key)) + recipe.kv.row(heads.saturating_mul(value));
            row.times(ctx.saturating_mul(parallel)) + share.part(state).times(parallel)
        }
        Layer::Stateless => Bytes::ZERO,
    };
    layers.map(of_layer).sum()
}

fn compute_of(arch: &ArchFacts, recipe: &Recipe) -> Bytes {
    let batch = measured::batch(recipe.engine);
    match recipe.engine {
        EngineKind::LlamaServer | EngineKind::Ollama | EngineKind::Command => {
            let tokens = u64::from(recipe.ctx).saturating_mul(u64::from(recipe.parallel.max(1)));
            let of_token = Bytes::new(arch.vocab).times(4) + Bytes::new(arch.hidden).times(4 * measured::GRAPH_ROWS);
            // The mask of attention has a half-precision element for each token of the batch and of the cache.
            of_token.times(batch) + Bytes::new(tokens).times(2).times(batch)
        }
        EngineKind::Vllm | EngineKind::Sglang => {
            let activations = Bytes::new(arch.hidden).times(2 * measured::ACTIVATION_ROWS).times(batch);
            let logits = Bytes::new(arch.vocab).times(4).times(u64::from(recipe.parallel.max(1)));
            activations + logits + measured::CUDA_GRAPHS
        }
    }
}

#[cfg(test)]
mod tests;
