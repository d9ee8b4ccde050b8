//! llama.cpp's server. Flags as of its `tools/server/README.md`, 2026.

use fettle_app::ports::serving::{Endpoint, LaunchOrder};
use fettle_placement::recipe::{EngineKind, KvType, RunsOn};
use secrecy::ExposeSecret;

use super::flags::{self, Reads};
use super::{Api, Launch, Place, Probe, Refused, no_such_cache, path_of, socket};
use crate::settings::LlamaServer;

/// Tokens of a batch and of what is computed at once: its defaults, named so that the estimate's are what runs.
const BATCH: u32 = 2048;
const MICRO_BATCH: u32 = 512;

const DICTATED: &[&str] = &[
    "-m",
    "--model",
    "-mu",
    "--model-url",
    "-hf",
    "-hfr",
    "--hf-repo",
    "-dr",
    "--docker-repo",
    "--models-dir",
    "--models-preset",
    "-c",
    "--ctx-size",
    "-np",
    "--parallel",
    "-kvu",
    "--kv-unified",
    "-no-kvu",
    "--no-kv-unified",
    "-ngl",
    "--gpu-layers",
    "--n-gpu-layers",
    "-sm",
    "--split-mode",
    "-ts",
    "--tensor-split",
    "-mg",
    "--main-gpu",
    "-dev",
    "--device",
    "-nkvo",
    "--no-kv-offload",
    "-ctk",
    "--cache-type-k",
    "-ctv",
    "--cache-type-v",
    "-b",
    "--batch-size",
    "-ub",
    "--ubatch-size",
    "-fit",
    "--fit",
    "-fitt",
    "--fit-target",
    "-fitc",
    "--fit-ctx",
    "-cram",
    "--cache-ram",
    "--offline",
    "-fa",
    "--flash-attn",
    "--host",
    "--port",
    "--api-key",
    "--api-key-file",
    "--api-prefix",
    "-a",
    "--alias",
    "--log-disable",
    "--log-file",
    "--sleep-idle-seconds",
    "--rpc",
];

pub(super) fn plan(order: &LaunchOrder, settings: &LlamaServer, place: &Place) -> Result<Launch, Refused> {
    let recipe = &order.recipe;
    let added = settings.program.args.iter().chain(&recipe.flags);
    let added = flags::check("llama-server", Reads::Exactly, DICTATED, added)?;
    let kv = cache_type(order)?;
    let socket = socket(place)?;
    let key_file = path_of(&place.folder, "key");
    // Each sequence has its part of the context.
    let context = u64::from(recipe.ctx) * u64::from(recipe.parallel.max(1));

    let mut argv = vec![settings.program.program.to_string()];
    let mut say = |flag: &str, value: &str| argv.extend([flag.to_owned(), value.to_owned()]);
    say("--model", order.weights.as_str());
    say("--alias", recipe.model.as_str());
    say("--ctx-size", &context.to_string());
    say("--parallel", &recipe.parallel.max(1).to_string());
    say("--cache-type-k", kv);
    say("--cache-type-v", kv);
    say("--batch-size", &BATCH.to_string());
    say("--ubatch-size", &MICRO_BATCH.to_string());
    // Otherwise it changes what does not fit, and the recipe is another one.
    say("--fit", "off");
    say("--cache-ram", &settings.cache_ram.get().div_euclid(1 << 20).to_string());
    say("--host", socket.as_str());
    say("--api-key-file", key_file.as_str());
    // Values of a quantised cache are read by that kernel alone.
    say("--flash-attn", if quantised(recipe.kv) { "on" } else { "auto" });
    match recipe.on {
        RunsOn::Gpu => {
            say("--gpu-layers", "all");
            say("--split-mode", if recipe.tp > 1 { "layer" } else { "none" });
            if recipe.tp > 1 {
                say("--tensor-split", &vec!["1"; usize::from(recipe.tp)].join(","));
            }
        }
        RunsOn::Cpu => {
            say("--gpu-layers", "0");
            say("--device", "none");
        }
    }
    argv.extend(["--no-kv-unified", "--offline", "--metrics"].map(str::to_owned));
    let embeddings = added.iter().any(|flag| flag == "--embedding" || flag == "--embeddings");
    argv.extend(added);
    Ok(Launch {
        argv,
        env: [].into(),
        files: vec![(key_file, format!("{}\n", place.key.expose_secret()))],
        endpoint: Endpoint::Unix(socket),
        key: Some(place.key.clone()),
        model: recipe.model.to_string(),
        api: Api {
            engine: EngineKind::LlamaServer,
            health: "/health".to_owned(),
            // Its list of models is open to everybody.
            guarded: "/props".to_owned(),
            probe: if embeddings { Probe::Embeddings } else { Probe::Chat },
        },
    })
}

fn quantised(kv: KvType) -> bool {
    match kv {
        KvType::F32 | KvType::F16 | KvType::Bf16 | KvType::Fp8 => false,
        KvType::Q8_0 | KvType::Q5_1 | KvType::Q5_0 | KvType::Q4_1 | KvType::Q4_0 => true,
    }
}

fn cache_type(order: &LaunchOrder) -> Result<&'static str, Refused> {
    Ok(match order.recipe.kv {
        KvType::F32 => "f32",
        KvType::F16 => "f16",
        KvType::Bf16 => "bf16",
        KvType::Q8_0 => "q8_0",
        KvType::Q5_1 => "q5_1",
        KvType::Q5_0 => "q5_0",
        KvType::Q4_1 => "q4_1",
        KvType::Q4_0 => "q4_0",
        KvType::Fp8 => return Err(no_such_cache(order)),
    })
}

/// What the server says of its slots, or where it lets its library speak, what that says of the cache.
pub(super) fn kv_tokens(line: &str) -> Option<u64> {
    of_slots(line).or_else(|| of_cache(line))
}

/// `initializing, n_slots = 2, n_ctx_slot = 1024, kv_unified = 'false'`: tokens of one sequence times their number.
fn of_slots(line: &str) -> Option<u64> {
    let number = |name: &str| {
        let (_, rest) = line.split_once(name)?;
        rest.strip_prefix(" = ")?.split(',').next()?.trim().parse::<u64>().ok()
    };
    Some(number("n_slots")?.saturating_mul(number("n_ctx_slot")?))
}

/// `llama_kv_cache: size = 4096.00 MiB ( 65536 cells, 16 layers, 2/2 seqs)`: cells of one sequence times their number.
fn of_cache(line: &str) -> Option<u64> {
    let (_, rest) = line.split_once("llama_kv_cache")?;
    // The cache of a sliding window says less than a context, and is not what a context must fit into.
    if rest.contains("SWA") && !rest.contains("non-SWA") {
        return None;
    }
    let (before, after) = rest.split_once(" cells")?;
    let cells: u64 = before.rsplit(['(', ' ']).find(|word| !word.is_empty())?.parse().ok()?;
    let sequences = after.split_once(" seqs").and_then(|(list, _)| list.rsplit([' ', '/']).next()?.parse().ok());
    Some(cells.saturating_mul(sequences.unwrap_or(1)))
}
