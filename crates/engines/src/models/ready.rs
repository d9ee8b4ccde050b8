//! Models that people ask for by name, with a recipe that suits each on one GPU of 32 GiB or more.

use fettle_placement::recipe::{EngineKind, KvType};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// As ollama calls it.
    pub name: &'static str,
    /// The file that is to be brought here.
    pub file: &'static str,
    pub quant: &'static str,
    pub engine: EngineKind,
    pub kv: KvType,
    /// Tokens of one sequence: what the model was trained for.
    pub ctx: u32,
    /// Sequences at once.
    pub parallel: u16,
}

const fn on_llama_server(name: &'static str, file: &'static str, ctx: u32, parallel: u16) -> Ready {
    Ready { name, file, quant: "q4_k_m", engine: EngineKind::LlamaServer, kv: KvType::F16, ctx, parallel }
}

pub const READY: &[Ready] = &[
    // Its cache takes 0.8 MiB a token, since every head has keys of its own; one sequence is what fits beside it.
    on_llama_server("codellama:13b", "codellama-13b-instruct.Q4_K_M.gguf", 16_384, 1),
    on_llama_server("deepseek-coder:6.7b", "deepseek-coder-6.7b-instruct.Q4_K_M.gguf", 16_384, 2),
    // Eight heads have keys: a fourth of the cache.
    on_llama_server("mistral:7b", "mistral-7b-instruct-v0.2.Q4_K_M.gguf", 32_768, 4),
];

pub fn find(name: &str) -> Option<&'static Ready> {
    READY.iter().find(|ready| ready.name == name)
}
