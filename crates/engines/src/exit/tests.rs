use super::*;

/// What the engines say, with its class. From their sources and from reports of users.
const FIXTURES: &[(&str, ExitClass)] = &[
    // llama-server
    (
        "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 15339.44 MiB on device 0: cudaMalloc failed: out of memory",
        ExitClass::OutOfMemory,
    ),
    ("llama_kv_cache: failed to allocate buffer for kv cache", ExitClass::OutOfMemory),
    ("graph_reserve: failed to allocate compute buffers", ExitClass::OutOfMemory),
    ("llama_model_load: error loading model: unable to allocate CUDA0 buffer", ExitClass::OutOfMemory),
    ("gguf_init_from_file_impl: invalid magic characters: 'garb', expected 'GGUF'", ExitClass::BadModel),
    ("gguf_init_from_file_impl: failed to read magic", ExitClass::BadModel),
    (
        "llama_model_load: error loading model: tensor 'blk.3.ffn_up.weight' data is not within the file bounds, model is corrupted or incomplete",
        ExitClass::BadModel,
    ),
    (
        "llama_model_load: error loading model: error loading model architecture: unknown model architecture: 'mllama'",
        ExitClass::BadModel,
    ),
    ("error: invalid argument: --no-such-flag", ExitClass::BadFlag),
    ("error while handling argument \"-c\": stoi", ExitClass::BadFlag),
    ("ggml_cuda_init: failed to initialize CUDA: no CUDA-capable device is detected", ExitClass::Driver),
    // vLLM
    (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.02 GiB. GPU 0 has a total capacity of 139.72 GiB",
        ExitClass::OutOfMemory,
    ),
    (
        "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the engine.",
        ExitClass::OutOfMemory,
    ),
    (
        "ValueError: Free memory on device cuda:0 (13.33/22.07 GiB) on startup is less than desired GPU memory utilization (0.9, 19.86 GiB).",
        ExitClass::OutOfMemory,
    ),
    (
        "ValueError: To serve at least one request with the model's max seq len (131072), (9.5 GiB KV cache is needed, which is larger than the available KV cache memory (6.91 GiB).",
        ExitClass::OutOfMemory,
    ),
    (
        "ValueError: User-specified max_model_len (1000000) is greater than the derived max_model_len (max_position_embeddings=40960)",
        ExitClass::BadFlag,
    ),
    ("vllm: error: unrecognized arguments: --no-such-flag", ExitClass::BadFlag),
    ("vllm serve: error: argument --kv-cache-dtype: invalid choice: 'q4'", ExitClass::BadFlag),
    ("ValueError: Model architectures ['FooForCausalLM'] are not supported for now.", ExitClass::BadModel),
    ("safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge", ExitClass::BadModel),
    ("RuntimeError: Cannot find any model weights with `qwen3`", ExitClass::BadModel),
    ("OSError: Can't load the configuration of 'qwen3'", ExitClass::BadModel),
    ("RuntimeError: Failed to infer device type", ExitClass::Driver),
    ("RuntimeError: CUDA unknown error - this may be due to an incorrectly set up environment", ExitClass::Driver),
    (
        "RuntimeError: The NVIDIA driver on your system is too old: CUDA driver version is insufficient for CUDA runtime version",
        ExitClass::Driver,
    ),
    ("torch.AcceleratorError: CUDA error: no kernel image is available for execution on the device", ExitClass::Driver),
    // SGLang
    (
        "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static. Current value: mem_fraction_static=0.12",
        ExitClass::OutOfMemory,
    ),
    (
        "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:77, unhandled system error",
        ExitClass::Driver,
    ),
    ("launch_server.py: error: unrecognized arguments: --no-such-flag", ExitClass::BadFlag),
    ("launch_server.py: error: the following arguments are required: --model-path/--model", ExitClass::BadFlag),
    // ollama
    ("Error: model requires more system memory (9.1 GiB) than is available (3.2 GiB)", ExitClass::OutOfMemory),
    ("Error: llama runner process has terminated: CUDA error: out of memory", ExitClass::OutOfMemory),
    ("Error: model 'qwen9:x' not found, try pulling it first", ExitClass::BadModel),
    ("Error: invalid file magic", ExitClass::BadModel),
    ("Error: unknown flag: --nope", ExitClass::BadFlag),
];

fn of(status: Status, lines: &[&str]) -> Exit {
    classify(status, lines.iter().copied(), false)
}

#[test]
fn the_known_last_words_of_each_engine_are_understood() {
    for (line, class) in FIXTURES {
        let said = of(Status::Code(1), &["INFO loading", line, "INFO shutting down"]);
        assert_eq!(said.class, *class, "{line}: {}", said.why);
        assert!(said.why.contains(": "), "{}", said.why);
    }
}

#[test]
fn every_text_has_a_fixture_or_is_one_of_the_spellings_of_cuda() {
    let spellings = ["cudaerrormemoryallocation", "cuda_error_out_of_memory", "std::bad_alloc"];
    let without = TEXTS.iter().map(|(text, _)| *text).filter(|text| {
        !spellings.contains(text) && !FIXTURES.iter().any(|(line, _)| line.to_ascii_lowercase().contains(text))
    });
    let without: Vec<&str> = without.collect();
    // These are second ways to say what another line of the same engine says in the fixtures.
    let second = [
        "failed to allocate compute pp buffers",
        "no cuda gpus are available",
        "system not yet initialized",
        "cuda error: unspecified launch failure",
        "cuda error: an illegal memory access",
        "failed to initialize nvml",
        "driver/library version mismatch",
        "expected value for argument",
        "must be divisible by tensor parallel size",
        "error: unknown command",
        "failed to load model",
        "does not recognize this architecture",
        "no such file or directory: ",
        "is not a valid model identifier",
        "invalid repository id or local directory",
    ];
    assert_eq!(without, second);
}

#[test]
fn want_of_memory_is_the_reason_whatever_else_is_said_after_it() {
    let lines = ["CUDA out of memory", "NCCL error", "error loading model"];
    assert_eq!(of(Status::Code(1), &lines).class, ExitClass::OutOfMemory);
}

#[test]
fn an_end_that_nothing_explains_says_what_was_seen() {
    assert_eq!(of(Status::Signal(11), &["INFO ready"]).why, "it was ended by signal 11");
    assert_eq!(of(Status::Code(3), &["one", "two", ""]).why, "it ended with status 3: two");
    assert_eq!(of(Status::Code(0), &[]).class, ExitClass::Unknown);
    assert_eq!(classify(Status::Signal(9), [].into_iter(), true).class, ExitClass::OutOfMemory);
    assert_eq!(classify(Status::Signal(9), [].into_iter(), false).class, ExitClass::Unknown);
    assert_eq!(of(Status::NotStarted, &["no such program"]).class, ExitClass::NotStarted);
}

#[test]
fn people_are_shown_neither_folders_nor_keys() {
    let line = "error loading model '/var/lib/fettle/models/secret-team/m.gguf' key 0123456789abcdef0123456789abcdef (13.3/22.0 GiB)";
    let shown = shown(line);
    assert_eq!(shown, "error loading model 'm.gguf' key … (13.3/22.0 GiB)");
}
