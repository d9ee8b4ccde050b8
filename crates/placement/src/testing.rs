//! Small worlds for the tests of this crate.

use crate::device::{Attribution, ComputeCapability, Device, DeviceKind, Health, Pool, PoolKind};
use crate::engine::{Engine, EngineState, Seat};
use crate::id::{DeviceId, EngineId, Epoch, ModelId, PoolId, RecipeId};
use crate::quantity::{Bytes, Millis};
use crate::view::Policy;

/// A healthy GPU of Hopper, alone; its pool is `gpu:<name>`.
pub(crate) fn device(name: &str) -> Device {
    Device {
        id: DeviceId::new(name),
        kind: DeviceKind::Gpu,
        name: "H200".to_owned(),
        cc: ComputeCapability(9, 0),
        numa: None,
        pool: PoolId::new(format!("gpu:{name}")),
        island: None,
        tp_ok: true,
        celsius: 40,
        health: Health::Ok,
    }
}

/// The empty pool of such a GPU, sampled at the beginning of time.
pub(crate) fn pool(name: &str, gib: u64) -> Pool {
    let cap = Bytes::gib(gib);
    Pool {
        id: PoolId::new(format!("gpu:{name}")),
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
    }
}

/// An idle engine that takes all that it claims; model and recipe have its name up to the first dot.
pub(crate) fn engine(name: &str, on: &str, claim: Bytes) -> Engine {
    let model = name.split('.').next().unwrap_or(name);
    let claims = vec![(PoolId::new(format!("gpu:{on}")), claim)];
    Engine {
        id: EngineId::new(name),
        epoch: Epoch(1),
        seat: Seat {
            engine: EngineId::new(name),
            model: ModelId::new(model),
            recipe: RecipeId::new(model),
            devices: vec![DeviceId::new(on)],
            peaks: claims.clone(),
            claims: claims.clone(),
        },
        state: EngineState::Ready,
        observed: claims,
        inflight: 0,
        warm_sessions: 0,
        rate_milli: 0,
        reload: Millis::secs(20),
        prefill: Millis::secs(2),
        ready_at: Millis::ZERO,
        last_used: Millis::ZERO,
        pinned: false,
    }
}
