//! Histories that must hold, and bugs that must be found. A seed that fails is printed with the command that shows it.

use fettle_simulation::{Bug, History, Options, replay_command, run};

/// The seeds of every run; `cargo xtask simulate` goes on from there.
const SEEDS: u64 = 440;
/// Each planted bug shows within so many.
const FOUND_WITHIN: u64 = 500;

fn first_that_fails(seeds: impl IntoIterator<Item = u64>, options: Options) -> Option<History> {
    seeds.into_iter().map(|seed| run(seed, options)).find(|history| !history.breaches.is_empty())
}

fn planted(bug: Bug) -> Options {
    Options { bug: Some(bug), ..Options::default() }
}

#[track_caller]
fn assert_holds(seeds: impl IntoIterator<Item = u64>, options: Options) {
    if let Some(History { seed, breaches, .. }) = first_that_fails(seeds, options) {
        panic!("seed {seed}: {}\n{}", replay_command(seed, options), breaches.join("\n"));
    }
}

/// A part of [`SEEDS`] for each test, so that they share the cores.
fn hold(part: u64) {
    let quarter = SEEDS / 4;
    assert_holds(1 + part * quarter..=(part + 1) * quarter, Options::default());
}

#[test]
fn no_invariant_breaks_under_faults_and_everything_ends_first_quarter() {
    hold(0);
}

#[test]
fn no_invariant_breaks_under_faults_and_everything_ends_second_quarter() {
    hold(1);
}

#[test]
fn no_invariant_breaks_under_faults_and_everything_ends_third_quarter() {
    hold(2);
}

#[test]
fn no_invariant_breaks_under_faults_and_everything_ends_fourth_quarter() {
    hold(3);
}

#[test]
fn the_same_seed_is_the_same_history() {
    let options = Options { keep_trace: true, ..Options::default() };
    for seed in 1..=20 {
        let (once, again) = (run(seed, options), run(seed, options));
        let differ = once.trace.iter().zip(&again.trace).position(|(one, other)| one != other);
        assert_eq!(differ, None, "seed {seed} went two ways");
        assert_eq!(once, again, "seed {seed}");
        assert!(once.trace.len() > 100, "seed {seed} shows nothing");
    }
}

/// A planted bug is found, and by what it breaks; without it, the very same seed holds.
fn is_found(bug: Bug, by: &[&str]) -> History {
    let Some(history) = first_that_fails(1..=FOUND_WITHIN, planted(bug)) else {
        panic!("{bug:?} was not found in {FOUND_WITHIN} histories");
    };
    let (command, breaches) = (replay_command(history.seed, planted(bug)), &history.breaches);
    assert!(breaches.iter().any(|breach| by.iter().any(|by| breach.contains(by))), "{command}: {breaches:?}");
    assert_holds([history.seed], Options::default());
    history
}

#[test]
fn a_missing_fence_check_is_found() {
    is_found(Bug::NoFenceCheck, &["I2: a write counted"]);
}

#[test]
fn a_slot_that_is_freed_late_is_found() {
    is_found(Bug::SlotFreedLate, &["I4:"]);
}

#[test]
fn a_post_without_a_list_before_it_is_found() {
    is_found(Bug::NoListBeforePost, &["I10:", "died though nothing fails"]);
}

#[test]
fn a_receipt_before_its_request_is_found() {
    is_found(Bug::ReceiptBeforeRequest, &["I6:"]);
}

#[test]
fn a_message_taken_before_it_is_stored_is_found() {
    is_found(Bug::AckBeforeCommit, &["I5: the order"]);
}

#[test]
fn an_attempt_as_a_fence_is_found() {
    is_found(Bug::AttemptAsFence, &["I2:"]);
}

#[test]
fn a_hand_over_in_two_transactions_is_found() {
    is_found(Bug::TornHandOver, &["I5:", "I6:", "I9:"]);
}

#[test]
fn a_renewal_that_revives_a_lapsed_lease_is_found() {
    is_found(Bug::RenewalRevives, &["I2:", "I5:", "I7:"]);
}

/// One dashboard alone does one thing after the other, so only several can show it.
#[test]
fn a_lease_without_a_row_lock_is_found_where_dashboards_share_a_ledger() {
    let found = is_found(Bug::NoRowLock, &["I2:"]);
    assert!(found.dashboards > 1, "seed {} has one dashboard", found.seed);
    assert_holds(1..=20, Options { dashboards: Some(1), ..planted(Bug::NoRowLock) });
}
