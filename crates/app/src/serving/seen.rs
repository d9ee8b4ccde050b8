//! Whose memory it is: bytes belong to the engine whose processes have them. Where the driver does not say by process, what a
//! pool grew by during an engine's own load is the engine's, which is unambiguous since nothing else loads there meanwhile.

use std::collections::BTreeSet;

use fettle_placement::claim::Claim;
use fettle_placement::device::{Attribution, Pool, PoolKind};
use fettle_placement::engine::on_pool;
use fettle_placement::footprint::Slack;
use fettle_placement::id::PoolId;
use fettle_placement::quantity::{Bytes, Millis};
use fettle_placement::reclaim::PoolSample;

use super::engine::Held;
use crate::ports::serving::{DeviceProcess, EngineProcess, World};

/// `ours`: the processes of all engines.
pub(super) fn sample(pool: &Pool, world: &World, ours: &BTreeSet<u32>) -> PoolSample {
    let foreign = |process: &&DeviceProcess| process.pool == pool.id && !ours.contains(&process.pid);
    let foreign = match pool.attribution {
        Attribution::Exact => world.processes.iter().filter(foreign).filter_map(|process| process.bytes).sum(),
        Attribution::Blind => Bytes::ZERO,
    };
    PoolSample { at: pool.sampled, free: pool.free, foreign }
}

/// Enters into `held` what its processes have now.
pub(super) fn observe(held: &mut Held, process: &EngineProcess, world: &World, ours: &BTreeSet<u32>, now: Millis) {
    held.pids.extend(&process.pids);
    let pools: Vec<PoolId> = world.pools.iter().map(|pool| pool.id.clone()).collect();
    let mut observed = Vec::new();
    for (pool, id) in world.pools.iter().zip(pools) {
        let there = in_pool(held, process, pool, world);
        if there > Bytes::ZERO {
            observed.push((id, there));
        }
    }
    held.observed = observed;
    let grows = held.grows();
    if grows {
        for (id, there) in &held.observed {
            match held.most.iter_mut().find(|(known, _)| known == id) {
                Some((_, most)) => *most = (*most).max(*there),
                None => held.most.push((id.clone(), *there)),
            }
        }
    }
    for (id, claim) in &mut held.claims {
        let there = on_pool(&held.observed, id);
        // What it takes while it loads is its peak, and says nothing about its claim yet.
        *claim = match grows {
            true => Claim { bytes: claim.bytes, peak: there, since: now },
            false => claim.follow(there, Slack::LEAST, now),
        };
    }
    let seen = |id: &PoolId| world.pools.iter().all(|pool| pool.id != *id || pool.sampled > held.ready_at);
    held.unseen = held.unseen && !held.seat.claims.iter().all(|(id, _)| seen(id));
    held.alive = held
        .pools()
        .collect::<BTreeSet<_>>()
        .into_iter()
        .filter_map(|id| world.pools.iter().find(|pool| pool.id == *id))
        .map(|pool| (pool.id.clone(), sample(pool, world, ours), held.observed_in(&pool.id)))
        .collect();
}

/// What it took after it was last looked at is not known: it may be all that was promised to it. That has to come back, or the
/// time for it has to pass, before the pool is anybody else's.
pub(super) fn expect_its_claim_back(held: &mut Held, world: &World, ours: &BTreeSet<u32>) {
    let grows = held.grows();
    for (id, claim) in &held.seat.claims {
        match held.alive.iter_mut().find(|(known, ..)| known == id) {
            // As if it had taken the rest right then: where it had not, the free memory says so by itself.
            Some((_, before, observed)) if grows => {
                let unseen = Bytes::there(claim.signed() - observed.signed());
                before.free = Bytes::there(before.free.signed() - unseen.signed());
                *observed = (*observed).max(*claim);
            }
            Some(_) => {}
            // Of an earlier life, and ended before it was looked at.
            None => {
                let pool = world.pools.iter().find(|pool| pool.id == *id);
                held.alive.extend(pool.map(|pool| (id.clone(), sample(pool, world, ours), *claim)));
            }
        }
    }
}

fn in_pool(held: &Held, process: &EngineProcess, pool: &Pool, world: &World) -> Bytes {
    let of_host = match pool.kind {
        PoolKind::Host | PoolKind::Unified => process.host_bytes,
        PoolKind::Vram | PoolKind::Slice | PoolKind::Coherent => Bytes::ZERO,
    };
    if pool.kind == PoolKind::Host {
        return of_host;
    }
    let of_device = match pool.attribution {
        Attribution::Exact => {
            let own = world.processes.iter().filter(|one| one.pool == pool.id && process.pids.contains(&one.pid));
            own.filter_map(|one| one.bytes).sum()
        }
        Attribution::Blind => grown(held, pool),
    };
    of_device + of_host
}

/// A pool that is not the engine's never grows for it.
fn grown(held: &Held, pool: &Pool) -> Bytes {
    let start = held.at_start.iter().find(|(id, _)| *id == pool.id);
    match start {
        Some((_, start)) if held.grows() => Bytes::there(start.free.signed() - pool.free.signed()),
        Some(_) => held.observed_in(&pool.id),
        // At most, and a claim that is held is not promised to anybody else.
        None if held.adopted => on_pool(&held.seat.claims, &pool.id),
        None => Bytes::ZERO,
    }
}
