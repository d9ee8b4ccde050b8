//! The first start, and the demo.

use std::process::Command;
use std::time::Duration;

use camino::Utf8PathBuf;
use fettle_tests::world::{Launch, PATIENCE, Process, message, program, ready, toolchains};
use serde_json::Value;

/// A first start makes a ledger and two keys; on a busy machine.
const QUICKLY: Duration = Duration::from_secs(10);

#[tokio::test]
async fn fettle_up_without_a_configuration_is_ready_at_once_and_says_what_is_missing() {
    let home = tempfile::tempdir().unwrap();
    let root = Utf8PathBuf::try_from(home.path().to_owned()).unwrap();
    let data = root.join(".local/state/fettle");
    let launch = Launch { home: &root, config: None, data: &data, own_group: false };
    // The default port may belong to somebody else on this machine.
    let listen = ("FETTLE_SERVER__LISTEN", "127.0.0.1:0".to_owned());
    let mut fettle = launch.start("fettle", &["up"], &[listen]).unwrap();
    let api = tokio::time::timeout(QUICKLY, ready(&fettle, &data)).await.unwrap().unwrap();
    let next = |line: &str| message(line)?.starts_with("next: ").then_some(());
    fettle.logged("what to do next", QUICKLY, next).await.unwrap();
    let said = fettle.log().join("\n");
    for missing in ["[[gateway.models]]", "forge.webhook_secret_file", "forge.write_token_file"] {
        assert!(said.contains(missing), "nothing is said of {missing}:\n{said}");
    }
    let answer = reqwest::Client::builder().no_proxy().timeout(QUICKLY).build().unwrap();
    let answer = answer.post(api.webhooks()).body("{}").send().await.unwrap();
    let (status, text) = (answer.status(), answer.text().await.unwrap());
    assert!(status == 503 && text.contains("webhook_secret_file"), "{status} {text}");
    assert_eq!(api.tasks().await.unwrap(), [] as [Value; 0]);
    assert!(fettle.stop().unwrap().success());
}

/// A Rust repository, and the program that people try first.
#[tokio::test]
async fn the_demo_ends_with_a_proven_pull_request_and_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(program("fettle-demo").unwrap());
    command.arg("--json").env_clear().envs(toolchains()).env("TMPDIR", home.path());
    let mut demo = Process::start("fettle-demo", &mut command).unwrap();
    let last = demo.logged("what came of it", PATIENCE, |line| serde_json::from_str::<Value>(line).ok()).await.unwrap();
    assert!(demo.stop().unwrap().success(), "{}", demo.tail());
    let pull = &last["pull_request"];
    assert!(pull["draft"] == false && pull["base"] == "main" && pull["number"] == 2, "{last:#}");
    assert_eq!((last["proof"]["proven"].as_bool(), last["proof"]["level"].as_str()), (Some(true), Some("proven")));
    assert_eq!((last["comments"].as_u64(), last["task"]["state"].as_str()), (Some(1), Some("done")));
    assert_eq!(fs_err::read_dir(home.path()).unwrap().count(), 0, "something stayed");
}
