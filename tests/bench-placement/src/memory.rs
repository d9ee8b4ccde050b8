//! Loads that take another amount than was estimated, while others use memory too and samples are old.

use fettle_placement::footprint::Slack;
use fettle_placement::quantity::{Bytes, Millis};
use fettle_placement::simulate::baseline::Baseline;
use fettle_placement::simulate::random::Random;
use fettle_placement::simulate::trace::{Agents, agents};
use fettle_placement::simulate::{Decide, Mistakes, Outcome, Planner, Setup, box_of_gpus, simulate};
use fettle_test_kit::measure::report::{Figure, Target};

use crate::Extent;

const GPUS: usize = 8;
const MODELS: usize = 24;
const MISTAKES: Mistakes =
    Mistakes { noise_permille: 150, outliers: true, lag: Millis::secs(2), foreign: Bytes::gib(4) };

pub(crate) fn figures(extent: Extent) -> (Vec<Figure>, Vec<String>) {
    let loads = extent.loads / extent.rounds;
    let ours: Vec<Outcome> =
        (0..extent.rounds).map(|seed| until(loads, seed, &|| Box::new(Planner::default()), true)).collect();
    // An estimate without slack, as it is computed: what is missing shows in tenths of the loads.
    let serial: Vec<Outcome> =
        (0..extent.rounds).map(|seed| until(loads / 10, seed, &|| Box::new(Baseline::GLOBAL_SERIAL), false)).collect();
    let of = |outcomes: &[Outcome], value: &dyn Fn(&Outcome) -> f64| outcomes.iter().map(value).collect::<Vec<f64>>();
    let out_of_memory = |outcome: &Outcome| outcome.out_of_memory as f64;
    let per_thousand = |outcome: &Outcome| outcome.out_of_memory as f64 * 1000.0 / outcome.loads.max(1) as f64;
    let figures = vec![
        Figure::of("out of memory", "loads", Some(Target::AtMost(0.0)), of(&ours, &out_of_memory)),
        Figure::of("out of memory, global-serial", "loads", Some(Target::AtLeast(1.0)), of(&serial, &out_of_memory)),
        Figure::of("out of memory in 1,000 loads", "", None, of(&ours, &per_thousand)),
        Figure::of("out of memory in 1,000 loads, global-serial", "", None, of(&serial, &per_thousand)),
        Figure::of(
            "promised more than there is",
            "loads",
            Some(Target::AtMost(0.0)),
            of(&ours, &|o| o.overcommitted as f64),
        ),
    ];
    let total: u64 = ours.iter().map(|outcome| outcome.loads).sum();
    let notes = vec![format!(
        "memory: {total} loads with 15 % noise, one in a hundred at 1.5 times its estimate, samples 2 s old, others with up to 4 GiB \
         a device; no engine is told a limit, which is what real ones that take one would be"
    )];
    (figures, notes)
}

/// Traces, one after the other, until there were so many loads.
fn until(loads: u64, seed: u64, decide: &dyn Fn() -> Box<dyn Decide>, learns: bool) -> Outcome {
    let mut sum = Outcome::default();
    let mut nth = 0;
    while sum.loads < loads {
        let seed = seed * 1_000_003 + nth;
        nth += 1;
        let outcome = simulate(&setup(seed, learns), &trace(2 * (loads - sum.loads), seed), &mut *decide());
        sum.loads += outcome.loads.max(1);
        sum.out_of_memory += outcome.out_of_memory;
        sum.overcommitted += outcome.overcommitted;
    }
    sum
}

fn setup(seed: u64, learns: bool) -> Setup {
    let mut random = Random::new(seed);
    let mut view = box_of_gpus::gpus(GPUS, 78);
    let slack = if learns { Slack::FIRST } else { Slack::NONE };
    for nth in 0..MODELS {
        let size = Bytes::gib(random.one_of(&box_of_gpus::CATALOGUE[..10]));
        box_of_gpus::add_model(&mut view, &format!("m{nth:03}"), size, 1, slack);
    }
    Setup { view, mistakes: MISTAKES, seed, learns }
}

/// Single requests, so that models come and go.
fn trace(sessions: u64, seed: u64) -> Vec<fettle_placement::simulate::Request> {
    let (every, pause) = (Millis::secs(20), Millis::secs(10));
    let mut trace = agents(Agents { models: MODELS, owners: 2, sessions, every, turns: 1, pause }, seed);
    // Every model as often as the others: popular ones would stay.
    let mut random = Random::new(seed);
    for request in &mut trace {
        request.model = fettle_placement::id::ModelId::new(format!("m{:03}", random.below(MODELS as u64)));
    }
    trace
}
