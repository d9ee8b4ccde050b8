//! How much memory everything really takes, and what of it a policy sees.

use std::collections::BTreeMap;

use super::world::{Live, WARM, World};
use crate::engine::{Presence, on_pool};
use crate::estimate::residuals::{Kind, Load, after_out_of_memory};
use crate::footprint::Slack;
use crate::id::{EngineId, PoolId, RecipeId};
use crate::quantity::{Bytes, Millis};
use crate::recipe::{EngineKind, KvType};

/// Requests of these times make an engine's rate, the higher of the two: an agent at work comes back within the first, and who
/// is asked now and then is not taken for forgotten.
const LATELY: Millis = Millis::secs(45);
const RATE: Millis = Millis::secs(1000);

impl World<'_> {
    pub(super) fn learn(&mut self, recipe: &RecipeId, truth: &[(PoolId, Bytes)], over: bool) {
        let Some(footprint) = self.view.footprints.get_mut(recipe).filter(|_| self.setup.learns) else { return };
        let kind = Kind {
            engine: EngineKind::LlamaServer,
            build: String::new(),
            // Models of a dozen are of three architectures, and teach about each other.
            architecture: format!("{}", recipe.as_str().bytes().map(u64::from).sum::<u64>() % 3),
            quant: String::new(),
            kv: KvType::F16,
            tp: 1,
            device: String::new(),
            driver_major: 0,
        };
        for (parts, (_, peak)) in footprint.shards.iter().zip(truth) {
            self.residuals.note(kind.clone(), Load { estimate: parts.sum(), peak: *peak });
        }
        footprint.slack =
            if over { after_out_of_memory(footprint.slack) } else { self.residuals.slack(&kind, Slack::FIRST) };
    }

    /// All of it, or what is there now of loads that go on.
    pub(super) fn used_in_truth(&self, place: usize, loaded: bool) -> Bytes {
        let pool = &self.view.pools[place].id;
        let of = |live: &Live| {
            let whole = on_pool(&live.truth, pool);
            match live.engine.state.presence() {
                Presence::Absent | Presence::Reserved => Bytes::ZERO,
                Presence::Loading if !loaded => {
                    let done = self.now.since(live.engine.ready_at).get().saturating_mul(1000);
                    let permille = done / live.engine.reload.get().max(1);
                    whole.permille(u32::try_from(permille.min(1000)).unwrap_or(1000))
                }
                Presence::Loading | Presence::Resident | Presence::Leaving => whole,
            }
        };
        self.foreign[place] + self.engines.values().map(of).sum()
    }

    /// Others grow by no more than the margin at once, and never into memory that is used.
    pub(super) fn others_change(&mut self) {
        for place in 0..self.foreign.len() {
            let pool = &self.view.pools[place];
            let (margin, cap) = (pool.margin.get(), pool.cap);
            let step = self.random.below(2 * margin + 1);
            let (old, most) = (self.foreign[place], self.setup.mistakes.foreign);
            let ours = Bytes::there(self.used_in_truth(place, true).signed() - old.signed());
            let room = Bytes::there(cap.signed() - ours.signed());
            let new = Bytes::there(old.signed() + i128::from(step) - i128::from(margin));
            self.foreign[place] = new.min(most).min(room.max(old));
        }
    }

    /// What the policy sees, made anew when the last sample is too old.
    pub(super) fn sample(&mut self) {
        let lag = self.setup.mistakes.lag;
        let fresh = lag == Millis::ZERO
            || self.view.pools.first().is_none_or(|pool| self.now.since(pool.sampled) >= lag)
            || self.now == Millis::ZERO;
        self.view.now = self.now;
        if fresh {
            for place in 0..self.view.pools.len() {
                let used = self.used_in_truth(place, false);
                let pool = &mut self.view.pools[place];
                (pool.used, pool.free) = (used, Bytes::there(pool.cap.signed() - used.signed()));
                pool.sampled = self.now;
            }
        }
        let known: BTreeMap<EngineId, Vec<(PoolId, Bytes)>> =
            self.view.engines.drain(..).map(|engine| (engine.id, engine.observed)).collect();
        for (id, live) in &mut self.engines {
            let engine = &mut live.engine;
            engine.inflight = u32::try_from(live.running.len()).unwrap_or(u32::MAX);
            let warm = live.sessions.values().filter(|last| self.now.since(**last) <= WARM).count();
            engine.warm_sessions = u32::try_from(warm).unwrap_or(u32::MAX);
            let asked = self.asked.entry(engine.seat.model.clone()).or_default();
            while asked.front().is_some_and(|at| self.now.since(*at) > RATE) {
                asked.pop_front();
            }
            let lately = asked.iter().rev().take_while(|at| self.now.since(**at) <= LATELY).count() as u64;
            let rate = (lately * 1_000_000 / LATELY.get()).max(asked.len() as u64);
            engine.rate_milli = u32::try_from(rate).unwrap_or(u32::MAX);
            engine.observed = match engine.state.presence() {
                Presence::Resident | Presence::Leaving if fresh => live.truth.clone(),
                Presence::Loading if fresh => Vec::new(),
                _ => known.get(id).cloned().unwrap_or_default(),
            };
            self.view.engines.push(engine.clone());
        }
    }
}
