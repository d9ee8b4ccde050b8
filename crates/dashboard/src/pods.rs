//! Whose pods people may see, and where the cluster is that tells of them.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use camino::Utf8PathBuf;
use fettle_app::ports::pods::ShowPods;
use fettle_kubernetes::{Cluster, Options};
use fettle_runtime::config::Config;
use fettle_runtime::environment::Environment;
use tracing::info;

/// Where Kubernetes mounts a pod's account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Another folder, for tests.
const TEST_ACCOUNT: &str = "FETTLE_TEST_ACCOUNT";

/// `None`: the configuration names no pods, or this runs outside of a cluster.
pub fn pods(config: &Config, environment: &Environment) -> Result<Option<Arc<dyn ShowPods>>> {
    let Some(selector) = config.server.worker_pods.clone() else { return Ok(None) };
    let variables = ["KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"].map(|name| environment.find(name));
    let [Some(host), Some(port)] = variables else {
        info!("server.worker_pods is set, and this runs in no cluster: there are no pods to see");
        return Ok(None);
    };
    let account = Utf8PathBuf::from(environment.find(TEST_ACCOUNT).unwrap_or(ACCOUNT));
    let options = Options { host: host.to_owned(), port: port.to_owned(), account, selector };
    let cluster = Cluster::new(options).context(
        "server.worker_pods is set, and the cluster cannot be asked; dashboard.workerView.enabled of the chart sees to both",
    )?;
    Ok(Some(Arc::new(cluster)))
}
