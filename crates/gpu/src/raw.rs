//! What nvml-wrapper does not wrap, or wraps so that the answer is lost. The only unsafe code of this crate; it is called on the
//! thread of NVML alone.
#![expect(unsafe_code, reason = "C functions that write through pointers")]

use nvml_wrapper::Device;
use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlGpuFabricInfo_v2_t, nvmlGpuFabricInfoV_t, nvmlMemory_t, nvmlReturn_t,
};

/// The answer of a function with one out-parameter.
///
/// # Safety
/// `call` writes a `T` to the pointer, or returns an error.
unsafe fn one<T>(empty: T, call: impl FnOnce(*mut T) -> nvmlReturn_t) -> Result<T, NvmlError> {
    let mut value = empty;
    nvml_try(call(&raw mut value))?;
    Ok(value)
}

fn handle(device: &Device<'_>) -> nvmlDevice_t {
    // SAFETY: it does not outlive `device` here, and no setting is changed through it.
    unsafe { device.handle() }
}

/// Total, free and used bytes by the first version of the call, for drivers without the second. Reserved bytes are in `used`.
pub(crate) fn memory_v1(device: &Device<'_>) -> Result<(u64, u64, u64), NvmlError> {
    let function = nvml_sym(device.nvml().lib().nvmlDeviceGetMemoryInfo.as_ref())?;
    let empty = nvmlMemory_t { total: 0, free: 0, used: 0 };
    // SAFETY: NVML's signature; it fills in the struct that it is given.
    let memory = unsafe { one(empty, |at| function(handle(device), at)) }?;
    Ok((memory.total, memory.free, memory.used))
}

/// Whether a remapping of rows is pending, and whether one has failed.
pub(crate) fn remapped_rows(device: &Device<'_>) -> Result<(bool, bool), NvmlError> {
    let function = nvml_sym(device.nvml().lib().nvmlDeviceGetRemappedRows.as_ref())?;
    let (mut correctable, mut uncorrectable, mut pending, mut failed) = (0, 0, 0, 0);
    // SAFETY: NVML's signature; it writes four numbers.
    let result = unsafe {
        function(handle(device), &raw mut correctable, &raw mut uncorrectable, &raw mut pending, &raw mut failed)
    };
    nvml_try(result)?;
    Ok((pending != 0, failed != 0))
}

/// State and status of the registration with the fabric.
pub(crate) fn fabric(device: &Device<'_>) -> Result<(u8, u32), NvmlError> {
    let function = nvml_sym(device.nvml().lib().nvmlDeviceGetGpuFabricInfoV.as_ref())?;
    // The second version is known to every driver that has the call; the third adds nothing that is asked here, and the
    // struct of the third has room for it. `NVML_STRUCT_VERSION`: the size, and the version in the top byte.
    let version = u32::try_from(size_of::<nvmlGpuFabricInfo_v2_t>()).unwrap_or_default() | (2 << 24);
    let empty = nvmlGpuFabricInfoV_t {
        version,
        clusterUuid: [0; 16],
        status: 0,
        cliqueId: 0,
        state: 0,
        healthMask: 0,
        healthSummary: 0,
    };
    // SAFETY: NVML's signature; it fills in as much as the version says, which the struct has.
    let info = unsafe { one(empty, |at| function(handle(device), at)) }?;
    Ok((info.state, info.status))
}

/// What the other end of a link is, by NVML's number. nvml-wrapper 0.13 answers `Unknown` for all: it reads the variable that
/// NVML did not write.
pub(crate) fn remote_kind(device: &Device<'_>, link: u32) -> Result<u32, NvmlError> {
    let function = nvml_sym(device.nvml().lib().nvmlDeviceGetNvLinkRemoteDeviceType.as_ref())?;
    // SAFETY: NVML's signature; it writes one number.
    unsafe { one(255, |at| function(handle(device), link, at)) }
}

/// The numbers of a MIG slice's GPU instance and compute instance.
pub(crate) fn instances(slice: &Device<'_>) -> Result<(u32, u32), NvmlError> {
    let library = slice.nvml().lib();
    let gpu = nvml_sym(library.nvmlDeviceGetGpuInstanceId.as_ref())?;
    let compute = nvml_sym(library.nvmlDeviceGetComputeInstanceId.as_ref())?;
    // SAFETY: NVML's signatures; each writes one number.
    unsafe { Ok((one(0, |at| gpu(handle(slice), at))?, one(0, |at| compute(handle(slice), at))?)) }
}
