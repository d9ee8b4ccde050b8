use std::sync::mpsc::Receiver;

use tracing::{Instrument as _, field, info, info_span};
use tracing_subscriber::layer::SubscriberExt as _;

use super::*;

const CORRELATION_ID: &str = "corr_0190aaaabbbb7ccc8ddd0123456789ab";
const TASK: &str = "task_0190aaaabbbb7ccc8111222233334444";
const DELIVERY: &str = "delivery_0190aaaabbbb7ccc9111222233334444";

/// What is told of the spans that `work` makes.
fn told(work: impl FnOnce()) -> Vec<Span> {
    let (queue, receiver): (Queue, Receiver<Span>) = Queue::for_tests(100);
    let told = tracing_subscriber::filter::filter_fn(is_told);
    let subscriber = tracing_subscriber::registry().with(Spans::new(queue).with_filter(told));
    tracing::subscriber::with_default(subscriber, work);
    receiver.try_iter().collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no `{name}` among {spans:?}"))
}

fn keys(span: &Span) -> Vec<&str> {
    span.attributes.iter().map(|attribute| attribute.key.as_str()).collect()
}

// Each part is a process that knows nothing of the others but ids in the ledger and a header.
#[test]
fn parts_that_never_met_write_into_one_tree() {
    let spans = told(|| {
        let correlation = field::display(CORRELATION_ID);
        let request = info_span!(
            "request",
            correlation.id = correlation,
            http.method = "POST",
            http.route = "/webhooks/github",
            http.status = field::Empty
        );
        request.in_scope(|| info_span!("delivery", delivery.id = DELIVERY, correlation.id = correlation));
        request.record("http.status", 202_u64);
        info_span!("intake", delivery.id = DELIVERY, correlation.id = correlation)
            .in_scope(|| info_span!("task", task.id = TASK, correlation.id = correlation));
        info_span!("run", task.id = TASK, correlation.id = correlation)
            .in_scope(|| info_span!("model", model.name = "small", span.id = "00000000000000aa"));
        info_span!(
            "gateway",
            correlation.id = correlation,
            trace.parent = "00-0190aaaabbbb7ccc8ddd0123456789ab-00000000000000aa-01"
        );
        let publish = info_span!("publish", task.id = TASK, correlation.id = field::Empty);
        publish.record("correlation.id", correlation);
        publish.in_scope(|| info_span!("effect", effect.kind = "push"));
    });
    for span in &spans {
        assert_eq!(hex(&span.trace_id), "0190aaaabbbb7ccc8ddd0123456789ab", "{}", span.name);
    }
    let parents = [
        ("delivery", "POST /webhooks/github"),
        ("intake", "delivery"),
        ("task", "intake"),
        ("run", "task"),
        ("model small", "run"),
        ("gateway", "model small"),
        ("publish", "task"),
        ("effect push", "publish"),
    ];
    for (child, parent) in parents {
        assert_eq!(named(&spans, child).parent_span_id, named(&spans, parent).span_id, "{child} below {parent}");
    }
    assert_eq!(named(&spans, "POST /webhooks/github").parent_span_id, Vec::<u8>::new());
    assert_eq!(hex(&named(&spans, "task").span_id), "8111222233334444");
    assert_eq!(spans.len(), parents.len() + 1);
    let remote: Vec<&str> = spans.iter().filter(|span| span.flags == 0x301).map(|span| span.name.as_str()).collect();
    assert_eq!(remote, ["intake", "run", "gateway", "publish"]);
}

#[test]
fn a_caller_that_is_traced_is_the_parent_in_its_own_trace_and_linked_from_another() {
    let cause = "00-0190aaaabbbb7ccc8ddd0123456789ab-00000000000000aa-01";
    let request = |correlation: &str| {
        let route = "/api/v1/tasks";
        told(|| drop(info_span!("request", http.route = route, correlation.id = correlation, trace.parent = cause)))
            .remove(0)
    };
    let own = request(CORRELATION_ID);
    assert_eq!((hex(&own.parent_span_id), own.links.len()), ("00000000000000aa".to_owned(), 0));
    let other = request("corr_0190aaaabbbb7ccc8ddd0123456789ac");
    assert!(other.parent_span_id.is_empty() && hex(&other.trace_id).ends_with("ac"));
    assert_eq!(hex(&other.links[0].trace_id), "0190aaaabbbb7ccc8ddd0123456789ab");
    assert_eq!(hex(&other.links[0].span_id), "00000000000000aa");
}

#[test]
fn what_is_on_no_list_does_not_leave() {
    let prompt = "the secret plan";
    let spans = told(|| {
        let span = info_span!("run", task.id = TASK, prompt, correlation.id = CORRELATION_ID, error = field::Empty);
        span.record("error", prompt);
        span.in_scope(|| {
            info!(prompt, "{prompt}");
            info_span!("phase", prompt)
        });
        // Another library's of the same name.
        info_span!(target: "hyper", "run", task.id = TASK);
        info_span!("model", model.name = "x".repeat(10_000));
    });
    assert_eq!(spans.len(), 2, "{spans:?}");
    assert!(!format!("{spans:?}").contains(prompt));
    let run = named(&spans, "run");
    assert_eq!(keys(run), ["fettle.task.id", "fettle.correlation.id"]);
    assert!(run.events.is_empty());
    assert!(spans.iter().all(|span| span.name.len() < 200));
}

#[test]
fn probes_and_polls_of_workers_are_not_told_and_failures_are_errors() {
    let request = |route: &str, status: u64| {
        let spans = told(|| drop(info_span!("request", http.route = route, http.status = status)));
        spans.first().map(|span| span.status.as_ref().is_some_and(|status| status.code == 2))
    };
    assert_eq!(request("/worker/v1/lease", 200), None);
    assert_eq!(request("/healthz", 503), None);
    assert_eq!(request("unmatched", 404), None);
    assert_eq!(request("/api/v1/tasks", 503), Some(true));
    assert_eq!(request("/api/v1/tasks", 409), Some(false));
    let failed = told(|| drop(info_span!("model", outcome = "failed")));
    assert!(failed[0].status.is_some());
}

// The span of a Run is entered and left at each await, and ends when it is dropped.
#[tokio::test]
async fn a_span_lasts_from_its_making_to_its_end() {
    let (queue, receiver) = Queue::for_tests(10);
    let subscriber = tracing_subscriber::registry().with(Spans::new(queue));
    let _guard = tracing::subscriber::set_default(subscriber);
    let wait = tokio::time::sleep(std::time::Duration::from_millis(20));
    wait.instrument(info_span!("run", task.id = TASK, correlation.id = CORRELATION_ID)).await;
    let span = receiver.try_recv().unwrap();
    let took = span.end_time_unix_nano - span.start_time_unix_nano;
    assert!((20_000_000..10_000_000_000).contains(&took), "{took}");
    assert!(span.start_time_unix_nano > 1_700_000_000_000_000_000);
}
