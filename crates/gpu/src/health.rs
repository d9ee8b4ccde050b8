//! What signals of a device mean for its use. A pure function of what was seen; quarantining and releasing by hand is its
//! caller's, and nobody here ever resets a GPU.

use fettle_placement::device::{Health, WaitingFor};
use fettle_placement::quantity::Millis;

/// Everything that speaks for or against a device. `None` and `false`: not told, or told and fine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Signals {
    /// NVML says that it fell off the bus, or it is gone from the list.
    pub lost: bool,
    pub recovery: Option<Recovery>,
    pub remap: Remap,
    /// Errors that ECC could not correct, since the driver was loaded. Most are contained and cost one process; of those that
    /// are not, XID 95 tells.
    pub uncorrected: Option<u64>,
    pub brake: bool,
    pub fabric: FabricState,
    /// XIDs since boot, oldest first, with the instant at which each was seen.
    pub xids: Vec<(Millis, u32)>,
}

/// The driver's own advice, field 230.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    None,
    Reset,
    Reboot,
    DrainPeers,
    DrainAndReset,
    Other(u32),
}

impl Recovery {
    pub fn of(field: u32) -> Self {
        match field {
            0 => Self::None,
            1 => Self::Reset,
            2 => Self::Reboot,
            3 => Self::DrainPeers,
            4 => Self::DrainAndReset,
            other => Self::Other(other),
        }
    }
}

/// Whether rows of memory that failed were replaced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Remap {
    #[default]
    Fine,
    /// Replaced at the next reset.
    Pending,
    Failed,
}

/// How far the GPU's registration with the NVSwitch fabric is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FabricState {
    /// No fabric: links decide.
    #[default]
    None,
    Pending,
    Ready,
    /// Completed with an error: the GPU works alone.
    Failed,
}

/// After so many faults of engines within [`FAULT_WINDOW`] the device itself is under suspicion.
const FAULTS: usize = 3;
const FAULT_WINDOW: Millis = Millis::secs(600);

/// Who is at fault for an XID. The classes are the fallback where a driver has no recovery action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XidClass {
    Lost,
    Device,
    /// The engine that ran there: it is restarted, and only it.
    Engine,
    Warning,
}

pub fn xid_class(xid: u32) -> XidClass {
    match xid {
        79 => XidClass::Lost,
        46 | 48 | 62 | 64 | 74 | 95 | 119 | 120 => XidClass::Device,
        13 | 31 | 43 | 45 => XidClass::Engine,
        // 63, 94 and whatever nobody has classed.
        _ => XidClass::Warning,
    }
}

/// The first row that matches; within a row the driver's advice comes first, as it names the remedy.
pub fn verdict(signals: &Signals, now: Millis) -> Health {
    let seen = |class| signals.xids.iter().map(|(_, xid)| *xid).find(|xid| xid_class(*xid) == class);
    if signals.lost || seen(XidClass::Lost).is_some() {
        return Health::Lost;
    }
    if let Some(why) = quarantine(signals, seen(XidClass::Device)) {
        return Health::Quarantined(why);
    }
    if signals.fabric == FabricState::Pending {
        return Health::Waiting(WaitingFor::Fabric);
    }
    degraded(signals, seen(XidClass::Warning), now).map_or(Health::Ok, Health::Degraded)
}

fn quarantine(signals: &Signals, xid: Option<u32>) -> Option<String> {
    let advice = match signals.recovery {
        None | Some(Recovery::None) => None,
        Some(Recovery::Reset) => Some("the driver asks for a reset of the GPU".to_owned()),
        Some(Recovery::Reboot) => Some("the driver asks for a reboot".to_owned()),
        Some(Recovery::DrainPeers) => Some("the driver asks to end what uses its links to other GPUs".to_owned()),
        Some(Recovery::DrainAndReset) => Some("the driver asks to end what runs there and to reset the GPU".to_owned()),
        Some(Recovery::Other(action)) => Some(format!("the driver asks for recovery action {action}")),
    };
    advice
        .or_else(|| (signals.remap == Remap::Failed).then(|| "rows of its memory could not be replaced".to_owned()))
        .or_else(|| xid.map(|xid| format!("XID {xid}")))
}

fn degraded(signals: &Signals, xid: Option<u32>, now: Millis) -> Option<String> {
    let pending =
        (signals.remap == Remap::Pending).then(|| "rows of its memory are replaced at the next reset".to_owned());
    let faults = signals
        .xids
        .iter()
        .filter(|(at, xid)| xid_class(*xid) == XidClass::Engine && now.since(*at) <= FAULT_WINDOW)
        .count();
    let uncorrected = signals.uncorrected.filter(|count| *count > 0);
    pending
        .or_else(|| uncorrected.map(|count| format!("{count} uncorrected memory errors")))
        .or_else(|| signals.brake.then(|| "slowed down by heat or power".to_owned()))
        .or_else(|| xid.map(|xid| format!("XID {xid}")))
        .or_else(|| (faults >= FAULTS).then(|| format!("{faults} faults of engines in ten minutes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = Millis::secs(10_000);

    fn of(signals: &Signals) -> Health {
        verdict(signals, NOW)
    }

    fn xid(number: u32) -> Health {
        of(&Signals { xids: vec![(NOW, number)], ..Signals::default() })
    }

    #[test]
    fn the_worst_signal_decides_and_a_silent_device_is_fine() {
        let mut signals = Signals::default();
        assert_eq!(of(&signals), Health::Ok);
        signals.remap = Remap::Pending;
        assert!(matches!(of(&signals), Health::Degraded(why) if why.contains("next reset")));
        signals = Signals { uncorrected: Some(3), ..Signals::default() };
        assert_eq!(of(&signals), Health::Degraded("3 uncorrected memory errors".to_owned()));
        signals.fabric = FabricState::Pending;
        assert_eq!(of(&signals), Health::Waiting(WaitingFor::Fabric));
        signals.remap = Remap::Failed;
        assert!(matches!(of(&signals), Health::Quarantined(why) if why.contains("replaced")));
        signals.lost = true;
        assert_eq!(of(&signals), Health::Lost);
    }

    #[test]
    fn a_quarantine_shows_the_remedy_that_the_driver_names() {
        let of_action = |field| {
            let recovery = Some(Recovery::of(field));
            of(&Signals { recovery, xids: vec![(NOW, 48)], ..Signals::default() })
        };
        assert_eq!(of_action(1), Health::Quarantined("the driver asks for a reset of the GPU".to_owned()));
        assert_eq!(of_action(2), Health::Quarantined("the driver asks for a reboot".to_owned()));
        assert_eq!(of_action(9), Health::Quarantined("the driver asks for recovery action 9".to_owned()));
        assert_eq!(of_action(0), Health::Quarantined("XID 48".to_owned()));
    }

    #[test]
    fn every_class_of_xid_has_its_verdict() {
        assert_eq!(xid(79), Health::Lost);
        for number in [46, 48, 62, 64, 74, 95, 119, 120] {
            assert_eq!(xid(number), Health::Quarantined(format!("XID {number}")));
        }
        for number in [63, 94, 4711] {
            assert_eq!(xid(number), Health::Degraded(format!("XID {number}")));
        }
        for number in [13, 31, 43, 45] {
            assert_eq!(xid(number), Health::Ok);
        }
    }

    #[test]
    fn three_faults_of_engines_within_ten_minutes_degrade_the_device() {
        let at = |seconds| (Millis::secs(seconds), 31);
        let health = |xids| of(&Signals { xids, ..Signals::default() });
        assert!(matches!(health(vec![at(9_400), at(9_700), at(9_999)]), Health::Degraded(_)));
        assert_eq!(health(vec![at(9_399), at(9_700), at(9_999)]), Health::Ok);
    }

    #[test]
    fn a_failed_registration_leaves_the_device_usable_alone() {
        assert_eq!(of(&Signals { fabric: FabricState::Failed, ..Signals::default() }), Health::Ok);
    }
}
