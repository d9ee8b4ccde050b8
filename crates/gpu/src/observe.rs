//! What NVML says of the devices, as values. Every field is optional by itself: a call that a device or a driver does not know
//! costs that field and nothing else. Devices go by their UUIDs; an index, which drivers number as they like, never leaves here.

use fettle_placement::device::ComputeCapability;
use fettle_placement::id::DeviceId;
use fettle_placement::quantity::Bytes;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::enums::device::{SampleValue, UsedGpuMemory};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::sys_exports::field_id::NVML_FI_DEV_GET_GPU_RECOVERY_ACTION;
use nvml_wrapper::{Device, Nvml};

use crate::driver::{CallError, Driver};
use crate::health::{FabricState, Recovery, Remap};
use crate::islands::Remote;
use crate::raw;

/// Of every GPU so far; asking for one more than there are costs one call.
const MAX_LINKS: u32 = 18;
const MIG_NAME: &str = " MIG ";

/// The devices that are there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Enumeration {
    pub gpus: Vec<Gpu>,
    /// GPUs that NVML counts and that do not tell their UUID, as one that fell off the bus.
    pub nameless: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    pub id: DeviceId,
    pub name: Option<String>,
    pub cc: Option<ComputeCapability>,
    /// PCI bus id.
    pub bus: Option<String>,
    /// The NUMA node that is this GPU's own memory; only where GPUs are nodes of the host.
    pub own_node: Option<u32>,
    /// `Some` in MIG mode, also without any.
    pub slices: Option<Vec<Slice>>,
    pub remotes: Vec<Remote>,
    pub fabric: FabricState,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    pub id: DeviceId,
    /// GPU instance and compute instance.
    pub gi: u32,
    pub ci: u32,
    pub name: Option<String>,
}

impl Slice {
    /// `3g.71gb`.
    pub fn mig_profile(&self) -> &str {
        let name = self.name.as_deref().unwrap_or_default();
        name.split_once(MIG_NAME).map_or(name, |(_, profile)| profile)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemorySample {
    pub memory: MemoryRead,
    /// `None` where the driver does not list them.
    pub processes: Option<Vec<Process>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryRead {
    Read(Memory),
    NotSupported,
    Lost,
    Failed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    pub total: Bytes,
    /// By the driver, for itself. 0 where an old driver counts it as used.
    pub reserved: Bytes,
    pub used: Bytes,
    pub free: Bytes,
}

/// A process with a context on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// As the host numbers it.
    pub pid: u32,
    pub bytes: Option<Bytes>,
}

/// For metrics, and for the choice between devices that fit as well.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Activity {
    pub gpu_percent: Option<u32>,
    pub memory_percent: Option<u32>,
    pub milliwatts: Option<u32>,
    /// Since the driver was loaded.
    pub millijoules: Option<u64>,
    pub celsius: Option<u32>,
}

/// What speaks for or against a device, as far as it is asked for; see [`crate::health`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Condition {
    pub lost: bool,
    pub recovery: Option<Recovery>,
    pub remap: Remap,
    pub uncorrected: Option<u64>,
    pub brake: bool,
}

impl Driver {
    pub async fn enumerate(&self) -> Result<Enumeration, CallError> {
        self.ask(|nvml| enumerate(nvml)).await?.map_err(|e| CallError::Driver(e.into()))
    }

    /// Memory and processes of each of `devices`, GPUs or slices.
    pub async fn memory(&self, devices: Vec<DeviceId>) -> Result<Vec<(DeviceId, MemorySample)>, CallError> {
        self.each(devices, memory, |lost| MemorySample {
            memory: if lost { MemoryRead::Lost } else { MemoryRead::Failed },
            processes: None,
        })
        .await
    }

    pub async fn activity(&self, gpus: Vec<DeviceId>) -> Result<Vec<(DeviceId, Activity)>, CallError> {
        self.each(gpus, activity, |_| Activity::default()).await
    }

    pub async fn condition(&self, gpus: Vec<DeviceId>) -> Result<Vec<(DeviceId, Condition)>, CallError> {
        self.each(gpus, condition, |lost| Condition { lost, ..Condition::default() }).await
    }

    /// `unfound` is told whether the device is lost, or cannot be found for another reason.
    async fn each<T: Send + 'static>(
        &self,
        devices: Vec<DeviceId>,
        look: fn(&Device<'_>) -> T,
        unfound: fn(bool) -> T,
    ) -> Result<Vec<(DeviceId, T)>, CallError> {
        self.ask(move |nvml| {
            let seen = devices.into_iter().map(|id| {
                let value = match nvml.device_by_uuid(id.as_str()) {
                    Ok(device) => look(&device),
                    Err(e) => unfound(is_loss(&e)),
                };
                (id, value)
            });
            seen.collect()
        })
        .await
    }
}

fn is_loss(error: &NvmlError) -> bool {
    matches!(error, NvmlError::GpuLost | NvmlError::NotFound)
}

fn enumerate(nvml: &Nvml) -> Result<Enumeration, NvmlError> {
    let mut seen = Enumeration::default();
    for index in 0..nvml.device_count()? {
        let gpu = nvml.device_by_index(index).and_then(|device| Ok((device.uuid()?, device)));
        match gpu {
            Ok((uuid, device)) => seen.gpus.push(gpu_of(DeviceId::new(uuid), &device)),
            Err(_) => seen.nameless += 1,
        }
    }
    Ok(seen)
}

fn gpu_of(id: DeviceId, device: &Device<'_>) -> Gpu {
    let cc = device
        .cuda_compute_capability()
        .ok()
        .and_then(|cc| Some(ComputeCapability(u8::try_from(cc.major).ok()?, u8::try_from(cc.minor).ok()?)));
    Gpu {
        id,
        name: device.name().ok(),
        cc,
        bus: device.pci_info().ok().map(|pci| pci.bus_id),
        own_node: device.numa_node_id().ok(),
        slices: slices(device),
        remotes: remotes(device),
        fabric: raw::fabric(device).map_or(FabricState::None, |(state, status)| fabric_state(state, status)),
    }
}

fn fabric_state(state: u8, status: u32) -> FabricState {
    match (state, status) {
        (1 | 2, _) => FabricState::Pending,
        (3, 0) => FabricState::Ready,
        (3, _) => FabricState::Failed,
        _ => FabricState::None,
    }
}

fn slices(device: &Device<'_>) -> Option<Vec<Slice>> {
    if device.mig_mode().ok()?.current == 0 {
        return None;
    }
    let places = 0..device.mig_device_count().unwrap_or_default();
    let slices = places.filter_map(|place| {
        // Places without a slice answer `NotFound`.
        let slice = device.mig_device_by_index(place).ok()?;
        let (gi, ci) = raw::instances(&slice).ok()?;
        Some(Slice { id: DeviceId::new(slice.uuid().ok()?), gi, ci, name: slice.name().ok() })
    });
    Some(slices.collect())
}

fn remotes(device: &Device<'_>) -> Vec<Remote> {
    let mut remotes = Vec::new();
    for number in 0..MAX_LINKS {
        let link = device.link_wrapper_for(number);
        match link.is_active() {
            Ok(true) => {}
            Ok(false) => continue,
            // The first link that is not there ends them.
            Err(_) => break,
        }
        let remote = match raw::remote_kind(device, number) {
            Ok(2) => Some(Remote::Switch),
            // Old drivers cannot tell the kind; a bus id that is no GPU's joins nothing.
            _ => link.remote_pci_info().ok().map(|pci| Remote::Gpu { bus: pci.bus_id }),
        };
        remotes.extend(remote.filter(|remote| !remotes.contains(remote)));
    }
    remotes
}

fn memory(device: &Device<'_>) -> MemorySample {
    let memory = match device.memory_info() {
        Ok(info) => Ok(Memory {
            total: Bytes::new(info.total),
            reserved: Bytes::new(info.reserved),
            used: Bytes::new(info.used),
            free: Bytes::new(info.free),
        }),
        Err(NvmlError::FailedToLoadSymbol(_) | NvmlError::FunctionNotFound) => {
            raw::memory_v1(device).map(|(total, free, used)| Memory {
                total: Bytes::new(total),
                reserved: Bytes::ZERO,
                used: Bytes::new(used),
                free: Bytes::new(free),
            })
        }
        Err(e) => Err(e),
    };
    let memory = match memory {
        Ok(memory) => MemoryRead::Read(memory),
        Err(NvmlError::NotSupported) => MemoryRead::NotSupported,
        Err(e) if is_loss(&e) => MemoryRead::Lost,
        Err(_) => MemoryRead::Failed,
    };
    MemorySample { memory, processes: processes(device) }
}

/// Of both lists, as a process with graphics and compute is in each: once.
fn processes(device: &Device<'_>) -> Option<Vec<Process>> {
    let mut listed = device.running_compute_processes().ok()?;
    listed.extend(device.running_graphics_processes().unwrap_or_default());
    let mut processes: Vec<Process> = listed
        .into_iter()
        .map(|process| Process {
            pid: process.pid,
            bytes: match process.used_gpu_memory {
                UsedGpuMemory::Used(bytes) => Some(Bytes::new(bytes)),
                UsedGpuMemory::Unavailable => None,
            },
        })
        .collect();
    processes.sort_by_key(|process| process.pid);
    processes.dedup_by_key(|process| process.pid);
    Some(processes)
}

fn activity(device: &Device<'_>) -> Activity {
    let utilization = device.utilization_rates().ok();
    Activity {
        gpu_percent: utilization.as_ref().map(|rates| rates.gpu),
        memory_percent: utilization.as_ref().map(|rates| rates.memory),
        milliwatts: device.power_usage().ok(),
        millijoules: device.total_energy_consumption().ok(),
        celsius: device.temperature(TemperatureSensor::Gpu).ok(),
    }
}

fn condition(device: &Device<'_>) -> Condition {
    let ecc = device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile);
    let brakes = ThrottleReasons::HW_THERMAL_SLOWDOWN
        | ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN
        | ThrottleReasons::SW_THERMAL_SLOWDOWN;
    let remap = match raw::remapped_rows(device) {
        Ok((_, true)) => Remap::Failed,
        Ok((true, false)) => Remap::Pending,
        Ok((false, false)) | Err(_) => Remap::Fine,
    };
    Condition {
        lost: ecc.as_ref().is_err_and(is_loss) || device.uuid().is_err_and(|e| is_loss(&e)),
        recovery: recovery(device),
        remap,
        uncorrected: ecc.ok(),
        brake: device.current_throttle_reasons().is_ok_and(|reasons| reasons.intersects(brakes)),
    }
}

fn recovery(device: &Device<'_>) -> Option<Recovery> {
    let fields = device.field_values_for(&[FieldId(NVML_FI_DEV_GET_GPU_RECOVERY_ACTION)]).ok()?;
    match fields.into_iter().next()?.ok()?.value.ok()? {
        SampleValue::U32(action) => Some(Recovery::of(action)),
        SampleValue::U64(action) => u32::try_from(action).ok().map(Recovery::of),
        SampleValue::F64(_) | SampleValue::I64(_) => None,
    }
}
