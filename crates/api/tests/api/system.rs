use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::world::{World, start};

#[tokio::test]
async fn what_runs_by_the_clock_is_listed_with_its_last_run_and_counted() {
    let world = World::start().await;
    assert_eq!(world.get("/api/v1/system/reconcilers").await.json(), json!({ "items": [] }));
    let sweep = world.reconcilers.register("sweep", Duration::from_millis(500));
    let poll = world.reconcilers.register("poll", Duration::from_secs(60));
    let _never_ran = world.reconcilers.register("redelivery", Duration::from_secs(300));
    let run = async |result: Result<(), &'static str>| result;
    sweep.run(run(Ok(()))).await.unwrap();
    poll.run(run(Ok(()))).await.unwrap();
    for _ in 0..2 {
        poll.run(run(Err("the forge could not be reached"))).await.unwrap_err();
    }
    let list = world.get("/api/v1/system/reconcilers").await.json();
    let took = |nth: usize| list["items"][nth]["last_duration_ms"].as_u64().unwrap();
    let started = start().to_string();
    let expected = json!({ "items": [
        { "name": "sweep", "period_s": 0.5, "last_started_at": started, "last_duration_ms": took(0), "last_outcome": "ok",
          "last_failure": null, "failures_in_a_row": 0 },
        { "name": "poll", "period_s": 60.0, "last_started_at": started, "last_duration_ms": took(1), "last_outcome": "failed",
          "last_failure": "the forge could not be reached", "failures_in_a_row": 2 },
        { "name": "redelivery", "period_s": 300.0, "last_started_at": null, "last_duration_ms": null, "last_outcome": null,
          "last_failure": null, "failures_in_a_row": 0 },
    ] });
    assert_eq!(list, expected);

    // Read twice: the counts are the runs and not the readings.
    for _ in 0..2 {
        let metrics = world.ask(Method::GET, "/metrics", &[], None).await.text;
        for line in [
            "fettle_reconciler_runs_total{name=\"poll\",outcome=\"failed\"} 2",
            "fettle_reconciler_runs_total{name=\"poll\",outcome=\"ok\"} 1",
            "fettle_reconciler_runs_total{name=\"redelivery\",outcome=\"ok\"} 0",
            &format!("fettle_reconciler_last_success_seconds{{name=\"sweep\"}} {}", start().as_second()),
        ] {
            assert!(metrics.contains(line), "{line} is missing in\n{metrics}");
        }
    }
}

#[tokio::test]
async fn only_the_admin_sees_what_runs() {
    let world = World::start().await;
    let seen = world.ask(Method::GET, "/api/v1/system/reconcilers", &[], None).await;
    assert_eq!(seen.status, StatusCode::UNAUTHORIZED);
    assert!(seen.json().get("items").is_none_or(Value::is_null));
}
