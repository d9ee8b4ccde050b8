//! What the real engines write to their logs, as far as anybody reads it.

use crate::command_line::{Kind, Order};

/// While it loads; the last ones say how large the cache is.
pub(crate) fn of_load(order: &Order, kv_tokens: u64) -> Vec<String> {
    match order.kind {
        Kind::LlamaServer => {
            let (cells, seqs) = (kv_tokens / order.parallel.max(1), order.parallel);
            vec![
                "build: 6700 (3df2244d) with cc (GCC) for x86_64-linux-gnu".to_owned(),
                "load_tensors: offloaded 33/33 layers to GPU".to_owned(),
                "load_tensors:        CUDA0 model buffer size =  4095.05 MiB".to_owned(),
                "llama_kv_cache:      CUDA0 KV buffer size =  1024.00 MiB".to_owned(),
                format!("llama_kv_cache: size = 1024.00 MiB ({cells:>6} cells,  32 layers, {seqs:>2}/{seqs} seqs), K (f16):  512.00 MiB, V (f16):  512.00 MiB"),
                "llama_context:      CUDA0 compute buffer size =   164.00 MiB".to_owned(),
                "main: server is listening".to_owned(),
            ]
        }
        Kind::Vllm => vec![
            "INFO 11-20 10:00:00 [model_runner.py:2300] Model loading took 14.99 GiB and 3.21 seconds".to_owned(),
            "INFO 11-20 10:00:03 [gpu_worker.py:298] Available KV cache memory: 38.41 GiB".to_owned(),
            format!("INFO 11-20 10:00:03 [kv_cache_utils.py:1087] GPU KV cache size: {} tokens", grouped(kv_tokens)),
            "INFO 11-20 10:00:09 [api_server.py:1912] Starting vLLM API server".to_owned(),
        ],
        Kind::Sglang => vec![
            "[2025-11-20 10:00:00] Load weight end. type=Qwen3ForCausalLM, avail mem=120.10 GB, mem usage=15.00 GB.".to_owned(),
            format!("[2025-11-20 10:00:02] KV Cache is allocated. #tokens: {kv_tokens}, K size: 5.22 GB, V size: 5.22 GB"),
            format!("[2025-11-20 10:00:04] max_total_num_tokens={kv_tokens}, chunked_prefill_size=8192, context_len={}, available_gpu_mem=8.27 GB", order.ctx),
            "[2025-11-20 10:00:05] The server is fired up and ready to roll!".to_owned(),
        ],
        Kind::Ollama => vec![
            "time=2025-11-20T10:00:00.000Z level=INFO source=routes.go:1528 msg=\"Listening on 127.0.0.1 (version 0.12.10)\"".to_owned(),
            "time=2025-11-20T10:00:00.100Z level=INFO source=types.go:131 msg=\"inference compute\" id=GPU-0 library=CUDA compute=9.0".to_owned(),
        ],
        Kind::Plain => vec!["loading".to_owned(), "loaded".to_owned()],
    }
}

fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

pub(crate) fn out_of_memory(kind: Kind) -> &'static str {
    match kind {
        Kind::LlamaServer => {
            "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 15339.44 MiB on device 0: cudaMalloc failed: out of memory"
        }
        Kind::Vllm | Kind::Plain => "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.02 GiB.",
        Kind::Sglang => "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.",
        Kind::Ollama => "llama runner process has terminated: CUDA error: out of memory",
    }
}

pub(crate) fn bad_model(kind: Kind) -> &'static str {
    match kind {
        Kind::LlamaServer | Kind::Plain => {
            "gguf_init_from_file_impl: invalid magic characters: 'garb', expected 'GGUF'"
        }
        Kind::Vllm | Kind::Sglang => {
            "safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge"
        }
        Kind::Ollama => "Error: invalid file magic",
    }
}

/// Of CUDA, whoever passes it on.
pub(crate) const NO_DEVICE: &str = "CUDA error: no CUDA-capable device is detected";

pub(crate) fn bad_flag(kind: Kind, flag: &str) -> String {
    match kind {
        Kind::LlamaServer | Kind::Plain => format!("error: invalid argument: {flag}"),
        Kind::Vllm => format!("vllm: error: unrecognized arguments: {flag}"),
        Kind::Sglang => format!("launch_server.py: error: unrecognized arguments: {flag}"),
        Kind::Ollama => format!("Error: unknown flag: {flag}"),
    }
}
