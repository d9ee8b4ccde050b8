//! The truth of a simulated machine and the events that change it. What a policy sees is made from it, and may be old.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

use super::box_of_gpus::PARALLEL;
use super::random::Random;
use super::{Decide, Outcome, Request, Setup};
use crate::engine::{Engine, EngineState, Presence, Seat};
use crate::estimate::residuals::Residuals;
use crate::id::{EngineId, Epoch, ModelId, OwnerId, PoolId};
use crate::memory_ledger::{accounts, admits};
use crate::placement::{Intent, Placement};
use crate::quantity::{Bytes, Millis};
use crate::view::{Class, Policy, View, Want};

/// Memory is seen free so long after its process has ended.
const RECLAIM: Millis = Millis::secs(1);
/// Whoever waits is looked at again.
const LOOK: Millis = Millis::secs(1);
const PREFILL_TOKENS_A_SECOND: u64 = 4000;
const DECODE_MILLIS_A_TOKEN: u64 = 25;
/// A prefix is kept for so long.
pub(super) const WARM: Millis = Millis::secs(300);
/// A load that ran out of memory is not tried again before.
const BACKOFF: Millis = Millis::secs(10);
const FOREIGN_EVERY: Millis = Millis::secs(5);
const THRASH: Millis = Millis::secs(60);
/// What is not done then never will be.
const PATIENCE: Millis = Millis::secs(24 * 3600);

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Finished(EngineId, Epoch, usize),
    Reclaimed(EngineId, Epoch),
    Loaded(EngineId, Epoch),
    BackoffOver(EngineId, Epoch),
    Foreign,
    Arrived(usize),
    GivesUp(usize),
    Look,
}

/// An engine as it is.
pub(super) struct Live {
    pub(super) engine: Engine,
    /// What it takes of each pool once it has loaded.
    pub(super) truth: Vec<(PoolId, Bytes)>,
    pub(super) running: Vec<usize>,
    pub(super) sessions: BTreeMap<u64, Millis>,
}

pub(super) struct World<'s> {
    pub(super) setup: &'s Setup,
    trace: &'s [Request],
    decide: &'s mut dyn Decide,
    pub(super) random: Random,
    pub(super) now: Millis,
    events: BinaryHeap<Reverse<(Millis, u64, Event)>>,
    sequence: u64,
    pub(super) view: View,
    pub(super) engines: BTreeMap<EngineId, Live>,
    epochs: u64,
    queues: BTreeMap<ModelId, VecDeque<usize>>,
    begun: BTreeSet<usize>,
    sessions: BTreeSet<u64>,
    pub(super) foreign: Vec<Bytes>,
    pub(super) asked: BTreeMap<ModelId, VecDeque<Millis>>,
    evicted: BTreeMap<ModelId, Millis>,
    pub(super) residuals: Residuals,
    looks: bool,
    waits_of: BTreeMap<OwnerId, (u64, u64)>,
    outcome: Outcome,
}

impl<'s> World<'s> {
    pub(super) fn new(setup: &'s Setup, trace: &'s [Request], decide: &'s mut dyn Decide) -> Self {
        let mut world = Self {
            setup,
            trace,
            decide,
            random: Random::new(setup.seed),
            now: Millis::ZERO,
            events: BinaryHeap::new(),
            sequence: 0,
            view: setup.view.clone(),
            engines: BTreeMap::new(),
            epochs: 0,
            queues: BTreeMap::new(),
            begun: BTreeSet::new(),
            sessions: BTreeSet::new(),
            foreign: vec![Bytes::ZERO; setup.view.pools.len()],
            asked: BTreeMap::new(),
            evicted: BTreeMap::new(),
            residuals: Residuals::default(),
            looks: false,
            waits_of: BTreeMap::new(),
            outcome: Outcome::default(),
        };
        for (nth, request) in trace.iter().enumerate() {
            world.at(request.at, Event::Arrived(nth));
        }
        if setup.mistakes.foreign > Bytes::ZERO {
            world.at(Millis::ZERO, Event::Foreign);
        }
        world
    }

    pub(super) fn live(mut self) -> Outcome {
        let end = self.trace.last().map(|last| last.at + PATIENCE).unwrap_or_default();
        let mut open = self.trace.len() as u64;
        while open > 0
            && let Some(Reverse((at, _, event))) = self.events.pop()
        {
            if at > end {
                break;
            }
            self.now = at;
            self.happen(event);
            let more_now = self.events.peek().is_some_and(|Reverse((next, ..))| *next == at);
            if !more_now {
                self.ask();
            }
            open = self.trace.len() as u64 - self.outcome.finished - self.outcome.cancelled;
        }
        self.outcome.end = self.now;
        let mean = |(sum, count): (u64, u64)| Millis::new(sum / count);
        self.outcome.mean_wait_of = self.waits_of.into_iter().map(|(owner, waits)| (owner, mean(waits))).collect();
        self.outcome
    }

    fn at(&mut self, at: Millis, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((at, self.sequence, event)));
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrived(request) => {
                let Request { model, patience, .. } = self.trace[request].clone();
                self.asked.entry(model.clone()).or_default().push_back(self.now);
                self.queues.entry(model.clone()).or_default().push_back(request);
                if let Some(patience) = patience {
                    self.at(self.now + patience, Event::GivesUp(request));
                }
                self.serve(&model);
            }
            Event::GivesUp(request) => {
                let model = &self.trace[request].model;
                let queue = self.queues.entry(model.clone()).or_default();
                if let Some(place) = queue.iter().position(|other| *other == request) {
                    queue.remove(place);
                    self.outcome.cancelled += 1;
                    if queue.is_empty() {
                        self.release_reserved(model);
                    }
                }
            }
            Event::Finished(id, epoch, request) => {
                let Some(live) = self.engines.get_mut(&id).filter(|live| live.engine.epoch == epoch) else { return };
                let running = live.running.len();
                live.running.retain(|other| *other != request);
                if live.running.len() < running {
                    live.engine.last_used = self.now;
                    self.outcome.finished += 1;
                    self.serve(&self.trace[request].model);
                }
            }
            Event::Loaded(id, epoch) => self.loaded(&id, epoch),
            Event::Reclaimed(id, epoch) => {
                if self.engines.get(&id).is_some_and(|live| live.engine.epoch == epoch) {
                    self.engines.remove(&id);
                    self.spawn_reserved();
                }
            }
            Event::BackoffOver(id, epoch) => {
                if self.engines.get(&id).is_some_and(|live| live.engine.epoch == epoch) {
                    self.engines.remove(&id);
                }
            }
            Event::Foreign => {
                self.others_change();
                self.at(self.now + FOREIGN_EVERY, Event::Foreign);
            }
            Event::Look => self.looks = false,
        }
    }

    /// The last who waited has gone: what was reserved for it is free again, with the lock.
    fn release_reserved(&mut self, model: &ModelId) {
        self.engines.retain(|_, live| live.engine.seat.model != *model || live.engine.state != EngineState::Reserved);
    }

    /// Gives requests of a model to its engines, as long as there are slots.
    fn serve(&mut self, model: &ModelId) {
        loop {
            let ready = self.engines.values().filter(|live| {
                let free = live.running.len() < usize::from(PARALLEL);
                live.engine.seat.model == *model && live.engine.state == EngineState::Ready && free
            });
            let Some(id) = ready.map(|live| live.engine.id.clone()).next() else { return };
            let Some(request) = self.queues.get_mut(model).and_then(VecDeque::pop_front) else { return };
            self.begin(&id, request);
        }
    }

    fn begin(&mut self, id: &EngineId, request: usize) {
        let Request { at, owner, session, input, output, .. } = self.trace[request].clone();
        let Some(live) = self.engines.get_mut(id) else { return };
        let (input, output) = (u64::from(input), u64::from(output));
        let warm = live.sessions.get(&session).is_some_and(|last| self.now.since(*last) <= WARM);
        // An agent's next request repeats nearly all of its last one.
        let uncached = if warm { input / 10 } else { input };
        let time = Millis::new(uncached * 1000 / PREFILL_TOKENS_A_SECOND + output * DECODE_MILLIS_A_TOKEN);
        live.running.push(request);
        live.engine.last_used = self.now;
        live.sessions.insert(session, self.now + time);
        let epoch = live.engine.epoch;
        self.at(self.now + time, Event::Finished(id.clone(), epoch, request));
        if self.begun.insert(request) {
            self.outcome.waits.push(self.now.since(at));
            let of_owner = self.waits_of.entry(owner).or_default();
            *of_owner = (of_owner.0 + self.now.since(at).get(), of_owner.1 + 1);
            if !self.sessions.insert(session) {
                self.outcome.warm.0 += u64::from(warm);
                self.outcome.warm.1 += 1;
            }
        }
    }

    fn loaded(&mut self, id: &EngineId, epoch: Epoch) {
        let Some(live) = self.engines.get(id).filter(|live| live.engine.epoch == epoch) else { return };
        let (seat, truth) = (live.engine.seat.clone(), live.truth.clone());
        let over = truth.iter().any(|(pool, _)| {
            let place = self.view.pools.iter().position(|known| known.id == *pool);
            place.is_some_and(|place| self.used_in_truth(place, true) > self.view.pools[place].cap)
        });
        self.learn(&seat.recipe, &truth, over);
        let Some(live) = self.engines.get_mut(id) else { return };
        if over {
            self.outcome.out_of_memory += 1;
            live.engine.state = EngineState::Backoff { until: self.now + BACKOFF };
            self.at(self.now + BACKOFF, Event::BackoffOver(id.clone(), epoch));
            return;
        }
        live.engine.state = EngineState::Ready;
        live.engine.ready_at = self.now;
        live.engine.last_used = self.now;
        self.serve(&seat.model);
    }

    fn ask(&mut self) {
        let demand = self.demand();
        if demand.is_empty() {
            return;
        }
        self.sample();
        let placement = self.decide.decide(&mut self.view, &demand);
        self.carry_out(&placement);
        let never = placement.refusals.iter().filter(|unmet| unmet.refusal.is_final());
        for unmet in never {
            let turned_away = self.queues.remove(&unmet.model).map_or(0, |queue| queue.len());
            self.outcome.cancelled += turned_away as u64;
        }
        if !self.looks {
            self.looks = true;
            self.at(self.now + LOOK, Event::Look);
        }
    }

    fn demand(&self) -> Vec<Want> {
        let mut wants: BTreeMap<(&OwnerId, &ModelId), Want> = BTreeMap::new();
        for (model, queue) in &self.queues {
            for request in queue.iter().map(|nth| &self.trace[*nth]) {
                let want = wants.entry((&request.owner, model)).or_insert_with(|| Want {
                    model: model.clone(),
                    owner: request.owner.clone(),
                    class: Class::Interactive,
                    waiting: 0,
                    oldest: request.at,
                    replicas: (0, 1),
                });
                want.waiting += 1;
                want.oldest = want.oldest.min(request.at);
            }
        }
        wants.into_values().collect()
    }

    fn carry_out(&mut self, placement: &Placement) {
        for intent in &placement.intents {
            match intent {
                Intent::Load(seat) => self.reserve(seat),
                Intent::Stop(id, epoch) => self.stop(id, *epoch),
                Intent::Drain(id, epoch, until) => self.set(id, *epoch, EngineState::Draining { until: *until }),
                Intent::Resume(id, epoch) => {
                    self.set(id, *epoch, EngineState::Ready);
                    if let Some(model) = self.engines.get(id).map(|live| live.engine.seat.model.clone()) {
                        self.serve(&model);
                    }
                }
                Intent::Wake(..) | Intent::Sleep(..) => unreachable!("no recipe of a simulation sleeps"),
            }
        }
        self.spawn_reserved();
    }

    fn set(&mut self, id: &EngineId, epoch: Epoch, state: EngineState) {
        if let Some(live) = self.engines.get_mut(id).filter(|live| live.engine.epoch == epoch) {
            live.engine.state = state;
        }
    }

    fn stop(&mut self, id: &EngineId, epoch: Epoch) {
        let Some(live) = self.engines.get_mut(id).filter(|live| live.engine.epoch == epoch) else { return };
        live.engine.state = EngineState::Stopping;
        let model = live.engine.seat.model.clone();
        let interrupted = std::mem::take(&mut live.running);
        self.outcome.interrupted += interrupted.len() as u64;
        let queue = self.queues.entry(model.clone()).or_default();
        interrupted.into_iter().rev().for_each(|request| queue.push_front(request));
        self.outcome.evictions += 1;
        self.evicted.insert(model, self.now);
        self.at(self.now + RECLAIM, Event::Reclaimed(id.clone(), epoch));
    }

    fn reserve(&mut self, seat: &Seat) {
        self.epochs += 1;
        let mistakes = self.setup.mistakes;
        let spread = u64::from(mistakes.noise_permille);
        let noise = if mistakes.outliers && self.random.below(100) == 0 {
            1500
        } else {
            1000 - spread + self.random.below(2 * spread + 1)
        };
        let footprint = self.view.footprints.get(&seat.recipe);
        let shards = footprint.into_iter().flat_map(|footprint| &footprint.shards);
        let truth =
            seat.claims.iter().zip(shards).map(|((pool, _), parts)| {
                (pool.clone(), parts.sum().permille(u32::try_from(noise).unwrap_or(u32::MAX)))
            });
        let reload = footprint.map(|footprint| footprint.load).unwrap_or_default();
        let engine = Engine {
            id: seat.engine.clone(),
            epoch: Epoch(self.epochs),
            seat: seat.clone(),
            state: EngineState::Reserved,
            observed: Vec::new(),
            inflight: 0,
            warm_sessions: 0,
            rate_milli: 0,
            reload,
            prefill: Millis::secs(1),
            ready_at: self.now,
            last_used: self.now,
            pinned: false,
        };
        let live = Live { truth: truth.collect(), engine, running: Vec::new(), sessions: BTreeMap::new() };
        self.engines.insert(seat.engine.clone(), live);
    }

    /// Whoever waited for others to leave is admitted anew, and begins or gives its place back.
    fn spawn_reserved(&mut self) {
        let reserved: Vec<EngineId> = self
            .engines
            .values()
            .filter(|live| live.engine.state == EngineState::Reserved)
            .map(|live| live.engine.id.clone())
            .collect();
        for id in reserved {
            let Some(seat) = self.engines.get(&id).map(|live| live.engine.seat.clone()) else { continue };
            let leaving = |live: &Live| {
                live.engine.state.presence() == Presence::Leaving
                    && live.truth.iter().any(|(pool, _)| seat.claims.iter().any(|(own, _)| own == pool))
            };
            if self.engines.values().any(leaving) {
                continue;
            }
            self.sample();
            let mut others = self.view.clone();
            others.engines.retain(|engine| engine.id != id);
            let accounts = accounts(&others, &Policy::default());
            if !admits(&accounts, &seat.claims, &seat.peaks) {
                self.engines.remove(&id);
                continue;
            }
            let (now, load) =
                (self.now, self.view.footprints.get(&seat.recipe).map(|one| one.load).unwrap_or_default());
            let Some(live) = self.engines.get_mut(&id) else { continue };
            live.engine.state = EngineState::Loading;
            live.engine.ready_at = now;
            let epoch = live.engine.epoch;
            self.outcome.loads += 1;
            let again = self.evicted.get(&seat.model).is_some_and(|at| now.since(*at) < THRASH);
            self.outcome.thrashed += u64::from(again);
            self.at(now + load, Event::Loaded(id, epoch));
            self.sample();
            let promised = crate::memory_ledger::accounts(&self.view, &Policy::default());
            let over = |(id, account): &(PoolId, crate::memory_ledger::Account)| {
                let of_seat = seat.claims.iter().any(|(own, _)| own == id);
                of_seat && self.view.pools.iter().any(|pool| pool.id == *id && account.holds() > pool.cap)
            };
            self.outcome.overcommitted += u64::from(promised.iter().any(over));
        }
    }
}
