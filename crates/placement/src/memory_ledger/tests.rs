use proptest::prelude::*;

use super::*;
use crate::device::{Health, PoolKind, Reserve};
use crate::engine::EngineState;
use crate::testing::{device, engine, pool};

const NOW: Millis = Millis::secs(1000);

fn account(pool: &Pool, engines: &[Engine]) -> Account {
    Account::open(pool, &[device("gpu0")], engines, NOW, &Policy::default())
}

fn sampled(cap: u64, used: u64) -> Pool {
    Pool { used: Bytes::gib(used), free: Bytes::gib(cap - used), sampled: NOW, ..pool("gpu0", cap) }
}

fn sitting(name: &str, claim: u64, observed: u64, state: EngineState) -> Engine {
    let pool = PoolId::new("gpu:gpu0");
    let mut engine = engine(name, "gpu0", Bytes::gib(claim));
    engine.observed = vec![(pool, Bytes::gib(observed))];
    Engine { state, ..engine }
}

#[test]
fn what_others_use_and_what_was_promised_is_not_available() {
    let pool = sampled(100, 50);
    let engines = [sitting("a", 40, 30, EngineState::Ready)];
    let account = account(&pool, &engines);
    assert_eq!(account.foreign(), Bytes::gib(20));
    assert_eq!(account.holds(), Bytes::gib(40));
    assert_eq!(account.avail(), Bytes::there(Bytes::gib(40).signed() - pool.margin.signed()));
    assert_eq!(account.skew(), Bytes::ZERO);
}

#[test]
fn of_two_sources_that_differ_the_smaller_counts_and_the_difference_is_told() {
    let pool = Pool { free: Bytes::gib(30), ..sampled(100, 50) };
    let account = account(&pool, &[]);
    assert_eq!(account.skew(), Bytes::gib(20));
    assert_eq!(account.avail(), Bytes::there(Bytes::gib(30).signed() - pool.margin.signed()));
}

#[test]
fn a_stale_frozen_or_deviceless_pool_offers_nothing_and_says_why() {
    let fresh = sampled(100, 0);
    let old = Pool { sampled: NOW.since(Millis::new(2001)), ..fresh.clone() };
    assert_eq!(account(&old, &[]).closed(), Some(&Closed::Stale { age: Millis::new(2001) }));
    let frozen = Pool { frozen: Some("the guard says so".to_owned()), ..fresh.clone() };
    assert_eq!(account(&frozen, &[]).closed(), Some(&Closed::Frozen("the guard says so".to_owned())));
    let lost = Device { health: Health::Lost, ..device("gpu0") };
    let without = Account::open(&fresh, &[lost], &[], NOW, &Policy::default());
    assert_eq!(without.closed(), Some(&Closed::NoDevice));
    for closed in [account(&old, &[]), account(&frozen, &[]), without] {
        assert_eq!(closed.avail(), Bytes::ZERO);
    }
}

#[test]
fn a_loading_engine_holds_its_peak_and_a_gone_one_nothing() {
    let mut loading = sitting("a", 40, 10, EngineState::Loading);
    loading.seat.peaks = vec![(PoolId::new("gpu:gpu0"), Bytes::gib(54))];
    assert_eq!(hold(&loading, &PoolId::new("gpu:gpu0")), Bytes::gib(54));
    let gone = Engine { state: EngineState::Gone, ..loading };
    let account = account(&sampled(100, 10), &[gone]);
    assert_eq!((account.holds(), account.foreign()), (Bytes::ZERO, Bytes::gib(10)), "what it left is nobody's");
}

#[test]
fn who_waits_for_others_to_leave_takes_their_bytes_and_not_more() {
    let leaving = sitting("old", 60, 60, EngineState::Stopping);
    let waiting = sitting("new", 80, 0, EngineState::Reserved);
    let both = account(&sampled(100, 60), &[leaving, waiting]);
    assert_eq!(both.holds(), Bytes::gib(80));
    assert!(both.avail() <= Bytes::gib(20));
}

#[test]
fn a_blind_pool_has_twice_the_margin() {
    let exact = sampled(100, 0);
    let blind = Pool { attribution: Attribution::Blind, ..exact.clone() };
    let difference = account(&exact, &[]).avail().over(account(&blind, &[]).avail());
    assert_eq!(difference, i64::try_from(exact.margin.get()).unwrap());
}

prop_compose! {
    fn any_engine()(claim in 0..60u64, observed in 0..60u64, state in 0..7u8) -> Engine {
        let state = match state {
            0 => EngineState::Reserved,
            1 => EngineState::Loading,
            2 => EngineState::Draining { until: NOW },
            3 => EngineState::Reclaiming,
            4 => EngineState::Gone,
            _ => EngineState::Ready,
        };
        let observed = if state == EngineState::Reserved { 0 } else { observed };
        sitting("e", claim, observed, state)
    }
}

fn gib(bytes: Bytes) -> i128 {
    bytes.signed() / Bytes::gib(1).signed()
}

proptest! {
    #[test]
    fn avail_is_never_above_what_either_source_leaves(
        engines in proptest::collection::vec(any_engine(), 0..5), used in 0..200u64, free in 0..200u64, reserve in 0..40u64,
    ) {
        let reserves = vec![Reserve { name: "worker".to_owned(), claim: Bytes::gib(reserve), observed: Bytes::ZERO }];
        let pool = Pool { used: Bytes::gib(used), free: Bytes::gib(free), reserves, ..sampled(200, 0) };
        let account = account(&pool, &engines);
        let avail = account.avail().signed();
        prop_assert!(avail <= pool.cap.signed() - account.holds().signed().min(pool.cap.signed()));
        prop_assert!(avail <= pool.free.signed());
        prop_assert!(avail == 0 || avail + pool.margin.signed() + account.holds().signed() <= pool.cap.signed());
    }

    // I2 for one pool. The sample may be old by as much as it may, others grow by the margin, every engine takes all that it
    // holds: there is memory for all of it.
    #[test]
    fn what_is_admitted_fits_whatever_happens_within_the_margin(
        claims in proptest::collection::vec((0..60u64, 0..60u64), 0..5), foreign in 0..60u64, wanted in 1..100u64,
    ) {
        let engines: Vec<_> = claims.iter().map(|(claim, observed)| sitting("e", *claim, *observed, EngineState::Ready)).collect();
        let observed: u64 = claims.iter().map(|(_, observed)| observed).sum();
        prop_assume!(observed + foreign <= 200);
        let pool = sampled(200, observed + foreign);
        let account = account(&pool, &engines);
        if account.avail() >= Bytes::gib(wanted) {
            let taken: u64 = claims.iter().map(|(claim, observed)| claim.max(observed)).sum();
            let worst = Bytes::gib(taken + foreign + wanted) + pool.margin;
            prop_assert!(worst <= pool.cap, "{worst} of {}", pool.cap);
        }
    }

    #[test]
    fn a_promise_and_its_release_leave_the_account_as_it_was(
        engines in proptest::collection::vec(any_engine(), 0..4), bytes in 0..50u64,
    ) {
        let before = account(&sampled(400, 240), &engines);
        let mut after = before.clone();
        after.promise(Bytes::gib(bytes));
        prop_assert_eq!(before.room() - after.room(), Bytes::gib(bytes).signed());
        after.release(Bytes::gib(bytes), Presence::Resident);
        prop_assert_eq!(after, before);
    }

    #[test]
    fn a_release_gives_back_the_whole_hold(claim in 1..60u64, observed in 0..60u64, others in 0..40u64) {
        let engine = sitting("e", claim, observed, EngineState::Ready);
        let mut with = account(&sampled(200, observed + others), std::slice::from_ref(&engine));
        let hold = hold(&engine, &PoolId::new("gpu:gpu0"));
        let room = with.room();
        with.release(hold, Presence::Resident);
        let without = account(&sampled(200, others), &[]);
        prop_assert_eq!(with.room(), without.room());
        prop_assert_eq!(gib(Bytes::there(with.room() - room)), i128::from(claim.max(observed)));
    }
}

#[test]
fn host_memory_is_never_locked_and_every_other_kind_is() {
    let kinds = [PoolKind::Vram, PoolKind::Slice, PoolKind::Coherent, PoolKind::Unified];
    assert!(kinds.into_iter().all(PoolKind::locks) && !PoolKind::Host.locks());
}
