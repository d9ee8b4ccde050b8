//! A real control plane of Kubernetes on loopback: etcd, kube-apiserver and the controllers, with Helm before them.
//!
//! It has no node and no kubelet, so nothing runs. [`Kubelet`] says of pods and claims what a kubelet and a disk would, and that is
//! all that is played here.

mod kinds;
mod kubelet;

use std::collections::BTreeMap;
use std::io::PipeWriter;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use fettle_test_kit::Process;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::downloads;

pub use kubelet::{Fate, Kubelet};

/// They make their tables, keys and roles first, on a busy machine.
const READY: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(100);
/// Of a server that shares two cores with all the rest.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);
/// One command of Helm, with all that it waits for.
const HELM_LIMIT: Duration = Duration::from_secs(180);
/// Of the administrator.
const TOKEN: &str = "canary-of-the-cluster-5d21";
/// Whoever these controllers are, they make pods, claims and what goes with them; those of nodes, clouds and disks have nothing to do.
const CONTROLLERS: &str = "deployment-controller,replicaset-controller,statefulset-controller,daemonset-controller,job-controller,\
cronjob-controller,disruption-controller,garbage-collector-controller,namespace-controller,serviceaccount-controller,\
root-ca-certificate-publisher-controller,endpointslice-controller,persistentvolumeclaim-protection-controller,ttl-after-finished-controller";

/// Waits for its standard input to end, however its owner ends, and then ends the program. By then nobody reads what it says.
const KEEPER: &str = r#"
"$@" </dev/null &
exec >/dev/null 2>&1
read -r _
kill -KILL $!
wait $!
"#;
/// As that, and then removes the folder of all.
const LAST_KEEPER: &str = r#"
folder=$1; shift
"$@" </dev/null &
exec >/dev/null 2>&1
read -r _
kill -KILL $!
wait $!
sleep 1
rm -rf "$folder"
"#;

pub struct Cluster {
    programs: PathBuf,
    folder: PathBuf,
    address: String,
    client: reqwest::Client,
    /// Resources by group and version.
    resources: Mutex<BTreeMap<String, Vec<Resource>>>,
    processes: Vec<Process>,
    _alive: Vec<PipeWriter>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Resource {
    /// `apps/v1`; `v1` of the core.
    pub version: String,
    pub kind: String,
    pub plural: String,
    pub namespaced: bool,
    pub listed: bool,
}

#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub body: Value,
}

impl Answer {
    /// The body of a success.
    pub fn ok(self) -> anyhow::Result<Value> {
        ensure!((200..300).contains(&self.status), "answered {}: {}", self.status, self.body);
        Ok(self.body)
    }

    pub fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }
}

static SHARED: OnceCell<Option<Cluster>> = OnceCell::const_new();

/// The one that all tests of this process share. `None`: it was not built, which has been told.
pub async fn shared() -> anyhow::Result<Option<&'static Cluster>> {
    let cluster = SHARED.get_or_try_init(async || match downloads::cluster() {
        Some(programs) => anyhow::Ok(Some(Cluster::start(programs).await?)),
        None => Ok(None),
    });
    Ok(cluster.await?.as_ref())
}

impl Cluster {
    async fn start(programs: PathBuf) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("fettle-cluster-").tempdir()?.keep();
        let [store, peers, port] = [free_port()?, free_port()?, free_port()?];
        let (store, peers) = (format!("http://127.0.0.1:{store}"), format!("http://127.0.0.1:{peers}"));
        let at = |name: &str| folder.join(name).display().to_string();
        fs_err::write(at("tokens.csv"), format!("{TOKEN},admin,1,system:masters\n"))?;
        key_pair(&folder)?;
        let mut cluster = Self {
            address: format!("https://127.0.0.1:{port}"),
            client: reqwest::Client::builder().no_proxy().build()?,
            resources: Mutex::default(),
            processes: Vec::new(),
            _alive: Vec::new(),
            programs,
            folder: folder.clone(),
        };
        cluster.run(
            "etcd",
            &[
                format!("--data-dir={}", at("etcd")),
                format!("--listen-client-urls={store}"),
                format!("--advertise-client-urls={store}"),
                format!("--listen-peer-urls={peers}"),
                format!("--initial-advertise-peer-urls={peers}"),
                format!("--initial-cluster=default={peers}"),
                // What is in it is worth nothing.
                "--unsafe-no-fsync".to_owned(),
            ],
        )?;
        cluster.run(
            "kube-apiserver",
            &[
                format!("--etcd-servers={store}"),
                "--bind-address=127.0.0.1".to_owned(),
                "--advertise-address=127.0.0.1".to_owned(),
                "--endpoint-reconciler-type=none".to_owned(),
                format!("--secure-port={port}"),
                format!("--cert-dir={}", at("certificates")),
                "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
                "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
                format!("--service-account-key-file={}", at("public.pem")),
                format!("--service-account-signing-key-file={}", at("private.pem")),
                "--authorization-mode=RBAC".to_owned(),
                format!("--token-auth-file={}", at("tokens.csv")),
                // What refuses a privileged pod here is Pod Security, and nothing before it.
                "--allow-privileged=true".to_owned(),
            ],
        )?;
        let until = Instant::now() + READY;
        // It makes its own certificate, and the authority above it.
        let authority = folder.join("certificates/apiserver.crt");
        while !authority.exists() {
            cluster.still_runs(until)?;
            tokio::time::sleep(POLL).await;
        }
        let certificates = reqwest::Certificate::from_pem_bundle(&fs_err::read(&authority)?)?;
        cluster.client =
            reqwest::Client::builder().no_proxy().tls_certs_only(certificates).timeout(ANSWER_LIMIT).build()?;
        fs_err::write(at("kubeconfig"), cluster.kubeconfig(&authority).to_string())?;
        while cluster.get("/readyz").await.is_none_or(|answer| answer.status != 200) {
            cluster.still_runs(until)?;
            tokio::time::sleep(POLL).await;
        }
        cluster.run(
            "kube-controller-manager",
            &[
                format!("--kubeconfig={}", at("kubeconfig")),
                format!("--controllers={CONTROLLERS}"),
                "--leader-elect=false".to_owned(),
                "--secure-port=0".to_owned(),
                format!("--root-ca-file={}", authority.display()),
                format!("--service-account-private-key-file={}", at("private.pem")),
                // Deployments are many and small here.
                "--kube-api-qps=200".to_owned(),
                "--kube-api-burst=400".to_owned(),
            ],
        )?;
        cluster.furnish().await?;
        Ok(cluster)
    }

    fn run(&mut self, name: &str, arguments: &[String]) -> anyhow::Result<()> {
        let (input, alive) = std::io::pipe()?;
        let mut command = Command::new("sh");
        // Whoever comes first ends last: the others write into its folder.
        match self.processes.is_empty() {
            true => command.args(["-c", LAST_KEEPER, "keeper"]).arg(&self.folder),
            false => command.args(["-c", KEEPER, "keeper"]),
        };
        command.arg(self.programs.join(name)).args(arguments).current_dir(&self.folder);
        self.processes.push(Process::start_reading(name, &mut command, Stdio::from(input))?);
        self._alive.push(alive);
        Ok(())
    }

    fn still_runs(&self, until: Instant) -> anyhow::Result<()> {
        let logs = || self.processes.iter().map(Process::tail).collect::<Vec<_>>().join("\n");
        ensure!(self.processes.iter().all(|process| !process.has_ended()), "a program has ended:\n{}", logs());
        ensure!(Instant::now() < until, "it does not get ready:\n{}", logs());
        Ok(())
    }

    fn kubeconfig(&self, authority: &Path) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{ "name": "it", "cluster": { "server": self.address, "certificate-authority": authority } }],
            "users": [{ "name": "it", "user": { "token": TOKEN } }],
            "contexts": [{ "name": "it", "context": { "cluster": "it", "user": "it" } }],
        })
    }

    /// What operators bring along: their kinds, without the programs that act on them, and a node with GPUs that is only said to be
    /// there.
    async fn furnish(&self) -> anyhow::Result<()> {
        let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        let mut made = Vec::new();
        for definition in kinds::definitions()? {
            let text = |pointer: &str| definition.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
            let (name, group, plural) = (text("/metadata/name"), text("/spec/group"), text("/spec/names/plural"));
            let listed = format!("/apis/{group}/{}/{plural}", text("/spec/versions/0/name"));
            made.push((name.to_owned(), listed));
            self.post(definitions, &definition).await?.ok()?;
        }
        let until = Instant::now() + READY;
        for (name, listed) in made {
            loop {
                let definition = self.get(&format!("{definitions}/{name}")).await.context("no answer")?.ok()?;
                let conditions = definition["status"]["conditions"].as_array().cloned().unwrap_or_default();
                if conditions.iter().any(|one| one["type"] == "Established" && one["status"] == "True") {
                    let structural = conditions.iter().find(|one| one["type"] == "NonStructuralSchema");
                    ensure!(structural.is_none(), "{name} is pruned by nobody: {structural:?}");
                    break;
                }
                self.still_runs(until)?;
                tokio::time::sleep(POLL).await;
            }
            // It is served a little later than it is established.
            while self.get(&listed).await.is_none_or(|answer| answer.status != 200) {
                self.still_runs(until)?;
                tokio::time::sleep(POLL).await;
            }
        }
        let class = json!({ "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": { "name": "nvidia" }, "handler": "nvidia" });
        self.post("/apis/node.k8s.io/v1/runtimeclasses", &class).await?.ok()?;
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": "gpus", "labels": { "nvidia.com/gpu.present": "true" } },
        });
        self.post("/api/v1/nodes", &node).await?.ok()?;
        // Admission marks each new node as not ready, until its kubelet says otherwise.
        self.patch("/api/v1/nodes/gpus", &json!({ "spec": { "taints": null } })).await?.ok()?;
        Ok(())
    }

    /// Where it answers, and the certificates that show it is it.
    pub fn address(&self) -> (&str, PathBuf) {
        (&self.address, self.folder.join("certificates/apiserver.crt"))
    }

    /// A namespace of its own, with Pod Security `restricted` enforced.
    pub async fn namespace(&self, name: &str) -> anyhow::Result<()> {
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": { "name": name, "labels": { "pod-security.kubernetes.io/enforce": "restricted" } },
        });
        self.post("/api/v1/namespaces", &namespace).await?.ok()?;
        // Pods are refused before it is there.
        let account = format!("/api/v1/namespaces/{name}/serviceaccounts/default");
        let until = Instant::now() + READY;
        while self.get(&account).await.is_none_or(|answer| answer.status != 200) {
            self.still_runs(until)?;
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// `None`: nobody answers.
    pub async fn get(&self, path: &str) -> Option<Answer> {
        self.send(Method::GET, path, None, None).await.ok()
    }

    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Answer> {
        self.send(Method::POST, path, Some(("application/json", body.to_string())), None).await
    }

    /// As Helm and people send it.
    pub async fn post_yaml(&self, path: &str, body: &str) -> anyhow::Result<Answer> {
        self.send(Method::POST, path, Some(("application/yaml", body.to_owned())), None).await
    }

    pub async fn patch(&self, path: &str, body: &Value) -> anyhow::Result<Answer> {
        self.send(Method::PATCH, path, Some(("application/merge-patch+json", body.to_string())), None).await
    }

    pub async fn delete(&self, path: &str) -> anyhow::Result<Answer> {
        self.send(Method::DELETE, path, None, None).await
    }

    /// As a ServiceAccount of a namespace asks.
    pub async fn as_account(
        &self,
        (namespace, account): (&str, &str),
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Answer> {
        let body = body.map(|body| ("application/json", body.to_string()));
        self.send(method, path, body, Some((namespace, account))).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, String)>,
        account: Option<(&str, &str)>,
    ) -> anyhow::Result<Answer> {
        let mut request = self.client.request(method, format!("{}{path}", self.address)).bearer_auth(TOKEN);
        if let Some((namespace, account)) = account {
            request = request.header("impersonate-user", format!("system:serviceaccount:{namespace}:{account}"));
            let groups = ["system:serviceaccounts", "system:authenticated"].map(str::to_owned);
            for group in groups.into_iter().chain([format!("system:serviceaccounts:{namespace}")]) {
                request = request.header("impersonate-group", group);
            }
        }
        if let Some((kind, body)) = body {
            request = request.header("content-type", kind).body(body);
        }
        let response = request.send().await?;
        let (status, text) = (response.status().as_u16(), response.text().await?);
        Ok(Answer { status, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) })
    }

    /// Where objects of a kind are.
    pub async fn collection(&self, version: &str, kind: &str, namespace: &str) -> anyhow::Result<String> {
        let known = self.of_version(version).await?;
        let Some(resource) = known.into_iter().find(|one| one.kind == kind) else { bail!("no {kind} of {version}") };
        Ok(Self::path(&resource, namespace))
    }

    fn path(resource: &Resource, namespace: &str) -> String {
        let root = if resource.version.contains('/') { "apis" } else { "api" };
        let within = if resource.namespaced { format!("/namespaces/{namespace}") } else { String::new() };
        format!("/{root}/{}{within}/{}", resource.version, resource.plural)
    }

    async fn of_version(&self, version: &str) -> anyhow::Result<Vec<Resource>> {
        if let Some(known) = self.resources.lock().expect("no holder panics").get(version) {
            return Ok(known.clone());
        }
        let root = if version.contains('/') { "apis" } else { "api" };
        let told = self.get(&format!("/{root}/{version}")).await.context("no answer")?.ok()?;
        let resources = told["resources"].as_array().context("a list of resources")?.iter();
        let found: Vec<Resource> = resources
            .filter(|one| one["name"].as_str().is_some_and(|name| !name.contains('/')))
            .map(|one| Resource {
                version: version.to_owned(),
                kind: one["kind"].as_str().unwrap_or_default().to_owned(),
                plural: one["name"].as_str().unwrap_or_default().to_owned(),
                namespaced: one["namespaced"] == true,
                listed: one["verbs"].as_array().is_some_and(|verbs| verbs.contains(&"list".into())),
            })
            .collect();
        self.resources.lock().expect("no holder panics").insert(version.to_owned(), found.clone());
        Ok(found)
    }

    /// Every resource, of each group in the version that it prefers.
    pub async fn resources(&self) -> anyhow::Result<Vec<Resource>> {
        let groups = self.get("/apis").await.context("no answer")?.ok()?;
        let versions = groups["groups"].as_array().context("a list of groups")?.iter();
        let versions = versions.filter_map(|group| group["preferredVersion"]["groupVersion"].as_str());
        let mut resources = self.of_version("v1").await?;
        for version in versions {
            resources.extend(self.of_version(version).await?);
        }
        Ok(resources)
    }

    /// Whatever is in a namespace, by kind and name. Events are left out, and endpoints, which others say again.
    pub async fn objects(&self, namespace: &str) -> anyhow::Result<BTreeMap<(String, String), Value>> {
        let mut found = BTreeMap::new();
        for resource in self.resources().await?.iter().filter(|one| one.namespaced && one.listed) {
            if ["Event", "Endpoints", "EndpointSlice"].contains(&resource.kind.as_str()) {
                continue;
            }
            let list = self.send(Method::GET, &Self::path(resource, namespace), None, None).await?;
            let list = list.ok().with_context(|| format!("while listing {}", resource.plural))?;
            for object in list["items"].as_array().into_iter().flatten() {
                let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                found.insert((resource.kind.clone(), name), object.clone());
            }
        }
        Ok(found)
    }

    /// What Helm says, or why it fails.
    pub async fn helm(&self, namespace: &str, arguments: &[&str]) -> anyhow::Result<Result<String, String>> {
        let mut command = tokio::process::Command::new(self.programs.join("helm"));
        command.args(arguments).args(["--namespace", namespace]).kill_on_drop(true).stdin(Stdio::null());
        command.env_clear().env("KUBECONFIG", self.folder.join("kubeconfig"));
        for name in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME", "HOME"] {
            command.env(name, self.folder.join("helm"));
        }
        let ended = tokio::time::timeout(HELM_LIMIT, command.output()).await;
        let output = ended.with_context(|| format!("helm {arguments:?} took longer than {HELM_LIMIT:?}"))??;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) })
    }
}

/// That tokens of ServiceAccounts are signed with.
fn key_pair(folder: &Path) -> anyhow::Result<()> {
    for arguments in [
        &["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", "private.pem"][..],
        &["pkey", "-in", "private.pem", "-pubout", "-out", "public.pem"],
    ] {
        let mut command = Command::new("openssl");
        let output = command.args(arguments).current_dir(folder).stdin(Stdio::null()).output();
        let output = output.context("while starting openssl")?;
        ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
