//! Numbers that no header tells. They were measured or are the engines' defaults; calibration on the machine replaces the
//! context, and residuals learned from loads absorb the rest.

use crate::quantity::Bytes;
use crate::recipe::EngineKind;

/// Driver and libraries of one process on one GPU, until it is measured.
pub const CONTEXT: Bytes = Bytes::mib(600);

/// Graphs of decoding steps that vLLM and SGLang capture.
pub(crate) const CUDA_GRAPHS: Bytes = Bytes::mib(512);

/// Rows of the hidden size, in single precision, that a graph of llama.cpp has alive at once for each token.
pub(crate) const GRAPH_ROWS: u64 = 8;

/// The same of vLLM, in half precision, with the wider rows of its feed-forward layers.
pub(crate) const ACTIVATION_ROWS: u64 = 16;

/// Tokens that an engine computes at once: `n_ubatch`, `max_num_batched_tokens`.
pub(crate) const fn batch(engine: EngineKind) -> u64 {
    match engine {
        EngineKind::LlamaServer | EngineKind::Ollama | EngineKind::Command => 512,
        EngineKind::Vllm | EngineKind::Sglang => 8192,
    }
}
