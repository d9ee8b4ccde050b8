//! Where the bytes of a model's tensors go: to one layer, to the ends, or to every device.

use super::arch::MAX_LAYERS;
use crate::quantity::Bytes;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Weights {
    /// What tokens are looked up in.
    pub embedding: Bytes,
    /// Zero: the embeddings serve as output, too.
    pub output: Bytes,
    pub layers: Vec<LayerWeights>,
    /// On every device: norms, and towers that see or hear.
    pub whole: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LayerWeights {
    /// A share on each device.
    pub divided: Bytes,
    /// Projections to keys and values: as many shares as there are key heads.
    pub kv: Bytes,
    /// On every device.
    pub whole: Bytes,
}

impl Weights {
    /// Notes a tensor, by its name in a GGUF or safetensors file. `dimensions`: how many it has.
    pub(crate) fn add(&mut self, name: &str, dimensions: usize, bytes: Bytes) {
        match place(name) {
            Place::Embedding => self.embedding += bytes,
            Place::Output => self.output += bytes,
            Place::Layer(nth, part) => {
                if self.layers.len() <= nth {
                    self.layers.resize(nth + 1, LayerWeights::default());
                }
                let layer = &mut self.layers[nth];
                if dimensions < 2 || is_whole(part) {
                    layer.whole += bytes;
                } else if is_kv(part) {
                    layer.kv += bytes;
                } else {
                    layer.divided += bytes;
                }
            }
            Place::Whole => self.whole += bytes,
        }
    }

    /// Those of another file of the same model.
    pub fn merge(&mut self, other: &Self) {
        self.embedding += other.embedding;
        self.output += other.output;
        self.whole += other.whole;
        if self.layers.len() < other.layers.len() {
            self.layers.resize(other.layers.len(), LayerWeights::default());
        }
        for (own, other) in self.layers.iter_mut().zip(&other.layers) {
            own.divided += other.divided;
            own.kv += other.kv;
            own.whole += other.whole;
        }
    }

    pub fn sum(&self) -> Bytes {
        let layers = self.layers.iter().map(|layer| layer.divided + layer.kv + layer.whole);
        self.embedding + self.output + self.whole + layers.sum()
    }
}

enum Place<'n> {
    Embedding,
    Output,
    Layer(usize, &'n str),
    Whole,
}

fn place(name: &str) -> Place<'_> {
    let seen_or_heard = ["visual.", "vision", "audio", "mm.", "v.", "multi_modal"];
    if seen_or_heard.iter().any(|tower| name.starts_with(tower) || name.starts_with(&format!("model.{tower}"))) {
        return Place::Whole;
    }
    for marker in ["blk.", "layers.", "h."] {
        let starts = name.match_indices(marker).map(|(at, _)| at);
        // `h.` must not be found within a word.
        let starts = starts.filter(|at| *at == 0 || name.as_bytes()[at - 1] == b'.');
        for rest in starts.map(|at| &name[at + marker.len()..]) {
            let number = rest.split_once('.').and_then(|(number, part)| Some((number.parse().ok()?, part)));
            if let Some((number, part)) = number.filter(|(number, _)| (*number as u64) < MAX_LAYERS) {
                return Place::Layer(number, part);
            }
        }
    }
    let ends_with = |ends: &[&str]| ends.iter().any(|end| name.contains(end));
    if ends_with(&["token_embd.", "embed_tokens.", "wte.", "word_embeddings."]) {
        Place::Embedding
    } else if name == "output.weight" || ends_with(&["lm_head.", "embed_out."]) {
        Place::Output
    } else {
        Place::Whole
    }
}

fn is_kv(part: &str) -> bool {
    ["attn_k.", "attn_v.", "k_proj.", "v_proj."].iter().any(|name| part.contains(name))
}

/// Routers and the compressing projections of latent attention are computed by every device.
fn is_whole(part: &str) -> bool {
    let names = ["ffn_gate_inp.", ".gate.weight", "kv_a_proj", "q_a_proj", "attn_kv_a", "attn_q_a", "router."];
    names.iter().any(|name| part.contains(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(name: &str, dimensions: usize) -> Weights {
        let mut weights = Weights::default();
        weights.add(name, dimensions, Bytes::new(100));
        weights
    }

    #[test]
    fn tensors_are_found_by_the_names_that_both_formats_give_them() {
        for name in ["token_embd.weight", "model.embed_tokens.weight", "language_model.model.embed_tokens.weight"] {
            assert_eq!(noted(name, 2).embedding, Bytes::new(100), "{name}");
        }
        for name in ["output.weight", "lm_head.weight"] {
            assert_eq!(noted(name, 2).output, Bytes::new(100), "{name}");
        }
        for name in ["blk.2.attn_k.weight", "model.layers.2.self_attn.v_proj.weight"] {
            assert_eq!(noted(name, 2).layers[2].kv, Bytes::new(100), "{name}");
        }
        for name in [
            "blk.0.ffn_gate_inp.weight",
            "model.layers.0.mlp.gate.weight",
            "model.layers.0.self_attn.kv_a_proj_with_mqa.weight",
        ] {
            assert_eq!(noted(name, 2).layers[0].whole, Bytes::new(100), "{name}");
        }
        for name in
            ["blk.1.ffn_gate_exps.weight", "model.layers.1.mlp.gate_proj.weight", "transformer.h.1.attn.c_attn.weight"]
        {
            assert_eq!(noted(name, 2).layers[1].divided, Bytes::new(100), "{name}");
        }
        assert_eq!(noted("model.layers.1.input_layernorm.weight", 1).layers[1].whole, Bytes::new(100));
        for name in [
            "output_norm.weight",
            "model.norm.weight",
            "visual.blocks.3.attn.qkv.weight",
            "model.visual.layers.0.k_proj.weight",
        ] {
            assert_eq!(noted(name, 2).whole, Bytes::new(100), "{name}");
        }
    }

    #[test]
    fn a_hostile_number_of_a_layer_makes_no_list_of_that_length() {
        let weights = noted("blk.99999999999.attn_k.weight", 2);
        assert_eq!((weights.layers.len(), weights.sum()), (0, Bytes::new(100)));
    }
}
