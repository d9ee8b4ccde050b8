//! What operators ask: `fettle admin …` against the running program.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::process::{Command, Output};

use fettle_tests::world::{Setup, TestBox, program, repository};
use serde_json::Value;

use super::webhook::assert_solved_once;

/// As a person types it on the same machine.
pub(crate) fn admin(fettle: &TestBox, arguments: &[&str]) -> Output {
    let config = fettle.config();
    let data = config.parent().unwrap().join("data-0");
    let mut command = Command::new(program("fettle").unwrap());
    command.args(["--config", config.as_str(), "--data-dir", data.as_str(), "admin"]).args(arguments);
    command.output().unwrap()
}

pub(crate) fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_compares_the_ledger_with_the_forge_and_tells_of_a_second_comment() {
    let fettle = TestBox::start(Setup::with(repository::solving().script())).await.unwrap();
    let issue = fettle.issue();
    let ended = fettle.solve(issue).await.unwrap();
    assert_solved_once(&fettle, issue, &ended).await;

    let well = admin(&fettle, &["audit", "--forge"]);
    assert!(well.status.success(), "{}", said(&well));
    assert!(said(&well).contains("no breach of I10 among 1 Tasks"), "{}", said(&well));

    let ours = fettle.answers_on(issue).remove(0);
    fettle.forge.comment(&fettle.repo, issue, "fettle-machine", &ours);
    let amiss = admin(&fettle, &["audit", "--forge", "--json"]);
    assert_eq!(amiss.status.code(), Some(1), "{}", said(&amiss));
    let told: Value = serde_json::from_slice(&amiss.stdout).unwrap();
    let breach = told["forge"]["breaches"][0].as_str().unwrap();
    assert!(breach.contains("2 result comments"), "{told}");
    assert_eq!(told["ledger"], serde_json::json!([]));

    let none = admin(&fettle, &["dead"]);
    assert!(none.status.success() && said(&none).contains("no dead jobs"), "{}", said(&none));
    let run = ended["run"]["job_id"].as_str().unwrap();
    let refused = admin(&fettle, &["redrive", run]);
    assert!(!refused.status.success() && said(&refused).contains("stays as it is"), "{}", said(&refused));
    let busy = admin(&fettle, &["export", "--to", "/dev/null/ledger"]);
    assert!(!busy.status.success(), "the ledger is in use: {}", said(&busy));
}
