//! What loads teach about estimates: by how much the observed peak was above the formula, for loads of one kind.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::footprint::Slack;
use crate::quantity::Bytes;
use crate::recipe::{EngineKind, KvType};

/// Fewer loads prove nothing.
const PROVEN_AFTER: usize = 5;
/// From so many on one in 200 may be above: a single strange load must not cost memory for ever.
const MANY: usize = 200;
/// Two thousand loads of one kind are years; the oldest are forgotten.
const KEPT: usize = 2000;

/// Loads that teach about each other.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Kind {
    pub engine: EngineKind,
    pub build: String,
    pub architecture: String,
    pub quant: String,
    pub kv: KvType,
    pub tp: u8,
    pub device: String,
    pub driver_major: u32,
}

/// One load on one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// The formula's sum of parts.
    pub estimate: Bytes,
    pub peak: Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Residuals(BTreeMap<Kind, Vec<Load>>);

impl Residuals {
    pub fn note(&mut self, kind: Kind, load: Load) {
        let loads = self.0.entry(kind).or_default();
        if loads.len() == KEPT {
            loads.remove(0);
        }
        loads.push(load);
    }

    /// How many loads of that kind are on record.
    pub fn loads(&self, kind: &Kind) -> usize {
        self.0.get(kind).map_or(0, Vec::len)
    }

    /// What to add to the next estimate of that kind: `first` until it is proven, and never less than what was seen. The permille
    /// follow the estimate's size, the rest what was seen: so every load that is on record would have had its claim.
    pub fn slack(&self, kind: &Kind, first: Slack) -> Slack {
        let loads = self.0.get(kind).map(Vec::as_slice).unwrap_or_default();
        let least = if loads.len() < PROVEN_AFTER { first } else { Slack::LEAST };
        let above =
            |load: &Load| Bytes::there(i128::from(load.peak.over(load.estimate.permille(1000 + least.permille))));
        let mut above: Vec<Bytes> = loads.iter().map(above).collect();
        above.sort_unstable();
        let left_out = if loads.len() < MANY { 0 } else { loads.len() / 200 };
        let most = above.iter().rev().nth(left_out).copied().unwrap_or_default();
        Slack { permille: least.permille, bytes: most.max(least.bytes) }
    }
}

/// What follows from a failed load: it ran out of memory although its claim was admitted, so the claim was too low. One retry.
pub fn after_out_of_memory(slack: Slack) -> Slack {
    Slack { permille: slack.permille + 100, bytes: slack.bytes + Bytes::mib(512) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kind() -> Kind {
        Kind {
            engine: EngineKind::LlamaServer,
            build: "b6000".to_owned(),
            architecture: "qwen3".to_owned(),
            quant: "q4_k_m".to_owned(),
            kv: KvType::F16,
            tp: 1,
            device: "H200".to_owned(),
            driver_major: 580,
        }
    }

    fn taught(peaks: &[u64]) -> Residuals {
        let mut residuals = Residuals::default();
        for peak in peaks {
            residuals.note(kind(), Load { estimate: Bytes::gib(20), peak: Bytes::mib(*peak) });
        }
        residuals
    }

    #[test]
    fn an_estimate_is_trusted_after_five_loads_of_its_kind() {
        assert_eq!(taught(&[20_480; 4]).slack(&kind(), Slack::FIRST), Slack::FIRST);
        assert_eq!(taught(&[20_480; 5]).slack(&kind(), Slack::FIRST), Slack::LEAST);
        assert_eq!(taught(&[20_480; 5]).slack(&Kind { driver_major: 590, ..kind() }, Slack::FIRST), Slack::FIRST);
    }

    #[test]
    fn from_two_hundred_loads_on_one_strange_load_is_forgotten() {
        let mut peaks = vec![20_480; 150];
        peaks[7] = 40_000;
        assert!(taught(&peaks).slack(&kind(), Slack::FIRST).bytes > Bytes::gib(15));
        peaks.resize(250, 20_480);
        assert_eq!(taught(&peaks).slack(&kind(), Slack::FIRST), Slack::LEAST);
    }

    proptest! {
        #[test]
        fn every_load_on_record_would_have_had_its_claim(
            loads in proptest::collection::vec((1..100_000u64, 1..150_000u64), 1..199),
        ) {
            let mut residuals = Residuals::default();
            for (estimate, peak) in &loads {
                residuals.note(kind(), Load { estimate: Bytes::mib(*estimate), peak: Bytes::mib(*peak) });
            }
            let slack = residuals.slack(&kind(), Slack::FIRST);
            for (estimate, peak) in loads {
                prop_assert!(slack.on(Bytes::mib(estimate)) >= Bytes::mib(peak));
            }
        }
    }
}
