//! A machine on the test bench: a fake driver, the thread that asks it, and what was seen.

use std::path::PathBuf;
use std::time::Duration;

use fettle_fake_nvml::{Installed, State};
use fettle_gpu::driver::{CallError, Driver, StartError};
use fettle_gpu::host::Host;
use fettle_gpu::load::Attempt;
use fettle_gpu::machine::{Machine, Settings};
use fettle_placement::device::{Device, Pool};
use fettle_placement::id::DeviceId;
use fettle_placement::memory_ledger::Account;
use fettle_placement::quantity::{Bytes, Millis};
use fettle_placement::view::Policy;
use tempfile::TempDir;

/// Long enough for a busy machine. Tests of a hanging driver take a shorter one.
pub(crate) const PATIENT: Duration = Duration::from_secs(20);
pub(crate) const START: Millis = Millis::secs(100);

pub(crate) struct Bench {
    _folder: TempDir,
    pub(crate) fake: Installed,
    pub(crate) driver: Driver,
    pub(crate) machine: Machine,
}

/// A library in a folder of its own, not loaded yet.
pub(crate) fn install(state: &State, without: &[&str]) -> (TempDir, Installed) {
    let folder = tempfile::tempdir().unwrap();
    let fake = Installed::without(without, folder.path(), state).unwrap();
    (folder, fake)
}

pub(crate) async fn start(paths: Vec<PathBuf>) -> Result<(Driver, Vec<Attempt>), StartError> {
    Driver::start(paths, PATIENT).await
}

/// 2 TiB, half of it available, in the machine's PID namespace.
pub(crate) fn host() -> Host {
    Host { total: Bytes::gib(2048), available: Bytes::gib(1024), host_pids: true, ..Host::default() }
}

impl Bench {
    pub(crate) async fn of(state: &State) -> Self {
        Self::with(state, &[], host(), PATIENT).await
    }

    /// A library without some functions, a host, and the deadline of a call. Everything was looked at once.
    pub(crate) async fn with(state: &State, without: &[&str], host: Host, call_timeout: Duration) -> Self {
        let (folder, fake) = install(state, without);
        let (driver, _) = Driver::start(vec![fake.library()], call_timeout).await.unwrap();
        let mut machine = Machine::new(Settings::default());
        machine.saw_host(START, host);
        let mut bench = Self { _folder: folder, fake, driver, machine };
        bench.look(START).await.unwrap();
        bench
    }

    pub(crate) async fn look(&mut self, at: Millis) -> Result<(), CallError> {
        self.machine.saw_devices(self.driver.enumerate().await?);
        self.look_at_memory(at).await?;
        self.machine.saw_activity(self.driver.activity(self.machine.present()).await?);
        self.machine.saw_condition(self.driver.condition(self.machine.present()).await?);
        Ok(())
    }

    pub(crate) async fn look_at_memory(&mut self, at: Millis) -> Result<(), CallError> {
        self.machine.saw_memory(at, self.driver.memory(self.machine.memory_devices()).await?);
        Ok(())
    }

    pub(crate) fn device(&self, id: &str) -> Device {
        let (devices, _) = self.machine.devices_and_pools(START);
        devices.into_iter().find(|device| device.id == DeviceId::new(id)).unwrap()
    }

    pub(crate) fn pools(&self) -> Vec<Pool> {
        self.machine.devices_and_pools(START).1
    }

    pub(crate) fn pool(&self, id: &str) -> Pool {
        self.pools().into_iter().find(|pool| pool.id.as_str() == id).unwrap()
    }

    /// What the memory ledger would give a load, at an instant.
    pub(crate) fn offered(&self, pool: &str, now: Millis) -> Bytes {
        let (devices, pools) = self.machine.devices_and_pools(now);
        let pool = pools.iter().find(|one| one.id.as_str() == pool).unwrap();
        Account::open(pool, &devices, [], now, &Policy::default()).avail()
    }
}

/// The pool of the GPU with this number.
pub(crate) fn vram(number: usize) -> String {
    format!("gpu:{}", fettle_fake_nvml::Gpu::uuid_of(number))
}
