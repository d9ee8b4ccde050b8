//! Mode k3s on recorded hosts: what would be done and why, what is refused, what preflight says.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use camino::{Utf8Path, Utf8PathBuf};
use fettle_installer::action::Manifest;
use fettle_installer::answers::Answers;
use fettle_installer::facts::{Disk, HostFacts, Kubernetes, Listener, Protocol, Seen, Unit};
use fettle_installer::host::{RealHost, sha256};
use fettle_installer::k3s::bundle::Bundle;
use fettle_installer::k3s::token::Token;
use fettle_installer::k3s::{self, Facts};
use fettle_installer::plan::{Plan, Release};
use fettle_installer::preflight::{self, Context, Mode, Refusal};
use fettle_installer::report::{Finding, Outcome};

use super::host;

const FILES: [&str; 9] = [
    "charts/cert-manager.tgz",
    "charts/fettle.tgz",
    "charts/keda.tgz",
    "charts/nvidia-device-plugin.tgz",
    "images/fettle.tar",
    "images/others.tar",
    "k3s/helm",
    "k3s/k3s",
    "k3s/k3s-airgap-images.tar.zst",
];

struct Bundled {
    _folder: tempfile::TempDir,
    path: Utf8PathBuf,
    sums: String,
}

fn bundled() -> Bundled {
    let folder = tempfile::tempdir().unwrap();
    let path = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
    let mut sums = String::new();
    for file in FILES {
        fs_err::create_dir_all(path.join(file).parent().unwrap()).unwrap();
        fs_err::write(path.join(file), file).unwrap();
        writeln!(sums, "{}  {file}", sha256(file.as_bytes())).unwrap();
    }
    fs_err::write(path.join("SHA256SUMS"), &sums).unwrap();
    Bundled { _folder: folder, path, sums: sha256(sums.as_bytes()) }
}

fn release() -> Release {
    let files = BTreeMap::new();
    let manifest =
        Manifest { schema: 1, version: "1.0.0".to_owned(), arch: "x86_64".to_owned(), oldest_reader: 1, files };
    Release { source: "/srv/release".into(), manifest, manifest_sha256: sha256(b"manifest"), shared: BTreeMap::new() }
}

fn planned(facts: &Facts, more: &str) -> (Plan, Bundled) {
    let bundled = bundled();
    let text = format!("{more}\n[k3s.sha256]\nSHA256SUMS = '{}'\n", bundled.sums);
    let mut answers = Answers::parse(&text).unwrap();
    answers.k3s.source = "/srv/bundle".to_owned();
    let bundle = Bundle::read(&RealHost::new().unwrap(), bundled.path.as_str()).unwrap();
    (k3s::plan(&release(), &bundle, facts, &answers), bundled)
}

fn told(plan: &Plan, bundle: &Utf8Path, explain: bool) -> String {
    let mut text = String::new();
    for refusal in &plan.refusals {
        writeln!(text, "refused: {refusal}").unwrap();
    }
    for action in &plan.actions {
        let description = action.describe();
        writeln!(text, "- {}", description.what).unwrap();
        if explain {
            writeln!(text, "    why: {}\n    taken back: {}", description.why, description.revert).unwrap();
        }
    }
    text.replace(bundle.as_str(), "BUNDLE")
}

const WITH_SECRET: &str = "[settings.forge]\napp_id = 7\napp_key_file = 'app.pem'\n[secrets]\n'app.pem' = '/srv/app.pem'\n[k3s]\nhost = 'fettle.example.org'";

/// What a person reads with `plan --mode k3s --explain`.
#[test]
fn the_plan_of_a_recorded_host_is_as_its_snapshot_says() {
    let cases = [
        ("debian-12", WITH_SECRET, true),
        ("dgx-h100", "[k3s]\ngpus = 8\nredis = true\nkeda = false\ncert_manager = false\ntls = 'none'", false),
        ("proxy", "[k3s]\nregistry = 'registry.internal:5000'", false),
        ("ubuntu-24.04", "[secrets]\nk3s-token = '/srv/token'\n[k3s]\njoin = 'https://10.0.0.1:6443'", false),
        ("k3s", WITH_SECRET, false),
    ];
    for (name, answers, explain) in cases {
        let (plan, bundled) = planned(&Facts::of(&host(name), None), answers);
        insta::assert_snapshot!(format!("k3s_plan_{name}"), told(&plan, &bundled.path, explain));
    }
}

/// The files themselves: the same facts and answers give the same bytes.
#[test]
fn what_k3s_reads_is_as_its_snapshot_says() {
    let (plan, _bundled) = planned(&Facts::of(&host("proxy"), None), WITH_SECRET);
    let mut text = String::new();
    for action in &plan.actions {
        let value = serde_json::to_value(action).unwrap();
        let inner = if value["type"] == "cluster" { &value["act"] } else { &value };
        let path = inner["path"].as_str().unwrap_or_default();
        if let Some(content) = inner["text"].as_str()
            && !path.ends_with("installer.toml")
        {
            writeln!(text, "==> {path}\n{content}").unwrap();
        }
    }
    insta::assert_snapshot!("k3s_files", text);
    let (again, _bundled) = planned(&Facts::of(&host("proxy"), None), WITH_SECRET);
    assert_eq!(serde_json::to_string(&again).unwrap().len(), serde_json::to_string(&plan).unwrap().len());
}

#[test]
fn what_cannot_be_carried_out_is_refused_with_what_to_do() {
    let free = || host("debian-12");
    let rke2 = |mut facts: HostFacts| {
        let unit = Unit { load: "loaded".to_owned(), active: "active".to_owned(), ..Unit::default() };
        if let Seen::Known(units) = &mut facts.units {
            units.insert("rke2-server.service".to_owned(), unit);
        }
        facts
    };
    let left = |mut facts: HostFacts| {
        facts.kubernetes.paths = Seen::Known(vec!["/var/lib/rancher/k3s".into()]);
        facts
    };
    for (facts, answers, why) in [
        (host("k3s"), "", "k3s (k3s.service) is on this host, and Fettle's installer did not put it there"),
        (rke2(free()), "", "RKE2 (rke2-server.service) is on this host"),
        (left(free()), "", "k3s (/var/lib/rancher/k3s) is on this host"),
        (free(), "[settings.forge]\napp_key_file = 'app.pem'", "say in the answers' [secrets] where it is now"),
        (free(), "[k3s]\nhost = 'x.example'\ncert_manager = false", "k3s.cert_manager = true"),
        (free(), "[k3s.values.redis]\npassword = 'x'", "k3s.values.redis.password looks like a secret"),
        (free(), "[settings.gateway]\nurl = 'http://me:word-word@x'", "settings.gateway.url looks like a secret"),
        (free(), "[k3s]\njoin = 'https://10.0.0.1:6443'", "secrets.k3s-token"),
    ] {
        let (plan, _bundled) = planned(&Facts::of(&facts, None), answers);
        assert!(plan.refusals.iter().any(|refusal| refusal.contains(why)), "{answers}: {:?}", plan.refusals);
    }
    let bundled = bundled();
    let bundle = Bundle::read(&RealHost::new().unwrap(), bundled.path.as_str()).unwrap();
    let plan = k3s::plan(&release(), &bundle, &Facts::of(&free(), None), &Answers::default());
    assert_eq!(
        plan.refusals.iter().filter(|refusal| refusal.contains("nobody has verified")).count(),
        8,
        "{:?}",
        plan.refusals
    );
    assert!(!told(&plan, &bundled.path, false).contains("put BUNDLE"));
}

const JOINING: &str = "[secrets]\nk3s-token = '/srv/token'\n[k3s]\njoin = 'https://10.0.0.1:6443'";

#[test]
fn a_node_joins_by_a_token_that_names_the_cluster_and_makes_no_servers() {
    for (token, why) in [
        (None, None),
        (Some(Token::Node), None),
        (Some(Token::Short), Some("would tell it to whoever answers at https://10.0.0.1:6443")),
        (Some(Token::Server), Some("administers the cluster")),
        (Some(Token::Strange), Some("no token of k3s")),
    ] {
        let (plan, _bundled) = planned(&Facts { token, ..Facts::of(&host("debian-12"), None) }, JOINING);
        let refused: Vec<bool> = plan.refusals.iter().map(|said| why.is_some_and(|why| said.contains(why))).collect();
        assert_eq!(refused, why.map_or(vec![], |_| vec![true]), "{token:?}: {:?}", plan.refusals);
        assert!(plan.refusals.iter().all(|said| said.contains("/var/lib/rancher/k3s/server/agent-token")));
    }
}

/// The Secret is for pods: the words by which nodes join are neither in it nor in what the chart starts anew for.
#[test]
fn no_word_by_which_nodes_join_is_in_the_secret_of_the_pods_and_the_answers_are_roots_alone() {
    let more = "[secrets]\nk3s-token = '/srv/a'\nk3s-agent-token = '/srv/b'\n'app.pem' = '/srv/app.pem'";
    let (plan, _bundled) = planned(&Facts::of(&host("debian-12"), None), more);
    assert_eq!(plan.refusals, Vec::<String>::new());
    let acts: Vec<serde_json::Value> =
        plan.actions.iter().map(|action| serde_json::to_value(action).unwrap()).collect();
    let secrets: Vec<&serde_json::Value> = acts.iter().filter(|act| act["act"]["do"] == "secret").collect();
    assert_eq!(secrets.len(), 2, "forth and back");
    for secret in secrets {
        assert_eq!(secret["act"]["files"], serde_json::json!({ "app.pem": "/etc/fettle/secrets/app.pem" }));
    }
    let release = acts.iter().find(|act| act["act"]["do"] == "release").unwrap();
    assert_eq!(release["act"]["secrets"], serde_json::json!(["/etc/fettle/secrets/app.pem"]));
    let answers = acts.iter().find(|act| act["path"] == "/etc/fettle/installer.toml").unwrap();
    assert_eq!(answers["attrs"]["mode"], 0o600);
}

/// A host of the records on which a cluster could be made.
fn able() -> (HostFacts, Context) {
    let mut facts = host("debian-12");
    facts.kubernetes =
        Kubernetes { paths: Seen::Known(Vec::new()), routes: Seen::Known(vec!["192.168.1.0/24".to_owned()]) };
    facts.disks.insert("/var/lib/rancher".into(), Seen::Known(disk(500)));
    (facts, Context::of(Mode::K3s))
}

fn disk(free_gib: u64) -> Disk {
    let (free_bytes, total_bytes) = (free_gib << 30, 1 << 40);
    let inodes = 10_000_000;
    Disk {
        free_bytes,
        total_bytes,
        free_inodes: inodes,
        total_inodes: inodes,
        device: 7,
        read_only: false,
        no_exec: false,
    }
}

fn listen(facts: &mut HostFacts, protocol: Protocol, port: u16) {
    let address = "0.0.0.0".parse().unwrap();
    let listener = Listener { protocol, address, port, process: Seen::Known("nginx (pid 77)".to_owned()) };
    if let Seen::Known(listeners) = &mut facts.listeners {
        listeners.push(listener);
    }
}

fn finding(facts: &HostFacts, context: &Context, id: &str) -> Finding {
    preflight::checks(facts, context).into_iter().find(|finding| finding.id == id).unwrap()
}

type Break = fn(&mut HostFacts, &mut Context);

#[test]
fn each_thing_in_the_way_of_a_cluster_is_found_by_its_check_and_comes_with_a_remedy() {
    let breaks: [(&str, Outcome, Break); 14] = [
        ("PF016", Outcome::Fail, |facts, _| drop(facts.disks.insert("/var/lib/rancher".into(), Seen::Known(disk(20))))),
        ("PF016", Outcome::Warn, |facts, _| drop(facts.disks.insert("/var/lib/rancher".into(), Seen::Known(disk(60))))),
        ("PF025", Outcome::Fail, |facts, _| listen(facts, Protocol::Tcp, 443)),
        ("PF025", Outcome::Fail, |facts, _| listen(facts, Protocol::Tcp, 6443)),
        ("PF025", Outcome::Fail, |facts, _| listen(facts, Protocol::Udp, 8472)),
        ("PF025", Outcome::Pass, |facts, context| {
            listen(facts, Protocol::Tcp, 6443);
            context.cluster.ours = true;
        }),
        ("PF038", Outcome::Fail, |facts, _| facts.gpu.driver = Seen::Known(Some("580.95.05".to_owned()))),
        ("PF038", Outcome::Warn, |_, context| context.cluster.gpus = true),
        ("PF064", Outcome::Fail, |facts, _| facts.kubernetes.routes = Seen::Known(vec!["10.0.0.0/8".to_owned()])),
        ("PF064", Outcome::Fail, |_, context| {
            context.cluster.networks = ["10.42.0.0/16", "10.42.8.0/24"].map(str::to_owned).into()
        }),
        ("PF074", Outcome::Fail, |facts, _| {
            facts.kubernetes.paths = Seen::Known(vec!["/etc/kubernetes/kubelet.conf".into()])
        }),
        ("PF074", Outcome::Fail, |facts, _| facts.kubernetes.paths = Seen::Known(vec!["/usr/local/bin/k3s".into()])),
        ("PF075", Outcome::Warn, |facts, _| {
            facts.system.kernel = Seen::Known("6.6.87.2-microsoft-standard-WSL2".to_owned())
        }),
        ("PF005", Outcome::Fail, |facts, _| facts.system.cgroup = Seen::Known(None)),
    ];
    let (facts, context) = able();
    for id in ["PF016", "PF025", "PF038", "PF064", "PF074", "PF075"] {
        assert_eq!(finding(&facts, &context, id).outcome, Outcome::Pass, "{:?}", finding(&facts, &context, id));
    }
    for (id, outcome, breaks) in breaks {
        let (mut facts, mut context) = able();
        breaks(&mut facts, &mut context);
        let finding = finding(&facts, &context, id);
        assert_eq!(finding.outcome, outcome, "{finding:?}");
        assert_eq!(finding.remedy.is_empty(), outcome == Outcome::Pass, "{finding:?}");
    }
}

#[test]
fn the_mode_is_chosen_only_when_it_is_asked_for_and_not_on_nixos() {
    assert_eq!(preflight::select(&host("debian-12"), None), Ok(Mode::Systemd));
    assert_eq!(preflight::select(&host("debian-12"), Some(Mode::K3s)), Ok(Mode::K3s));
    let refused = preflight::select(&host("nixos"), Some(Mode::K3s));
    assert!(matches!(&refused, Err(Refusal::WrongMode(why)) if why.contains("nixosModules.k3s")), "{refused:?}");
    assert!(preflight::select(&host("wsl-1"), Some(Mode::K3s)).is_err());
}
