use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::world::{ADMIN_KEY, WORKER_KEY, World};

#[tokio::test]
async fn the_api_is_for_the_bearer_of_the_admin_key() {
    let world = World::start().await;
    for path in ["/api/v1/tasks", "/api/v1/events", "/api/v1/tasks/task_00000000000000000000000000000001/events"] {
        for authorization in
            ["", "Bearer", "Bearer wrong", &format!("Bearer {WORKER_KEY}"), &format!("Basic {ADMIN_KEY}")]
        {
            let seen = world.ask(Method::GET, path, &[("authorization", authorization)], None).await;
            assert_eq!(seen.problem(), (401, "unauthenticated".to_owned()), "{path} {authorization}");
            assert!(seen.header("www-authenticate").starts_with("Bearer"));
        }
    }
    assert_eq!(world.get("/api/v1/tasks").await.status, StatusCode::OK);
}

#[tokio::test]
async fn every_error_is_a_problem_with_the_names_of_the_exchange() {
    let world = World::start().await;
    let cases = [
        (world.ask(Method::GET, "/nowhere", &[], None).await, (404, "not_found")),
        (world.ask(Method::DELETE, "/webhooks/github", &[], None).await, (405, "method_not_allowed")),
        (world.get("/api/v1/tasks/task_1").await, (404, "not_found")),
        (world.get("/api/v1/tasks/task_00000000000000000000000000000099").await, (404, "not_found")),
        (world.get("/api/v1/tasks?colour=red").await, (400, "bad_request")),
        (world.post("/api/v1/tasks", &json!({"repository": "acme/panic", "issue": 1})).await, (500, "internal")),
    ];
    for (seen, (status, code)) in cases {
        assert_eq!(seen.problem(), (status, code.to_owned()));
        assert!(!seen.text.contains("a handler's bug"), "{}", seen.text);
    }
}

#[tokio::test]
async fn a_correlation_id_is_taken_over_when_it_is_one_and_made_when_not() {
    let world = World::start().await;
    let given =
        |value: &'static str| world.ask(Method::GET, "/healthz", vec![("x-correlation-id", value)].leak(), None);
    let id = "corr_0123456789abcdef0123456789abcdef";
    assert_eq!(given(id).await.header("x-correlation-id"), id);
    assert_eq!(given("01234567-89ab-cdef-0123-456789abcdef").await.header("x-correlation-id"), id);
    for odd in ["", "corr_1", "task_0123456789abcdef0123456789abcdef", "a<script>"] {
        let made = given(odd).await.header("x-correlation-id").to_owned();
        assert!(made.starts_with("corr_") && made.len() == 37 && made != id, "{made}");
    }
}

#[tokio::test]
async fn the_trace_of_a_caller_without_a_correlation_id_is_the_thread() {
    let world = World::start().await;
    let parent = ("traceparent", "00-0123456789abcdef0123456789abcdef-00000000000000aa-01");
    let told = async |headers: Vec<(&'static str, &'static str)>| {
        let answer = world.ask(Method::GET, "/healthz", headers.leak(), None).await;
        answer.header("x-correlation-id").to_owned()
    };
    assert_eq!(told(vec![parent]).await, "corr_0123456789abcdef0123456789abcdef");
    let own = "corr_fedcba9876543210fedcba9876543210";
    assert_eq!(told(vec![parent, ("x-correlation-id", own)]).await, own);
    assert_ne!(told(vec![("traceparent", "00-0123-aa-01")]).await, "corr_0123456789abcdef0123456789abcdef");
}

#[tokio::test]
async fn the_page_comes_under_a_strict_policy_and_the_document_is_served_as_committed() {
    let world = World::start().await;
    let page = world.ask(Method::GET, "/tasks", &[("accept", "text/html")], None).await;
    assert!(page.text.contains("<title>Fettle</title>"), "{}", page.text);
    let policy = page.header("content-security-policy");
    assert!(policy.contains("script-src 'self';") && !policy.contains("unsafe"), "{policy}");
    let document = world.ask(Method::GET, "/api/openapi.json", &[], None).await;
    assert_eq!(document.text, fettle_api::openapi_json());
    assert_eq!(document.header("content-type"), "application/json");
}

#[tokio::test]
async fn the_overview_names_the_newest_event_and_a_task_without_a_change_has_neither_patch_nor_proof() {
    let world = World::start().await;
    let id = world.task().await;
    let overview = world.get("/api/v1/overview").await.json();
    assert_eq!((&overview["newest_event"], &overview["jobs"]["runnable"]), (&json!(1), &json!(1)));
    for part in ["patch", "proof"] {
        let seen = world.get(&format!("/api/v1/tasks/{id}/{part}")).await;
        assert_eq!((seen.status.as_u16(), &seen.json()["code"]), (404, &json!("not_found")), "{part}");
    }
}

#[tokio::test]
async fn metrics_tell_requests_errors_and_depth() {
    let world = World::start().await;
    world.task().await;
    world.get("/api/v1/tasks").await;
    world.post("/api/v1/tasks", &json!({"repository": "acme/panic", "issue": 1})).await;
    let text = world.ask(Method::GET, "/metrics", &[], None).await.text;
    for line in [
        r#"http_requests_total{method="GET",route="/api/v1/tasks",status="2xx"} 1"#,
        r#"http_requests_total{method="POST",route="/api/v1/tasks",status="5xx"} 1"#,
        r#"http_request_duration_seconds_count{method="GET",route="/api/v1/tasks",status="2xx"} 1"#,
        "error_rate_percent 50",
        r#"fettle_webhook_deliveries_total{verdict="new"} 0"#,
        "fettle_job_oldest_runnable_seconds",
        "fettle_deliveries_open",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
}

#[tokio::test]
async fn metrics_are_for_this_machine_and_not_for_those_behind_its_proxy() {
    let world = World::start().await;
    let proxied = [("x-forwarded-for", "203.0.113.9")];
    let seen = world.ask(Method::GET, "/metrics", &proxied, None).await;
    assert_eq!(seen.problem(), (401, "unauthenticated".to_owned()));
    let key = format!("Bearer {ADMIN_KEY}");
    let with_key = [proxied[0], ("authorization", &key)];
    assert_eq!(world.ask(Method::GET, "/metrics", &with_key, None).await.status, StatusCode::OK);
}

#[test]
fn every_response_of_the_document_says_what_it_is() {
    let document: serde_json::Value = serde_json::from_str(&fettle_api::openapi_json()).unwrap();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            for (status, response) in operation["responses"].as_object().unwrap() {
                let description = response["description"].as_str().unwrap_or_default();
                assert!(!description.is_empty(), "{method} {path} {status}");
            }
        }
    }
}
