//! Headers are built byte by byte in the layout of real files; what is expected comes from the engines' own logs and from the
//! models' cards, as far as it is a number at all.

use proptest::prelude::*;

use super::gguf::{GgufError, header};
use super::safetensors::SafetensorsError;
use super::*;
use crate::device::ComputeCapability;
use crate::id::{ModelId, RecipeId};
use crate::recipe::{KvType, RunsOn, SleepLevel};

/// Writes a GGUF header as ggml does.
#[derive(Default)]
struct Gguf {
    keys: Vec<u8>,
    count: u64,
    tensors: Vec<u8>,
    tensor_count: u64,
}

impl Gguf {
    fn of(architecture: &str) -> Self {
        Self::default().text("general.architecture", architecture)
    }

    fn string(into: &mut Vec<u8>, text: &str) {
        into.extend((text.len() as u64).to_le_bytes());
        into.extend(text.as_bytes());
    }

    fn key(mut self, key: &str, kind: u32) -> Self {
        Self::string(&mut self.keys, key);
        self.keys.extend(kind.to_le_bytes());
        self.count += 1;
        self
    }

    fn text(self, key: &str, text: &str) -> Self {
        let mut this = self.key(key, 8);
        Self::string(&mut this.keys, text);
        this
    }

    fn u32(self, key: &str, value: u32) -> Self {
        let mut this = self.key(key, 4);
        this.keys.extend(value.to_le_bytes());
        this
    }

    fn f32(self, key: &str, value: f32) -> Self {
        let mut this = self.key(key, 6);
        this.keys.extend(value.to_le_bytes());
        this
    }

    fn list(self, key: &str, values: &[u32]) -> Self {
        let mut this = self.key(key, 9);
        this.keys.extend(4u32.to_le_bytes());
        this.keys.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| this.keys.extend(value.to_le_bytes()));
        this
    }

    fn words(self, key: &str, count: u64) -> Self {
        let mut this = self.key(key, 9);
        this.keys.extend(8u32.to_le_bytes());
        this.keys.extend(count.to_le_bytes());
        (0..count).for_each(|nth| Self::string(&mut this.keys, &format!("token{nth}")));
        this
    }

    fn tensor(mut self, name: &str, shape: &[u64], kind: u32) -> Self {
        Self::string(&mut self.tensors, name);
        self.tensors.extend(u32::try_from(shape.len()).unwrap().to_le_bytes());
        shape.iter().for_each(|length| self.tensors.extend(length.to_le_bytes()));
        self.tensors.extend(kind.to_le_bytes());
        self.tensors.extend(0u64.to_le_bytes());
        self.tensor_count += 1;
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let head = [&b"GGUF"[..], &3u32.to_le_bytes(), &self.tensor_count.to_le_bytes(), &self.count.to_le_bytes()];
        [head.concat(), self.keys.clone(), self.tensors.clone()].concat()
    }

    fn model(&self) -> ModelFacts {
        header(&self.bytes()).unwrap().model([]).unwrap()
    }
}

/// Llama 3 8B in F16, with its tensors.
fn llama() -> Gguf {
    let mut file = Gguf::of("llama")
        .f32("llama.rope.freq_base", 500_000.0)
        .u32("llama.block_count", 32)
        .u32("llama.context_length", 8192)
        .u32("llama.embedding_length", 4096)
        .u32("llama.attention.head_count", 32)
        .u32("llama.attention.head_count_kv", 8)
        .words("tokenizer.ggml.tokens", 2000)
        .u32("llama.vocab_size", 128_256)
        .tensor("token_embd.weight", &[4096, 128_256], 1)
        .tensor("output.weight", &[4096, 128_256], 1)
        .tensor("output_norm.weight", &[4096], 0);
    for nth in 0..32 {
        for (name, shape) in [
            ("attn_q", &[4096, 4096]),
            ("attn_k", &[4096, 1024]),
            ("attn_v", &[4096, 1024]),
            ("attn_output", &[4096, 4096]),
            ("ffn_gate", &[4096, 14_336]),
            ("ffn_up", &[4096, 14_336]),
            ("ffn_down", &[14_336, 4096]),
        ] {
            file = file.tensor(&format!("blk.{nth}.{name}.weight"), shape, 1);
        }
        file = file.tensor(&format!("blk.{nth}.attn_norm.weight"), &[4096], 0);
        file = file.tensor(&format!("blk.{nth}.ffn_norm.weight"), &[4096], 0);
    }
    file
}

fn recipe(engine: EngineKind, ctx: u32, parallel: u16, tp: u8) -> Recipe {
    Recipe {
        id: RecipeId::new("r"),
        model: ModelId::new("m"),
        engine,
        build: String::new(),
        quant: String::new(),
        kv: KvType::F16,
        on: RunsOn::Gpu,
        tp,
        ctx,
        parallel,
        min_cc: ComputeCapability::default(),
        sleep: SleepLevel::Never,
        flags: Vec::new(),
    }
}

fn kv(file: &Gguf, ctx: u32, parallel: u16) -> Bytes {
    estimate(&file.model(), &recipe(EngineKind::LlamaServer, ctx, parallel, 1), Bytes::ZERO).shards[0].kv
}

#[test]
fn llama_3_takes_what_llama_cpp_says_that_it_takes() {
    // `KV self size = 1024.00 MiB` at 8192 tokens; 8,030,261,248 parameters, of which the norms are in single precision.
    assert_eq!(kv(&llama(), 8192, 1), Bytes::mib(1024));
    let norms = 65 * 4096;
    assert_eq!(llama().model().weights.sum(), Bytes::new((8_030_261_248 - norms) * 2 + norms * 4));
    let estimate = estimate(&llama().model(), &recipe(EngineKind::LlamaServer, 8192, 1, 1), Bytes::ZERO);
    assert_eq!(
        estimate.host,
        Bytes::mib(1002),
        "embeddings stay on the host: `CPU_Mapped model buffer size = 1002.00 MiB`"
    );
    assert_eq!(estimate.shards[0].weights + estimate.host, llama().model().weights.sum());
}

#[test]
fn quantised_rows_of_the_cache_count_their_scales() {
    let q8 = Recipe { kv: KvType::Q8_0, ..recipe(EngineKind::LlamaServer, 8192, 1, 1) };
    // `KV self size = 544.00 MiB, K (q8_0): 272.00 MiB`
    assert_eq!(estimate(&llama().model(), &q8, Bytes::ZERO).shards[0].kv, Bytes::mib(544));
}

#[test]
fn a_head_is_as_long_as_the_file_says_and_not_hidden_by_heads() {
    // Qwen3 0.6B: 16 heads of 128 with a hidden size of 1024.
    let qwen = Gguf::of("qwen3")
        .u32("qwen3.block_count", 28)
        .u32("qwen3.embedding_length", 1024)
        .u32("qwen3.attention.head_count", 16)
        .u32("qwen3.attention.head_count_kv", 8)
        .u32("qwen3.attention.key_length", 128)
        .u32("qwen3.attention.value_length", 128);
    assert_eq!(kv(&qwen, 4096, 1), Bytes::mib(448));
}

#[test]
fn layers_with_a_window_keep_no_more_than_it() {
    // Gemma 3 27B: 52 of 62 layers see 1024 tokens.
    let gemma = Gguf::of("gemma3")
        .u32("gemma3.block_count", 62)
        .u32("gemma3.embedding_length", 5376)
        .u32("gemma3.attention.head_count", 32)
        .u32("gemma3.attention.head_count_kv", 16)
        .u32("gemma3.attention.key_length", 128)
        .u32("gemma3.attention.value_length", 128)
        .u32("gemma3.attention.sliding_window", 1024);
    let row = 16 * 128 * 2 * 2;
    assert_eq!(kv(&gemma, 32_768, 2), Bytes::new(row * (10 * 65_536 + 52 * (2 * 1024 + 512))));
    assert!(kv(&gemma, 512, 1) <= Bytes::new(row * 62 * 1024), "a context shorter than the window");
}

#[test]
fn a_latent_cache_has_one_row_for_all_heads() {
    // DeepSeek V3 with 61 layers: 512 + 64 numbers a token, 70,272 bytes.
    let file = Gguf::of("deepseek2")
        .u32("deepseek2.block_count", 61)
        .u32("deepseek2.embedding_length", 7168)
        .u32("deepseek2.attention.head_count", 128)
        .u32("deepseek2.attention.head_count_kv", 1)
        .u32("deepseek2.attention.kv_lora_rank", 512)
        .u32("deepseek2.attention.key_length", 576)
        .u32("deepseek2.attention.value_length", 512)
        .u32("deepseek2.attention.key_length_mla", 192)
        .u32("deepseek2.rope.dimension_count", 64);
    assert_eq!(kv(&file, 1000, 1), Bytes::new(70_272 * 1000));
    let config = br#"{"model_type": "deepseek_v3", "num_hidden_layers": 61, "hidden_size": 7168, "vocab_size": 129280,
        "num_attention_heads": 128, "num_key_value_heads": 128, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "v_head_dim": 128}"#;
    let model = ModelFacts { arch: config::facts(config).unwrap(), weights: Weights::default() };
    let shards = estimate(&model, &recipe(EngineKind::Vllm, 1000, 1, 8), Bytes::ZERO).shards;
    assert!(shards.iter().all(|shard| shard.kv == Bytes::new(70_272 * 1000)), "no device can have a part of it");
}

#[test]
fn recurrent_state_grows_with_sequences_and_not_with_context() {
    let file = Gguf::of("mamba2")
        .u32("mamba2.block_count", 64)
        .u32("mamba2.embedding_length", 4096)
        .u32("mamba2.ssm.conv_kernel", 4)
        .u32("mamba2.ssm.inner_size", 8192)
        .u32("mamba2.ssm.state_size", 128)
        .u32("mamba2.ssm.group_count", 8);
    let state = 64 * 4 * (3 * (8192 + 2 * 8 * 128) + 128 * 8192);
    assert_eq!(kv(&file, 1024, 1), Bytes::new(state));
    assert_eq!(kv(&file, 1 << 20, 3), Bytes::new(3 * state));
}

#[test]
fn a_hybrid_has_keys_in_some_layers_and_state_in_the_others() {
    let file = Gguf::of("granitehybrid")
        .u32("granitehybrid.block_count", 4)
        .u32("granitehybrid.embedding_length", 1024)
        .u32("granitehybrid.attention.head_count", 16)
        .list("granitehybrid.attention.head_count_kv", &[0, 0, 4, 0])
        .u32("granitehybrid.ssm.conv_kernel", 4)
        .u32("granitehybrid.ssm.inner_size", 2048)
        .u32("granitehybrid.ssm.state_size", 128);
    let layers = file.model().arch.layers;
    let states = layers.iter().filter(|layer| matches!(layer, Layer::Recurrent { .. })).count();
    assert_eq!((layers.len(), states), (4, 3));
    assert!(matches!(layers[2], Layer::Attention { kv_heads: 4, key: 64, .. }));
}

#[test]
fn an_architecture_without_a_formula_is_refused() {
    let unknown = Gguf::of("novel")
        .u32("novel.block_count", 2)
        .u32("novel.embedding_length", 64)
        .u32("novel.attention.head_count", 4)
        .list("novel.attention.head_count_kv", &[4, 0]);
    let error = header(&unknown.bytes()).unwrap().model([]).unwrap_err();
    assert!(matches!(error, GgufError::Arch(arch::ArchError::UnknownLayout { .. })), "{error}");
    let config = br#"{"num_hidden_layers": 1, "hidden_size": 8, "vocab_size": 9, "num_attention_heads": 1, "layer_types": ["novel"]}"#;
    assert!(matches!(config::facts(config), Err(config::ConfigError::Arch(arch::ArchError::UnknownLayout { .. }))));
}

#[test]
fn devices_of_a_set_share_layers_or_heads_as_their_engine_does() {
    let model = llama().model();
    let by_layer = estimate(&model, &recipe(EngineKind::LlamaServer, 8192, 1, 2), Bytes::ZERO).shards;
    assert_eq!(by_layer[0].kv + by_layer[1].kv, Bytes::mib(1024));
    assert_eq!(by_layer[0].kv, Bytes::mib(17 * 32), "seventeen layers; the output counts as one of the other's");
    let by_head = estimate(&model, &recipe(EngineKind::Vllm, 8192, 1, 4), Bytes::ZERO).shards;
    assert!(by_head.iter().all(|shard| shard.kv == Bytes::mib(256)));
    // Sixteen devices and eight key heads: each has one.
    let wide = estimate(&model, &recipe(EngineKind::Vllm, 8192, 1, 16), Bytes::ZERO).shards;
    assert_eq!(wide[0].kv, Bytes::mib(128));
    assert!(
        wide.iter().map(|shard| shard.weights).sum::<Bytes>() > model.weights.sum(),
        "keys are on two devices each"
    );
}

fn safetensors(json: &str) -> Vec<u8> {
    [&(json.len() as u64).to_le_bytes()[..], json.as_bytes()].concat()
}

#[test]
fn safetensors_headers_are_summed_over_files() {
    let first = safetensors(
        r#"{"__metadata__": {"format": "pt"}, "model.embed_tokens.weight": {"dtype": "BF16", "shape": [10, 8], "data_offsets": [0, 160]},
        "model.layers.0.self_attn.k_proj.weight": {"dtype": "BF16", "shape": [4, 8], "data_offsets": [160, 224]}}"#,
    );
    let second = safetensors(
        r#"{"model.layers.1.mlp.up_proj.weight": {"dtype": "BF16", "shape": [16, 8], "data_offsets": [0, 256]},
        "model.norm.weight": {"data_offsets": [256, 272], "shape": [8], "dtype": "BF16"}}"#,
    );
    let mut weights = super::safetensors::header(&first).unwrap().weights;
    weights.merge(&super::safetensors::header(&second).unwrap().weights);
    assert_eq!((weights.embedding, weights.layers[0].kv), (Bytes::new(160), Bytes::new(64)));
    assert_eq!((weights.layers[1].divided, weights.whole), (Bytes::new(256), Bytes::new(16)));
}

#[test]
fn fields_of_a_configuration_decide_as_in_vllm() {
    let qwen_next = br#"{"model_type": "qwen3_next", "num_hidden_layers": 8, "hidden_size": 2048, "vocab_size": 151936,
        "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256, "full_attention_interval": 4,
        "linear_conv_kernel_dim": 4, "linear_num_key_heads": 16, "linear_key_head_dim": 128,
        "linear_num_value_heads": 32, "linear_value_head_dim": 128}"#;
    let layers = config::facts(qwen_next).unwrap().layers;
    assert!(matches!(layers[3], Layer::Attention { kv_heads: 2, key: 256, value: 256, window: None }));
    assert_eq!(layers[0], Layer::Recurrent { state: Bytes::new(3 * 8192 * 2 + 32 * 128 * 128 * 4) });
    let seeing =
        br#"{"model_type": "gemma3", "vision_config": {"hidden_size": 9}, "text_config": {"model_type": "gemma3_text",
        "num_hidden_layers": 6, "hidden_size": 5376, "vocab_size": 262208, "num_attention_heads": 32,
        "num_key_value_heads": 16, "head_dim": 128, "sliding_window": 1024}}"#;
    let layers = config::facts(seeing).unwrap().layers;
    assert_eq!(layers.iter().filter(|layer| matches!(layer, Layer::Attention { window: Some(1024), .. })).count(), 5);
    let off = br#"{"model_type": "qwen2", "num_hidden_layers": 1, "hidden_size": 8, "vocab_size": 9, "num_attention_heads": 2,
        "sliding_window": 4, "use_sliding_window": false}"#;
    assert!(matches!(config::facts(off).unwrap().layers[0], Layer::Attention { key: 4, window: None, .. }));
}

#[test]
fn a_header_that_goes_on_says_how_much_to_read() {
    let file = llama().bytes();
    let (mut end, mut reads) = (16, 0);
    while let Err(GgufError::Short { wanted }) = header(&file[..end]) {
        assert!(wanted > end as u64);
        end = file.len().min(usize::try_from(wanted).unwrap().max(end * 2));
        reads += 1;
    }
    assert!(header(&file[..end]).is_ok() && reads < 20);
}

#[test]
fn counts_of_a_hostile_header_allocate_nothing() {
    let claims = |tensors: u64, keys: u64| {
        [&b"GGUF"[..], &3u32.to_le_bytes(), &tensors.to_le_bytes(), &keys.to_le_bytes()].concat()
    };
    assert!(matches!(header(&claims(u64::MAX, 0)), Err(GgufError::TooMany { what: "tensors", .. })));
    assert!(matches!(header(&claims(0, u64::MAX)), Err(GgufError::TooMany { what: "keys", .. })));
    let mut name = claims(0, 1);
    name.extend(u64::MAX.to_le_bytes());
    assert!(matches!(header(&name), Err(GgufError::TooMany { what: "bytes of a name", .. })));
    let mut list = Gguf::of("x").key("x.y", 9);
    list.keys.extend([4u32.to_le_bytes().to_vec(), u64::MAX.to_le_bytes().to_vec()].concat());
    assert!(matches!(header(&list.bytes()), Err(GgufError::TooMany { what: "bytes of the header", .. })));
    let endless = Gguf::of("x").u32("x.block_count", u32::MAX).u32("x.embedding_length", 1);
    assert!(matches!(
        header(&endless.bytes()).unwrap().model([]),
        Err(GgufError::Arch(arch::ArchError::TooLarge { .. }))
    ));
    let long = [u64::MAX.to_le_bytes().to_vec(), b"{}".to_vec()].concat();
    assert!(matches!(super::safetensors::header(&long), Err(SafetensorsError::TooLong { .. })));
}

/// A small file of everything that a header can hold.
fn small() -> Vec<u8> {
    Gguf::of("gemma3")
        .u32("gemma3.block_count", 3)
        .u32("gemma3.embedding_length", 64)
        .list("gemma3.attention.head_count", &[4, 4, 4])
        .list("gemma3.attention.head_count_kv", &[2, 0, 2])
        .u32("gemma3.ssm.conv_kernel", 4)
        .u32("gemma3.ssm.inner_size", 64)
        .u32("gemma3.ssm.state_size", 16)
        .u32("gemma3.attention.sliding_window", 32)
        .words("tokenizer.ggml.tokens", 5)
        .f32("gemma3.rope.freq_base", 1.0)
        .tensor("token_embd.weight", &[64, 100], 12)
        .tensor("blk.0.attn_k.weight", &[64, 32], 8)
        .bytes()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

    #[test]
    fn no_bytes_make_a_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = header(&bytes);
        let _ = header(&[&b"GGUF\x03\0\0\0"[..], &bytes].concat());
        let _ = super::safetensors::header(&bytes);
        let _ = super::safetensors::header(&[&(bytes.len() as u64).to_le_bytes()[..], &bytes].concat());
        let _ = config::facts(&bytes);
    }

    #[test]
    fn no_damage_makes_a_parser_or_an_estimate_panic(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), cut: prop::sample::Index, tp in 1..9u8,
    ) {
        let mut bytes = small();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let whole = header(&bytes).and_then(|header| header.model([]));
        if let Ok(model) = whole {
            for engine in [EngineKind::LlamaServer, EngineKind::Vllm] {
                let estimate = estimate(&model, &recipe(engine, u32::MAX, u16::MAX, tp), measured::CONTEXT);
                prop_assert_eq!(estimate.shards.len(), usize::from(tp));
            }
        }
        bytes.truncate(cut.index(bytes.len()));
        let _ = header(&bytes);
    }

    #[test]
    fn no_damage_to_json_makes_a_parser_panic(at: prop::sample::Index, byte: u8, number in prop_oneof![any::<u64>(), 0..1u64 << 24]) {
        let json = format!(
            r#"{{"model_type": "falcon_h1", "num_hidden_layers": 2, "hidden_size": {number}, "vocab_size": 9, "num_attention_heads": {number},
            "mamba_d_state": {number}, "mamba_d_conv": {number}, "mamba_expand": {number}, "head_dim": 64}}"#
        );
        let windowed = format!(
            r#"{{"num_hidden_layers": 1, "hidden_size": 8, "vocab_size": 9, "num_attention_heads": 1, "sliding_window": {number},
            "layer_types": ["sliding_attention"]}}"#
        );
        let arch = config::facts(windowed.as_bytes());
        if let Ok(arch) = arch {
            let model = ModelFacts { arch, weights: Weights::default() };
            let _ = estimate(&model, &recipe(EngineKind::LlamaServer, 8192, 1, 1), Bytes::ZERO);
        }
        let mut config = json.into_bytes();
        let _ = config::facts(&config);
        let place = at.index(config.len());
        config[place] = byte;
        let _ = config::facts(&config);
        let mut tensors = safetensors(r#"{"model.layers.0.k_proj.weight": {"dtype": "BF16", "shape": [4, 8], "data_offsets": [0, 64]}}"#);
        let place = at.index(tensors.len());
        tensors[place] = byte;
        let _ = super::safetensors::header(&tensors);
    }

    #[test]
    fn more_context_or_more_sequences_never_take_less(ctx in 1..100_000u32, parallel in 1..64u16, more in 0..1000u32) {
        let config = br#"{"model_type": "gpt_oss", "num_hidden_layers": 4, "hidden_size": 64, "vocab_size": 9,
            "num_attention_heads": 8, "num_key_value_heads": 2, "sliding_window": 128}"#;
        let model = ModelFacts { arch: config::facts(config).unwrap(), weights: Weights::default() };
        let kv = |ctx, parallel| estimate(&model, &recipe(EngineKind::Vllm, ctx, parallel, 2), Bytes::ZERO).shards[0].kv;
        prop_assert!(kv(ctx + more, parallel) >= kv(ctx, parallel));
        prop_assert!(kv(ctx, parallel + 1) >= kv(ctx, parallel));
    }
}
