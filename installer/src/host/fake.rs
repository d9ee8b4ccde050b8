//! A host in memory: files, users, units, and a service manager that knows just as much as is on its disk. It can be killed
//! before any change, in the middle of an append, or made to refuse one.

use std::collections::{BTreeMap, BTreeSet};

use camino::{Utf8Path, Utf8PathBuf};

use crate::k3s::layout::{DATA, HELM, K3S, KUBECONFIG, MANIFESTS};

use super::{Answer, Attrs, Entry, Host, HostError, HostResult, HostView, Owner, Said, UnitState, UnitVerb, sha256};

#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    File(Vec<u8>, Attrs),
    Dir(Attrs),
    Link(Utf8PathBuf),
}

/// What is true of the host, for comparison.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    nodes: BTreeMap<Utf8PathBuf, Node>,
    users: BTreeSet<String>,
    enabled: BTreeSet<String>,
    active: BTreeSet<String>,
    profiles: BTreeSet<Utf8PathBuf>,
    /// Unit files as systemd last read them.
    loaded: BTreeMap<Utf8PathBuf, Node>,
    pub cluster: Cluster,
    /// Control groups with processes that outlive their unit.
    processes: BTreeSet<Utf8PathBuf>,
}

/// What a k3s that runs here holds, for as long as its data is there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cluster {
    /// By name: what was handed over on standard input.
    pub secrets: BTreeMap<String, String>,
    /// Charts that k3s has installed, with the resource that asked for them.
    pub charts: BTreeMap<String, String>,
    /// Fettle's release: how it is described.
    pub release: Option<String>,
}

/// What goes wrong at the change with this number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The process is gone before it.
    Killed,
    /// The change is refused.
    Refused,
}

/// The panic that stands for SIGKILL.
pub struct Killed;

#[derive(Debug, Clone, Default)]
pub struct FakeHost {
    pub facts: Facts,
    pub fault: Option<(usize, Fault)>,
    changes: usize,
    /// Versions whose services never become ready.
    pub broken: BTreeSet<String>,
    /// No service starts any more, whatever it is made of.
    pub unstartable: bool,
    /// Versions whose services are ready, and do not work.
    pub smoking: BTreeSet<String>,
    /// Configurations that `check-config` refuses, by a piece of their text.
    pub refused_config: Option<&'static str>,
    /// Each run of a program of the cluster.
    pub calls: Vec<Vec<String>>,
    /// Revisions of Fettle's release: number, status, description.
    pub revisions: Vec<(u32, &'static str, String)>,
    /// A helm that is killed leaves its revision so.
    pub killed_helm: bool,
    /// The cluster does not answer this question, by how it begins, at the time with this number.
    pub deaf: Option<(&'static str, usize)>,
    asked: std::cell::Cell<usize>,
}

impl Facts {
    /// What is not as in `other`, by name: short enough to be read.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut found: Vec<String> = differing("path", &self.nodes, &other.nodes);
        found.extend(differing("loaded", &self.loaded, &other.loaded));
        for (what, ours, theirs) in [
            ("user", &self.users, &other.users),
            ("enabled", &self.enabled, &other.enabled),
            ("active", &self.active, &other.active),
        ] {
            found.extend(ours.symmetric_difference(theirs).map(|name| format!("{what} {name}")));
        }
        if self.cluster != other.cluster {
            found.push(format!("cluster {:?} instead of {:?}", self.cluster, other.cluster));
        }
        found
            .extend(self.processes.symmetric_difference(&other.processes).map(|group| format!("processes in {group}")));
        found.extend(self.profiles.symmetric_difference(&other.profiles).map(|path| format!("profile {path}")));
        found
    }
}

fn differing(what: &str, ours: &BTreeMap<Utf8PathBuf, Node>, theirs: &BTreeMap<Utf8PathBuf, Node>) -> Vec<String> {
    let paths: BTreeSet<&Utf8PathBuf> = ours.keys().chain(theirs.keys()).collect();
    let different = paths.into_iter().filter(|path| ours.get(*path) != theirs.get(*path));
    different.map(|path| format!("{what} {path}")).collect()
}

const NIXOS_MODULE: &str = crate::nixos::MODULE;
const UNITS: &str = "/etc/systemd/system";
const MOUNTS: &str = "/proc/self/mounts";
const MOUNTED: &str = "/var/lib/kubelet/pods/uid/volumes";
const LINKS: &str = "/sys/class/net";

impl FakeHost {
    /// A fresh machine: the folders of the system and root.
    pub fn fresh() -> Self {
        let mut host = Self::default();
        host.facts.users.insert("root".to_owned());
        for folder in [
            "/etc",
            "/etc/systemd",
            UNITS,
            "/etc/sysusers.d",
            "/etc/tmpfiles.d",
            "/etc/apparmor.d",
            "/opt",
            "/run",
            "/usr",
            "/usr/local",
            "/usr/local/bin",
            "/var",
            "/var/lib",
            "/var/log",
            "/srv",
        ] {
            host.facts.nodes.insert(folder.into(), Node::Dir(Attrs::root(0o755)));
        }
        host
    }

    /// A file that somebody else made.
    pub fn put(&mut self, path: &str, text: &str, mode: u32) {
        for parent in Utf8Path::new(path).ancestors().skip(1).filter(|path| path.as_str().len() > 1) {
            self.facts.nodes.entry(parent.to_owned()).or_insert_with(|| Node::Dir(Attrs::root(0o755)));
        }
        self.facts.nodes.insert(path.into(), Node::File(text.as_bytes().to_vec(), Attrs::root(mode)));
    }

    /// A user, and its group, that was there already.
    pub fn put_user(&mut self, name: &str) {
        self.facts.users.insert(name.to_owned());
    }

    pub fn text(&self, path: &str) -> Option<&str> {
        match self.facts.nodes.get(Utf8Path::new(path))? {
            Node::File(bytes, _) => str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    pub fn changes(&self) -> usize {
        self.changes
    }

    /// Everything below `path` is left out of comparisons.
    pub fn without(&self, path: &str) -> Facts {
        let mut facts = self.facts.clone();
        facts.nodes.retain(|node, _| !node.starts_with(path));
        facts
    }

    /// The release that `current` leads to, as its manifest names it.
    fn running(&self) -> Option<String> {
        if self.facts.loaded.contains_key(Utf8Path::new(NIXOS_MODULE)) {
            return Some("1.0.0".to_owned());
        }
        let Node::Link(target) = self.facts.nodes.get(Utf8Path::new("/opt/fettle/current"))? else { return None };
        let manifest = self.text(target.join("manifest.json").as_str())?;
        serde_json::from_str::<serde_json::Value>(manifest).ok()?["version"].as_str().map(str::to_owned)
    }

    fn changing(&mut self) -> HostResult<()> {
        self.changes += 1;
        match self.fault {
            Some((at, Fault::Killed)) if at == self.changes => std::panic::panic_any(Killed),
            Some((at, Fault::Refused)) if at == self.changes => {
                Err(HostError::Program("refused by the test".to_owned()))
            }
            _ => Ok(()),
        }
    }

    fn parent_of(&self, path: &Utf8Path) -> HostResult<()> {
        let parent = path.parent().expect("an absolute path");
        match self.facts.nodes.get(parent) {
            Some(Node::Dir(_)) => Ok(()),
            _ if parent == "/" => Ok(()),
            _ => Err(missing(parent)),
        }
    }

    fn units_on_disk(&self) -> BTreeMap<Utf8PathBuf, Node> {
        let below = self.facts.nodes.iter().filter(|(path, _)| path.starts_with(UNITS) && *path != UNITS);
        below.map(|(path, node)| (path.clone(), node.clone())).collect()
    }

    /// systemd knows `name` if it has read its file, or its template's.
    fn has_unit(&self, name: &str) -> bool {
        let template = name
            .split_once('@')
            .map(|(stem, rest)| format!("{stem}@.{}", rest.rsplit_once('.').map_or("service", |(_, suffix)| suffix)));
        let file = |name: &str| self.facts.loaded.contains_key(&Utf8Path::new(UNITS).join(name));
        file(name) || template.is_some_and(|template| file(&template))
    }
}

/// What `k3s kubectl` and `helm` do, as far as anybody can see from outside.
impl FakeHost {
    fn cluster_runs(&self) -> bool {
        let well = self.text(K3S).is_some_and(|program| !self.broken.contains(program));
        well && self.facts.active.contains("k3s.service")
    }

    /// What pods leave on a host; mounts and interfaces where the host shows its own.
    fn start_pods(&mut self) {
        for file in ["/run/k3s/socket", "/var/lib/kubelet/pods/uid/log", "/var/log/pods/fettle_dashboard/0.log"] {
            self.put(file, "of a pod", 0o600);
        }
        if let Some(mounts) = self.text(MOUNTS) {
            let mounts = format!("{mounts}tmpfs {MOUNTED} tmpfs rw 0 0\n");
            self.put(MOUNTS, &mounts, 0o444);
        }
        if self.facts.nodes.contains_key(Utf8Path::new(LINKS)) {
            self.put(&format!("{LINKS}/cni0"), "", 0o444);
        }
        self.facts.processes.insert(match self.facts.active.contains("k3s.service") {
            true => "/sys/fs/cgroup/system.slice/k3s.service".into(),
            false => "/sys/fs/cgroup/system.slice/k3s-agent.service".into(),
        });
    }

    fn take_manifest(&mut self, text: &str) {
        let resource: serde_json::Value = serde_json::from_str(text).expect("JSON is YAML");
        let name = resource["metadata"]["name"].as_str().expect("a name").to_owned();
        self.facts.cluster.charts.insert(name, text.to_owned());
    }

    fn ask_cluster(&self, arguments: &[&str]) -> Said {
        let said = |text: &str| Said { ok: true, text: text.to_owned() };
        if !self.cluster_runs() {
            return Said { ok: false, text: "connection refused".to_owned() };
        }
        if let Some((question, time)) = self.deaf
            && arguments.join(" ").starts_with(question)
        {
            self.asked.set(self.asked.get() + 1);
            if self.asked.get() == time {
                return Said { ok: false, text: "the server is currently unable to handle the request".to_owned() };
            }
        }
        match arguments {
            ["history", ..] if self.revisions.is_empty() => {
                Said { ok: false, text: "Error: release: not found".to_owned() }
            }
            ["history", ..] => {
                let list = self.revisions.iter().map(|(revision, status, description)| {
                    serde_json::json!({ "revision": revision, "status": status, "description": description })
                });
                said(&serde_json::Value::from(list.collect::<Vec<_>>()).to_string())
            }
            ["kubectl", "get", "nodes", ..] => said("True"),
            ["kubectl", "get", "runtimeclass", ..] => said("runtimeclass.node.k8s.io/nvidia"),
            ["kubectl", "get", "job", job, ..] => {
                let chart = job.trim_start_matches("helm-install-");
                said(if self.facts.cluster.charts.contains_key(chart) { "True" } else { "" })
            }
            ["kubectl", "get", "secret", name, ..] => {
                let Some(input) = self.facts.cluster.secrets.get(*name) else { return said("") };
                let list: serde_json::Value = serde_json::from_str(input).unwrap_or_default();
                let digest = list["items"][1]["metadata"]["annotations"]["fettle-installer/digest"].as_str();
                said(&format!("{name} {}", digest.unwrap_or_default()))
            }
            other => panic!("nobody taught it to answer {other:?}"),
        }
    }

    fn change_cluster(&mut self, program: &Utf8Path, arguments: &[&str], input: Option<&[u8]>) -> HostResult<Said> {
        let call = std::iter::once(program.as_str()).chain(arguments.iter().copied()).map(str::to_owned);
        self.calls.push(call.collect());
        // Killed at this change, helm has written its revision and not brought it to an end.
        let torn = matches!(self.fault, Some((at, Fault::Killed)) if at == self.changes + 1);
        let next = self.revisions.last().map_or(1, |(revision, ..)| revision + 1);
        if torn && self.killed_helm && arguments.first() == Some(&"upgrade") {
            self.revisions.push((next, "pending-upgrade", String::new()));
        }
        self.changing()?;
        let said = |ok: bool, text: &str| Ok(Said { ok, text: text.to_owned() });
        if !self.cluster_runs() {
            return said(false, "connection refused");
        }
        let pending = self.revisions.last().is_some_and(|(_, status, _)| status.starts_with("pending"));
        match arguments {
            ["kubectl", "apply", ..] => {
                let input = String::from_utf8(input.expect("a manifest").to_vec()).expect("JSON");
                self.facts.cluster.secrets.insert("fettle".to_owned(), input);
            }
            ["kubectl", "delete", "secret", name, ..] => drop(self.facts.cluster.secrets.remove(*name)),
            ["kubectl", "delete", _, name, ..] => drop(self.facts.cluster.charts.remove(*name)),
            ["upgrade", ..] if pending => {
                return said(
                    false,
                    "Error: UPGRADE FAILED: another operation (install/upgrade/rollback) is in progress",
                );
            }
            ["upgrade", _, _, chart, ..] => {
                let description = arguments.iter().find_map(|word| word.strip_prefix("--description="));
                let bad = self.text(chart).is_some_and(|text| self.broken.contains(text));
                if bad {
                    // It goes back by itself.
                    self.revisions.push((next, "failed", "timed out".to_owned()));
                    match self.revisions.iter().find(|(_, status, _)| *status == "deployed").map(|(number, ..)| *number)
                    {
                        Some(earlier) => {
                            self.revisions.iter_mut().for_each(|revision| revision.1 = "superseded");
                            self.revisions.push((next + 1, "deployed", format!("Rollback to {earlier}")));
                        }
                        None => self.revisions.clear(),
                    }
                    return said(false, "Error: UPGRADE FAILED: timed out waiting for the condition");
                }
                self.revisions.iter_mut().for_each(|revision| revision.1 = "superseded");
                let description = description.expect("a description").to_owned();
                self.revisions.push((next, "deployed", description.clone()));
                self.facts.cluster.release = Some(description);
            }
            ["rollback", _, number, ..] => {
                let number: u32 = number.parse().expect("a number");
                let found = self.revisions.iter().find(|(revision, ..)| *revision == number);
                let description = found.expect("such a revision").2.clone();
                self.revisions.iter_mut().for_each(|revision| revision.1 = "superseded");
                self.revisions.push((next, "deployed", format!("Rollback to {number}")));
                self.facts.cluster.release = Some(description);
            }
            ["uninstall", ..] => {
                self.revisions.clear();
                self.facts.cluster.release = None;
            }
            ["test", ..] => {
                return said(self.facts.cluster.release.is_some() && !self.smoking.contains("cluster"), "a pod failed");
            }
            ["ctr", ..] | ["etcd-snapshot", ..] | ["kubectl", "rollout", ..] => {}
            other => panic!("nobody taught it to do {other:?}"),
        }
        said(true, "")
    }
}

fn missing(path: &Utf8Path) -> HostError {
    HostError::Path { what: "could not find", path: path.to_owned(), source: std::io::ErrorKind::NotFound.into() }
}

impl HostView for FakeHost {
    fn entry(&self, path: &Utf8Path) -> HostResult<Entry> {
        Ok(match self.facts.nodes.get(path) {
            None => Entry::Absent,
            Some(Node::File(bytes, attrs)) => Entry::File { sha256: sha256(bytes), attrs: attrs.clone() },
            Some(Node::Dir(attrs)) => Entry::Dir { attrs: attrs.clone() },
            Some(Node::Link(target)) => Entry::Link { target: target.clone() },
        })
    }

    fn read(&self, path: &Utf8Path) -> HostResult<Vec<u8>> {
        match self.facts.nodes.get(path) {
            Some(Node::File(bytes, _)) => Ok(bytes.clone()),
            _ => Err(missing(path)),
        }
    }

    fn list(&self, folder: &Utf8Path) -> HostResult<Vec<String>> {
        let inside = self.facts.nodes.keys().filter(|path| path.parent() == Some(folder));
        Ok(inside.filter_map(|path| path.file_name()).map(str::to_owned).collect())
    }

    fn unit(&self, name: &str) -> HostResult<UnitState> {
        Ok(UnitState {
            enabled: self.facts.enabled.contains(name),
            active: self.facts.active.contains(name),
            absent: !self.has_unit(name),
        })
    }

    fn has_user(&self, name: &str) -> HostResult<bool> {
        Ok(self.facts.users.contains(name))
    }

    fn has_group(&self, name: &str) -> HostResult<bool> {
        self.has_user(name)
    }

    fn ask(&self, program: &Utf8Path, arguments: &[&str]) -> HostResult<Said> {
        if self.entry(program)?.is_absent() {
            return Err(missing(program));
        }
        if [K3S, HELM].contains(&program.as_str()) {
            return Ok(self.ask_cluster(arguments));
        }
        if arguments == ["smoke"] {
            let ok = self.running().is_some_and(|version| !self.smoking.contains(&version));
            return Ok(Said { ok, text: "SM03 FAILED".to_owned() });
        }
        let text = arguments.last().and_then(|path| self.text(path)).unwrap_or_default();
        let ok = !self.refused_config.is_some_and(|piece| text.contains(piece));
        Ok(Said { ok, text: if ok { String::new() } else { "unknown key".to_owned() } })
    }

    fn get(&self, url: &str) -> HostResult<Answer> {
        if url == "http://127.0.0.1:10248/healthz" && self.facts.active.contains("k3s-agent.service") {
            return Ok(Answer { status: 200, body: "ok".to_owned() });
        }
        let ready = self.facts.active.contains("fettle-dashboard.service");
        match self.running() {
            Some(version) if ready => {
                let status = if self.broken.contains(&version) { 503 } else { 200 };
                Ok(Answer { status, body: serde_json::json!({ "version": version }).to_string() })
            }
            _ => Err(HostError::Program(format!("could not connect to {url}"))),
        }
    }

    fn through_ingress(&self, url: &str) -> HostResult<Answer> {
        match (&self.facts.cluster.release, self.cluster_runs()) {
            (Some(_), true) => Ok(Answer { status: 200, body: String::new() }),
            _ => Err(HostError::Program(format!("could not connect to {url}"))),
        }
    }
}

impl Host for FakeHost {
    fn write(&mut self, path: &Utf8Path, bytes: &[u8], attrs: &Attrs) -> HostResult<()> {
        self.changing()?;
        self.parent_of(path)?;
        self.facts.nodes.insert(path.to_owned(), Node::File(bytes.to_vec(), attrs.clone()));
        // k3s watches this folder.
        if path.starts_with(MANIFESTS) && self.cluster_runs() {
            self.take_manifest(&String::from_utf8_lossy(bytes));
        }
        Ok(())
    }

    fn append(&mut self, path: &Utf8Path, bytes: &[u8]) -> HostResult<()> {
        self.parent_of(path)?;
        let torn = matches!(self.fault, Some((at, Fault::Killed)) if at == self.changes + 1);
        let written = if torn { &bytes[..bytes.len() / 2] } else { bytes };
        match self.facts.nodes.entry(path.to_owned()).or_insert_with(|| Node::File(Vec::new(), Attrs::root(0o600))) {
            Node::File(content, _) if torn || self.fault != Some((self.changes + 1, Fault::Refused)) => {
                content.extend_from_slice(written);
            }
            _ => {}
        }
        self.changing()
    }

    fn mkdir(&mut self, path: &Utf8Path, attrs: &Attrs) -> HostResult<()> {
        self.changing()?;
        self.parent_of(path)?;
        self.facts.nodes.insert(path.to_owned(), Node::Dir(attrs.clone()));
        Ok(())
    }

    fn set_attrs(&mut self, path: &Utf8Path, new: &Attrs) -> HostResult<()> {
        self.changing()?;
        match self.facts.nodes.get_mut(path) {
            Some(Node::File(_, attrs) | Node::Dir(attrs)) => attrs.clone_from(new),
            _ => return Err(missing(path)),
        }
        Ok(())
    }

    fn copy(&mut self, from: &Utf8Path, to: &Utf8Path, attrs: &Attrs) -> HostResult<()> {
        let bytes = self.read(from)?;
        self.write(to, &bytes, attrs)
    }

    fn rename(&mut self, from: &Utf8Path, to: &Utf8Path) -> HostResult<()> {
        self.changing()?;
        self.parent_of(to)?;
        let moved: Vec<Utf8PathBuf> = self.facts.nodes.keys().filter(|path| path.starts_with(from)).cloned().collect();
        for path in moved {
            let node = self.facts.nodes.remove(&path).expect("it was just listed");
            let rest = path.strip_prefix(from).expect("it was just filtered");
            self.facts.nodes.insert(if rest == "" { to.to_owned() } else { to.join(rest) }, node);
        }
        Ok(())
    }

    fn link(&mut self, path: &Utf8Path, target: &Utf8Path) -> HostResult<()> {
        self.changing()?;
        self.parent_of(path)?;
        self.facts.nodes.insert(path.to_owned(), Node::Link(target.to_owned()));
        Ok(())
    }

    fn remove(&mut self, path: &Utf8Path) -> HostResult<()> {
        self.changing()?;
        self.facts.nodes.remove(path);
        Ok(())
    }

    fn rmdir(&mut self, path: &Utf8Path) -> HostResult<bool> {
        self.changing()?;
        let empty = self.list(path)?.is_empty();
        if empty {
            self.facts.nodes.remove(path);
        }
        Ok(empty)
    }

    fn remove_tree(&mut self, path: &Utf8Path) -> HostResult<()> {
        self.changing()?;
        self.facts.nodes.retain(|node, _| !node.starts_with(path));
        if Utf8Path::new(DATA).starts_with(path) {
            self.facts.cluster = Cluster::default();
            self.revisions.clear();
        }
        Ok(())
    }

    fn units(&mut self, verb: UnitVerb, unit: &str) -> HostResult<()> {
        self.changing()?;
        let known = self.has_unit(unit);
        match verb {
            UnitVerb::Enable if known => drop(self.facts.enabled.insert(unit.to_owned())),
            UnitVerb::Start if known => {
                self.facts.active.insert(unit.to_owned());
                if ["k3s.service", "k3s-agent.service"].contains(&unit) {
                    self.start_pods();
                }
                if unit == "k3s.service" {
                    for file in [KUBECONFIG, "/etc/rancher/node/password"] {
                        self.facts.nodes.insert(file.into(), Node::File(b"by k3s".to_vec(), Attrs::root(0o600)));
                    }
                    let folder = Utf8PathBuf::from(MANIFESTS);
                    let waiting = self.facts.nodes.iter().filter(|(path, _)| path.parent() == Some(&folder));
                    let texts: Vec<String> = waiting
                        .filter_map(|(_, node)| match node {
                            Node::File(bytes, _) => Some(String::from_utf8_lossy(bytes).into_owned()),
                            _ => None,
                        })
                        .collect();
                    texts.iter().for_each(|text| self.take_manifest(text));
                }
                // A target brings what it wants; the dashboard's first start makes its data.
                if unit == "fettle.target" || unit.starts_with("fettle-dashboard") {
                    self.facts.active.insert("fettle-dashboard.service".to_owned());
                    let ledger =
                        Node::File(b"rows".to_vec(), Attrs { mode: 0o600, owner: Owner::new("fettle", "fettle") });
                    let folder = Node::Dir(Attrs { mode: 0o700, owner: Owner::new("fettle", "fettle") });
                    self.facts.nodes.entry("/var/lib/fettle/dashboard".into()).or_insert(folder);
                    self.facts.nodes.entry("/var/lib/fettle/dashboard/ledger.sqlite".into()).or_insert(ledger);
                }
            }
            UnitVerb::Enable | UnitVerb::Start => return Err(HostError::Program(format!("Unit {unit} not found."))),
            UnitVerb::Disable => drop(self.facts.enabled.remove(unit)),
            UnitVerb::Stop => {
                self.facts.active.remove(unit);
                if unit == "fettle.target" || unit == "fettle-dashboard.service" {
                    self.facts.active.remove("fettle-dashboard.service");
                }
            }
            UnitVerb::TryRestart if self.unstartable => {
                return Err(HostError::Program(format!("{unit} does not start")));
            }
            UnitVerb::TryRestart => {}
        }
        Ok(())
    }

    fn daemon_reload(&mut self) -> HostResult<()> {
        self.changing()?;
        self.facts.loaded = self.units_on_disk();
        Ok(())
    }

    fn sysusers(&mut self, file: &Utf8Path) -> HostResult<()> {
        self.changing()?;
        let text = self.text(file.as_str()).ok_or_else(|| missing(file))?.to_owned();
        for line in text.lines() {
            // A group that somebody joins is made, too.
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                ["u", name, ..] | ["m", _, name, ..] => self.facts.users.insert(name.to_owned()),
                _ => false,
            };
        }
        Ok(())
    }

    fn remove_user(&mut self, name: &str) -> HostResult<()> {
        self.changing()?;
        self.facts.users.remove(name);
        Ok(())
    }

    fn load_apparmor(&mut self, profile: &Utf8Path) -> HostResult<()> {
        self.changing()?;
        self.facts.profiles.insert(profile.to_owned());
        Ok(())
    }

    fn unload_apparmor(&mut self, profile: &Utf8Path) -> HostResult<()> {
        self.changing()?;
        self.facts.profiles.remove(profile);
        Ok(())
    }

    fn change(&mut self, program: &Utf8Path, arguments: &[&str]) -> HostResult<Said> {
        match program.as_str() {
            K3S | HELM => return self.change_cluster(program, arguments, None),
            "umount" | "ip" => {
                self.calls.push(
                    std::iter::once(program.as_str()).chain(arguments.iter().copied()).map(str::to_owned).collect(),
                );
                self.changing()?;
                let what = arguments.last().expect("a mount point or an interface");
                let mounts = self.text(MOUNTS).unwrap_or_default().to_owned();
                let left: Vec<&str> = mounts.lines().filter(|line| line.split(' ').nth(1) != Some(what)).collect();
                match program.as_str() {
                    "umount" => {
                        self.put(MOUNTS, &left.iter().map(|line| format!("{line}\n")).collect::<String>(), 0o444)
                    }
                    _ => drop(self.facts.nodes.remove(&Utf8Path::new(LINKS).join(what))),
                }
                return Ok(Said { ok: true, text: String::new() });
            }
            "sysctl" => {
                self.changing()?;
                let (name, value) = arguments.last().and_then(|word| word.split_once('=')).expect("name=value");
                self.put(&format!("/proc/sys/{}", name.replace('.', "/")), &format!("{value}\n"), 0o644);
                return Ok(Said { ok: true, text: String::new() });
            }
            _ => {}
        }
        self.changing()?;
        // NixOS runs what its configuration says, and forgets what it does not.
        let module = self.facts.nodes.get(Utf8Path::new(NIXOS_MODULE)).cloned();
        let ok =
            self.refused_config.is_none_or(|piece| !self.text(NIXOS_MODULE).is_some_and(|text| text.contains(piece)));
        if ok {
            let wanted = self.text(NIXOS_MODULE).is_some_and(|text| text.contains("services.fettle"));
            for unit in ["fettle-dashboard.service", "fettle-worker@01.service"] {
                if wanted {
                    self.facts.active.insert(unit.to_owned())
                } else {
                    self.facts.active.remove(unit)
                };
            }
            match module {
                Some(node) => self.facts.loaded.insert(NIXOS_MODULE.into(), node),
                None => self.facts.loaded.remove(Utf8Path::new(NIXOS_MODULE)),
            };
        }
        Ok(Said { ok, text: if ok { String::new() } else { "the option does not exist".to_owned() } })
    }

    fn feed(&mut self, program: &Utf8Path, arguments: &[&str], input: &[u8]) -> HostResult<Said> {
        self.change_cluster(program, arguments, Some(input))
    }

    fn fetch(&mut self, url: &str, _path: &Utf8Path, _attrs: &Attrs) -> HostResult<()> {
        Err(HostError::Program(format!("could not fetch {url}: there is no network")))
    }

    fn end_processes(&mut self, group: &Utf8Path) -> HostResult<()> {
        self.changing()?;
        self.facts.processes.remove(group);
        Ok(())
    }

    fn random(&mut self, count: usize) -> HostResult<Vec<u8>> {
        Ok(vec![7; count])
    }

    fn pause(&mut self) {}

    fn boundary(&mut self, _name: &str) {}
}
