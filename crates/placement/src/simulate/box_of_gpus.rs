//! Machines and models to simulate.

use crate::device::{Attribution, ComputeCapability, Device, DeviceKind, Health, Pool, PoolKind};
use crate::footprint::{Footprint, Parts, Slack, Source};
use crate::id::{DeviceId, IslandId, ModelId, PoolId, RecipeId};
use crate::quantity::{Bytes, Millis};
use crate::recipe::{EngineKind, KvType, ModelSpec, Recipe, RunsOn, SleepLevel};
use crate::view::{Policy, View};

/// What common recipes take, in GiB: from an embedder over 8, 14 and 32 billion weights of four, eight and sixteen bits to
/// 70 billion of eight.
pub const CATALOGUE: [u64; 12] = [1, 2, 5, 9, 10, 16, 20, 28, 35, 42, 65, 72];

/// Sequences at once of every simulated engine.
pub const PARALLEL: u16 = 8;

/// `count` equal GPUs in one island, with nothing on them. `gib`: what each has.
pub fn gpus(count: usize, gib: u64) -> View {
    let mut view = View::default();
    for nth in 0..count {
        let id = DeviceId::new(format!("gpu{nth:04}"));
        let (pool, cap) = (PoolId::new(format!("gpu:{id}")), Bytes::gib(gib));
        view.pools.push(Pool {
            id: pool.clone(),
            kind: PoolKind::Vram,
            cap,
            used: Bytes::ZERO,
            free: cap,
            margin: Policy::discrete_margin(cap),
            sampled: Millis::ZERO,
            attribution: Attribution::Exact,
            lock: None,
            frozen: None,
            reserves: Vec::new(),
        });
        view.devices.push(Device {
            id,
            kind: DeviceKind::Gpu,
            name: "simulated".to_owned(),
            cc: ComputeCapability(9, 0),
            numa: None,
            pool,
            island: Some(IslandId::new(format!("nvl{}", nth / 8))),
            tp_ok: true,
            celsius: 40,
            health: Health::Ok,
        });
    }
    view
}

/// Adds a model that takes `weights`, and as long to load as two gigabytes a second and five seconds to start make it.
pub fn add_model(view: &mut View, name: &str, weights: Bytes, tp: u8, slack: Slack) {
    let (model, recipe) = (ModelId::new(name), RecipeId::new(name));
    let parts = Parts { weights, ..Parts::default() };
    let footprint = Footprint {
        shards: vec![parts; usize::from(tp)],
        slack,
        host: Bytes::ZERO,
        peak_permille: 1000,
        load: Millis::secs(5) + Millis::new((weights.get() >> 20) * 1000 / 2048),
        source: Source::Formula,
    };
    view.footprints.insert(recipe.clone(), footprint);
    view.models.push(ModelSpec { id: model.clone(), recipes: vec![recipe.clone()] });
    view.recipes.push(Recipe {
        id: recipe,
        model,
        engine: EngineKind::LlamaServer,
        build: "simulated".to_owned(),
        quant: String::new(),
        kv: KvType::F16,
        on: RunsOn::Gpu,
        tp,
        ctx: 32_768,
        parallel: PARALLEL,
        min_cc: ComputeCapability::default(),
        sleep: SleepLevel::Never,
        flags: Vec::new(),
    });
}
