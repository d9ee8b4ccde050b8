//! The program that backups are made with, on a ledger that is in use.

use std::process::{Command, Stdio};
use std::sync::Arc;

use fettle_store_sqlite::{Options, SqliteLedger};
use fettle_tests::contract::ledger::{CountedIds, ManualTime};
use fettle_tests::world::program;

#[tokio::test]
async fn a_ledger_in_use_is_copied_through_a_pipe_and_the_copy_is_whole_until_half_of_it_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let data = camino::Utf8Path::from_path(folder.path()).unwrap();
    let options = Options::new(Arc::new(ManualTime::default()), Arc::new(CountedIds::of_space(1)));
    let ledger = SqliteLedger::open(data.join("ledger"), options).await.unwrap();
    let fettle = program("fettle").unwrap();
    let copy = data.join("copy");
    let mut snapshot = Command::new(&fettle);
    snapshot
        .args(["snapshot", "--data-dir", data.as_str(), "--to", "-"])
        .stdout(fs_err::File::create(&copy).unwrap().into_parts().0);
    assert!(snapshot.status().unwrap().success());
    let check = || {
        let mut check = Command::new(&fettle);
        check
            .args(["check-snapshot", "--json", "-"])
            .stdin(Stdio::from(fs_err::File::open(&copy).unwrap().into_parts().0));
        let output = check.output().unwrap();
        let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.success(), said["ok"] == true)
    };
    assert_eq!(check(), (true, true));
    let bytes = fs_err::read(&copy).unwrap();
    fs_err::write(&copy, &bytes[..bytes.len() / 2]).unwrap();
    assert_eq!(check(), (false, false));
    drop(ledger);
}
