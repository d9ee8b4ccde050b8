//! How much of a machine is used: models come one by one and stay, against the best that hindsight could do.

use fettle_placement::engine::{Engine, EngineState};
use fettle_placement::footprint::Slack;
use fettle_placement::id::{Epoch, ModelId, OwnerId};
use fettle_placement::memory_ledger::capacity;
use fettle_placement::placement::Intent;
use fettle_placement::quantity::{Bytes, Millis};
use fettle_placement::simulate::baseline::Baseline;
use fettle_placement::simulate::optimum::most_packed;
use fettle_placement::simulate::random::Random;
use fettle_placement::simulate::{Decide, Planner, box_of_gpus};
use fettle_placement::view::{Class, View, Want};
use fettle_test_kit::measure::report::{Figure, Target};

use crate::{Extent, ratio};

const GPUS: usize = 8;
const GIB: u64 = 78;

/// In GiB.
#[derive(Default)]
struct Sums {
    online: u64,
    replanned: u64,
    optimum: u64,
    at_first_refusal: u64,
    worst_fit_at_first_refusal: u64,
    room: u64,
}

pub(crate) fn figures(extent: Extent) -> (Vec<Figure>, Vec<String>) {
    let cases = extent.cases.div_ceil(extent.rounds);
    let rounds: Vec<Sums> = (0..extent.rounds)
        .map(|round| (0..cases).fold(Sums::default(), |sums, nth| case(round * cases + nth, sums)))
        .collect();
    let of = |value: &dyn Fn(&Sums) -> f64| rounds.iter().map(value).collect::<Vec<f64>>();
    let figures = vec![
        Figure::of(
            "admitted ÷ optimum, one by one",
            "",
            Some(Target::AtLeast(0.95)),
            of(&|s| ratio(s.online, s.optimum)),
        ),
        Figure::of(
            "admitted ÷ optimum, planned anew",
            "",
            Some(Target::AtLeast(0.99)),
            of(&|s| ratio(s.replanned, s.optimum)),
        ),
        Figure::of("use at first refusal", "", Some(Target::AtLeast(0.9)), of(&|s| ratio(s.at_first_refusal, s.room))),
        Figure::of("use at first refusal, worst fit", "", None, of(&|s| ratio(s.worst_fit_at_first_refusal, s.room))),
    ];
    let notes = vec![format!(
        "packing: {} cases of 24 to 60 models of 1 to 72 GiB on {GPUS} x {GIB} GiB; planned anew: the same wants, the largest first",
        cases * extent.rounds
    )];
    (figures, notes)
}

fn case(seed: u64, mut sums: Sums) -> Sums {
    let mut random = Random::new(seed);
    let sizes: Vec<u64> = (0..random.between(24, 60)).map(|_| random.one_of(&box_of_gpus::CATALOGUE)).collect();
    let mut largest_first = sizes.clone();
    largest_first.sort_unstable_by(|a, b| b.cmp(a));
    let room = box_of_gpus::gpus(1, GIB).pools.first().map(capacity).unwrap_or_default().get() >> 30;
    let online = pack(&sizes, &mut Planner::default());
    sums.online += online.0;
    sums.at_first_refusal += online.1;
    sums.worst_fit_at_first_refusal += pack(&sizes, &mut { Baseline::WORST_FIT }).1;
    sums.replanned += pack(&largest_first, &mut Planner::default()).0;
    sums.optimum += most_packed(GPUS, room, &sizes);
    sums.room += room * GPUS as u64;
    sums
}

/// What is placed in all, and before the first refusal; in GiB.
fn pack(sizes: &[u64], decide: &mut dyn Decide) -> (u64, u64) {
    let mut view = box_of_gpus::gpus(GPUS, GIB);
    let (mut placed, mut at_first_refusal) = (0, None);
    for (nth, size) in sizes.iter().enumerate() {
        let name = format!("m{nth:03}");
        box_of_gpus::add_model(&mut view, &name, Bytes::gib(*size), 1, Slack::NONE);
        let want = Want {
            model: ModelId::new(name),
            owner: OwnerId::new("o"),
            class: Class::Interactive,
            waiting: 1,
            oldest: Millis::ZERO,
            replicas: (0, 1),
        };
        let placement = decide.decide(&mut view, &[want]);
        let seat = placement.intents.iter().find_map(|intent| match intent {
            Intent::Load(seat) => Some(seat.clone()),
            _ => None,
        });
        match seat {
            Some(seat) => {
                placed += size;
                sit(&mut view, seat);
            }
            None => {
                at_first_refusal.get_or_insert(placed);
            }
        }
    }
    (placed, at_first_refusal.unwrap_or(placed))
}

/// Loaded at once, and pinned: nothing makes room.
fn sit(view: &mut View, seat: fettle_placement::engine::Seat) {
    for (id, claim) in &seat.claims {
        for pool in view.pools.iter_mut().filter(|pool| pool.id == *id) {
            pool.used += *claim;
            pool.free = Bytes::there(i128::from(pool.free.over(*claim)));
        }
    }
    view.engines.push(Engine {
        id: seat.engine.clone(),
        epoch: Epoch(1),
        observed: seat.claims.clone(),
        seat,
        state: EngineState::Ready,
        inflight: 1,
        warm_sessions: 0,
        rate_milli: 0,
        reload: Millis::secs(30),
        prefill: Millis::secs(1),
        ready_at: Millis::ZERO,
        last_used: Millis::ZERO,
        pinned: true,
    });
}
