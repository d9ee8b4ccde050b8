use proptest::prelude::*;

use super::baseline::Baseline;
use super::trace::{Agents, agents, in_turn};
use super::*;
use crate::footprint::Slack;
use crate::simulate::random::Random;

/// Models of 4 to 52 GiB, named as traces name them.
fn machine(gpus: usize, models: usize, seed: u64) -> Setup {
    let mut view = box_of_gpus::gpus(gpus, 78);
    let mut random = Random::new(seed);
    for nth in 0..models {
        let size = Bytes::gib(random.between(4, 52));
        box_of_gpus::add_model(&mut view, &format!("m{nth:03}"), size, 1, Slack::LEAST);
    }
    Setup { view, mistakes: Mistakes::default(), seed, learns: false }
}

fn short_trace(models: usize, sessions: u64, seed: u64) -> Vec<Request> {
    let (every, pause) = (Millis::secs(8), Millis::secs(15));
    agents(Agents { models, owners: 3, sessions, every, turns: 5, pause }, seed)
}

fn ended(outcome: &Outcome) -> u64 {
    outcome.finished + outcome.cancelled
}

#[test]
fn the_same_setup_and_trace_give_the_same_outcome() {
    let (setup, trace) = (machine(2, 8, 3), short_trace(8, 60, 3));
    let outcome = simulate(&setup, &trace, &mut Planner::default());
    assert_eq!(outcome, simulate(&setup, &trace, &mut Planner::default()));
    assert_eq!(ended(&outcome), trace.len() as u64);
}

#[test]
fn two_models_over_half_a_gpu_take_turns_and_each_load_is_used() {
    let mut view = box_of_gpus::gpus(1, 78);
    for name in ["m000", "m001"] {
        box_of_gpus::add_model(&mut view, name, Bytes::gib(45), 1, Slack::LEAST);
    }
    let setup = Setup { view, mistakes: Mistakes::default(), seed: 1, learns: false };
    let trace = in_turn(600, Millis::secs(2));
    let ours = simulate(&setup, &trace, &mut Planner::default());
    assert_eq!(ours.finished, 600);
    assert_eq!(ours.thrashed, 0, "{ours:?}");
    // One want may be ahead: each turn is a load, its residency and a drain.
    let policy = Policy::default();
    let load = setup.view.footprints.values().map(|one| one.load).max().unwrap();
    let bound = policy.starve_after + (load + policy.residency(load) + policy.drain_deadline).times(2);
    assert!(ours.longest_wait() <= bound, "{} of {bound}", ours.longest_wait());
}

#[test]
fn a_generation_without_end_does_not_hold_a_device_for_ever() {
    let mut view = box_of_gpus::gpus(1, 78);
    for name in ["m000", "m001"] {
        box_of_gpus::add_model(&mut view, name, Bytes::gib(45), 1, Slack::LEAST);
    }
    let setup = Setup { view, mistakes: Mistakes::default(), seed: 1, learns: false };
    let mut trace = in_turn(2, Millis::secs(40));
    trace[0].output = 400_000;
    let ours = simulate(&setup, &trace, &mut Planner::default());
    assert_eq!((ours.finished, ours.interrupted > 0), (2, true));
    let policy = Policy::default();
    assert!(ours.waits[1] <= policy.starve_after + policy.drain_deadline + Millis::secs(60), "{}", ours.waits[1]);
    let serial = simulate(&setup, &trace, &mut { Baseline::GLOBAL_SERIAL });
    assert!(serial.waits[1] > Millis::secs(9000), "{}", serial.waits[1]);
}

// I16
#[test]
fn when_the_last_who_waits_has_gone_its_place_is_free_again() {
    let mut view = box_of_gpus::gpus(1, 78);
    for name in ["m000", "m001", "m002"] {
        box_of_gpus::add_model(&mut view, name, Bytes::gib(45), 1, Slack::LEAST);
    }
    let setup = Setup { view, mistakes: Mistakes::default(), seed: 1, learns: false };
    let mut trace = in_turn(3, Millis::secs(100));
    trace[1].patience = Some(Millis::new(1500));
    trace[2].model = ModelId::new("m002");
    trace[2].at = trace[1].at + Millis::secs(2);
    let outcome = simulate(&setup, &trace, &mut Planner::default());
    assert_eq!(ended(&outcome), 3);
    assert!(outcome.longest_wait() < Millis::secs(120), "{outcome:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(12) })]

    // I1, I6, I7 over whole histories with old samples, wrong estimates, cancels and others' processes.
    #[test]
    fn every_request_ends_once_and_nothing_is_promised_twice(
        seed: u64, noise in 0..100u32, lag in 0..2000u64, foreign in 0..8u64, patience in 5..400u64,
    ) {
        let mistakes = Mistakes { noise_permille: noise, outliers: false, lag: Millis::new(lag), foreign: Bytes::gib(foreign) };
        let setup = Setup { mistakes, learns: true, ..machine(2, 6, seed) };
        let mut trace = short_trace(6, 25, seed);
        for request in trace.iter_mut().step_by(7) {
            request.patience = Some(Millis::secs(patience));
        }
        let outcome = simulate(&setup, &trace, &mut Planner::default());
        prop_assert_eq!(ended(&outcome), trace.len() as u64, "{:?}", outcome);
        prop_assert_eq!(outcome.overcommitted, 0);
        let policy = Policy::default();
        let load = setup.view.footprints.values().map(|one| one.load).max().unwrap();
        let bound = policy.starve_after + (load + policy.residency(load) + policy.drain_deadline).times(6);
        prop_assert!(outcome.longest_wait() <= bound, "{} of {}", outcome.longest_wait(), bound);
    }

    #[test]
    fn no_policy_loses_a_request(seed: u64) {
        let (setup, trace) = (machine(2, 8, seed), short_trace(8, 25, seed));
        for mut policy in [Baseline::GLOBAL_SERIAL, Baseline::LRU, Baseline::WORST_FIT, Baseline::lru_by_count(2)] {
            let outcome = simulate(&setup, &trace, &mut policy);
            prop_assert_eq!(ended(&outcome), trace.len() as u64, "{:?}: {:?}", policy, outcome);
        }
    }
}
