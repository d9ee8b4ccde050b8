//! The state file: a machine as NVML would tell it. A `None` is `NVML_ERROR_NOT_SUPPORTED`.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Beside the library.
pub(crate) const FILE: &str = "nvml.json";

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// What NVML's functions return, as far as tests name it.
pub mod code {
    pub const INVALID_ARGUMENT: u32 = 2;
    pub const NOT_SUPPORTED: u32 = 3;
    pub const NO_PERMISSION: u32 = 4;
    pub const NOT_FOUND: u32 = 6;
    pub const INSUFFICIENT_SIZE: u32 = 7;
    pub const DRIVER_NOT_LOADED: u32 = 9;
    pub const TIMEOUT: u32 = 10;
    pub const GPU_IS_LOST: u32 = 15;
    pub const LIB_RM_VERSION_MISMATCH: u32 = 18;
    pub const UNKNOWN: u32 = 999;
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct State {
    pub driver: String,
    /// In the order of their indices.
    pub gpus: Vec<Gpu>,
    /// What these functions return instead of an answer, whatever the device.
    pub errors: BTreeMap<String, u32>,
    /// Faults that happened: the GPU's UUID and the XID. A test appends to it.
    pub xids: Vec<(String, u32)>,
    /// These functions do not come back while they are listed.
    pub hanging: Vec<String>,
    /// Processes are real ones: who has ended holds nothing any more, as with a real driver. Otherwise they are only numbers.
    pub follows_processes: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gpu {
    pub uuid: String,
    pub name: String,
    /// Compute capability, major and minor.
    pub cc: (i32, i32),
    pub pci: String,
    /// Only where the GPU's memory is a node of the host.
    pub numa: Option<u32>,
    pub memory: Option<Memory>,
    pub processes: Vec<Process>,
    /// Percent: of the GPU, of its memory's bandwidth.
    pub utilization: Option<(u32, u32)>,
    pub milliwatts: Option<u32>,
    pub millijoules: Option<u64>,
    pub celsius: Option<u32>,
    /// Bits of `nvmlClocksThrottleReasons`.
    pub throttle: Option<u64>,
    pub ecc_uncorrected: Option<u64>,
    pub remapped: Option<Remapped>,
    /// Field 230.
    pub recovery_action: Option<u32>,
    pub links: Vec<Link>,
    pub fabric: Option<Fabric>,
    /// `None`: not in MIG mode.
    pub slices: Option<Vec<Slice>>,
    /// What these functions return instead of an answer, for this GPU.
    pub errors: BTreeMap<String, u32>,
    /// Fallen off the bus: every call about it says so.
    pub lost: bool,
}

/// Bytes. `v1` functions show the reserved ones as used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    pub total: u64,
    pub reserved: u64,
    pub used: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    /// `None` where the driver does not tell.
    pub bytes: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remapped {
    pub pending: bool,
    pub failure: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    pub active: bool,
    /// PCI bus id of the other end.
    pub remote: String,
    /// The other end is an NVSwitch, and not a GPU.
    pub switch: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fabric {
    /// 0 not supported, 1 not started, 2 in progress, 3 completed.
    pub state: u8,
    /// What registering returned.
    pub status: u32,
    pub clique: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Slice {
    pub uuid: String,
    pub name: String,
    pub gi: u32,
    pub ci: u32,
    pub memory: Option<Memory>,
    pub processes: Vec<Process>,
}

impl State {
    /// Changes the state beside a library, one after the other for all that do so.
    pub fn change(folder: &Path, change: impl FnOnce(&mut Self)) -> io::Result<()> {
        let lock = fs_err::File::create(folder.join("nvml.lock"))?;
        lock.file().lock()?;
        let mut state = serde_json::from_slice(&fs_err::read(folder.join(FILE))?)?;
        change(&mut state);
        state.write(folder)
    }

    /// All at once: no call sees half of it.
    pub(crate) fn write(&self, folder: &Path) -> io::Result<()> {
        let next = folder.join("next.json");
        fs_err::write(&next, serde_json::to_vec(self)?)?;
        fs_err::rename(next, folder.join(FILE))
    }

    /// As it is now: without what processes held that have ended, if it follows them.
    pub fn read(folder: &Path) -> io::Result<Self> {
        let mut state: Self = serde_json::from_slice(&fs_err::read(folder.join(FILE))?)?;
        state.settle();
        Ok(state)
    }

    pub(crate) fn settle(&mut self) {
        if !self.follows_processes {
            return;
        }
        for gpu in &mut self.gpus {
            settle(&mut gpu.processes, gpu.memory.as_mut());
            for slice in gpu.slices.iter_mut().flatten() {
                settle(&mut slice.processes, slice.memory.as_mut());
            }
        }
    }

    fn of(gpus: Vec<Gpu>) -> Self {
        Self { driver: "575.57.08".to_owned(), gpus, ..Self::default() }
    }

    pub fn one_gpu() -> Self {
        Self::of(vec![Gpu::h200(0)])
    }

    /// Eight GPUs behind NVSwitches, the fabric ready.
    pub fn dgx() -> Self {
        let switch =
            |number: usize| Link { active: true, remote: format!("00000000:{:02X}:00.0", 7 + number), switch: true };
        let gpu = |number| Gpu {
            links: (0..18).map(|link| switch(link % 4)).collect(),
            fabric: Some(Fabric { state: 3, status: 0, clique: 1 }),
            ..Gpu::h200(number)
        };
        Self::of((0..8).map(gpu).collect())
    }

    /// One GPU in MIG mode. The last two slices are compute instances of one GPU instance.
    pub fn mig() -> Self {
        let slice = |number: u32, gi, ci, mig_profile: &str, gib| Slice {
            uuid: format!("MIG-00000000-0000-0000-0000-{number:012x}"),
            name: format!("NVIDIA H200 MIG {mig_profile}"),
            gi,
            ci,
            memory: Some(Memory { total: gib * GIB, reserved: 32 * MIB, used: 32 * MIB }),
            processes: Vec::new(),
        };
        let slices =
            vec![slice(1, 1, 0, "3g.71gb", 71), slice(2, 2, 0, "1c.2g.35gb", 35), slice(3, 2, 1, "1c.2g.35gb", 35)];
        Self::of(vec![Gpu { slices: Some(slices), ..Gpu::h200(0) }])
    }

    /// A DGX Spark: the driver says nothing of memory, ECC or links.
    pub fn gb10() -> Self {
        Self::of(vec![Gpu {
            uuid: Gpu::uuid_of(0),
            name: "NVIDIA GB10".to_owned(),
            cc: (12, 1),
            pci: "0000000F:01:00.0".to_owned(),
            utilization: Some((0, 0)),
            milliwatts: Some(9_000),
            celsius: Some(41),
            throttle: Some(0),
            ..Gpu::default()
        }])
    }
}

fn settle(processes: &mut Vec<Process>, memory: Option<&mut Memory>) {
    let held = |list: &[Process]| list.iter().filter_map(|process| process.bytes).sum::<u64>();
    let before = held(processes);
    processes.retain(|process| is_alive(process.pid));
    if let Some(memory) = memory {
        memory.used = memory.used.saturating_sub(before - held(processes));
    }
}

/// What has ended and waits for its parent holds nothing.
fn is_alive(pid: u32) -> bool {
    let stat = fs_err::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

impl Gpu {
    pub fn uuid_of(number: usize) -> String {
        format!("GPU-00000000-0000-0000-0000-{number:012x}")
    }

    /// Idle, 140.4 GiB, no links.
    pub fn h200(number: usize) -> Self {
        Self {
            uuid: Self::uuid_of(number),
            name: "NVIDIA H200".to_owned(),
            cc: (9, 0),
            pci: format!("00000000:{:02X}:00.0", 0x18 + 8 * number),
            memory: Some(Memory { total: 143_771 * MIB, reserved: 619 * MIB, used: 4 * MIB }),
            utilization: Some((0, 0)),
            milliwatts: Some(78_000),
            millijoules: Some(1_000_000),
            celsius: Some(34),
            throttle: Some(1),
            ecc_uncorrected: Some(0),
            remapped: Some(Remapped::default()),
            recovery_action: Some(0),
            ..Self::default()
        }
    }
}
