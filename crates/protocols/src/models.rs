//! Lists of models, and the small answers around them, in each family's shape.

use bytes::Bytes;

use crate::protocol::Family;

/// One model or profile that a caller may name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelEntry {
    pub id: String,
    pub display_name: String,
    pub owned_by: String,
    /// Seconds since 1970.
    pub created: i64,
    pub context_tokens: Option<u64>,
    pub max_output_tokens: Option<u64>,
    pub vision: bool,
    pub tools: bool,
    pub thinking: bool,
    /// Bytes of the model's files, where known.
    pub size_bytes: Option<u64>,
}

pub fn write_models(family: Family, models: &[ModelEntry]) -> Bytes {
    let _ = (family, models);
    Bytes::new()
}

/// One model: OpenAI's and Anthropic's `GET /v1/models/{id}`.
pub fn write_model(family: Family, model: &ModelEntry) -> Bytes {
    let _ = (family, model);
    Bytes::new()
}

/// Ollama's `POST /api/show`.
pub fn write_ollama_show(model: &ModelEntry) -> Bytes {
    let _ = model;
    Bytes::new()
}

/// Ollama's `GET /api/version`.
pub fn write_ollama_version(version: &str) -> Bytes {
    let _ = version;
    Bytes::new()
}

/// Anthropic's `POST /v1/messages/count_tokens`.
pub fn write_count_tokens(input_tokens: u64) -> Bytes {
    let _ = input_tokens;
    Bytes::new()
}
