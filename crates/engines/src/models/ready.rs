//! Models that people ask for by name, with a recipe for llama-server that suits each on one GPU of 32 GiB or more.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// As ollama calls it.
    pub name: &'static str,
    /// The file as it is published, four bits and a half a weight.
    pub file: &'static str,
    /// Tokens of one sequence: what the model was trained for.
    pub context: u32,
    /// Sequences at once.
    pub parallel: u16,
}

pub const READY: &[Ready] = &[
    // Its cache takes 0.8 MiB a token, since every head has keys of its own; one sequence is what fits beside it.
    Ready { name: "codellama:13b", file: "codellama-13b-instruct.Q4_K_M.gguf", context: 16_384, parallel: 1 },
    Ready {
        name: "deepseek-coder:6.7b",
        file: "deepseek-coder-6.7b-instruct.Q4_K_M.gguf",
        context: 16_384,
        parallel: 2,
    },
    // Eight heads have keys: a fourth of the cache.
    Ready { name: "mistral:7b", file: "mistral-7b-instruct-v0.2.Q4_K_M.gguf", context: 32_768, parallel: 4 },
];

pub fn find(name: &str) -> Option<&'static Ready> {
    READY.iter().find(|ready| ready.name == name)
}
