//! Workers' pods where Fettle runs in a cluster, by page and command. The cluster's API is played by an HTTPS server that knows three
//! pods of workers and one of a dashboard; what a real one allows is asked in `cluster.rs`.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{Path as InPath, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::get;
use axum::{Json, Router};
use fettle_tests::https::Https;
use fettle_tests::world::{PATIENCE, Process, program, toolchains};
use serde_json::{Value, json};

use super::pages::Browser;

const SELECTOR: &str = "app.kubernetes.io/component=worker,app.kubernetes.io/instance=fettle";
const FIRST_TOKEN: &str = "token-of-the-first-hour";
const SECOND_TOKEN: &str = "token-of-the-second-hour";
/// Nobody's, and of the form of GitHub's.
const SECRET: &str = "ghp_16C7e42F292c6912E7710c838347Ae178B4a";
/// Four times the page, on a busy machine.
const LOOKED_AT: Duration = Duration::from_secs(120);

/// The tokens that are still good.
type Good = Arc<Mutex<Vec<&'static str>>>;
type Asked = Query<BTreeMap<String, String>>;
type Refused = (StatusCode, Json<Value>);

fn pods() -> Vec<Value> {
    let pod = |name: &str, node: Option<&str>, status: Value| {
        json!({
            "metadata": { "name": name, "creationTimestamp": "2026-11-30T12:00:00Z" },
            "spec": { "nodeName": node }, "status": status,
        })
    };
    let ended = json!({ "terminated": { "reason": "OOMKilled", "exitCode": 137 } });
    let works =
        json!([{ "name": "worker", "ready": true, "restartCount": 2, "state": { "running": {} }, "lastState": ended }]);
    let unplaced = json!([{
        "type": "PodScheduled", "status": "False", "message": "0/1 nodes are available: 1 Insufficient memory.",
    }]);
    let done = json!([{ "name": "worker", "ready": false, "restartCount": 0, "state": {
        "terminated": { "reason": "Completed", "exitCode": 0 } } }]);
    vec![
        pod("fettle-worker-works", Some("spark-1"), json!({ "phase": "Running", "containerStatuses": works })),
        pod("fettle-worker-waits", None, json!({ "phase": "Pending", "conditions": unplaced })),
        pod("fettle-worker-done", Some("spark-2"), json!({ "phase": "Succeeded", "containerStatuses": done })),
    ]
}

/// As the API says no.
fn no(status: StatusCode, message: &str) -> Refused {
    (status, Json(json!({ "kind": "Status", "status": "Failure", "message": message })))
}

fn may(good: &Good, headers: &HeaderMap) -> Result<(), Refused> {
    let shown = headers.get("authorization").and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let is_good = shown.is_some_and(|shown| good.lock().unwrap().contains(&shown));
    if is_good { Ok(()) } else { Err(no(StatusCode::UNAUTHORIZED, "Unauthorized")) }
}

async fn list(State(good): State<Good>, headers: HeaderMap, Query(asked): Asked) -> Result<Json<Value>, Refused> {
    may(&good, &headers)?;
    if asked.get("labelSelector").map(String::as_str) != Some(SELECTOR) {
        return Err(no(StatusCode::BAD_REQUEST, "all pods of the namespace were asked for"));
    }
    let field = asked.get("fieldSelector").map(|field| field.strip_prefix("metadata.name=").unwrap());
    let items: Vec<Value> =
        pods().into_iter().filter(|pod| field.is_none_or(|name| pod["metadata"]["name"] == name)).collect();
    Ok(Json(json!({ "metadata": {}, "items": items })))
}

async fn log(
    State(good): State<Good>,
    headers: HeaderMap,
    InPath(name): InPath<String>,
    Query(asked): Asked,
) -> Result<String, Refused> {
    may(&good, &headers)?;
    assert_eq!(asked["container"], "worker");
    match name.as_str() {
        "fettle-worker-works" => Ok(format!(
            "the last {} lines\nleased job_1 to worker-1\nthe remote is https://x:{SECRET}@github.com/o/r\nstep 7: view src/lib.rs\n",
            asked["tailLines"]
        )),
        "fettle-worker-waits" => {
            let why = format!("container \"worker\" in pod \"{name}\" is waiting to start: ContainerCreating");
            Err(no(StatusCode::BAD_REQUEST, &why))
        }
        _ => Err(no(StatusCode::INTERNAL_SERVER_ERROR, "nobody asks for this log")),
    }
}

struct InCluster {
    good: Good,
    home: tempfile::TempDir,
    fettle: Process,
    link: String,
    _api: Https,
}

impl InCluster {
    async fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let good = Good::new(Mutex::new(vec![FIRST_TOKEN]));
        let routes = Router::new()
            .route("/api/v1/namespaces/fettle/pods", get(list))
            .route("/api/v1/namespaces/fettle/pods/{name}/log", get(log))
            .with_state(good.clone());
        let api = Https::serve(routes, home.path()).await.unwrap();
        let account = home.path().join("account");
        fs_err::create_dir(&account).unwrap();
        fs_err::copy(&api.certificate, account.join("ca.crt")).unwrap();
        fs_err::write(account.join("namespace"), "fettle").unwrap();
        fs_err::write(account.join("token"), FIRST_TOKEN).unwrap();
        let mut command = Command::new(program("fettle").unwrap());
        command.arg("up").arg("--data-dir").arg(home.path().join("data")).env_clear().envs(toolchains());
        command.env("HOME", home.path()).env("FETTLE_TEST_ACCOUNT", &account);
        command.env("KUBERNETES_SERVICE_HOST", "127.0.0.1").env("KUBERNETES_SERVICE_PORT", api.port.to_string());
        command.env("FETTLE_SERVER__WORKER_PODS", SELECTOR).env("FETTLE_SERVER__LISTEN", "127.0.0.1:0");
        command.env("FETTLE_GATEWAY__LISTEN", "127.0.0.1:0");
        // What a cluster sets for everybody leads to no proxy.
        command.env("HTTPS_PROXY", "http://127.0.0.1:9");
        let fettle = Process::start("fettle", &mut command).unwrap();
        let link = |line: &str| Some(format!("http://{}", line.split_once("once: http://")?.1));
        let link = fettle.logged("the first admin can be made", PATIENCE, link).await.unwrap();
        Self { good, home, fettle, link, _api: api }
    }

    fn account(&self) -> std::path::PathBuf {
        self.home.path().join("account")
    }

    /// As somebody at a terminal: what is said, or why not.
    async fn says(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new(program("fettle").unwrap());
        command.arg("workers").args(arguments).arg("--data-dir").arg(self.home.path().join("data"));
        command.env_clear().env("HOME", self.home.path());
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        if output.status.success() { Ok(out) } else { Err(err) }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_pods_and_their_logs_are_told_by_command_and_the_token_is_read_anew() {
    let mut cluster = InCluster::start().await;
    let said = cluster.says(&["pods"]).await.unwrap();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 4, "{said}");
    let line = |name: &str| *lines.iter().find(|line| line.starts_with(name)).unwrap();
    assert!(line("fettle-worker-waits").ends_with("0/1 nodes are available: 1 Insufficient memory."), "{said}");
    let works: Vec<&str> = line("fettle-worker-works").split_whitespace().collect();
    assert_eq!(works[1..5], ["Running", "yes", "2", "spark-1"], "{said}");
    let said = cluster.says(&["logs", "fettle-worker-works", "--lines", "7"]).await.unwrap();
    assert!(said.starts_with("the last 7 lines\nleased job_1") && !said.contains(SECRET), "{said}");
    let refused = cluster.says(&["logs", "fettle-dashboard-x"]).await.unwrap_err();
    assert!(refused.contains("No worker has the pod fettle-dashboard-x."), "{refused}");

    // The kubelet writes another one before an hour is over.
    *cluster.good.lock().unwrap() = vec![SECOND_TOKEN];
    let refused = cluster.says(&["pods"]).await.unwrap_err();
    assert!(refused.contains("The cluster does not let this dashboard see pods."), "{refused}");
    fs_err::write(cluster.account().join("token"), SECOND_TOKEN).unwrap();
    assert_eq!(cluster.says(&["pods"]).await.unwrap().lines().count(), 4);
    assert!(cluster.fettle.stop().unwrap().success(), "{}", cluster.fettle.tail());
    let told = cluster.fettle.log().join("\n");
    assert!([FIRST_TOKEN, SECOND_TOKEN, SECRET].iter().all(|secret| !told.contains(secret)), "{told}");
}

/// Pictures are left in `target/pages`, to be looked at.
#[tokio::test(flavor = "multi_thread")]
async fn the_page_of_workers_shows_their_pods_and_logs_in_both_themes_and_sizes() {
    let Some(browser) = Browser::find() else { return };
    let mut cluster = InCluster::start().await;
    browser.tells("pods.mjs", &cluster.link, LOOKED_AT).await;
    assert!(cluster.fettle.stop().unwrap().success(), "{}", cluster.fettle.tail());
}

#[test]
fn the_chart_s_selector_is_of_the_form_that_the_tests_use() {
    let rendered = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/fettle/tests/snapshots/gpu.yaml");
    let rendered = fs_err::read_to_string(rendered).unwrap();
    let line = rendered.lines().find_map(|line| line.trim().strip_prefix("worker_pods = ")).unwrap();
    assert!(line.contains("app.kubernetes.io/component=worker,app.kubernetes.io/instance=fettle"), "{line}");
}
