//! Where a recipe could go: one device, or a tensor-parallel set inside one island, with the bytes it needs of each pool.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use smallvec::{SmallVec, smallvec};

use super::desk::Desk;
use crate::device::{Device, DeviceKind, Health, WaitingFor};
use crate::footprint::Footprint;
use crate::id::{EngineId, IslandId, ModelId};
use crate::memory_ledger::Closed;
use crate::placement::{Alternative, But, How, Refusal};
use crate::quantity::{Bytes, Millis};
use crate::recipe::{Recipe, RunsOn};

/// Enough to see why the choice was not another; a rack of devices would make a reason unreadable.
pub(super) const ALTERNATIVES_SHOWN: usize = 2;

/// Devices in rank order and what each of their pools has to give, one entry a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Site {
    pub(super) devices: Places,
    pub(super) needs: SmallVec<[Need; POOLS]>,
}

/// Most sites are one device. There are a thousand to look at in a rack, for each want.
pub(super) type Places = SmallVec<[usize; 2]>;

/// That of the device, and the host's.
pub(super) const POOLS: usize = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Need {
    pub(super) pool: usize,
    pub(super) claim: Bytes,
    pub(super) peak: Bytes,
}

impl Need {
    pub(super) fn bytes(self) -> Bytes {
        self.claim.max(self.peak)
    }
}

/// What keeps a site from being used now, other than a lack of memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Obstacle {
    Quarantined(usize),
    Fabric,
    Unseen,
    Frozen(String),
    /// That engine loads or leaves in one of the pools, until then.
    Changing(EngineId, Millis),
    /// Is being emptied for that model.
    Kept(ModelId, Millis),
}

impl Site {
    fn new(devices: Places) -> Self {
        Self { devices, needs: SmallVec::new() }
    }

    fn add(&mut self, pool: usize, claim: Bytes, peak: Bytes) {
        match self.needs.iter_mut().find(|need| need.pool == pool) {
            Some(need) => {
                need.claim += claim;
                need.peak += peak;
            }
            None => self.needs.push(Need { pool, claim, peak }),
        }
    }

    pub(super) fn fits(&self, desk: &Desk) -> bool {
        self.has_room(desk) && self.obstacle(desk, true).is_none()
    }

    fn has_room(&self, desk: &Desk) -> bool {
        self.needs.iter().all(|need| desk.pools[need.pool].account.room() >= need.bytes().signed())
    }

    /// `drained`: whether engines that still answer their last requests are in the way, too.
    pub(super) fn obstacle(&self, desk: &Desk, drained: bool) -> Option<Obstacle> {
        let health = self.devices.iter().find_map(|place| match desk.devices[*place].device.health {
            Health::Ok | Health::Degraded(_) => None,
            Health::Quarantined(_) | Health::Lost => Some(Obstacle::Quarantined(*place)),
            Health::Waiting(WaitingFor::Fabric) => Some(Obstacle::Fabric),
            Health::Waiting(WaitingFor::Nvml) => Some(Obstacle::Unseen),
        });
        health.or_else(|| {
            self.needs.iter().find_map(|need| {
                let vault = &desk.pools[need.pool];
                let draining = vault.draining.as_ref().filter(|_| drained);
                match (vault.account.closed(), vault.kept_for, vault.changing.as_ref().or(draining)) {
                    (Some(Closed::Stale { .. } | Closed::NoDevice), ..) => Some(Obstacle::Unseen),
                    (Some(Closed::Frozen(why)), ..) => Some(Obstacle::Frozen(why.clone())),
                    (None, Some((model, until)), _) => Some(Obstacle::Kept(model.clone(), until)),
                    (None, None, Some(change)) => Some(Obstacle::Changing(change.by.clone(), change.until)),
                    (None, None, None) => None,
                }
            })
        })
    }

    /// What its pools lack.
    pub(super) fn shortage(&self, desk: &Desk) -> i128 {
        let lacks = |need: &Need| (need.bytes().signed() - desk.pools[need.pool].account.room()).max(0);
        self.needs.iter().map(lacks).sum()
    }

    /// What is left over on its devices once it is used.
    fn left_over(&self, desk: &Desk) -> Bytes {
        let of_devices = |pool| self.devices.iter().any(|place| desk.devices[*place].pool == Some(pool));
        let needs = self.needs.iter().filter(|need| of_devices(need.pool));
        Bytes::there(needs.map(|need| desk.pools[need.pool].account.room() - need.bytes().signed()).sum())
    }

    fn degraded(&self, desk: &Desk) -> bool {
        self.devices.iter().any(|place| matches!(desk.devices[*place].device.health, Health::Degraded(_)))
    }

    /// Among places that leave as little over: few nodes of memory to cross, few neighbours, cool.
    fn comfort(&self, desk: &Desk) -> (usize, usize, u8) {
        let devices = || self.devices.iter().map(|place| desk.devices[*place].device);
        let mut nodes: SmallVec<[_; 8]> = devices().map(|device| device.numa).collect();
        nodes.sort_unstable();
        nodes.dedup();
        let neighbours = self.needs.iter().map(|need| desk.pools[need.pool].tenants.len()).sum();
        (nodes.len(), neighbours, devices().map(|device| device.celsius).max().unwrap_or_default())
    }
}

/// A recipe with the devices that could ever run it.
pub(super) struct Shape<'v> {
    pub(super) recipe: &'v Recipe,
    pub(super) footprint: &'v Footprint,
    /// Those that are large enough when nothing but reserves is on them. For a set: by island.
    candidates: Candidates<'v>,
}

enum Candidates<'v> {
    Single(Vec<usize>),
    /// All devices of each island that may be in sets, with whether each is large enough: sets are aligned by their places
    /// among all, so that they stay aligned while devices come and go.
    Sets(BTreeMap<&'v IslandId, Vec<(usize, bool)>>),
}

impl<'v> Shape<'v> {
    /// Errors: the refusals that are final, and [`Refusal::Backoff`].
    pub(super) fn of(desk: &Desk<'v>, recipe: &'v Recipe) -> Result<Self, Refusal> {
        let footprint = desk.view.footprints.get(&recipe.id).ok_or(Refusal::NoRecipe)?;
        let tp = usize::from(recipe.tp.max(1));
        if footprint.shards.len() != tp {
            return Err(Refusal::NoRecipe);
        }
        if let Some(until) = desk.backoff_of(recipe) {
            return Err(Refusal::Backoff { until, eta: until.since(desk.view.now) });
        }
        let need = footprint.claims().map(|claim| claim.max(footprint.peak(claim))).max().unwrap_or_default();

        let of_kind = || {
            let all = desk.devices.iter().enumerate();
            all.filter(|(_, spot)| !spot.sliced && runs_on(spot.device, recipe.on))
        };
        let best = of_kind().map(|(_, spot)| spot.device.cc).max();
        let Some(best) = best else { return Err(Refusal::TooBig { need, largest: Bytes::ZERO }) };
        if recipe.on == RunsOn::Gpu && best < recipe.min_cc {
            return Err(Refusal::ComputeCapability { need: recipe.min_cc, best });
        }
        let able: Vec<usize> = of_kind()
            .filter(|(_, spot)| recipe.on == RunsOn::Cpu || spot.device.cc >= recipe.min_cc)
            .map(|(place, _)| place)
            .collect();
        let largest = able.iter().map(|place| room_when_empty(desk, *place)).max().unwrap_or_default();
        let large_enough = |place: usize| room_when_empty(desk, place) >= need;

        let candidates = if tp == 1 {
            Candidates::Single(able.into_iter().filter(|place| large_enough(*place)).collect())
        } else {
            let mut islands: BTreeMap<&IslandId, Vec<(usize, bool)>> = BTreeMap::new();
            for place in able {
                let device = desk.devices[place].device;
                if let Some(island) = device.island.as_ref().filter(|_| device.tp_ok && device.kind == DeviceKind::Gpu)
                {
                    islands.entry(island).or_default().push((place, large_enough(place)));
                }
            }
            if !islands.values().any(|island| island.len() >= tp) {
                let pending = desk.devices.iter().any(|spot| spot.device.health == Health::Waiting(WaitingFor::Fabric));
                return Err(if pending {
                    Refusal::FabricPending { eta: super::refuse::FABRIC }
                } else {
                    Refusal::NoIsland { tp: recipe.tp }
                });
            }
            islands.retain(|_, island| island.iter().filter(|(_, large)| *large).count() >= tp);
            Candidates::Sets(islands)
        };
        let none = match &candidates {
            Candidates::Single(devices) => devices.is_empty(),
            Candidates::Sets(islands) => islands.is_empty(),
        };
        if none {
            return Err(Refusal::TooBig { need, largest });
        }
        if let Some(host) = desk.host.filter(|_| footprint.host > Bytes::ZERO) {
            let largest = desk.pools[host].capacity;
            if largest < footprint.host {
                return Err(Refusal::TooBig { need: footprint.host, largest });
            }
        } else if footprint.host > Bytes::ZERO {
            return Err(Refusal::TooBig { need: footprint.host, largest: Bytes::ZERO });
        }
        Ok(Self { recipe, footprint, candidates })
    }

    /// Every single device, or every aligned set.
    pub(super) fn sites(&self, desk: &Desk<'v>) -> impl Iterator<Item = Site> {
        self.sites_on(desk, |_| true)
    }

    /// Those of devices that are `able`.
    fn sites_on(&self, desk: &Desk<'v>, able: impl Fn(usize) -> bool + Copy) -> impl Iterator<Item = Site> {
        let (single, sets) = match &self.candidates {
            Candidates::Single(devices) => (devices.as_slice(), None),
            Candidates::Sets(islands) => (&[][..], Some(islands)),
        };
        let single = single.iter().filter(move |place| able(**place)).map(|place| smallvec![*place]);
        let windows = sets.into_iter().flat_map(|islands| islands.values());
        let windows = windows.flat_map(|island| island.chunks_exact(self.footprint.shards.len()));
        let whole = windows.filter(move |window| window.iter().all(|(place, large)| *large && able(*place)));
        let whole = whole.map(|window| window.iter().map(|(place, _)| *place).collect());
        single.chain(whole).filter_map(|devices| self.site(desk, devices))
    }

    /// A set of the devices of one island for which `rank` says something, the least first; one for each island. Where no
    /// aligned set will do, this finds one whenever there is one.
    pub(super) fn loose_sets<K: Ord>(&self, desk: &Desk, rank: impl Fn(&Site) -> Option<K>) -> Vec<Site> {
        let Candidates::Sets(islands) = &self.candidates else { return Vec::new() };
        let need = self.footprint.claims().max().unwrap_or_default();
        let alone = |place: usize| {
            let mut site = Site::new(smallvec![place]);
            site.add(desk.devices[place].pool?, need, self.footprint.peak(need));
            Some(site)
        };
        let loose = |island: &Vec<(usize, bool)>| {
            let large = island.iter().filter(|(_, large)| *large);
            let mut ranked: Vec<(K, usize)> =
                large.filter_map(|(place, _)| Some((rank(&alone(*place)?)?, *place))).collect();
            ranked.sort();
            let mut devices: Places = ranked.iter().map(|(_, place)| *place).collect();
            devices.truncate(self.footprint.shards.len());
            devices.sort_unstable();
            (devices.len() == self.footprint.shards.len()).then(|| self.site(desk, devices)).flatten()
        };
        islands.values().filter_map(loose).collect()
    }

    /// `None`: a device's pool is not in the view.
    pub(super) fn site(&self, desk: &Desk, devices: Places) -> Option<Site> {
        let mut site = Site::new(devices);
        for (nth, claim) in self.footprint.claims().enumerate().take(site.devices.len()) {
            site.add(desk.devices[site.devices[nth]].pool?, claim, self.footprint.peak(claim));
        }
        if self.footprint.host > Bytes::ZERO {
            site.add(desk.host?, self.footprint.host, self.footprint.host);
        }
        Some(site)
    }

    /// Engines of this recipe that sleep, each with what it needs beyond what it holds.
    pub(super) fn sleepers(&self, desk: &Desk<'v>) -> impl Iterator<Item = (usize, Site)> {
        desk.sleepers_of(self.recipe).filter_map(|sleeper| {
            let engine = desk.engines[sleeper];
            let devices = engine.seat.devices.iter().map(|id| desk.place_of(id)).collect::<Option<Places>>()?;
            let mut site = self.site(desk, devices)?;
            for need in &mut site.needs {
                let missing = Bytes::there(i128::from(need.claim.over(desk.hold(sleeper, need.pool))));
                (need.claim, need.peak) = (missing, missing);
            }
            Some((sleeper, site))
        })
    }

    /// The free site to use, why, and what came next.
    pub(super) fn best_free(&self, desk: &Desk) -> Option<(Site, How, Vec<Alternative>)> {
        let fitting = |sites: &mut dyn Iterator<Item = Site>| {
            let mut first = Vec::new();
            for site in sites.filter(|site| site.fits(desk)) {
                insert(&mut first, (rank(desk, &site), site), 1 + ALTERNATIVES_SHOWN, |(a, _), (b, _)| a.cmp(b));
            }
            first
        };
        // Most devices of a full machine are passed over at a glance.
        let least =
            self.footprint.claims().map(|claim| claim.max(self.footprint.peak(claim))).min().unwrap_or_default();
        let room = |pool: usize| desk.pools[pool].account.room() >= least.signed();
        let mut ranked = fitting(&mut self.sites_on(desk, |place| desk.devices[place].pool.is_some_and(room)));
        let aligned = !ranked.is_empty();
        if !aligned {
            let by = |site: &Site| site.fits(desk).then(|| (site.degraded(desk), site.left_over(desk)));
            ranked = fitting(&mut self.loose_sets(desk, by).into_iter());
        }
        let mut ranked = ranked.into_iter();
        let ((degraded, left_over, ..), site) = ranked.next()?;
        let how = match desk.devices[site.devices[0]].device.island.clone().filter(|_| site.devices.len() > 1) {
            Some(island) => How::Set { island, aligned, left_over },
            None => How::BestFit { left_over },
        };
        let others = ranked.map(|((other_degraded, left_over, ..), site)| Alternative {
            devices: desk.device_ids(&site),
            but: if other_degraded && !degraded { But::Degraded } else { But::LeavesOver(left_over) },
        });
        Some((site, how, others.collect()))
    }
}

/// Into the first `count` in the order of `cmp`; of equals, those that came first.
pub(super) fn insert<T>(first: &mut Vec<T>, item: T, count: usize, cmp: impl Fn(&T, &T) -> Ordering) {
    if first.len() == count && first.last().is_some_and(|last| cmp(last, &item).is_le()) {
        return;
    }
    let place = first.partition_point(|other| cmp(other, &item).is_le());
    first.insert(place, item);
    first.truncate(count);
}

type Rank = (bool, Bytes, (usize, usize, u8), Places);

/// The least is used. A degraded device comes after every other, not only after those that fit as well.
fn rank(desk: &Desk, site: &Site) -> Rank {
    (site.degraded(desk), site.left_over(desk), site.comfort(desk), site.devices.clone())
}

fn runs_on(device: &Device, on: RunsOn) -> bool {
    match device.kind {
        DeviceKind::Gpu | DeviceKind::Slice { .. } => on == RunsOn::Gpu,
        DeviceKind::Cpu => on == RunsOn::Cpu,
    }
}

/// What a device has for one engine when nothing but reserves is on it.
fn room_when_empty(desk: &Desk, place: usize) -> Bytes {
    desk.devices[place].pool.map(|pool| desk.pools[pool].capacity).unwrap_or_default()
}
