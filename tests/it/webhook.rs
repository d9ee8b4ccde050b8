//! From a webhook to a pull request with the real programs: `fettle up`, or dashboard and worker.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use fettle_tests::world::{Setup, TestBox, repository};

#[tokio::test]
async fn a_label_gets_one_proven_pull_request_one_comment_and_a_label() {
    let fettle = TestBox::start(Setup::with(repository::solving().script())).await.unwrap();
    let issue = fettle.issue();
    let task = fettle.solve(issue).await.unwrap();
    assert_eq!((task["state"].as_str(), task["outcome"].as_str()), (Some("done"), Some("ready_pr")), "{task:#}");
}
