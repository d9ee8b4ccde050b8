//! The placer against a machine that does what machines do: engines take time to load and to die, drivers give memory back
//! late, and others use the same devices.

mod machine;

use fettle_placement::device::{Attribution, Health};
use fettle_placement::engine::EngineState;
use fettle_placement::id::EngineId;
use fettle_placement::quantity::Bytes;
use proptest::prelude::*;

use super::NoticeKind;
use crate::ports::serving::{ExitClass, ModelOrder, When};
use machine::{Fate, Machine, model};

fn gib(count: u64) -> Bytes {
    Bytes::gib(count)
}

#[test]
fn a_model_that_is_asked_for_is_loaded_and_served() {
    let mut machine = Machine::new(1, [model("a", 40)]);
    assert!(machine.served("a").is_none());
    machine.ask("a");
    machine.run(5_000);
    let engine = machine.served("a").expect("it is ready");
    assert_eq!(engine.engine, EngineId::new("a.1"));
    assert_eq!(machine.told(NoticeKind::Loading), 1, "told once, however many plans were made");
    assert_eq!(machine.told(NoticeKind::Ready), 1);
}

#[test]
fn who_needs_the_room_of_another_is_started_once_its_memory_was_seen_free() {
    let mut machine = Machine::new(1, [model("a", 40), model("b", 50)]);
    machine.reclaim_takes(1_500);
    machine.ask("a");
    machine.run(5_000);
    machine.answer("a");
    machine.run(70_000);
    machine.ask("b");
    machine.run(8_000);
    assert!(machine.served("a").is_none());
    assert!(machine.served("b").is_some());
    let (ended, started) = (machine.ended_at("a.1"), machine.started_at("b.1"));
    assert!(started >= ended + 1_500, "ended at {ended}, the next was started at {started}");
    assert_eq!(machine.told(NoticeKind::Evicted), 1);
}

#[test]
fn what_loads_took_is_what_the_next_one_is_promised_and_a_restart_forgets_none_of_it() {
    let mut machine = Machine::new(1, [model("a", 40)]);
    let life = |machine: &mut Machine, after: u64| {
        machine.ask("a");
        machine.run(5_000);
        machine.answer("a");
        let claim = machine.claim("a");
        machine.obey("a", ModelOrder::Unload);
        machine.run(after);
        claim
    };
    machine.fate("a", Fate::Takes(gib(43)));
    assert_eq!(life(&mut machine, 10_000), gib(41), "the estimate, and its slack");
    assert_eq!(life(&mut machine, 10_000), gib(43), "what was seen");
    machine.restart();
    assert_eq!(life(&mut machine, 10_000), gib(43));

    machine.fate("a", Fate::Takes(gib(30)));
    (0..5).for_each(|_| assert_eq!(life(&mut machine, 10_000), gib(43), "the most that was seen counts"));
}

#[test]
fn what_somebody_else_took_during_a_load_teaches_nothing_and_no_lesson_makes_a_model_too_large() {
    for (attribution, others) in [(Attribution::Blind, gib(38)), (Attribution::Exact, gib(0))] {
        let mut machine = Machine::new(1, [model("a", 40)]);
        machine.attribution(attribution);
        if attribution == Attribution::Exact {
            machine.fate("a", Fate::Takes(gib(79)));
        }
        machine.ask("a");
        machine.run(1_500);
        machine.foreign(0, others);
        machine.run(4_000);
        machine.foreign(0, gib(0));
        machine.answer("a");
        machine.obey("a", ModelOrder::Unload);
        machine.run(10_000);
        machine.restart();
        machine.ask("a");
        machine.run_until(60_000, |machine| machine.served("a").is_some());
    }
}

#[test]
fn an_engine_that_dies_while_it_serves_is_loaded_again_and_later_each_time() {
    let mut machine = Machine::new(1, [model("a", 40)]);
    machine.ask("a");
    machine.run(4_000);
    let mut waits = Vec::new();
    for life in 0..3 {
        machine.kill("a");
        let killed = machine.now();
        machine.run(1_000);
        machine.run_until(120_000, |machine| machine.served("a").is_some());
        waits.push((machine.now() - killed) / 1_000);
        assert_eq!(machine.told(NoticeKind::Failed), life + 1);
    }
    assert!(waits[0] < 10 && waits[1] >= 20 && waits[2] >= 40, "{waits:?}");
    machine.run(61_000);
    machine.kill("a");
    let killed = machine.now();
    machine.run(1_000);
    machine.run_until(120_000, |machine| machine.served("a").is_some());
    assert!(machine.now() - killed < 20_000, "it had served for a minute, so it begins anew");
}

#[test]
fn one_that_dies_as_soon_as_it_is_ready_keeps_no_other_from_its_gpu() {
    let mut machine = Machine::new(1, [model("a", 30), model("b", 30)]);
    machine.ask("a");
    for _ in 0..2 {
        machine.run_until(60_000, |machine| machine.served("a").is_some());
        machine.kill("a");
        machine.run(2_000);
    }
    assert!(matches!(machine.state("a"), Some(EngineState::Backoff { .. })), "{:?}", machine.state("a"));
    machine.ask("b");
    machine.run(5_000);
    assert!(machine.served("b").is_some());
}

#[test]
fn one_that_never_has_enough_is_not_refused_for_good() {
    let mut machine = Machine::new(1, [model("a", 40)]);
    machine.fate("a", Fate::FailsToLoad(ExitClass::OutOfMemory));
    machine.ask("a");
    machine.run(7_200_000);
    assert!(machine.unserved("a").expect("a reason").when != When::Never);
}

#[test]
fn one_that_cannot_be_started_is_waited_for_by_nobody_and_told_why_and_tried_again_later() {
    let mut machine = Machine::new(1, [model("a", 40)]);
    machine.fate("a", Fate::FailsToLoad(ExitClass::NotStarted));
    machine.ask("a");
    machine.run(5_000);
    let unserved = machine.unserved("a").expect("a reason");
    assert!(matches!(unserved.when, When::Mended(_)) && unserved.why.contains("its log says so"), "{unserved:?}");
    machine.run(20_000);
    assert!(machine.told(NoticeKind::Failed) >= 2, "who asks later has it tried again");
}

#[test]
fn one_that_fails_now_and_then_is_waited_for_until_the_third_time() {
    let mut machine = Machine::new(1, [model("a", 40)]);
    machine.fate("a", Fate::FailsToLoad(ExitClass::Unknown));
    machine.ask("a");
    for failures in 1..=3 {
        machine.run_until(300_000, |machine| machine.told(NoticeKind::Failed) == failures);
        machine.run(3_000);
        let when = machine.unserved("a").expect("a reason").when;
        assert_eq!(matches!(when, When::Mended(_)), failures == 3, "{failures}: {when:?}");
    }
}

#[test]
fn one_that_ran_out_of_memory_is_given_more_and_tried_at_once() {
    let mut machine = Machine::new(1, [model("a", 40)]);
    machine.fate("a", Fate::NeedsMore(gib(43)));
    machine.ask("a");
    machine.run_until(20_000, |machine| machine.served("a").is_some());
    assert!(machine.now() < 9_000, "without a back-off: {}", machine.now());
    assert_eq!(machine.told(NoticeKind::Failed), 1);
}

#[test]
fn one_that_ran_out_of_memory_because_of_others_is_not_given_more() {
    let mut machine = Machine::new(1, [model("a", 40)]);
    machine.ask("a");
    machine.run(1_000);
    machine.foreign(0, gib(60));
    machine.run(4_000);
    assert_eq!(machine.told(NoticeKind::Failed), 1);
    machine.foreign(0, gib(0));
    machine.run_until(30_000, |machine| machine.served("a").is_some());
    assert_eq!(machine.claim("a"), machine.first_claim("a"));
}

#[test]
fn what_an_operator_loads_stays_though_nobody_asks_until_it_is_unloaded() {
    let mut machine = Machine::new(1, [model("a", 40)]);
    machine.obey("a", ModelOrder::Load);
    machine.run(5_000);
    machine.run(7_200_000);
    assert!(machine.served("a").is_some() && machine.starts("a") == 1);
    machine.obey("a", ModelOrder::Unload);
    machine.run(10_000);
    assert_eq!((machine.state("a"), machine.starts("a")), (None, 1));
    machine.ask("a");
    machine.run(5_000);
    assert!(machine.served("a").is_some(), "whoever asks has it loaded again");
}

#[test]
fn what_an_operator_pins_is_pushed_out_by_nobody_until_it_is_unpinned() {
    let mut machine = Machine::new(1, [model("a", 50), model("b", 50)]);
    machine.obey("a", ModelOrder::Pin);
    machine.run(5_000);
    machine.ask("b");
    machine.run(600_000);
    assert!(machine.served("a").is_some());
    assert!(machine.unserved("b").expect("a reason").why.contains("pinned"), "{:?}", machine.unserved("b"));
    machine.obey("a", ModelOrder::Unpin);
    machine.run_until(120_000, |machine| machine.served("b").is_some());
}

#[test]
fn what_was_reserved_for_the_last_who_waited_is_free_when_that_one_has_gone() {
    let mut machine = Machine::new(1, [model("a", 40), model("b", 50)]);
    machine.reclaim_takes(3_000);
    machine.ask("a");
    machine.run(5_000);
    machine.answer("a");
    machine.run(70_000);
    machine.ask("b");
    machine.run(1_000);
    assert_eq!(machine.state("b"), Some(EngineState::Reserved));
    machine.answer("b");
    machine.run(500);
    assert_eq!(machine.state("b"), None);
    machine.run(10_000);
    assert_eq!(machine.starts("b"), 0);
}

#[test]
fn nothing_is_loaded_while_the_devices_are_not_seen_and_what_serves_goes_on() {
    let mut machine = Machine::new(2, [model("a", 40), model("b", 40)]);
    machine.ask("a");
    machine.run(5_000);
    machine.blindfold(true);
    machine.run(3_000);
    machine.ask("b");
    machine.run(10_000);
    assert!(machine.served("a").is_some());
    assert_eq!(machine.starts("b"), 0);
    let unserved = machine.unserved("b").expect("a reason");
    assert!(unserved.why.contains("not been seen lately"), "{}", unserved.why);
    machine.blindfold(false);
    machine.run(5_000);
    assert!(machine.served("b").is_some());
}

#[test]
fn a_model_moves_from_a_gpu_that_is_lost_and_others_serve_on() {
    let mut machine = Machine::new(2, [model("a", 50), model("b", 50)]);
    machine.ask("a");
    machine.ask("b");
    machine.run(6_000);
    let lost = machine.served("a").expect("ready").devices[0].clone();
    machine.health(&lost, Health::Lost);
    machine.obey("b", ModelOrder::Pin);
    machine.kill("a");
    machine.run(1_000);
    assert!(machine.served("b").is_some());
    assert!(machine.served("a").is_none());
    machine.answer("b");
    machine.obey("b", ModelOrder::Unpin);
    machine.run_until(120_000, |machine| machine.served("a").is_some());
    assert_ne!(machine.served("a").expect("ready").devices[0], lost);
}

#[test]
fn memory_that_does_not_come_back_counts_as_used_and_is_told() {
    let mut machine = Machine::new(1, [model("a", 40), model("b", 50)]);
    machine.fate("a", Fate::Leaks(gib(35)));
    machine.ask("a");
    machine.run(5_000);
    machine.answer("a");
    machine.run(70_000);
    machine.ask("b");
    machine.run(30_000);
    assert_eq!(machine.told(NoticeKind::Leaked), 1);
    assert_eq!(machine.starts("b"), 0, "35 GiB are gone, 50 do not fit beside them");
    assert!(machine.unserved("b").expect("a reason").why.contains("used by others"));
}

#[test]
fn what_can_never_fit_is_refused_for_good() {
    let mut machine = Machine::new(2, [model("a", 200)]);
    machine.ask("a");
    machine.run(1_000);
    let unserved = machine.unserved("a").expect("a reason");
    assert_eq!(unserved.when, When::Never);
    assert!(unserved.why.contains("the largest has"), "{}", unserved.why);
    assert_eq!(machine.told(NoticeKind::Refused), 1);
}

#[test]
fn an_engine_of_an_earlier_life_is_taken_on_with_its_memory() {
    let mut machine = Machine::new(1, [model("a", 40), model("b", 50)]);
    machine.ask("a");
    machine.run(5_000);
    machine.restart();
    machine.obey("a", ModelOrder::Pin);
    machine.run(1_000);
    assert!(machine.served("a").is_some());
    assert_eq!(machine.starts("a"), 1);
    machine.ask("b");
    machine.run(3_000);
    assert_eq!(machine.starts("b"), 0, "the memory of the one that was taken on is not promised to another");
}

#[test]
fn where_bytes_are_not_known_by_process_an_engine_has_what_grew_while_it_loaded() {
    let mut machine = Machine::new(1, [model("a", 30), model("b", 30)]);
    machine.attribution(Attribution::Blind);
    machine.ask("a");
    machine.run(5_000);
    assert_eq!(machine.observed("a"), gib(30));
    machine.ask("b");
    machine.run(5_000);
    assert_eq!(machine.observed("a"), gib(30), "the second load is the second engine's");
    assert_eq!(machine.observed("b"), gib(30));
}

#[test]
fn a_load_that_fails_for_ever_says_when_it_is_tried_again() {
    let mut machine = Machine::new(1, [model("a", 40)]);
    machine.fate("a", Fate::FailsToLoad(ExitClass::BadModel));
    machine.ask("a");
    machine.run(3_000);
    let unserved = machine.unserved("a").expect("a reason");
    assert!(unserved.why.contains("its last load failed"), "{}", unserved.why);
    assert!(matches!(unserved.when, When::Mended(_)), "{unserved:?}");
    machine.run(1_800_000);
    let starts = machine.starts("a");
    assert!((9..=12).contains(&starts), "every five minutes in the end: {starts} in half an hour");
}

#[derive(Debug, Clone)]
enum Happens {
    Ask(usize),
    Answer(usize),
    Kill(usize),
    Pass(u64),
    Blindfold(bool),
    Restart,
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        4 => (0..4usize).prop_map(Happens::Ask),
        3 => (0..4usize).prop_map(Happens::Answer),
        1 => (0..4usize).prop_map(Happens::Kill),
        4 => (1..70_000u64).prop_map(Happens::Pass),
        1 => any::<bool>().prop_map(Happens::Blindfold),
        1 => Just(Happens::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    // The machine itself fails the test when two engines change one pool at once, when one is started before the memory of
    // another has come back, or when a load finds less than it was promised.
    #[test]
    fn whatever_happens_no_engine_is_promised_what_is_not_there_and_who_waits_is_served(
        events in proptest::collection::vec(happens(), 1..25),
        sizes in proptest::collection::vec(5..70u64, 4),
        gpus in 1..3usize,
        reclaim in 0..4_000u64,
        blind in any::<bool>(),
    ) {
        let names = ["a", "b", "c", "d"];
        let mut machine = Machine::new(gpus, names.iter().zip(&sizes).map(|(name, size)| model(name, *size)));
        machine.reclaim_takes(reclaim);
        if blind {
            machine.attribution(Attribution::Blind);
        }
        for event in events {
            match event {
                Happens::Ask(nth) => machine.ask(names[nth]),
                Happens::Answer(nth) => machine.answer(names[nth]),
                Happens::Kill(nth) => machine.kill(names[nth]),
                Happens::Pass(time) => machine.run(time),
                Happens::Blindfold(on) => machine.blindfold(on),
                Happens::Restart => machine.restart(),
            }
        }
        machine.blindfold(false);
        names.iter().for_each(|name| machine.answer(name));
        machine.run(100_000);
        for name in names {
            machine.ask(name);
            machine.run_until(600_000, |machine| machine.served(name).is_some());
            machine.answer(name);
        }
    }
}
