//! The module within the real NixOS, where a tree of it is at hand: `FETTLE_NIXOS_TREE` is a folder with `nixos/modules`,
//! `FETTLE_NIXOS_LIB` one with nixpkgs' `lib` of about the same date; a checkout of nixpkgs is both. Packages are stand-ins.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use fettle_runtime::config::Config;
use fettle_runtime::environment::Environment;
use fettle_tests::skip::skip;
use serde_json::{Value, json};

use super::unit::{Unit, differences, parse, without_nixos};
use super::{Nix, committed_units, files, module_of_the_installer, names, root};

/// Where the stand-ins lie, and what is there on a host without NixOS.
const PATHS: [(&str, &str); 3] = [
    ("/nix/store/stand-in-fettle/bin", "/opt/fettle/current/bin"),
    ("/nix/store/stand-in-fettle.toml", "/etc/fettle/fettle.toml"),
    ("/nix/store/stand-in-coreutils/bin/kill", "/bin/kill"),
];

struct NixOs {
    nix: Nix,
    tree: PathBuf,
}

impl NixOs {
    /// `None`, told as a skip, when there is no tree or no Nix.
    fn find(what: &str) -> Option<Self> {
        let (Some(tree), Some(lib)) = (given("FETTLE_NIXOS_TREE"), given("FETTLE_NIXOS_LIB")) else {
            skip(&format!("{what}: FETTLE_NIXOS_TREE and FETTLE_NIXOS_LIB name no NixOS"));
            return None;
        };
        let nix = Nix::find(what)?;
        // The library looks for people beside itself, and a repository of the library alone has none.
        let people = nix.0.path().join("maintainers");
        fs_err::create_dir_all(&people).unwrap();
        fs_err::write(people.join("maintainer-list.nix"), "{ }").unwrap();
        fs_err::write(people.join("team-list.nix"), "{ lib }: { }").unwrap();
        let copied = Command::new("cp").arg("-r").arg(lib.join("lib")).arg(nix.0.path()).status().unwrap();
        assert!(copied.success());
        let mentioned: BTreeSet<String> = [tree.join("nixos"), root().join("nixos")]
            .iter()
            .flat_map(|folder| files(folder, ".nix"))
            .flat_map(|file| packages(&String::from_utf8_lossy(&fs_err::read(file).unwrap())))
            .collect();
        fs_err::write(nix.0.path().join("names.json"), json!(mentioned).to_string()).unwrap();
        Some(Self { nix, tree })
    }

    /// What came of each configuration, by the file's name; `only` is one part of it, or all when it is empty.
    fn evaluate(&self, configurations: &[PathBuf], only: &str) -> BTreeMap<String, Value> {
        let own = self.nix.0.path().display();
        let each: String = configurations
            .iter()
            .map(|file| format!("\"{}\" = host {}; ", file.file_stem().unwrap().to_str().unwrap(), file.display()))
            .collect();
        let evaluated = self.nix.eval(&format!(
            "let host = configuration: (import {root}/tests/nixos/host.nix {{ nixos = {tree}; lib = {own}/lib; \
             names = {own}/names.json; inherit configuration; }}){only}; in {{ {each} }}",
            root = root().display(),
            tree = self.tree.display(),
        ));
        serde_json::from_value(evaluated).unwrap()
    }
}

fn given(name: &str) -> Option<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "whoever runs the tests says where a NixOS is")]
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Every `pkgs.name` of a file.
fn packages(text: &str) -> Vec<String> {
    let mentioned = text.split("pkgs.").skip(1).filter_map(|rest| {
        let name: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || "_-".contains(*c)).collect();
        name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_').then_some(name)
    });
    mentioned.collect()
}

fn good() -> Vec<PathBuf> {
    [files(&root().join("nixos/examples"), ".nix"), files(&root().join("tests/nixos/good"), ".nix")].concat()
}

/// The unit as it would be without NixOS, and the secrets it is handed.
fn stripped(text: &str) -> (Unit, Vec<String>) {
    let text = PATHS.iter().fold(text.to_owned(), |text, (here, there)| text.replace(here, there));
    let mut unit = without_nixos(parse(&text));
    unit.retain(|key, _| !key.starts_with("Install."));
    let secrets = unit.remove("Service.LoadCredential").unwrap_or_default();
    (unit, secrets.iter().map(|secret| secret.split(':').next().unwrap().to_owned()).collect())
}

fn committed() -> BTreeMap<String, Unit> {
    committed_units().into_iter().map(|(name, text)| (name, parse(&text))).collect()
}

/// In which keys each unit of a host differs from the committed one.
fn changed(host: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let committed = committed();
    let mut changed = BTreeMap::new();
    for (name, text) in host["units"].as_object().unwrap() {
        let (unit, _) = stripped(text.as_str().unwrap());
        let mut expected = committed[name].clone();
        expected.retain(|key, _| !key.starts_with("Install."));
        let keys: BTreeSet<String> = differences(&unit, &expected).into_iter().map(str::to_owned).collect();
        if !keys.is_empty() {
            changed.insert(name.clone(), keys);
        }
    }
    changed
}

fn secrets<'a>(host: &'a Value, unit: &str) -> Vec<String> {
    host["units"].get(unit).map(|text: &'a Value| stripped(text.as_str().unwrap()).1).unwrap_or_default()
}

#[test]
fn nixos_takes_the_examples_and_their_settings() {
    let Some(nixos) = NixOs::find("the module within NixOS") else { return };
    let hosts = nixos.evaluate(&[good(), vec![module_of_the_installer()]].concat(), "");
    assert!(hosts.len() >= 5);
    for (name, host) in &hosts {
        assert_eq!(host["refused"], json!([]), "{name}");
        assert_eq!(host["warnings"], json!([]), "{name}");
        let text = toml::to_string(&toml::Value::try_from(&host["settings"]).unwrap()).unwrap();
        if let Err(error) = Config::parse(name, &text, &Environment::default()) {
            panic!("{error}");
        }
    }
    defaults_are_the_committed_units(&hosts["single-node"]);
    options_change_what_they_say(&hosts);
    secrets_reach_whom_they_may(&hosts);
    a_cluster_is_k3s_with_charts_and_no_secret_is_in_the_store(&hosts["k3s"]);
    nodes_of_a_cluster_reach_each_other_when_they_are_told_to(&hosts);
}

fn a_cluster_is_k3s_with_charts_and_no_secret_is_in_the_store(host: &Value) {
    let cluster = &host["cluster"];
    assert_eq!(
        (&cluster["enable"], &cluster["role"], &cluster["clusterInit"]),
        (&json!(true), &json!("server"), &json!(true))
    );
    assert_eq!(cluster["tokenFile"], "/run/secrets/k3s-token");
    let flags: Vec<String> = serde_json::from_value(cluster["flags"].clone()).unwrap();
    assert!(
        flags.contains(&"--secrets-encryption".to_owned())
            && flags.contains(&"--tls-san=fettle.example.org".to_owned())
    );
    assert_eq!(names(&cluster["manifests"]), ["fettle", "fettle-cert-manager", "fettle-keda", "fettle-traefik"]);
    let spec = &cluster["manifests"]["fettle"]["spec"];
    assert_eq!((&spec["failurePolicy"], &spec["targetNamespace"]), (&json!("abort"), &json!("fettle")));
    let values: Value = serde_json::from_str(spec["valuesContent"].as_str().unwrap()).unwrap();
    assert_eq!(values["config"]["forge"]["app_key_file"], "app.pem");
    assert_eq!(values["config"]["server"]["trusted_proxies"], json!(["10.42.0.0/16"]));
    assert_eq!(values["worker"]["scaledJob"]["max"], 4);
    assert_eq!(values["secrets"]["existingSecret"], "fettle");
    assert_eq!(secrets(host, "fettle-k3s-secrets.service"), ["app.pem", "webhook-secret"]);
    assert!(flags.contains(&"--agent-token-file=/run/secrets/k3s-agent-token".to_owned()), "{flags:?}");
    assert_eq!((&host["ports"], &host["udpPorts"]), (&json!([80, 443, 6443]), &json!([])), "nothing for other nodes");
    let settings = toml::to_string(&toml::Value::try_from(&cluster["settings"]).unwrap()).unwrap();
    if let Err(error) = Config::parse("k3s", &settings, &Environment::default()) {
        panic!("{error}");
    }
    assert!(host["users"].as_object().unwrap().is_empty(), "services of the host are not there beside a cluster");
}

fn nodes_of_a_cluster_reach_each_other_when_they_are_told_to(hosts: &BTreeMap<String, Value>) {
    for (name, ports) in [("k3s-first-of-two", json!([80, 443, 6443, 10250])), ("k3s-second-of-two", json!([10250]))] {
        assert_eq!((&hosts[name]["ports"], &hosts[name]["udpPorts"]), (&ports, &json!([8472])), "{name}");
    }
    let joins = &hosts["k3s-second-of-two"]["cluster"];
    assert_eq!((&joins["role"], &joins["tokenFile"]), (&json!("agent"), &json!("/run/secrets/agent-token")));
}

fn defaults_are_the_committed_units(host: &Value) {
    let committed = committed();
    let ours: Vec<&str> = committed.keys().map(String::as_str).collect();
    assert_eq!(names(&host["units"]), ours);
    let wants = BTreeMap::from([("fettle.target".to_owned(), BTreeSet::from(["Unit.Wants".to_owned()]))]);
    assert_eq!(changed(host), wants, "the target wants the instances of the template, and nothing else differs");
    for (name, unit) in &committed {
        let by: Vec<String> = unit.get("Install.WantedBy").cloned().unwrap_or_default();
        let by = if name == "fettle-worker@.service" { Vec::new() } else { by };
        assert_eq!(host["wantedBy"][name], json!(by), "{name}");
    }
    assert_eq!(host["tmpfiles"], json!(lines("systemd/tmpfiles/fettle.conf")));
    let people = [lines("systemd/sysusers/fettle.conf"), lines("systemd/sysusers/fettle-inference.conf")].concat();
    for line in people.iter().filter(|line| line.starts_with("u ")) {
        let [_, name, ..] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let user = &host["users"][name];
        assert_eq!(user["isSystemUser"], true, "{name}");
        assert_eq!(user["home"], line.rsplit(' ').next().unwrap());
        assert_eq!(
            (&user["group"], &user["extraGroups"]),
            (&json!(name), &json!([])),
            "{name} is in its own group alone"
        );
    }
    assert_eq!(names(&host["users"]), ["fettle", "fettle-inference", "fettle-worker"]);
    let rule = fs_err::read_to_string(root().join("systemd/polkit/50-fettle.rules")).unwrap();
    assert!(host["polkit"].as_str().unwrap().contains(&rule));
    assert_eq!(host["etc"], json!(["fettle/fettle.toml"]));
    assert_eq!(host["ports"], json!([]));
}

/// Of a committed file, without comments.
fn lines(file: &str) -> Vec<String> {
    let text = fs_err::read_to_string(root().join(Path::new(file))).unwrap();
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
}

fn options_change_what_they_say(hosts: &BTreeMap<String, Value>) {
    let of = |name: &str, units: &[(&str, &[&str])]| {
        let expected: BTreeMap<String, BTreeSet<String>> = units
            .iter()
            .map(|(unit, keys)| ((*unit).to_owned(), keys.iter().map(|key| (*key).to_owned()).collect()))
            .collect();
        assert_eq!(changed(&hosts[name]), expected, "{name}");
    };
    let wants: (&str, &[&str]) = ("fettle.target", &["Unit.Wants"]);
    let memory: (&str, &[&str]) = ("fettle-worker@.service", &["Service.MemoryMax"]);
    let elsewhere: &[&str] = &["Unit.RequiresMountsFor", "Service.ExecStart", "Service.ReadWritePaths"];
    of("dgx-spark", &[wants, memory]);
    of("worker-only", &[wants, memory]);
    of(
        "gpu-host",
        &[("fettle-engine.slice", &["Slice.MemoryMax"]), ("fettle-inference.socket", &["Socket.ListenStream"])],
    );
    of(
        "datacenter",
        &[wants, memory, ("fettle-backup.service", elsewhere), ("fettle-backup.timer", &["Timer.OnCalendar"])],
    );
    of(
        "dashboard-only",
        &[
            ("fettle-dashboard.socket", &["Socket.ListenStream"]),
            ("fettle-dashboard-internal.socket", &["Socket.ListenStream"]),
        ],
    );
    let unit = |host: &str, unit: &str| stripped(hosts[host]["units"][unit].as_str().unwrap()).0;
    let path = hosts["dgx-spark"]["units"]["fettle-worker@.service"].as_str().unwrap();
    for tool in ["cargo", "gcc", "git", "bash", "coreutils"] {
        assert!(path.contains(&format!("/nix/store/stand-in-{tool}/bin:")), "{tool} is not on the worker's path");
    }
    assert_eq!(unit("dashboard-only", "fettle-dashboard.socket")["Socket.ListenStream"], ["0.0.0.0:8080"]);
    assert_eq!(hosts["dashboard-only"]["ports"], json!([8080]));
    let instances = "fettle-worker@01.service fettle-worker@02.service fettle-worker@03.service";
    assert_eq!(unit("worker-only", "fettle.target")["Unit.Wants"], [instances]);
    assert_eq!(
        names(&hosts["worker-only"]["units"]),
        ["fettle-worker.slice", "fettle-worker@.service", "fettle.slice", "fettle.target"]
    );
    assert_eq!(hosts["worker-only"]["settings"]["agent"]["dashboard_url"], "http://10.9.0.1:8081");
    for (name, asked) in [("worker-only", false), ("datacenter", true)] {
        let worker = hosts[name]["units"]["fettle-worker@.service"].as_str().unwrap();
        let line = "Environment=\"FETTLE_GATEWAY__URL=http://127.0.0.1:8484\"";
        assert_eq!(worker.contains(line), asked, "{name}: {worker}");
    }
    assert_eq!(
        names(&hosts["gpu-host"]["units"]),
        [
            "fettle-engine.slice",
            "fettle-engine@.service",
            "fettle-inference.service",
            "fettle-inference.socket",
            "fettle.slice",
            "fettle.target"
        ]
    );
    let inference = hosts["gpu-host"]["units"]["fettle-inference.service"].as_str().unwrap();
    assert!(inference.contains("/nix/store/stand-in-llama-cpp/bin:"), "{inference}");
    let engine = hosts["gpu-host"]["units"]["fettle-engine@.service"].as_str().unwrap();
    assert!(engine.contains("X-RestartIfChanged=false"), "{engine}");
    assert_eq!(
        unit("datacenter", "fettle-backup.service")["Service.ExecStart"],
        ["/opt/fettle/current/bin/fettle-installer backup create --scheduled --keep 30 --to /mnt/backup/fettle"]
    );
}

fn secrets_reach_whom_they_may(hosts: &BTreeMap<String, Value>) {
    for (name, dashboard, worker, inference) in [
        ("single-node", vec!["app.pem", "webhook-secret", "worker.key"], vec!["worker.key"], vec!["worker.key"]),
        (
            "dgx-spark",
            vec!["read-token", "webhook-secret", "worker.key", "write-token"],
            vec!["read-token", "worker.key"],
            vec!["worker.key"],
        ),
        (
            "datacenter",
            vec!["app.pem", "models.key", "webhook-secret", "worker.key"],
            vec!["worker.key"],
            vec!["models.key", "worker.key"],
        ),
        ("dashboard-only", vec!["app.pem", "webhook-secret", "webhook-secret-before", "worker.key"], vec![], vec![]),
        ("worker-only", vec![], vec!["coder.key", "worker.key"], vec![]),
        ("gpu-host", vec![], vec![], vec!["anthropic.key", "people.keys", "worker.key"]),
        (
            "from-answers",
            vec!["app.pem", "model-key", "webhook-secret", "worker.key"],
            vec!["worker.key"],
            vec!["model-key", "worker.key"],
        ),
    ] {
        assert_eq!(secrets(&hosts[name], "fettle-dashboard.service"), dashboard, "{name}");
        assert_eq!(secrets(&hosts[name], "fettle-worker@.service"), worker, "{name}");
        assert_eq!(secrets(&hosts[name], "fettle-inference.service"), inference, "{name}");
    }
}

#[test]
fn nixos_refuses_what_cannot_work_and_says_what_to_do() {
    let Some(nixos) = NixOs::find("what the module refuses within NixOS") else { return };
    let bad = files(&root().join("tests/nixos/bad"), ".nix");
    assert!(!bad.is_empty());
    let refused = nixos.evaluate(&bad, ".refused");
    for file in bad {
        let text = fs_err::read_to_string(&file).unwrap();
        let expected = text.lines().next().and_then(|line| line.strip_prefix("# refused: ")).unwrap();
        let name = file.file_stem().unwrap().to_str().unwrap();
        let messages: Vec<String> = serde_json::from_value(refused[name].clone()).unwrap();
        let [message] = messages.as_slice() else { panic!("{name} is to break one thing: {messages:#?}") };
        let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(message.contains(expected), "{name}: {message}");
    }
}
