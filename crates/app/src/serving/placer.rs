//! The decision, step by step; see `serving.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fettle_placement::device::{Attribution, Pool};
use fettle_placement::engine::{EngineState, Presence, Seat, on_pool};
use fettle_placement::id::{EngineId, Epoch, ModelId, OwnerId, PoolId, RecipeId};
use fettle_placement::memory_ledger::{accounts, admits};
use fettle_placement::placement::{Barrier, Intent, Placement, Reason};
use fettle_placement::quantity::{Bytes, Millis};
use fettle_placement::recipe::Recipe;
use fettle_placement::view::{Class, View, Want};
use fettle_placement::{Turns, plan};

use super::catalog::{Catalog, LocalModel, LocalRecipe};
use super::engine::{Ended, Failures, Held, Phase};
use super::leaving::{Left, left};
use super::lessons::{Lesson, Lessons, lessons};
use super::metering::{Metering, Present};
use super::seen::{expect_its_claim_back, observe, sample};
use super::telling::{EngineStatus, Notice, NoticeKind, Refused, Status, Told, in_words, supply};
use crate::ports::serving::{
    Adopted, Demand, EngineLoad, EngineMeter, EngineProcess, LaunchDevice, LaunchOrder, Load, ModelOrder, ProcessState,
    Since, Supply, World,
};

/// Who keeps a least number of engines loaded when nobody asks.
const KEEPER: &str = "fettle";
/// What engines of an earlier life leave comes back within it. Where bytes are not known by process, that must not fall into
/// another engine's load, of which it would seem to be a part.
const SETTLES: Millis = Millis::secs(5);

/// Everything of one moment.
#[derive(Debug, Clone)]
pub struct Facts {
    pub now: Millis,
    pub since: Since,
    pub world: Arc<World>,
    pub processes: Arc<Vec<EngineProcess>>,
    pub demand: Arc<Demand>,
    pub load: Arc<Load>,
}

#[derive(Debug, Default)]
pub struct Step {
    pub commands: Vec<Command>,
    pub supply: Supply,
    pub meters: Vec<EngineMeter>,
    /// Of the loads that were seen to end, to be kept for the next life.
    pub lessons: Vec<Lesson>,
    /// Whether an engine loads or leaves.
    pub in_change: bool,
    pub notices: Vec<Notice>,
    pub status: Status,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Start(Box<LaunchOrder>),
    Stop(EngineId, Epoch),
    Forget(EngineId, Epoch),
}

/// Remembers the engines that it has asked for, and nothing that could be read from facts.
pub struct Placer {
    catalog: Catalog,
    held: BTreeMap<EngineId, Held>,
    why: BTreeMap<EngineId, String>,
    failures: BTreeMap<RecipeId, Failures>,
    lessons: Lessons,
    next_epoch: u64,
    turns: Turns,
    barrier: Option<Barrier>,
    metering: Metering,
    told: Told,
    /// When engines of an earlier life were taken over, or ended.
    adopted_at: Option<Millis>,
    /// What operators want otherwise than it is configured.
    wished: BTreeMap<ModelId, Wish>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Loaded,
    Pinned,
}

impl Placer {
    /// `first_epoch` is later than any epoch of an earlier life, of which `lessons` are kept.
    pub fn new(catalog: Catalog, lessons: impl IntoIterator<Item = Lesson>, first_epoch: u64) -> Self {
        let mut learned = Lessons::default();
        lessons.into_iter().for_each(|lesson| learned.note(lesson));
        Self {
            catalog,
            held: BTreeMap::new(),
            why: BTreeMap::new(),
            failures: BTreeMap::new(),
            lessons: learned,
            next_epoch: first_epoch,
            turns: Turns::default(),
            barrier: None,
            metering: Metering::default(),
            told: Told::default(),
            adopted_at: None,
            wished: BTreeMap::new(),
        }
    }

    /// Of an operator. A model that is not in the catalog has no engine, and stays without one.
    pub fn obey(&mut self, model: &ModelId, order: ModelOrder, now: Millis) {
        match order {
            ModelOrder::Load => drop(self.wished.insert(model.clone(), Wish::Loaded)),
            ModelOrder::Pin => drop(self.wished.insert(model.clone(), Wish::Pinned)),
            ModelOrder::Unpin => drop(self.wished.remove(model)),
            ModelOrder::Unload => {
                self.wished.remove(model);
                let until = now + self.catalog.policy.drain_deadline;
                let ready = |held: &&mut Held| held.seat.model == *model && held.state == EngineState::Ready;
                self.held.values_mut().filter(ready).for_each(|held| held.state = EngineState::Draining { until });
            }
        }
    }

    fn is_pinned(&self, model: &LocalModel) -> bool {
        model.pinned || self.wished.get(&model.id) == Some(&Wish::Pinned)
    }

    /// How many engines of it are kept when nobody asks.
    fn least(&self, model: &LocalModel) -> u8 {
        model.replicas.0.max(u8::from(model.pinned || self.wished.contains_key(&model.id)))
    }

    /// What is there before the first step: every model, and none of them refused.
    pub fn at_first(&self) -> Supply {
        supply(&self.catalog, self.held.values(), &self.failures, &Placement::default())
    }

    pub fn recipes(&self) -> Vec<Recipe> {
        self.catalog.all().map(|local| local.recipe.clone()).collect()
    }

    /// Engines that an earlier life has left running. They are ready once their processes say so.
    pub fn adopt(&mut self, adopted: Vec<Adopted>, now: Millis) -> Vec<Notice> {
        self.adopted_at = Some(now);
        let mut notices = Vec::new();
        for Adopted { seat, epoch, .. } in adopted {
            let reload = self.catalog.recipe(&seat.recipe).map_or(Millis::secs(1), |local| self.lessons.took(local));
            let mut held = Held::reserved(seat, epoch, reload, now);
            held.state = EngineState::Loading;
            held.adopted = true;
            self.next_epoch = self.next_epoch.max(epoch.0 + 1);
            let text = format!("{} was running before Fettle was started anew", held.seat.engine);
            notices.push(notice(NoticeKind::Adopted, &held, text.clone()));
            self.why.insert(held.seat.engine.clone(), text);
            self.held.insert(held.seat.engine.clone(), held);
        }
        notices
    }

    pub fn step(&mut self, facts: &Facts) -> Step {
        let mut step = Step::default();
        let ours = self.ours(facts);
        self.follow(facts, &ours, &mut step);
        self.let_go(facts, &ours, &mut step);
        self.drop_unwanted(&facts.demand);

        let placement = plan(&self.view(facts), &self.wants(facts), &self.catalog.policy);
        let models = self.held.iter().map(|(id, held)| (id.clone(), held.seat.model.clone())).collect();
        step.notices.extend(self.told.news(&placement, &models));
        self.carry_out(&placement, facts, &mut step);
        self.start_where_room_was_made(facts, &ours, &mut step);

        self.turns = placement.turns.clone();
        self.barrier = placement.barrier.clone();
        step.meters = self.meter(facts);
        step.in_change = self.held.values().any(Held::changes);
        step.supply = supply(&self.catalog, self.held.values(), &self.failures, &placement);
        step.status = self.status(facts, placement);
        step
    }

    /// The processes of all engines, also of those that have just ended: a driver lists them for a moment longer.
    fn ours(&self, facts: &Facts) -> BTreeSet<u32> {
        let now = facts.processes.iter().flat_map(|process| &process.pids);
        now.chain(self.held.values().flat_map(|held| &held.pids)).copied().collect()
    }

    /// Engines are what their processes say, and have what their processes have.
    fn follow(&mut self, facts: &Facts, ours: &BTreeSet<u32>, step: &mut Step) {
        for process in facts.processes.iter() {
            let Some(held) = self.held.get_mut(&process.engine).filter(|held| held.epoch == process.epoch) else {
                continue;
            };
            if held.ended.is_some() {
                continue;
            }
            match &process.state {
                ProcessState::Spawning | ProcessState::Stopping => {}
                ProcessState::Loading if held.state == EngineState::Spawning => held.state = EngineState::Loading,
                ProcessState::Loading => {}
                ProcessState::Ready(address) => {
                    let loaded = held.unasked() == Some(Phase::Load);
                    held.became_ready(facts.now, address.clone());
                    if loaded {
                        let text = format!("{} is ready after {}", process.engine, held.reload);
                        step.notices.push(notice(NoticeKind::Ready, held, text));
                    } else if held.state == EngineState::Ready {
                        let ready_for = facts.now.since(held.ready_at);
                        self.failures.entry(held.seat.recipe.clone()).or_default().worked(ready_for);
                    }
                }
                ProcessState::Gone(exit) => {
                    let failed_in = held.unasked();
                    expect_its_claim_back(held, &facts.world, ours);
                    held.ended = Some(Ended { at: facts.now, exit: exit.clone(), failed_in });
                    held.state = EngineState::Reclaiming;
                    held.address = None;
                    // Whatever it took last is judged by what comes back.
                    held.unseen = false;
                    if let Some(phase) = failed_in {
                        let when = match phase {
                            Phase::Load => "while it loaded",
                            Phase::Serve => "while it served",
                        };
                        let text = format!("{} ended {when}: {}", process.engine, exit.why);
                        step.notices.push(notice(NoticeKind::Failed, held, text));
                    }
                    continue;
                }
            }
            let grew = held.unseen;
            observe(held, process, &facts.world, ours, facts.now);
            if grew
                && !held.unseen
                && let Some(local) = self.catalog.recipe(&held.seat.recipe)
            {
                step.lessons.extend(lessons(held, local, &facts.world));
            }
        }
        step.lessons.iter().for_each(|lesson| self.lessons.note(lesson.clone()));
    }

    /// What ended and gave its memory back is gone; what failed is not tried again before its back-off is over.
    fn let_go(&mut self, facts: &Facts, ours: &BTreeSet<u32>, step: &mut Step) {
        let mut gone = Vec::new();
        for (id, held) in &mut self.held {
            match (held.state, &held.ended) {
                (EngineState::Reclaiming, Some(ended)) => {
                    let Left::Done { leaked } = left(held, ended, &facts.world, ours) else { continue };
                    // Of one that was adopted it may never have been there.
                    for (pool, missing) in leaked.into_iter().filter(|_| !held.adopted) {
                        let text =
                            format!("{id} has gone and {missing} of {pool} have not come back; they count as used");
                        step.notices.push(notice(NoticeKind::Leaked, held, text));
                    }
                    step.commands.push(Command::Forget(id.clone(), held.epoch));
                    let foreign_grew = foreign_grew(held, &facts.world, ours);
                    let failures = self.failures.entry(held.seat.recipe.clone()).or_default();
                    let wait =
                        ended.failed_in.and_then(|phase| failures.count(phase, &ended.exit, facts.now, foreign_grew));
                    held.observed.clear();
                    match wait {
                        Some(until) => held.state = EngineState::Backoff { until },
                        None => gone.push(id.clone()),
                    }
                }
                (EngineState::Backoff { until }, _) if until <= facts.now => gone.push(id.clone()),
                _ => {}
            }
        }
        for id in gone {
            self.held.remove(&id);
            self.why.remove(&id);
        }
    }

    /// The last who waited has gone: what was reserved for it is free again.
    fn drop_unwanted(&mut self, demand: &Demand) {
        let kept: BTreeSet<&ModelId> =
            self.catalog.models.iter().filter(|model| self.least(model) > 0).map(|model| &model.id).collect();
        let why = &mut self.why;
        self.held.retain(|id, held| {
            let waited_for = demand.waiting.iter().any(|waiting| waiting.model == held.seat.model);
            let stays = held.state != EngineState::Reserved || waited_for || kept.contains(&held.seat.model);
            if !stays {
                why.remove(id);
            }
            stays
        });
    }

    fn wants(&self, facts: &Facts) -> Vec<Want> {
        let known = facts.demand.waiting.iter().filter_map(|waiting| {
            let model = self.catalog.model(&waiting.model)?;
            Some(Want {
                model: waiting.model.clone(),
                owner: waiting.owner.clone(),
                class: waiting.class,
                waiting: waiting.requests,
                oldest: facts.since.of(waiting.oldest),
                replicas: model.replicas,
            })
        });
        let mut wants: Vec<Want> = known.collect();
        for model in &self.catalog.models {
            let least = self.least(model);
            if least > 0 && wants.iter().all(|want| want.model != model.id) {
                wants.push(Want {
                    model: model.id.clone(),
                    owner: OwnerId::new(KEEPER),
                    class: Class::Batch,
                    waiting: 0,
                    oldest: facts.now,
                    replicas: (least, model.replicas.1.max(least)),
                });
            }
        }
        wants
    }

    fn view(&self, facts: &Facts) -> View {
        let footprint = |local: &LocalRecipe| {
            let learned = self.lessons.footprint(local, &facts.world);
            self.failures.get(&local.recipe.id).map(|failures| failures.raise(&learned)).unwrap_or(learned)
        };
        let footprints = self.catalog.all().map(|local| (local.recipe.id.clone(), footprint(local))).collect();
        let loads: BTreeMap<(&EngineId, Epoch), &EngineLoad> =
            facts.load.engines.iter().map(|load| ((&load.engine, load.epoch), load)).collect();
        let engines = self.held.values().map(|held| {
            let pinned = self.catalog.model(&held.seat.model).is_some_and(|model| self.is_pinned(model));
            held.for_plan(loads.get(&(&held.seat.engine, held.epoch)).copied(), facts.since, pinned)
        });
        View {
            now: facts.now,
            devices: facts.world.devices.clone(),
            pools: self.pools(&facts.world),
            engines: engines.collect(),
            models: self.catalog.specs(),
            recipes: self.recipes(),
            footprints,
            turns: self.turns.clone(),
            barrier: self.barrier.clone(),
        }
    }

    fn pools(&self, world: &World) -> Vec<Pool> {
        let locked = |pool: &Pool| {
            let unseen = self.held.values().filter(|held| held.unseen && held.pools().any(|id| *id == pool.id));
            unseen.map(|held| held.seat.engine.clone()).next()
        };
        world.pools.iter().map(|pool| Pool { lock: locked(pool), ..pool.clone() }).collect()
    }

    fn carry_out(&mut self, placement: &Placement, facts: &Facts, step: &mut Step) {
        for reason in &placement.reasons {
            if let Reason::Chosen { engine, .. } = reason {
                self.why.insert(engine.clone(), reason.to_string());
            }
        }
        for intent in &placement.intents {
            match intent {
                Intent::Load(seat) => self.reserve(seat, facts.now),
                Intent::Drain(id, epoch, until) => self.turn(id, *epoch, EngineState::Draining { until: *until }),
                Intent::Resume(id, epoch) => self.turn(id, *epoch, EngineState::Ready),
                // No recipe that can be configured sleeps, so there is none to be woken.
                Intent::Sleep(id, epoch) | Intent::Stop(id, epoch) => self.stop(id, *epoch, step),
                Intent::Wake(..) => {}
            }
        }
    }

    fn reserve(&mut self, seat: &Seat, now: Millis) {
        let reload = self.catalog.recipe(&seat.recipe).map_or(Millis::secs(1), |local| self.lessons.took(local));
        let held = Held::reserved(seat.clone(), Epoch(self.next_epoch), reload, now);
        self.next_epoch += 1;
        self.held.insert(seat.engine.clone(), held);
    }

    fn turn(&mut self, id: &EngineId, epoch: Epoch, state: EngineState) {
        if let Some(held) = self.held.get_mut(id).filter(|held| held.epoch == epoch && held.ended.is_none()) {
            held.state = state;
        }
    }

    fn stop(&mut self, id: &EngineId, epoch: Epoch, step: &mut Step) {
        let Some(held) = self.held.get_mut(id).filter(|held| held.epoch == epoch && held.ended.is_none()) else {
            return;
        };
        if held.state == EngineState::Reserved {
            self.held.remove(id);
            self.why.remove(id);
            return;
        }
        held.state = EngineState::Stopping;
        step.commands.push(Command::Stop(id.clone(), epoch));
    }

    /// A reserved seat is taken when nothing changes in its pools any more and the memory ledger, asked again, admits it. If
    /// it does not, somebody else has taken the room meanwhile, and the next plan looks for another.
    fn start_where_room_was_made(&mut self, facts: &Facts, ours: &BTreeSet<u32>, step: &mut Step) {
        let waiting: Vec<EngineId> = self
            .held
            .iter()
            .filter(|(_, held)| held.state == EngineState::Reserved)
            .map(|(id, _)| id.clone())
            .collect();
        for id in waiting {
            let Some(held) = self.held.get(&id) else { continue };
            if self.something_changes_beside(held, &facts.world) {
                continue;
            }
            let mut view = self.view(facts);
            view.engines.retain(|engine| engine.id != id);
            let seat = &held.seat;
            if !admits(&accounts(&view, &self.catalog.policy), &seat.claims, &seat.peaks) {
                let text = format!("{id} is not started: its room was taken by others meanwhile");
                step.notices.push(notice(NoticeKind::Refused, held, text));
                self.held.remove(&id);
                continue;
            }
            let Some(order) = self.order(held, &facts.world) else { continue };
            if let Some(held) = self.held.get_mut(&id) {
                held.state = EngineState::Spawning;
                held.began = facts.now;
                held.at_start = order
                    .seat
                    .claims
                    .iter()
                    .filter_map(|(id, _)| facts.world.pools.iter().find(|pool| pool.id == *id))
                    .map(|pool| (pool.id.clone(), sample(pool, &facts.world, ours)))
                    .collect();
            }
            step.commands.push(Command::Start(Box::new(order)));
        }
    }

    /// Whether another engine loads in, or leaves, a pool of devices that this one is to be loaded in: engines charge what
    /// others do meanwhile to themselves, and some give up when free memory grows while they start.
    fn something_changes_beside(&self, held: &Held, world: &World) -> bool {
        let locks = |id: &PoolId| world.pools.iter().any(|pool| pool.id == *id && pool.kind.locks());
        let pools: BTreeSet<&PoolId> = held.pools().filter(|id| locks(id)).collect();
        let settles = |pool: &Pool| {
            let until = self.adopted_at.map(|at| at + SETTLES);
            pool.attribution == Attribution::Blind && until.is_some_and(|until| pool.sampled < until)
        };
        if world.pools.iter().any(|pool| pools.contains(&pool.id) && settles(pool)) {
            return true;
        }
        self.held.values().any(|other| other.seat.engine != held.seat.engine && other.changes() && other.is_in(&pools))
    }

    fn order(&self, held: &Held, world: &World) -> Option<LaunchOrder> {
        let local = self.catalog.recipe(&held.seat.recipe)?;
        let nth = |id| world.order.iter().position(|one| one == id).and_then(|nth| u32::try_from(nth).ok());
        let devices: Vec<LaunchDevice> =
            held.seat.devices.iter().map(|id| LaunchDevice { id: id.clone(), nth: nth(id) }).collect();
        let first = held.seat.devices.first().and_then(|id| world.devices.iter().find(|device| device.id == *id));
        let pool = first.and_then(|device| world.pools.iter().find(|pool| pool.id == device.pool));
        let own = pool.map_or(Bytes::ZERO, |pool| on_pool(&held.seat.claims, &pool.id));
        let parts = local.footprint.shards.first().copied().unwrap_or_default();
        Some(LaunchOrder {
            seat: held.seat.clone(),
            epoch: held.epoch,
            recipe: local.recipe.clone(),
            weights: local.weights.clone(),
            devices,
            claim: own,
            scratch: parts.compute + parts.context + parts.extra,
            total: pool.map_or(Bytes::ZERO, |pool| pool.cap),
            free: pool.map_or(Bytes::ZERO, |pool| pool.free),
        })
    }

    fn meter(&mut self, facts: &Facts) -> Vec<EngineMeter> {
        let inflight = |held: &Held| {
            let load =
                facts.load.engines.iter().find(|load| load.engine == held.seat.engine && load.epoch == held.epoch);
            load.is_some_and(|load| load.inflight > 0)
        };
        let there = self.held.values().filter(|held| held.presence() != Presence::Absent);
        let present: Vec<Present> = there
            .map(|held| Present {
                engine: &held.seat.engine,
                epoch: held.epoch,
                devices: &held.seat.devices,
                busy: inflight(held),
            })
            .collect();
        self.metering.follow(&facts.world.meters, &present)
    }

    fn status(&self, facts: &Facts, placement: Placement) -> Status {
        let view = self.view(facts);
        let accounts = accounts(&view, &self.catalog.policy).into_iter().map(|(_, account)| account);
        let why = |id: &EngineId| self.why.get(id).cloned().unwrap_or_default();
        let engines = view.engines.iter().cloned();
        Status {
            devices: facts.world.devices.clone(),
            pools: facts.world.pools.iter().cloned().zip(accounts).collect(),
            meters: facts.world.meters.clone(),
            engines: engines.map(|engine| EngineStatus { why: why(&engine.id), engine }).collect(),
            refused: placement
                .refusals
                .into_iter()
                .map(|unmet| Refused {
                    why: in_words(&unmet, &self.catalog, &self.failures),
                    model: unmet.model,
                    owner: unmet.owner,
                    refusal: unmet.refusal,
                })
                .collect(),
            barrier: placement.barrier,
            view: Arc::new(view),
        }
    }
}

fn notice(kind: NoticeKind, held: &Held, text: String) -> Notice {
    Notice { kind, model: held.seat.model.clone(), engine: Some(held.seat.engine.clone()), text }
}

/// Whether somebody else took memory of its pools while it loaded.
fn foreign_grew(held: &Held, world: &World, ours: &BTreeSet<u32>) -> bool {
    held.at_start.iter().any(|(id, start)| {
        let now = world.pools.iter().find(|pool| pool.id == *id).map(|pool| sample(pool, world, ours));
        now.is_some_and(|now| now.foreign > start.foreign)
    })
}
