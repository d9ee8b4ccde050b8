//! Who makes room for a site: the engines whose going costs others least, and of those no more than needed.

use smallvec::{SmallVec, smallvec};

use super::desk::{Desk, Tenant};
use super::sites::{ALTERNATIVES_SHOWN, POOLS, Places, Shape, Site, insert};
use crate::engine::{Engine, EngineState};
use crate::placement::{Alternative, But, Cost};
use crate::quantity::Millis;
use crate::view::Policy;

/// Up to so many candidates every set of them is looked at; above, the cheapest by byte are taken.
const EXACT_UP_TO: usize = 12;

/// Which engines may be counted on to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Evictable {
    /// Idle, and not loaded a short while ago.
    Now,
    /// Those, and once a barrier's deadline has passed all but the pinned.
    ForBarrier { until: Millis },
    /// All but the pinned, however long it takes.
    Ever,
    /// Even the pinned: to say whether they are what is in the way.
    Whoever,
}

pub(super) struct Eviction {
    /// In the order of their ids.
    pub(super) victims: Vec<usize>,
    pub(super) cost: Cost,
    /// When any of them was last used.
    pub(super) last_used: Millis,
}

/// The site that is cheapest to clear, and what came next. Nothing is in the way there but memory.
pub(super) fn best(desk: &Desk, shape: &Shape, evictable: Evictable) -> Option<(Site, Eviction, Vec<Alternative>)> {
    let cheapest_first = |sites: &mut dyn Iterator<Item = Site>| {
        let mut first: Vec<(Site, Eviction)> = Vec::new();
        for site in sites {
            let full = first.len() > ALTERNATIVES_SHOWN;
            let at_most = first.last().filter(|_| full).map_or(Cost(u64::MAX), |(_, last)| last.cost);
            let Some(eviction) = cheapest_within(desk, &site, evictable, None, at_most) else { continue };
            insert(&mut first, (site, eviction), 1 + ALTERNATIVES_SHOWN, |(a_site, a), (b_site, b)| {
                // Much costs nothing: of that, what nobody has used for longest goes.
                let rank = (a.cost, a.last_used, a.victims.len(), &a_site.devices);
                rank.cmp(&(b.cost, b.last_used, b.victims.len(), &b_site.devices))
            });
        }
        first
    };
    let mut clearable = cheapest_first(&mut shape.sites(desk));
    if clearable.is_empty() {
        let alone = |site: &Site| cheapest(desk, site, evictable, None).map(|eviction| eviction.cost);
        clearable = cheapest_first(&mut shape.loose_sets(desk, alone).into_iter());
    }
    let mut clearable = clearable.into_iter();
    let (site, eviction) = clearable.next()?;
    let others =
        clearable.map(|(site, other)| Alternative { devices: desk.device_ids(&site), but: But::Costs(other.cost) });
    Some((site, eviction, others.collect()))
}

/// The cheapest set of engines without which `site` has room; empty where it has room already. `None`: no set will do, or
/// something else than memory is in the way.
pub(super) fn cheapest(desk: &Desk, site: &Site, evictable: Evictable, sleeper: Option<usize>) -> Option<Eviction> {
    cheapest_within(desk, site, evictable, sleeper, Cost(u64::MAX))
}

/// `None` also where it is easily seen to cost more than `at_most`.
fn cheapest_within(
    desk: &Desk,
    site: &Site,
    evictable: Evictable,
    sleeper: Option<usize>,
    at_most: Cost,
) -> Option<Eviction> {
    let draining_is_in_the_way = evictable == Evictable::Now;
    if matches!(evictable, Evictable::Now | Evictable::ForBarrier { .. })
        && site.obstacle(desk, draining_is_in_the_way).is_some()
    {
        return None;
    }
    let short: Amounts =
        site.needs.iter().map(|need| need.bytes().signed() - desk.pools[need.pool].account.room()).collect();
    let mut candidates: SmallVec<[Candidate; EXACT_UP_TO]> = SmallVec::new();
    for (need, _) in site.needs.iter().zip(&short).filter(|(_, short)| **short > 0) {
        for tenant in &desk.pools[need.pool].tenants {
            let nth = tenant.engine;
            let known = candidates.iter().any(|candidate| candidate.engine == nth);
            if known || Some(nth) == sleeper || !may_go(desk, tenant, evictable) {
                continue;
            }
            let frees = site.needs.iter().map(|need| desk.pools[need.pool].held_by(nth).signed()).collect();
            candidates.push(Candidate { engine: nth, cost: tenant.cost.0, last_used: tenant.last_used, frees });
        }
    }
    // Most sites of a full machine are answered by this alone.
    let all: Places = (0..candidates.len()).collect();
    if !enough(&candidates, &all, &short) {
        return None;
    }
    candidates.sort_by_key(|candidate| (candidate.cost, candidate.last_used, candidate.engine));
    if at_least(&candidates, &short) > at_most {
        return None;
    }
    let mut chosen =
        if candidates.len() <= EXACT_UP_TO { exact(&candidates, &short) } else { greedy(&candidates, &short) }?;
    drop_the_unneeded(&candidates, &short, &mut chosen);
    let cost = Cost(chosen.iter().map(|place| candidates[*place].cost).fold(0, u64::saturating_add));
    let last_used = chosen.iter().map(|place| candidates[*place].last_used).max().unwrap_or_default();
    let mut victims: Vec<usize> = chosen.into_iter().map(|place| candidates[place].engine).collect();
    victims.sort_unstable();
    Some(Eviction { victims, cost, last_used })
}

struct Candidate {
    engine: usize,
    cost: u64,
    last_used: Millis,
    /// By need of the site.
    frees: Amounts,
}

/// One for each need of a site.
type Amounts = SmallVec<[i128; POOLS]>;

fn may_go(desk: &Desk, tenant: &Tenant, evictable: Evictable) -> bool {
    // Of most engines no more has to be looked at.
    if evictable == Evictable::Now && !tenant.idle {
        return false;
    }
    let nth = tenant.engine;
    let engine = desk.engines[nth];
    let stays = match evictable {
        Evictable::Now | Evictable::Whoever => false,
        Evictable::ForBarrier { until } => {
            let in_time = engine.inflight > 0 || protected_for(desk, engine).is_some();
            engine.pinned || in_time && desk.view.now < until
        }
        Evictable::Ever => engine.pinned,
    };
    let some_day = matches!(evictable, Evictable::Ever | Evictable::Whoever);
    let there = match engine.state {
        EngineState::Ready | EngineState::Sleeping(_) => true,
        EngineState::Draining { .. } => evictable != Evictable::Now,
        EngineState::Reserved
        | EngineState::Spawning
        | EngineState::Loading
        | EngineState::Stopping
        | EngineState::Reclaiming => some_day,
        EngineState::Gone | EngineState::Backoff { .. } => false,
    };
    // Its other pools change with it, so nothing may be going on there either.
    let elsewhere = || {
        let only_here = engine.seat.claims.len() <= 1 && engine.observed.len() <= 1;
        only_here || some_day || desk.pools_of(engine).into_iter().all(|place| desk.pools[place].changing.is_none())
    };
    !stays && there && !desk.has_left(nth) && elsewhere()
}

/// Whether an engine is asked by nobody, is not pinned, and was not loaded a short while ago.
pub(super) fn is_idle(engine: &Engine, now: Millis, policy: &Policy) -> bool {
    !engine.pinned && engine.inflight == 0 && protection(engine, now, policy).is_none()
}

/// For how much longer an engine that was just loaded is kept. One that sleeps is not: it serves nobody.
pub(super) fn protected_for(desk: &Desk, engine: &Engine) -> Option<Millis> {
    protection(engine, desk.view.now, desk.policy)
}

fn protection(engine: &Engine, now: Millis, policy: &Policy) -> Option<Millis> {
    let asleep = matches!(engine.state, EngineState::Sleeping(_));
    let residency = match engine.inflight {
        0 => policy.idle_residency(),
        _ => policy.residency(engine.reload),
    };
    let end = engine.ready_at + residency;
    (!asleep && end > now).then(|| end.since(now))
}

/// A bound on what any set costs that is enough: the cheapest one or two of `candidates`, which are in the order of cost.
fn at_least(candidates: &[Candidate], short: &[i128]) -> Cost {
    let one_is_enough = (0..candidates.len()).any(|place| enough(candidates, &[place], short));
    let fewest = if one_is_enough { 1 } else { 2 };
    let nothing_short = short.iter().all(|short| *short <= 0);
    let cheapest = candidates.iter().take(if nothing_short { 0 } else { fewest });
    Cost(cheapest.map(|candidate| candidate.cost).fold(0, u64::saturating_add))
}

fn enough(candidates: &[Candidate], chosen: &[usize], short: &[i128]) -> bool {
    short.iter().enumerate().all(|(need, short)| {
        let freed: i128 = chosen.iter().map(|place| candidates[*place].frees[need]).sum();
        freed >= *short
    })
}

/// The cheapest set of all, of several the smallest, of several the one that comes first.
fn exact(candidates: &[Candidate], short: &[i128]) -> Option<Vec<usize>> {
    let mut after: SmallVec<[Amounts; EXACT_UP_TO + 1]> = smallvec![smallvec![0; short.len()]; candidates.len() + 1];
    for (place, candidate) in candidates.iter().enumerate().rev() {
        after[place] = after[place + 1].iter().zip(&candidate.frees).map(|(after, frees)| after + frees).collect();
    }
    let mut search = Search { candidates, after, left: short.into(), best: None };
    search.from(0, 0, 0);
    let (_, _, set) = search.best?;
    Some((0..candidates.len()).filter(|place| set & (1 << place) != 0).collect())
}

struct Search<'c> {
    candidates: &'c [Candidate],
    /// What all candidates from a place on free together, by need.
    after: SmallVec<[Amounts; EXACT_UP_TO + 1]>,
    /// What is still short with the candidates that have been taken.
    left: Amounts,
    /// Cost, count, and the set as bits.
    best: Option<(u64, u32, u32)>,
}

impl Search<'_> {
    fn from(&mut self, place: usize, cost: u64, set: u32) {
        let count = set.count_ones();
        if self.left.iter().all(|left| *left <= 0) {
            if self.best.is_none_or(|(best, least, _)| (cost, count) < (best, least)) {
                self.best = Some((cost, count, set));
            }
            return;
        }
        // Costs only grow from here, so what is not cheaper by now never will be.
        let worse = self.best.is_some_and(|(best, least, _)| (cost, count + 1) >= (best, least));
        if worse || self.left.iter().zip(&self.after[place]).any(|(left, after)| left > after) {
            return;
        }
        let candidate = &self.candidates[place];
        self.left.iter_mut().zip(&candidate.frees).for_each(|(left, frees)| *left -= frees);
        self.from(place + 1, cost.saturating_add(candidate.cost), set | 1 << place);
        self.left.iter_mut().zip(&candidate.frees).for_each(|(left, frees)| *left += frees);
        self.from(place + 1, cost, set);
    }
}

/// The cheapest by useful byte until there is enough.
fn greedy(candidates: &[Candidate], short: &[i128]) -> Option<Vec<usize>> {
    let mut left = short.to_vec();
    let mut chosen = Vec::new();
    while left.iter().any(|short| *short > 0) {
        let useful = |candidate: &Candidate| -> i128 {
            left.iter().zip(&candidate.frees).map(|(short, frees)| (*short).max(0).min(*frees)).sum()
        };
        let open = (0..candidates.len()).filter(|place| !chosen.contains(place) && useful(&candidates[*place]) > 0);
        let next = open.min_by(|a, b| {
            let (a, b) = (&candidates[*a], &candidates[*b]);
            // a.cost / useful(a) against b.cost / useful(b), without a division.
            (i128::from(a.cost).saturating_mul(useful(b)), a.engine)
                .cmp(&(i128::from(b.cost).saturating_mul(useful(a)), b.engine))
        })?;
        left.iter_mut().zip(&candidates[next].frees).for_each(|(short, frees)| *short -= frees);
        chosen.push(next);
    }
    Some(chosen)
}

/// The dearest first: a later choice may have made an earlier one needless.
fn drop_the_unneeded(candidates: &[Candidate], short: &[i128], chosen: &mut Vec<usize>) {
    let mut dearest_first = chosen.clone();
    dearest_first.sort_by_key(|place| std::cmp::Reverse((candidates[*place].cost, *place)));
    for place in dearest_first {
        let without: Vec<usize> = chosen.iter().copied().filter(|other| *other != place).collect();
        if enough(candidates, &without, short) {
            *chosen = without;
        }
    }
}
