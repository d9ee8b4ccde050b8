//! How long each device was busy and what it used, added up from what it tells once a second.

use std::collections::BTreeMap;
use std::time::Duration;

use fettle_app::ports::serving::Meter;
use fettle_gpu::observe::Activity;
use fettle_placement::id::DeviceId;
use fettle_placement::quantity::Millis;

/// A device that was not asked for longer is taken to have been idle: nobody knows what it did.
const LONGEST: Millis = Millis::secs(5);

#[derive(Debug, Clone, Default)]
pub(crate) struct Meters(BTreeMap<DeviceId, Reading>);

#[derive(Debug, Clone)]
struct Reading {
    at: Millis,
    busy: Duration,
    /// The device's counter when it was first read, and since.
    energy: Option<(u64, u64)>,
    last: Activity,
}

impl Meters {
    pub(crate) fn saw(&mut self, now: Millis, seen: &[(DeviceId, Activity)]) {
        for (device, activity) in seen {
            let reading = self.0.entry(device.clone()).or_insert(Reading {
                at: now,
                busy: Duration::ZERO,
                energy: None,
                last: Activity::default(),
            });
            let passed = now.since(reading.at);
            reading.at = now;
            reading.last = activity.clone();
            if passed <= LONGEST {
                let permyriad = u64::from(activity.gpu_percent.unwrap_or(0).min(100));
                reading.busy += Duration::from_millis(passed.get() * permyriad / 100);
            }
            if let Some(counter) = activity.millijoules {
                // A driver that was loaded anew counts from 0 again.
                let first =
                    reading.energy.map_or(counter, |(first, last)| if counter < last { counter } else { first });
                reading.energy = Some((first, counter));
            }
        }
    }

    pub(crate) fn read(&self) -> Vec<Meter> {
        let meter = |(device, reading): (&DeviceId, &Reading)| Meter {
            device: device.clone(),
            busy: reading.busy,
            millijoules: reading.energy.map(|(first, last)| last - first),
            gpu_percent: reading.last.gpu_percent,
            memory_percent: reading.last.memory_percent,
            milliwatts: reading.last.milliwatts,
            celsius: reading.last.celsius,
        };
        self.0.iter().map(meter).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(percent: u32, millijoules: u64) -> Vec<(DeviceId, Activity)> {
        let activity = Activity { gpu_percent: Some(percent), millijoules: Some(millijoules), ..Activity::default() };
        vec![(DeviceId::new("GPU-1"), activity)]
    }

    #[test]
    fn busy_time_and_energy_are_added_up() {
        let mut meters = Meters::default();
        meters.saw(Millis::secs(1), &seen(80, 5_000));
        meters.saw(Millis::secs(2), &seen(50, 5_700));
        meters.saw(Millis::secs(3), &seen(100, 6_400));
        let read = meters.read();
        assert_eq!((read[0].busy, read[0].millijoules), (Duration::from_millis(1_500), Some(1_400)));
    }

    #[test]
    fn what_happened_while_nobody_looked_is_not_made_up() {
        let mut meters = Meters::default();
        meters.saw(Millis::secs(1), &seen(100, 5_000));
        meters.saw(Millis::secs(100), &seen(100, 9_000));
        assert_eq!(meters.read()[0].busy, Duration::ZERO);
        assert_eq!(meters.read()[0].millijoules, Some(4_000), "the counter has counted meanwhile");
    }
}
