//! What is done to a cluster: files by their checksums, objects through `k3s kubectl`, Fettle's own chart through `helm`. A
//! secret goes to them on standard input and nowhere else.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use super::{ActError, ActResult, Check, Description, Keeping, Saving, Trace, Way, file};
use crate::host::{Attrs, Entry, Host, HostView, PAUSE, Said, UnitVerb, sha256};
use crate::k3s::bundle::Origin;
use crate::k3s::layout::{AGENT_UNIT, CONFIG, HELM, K3S, KUBECONFIG, UNIT, UNIT_FILE};

/// Where k3s takes HelmChart resources from.
const SYSTEM: &str = "kube-system";
/// Of what was applied, as an annotation.
const DIGEST: &str = "fettle-installer/digest";
/// Who applied it, for the API server.
const MANAGER: &str = "fettle-installer";
/// One question to the API server.
const REQUEST: &str = "--request-timeout=10s";
/// Removing an add-on waits for its pods.
const REMOVAL: &str = "--timeout=5m";
/// Images are loaded and pods become ready meanwhile.
const RELEASE: &str = "--timeout=10m";
/// How long an add-on may take to be installed: its images are loaded, its webhooks become ready.
const ADD_ON_S: u32 = 600;
/// Interfaces that pods reach each other by.
const INTERFACES: [&str; 3] = ["cni0", "flannel.1", "flannel-v6.1"];
/// What is mounted there is a pod's.
const MOUNTS: [&str; 2] = ["/run/k3s", "/var/lib/kubelet"];
const NAMESPACES: &str = "/run/netns/cni-";
/// The inner one first: what of it was there before keeps the outer one.
const LEFT_BEHIND: [&str; 6] =
    ["/run/k3s", "/run/flannel", "/var/lib/kubelet/pods", "/var/lib/kubelet", "/var/log/pods", "/var/log/containers"];
const GROUPS: [&str; 3] = [
    "/sys/fs/cgroup/system.slice/k3s.service",
    "/sys/fs/cgroup/system.slice/k3s-agent.service",
    "/sys/fs/cgroup/kubepods.slice",
];
const LINKS: &str = "/sys/class/net";
const MOUNTED: &str = "/proc/self/mounts";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "do")]
pub enum Act {
    /// A file with known bytes, out of a bundle or from a mirror.
    Place {
        from: Origin,
        path: Utf8PathBuf,
        sha256: String,
        mode: u32,
        why: String,
    },
    /// What the kubelet asks of the kernel.
    Sysctl {
        name: String,
        value: String,
    },
    /// Does nothing, until it is taken back: then pods are ended, with all that they left.
    Pods,
    /// Waits until a question to the cluster is answered as it should be.
    Await {
        what: String,
        arguments: Vec<String>,
        wanted: Wanted,
        limit_s: u32,
    },
    /// Images of a newer archive, without a restart of k3s.
    Images {
        archive: Utf8PathBuf,
    },
    /// A Secret out of files that root alone reads.
    Secret {
        namespace: String,
        name: String,
        files: BTreeMap<String, Utf8PathBuf>,
        way: Way,
    },
    /// A resource in the folder from which k3s takes what it installs.
    AddOn {
        kind: Kind,
        name: String,
        path: Utf8PathBuf,
        text: String,
        why: String,
    },
    /// The cluster's own state, before something in it is exchanged.
    Snapshot,
    Release(Release),
    Test {
        namespace: String,
        name: String,
    },
    /// Ends well when Fettle answers through the cluster's ingress.
    Ingress {
        url: String,
        limit_s: u32,
    },
    /// A node that has joined says itself that it is well.
    Kubelet {
        limit_s: u32,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    HelmChart,
    HelmChartConfig,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::HelmChart => "helmchart",
            Self::HelmChartConfig => "helmchartconfig",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// Words, each of them `True`.
    AllTrue,
    Anything,
}

impl Wanted {
    fn is_met(&self, said: &Said) -> bool {
        let mut words = said.text.split_whitespace().peekable();
        said.ok
            && words.peek().is_some()
            && match self {
                Self::AllTrue => words.all(|word| word == "True"),
                Self::Anything => true,
            }
    }
}

/// Fettle's own chart with its values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    pub namespace: String,
    pub name: String,
    pub chart: Utf8PathBuf,
    pub chart_sha256: String,
    pub values: Utf8PathBuf,
    pub values_sha256: String,
    /// Of the Secret that the values name: with another content pods begin anew.
    pub secrets: Vec<Utf8PathBuf>,
}

/// One revision of a release.
#[derive(Debug, Deserialize)]
struct Revision {
    revision: u32,
    status: String,
    #[serde(default)]
    description: String,
}

impl Act {
    pub(super) fn key(&self) -> String {
        match self {
            Self::Place { path, .. } => format!("place:{path}"),
            Self::Sysctl { name, .. } => format!("sysctl:{name}"),
            Self::Pods => "pods".to_owned(),
            Self::Await { what, .. } => format!("await:{what}"),
            Self::Images { archive } => format!("images:{archive}"),
            Self::Secret { namespace, name, way: Way::Forth, .. } => format!("cluster-secret:{namespace}/{name}"),
            Self::Secret { namespace, name, way: Way::Back, .. } => format!("cluster-secret-back:{namespace}/{name}"),
            Self::AddOn { name, .. } => format!("add-on:{name}"),
            Self::Snapshot => "etcd-snapshot".to_owned(),
            Self::Release(release) => format!("helm:{}/{}", release.namespace, release.name),
            Self::Test { .. } => "helm-test".to_owned(),
            Self::Ingress { .. } => "ingress".to_owned(),
            Self::Kubelet { .. } => "kubelet".to_owned(),
        }
    }

    pub(super) fn is_lasting(&self) -> bool {
        !matches!(
            self,
            Self::Await { .. }
                | Self::Images { .. }
                | Self::Snapshot
                | Self::Test { .. }
                | Self::Ingress { .. }
                | Self::Kubelet { .. }
                | Self::Secret { way: Way::Back, .. }
        )
    }

    /// Decides whether what was done counts.
    pub(crate) fn is_gate(&self) -> bool {
        matches!(self, Self::Test { .. } | Self::Ingress { .. } | Self::Kubelet { .. })
    }

    /// Needed only because of something else.
    pub(crate) fn is_companion(&self) -> bool {
        matches!(self, Self::Images { .. } | Self::Snapshot | Self::Secret { way: Way::Back, .. })
    }

    /// The keys of what it is made of.
    pub(crate) fn made_of(&self) -> Vec<String> {
        let secrets =
            |paths: &mut dyn Iterator<Item = &Utf8PathBuf>| paths.map(|path| format!("secret:{path}")).collect();
        match self {
            Self::Secret { files, way: Way::Forth, .. } => secrets(&mut files.values()),
            Self::Release(release) => secrets(&mut release.secrets.iter()),
            // Then k3s is started anew, and what it said before is no answer any more.
            Self::Await { .. } => vec![format!("place:{K3S}"), format!("file:{CONFIG}"), format!("file:{UNIT_FILE}")],
            _ => Vec::new(),
        }
    }

    /// Whether it is needed besides what `changed` names.
    pub(crate) fn is_needed(&self, changed: &BTreeSet<String>, first: bool) -> bool {
        match self {
            // At the first start k3s takes them itself.
            Self::Images { archive } => !first && changed.contains(&format!("place:{archive}")),
            Self::Snapshot => {
                !first && changed.iter().any(|key| key.starts_with("helm:") || *key == format!("place:{K3S}"))
            }
            Self::Secret { namespace, name, way: Way::Back, .. } => {
                changed.contains(&format!("cluster-secret:{namespace}/{name}"))
            }
            _ => true,
        }
    }

    pub(super) fn describe(&self) -> Description {
        let (what, why, revert) = match self {
            Self::Place { from, path, sha256, why, .. } => (
                format!("put {from} at {path}, with the checksum {}…", &sha256[..12]),
                why.as_str(),
                "becomes what it was before",
            ),
            Self::Sysctl { name, value } => (
                format!("set {name} to {value}"),
                "the kubelet refuses a kernel that is set otherwise",
                "becomes what it was before",
            ),
            Self::Pods => (
                "on the way back: end all pods".to_owned(),
                "they outlive k3s, with mounts and interfaces of their own",
                "they are ended, and what was there before k3s stays; rules that Kubernetes put into the firewall stay until the next boot",
            ),
            Self::Await { what, limit_s, .. } => {
                (format!("wait until {what} (up to {limit_s} s)"), "what follows needs it", "nothing")
            }
            Self::Images { archive } => (
                format!("load the images of {archive}"),
                "pods of the new release need them",
                "they stay until nobody needs them",
            ),
            Self::Secret { namespace, name, files, way: Way::Forth } => (
                format!(
                    "make the Secret {name} in {namespace} of {}",
                    files.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
                ),
                "pods get their secrets from it; it is handed over on standard input",
                "is removed if it was not there",
            ),
            Self::Secret { name, way: Way::Back, .. } => (
                format!("on the way back: make the Secret {name} anew"),
                "the files will have their earlier values then",
                "it holds the earlier values, and pods begin anew",
            ),
            Self::AddOn { kind, name, why, .. } => (
                format!("let k3s install {name} ({})", kind.name()),
                why.as_str(),
                "k3s removes it, or installs what was there before",
            ),
            Self::Snapshot => (
                "take a snapshot of etcd".to_owned(),
                "the cluster's own state can be brought back, whatever the upgrade does",
                "nothing; k3s keeps the twelve newest",
            ),
            Self::Release(Release { namespace, name, .. }) => (
                format!("helm upgrade --install {name} in {namespace}"),
                "Fettle itself; helm waits until its pods are ready, and goes back by itself when they are not",
                "helm goes back to the revision before, or uninstalls; volumes and generated Secrets stay",
            ),
            Self::Test { .. } => (
                "helm test".to_owned(),
                "ready is what a pod says; that a Task passes through all of them is what counts",
                "nothing",
            ),
            Self::Ingress { url, .. } => (
                format!("wait until {url} answers through the ingress"),
                "people and webhooks come in there",
                "nothing",
            ),
            Self::Kubelet { .. } => (
                "wait until the kubelet of this node is well".to_owned(),
                "then the cluster can give it pods",
                "nothing",
            ),
        };
        Description { what, why: why.to_owned(), revert: revert.to_owned() }
    }

    pub(super) fn check(&self, host: &dyn HostView, known: Option<&Trace>) -> ActResult<Check> {
        let needed_unless = |done: bool, what: &str| if done { Check::Done } else { Check::Needed(what.to_owned()) };
        Ok(match self {
            Self::Place { path, sha256, mode, .. } => check_place(host, path, sha256, *mode, known)?,
            Self::Sysctl { name, value } => {
                let now = sysctl(host, name)?;
                needed_unless(
                    now.as_deref() == Some(value),
                    &format!("it is {}", now.as_deref().unwrap_or("not there")),
                )
            }
            Self::Pods => needed_unless(known.is_some(), ""),
            Self::Await { arguments, wanted, .. } => {
                let said = kubectl_asked(host, &words(arguments))?;
                needed_unless(said.is_some_and(|said| wanted.is_met(&said)), "not yet")
            }
            Self::Secret { namespace, name, files, way: Way::Forth } => {
                let wanted = digest_of_files(host, files)?;
                match held(host, namespace, name)? {
                    Held::Marked(digest) => needed_unless(Some(digest) == wanted, "it has other values"),
                    Held::Unmarked => Check::Foreign(format!("the Secret {name} in {namespace} is somebody else's")),
                    Held::Absent => Check::Needed("it is not there".to_owned()),
                    Held::Unknown(why) => Check::Needed(format!("whether it is there is not known: {why}")),
                }
            }
            Self::AddOn { path, text, .. } => {
                file::check_file(host, path, &Attrs::root(0o600), text.as_bytes(), Keeping::Managed, known)?
            }
            Self::Release(release) => {
                let history = history(host, release)?.unwrap_or_default();
                let wanted = release.description(host)?;
                needed_unless(
                    running(&history).is_some_and(|running| running.description == wanted),
                    "chart, values or secrets differ, or it is not there",
                )
            }
            // Whether these are needed follows from what else is done; the planner drops them.
            Self::Images { .. } | Self::Snapshot | Self::Secret { way: Way::Back, .. } => Check::Needed(String::new()),
            Self::Test { .. } | Self::Ingress { .. } | Self::Kubelet { .. } => Check::Done,
        })
    }

    pub(super) fn before(&self, host: &mut dyn Host, saving: &Saving<'_>) -> ActResult<Trace> {
        Ok(match self {
            Self::Place { path, .. } | Self::AddOn { path, .. } => file::save(host, path, saving)?,
            Self::Sysctl { name, .. } => Trace::Value { text: sysctl(host, name)? },
            Self::Pods => Trace::Places(places(host)?),
            // Where nothing runs, nothing was changed that had to come back.
            Self::Secret { way: Way::Back, .. } if !runs(host)? => Trace::Nothing,
            Self::Secret { namespace, name, .. } => match held(host, namespace, name)? {
                Held::Absent => Trace::Value { text: None },
                Held::Marked(digest) => Trace::Value { text: Some(digest) },
                Held::Unmarked => Trace::Value { text: Some(String::new()) },
                Held::Unknown(why) => {
                    return Err(ActError::Refused(format!(
                        "the cluster does not say whether there is a Secret {name} in {namespace} already ({why}), and without knowing \
                         it could not be taken back what is done to it. Wait until `k3s kubectl get nodes` answers, and try again"
                    )));
                }
            },
            Self::Release(release) => {
                let Some(history) = history(host, release)? else {
                    return Err(ActError::Refused("helm cannot be asked which revision runs".to_owned()));
                };
                Trace::Revision { number: deployed(&history) }
            }
            _ => Trace::Nothing,
        })
    }

    pub(super) fn execute(&self, host: &mut dyn Host) -> ActResult<Trace> {
        match self {
            Self::Place { from, path, sha256, mode, .. } => return place(host, from, path, sha256, *mode),
            Self::Sysctl { name, value } => set_sysctl(host, name, value)?,
            Self::Await { what, arguments, wanted, limit_s } => {
                wait(host, *limit_s, |host| {
                    let said = kubectl_asked(host, &words(arguments))?;
                    let met = said.as_ref().is_some_and(|said| wanted.is_met(said));
                    let last = said.map_or_else(|| "k3s is not there".to_owned(), |said| said.text);
                    Ok(if met { Ok(()) } else { Err(format!("{what}: not yet; k3s says: {last}")) })
                })?
                .map_err(ActError::Refused)?;
            }
            Self::Images { archive } => {
                succeed(host, K3S, &["ctr", "--namespace=k8s.io", "images", "import", archive.as_str()])?;
            }
            Self::Secret { namespace, name, files, way: Way::Forth } => {
                apply_secret(host, namespace, name, files)?;
                return Ok(Trace::Value { text: digest_of_files(host, files)? });
            }
            Self::AddOn { kind, name, path, text, .. } => {
                host.write(path, text.as_bytes(), &Attrs::root(0o600))?;
                if *kind == Kind::HelmChart {
                    installed(host, name)?;
                }
                return file::seen(host, path);
            }
            Self::Snapshot => succeed(host, K3S, &["etcd-snapshot", "save", "--name=before-fettle"])?,
            Self::Release(release) => return release.upgrade(host),
            Self::Test { namespace, name } => {
                let said = helm(host, &["test", name, "--namespace", namespace, RELEASE])?;
                if !said.ok {
                    return Err(ActError::Gate(format!("helm test: {}", said.text)));
                }
            }
            Self::Ingress { url, limit_s } => {
                wait(host, *limit_s, |host| {
                    Ok(match host.through_ingress(url) {
                        Ok(answer) if answer.status == 200 => Ok(()),
                        Ok(answer) => Err(format!("{url} answers {} through the ingress", answer.status)),
                        Err(error) => Err(format!("{url} does not answer through the ingress: {error}")),
                    })
                })?
                .map_err(ActError::Gate)?;
            }
            Self::Kubelet { limit_s } => {
                const URL: &str = "http://127.0.0.1:10248/healthz";
                wait(host, *limit_s, |host| {
                    Ok(match host.get(URL) {
                        Ok(answer) if answer.status == 200 => Ok(()),
                        Ok(answer) => Err(format!("the kubelet answers {}: {}", answer.status, answer.body.trim())),
                        Err(error) => Err(format!("the kubelet does not answer: {error}")),
                    })
                })?
                .map_err(ActError::Gate)?;
            }
            Self::Pods | Self::Secret { way: Way::Back, .. } => {}
        }
        Ok(Trace::Nothing)
    }

    pub(super) fn revert(&self, host: &mut dyn Host, before: &Trace, after: Option<&Trace>) -> ActResult<()> {
        match self {
            Self::Place { path, .. } => {
                host.remove(&beside(path))?;
                file::revert_file(host, path, before, after)
            }
            Self::Sysctl { name, .. } => match before {
                Trace::Value { text: Some(value) } => set_sysctl(host, name, value),
                _ => Ok(()),
            },
            Self::Pods => match before {
                Trace::Places(places) => end_pods(host, places),
                // As an earlier installer noted it.
                _ => end_pods(host, &Places::default()),
            },
            Self::Secret { namespace, name, way: Way::Forth, .. } => match before {
                Trace::Value { text: None } if runs(host)? => {
                    let arguments = ["delete", "secret", name, "--namespace", namespace, "--ignore-not-found", REMOVAL];
                    kubectl(host, &arguments)
                }
                _ => Ok(()),
            },
            Self::Secret { namespace, name, files, way: Way::Back } => match before {
                Trace::Value { text: Some(digest) } if !digest.is_empty() && runs(host)? => {
                    apply_secret(host, namespace, name, files)?;
                    let of_release = format!("--selector=app.kubernetes.io/instance={}", crate::k3s::RELEASE_NAME);
                    kubectl(
                        host,
                        &["rollout", "restart", "deployment,daemonset", "--namespace", namespace, &of_release],
                    )
                }
                _ => Ok(()),
            },
            Self::AddOn { kind, name, path, .. } => {
                file::revert_file(host, path, before, after)?;
                match before {
                    Trace::Path { entry: Entry::Absent, .. } if runs(host)? => {
                        let arguments =
                            ["delete", kind.name(), name, "--namespace", SYSTEM, "--ignore-not-found", REMOVAL];
                        kubectl(host, &arguments)
                    }
                    Trace::Path { .. } if *kind == Kind::HelmChart && runs(host)? => installed(host, name),
                    _ => Ok(()),
                }
            }
            Self::Release(release) => match before {
                Trace::Revision { number } if runs(host)? => release.go_back(host, *number),
                _ => Ok(()),
            },
            Self::Await { .. }
            | Self::Images { .. }
            | Self::Snapshot
            | Self::Test { .. }
            | Self::Ingress { .. }
            | Self::Kubelet { .. } => Ok(()),
        }
    }
}

impl Release {
    /// What a revision is called by: another chart, other values or secrets, another description.
    fn description(&self, host: &dyn HostView) -> ActResult<String> {
        let mut text = format!("{} {}", self.chart_sha256, self.values_sha256);
        for path in &self.secrets {
            if let Entry::File { sha256, .. } = host.entry(path)? {
                text.push_str(&sha256);
            }
        }
        Ok(format!("{MANAGER} {}", &sha256(text.as_bytes())[..16]))
    }

    fn upgrade(&self, host: &mut dyn Host) -> ActResult<Trace> {
        let history = history(host, self)?.unwrap_or_default();
        self.mend(host, &history)?;
        let description = format!("--description={}", self.description(host)?);
        let arguments = [
            "upgrade",
            "--install",
            &self.name,
            self.chart.as_str(),
            "--namespace",
            &self.namespace,
            "--values",
            self.values.as_str(),
            &description,
            "--create-namespace",
            "--rollback-on-failure",
            "--wait",
            RELEASE,
        ];
        let said = helm(host, &arguments)?;
        if !said.ok {
            return Err(ActError::Gate(format!("helm upgrade: {}", said.text)));
        }
        Ok(Trace::Revision { number: deployed(&self::history(host, self)?.unwrap_or_default()) })
    }

    /// A helm that was killed leaves a revision that is neither here nor there, and refuses the next one because of it.
    fn mend(&self, host: &mut dyn Host, history: &[Revision]) -> ActResult<()> {
        if !history.last().is_some_and(|last| last.status.starts_with("pending-")) {
            return Ok(());
        }
        match deployed(history) {
            Some(number) => self.roll_back(host, number),
            None => self.remove(host),
        }
    }

    fn go_back(&self, host: &mut dyn Host, number: Option<u32>) -> ActResult<()> {
        let history = history(host, self)?.unwrap_or_default();
        match number {
            None => self.remove(host),
            // Nothing came after it.
            Some(number) if history.last().is_some_and(|last| last.revision == number) => Ok(()),
            Some(number) => self.roll_back(host, number),
        }
    }

    fn roll_back(&self, host: &mut dyn Host, number: u32) -> ActResult<()> {
        let number = number.to_string();
        let said = helm(host, &["rollback", &self.name, &number, "--namespace", &self.namespace, "--wait", RELEASE])?;
        refused_unless(said, "helm rollback")
    }

    fn remove(&self, host: &mut dyn Host) -> ActResult<()> {
        let arguments =
            ["uninstall", &self.name, "--namespace", &self.namespace, "--ignore-not-found", "--wait", REMOVAL];
        let said = helm(host, &arguments)?;
        refused_unless(said, "helm uninstall")
    }
}

fn refused_unless(said: Said, what: &str) -> ActResult<()> {
    if said.ok { Ok(()) } else { Err(ActError::Refused(format!("{what}: {}", said.text))) }
}

fn deployed(history: &[Revision]) -> Option<u32> {
    history.iter().rev().find(|one| one.status == "deployed").map(|one| one.revision)
}

/// The revision whose content runs: helm describes one that it went back to by the number of that one.
fn running(history: &[Revision]) -> Option<&Revision> {
    let last = history.last().filter(|last| last.status == "deployed")?;
    match last.description.strip_prefix("Rollback to ").and_then(|number| number.parse::<u32>().ok()) {
        Some(number) => history.iter().find(|one| one.revision == number),
        None => Some(last),
    }
}

/// None when helm or the cluster cannot be asked.
fn history(host: &dyn HostView, release: &Release) -> ActResult<Option<Vec<Revision>>> {
    if host.entry(HELM.into())?.is_absent() || host.entry(KUBECONFIG.into())?.is_absent() {
        return Ok(None);
    }
    let arguments = [
        "history",
        &release.name,
        "--namespace",
        &release.namespace,
        "--kubeconfig",
        KUBECONFIG,
        "--output=json",
        "--max=20",
    ];
    let said = host.ask(HELM.into(), &arguments)?;
    if !said.ok {
        return Ok(said.text.contains("not found").then(Vec::new));
    }
    let read = serde_json::from_str(&said.text);
    read.map(Some).map_err(|error| ActError::Refused(format!("helm history makes no sense: {error}")))
}

fn helm(host: &mut dyn Host, arguments: &[&str]) -> ActResult<Said> {
    Ok(host.change(HELM.into(), &[arguments, &["--kubeconfig", KUBECONFIG]].concat())?)
}

fn words(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

/// None when there is no k3s to ask.
fn kubectl_asked(host: &dyn HostView, arguments: &[&str]) -> ActResult<Option<Said>> {
    if host.entry(K3S.into())?.is_absent() {
        return Ok(None);
    }
    Ok(Some(host.ask(K3S.into(), &[&["kubectl"], arguments, &[REQUEST]].concat())?))
}

fn kubectl(host: &mut dyn Host, arguments: &[&str]) -> ActResult<()> {
    let said = host.change(K3S.into(), &[&["kubectl"], arguments].concat())?;
    if said.ok {
        return Ok(());
    }
    Err(ActError::Refused(format!(
        "k3s kubectl {}: {}. If the cluster is beyond help, stop it (`systemctl stop k3s`) and go on: what is in it is left alone then",
        arguments.join(" "),
        said.text
    )))
}

fn succeed(host: &mut dyn Host, program: &str, arguments: &[&str]) -> ActResult<()> {
    let said = host.change(program.into(), arguments)?;
    refused_unless(said, &format!("{program} {}", arguments.join(" ")))
}

/// A cluster that does not run is not asked to change: nothing of ours runs in it either.
fn runs(host: &dyn HostView) -> ActResult<bool> {
    Ok(host.unit(UNIT)?.active)
}

/// Looks until it is as it should be. The outer error ends the looking, the inner one is what was seen last.
fn wait(
    host: &mut dyn Host,
    limit_s: u32,
    mut look: impl FnMut(&dyn HostView) -> ActResult<Result<(), String>>,
) -> ActResult<Result<(), String>> {
    let looks = (f64::from(limit_s) / PAUSE.as_secs_f64()).ceil() as usize;
    let mut last = String::new();
    for _ in 0..looks.max(1) {
        match look(host)? {
            Ok(()) => return Ok(Ok(())),
            Err(what) => last = what,
        }
        host.pause();
    }
    Ok(Err(format!("{last} (within {limit_s} s)")))
}

/// k3s installs a chart by a job, which is gone or complete afterwards; what it says of the chart stays.
fn installed(host: &mut dyn Host, name: &str) -> ActResult<()> {
    let job = format!("helm-install-{name}");
    let path = "--output=jsonpath={.status.conditions[?(@.type==\"Complete\")].status}";
    wait(host, ADD_ON_S, |host| {
        let said = kubectl_asked(host, &["get", "job", &job, "--namespace", SYSTEM, path])?;
        let last = said.as_ref().map(|said| said.text.clone()).unwrap_or_default();
        let met = said.is_some_and(|said| Wanted::AllTrue.is_met(&said));
        Ok(if met { Ok(()) } else { Err(format!("{name} is not installed: its job {job} is not complete {last}")) })
    })?
    .map_err(ActError::Refused)
}

fn check_place(
    host: &dyn HostView,
    path: &Utf8Path,
    wanted: &str,
    mode: u32,
    known: Option<&Trace>,
) -> ActResult<Check> {
    let ours =
        |now: &str| matches!(known, Some(Trace::Path { entry: Entry::File { sha256, .. }, .. }) if sha256 == now);
    Ok(match host.entry(path)? {
        Entry::Absent => Check::Needed("it is not there".to_owned()),
        Entry::File { sha256, attrs } if sha256 == wanted && attrs == Attrs::root(mode) => Check::Done,
        Entry::File { sha256, .. } if sha256 == wanted => Check::Needed("other mode or owner".to_owned()),
        Entry::File { sha256, .. } if ours(&sha256) => Check::Needed("another one is there".to_owned()),
        Entry::File { .. } => Check::Foreign("the content differs".to_owned()),
        _ => Check::Blocked(format!("{path} is there and no regular file; move it away")),
    })
}

/// Where a file waits until its checksum was compared.
fn beside(path: &Utf8Path) -> Utf8PathBuf {
    path.with_file_name(format!(".{}.unverified", path.file_name().unwrap_or("file")))
}

fn place(host: &mut dyn Host, from: &Origin, path: &Utf8Path, wanted: &str, mode: u32) -> ActResult<Trace> {
    if matches!(host.entry(path)?, Entry::File { sha256, .. } if sha256 == wanted) {
        host.set_attrs(path, &Attrs::root(mode))?;
        return file::seen(host, path);
    }
    let staging = beside(path);
    match from {
        Origin::File(source) => host.copy(source, &staging, &Attrs::root(0o600))?,
        Origin::Url(url) => host.fetch(url, &staging, &Attrs::root(0o600))?,
    }
    match host.entry(&staging)? {
        // Nobody can run it before.
        Entry::File { sha256, .. } if sha256 == wanted => {
            host.set_attrs(&staging, &Attrs::root(mode))?;
            host.rename(&staging, path)?;
        }
        _ => {
            host.remove(&staging)?;
            return Err(ActError::Refused(format!("{from} does not have the checksum {wanted}; get it again")));
        }
    }
    file::seen(host, path)
}

fn sysctl_file(name: &str) -> Utf8PathBuf {
    Utf8Path::new("/proc/sys").join(name.replace('.', "/"))
}

fn sysctl(host: &dyn HostView, name: &str) -> ActResult<Option<String>> {
    let path = sysctl_file(name);
    if host.entry(&path)?.is_absent() {
        return Ok(None);
    }
    Ok(Some(String::from_utf8_lossy(&host.read(&path)?).trim().to_owned()))
}

fn set_sysctl(host: &mut dyn Host, name: &str, value: &str) -> ActResult<()> {
    succeed(host, "sysctl", &["--quiet", "--write", &format!("{name}={value}")])
}

/// What the cluster says of a Secret.
#[derive(Debug, PartialEq, Eq)]
enum Held {
    Absent,
    /// Of ours, with the digest of what it was made of.
    Marked(String),
    /// Somebody else has made it.
    Unmarked,
    /// Nobody can be asked, or the answer makes no sense; the text says why.
    Unknown(String),
}

fn held(host: &dyn HostView, namespace: &str, name: &str) -> ActResult<Held> {
    // The name as well: without it a Secret that is not ours would look like none.
    let path = format!("--output=jsonpath={{.metadata.name}} {{.metadata.annotations.{DIGEST}}}");
    let arguments = ["get", "secret", name, "--namespace", namespace, "--ignore-not-found", &path];
    let Some(said) = kubectl_asked(host, &arguments)? else {
        return Ok(Held::Unknown("there is no k3s yet".to_owned()));
    };
    let words: Vec<&str> = said.text.split_whitespace().collect();
    Ok(match words[..] {
        [] if said.ok => Held::Absent,
        [there] if said.ok && there == name => Held::Unmarked,
        [there, digest] if said.ok && there == name => Held::Marked(digest.to_owned()),
        _ => Held::Unknown(format!("k3s says: {}", said.text.trim())),
    })
}

/// Of names and contents; none while a file is missing.
fn digest_of_files(host: &dyn HostView, files: &BTreeMap<String, Utf8PathBuf>) -> ActResult<Option<String>> {
    let mut text = String::new();
    for (key, path) in files {
        match host.entry(path)? {
            Entry::File { sha256, .. } => text.push_str(&format!("{key} {sha256}\n")),
            _ => return Ok(None),
        }
    }
    Ok(Some(sha256(text.as_bytes())[..16].to_owned()))
}

fn apply_secret(
    host: &mut dyn Host,
    namespace: &str,
    name: &str,
    files: &BTreeMap<String, Utf8PathBuf>,
) -> ActResult<()> {
    let mut data = BTreeMap::new();
    for (key, path) in files {
        data.insert(key, STANDARD.encode(host.read(path)?));
    }
    let digest = digest_of_files(host, files)?;
    let manifest = serde_json::json!({
        "apiVersion": "v1", "kind": "List", "items": [
            {
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": { "name": namespace, "labels": { "pod-security.kubernetes.io/enforce": "restricted" } },
            },
            {
                "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
                "metadata": { "name": name, "namespace": namespace, "annotations": { DIGEST: digest } },
                "data": data,
            },
        ],
    });
    // On the server's side: otherwise the whole Secret would be kept once more, in an annotation of its own.
    let manager = format!("--field-manager={MANAGER}");
    let arguments = ["kubectl", "apply", "--server-side", "--force-conflicts", &manager, "--filename=-"];
    let said = host.feed(K3S.into(), &arguments, manifest.to_string().as_bytes())?;
    refused_unless(said, "k3s kubectl apply")
}

fn is_a_pods(point: &str) -> bool {
    let below = |of: &str| point.strip_prefix(of).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    MOUNTS.iter().any(|of| below(of)) || point.starts_with(NAMESPACES)
}

/// Where pods leave something behind: what was there before them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Places {
    /// Folders, each with the names in it.
    pub folders: BTreeMap<Utf8PathBuf, Vec<String>>,
    pub mounts: Vec<String>,
    pub interfaces: Vec<String>,
}

fn places(host: &dyn HostView) -> ActResult<Places> {
    let mut folders = BTreeMap::new();
    for folder in LEFT_BEHIND.map(Utf8Path::new) {
        if !host.entry(folder)?.is_absent() {
            folders.insert(folder.to_owned(), host.list(folder)?);
        }
    }
    let mut interfaces = Vec::new();
    for interface in INTERFACES {
        if !host.entry(&Utf8Path::new(LINKS).join(interface))?.is_absent() {
            interfaces.push(interface.to_owned());
        }
    }
    Ok(Places { folders, mounts: mounts(host)?, interfaces })
}

/// Mount points where pods have theirs, the inner one first.
fn mounts(host: &dyn HostView) -> ActResult<Vec<String>> {
    let path = Utf8Path::new(MOUNTED);
    if host.entry(path)?.is_absent() {
        return Ok(Vec::new());
    }
    let text = String::from_utf8_lossy(&host.read(path)?).into_owned();
    let points = text.lines().filter_map(|line| line.split(' ').nth(1)).filter(|point| is_a_pods(point));
    let mut points: Vec<String> = points.map(str::to_owned).collect();
    points.reverse();
    Ok(points)
}

/// Without the script that comes with k3s: it would write the host's firewall anew.
fn end_pods(host: &mut dyn Host, before: &Places) -> ActResult<()> {
    for unit in [UNIT, AGENT_UNIT] {
        if host.unit(unit)?.active {
            host.units(UnitVerb::Stop, unit)?;
        }
    }
    for group in GROUPS {
        host.end_processes(group.into())?;
    }
    for point in mounts(host)?.iter().filter(|point| !before.mounts.contains(point)) {
        if !host.change("umount".into(), &[point])?.ok {
            succeed(host, "umount", &["--lazy", point])?;
        }
    }
    for interface in INTERFACES {
        let ours = !before.interfaces.iter().any(|there| there == interface);
        if ours && !host.entry(&Utf8Path::new(LINKS).join(interface))?.is_absent() {
            succeed(host, "ip", &["link", "delete", interface])?;
        }
    }
    host.remove(KUBECONFIG.into())?;
    for folder in LEFT_BEHIND.map(Utf8Path::new) {
        match before.folders.get(folder) {
            None => host.remove_tree(folder)?,
            Some(names) => {
                for name in host.list(folder)?.iter().filter(|name| !names.contains(name)) {
                    remove(host, &folder.join(name))?;
                }
            }
        }
    }
    Ok(())
}

fn remove(host: &mut dyn Host, path: &Utf8Path) -> ActResult<()> {
    match host.entry(path)? {
        Entry::Dir { .. } => host.remove_tree(path)?,
        _ => host.remove(path)?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_a_pods_when_it_lies_below_and_not_when_its_name_only_begins_so() {
        for (point, is) in [
            ("/run/k3s", true),
            ("/run/k3s/containerd/io", true),
            ("/run/k3s-backup", false),
            ("/var/lib/kubelet/pods/uid/volumes", true),
            ("/var/lib/kubelet2", false),
            ("/var/lib", false),
            ("/run/netns/cni-1234", true),
            ("/run/netns/mine", false),
        ] {
            assert_eq!(is_a_pods(point), is, "{point}");
        }
    }
}
