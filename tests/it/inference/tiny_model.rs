//! A llama of two layers with weights by chance, as a GGUF file that llama.cpp loads. It knows single bytes and says nothing of
//! sense, but as a real model does.

const LAYERS: u32 = 2;
const WIDTH: u64 = 64;
const HEADS: u32 = 4;
const FORWARD: u64 = 128;
/// Unknown, beginning, end, and each byte.
const WORDS: u64 = 3 + 256;
const ALIGNMENT: usize = 32;
/// Types of metadata values, as the format numbers them.
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const TEXT: u32 = 8;
const LIST: u32 = 9;
/// Types of words in the vocabulary.
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const BYTE: i32 = 6;

/// `context`: tokens that it says it was trained for.
pub(crate) fn gguf(context: u32) -> Vec<u8> {
    let keys = keys(context);
    let tensors = tensors();
    let mut file = b"GGUF".to_vec();
    file.extend(3_u32.to_le_bytes());
    file.extend((tensors.len() as u64).to_le_bytes());
    file.extend((keys.len() as u64).to_le_bytes());
    keys.iter().for_each(|key| file.extend(key));
    let mut offset = 0_u64;
    for (name, shape) in &tensors {
        text(&mut file, name);
        file.extend((shape.len() as u32).to_le_bytes());
        shape.iter().for_each(|length| file.extend(length.to_le_bytes()));
        // Its elements are floats of 32 bits, which are type 0.
        file.extend(0_u32.to_le_bytes());
        file.extend(offset.to_le_bytes());
        offset += (shape.iter().product::<u64>() * 4).next_multiple_of(ALIGNMENT as u64);
    }
    let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
    for (name, shape) in &tensors {
        file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
        for _ in 0..shape.iter().product::<u64>() {
            let value = if name.ends_with("norm.weight") { 1.0 } else { chance.next() };
            file.extend(value.to_le_bytes());
        }
    }
    file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
    file
}

fn keys(context: u32) -> Vec<Vec<u8>> {
    let words = (0..WORDS).map(|word| match word {
        0 => ("<unk>".to_owned(), UNKNOWN),
        1 => ("<s>".to_owned(), CONTROL),
        2 => ("</s>".to_owned(), CONTROL),
        byte => (format!("<0x{:02X}>", byte - 3), BYTE),
    });
    let (words, kinds): (Vec<String>, Vec<i32>) = words.unzip();
    let number = |name: &str, value: u32| key(name, U32, &value.to_le_bytes());
    let mut spelled = Vec::new();
    words.iter().for_each(|word| text(&mut spelled, word));
    let mut llama = Vec::new();
    text(&mut llama, "llama");
    let kinds: Vec<u8> = kinds.iter().flat_map(|kind| kind.to_le_bytes()).collect();
    vec![
        key("general.architecture", TEXT, &llama),
        number("llama.block_count", LAYERS),
        number("llama.context_length", context),
        number("llama.embedding_length", WIDTH as u32),
        number("llama.feed_forward_length", FORWARD as u32),
        number("llama.attention.head_count", HEADS),
        number("llama.vocab_size", WORDS as u32),
        number("llama.rope.dimension_count", WIDTH as u32 / HEADS),
        key("llama.attention.layer_norm_rms_epsilon", F32, &1e-5_f32.to_le_bytes()),
        key("tokenizer.ggml.model", TEXT, &llama),
        list("tokenizer.ggml.tokens", TEXT, &spelled),
        list("tokenizer.ggml.scores", F32, &vec![0; WORDS as usize * 4]),
        list("tokenizer.ggml.token_type", I32, &kinds),
        number("tokenizer.ggml.unknown_token_id", 0),
        number("tokenizer.ggml.bos_token_id", 1),
        number("tokenizer.ggml.eos_token_id", 2),
    ]
}

fn tensors() -> Vec<(String, Vec<u64>)> {
    let square = || vec![WIDTH, WIDTH];
    let mut tensors = vec![("token_embd.weight".to_owned(), vec![WIDTH, WORDS])];
    for layer in 0..LAYERS {
        let of_layer = [
            ("attn_norm", vec![WIDTH]),
            ("attn_q", square()),
            ("attn_k", square()),
            ("attn_v", square()),
            ("attn_output", square()),
            ("ffn_norm", vec![WIDTH]),
            ("ffn_gate", vec![WIDTH, FORWARD]),
            ("ffn_up", vec![WIDTH, FORWARD]),
            ("ffn_down", vec![FORWARD, WIDTH]),
        ];
        tensors.extend(of_layer.map(|(name, shape)| (format!("blk.{layer}.{name}.weight"), shape)));
    }
    tensors.push(("output_norm.weight".to_owned(), vec![WIDTH]));
    tensors.push(("output.weight".to_owned(), vec![WIDTH, WORDS]));
    tensors
}

fn text(into: &mut Vec<u8>, text: &str) {
    into.extend((text.len() as u64).to_le_bytes());
    into.extend(text.as_bytes());
}

fn key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    let mut key = Vec::new();
    text(&mut key, name);
    key.extend(kind.to_le_bytes());
    key.extend(value);
    key
}

/// One value for each word.
fn list(name: &str, kind: u32, values: &[u8]) -> Vec<u8> {
    key(name, LIST, &[&kind.to_le_bytes()[..], &WORDS.to_le_bytes(), values].concat())
}

/// Numbers between -0.5 and 0.5, the same each time (xorshift).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1_u64 << 24) as f32 - 0.5
    }
}
