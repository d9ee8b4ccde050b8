//! Traces of the real programs, at a collector: one for a Task, whoever worked on it, and nothing in it that is not for a collector.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::net::TcpListener;

use fettle_tests::collector::{Collected, Collector};
use fettle_tests::world::{Layout, PATIENCE, SERVER, Setup, TestBox, repository};

use super::webhook::assert_solved_once;

/// The spans of one trace by their names; of several with one name, one of them.
fn by_name<'a>(spans: &'a [Collected], trace: &str) -> BTreeMap<&'a str, &'a Collected> {
    spans.iter().filter(|span| span.trace == trace).map(|span| (span.name.as_str(), span)).collect()
}

/// The digits of an id, which are those of a trace.
fn digits(id: &str) -> &str {
    id.split_once('_').unwrap().1
}

/// A span, what it hangs on, and which program makes it when each is a process of its own.
const TREE: [(&str, &str, &str); 13] = [
    ("POST /webhooks/github", "", "fettle-dashboard"),
    ("delivery", "POST /webhooks/github", "fettle-dashboard"),
    ("intake", "delivery", "fettle-dashboard"),
    ("task", "intake", "fettle-dashboard"),
    ("run", "task", "fettle-worker"),
    ("verify", "run", "fettle-worker"),
    ("model scripted", "run", "fettle-worker"),
    ("gateway scripted", "model scripted", "fettle-inference"),
    ("publish", "task", "fettle-dashboard"),
    ("effect push", "publish", "fettle-dashboard"),
    ("effect pull_request", "publish", "fettle-dashboard"),
    ("effect comment", "publish", "fettle-dashboard"),
    ("effect labels", "publish", "fettle-dashboard"),
];

/// Solves an issue, and waits until the collector has the Task's whole tree; `service` says who makes a span.
async fn one_tree(fettle: &TestBox, collector: &Collector, service: impl Fn(&'static str) -> &'static str) {
    let issue = fettle.issue();
    let task = fettle.solve(issue).await.unwrap();
    assert_solved_once(fettle, issue, &task).await;

    let trace = digits(task["correlation_id"].as_str().unwrap()).to_owned();
    let complete = |spans: &[Collected]| {
        let found = by_name(spans, &trace);
        let called = spans.iter().filter(|span| span.name == "model scripted").count();
        let served = spans.iter().filter(|span| span.name == "gateway scripted").count();
        (TREE.iter().all(|(name, ..)| found.contains_key(name)) && called == served).then(|| spans.to_vec())
    };
    let spans = collector.until("the whole tree", PATIENCE, complete).await.unwrap();
    let found = by_name(&spans, &trace);
    for (name, parent, program) in TREE {
        let span = found[name];
        assert_eq!(span.service, service(program), "{name}");
        assert!(!span.failed, "{name}");
        if parent != "model scripted" {
            assert_eq!(span.parent, found.get(parent).map(|parent| parent.span.as_str()).unwrap_or_default(), "{name}");
        }
    }
    assert_eq!(found["task"].span, digits(task["id"].as_str().unwrap())[16..]);
    assert!(found.iter().any(|(name, span)| name.starts_with("tool ") && span.parent == found["run"].span));
    // Each call has its own at the gateway.
    let of = |name: &str| spans.iter().filter(|span| span.name == name).collect::<Vec<_>>();
    let mut callers: Vec<&str> = of("model scripted").iter().map(|span| span.span.as_str()).collect();
    let mut served: Vec<&str> = of("gateway scripted").iter().map(|span| span.parent.as_str()).collect();
    callers.sort_unstable();
    served.sort_unstable();
    assert!(callers.len() > 3 && callers == served, "{callers:?} {served:?}");

    let said = |name: &str, key: &str| found[name].attributes.get(key).map(String::as_str).unwrap_or_default();
    assert_eq!(said("run", "fettle.outcome"), "ready_pr");
    assert_eq!(said("intake", "fettle.outcome"), "opened");
    assert_eq!(said("effect push", "fettle.outcome"), "done");
    assert_eq!(said("gateway scripted", "fettle.outcome"), "complete");
    assert!(said("gateway scripted", "gen_ai.usage.output_tokens").parse::<u64>().unwrap() > 0);
    assert_eq!(said("POST /webhooks/github", "http.response.status_code"), "202");
    for span in &spans {
        for kept in ["canary", "clamp", "HIGH", "Authorization"] {
            assert!(!span.whole.contains(kept), "`{kept}` is in {}", span.whole);
        }
        // Whatever a worker asks its dashboard is no news.
        assert!(!span.name.contains("/worker/"), "{}", span.name);
    }
}

#[tokio::test]
async fn a_task_is_one_trace_from_the_webhook_over_the_worker_and_its_models_to_the_forge() {
    let collector = Collector::start();
    let telemetry = format!("otlp_endpoint = '{}'", collector.endpoint());
    let setup = Setup::with(repository::solving().script());
    let mut fettle = TestBox::start(Setup { layout: Layout::Dashboard, telemetry: &telemetry, ..setup }).await.unwrap();
    fettle.start_inference(&[]).await.unwrap();
    fettle.start_worker(None).unwrap();
    one_tree(&fettle, &collector, |program| program).await;
}

// Spans of the parts are in one process here, and none gets between others because of that.
#[tokio::test]
async fn the_tree_of_one_process_is_the_same() {
    let collector = Collector::start();
    let telemetry = format!("otlp_endpoint = '{}'", collector.endpoint());
    let setup = Setup::with(repository::solving().script());
    let fettle = TestBox::start(Setup { telemetry: &telemetry, ..setup }).await.unwrap();
    one_tree(&fettle, &collector, |_| "fettle").await;
}

#[tokio::test]
async fn a_collector_that_is_away_costs_spans_and_no_task() {
    let away = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let telemetry = format!("otlp_endpoint = 'http://{away}'");
    let setup = Setup::with(repository::solving().script());
    let fettle = TestBox::start(Setup { telemetry: &telemetry, ..setup }).await.unwrap();
    let issue = fettle.issue();
    let task = fettle.solve(issue).await.unwrap();
    assert_solved_once(&fettle, issue, &task).await;
    let failed = async || {
        let (_, metrics) = fettle.api.health("/metrics").await.unwrap();
        let line = metrics.lines().find(|line| line.starts_with("fettle_trace_spans_total{outcome=\"failed\"}"));
        line.and_then(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).unwrap()
    };
    let told = |line: &str| line.contains("the collector of traces does not take them").then_some(());
    fettle.process(SERVER).logged("the collector is away", PATIENCE, told).await.unwrap();
    assert!(failed().await > 0);
}
