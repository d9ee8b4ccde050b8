//! The chart on a real control plane of Kubernetes: what Helm does with it, what admission says of its pods, what its accounts may.
//! Nothing runs there; a stand-in says of pods and claims what a kubelet would.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use axum::Router;
use axum::extract::{Path as InPath, Query};
use axum::routing::get;
use fettle_app::ports::pods::{PodsError, ShowPods as _};
use fettle_domain::pod::PodName;
use fettle_tests::cluster::{self, Cluster, Fate, Kubelet};
use fettle_tests::https::Https;
use reqwest::Method;
use serde_json::{Value, json};

const RELEASE: &str = "fettle";
/// What every namespace has, whoever is in it.
const OF_EVERY_NAMESPACE: [(&str, &str); 2] = [("ServiceAccount", "default"), ("ConfigMap", "kube-root-ca.crt")];
/// Fields that controllers and the server write.
const NOT_OURS: [&str; 4] = ["resourceVersion", "managedFields", "generation", "annotations"];

type Objects = BTreeMap<(String, String), Value>;

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/fettle")
}

/// Each example of values, and the arguments that name its files.
fn examples() -> Vec<(String, Vec<String>)> {
    let files = |folder: &str| {
        let mut files: Vec<PathBuf> =
            fs_err::read_dir(chart().join(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    };
    let stem = |file: &Path| file.file_stem().unwrap().to_str().unwrap().trim_end_matches("-values").to_owned();
    let named = |file: &Path| format!("--values={}", file.display());
    let base = named(&chart().join("ci/minimal-values.yaml"));
    let ci = files("ci").into_iter().map(|file| (stem(&file), vec![named(&file)]));
    // An environment says nothing of the forge and the models, which are the user's.
    let environments = files("environments")
        .into_iter()
        .map(|file| (format!("environment-{}", stem(&file)), vec![base.clone(), named(&file)]));
    ci.chain(environments).collect()
}

/// One example in a namespace of its own.
struct Release {
    cluster: &'static Cluster,
    namespace: String,
    values: Vec<String>,
    kubelet: Kubelet,
}

impl Release {
    async fn of(cluster: &'static Cluster, what: &str, (name, values): (String, Vec<String>)) -> Self {
        let namespace = format!("{what}-{name}");
        cluster.namespace(&namespace).await.unwrap();
        let kubelet = Kubelet::of(cluster, &namespace);
        Self { cluster, namespace, values, kubelet }
    }

    async fn helm(&self, verb: &[&str], more: &[&str]) -> Result<String, String> {
        let chart = chart();
        let mut arguments = verb.to_vec();
        if ["install", "upgrade"].contains(&verb[0]) {
            arguments.push(chart.to_str().unwrap());
            arguments.extend(self.values.iter().map(String::as_str));
        }
        arguments.extend(more);
        self.cluster.helm(&self.namespace, &arguments).await.unwrap()
    }

    /// As the chart's README says it.
    async fn install(&self) {
        let said = self.helm(&["install", RELEASE], &["--wait", "--timeout=120s"]).await;
        said.unwrap_or_else(|why| panic!("{}: {why}", self.namespace));
    }

    async fn upgrade(&self, more: &[&str]) -> Result<String, String> {
        self.helm(&["upgrade", RELEASE], &[&["--wait", "--timeout=120s"], more].concat()).await
    }

    /// All that is there, without what every namespace has and what Helm notes for itself.
    async fn objects(&self) -> Objects {
        let mut objects = self.cluster.objects(&self.namespace).await.unwrap();
        objects.retain(|(kind, name), _| {
            !OF_EVERY_NAMESPACE.contains(&(kind, name)) && !name.starts_with("sh.helm.release.")
        });
        objects
    }

    /// Of those that Helm makes, what it makes of them.
    async fn wanted(&self) -> Objects {
        let mut objects = self.objects().await;
        objects.retain(|_, object| object["metadata"]["ownerReferences"].is_null());
        for object in objects.values_mut() {
            object.as_object_mut().unwrap().remove("status");
            let metadata = object["metadata"].as_object_mut().unwrap();
            metadata.retain(|name, _| !NOT_OURS.contains(&name.as_str()));
        }
        objects
    }

    /// Helm's own notes, one for each revision.
    async fn revisions(&self) -> usize {
        let objects = self.cluster.objects(&self.namespace).await.unwrap();
        objects.keys().filter(|(_, name)| name.starts_with("sh.helm.release.")).count()
    }
}

fn secrets(objects: &Objects) -> BTreeMap<&str, &Value> {
    let secrets = objects.iter().filter(|((kind, _), _)| kind == "Secret");
    secrets.map(|((_, name), secret)| (name.as_str(), &secret["data"])).collect()
}

/// Where a kind keeps the description of its pods.
fn pod_template(object: &Value) -> Option<&Value> {
    let pointer = match object["kind"].as_str()? {
        "Deployment" | "DaemonSet" | "StatefulSet" | "Job" => "/spec/template",
        "CronJob" => "/spec/jobTemplate/spec/template",
        "ScaledJob" => "/spec/jobTargetRef/template",
        "Pod" => "",
        _ => return None,
    };
    object.pointer(pointer)
}

/// A value at the beginning of a line of a manifest.
fn top_level<'a>(manifest: &'a str, key: &str) -> Option<&'a str> {
    manifest.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": ")).map(|value| value.trim_matches('"'))
}

/// What a release would be made of, hooks included, as Helm renders it for this cluster.
async fn rendered(release: &Release) -> Vec<String> {
    let told = release.helm(&["install", RELEASE], &["--dry-run=server", "--output=json"]).await.unwrap();
    let told: Value = serde_json::from_str(&told).unwrap();
    let hooks = told["hooks"].as_array().into_iter().flatten().map(|hook| hook["manifest"].as_str().unwrap());
    let manifests: Vec<&str> = [told["manifest"].as_str().unwrap()].into_iter().chain(hooks).collect();
    let documents = manifests.iter().flat_map(|manifest| manifest.split("\n---\n"));
    documents.filter(|document| top_level(document, "kind").is_some()).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_takes_every_object_of_every_example_to_the_letter_and_admission_every_pod() {
    let Some(cluster) = cluster::shared().await.unwrap() else { return };
    let mut pods = 0;
    for example in examples() {
        let release = Release::of(cluster, "letter", example).await;
        let namespace = release.namespace.as_str();
        let documents = rendered(&release).await;
        assert!(documents.len() > 5, "{namespace}: {documents:?}");
        // Pods would be refused for want of them.
        for name in [RELEASE, "fettle-dashboard"] {
            let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": name } });
            let accounts = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
            cluster.post(&accounts, &account).await.unwrap().ok().unwrap();
        }
        for document in documents {
            let (version, kind) = (top_level(&document, "apiVersion").unwrap(), top_level(&document, "kind").unwrap());
            let collection = cluster.collection(version, kind, namespace).await.unwrap();
            let to_the_letter = format!("{collection}?dryRun=All&fieldValidation=Strict");
            let answer = cluster.post_yaml(&to_the_letter, &document).await.unwrap();
            let is_there = answer.status == 409 && kind == "ServiceAccount";
            assert!(is_there || answer.status == 201, "{namespace}: {kind}: {}\n{document}", answer.message());
            if let Some(template) = pod_template(&answer.body) {
                let mut pod = template.clone();
                pod["apiVersion"] = "v1".into();
                pod["kind"] = "Pod".into();
                // A StatefulSet's pods get their claims from its controller.
                for claim in answer.body["spec"]["volumeClaimTemplates"].as_array().into_iter().flatten() {
                    let name = &claim["metadata"]["name"];
                    let volume = json!({ "name": name, "persistentVolumeClaim": { "claimName": name } });
                    pod["spec"]["volumes"].as_array_mut().unwrap().push(volume);
                }
                pod["metadata"] = json!({ "generateName": "pod-", "labels": template["metadata"]["labels"] });
                let at = format!("/api/v1/namespaces/{namespace}/pods?dryRun=All&fieldValidation=Strict");
                let answer = cluster.post(&at, &pod).await.unwrap();
                assert_eq!(answer.status, 201, "{namespace}: a pod of {kind}: {}", answer.message());
                pods += 1;
            }
        }
    }
    assert!(pods > 30, "{pods} pods");

    // What the answers above rest on.
    cluster.namespace("refused").await.unwrap();
    let pods = "/api/v1/namespaces/refused/pods?dryRun=All&fieldValidation=Strict";
    let container = json!({ "name": "one", "image": "one:1", "securityContext": { "privileged": true } });
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "one" }, "spec": { "containers": [container] },
    });
    let answer = cluster.post(pods, &pod).await.unwrap();
    assert!(answer.status == 403 && answer.message().contains("violates PodSecurity \"restricted"), "{answer:?}");
    pod["spec"]["hostNetworks"] = true.into();
    let answer = cluster.post(pods, &pod).await.unwrap();
    assert!(answer.message().contains("unknown field \"spec.hostNetworks\""), "{answer:?}");
    let job = json!({
        "apiVersion": "keda.sh/v1alpha1", "kind": "ScaledJob", "metadata": { "name": "one" },
        "spec": { "jobTargetRef": {}, "rolloutStrategy": "gradual", "triggers": [] },
    });
    let jobs = "/apis/keda.sh/v1alpha1/namespaces/refused/scaledjobs?dryRun=All&fieldValidation=Strict";
    let answer = cluster.post(jobs, &job).await.unwrap();
    assert!(answer.message().contains("unknown field \"spec.rolloutStrategy\""), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_is_installed_upgraded_rolled_back_and_uninstalled_and_its_secrets_and_claims_stay() {
    let Some(cluster) = cluster::shared().await.unwrap() else { return };
    for example in examples() {
        let release = Release::of(cluster, "life", example).await;
        let namespace = release.namespace.as_str();
        release.install().await;
        let installed = release.wanted().await;
        let said = release.upgrade(&["--set=dashboard.podLabels.round=two"]).await;
        said.unwrap_or_else(|why| panic!("{namespace}: {why}"));
        let upgraded = release.wanted().await;
        let label = |objects: &Objects| {
            let dashboard = &objects[&("Deployment".to_owned(), "fettle-dashboard".to_owned())];
            dashboard["spec"]["template"]["metadata"]["labels"]["round"].clone()
        };
        assert_eq!((label(&installed), label(&upgraded)), (Value::Null, "two".into()), "{namespace}");
        assert_eq!(installed.keys().collect::<Vec<_>>(), upgraded.keys().collect::<Vec<_>>(), "{namespace}");
        assert_eq!(secrets(&installed), secrets(&upgraded), "{namespace}: an upgrade keeps what was made");

        release.helm(&["rollback", RELEASE, "1"], &["--wait", "--timeout=120s"]).await.unwrap();
        let back = release.wanted().await;
        for (name, object) in &installed {
            assert_eq!(object, &back[name], "{namespace}: {name:?} after the way back");
        }
        assert_eq!(installed.len(), back.len(), "{namespace}");

        release.helm(&["uninstall", RELEASE], &["--wait", "--timeout=120s"]).await.unwrap();
        let stays = |(kind, _): &&(String, String)| ["Secret", "PersistentVolumeClaim"].contains(&kind.as_str());
        let promised: BTreeSet<_> = installed.keys().filter(stays).cloned().collect();
        let left = settled(&release, &promised).await;
        assert_eq!(left, promised, "{namespace}: claims and the chart's Secrets are left, and nothing else");
        assert_eq!(release.revisions().await, 0, "{namespace}");

        // What the README has for whoever wants them gone.
        for plural in ["secrets", "persistentvolumeclaims"] {
            let at =
                format!("/api/v1/namespaces/{namespace}/{plural}?labelSelector=app.kubernetes.io/instance%3Dfettle");
            cluster.delete(&at).await.unwrap().ok().unwrap();
        }
        let left = settled(&release, &BTreeSet::new()).await;
        assert_eq!(left, BTreeSet::new(), "{namespace}");
    }
}

/// What is there once it is `wanted`, or after all patience.
async fn settled(release: &Release, wanted: &BTreeSet<(String, String)>) -> BTreeSet<(String, String)> {
    let until = tokio::time::Instant::now() + fettle_tests::world::PATIENCE;
    loop {
        let left: BTreeSet<_> = release.objects().await.into_keys().collect();
        if left == *wanted || tokio::time::Instant::now() > until {
            return left;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_that_cannot_work_changes_nothing_and_a_migration_that_fails_leaves_the_old_release() {
    let Some(cluster) = cluster::shared().await.unwrap() else { return };
    // With SQLite and with PostgreSQL, scaled and not.
    let some = ["minimal", "gpu", "founding", "environment-prod"];
    for example in examples().into_iter().filter(|(name, _)| some.contains(&name.as_str())) {
        let postgres = ["founding", "environment-prod"].contains(&example.0.as_str());
        let release = Release::of(cluster, "bad", example).await;
        let namespace = release.namespace.as_str();
        release.install().await;
        let (before, revisions) = (release.wanted().await, release.revisions().await);
        for (bad, sentence) in [
            ("--set=image.worker.tag=latest", "has the tag latest"),
            ("--set=config.server.listen=0.0.0.0:1", "follows from the cluster and is the chart's"),
            ("--set=dashboard.replica=2", "dashboard"),
        ] {
            let why = release.upgrade(&[bad]).await.expect_err(bad);
            assert!(why.contains(sentence), "{namespace}: {bad}: {why}");
            assert_eq!(release.wanted().await, before, "{namespace}: {bad} has changed something");
            assert_eq!(release.revisions().await, revisions, "{namespace}: {bad} is noted as a revision");
        }
        if postgres {
            release.kubelet.set(Fate::Failure);
            let changed = "--set=dashboard.podLabels.round=two";
            let why = release.upgrade(&[changed]).await.expect_err("the migration fails");
            assert!(why.contains("fettle-migrate") || why.contains("pre-upgrade"), "{namespace}: {why}");
            let after = release.wanted().await;
            for (name, object) in &before {
                assert_eq!(object, &after[name], "{namespace}: {name:?} after a failed migration");
            }
            release.kubelet.set(Fate::Success);
            release.upgrade(&[changed]).await.unwrap_or_else(|why| panic!("{namespace}: {why}"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keda_s_jobs_and_helm_s_tests_become_pods() {
    let Some(cluster) = cluster::shared().await.unwrap() else { return };
    let example = examples().into_iter().find(|(name, _)| name == "gpu").unwrap();
    let release = Release::of(cluster, "pods", example).await;
    release.install().await;
    release.helm(&["test", RELEASE], &["--timeout=120s"]).await.unwrap();
    let objects = release.objects().await;
    let scaled = &objects[&("ScaledJob".to_owned(), "fettle-worker".to_owned())];
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": "of-keda" },
        "spec": scaled["spec"]["jobTargetRef"],
    });
    let jobs = format!("/apis/batch/v1/namespaces/{}/jobs", release.namespace);
    cluster.post(&format!("{jobs}?fieldValidation=Strict"), &job).await.unwrap().ok().unwrap();
    let until = tokio::time::Instant::now() + fettle_tests::world::PATIENCE;
    loop {
        let job = cluster.get(&format!("{jobs}/of-keda")).await.unwrap().ok().unwrap();
        if job["status"]["succeeded"] == 1 {
            break;
        }
        assert!(tokio::time::Instant::now() < until, "{job}");
    }
    let owners: BTreeSet<String> =
        release.objects().await.iter().filter(|((kind, _), _)| kind == "Pod").map(kind_of_owner).collect();
    let wanted = ["DaemonSet", "Job", "ReplicaSet"].map(str::to_owned);
    assert_eq!(owners, wanted.into(), "the node with GPUs has its pod, too");
}

fn kind_of_owner((_, pod): (&(String, String), &Value)) -> String {
    pod["metadata"]["ownerReferences"][0]["kind"].as_str().unwrap_or("nobody").to_owned()
}

/// What an account may, as the server itself tells it.
async fn rules(cluster: &Cluster, namespace: &str, account: &str) -> BTreeSet<String> {
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": { "namespace": namespace },
    });
    let at = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let told = cluster.as_account((namespace, account), Method::POST, at, Some(&review)).await.unwrap().ok().unwrap();
    assert_eq!(told["status"]["incomplete"], false, "{told}");
    told["status"]["resourceRules"].as_array().unwrap().iter().map(Value::to_string).collect()
}

/// What the view of workers' pods needs beyond what every stranger may.
fn rules_of_the_view() -> BTreeSet<String> {
    let rule = |verb: &str, resource: &str| json!({ "verbs": [verb], "apiGroups": [""], "resources": [resource] });
    [rule("list", "pods"), rule("get", "pods/log")].map(|rule| rule.to_string()).into()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_account_of_the_chart_may_more_than_a_stranger_but_to_see_pods_and_their_logs_where_that_was_asked_for() {
    let Some(cluster) = cluster::shared().await.unwrap() else { return };
    let mut seeing = 0;
    for example in examples() {
        let release = Release::of(cluster, "may", example).await;
        let namespace = release.namespace.as_str();
        release.install().await;
        let strangers = rules(cluster, namespace, "default").await;
        let objects = release.objects().await;
        let accounts: Vec<&str> =
            objects.keys().filter(|(kind, _)| kind == "ServiceAccount").map(|(_, name)| name.as_str()).collect();
        assert!(accounts.contains(&RELEASE), "{namespace}: {accounts:?}");
        for account in &accounts {
            let may: BTreeSet<String> =
                rules(cluster, namespace, account).await.difference(&strangers).cloned().collect();
            let sees = *account == "fettle-dashboard";
            assert_eq!(may, if sees { rules_of_the_view() } else { BTreeSet::new() }, "{namespace}: {account}");
            for (path, allowed) in [
                ("pods", sees),
                ("secrets", false),
                ("configmaps", false),
                ("serviceaccounts", false),
                ("secrets/fettle-auth", false),
            ] {
                let at = format!("/api/v1/namespaces/{namespace}/{path}");
                let answer = cluster.as_account((namespace, account), Method::GET, &at, None).await.unwrap();
                assert_eq!(answer.status, if allowed { 200 } else { 403 }, "{namespace}: {account} reads {path}");
            }
            let elsewhere = cluster.as_account((namespace, account), Method::GET, "/api/v1/pods", None).await.unwrap();
            assert_eq!(elsewhere.status, 403, "{namespace}: {account} reads pods of all namespaces");
        }
        for ((_, name), pod) in objects.iter().filter(|((kind, _), _)| kind == "Pod") {
            let has_token = pod["spec"]["volumes"].to_string().contains("serviceAccountToken");
            let sees = pod["spec"]["serviceAccountName"] == "fettle-dashboard";
            assert_eq!(has_token, sees, "{namespace}: {name}");
            assert!(!sees || accounts.contains(&"fettle-dashboard"), "{namespace}: {name}");
            seeing += usize::from(sees);
        }
    }
    assert!(seeing >= 2, "examples have the view: {seeing}");
}

/// What a kubelet would tell of a container, from its path: the namespace, the pod and the container.
async fn kubelet_s_log(
    InPath((_, pod, container)): InPath<(String, String, String)>,
    Query(asked): Query<BTreeMap<String, String>>,
) -> String {
    format!("{container} of {pod}: the last {}\n", asked["tailLines"])
}

// The real server and the real adapter; what the worker has logged is played, by the server's own way to a node.
#[tokio::test(flavor = "multi_thread")]
async fn the_dashboard_s_own_token_shows_workers_pods_and_their_logs_and_no_other_s() {
    let Some(cluster) = cluster::shared().await.unwrap() else { return };
    let example = examples().into_iter().find(|(name, _)| name == "minimal").unwrap();
    let mut release = Release::of(cluster, "view", example).await;
    release.values.push("--set=dashboard.workerView.enabled=true".to_owned());
    release.install().await;
    let namespace = release.namespace.as_str();
    let within = format!("/api/v1/namespaces/{namespace}");

    let folder = tempfile::tempdir().unwrap();
    let routes = Router::new().route("/containerLogs/{namespace}/{pod}/{container}", get(kubelet_s_log));
    let kubelet = Https::serve(routes, folder.path()).await.unwrap();
    let status = json!({ "status": {
        "addresses": [{ "type": "InternalIP", "address": "127.0.0.1" }],
        "daemonEndpoints": { "kubeletEndpoint": { "Port": kubelet.port } },
    } });
    cluster.patch("/api/v1/nodes/gpus/status", &status).await.unwrap().ok().unwrap();

    let (address, authority) = cluster.address();
    let port = address.rsplit(':').next().unwrap();
    let account = camino::Utf8PathBuf::try_from(folder.path().join("account")).unwrap();
    fs_err::create_dir(&account).unwrap();
    fs_err::copy(authority, account.join("ca.crt")).unwrap();
    fs_err::write(account.join("namespace"), namespace).unwrap();
    let selector = "app.kubernetes.io/component=worker,app.kubernetes.io/instance=fettle,app.kubernetes.io/name=fettle";
    let asked = fettle_kubernetes::Cluster::new(fettle_kubernetes::Options {
        host: "127.0.0.1".to_owned(),
        port: port.to_owned(),
        account: account.clone(),
        selector: selector.to_owned(),
    });
    let asked = asked.unwrap();
    let become_account = async |name: &str| {
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": { "expirationSeconds": 3600 },
        });
        let at = format!("{within}/serviceaccounts/{name}/token");
        let told = cluster.post(&at, &request).await.unwrap().ok().unwrap();
        fs_err::write(account.join("token"), told["status"]["token"].as_str().unwrap()).unwrap();
    };

    become_account("fettle-dashboard").await;
    let pods = asked.list().await.unwrap();
    assert!(pods.items.len() == 1 && pods.items[0].name.starts_with("fettle-worker-"), "{pods:?}");
    assert_eq!(pods.items[0].phase, "Running");
    let worker = PodName::parse(&pods.items[0].name).unwrap();
    assert_eq!(asked.log(&worker, 7).await.unwrap().text, "", "it is on no node");
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding", "metadata": { "name": worker.as_str() },
        "target": { "apiVersion": "v1", "kind": "Node", "name": "gpus" },
    });
    cluster.post(&format!("{within}/pods/{worker}/binding"), &binding).await.unwrap().ok().unwrap();
    let log = asked.log(&worker, 7).await.unwrap();
    assert_eq!(log.text, format!("worker of {worker}: the last 7\n"));

    let objects = release.objects().await;
    let dashboard = objects.keys().find(|(kind, name)| kind == "Pod" && name.starts_with("fettle-dashboard-")).unwrap();
    let dashboard = PodName::parse(&dashboard.1).unwrap();
    let refused = asked.log(&dashboard, 7).await.unwrap_err();
    assert!(matches!(&refused, PodsError::NotFound(_)), "{refused:?}");

    // Nobody else's token would do.
    for name in [RELEASE, "default"] {
        become_account(name).await;
        let refused = asked.list().await.unwrap_err();
        assert!(matches!(&refused, PodsError::Refused(why) if why.contains("cannot list")), "{name}: {refused:?}");
    }
}
