//! What Prometheus is told: hardware by DCGM's names, so that existing boards work, and the scheduler by our own. What a device
//! does not tell is absent, and never 0.

use std::sync::{Arc, Mutex, PoisonError};

use fettle_app::ports::serving::Meter;
use fettle_app::serving::Status;
use fettle_engines::Engines;
use fettle_placement::device::{Device, DeviceKind, Health, Pool, PoolKind};
use fettle_placement::memory_ledger::Account;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, IntCounter, Opts};
use tokio::sync::watch;

use crate::admin::state_name;

const DEVICE_LABELS: [&str; 3] = ["gpu", "UUID", "modelName"];
const MIB: f64 = (1 << 20) as f64;

/// Reads the placer's last step whenever somebody asks.
pub struct StatusCollector {
    status: watch::Receiver<Arc<Status>>,
    host: Arc<Engines>,
    orphans: IntCounter,
    /// One at a time: they are filled anew for each who asks.
    families: Mutex<Families>,
    described: Vec<Desc>,
}

struct Families {
    free: GaugeVec,
    used: GaugeVec,
    gpu: GaugeVec,
    copy: GaugeVec,
    celsius: GaugeVec,
    watts: GaugeVec,
    energy: GaugeVec,
    pool: GaugeVec,
    health: GaugeVec,
    engines: GaugeVec,
}

impl StatusCollector {
    /// # Errors
    ///
    /// When a name is not one that Prometheus takes, which a test would have seen.
    pub fn new(status: watch::Receiver<Arc<Status>>, host: Arc<Engines>) -> Result<Self, prometheus::Error> {
        let device = |name: &str, help: &str| GaugeVec::new(Opts::new(name, help), &DEVICE_LABELS);
        let own = |name: &str, help: &str, labels: &[&str]| GaugeVec::new(Opts::new(name, help), labels);
        let families = Families {
            free: device("DCGM_FI_DEV_FB_FREE", "Memory of the device that is free, MiB.")?,
            used: device("DCGM_FI_DEV_FB_USED", "Memory of the device that is used, MiB.")?,
            gpu: device("DCGM_FI_DEV_GPU_UTIL", "Busy, percent.")?,
            copy: device("DCGM_FI_DEV_MEM_COPY_UTIL", "Memory busy, percent.")?,
            celsius: device("DCGM_FI_DEV_GPU_TEMP", "Temperature, degrees Celsius.")?,
            watts: device("DCGM_FI_DEV_POWER_USAGE", "Power, W.")?,
            energy: device("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "Energy since it was first seen, mJ.")?,
            pool: own("fettle_pool_bytes", "Bytes of a pool of memory.", &["pool", "kind"])?,
            health: own("fettle_device_health", "1 for the health that a device has.", &["device", "health"])?,
            engines: own("fettle_engine_state", "Engines of a model in a state.", &["model", "state"])?,
        };
        let orphans =
            IntCounter::new("fettle_orphans_killed_total", "Processes that engines left behind and that were ended.")?;
        let described = families.all().into_iter().flat_map(|family| family.desc()).chain(orphans.desc());
        Ok(Self { status, described: described.cloned().collect(), host, orphans, families: Mutex::new(families) })
    }
}

impl Families {
    fn all(&self) -> [&GaugeVec; 10] {
        let Self { free, used, gpu, copy, celsius, watts, energy, pool, health, engines } = self;
        [free, used, gpu, copy, celsius, watts, energy, pool, health, engines]
    }

    fn fill(&self, status: &Status) {
        self.all().into_iter().for_each(GaugeVec::reset);
        let gpus = status.devices.iter().filter(|device| device.kind != DeviceKind::Cpu);
        for (nth, device) in gpus.enumerate() {
            let pool = status.pools.iter().map(|(pool, _)| pool).find(|pool| pool.id == device.pool);
            let meter = status.meters.iter().find(|meter| meter.device == device.id);
            self.device(&nth.to_string(), device, pool, meter);
        }
        for device in &status.devices {
            let health = match device.health {
                Health::Ok => "ok",
                Health::Degraded(_) => "degraded",
                Health::Waiting(_) => "waiting",
                Health::Quarantined(_) => "quarantined",
                Health::Lost => "lost",
            };
            self.health.with_label_values(&[device.id.as_str(), health]).set(1.0);
        }
        status.pools.iter().for_each(|(pool, account)| self.pool(pool, account));
        for engine in &status.engines {
            let labels = [engine.engine.seat.model.as_str(), state_name(engine.engine.state)];
            self.engines.with_label_values(&labels).inc();
        }
    }

    fn device(&self, nth: &str, device: &Device, pool: Option<&Pool>, meter: Option<&Meter>) {
        let labels = [nth, device.id.as_str(), device.name.as_str()];
        let set = |family: &GaugeVec, value: Option<f64>| {
            if let Some(value) = value {
                family.with_label_values(&labels).set(value);
            }
        };
        // Memory that a GPU shares with the host is not a frame buffer.
        let own = pool.filter(|pool| matches!(pool.kind, PoolKind::Vram | PoolKind::Slice | PoolKind::Coherent));
        set(&self.free, own.map(|pool| pool.free.get() as f64 / MIB));
        set(&self.used, own.map(|pool| pool.used.get() as f64 / MIB));
        let Some(meter) = meter else { return };
        set(&self.gpu, meter.gpu_percent.map(f64::from));
        set(&self.copy, meter.memory_percent.map(f64::from));
        set(&self.celsius, meter.celsius.map(f64::from));
        set(&self.watts, meter.milliwatts.map(|milliwatts| f64::from(milliwatts) / 1e3));
        set(&self.energy, meter.millijoules.map(|millijoules| millijoules as f64));
    }

    fn pool(&self, pool: &Pool, account: &Account) {
        for (kind, bytes) in [
            ("cap", pool.cap),
            ("claimed", account.holds()),
            ("foreign", account.foreign()),
            ("available", account.avail()),
            ("skew", account.skew()),
        ] {
            self.pool.with_label_values(&[pool.id.as_str(), kind]).set(bytes.get() as f64);
        }
    }
}

impl Collector for StatusCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.described.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let status = Arc::clone(&self.status.borrow());
        let families = self.families.lock().unwrap_or_else(PoisonError::into_inner);
        families.fill(&status);
        // The host counts; this is what it counted.
        self.orphans.reset();
        self.orphans.inc_by(self.host.orphans_ended());
        families.all().into_iter().flat_map(Collector::collect).chain(self.orphans.collect()).collect()
    }
}
