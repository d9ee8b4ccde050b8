//! The ledger's contract on SQLite, and what only a file can show.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use camino::Utf8PathBuf;
use fettle_app::ports::ledger::{Leases, Ledger, LedgerError, Opened};
use fettle_domain::job::JobKind;
use fettle_store_sqlite::{DATABASE_FILE, OpenError, Options, SqliteLedger, Stopwatch};
use fettle_tests::contract;
use fettle_tests::contract::ledger::{CountedIds, ManualTime, Subject, World, slots};

contract::ledger!(sqlite with lanes, OnDisk::create().await);

pub(crate) struct OnDisk {
    pub(crate) ledger: SqliteLedger,
    pub(crate) time: Arc<ManualTime>,
    pub(crate) data: tempfile::TempDir,
    /// Ids of a reopened ledger must not repeat those of its predecessor.
    openings: u64,
}

/// Time as the store's stopwatch.
struct Elapsed(Arc<ManualTime>);

impl Stopwatch for Elapsed {
    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

impl OnDisk {
    pub(crate) async fn create() -> Self {
        Self::open(tempfile::tempdir().expect("a temporary folder can be made"), Arc::default(), 1).await
    }

    async fn open(data: tempfile::TempDir, time: Arc<ManualTime>, openings: u64) -> Self {
        let ledger = SqliteLedger::open(path(&data), options(&time, openings)).await.expect("the ledger opens");
        Self { ledger, time, data, openings }
    }
}

pub(crate) fn path(data: &tempfile::TempDir) -> Utf8PathBuf {
    Utf8PathBuf::from_path_buf(data.path().to_owned()).expect("temporary paths are UTF-8")
}

pub(crate) fn options(time: &Arc<ManualTime>, openings: u64) -> Options {
    let stopwatch = Arc::new(Elapsed(time.clone()));
    Options { stopwatch, slots: slots(), ..Options::new(time.clone(), Arc::new(CountedIds::of_space(openings))) }
}

#[async_trait]
impl Subject for OnDisk {
    fn leases(&self) -> &dyn Leases {
        &self.ledger
    }

    fn ledger(&self) -> &dyn Ledger {
        &self.ledger
    }

    fn time(&self) -> &ManualTime {
        &self.time
    }

    async fn crash_and_reopen(self) -> Self {
        let Self { ledger, time, data, openings } = self;
        drop(ledger);
        Self::open(data, time, openings + 1).await
    }
}

#[tokio::test]
async fn a_second_process_is_refused_and_told_by_whom() {
    let first = OnDisk::create().await;
    let second = Options { lock_wait: Duration::ZERO, ..options(&first.time, 2) };
    let refused = SqliteLedger::open(path(&first.data), second).await.err().unwrap();
    assert!(matches!(refused, OpenError::InUse { .. }));
    let sentence = refused.to_string();
    assert!(sentence.contains(&format!("process {}", std::process::id())), "{sentence}");
    first.ledger.probe().await.unwrap();
}

#[tokio::test]
async fn a_closed_ledger_answers_what_was_asked_and_refuses_the_rest() {
    let world = World::of(OnDisk::create().await);
    let task = world.open(1).await;
    let subject = world.into_subject();
    subject.ledger.close().await.unwrap();
    assert!(matches!(subject.ledger.probe().await, Err(LedgerError::Unavailable(_))));
    let again = World::of(subject.crash_and_reopen().await);
    assert_eq!(again.view(task).await.id, task);
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused() {
    let data = tempfile::tempdir().unwrap();
    fs_err::write(data.path().join(DATABASE_FILE), vec![b'x'; 8192]).unwrap();
    let refused = SqliteLedger::open(path(&data), options(&Arc::default(), 1)).await.err().unwrap();
    assert!(matches!(refused, OpenError::Ledger(LedgerError::Corrupt(_))), "{refused:?}");
}

// Commands of one group share a transaction; one that is refused must not take the others with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_command_spoils_no_other_of_its_group() {
    let world = World::of(OnDisk::create().await);
    let plans: Vec<_> = (1..=30).map(|issue| world.plan(issue)).collect();
    let unknown: Vec<_> = (1..=30).map(|n| world.delivery(&n.to_string())).collect();
    let both = plans.iter().zip(&unknown).map(async |(plan, unknown)| {
        tokio::join!(
            world.ledger().open_task(None, plan),
            world.ledger().close_delivery(unknown.id, "none"),
            world.ledger().accept(world.delivery(&plan.id.to_string())),
        )
    });
    for (opened, closed, accepted) in futures::future::join_all(both).await {
        assert!(matches!(opened, Ok(Opened::New { .. })), "{opened:?}");
        assert!(matches!(closed, Err(LedgerError::NotFound(_))), "{closed:?}");
        accepted.unwrap();
    }
    assert_eq!(world.ledger().open_deliveries(100).await.unwrap().len(), 30);
    world.finish().await;
}

// The host was suspended, or somebody set its clock: wall time jumps, nobody was silent for that long.
#[tokio::test]
async fn a_clock_set_forward_ends_no_live_lease() {
    let data = tempfile::tempdir().unwrap();
    let (wall, stopwatch) = (Arc::new(ManualTime::default()), Arc::new(ManualTime::default()));
    let mixed = Options { stopwatch: Arc::new(Elapsed(stopwatch.clone())), ..options(&wall, 1) };
    let ledger = SqliteLedger::open(path(&data), mixed).await.unwrap();
    let world = World::of(OnDisk { ledger, time: wall.clone(), data, openings: 1 });
    world.open(1).await;
    world.lease(JobKind::Run).await;

    wall.advance(Duration::from_secs(3600));
    assert_eq!(world.ledger().sweep(10).await.unwrap().expired, 0);
    assert_eq!(world.ledger().sweep(10).await.unwrap().expired, 0, "ledger time has followed");
    for time in [&wall, &stopwatch] {
        time.advance(Duration::from_secs(31));
    }
    assert_eq!(world.ledger().sweep(10).await.unwrap().expired, 1, "its own time still ends it");
}
