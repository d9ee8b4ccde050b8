//! Stands in for the kubelet and the disks of one namespace.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::Cluster;

const POLL: Duration = Duration::from_millis(150);

/// How pods end that are to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Success,
    Failure,
}

/// Says of every pod of a namespace that it runs and is ready, or how it has ended, and of every claim that it has its disk. Ends when
/// dropped.
pub struct Kubelet {
    fails: Arc<AtomicBool>,
    _work: JoinSet<()>,
}

impl Kubelet {
    pub fn of(cluster: &'static Cluster, namespace: &str) -> Self {
        let fails = Arc::new(AtomicBool::new(false));
        let (told, within) = (fails.clone(), format!("/api/v1/namespaces/{namespace}"));
        let mut work = JoinSet::new();
        work.spawn(async move {
            loop {
                say(cluster, &within, told.load(Ordering::Relaxed)).await;
                tokio::time::sleep(POLL).await;
            }
        });
        Self { fails, _work: work }
    }

    /// Of pods that begin from now on.
    pub fn set(&self, fate: Fate) {
        self.fails.store(fate == Fate::Failure, Ordering::Relaxed);
    }
}

async fn say(cluster: &Cluster, within: &str, fails: bool) {
    for (plural, status) in [("pods", pod_status as fn(&Value, bool) -> Value), ("persistentvolumeclaims", bound)] {
        let Some(list) = cluster.get(&format!("{within}/{plural}")).await else { continue };
        for object in list.body["items"].as_array().into_iter().flatten() {
            let phase = object["status"]["phase"].as_str().unwrap_or("Pending");
            if let ("Pending", Some(name)) = (phase, object["metadata"]["name"].as_str()) {
                let status = json!({ "status": status(object, fails) });
                // One that has gone meanwhile needs no word.
                let _gone = cluster.patch(&format!("{within}/{plural}/{name}/status"), &status).await;
            }
        }
    }
}

fn pod_status(pod: &Value, fails: bool) -> Value {
    let ends = pod["spec"]["restartPolicy"] == "Never";
    let phase = match (ends, fails) {
        (false, _) => "Running",
        (true, false) => "Succeeded",
        (true, true) => "Failed",
    };
    let ready = if ends { "False" } else { "True" };
    let conditions: Vec<Value> = ["PodScheduled", "Initialized", "ContainersReady", "Ready"]
        .map(|name| json!({ "type": name, "status": ready }))
        .into();
    json!({ "phase": phase, "conditions": conditions })
}

fn bound(_claim: &Value, _fails: bool) -> Value {
    json!({ "phase": "Bound" })
}
