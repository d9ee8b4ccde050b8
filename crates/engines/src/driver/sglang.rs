//! SGLang's server. Flags as of its `server_arguments.md`, 2026. It has no Unix socket, and takes its key from the command line,
//! which everybody can read, or from a file of arguments, which is what it gets.

use fettle_app::ports::serving::LaunchOrder;
use fettle_placement::quantity::Bytes;
use fettle_placement::recipe::{EngineKind, KvType};
use secrecy::ExposeSecret;

use super::flags::{self, Reads};
use super::{Api, Launch, Place, Probe, Refused, fraction, loopback, no_such_cache, on_gpu_only, path_of};
use crate::settings::Program;

const DICTATED: &[&str] = &[
    "--model-path",
    "--model",
    "--config",
    "--served-model-name",
    "--mem-fraction-static",
    "--max-total-tokens",
    "--context-length",
    "--max-running-requests",
    "--tp",
    "--tp-size",
    "--tensor-parallel-size",
    "--dp",
    "--dp-size",
    "--data-parallel-size",
    "--pp-size",
    "--pipeline-parallel-size",
    "--nnodes",
    "--kv-cache-dtype",
    "--host",
    "--port",
    "--api-key",
    "--admin-api-key",
    "--enable-metrics",
    "--base-gpu-id",
    "--device",
    "--cpu-offload-gb",
    "--grpc-mode",
    "--fastapi-root-path",
];

pub(super) fn plan(order: &LaunchOrder, settings: &Program, place: &Place) -> Result<Launch, Refused> {
    on_gpu_only(order)?;
    let recipe = &order.recipe;
    let added = flags::check("SGLang", Reads::Abbreviated, DICTATED, settings.args.iter().chain(&recipe.flags))?;
    let kv = match recipe.kv {
        KvType::F16 | KvType::Bf16 => "auto",
        KvType::Fp8 => "fp8_e4m3",
        KvType::F32 | KvType::Q8_0 | KvType::Q5_1 | KvType::Q5_0 | KvType::Q4_1 | KvType::Q4_0 => {
            return Err(no_such_cache(order));
        }
    };
    let arguments = path_of(&place.folder, "sglang.yaml");
    let tokens = u64::from(recipe.ctx) * u64::from(recipe.parallel.max(1));
    let held = Bytes::there(order.claim.signed() - order.scratch.signed());

    let mut argv = vec![settings.program.to_string()];
    // `sglang serve`, or a Python that has it.
    match settings.program.file_name() {
        Some("sglang") => argv.push("serve".to_owned()),
        _ => argv.extend(["-m", "sglang.launch_server"].map(str::to_owned)),
    }
    let mut say = |flag: &str, value: &str| argv.extend([flag.to_owned(), value.to_owned()]);
    say("--config", arguments.as_str());
    say("--model-path", order.weights.as_str());
    say("--served-model-name", recipe.model.as_str());
    say("--mem-fraction-static", &fraction(held.get(), order.free.get(), 3));
    say("--max-total-tokens", &tokens.to_string());
    say("--context-length", &recipe.ctx.to_string());
    say("--max-running-requests", &recipe.parallel.max(1).to_string());
    say("--tp", &recipe.tp.max(1).to_string());
    say("--kv-cache-dtype", kv);
    say("--host", "127.0.0.1");
    say("--port", &place.port.to_string());
    argv.push("--enable-metrics".to_owned());
    let embeddings = added.iter().any(|flag| flag == "--is-embedding");
    argv.extend(added);
    Ok(Launch {
        argv,
        env: [].into(),
        files: vec![(arguments, format!("api-key: {}\n", place.key.expose_secret()))],
        endpoint: loopback(place),
        key: Some(place.key.clone()),
        model: recipe.model.to_string(),
        api: Api {
            engine: EngineKind::Sglang,
            health: "/health".to_owned(),
            guarded: "/v1/models".to_owned(),
            probe: if embeddings { Probe::Embeddings } else { Probe::Chat },
        },
    })
}

/// `max_total_num_tokens=171008, context_len=169000, …`.
pub(super) fn kv_tokens(line: &str) -> Option<u64> {
    let (_, rest) = line.split_once("max_total_num_tokens=")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}
