//! Whose work a device's busy time and energy were: of the engines on it that had requests, in equal parts; when none had, all
//! that are there, since they are why the device is not switched off. What a device did without any engine is nobody's.

use std::collections::BTreeMap;
use std::time::Duration;

use fettle_placement::id::{DeviceId, EngineId, Epoch};

use crate::ports::serving::{EngineMeter, Meter};

#[derive(Debug, Clone, Default)]
pub(super) struct Metering {
    devices: BTreeMap<DeviceId, (Duration, Option<u64>)>,
    engines: BTreeMap<(EngineId, Epoch), Used>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Used {
    nanos: u64,
    millijoules: Option<u64>,
}

/// An engine that is on a device now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Present<'a> {
    pub(super) engine: &'a EngineId,
    pub(super) epoch: Epoch,
    pub(super) devices: &'a [DeviceId],
    pub(super) busy: bool,
}

impl Metering {
    pub(super) fn follow(&mut self, meters: &[Meter], present: &[Present]) -> Vec<EngineMeter> {
        let known =
            |(engine, epoch): &(EngineId, Epoch)| present.iter().any(|one| one.engine == engine && one.epoch == *epoch);
        self.engines.retain(|key, _| known(key));
        for one in present {
            self.engines.entry((one.engine.clone(), one.epoch)).or_default();
        }
        for meter in meters {
            let before = self.devices.insert(meter.device.clone(), (meter.busy, meter.millijoules));
            let Some((busy, millijoules)) = before else { continue };
            let nanos = u64::try_from(meter.busy.saturating_sub(busy).as_nanos()).unwrap_or(u64::MAX);
            let energy = meter.millijoules.zip(millijoules).map(|(now, before)| now.saturating_sub(before));
            self.divide(&meter.device, nanos, energy, present);
        }
        let read = |((engine, epoch), used): (&(EngineId, Epoch), &Used)| EngineMeter {
            engine: engine.clone(),
            epoch: *epoch,
            busy: Duration::from_nanos(used.nanos),
            millijoules: used.millijoules,
        };
        self.engines.iter().map(read).collect()
    }

    fn divide(&mut self, device: &DeviceId, nanos: u64, energy: Option<u64>, present: &[Present]) {
        let here: Vec<&Present> = present.iter().filter(|one| one.devices.contains(device)).collect();
        let busy: Vec<&Present> = here.iter().copied().filter(|one| one.busy).collect();
        let sharers = if busy.is_empty() { here } else { busy };
        let count = sharers.len() as u64;
        for (nth, one) in (0u64..).zip(&sharers) {
            // The first ones take what does not divide, so that the parts sum up to the whole.
            let part = |whole: u64| whole / count + u64::from(nth < whole % count);
            if let Some(used) = self.engines.get_mut(&(one.engine.clone(), one.epoch)) {
                used.nanos = used.nanos.saturating_add(part(nanos));
                if let Some(energy) = energy {
                    used.millijoules = Some(used.millijoules.unwrap_or(0).saturating_add(part(energy)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn meter(device: &str, millis: u64, millijoules: u64) -> Meter {
        Meter {
            device: DeviceId::new(device),
            busy: Duration::from_millis(millis),
            millijoules: Some(millijoules),
            gpu_percent: None,
            memory_percent: None,
            milliwatts: None,
            celsius: None,
        }
    }

    #[test]
    fn who_has_requests_pays_for_the_device() {
        let (a, b, devices) = (EngineId::new("a.1"), EngineId::new("b.1"), [DeviceId::new("GPU-1")]);
        let present = |busy| {
            [
                Present { engine: &a, epoch: Epoch(1), devices: &devices, busy },
                Present { engine: &b, epoch: Epoch(2), devices: &devices, busy: false },
            ]
        };
        let mut metering = Metering::default();
        metering.follow(&[meter("GPU-1", 0, 100)], &present(true));
        let read = metering.follow(&[meter("GPU-1", 1_000, 500)], &present(true));
        assert_eq!((read[0].busy, read[0].millijoules), (Duration::from_secs(1), Some(400)));
        assert_eq!((read[1].busy, read[1].millijoules), (Duration::ZERO, None));
        let read = metering.follow(&[meter("GPU-1", 1_000, 701)], &present(false));
        assert_eq!((read[0].millijoules, read[1].millijoules), (Some(501), Some(100)));
    }

    proptest! {
        // I17: nothing is lost and nothing is counted twice.
        #[test]
        fn the_parts_sum_up_to_the_whole(
            steps in proptest::collection::vec((0..5_000u64, 0..9_999u64, 0..8u8), 1..40),
        ) {
            let engines = [EngineId::new("a.1"), EngineId::new("b.1"), EngineId::new("c.1")];
            let devices = [DeviceId::new("GPU-1")];
            let mut metering = Metering::default();
            let (mut busy, mut energy) = (0, 0);
            let mut read = Vec::new();
            for (nth, (millis, millijoules, working)) in steps.into_iter().enumerate() {
                let present: Vec<Present> = engines
                    .iter()
                    .enumerate()
                    .map(|(at, engine)| Present { engine, epoch: Epoch(1), devices: &devices, busy: working >> at & 1 == 1 })
                    .collect();
                if nth > 0 {
                    busy += millis;
                    energy += millijoules;
                }
                read = metering.follow(&[meter("GPU-1", busy, energy)], &present);
            }
            let total: Duration = read.iter().map(|meter| meter.busy).sum();
            prop_assert_eq!(total, Duration::from_millis(busy));
            prop_assert_eq!(read.iter().filter_map(|meter| meter.millijoules).sum::<u64>(), energy);
        }
    }
}
