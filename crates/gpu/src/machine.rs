//! Everything that was seen of this machine, put together into devices and pools. Asks nothing and reads no clock: samples come
//! with their instants, and one that nobody replaced gets old, which is what the memory ledger looks at.

use std::collections::{BTreeMap, BTreeSet};

use fettle_placement::device::{Attribution, ComputeCapability, Device, DeviceKind, Health, Pool, PoolKind};
use fettle_placement::id::{DeviceId, PoolId};
use fettle_placement::quantity::{Bytes, Millis};
use fettle_placement::view::Policy;
use tracing::info;

use crate::health::{self, FabricState, Signals};
use crate::host::Host;
use crate::islands::{Linked, islands};
use crate::memory_kind::{Evidence, MemoryKind, NvmlMemory, Verdict, memory_kind};
use crate::observe::{Activity, Condition, Enumeration, Gpu, Memory, MemoryRead, MemorySample, Process, Slice};

/// XIDs of one device that are remembered: the verdict needs the last ten minutes, and a broken GPU tells thousands.
const XIDS: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Memory of the host that no engine gets.
    pub host_reserve: Bytes,
    /// The same where GPU and host share it: above the guard's rungs, so that jitter kills nothing.
    pub unified_floor: Bytes,
}

impl Default for Settings {
    fn default() -> Self {
        Self { host_reserve: Bytes::gib(8), unified_floor: Bytes::gib(16) }
    }
}

/// A value with the instant at which it was asked for, by the caller's clock: it is never newer than it says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sampled<T> {
    at: Millis,
    value: T,
}

#[derive(Debug, Clone, Default)]
pub struct Machine {
    settings: Settings,
    host: Option<Sampled<Host>>,
    gpus: BTreeMap<DeviceId, Known>,
    /// Of GPUs and of slices.
    memory: BTreeMap<DeviceId, Sampled<MemorySample>>,
    /// What CUDA says of each GPU.
    integrated: BTreeMap<DeviceId, bool>,
    /// Why nothing may be loaded on any GPU, such as a driver that does not initialise.
    frozen: Option<String>,
    /// Of whose memory the driver said last that it cannot say anything.
    failing: BTreeSet<DeviceId>,
}

/// A GPU that was seen once. It stays known when it is gone: its engines have to learn that it is lost.
#[derive(Debug, Clone)]
struct Known {
    gpu: Gpu,
    present: bool,
    condition: Condition,
    activity: Activity,
    xids: Vec<(Millis, u32)>,
    memory_kind: Option<Verdict>,
}

impl Machine {
    pub fn new(settings: Settings) -> Self {
        Self { settings, ..Self::default() }
    }

    pub fn saw_host(&mut self, at: Millis, host: Host) {
        self.host = Some(Sampled { at, value: host });
        self.decide_kinds();
    }

    /// GPUs that are no longer listed are lost, slices are gone.
    pub fn saw_devices(&mut self, seen: Enumeration) {
        for known in self.gpus.values_mut() {
            known.present = false;
        }
        for gpu in seen.gpus {
            let known = self.gpus.entry(gpu.id.clone()).or_insert_with(|| Known::new(gpu.clone()));
            known.gpu = gpu;
            known.present = true;
        }
        let there: Vec<DeviceId> = self.memory_devices();
        self.memory.retain(|id, _| there.contains(id) || self.gpus.contains_key(id));
    }

    /// A failed reading replaces nothing. Until a good one comes nothing is loaded there; one that does not come at all gets the
    /// last one stale.
    pub fn saw_memory(&mut self, at: Millis, samples: Vec<(DeviceId, MemorySample)>) {
        for (id, sample) in samples {
            match sample.memory {
                MemoryRead::Failed => drop(self.failing.insert(id.clone())),
                MemoryRead::Read(_) | MemoryRead::NotSupported | MemoryRead::Lost => drop(self.failing.remove(&id)),
            }
            match sample.memory {
                MemoryRead::Read(_) | MemoryRead::NotSupported => {
                    self.memory.insert(id, Sampled { at, value: sample });
                }
                MemoryRead::Lost => {
                    if let Some(known) = self.gpus.get_mut(&id) {
                        known.condition.lost = true;
                    }
                }
                MemoryRead::Failed => {}
            }
        }
        self.decide_kinds();
    }

    pub fn saw_activity(&mut self, seen: Vec<(DeviceId, Activity)>) {
        for (id, activity) in seen {
            if let Some(known) = self.gpus.get_mut(&id) {
                known.activity = activity;
            }
        }
    }

    pub fn saw_condition(&mut self, seen: Vec<(DeviceId, Condition)>) {
        for (id, condition) in seen {
            if let Some(known) = self.gpus.get_mut(&id) {
                known.condition = condition;
            }
        }
    }

    pub fn saw_xid(&mut self, at: Millis, gpu: &DeviceId, xid: u32) {
        if let Some(known) = self.gpus.get_mut(gpu) {
            if known.xids.len() == XIDS {
                known.forget_an_xid();
            }
            known.xids.push((at, xid));
        }
    }

    /// CUDA's attribute `INTEGRATED`. It overrules what names and NVML made believe.
    pub fn saw_integrated(&mut self, gpu: DeviceId, integrated: bool) {
        if let Some(known) = self.gpus.get_mut(&gpu) {
            known.memory_kind = None;
        }
        self.integrated.insert(gpu, integrated);
        self.decide_kinds();
    }

    /// Until it is called with `None`, nothing may be loaded on any GPU. What runs goes on.
    pub fn freeze(&mut self, reason: Option<String>) {
        self.frozen = reason;
    }

    /// The GPUs that are there, to ask for their condition and activity.
    pub fn present(&self) -> Vec<DeviceId> {
        self.gpus.values().filter(|known| known.present).map(|known| known.gpu.id.clone()).collect()
    }

    /// The devices whose memory is to be sampled: slices instead of their GPU.
    pub fn memory_devices(&self) -> Vec<DeviceId> {
        let present = self.gpus.values().filter(|known| known.present);
        let ids = present.flat_map(|known| match &known.gpu.slices {
            Some(slices) => slices.iter().map(|slice| slice.id.clone()).collect(),
            None => vec![known.gpu.id.clone()],
        });
        ids.collect()
    }

    /// Faults that were told of a device count no more: somebody has looked at it.
    pub fn forgive(&mut self, gpu: &DeviceId) {
        if let Some(known) = self.gpus.get_mut(gpu) {
            known.xids.clear();
        }
    }

    /// GPUs as programs number them that take no UUID: in the order of their PCI buses.
    pub fn order(&self) -> Vec<DeviceId> {
        let mut present: Vec<&Gpu> = self.gpus.values().filter(|known| known.present).map(|known| &known.gpu).collect();
        present.sort_by(|one, other| one.bus.cmp(&other.bus));
        present.into_iter().map(|gpu| gpu.id.clone()).collect()
    }

    /// Processes that have memory of a GPU, with the pool that it belongs to.
    pub fn processes(&self) -> impl Iterator<Item = (PoolId, &Process)> {
        let of_gpu = |known: &Known| -> Vec<(DeviceId, PoolId)> {
            match &known.gpu.slices {
                None => vec![(known.gpu.id.clone(), self.pool_of(known))],
                Some(slices) => {
                    slices.iter().map(|slice| (slice.id.clone(), slice_pool_id(&known.gpu, slice))).collect()
                }
            }
        };
        let sampled: Vec<(DeviceId, PoolId)> = self.gpus.values().flat_map(of_gpu).collect();
        sampled.into_iter().flat_map(|(device, pool)| {
            let processes = self.memory.get(&device).and_then(|sample| sample.value.processes.as_ref());
            processes.into_iter().flatten().map(move |process| (pool.clone(), process))
        })
    }

    pub fn activity(&self, gpu: &DeviceId) -> Option<&Activity> {
        self.gpus.get(gpu).map(|known| &known.activity)
    }

    pub fn memory_kind(&self, gpu: &DeviceId) -> Option<&Verdict> {
        self.gpus.get(gpu)?.memory_kind.as_ref()
    }

    /// Devices and pools, sorted by id. A GPU in MIG mode is not among them, its slices are.
    pub fn devices_and_pools(&self, now: Millis) -> (Vec<Device>, Vec<Pool>) {
        let linked: Vec<Linked> = self.gpus.values().filter(|known| known.present).map(Known::linked).collect();
        let islands = islands(&linked);
        let registered = self.gpus.values().any(|known| known.gpu.fabric == FabricState::Ready);
        let mut devices = Vec::new();
        let mut pools: BTreeMap<PoolId, Pool> = BTreeMap::new();
        for known in self.gpus.values() {
            let health = known.health(now);
            let base = Device {
                id: known.gpu.id.clone(),
                kind: DeviceKind::Gpu,
                name: known.gpu.name.clone().unwrap_or_default(),
                cc: known.gpu.cc.unwrap_or_default(),
                numa: self.near(&known.gpu),
                pool: self.pool_of(known),
                island: islands.get(&known.gpu.id).cloned(),
                tp_ok: known.tp_ok(registered),
                celsius: known.activity.celsius.map_or(0, |celsius| u8::try_from(celsius).unwrap_or(u8::MAX)),
                health,
            };
            match &known.gpu.slices {
                None => {
                    if let Some(pool) = self.gpu_pool(known, &base.pool) {
                        pools.insert(pool.id.clone(), pool);
                    }
                    devices.push(base);
                }
                Some(slices) => {
                    for slice in slices {
                        let pool = slice_pool_id(&known.gpu, slice);
                        // Compute instances of one GPU instance share its pool: each handle tells the same memory.
                        pools.entry(pool.clone()).or_insert_with(|| self.slice_pool(slice, pool.clone()));
                        devices.push(slice_device(slice, &base, pool));
                    }
                }
            }
        }
        if let Some(host) = &self.host {
            let pool = self.host_pool(host);
            devices.push(cpu(pool.id.clone()));
            pools.insert(pool.id.clone(), pool);
        }
        devices.sort_by(|one, other| one.id.cmp(&other.id));
        (devices, pools.into_values().collect())
    }

    /// Once per device, as soon as there is something to decide by; a kind that nothing told is asked for again.
    fn decide_kinds(&mut self) {
        let Some(host) = &self.host else { return };
        for (id, known) in &mut self.gpus {
            let decided = known.memory_kind.as_ref().is_some_and(|verdict| verdict.kind != MemoryKind::Unknown);
            // In MIG mode, slices tell their own memory.
            if decided || known.gpu.slices.is_some() {
                continue;
            }
            let nvml = match self.memory.get(id).map(|sample| sample.value.memory) {
                Some(MemoryRead::Read(memory)) => NvmlMemory::Total(memory.total),
                Some(MemoryRead::NotSupported) => NvmlMemory::NotSupported,
                Some(MemoryRead::Lost | MemoryRead::Failed) => NvmlMemory::Unreadable,
                None => continue,
            };
            let evidence = Evidence {
                integrated: self.integrated.get(id).copied(),
                name: known.gpu.name.clone().unwrap_or_default(),
                nvml,
                host_total: host.value.total,
                numa_memory: known.gpu.own_node.is_some_and(|node| host.value.nodes.contains_key(&node)),
            };
            let verdict = memory_kind(&evidence);
            if known.memory_kind.as_ref() != Some(&verdict) {
                info!(device.id = %id, evidence = ?evidence, "the memory of {id} is {}: {}", verdict.kind, verdict.because);
            }
            known.memory_kind = Some(verdict);
        }
    }

    fn near(&self, gpu: &Gpu) -> Option<u32> {
        self.host.as_ref()?.value.near.get(gpu.bus.as_ref()?).copied()
    }

    fn pool_of(&self, known: &Known) -> PoolId {
        match known.kind() {
            MemoryKind::Unified => PoolId::new("unified"),
            MemoryKind::Coherent | MemoryKind::Discrete | MemoryKind::Unknown => {
                PoolId::new(format!("gpu:{}", known.gpu.id))
            }
        }
    }

    /// `None` for a GPU that draws on the unified pool.
    fn gpu_pool(&self, known: &Known, id: &PoolId) -> Option<Pool> {
        let kind = match known.kind() {
            MemoryKind::Unified => return None,
            MemoryKind::Coherent => PoolKind::Coherent,
            MemoryKind::Discrete | MemoryKind::Unknown => PoolKind::Vram,
        };
        let mut pool = self.device_pool(id.clone(), kind, &known.gpu.id);
        match known.kind() {
            MemoryKind::Unknown => {
                pool.frozen.get_or_insert_with(|| "nothing tells whose memory this GPU uses".to_owned());
            }
            MemoryKind::Coherent => {
                let host = self.host.as_ref().map(|host| &host.value);
                let node = known.gpu.own_node.and_then(|node| host?.nodes.get(&node));
                if let Some(node) = node {
                    pool.free = pool.free.min(node.free + node.clean_files);
                }
            }
            MemoryKind::Unified | MemoryKind::Discrete => {}
        }
        Some(pool)
    }

    fn slice_pool(&self, slice: &Slice, id: PoolId) -> Pool {
        self.device_pool(id, PoolKind::Slice, &slice.id)
    }

    /// Of memory that NVML reads. One that was never read has no bytes, and is frozen.
    fn device_pool(&self, id: PoolId, kind: PoolKind, device: &DeviceId) -> Pool {
        let sample = self.memory.get(device);
        let read = sample.and_then(|sample| match sample.value.memory {
            MemoryRead::Read(memory) => Some((sample, memory)),
            MemoryRead::NotSupported | MemoryRead::Lost | MemoryRead::Failed => None,
        });
        let unread = || "its memory was never read".to_owned();
        let frozen = self.frozen_for(device).or_else(|| read.is_none().then(unread));
        let none = Memory { total: Bytes::ZERO, reserved: Bytes::ZERO, used: Bytes::ZERO, free: Bytes::ZERO };
        let memory = read.map_or(none, |(_, memory)| memory);
        let cap = less(memory.total, memory.reserved);
        Pool {
            id,
            kind,
            cap,
            used: memory.used,
            free: memory.free,
            margin: Policy::discrete_margin(cap),
            sampled: sample.map_or(Millis::ZERO, |sample| sample.at),
            attribution: self.attribution(sample.map(|sample| &sample.value)),
            lock: None,
            frozen,
            reserves: Vec::new(),
        }
    }

    fn frozen_for(&self, device: &DeviceId) -> Option<String> {
        let failing = || "the driver answers with an error when it is asked for this memory".to_owned();
        self.frozen.clone().or_else(|| self.failing.contains(device).then(failing))
    }

    /// Of the host; with a GPU that shares it, the one pool of both.
    fn host_pool(&self, host: &Sampled<Host>) -> Pool {
        let Sampled { at, value: host } = host;
        let shared = self.gpus.values().find(|known| known.kind() == MemoryKind::Unified);
        let (id, kind, total, available, kept) = match shared {
            // A limit of the cgroup does not count there: what CUDA allocates is not charged to it.
            Some(_) => ("unified", PoolKind::Unified, host.total, host.available, self.settings.unified_floor),
            None => {
                let (total, available) = within_cgroup(host);
                ("host", PoolKind::Host, total, available, self.settings.host_reserve)
            }
        };
        let sample = shared.and_then(|known| self.memory.get(&known.gpu.id));
        let attribution = match shared {
            Some(_) => self.attribution(sample.map(|sample| &sample.value)),
            None => Attribution::Exact,
        };
        Pool {
            id: PoolId::new(id),
            kind,
            cap: less(total, kept),
            used: less(total, available),
            free: less(available, kept),
            margin: Bytes::ZERO,
            // A driver that no longer answers is not covered by the host, which always does.
            sampled: sample.map_or(*at, |sample| sample.at.min(*at)),
            attribution,
            lock: None,
            frozen: shared.and_then(|known| self.frozen_for(&known.gpu.id)),
            reserves: Vec::new(),
        }
    }

    /// Exact only when every process is told with its bytes, under a number that means something here.
    fn attribution(&self, sample: Option<&MemorySample>) -> Attribution {
        let host_pids = self.host.as_ref().is_some_and(|host| host.value.host_pids);
        let told = sample
            .and_then(|sample| sample.processes.as_ref())
            .is_some_and(|processes| processes.iter().all(|process| process.bytes.is_some()));
        if host_pids && told { Attribution::Exact } else { Attribution::Blind }
    }
}

fn slice_pool_id(gpu: &Gpu, slice: &Slice) -> PoolId {
    PoolId::new(format!("gi:{}/{}", gpu.id, slice.gi))
}

impl Known {
    fn new(gpu: Gpu) -> Self {
        Self {
            gpu,
            present: true,
            condition: Condition::default(),
            activity: Activity::default(),
            xids: Vec::new(),
            memory_kind: None,
        }
    }

    fn kind(&self) -> MemoryKind {
        self.memory_kind.as_ref().map_or(MemoryKind::Unknown, |verdict| verdict.kind)
    }

    fn linked(&self) -> Linked {
        Linked {
            id: self.gpu.id.clone(),
            bus: self.gpu.bus.clone().unwrap_or_default(),
            remotes: self.gpu.remotes.clone(),
        }
    }

    fn health(&self, now: Millis) -> Health {
        let Condition { lost, recovery, remap, uncorrected, brake } = self.condition.clone();
        let signals = Signals {
            lost: lost || !self.present,
            recovery,
            remap,
            uncorrected,
            brake,
            fabric: self.gpu.fabric,
            xids: self.xids.clone(),
        };
        health::verdict(&signals, now)
    }

    /// Alone among GPUs that the fabric knows, or refused by it, it works by itself.
    fn tp_ok(&self, others_registered: bool) -> bool {
        match self.gpu.fabric {
            FabricState::Ready | FabricState::Pending => true,
            FabricState::Failed => false,
            FabricState::None => !others_registered,
        }
    }

    /// The oldest of those that only count within a time; a device's own fault is never forgotten.
    fn forget_an_xid(&mut self) {
        let harmless = |xid: u32| health::xid_class(xid) == health::XidClass::Engine;
        let place = self.xids.iter().position(|(_, xid)| harmless(*xid)).or_else(|| {
            let repeated = |place: &usize| self.xids[place + 1..].iter().any(|(_, xid)| *xid == self.xids[*place].1);
            (0..self.xids.len()).find(repeated)
        });
        self.xids.remove(place.unwrap_or_default());
    }
}

fn slice_device(slice: &Slice, gpu: &Device, pool: PoolId) -> Device {
    Device {
        id: slice.id.clone(),
        kind: DeviceKind::Slice {
            parent: gpu.id.clone(),
            gi: slice.gi,
            ci: slice.ci,
            mig_profile: slice.mig_profile().to_owned(),
        },
        name: slice.name.clone().unwrap_or_default(),
        pool,
        island: None,
        tp_ok: false,
        ..gpu.clone()
    }
}

fn cpu(pool: PoolId) -> Device {
    Device {
        id: DeviceId::new("cpu"),
        kind: DeviceKind::Cpu,
        name: "CPU".to_owned(),
        cc: ComputeCapability::default(),
        numa: None,
        pool,
        island: None,
        tp_ok: false,
        celsius: 0,
        health: Health::Ok,
    }
}

/// Total and available bytes of the host, or of the container where that is less.
fn within_cgroup(host: &Host) -> (Bytes, Bytes) {
    match host.cgroup {
        Some(cgroup) if cgroup.limit < host.total => {
            (cgroup.limit, host.available.min(less(cgroup.limit, cgroup.used)))
        }
        _ => (host.total, host.available),
    }
}

fn less(from: Bytes, part: Bytes) -> Bytes {
    Bytes::there(from.signed() - part.signed())
}
