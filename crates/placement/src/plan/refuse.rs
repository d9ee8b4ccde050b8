//! Why a want gets nothing now, from the place that is likeliest to take it, and when that may be.

use smallvec::smallvec;

use super::barrier;
use super::desk::Desk;
use super::evict::{Evictable, cheapest, protected_for};
use super::sites::{Obstacle, Places, Shape, Site};
use crate::engine::{Engine, Presence};
use crate::memory_ledger::Account;
use crate::placement::{Blocker, Refusal};
use crate::quantity::{Bytes, Millis};
use crate::view::Want;

/// Samples come twice a second; a stale one needs a driver that answers again.
const SEEN_AGAIN: Millis = Millis::secs(2);
/// A frozen pool thaws when builds or page cache have gone, in seconds.
const THAWED: Millis = Millis::secs(10);
/// Fabric Manager takes about this long to start.
pub(super) const FABRIC: Millis = Millis::secs(30);
/// Somebody has to act: nobody knows when.
const SOMEBODY_ACTS: Millis = Millis::secs(60);

/// Enough for every device of the largest single machine.
const LOOKED_AT: usize = 16;

/// `want`: who waits, if room may be made for it; it does not wait longer than until a barrier.
pub(super) fn why_not_now(desk: &Desk, shape: &Shape, want: Option<&Want>) -> Refusal {
    let mut sites: Vec<Site> = shape.sites(desk).collect();
    if sites.is_empty() {
        sites = shape.loose_sets(desk, |site| Some(site.devices.clone()));
    }
    // Those without an obstacle that lack least: to look at each of a thousand would take longer than anybody wants to know.
    let mut nearest: Vec<(bool, i128, usize)> = sites
        .iter()
        .enumerate()
        .map(|(nth, site)| (site.obstacle(desk, true).is_some(), site.shortage(desk), nth))
        .collect();
    if nearest.len() > LOOKED_AT {
        nearest.select_nth_unstable(LOOKED_AT);
        nearest.truncate(LOOKED_AT);
    }
    nearest.sort_unstable();
    let refusals = nearest.iter().map(|(.., nth)| why_not_here(desk, shape, &sites[*nth], want));
    // Of several the first is taken.
    let soonest = refusals.min_by_key(|refusal| (likelihood(refusal), refusal.eta()));
    soonest.unwrap_or(Refusal::Stale { eta: SEEN_AGAIN })
}

/// What passes by itself comes before what somebody has to mend.
fn likelihood(refusal: &Refusal) -> u8 {
    match refusal {
        Refusal::Busy { .. } | Refusal::Backoff { .. } => 0,
        Refusal::HostMemory { .. } | Refusal::Foreign { .. } => 1,
        Refusal::Stale { .. } | Refusal::Frozen { .. } | Refusal::FabricPending { .. } => 2,
        Refusal::Pinned { .. } => 3,
        Refusal::Quarantined { .. } => 4,
        Refusal::TooBig { .. } | Refusal::ComputeCapability { .. } | Refusal::NoIsland { .. } | Refusal::NoRecipe => 5,
    }
}

fn why_not_here(desk: &Desk, shape: &Shape, site: &Site, want: Option<&Want>) -> Refusal {
    let (now, load) = (desk.view.now, shape.footprint.load);
    let need = site.needs.iter().map(|need| need.bytes()).max().unwrap_or_default();
    match site.obstacle(desk, true) {
        Some(Obstacle::Quarantined(place)) => {
            let device = desk.devices[place].device.id.clone();
            return Refusal::Quarantined { device, eta: SOMEBODY_ACTS };
        }
        Some(Obstacle::Fabric) => return Refusal::FabricPending { eta: FABRIC },
        Some(Obstacle::Unseen) => return Refusal::Stale { eta: SEEN_AGAIN },
        Some(Obstacle::Frozen(why)) => return Refusal::Frozen { why, eta: THAWED },
        Some(Obstacle::Kept(model, until)) => {
            return Refusal::Busy { need, by: vec![Blocker::Barrier { of: model }], eta: until.since(now) + load };
        }
        Some(Obstacle::Changing(engine, until)) => {
            return Refusal::Busy { need, by: vec![Blocker::Changing { engine }], eta: until.since(now) + load };
        }
        None => {}
    }
    if let Some(refusal) = lack_of_host_memory(desk, site) {
        return refusal;
    }
    if let Some(eviction) = cheapest(desk, site, Evictable::Ever, None) {
        let by = eviction.victims.iter().filter_map(|nth| in_the_way(desk, desk.engines[*nth])).collect();
        let eta = barrier::longest_wait(desk, want, &eviction.victims) + load;
        return Refusal::Busy { need, by, eta };
    }
    match cheapest(desk, site, Evictable::Whoever, None) {
        Some(eviction) => {
            let pinned = eviction.victims.iter().filter(|nth| desk.engines[**nth].pinned).copied();
            Refusal::Pinned { engines: desk.names(&pinned.collect::<Vec<_>>()), eta: SOMEBODY_ACTS }
        }
        None => {
            let unseen = |account: &Account| account.foreign().max(account.skew());
            let foreign = site.needs.iter().map(|need| unseen(&desk.pools[need.pool].account)).max();
            Refusal::Foreign { bytes: foreign.unwrap_or_default(), eta: THAWED }
        }
    }
}

fn in_the_way(desk: &Desk, engine: &Engine) -> Option<Blocker> {
    let id = engine.id.clone();
    match engine.state.presence() {
        Presence::Resident if engine.inflight > 0 => Some(Blocker::InFlight { engine: id, requests: engine.inflight }),
        Presence::Resident => {
            let for_more = protected_for(desk, engine)?;
            Some(Blocker::Protected { engine: id, for_more })
        }
        Presence::Reserved | Presence::Loading | Presence::Leaving => Some(Blocker::Changing { engine: id }),
        Presence::Absent => None,
    }
}

/// When all that is missing is memory of the host, which no engine on a device could give back.
fn lack_of_host_memory(desk: &Desk, site: &Site) -> Option<Refusal> {
    let of_device = |pool| site.devices.iter().any(|place| desk.devices[*place].pool == Some(pool));
    let need = site.needs.iter().find(|need| Some(need.pool) == desk.host && !of_device(need.pool))?;
    let alone = Site { devices: Places::new(), needs: smallvec![*need] };
    let available: Bytes = desk.pools[need.pool].account.avail();
    let hopeless = cheapest(desk, &alone, Evictable::Ever, None).is_none();
    hopeless.then_some(Refusal::HostMemory { need: need.bytes(), available, eta: THAWED })
}
