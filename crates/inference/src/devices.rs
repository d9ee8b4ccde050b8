//! Samples GPUs and host, each fact at its own pace, and tells what they are now. A driver that does not answer is waited for,
//! never asked twice at a time: what it last said gets old, and old memory is offered to nobody.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fettle_app::ports::serving::{DeviceProcess, Since, World};
use fettle_gpu::driver::{CallError, Driver, StartError};
use fettle_gpu::host;
use fettle_gpu::load::{self, Attempt};
use fettle_gpu::machine::{Machine, Settings};
use fettle_gpu::xids::Xids;
use fettle_placement::device::PoolKind;
use fettle_placement::id::DeviceId;
use fettle_placement::quantity::Bytes;
use fettle_runtime::config::{Gpu, GpuMode};
use tokio::sync::{mpsc, watch};
use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::meters::Meters;
use crate::quarantine::Quarantine;

const MEMORY: Duration = Duration::from_millis(500);
/// While an engine loads or leaves: what it takes has to be seen before anything else begins there.
const MEMORY_IN_CHANGE: Duration = Duration::from_millis(100);
const ACTIVITY: Duration = Duration::from_secs(1);
const HOST: Duration = Duration::from_secs(2);
/// What a driver advises has to be known before the next load, and costs it microseconds.
const CONDITION: Duration = Duration::from_secs(1);
/// Devices that come, go or are cut anew, and the fabric between them: by somebody's hand.
const ENUMERATION: Duration = Duration::from_secs(5);
/// A driver that did not initialise may do so after somebody reloaded it.
const DRIVER_AGAIN: Duration = Duration::from_secs(10);
/// Longer than any call takes on a driver that is well.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// What somebody decides about a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    Quarantine { device: DeviceId, why: String },
    Release(DeviceId),
}

pub struct Devices {
    machine: Machine,
    meters: Meters,
    quarantine: Quarantine,
    since: Since,
    /// `None`: NVML is not looked for.
    paths: Option<Vec<PathBuf>>,
    buses: Vec<String>,
    /// Why the guard lets nothing be loaded where GPU and host share their memory.
    guarded: watch::Receiver<Option<String>>,
}

/// What a look at this machine finds, for `fettle doctor`. Each text is a path and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Looked {
    Absent(Vec<String>),
    Failed(Vec<String>),
    Found { library: String, gpus: Vec<String> },
}

/// Loads the library, lists the GPUs, and lets go of it.
pub async fn look(config: &Gpu) -> Looked {
    let told = |attempts: &[Attempt]| attempts.iter().map(ToString::to_string).collect::<Vec<_>>();
    let (driver, attempts) = match Driver::start(paths(config), CALL_TIMEOUT).await {
        Ok(started) => started,
        Err(StartError::Absent(attempts)) => return Looked::Absent(told(&attempts)),
        Err(StartError::Failed(attempts)) => return Looked::Failed(told(&attempts)),
        Err(failed) => return Looked::Failed(vec![failed.to_string()]),
    };
    let seen = driver.enumerate().await;
    driver.close(CALL_TIMEOUT).await;
    let library = told(&attempts).pop().unwrap_or_default();
    match seen {
        Ok(seen) => {
            let name = |gpu: fettle_gpu::observe::Gpu| format!("{} ({})", gpu.name.unwrap_or_default(), gpu.id);
            Looked::Found { library, gpus: seen.gpus.into_iter().map(name).collect() }
        }
        Err(error) => Looked::Failed(vec![format!("{library}, but {error}")]),
    }
}

fn paths(config: &Gpu) -> Vec<PathBuf> {
    load::search(config.nvml_lib.as_deref().map(camino::Utf8Path::as_std_path))
}

impl Devices {
    pub fn new(config: &Gpu, quarantine: Quarantine, since: Since, guarded: watch::Receiver<Option<String>>) -> Self {
        let settings = Settings { host_reserve: Bytes::new(config.host_reserve.0), ..Settings::default() };
        let paths = match config.mode {
            GpuMode::Auto => Some(paths(config)),
            GpuMode::Off => None,
        };
        let (machine, meters) = (Machine::new(settings), Meters::default());
        Self { machine, meters, quarantine, since, paths, buses: Vec::new(), guarded }
    }

    /// Tells the world in `world` until `stop`. `in_change`: whether an engine loads or leaves just now.
    pub async fn watch(
        mut self,
        world: watch::Sender<Arc<World>>,
        in_change: watch::Receiver<bool>,
        mut orders: mpsc::Receiver<Order>,
        stop: CancellationToken,
    ) {
        self.look_at_host();
        // Nothing is told before the GPUs were looked for: a plan without them would refuse their models for good.
        let (mut driver, mut xids) = tokio::select! {
            begun = self.begin() => begun,
            () = stop.cancelled() => return,
        };
        world.send_replace(Arc::new(self.world()));
        let mut memory = every(MEMORY_IN_CHANGE);
        let mut memory_at = self.since.millis();
        let mut activity = every(ACTIVITY);
        let mut host = every(HOST);
        let mut condition = every(CONDITION);
        let mut enumeration = every(ENUMERATION);
        let mut again = every(DRIVER_AGAIN);
        again.reset();
        loop {
            let looked = tokio::select! {
                () = stop.cancelled() => break,
                _ = again.tick(), if driver.is_none() && self.paths.is_some() => {
                    (driver, xids) = self.begin().await;
                    Ok(())
                }
                order = orders.recv() => match order {
                    Some(order) => { self.obey(order); Ok(()) }
                    None => break,
                },
                fault = fault(&mut xids) => {
                    match (fault, &driver) {
                        (Some((gpu, xid)), Some(driver)) => {
                            warn!(device.id = %gpu, xid, "{gpu} reports the fault XID {xid}");
                            self.machine.saw_xid(self.since.millis(), &gpu, xid);
                            self.look_at_condition(driver).await
                        }
                        _ => { xids = None; Ok(()) }
                    }
                }
                _ = memory.tick() => match &driver {
                    Some(driver) if *in_change.borrow() || self.since.millis().since(memory_at).get() >= millis(MEMORY) => {
                        memory_at = self.since.millis();
                        self.look_at_memory(driver).await
                    }
                    _ => continue,
                },
                _ = activity.tick() => match &driver {
                    Some(driver) => self.look_at_activity(driver).await,
                    None => continue,
                },
                _ = host.tick() => { self.look_at_host(); Ok(()) }
                _ = condition.tick() => match &driver {
                    Some(driver) => self.look_at_condition(driver).await,
                    None => continue,
                },
                _ = enumeration.tick() => match &driver {
                    Some(driver) => self.look_at_devices(driver).await,
                    None => continue,
                },
            };
            if let Err(error) = looked {
                warn!("the driver of the GPUs: {error}; what it last said gets old");
                if error == CallError::Ended {
                    (driver, xids) = (None, None);
                }
            }
            world.send_replace(Arc::new(self.world()));
        }
        if let Some(driver) = driver {
            driver.close(CALL_TIMEOUT).await;
        }
    }

    async fn begin(&mut self) -> (Option<Driver>, Option<Xids>) {
        let driver = self.start().await;
        let xids = match &driver {
            Some(driver) => self.meet(driver).await,
            None => None,
        };
        (driver, xids)
    }

    async fn start(&mut self) -> Option<Driver> {
        let paths = self.paths.clone()?;
        match Driver::start(paths, CALL_TIMEOUT).await {
            Ok((driver, attempts)) => {
                if let Some(loaded) = attempts.last() {
                    info!("NVML: {loaded}");
                }
                self.machine.freeze(None);
                Some(driver)
            }
            Err(StartError::Absent(attempts)) => {
                let paths: Vec<String> = attempts.iter().map(|one| one.path.display().to_string()).collect();
                info!("no GPU part: NVIDIA's library is not at {}", paths.join(", "));
                // It does not come by itself; a driver that is installed later wants a restart.
                self.paths = None;
                None
            }
            Err(failed) => {
                error!("the GPUs cannot be used: {failed}; tried again every {} s", DRIVER_AGAIN.as_secs());
                self.machine.freeze(Some(failed.to_string()));
                None
            }
        }
    }

    /// Everything once, so that the first plan knows all.
    async fn meet(&mut self, driver: &Driver) -> Option<Xids> {
        let met = async {
            self.look_at_devices(driver).await?;
            self.look_at_host();
            self.look_at_condition(driver).await?;
            self.look_at_activity(driver).await?;
            self.look_at_memory(driver).await?;
            driver.xids(self.machine.present()).await
        };
        match met.await {
            Ok(xids) => Some(xids),
            Err(error) => {
                warn!("the driver of the GPUs: {error}; faults are seen by their consequences alone");
                None
            }
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Quarantine { device, why } => self.quarantine.add(&device, why),
            Order::Release(device) => {
                self.quarantine.release(&device);
                self.machine.forgive(&device);
            }
        }
    }

    async fn look_at_devices(&mut self, driver: &Driver) -> Result<(), CallError> {
        let seen = driver.enumerate().await?;
        self.buses = seen.gpus.iter().filter_map(|gpu| gpu.bus.clone()).collect();
        self.machine.saw_devices(seen);
        Ok(())
    }

    async fn look_at_memory(&mut self, driver: &Driver) -> Result<(), CallError> {
        let at = self.since.millis();
        let samples = driver.memory(self.machine.memory_devices()).await?;
        self.machine.saw_memory(at, samples);
        Ok(())
    }

    async fn look_at_activity(&mut self, driver: &Driver) -> Result<(), CallError> {
        let seen = driver.activity(self.machine.present()).await?;
        self.meters.saw(self.since.millis(), &seen);
        self.machine.saw_activity(seen);
        Ok(())
    }

    async fn look_at_condition(&mut self, driver: &Driver) -> Result<(), CallError> {
        let seen = driver.condition(self.machine.present()).await?;
        self.machine.saw_condition(seen);
        Ok(())
    }

    fn look_at_host(&mut self) {
        let at = self.since.millis();
        match host::observe(&self.buses) {
            Ok(host) => self.machine.saw_host(at, host),
            Err(error) => warn!("{error}; it is offered to nobody"),
        }
    }

    fn world(&mut self) -> World {
        let (mut devices, mut pools) = self.machine.devices_and_pools(self.since.millis());
        for pool in pools.iter_mut().filter(|pool| pool.kind == PoolKind::Unified && pool.frozen.is_none()) {
            pool.frozen.clone_from(&self.guarded.borrow());
        }
        self.quarantine.follow(&mut devices);
        let processes = self.machine.processes().map(|(pool, process)| DeviceProcess {
            pool,
            pid: process.pid,
            bytes: process.bytes,
        });
        World {
            devices,
            pools,
            processes: processes.collect(),
            meters: self.meters.read(),
            order: self.machine.order(),
        }
    }
}

fn every(period: Duration) -> Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The next fault; without anybody to tell of one, it never comes.
async fn fault(xids: &mut Option<Xids>) -> Option<(DeviceId, u32)> {
    match xids {
        Some(xids) => xids.next().await,
        None => std::future::pending().await,
    }
}
