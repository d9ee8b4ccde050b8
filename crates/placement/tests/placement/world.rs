//! Worlds that could be, made from a few random numbers: every engine is where the memory ledger would have admitted it, and
//! then anything may have happened to devices, samples and requests.

use fettle_placement::device::{
    Attribution, ComputeCapability, Device, DeviceKind, Health, Pool, PoolKind, WaitingFor,
};
use fettle_placement::engine::{Engine, EngineState, Seat};
use fettle_placement::footprint::{Footprint, Parts, Slack, Source};
use fettle_placement::id::{DeviceId, EngineId, Epoch, IslandId, ModelId, OwnerId, PoolId, RecipeId};
use fettle_placement::memory_ledger::{accounts, admits};
use fettle_placement::placement::Barrier;
use fettle_placement::quantity::{Bytes, Millis};
use fettle_placement::recipe::{EngineKind, KvType, ModelSpec, Recipe, RunsOn, SleepLevel};
use fettle_placement::view::{Class, Policy, View, Want};
use proptest::prelude::*;

pub(crate) const NOW: Millis = Millis::secs(10_000);

#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) view: View,
    pub(crate) demand: Vec<Want>,
}

pub(crate) fn gpu(name: &str, island: bool) -> Device {
    Device {
        id: DeviceId::new(name),
        kind: DeviceKind::Gpu,
        name: "H200".to_owned(),
        cc: ComputeCapability(9, 0),
        numa: None,
        pool: PoolId::new(format!("gpu:{name}")),
        island: island.then(|| IslandId::new("nvl0")),
        tp_ok: true,
        celsius: 40,
        health: Health::Ok,
    }
}

pub(crate) fn empty_pool(id: &PoolId, kind: PoolKind, gib: u64) -> Pool {
    let cap = Bytes::gib(gib);
    Pool {
        id: id.clone(),
        kind,
        cap,
        used: Bytes::ZERO,
        free: cap,
        margin: Policy::discrete_margin(cap),
        sampled: NOW,
        attribution: Attribution::Exact,
        lock: None,
        frozen: None,
        reserves: Vec::new(),
    }
}

/// GiB, devices in its set, GiB of the host, permille of its peak, whether it sleeps.
type ModelSeed = (u64, u8, u64, u32, bool);
/// Which model, on which device, state, requests in flight, seconds since it was ready, requests in 1000 s, pinned.
type EngineSeed = (usize, usize, u8, u32, u64, u32, u8);
/// Which model, whose, requests, seconds waited, most replicas.
type WantSeed = (usize, u8, u32, u64, u8);

prop_compose! {
    pub(crate) fn any_world()(
        pools in proptest::collection::vec((prop_oneof![Just(80u64), Just(140)], 0..40u64, 0..20u8), 1..6),
        island: bool,
        host in prop_oneof![Just(None), (32..512u64).prop_map(Some)],
        models in proptest::collection::vec(any_model(), 1..6),
        engines in proptest::collection::vec(any_engine(), 0..8),
        wants in proptest::collection::vec((0..6usize, 0..3u8, 0..4u32, 0..120u64, 1..3u8), 1..6),
        barrier in prop_oneof![2 => Just(None), 1 => (0..6usize, 0..120u64).prop_map(Some)],
    ) -> World {
        world(&pools, island, host, &models, &engines, &wants, barrier)
    }
}

prop_compose! {
    fn any_model()(
        gib in 2..120u64, tp in prop_oneof![3 => Just(1u8), 1 => Just(2)], host in prop_oneof![Just(0u64), 0..64u64],
        peak in prop_oneof![Just(1000u32), Just(1350)], sleeps: bool,
    ) -> ModelSeed {
        (gib, tp, host, peak, sleeps)
    }
}

prop_compose! {
    fn any_engine()(
        model in 0..6usize, device in 0..6usize, state in 0..12u8, inflight in prop_oneof![Just(0u32), 0..5u32],
        age in 0..400u64, rate in 0..2000u32, pinned in 0..6u8,
    ) -> EngineSeed {
        (model, device, state, inflight, age, rate, pinned)
    }
}

fn world(
    pools: &[(u64, u64, u8)],
    island: bool,
    host: Option<u64>,
    models: &[ModelSeed],
    engines: &[EngineSeed],
    wants: &[WantSeed],
    barrier: Option<(usize, u64)>,
) -> World {
    let mut view = View { now: NOW, ..View::default() };
    for (nth, (gib, ..)) in pools.iter().enumerate() {
        let device = gpu(&format!("g{nth}"), island);
        view.pools.push(empty_pool(&device.pool, PoolKind::Vram, *gib));
        view.devices.push(device);
    }
    if let Some(gib) = host {
        view.pools.push(Pool { margin: Bytes::ZERO, ..empty_pool(&PoolId::new("host"), PoolKind::Host, gib) });
    }
    for (nth, seed) in models.iter().enumerate() {
        add_model(&mut view, nth, *seed);
    }
    for (nth, seed) in engines.iter().enumerate() {
        add_engine(&mut view, nth, *seed);
    }
    for (nth, (_, foreign, health)) in pools.iter().enumerate() {
        happen(&mut view, nth, Bytes::gib(*foreign), *health);
    }
    view.barrier = barrier.and_then(|(nth, seconds)| standing_barrier(&view, nth, seconds));
    let demand = wants.iter().map(|seed| want(*seed, models.len())).collect();
    World { view, demand: unique(demand) }
}

fn add_model(view: &mut View, nth: usize, (gib, tp, host, peak_permille, sleeps): ModelSeed) {
    let (model, recipe) = (ModelId::new(format!("m{nth}")), RecipeId::new(format!("r{nth}")));
    let context = Bytes::mib(600);
    let parts = Parts { weights: Bytes::gib(gib), context, ..Parts::default() };
    let footprint = Footprint {
        shards: vec![parts; usize::from(tp)],
        slack: Slack::LEAST,
        host: Bytes::gib(host),
        peak_permille,
        load: Millis::secs(10 + gib / 2),
        source: Source::Formula,
    };
    view.footprints.insert(recipe.clone(), footprint);
    view.models.push(ModelSpec { id: model.clone(), recipes: vec![recipe.clone()] });
    view.recipes.push(Recipe {
        id: recipe,
        model,
        engine: EngineKind::Vllm,
        build: String::new(),
        quant: String::new(),
        kv: KvType::F16,
        on: RunsOn::Gpu,
        tp,
        ctx: 8192,
        parallel: 4,
        min_cc: ComputeCapability::default(),
        sleep: if sleeps { SleepLevel::Host } else { SleepLevel::Never },
        flags: Vec::new(),
    });
}

/// Only where it would have been admitted.
fn add_engine(view: &mut View, nth: usize, (model, device, state, inflight, age, rate_milli, pinned): EngineSeed) {
    let recipe = view.recipes[model % view.recipes.len()].clone();
    let footprint = view.footprints[&recipe.id].clone();
    let gpus = view.devices.len();
    let asleep = state == 9 && recipe.sleep == SleepLevel::Host;
    if usize::from(recipe.tp) > gpus {
        return;
    }
    let first = device % (gpus - usize::from(recipe.tp) + 1);
    let devices: Vec<&Device> = view.devices.iter().skip(first).take(usize::from(recipe.tp)).collect();
    let shards = devices.iter().zip(footprint.claims().zip(&footprint.shards));
    let mut claims: Vec<(PoolId, Bytes)> = shards
        .map(|(device, (claim, parts))| (device.pool.clone(), if asleep { parts.context } else { claim }))
        .collect();
    let host = if asleep { footprint.claims().sum() } else { footprint.host };
    if host > Bytes::ZERO {
        claims.push((PoolId::new("host"), host));
    }
    let peaks: Vec<_> = claims.iter().map(|(pool, claim)| (pool.clone(), footprint.peak(*claim))).collect();
    let changes = state < 4;
    let locked = claims.iter().any(|(pool, _)| {
        view.engines.iter().any(|other| other.seat.claims.iter().any(|(id, _)| id == pool) && changing(other))
    });
    if changes && locked || !admits(&accounts(view, &Policy::default()), &claims, &peaks) {
        return;
    }
    let state = match state {
        0 => EngineState::Loading,
        1 => EngineState::Stopping,
        2 => EngineState::Reclaiming,
        3 => EngineState::Spawning,
        4 => EngineState::Draining { until: NOW + Millis::secs(age) },
        5 => EngineState::Draining { until: NOW.since(Millis::secs(age)) },
        6 => EngineState::Backoff { until: NOW + Millis::secs(age) },
        9 if asleep => EngineState::Sleeping(SleepLevel::Host),
        _ => EngineState::Ready,
    };
    let absent = matches!(state, EngineState::Backoff { .. } | EngineState::Spawning);
    let observed = if absent { Vec::new() } else { claims.clone() };
    for (id, bytes) in &observed {
        for pool in view.pools.iter_mut().filter(|pool| pool.id == *id) {
            pool.used += *bytes;
            pool.free = Bytes::there(i128::from(pool.free.over(*bytes)));
        }
    }
    let id = EngineId::new(format!("{}.{}", recipe.model, nth + 1));
    view.engines.push(Engine {
        seat: Seat {
            engine: id.clone(),
            model: recipe.model.clone(),
            recipe: recipe.id.clone(),
            devices: devices.into_iter().map(|device| device.id.clone()).collect(),
            claims,
            peaks,
        },
        id,
        epoch: Epoch(u64::try_from(nth).unwrap() + 1),
        state,
        observed,
        inflight: if matches!(state, EngineState::Ready | EngineState::Draining { .. }) { inflight } else { 0 },
        warm_sessions: inflight,
        rate_milli,
        reload: footprint.load,
        prefill: Millis::secs(2),
        ready_at: NOW.since(Millis::secs(age)),
        last_used: NOW,
        pinned: pinned == 0,
    });
}

fn changing(engine: &Engine) -> bool {
    !matches!(engine.state, EngineState::Ready | EngineState::Sleeping(_) | EngineState::Backoff { .. })
}

/// Others take memory, a driver stops answering, a device breaks.
fn happen(view: &mut View, nth: usize, foreign: Bytes, health: u8) {
    let pool = &mut view.pools[nth];
    let foreign = foreign.min(Bytes::there(pool.free.signed() - pool.margin.signed()));
    pool.used += foreign;
    pool.free = Bytes::there(i128::from(pool.free.over(foreign)));
    match health {
        0 => pool.sampled = NOW.since(Millis::secs(3)),
        1 => pool.frozen = Some("the guard says so".to_owned()),
        2 => view.devices[nth].health = Health::Quarantined("XID 74".to_owned()),
        3 => view.devices[nth].health = Health::Lost,
        4 => view.devices[nth].health = Health::Waiting(WaitingFor::Fabric),
        5 => view.devices[nth].health = Health::Degraded("row remap pending".to_owned()),
        _ => {}
    }
}

fn standing_barrier(view: &View, nth: usize, seconds: u64) -> Option<Barrier> {
    let recipe = &view.recipes[nth % view.recipes.len()];
    let devices: Vec<DeviceId> =
        view.devices.iter().take(usize::from(recipe.tp)).map(|device| device.id.clone()).collect();
    let there = |engine: &&Engine| engine.seat.devices.iter().any(|id| devices.contains(id));
    let engines: Vec<EngineId> = view.engines.iter().filter(there).map(|engine| engine.id.clone()).collect();
    let until = NOW.since(Millis::secs(60)) + Millis::secs(seconds);
    (devices.len() == usize::from(recipe.tp)).then(|| Barrier {
        model: recipe.model.clone(),
        recipe: recipe.id.clone(),
        devices,
        engines,
        until,
    })
}

fn want((model, owner, waiting, age, most): WantSeed, models: usize) -> Want {
    Want {
        model: ModelId::new(format!("m{}", model % models)),
        owner: OwnerId::new(format!("o{owner}")),
        class: if owner == 2 { Class::Batch } else { Class::Interactive },
        waiting,
        oldest: NOW.since(Millis::secs(age)),
        replicas: (u8::from(waiting == 0), most),
    }
}

/// One want for each owner, class and model, as the gateway's queues have it.
fn unique(mut demand: Vec<Want>) -> Vec<Want> {
    demand.sort_by(|a, b| (&a.owner, &a.model).cmp(&(&b.owner, &b.model)));
    demand.dedup_by(|a, b| (&a.owner, &a.model) == (&b.owner, &b.model));
    demand
}
