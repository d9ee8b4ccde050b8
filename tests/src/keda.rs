//! How many Jobs KEDA would start for a ScaledJob: its arithmetic, as its source has it, for one trigger, the strategy `accurate` and
//! no least number. KEDA itself runs nowhere here.

/// Of a ScaledJob.
#[derive(Debug, Clone, Copy)]
pub struct Accurate {
    /// `maxReplicaCount`.
    pub max: u64,
    /// `targetValue` of the trigger: as much of the metric is one Job's.
    pub target: u64,
    pub near_limit: NearLimit,
}

/// Where as many as are wanted would pass the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NearLimit {
    /// As the documentation has it up to 2.19: all that there is room for are started, also in vain.
    FillsUp,
    /// As newer sources have it: pods that have found nothing yet are taken off there, too.
    HeedsPending,
}

/// What there is when KEDA looks, every `pollingInterval`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// What the trigger tells.
    pub metric: u64,
    /// Jobs that have not ended.
    pub running: u64,
    /// Those of them whose pod lacks a condition of `pendingPodConditions`.
    pub pending: u64,
}

impl Accurate {
    /// Source: `IsScaledJobActive` of `pkg/scaling/scaledjob/metrics.go`; `accurateScalingStrategy` and
    /// `createJobs` of `pkg/scaling/executor/scale_jobs.go`. With `rollout: gradual` no Job is ever taken away.
    pub fn starts(self, seen: Seen) -> u64 {
        let queue = seen.metric.div_ceil(self.target);
        let most = queue.min(self.max);
        let (wanted, room) = (most.saturating_sub(seen.pending), self.max.saturating_sub(seen.running));
        let effective = match self.near_limit {
            NearLimit::FillsUp if most + seen.running > self.max => room,
            NearLimit::FillsUp => wanted,
            NearLimit::HeedsPending => wanted.min(room),
        };
        queue.min(effective)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `maxScale`, `runningJobCount`, `pendingJobCount`, `maxReplicaCount` and what comes of them, from `TestAccurateScalingStrategy` of
    /// `pkg/scaling/executor/scale_jobs_test.go`, in the version that goes with the newer sources.
    const OF_KEDA: [(u64, u64, u64, u64, u64); 8] = [
        (3, 2, 0, 5, 3),
        (5, 2, 0, 5, 3),
        (3, 4, 2, 10, 1),
        (5, 4, 2, 5, 1),
        (3, 3, 3, 5, 0),
        (15, 15, 15, 20, 0),
        (10, 10, 10, 15, 0),
        (20, 15, 10, 20, 5),
    ];

    #[test]
    fn it_is_keda_s_arithmetic() {
        for (metric, running, pending, max, started) in OF_KEDA {
            let starts = |near_limit| Accurate { max, target: 1, near_limit }.starts(Seen { metric, running, pending });
            assert_eq!(starts(NearLimit::HeedsPending), started, "{metric} {running} {pending} {max}");
            let documented = if metric + running > max { max - running } else { metric - pending };
            assert_eq!(starts(NearLimit::FillsUp), documented, "{metric} {running} {pending} {max}");
        }
    }

    proptest! {
        // `metric` is `runnable` of `/v1/scale`: a Run that some pod has found is not in it any more, and then the pod is ready.
        #[test]
        fn every_run_gets_a_pod_no_limit_is_passed_and_what_is_started_in_vain_ends(
            arrivals in prop::collection::vec(0u64..9, 1..20), finds in prop::collection::vec(0u64..6, 60),
            ends in prop::collection::vec(0u64..4, 60), max in 1u64..12, heeds in any::<bool>(),
        ) {
            let near_limit = if heeds { NearLimit::HeedsPending } else { NearLimit::FillsUp };
            let keda = Accurate { max, target: 1, near_limit };
            let (mut waiting, mut pending, mut at_work, mut served) = (0, 0, 0, 0);
            let wished: u64 = arrivals.iter().sum();
            let mut arrivals = arrivals.into_iter();
            for turn in 0.. {
                prop_assert!(turn < 1_000, "{waiting} wait, {pending} pods have found nothing, {at_work} are at work");
                waiting += arrivals.next().unwrap_or(0);
                let seen = Seen { metric: waiting, running: pending + at_work, pending };
                let started = keda.starts(seen);
                prop_assert!(started + seen.running <= max, "{seen:?}: {started} more");
                if waiting > 0 && seen.running == 0 {
                    prop_assert!(started > 0, "{seen:?}: nobody comes");
                }
                if heeds || waiting + seen.running <= max {
                    prop_assert!(started + pending <= waiting.max(pending), "{seen:?}: {started} in vain");
                }
                pending += started;
                let found = finds.get(turn).copied().unwrap_or(6).min(pending).min(waiting);
                (waiting, pending, at_work) = (waiting - found, pending - found, at_work + found);
                // One that finds nothing ends by itself.
                if waiting == 0 {
                    pending = 0;
                }
                let ended = ends.get(turn).copied().unwrap_or(4).min(at_work);
                (at_work, served) = (at_work - ended, served + ended);
                if served == wished && arrivals.len() == 0 {
                    break;
                }
            }
        }
    }
}
