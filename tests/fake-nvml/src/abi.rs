//! The C functions. Each reads the state, waits while it is to hang, returns the error it is told to, or answers.
#![expect(unsafe_code, reason = "a C library: its callers hand in pointers, and its functions have fixed names")]

use std::ffi::{CStr, OsStr, c_char, c_int, c_uint, c_void};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlEccCounterType_t, nvmlEnableState_t, nvmlEventData_t, nvmlEventSet_t, nvmlFieldValue_t,
    nvmlGpuFabricInfoV_t, nvmlIntNvLinkDeviceType_t, nvmlMemory_t, nvmlMemory_v2_t, nvmlMemoryErrorType_t,
    nvmlPciInfo_t, nvmlProcessInfo_t, nvmlReturn_t, nvmlTemperatureSensors_t, nvmlUtilization_t, nvmlValue_t,
};

use crate::state::{FILE, Gpu, Memory, Process, Slice, State, code};

/// How often a call that waits looks at the state again.
const LOOK: Duration = Duration::from_millis(5);
/// `NVML_VALUE_NOT_AVAILABLE`.
const NOT_AVAILABLE: u64 = u64::MAX;
const NO_INSTANCE: c_uint = c_uint::MAX;
const FIELD_RECOVERY_ACTION: c_uint = 230;
const TYPE_UNSIGNED_INT: c_uint = 1;
/// What no GPU has more of.
const MAX_SLICES: c_uint = 7;

/// `nvmlEventTypeXidCriticalError`.
const XID_EVENT: u64 = 8;

type Answer = Result<(), nvmlReturn_t>;

/// UUIDs of devices that were handed out. A handle is a place in it plus one, and names the same device for ever.
static HANDLES: Mutex<Vec<String>> = Mutex::new(Vec::new());
/// Sets of events. A handle is a place in it plus one.
static SETS: Mutex<Vec<Set>> = Mutex::new(Vec::new());

struct Set {
    gpus: Vec<String>,
    /// How many of the state's faults it has seen.
    told: usize,
}

static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
/// Inode, seconds and nanoseconds: what tells one state file from the next.
type Version = (u64, i64, i64);
/// As it was last read.
static READ: Mutex<Option<(Version, Arc<State>)>> = Mutex::new(None);

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The folder that this library was loaded from.
fn folder() -> Option<PathBuf> {
    let mut info = libc::Dl_info {
        dli_fname: std::ptr::null(),
        dli_fbase: std::ptr::null_mut(),
        dli_sname: std::ptr::null(),
        dli_saddr: std::ptr::null_mut(),
    };
    // SAFETY: the address is one of this library, `info` is ours; the name it fills in lives as long as the library.
    let path = unsafe {
        if libc::dladdr(folder as *const c_void, &raw mut info) == 0 || info.dli_fname.is_null() {
            return None;
        }
        Path::new(OsStr::from_bytes(CStr::from_ptr(info.dli_fname).to_bytes()))
    };
    path.parent().map(Path::to_owned)
}

fn state() -> Option<Arc<State>> {
    let file = FOLDER.get_or_init(folder).as_ref()?.join(FILE);
    // Each change is a new file.
    let about = fs_err::metadata(&file).ok()?;
    let version = (about.ino(), about.mtime(), about.mtime_nsec());
    let mut read = locked(&READ);
    let state = match &*read {
        Some((old, state)) if *old == version => Arc::clone(state),
        _ => {
            let state: Arc<State> = Arc::new(serde_json::from_slice(&fs_err::read(&file).ok()?).ok()?);
            *read = Some((version, Arc::clone(&state)));
            state
        }
    };
    if !state.follows_processes {
        return Some(state);
    }
    let mut now = State::clone(&state);
    now.settle();
    Some(Arc::new(now))
}

/// What every function does first.
fn enter(function: &str, answer: impl FnOnce(&State) -> Answer) -> nvmlReturn_t {
    loop {
        let Some(state) = state() else { return code::UNKNOWN };
        if state.hanging.iter().any(|one| one == function) {
            thread::sleep(LOOK);
            continue;
        }
        if let Some(error) = state.errors.get(function) {
            return *error;
        }
        return answer(&state).err().unwrap_or(0);
    }
}

#[derive(Clone, Copy)]
enum Target<'s> {
    Gpu(&'s Gpu),
    Slice(&'s Slice),
}

impl<'s> Target<'s> {
    fn gpu(self) -> Result<&'s Gpu, nvmlReturn_t> {
        match self {
            Self::Gpu(gpu) => Ok(gpu),
            Self::Slice(_) => Err(code::NOT_SUPPORTED),
        }
    }

    fn slice(self) -> Result<&'s Slice, nvmlReturn_t> {
        match self {
            Self::Gpu(_) => Err(code::NOT_SUPPORTED),
            Self::Slice(slice) => Ok(slice),
        }
    }

    fn memory(self) -> Result<Memory, nvmlReturn_t> {
        let memory = match self {
            Self::Gpu(gpu) => gpu.memory,
            Self::Slice(slice) => slice.memory,
        };
        told(memory)
    }

    fn processes(self) -> &'s [Process] {
        match self {
            Self::Gpu(gpu) => &gpu.processes,
            Self::Slice(slice) => &slice.processes,
        }
    }
}

fn told<T>(value: Option<T>) -> Result<T, nvmlReturn_t> {
    value.ok_or(code::NOT_SUPPORTED)
}

/// The device and the GPU that it is or is a slice of.
fn find<'s>(state: &'s State, uuid: &str) -> Option<(Target<'s>, &'s Gpu)> {
    state.gpus.iter().find_map(|gpu| {
        if gpu.uuid == uuid {
            return Some((Target::Gpu(gpu), gpu));
        }
        let slice = gpu.slices.iter().flatten().find(|slice| slice.uuid == uuid)?;
        Some((Target::Slice(slice), gpu))
    })
}

fn check(function: &str, gpu: &Gpu) -> Answer {
    if gpu.lost {
        return Err(code::GPU_IS_LOST);
    }
    gpu.errors.get(function).map_or(Ok(()), |error| Err(*error))
}

fn about(function: &str, device: nvmlDevice_t, answer: impl FnOnce(Target<'_>) -> Answer) -> nvmlReturn_t {
    let uuid = locked(&HANDLES).get((device as usize).wrapping_sub(1)).cloned();
    enter(function, |state| {
        let (target, gpu) = uuid.as_deref().and_then(|uuid| find(state, uuid)).ok_or(code::INVALID_ARGUMENT)?;
        check(function, gpu)?;
        answer(target)
    })
}

fn handle(uuid: &str) -> nvmlDevice_t {
    let mut handles = locked(&HANDLES);
    let place = handles.iter().position(|one| one == uuid).unwrap_or_else(|| {
        handles.push(uuid.to_owned());
        handles.len() - 1
    });
    (place + 1) as nvmlDevice_t
}

/// SAFETY: `at` can be written to, as NVML asks of its callers for every out-parameter.
unsafe fn put<T>(at: *mut T, value: T) -> Answer {
    if at.is_null() {
        return Err(code::INVALID_ARGUMENT);
    }
    // SAFETY: not null, and the caller's promise.
    unsafe { at.write(value) };
    Ok(())
}

/// SAFETY: `at` has `length` bytes.
unsafe fn put_text(at: *mut c_char, length: c_uint, text: &str) -> Answer {
    if at.is_null() || text.len() >= length as usize {
        return Err(code::INSUFFICIENT_SIZE);
    }
    // SAFETY: the text and its end fit, by the check above.
    unsafe {
        at.cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), text.len());
        at.add(text.len()).write(0);
    }
    Ok(())
}

/// SAFETY: `infos` has room for as many entries as `count` says before.
unsafe fn put_processes(count: *mut c_uint, infos: *mut nvmlProcessInfo_t, processes: &[Process]) -> Answer {
    // SAFETY: the caller's promise; no more is written than there is room for.
    unsafe {
        let room = count.read() as usize;
        count.write(c_uint::try_from(processes.len()).unwrap_or(c_uint::MAX));
        if room < processes.len() {
            return Err(code::INSUFFICIENT_SIZE);
        }
        for (place, process) in processes.iter().enumerate() {
            infos.add(place).write(nvmlProcessInfo_t {
                pid: process.pid,
                usedGpuMemory: process.bytes.unwrap_or(NOT_AVAILABLE),
                gpuInstanceId: NO_INSTANCE,
                computeInstanceId: NO_INSTANCE,
            });
        }
    }
    Ok(())
}

fn pci_info(bus_id: &str) -> nvmlPciInfo_t {
    let mut info = nvmlPciInfo_t {
        busIdLegacy: [0; 16],
        domain: 0,
        bus: 0,
        device: 0,
        pciDeviceId: 0,
        pciSubSystemId: 0,
        busId: [0; 32],
    };
    for (to, from) in info.busId[..31].iter_mut().zip(bus_id.bytes()) {
        *to = from as c_char;
    }
    info
}

/// `of device` are functions about one device, whose state is at hand as `$target`.
macro_rules! functions {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) of $device:ident as $target:pat => $answer:expr;)*) => {$(
        // SAFETY: NVML's name and signature; pointers are only written to, by `put` and its like.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($device: nvmlDevice_t, $($arg: $ty),*) -> nvmlReturn_t {
            about(stringify!($name), $device, |$target| unsafe { $answer })
        }
    )*};
    ($(fn $name:ident($($arg:ident: $ty:ty),*) => |$state:pat_param| $answer:expr;)*) => {$(
        // SAFETY: as above.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($($arg: $ty),*) -> nvmlReturn_t {
            enter(stringify!($name), |$state| $answer)
        }
    )*};
}

functions! {
    fn nvmlInit_v2() => |_| Ok(());
    fn nvmlShutdown() => |_| Ok(());
    fn nvmlSystemGetDriverVersion(text: *mut c_char, length: c_uint) => |state| unsafe { put_text(text, length, &state.driver) };
    fn nvmlDeviceGetCount_v2(count: *mut c_uint) => |state| unsafe {
        put(count, c_uint::try_from(state.gpus.len()).unwrap_or(c_uint::MAX))
    };
    fn nvmlEventSetCreate(set: *mut nvmlEventSet_t) => |state| {
        let mut sets = locked(&SETS);
        sets.push(Set { gpus: Vec::new(), told: state.xids.len() });
        unsafe { put(set, sets.len() as nvmlEventSet_t) }
    };
    fn nvmlEventSetFree(_set: nvmlEventSet_t) => |_| Ok(());
    fn nvmlEventSetWait_v2(set: nvmlEventSet_t, data: *mut nvmlEventData_t, timeout_ms: c_uint) => |_| {
        let (uuid, xid) = wait(set, timeout_ms)?;
        unsafe {
            put(data, nvmlEventData_t {
                device: handle(&uuid),
                eventType: XID_EVENT,
                eventData: xid.into(),
                gpuInstanceId: NO_INSTANCE,
                computeInstanceId: NO_INSTANCE,
            })
        }
    };
    fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, device: *mut nvmlDevice_t) => |state| {
        let gpu = state.gpus.get(index as usize).ok_or(code::INVALID_ARGUMENT)?;
        check("nvmlDeviceGetHandleByIndex_v2", gpu)?;
        unsafe { put(device, handle(&gpu.uuid)) }
    };
    fn nvmlDeviceGetHandleByUUID(uuid: *const c_char, device: *mut nvmlDevice_t) => |state| {
        // SAFETY: the caller hands in a C string.
        let uuid = unsafe { CStr::from_ptr(uuid) }.to_str().map_err(|_| code::INVALID_ARGUMENT)?;
        let (_, gpu) = find(state, uuid).ok_or(code::NOT_FOUND)?;
        check("nvmlDeviceGetHandleByUUID", gpu)?;
        unsafe { put(device, handle(uuid)) }
    };
}

functions! {
    fn nvmlDeviceGetUUID(text: *mut c_char, length: c_uint) of device as target => {
        put_text(text, length, match target { Target::Gpu(gpu) => &gpu.uuid, Target::Slice(slice) => &slice.uuid })
    };
    fn nvmlDeviceGetName(text: *mut c_char, length: c_uint) of device as target => {
        put_text(text, length, match target { Target::Gpu(gpu) => &gpu.name, Target::Slice(slice) => &slice.name })
    };
    fn nvmlDeviceGetCudaComputeCapability(major: *mut c_int, minor: *mut c_int) of device as target => {
        let gpu = target.gpu()?;
        put(major, gpu.cc.0).and(put(minor, gpu.cc.1))
    };
    fn nvmlDeviceGetPciInfo_v3(info: *mut nvmlPciInfo_t) of device as target => put(info, pci_info(&target.gpu()?.pci));
    fn nvmlDeviceGetNumaNodeId(node: *mut c_uint) of device as target => put(node, told(target.gpu()?.numa)?);
    fn nvmlDeviceGetMemoryInfo_v2(info: *mut nvmlMemory_v2_t) of device as target => {
        let Memory { total, reserved, used } = target.memory()?;
        put(info, nvmlMemory_v2_t { version: 2, total, reserved, free: total - reserved - used, used })
    };
    fn nvmlDeviceGetMemoryInfo(info: *mut nvmlMemory_t) of device as target => {
        let Memory { total, reserved, used } = target.memory()?;
        put(info, nvmlMemory_t { total, free: total - reserved - used, used: reserved + used })
    };
    fn nvmlDeviceGetComputeRunningProcesses_v3(count: *mut c_uint, infos: *mut nvmlProcessInfo_t) of device as target => {
        put_processes(count, infos, target.processes())
    };
    fn nvmlDeviceGetGraphicsRunningProcesses_v3(count: *mut c_uint, infos: *mut nvmlProcessInfo_t) of device as _ => {
        put_processes(count, infos, &[])
    };
    fn nvmlDeviceGetUtilizationRates(rates: *mut nvmlUtilization_t) of device as target => {
        let (gpu, memory) = told(target.gpu()?.utilization)?;
        put(rates, nvmlUtilization_t { gpu, memory })
    };
    fn nvmlDeviceGetPowerUsage(milliwatts: *mut c_uint) of device as target => put(milliwatts, told(target.gpu()?.milliwatts)?);
    fn nvmlDeviceGetTotalEnergyConsumption(millijoules: *mut u64) of device as target => {
        put(millijoules, told(target.gpu()?.millijoules)?)
    };
    fn nvmlDeviceGetTemperature(_sensor: nvmlTemperatureSensors_t, celsius: *mut c_uint) of device as target => {
        put(celsius, told(target.gpu()?.celsius)?)
    };
    fn nvmlDeviceGetCurrentClocksThrottleReasons(reasons: *mut u64) of device as target => {
        put(reasons, told(target.gpu()?.throttle)?)
    };
    fn nvmlDeviceGetTotalEccErrors(_kind: nvmlMemoryErrorType_t, _since: nvmlEccCounterType_t, count: *mut u64) of device as target => {
        put(count, told(target.gpu()?.ecc_uncorrected)?)
    };
    fn nvmlDeviceGetRemappedRows(
        correctable: *mut c_uint, uncorrectable: *mut c_uint, pending: *mut c_uint, failure: *mut c_uint
    ) of device as target => {
        let remapped = told(target.gpu()?.remapped)?;
        put(correctable, 0).and(put(uncorrectable, c_uint::from(remapped.pending || remapped.failure)))?;
        put(pending, remapped.pending.into()).and(put(failure, remapped.failure.into()))
    };
    fn nvmlDeviceGetFieldValues(count: c_int, values: *mut nvmlFieldValue_t) of device as target => {
        let gpu = target.gpu()?;
        for place in 0..usize::try_from(count).map_err(|_| code::INVALID_ARGUMENT)? {
            let value = &mut *values.add(place);
            match gpu.recovery_action.filter(|_| value.fieldId == FIELD_RECOVERY_ACTION) {
                Some(action) => {
                    value.nvmlReturn = 0;
                    value.valueType = TYPE_UNSIGNED_INT;
                    value.value = nvmlValue_t { uiVal: action };
                }
                None => value.nvmlReturn = code::NOT_SUPPORTED,
            }
        }
        Ok(())
    };
    fn nvmlDeviceGetNvLinkState(link: c_uint, active: *mut nvmlEnableState_t) of device as target => {
        put(active, link_of(target, link)?.active.into())
    };
    fn nvmlDeviceGetNvLinkRemotePciInfo_v2(link: c_uint, info: *mut nvmlPciInfo_t) of device as target => {
        put(info, pci_info(&link_of(target, link)?.remote))
    };
    fn nvmlDeviceGetNvLinkRemoteDeviceType(link: c_uint, kind: *mut nvmlIntNvLinkDeviceType_t) of device as target => {
        put(kind, if link_of(target, link)?.switch { 2 } else { 0 })
    };
    fn nvmlDeviceGetGpuFabricInfoV(info: *mut nvmlGpuFabricInfoV_t) of device as target => {
        let fabric = told(target.gpu()?.fabric)?;
        (*info).status = fabric.status;
        (*info).cliqueId = fabric.clique;
        (*info).state = fabric.state;
        Ok(())
    };
    fn nvmlDeviceGetMigMode(current: *mut c_uint, pending: *mut c_uint) of device as target => {
        let on = c_uint::from(target.gpu()?.slices.is_some());
        put(current, on).and(put(pending, on))
    };
    fn nvmlDeviceGetMaxMigDeviceCount(count: *mut c_uint) of device as target => {
        target.gpu()?;
        put(count, MAX_SLICES)
    };
    fn nvmlDeviceGetMigDeviceHandleByIndex(index: c_uint, slice: *mut nvmlDevice_t) of device as target => {
        let slices = told(target.gpu()?.slices.as_ref())?;
        put(slice, handle(&slices.get(index as usize).ok_or(code::NOT_FOUND)?.uuid))
    };
    fn nvmlDeviceGetSupportedEventTypes(kinds: *mut u64) of device as target => {
        target.gpu()?;
        put(kinds, XID_EVENT)
    };
    fn nvmlDeviceGetGpuInstanceId(id: *mut c_uint) of device as target => put(id, target.slice()?.gi);
    fn nvmlDeviceGetComputeInstanceId(id: *mut c_uint) of device as target => put(id, target.slice()?.ci);
}

// SAFETY: NVML's name and signature; the set is a number here.
#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceRegisterEvents(device: nvmlDevice_t, _kinds: u64, set: nvmlEventSet_t) -> nvmlReturn_t {
    about("nvmlDeviceRegisterEvents", device, |target| {
        let uuid = target.gpu()?.uuid.clone();
        locked(&SETS).get_mut((set as usize).wrapping_sub(1)).ok_or(code::INVALID_ARGUMENT)?.gpus.push(uuid);
        Ok(())
    })
}

/// Until a fault of one of the set's GPUs is new to the set.
fn wait(set: nvmlEventSet_t, timeout_ms: c_uint) -> Result<(String, u32), nvmlReturn_t> {
    for _ in 0..=u128::from(timeout_ms) / LOOK.as_millis() {
        let state = state().ok_or(code::UNKNOWN)?;
        let mut sets = locked(&SETS);
        let set = sets.get_mut((set as usize).wrapping_sub(1)).ok_or(code::INVALID_ARGUMENT)?;
        let new = state.xids.iter().skip(set.told);
        let mut places = new.enumerate().filter(|(_, (uuid, _))| set.gpus.contains(uuid));
        if let Some((place, fault)) = places.next() {
            set.told += place + 1;
            return Ok(fault.clone());
        }
        drop(sets);
        thread::sleep(LOOK);
    }
    Err(code::TIMEOUT)
}

fn link_of(target: Target<'_>, link: c_uint) -> Result<&crate::state::Link, nvmlReturn_t> {
    target.gpu()?.links.get(link as usize).ok_or(code::INVALID_ARGUMENT)
}
