//! Files that k3s and systemd read. What they call YAML is written as JSON, which is YAML too and quotes by itself.

use std::collections::BTreeMap;

use camino::Utf8Path;
use serde_json::{Value, json};

use super::Facts;
use super::layout::{AGENT_TOKEN, CHARTS, ENVIRONMENT, TOKEN};
use crate::answers::{Answers, K3s};
use crate::layout::SECRETS;

pub(super) const ADMISSION: &str = "/etc/rancher/k3s/admission.yaml";
pub(super) const AUDIT: &str = "/etc/rancher/k3s/audit.yaml";
pub(super) const KUBELET: &str = "/etc/rancher/k3s/kubelet.yaml";
/// The namespace whose pods reach devices; no other one may.
pub(super) const PRIVILEGED: &str = "nvidia-device-plugin";
const AUDIT_LOG: &str = "/var/lib/rancher/k3s/server/logs/audit.log";

fn text(value: &Value) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("a value is plain data");
    text.push('\n');
    text
}

fn secret_file(name: &str) -> String {
    Utf8Path::new(SECRETS).join(name).into_string()
}

fn labels(facts: &Facts) -> Vec<&'static str> {
    if facts.nvidia { vec!["nvidia.com/gpu.present=true"] } else { Vec::new() }
}

pub(super) fn server_config(answers: &Answers, facts: &Facts) -> String {
    let k3s = &answers.k3s;
    let names: Vec<&String> = std::iter::once(&k3s.host).filter(|host| !host.is_empty()).chain(&k3s.tls_san).collect();
    text(&json!({
        "cluster-init": true,
        "cluster-cidr": k3s.cluster_cidr,
        "service-cidr": k3s.service_cidr,
        "token-file": secret_file(TOKEN),
        // Else the word of servers would be that of nodes too, and lie on each of them.
        "agent-token-file": secret_file(AGENT_TOKEN),
        "tls-san": names,
        "write-kubeconfig-mode": "0600",
        "secrets-encryption": true,
        "protect-kernel-defaults": true,
        "etcd-snapshot-schedule-cron": "0 */6 * * *",
        "etcd-snapshot-retention": 12,
        "node-label": labels(facts),
        "kubelet-arg": [format!("config={KUBELET}")],
        "kube-apiserver-arg": [
            format!("admission-control-config-file={ADMISSION}"),
            format!("audit-policy-file={AUDIT}"),
            format!("audit-log-path={AUDIT_LOG}"),
            "audit-log-maxage=30",
            "audit-log-maxbackup=10",
            "audit-log-maxsize=100",
        ],
    }))
}

pub(super) fn agent_config(answers: &Answers, facts: &Facts) -> String {
    text(&json!({
        "server": answers.k3s.join,
        "token-file": secret_file(TOKEN),
        "protect-kernel-defaults": true,
        "node-label": labels(facts),
        "kubelet-arg": [format!("config={KUBELET}")],
    }))
}

/// Pod Security: what a namespace does not ask for itself.
pub(super) fn admission() -> String {
    text(&json!({
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "AdmissionConfiguration",
        "plugins": [{
            "name": "PodSecurity",
            "configuration": {
                "apiVersion": "pod-security.admission.config.k8s.io/v1",
                "kind": "PodSecurityConfiguration",
                "defaults": { "enforce": "baseline", "enforce-version": "latest", "warn": "restricted", "warn-version": "latest" },
                "exemptions": { "namespaces": ["kube-system", PRIVILEGED] },
            },
        }],
    }))
}

/// Changes by whom and to what, and no content: Secrets are among it.
pub(super) fn audit() -> String {
    text(&json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            { "level": "None", "verbs": ["get", "list", "watch"] },
            { "level": "None", "resources": [{ "group": "coordination.k8s.io", "resources": ["leases"] }] },
            { "level": "None", "resources": [{ "group": "", "resources": ["events"] }, { "group": "events.k8s.io", "resources": ["events"] }] },
            { "level": "Metadata" },
        ],
    }))
}

pub(super) fn kubelet() -> String {
    text(&json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "shutdownGracePeriod": "60s",
        "shutdownGracePeriodCriticalPods": "20s",
        // Models are large: room runs out in one step.
        "evictionHard": { "memory.available": "1Gi", "nodefs.available": "5%", "imagefs.available": "5%" },
        "imageGCHighThresholdPercent": 95,
        "imageGCLowThresholdPercent": 90,
    }))
}

pub(super) fn registries(registry: &str) -> String {
    text(&json!({ "mirrors": { "*": { "endpoint": [format!("https://{registry}")] } } }))
}

pub(super) fn environment(proxies: &BTreeMap<String, String>, k3s: &K3s) -> String {
    let mut text = "# Written once by fettle-installer; credentials of the proxy are yours to add.\n".to_owned();
    for (name, value) in proxies.iter().filter(|(name, _)| *name != "no_proxy") {
        text.push_str(&format!("{}={value}\n", name.to_ascii_uppercase()));
    }
    let own = ["127.0.0.0/8", "localhost", ".svc", ".cluster.local", &k3s.cluster_cidr, &k3s.service_cidr];
    let asked = proxies.get("no_proxy").map(String::as_str).unwrap_or_default();
    let asked = asked.split(',').map(str::trim).filter(|name| !name.is_empty() && !own.contains(name));
    text.push_str(&format!("NO_PROXY={}\n", own.into_iter().chain(asked).collect::<Vec<_>>().join(",")));
    text
}

/// Pods outlive a restart of k3s: only its own process is ended with it.
pub(super) fn unit(role: &str) -> String {
    format!(
        "[Unit]
Description=k3s {role}, installed by Fettle
Wants=network-online.target
After=network-online.target

[Service]
Type=exec
EnvironmentFile=-{ENVIRONMENT}
ExecStartPre=-/sbin/modprobe br_netfilter
ExecStartPre=-/sbin/modprobe overlay
ExecStart=/usr/local/bin/k3s {role}
KillMode=process
Delegate=yes
OOMScoreAdjust=-999
LimitNOFILE=1048576
LimitNPROC=infinity
LimitCORE=infinity
TasksMax=infinity
Restart=always
RestartSec=5

[Install]
WantedBy=multi-user.target
"
    )
}

pub(super) fn traefik(redirects: bool) -> String {
    let mut values = json!({
        "ports": { "websecure": { "transport": { "respondingTimeouts": { "readTimeout": 0, "idleTimeout": 600 } } } },
    });
    if redirects {
        values["ports"]["web"] = json!({ "redirections": { "entryPoint": { "to": "websecure", "scheme": "https" } } });
    }
    text(&json!({
        "apiVersion": "helm.cattle.io/v1",
        "kind": "HelmChartConfig",
        "metadata": { "name": "traefik", "namespace": "kube-system" },
        "spec": { "valuesContent": values.to_string() },
    }))
}

/// `archive` is a file in the folder that k3s serves.
pub(super) fn helm_chart(name: &str, archive: &str, namespace: &str, values: &Value) -> String {
    debug_assert!(CHARTS.ends_with("/static/charts"), "k3s serves this folder below /static");
    text(&json!({
        "apiVersion": "helm.cattle.io/v1",
        "kind": "HelmChart",
        "metadata": { "name": name, "namespace": "kube-system" },
        "spec": {
            "chart": format!("https://%{{KUBERNETES_API}}%/static/charts/{archive}"),
            "targetNamespace": namespace,
            "createNamespace": true,
            "timeout": "10m",
            // The other policy uninstalls first.
            "failurePolicy": "abort",
            "valuesContent": values.to_string(),
        },
    }))
}
