//! What others do, to compare with: loads one at a time for the whole machine, the least recently used engine goes, so many
//! engines and no more, the emptiest device first. They see what the planner sees, and count memory by the same ledger.

use super::Decide;
use crate::engine::{Engine, EngineState, Presence, Seat};
use crate::footprint::Footprint;
use crate::id::{EngineId, PoolId};
use crate::memory_ledger::{Account, hold};
use crate::placement::{Intent, Placement};
use crate::quantity::Bytes;
use crate::view::{Policy, View, Want};

/// A scheduler of single devices.
#[derive(Debug, Clone, Copy)]
pub struct Baseline {
    pub loads: Loads,
    pub fit: Fit,
    /// More engines than this are never there at once.
    pub most: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loads {
    /// One for the whole machine; whoever is next waits for it, and everybody else behind.
    OneByOne,
    /// One in each pool; who cannot be placed is passed over.
    Parallel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    Best,
    Worst,
}

impl Baseline {
    /// As ollama schedules.
    pub const GLOBAL_SERIAL: Self = Self { loads: Loads::OneByOne, fit: Fit::Worst, most: None };
    pub const LRU: Self = Self { loads: Loads::Parallel, fit: Fit::Best, most: None };
    pub const WORST_FIT: Self = Self { loads: Loads::Parallel, fit: Fit::Worst, most: None };

    /// Three a device, as ollama's default is.
    pub const fn lru_by_count(devices: usize) -> Self {
        Self { loads: Loads::Parallel, fit: Fit::Best, most: Some(3 * devices) }
    }
}

struct Place<'v> {
    device: usize,
    pool: &'v PoolId,
    account: Account,
    changing: bool,
}

impl Decide for Baseline {
    fn decide(&mut self, view: &mut View, demand: &[Want]) -> Placement {
        let mut placement = Placement::default();
        let mut gone: Vec<EngineId> = Vec::new();
        let mut wants: Vec<&Want> = demand.iter().filter(|want| want.waiting > 0).collect();
        wants.sort_by_key(|want| (want.oldest, &want.model));
        let mut places = places(view);
        for want in wants {
            let present = view.engines.iter().filter(|engine| engine.state.presence() != Presence::Absent);
            let there = present.clone().any(|engine| engine.seat.model == want.model && !gone.contains(&engine.id));
            let chosen = |intent: &Intent| matches!(intent, Intent::Load(seat) if seat.model == want.model);
            if there || placement.intents.iter().any(chosen) {
                continue;
            }
            if self.loads == Loads::OneByOne && (places.iter().any(|place| place.changing)) {
                break;
            }
            let Some(recipe) = view.recipes.iter().find(|recipe| recipe.model == want.model) else { continue };
            let backoff = |engine: &Engine| {
                matches!(engine.state, EngineState::Backoff { until } if until > view.now)
                    && engine.seat.recipe == recipe.id
            };
            let footprint = &view.footprints[&recipe.id];
            let claim = footprint.claims().next().unwrap_or_default();
            let count = present.count() + placement.intents.iter().filter(|one| matches!(one, Intent::Load(_))).count()
                - gone.len();
            let full = self.most.is_some_and(|most| count >= most);
            let found = if view.engines.iter().any(backoff) {
                None
            } else {
                self.free(&places, claim)
                    .filter(|_| !full)
                    .map(|nth| (nth, Vec::new()))
                    .or_else(|| self.by_use(view, &places, &gone, claim, full))
            };
            let Some((nth, victims)) = found else {
                if self.loads == Loads::OneByOne {
                    break;
                }
                continue;
            };
            for victim in &victims {
                placement.intents.push(Intent::Stop(victim.id.clone(), victim.epoch));
                gone.push(victim.id.clone());
            }
            let place = &mut places[nth];
            place.changing = true;
            let device = &view.devices[place.device];
            placement.intents.push(Intent::Load(seat(view, want, recipe.id.clone(), device, footprint)));
        }
        placement
    }
}

fn places<'v>(view: &'v View) -> Vec<Place<'v>> {
    let policy = Policy::default();
    let place = |(device, pool): (usize, &'v PoolId)| {
        let facts = view.pools.iter().find(|known| known.id == *pool)?;
        let account = Account::open(facts, &view.devices[device..=device], &view.engines, view.now, &policy);
        let changes = |engine: &&Engine| {
            let presence = engine.state.presence();
            presence != Presence::Resident
                && presence != Presence::Absent
                && engine.seat.claims.iter().any(|(id, _)| id == pool)
        };
        Some(Place { device, pool, account, changing: view.engines.iter().any(|engine| changes(&engine)) })
    };
    view.devices.iter().enumerate().map(|(nth, device)| (nth, &device.pool)).filter_map(place).collect()
}

impl Baseline {
    fn free(self, places: &[Place], claim: Bytes) -> Option<usize> {
        let fitting = places.iter().enumerate().filter(|(_, place)| !place.changing && place.account.avail() >= claim);
        match self.fit {
            Fit::Best => fitting.min_by_key(|(nth, place)| (place.account.avail(), *nth)),
            Fit::Worst => fitting.max_by_key(|(nth, place)| (place.account.avail(), std::cmp::Reverse(*nth))),
        }
        .map(|(nth, _)| nth)
    }

    /// On each device the idle engines that were used longest ago, until there is room; of the devices the one whose last
    /// victim was used longest ago.
    fn by_use<'v>(
        self,
        view: &'v View,
        places: &[Place],
        gone: &[EngineId],
        claim: Bytes,
        full: bool,
    ) -> Option<(usize, Vec<&'v Engine>)> {
        let on = |place: &Place| {
            let idle = |engine: &&Engine| engine.state == EngineState::Ready && engine.inflight == 0;
            let here = |engine: &&Engine| engine.seat.claims.iter().any(|(id, _)| id == place.pool);
            let mut idle: Vec<&Engine> =
                view.engines.iter().filter(idle).filter(here).filter(|one| !gone.contains(&one.id)).collect();
            idle.sort_by_key(|engine| (engine.last_used, &engine.id));
            let mut room = place.account.room();
            let mut victims = Vec::new();
            for engine in idle {
                if room >= claim.signed() && !(full && victims.is_empty()) {
                    break;
                }
                room += hold(engine, place.pool).signed();
                victims.push(engine);
            }
            (room >= claim.signed() && !victims.is_empty()).then_some(victims)
        };
        let places = places.iter().enumerate().filter(|(_, place)| !place.changing);
        places
            .filter_map(|(nth, place)| Some((nth, on(place)?)))
            .min_by_key(|(nth, victims)| (victims.last().map(|engine| engine.last_used), *nth))
    }
}

fn seat(
    view: &View,
    want: &Want,
    recipe: crate::id::RecipeId,
    device: &crate::device::Device,
    footprint: &Footprint,
) -> Seat {
    let claim = footprint.claims().next().unwrap_or_default();
    let name = |number: u32| EngineId::new(format!("{}.{number}", want.model));
    let number = (1..).find(|number| view.engines.iter().all(|engine| engine.id != name(*number))).unwrap_or_default();
    Seat {
        engine: name(number),
        model: want.model.clone(),
        recipe,
        devices: vec![device.id.clone()],
        claims: vec![(device.pool.clone(), claim)],
        peaks: vec![(device.pool.clone(), footprint.peak(claim))],
    }
}
