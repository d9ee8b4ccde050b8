//! Random lives of one job, step by step: each transition keeps the invariants, whoever asks for it.

use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;

const LEASE: Duration = Duration::from_secs(30);

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_767_225_600 + second).expect("in range")
}

fn worker() -> WorkerId {
    WorkerId::from_uuid(Uuid::from_u128(1))
}

fn new_job() -> Job {
    Job::queued(JobId::from_uuid(Uuid::from_u128(7)), JobKind::Run)
}

fn leased() -> Job {
    new_job().lease(worker(), at(0), at(30)).expect("a queued job can be leased")
}

fn cancelling() -> Job {
    leased().cancel().expect("a leased job can be cancelled")
}

#[derive(Debug, Clone, Copy)]
enum Act {
    Lease,
    Renew,
    Step,
    Complete,
    Again,
    FailFor(i64),
    FailForGood,
    DeferFor(i64),
    DeferToEvent,
    Release,
    Expire,
    Promote,
    Wake,
    Cancel,
    Redrive,
}

fn acts() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => Just(Act::Lease),
        1 => Just(Act::Renew),
        2 => Just(Act::Step),
        1 => Just(Act::Complete),
        1 => Just(Act::Again),
        2 => (0..90i64).prop_map(Act::FailFor),
        1 => Just(Act::FailForGood),
        1 => (0..90i64).prop_map(Act::DeferFor),
        1 => Just(Act::DeferToEvent),
        2 => Just(Act::Release),
        3 => Just(Act::Expire),
        3 => Just(Act::Promote),
        1 => Just(Act::Wake),
        1 => Just(Act::Cancel),
        1 => Just(Act::Redrive),
    ]
}

/// The job after `act`, or the refusal; `None` when a transition without a fence found nothing to do.
fn apply(job: Job, act: Act, fence: Fence, now: Timestamp) -> Option<Result<Job, Refused>> {
    let later = |seconds: i64| now + Duration::from_secs(seconds.unsigned_abs());
    match act {
        Act::Lease => Some(job.lease(worker(), now, now + LEASE)),
        Act::Renew => Some(job.renew(fence, now + LEASE)),
        Act::Step => Some(job.step(fence)),
        Act::Complete => Some(job.complete(fence)),
        Act::Again => Some(job.again(fence)),
        Act::FailFor(seconds) => Some(job.fail(fence, "no", Retry::At(later(seconds)))),
        Act::FailForGood => Some(job.fail(fence, "no", Retry::Never)),
        Act::DeferFor(seconds) => Some(job.defer(fence, Until::Time(later(seconds)), "wait")),
        Act::DeferToEvent => Some(job.defer(fence, Until::Event, "which?")),
        Act::Release => Some(job.release(fence)),
        Act::Expire => job.expire(now).map(Ok),
        Act::Promote => job.promote(now).map(Ok),
        Act::Wake => job.wake().map(Ok),
        Act::Cancel => job.cancel().map(Ok),
        Act::Redrive => Some(job.redrive()),
    }
}

fn shows_a_fence(act: Act) -> bool {
    !matches!(act, Act::Lease | Act::Expire | Act::Promote | Act::Wake | Act::Cancel | Act::Redrive)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn every_life_keeps_the_invariants(life in prop::collection::vec((acts(), 0..60i64, 0..3u64), 1..40)) {
        let (mut job, mut second) = (new_job(), 0);
        for (act, passed, age) in life {
            second += passed;
            // Mostly the newest fence, sometimes one that was never issued or has been superseded.
            let fence = if age == 0 { Fence::new(job.fence.get().saturating_sub(1)) } else { job.fence };
            let before = job.clone();
            let Some(Ok(after)) = apply(job.clone(), act, fence, at(second)) else { continue };

            if shows_a_fence(act) {
                prop_assert_eq!(fence, before.fence, "I2: only the newest fence writes");
                prop_assert!(
                    matches!(before.state, JobState::Leased { .. } | JobState::Cancelling { .. }),
                    "I2: and only while its lease is live"
                );
            }
            match act {
                Act::Lease => prop_assert!(after.fence > before.fence, "I2: a new lease has a greater fence"),
                _ => prop_assert_eq!(after.fence, before.fence, "I2: nothing else issues one"),
            }
            if before.state.is_final() {
                prop_assert!(matches!(before.state, JobState::Dead { .. }), "I5: done and cancelled never change");
                prop_assert!(matches!(act, Act::Redrive), "I5: dead only by redrive");
            }
            let (was, is) = (before.counters, after.counters);
            match act {
                Act::FailFor(_) | Act::FailForGood => {
                    prop_assert_eq!(is, Counters { attempts: was.attempts + 1, ..was }, "I7");
                }
                Act::Expire => prop_assert_eq!(
                    is,
                    Counters { crashes: was.crashes + 1, crashes_since_step: was.crashes_since_step + 1, ..was },
                    "I7"
                ),
                Act::Step => prop_assert_eq!(is, Counters { crashes_since_step: 0, ..was }, "I7"),
                Act::Redrive => prop_assert_eq!(is, Counters::default(), "I7"),
                _ => prop_assert_eq!(is, was, "I7: release, defer, cancel and the rest count nothing"),
            }
            if !after.state.is_final() {
                prop_assert!(is.attempts < MAX_ATTEMPTS && is.crashes < MAX_CRASHES, "used up tries end a job");
                prop_assert!(is.crashes_since_step < MAX_CRASHES_WITHOUT_STEP);
            }
            if matches!(before.state, JobState::Cancelling { .. }) {
                let ended = matches!(after.state, JobState::Cancelled | JobState::Done);
                prop_assert!(
                    ended || matches!(after.state, JobState::Cancelling { .. }),
                    "a cancelled job is never runnable again: {:?}", after.state
                );
                prop_assert_eq!(after.state == JobState::Done, matches!(act, Act::Complete));
            }
            job = after;
        }
    }

    #[test]
    fn a_holder_that_ended_its_lease_is_told_so_until_the_next_one_ends(end in acts().prop_filter(
        "ends a lease",
        |act| shows_a_fence(*act) && !matches!(act, Act::Renew | Act::Step),
    ), again in acts().prop_filter("shows a fence", |act| shows_a_fence(*act))) {
        let fence = leased().fence;
        let ended = apply(leased(), end, fence, at(1)).expect("it shows a fence").expect("its lease is live");
        let repeated = apply(ended.clone(), again, fence, at(2)).expect("it shows a fence");
        prop_assert_eq!(repeated, Err(Refused::AlreadyApplied { job: ended.id, fence }));
        let older = apply(ended.clone(), again, Fence::new(fence.get() - 1), at(2)).expect("it shows a fence");
        prop_assert_eq!(older, Err(Refused::Stale { job: ended.id, newest: fence }));
    }
}

#[test]
fn a_lapsed_lease_is_nobodys_and_its_holder_is_stale() {
    let job = leased();
    let fence = job.fence;
    assert_eq!(job.clone().expire(at(29)), None, "a live lease is left alone");
    let lapsed = job.expire(at(30)).expect("its time is up");
    assert_eq!(lapsed.state, JobState::Queued);
    assert_eq!(lapsed.clone().release(fence), Err(Refused::Stale { job: lapsed.id, newest: fence }));
}

#[test]
fn only_what_is_queued_can_be_leased() {
    let states = [
        leased().defer(leased().fence, Until::Event, "?").expect("live"),
        leased().fail(leased().fence, "no", Retry::At(at(60))).expect("live"),
        leased(),
        cancelling(),
        leased().complete(leased().fence).expect("live"),
    ];
    for job in states {
        let state = job.state.name();
        assert_eq!(job.clone().lease(worker(), at(90), at(120)), Err(Refused::NotPossible { job: job.id, state }));
    }
}

#[test]
fn a_cancelled_holder_that_completes_was_faster() {
    let job = cancelling();
    let fence = job.fence;
    assert_eq!(job.clone().complete(fence).expect("live").state, JobState::Done);
    assert_eq!(job.clone().again(fence).expect("live").state, JobState::Cancelled);
    assert_eq!(job.fail(fence, "no", Retry::At(at(1))).expect("live").state, JobState::Cancelled);
}

#[test]
fn a_delayed_job_is_promoted_at_its_time_and_a_waiting_one_only_woken() {
    let delayed = leased().defer(leased().fence, Until::Time(at(60)), "rate limit").expect("live");
    assert_eq!(delayed.clone().promote(at(59)), None);
    assert_eq!(delayed.clone().wake(), None);
    assert_eq!(delayed.promote(at(60)).expect("its time has come").state, JobState::Queued);
    let waiting = leased().defer(leased().fence, Until::Event, "which?").expect("live");
    assert_eq!(waiting.clone().promote(at(9_999)), None);
    assert_eq!(waiting.wake().expect("it waits").state, JobState::Queued);
}
