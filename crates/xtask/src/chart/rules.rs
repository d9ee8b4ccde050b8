//! Rules on the objects of one rendering, beyond what a schema can say: the walls of every pod, who gets which secret, and that what
//! is named is there. Reads values, runs nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// Kinds of the cluster, of which the chart makes none.
const OF_THE_CLUSTER: &[&str] =
    &["ClusterRole", "ClusterRoleBinding", "ClusterIssuer", "Namespace", "CustomResourceDefinition", "RuntimeClass"];
/// What the release's objects are called by: the release's name with a dash.
const OWN: &str = "fettle-";
/// Volumes that Pod Security `restricted` allows.
const VOLUMES: &[&str] =
    &["configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"];
/// All that the API may be asked for.
const SEEING_PODS: [(&str, &str); 2] = [("list", "pods"), ("get", "pods/log")];
/// Labels must stay valid, and Jobs append to names.
const NAME_LIMIT: usize = 52;
/// Keys of fettle.toml whose files no worker gets: it runs what strangers wrote.
const NOT_FOR_WORKERS: &[&str] = &[
    "/auth/admin_key_file",
    "/auth/scale_key_file",
    "/auth/secrets_key_file",
    "/auth/oidc/client_secret_file",
    "/forge/app_key_file",
    "/forge/write_token_file",
    "/forge/webhook_secret_file",
    "/forge/webhook_secret_previous_file",
    "/store/password_file",
    "/transport/password_file",
];
/// Of fettle.toml.
const SECTIONS: &[&str] = &["server", "store", "transport", "forge", "agent", "gateway", "auth", "telemetry"];
const FOR_WORKERS: &[&str] = &["/auth/worker_key_file", "/forge/read_token_file", "/transport/worker_password_file"];

/// What the gateway gets beyond: it knows Runs by their tokens, and other callers by their keys.
const FOR_GATEWAY: &[&str] = &["/gateway/run_token_key_file", "/gateway/keys_file"];

/// The founding system's figures, which others have built upon: kind, where, and what stands there.
const FOUNDING: &[(&str, &str, &str)] = &[
    ("ScaledObject", "/spec/pollingInterval", "10"),
    ("ScaledObject", "/spec/cooldownPeriod", "30"),
    ("ScaledObject", "/spec/minReplicaCount", "0"),
    ("ScaledObject", "/spec/maxReplicaCount", "10"),
    ("ScaledObject", "/spec/triggers/0/metadata/queueName", "\"agent-tasks\""),
    ("ScaledObject", "/spec/triggers/0/metadata/value", "\"1\""),
    ("Deployment", "/spec/template/spec/terminationGracePeriodSeconds", "1800"),
];

/// Which of the founding figures the objects called `name` do not have.
pub(super) fn not_founding(objects: &[Value], name: &str) -> Vec<String> {
    let find = |kind: &str| {
        objects.iter().find(|object| text(object, "/kind") == kind && text(object, "/metadata/name") == name)
    };
    let holds = |(kind, pointer, wanted): &&(&str, &str, &str)| {
        let found = find(kind).and_then(|object| object.pointer(pointer));
        serde_json::from_str::<Value>(wanted).is_ok_and(|wanted| found == Some(&wanted))
    };
    let missing = FOUNDING.iter().filter(|figure| !holds(figure));
    missing.map(|(kind, pointer, wanted)| format!("{kind} {name} has not {wanted} at {pointer}")).collect()
}

/// Sentences, one for each breach.
pub(super) fn breaches(objects: &[Value]) -> Vec<String> {
    let mut found = names(objects);
    for object in objects {
        for pod in pods(object) {
            let called = called(object);
            found.extend(walls(pod).into_iter().map(|breach| format!("{called}: {breach}")));
        }
    }
    found.extend(accounts(objects));
    found.extend(references(objects));
    found.extend(selectors(objects));
    found.extend(secrets(objects));
    found
}

/// `Deployment fettle-dashboard`.
pub(super) fn called(object: &Value) -> String {
    format!("{} {}", text(object, "/kind"), text(object, "/metadata/name"))
}

/// Every image of every pod.
pub(super) fn images(objects: &[Value]) -> BTreeSet<String> {
    let pods = objects.iter().flat_map(pods);
    pods.flat_map(containers).map(|container| text(container, "/image").to_owned()).collect()
}

/// The text of fettle.toml in it.
pub(super) fn configuration(object: &Value) -> Option<&str> {
    object.pointer("/data/fettle.toml")?.as_str()
}

/// What one of our programs is started with in a pod.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Call {
    pub(super) program: String,
    /// `admin audit`, of `fettle`.
    pub(super) verbs: Vec<String>,
    /// `--config`, without what it is set to.
    pub(super) flags: Vec<String>,
}

/// How our programs are started, those of `programs` by the names of their images. Others' are theirs to know.
pub(super) fn calls(objects: &[Value], programs: &[&str]) -> BTreeSet<Call> {
    let ours = |container: &Value| {
        let image = text(container, "/image").rsplit('/').next().unwrap_or_default();
        let program = image.split([':', '@']).next().unwrap_or_default();
        let command = list(container, "/command").filter_map(Value::as_str).next();
        let is_its_own = command.is_none_or(|command| command == program);
        let arguments = || list(container, "/args").filter_map(Value::as_str);
        (programs.contains(&program) && is_its_own).then(|| Call {
            program: program.to_owned(),
            verbs: arguments().filter(|one| !one.starts_with('-') && !one.contains('/')).map(str::to_owned).collect(),
            flags: arguments()
                .filter(|one| one.starts_with('-'))
                .map(|one| one.split('=').next().unwrap_or(one).to_owned())
                .collect(),
        })
    };
    objects.iter().flat_map(pods).flat_map(containers).filter_map(ours).collect()
}

/// Our metrics that `asked` speaks of and `told`, the programs' text, has nowhere.
pub(super) fn unknown_metrics(asked: &str, told: &str) -> Vec<String> {
    let words: BTreeSet<&str> = asked.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    let ours =
        |word: &&str| word.starts_with("fettle_") || word.starts_with("http_request") || *word == "error_rate_percent";
    let has = |word: &str| {
        let series = ["", "_bucket", "_sum", "_count"];
        series.iter().filter_map(|end| word.strip_suffix(end)).any(|name| told.contains(&format!("\"{name}\"")))
    };
    words.into_iter().filter(ours).filter(|word| !has(word)).map(str::to_owned).collect()
}

/// Alerts of `rules` of which `tests` has not both: a case in which it fires, and one in which it does not.
pub(super) fn untested_alerts(rules: &str, tests: &str) -> Vec<String> {
    let cases: Vec<&str> = tests.split("alertname: ").skip(1).collect();
    let is_tested = |alert: &&str| {
        let of = |case: &&&str| case.lines().next() == Some(alert);
        let silent = |case: &&str| case.contains("exp_alerts: []");
        let (quiet, loud): (Vec<&str>, Vec<&str>) = cases.iter().filter(of).partition(|case| silent(case));
        !quiet.is_empty() && loud.iter().any(|case| case.contains("exp_labels:"))
    };
    let alerts = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    alerts.filter(|alert| !is_tested(alert)).map(str::to_owned).collect()
}

/// Keys of fettle.toml that the README's table documents and values cannot set.
pub(super) fn unsettable_keys(readme: &str, schema: &Value) -> Vec<String> {
    let cells = readme.lines().filter_map(|line| line.strip_prefix("| `")?.split(" |").next());
    let keys = cells.flat_map(|cell| cell.split('`')).filter(|word| {
        let (section, rest) = word.split_once('.').unwrap_or_default();
        SECTIONS.contains(&section) && rest.bytes().all(|b| b.is_ascii_lowercase() || b"_.[]".contains(&b))
    });
    let can_be_set = |key: &&str| {
        let mut at = schema.pointer("/properties/config");
        for part in key.split('.') {
            let properties =
                at.map(|schema| schema.get("items").unwrap_or(schema)).and_then(|one| one.get("properties"));
            at = properties.and_then(|properties| properties.get(part.trim_end_matches("[]")));
        }
        at.is_some()
    };
    let ours = |key: &&str| *key == "store.data_dir";
    keys.filter(|key| !ours(key) && !can_be_set(key)).map(str::to_owned).collect()
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(object: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    object.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

fn names(objects: &[Value]) -> Vec<String> {
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    for object in objects {
        let (called, name) = (called(object), text(object, "/metadata/name"));
        if OF_THE_CLUSTER.contains(&text(object, "/kind")) {
            found.push(format!("{called} is an object of the whole cluster"));
        }
        if name.len() > NAME_LIMIT {
            found.push(format!("{called} has a name of more than {NAME_LIMIT} characters"));
        }
        if !seen.insert(called.clone()) {
            found.push(format!("{called} is there twice"));
        }
    }
    found
}

/// Where a kind keeps the description of its pods; a pod is its own.
fn pod_template(object: &Value) -> Option<&Value> {
    let pointer = match text(object, "/kind") {
        "Deployment" | "DaemonSet" | "StatefulSet" | "Job" => "/spec/template",
        "CronJob" => "/spec/jobTemplate/spec/template",
        "ScaledJob" => "/spec/jobTargetRef/template",
        "Pod" => "",
        _ => return None,
    };
    object.pointer(pointer)
}

fn pods(object: &Value) -> impl Iterator<Item = &Value> {
    pod_template(object).and_then(|template| template.pointer("/spec")).into_iter()
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    list(pod, "/initContainers").chain(list(pod, "/containers"))
}

/// Pod Security `restricted`, and what we ask for beyond it.
fn walls(pod: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let mut want = |holds: bool, sentence: String| {
        if !holds {
            found.push(sentence);
        }
    };
    let is = |pointer: &str, wanted: Value| pod.pointer(pointer) == Some(&wanted);
    want(is("/automountServiceAccountToken", false.into()), "the pod holds a token of the API".to_owned());
    want(is("/enableServiceLinks", false.into()), "Kubernetes adds variables of every Service".to_owned());
    want(is("/securityContext/runAsNonRoot", true.into()), "the pod may run as root".to_owned());
    let user = pod.pointer("/securityContext/runAsUser").and_then(Value::as_u64);
    want(user.is_some_and(|user| user > 0), "the pod's user is not a number above 0".to_owned());
    let seccomp = text(pod, "/securityContext/seccompProfile/type");
    want(["RuntimeDefault", "Localhost"].contains(&seccomp), format!("the seccomp profile is `{seccomp}`"));
    for shared in ["hostNetwork", "hostPID", "hostIPC"] {
        want(pod.get(shared).is_none_or(|value| value == false), format!("{shared} is set"));
    }
    for volume in list(pod, "/volumes") {
        let kinds = volume.as_object().into_iter().flat_map(|volume| volume.keys()).filter(|key| *key != "name");
        for kind in kinds.filter(|kind| !VOLUMES.contains(&kind.as_str())) {
            want(false, format!("the volume {} is a {kind}", text(volume, "/name")));
        }
        let endless = volume.pointer("/emptyDir").is_some_and(|folder| folder.get("sizeLimit").is_none());
        want(!endless, format!("the folder {} has no limit", text(volume, "/name")));
    }
    for container in containers(pod) {
        let name = text(container, "/name");
        let is = |pointer: &str, wanted: Value| container.pointer(pointer) == Some(&wanted);
        let walls = "/securityContext";
        want(is(&format!("{walls}/allowPrivilegeEscalation"), false.into()), format!("{name} may gain privileges"));
        want(is(&format!("{walls}/readOnlyRootFilesystem"), true.into()), format!("{name} may write to its image"));
        want(is(&format!("{walls}/capabilities/drop"), vec!["ALL"].into()), format!("{name} keeps capabilities"));
        want(container.pointer(&format!("{walls}/capabilities/add")).is_none(), format!("{name} adds capabilities"));
        want(container.pointer(&format!("{walls}/privileged")).is_none(), format!("{name} speaks of privileged"));
        want(container.pointer("/resources/limits/memory").is_some(), format!("{name} has no limit of memory"));
        want(container.pointer("/resources/requests").is_some(), format!("{name} asks for no resources"));
        let image = text(container, "/image");
        let tag = image.rsplit('/').next().unwrap_or_default();
        want(tag.contains(':') && !tag.ends_with(":latest"), format!("{name} has the image `{image}`"));
        let ports = list(container, "/ports").any(|port| port.get("hostPort").is_some());
        want(!ports, format!("{name} takes a port of the node"));
    }
    found
}

/// Who may ask the cluster's API, and what: the dashboard alone, and there only workers' pods and their logs.
fn accounts(objects: &[Value]) -> Vec<String> {
    let mut found = Vec::new();
    for object in objects {
        let (called, name) = (called(object), text(object, "/metadata/name"));
        let has_token = pods(object).any(|pod| {
            let sources = list(pod, "/volumes").flat_map(|volume| list(volume, "/projected/sources"));
            sources.into_iter().any(|source| source.get("serviceAccountToken").is_some())
        });
        if has_token && !name.ends_with("-dashboard") {
            found.push(format!("{called}: the pod holds a token of the API"));
        }
        if text(object, "/kind") == "Role" {
            let may: BTreeSet<String> = list(object, "/rules").map(Value::to_string).collect();
            let wanted = SEEING_PODS.map(|(verb, resource)| {
                serde_json::json!({ "apiGroups": [""], "resources": [resource], "verbs": [verb] }).to_string()
            });
            if may != BTreeSet::from(wanted) {
                found.push(format!("{called} allows {may:?}"));
            }
        }
    }
    found
}

/// What is named as the release's own is made by it, and as the kind that it is named as.
fn references(objects: &[Value]) -> Vec<String> {
    let made: BTreeSet<(&str, &str)> =
        objects.iter().map(|object| (text(object, "/kind"), text(object, "/metadata/name"))).collect();
    let mut found = Vec::new();
    for object in objects {
        let mut named = BTreeSet::new();
        collect(object, "", &mut named);
        for (kind, name) in named {
            if name.starts_with(OWN) && !made.contains(&(kind, name)) {
                found.push(format!("{}: there is no {kind} {name}", called(object)));
            }
        }
    }
    found
}

/// Names of other objects below `value`, which stands at the key `at`.
fn collect<'a>(value: &'a Value, at: &str, named: &mut BTreeSet<(&'static str, &'a str)>) {
    match value {
        Value::Object(map) => {
            let direct = [("secretName", "Secret"), ("claimName", "PersistentVolumeClaim"), ("serviceName", "Service")];
            let within = [
                ("configMap", "ConfigMap"),
                ("secret", "Secret"),
                ("secretKeyRef", "Secret"),
                ("secretTargetRef", "Secret"),
                ("credentials", "Secret"),
                ("authenticationRef", "TriggerAuthentication"),
                ("service", "Service"),
                ("backendRefs", "Service"),
                ("scaleTargetRef", "Deployment"),
            ];
            let name = map.get("name").and_then(Value::as_str);
            for (_, kind) in within.into_iter().filter(|(key, _)| *key == at) {
                named.extend(name.map(|name| (kind, name)));
            }
            for (key, inner) in map {
                // Certificates are made by cert-manager, into a Secret that no manifest holds.
                let is_tls = at == "tls" || (at == "spec" && map.contains_key("issuerRef"));
                for (_, kind) in direct.into_iter().filter(|(direct, _)| direct == key && !is_tls) {
                    named.extend(inner.as_str().map(|name| (kind, name)));
                }
                collect(inner, key, named);
            }
        }
        Value::Array(entries) => entries.iter().for_each(|entry| collect(entry, at, named)),
        _ => {}
    }
}

/// Whoever selects pods or Services of the release selects some.
fn selectors(objects: &[Value]) -> Vec<String> {
    let labels = |object: &Value| object.pointer("/metadata/labels").cloned();
    let pods: Vec<Value> = objects.iter().filter_map(pod_template).filter_map(labels).collect();
    let services: Vec<Value> =
        objects.iter().filter(|object| text(object, "/kind") == "Service").filter_map(labels).collect();
    let mut found = Vec::new();
    for object in objects {
        let (pointer, among) = match text(object, "/kind") {
            "Service" => ("/spec/selector", &pods),
            "NetworkPolicy" => ("/spec/podSelector/matchLabels", &pods),
            "Deployment" | "DaemonSet" | "StatefulSet" | "PodDisruptionBudget" | "PodMonitor" => {
                ("/spec/selector/matchLabels", &pods)
            }
            "ServiceMonitor" => ("/spec/selector/matchLabels", &services),
            _ => continue,
        };
        let Some(Value::Object(wanted)) = object.pointer(pointer) else {
            found.push(format!("{} selects nothing by labels", called(object)));
            continue;
        };
        let fits = |labels: &&Value| wanted.iter().all(|(key, value)| labels.get(key) == Some(value));
        if !among.iter().any(|labels| fits(&labels)) {
            found.push(format!("{} selects what nobody makes", called(object)));
        }
    }
    found
}

/// Dashboards get every secret that fettle.toml names, workers theirs and no other.
fn secrets(objects: &[Value]) -> Vec<String> {
    let Some(config) = objects.iter().find_map(configuration).and_then(|text| toml::from_str::<Value>(text).ok())
    else {
        return vec!["there is no fettle.toml that is TOML".to_owned()];
    };
    let file = |pointer: &&str| config.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let models = list(&config, "/gateway/models").filter_map(|model| model.get("api_key_file")?.as_str());
    let mut workers: BTreeSet<String> = FOR_WORKERS.iter().filter_map(file).collect();
    workers.extend(models.map(str::to_owned));
    let others: BTreeSet<String> = NOT_FOR_WORKERS.iter().filter_map(file).collect();
    let mut found = Vec::new();
    let mut mounted = BTreeMap::new();
    for object in objects {
        for pod in pods(object) {
            for container in list(pod, "/containers") {
                mounted.insert(text(container, "/name"), secret_files(pod));
            }
        }
    }
    if let Some(files) = mounted.get("dashboard") {
        let missing = workers.union(&others).filter(|name| !files.contains(*name));
        found.extend(missing.map(|name| format!("the dashboard has no secret {name}, which fettle.toml names")));
    } else {
        found.push("there is no dashboard".to_owned());
    }
    let gateway: BTreeSet<String> = workers.iter().cloned().chain(FOR_GATEWAY.iter().filter_map(file)).collect();
    for (who, theirs) in [("worker", &workers), ("inference", &gateway)] {
        let Some(files) = mounted.get(who) else { continue };
        found
            .extend(files.difference(theirs).map(|name| format!("the {who} has the secret {name}, which it must not")));
        if who == "worker" {
            found.extend(workers.difference(files).map(|name| format!("the worker has no secret {name}")));
        }
    }
    found
}

/// The files of all Secrets that are mounted into a pod. One that is mounted whole has a file that nobody may have.
fn secret_files(pod: &Value) -> BTreeSet<String> {
    let volumes: Vec<&Value> = list(pod, "/volumes").collect();
    let projected = volumes.iter().flat_map(|volume| list(volume, "/projected/sources"));
    let sources = projected.chain(volumes.iter().copied()).filter_map(|source| source.get("secret"));
    sources
        .flat_map(|secret| match secret.get("items").and_then(Value::as_array) {
            Some(items) => items.iter().map(|item| text(item, "/path").to_owned()).collect(),
            None => vec!["(a whole Secret)".to_owned()],
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const CONFIG: &str = "[auth]\nadmin_key_file = 'admin'\nworker_key_file = 'key'\n[forge]\napp_key_file = 'app'\n";

    fn pod(name: &str, files: &[&str]) -> Value {
        let items: Vec<Value> = files.iter().map(|file| json!({"key": file, "path": file})).collect();
        json!({
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": name,
                "image": "registry.example.org:5000/fettle:1",
                "resources": {"requests": {"cpu": "1"}, "limits": {"memory": "1Gi"}},
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"]},
                },
            }],
            "volumes": [{"name": "secrets", "projected": {"sources": [{"secret": {"name": "x", "items": items}}]}}],
        })
    }

    fn deployment(name: &str, files: &[&str]) -> Value {
        let labels = json!({"component": name});
        json!({
            "kind": "Deployment",
            "metadata": {"name": format!("fettle-{name}")},
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod(name, files)},
            },
        })
    }

    fn release() -> Vec<Value> {
        vec![
            json!({"kind": "ConfigMap", "metadata": {"name": "fettle-config"}, "data": {"fettle.toml": CONFIG}}),
            deployment("dashboard", &["admin", "key", "app"]),
            deployment("worker", &["key"]),
        ]
    }

    fn broken(change: impl FnOnce(&mut Vec<Value>)) -> String {
        let mut release = release();
        change(&mut release);
        breaches(&release).join("; ")
    }

    #[test]
    fn a_release_as_it_should_be_breaks_no_rule() {
        assert_eq!(breaches(&release()), Vec::<String>::new());
    }

    #[test]
    fn the_api_is_the_dashboard_s_to_ask_and_for_pods_alone() {
        let token = json!({"name": "cluster", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}});
        let with_token = |nth: usize| {
            let token = token.clone();
            broken(move |release| {
                release[nth]["spec"]["template"]["spec"]["volumes"].as_array_mut().unwrap().push(token);
            })
        };
        assert_eq!(with_token(1), "");
        assert!(with_token(2).contains("fettle-worker: the pod holds a token"), "{}", with_token(2));
        let role = |verb: &str| {
            let rules = json!([
                {"apiGroups": [""], "resources": ["pods"], "verbs": [verb]},
                {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
            ]);
            broken(|release| {
                release.push(json!({"kind": "Role", "metadata": {"name": "fettle-dashboard"}, "rules": rules}));
            })
        };
        assert_eq!(role("list"), "");
        assert!(role("delete").contains("Role fettle-dashboard allows"), "{}", role("delete"));
    }

    #[test]
    fn each_wall_that_is_missing_is_named() {
        let cases: [(&str, Value, &str); 9] = [
            ("/spec/template/spec/automountServiceAccountToken", true.into(), "a token of the API"),
            ("/spec/template/spec/securityContext/runAsNonRoot", false.into(), "may run as root"),
            ("/spec/template/spec/securityContext/runAsUser", 0.into(), "a number above 0"),
            ("/spec/template/spec/securityContext/seccompProfile/type", "Unconfined".into(), "`Unconfined`"),
            ("/spec/template/spec/containers/0/securityContext/readOnlyRootFilesystem", false.into(), "may write"),
            ("/spec/template/spec/containers/0/securityContext/capabilities/drop", json!([]), "keeps capabilities"),
            ("/spec/template/spec/containers/0/resources/limits", json!({}), "no limit of memory"),
            ("/spec/template/spec/containers/0/image", "a/fettle:latest".into(), "`a/fettle:latest`"),
            ("/spec/template/spec/volumes/0", json!({"name": "v", "hostPath": {}}), "is a hostPath"),
        ];
        for (pointer, value, told) in cases {
            let found = broken(|release| *release[1].pointer_mut(pointer).unwrap() = value);
            assert!(found.contains(told), "{pointer}: {found}");
        }
    }

    #[test]
    fn the_gateway_gets_what_it_knows_callers_by_and_a_worker_does_not() {
        let config = format!("{CONFIG}[gateway]\nrun_token_key_file = 'runs'\n");
        let with = |inference: &[&str], worker: &[&str]| {
            let inference = deployment("inference", inference);
            broken(|release| {
                release[0]["data"]["fettle.toml"] = config.as_str().into();
                release[2] = deployment("worker", worker);
                release.push(inference);
            })
        };
        assert_eq!(with(&["key", "runs"], &["key"]), "");
        assert!(with(&["key", "runs", "app"], &["key"]).contains("the inference has the secret app"));
        assert!(with(&["key", "runs"], &["key", "runs"]).contains("the worker has the secret runs"));
    }

    #[test]
    fn a_worker_gets_its_own_secrets_and_no_other() {
        let found = broken(|release| release[2] = deployment("worker", &["key", "app"]));
        assert!(found.contains("the worker has the secret app, which it must not"), "{found}");
        let found = broken(|release| release[2] = deployment("worker", &[]));
        assert!(found.contains("the worker has no secret key"), "{found}");
        let found = broken(|release| release[1] = deployment("dashboard", &["admin", "key"]));
        assert!(found.contains("the dashboard has no secret app"), "{found}");
        let whole = json!([{"name": "secrets", "secret": {"secretName": "x"}}]);
        let found = broken(|release| release[2]["spec"]["template"]["spec"]["volumes"] = whole);
        assert!(found.contains("(a whole Secret)"), "{found}");
    }

    #[test]
    fn what_is_named_as_our_own_has_to_be_there() {
        let claim = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "fettle-data"}}]);
        let found = broken(|release| release[0]["spec"] = json!({"volumes": claim}));
        assert!(found.contains("there is no PersistentVolumeClaim fettle-data"), "{found}");
        let service = json!({"kind": "Service", "metadata": {"name": "s"}, "spec": {"selector": {"component": "x"}}});
        let found = broken(|release| release.push(service));
        assert!(found.contains("Service s selects what nobody makes"), "{found}");
        let found = broken(|release| release.push(release[1].clone()));
        assert!(found.contains("Deployment fettle-dashboard is there twice"), "{found}");
        let found = broken(|release| release[0]["kind"] = "ClusterRole".into());
        assert!(found.contains("of the whole cluster"), "{found}");
    }

    #[test]
    fn how_our_programs_are_started_is_read_from_pods() {
        let mut pod = json!({"kind": "Pod", "spec": pod("smoke", &[])});
        pod["spec"]["containers"][0]["command"] = json!(["fettle"]);
        pod["spec"]["containers"][0]["args"] = json!(["check-snapshot", "--json", "--url=http://a", "/backups/a.db"]);
        let call = Call {
            program: "fettle".to_owned(),
            verbs: vec!["check-snapshot".to_owned()],
            flags: vec!["--json".to_owned(), "--url".to_owned()],
        };
        assert_eq!(calls(&[pod.clone()], &["fettle"]), BTreeSet::from([call]));
        pod["spec"]["containers"][0]["command"] = json!(["bash", "-c", "true"]);
        assert_eq!(calls(&[pod], &["fettle"]), BTreeSet::new());
    }

    #[test]
    fn the_founding_figures_are_looked_for() {
        let trigger = json!({"metadata": {"queueName": "agent-tasks", "value": "1"}});
        let spec = json!({"pollingInterval": 10, "cooldownPeriod": 30, "minReplicaCount": 0, "maxReplicaCount": 10, "triggers": [trigger]});
        let mut worker = deployment("worker", &[]);
        worker["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 1800.into();
        let scaled = json!({"kind": "ScaledObject", "metadata": {"name": "fettle-worker"}, "spec": spec});
        let mut objects = vec![worker, scaled];
        assert_eq!(not_founding(&objects, "fettle-worker"), Vec::<String>::new());
        objects[1]["spec"]["maxReplicaCount"] = 20.into();
        let found = not_founding(&objects, "fettle-worker");
        assert_eq!(found, ["ScaledObject fettle-worker has not 10 at /spec/maxReplicaCount"]);
    }

    #[test]
    fn a_documented_key_that_values_refuse_is_found() {
        let model = json!({"items": {"properties": {"name": {}}}});
        let forge = json!({"properties": {"label": {}}});
        let server = json!({"properties": {"listen": {}}});
        let gateway = json!({"properties": {"models": model}});
        let config = json!({"properties": {"forge": forge, "gateway": gateway, "server": server}});
        let schema = json!({"properties": {"config": config}});
        let readme = "| `forge.label`, `forge.labels` | said of `forge.other` |\n| `gateway.models[].name` | x |\n\
                      | `gateway.models[].size` | x |\n| `server.listen` | x |\n| `share.it` | x |\n";
        assert_eq!(unsettable_keys(readme, &schema), ["forge.labels", "gateway.models[].size"]);
    }

    #[test]
    fn an_alert_is_tested_when_it_is_seen_to_fire_and_to_be_silent() {
        let rules = "  - alert: One\n  - alert: Two\n  - alert: Three\n";
        let fires = |alert: &str| format!("alertname: {alert}\n exp_alerts:\n  - exp_labels: {{}}\n");
        let silent = |alert: &str| format!("alertname: {alert}\n exp_alerts: []\n");
        let tests = [fires("One"), silent("One"), fires("Two"), silent("Three")].concat();
        assert_eq!(untested_alerts(rules, &tests), ["Two", "Three"]);
    }

    #[test]
    fn a_metric_that_no_program_has_is_found() {
        let told =
            "IntGauge::new(\"fettle_jobs\", \"…\"); HistogramOpts::new(\"http_request_duration_seconds\", \"…\")";
        let asked = "max(fettle_jobs) / rate(http_request_duration_seconds_bucket[5m]) > kube_job_status_failed";
        assert_eq!(unknown_metrics(asked, told), Vec::<String>::new());
        assert_eq!(unknown_metrics("fettle_jabs > 1", told), ["fettle_jabs"]);
    }
}
