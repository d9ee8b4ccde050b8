//! What holds for every plan in every world. The names I1 to I14 are those of the invariants in `crates/placement/README.md`.

use fettle_placement::device::{Health, PoolKind};
use fettle_placement::engine::{Engine, EngineState, Seat, on_pool};
use fettle_placement::id::{DeviceId, EngineId, Epoch, PoolId};
use fettle_placement::memory_ledger::{accounts, admits, hold};
use fettle_placement::placement::{How, Intent, Placement, Reason};
use fettle_placement::plan;
use fettle_placement::quantity::{Bytes, Millis};
use fettle_placement::recipe::SleepLevel;
use fettle_placement::view::{Policy, RecipeChoice, View};
use proptest::prelude::*;

use crate::world::{NOW, World, any_world, empty_pool, gpu};

/// Each takes a fifth of a millisecond in a debug build, and worlds differ in a dozen ways.
const CASES: u32 = 400;

fn policies() -> impl Strategy<Value = Policy> {
    (any::<bool>(), any::<bool>()).prop_map(|(first_fit, ttl)| Policy {
        recipes: if first_fit { RecipeChoice::FirstFit } else { RecipeChoice::Strict },
        idle_ttl: ttl.then_some(Millis::secs(300)),
        ..Policy::default()
    })
}

fn engine<'v>(view: &'v View, id: &EngineId) -> &'v Engine {
    view.engines.iter().find(|engine| engine.id == *id).unwrap()
}

fn named(intent: &Intent) -> Option<(&EngineId, Epoch)> {
    match intent {
        Intent::Load(_) => None,
        Intent::Wake(id, epoch)
        | Intent::Sleep(id, epoch)
        | Intent::Drain(id, epoch, _)
        | Intent::Resume(id, epoch)
        | Intent::Stop(id, epoch) => Some((id, *epoch)),
    }
}

/// Engines that the plan ends or puts to sleep.
fn leaving(placement: &Placement) -> Vec<&EngineId> {
    let leaving = |intent: &'_ Intent| matches!(intent, Intent::Stop(..) | Intent::Sleep(..));
    placement.intents.iter().filter(|intent| leaving(intent)).filter_map(|intent| Some(named(intent)?.0)).collect()
}

/// The seat of a load, or of an engine that wakes: what it claims when it is awake.
fn seat_of(view: &View, intent: &Intent) -> Option<Seat> {
    match intent {
        Intent::Load(seat) => Some(seat.clone()),
        Intent::Wake(id, _) => {
            let seat = engine(view, id).seat.clone();
            let footprint = &view.footprints[&seat.recipe];
            let pool = |id: &DeviceId| view.devices.iter().find(|device| device.id == *id).unwrap().pool.clone();
            let claims: Vec<_> = seat.devices.iter().map(pool).zip(footprint.claims()).collect();
            Some(Seat { peaks: claims.clone(), claims, ..seat })
        }
        Intent::Sleep(..) | Intent::Drain(..) | Intent::Resume(..) | Intent::Stop(..) => None,
    }
}

/// The view once an engine has gone and its memory was seen free.
fn without(view: &mut View, id: &EngineId) {
    let Some(place) = view.engines.iter().position(|engine| engine.id == *id) else { return };
    let engine = view.engines.remove(place);
    for pool in &mut view.pools {
        let observed = on_pool(&engine.observed, &pool.id);
        pool.used = Bytes::there(i128::from(pool.used.over(observed)));
        pool.free += observed;
    }
}

fn spawned(seat: &Seat) -> Engine {
    Engine {
        id: seat.engine.clone(),
        epoch: Epoch(1),
        seat: seat.clone(),
        state: EngineState::Spawning,
        observed: Vec::new(),
        inflight: 0,
        warm_sessions: 0,
        rate_milli: 0,
        reload: Millis::secs(30),
        prefill: Millis::secs(1),
        ready_at: NOW,
        last_used: NOW,
        pinned: false,
    }
}

/// Replays the intents one by one, and tells of each load whether the memory ledger admits it then.
fn replay(view: &View, placement: &Placement) -> (View, Vec<(EngineId, bool)>) {
    let mut after = view.clone();
    let mut admitted = Vec::new();
    for intent in &placement.intents {
        match intent {
            Intent::Stop(id, _) => without(&mut after, id),
            Intent::Sleep(id, _) => {
                let slept = engine(view, id).clone();
                without(&mut after, id);
                let footprint = &view.footprints[&slept.seat.recipe];
                let mut claims: Vec<_> =
                    slept.seat.claims.iter().map(|(pool, _)| (pool.clone(), Bytes::ZERO)).collect();
                for ((_, claim), parts) in claims.iter_mut().zip(&footprint.shards) {
                    *claim = parts.context;
                }
                claims.retain(|(pool, _)| *pool != PoolId::new("host"));
                claims.push((PoolId::new("host"), slept.seat.claims.iter().map(|(_, bytes)| *bytes).sum()));
                let seat = Seat { claims, ..slept.seat.clone() };
                after.engines.push(Engine {
                    seat,
                    state: EngineState::Sleeping(SleepLevel::Host),
                    ..spawned(&slept.seat)
                });
            }
            Intent::Load(seat) => {
                let admits = admits(&accounts(&after, &Policy::default()), &seat.claims, &seat.peaks);
                admitted.push((seat.engine.clone(), admits));
                after.engines.push(spawned(seat));
            }
            Intent::Wake(id, _) => {
                let seat = seat_of(view, intent).unwrap();
                without(&mut after, id);
                let admits = admits(&accounts(&after, &Policy::default()), &seat.claims, &seat.peaks);
                admitted.push((id.clone(), admits));
                after.engines.push(spawned(&seat));
            }
            Intent::Drain(..) | Intent::Resume(..) => {}
        }
    }
    (after, admitted)
}

fn locks(view: &View, pool: &PoolId) -> bool {
    view.pools.iter().any(|known| known.id == *pool && known.kind != PoolKind::Host)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(CASES) })]

    // I1, I2
    #[test]
    fn every_load_is_admitted_by_the_memory_ledger_and_nothing_is_promised_twice(
        world in any_world(), policy in policies(),
    ) {
        let placement = plan(&world.view, &world.demand, &policy);
        let (after, admitted) = replay(&world.view, &placement);
        for (engine, admitted) in admitted {
            prop_assert!(admitted, "{engine}: {placement:#?}");
        }
        let before = accounts(&world.view, &policy);
        for (id, account) in accounts(&after, &policy) {
            let pool = after.pools.iter().find(|pool| pool.id == id).unwrap();
            let was = before.iter().find(|(known, _)| *known == id).unwrap().1.holds();
            prop_assert!(account.holds() <= pool.cap.max(was), "{id}: {} of {}", account.holds(), pool.cap);
        }
    }

    // I3
    #[test]
    fn a_pool_has_at_most_one_load_or_one_leaving_for_it(world in any_world(), policy in policies()) {
        let view = &world.view;
        let placement = plan(view, &world.demand, &policy);
        let mut taken: Vec<PoolId> = Vec::new();
        for intent in &placement.intents {
            for (pool, _) in seat_of(view, intent).iter().flat_map(|seat| &seat.claims).filter(|(pool, _)| locks(view, pool)) {
                prop_assert!(!taken.contains(pool), "two loads in {pool}: {placement:#?}");
                taken.push(pool.clone());
                let changing = view.engines.iter().find(|engine| {
                    let changes = matches!(
                        engine.state,
                        EngineState::Reserved | EngineState::Spawning | EngineState::Loading | EngineState::Stopping
                            | EngineState::Reclaiming
                    );
                    changes && engine.seat.claims.iter().any(|(id, _)| id == pool)
                });
                prop_assert!(changing.is_none(), "{:?} changes in {}", changing.map(|one| &one.id), pool);
            }
        }
        for reason in &placement.reasons {
            let Reason::Chosen { how: How::MakingRoom { victims, .. } | How::Emptied { victims }, engine: id, .. } = reason else { continue };
            let load = placement.intents.iter().filter_map(|intent| seat_of(view, intent)).find(|seat| seat.engine == *id).unwrap();
            for pool in victims.iter().flat_map(|victim| &engine(view, victim).seat.claims).map(|(pool, _)| pool) {
                let other = taken.iter().filter(|taken| *taken == pool).count();
                let own = load.claims.iter().any(|(id, _)| id == pool);
                prop_assert!(other == 0 || own, "{pool} loses an engine while another loads there: {placement:#?}");
            }
        }
    }

    // I4, I5, I10, I11
    #[test]
    fn who_is_stopped_is_idle_old_enough_and_not_pinned_or_past_a_deadline(world in any_world(), policy in policies()) {
        let view = &world.view;
        let placement = plan(view, &world.demand, &policy);
        for (id, epoch) in placement.intents.iter().filter_map(named) {
            prop_assert_eq!(epoch, engine(view, id).epoch);
        }
        let barrier_is_over = |id: &EngineId| {
            placement.reasons.iter().any(|reason| matches!(reason, Reason::Chosen { how: How::Emptied { victims }, .. } if victims.contains(id)))
                && view.barrier.as_ref().is_some_and(|barrier| barrier.until <= NOW)
        };
        for id in leaving(&placement) {
            let one = engine(view, id);
            let drained = matches!(one.state, EngineState::Draining { until } if until <= NOW || one.inflight == 0);
            prop_assert!(one.inflight == 0 || drained || barrier_is_over(id), "{id} is busy: {placement:#?}");
            prop_assert!(!one.pinned || drained, "{id} is pinned");
            let residency = if one.inflight == 0 { policy.idle_residency() } else { policy.residency(one.reload) };
            let young = one.ready_at + residency > NOW;
            let asleep = matches!(one.state, EngineState::Sleeping(_));
            let unused = placement.reasons.iter().any(|reason| matches!(reason, Reason::Unused { engine, .. } if engine == id));
            prop_assert!(!young || asleep || drained || unused || barrier_is_over(id), "{id} was loaded just now");
        }
    }

    // I8
    #[test]
    fn no_victim_can_be_spared(world in any_world()) {
        let view = &world.view;
        let placement = plan(view, &world.demand, &Policy::default());
        for reason in &placement.reasons {
            let Reason::Chosen { how: How::MakingRoom { victims, .. } | How::Emptied { victims }, engine: id, .. } = reason
            else {
                continue;
            };
            let place = placement.intents.iter().position(|intent| seat_of(view, intent).is_some_and(|seat| seat.engine == *id));
            for spared in victims {
                let mut without_it = Placement { intents: placement.intents[..=place.unwrap()].to_vec(), ..Placement::default() };
                without_it.intents.retain(|intent| named(intent).is_none_or(|(id, _)| id != spared));
                let (_, admitted) = replay(view, &without_it);
                prop_assert!(!admitted.last().unwrap().1, "{spared}: {placement:#?}");
            }
        }
    }

    // I9
    #[test]
    fn quarantined_stale_and_frozen_devices_get_nothing(world in any_world(), policy in policies()) {
        let view = &world.view;
        let placement = plan(view, &world.demand, &policy);
        for seat in placement.intents.iter().filter_map(|intent| seat_of(view, intent)) {
            for id in &seat.devices {
                let device = view.devices.iter().find(|device| device.id == *id).unwrap();
                prop_assert!(matches!(device.health, Health::Ok | Health::Degraded(_)), "{}", id);
                let pool = view.pools.iter().find(|pool| pool.id == device.pool).unwrap();
                prop_assert!(pool.frozen.is_none() && NOW.since(pool.sampled) <= policy.stale_after, "{}", pool.id);
            }
        }
    }

    // I12
    #[test]
    fn the_order_in_which_facts_are_listed_means_nothing(world in any_world(), policy in policies(), turn in 1..5usize) {
        let World { mut view, mut demand } = world;
        let placement = plan(&view, &demand, &policy);
        let shuffle = |len: usize| if len == 0 { 0 } else { turn % len };
        let (devices, pools, engines) = (shuffle(view.devices.len()), shuffle(view.pools.len()), shuffle(view.engines.len()));
        view.devices.rotate_left(devices);
        view.pools.rotate_left(pools);
        view.engines.rotate_left(engines);
        view.engines.reverse();
        view.recipes.reverse();
        view.models.reverse();
        demand.reverse();
        prop_assert_eq!(placement, plan(&view, &demand, &policy));
    }

    #[test]
    fn every_want_is_answered_once(world in any_world(), policy in policies()) {
        let placement = plan(&world.view, &world.demand, &policy);
        for want in &world.demand {
            let refused = placement.refusals.iter().filter(|unmet| unmet.model == want.model && unmet.owner == want.owner).count();
            prop_assert!(refused <= 1);
            let started = placement.reasons.iter().any(|reason| matches!(reason, Reason::Chosen { model, .. } if *model == want.model));
            let underway = placement.reasons.iter().any(|reason| matches!(reason, Reason::Underway { model, .. } if *model == want.model));
            let serves = |one: &&Engine| {
                let on_its_way = matches!(one.state, EngineState::Ready | EngineState::Draining { .. } | EngineState::Loading | EngineState::Spawning);
                one.seat.model == want.model && on_its_way
            };
            let served = world.view.engines.iter().any(|one| serves(&one));
            prop_assert!(refused == 1 || started || underway || served || want.waiting == 0, "{want:?}: {placement:#?}");
            if let Some(unmet) = placement.refusals.iter().find(|unmet| unmet.model == want.model && unmet.owner == want.owner) {
                prop_assert!(unmet.refusal.is_final() || unmet.refusal.retry_after().is_some_and(|after| (1..=60).contains(&after)));
            }
        }
    }

    // I14
    #[test]
    fn what_is_placeable_stays_so_beside_one_more_empty_gpu(world in any_world(), name in "[a-z]") {
        let World { mut view, demand } = world;
        let demand = &demand[..1];
        view.barrier = None;
        let started = |placement: &Placement| placement.reasons.iter().any(|reason| matches!(reason, Reason::Chosen { .. }));
        if !started(&plan(&view, demand, &Policy::default())) {
            return Ok(());
        }
        let like = view.devices[0].clone();
        let more = gpu(&name, like.island.is_some());
        let gib = view.pools.iter().map(|pool| pool.cap).filter(|cap| *cap < Bytes::gib(200)).max().unwrap_or_default();
        view.pools.push(empty_pool(&more.pool, PoolKind::Vram, gib.get() >> 30));
        view.devices.push(more);
        prop_assert!(started(&plan(&view, demand, &Policy::default())));
    }

    #[test]
    fn a_barrier_keeps_its_devices_and_its_deadline(world in any_world()) {
        let World { view, demand } = world;
        let placement = plan(&view, &demand, &Policy::default());
        let Some(barrier) = &placement.barrier else { return Ok(()) };
        if view.barrier.as_ref().is_some_and(|old| old.model == barrier.model && old.devices == barrier.devices && old.until == barrier.until) {
            let seats: Vec<_> = placement.intents.iter().filter_map(|intent| seat_of(&view, intent)).collect();
            let trespass = seats.iter().flat_map(|seat| &seat.devices).find(|id| barrier.devices.contains(id));
            prop_assert!(trespass.is_none(), "{placement:#?}");
        }
        for id in &barrier.engines {
            prop_assert!(!engine(&view, id).pinned);
        }
        // Without what it empties, its want has its room.
        let recipe = view.recipes.iter().find(|recipe| recipe.id == barrier.recipe).unwrap();
        let footprint = &view.footprints[&recipe.id];
        for (device, claim) in barrier.devices.iter().zip(footprint.claims()) {
            let pool = &view.devices.iter().find(|known| known.id == *device).unwrap().pool;
            let pool = view.pools.iter().find(|known| known.id == *pool).unwrap();
            let drained = placement.intents.iter().filter(|intent| matches!(intent, Intent::Drain(..))).filter_map(named);
            let gone: Vec<_> = leaving(&placement).into_iter().chain(drained.map(|(id, _)| id)).collect();
            let stays = view.engines.iter().filter(|one| !barrier.engines.contains(&one.id) && !gone.contains(&&one.id));
            let stays: Bytes = stays.map(|one| hold(one, &pool.id)).sum();
            prop_assert!(stays + footprint.peak(claim) <= pool.cap);
        }
    }
}
