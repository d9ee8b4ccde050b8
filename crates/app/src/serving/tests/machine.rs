//! A machine in virtual time: GPUs of 80 GiB, engines that load for two seconds, samples twice a second.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use fettle_placement::device::{Attribution, ComputeCapability, Device, DeviceKind, Health, Pool, PoolKind};
use fettle_placement::engine::{EngineState, on_pool};
use fettle_placement::footprint::{Footprint, Parts, Slack, Source};
use fettle_placement::id::{DeviceId, EngineId, Epoch, ModelId, OwnerId, PoolId, RecipeId};
use fettle_placement::quantity::{Bytes, Millis};
use fettle_placement::recipe::{EngineKind, KvType, Recipe, RunsOn, SleepLevel};
use fettle_placement::view::{Class, Policy};

use crate::ports::serving::{
    Adopted, Demand, DeviceProcess, Endpoint, EngineAddress, EngineProcess, Exit, ExitClass, LaunchOrder, Load,
    ModelOrder, ProcessState, ReadyEngine, Since, Supply, Unserved, Waiting, World,
};
use crate::serving::{Catalog, Command, Facts, Lesson, LocalModel, LocalRecipe, Notice, NoticeKind, Placer, Status};

const TICK: u64 = 250;
const SAMPLE: u64 = 500;
const LOAD: u64 = 2_000;
const GPU: u64 = 80;

pub(super) fn model(name: &str, gib: u64) -> LocalModel {
    let recipe = Recipe {
        id: RecipeId::new(format!("{name}-recipe")),
        model: ModelId::new(name),
        engine: EngineKind::Command,
        build: "1".into(),
        quant: "q8".into(),
        kv: KvType::F16,
        on: RunsOn::Gpu,
        tp: 1,
        ctx: 4096,
        parallel: 4,
        min_cc: ComputeCapability(0, 0),
        sleep: SleepLevel::Never,
        flags: Vec::new(),
    };
    let footprint = Footprint {
        shards: vec![Parts { weights: Bytes::gib(gib), ..Parts::default() }],
        slack: Slack { permille: 0, bytes: Bytes::gib(1) },
        host: Bytes::ZERO,
        peak_permille: 1000,
        load: Millis::new(LOAD),
        source: Source::Formula,
    };
    let recipes = vec![LocalRecipe { recipe, footprint, weights: "/models/m".into() }];
    LocalModel { id: ModelId::new(name), recipes, replicas: (0, 1), pinned: false }
}

/// What becomes of a model's engines.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fate {
    /// They want this much, and end for want of memory when they were promised less.
    NeedsMore(Bytes),
    /// They take this much, whatever they were promised.
    Takes(Bytes),
    FailsToLoad(ExitClass),
    /// This much of it does not come back.
    Leaks(Bytes),
}

#[derive(Debug)]
struct Live {
    order: LaunchOrder,
    pid: u32,
    ready_at: u64,
    /// When its processes went, and when its memory does.
    gone: Option<(u64, Exit)>,
    asked_to_stop: bool,
    has: Bytes,
}

pub(super) struct Machine {
    origin: tokio::time::Instant,
    since: Since,
    now: u64,
    sampled: u64,
    blindfolded: bool,
    world: Arc<World>,
    health: Vec<Health>,
    foreign: Vec<Bytes>,
    leaked: Vec<Bytes>,
    attribution: Attribution,
    reclaim: u64,
    models: Vec<LocalModel>,
    fates: BTreeMap<String, Fate>,
    placer: Placer,
    lessons: Vec<Lesson>,
    live: Vec<Live>,
    /// Told to nobody any more, but the driver still has its memory.
    lingering: Vec<(PoolId, Bytes, u64)>,
    asked: BTreeMap<String, u64>,
    supply: Supply,
    status: Status,
    notices: Vec<Notice>,
    started: Vec<(EngineId, u64)>,
    ended: BTreeMap<EngineId, u64>,
    claims: BTreeMap<String, Bytes>,
    pids: u32,
}

impl Machine {
    pub(super) fn new(gpus: usize, models: impl IntoIterator<Item = LocalModel>) -> Self {
        let models: Vec<LocalModel> = models.into_iter().collect();
        let since = Since::now_is_zero();
        let mut machine = Self {
            origin: tokio::time::Instant::now(),
            since,
            now: 10_000,
            sampled: 0,
            blindfolded: false,
            world: Arc::default(),
            health: vec![Health::Ok; gpus],
            foreign: vec![Bytes::ZERO; gpus],
            leaked: vec![Bytes::ZERO; gpus],
            attribution: Attribution::Exact,
            reclaim: 0,
            placer: Placer::new(catalog(&models), [], 1),
            lessons: Vec::new(),
            models,
            fates: BTreeMap::new(),
            live: Vec::new(),
            lingering: Vec::new(),
            asked: BTreeMap::new(),
            supply: Supply::default(),
            status: Status::default(),
            notices: Vec::new(),
            started: Vec::new(),
            ended: BTreeMap::new(),
            claims: BTreeMap::new(),
            pids: 100,
        };
        machine.run(TICK);
        machine
    }

    // What happens to it.

    pub(super) fn ask(&mut self, model: &str) {
        self.asked.entry(model.to_owned()).or_insert(self.now);
    }

    pub(super) fn answer(&mut self, model: &str) {
        self.asked.remove(model);
    }

    pub(super) fn obey(&mut self, model: &str, order: ModelOrder) {
        let now = Millis::new(self.now());
        self.placer.obey(&ModelId::new(model), order, now);
    }

    pub(super) fn kill(&mut self, model: &str) {
        let now = self.now;
        for live in self.live.iter_mut().filter(|live| live.order.seat.model.as_str() == model && live.gone.is_none()) {
            live.gone = Some((now, Exit { class: ExitClass::Unknown, why: "killed by signal 9".into() }));
            self.ended.insert(live.order.seat.engine.clone(), now);
        }
    }

    pub(super) fn reclaim_takes(&mut self, millis: u64) {
        self.reclaim = millis;
    }

    pub(super) fn foreign(&mut self, gpu: usize, bytes: Bytes) {
        self.foreign[gpu] = bytes;
    }

    pub(super) fn fate(&mut self, model: &str, fate: Fate) {
        self.fates.insert(model.to_owned(), fate);
    }

    pub(super) fn blindfold(&mut self, on: bool) {
        self.blindfolded = on;
    }

    pub(super) fn attribution(&mut self, attribution: Attribution) {
        self.attribution = attribution;
    }

    pub(super) fn health(&mut self, device: &DeviceId, health: Health) {
        let nth = (0..self.health.len()).find(|nth| gpu(*nth) == *device).expect("a GPU of this machine");
        self.health[nth] = health;
    }

    /// Of the supervisor; engines go on.
    pub(super) fn restart(&mut self) {
        self.placer = Placer::new(catalog(&self.models), self.lessons.clone(), 1_000_000 + self.now);
        let now = self.now;
        // Those that were on their way out or not ready yet do not check out.
        for live in &mut self.live {
            if live.gone.is_none() && (live.asked_to_stop || live.ready_at > now) {
                live.gone = Some((now, asked()));
            }
        }
        let (kept, gone): (Vec<Live>, Vec<Live>) =
            std::mem::take(&mut self.live).into_iter().partition(|live| live.gone.is_none());
        self.live = kept;
        for live in gone {
            let at = live.gone.as_ref().map_or(now, |(at, _)| *at) + self.reclaim;
            self.lingering.push((live.order.seat.claims[0].0.clone(), live.has, at));
        }
        let adopted = self.live.iter().map(|live| Adopted {
            seat: live.order.seat.clone(),
            epoch: live.order.epoch,
            recipe: live.order.recipe.clone(),
        });
        self.notices.extend(self.placer.adopt(adopted.collect(), Millis::new(now)));
    }

    pub(super) fn run(&mut self, millis: u64) {
        let end = self.now + millis;
        while self.now < end {
            self.tick();
        }
    }

    pub(super) fn run_until(&mut self, at_most: u64, done: impl Fn(&Self) -> bool) {
        let end = self.now + at_most;
        while !done(self) {
            assert!(self.now < end, "not within {at_most} ms: {:?}", self.status.refused);
            self.tick();
        }
    }

    // What is seen of it.

    pub(super) fn now(&self) -> u64 {
        self.now - 10_000
    }

    pub(super) fn served(&self, model: &str) -> Option<&ReadyEngine> {
        let model = self.supply.models.iter().find(|one| one.id.as_str() == model)?;
        model.engines.iter().find(|engine| !engine.draining)
    }

    pub(super) fn unserved(&self, model: &str) -> Option<Unserved> {
        self.supply.models.iter().find(|one| one.id.as_str() == model)?.unserved.clone()
    }

    pub(super) fn told(&self, kind: NoticeKind) -> usize {
        self.notices.iter().filter(|notice| notice.kind == kind).count()
    }

    pub(super) fn starts(&self, model: &str) -> usize {
        self.started.iter().filter(|(id, _)| id.as_str().starts_with(&format!("{model}."))).count()
    }

    pub(super) fn started_at(&self, engine: &str) -> u64 {
        self.started.iter().find(|(id, _)| id.as_str() == engine).expect("it was started").1
    }

    pub(super) fn ended_at(&self, engine: &str) -> u64 {
        self.ended[&EngineId::new(engine)]
    }

    pub(super) fn state(&self, model: &str) -> Option<EngineState> {
        Some(self.status.engines.iter().find(|one| one.engine.seat.model.as_str() == model)?.engine.state)
    }

    pub(super) fn observed(&self, model: &str) -> Bytes {
        let status = self.status.engines.iter().find(|one| one.engine.seat.model.as_str() == model).expect("an engine");
        status.engine.observed.iter().map(|(_, bytes)| *bytes).sum()
    }

    pub(super) fn claim(&self, model: &str) -> Bytes {
        self.live
            .iter()
            .rev()
            .find(|live| live.order.seat.model.as_str() == model)
            .expect("an engine")
            .order
            .seat
            .claims[0]
            .1
    }

    pub(super) fn first_claim(&self, model: &str) -> Bytes {
        self.claims[model]
    }

    // How it goes.

    fn tick(&mut self) {
        self.now += TICK;
        self.pass();
        if !self.blindfolded && self.now >= self.sampled + SAMPLE {
            self.sampled = self.now;
            self.world = Arc::new(self.sample());
        }
        let facts = Facts {
            now: Millis::new(self.now),
            since: self.since,
            world: Arc::clone(&self.world),
            processes: Arc::new(self.live.iter().map(|live| self.process(live)).collect()),
            demand: Arc::new(self.demand()),
            load: Arc::new(Load::default()),
        };
        let step = self.placer.step(&facts);
        for command in step.commands {
            match command {
                Command::Start(order) => self.start(*order),
                Command::Stop(engine, epoch) => self.stop(&engine, epoch),
                Command::Forget(engine, epoch) => self.forget(&engine, epoch),
            }
        }
        self.supply = step.supply;
        self.status = step.status;
        self.notices.extend(step.notices);
        self.lessons.extend(step.lessons);
    }

    /// Engines take memory as they load, end when they lack it, and leave it behind for a while.
    fn pass(&mut self) {
        let now = self.now;
        self.lingering.retain(|(.., until)| *until > now);
        for nth in 0..self.live.len() {
            let live = &self.live[nth];
            if live.gone.is_some() {
                continue;
            }
            let model = live.order.seat.model.to_string();
            let (pool, claim) = live.order.seat.claims[0].clone();
            let wants = match self.fates.get(&model) {
                Some(Fate::NeedsMore(bytes) | Fate::Takes(bytes)) => *bytes,
                _ => Bytes::there(claim.signed() - Bytes::gib(1).signed()),
            };
            let left = live.ready_at.saturating_sub(now);
            let target = if left == 0 { wants } else { Bytes::new(wants.get() / LOAD * (LOAD - left)) };
            let free = Bytes::there(self.free(&pool).signed() + live.has.signed());
            let limit = match self.fates.get(&model) {
                Some(Fate::NeedsMore(_)) => claim,
                _ => free,
            };
            let out_of_memory = target > limit.min(free);
            let fails = match self.fates.get(&model) {
                Some(Fate::FailsToLoad(class)) if left < LOAD / 2 => Some(*class),
                _ => out_of_memory.then_some(ExitClass::OutOfMemory),
            };
            let others = self.foreign.iter().any(|bytes| *bytes > Bytes::ZERO);
            let foreseen = self.fates.contains_key(&model) || others;
            assert!(!out_of_memory || foreseen, "{model} was promised {claim} and found {free}");
            let live = &mut self.live[nth];
            match fails {
                Some(class) => {
                    live.gone = Some((now, Exit { class, why: "its log says so".into() }));
                    self.ended.insert(live.order.seat.engine.clone(), now);
                }
                None => live.has = live.has.max(target),
            }
        }
        let reclaim = self.reclaim;
        for live in &mut self.live {
            let Some((at, _)) = &live.gone else { continue };
            if now >= at + reclaim && live.has > Bytes::ZERO {
                if let Some(Fate::Leaks(bytes)) = self.fates.get(live.order.seat.model.as_str()) {
                    self.leaked[nth(&live.order.seat.claims[0].0)] = *bytes;
                }
                live.has = Bytes::ZERO;
            }
        }
    }

    fn used(&self, pool: &PoolId) -> Bytes {
        let engines = self.live.iter().filter(|live| live.order.seat.claims[0].0 == *pool).map(|live| live.has);
        let lingering = self.lingering.iter().filter(|(at, ..)| at == pool).map(|(_, bytes, _)| *bytes);
        engines.chain(lingering).sum::<Bytes>() + self.foreign[nth(pool)] + self.leaked[nth(pool)]
    }

    fn free(&self, pool: &PoolId) -> Bytes {
        Bytes::there(Bytes::gib(GPU).signed() - self.used(pool).signed())
    }

    fn sample(&self) -> World {
        let gpus = 0..self.health.len();
        let devices = gpus.clone().map(|nth| Device {
            id: gpu(nth),
            kind: DeviceKind::Gpu,
            name: "NVIDIA H100".into(),
            cc: ComputeCapability(9, 0),
            numa: None,
            pool: pool(nth),
            island: None,
            tp_ok: true,
            celsius: 40,
            health: self.health[nth].clone(),
        });
        let pools = gpus.clone().map(|nth| Pool {
            id: pool(nth),
            kind: PoolKind::Vram,
            cap: Bytes::gib(GPU),
            used: self.used(&pool(nth)),
            free: self.free(&pool(nth)),
            margin: Policy::discrete_margin(Bytes::gib(GPU)),
            sampled: Millis::new(self.now),
            attribution: self.attribution,
            lock: None,
            frozen: None,
            reserves: Vec::new(),
        });
        let ours = self.live.iter().filter(|live| live.gone.is_none()).map(|live| DeviceProcess {
            pool: live.order.seat.claims[0].0.clone(),
            pid: live.pid,
            bytes: Some(live.has),
        });
        let others = gpus.clone().map(|nth| DeviceProcess { pool: pool(nth), pid: 7, bytes: Some(self.foreign[nth]) });
        let processes = match self.attribution {
            Attribution::Exact => ours.chain(others).collect(),
            Attribution::Blind => Vec::new(),
        };
        let order = gpus.map(gpu).collect();
        World { devices: devices.collect(), pools: pools.collect(), processes, meters: Vec::new(), order }
    }

    fn process(&self, live: &Live) -> EngineProcess {
        let state = match &live.gone {
            Some((_, exit)) => ProcessState::Gone(exit.clone()),
            None if live.ready_at > self.now => ProcessState::Loading,
            None => ProcessState::Ready(EngineAddress {
                at: Endpoint::Unix("/run/engine.sock".into()),
                key: None,
                model: live.order.seat.model.to_string(),
                kv_tokens: None,
            }),
        };
        EngineProcess {
            engine: live.order.seat.engine.clone(),
            epoch: live.order.epoch,
            state,
            pids: if live.gone.is_some() { BTreeSet::new() } else { BTreeSet::from([live.pid]) },
            host_bytes: Bytes::ZERO,
        }
    }

    fn demand(&self) -> Demand {
        let waiting = self.asked.iter().filter(|(model, _)| self.served(model).is_none());
        let waiting = waiting.map(|(model, asked)| Waiting {
            model: ModelId::new(model),
            owner: OwnerId::new("acme/shop"),
            class: Class::Batch,
            requests: 1,
            oldest: self.origin + Duration::from_millis(*asked),
        });
        Demand { waiting: waiting.collect() }
    }

    fn start(&mut self, order: LaunchOrder) {
        let (pool, claim) = order.seat.claims[0].clone();
        for other in self.live.iter().filter(|other| other.order.seat.claims[0].0 == pool) {
            let id = &other.order.seat.engine;
            assert!(other.gone.is_none() || other.has == Bytes::ZERO, "{id} still has memory");
            assert!(other.gone.is_some() || other.ready_at <= self.now, "{id} loads there");
            assert!(!other.asked_to_stop || other.gone.is_some(), "{id} leaves");
        }
        assert!(on_pool(&order.seat.peaks, &pool) >= claim);
        self.pids += 1;
        self.claims.entry(order.seat.model.to_string()).or_insert(claim);
        self.started.push((order.seat.engine.clone(), self.now));
        let ready_at = self.now + LOAD;
        self.live.push(Live { order, pid: self.pids, ready_at, gone: None, asked_to_stop: false, has: Bytes::ZERO });
    }

    fn stop(&mut self, engine: &EngineId, epoch: Epoch) {
        let now = self.now;
        for live in self.live.iter_mut().filter(|live| live.order.seat.engine == *engine && live.order.epoch == epoch) {
            live.asked_to_stop = true;
            if live.gone.is_none() {
                live.gone = Some((now, asked()));
                self.ended.insert(engine.clone(), now);
            }
        }
    }

    fn forget(&mut self, engine: &EngineId, epoch: Epoch) {
        self.live.retain(|live| {
            let it = live.order.seat.engine == *engine && live.order.epoch == epoch;
            assert!(!it || live.gone.is_some(), "{engine} is forgotten and lives");
            assert!(!it || live.has == Bytes::ZERO, "{engine} is forgotten and has memory");
            !it
        });
    }
}

fn asked() -> Exit {
    Exit { class: ExitClass::Asked, why: "it was asked to".into() }
}

fn catalog(models: &[LocalModel]) -> Catalog {
    Catalog { models: models.to_vec(), policy: Policy::default() }
}

fn gpu(nth: usize) -> DeviceId {
    DeviceId::new(format!("GPU-{nth}"))
}

fn pool(nth: usize) -> PoolId {
    PoolId::new(format!("gpu:GPU-{nth}"))
}

fn nth(pool: &PoolId) -> usize {
    pool.as_str().trim_start_matches("gpu:GPU-").parse().expect("a pool of this machine")
}
