//! The contract of accounts on SQLite, and what only a file can show.

use std::sync::Arc;

use fettle_app::ports::accounts::Accounts as _;
use fettle_domain::audit_log::{Head, verify};
use fettle_store_sqlite::{DATABASE_FILE, SqliteLedger};
use fettle_tests::contract;
use fettle_tests::contract::accounts::{World, note};
use fettle_tests::contract::ledger::ManualTime;

use crate::ledger::{options, path};

contract::accounts!(sqlite, on_disk().await);

async fn on_disk() -> World<SqliteLedger> {
    let (data, time) = (tempfile::tempdir().expect("a temporary folder can be made"), Arc::<ManualTime>::default());
    let store = SqliteLedger::open(path(&data), options(&time, 1)).await.expect("the ledger opens");
    World { store: Arc::new(store), time, _held: Box::new(data) }
}

#[tokio::test]
async fn a_row_that_was_changed_in_the_file_is_found() {
    let (data, time) = (tempfile::tempdir().unwrap(), Arc::<ManualTime>::default());
    let store = SqliteLedger::open(path(&data), options(&time, 1)).await.unwrap();
    for action in ["one", "two", "three"] {
        store.note(note(action)).await.unwrap();
    }
    store.close().await.unwrap();
    let file = rusqlite::Connection::open(path(&data).join(DATABASE_FILE)).unwrap();
    file.execute("UPDATE audit_log SET actor = 'nobody' WHERE sequence = 2", ()).unwrap();
    drop(file);
    let store = SqliteLedger::open(path(&data), options(&time, 2)).await.unwrap();
    let log = store.entries_after(0, 10).await.unwrap();
    assert_eq!(verify(Head::EMPTY, &log).map_err(|broken| broken.sequence), Err(2));
}
