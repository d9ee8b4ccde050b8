//! An installation on a cluster of its own: k3s with what Fettle needs in it, and Fettle's chart. Facts, a bundle and answers go
//! in; actions, their order and refusals come out. Pure, like the other planners. A k3s that is not ours is never touched.

pub mod bundle;
pub mod layout;
pub mod network;
mod texts;
pub mod token;
mod values;

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};

use crate::action::{Action, AddOnKind, Awaited, ClusterAct, HelmRelease, Keeping, Way};
use crate::answers::Answers;
use crate::facts::HostFacts;
use crate::host::{Attrs, sha256};
use crate::journal::Product;
use crate::layout::{CONFIG_DIR, CURRENT, RELEASES, SECRETS, unit_file};
use crate::plan::{self, Plan, Release};
use crate::receipt::Receipt;
use bundle::{Artifact, Bundle};
use token::Token;

pub const NAMESPACE: &str = "fettle";
pub const RELEASE_NAME: &str = "fettle";
/// The Secret with what the configuration names.
pub const SECRET: &str = "fettle";

/// Images are loaded and certificates made before a node says that it is ready.
const NODE_S: u32 = 600;
/// Traefik starts after the node is ready.
const INGRESS_S: u32 = 300;
const KUBELET_S: u32 = 300;
const TOKEN_BYTES: usize = 32;
/// What k3s asks of a kernel when it may not change it itself.
const SYSCTLS: [(&str, &str); 4] =
    [("kernel.panic", "10"), ("kernel.panic_on_oops", "1"), ("vm.overcommit_memory", "1"), ("vm.panic_on_oom", "0")];
const KUBERNETES: [(&str, &str); 6] = [
    ("k3s.service", "k3s"),
    ("k3s-agent.service", "k3s"),
    ("rke2-server.service", "RKE2"),
    ("rke2-agent.service", "RKE2"),
    ("kubelet.service", "a kubelet"),
    ("snap.microk8s.daemon-kubelite.service", "MicroK8s"),
];

/// What the planner knows of the host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// As `uname -m` says it.
    pub arch: String,
    pub host_name: String,
    /// A cluster that somebody else has made here.
    pub neighbour: Option<String>,
    /// NVIDIA's driver has taken a GPU.
    pub nvidia: bool,
    /// By their names in lower case, without credentials.
    pub proxies: BTreeMap<String, String>,
    /// The word by which this node would join; none when it cannot be read.
    pub token: Option<Token>,
}

impl Facts {
    pub fn of(facts: &HostFacts, receipt: Option<&Receipt>) -> Self {
        Self {
            arch: facts.system.arch.known().cloned().unwrap_or_default(),
            host_name: facts.network.host_name.known().cloned().unwrap_or_default(),
            neighbour: neighbour(facts, receipt.is_some_and(|receipt| is_ours(receipt, facts))),
            nvidia: facts.gpu.driver.known().is_some_and(Option::is_some),
            proxies: facts.network.proxies.clone(),
            token: None,
        }
    }
}

/// Whether the k3s of this host was installed by us; or there is none, and its data was left by us.
pub fn is_ours(receipt: &Receipt, facts: &HostFacts) -> bool {
    let there = || {
        let program = facts.kubernetes.paths.known().is_some_and(|paths| paths.iter().any(|path| path == layout::K3S));
        let units = facts.units.known();
        let unit = |name| units.and_then(|units| units.get(name)).is_some_and(crate::facts::Unit::is_there);
        program || unit(layout::UNIT) || unit(layout::AGENT_UNIT)
    };
    has_k3s(receipt) || receipt.find(&format!("dir:{}", layout::DATA)).is_some() && !there()
}

/// Whether the program itself is in the receipt, and not only data that it left.
pub fn has_k3s(receipt: &Receipt) -> bool {
    receipt.find(&format!("place:{}", layout::K3S)).is_some()
}

/// Who else has a cluster here; k3s itself counts unless it is `ours`.
pub fn neighbour(facts: &HostFacts, ours: bool) -> Option<String> {
    let units = facts.units.known();
    let units = KUBERNETES
        .iter()
        .filter(|(unit, _)| units.and_then(|units| units.get(*unit)).is_some_and(crate::facts::Unit::is_there));
    let paths = facts.kubernetes.paths.known();
    let paths =
        layout::FOREIGN.iter().filter(|(path, _)| paths.is_some_and(|paths| paths.iter().any(|there| there == path)));
    let found = units.chain(paths).find(|(_, who)| !(ours && *who == "k3s"));
    found.map(|(what, who)| format!("{who} ({what})"))
}

/// The names of the secrets that pods get: the words by which nodes join are the host's.
pub(crate) fn of_pods(answers: &Answers) -> impl Iterator<Item = &String> {
    answers.secrets.keys().filter(|name| ![layout::TOKEN, layout::AGENT_TOKEN].contains(&name.as_str()))
}

pub fn plan(release: &Release, bundle: &Bundle, facts: &Facts, answers: &Answers) -> Plan {
    let mut planning = Planning { release, bundle, facts, answers, actions: Vec::new(), refusals: Vec::new() };
    if answers.k3s.join.is_empty() {
        planning.server();
    } else {
        planning.agent();
    }
    let product = Product { version: release.manifest.version.clone(), release: release.name() };
    Plan { product, actions: planning.actions, refusals: planning.refusals }
}

struct Planning<'a> {
    release: &'a Release,
    bundle: &'a Bundle,
    facts: &'a Facts,
    answers: &'a Answers,
    actions: Vec<Action>,
    refusals: Vec<String>,
}

/// A chart that k3s installs.
struct Chart {
    name: &'static str,
    file: &'static str,
    namespace: &'static str,
    why: &'static str,
    values: serde_json::Value,
}

impl Planning<'_> {
    fn server(&mut self) {
        self.refuse_neighbours();
        self.refuse_contradictions();
        let secrets = self.named_secrets();
        self.programs();
        self.folders();
        self.secrets(&secrets);
        self.kernel();
        self.k3s(layout::UNIT, "server", texts::server_config(self.answers, self.facts));
        self.act(self.node_is_ready());
        self.images();
        self.secret(&secrets, Way::Forth);
        self.add_ons();
        if let Some(chart) = self.artifact(bundle::OUR_CHART) {
            self.fettle(&chart, secrets.values().cloned().collect());
        }
    }

    fn agent(&mut self) {
        self.refuse_neighbours();
        if !self.answers.secrets.contains_key(layout::TOKEN) {
            self.refusals.push(format!(
                "a node joins with the token of the cluster: name its file as secrets.{}",
                layout::TOKEN
            ));
        }
        let where_from = format!("copy {} of the cluster's first host, and name that file", layout::FULL_AGENT_TOKEN);
        match self.facts.token {
            None | Some(Token::Node) => {}
            Some(Token::Short) => self.refusals.push(format!(
                "the token does not say which cluster it belongs to, so that this host would tell it to whoever answers at {}: {where_from}",
                self.answers.k3s.join
            )),
            Some(Token::Server) => self.refusals.push(format!(
                "the token is that of servers, and whoever reads it on this host administers the cluster: {where_from}"
            )),
            Some(Token::Strange) => self.refusals.push(format!("the token's file holds no token of k3s: {where_from}")),
        }
        self.programs();
        self.folders();
        self.actions.extend(plan::copied_secrets(self.answers, Utf8Path::new(SECRETS)));
        self.kernel();
        self.k3s(layout::AGENT_UNIT, "agent", texts::agent_config(self.answers, self.facts));
        self.images();
        self.act(ClusterAct::Kubelet { limit_s: KUBELET_S });
    }

    fn act(&mut self, act: ClusterAct) {
        self.actions.push(Action::Cluster { act });
    }

    fn dir(&mut self, path: &str, mode: u32, keeping: Keeping) {
        self.actions.push(Action::Dir { path: path.into(), attrs: Attrs::root(mode), keeping });
    }

    fn file(&mut self, path: impl Into<Utf8PathBuf>, mode: u32, keeping: Keeping, text: String, why: &str) {
        let (path, attrs) = (path.into(), Attrs::root(mode));
        self.actions.push(Action::File { path, attrs, text, keeping, why: why.to_owned() });
    }

    fn refuse_neighbours(&mut self) {
        if let Some(neighbour) = &self.facts.neighbour {
            self.refusals.push(format!(
                "{neighbour} is on this host, and Fettle's installer did not put it there: it is left alone. Install the chart into \
                 that cluster with helm (charts/fettle), or use another host"
            ));
        }
    }

    fn refuse_contradictions(&mut self) {
        let k3s = &self.answers.k3s;
        if !k3s.host.is_empty() && !["none", "self_signed"].contains(&k3s.tls.as_str()) && !k3s.cert_manager {
            self.refusals
                .push("k3s.tls names an issuer, which is cert-manager's: set k3s.cert_manager = true".to_owned());
        }
        if !k3s.host.is_empty() && k3s.tls == "self_signed" && !k3s.cert_manager {
            self.refusals.push(
                "k3s.tls = \"self_signed\" is a certificate of cert-manager: set k3s.cert_manager = true, or k3s.tls = \"none\""
                    .to_owned(),
            );
        }
        if let Some(path) = values::looks_secret(&k3s.values) {
            self.refusals.push(format!(
                "k3s.values.{path} looks like a secret, and values can be read by whoever may look at the release: name it in \
                 [secrets] of the answers, and as a `*_file` in [settings]"
            ));
        }
        if let Some(path) = values::has_secret_shape(&self.answers.settings) {
            self.refusals.push(format!(
                "settings.{path} looks like a secret, and pods get the settings as they are: put it into a file, name that in [secrets] of \
                 the answers, and set the `*_file` of this key"
            ));
        }
    }

    /// The keys of the Secret, and where each is.
    fn named_secrets(&mut self) -> BTreeMap<String, Utf8PathBuf> {
        for (key, name) in values::secret_names(&self.answers.settings) {
            if !self.answers.secrets.contains_key(&name) {
                self.refusals.push(format!("{key} names `{name}`: say in the answers' [secrets] where it is now"));
            }
        }
        of_pods(self.answers).map(|name| (name.clone(), Utf8Path::new(SECRETS).join(name))).collect()
    }

    fn programs(&mut self) {
        self.dir("/opt/fettle", 0o755, Keeping::Managed);
        self.dir(RELEASES, 0o755, Keeping::Managed);
        self.actions.push(Action::Release {
            source: self.release.source.clone(),
            path: self.release.path(),
            manifest_sha256: self.release.manifest_sha256.clone(),
        });
        self.actions.push(Action::SwitchRelease { path: CURRENT.into(), target: self.release.path() });
        if self.answers.commands {
            self.actions.extend(plan::command_links());
        }
    }

    fn folders(&mut self) {
        self.dir(CONFIG_DIR, 0o755, Keeping::Seeded);
        self.dir(SECRETS, 0o700, Keeping::Seeded);
        self.dir(layout::OURS, 0o755, Keeping::Managed);
        // Values of the chart are among them, and nobody but root reads those either.
        self.actions.push(plan::answers_file(self.answers, 0o600));
        self.dir("/etc/rancher", 0o755, Keeping::Seeded);
        self.dir(layout::CONFIG_DIR, 0o755, Keeping::Managed);
        // By what is in it the cluster's state knows this node again.
        self.dir("/etc/rancher/node", 0o700, Keeping::Seeded);
        // The cluster's state: volumes, etcd, images.
        self.dir(layout::DATA, 0o755, Keeping::Seeded);
        for folder in ["/var/lib/rancher/k3s", "/var/lib/rancher/k3s/agent", layout::IMAGES] {
            self.dir(folder, 0o755, Keeping::System);
        }
        if self.answers.k3s.join.is_empty() {
            for folder in [
                "/var/lib/rancher/k3s/server",
                "/var/lib/rancher/k3s/server/logs",
                layout::MANIFESTS,
                "/var/lib/rancher/k3s/server/static",
                layout::CHARTS,
            ] {
                self.dir(folder, 0o700, Keeping::System);
            }
        }
    }

    fn secrets(&mut self, secrets: &BTreeMap<String, Utf8PathBuf>) {
        for (name, why) in [
            (layout::TOKEN, "the cluster's own secrets are sealed with it, and servers join with it"),
            (layout::AGENT_TOKEN, "nodes join the cluster with it, and cannot become servers"),
        ] {
            if !self.answers.secrets.contains_key(name) {
                let path = Utf8Path::new(SECRETS).join(name);
                self.actions.push(Action::GenerateSecret { path, bytes: TOKEN_BYTES, why: why.to_owned() });
            }
        }
        self.secret(secrets, Way::Back);
        self.actions.extend(plan::copied_secrets(self.answers, Utf8Path::new(SECRETS)));
    }

    fn secret(&mut self, files: &BTreeMap<String, Utf8PathBuf>, way: Way) {
        if !files.is_empty() {
            let (namespace, name) = (NAMESPACE.to_owned(), SECRET.to_owned());
            self.act(ClusterAct::Secret { namespace, name, files: files.clone(), way });
        }
    }

    fn kernel(&mut self) {
        self.dir("/etc/sysctl.d", 0o755, Keeping::System);
        let text = SYSCTLS.map(|(name, value)| format!("{name} = {value}\n")).concat();
        self.file(
            "/etc/sysctl.d/90-fettle-k3s.conf",
            0o644,
            Keeping::Managed,
            text,
            "the kernel is set so after a reboot too",
        );
        for (name, value) in SYSCTLS {
            self.act(ClusterAct::Sysctl { name: name.to_owned(), value: value.to_owned() });
        }
    }

    /// Errors go to the refusals.
    fn artifact(&mut self, file: &str) -> Option<Artifact> {
        match self.bundle.artifact(&self.answers.k3s, &self.facts.arch, file) {
            Ok(artifact) => Some(artifact),
            Err(why) => {
                self.refusals.push(why);
                None
            }
        }
    }

    fn place(&mut self, file: &str, path: impl Into<Utf8PathBuf>, mode: u32, why: &str) {
        if let Some(Artifact { origin, sha256 }) = self.artifact(file) {
            let (path, why) = (path.into(), why.to_owned());
            self.act(ClusterAct::Place { from: origin, path, sha256, mode, why });
        }
    }

    fn k3s(&mut self, unit: &str, role: &str, config: String) {
        self.place(bundle::K3S, layout::K3S, 0o755, "the cluster itself; the script that its maker offers is not run");
        if role == "server" {
            self.place(bundle::HELM, layout::HELM, 0o755, "Fettle's chart is installed by it");
        }
        if self.answers.k3s.registry.is_empty() {
            self.place(
                bundle::K3S_IMAGES,
                format!("{}/k3s-airgap-images.tar.zst", layout::IMAGES),
                0o644,
                "k3s loads its own images from it, and asks no registry",
            );
            for (file, archive) in self.archives() {
                self.place(file, archive, 0o644, "its images need no registry");
            }
        }
        self.file(
            layout::CONFIG,
            0o600,
            Keeping::Managed,
            config,
            "k3s starts by it; drop-ins in config.yaml.d are yours",
        );
        if role == "server" {
            let (admission, audit) = (texts::admission(), texts::audit());
            self.file(texts::ADMISSION, 0o600, Keeping::Managed, admission, "pods get no more rights than they need");
            self.file(texts::AUDIT, 0o600, Keeping::Managed, audit, "who changed what in the cluster is on record");
        }
        self.file(texts::KUBELET, 0o600, Keeping::Managed, texts::kubelet(), "pods end in order at a shutdown");
        if !self.answers.k3s.registry.is_empty() {
            let text = texts::registries(&self.answers.k3s.registry);
            self.file(
                layout::REGISTRIES,
                0o600,
                Keeping::Seeded,
                text,
                "all images come from this registry; credentials are yours to add",
            );
        }
        if !self.facts.proxies.is_empty() {
            let text = texts::environment(&self.facts.proxies, &self.answers.k3s);
            self.file(
                layout::ENVIRONMENT,
                0o600,
                Keeping::Seeded,
                text,
                "k3s goes through the proxy, and its pods do not",
            );
        }
        let units = vec![unit.to_owned()];
        self.actions.push(Action::Restart { units: units.clone(), way: Way::Back });
        self.actions.push(Action::Reload { way: Way::Back });
        self.file(unit_file(unit), 0o644, Keeping::Managed, texts::unit(role), "systemd runs k3s by it");
        self.actions.push(Action::Reload { way: Way::Forth });
        if role == "server" {
            self.act(ClusterAct::Snapshot);
        }
        self.actions.push(Action::Restart { units, way: Way::Forth });
        self.act(ClusterAct::Pods);
        self.actions.extend(self.answers.retire.iter().map(|unit| Action::Retire { unit: unit.clone() }));
        self.actions.push(Action::Enable { unit: unit.to_owned() });
        self.actions.push(Action::Start { unit: unit.to_owned() });
    }

    fn node_is_ready(&self) -> ClusterAct {
        let path = "--output=jsonpath={.items[*].status.conditions[?(@.type==\"Ready\")].status}";
        ClusterAct::Await {
            what: "every node is ready".to_owned(),
            arguments: ["get", "nodes", path].map(str::to_owned).into(),
            wanted: Awaited::AllTrue,
            limit_s: NODE_S,
        }
    }

    /// Ours carry the release's name: images of the release before are there until the new one has proved itself.
    fn archives(&self) -> [(&'static str, String); 2] {
        let release = self.release.name();
        [(bundle::OUR_IMAGES, "fettle"), (bundle::OTHER_IMAGES, "others")]
            .map(|(file, name)| (file, format!("{}/{name}-{release}.tar", layout::IMAGES)))
    }

    fn images(&mut self) {
        if self.answers.k3s.registry.is_empty() {
            for (_, archive) in self.archives() {
                self.act(ClusterAct::Images { archive: archive.into() });
            }
        }
    }

    fn add_ons(&mut self) {
        let k3s = &self.answers.k3s;
        let traefik = texts::traefik(k3s.tls != "none");
        self.act(ClusterAct::AddOn {
            kind: AddOnKind::HelmChartConfig,
            name: "traefik".to_owned(),
            path: format!("{}/fettle-traefik.yaml", layout::MANIFESTS).into(),
            text: traefik,
            why: "streams of events stay open, and uploads take their time".to_owned(),
        });
        if k3s.cert_manager {
            self.chart(Chart {
                name: "cert-manager",
                file: "charts/cert-manager.tgz",
                namespace: "cert-manager",
                why: "certificates are made and renewed by themselves",
                // Without its definitions every certificate of the cluster would go.
                values: serde_json::json!({ "crds": { "enabled": true, "keep": true } }),
            });
        }
        if k3s.keda {
            self.chart(Chart {
                name: "keda",
                file: "charts/keda.tgz",
                namespace: "keda",
                why: "a worker is started for each Run that waits",
                values: serde_json::json!({ "image": { "pullPolicy": "IfNotPresent" } }),
            });
        }
        if self.facts.nvidia {
            // k3s defines this class itself when it finds NVIDIA's runtime; without it the plugin's pods could not start.
            self.act(ClusterAct::Await {
                what: "k3s has found NVIDIA's container runtime".to_owned(),
                arguments: ["get", "runtimeclass", "nvidia", "--output=name"].map(str::to_owned).into(),
                wanted: Awaited::Anything,
                limit_s: NODE_S,
            });
            self.chart(Chart {
                name: "nvidia-device-plugin",
                file: "charts/nvidia-device-plugin.tgz",
                namespace: texts::PRIVILEGED,
                why: "pods get GPUs through it",
                values: serde_json::json!({ "runtimeClassName": "nvidia" }),
            });
        }
    }

    fn chart(&mut self, chart: Chart) {
        let Chart { name, file, namespace, why, values } = chart;
        let archive = format!("{name}-{}.tgz", bundle::version(file));
        self.place(file, format!("{}/{archive}", layout::CHARTS), 0o600, "k3s serves it to itself");
        self.act(ClusterAct::AddOn {
            kind: AddOnKind::HelmChart,
            name: name.to_owned(),
            path: format!("{}/fettle-{name}.yaml", layout::MANIFESTS).into(),
            text: texts::helm_chart(name, &archive, namespace, &values),
            why: why.to_owned(),
        });
    }

    fn fettle(&mut self, chart: &Artifact, secrets: Vec<Utf8PathBuf>) {
        let path = Utf8PathBuf::from(format!("{}/fettle-{}.tgz", layout::OURS, self.release.name()));
        self.act(ClusterAct::Place {
            from: chart.origin.clone(),
            path: path.clone(),
            sha256: chart.sha256.clone(),
            mode: 0o644,
            why: "Fettle's chart; the release before has its own".to_owned(),
        });
        let text = values::render(self.answers);
        let values_sha256 = sha256(text.as_bytes());
        self.file(
            layout::VALUES,
            0o600,
            Keeping::Managed,
            text,
            "what the answers mean to the chart; no secret is in it",
        );
        let (namespace, name) = (NAMESPACE.to_owned(), RELEASE_NAME.to_owned());
        self.act(ClusterAct::Release(HelmRelease {
            namespace: namespace.clone(),
            name: name.clone(),
            chart: path,
            chart_sha256: chart.sha256.clone(),
            values: layout::VALUES.into(),
            values_sha256,
            secrets,
        }));
        let k3s = &self.answers.k3s;
        if !k3s.host.is_empty() {
            let scheme = if k3s.tls == "none" { "http" } else { "https" };
            self.act(ClusterAct::Ingress { url: format!("{scheme}://{}/", k3s.host), limit_s: INGRESS_S });
        }
        if self.answers.smoke {
            self.act(ClusterAct::Test { namespace, name });
        }
    }
}
