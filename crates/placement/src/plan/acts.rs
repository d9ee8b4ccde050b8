//! What a plan does to the facts on its desk: promises memory, locks pools, sends engines away. Each act is an intent, and the
//! next want sees what it left.

use super::desk::{Change, Desk, LEAVING, cost};
use super::sites::Site;
use crate::device::PoolKind;
use crate::engine::{Engine, EngineState, Seat};
use crate::id::{EngineId, Epoch, ModelId};
use crate::placement::{Barrier, Intent, Reason};
use crate::quantity::{Bytes, Millis};
use crate::recipe::{Recipe, SleepLevel};

/// An engine that was given a seat.
pub(super) enum Seated {
    New(Seat),
    Woken(EngineId, Epoch),
}

impl Seated {
    pub(super) fn id(&self) -> &EngineId {
        match self {
            Self::New(seat) => &seat.engine,
            Self::Woken(id, _) => id,
        }
    }

    pub(super) fn into_intent(self) -> Intent {
        match self {
            Self::New(seat) => Intent::Load(seat),
            Self::Woken(id, epoch) => Intent::Wake(id, epoch),
        }
    }
}

impl<'v> Desk<'v> {
    pub(super) fn resume(&mut self, engine: usize) {
        if !self.has_left(engine) && !self.resumed.contains(&engine) {
            self.resumed.push(engine);
            self.intents.push(Intent::Resume(self.engines[engine].id.clone(), self.engines[engine].epoch));
        }
    }

    /// What a barrier empties is out of reach for the next want, unless it is the barrier's own.
    pub(super) fn keep_for(&mut self, barrier: Option<&Barrier>) {
        for place in std::mem::take(&mut self.kept) {
            self.pools[place].kept_for = None;
        }
        let Some(barrier) = barrier else { return };
        let Some(model) = self.wanted(&barrier.model) else { return };
        for id in &barrier.devices {
            let place = self.place_of(id).and_then(|place| self.devices[place].pool);
            if let Some(place) = place {
                self.pools[place].kept_for = Some((model, barrier.until));
                self.kept.push(place);
            }
        }
    }

    /// Promises a site's memory and locks its pools. A new engine gets the lowest number that its model has free.
    pub(super) fn seat(&mut self, recipe: &'v Recipe, site: &Site, sleeper: Option<usize>, load: Millis) -> Seated {
        let (mut claims, mut peaks) = (Vec::new(), Vec::new());
        for need in &site.needs {
            let vault = &mut self.pools[need.pool];
            vault.account.promise(need.bytes());
            claims.push((vault.pool.id.clone(), need.claim));
            peaks.push((vault.pool.id.clone(), need.bytes()));
        }
        let seated = match sleeper {
            Some(nth) => {
                self.left.push(nth);
                Seated::Woken(self.engines[nth].id.clone(), self.engines[nth].epoch)
            }
            None => Seated::New(Seat {
                engine: self.new_name(&recipe.model),
                model: recipe.model.clone(),
                recipe: recipe.id.clone(),
                devices: self.device_ids(site),
                claims,
                peaks,
            }),
        };
        for vault in site.needs.iter().map(|need| need.pool) {
            let vault = &mut self.pools[vault];
            if vault.pool.kind.locks() {
                Change::note(&mut vault.changing, self.view.now + load, seated.id());
            }
        }
        self.started.entry(&recipe.model).or_default().push((seated.id().clone(), load));
        seated
    }

    fn new_name(&self, model: &ModelId) -> EngineId {
        let mut number = 1u32;
        loop {
            let name = EngineId::new(format!("{model}.{number}"));
            let known = self.engines.binary_search_by(|engine| engine.id.cmp(&name)).is_ok();
            let started = self.started.get(model).is_some_and(|started| started.iter().any(|(id, _)| *id == name));
            if !known && !started {
                return name;
            }
            number += 1;
        }
    }

    /// Ends the victims, or lets those sleep whose memory the host can take and of whom the site needs no more than sleep
    /// gives back.
    pub(super) fn make_way(&mut self, victims: &[usize], site: &Site, model: &ModelId) {
        let mut spare: Vec<i128> = site.needs.iter().map(|need| self.pools[need.pool].account.room()).collect();
        for &victim in victims {
            for (spare, need) in spare.iter_mut().zip(&site.needs) {
                *spare += self.hold(victim, need.pool).signed();
            }
        }
        for &victim in victims {
            let engine = self.engines[victim];
            let cost = cost(engine);
            let asleep = self.can_sleep(engine, site, &mut spare);
            self.leaves(victim);
            let (id, epoch) = (engine.id.clone(), engine.epoch);
            self.reasons.push(Reason::MadeRoom { engine: id.clone(), model: model.clone(), cost, asleep });
            self.intents.push(if asleep { Intent::Sleep(id, epoch) } else { Intent::Stop(id, epoch) });
        }
    }

    /// Takes the host's bytes, and what stays on the devices from `spare`, if there is enough of both.
    fn can_sleep(&mut self, engine: &Engine, site: &Site, spare: &mut [i128]) -> bool {
        let recipe = self.view.recipes.iter().find(|recipe| recipe.id == engine.seat.recipe);
        let footprint = self.view.footprints.get(&engine.seat.recipe);
        let Some((recipe, footprint)) = recipe.zip(footprint) else { return false };
        let Some(host) = self.host.filter(|place| self.pools[*place].pool.kind == PoolKind::Host) else { return false };
        if recipe.sleep == SleepLevel::Never || engine.state != EngineState::Ready {
            return false;
        }
        let claim: Bytes = engine.seat.claims.iter().map(|(_, bytes)| *bytes).sum();
        let stays = |pool: usize| {
            let of_shard = engine.seat.devices.iter().zip(&footprint.shards);
            let there = of_shard.filter(|(id, _)| self.spot(id).is_some_and(|spot| spot.pool == Some(pool)));
            there.map(|(_, parts)| parts.context).sum::<Bytes>().signed()
        };
        let stays: Vec<i128> = site.needs.iter().map(|need| stays(need.pool)).collect();
        if self.pools[host].account.avail() < claim || spare.iter().zip(&stays).any(|(spare, stays)| spare < stays) {
            return false;
        }
        spare.iter_mut().zip(stays).for_each(|(spare, stays)| *spare -= stays);
        self.pools[host].account.promise(claim);
        true
    }

    /// It will go, but keeps its memory for as long as its requests take.
    pub(super) fn drains(&mut self, engine: usize, until: Millis) {
        for place in self.pools_of(self.engines[engine]) {
            let vault = &mut self.pools[place];
            if vault.pool.kind.locks() {
                Change::note(&mut vault.draining, until, &self.engines[engine].id);
            }
        }
        self.left.push(engine);
    }

    /// From here on the plan counts without an engine, and nothing else begins in its pools.
    pub(super) fn leaves(&mut self, engine: usize) {
        let presence = self.engines[engine].state.presence();
        for place in self.pools_of(self.engines[engine]) {
            let hold = self.hold(engine, place);
            let vault = &mut self.pools[place];
            vault.account.release(hold, presence);
            if vault.pool.kind.locks() {
                Change::note(&mut vault.changing, self.view.now + LEAVING, &self.engines[engine].id);
            }
        }
        self.left.push(engine);
    }
}
