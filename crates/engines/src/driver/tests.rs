use fettle_app::ports::serving::LaunchDevice;
use fettle_placement::device::ComputeCapability;
use fettle_placement::engine::Seat;
use fettle_placement::id::{DeviceId, EngineId, Epoch, ModelId, PoolId, RecipeId};
use fettle_placement::quantity::Bytes;
use fettle_placement::recipe::{Recipe, SleepLevel};

use super::*;
use crate::settings::{Command, LlamaServer, Program};

fn recipe(engine: EngineKind) -> Recipe {
    Recipe {
        id: RecipeId::new("r1"),
        model: ModelId::new("qwen3-coder"),
        engine,
        build: "1".to_owned(),
        quant: "q4_k_m".to_owned(),
        kv: KvType::F16,
        on: RunsOn::Gpu,
        tp: 1,
        ctx: 32768,
        parallel: 4,
        min_cc: ComputeCapability(8, 0),
        sleep: SleepLevel::Never,
        flags: Vec::new(),
    }
}

fn order(recipe: Recipe) -> LaunchOrder {
    let device = |nth: u32| LaunchDevice { id: DeviceId::new(format!("GPU-{nth}")), nth: Some(nth) };
    let devices: Vec<LaunchDevice> = (2..2 + u32::from(recipe.tp)).map(device).collect();
    let claims: Vec<(PoolId, Bytes)> =
        devices.iter().map(|device| (PoolId::new(format!("gpu:{}", device.id)), Bytes::gib(20))).collect();
    LaunchOrder {
        seat: Seat {
            engine: EngineId::new("qwen3-coder.1"),
            model: recipe.model.clone(),
            recipe: recipe.id.clone(),
            devices: devices.iter().map(|device| device.id.clone()).collect(),
            peaks: claims.clone(),
            claims,
        },
        epoch: Epoch(3),
        weights: "/models/qwen3-coder".into(),
        devices,
        claim: Bytes::gib(20),
        scratch: Bytes::gib(2),
        total: Bytes::gib(80),
        free: Bytes::gib(79),
        recipe,
    }
}

fn programs() -> Programs {
    let program = |path: &str| Program { program: path.into(), args: Vec::new() };
    Programs {
        llama_server: Some(LlamaServer { program: program("/opt/llama-server"), cache_ram: Bytes::ZERO }),
        vllm: Some(program("/opt/vllm/bin/vllm")),
        sglang: Some(program("/opt/sglang/bin/python")),
        ollama: Some(program("/opt/ollama")),
        command: Some(Command {
            argv: [
                "serve",
                "--socket={socket}",
                "--model",
                "{model}",
                "{devices}",
                "{claim_bytes}",
                "{ctx}x{parallel}",
            ]
            .map(str::to_owned)
            .to_vec(),
            health: "/up".to_owned(),
            answers: Answers::Chat,
        }),
    }
}

fn place() -> Place {
    Place { folder: "/run/e".into(), cache: "/var/cache/e".into(), port: 4711, key: "sesame".to_owned().into() }
}

/// One argument a line, then what is special of the environment and of files.
fn shown(order: &LaunchOrder) -> String {
    let launch = plan(order, &programs(), &place()).unwrap();
    let usual = ["HOME", "XDG_CACHE_HOME", "PYTHONUNBUFFERED", "HF_HUB_OFFLINE", "CUDA_DEVICE_ORDER"];
    for name in usual {
        assert!(launch.env.contains_key(name), "{name}");
    }
    let mut lines = Vec::new();
    for argument in &launch.argv {
        match lines.last_mut() {
            Some(last) if !argument.starts_with("--") => *last = format!("{last} {argument}"),
            _ => lines.push(argument.clone()),
        }
    }
    let special = launch.env.iter().filter(|(name, _)| !usual.contains(&name.as_str()));
    lines.extend(special.map(|(name, value)| format!("{name}={value}")));
    lines.extend(launch.files.iter().map(|(path, text)| format!("{path}: {}", text.trim())));
    lines.join("\n")
}

fn refused(order: &LaunchOrder, programs: &Programs) -> String {
    plan(order, programs, &place()).unwrap_err().why
}

#[test]
fn llama_server_is_told_everything_that_it_would_choose_itself() {
    insta::assert_snapshot!(shown(&order(recipe(EngineKind::LlamaServer))), @"
    /opt/llama-server
    --model /models/qwen3-coder
    --alias qwen3-coder
    --ctx-size 131072
    --parallel 4
    --cache-type-k f16
    --cache-type-v f16
    --batch-size 2048
    --ubatch-size 512
    --fit off
    --cache-ram 0
    --host /run/e/engine.sock
    --api-key-file /run/e/key
    --flash-attn auto
    --gpu-layers all
    --split-mode none
    --no-kv-unified
    --offline
    --metrics
    CUDA_VISIBLE_DEVICES=GPU-2
    /run/e/key: sesame
    ");
}

#[test]
fn llama_server_divides_layers_and_keeps_off_devices_on_the_cpu() {
    let set = Recipe { tp: 2, kv: KvType::Q8_0, ..recipe(EngineKind::LlamaServer) };
    let said = shown(&order(set));
    for line in [
        "--split-mode layer",
        "--tensor-split 1,1",
        "--cache-type-v q8_0",
        "--flash-attn on",
        "CUDA_VISIBLE_DEVICES=GPU-2,GPU-3",
    ] {
        assert!(said.lines().any(|one| one == line), "{line} in {said}");
    }
    let on_cpu = LaunchOrder {
        devices: vec![LaunchDevice { id: DeviceId::new("cpu"), nth: None }],
        ..order(Recipe { on: RunsOn::Cpu, ..recipe(EngineKind::LlamaServer) })
    };
    let said = shown(&on_cpu);
    for line in ["--gpu-layers 0", "--device none", "CUDA_VISIBLE_DEVICES="] {
        assert!(said.lines().any(|one| one == line), "{line} in {said}");
    }
    assert!(!said.contains("--split-mode"));
}

#[test]
fn vllm_gets_its_share_of_the_whole_and_devices_by_number() {
    let recipe = Recipe { tp: 2, kv: KvType::Fp8, sleep: SleepLevel::Host, ..recipe(EngineKind::Vllm) };
    insta::assert_snapshot!(shown(&order(recipe)), @"
    /opt/vllm/bin/vllm serve /models/qwen3-coder
    --served-model-name qwen3-coder
    --gpu-memory-utilization 0.2500
    --max-model-len 32768
    --max-num-seqs 4
    --max-num-batched-tokens 8192
    --tensor-parallel-size 2
    --kv-cache-dtype fp8
    --uds /run/e/engine.sock
    --enable-sleep-mode
    CUDA_VISIBLE_DEVICES=2,3
    VLLM_API_KEY=sesame
    VLLM_NO_USAGE_STATS=1
    VLLM_SERVER_DEV_MODE=1
    VLLM_WORKER_MULTIPROC_METHOD=spawn
    ");
}

#[test]
fn sglang_gets_its_static_share_of_what_is_free_and_its_key_in_a_file() {
    insta::assert_snapshot!(shown(&order(recipe(EngineKind::Sglang))), @"
    /opt/sglang/bin/python -m sglang.launch_server
    --config /run/e/sglang.yaml
    --model-path /models/qwen3-coder
    --served-model-name qwen3-coder
    --mem-fraction-static 0.227
    --max-total-tokens 131072
    --context-length 32768
    --max-running-requests 4
    --tp 1
    --kv-cache-dtype auto
    --host 127.0.0.1
    --port 4711
    --enable-metrics
    CUDA_VISIBLE_DEVICES=2
    /run/e/sglang.yaml: api-key: sesame
    ");
}

#[test]
fn ollama_has_nothing_left_to_schedule() {
    insta::assert_snapshot!(shown(&order(recipe(EngineKind::Ollama))), @"
    /opt/ollama serve
    CUDA_VISIBLE_DEVICES=GPU-2
    OLLAMA_CONTEXT_LENGTH=32768
    OLLAMA_FLASH_ATTENTION=1
    OLLAMA_HOST=127.0.0.1:4711
    OLLAMA_KEEP_ALIVE=-1
    OLLAMA_KV_CACHE_TYPE=f16
    OLLAMA_MAX_LOADED_MODELS=1
    OLLAMA_MODELS=/models/qwen3-coder
    OLLAMA_NOHISTORY=1
    OLLAMA_NOPRUNE=1
    OLLAMA_NUM_PARALLEL=4
    ");
    let set = order(Recipe { tp: 2, ..recipe(EngineKind::Ollama) });
    assert_eq!(refused(&set, &programs()), "ollama gets one device, and the recipe wants 2");
}

#[test]
fn a_command_is_filled_in_once() {
    let mut braces = order(recipe(EngineKind::Command));
    braces.weights = "/models/{ctx}".into();
    insta::assert_snapshot!(shown(&braces), @"
    serve
    --socket=/run/e/engine.sock
    --model /models/{ctx} GPU-2 21474836480 32768x4
    CUDA_VISIBLE_DEVICES=GPU-2
    FETTLE_ENGINE_KEY=sesame
    ");
    let command = |argument: &str| Programs {
        command: Some(Command { argv: vec![argument.to_owned()], health: "/".to_owned(), answers: Answers::Chat }),
        ..Programs::default()
    };
    let order = order(recipe(EngineKind::Command));
    assert_eq!(refused(&order, &command("{nonsense}")), "`{nonsense}` of the command is no name that is filled in");
    assert_eq!(refused(&order, &command("{port")), "`{port` of the command has a brace that is not closed");
    let on_port = plan(&order, &command("{port}"), &place()).unwrap();
    assert_eq!((on_port.argv[0].as_str(), on_port.endpoint), ("4711", Endpoint::Tcp(([127, 0, 0, 1], 4711).into())));
}

#[test]
fn what_the_planner_dictates_is_refused_in_flags_of_recipes_and_programs() {
    let with = |kind, flag: &str| order(Recipe { flags: vec![flag.to_owned()], ..recipe(kind) });
    let cases = [
        (EngineKind::LlamaServer, "-c"),
        (EngineKind::LlamaServer, "--host=0.0.0.0"),
        (EngineKind::Vllm, "--gpu_memory_utilization=0.95"),
        (EngineKind::Vllm, "--kv-cache-memory-bytes"),
        (EngineKind::Sglang, "--mem-fraction"),
        (EngineKind::Ollama, "--verbose"),
    ];
    for (kind, flag) in cases {
        let refused = plan(&with(kind, flag), &programs(), &place()).unwrap_err();
        assert_eq!(refused.class, ExitClass::BadFlag, "{flag}");
        assert!(refused.why.contains(flag.split('=').next().unwrap()), "{}", refused.why);
    }
    let mut told = programs();
    told.vllm = told.vllm.map(|vllm| Program { args: vec!["--port".to_owned()], ..vllm });
    let order = order(recipe(EngineKind::Vllm));
    assert_eq!(refused(&order, &told), "`--port` must not be set for vLLM: the planner dictates `--port`");
}

#[test]
fn flags_that_are_the_users_own_come_last_and_may_change_what_is_asked() {
    let flags =
        |list: &[&str], kind| Recipe { flags: list.iter().map(|&flag| flag.to_owned()).collect(), ..recipe(kind) };
    let launch = plan(&order(flags(&["--embeddings"], EngineKind::LlamaServer)), &programs(), &place()).unwrap();
    assert_eq!((launch.argv.last().unwrap().as_str(), launch.api.probe), ("--embeddings", Probe::Embeddings));
    let launch = plan(&order(flags(&["--runner", "pooling"], EngineKind::Vllm)), &programs(), &place()).unwrap();
    assert_eq!(launch.api.probe, Probe::Embeddings);
}

#[test]
fn what_an_engine_cannot_do_is_refused_before_it_is_started() {
    let fp8 = Recipe { kv: KvType::Fp8, ..recipe(EngineKind::LlamaServer) };
    assert_eq!(refused(&order(fp8), &programs()), "llama-server has no cache of type fp8");
    let on_cpu = Recipe { on: RunsOn::Cpu, ..recipe(EngineKind::Vllm) };
    assert!(refused(&order(on_cpu), &programs()).starts_with("vLLM runs on GPUs only"));
    let absent = plan(&order(recipe(EngineKind::Vllm)), &Programs::default(), &place()).unwrap_err();
    assert_eq!((absent.class, absent.why.as_str()), (ExitClass::NotStarted, "no program for vLLM is configured"));
    let deep = Place { folder: format!("/{}", "x".repeat(120)).into(), ..place() };
    let refused = plan(&order(recipe(EngineKind::Vllm)), &programs(), &deep).unwrap_err();
    assert_eq!(refused.why, "the folder of engines is 26 bytes too deep for a socket");
}

#[test]
fn a_slice_goes_by_its_uuid_everywhere() {
    for kind in [EngineKind::LlamaServer, EngineKind::Vllm, EngineKind::Sglang] {
        let on_slice = LaunchOrder {
            devices: vec![LaunchDevice { id: DeviceId::new("MIG-7"), nth: None }],
            ..order(recipe(kind))
        };
        let launch = plan(&on_slice, &programs(), &place()).unwrap();
        assert_eq!(launch.env["CUDA_VISIBLE_DEVICES"], "MIG-7");
    }
}

#[test]
fn the_size_of_the_cache_is_read_from_the_log() {
    let cases = [
        (
            EngineKind::LlamaServer,
            "llama_kv_cache: size = 4096.00 MiB ( 65536 cells,  16 layers,  2/2 seqs), K (f16): 2048.00 MiB",
            Some(131_072),
        ),
        (
            EngineKind::LlamaServer,
            "llama_kv_cache_unified: size =  512.00 MiB (  4096 cells,  32 layers,  1 seqs), K (f16):  256.00 MiB",
            Some(4096),
        ),
        (
            EngineKind::LlamaServer,
            "0.02.536.238 I srv    load_model: initializing, n_slots = 2, n_ctx_slot = 1024, kv_unified = 'false'",
            Some(2048),
        ),
        (EngineKind::LlamaServer, "llama_kv_cache_iswa: creating     SWA KV cache, size = 1536 cells", None),
        (EngineKind::LlamaServer, "llama_kv_cache:      CUDA0 KV buffer size =  4096.00 MiB", None),
        (
            EngineKind::Vllm,
            "INFO 11-20 10:00:03 [kv_cache_utils.py:1087] GPU KV cache size: 559,232 tokens",
            Some(559_232),
        ),
        (EngineKind::Vllm, "Maximum concurrency for 32,768 tokens per request: 17.07x", None),
        (
            EngineKind::Sglang,
            "max_total_num_tokens=171008, chunked_prefill_size=8192, context_len=169000",
            Some(171_008),
        ),
        (EngineKind::Sglang, "max_total_num_tokens=", None),
        (EngineKind::Command, "GPU KV cache size: 1 tokens", None),
    ];
    for (kind, line, tokens) in cases {
        assert_eq!(kv_tokens(kind, line), tokens, "{line}");
    }
}

#[test]
fn a_share_is_never_rounded_up() {
    assert_eq!(fraction(2, 3, 4), "0.6666");
    assert_eq!(fraction(1, 1, 3), "1.000");
    assert_eq!(fraction(5, 0, 2), "5.00");
}
