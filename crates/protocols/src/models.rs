//! Lists of models, and the small answers around them, in each family's shape.

use bytes::Bytes;

use crate::json::{self, Object, instant};
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
    /// What Fettle adds to OpenAI's form, under a name of its own.
    pub fettle: Option<serde_json::Value>,
}

/// `GET /v1/models` of OpenAI and Anthropic, Ollama's `GET /api/tags`. All models in one page.
pub fn write_models(family: Family, models: &[ModelEntry]) -> Bytes {
    let list = json::object(|out| match family {
        Family::OpenAi => {
            out.put("object", "list");
            write_entries(out, "data", models, write_openai);
        }
        Family::Anthropic => {
            write_entries(out, "data", models, write_anthropic);
            out.put("has_more", false);
            out.put("first_id", models.first().map(|model| &model.id));
            out.put("last_id", models.last().map(|model| &model.id));
        }
        Family::Ollama | Family::Google => write_entries(out, "models", models, write_tag),
    });
    list.into()
}

/// One model: OpenAI's and Anthropic's `GET /v1/models/{id}`.
pub fn write_model(family: Family, model: &ModelEntry) -> Bytes {
    let entry = json::object(|out| match family {
        Family::OpenAi => write_openai(out, model),
        Family::Anthropic => write_anthropic(out, model),
        Family::Ollama | Family::Google => write_tag(out, model),
    });
    entry.into()
}

/// Ollama's `POST /api/show`.
pub fn write_ollama_show(model: &ModelEntry) -> Bytes {
    let mut capabilities = vec!["completion"];
    let known = [(model.tools, "tools"), (model.vision, "vision"), (model.thinking, "thinking")];
    capabilities.extend(known.iter().filter(|(has, _)| *has).map(|(_, name)| *name));
    let shown = json::object(|out| {
        out.put("modelfile", "").put("parameters", "").put("template", "");
        out.object("details", write_details);
        // Clients look for the key that ends so, whatever the architecture is called.
        out.object("model_info", |info| {
            info.put("general.architecture", ARCHITECTURE);
            info.put_some(&format!("{ARCHITECTURE}.context_length"), model.context_tokens);
        });
        out.put("capabilities", capabilities).put("modified_at", instant(model.created));
    });
    shown.into()
}

/// Ollama's `GET /api/version`.
pub fn write_ollama_version(version: &str) -> Bytes {
    let said = json::object(|out| {
        out.put("version", version);
    });
    said.into()
}

/// Anthropic's `POST /v1/messages/count_tokens`.
pub fn write_count_tokens(input_tokens: u64) -> Bytes {
    let said = json::object(|out| {
        out.put("input_tokens", input_tokens);
    });
    said.into()
}

/// What a model is made of is not the callers' business.
const ARCHITECTURE: &str = "fettle";

fn write_entries(out: &mut Object<'_>, key: &str, models: &[ModelEntry], write: fn(&mut Object<'_>, &ModelEntry)) {
    out.list(key, |list| {
        for model in models {
            list.object(|out| write(out, model));
        }
    });
}

fn write_openai(out: &mut Object<'_>, model: &ModelEntry) {
    out.put("id", &model.id).put("object", "model").put("created", model.created).put("owned_by", &model.owned_by);
    // vLLM's name, which clients look for.
    out.put_some("max_model_len", model.context_tokens).put_some("fettle", model.fettle.as_ref());
}

fn write_anthropic(out: &mut Object<'_>, model: &ModelEntry) {
    out.put("type", "model").put("id", &model.id).put("display_name", &model.display_name);
    out.put("created_at", instant(model.created)).put("lifecycle", "active");
    out.put_some("max_input_tokens", model.context_tokens).put_some("max_tokens", model.max_output_tokens);
}

fn write_tag(out: &mut Object<'_>, model: &ModelEntry) {
    out.put("name", &model.id).put("model", &model.id).put("modified_at", instant(model.created));
    out.put("size", model.size_bytes.unwrap_or(0)).put("digest", "").object("details", write_details);
}

fn write_details(details: &mut Object<'_>) {
    details.put("parent_model", "").put("format", "").put("family", ARCHITECTURE);
    details.list("families", |families| families.put(ARCHITECTURE));
    details.put("parameter_size", "").put("quantization_level", "");
}
