//! A server that is killed under load and started again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fettle_app::ports::ledger::{
    Accepted, Beat, BeatAnswer, Delivery, Granted, Holder, Leases as _, Ledger as _, LedgerError, Sweep, Want,
};
use fettle_domain::id::{CorrelationId, DeliveryId, RequestId, WorkerId};
use fettle_domain::job::JobKind;
use fettle_domain::lease::Timing;
use fettle_store_postgres::{Database, Options, PostgresLedger};
use fettle_tests::contract::ledger::{CountedIds, World};
use fettle_tests::postgres::{self, Durability, Server};
use futures::future::join_all;
use uuid::Uuid;

/// Of the leases, by the server's clock; the outage is longer.
const LEASE: Duration = Duration::from_secs(3);
/// Deliveries after the outage that show that all writers are at work again.
const MORE: usize = 50;
/// Until everything works again: the dashboards look every half second, the server recovers in less.
const BACK: Duration = Duration::from_secs(30);

fn delivery(number: u64) -> Delivery {
    Delivery {
        id: DeliveryId::from_uuid(Uuid::from_u64_pair(1, number)),
        key: format!("github:{number}"),
        event: "issues".into(),
        body: Bytes::from_static(b"{}"),
        correlation: CorrelationId::from_uuid(Uuid::from_u64_pair(2, number)),
        received_at: jiff::Timestamp::UNIX_EPOCH,
    }
}

/// Asks again while the ledger is not available, as every caller does; no other error may come.
async fn patiently<T>(ask: impl AsyncFn() -> Result<T, LedgerError>, refused: &AtomicUsize) -> T {
    let asked = async {
        loop {
            match ask().await {
                Ok(answer) => return answer,
                Err(LedgerError::Unavailable(_)) => {
                    refused.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(other) => panic!("{other:?}"),
            }
        }
    };
    tokio::time::timeout(BACK + 2 * LEASE, asked).await.expect("the ledger comes back")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_answered_is_lost_with_a_killed_server_and_no_lease_with_the_time_it_was_away() {
    let Some(mut server) = Server::start(Durability::Full).await.unwrap() else { return postgres::absent() };
    let url = server.url("postgres");
    PostgresLedger::migrate(&Database::at(&url)).await.unwrap();
    let join = async |space| {
        let ids = Arc::new(CountedIds::of_space(space));
        let timing = Timing { lease: LEASE, ..Timing::default() };
        PostgresLedger::open(&Database::at(&url), Options { timing, connections: 6, ..Options::new(ids) })
            .await
            .unwrap()
    };
    let ledgers = [join(1).await, join(2).await];

    // A plan is all that is wanted of this world.
    let Some(plans) = super::Dashboard::alone().await.map(World::of) else { return };
    let plan = plans.plan(1);
    ledgers[0].open_task(None, &plan).await.unwrap();
    let holder = Holder { worker: WorkerId::from_uuid(Uuid::from_u128(7)), name: "box/1".into() };
    let want = Want::anything(JobKind::Run, vec![1]);
    let request = RequestId::from_uuid(Uuid::from_u128(8));
    let granted = ledgers[0].lease(&holder, &want, 1, Duration::ZERO, request).await.unwrap();
    let Granted::Leased(leased) = granted else { panic!("{granted:?}") };
    let lease = leased[0].lease;

    let (over, refused, next) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let writers = (0..8).map(async |n: usize| {
        let ledger = &ledgers[n % 2];
        let mut answered = Vec::new();
        while !over.load(Ordering::SeqCst) {
            let number = next.fetch_add(1, Ordering::SeqCst) as u64;
            // A duplicate is one that was stored, and whose answer was lost.
            patiently(async || ledger.accept(delivery(number)).await, &refused).await;
            patiently(async || ledger.post_message(plan.id, "ada", &number.to_string()).await, &refused).await;
            answered.push(number);
        }
        answered
    });
    let story = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        server.kill().unwrap();
        let before = next.load(Ordering::SeqCst);
        tokio::time::sleep(LEASE + Duration::from_millis(500)).await;
        assert!(matches!(ledgers[0].probe().await, Err(LedgerError::Unavailable(_))));
        server.run().await.unwrap();
        // Whichever sweeps first has given every lease its full time before.
        let swept = join_all(ledgers.iter().map(|ledger| patiently(async || ledger.sweep(10).await, &refused))).await;
        assert_eq!(swept, [Sweep::default(), Sweep::default()]);
        let beat = [Beat::new(lease, 1)];
        let renewed = patiently(async || ledgers[1].renew(&beat).await, &refused).await;
        assert!(matches!(renewed[0], BeatAnswer::Renewed { .. }), "{renewed:?}");
        let back = tokio::time::Instant::now();
        while next.load(Ordering::SeqCst) < before + MORE && back.elapsed() < BACK {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        over.store(true, Ordering::SeqCst);
        before
    };
    let (answered, before) = tokio::join!(join_all(writers), story);
    let answered = answered.concat();
    assert!(answered.len() >= before + MORE, "it went on: {} after {before}", answered.len());
    assert!(refused.load(Ordering::SeqCst) > 0, "it was away");

    for number in &answered {
        assert_eq!(ledgers[0].accept(delivery(*number)).await.unwrap(), Accepted::Duplicate, "delivery {number}");
    }
    let mut told = 0;
    loop {
        let page = ledgers[1].events(Some(plan.id), told, 500).await.unwrap();
        let Some(last) = page.last() else { break };
        told = last.seq;
    }
    assert!(told as usize > answered.len());
    for ledger in &ledgers {
        let breaches: Vec<String> = patiently(async || ledger.audit().await, &refused).await;
        assert_eq!(breaches, Vec::<String>::new());
    }
}
