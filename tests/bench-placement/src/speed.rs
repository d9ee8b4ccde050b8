//! How long a decision takes, on machines that are full of engines and asked for what they have not.

use std::time::Duration;

use fettle_placement::device::Health;
use fettle_placement::engine::{Engine, EngineState, Seat};
use fettle_placement::footprint::Slack;
use fettle_placement::id::{EngineId, Epoch, ModelId, OwnerId};
use fettle_placement::plan;
use fettle_placement::quantity::{Bytes, Millis};
use fettle_placement::simulate::box_of_gpus;
use fettle_placement::simulate::random::Random;
use fettle_placement::view::{Class, Policy, View, Want};
use fettle_test_kit::measure::report::{Figure, Target};
use rustix::time::{ClockId, clock_gettime};

use crate::Extent;

const NOW: Millis = Millis::secs(10_000);

pub(crate) fn figures(extent: Extent) -> (Vec<Figure>, Vec<String>) {
    let p99s = |gpus, engines, decisions| (0..extent.rounds).map(|seed| p99(gpus, engines, decisions, seed)).collect();
    let figures = vec![
        Figure::of("p99 of a decision, 8 GPUs, 64 engines", "us", Some(Target::AtMost(100.0)), p99s(8, 64, 1000)),
        Figure::of(
            "p99 of a decision, 1,000 GPUs, 4,000 engines",
            "us",
            Some(Target::AtMost(1000.0)),
            p99s(1000, 4000, 300),
        ),
    ];
    (
        figures,
        vec!["speed: processor time; each decision has four wants; one finds room, one makes room, one waits, one is ready".to_owned()],
    )
}

/// Of this thread: what else runs on the machine is not in it.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// In microseconds.
fn p99(gpus: usize, engines: usize, decisions: usize, seed: u64) -> f64 {
    let mut random = Random::new(seed);
    let (mut view, policy) = (full(gpus, engines, &mut random), Policy::default());
    let mut times: Vec<Duration> = (0..decisions)
        .map(|_| {
            shake(&mut view, &mut random);
            let demand = demand(&view, &mut random);
            let begin = processor_time();
            let placement = plan(&view, &demand, &policy);
            let time = processor_time().saturating_sub(begin);
            assert!(!placement.refusals.is_empty() || !placement.intents.is_empty(), "four wants, and no answer");
            time
        })
        .collect();
    times.sort_unstable();
    times[times.len() * 99 / 100].as_secs_f64() * 1e6
}

/// Every device has as many engines, of which some are busy and some were just loaded.
fn full(gpus: usize, engines: usize, random: &mut Random) -> View {
    let mut view = box_of_gpus::gpus(gpus, 78);
    view.now = NOW;
    let each = engines / gpus;
    for nth in 0..engines {
        let size = Bytes::mib(random.between(4000, 70_000 / each as u64));
        box_of_gpus::add_model(&mut view, &format!("m{nth:04}"), size, 1, Slack::NONE);
        let place = nth / each;
        let pool = &mut view.pools[place];
        pool.used += size;
        pool.free = Bytes::there(i128::from(pool.free.over(size)));
        pool.sampled = NOW;
        let (id, model) = (EngineId::new(format!("m{nth:04}.1")), ModelId::new(format!("m{nth:04}")));
        let claims = vec![(pool.id.clone(), size)];
        let recipe = view.recipes[nth].id.clone();
        let devices = vec![view.devices[place].id.clone()];
        view.engines.push(Engine {
            seat: Seat { engine: id.clone(), model, recipe, devices, peaks: claims.clone(), claims: claims.clone() },
            id,
            epoch: Epoch(1),
            state: EngineState::Ready,
            observed: claims,
            inflight: 0,
            warm_sessions: 2,
            rate_milli: 0,
            reload: Millis::secs(20),
            prefill: Millis::secs(1),
            ready_at: Millis::ZERO,
            last_used: NOW,
            pinned: false,
        });
    }
    for (name, gib) in [("large", 40), ("small", 5), ("huge", 70)] {
        box_of_gpus::add_model(&mut view, name, Bytes::gib(gib), 1, Slack::NONE);
    }
    view
}

fn shake(view: &mut View, random: &mut Random) {
    for engine in &mut view.engines {
        engine.inflight = u32::from(random.below(3) == 0);
        engine.rate_milli = u32::try_from(random.below(2000)).unwrap_or_default();
        engine.ready_at = NOW.since(Millis::secs(random.below(600)));
    }
    let devices = view.devices.len() as u64;
    for device in &mut view.devices {
        device.health = if random.below(50) == 0 { Health::Degraded("seen".to_owned()) } else { Health::Ok };
    }
    let place = usize::try_from(random.below(devices)).unwrap_or_default();
    view.devices[place].health = Health::Lost;
}

fn demand(view: &View, random: &mut Random) -> Vec<Want> {
    let ready = usize::try_from(random.below(view.engines.len() as u64)).unwrap_or_default();
    let ready = view.engines[ready].seat.model.as_str();
    let names = ["large", "small", "huge", ready];
    let want = |(nth, name): (usize, &&str)| Want {
        model: ModelId::new(*name),
        owner: OwnerId::new(format!("o{nth}")),
        class: Class::Interactive,
        waiting: 1,
        oldest: NOW.since(Millis::secs(nth as u64)),
        replicas: (0, 1),
    };
    names.iter().enumerate().map(want).collect()
}
