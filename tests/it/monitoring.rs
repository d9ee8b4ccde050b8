//! What Prometheus reads of the real programs: every metric that alerts and the Grafana dashboard ask for, and true numbers.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;

use fettle_tests::collector::Collector;
use fettle_tests::world::{Layout, PATIENCE, Setup, TestBox, WORKER, message, repository};

use super::webhook::assert_solved_once;

const RULES: &str = include_str!("../../charts/fettle/rules/fettle.yaml");
const BOARD: &str = include_str!("../../charts/fettle/dashboards/fettle.json");
/// What is told only where there is something to tell of: a broker, and an engine of this machine.
const ELSEWHERE: [&str; 3] = ["fettle_broker_up", "fettle_broker_depth", "fettle_engine_state"];

/// Metrics of ours that a text asks for.
fn asked(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours =
        |word: &&str| word.starts_with("fettle_") || word.starts_with("http_request") || *word == "error_rate_percent";
    words.filter(ours).collect()
}

/// The value of one series, as it stands in the page.
fn value(page: &str, series: &str) -> Option<f64> {
    page.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
}

async fn page(fettle: &TestBox, nth: usize) -> String {
    let address = |line: &str| Some(message(line)?.split_once("health listens on ")?.1.to_owned());
    let address = fettle.process(nth).logged("health listens", PATIENCE, address).await.unwrap();
    let (status, page) = fettle.api.public(&format!("{address}/metrics")).await.unwrap();
    assert_eq!(status, 200, "{page}");
    page
}

#[tokio::test]
async fn every_metric_that_alerts_and_board_ask_for_is_told_by_a_program() {
    let collector = Collector::start();
    let telemetry = format!("otlp_endpoint = '{}'", collector.endpoint());
    let setup = Setup::with(repository::solving().script());
    let mut fettle = TestBox::start(Setup { layout: Layout::Dashboard, telemetry: &telemetry, ..setup }).await.unwrap();
    // In the place of the worker, which comes after it.
    fettle.start_inference(&[]).await.unwrap();
    fettle.start_worker(None).unwrap();
    let issue = fettle.issue();
    let task = fettle.solve(issue).await.unwrap();
    assert_solved_once(&fettle, issue, &task).await;

    let gateway = |line: &str| Some(message(line)?.split_once(" answers on ")?.1.split_once(',')?.0.to_owned());
    let gateway = fettle.process(WORKER).logged("the gateway answers", PATIENCE, gateway).await.unwrap();
    // What nobody can read is refused, which is counted, too.
    let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
    let refused = client.post(format!("{gateway}/v1/chat/completions")).body("{}").send().await.unwrap();
    assert_eq!(refused.status(), 400);

    let (_, dashboard) = fettle.api.health("/metrics").await.unwrap();
    let (inference, worker) = (page(&fettle, WORKER).await, page(&fettle, WORKER + 1).await);
    let pages = [dashboard.as_str(), &inference, &worker].concat();
    let told = |name: &str| {
        let series = |rest: &str| rest.starts_with(['{', ' ']);
        pages.lines().any(|line| line.strip_prefix(name).is_some_and(series))
    };
    for text in [RULES, BOARD] {
        let missing: Vec<&str> = asked(text).into_iter().filter(|name| !told(name)).collect();
        let missing: Vec<&str> = missing.into_iter().filter(|name| !ELSEWHERE.contains(name)).collect();
        assert!(missing.is_empty(), "no program tells {missing:?}");
    }

    let calls = fettle.model.request_count() as f64;
    assert_eq!(value(&worker, "fettle_runs_total{outcome=\"ready_pr\"}"), Some(1.0));
    assert_eq!(value(&worker, "fettle_run_duration_seconds_count"), Some(1.0));
    let spent = &task["run"]["spent"];
    for (kind, tokens) in [("prompt", "prompt_tokens"), ("generated", "generated_tokens")] {
        let counted = value(&worker, &format!("fettle_run_tokens_total{{kind=\"{kind}\"}}"));
        assert!(
            counted.is_some_and(|counted| counted > 0.0) && counted == spent[tokens].as_f64(),
            "{counted:?} {spent}"
        );
    }
    let answered = "fettle_model_calls_total{model=\"scripted\",outcome=\"answered\"}";
    assert_eq!(value(&worker, answered), Some(calls));
    assert_eq!(value(&worker, "fettle_model_call_seconds_count{model=\"scripted\"}"), Some(calls));
    let commits = value(&dashboard, "fettle_ledger_commit_seconds_count").unwrap();
    let changes = value(&dashboard, "fettle_ledger_batch_changes_sum").unwrap();
    assert!(commits > 10.0 && changes >= commits, "{changes} changes in {commits} commits");
    assert!(value(&dashboard, "fettle_ledger_connection_wait_seconds_count").unwrap() > 0.0);
}
