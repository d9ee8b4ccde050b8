//! What loads teach about the next ones: by how much they were above the estimate, and how long they took.

use std::collections::{BTreeMap, BTreeSet};

use fettle_placement::device::{Attribution, Device, DeviceKind, PoolKind};
use fettle_placement::engine::on_pool;
use fettle_placement::estimate::residuals::{Kind, Load, Residuals};
use fettle_placement::footprint::{Footprint, Slack, Source};
use fettle_placement::id::{PoolId, RecipeId};
use fettle_placement::memory_ledger::capacity;
use fettle_placement::quantity::{Bytes, Millis};
use fettle_placement::recipe::{EngineKind, RunsOn};
use serde::{Deserialize, Serialize};

use super::catalog::LocalRecipe;
use super::engine::Held;
use crate::ports::serving::World;

/// One load on one device, as it was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lesson {
    pub recipe: RecipeId,
    pub kind: Kind,
    pub load: Load,
    pub took: Millis,
}

#[derive(Debug, Default)]
pub(super) struct Lessons {
    residuals: Residuals,
    took: BTreeMap<RecipeId, Millis>,
}

impl Lessons {
    /// How long it took last.
    pub(super) fn took(&self, local: &LocalRecipe) -> Millis {
        self.took.get(&local.recipe.id).copied().unwrap_or(local.footprint.load)
    }

    pub(super) fn note(&mut self, Lesson { recipe, kind, load, took }: Lesson) {
        self.residuals.note(kind, load);
        self.took.insert(recipe, took);
    }

    /// What the next load is taken to need.
    pub(super) fn footprint(&self, local: &LocalRecipe, world: &World) -> Footprint {
        let mut footprint = local.footprint.clone();
        footprint.load = self.took(local);
        if !teaches(local) {
            return footprint;
        }
        let estimate: Bytes = footprint.shards.iter().map(|parts| parts.sum()).max().unwrap_or_default();
        let gpus = world.devices.iter().filter(|device| device.kind != DeviceKind::Cpu);
        let names: BTreeSet<&str> = gpus.map(|device| device.name.as_str()).collect();
        let kinds: Vec<Kind> = names.into_iter().map(|name| kind(local, name)).collect();
        let loads = kinds.iter().map(|kind| self.residuals.loads(kind)).sum::<usize>();
        if loads > 0 {
            // It may come to any of them; the one of which least is known decides.
            let slacks = kinds.iter().map(|kind| self.residuals.slack(kind, footprint.slack));
            let learned = slacks.max_by_key(|slack| slack.on(estimate)).unwrap_or(footprint.slack);
            footprint.slack = no_more_than_there_is(estimate, footprint.slack, learned, world);
            footprint.source = Source::Observed { loads: u32::try_from(loads).unwrap_or(u32::MAX) };
        }
        footprint
    }
}

/// What was learned makes no model too large for a device that it would be tried on otherwise: it loaded once.
fn no_more_than_there_is(estimate: Bytes, first: Slack, learned: Slack, world: &World) -> Slack {
    let largest = world.pools.iter().filter(|pool| pool.kind != PoolKind::Host).map(capacity).max().unwrap_or_default();
    let over = learned.on(estimate).over(largest);
    if over <= 0 || first.on(estimate) > largest {
        return learned;
    }
    let fits = Slack { bytes: Bytes::there(learned.bytes.signed() - i128::from(over)), ..learned };
    if fits.on(estimate) > largest { first } else { fits }
}

/// Whether what an engine takes says anything of its estimate: one that is told a limit takes what it is told, and memory of the
/// host is shared with everybody.
fn teaches(local: &LocalRecipe) -> bool {
    let unlimited = matches!(local.recipe.engine, EngineKind::LlamaServer | EngineKind::Ollama | EngineKind::Command);
    unlimited && local.recipe.on == RunsOn::Gpu && local.footprint.source == Source::Formula
}

fn kind(local: &LocalRecipe, device: &str) -> Kind {
    let recipe = &local.recipe;
    Kind {
        engine: recipe.engine,
        build: recipe.build.clone(),
        // Of another model the same engine may take anything: its context, its cache and its arguments are others.
        architecture: recipe.id.to_string(),
        quant: recipe.quant.clone(),
        kv: recipe.kv,
        tp: recipe.tp,
        device: device.to_owned(),
        driver_major: 0,
    }
}

/// What an engine has taught that has just loaded and was seen since. `held.most` is what it took at most.
pub(super) fn lessons(held: &Held, local: &LocalRecipe, world: &World) -> Vec<Lesson> {
    let devices = held.seat.devices.iter().filter_map(|id| world.devices.iter().find(|device| device.id == *id));
    let devices: Vec<&Device> = devices.collect();
    let pools: BTreeSet<_> = devices.iter().map(|device| &device.pool).collect();
    // Of shards in one pool nobody knows which took what; nor, where bytes are not known by process, what was somebody else's.
    let exact = |id: &&PoolId| world.pools.iter().any(|pool| pool.id == **id && pool.attribution == Attribution::Exact);
    if !teaches(local) || pools.len() != local.footprint.shards.len() || held.adopted || !pools.iter().all(exact) {
        return Vec::new();
    }
    let lesson = |(device, parts): (&&Device, &fettle_placement::footprint::Parts)| {
        let unified = world.pools.iter().any(|pool| pool.id == device.pool && pool.kind == PoolKind::Unified);
        let host = if unified { local.footprint.host } else { Bytes::ZERO };
        let peak = Bytes::there(on_pool(&held.most, &device.pool).signed() - host.signed());
        // A driver that tells nothing teaches nothing.
        (peak > Bytes::ZERO).then(|| Lesson {
            recipe: local.recipe.id.clone(),
            kind: kind(local, &device.name),
            load: Load { estimate: parts.sum(), peak },
            took: held.reload,
        })
    };
    devices.iter().zip(&local.footprint.shards).filter_map(lesson).collect()
}
