//! Faults that the driver reports as they happen, by their numbers (XIDs). A thread of its own waits for them, because waiting is
//! what it does nearly always; it asks NVML nothing else, and judges nothing.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use fettle_placement::id::DeviceId;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{EventSet, Nvml};
use tokio::sync::mpsc;

use crate::driver::{CallError, Driver};
use crate::load::Fault;

/// How long one wait is: the thread ends at most this much after whoever listens has gone.
const WAIT: Duration = Duration::from_secs(1);
/// A broken GPU tells thousands. Whoever does not read them makes the thread wait, and NVML keeps the last one.
const QUEUE: usize = 64;

/// What NVML tells as 999: a fault whose number it does not know.
const UNNUMBERED: u32 = 999;

/// XIDs as they come. Dropped, its thread ends.
pub struct Xids {
    coming: mpsc::Receiver<(DeviceId, u32)>,
}

impl Driver {
    /// Of those of `gpus` that report them, from now on. For GPUs that come later, it is asked for again.
    pub async fn xids(&self, gpus: Vec<DeviceId>) -> Result<Xids, CallError> {
        let nvml = self.ask(Arc::clone).await?;
        let (telling, coming) = mpsc::channel(QUEUE);
        let (ready, listening) = tokio::sync::oneshot::channel();
        let spawned = thread::Builder::new().name("gpu-xids".to_owned()).spawn(move || {
            let set = listen(&nvml, gpus);
            let heard = set.as_ref().map(drop).map_err(|e| CallError::Driver(Fault::Other(e.to_string())));
            if ready.send(heard).is_ok()
                && let Ok(set) = set
            {
                tell(&set, &telling);
            }
        });
        spawned.map_err(|e| CallError::Driver(Fault::Other(format!("no thread to wait for faults: {e}"))))?;
        match tokio::time::timeout(self.call_timeout(), listening).await {
            Ok(heard) => heard.map_err(|_| CallError::Ended)??,
            Err(_) => return Err(CallError::Timeout),
        }
        Ok(Xids { coming })
    }
}

impl Xids {
    /// The next fault; `None` when the thread has ended. May be dropped while it waits.
    pub async fn next(&mut self) -> Option<(DeviceId, u32)> {
        self.coming.recv().await
    }
}

/// A GPU that refuses to be listened to takes the whole set with it, so those that cannot tell are not asked, and after a
/// refusal the rest begins anew.
fn listen(nvml: &Nvml, mut gpus: Vec<DeviceId>) -> Result<EventSet<'_>, NvmlError> {
    'anew: loop {
        let mut set = nvml.create_event_set()?;
        for place in 0..gpus.len() {
            let Ok(device) = nvml.device_by_uuid(gpus[place].as_str()) else { continue };
            if !device.supported_event_types().is_ok_and(|kinds| kinds.contains(EventTypes::CRITICAL_XID_ERROR)) {
                continue;
            }
            match device.register_events(EventTypes::CRITICAL_XID_ERROR, set) {
                Ok(whole) => set = whole,
                Err(_) => {
                    gpus.remove(place);
                    continue 'anew;
                }
            }
        }
        return Ok(set);
    }
}

fn tell(set: &EventSet<'_>, telling: &mpsc::Sender<(DeviceId, u32)>) {
    let millis = u32::try_from(WAIT.as_millis()).unwrap_or(u32::MAX);
    while !telling.is_closed() {
        match set.wait(millis) {
            Ok(event) => {
                let xid = match event.event_data {
                    Some(XidError::Value(xid)) => u32::try_from(xid).unwrap_or(UNNUMBERED),
                    Some(XidError::Unknown) => UNNUMBERED,
                    None => continue,
                };
                let Ok(uuid) = event.device.uuid() else { continue };
                if telling.blocking_send((DeviceId::new(uuid), xid)).is_err() {
                    return;
                }
            }
            Err(NvmlError::Timeout) => {}
            // A lost GPU ends every wait at once; without a pause that would be all this machine does.
            Err(_) => thread::sleep(WAIT),
        }
    }
}
