//! The API against its own document, by a tool that makes requests of it: schemathesis.

use std::process::Command;
use std::time::Duration;

use fettle_tests::downloads;
use fettle_tests::world::{Process, Setup, TestBox, repository};

const PACKAGES: [&str; 1] = ["schemathesis==4.32.5"];
/// Seconds that it may go on making requests.
const MAX_SECONDS: &str = "40";
/// With its start, and the end of what it has begun.
const LIMIT: Duration = Duration::from_secs(150);
/// What it is told of the API: the rest it reads from the document.
const CONFIG: &str = r#"
# Without an inference process and while a ledger is busy: the operator's turn, and documented as such.
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "503"]
"#;

#[tokio::test(flavor = "multi_thread")]
async fn the_api_answers_as_its_document_says_whatever_is_asked_of_it() {
    let Some(packages) = downloads::python_packages("schemathesis", &PACKAGES) else { return };
    let fettle = TestBox::start(Setup::with(repository::solving().script())).await.unwrap();
    // So that there is something to be read.
    let issue = fettle.issue();
    fettle.solve(issue).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("schemathesis.toml");
    fs_err::write(&config, CONFIG).unwrap();
    let key = fs_err::read_to_string(fettle.config().parent().unwrap().join("data-0/admin.key")).unwrap();

    let mut tool = Command::new("python3");
    tool.args(["-m", "schemathesis.cli", "--config-file"]).arg(&config).arg("run");
    tool.arg(format!("{}/api/openapi.json", fettle.api.base()));
    tool.args(["--url", fettle.api.base(), "--header", &format!("Authorization: Bearer {}", key.trim())]);
    tool.args(["--phases", "examples,coverage,fuzzing", "--max-examples", "8", "--max-time", MAX_SECONDS]);
    tool.args([
        "--generation-database",
        "none",
        "--seed",
        "1",
        "--continue-on-failure",
        "--no-shrink",
        "--request-timeout",
        "10",
        "--warnings",
        "off",
    ]);
    // What a field must be is said in more detail than a schema can, so a text that fits the schema may be refused; and the key
    // opens what is anybody's.
    tool.args(["--checks", "all", "--exclude-checks", "positive_data_acceptance,object_level_authorization"]);
    // They do not end by themselves, or are no exchange of HTTP at all; tests of their own hold them against the document.
    for feed in ["follow_events", "follow_task", "follow_live"] {
        tool.args(["--exclude-operation-id", feed]);
    }
    tool.current_dir(folder.path()).env("PYTHONPATH", packages).env("PYTHONDONTWRITEBYTECODE", "1");
    tool.env("HOME", folder.path()).env("NO_COLOR", "1");
    let mut tool = Process::start("schemathesis", &mut tool).unwrap();
    let status = tool.ended(LIMIT).await.unwrap();
    assert!(status.success(), "{}", tool.log().join("\n"));
}
