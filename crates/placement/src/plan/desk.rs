//! The facts laid out for one plan, and what the plan has done to them so far: a want sees what those before it have left.

use std::collections::BTreeMap;

use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

use super::evict;
use super::sites::Site;
use crate::device::{Device, DeviceKind, Pool, PoolKind};
use crate::engine::{Engine, EngineState, Presence};
use crate::id::{DeviceId, EngineId, ModelId, PoolId, RecipeId};
use crate::memory_ledger::{Account, capacity, hold};
use crate::placement::{Cost, How, Intent, Reason};
use crate::quantity::{Bytes, Millis};
use crate::recipe::{ModelSpec, Recipe};
use crate::reclaim::RECLAIM_DEADLINE;
use crate::view::{Policy, View, Want};

/// Memory has come back by then, or is given up.
pub(super) const LEAVING: Millis = RECLAIM_DEADLINE;
/// Of a load that takes longer than it should have.
const OVERDUE: Millis = Millis::secs(5);
/// A model that is asked for once in this time is as likely as not to be missed at once. In simulation the mean wait was shortest
/// between 3 and 30 seconds, and some 8 % longer with a thousand.
const SOON: Millis = Millis::secs(10);
/// So much of a rate (requests in a thousand seconds) times a span (milliseconds) is one request.
const RATE_UNIT: u64 = 1_000_000;

pub(super) struct Desk<'v> {
    pub(super) view: &'v View,
    pub(super) policy: &'v Policy,
    /// All lists are in the order of ids, and the plan speaks of their places.
    pub(super) devices: Vec<Spot<'v>>,
    pub(super) pools: Vec<Vault<'v>>,
    pub(super) engines: Vec<&'v Engine>,
    wanted: FxHashMap<&'v ModelId, Wanted<'v>>,
    /// Engines that may have to end: on a device that is not well, drained, or unused where that counts.
    pub(super) doubtful: Vec<usize>,
    /// The ids of a rack begin alike: to search for each engine's among a thousand was a third of a decision.
    device_places: FxHashMap<&'v DeviceId, usize>,
    pool_places: FxHashMap<&'v PoolId, usize>,
    pub(super) started: BTreeMap<&'v ModelId, Vec<(EngineId, Millis)>>,
    /// Engines that this plan has given a way to go.
    pub(super) left: Vec<usize>,
    /// Drained for nothing; they take requests again.
    pub(super) resumed: Vec<usize>,
    /// Pools that `kept_for` was set of.
    pub(super) kept: Vec<usize>,
    /// Where host bytes are counted: the host's pool, else the unified one.
    pub(super) host: Option<usize>,
    pub(super) intents: Vec<Intent>,
    pub(super) reasons: Vec<Reason>,
}

/// What there is of a model that somebody wants.
#[derive(Default)]
struct Wanted<'v> {
    /// In the order in which they are declared.
    recipes: Vec<&'v Recipe>,
    /// Places of its engines.
    engines: Vec<usize>,
}

impl<'v> Wanted<'v> {
    /// In one pass over each list of the view, of which most is about other models.
    fn of(view: &'v View, demand: &'v [Want]) -> FxHashMap<&'v ModelId, Self> {
        let mut wanted: FxHashMap<&ModelId, Self> = demand.iter().map(|want| (&want.model, Self::default())).collect();
        let specs: Vec<&ModelSpec> = view.models.iter().filter(|spec| wanted.contains_key(&spec.id)).collect();
        let ids: FxHashSet<&RecipeId> = specs.iter().flat_map(|spec| &spec.recipes).collect();
        let recipes: FxHashMap<&RecipeId, &Recipe> =
            view.recipes.iter().filter(|recipe| ids.contains(&recipe.id)).map(|recipe| (&recipe.id, recipe)).collect();
        for spec in specs {
            if let Some(wanted) = wanted.get_mut(&spec.id) {
                wanted.recipes = spec.recipes.iter().filter_map(|id| recipes.get(id).copied()).collect();
            }
        }
        wanted
    }
}

pub(super) struct Spot<'v> {
    pub(super) device: &'v Device,
    /// `None`: its pool is not in the view, so nothing is known of its memory.
    pub(super) pool: Option<usize>,
    /// It is cut into slices, which take its engines.
    pub(super) sliced: bool,
}

pub(super) struct Vault<'v> {
    pub(super) pool: &'v Pool,
    pub(super) account: Account,
    /// Those with a claim or bytes there.
    pub(super) tenants: SmallVec<[Tenant; 4]>,
    /// What it has for one engine when nothing but its reserves is there.
    pub(super) capacity: Bytes,
    /// The load or the leaving that goes on there; nothing else begins before its end.
    pub(super) changing: Option<Change>,
    /// The engine there that still answers its last requests; only those it makes room for begin before its end.
    pub(super) draining: Option<Change>,
    /// Being emptied for somebody else.
    pub(super) kept_for: Option<(&'v ModelId, Millis)>,
}

/// What an eviction has to know of an engine, side by side with its neighbours': thousands are looked at in a decision.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tenant {
    pub(super) engine: usize,
    pub(super) hold: Bytes,
    pub(super) cost: Cost,
    pub(super) last_used: Millis,
    /// It is idle, and nothing of its own keeps it.
    pub(super) idle: bool,
}

impl Vault<'_> {
    pub(super) fn held_by(&self, engine: usize) -> Bytes {
        self.tenants.iter().find(|tenant| tenant.engine == engine).map(|tenant| tenant.hold).unwrap_or_default()
    }
}

/// Of several the last to end counts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Change {
    /// When it should be over.
    pub(super) until: Millis,
    pub(super) by: EngineId,
}

impl Change {
    pub(super) fn note(change: &mut Option<Self>, until: Millis, by: &EngineId) {
        if change.as_ref().is_none_or(|known| known.until < until) {
            *change = Some(Self { until, by: by.clone() });
        }
    }
}

fn sorted<'v, T, K: Ord + 'v>(list: &'v [T], id: impl Fn(&'v T) -> K) -> Vec<&'v T> {
    let mut sorted: Vec<&T> = list.iter().collect();
    sorted.sort_by_key(|item| id(item));
    sorted
}

impl<'v> Desk<'v> {
    pub(super) fn new(view: &'v View, demand: &'v [Want], policy: &'v Policy) -> Self {
        let pools = sorted(&view.pools, |pool| &pool.id);
        let pool_places: FxHashMap<&PoolId, usize> =
            pools.iter().enumerate().map(|(place, pool)| (&pool.id, place)).collect();
        let pool_at = |id: &PoolId| pool_places.get(id).copied();
        let mut parents: Vec<&DeviceId> = view.devices.iter().filter_map(parent).collect();
        parents.sort();
        let devices: Vec<Spot> = sorted(&view.devices, |device| &device.id)
            .into_iter()
            .map(|device| Spot {
                device,
                pool: pool_at(&device.pool),
                sliced: parents.binary_search(&&device.id).is_ok(),
            })
            .collect();
        let device_places: FxHashMap<&DeviceId, usize> =
            devices.iter().enumerate().map(|(place, spot)| (&spot.device.id, place)).collect();
        let mut takes_loads = vec![false; pools.len()];
        for spot in &devices {
            if let Some(pool) = spot.pool {
                takes_loads[pool] |= spot.device.health.takes_loads();
            }
        }
        let host = pools
            .iter()
            .position(|pool| pool.kind == PoolKind::Host)
            .or_else(|| pools.iter().position(|pool| pool.kind == PoolKind::Unified));
        let mut vaults: Vec<Vault> = pools
            .iter()
            .zip(takes_loads)
            .map(|(pool, takes_loads)| Vault {
                pool,
                account: Account::empty(pool, takes_loads, view.now, policy),
                tenants: SmallVec::new(),
                capacity: capacity(pool),
                changing: pool.lock.clone().map(|by| Change { until: view.now + LEAVING, by }),
                draining: None,
                kept_for: None,
            })
            .collect();

        let engines = sorted(&view.engines, |engine| &engine.id);
        let mut wanted = Wanted::of(view, demand);
        let mut doubtful = Vec::new();
        let well = |id| device_places.get(id).is_some_and(|place| devices[*place].device.health.serves());
        for (nth, engine) in engines.iter().enumerate() {
            if let Some(wanted) = wanted.get_mut(&engine.seat.model) {
                wanted.engines.push(nth);
            }
            let draining = matches!(engine.state, EngineState::Draining { .. });
            if draining || policy.idle_ttl.is_some() || !engine.seat.devices.iter().all(well) {
                doubtful.push(nth);
            }
            let changing = changing_until(engine, view.now);
            let (cost, idle) = (cost(engine), evict::is_idle(engine, view.now, policy));
            let claims = &engine.seat.claims;
            let beyond = engine.observed.iter().filter(|(seen, _)| claims.iter().all(|(id, _)| id != seen));
            for (id, _) in claims.iter().chain(beyond) {
                let Some(vault) = pool_at(id).map(|place| &mut vaults[place]) else { continue };
                let hold = vault.account.enter(engine, id);
                vault.tenants.push(Tenant { engine: nth, hold, cost, last_used: engine.last_used, idle });
                if let Some(until) = changing.filter(|_| vault.pool.kind.locks()) {
                    Change::note(&mut vault.changing, until, &engine.id);
                }
                if let EngineState::Draining { until } = engine.state
                    && vault.pool.kind.locks()
                {
                    Change::note(&mut vault.draining, until, &engine.id);
                }
            }
        }
        Self {
            view,
            policy,
            devices,
            pools: vaults,
            engines,
            wanted,
            doubtful,
            device_places,
            pool_places,
            started: BTreeMap::new(),
            left: Vec::new(),
            resumed: Vec::new(),
            kept: Vec::new(),
            host,
            intents: Vec::new(),
            reasons: Vec::new(),
        }
    }

    /// The recipes of a model that somebody wants, in the order in which they are declared.
    pub(super) fn recipes_of(&self, model: &ModelId) -> Vec<&'v Recipe> {
        self.wanted.get(model).map(|wanted| wanted.recipes.clone()).unwrap_or_default()
    }

    fn of_model(&self, model: &ModelId) -> &[usize] {
        self.wanted.get(model).map(|wanted| wanted.engines.as_slice()).unwrap_or_default()
    }

    /// The name of a model that somebody wants, for as long as the view lives.
    pub(super) fn wanted(&self, model: &ModelId) -> Option<&'v ModelId> {
        self.wanted.get_key_value(model).map(|(id, _)| *id)
    }

    /// How many engines of a model take requests, and which ones soon will, with the time until then.
    pub(super) fn at_work_for(&self, model: &ModelId) -> (usize, Vec<(EngineId, Millis)>) {
        let mut ready = 0;
        let mut underway = self.started.get(model).cloned().unwrap_or_default();
        for &nth in self.of_model(model) {
            let engine = self.engines[nth];
            if self.left.contains(&nth) || !self.serves(engine) {
                continue;
            }
            match engine.state {
                EngineState::Ready => ready += 1,
                EngineState::Draining { .. } if self.resumed.contains(&nth) => ready += 1,
                EngineState::Reserved | EngineState::Spawning | EngineState::Loading => {
                    let over = changing_until(engine, self.view.now).unwrap_or(self.view.now);
                    underway.push((engine.id.clone(), over.since(self.view.now)));
                }
                EngineState::Draining { .. }
                | EngineState::Stopping
                | EngineState::Reclaiming
                | EngineState::Gone
                | EngineState::Sleeping(_)
                | EngineState::Backoff { .. } => {}
            }
        }
        (ready, underway)
    }

    /// Engines that sleep and could be woken, of one recipe.
    pub(super) fn sleepers_of(&self, recipe: &Recipe) -> impl Iterator<Item = usize> {
        self.of_model(&recipe.model).iter().copied().filter(|nth| {
            let engine = self.engines[*nth];
            let asleep = matches!(engine.state, EngineState::Sleeping(_));
            asleep && engine.seat.recipe == recipe.id && !self.left.contains(nth)
        })
    }

    /// Until when no engine of this recipe is to be tried again.
    pub(super) fn backoff_of(&self, recipe: &Recipe) -> Option<Millis> {
        let backoffs = self.of_model(&recipe.model).iter().filter_map(|nth| match self.engines[*nth] {
            Engine { state: EngineState::Backoff { until }, seat, .. } if seat.recipe == recipe.id => Some(*until),
            _ => None,
        });
        backoffs.max().filter(|until| *until > self.view.now)
    }

    fn serves(&self, engine: &Engine) -> bool {
        engine.seat.devices.iter().all(|id| self.spot(id).is_none_or(|spot| spot.device.health.serves()))
    }

    /// The first of its devices on which nothing may go on, or that is not there any more.
    pub(super) fn unhealthy_device_of(&self, engine: &'v Engine) -> Option<&'v DeviceId> {
        engine.seat.devices.iter().find(|id| self.spot(id).is_none_or(|spot| !spot.device.health.serves()))
    }

    pub(super) fn spot(&self, id: &DeviceId) -> Option<&Spot<'v>> {
        self.place_of(id).map(|place| &self.devices[place])
    }

    pub(super) fn place_of(&self, id: &DeviceId) -> Option<usize> {
        self.device_places.get(id).copied()
    }

    fn pool_place(&self, id: &PoolId) -> Option<usize> {
        self.pool_places.get(id).copied()
    }

    /// The pools that an engine has claims or bytes in.
    pub(super) fn pools_of(&self, engine: &Engine) -> Vec<usize> {
        let ids = engine.seat.claims.iter().chain(&engine.observed).map(|(id, _)| id);
        let mut places: Vec<usize> = ids.filter_map(|id| self.pool_place(id)).collect();
        places.sort_unstable();
        places.dedup();
        places
    }

    pub(super) fn hold(&self, engine: usize, pool: usize) -> Bytes {
        hold(self.engines[engine], &self.pools[pool].pool.id)
    }

    pub(super) fn has_left(&self, engine: usize) -> bool {
        self.left.contains(&engine)
    }

    pub(super) fn names(&self, engines: &[usize]) -> Vec<EngineId> {
        engines.iter().map(|nth| self.engines[*nth].id.clone()).collect()
    }

    pub(super) fn device_ids(&self, site: &Site) -> Vec<DeviceId> {
        site.devices.iter().map(|place| self.devices[*place].device.id.clone()).collect()
    }

    pub(super) fn making_room(&self, victims: &[usize], cost: Cost) -> How {
        How::MakingRoom { victims: self.names(victims), cost }
    }
}

/// What others pay when an engine goes: the load that the next request waits for, as likely as it comes soon, and the prefixes
/// that are computed again. Requests after it wait for the same load, so a model that is asked for without a pause costs no more
/// than its load. Who is on the way out costs nothing more.
pub(super) fn cost(engine: &Engine) -> Cost {
    if engine.state.presence() == Presence::Leaving {
        return Cost::default();
    }
    let soon = u64::from(engine.rate_milli).saturating_mul(SOON.get());
    let permille = soon.saturating_mul(1000) / (soon + RATE_UNIT);
    let load = engine.reload.get().saturating_mul(permille) / 1000;
    let warm = u64::from(engine.warm_sessions).saturating_mul(engine.prefill.get());
    Cost(load.saturating_add(warm))
}

fn parent(device: &Device) -> Option<&DeviceId> {
    match &device.kind {
        DeviceKind::Slice { parent, .. } => Some(parent),
        DeviceKind::Gpu | DeviceKind::Cpu => None,
    }
}

/// When an engine that changes the memory of its pools should have done so.
fn changing_until(engine: &Engine, now: Millis) -> Option<Millis> {
    match engine.state {
        EngineState::Reserved => Some(now + LEAVING + engine.reload),
        EngineState::Spawning | EngineState::Loading => Some((engine.ready_at + engine.reload).max(now + OVERDUE)),
        EngineState::Stopping | EngineState::Reclaiming => Some(now + LEAVING),
        EngineState::Ready
        | EngineState::Draining { .. }
        | EngineState::Gone
        | EngineState::Sleeping(_)
        | EngineState::Backoff { .. } => None,
    }
}
