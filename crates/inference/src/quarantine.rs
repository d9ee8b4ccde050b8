//! Devices that get nothing until somebody acts, kept over restarts of Fettle: a GPU with a broken memory is not well again
//! because nobody remembers. A boot of the machine ends it, unless the device still asks for something then.

use std::collections::BTreeMap;

use camino::Utf8PathBuf;
use fettle_placement::device::{Device, Health};
use fettle_placement::id::DeviceId;
use serde::{Deserialize, Serialize};
use tracing::{error, info, warn};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

#[derive(Debug)]
pub struct Quarantine {
    file: Utf8PathBuf,
    kept: Kept,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    boot: String,
    /// With what is to be done.
    devices: BTreeMap<DeviceId, String>,
}

impl Quarantine {
    /// What was kept in `file` since the machine was booted. A file that cannot be read keeps nothing, and says so.
    pub fn open(file: Utf8PathBuf) -> Self {
        let boot = fs_err::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned();
        let kept = match fs_err::read(&file) {
            Ok(bytes) => serde_json::from_slice::<Kept>(&bytes).unwrap_or_else(|error| {
                error!("{file} is damaged ({error}): devices that were quarantined are judged anew");
                Kept::default()
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Kept::default(),
            Err(error) => {
                error!("{error}: devices that were quarantined are judged anew");
                Kept::default()
            }
        };
        let kept = if kept.boot == boot { kept } else { Kept { boot, devices: BTreeMap::new() } };
        Self { file, kept }
    }

    /// Keeps those that were found in need of it, and marks those that are kept.
    pub(crate) fn follow(&mut self, devices: &mut [Device]) {
        for device in devices {
            match (&device.health, self.kept.devices.get(&device.id)) {
                (Health::Quarantined(why), None) => {
                    let why = why.clone();
                    self.add(&device.id, why);
                }
                (Health::Ok | Health::Degraded(_) | Health::Waiting(_), Some(why)) => {
                    device.health = Health::Quarantined(why.clone());
                }
                (Health::Quarantined(_), Some(_)) | (_, None) | (Health::Lost, _) => {}
            }
        }
    }

    pub(crate) fn add(&mut self, device: &DeviceId, why: String) {
        warn!(device.id = %device, "{device} is quarantined: {why}; `fettle gpus release {device}` ends it");
        self.kept.devices.insert(device.clone(), why);
        self.store();
    }

    pub(crate) fn release(&mut self, device: &DeviceId) {
        if self.kept.devices.remove(device).is_some() {
            info!(device.id = %device, "{device} is released from quarantine");
            self.store();
        }
    }

    /// A new file in place of the old one, so that a crash leaves either.
    fn store(&self) {
        let written = serde_json::to_vec_pretty(&self.kept).map_err(std::io::Error::other).and_then(|bytes| {
            let new = self.file.with_extension("new");
            fs_err::write(&new, bytes)?;
            fs_err::File::open(&new)?.sync_all()?;
            fs_err::rename(&new, &self.file)
        });
        if let Err(error) = written {
            error!("{error}: a quarantine will be forgotten at the next restart");
        }
    }
}

#[cfg(test)]
mod tests {
    use fettle_placement::device::{ComputeCapability, DeviceKind};
    use fettle_placement::id::PoolId;

    use super::*;

    fn device(health: Health) -> Device {
        Device {
            id: DeviceId::new("GPU-1"),
            kind: DeviceKind::Gpu,
            name: "H200".into(),
            cc: ComputeCapability(9, 0),
            numa: None,
            pool: PoolId::new("gpu:GPU-1"),
            island: None,
            tp_ok: true,
            celsius: 40,
            health,
        }
    }

    fn health_after_restart(file: &camino::Utf8Path) -> Health {
        let mut devices = [device(Health::Ok)];
        Quarantine::open(file.to_owned()).follow(&mut devices);
        devices[0].health.clone()
    }

    #[test]
    fn a_quarantine_outlives_a_restart_and_ends_with_its_release() {
        let folder = tempfile::tempdir().unwrap();
        let file = Utf8PathBuf::from_path_buf(folder.path().join("quarantine.json")).unwrap();
        let mut quarantine = Quarantine::open(file.clone());
        quarantine.follow(&mut [device(Health::Quarantined("reset it".into()))]);
        assert_eq!(health_after_restart(&file), Health::Quarantined("reset it".into()));
        quarantine.release(&DeviceId::new("GPU-1"));
        assert_eq!(health_after_restart(&file), Health::Ok);
    }

    #[test]
    fn a_boot_of_the_machine_ends_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = Utf8PathBuf::from_path_buf(folder.path().join("quarantine.json")).unwrap();
        fs_err::write(&file, r#"{"boot":"another","devices":{"GPU-1":"reset it"}}"#).unwrap();
        assert_eq!(health_after_restart(&file), Health::Ok);
    }

    #[test]
    fn a_damaged_file_stops_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = Utf8PathBuf::from_path_buf(folder.path().join("quarantine.json")).unwrap();
        fs_err::write(&file, "{").unwrap();
        assert_eq!(health_after_restart(&file), Health::Ok);
    }
}
