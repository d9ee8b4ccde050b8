//! Workers' pods and their logs, as people get to see them.

use std::sync::Arc;

use async_trait::async_trait;
use fettle_app::ports::pods::{Pod, PodLog, Pods, PodsError, ShowPods};
use fettle_domain::pod::{HIDDEN_LINE, PodName};
use reqwest::StatusCode;
use serde_json::json;

use crate::world::{SECRET, World};

/// One pod that works, one that is not there yet, one that is nobody's, and a cluster that lets nobody see the rest.
struct Few;

#[async_trait]
impl ShowPods for Few {
    async fn list(&self) -> Result<Pods, PodsError> {
        let pod = Pod {
            name: "fettle-worker-x".to_owned(),
            phase: "Running".to_owned(),
            ready: true,
            restarts: 2,
            node: Some("spark".to_owned()),
            created_at: "2026-11-30T12:00:00Z".parse().unwrap(),
            why: Some("before: OOMKilled, status 137".to_owned()),
        };
        Ok(Pods { items: vec![pod], cut: false })
    }

    async fn log(&self, pod: &PodName, lines: u16) -> Result<PodLog, PodsError> {
        match pod.as_str() {
            "fettle-worker-x" => {
                let text = format!("the last {lines}\nthe webhook's secret is {SECRET}\n\u{1b}[2Jdone");
                Ok(PodLog { text, cut: true })
            }
            "fettle-worker-new" => {
                Err(PodsError::NotYet(pod.clone(), "it is waiting to start: ContainerCreating".into()))
            }
            "fettle-dashboard-x" => Err(PodsError::NotFound(pod.clone())),
            _ => Err(PodsError::Refused("pods is forbidden".into())),
        }
    }
}

#[tokio::test]
async fn pods_are_listed_and_the_end_of_a_log_is_told_without_secrets() {
    let world = World::among(Arc::new(Few)).await;
    let seen = world.get("/api/v1/pods").await;
    let pod = json!({
        "name": "fettle-worker-x", "phase": "Running", "ready": true, "restarts": 2, "node": "spark",
        "created_at": "2026-11-30T12:00:00Z", "why": "before: OOMKilled, status 137",
    });
    assert_eq!(seen.json(), json!({ "items": [pod], "cut": false }));
    let seen = world.get("/api/v1/pods/fettle-worker-x/log").await;
    let text = format!("the last 200\n{HIDDEN_LINE}\n[2Jdone");
    assert_eq!(seen.json(), json!({ "text": text, "cut": true, "hidden_lines": 1 }));
    let seen = world.get("/api/v1/pods/fettle-worker-x/log?lines=7").await;
    assert!(seen.json()["text"].as_str().unwrap().starts_with("the last 7\n"), "{}", seen.text);
}

#[tokio::test]
async fn whatever_is_no_worker_s_pod_is_refused_with_a_sentence() {
    let world = World::among(Arc::new(Few)).await;
    for (path, status, sentence) in [
        ("fettle-dashboard-x/log", StatusCode::NOT_FOUND, "No worker has the pod fettle-dashboard-x."),
        ("..%2F..%2Fsecrets/log", StatusCode::NOT_FOUND, "No pod can have this name."),
        ("Fettle/log", StatusCode::NOT_FOUND, "No pod can have this name."),
        ("fettle-worker-new/log", StatusCode::CONFLICT, "fettle-worker-new has no log yet: it is waiting to start"),
        ("forbidden/log", StatusCode::SERVICE_UNAVAILABLE, "The cluster does not let this dashboard see pods."),
        ("fettle-worker-x/log?lines=0", StatusCode::UNPROCESSABLE_ENTITY, "a number from 1 to 2000"),
        ("fettle-worker-x/log?lines=2001", StatusCode::UNPROCESSABLE_ENTITY, "a number from 1 to 2000"),
        ("fettle-worker-x/log?lines=all", StatusCode::BAD_REQUEST, "lines"),
    ] {
        let seen = world.get(&format!("/api/v1/pods/{path}")).await;
        let detail = seen.json()["detail"].as_str().unwrap().to_owned();
        assert!(seen.status == status && detail.contains(sentence), "{path}: {} {detail}", seen.status);
    }
}

#[tokio::test]
async fn outside_of_a_cluster_there_are_no_pods_and_a_sentence_says_so() {
    let world = World::start().await;
    for path in ["pods", "pods/fettle-worker-x/log"] {
        let seen = world.get(&format!("/api/v1/{path}")).await;
        assert_eq!((seen.status, seen.json()["code"].clone()), (StatusCode::NOT_FOUND, json!("not_found")), "{path}");
        assert!(seen.json()["detail"].as_str().unwrap().contains("outside of a cluster"), "{}", seen.text);
    }
}
