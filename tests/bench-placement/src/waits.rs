//! How long requests wait, and how often they find their prefix warm: 43 models of agents on eight GPUs of 78 GiB, which have
//! room for a third of them.

use fettle_placement::footprint::Slack;
use fettle_placement::quantity::{Bytes, Millis};
use fettle_placement::simulate::baseline::Baseline;
use fettle_placement::simulate::random::Random;
use fettle_placement::simulate::trace::{Agents, agents};
use fettle_placement::simulate::{Decide, Mistakes, Outcome, Planner, Setup, box_of_gpus, simulate};
use fettle_placement::view::Policy;
use fettle_test_kit::measure::report::{Figure, Target};

use crate::{Extent, ratio};

const GPUS: usize = 8;
const GIB: u64 = 78;
const MODELS: usize = 43;
const OWNERS: u64 = 4;

struct Round {
    ours: Outcome,
    serial: Outcome,
    lru: Outcome,
    by_count: Outcome,
    bound: Millis,
}

pub(crate) fn figures(extent: Extent) -> (Vec<Figure>, Vec<String>) {
    let rounds: Vec<Round> = (1..=extent.rounds).map(round).collect();
    let of = |value: &dyn Fn(&Round) -> f64| rounds.iter().map(value).collect::<Vec<f64>>();
    let wait = |outcome: &Outcome| outcome.mean_wait().get();
    let seconds = |outcome: &Outcome| wait(outcome) as f64 / 1000.0;
    let figures = vec![
        Figure::of(
            "mean wait ÷ global-serial",
            "",
            Some(Target::AtMost(0.2)),
            of(&|r| ratio(wait(&r.ours), wait(&r.serial))),
        ),
        Figure::of(
            "mean wait ÷ parallel loads, LRU",
            "",
            Some(Target::AtMost(0.9)),
            of(&|r| ratio(wait(&r.ours), wait(&r.lru))),
        ),
        Figure::of(
            "warm share ÷ LRU by count",
            "",
            Some(Target::AtLeast(1.25)),
            of(&|r| ratio(r.ours.warm_permille(), r.by_count.warm_permille())),
        ),
        Figure::of("loads within 60 s of an eviction", "", Some(Target::AtMost(0.0)), of(&|r| r.ours.thrashed as f64)),
        Figure::of(
            "longest wait ÷ its bound",
            "",
            Some(Target::AtMost(1.0)),
            of(&|r| ratio(r.ours.longest_wait().get(), r.bound.get())),
        ),
        Figure::of("Jain index of four owners", "", Some(Target::AtLeast(0.95)), of(&|r| jain(&r.ours))),
        Figure::of(
            "requests lost",
            "",
            Some(Target::AtMost(0.0)),
            of(&|r| r.ours.waits.len() as f64 - (r.ours.finished + r.ours.cancelled) as f64),
        ),
        Figure::of("mean wait", "s", None, of(&|r| seconds(&r.ours))),
        Figure::of("mean wait, global-serial", "s", None, of(&|r| seconds(&r.serial))),
        Figure::of("mean wait, LRU", "s", None, of(&|r| seconds(&r.lru))),
        Figure::of("mean wait, LRU by count", "s", None, of(&|r| seconds(&r.by_count))),
        Figure::of("warm share", "%", None, of(&|r| r.ours.warm_permille() as f64 / 10.0)),
        Figure::of("warm share, LRU", "%", None, of(&|r| r.lru.warm_permille() as f64 / 10.0)),
        Figure::of("warm share, LRU by count", "%", None, of(&|r| r.by_count.warm_permille() as f64 / 10.0)),
        Figure::of("loads", "", None, of(&|r| r.ours.loads as f64)),
        Figure::of("loads, LRU", "", None, of(&|r| r.lru.loads as f64)),
    ];
    let notes = vec![format!(
        "waits: {MODELS} models on {GPUS} x {GIB} GiB, sessions of agents whose models are asked for as 1/rank; the others have the same \
         memory ledger, and never unload for being idle"
    )];
    (figures, notes)
}

fn round(seed: u64) -> Round {
    let mut random = Random::new(seed);
    let mut view = box_of_gpus::gpus(GPUS, GIB);
    for nth in 0..MODELS {
        let size = Bytes::gib(random.one_of(&box_of_gpus::CATALOGUE));
        box_of_gpus::add_model(&mut view, &format!("m{nth:03}"), size, 1, Slack::LEAST);
    }
    let setup = Setup { view, mistakes: Mistakes::default(), seed, learns: false };
    let (every, pause) = (Millis::secs(3), Millis::secs(15));
    let trace = agents(Agents { models: MODELS, owners: OWNERS, sessions: 1500, every, turns: 12, pause }, seed);
    let run = |decide: &mut dyn Decide| simulate(&setup, &trace, decide);
    let policy = Policy::default();
    let load = setup.view.footprints.values().map(|footprint| footprint.load).max().unwrap_or_default();
    Round {
        ours: run(&mut Planner::default()),
        serial: run(&mut { Baseline::GLOBAL_SERIAL }),
        lru: run(&mut { Baseline::LRU }),
        by_count: run(&mut Baseline::lru_by_count(GPUS)),
        bound: policy.starve_after + (load + policy.residency(load) + policy.drain_deadline).times(MODELS as u64),
    }
}

/// 1 when all owners wait alike: each has the same part of the requests, so what differs is how long they waited for them.
fn jain(outcome: &Outcome) -> f64 {
    let rates: Vec<f64> = outcome.mean_wait_of.iter().map(|(_, wait)| wait.get() as f64).collect();
    let (sum, squares) = (rates.iter().sum::<f64>(), rates.iter().map(|rate| rate * rate).sum::<f64>());
    if squares == 0.0 { 1.0 } else { sum * sum / (rates.len() as f64 * squares) }
}
