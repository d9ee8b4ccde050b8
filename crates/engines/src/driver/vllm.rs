//! vLLM's OpenAI server. Flags as of `vllm serve --help` of 0.11 and later.

use fettle_app::ports::serving::{Endpoint, LaunchOrder};
use fettle_placement::recipe::{EngineKind, KvType, SleepLevel};
use secrecy::ExposeSecret;

use super::flags::{self, Reads};
use super::{Api, Launch, Place, Probe, Refused, fraction, no_such_cache, on_gpu_only, socket};
use crate::settings::Program;

/// Tokens that it computes at once, as the estimate has it.
const BATCHED_TOKENS: u32 = 8192;

const DICTATED: &[&str] = &[
    "--model",
    "--config",
    "--served-model-name",
    "--gpu-memory-utilization",
    "--kv-cache-memory-bytes",
    "--num-gpu-blocks-override",
    "--max-model-len",
    "--max-num-seqs",
    "--max-num-batched-tokens",
    "--tensor-parallel-size",
    "-tp",
    "--pipeline-parallel-size",
    "-pp",
    "--data-parallel-size",
    "-dp",
    "--nnodes",
    "-n",
    "--kv-cache-dtype",
    "--cpu-offload-gb",
    "--swap-space",
    "--uds",
    "--host",
    "--port",
    "--api-key",
    "--root-path",
    "--enable-sleep-mode",
    "--device",
    "--headless",
    "--api-server-count",
];

pub(super) fn plan(order: &LaunchOrder, settings: &Program, place: &Place) -> Result<Launch, Refused> {
    on_gpu_only(order)?;
    let recipe = &order.recipe;
    let added = flags::check("vLLM", Reads::Abbreviated, DICTATED, settings.args.iter().chain(&recipe.flags))?;
    let socket = socket(place)?;
    let kv = match recipe.kv {
        KvType::F16 | KvType::Bf16 => "auto",
        KvType::Fp8 => "fp8",
        KvType::F32 | KvType::Q8_0 | KvType::Q5_1 | KvType::Q5_0 | KvType::Q4_1 | KvType::Q4_0 => {
            return Err(no_such_cache(order));
        }
    };

    let mut argv = [settings.program.as_str(), "serve", order.weights.as_str()].map(str::to_owned).to_vec();
    let mut say = |flag: &str, value: &str| argv.extend([flag.to_owned(), value.to_owned()]);
    say("--served-model-name", recipe.model.as_str());
    say("--gpu-memory-utilization", &fraction(order.claim.get(), order.total.get(), 4));
    say("--max-model-len", &recipe.ctx.to_string());
    say("--max-num-seqs", &recipe.parallel.max(1).to_string());
    say("--max-num-batched-tokens", &BATCHED_TOKENS.to_string());
    say("--tensor-parallel-size", &recipe.tp.max(1).to_string());
    say("--kv-cache-dtype", kv);
    say("--uds", socket.as_str());
    let mut env = vec![
        ("VLLM_API_KEY", place.key.expose_secret().to_owned()),
        ("VLLM_NO_USAGE_STATS", "1".to_owned()),
        // A worker that is forked after CUDA has started cannot use it.
        ("VLLM_WORKER_MULTIPROC_METHOD", "spawn".to_owned()),
    ];
    match recipe.sleep {
        SleepLevel::Never => {}
        SleepLevel::Host => {
            argv.push("--enable-sleep-mode".to_owned());
            // Its calls to sleep and wake exist in development mode only, which is why it never listens on a port.
            env.push(("VLLM_SERVER_DEV_MODE", "1".to_owned()));
        }
    }
    let embeddings = added.windows(2).any(|pair| {
        let said = (pair[0].as_str(), pair[1].as_str());
        matches!(said, ("--runner", "pooling") | ("--task", "embed" | "embedding"))
    });
    argv.extend(added);
    Ok(Launch {
        argv,
        env: env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        files: Vec::new(),
        endpoint: Endpoint::Unix(socket),
        key: Some(place.key.clone()),
        model: recipe.model.to_string(),
        api: Api {
            engine: EngineKind::Vllm,
            health: "/health".to_owned(),
            guarded: "/v1/models".to_owned(),
            probe: if embeddings { Probe::Embeddings } else { Probe::Chat },
        },
    })
}

/// `GPU KV cache size: 559,232 tokens`.
pub(super) fn kv_tokens(line: &str) -> Option<u64> {
    let (_, rest) = line.split_once("GPU KV cache size: ")?;
    let digits: String = rest.chars().take_while(|c| *c != ' ').filter(|c| *c != ',').collect();
    digits.parse().ok()
}
