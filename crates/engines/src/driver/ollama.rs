//! ollama, one process a model and device, so that its scheduler has nothing left to decide. Variables as of its
//! `envconfig/config.go`. It knows neither keys nor Unix sockets: whoever may open a port of loopback may use it.

use fettle_app::ports::serving::LaunchOrder;
use fettle_placement::recipe::{EngineKind, KvType};

use super::{Api, Launch, Place, Probe, Refused, loopback, no_such_cache, on_gpu_only};
use crate::settings::Program;

pub(super) fn plan(order: &LaunchOrder, settings: &Program, place: &Place) -> Result<Launch, Refused> {
    on_gpu_only(order)?;
    let recipe = &order.recipe;
    if let Some(argument) = settings.args.iter().chain(&recipe.flags).next() {
        let shown = argument.split('=').next().unwrap_or_default();
        return Err(Refused::flag(format!("`{shown}` cannot be set for ollama: `ollama serve` takes no arguments")));
    }
    if recipe.tp > 1 {
        return Err(Refused::flag(format!("ollama gets one device, and the recipe wants {}", recipe.tp)));
    }
    let kv = match recipe.kv {
        KvType::F16 => "f16",
        KvType::Q8_0 => "q8_0",
        KvType::Q4_0 => "q4_0",
        KvType::F32 | KvType::Bf16 | KvType::Fp8 | KvType::Q5_1 | KvType::Q5_0 | KvType::Q4_1 => {
            return Err(no_such_cache(order));
        }
    };
    let env = [
        ("OLLAMA_HOST", format!("127.0.0.1:{}", place.port)),
        // A folder of its own make: blobs and manifests.
        ("OLLAMA_MODELS", order.weights.to_string()),
        ("OLLAMA_MAX_LOADED_MODELS", "1".to_owned()),
        ("OLLAMA_KEEP_ALIVE", "-1".to_owned()),
        ("OLLAMA_CONTEXT_LENGTH", recipe.ctx.to_string()),
        ("OLLAMA_NUM_PARALLEL", recipe.parallel.max(1).to_string()),
        ("OLLAMA_KV_CACHE_TYPE", kv.to_owned()),
        // Without it the type of the cache is ignored.
        ("OLLAMA_FLASH_ATTENTION", "1".to_owned()),
        ("OLLAMA_NOPRUNE", "1".to_owned()),
        ("OLLAMA_NOHISTORY", "1".to_owned()),
    ];
    Ok(Launch {
        argv: vec![settings.program.to_string(), "serve".to_owned()],
        env: env.map(|(name, value)| (name.to_owned(), value)).into(),
        files: Vec::new(),
        endpoint: loopback(place),
        key: None,
        model: recipe.model.to_string(),
        api: Api {
            engine: EngineKind::Ollama,
            health: "/api/version".to_owned(),
            guarded: "/api/tags".to_owned(),
            probe: Probe::Ollama,
        },
    })
}
