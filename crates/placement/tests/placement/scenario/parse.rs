//! Reads the facts of a scenario. Each line is a kind, a name and what is said of it, parted by commas; an option that its kind
//! does not have is refused, with the line.

use std::fmt;
use std::str::FromStr;

use fettle_placement::device::{
    Attribution, ComputeCapability, Device, DeviceKind, Health, Pool, PoolKind, Reserve, WaitingFor,
};
use fettle_placement::engine::{Engine, EngineState, Seat};
use fettle_placement::footprint::{Footprint, Parts, Slack, Source};
use fettle_placement::id::{DeviceId, EngineId, Epoch, IslandId, ModelId, OwnerId, PoolId, RecipeId};
use fettle_placement::placement::Barrier;
use fettle_placement::quantity::{Bytes, Millis};
use fettle_placement::recipe::{EngineKind, KvType, ModelSpec, Recipe, RunsOn, SleepLevel};
use fettle_placement::view::{Class, Policy, RecipeChoice, View, Want};

pub(super) struct Scenario {
    pub(super) view: View,
    pub(super) demand: Vec<Want>,
    pub(super) policy: Policy,
    pub(super) expected: String,
    /// Where `expected` begins, in bytes.
    pub(super) expected_at: usize,
    pub(super) plan_line: usize,
}

#[derive(Debug)]
pub(super) struct Mistake {
    line: usize,
    what: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.line, self.what)
    }
}

const KINDS: &str = "now, policy, gpu, slice, host, unified, reserve, model, engine, barrier, want";
/// When a scenario plays, unless it says so: everything can have happened before.
const NOW: Millis = Millis::secs(3600);
const PLAN: &str = "plan:";

pub(super) fn scenario(text: &str) -> Result<Scenario, Mistake> {
    let mut facts = Facts { view: View { now: NOW, ..View::default() }, demand: Vec::new(), policy: Policy::default() };
    let mut at = 0;
    for (number, line) in (1..).zip(text.split_inclusive('\n')) {
        at += line.len();
        let line = line.trim();
        if line == PLAN {
            let Facts { view, demand, policy } = facts;
            let expected = text[at..].to_owned();
            return Ok(Scenario { view, demand, policy, expected, expected_at: at, plan_line: number });
        }
        if !line.is_empty() && !line.starts_with('#') {
            facts.add(line).map_err(|what| Mistake { line: number, what })?;
        }
    }
    Err(Mistake { line: text.lines().count() + 1, what: format!("the line `{PLAN}` is missing") })
}

/// What is said after the name: `island nvl0, degraded`.
struct Options<'t> {
    kind: &'t str,
    left: Vec<&'t str>,
    known: Vec<&'static str>,
}

impl<'t> Options<'t> {
    fn flag(&mut self, name: &'static str) -> bool {
        self.known.push(name);
        let place = self.left.iter().position(|option| *option == name);
        place.map(|place| self.left.remove(place)).is_some()
    }

    /// What follows `name`; an option may come several times.
    fn text(&mut self, name: &'static str) -> Option<&'t str> {
        self.known.push(name);
        let rest = |option: &'t str| option.strip_prefix(name)?.strip_prefix(' ').map(str::trim);
        let place = self.left.iter().position(|option| rest(option).is_some())?;
        rest(self.left.remove(place))
    }

    fn value<T: FromStr<Err: fmt::Display>>(&mut self, name: &'static str) -> Result<Option<T>, String> {
        let parse = |text: &str| text.parse().map_err(|error: T::Err| format!("{name} `{text}`: {error}"));
        self.text(name).map(parse).transpose()
    }

    fn end(self) -> Result<(), String> {
        match self.left.first() {
            None => Ok(()),
            Some(strange) => {
                let name = strange.split(' ').next().unwrap_or(strange);
                let known = self.known.join(", ");
                Err(format!("a {} has no `{name}`; it has {known}", self.kind))
            }
        }
    }
}

struct Facts {
    view: View,
    demand: Vec<Want>,
    policy: Policy,
}

impl Facts {
    fn add(&mut self, line: &str) -> Result<(), String> {
        let mut parts = line.split(',').map(str::trim);
        let head = parts.next().unwrap_or_default();
        let (kind, head) = head.split_once(' ').unwrap_or((head, ""));
        let mut options = Options { kind, left: parts.collect(), known: Vec::new() };
        match kind {
            "now" => self.view.now = parse(head)?,
            "policy" => self.policy(head)?,
            "gpu" => self.gpu(head, &mut options)?,
            "slice" => self.slice(head)?,
            "host" => self.memory(head, PoolKind::Host, "host", &mut options)?,
            "unified" => self.memory(head, PoolKind::Unified, "unified", &mut options)?,
            "reserve" => self.reserve(head)?,
            "model" => self.model(head, &mut options)?,
            "engine" => self.engine(head, &mut options)?,
            "barrier" => self.barrier(head, &mut options)?,
            "want" => self.want(head, &mut options)?,
            _ => return Err(format!("`{kind}` is nothing that a scenario has; known are {KINDS}")),
        }
        options.end()
    }

    fn policy(&mut self, text: &str) -> Result<(), String> {
        let (name, value) = text.split_once(' ').unwrap_or((text, ""));
        match name {
            "first-fit" => self.policy.recipes = RecipeChoice::FirstFit,
            "min-residency" => self.policy.min_residency = parse(value)?,
            "starve-after" => self.policy.starve_after = parse(value)?,
            "drain-deadline" => self.policy.drain_deadline = parse(value)?,
            "replica-delay" => self.policy.replica_delay = parse(value)?,
            "idle-ttl" => self.policy.idle_ttl = Some(parse(value)?),
            _ => {
                return Err(format!(
                    "a policy has no `{name}`; it has first-fit, min-residency, starve-after, drain-deadline, \
                     replica-delay, idle-ttl"
                ));
            }
        }
        Ok(())
    }

    /// `gpu gpu0 80 GiB, island nvl0`
    fn gpu(&mut self, head: &str, options: &mut Options) -> Result<(), String> {
        let (name, size) = head.split_once(' ').ok_or("a gpu needs a name and a size")?;
        let pool = self.pool(PoolId::new(format!("gpu:{name}")), PoolKind::Vram, parse(size)?, options)?;
        self.view.pools.push(Pool { margin: Policy::discrete_margin(pool.cap), ..pool.clone() });
        self.device(name, DeviceKind::Gpu, pool.id, options)
    }

    /// `slice mig0 of gpu0 20 GiB`
    fn slice(&mut self, head: &str) -> Result<(), String> {
        let (name, rest) = head.split_once(" of ").ok_or("a slice is of a gpu: `slice mig0 of gpu0 20 GiB`")?;
        let (parent, size) = rest.split_once(' ').ok_or("a slice needs a size")?;
        let mut none = Options { kind: "slice", left: Vec::new(), known: Vec::new() };
        let parent = self.known_device(parent)?;
        let pool = self.pool(PoolId::new(format!("gi:{name}")), PoolKind::Slice, parse(size)?, &mut none)?;
        self.view.pools.push(Pool { margin: Policy::discrete_margin(pool.cap), ..pool.clone() });
        let kind = DeviceKind::Slice { parent, gi: 1, ci: 0, mig_profile: "1g.20gb".to_owned() };
        self.device(name, kind, pool.id, &mut none)
    }

    /// `host 512 GiB`, with the device `cpu`; `unified 119 GiB`, with the devices `cpu` and `gpu`.
    fn memory(&mut self, size: &str, kind: PoolKind, name: &str, options: &mut Options) -> Result<(), String> {
        let pool = self.pool(PoolId::new(name), kind, parse(size)?, options)?;
        self.view.pools.push(pool.clone());
        if kind == PoolKind::Unified {
            self.device("gpu", DeviceKind::Gpu, pool.id.clone(), options)?;
        }
        let mut none = Options { kind: "host", left: Vec::new(), known: Vec::new() };
        self.device("cpu", DeviceKind::Cpu, pool.id, &mut none)
    }

    fn pool(&self, id: PoolId, kind: PoolKind, cap: Bytes, options: &mut Options) -> Result<Pool, String> {
        let used = options.value("foreign")?.unwrap_or_default();
        let age = options.value("sampled")?.unwrap_or(Millis::ZERO);
        Ok(Pool {
            id,
            kind,
            cap,
            used,
            free: Bytes::there(i128::from(cap.over(used))),
            margin: Bytes::ZERO,
            sampled: self.view.now.since(age),
            attribution: if options.flag("blind") { Attribution::Blind } else { Attribution::Exact },
            lock: options.text("locked by").map(EngineId::new),
            frozen: options.text("frozen").map(str::to_owned),
            reserves: Vec::new(),
        })
    }

    fn device(&mut self, name: &str, kind: DeviceKind, pool: PoolId, options: &mut Options) -> Result<(), String> {
        if self.view.devices.iter().any(|device| device.id.as_str() == name) {
            return Err(format!("there is a device `{name}` already"));
        }
        let island = options.text("island").map(IslandId::new);
        let health = match options.text("quarantined") {
            Some(why) => Health::Quarantined(why.to_owned()),
            None if options.flag("degraded") => Health::Degraded("it said so".to_owned()),
            None if options.flag("lost") => Health::Lost,
            None if options.flag("fabric pending") => Health::Waiting(WaitingFor::Fabric),
            None => Health::Ok,
        };
        let cc = options.text("cc").map_or(Ok(ComputeCapability(9, 0)), capability)?;
        let numa = options.value("numa")?;
        let celsius = options.value("celsius")?.unwrap_or(40);
        let (id, name) = (DeviceId::new(name), "H200".to_owned());
        let tp_ok = !options.flag("no sets");
        self.view.devices.push(Device { id, kind, name, cc, numa, pool, island, tp_ok, celsius, health });
        Ok(())
    }

    /// `reserve worker 16 GiB on unified`
    fn reserve(&mut self, head: &str) -> Result<(), String> {
        let words = head.split_once(" on ").and_then(|(left, pool)| Some((left.split_once(' ')?, pool)));
        let ((name, claim), pool) = words.ok_or("a reserve is `reserve worker 16 GiB on unified`")?;
        let found = self.view.pools.iter_mut().find(|known| known.id.as_str() == pool);
        let found = found.ok_or_else(|| format!("no pool `{pool}`"))?;
        found.reserves.push(Reserve { name: name.to_owned(), claim: parse(claim)?, observed: Bytes::ZERO });
        Ok(())
    }

    /// `model coder 48 GiB, load 30s`: a recipe. A second line of the same name is its second recipe.
    fn model(&mut self, head: &str, options: &mut Options) -> Result<(), String> {
        let (name, size) = head.split_once(' ').ok_or("a model needs a name and what it claims of each device")?;
        let model = ModelId::new(name);
        let on = if options.flag("on cpu") { RunsOn::Cpu } else { RunsOn::Gpu };
        let tp = options.value("tp")?.unwrap_or(1);
        let min_cc = options.text("cc").map_or(Ok(ComputeCapability::default()), capability)?;
        let sleep = if options.flag("sleeps") { SleepLevel::Host } else { SleepLevel::Never };
        let host = options.value("host")?.unwrap_or_default();
        let peak_permille = options.value("peak")?.unwrap_or(1000);
        let load = options.value("load")?.unwrap_or(Millis::secs(30));
        let place = self.view.models.iter().position(|spec| spec.id == model).unwrap_or_else(|| {
            self.view.models.push(ModelSpec { id: model.clone(), recipes: Vec::new() });
            self.view.models.len() - 1
        });
        let nth = self.view.models[place].recipes.len() + 1;
        let id = RecipeId::new(options.text("recipe").map_or_else(|| format!("{name}/{nth}"), str::to_owned));
        self.view.models[place].recipes.push(id.clone());
        let context = Bytes::mib(600);
        let weights = Bytes::there(i128::from(parse::<Bytes>(size)?.over(context)));
        let shards = vec![Parts { weights, context, ..Parts::default() }; usize::from(tp)];
        let footprint = Footprint { shards, slack: Slack::NONE, host, peak_permille, load, source: Source::Dictated };
        self.view.footprints.insert(id.clone(), footprint);
        self.view.recipes.push(Recipe {
            id,
            model,
            engine: EngineKind::Vllm,
            build: "1".to_owned(),
            quant: "fp8".to_owned(),
            kv: KvType::F16,
            on,
            tp,
            ctx: 65536,
            parallel: 4,
            min_cc,
            sleep,
            flags: Vec::new(),
        });
        Ok(())
    }

    /// `engine coder.1 on gpu0, ready 5m, busy 3`. Without more it is idle and has been ready for an hour.
    fn engine(&mut self, head: &str, options: &mut Options) -> Result<(), String> {
        let (name, devices) = head.split_once(" on ").ok_or("an engine is on devices: `engine coder.1 on gpu0`")?;
        let model = name.rsplit_once('.').map_or(name, |(model, _)| model);
        let spec = self.view.models.iter().find(|spec| spec.id.as_str() == model);
        let spec = spec.ok_or_else(|| format!("no model `{model}`"))?;
        let recipe = options.text("recipe").map_or_else(|| spec.recipes[0].clone(), RecipeId::new);
        let footprint = self.view.footprints.get(&recipe).ok_or_else(|| format!("no recipe `{recipe}`"))?.clone();
        let devices = devices.split(' ').map(|name| self.known_device(name)).collect::<Result<Vec<_>, _>>()?;
        let state = self.state(options)?;
        let asleep = matches!(state, EngineState::Sleeping(_));
        let mut claims = Vec::new();
        for (id, (parts, claim)) in devices.iter().zip(footprint.shards.iter().zip(footprint.claims())) {
            let device = self.view.devices.iter().find(|device| device.id == *id);
            let pool = device.map(|device| device.pool.clone()).ok_or_else(|| format!("no device `{id}`"))?;
            claims.push((pool, if asleep { parts.context } else { claim }));
        }
        let host = if asleep { footprint.claims().sum() } else { footprint.host };
        if host > Bytes::ZERO {
            claims.push((PoolId::new("host"), host));
        }
        let share = options.value::<Bytes>("uses")?;
        let has_bytes = !matches!(state, EngineState::Reserved | EngineState::Spawning | EngineState::Backoff { .. });
        let observed: Vec<_> = if has_bytes {
            claims.iter().map(|(pool, claim)| (pool.clone(), share.unwrap_or(*claim))).collect()
        } else {
            Vec::new()
        };
        for (id, bytes) in &observed {
            if let Some(pool) = self.view.pools.iter_mut().find(|pool| pool.id == *id) {
                pool.used += *bytes;
                pool.free = Bytes::there(i128::from(pool.free.over(*bytes)));
            }
        }
        let ready_at = self.view.now.since(options.value("ready")?.unwrap_or(Millis::secs(3600)));
        let peaks = claims.iter().map(|(pool, claim)| (pool.clone(), footprint.peak(*claim))).collect();
        let model = ModelId::new(model);
        self.view.engines.push(Engine {
            id: EngineId::new(name),
            epoch: Epoch(1),
            seat: Seat { engine: EngineId::new(name), model, recipe, devices, claims, peaks },
            state,
            observed,
            inflight: options.value("busy")?.unwrap_or(0),
            warm_sessions: options.value("warm")?.unwrap_or(0),
            rate_milli: options.value("rate")?.unwrap_or(0),
            reload: options.value("reload")?.unwrap_or(footprint.load),
            prefill: Millis::secs(2),
            ready_at,
            last_used: self.view.now.since(options.value("used")?.unwrap_or(Millis::secs(3600))),
            pinned: options.flag("pinned"),
        });
        Ok(())
    }

    fn state(&self, options: &mut Options) -> Result<EngineState, String> {
        let now = self.view.now;
        let draining = options.value("draining for")?.map(|left| EngineState::Draining { until: now + left });
        let backoff = options.value("backoff for")?.map(|left| EngineState::Backoff { until: now + left });
        let named = [
            ("reserved", EngineState::Reserved),
            ("spawning", EngineState::Spawning),
            ("loading", EngineState::Loading),
            ("stopping", EngineState::Stopping),
            ("reclaiming", EngineState::Reclaiming),
            ("asleep", EngineState::Sleeping(SleepLevel::Host)),
        ];
        let named = named.into_iter().filter(|(name, _)| options.flag(name)).map(|(_, state)| state).next();
        Ok(draining.or(backoff).or(named).unwrap_or(EngineState::Ready))
    }

    /// `barrier coder on gpu0, empties judge.1, for 20s`
    fn barrier(&mut self, head: &str, options: &mut Options) -> Result<(), String> {
        let (model, devices) = head.split_once(" on ").ok_or("a barrier is on devices: `barrier coder on gpu0`")?;
        let spec = self.view.models.iter().find(|spec| spec.id.as_str() == model);
        let recipe = spec.ok_or_else(|| format!("no model `{model}`"))?.recipes[0].clone();
        let devices = devices.split(' ').map(|name| self.known_device(name)).collect::<Result<_, _>>()?;
        let engines = options.text("empties").into_iter().flat_map(|names| names.split(' ')).map(EngineId::new);
        self.view.barrier = Some(Barrier {
            model: ModelId::new(model),
            recipe,
            devices,
            engines: engines.collect(),
            until: self.view.now + options.value("for")?.unwrap_or(Millis::ZERO),
        });
        Ok(())
    }

    /// `want coder, by ada, waiting 3, for 12s`
    fn want(&mut self, model: &str, options: &mut Options) -> Result<(), String> {
        let replicas = options.text("replicas").unwrap_or("0 to 1");
        let replicas = replicas.split_once(" to ").ok_or("replicas are `replicas 0 to 2`")?;
        self.demand.push(Want {
            model: ModelId::new(model),
            owner: OwnerId::new(options.text("by").unwrap_or("ada")),
            class: if options.flag("batch") { Class::Batch } else { Class::Interactive },
            waiting: options.value("waiting")?.unwrap_or(1),
            oldest: self.view.now.since(options.value("for")?.unwrap_or(Millis::ZERO)),
            replicas: (parse(replicas.0)?, parse(replicas.1)?),
        });
        Ok(())
    }

    fn known_device(&self, name: &str) -> Result<DeviceId, String> {
        let id = DeviceId::new(name);
        self.view
            .devices
            .iter()
            .any(|device| device.id == id)
            .then_some(id)
            .ok_or_else(|| format!("no device `{name}`"))
    }
}

fn parse<T: FromStr<Err: fmt::Display>>(text: &str) -> Result<T, String> {
    text.trim().parse().map_err(|error: T::Err| error.to_string())
}

fn capability(text: &str) -> Result<ComputeCapability, String> {
    let parts = text.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    parts
        .map(|(major, minor)| ComputeCapability(major, minor))
        .ok_or_else(|| format!("`{text}` is no compute capability such as `9.0`"))
}
