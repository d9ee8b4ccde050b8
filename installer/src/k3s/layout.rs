//! Where a cluster's parts are on a host.

pub const K3S: &str = "/usr/local/bin/k3s";
/// What is ours and of no release.
pub const OURS: &str = "/opt/fettle/k3s";
pub const HELM: &str = "/opt/fettle/k3s/helm";
/// Values of the chart, rendered; no secret is in them.
pub const VALUES: &str = "/opt/fettle/k3s/values.yaml";
pub const UNIT: &str = "k3s.service";
pub const UNIT_FILE: &str = "/etc/systemd/system/k3s.service";
pub const AGENT_UNIT: &str = "k3s-agent.service";
pub const CONFIG_DIR: &str = "/etc/rancher/k3s";
/// Written by k3s for whoever administers the cluster.
pub const KUBECONFIG: &str = "/etc/rancher/k3s/k3s.yaml";
pub const CONFIG: &str = "/etc/rancher/k3s/config.yaml";
pub const REGISTRIES: &str = "/etc/rancher/k3s/registries.yaml";
pub const ENVIRONMENT: &str = "/etc/rancher/k3s/k3s.env";
pub const DATA: &str = "/var/lib/rancher";
pub const IMAGES: &str = "/var/lib/rancher/k3s/agent/images";
pub const MANIFESTS: &str = "/var/lib/rancher/k3s/server/manifests";
/// Served by k3s itself, so that charts need no registry.
pub const CHARTS: &str = "/var/lib/rancher/k3s/server/static/charts";
/// By it servers join, and of it a cluster's own secrets are made; its name among the secrets. Of a node that joins it is the
/// word that it shows.
pub const TOKEN: &str = "k3s-token";
/// By it nodes join that are no servers; its name among the secrets.
pub const AGENT_TOKEN: &str = "k3s-agent-token";
/// The same as k3s writes it: with the hash of the cluster's certificate.
pub const FULL_AGENT_TOKEN: &str = "/var/lib/rancher/k3s/server/agent-token";

/// Paths of other clusters, and of a k3s that is not ours.
pub const FOREIGN: [(&str, &str); 7] = [
    ("/etc/kubernetes/kubelet.conf", "a kubelet"),
    ("/etc/kubernetes/manifests", "a kubelet"),
    ("/var/lib/rancher/rke2", "RKE2"),
    ("/var/snap/microk8s", "MicroK8s"),
    (K3S, "k3s"),
    ("/var/lib/rancher/k3s", "k3s"),
    (CONFIG_DIR, "k3s"),
];
