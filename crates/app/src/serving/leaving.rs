//! Memory that an engine leaves behind is free once it was seen free, in a sample that was taken after its end.

use std::collections::BTreeSet;

use fettle_placement::device::PoolKind;
use fettle_placement::id::PoolId;
use fettle_placement::quantity::Bytes;
use fettle_placement::reclaim::{PoolSample, Reclaim, reclaim};

use super::engine::{Ended, Held};
use super::seen::sample;
use crate::ports::serving::World;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Left {
    Waiting,
    /// All of it came back, but for what is named: given up, and foreign from now on.
    Done {
        leaked: Vec<(PoolId, Bytes)>,
    },
}

pub(super) fn left(held: &Held, ended: &Ended, world: &World, ours: &BTreeSet<u32>) -> Left {
    let mut leaked = Vec::new();
    for (id, before, observed) in &held.alive {
        // A pool that is gone, as with a GPU that fell off its bus, gives nothing back and has nothing to give.
        let Some(pool) = world.pools.iter().find(|pool| pool.id == *id) else { continue };
        // The kernel has what a process had of the host before it says that the process is gone.
        if pool.kind == PoolKind::Host {
            continue;
        }
        if pool.sampled <= ended.at {
            return Left::Waiting;
        }
        let listed = world.processes.iter().any(|one| one.pool == *id && held.pids.contains(&one.pid));
        // A driver that did not answer for long leaves an old sample; the time for memory to come back begins at the end.
        let before = PoolSample { at: before.at.max(ended.at), ..*before };
        match reclaim(before, sample(pool, world, ours), *observed, listed) {
            Reclaim::Done => {}
            Reclaim::Waiting { .. } => return Left::Waiting,
            Reclaim::Leaked { missing } => leaked.push((id.clone(), missing)),
        }
    }
    Left::Done { leaked }
}
