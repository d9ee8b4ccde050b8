//! A bound on waiting. A want that has waited too long gets devices of its own to wait for: nothing else is put there, and
//! the engines in the way take no new requests. When they are idle, or at the latest at the deadline, they go.
//!
//! An engine that was just loaded is drained only when its residency is over. Drained at once, each of two models that take
//! turns would answer what it can begin with in its first second, and go again.
//!
//! One barrier stands at a time, for the oldest such want. So with Q wants before it a want waits no longer than
//! `starve_after + (Q + 1) * (longest load + longest residency + drain deadline)`, as long as devices are healthy and loads
//! succeed.

use super::desk::Desk;
use super::evict::{Evictable, best, cheapest, protected_for};
use super::sites::{Places, Shape, Site};
use super::usable;
use crate::engine::{Engine, EngineState};
use crate::placement::{Barrier, Intent, Reason, Unmet};
use crate::quantity::Millis;
use crate::view::{View, Want};

/// The barrier of the last placement, unless nobody waits for it any more or its devices will not do.
pub(super) fn standing(desk: &Desk, demand: &[Want]) -> Option<Barrier> {
    let barrier = desk.view.barrier.clone()?;
    let wanted = demand.iter().any(|want| want.model == barrier.model && want.waiting > 0);
    let (ready, underway) = desk.at_work_for(&barrier.model);
    if !wanted || ready + underway.len() > 0 {
        return None;
    }
    let recipe = desk.recipes_of(&barrier.model).into_iter().find(|recipe| recipe.id == barrier.recipe)?;
    let shape = Shape::of(desk, recipe).ok()?;
    let site = site_of(desk, &shape, &barrier)?;
    let usable = site.devices.iter().all(|place| desk.devices[*place].device.health.takes_loads());
    let victims = cheapest(desk, &site, Evictable::Ever, None).filter(|_| usable)?.victims;
    // Others may be in the way by now; the deadline is the old one.
    Some(Barrier { engines: desk.names(&victims), ..barrier })
}

fn site_of(desk: &Desk, shape: &Shape, barrier: &Barrier) -> Option<Site> {
    let places = barrier.devices.iter().map(|id| desk.place_of(id)).collect::<Option<Places>>()?;
    shape.site(desk, places)
}

/// The barrier's site, once all that is in the way there may go.
pub(super) fn emptied(desk: &Desk, shape: &Shape, barrier: &Barrier) -> Option<(Site, Vec<usize>)> {
    let site = site_of(desk, shape, barrier)?;
    let eviction = cheapest(desk, &site, Evictable::ForBarrier { until: barrier.until }, None)?;
    Some((site, eviction.victims))
}

/// For the oldest want that has waited too long, of those for which something can be emptied.
pub(super) fn begin(desk: &Desk, wants: &[&Want], refusals: &[Unmet]) -> Option<Barrier> {
    let now = desk.view.now;
    let refused = |want: &Want| {
        refusals.iter().any(|unmet| unmet.model == want.model && unmet.owner == want.owner && usable(&unmet.refusal))
    };
    let mut starving: Vec<&&Want> = wants
        .iter()
        .filter(|want| want.waiting > 0 && now.since(want.oldest) > desk.policy.starve_after && refused(want))
        .collect();
    starving.sort_by_key(|want| (want.oldest, &want.model));
    starving.into_iter().find_map(|want| barrier_for(desk, want))
}

fn barrier_for(desk: &Desk, want: &Want) -> Option<Barrier> {
    let shapes = desk.recipes_of(&want.model).into_iter().filter_map(|recipe| Shape::of(desk, recipe).ok());
    // The first recipe that could run: the one that the want is waiting for.
    let shape = shapes.into_iter().next()?;
    let (site, victims) = soonest_emptied(desk, &shape)?;
    Some(Barrier {
        model: want.model.clone(),
        recipe: shape.recipe.id.clone(),
        devices: desk.device_ids(&site),
        engines: desk.names(&victims),
        until: desk.view.now + longest_protection(desk, &victims) + desk.policy.drain_deadline,
    })
}

/// Where nothing loads or leaves, if there is such a place: a change has to end before the load can begin.
fn soonest_emptied(desk: &Desk, shape: &Shape) -> Option<(Site, Vec<usize>)> {
    let quiet = |site: &Site| site.needs.iter().all(|need| desk.pools[need.pool].changing.is_none());
    let healthy = |site: &Site| {
        let devices = site.devices.iter().all(|place| desk.devices[*place].device.health.takes_loads());
        devices && site.needs.iter().all(|need| desk.pools[need.pool].account.closed().is_none())
    };
    let sites = shape.sites(desk).filter(|site| healthy(site));
    let cleared = sites.filter_map(|site| {
        let eviction = cheapest(desk, &site, Evictable::Ever, None)?;
        Some(((!quiet(&site), eviction.cost, eviction.victims.len(), site.devices.clone()), site, eviction.victims))
    });
    let aligned = cleared.min_by(|(a, ..), (b, ..)| a.cmp(b)).map(|(_, site, victims)| (site, victims));
    aligned.or_else(|| {
        let (site, eviction, _) = best(desk, shape, Evictable::Ever)?;
        healthy(&site).then_some((site, eviction.victims))
    })
}

/// Lets engines take requests again that the last placement's barrier held and `barrier` does not.
pub(super) fn let_go(desk: &mut Desk, barrier: Option<&Barrier>) {
    let Some(last) = &desk.view.barrier else { return };
    let held = |id| barrier.is_some_and(|barrier| barrier.engines.contains(id));
    for nth in desk.doubtful.clone() {
        let engine = desk.engines[nth];
        let draining = matches!(engine.state, EngineState::Draining { .. });
        if draining && last.engines.contains(&engine.id) && !held(&engine.id) {
            desk.resume(nth);
        }
    }
}

fn longest_protection(desk: &Desk, engines: &[usize]) -> Millis {
    let protected = engines.iter().filter_map(|nth| protected_for(desk, desk.engines[*nth]));
    protected.max().unwrap_or_default()
}

/// Asks those engines of the barrier to drain that are old enough to go.
pub(super) fn drain(desk: &mut Desk, barrier: &Barrier) {
    let ready = |engine: &&&Engine| {
        let in_the_way = engine.state == EngineState::Ready && barrier.engines.contains(&engine.id);
        in_the_way && protected_for(desk, engine).is_none()
    };
    let engines = desk.engines.iter().filter(ready);
    let drains: Vec<_> = engines.map(|one| Intent::Drain(one.id.clone(), one.epoch, barrier.until)).collect();
    desk.intents.extend(drains);
    desk.reasons.push(Reason::Emptying {
        model: barrier.model.clone(),
        devices: barrier.devices.clone(),
        engines: barrier.engines.clone(),
        within: barrier.until.since(desk.view.now),
    });
}

/// Until `victims` have gone, at the latest: they become idle and old enough, or a barrier ends them.
pub(super) fn longest_wait(desk: &Desk, want: Option<&Want>, victims: &[usize]) -> Millis {
    let View { now, .. } = *desk.view;
    let busy = victims.iter().any(|nth| desk.engines[*nth].inflight > 0);
    let protected = longest_protection(desk, victims);
    let until_barrier = want.map_or(Millis::ZERO, |want| (want.oldest + desk.policy.starve_after).since(now));
    if busy { until_barrier.max(protected) + desk.policy.drain_deadline } else { protected }
}
