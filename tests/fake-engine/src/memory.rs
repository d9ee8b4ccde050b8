//! Memory of a fake GPU, held under the number of this process. Nobody has to give it back: whoever ends, however, holds nothing
//! any more, as with a real driver.

use std::io;

use fettle_fake_nvml::{Process, State};

use crate::behaviour::Gpu;

pub(crate) fn allocate(gpu: &Gpu) -> io::Result<()> {
    change(gpu, |memory| {
        memory.processes.push(Process { pid: std::process::id(), bytes: Some(gpu.bytes) });
        if let Some(memory) = &mut memory.memory {
            memory.used += gpu.bytes;
        }
    })
}

/// What stays used after the end, and is nobody's.
pub(crate) fn leak(gpu: &Gpu) -> io::Result<()> {
    change(gpu, |memory| {
        if let Some(memory) = &mut memory.memory {
            memory.used += gpu.bytes;
        }
    })
}

fn change(gpu: &Gpu, change: impl FnOnce(&mut fettle_fake_nvml::Gpu)) -> io::Result<()> {
    State::change(&gpu.nvml, |state| {
        let found = state.gpus.iter_mut().find(|one| one.uuid == gpu.uuid);
        if let Some(found) = found {
            change(found);
        }
    })
}
