use std::collections::BTreeSet;

use fettle_installer::facts::{Attempt, HostFacts, JournalFacts, Listener, Protocol, ReceiptFacts, Seen, Unit};
use fettle_installer::preflight::{self, Context, Mode, Purpose, Refusal, Release};
use fettle_installer::report::{self, Counts, Finding, Outcome, Preflight, Show};

use super::{host, hosts};

fn asked() -> Preflight {
    Preflight { mode: None, context: Context::of(Mode::Systemd), ignore: Vec::new() }
}

fn finding(facts: &HostFacts, context: &Context, id: &str) -> Finding {
    preflight::checks(facts, context).into_iter().find(|finding| finding.id == id).unwrap()
}

/// What a person reads about each recorded host.
#[test]
fn every_recorded_host_is_judged_as_its_snapshot_says() {
    for (name, facts) in hosts() {
        let judged = report::judge(&facts, &asked()).unwrap();
        let mut out = format!("{}\n\n", facts.origin).into_bytes();
        report::detect(&mut out, &facts, Show::default()).unwrap();
        out.push(b'\n');
        let code = report::preflight(&mut out, &judged, Show::default()).unwrap();
        out.extend(format!("exit {code}\n").bytes());
        insta::assert_snapshot!(format!("preflight_{name}"), String::from_utf8(out).unwrap());
    }
}

type Break = fn(&mut HostFacts, &mut Context);

/// One thing wrong at a time on a host on which every check passes.
const BREAKS: &[(&str, Outcome, Break)] = &[
    ("PF001", Outcome::Fail, |facts, context| {
        facts.uid = Seen::Known(1000);
        context.purpose = Purpose::Apply;
    }),
    ("PF001", Outcome::Warn, |facts, _| facts.uid = Seen::Known(1000)),
    ("PF002", Outcome::Fail, |facts, _| facts.system.systemd = Seen::Known(Some(247))),
    ("PF002", Outcome::Fail, |facts, _| facts.system.init = Seen::Known("runit".into())),
    ("PF003", Outcome::Fail, |facts, _| facts.system.arch = Seen::Known("riscv64".into())),
    ("PF003", Outcome::Fail, |_, context| context.release.as_mut().unwrap().arch = "aarch64".into()),
    ("PF004", Outcome::Fail, |facts, _| set_os(facts, "ubuntu", "20.04")),
    ("PF004", Outcome::Fail, |facts, _| set_os(facts, "debian", "11")),
    ("PF004", Outcome::Fail, |facts, _| set_os(facts, "fedora", "43")),
    ("PF005", Outcome::Fail, |facts, _| facts.system.kernel = Seen::Known("5.10.0-35-amd64".into())),
    ("PF005", Outcome::Fail, |facts, _| facts.system.cgroup = Seen::Known(None)),
    ("PF005", Outcome::Warn, |facts, _| facts.system.cgroup = Seen::Known(Some(vec!["cpu".into(), "pids".into()]))),
    ("PF006", Outcome::Fail, |facts, _| facts.taken = Seen::Known("1970-01-01T00:10:00Z".parse().unwrap())),
    ("PF006", Outcome::Warn, |facts, _| facts.system.clock_synchronised = Seen::Known(false)),
    ("PF010", Outcome::Fail, |facts, _| free(facts, "/var/lib/fettle", 9)),
    ("PF010", Outcome::Warn, |facts, _| free(facts, "/var/lib/fettle", 49)),
    ("PF010", Outcome::Fail, |facts, _| disk(facts, "/var/lib/fettle").read_only = true),
    ("PF011", Outcome::Fail, |facts, _| disk(facts, "/var/lib/fettle").free_inodes = 10_000),
    ("PF012", Outcome::Warn, |facts, _| {
        facts.gpu.on_bus = Seen::Known(1);
        free(facts, "/var/lib/fettle", 60);
    }),
    ("PF013", Outcome::Fail, |facts, _| free(facts, "/opt/fettle", 1)),
    ("PF013", Outcome::Fail, |facts, _| disk(facts, "/opt/fettle").no_exec = true),
    ("PF014", Outcome::Fail, |facts, _| memory(facts, 4)),
    ("PF014", Outcome::Warn, |_, context| context.ports.workers = 20),
    ("PF015", Outcome::Fail, |facts, _| disk(facts, "/tmp").read_only = true),
    ("PF015", Outcome::Warn, |facts, _| disk(facts, "/tmp").no_exec = true),
    ("PF020", Outcome::Fail, |facts, _| listen(facts, 8080, "nginx (pid 77)")),
    ("PF020", Outcome::Fail, |facts, _| listen(facts, 8081, "systemd (pid 1)")),
    ("PF021", Outcome::Fail, |facts, _| listen(facts, 9201, "node (pid 77)")),
    ("PF024", Outcome::Fail, |facts, _| listen(facts, 8484, "python3 (pid 77)")),
    ("PF024", Outcome::Pass, |facts, context| {
        listen(facts, 8485, "python3 (pid 77)");
        context.ports.inference = None;
    }),
    ("PF022", Outcome::Warn, |facts, _| facts.network.host_name = Seen::Known("localhost".into())),
    ("PF023", Outcome::Warn, |facts, _| facts.network.resolvers = Seen::Known(Vec::new())),
    ("PF030", Outcome::Warn, |facts, _| facts.gpu.on_bus = Seen::Known(8)),
    ("PF030", Outcome::Warn, |facts, _| {
        gpu(facts);
        facts.gpu.driver = Seen::Known(Some("470.256.02".into()));
    }),
    ("PF031", Outcome::Warn, |facts, _| {
        gpu(facts);
        facts.gpu.nvml = Seen::Known(None);
    }),
    ("PF032", Outcome::Warn, |facts, _| {
        gpu(facts);
        facts.gpu.nodes = Seen::Known(vec!["nvidia0".into(), "nvidiactl".into()]);
    }),
    ("PF033", Outcome::Warn, |facts, _| {
        gpu(facts);
        facts.gpu.classes = Seen::Known(vec!["nvidia".into(), "nvidiactl".into()]);
    }),
    ("PF034", Outcome::Warn, gpu_without_services),
    ("PF035", Outcome::Warn, |facts, context| {
        gpu_without_services(facts, context);
        facts.gpu.switches = Seen::Known(4);
    }),
    ("PF035", Outcome::Warn, |facts, context| {
        gpu_without_services(facts, context);
        facts.system.product = Seen::Known(Some("DGXB200".into()));
    }),
    ("PF036", Outcome::Warn, |facts, _| {
        gpu(facts);
        facts.gpu.mig_instances = Seen::Known(7);
    }),
    ("PF037", Outcome::Warn, |facts, _| {
        gpu(facts);
        facts.gpu.models = Seen::Known(vec!["NVIDIA GB10".into()]);
    }),
    ("PF040", Outcome::Fail, |facts, _| {
        let person = host_user(1001);
        facts.names.users = Seen::Known([("fettle".to_owned(), person)].into());
    }),
    ("PF040", Outcome::Fail, |facts, _| {
        facts.names.paths = Seen::Known(vec!["/etc/systemd/system/fettle-dashboard.service".into()]);
    }),
    ("PF041", Outcome::Fail, |facts, _| facts.installed.receipt = receipt(2, "systemd")),
    ("PF041", Outcome::Fail, |facts, _| facts.installed.receipt = receipt(1, "nixos")),
    ("PF041", Outcome::Fail, |facts, _| {
        facts.installed.receipt = Seen::Known(ReceiptFacts::Unreadable("EOF while parsing".into()));
    }),
    ("PF042", Outcome::Fail, |facts, _| {
        facts.installed.journal = Seen::Known(JournalFacts::Unfinished("2026-11-19T18:00:00Z".into()));
    }),
    ("PF043", Outcome::Fail, |facts, _| facts.installed.lock = Seen::Known(Some(812))),
    ("PF044", Outcome::Warn, gpu_without_services),
    ("PF045", Outcome::Fail, |facts, _| docker(facts, "0666", &[])),
    ("PF045", Outcome::Fail, |facts, _| docker(facts, "0660", &["fettle-worker"])),
    ("PF050", Outcome::Warn, |facts, _| namespaces_refused(facts)),
    ("PF050", Outcome::Fail, |facts, _| {
        namespaces_refused(facts);
        facts.sandbox.landlock_abi = Seen::Known(2);
    }),
    ("PF051", Outcome::Warn, |facts, _| facts.sandbox.landlock_abi = Seen::Known(0)),
    ("PF051", Outcome::Fail, |facts, _| {
        namespaces_refused(facts);
        facts.sandbox.landlock_abi = Seen::Known(2);
    }),
    ("PF052", Outcome::Fail, |facts, _| {
        facts.sandbox.apparmor_restricts = Seen::Known(true);
        facts.programs = Seen::Known(Vec::new());
    }),
    ("PF052", Outcome::Warn, |facts, _| facts.sandbox.selinux_enforces = Seen::Known(Some(true))),
    ("PF053", Outcome::Warn, |facts, _| facts.system.cgroup = Seen::Known(Some(vec!["cpu".into()]))),
    ("PF060", Outcome::Warn, |facts, _| proxy(facts, None)),
    ("PF061", Outcome::Warn, |facts, _| proxy(facts, Some(".example"))),
    ("PF062", Outcome::Warn, |facts, _| {
        unit(facts, "ufw.service");
        facts.config = host("neglected").config;
    }),
    ("PF063", Outcome::Warn, |facts, _| {
        let failed = Attempt { ok: false, said: "connection refused".into() };
        facts.network.reach.insert("models.example:8000".into(), failed);
    }),
    ("PF070", Outcome::Warn, |facts, _| unit(facts, "rke2-server.service")),
    ("PF072", Outcome::Fail, |facts, _| disk(facts, "/var/lib/fettle/backups").read_only = true),
    ("PF072", Outcome::Warn, |facts, _| disk(facts, "/var/lib/fettle/backups").device = 2049),
    ("PF073", Outcome::Fail, |_, context| context.release.as_mut().unwrap().flake = true),
];

fn set_os(facts: &mut HostFacts, id: &str, version: &str) {
    let Seen::Known(os) = &mut facts.system.os else { panic!("recorded") };
    os.insert("ID".into(), id.into());
    os.insert("VERSION_ID".into(), version.into());
}

fn disk<'a>(facts: &'a mut HostFacts, path: &str) -> &'a mut fettle_installer::facts::Disk {
    match facts.disks.get_mut(camino::Utf8Path::new(path)) {
        Some(Seen::Known(disk)) => disk,
        _ => panic!("recorded"),
    }
}

fn free(facts: &mut HostFacts, path: &str, gib: u64) {
    disk(facts, path).free_bytes = gib << 30;
}

fn memory(facts: &mut HostFacts, gib: u64) {
    let Seen::Known(memory) = &mut facts.memory else { panic!("recorded") };
    memory.total_bytes = gib << 30;
}

fn listen(facts: &mut HostFacts, port: u16, process: &str) {
    let Seen::Known(listeners) = &mut facts.listeners else { panic!("recorded") };
    let address = std::net::Ipv4Addr::UNSPECIFIED.into();
    listeners.push(Listener { protocol: Protocol::Tcp, address, port, process: Seen::Known(process.into()) });
}

/// Two healthy GPUs.
fn gpu(facts: &mut HostFacts) {
    facts.gpu = host("dgx-h100").gpu;
    facts.gpu.switches = Seen::Known(0);
    facts.gpu.mig_instances = Seen::Known(0);
    unit(facts, "nvidia-persistenced.service");
}

fn gpu_without_services(facts: &mut HostFacts, _: &mut Context) {
    gpu(facts);
    facts.units = Seen::Known([].into());
}

fn host_user(uid: u32) -> fettle_installer::facts::User {
    fettle_installer::facts::User { uid, shell: "/bin/bash".into() }
}

fn receipt(schema: u32, mode: &str) -> Seen<ReceiptFacts> {
    let (version, mode) = ("9.9.9".to_owned(), mode.to_owned());
    Seen::Known(ReceiptFacts::Present { schema, version, mode, installed: None })
}

fn docker(facts: &mut HostFacts, mode: &str, members: &[&str]) {
    let socket = serde_json::json!({ "kind": "other", "mode": mode, "uid": 0, "gid": 998, "bytes": 0 });
    facts.names.docker_socket = Seen::Known(Some(serde_json::from_value(socket).unwrap()));
    let group = serde_json::json!({ "docker": { "gid": 998, "members": members } });
    facts.names.groups = Seen::Known(serde_json::from_value(group).unwrap());
}

fn namespaces_refused(facts: &mut HostFacts) {
    facts.sandbox.namespaces = Seen::Known(Attempt { ok: false, said: "Operation not permitted".into() });
}

fn proxy(facts: &mut HostFacts, exceptions: Option<&str>) {
    facts.network.proxies.insert("https_proxy".into(), "http://proxy.example:3128".into());
    facts.network.proxies.extend(exceptions.map(|value| ("no_proxy".to_owned(), value.to_owned())));
}

fn unit(facts: &mut HostFacts, name: &str) {
    let Seen::Known(units) = &mut facts.units else { panic!("recorded") };
    let unit = Unit { load: "loaded".into(), active: "active".into(), enabled: "enabled".into(), ..Unit::default() };
    units.insert(name.into(), unit);
}

/// Debian 13, on which nothing is amiss.
fn healthy() -> (HostFacts, Context) {
    let release = Release { version: "0.1.0".into(), arch: "x86_64".into(), bytes: 700 << 20, flake: false };
    (host("debian-13"), Context { release: Some(release), ..Context::of(Mode::Systemd) })
}

#[test]
fn every_check_passes_on_a_healthy_host_and_not_when_its_thing_is_broken() {
    let (facts, context) = healthy();
    let findings = preflight::checks(&facts, &context);
    let amiss: Vec<&Finding> = findings.iter().filter(|finding| finding.outcome != Outcome::Pass).collect();
    assert!(amiss.is_empty(), "{amiss:#?}");
    let all: BTreeSet<&str> = findings.iter().map(|finding| finding.id).collect();
    assert_eq!(all.len(), findings.len(), "ids are unique");
    assert!(all.len() >= 30, "{}", all.len());

    let mut broken = BTreeSet::new();
    for (id, outcome, breaks) in BREAKS {
        let (mut facts, mut context) = healthy();
        breaks(&mut facts, &mut context);
        let finding = finding(&facts, &context, id);
        assert_eq!(finding.outcome, *outcome, "{finding:?}");
        broken.insert(*id);
    }
    assert_eq!(broken, all, "each check has a case");
}

#[test]
fn whatever_is_not_right_has_one_sentence_of_remedy() {
    let (facts, context) = healthy();
    let mut findings = preflight::checks(&facts, &context);
    for (_, _, breaks) in BREAKS {
        let (mut facts, mut context) = healthy();
        breaks(&mut facts, &mut context);
        findings.extend(preflight::checks(&facts, &context));
    }
    findings.extend(hosts().iter().flat_map(|(_, facts)| preflight::checks(facts, &context)));
    for finding in findings {
        let Finding { outcome, remedy, found, .. } = &finding;
        assert!(!found.is_empty() && !found.contains('\n'), "{finding:?}");
        assert_eq!(remedy.is_empty(), *outcome == Outcome::Pass, "{finding:?}");
        assert!(remedy.is_empty() || (remedy.ends_with('.') && !remedy.contains(". ")), "{finding:?}");
    }
}

#[test]
fn what_nobody_looked_at_is_unknown_and_never_a_failure() {
    let findings = preflight::checks(&HostFacts::default(), &Context::of(Mode::Systemd));
    let counts = Counts::of(&findings);
    assert_eq!(counts.fail, 0, "{findings:#?}");
    // Proxies are a list that may well be empty; a Nix daemon is not asked for.
    let passed: Vec<&str> =
        findings.iter().filter(|finding| finding.outcome == Outcome::Pass).map(|finding| finding.id).collect();
    assert_eq!(passed, ["PF060", "PF061", "PF073"]);
    assert!(matches!(preflight::select(&HostFacts::default(), None), Err(Refusal::Unknown(_))));
}

#[test]
fn the_host_chooses_its_mode_and_hosts_without_services_are_sent_to_fettle_up() {
    for (name, expected) in [
        ("debian-12", Ok(Mode::Systemd)),
        ("dgx-a100", Ok(Mode::Systemd)),
        ("dgx-spark", Ok(Mode::Systemd)),
        ("nixos", Ok(Mode::Nixos)),
        ("wsl-1", Err("WSL 1")),
        ("wsl-2", Err("WSL 2 without systemd")),
        ("docker", Err("container (docker)")),
    ] {
        match (preflight::select(&host(name), None), expected) {
            (Ok(mode), Ok(expected)) => assert_eq!(mode, expected, "{name}"),
            (Err(refusal), Err(part)) => {
                let text = refusal.to_string();
                assert!(text.contains(part) && text.contains("`fettle up`"), "{name}: {text}");
            }
            (selected, _) => panic!("{name}: {selected:?}"),
        }
    }
    assert!(matches!(preflight::select(&host("nixos"), Some(Mode::Systemd)), Err(Refusal::WrongMode(_))));
    assert!(matches!(preflight::select(&host("debian-12"), Some(Mode::Nixos)), Err(Refusal::WrongMode(_))));
}

/// Without root neither receipt nor process can be seen; a port may then well be Fettle's own.
#[test]
fn a_port_of_an_installation_is_no_failure_to_somebody_who_may_not_see_who_holds_it() {
    let mut facts = host("installed");
    facts.installed.receipt = Seen::unknown("needs root to look at it");
    let Seen::Known(listeners) = &mut facts.listeners else { panic!("recorded") };
    listeners.iter_mut().for_each(|one| one.process = Seen::unknown("needs root to name it"));
    let found = finding(&facts, &Context::of(Mode::Systemd), "PF020");
    assert_eq!((found.outcome, found.found.as_str()), (Outcome::Unknown, "needs root to see who holds port 8080"));
}

#[test]
fn an_ignored_failure_is_a_warning_and_nothing_else_changes() {
    let facts = host("full-disk");
    let all = report::judge(&facts, &asked()).unwrap();
    let failed: Vec<&str> =
        all.findings.iter().filter(|finding| finding.outcome == Outcome::Fail).map(|finding| finding.id).collect();
    assert!(failed.len() > 1 && failed.contains(&"PF010"), "{failed:?}");

    let some = Preflight { ignore: vec!["pf010, PF070".to_owned()], ..asked() };
    let judged = report::judge(&facts, &some).unwrap();
    for (before, after) in all.findings.iter().zip(&judged.findings) {
        if before.id == "PF010" {
            assert_eq!((after.outcome, after.ignored), (Outcome::Warn, true));
        } else {
            assert_eq!(before, after);
        }
    }
    assert!(!judged.passed());
    let rest = Preflight { ignore: vec![failed.join(",")], ..asked() };
    assert!(report::judge(&facts, &rest).unwrap().passed());
}

#[test]
fn an_id_that_no_check_has_is_told_by_name() {
    for wrong in ["PF999", "PF01", "disk", "PF010,PF999"] {
        let asked = Preflight { ignore: vec![wrong.to_owned()], ..asked() };
        let error = report::judge(&host("debian-12"), &asked).unwrap_err();
        assert!(error.contains(wrong.split(',').next_back().unwrap()), "{error}");
    }
}

#[test]
fn an_unsupported_system_can_be_installed_on_at_ones_own_risk_only() {
    let (mut facts, _) = healthy();
    set_os(&mut facts, "fedora", "43");
    let refused = report::judge(&facts, &asked()).unwrap();
    assert!(!refused.passed() && refused.refused.is_some());
    let own_risk = Preflight { ignore: vec!["PF004".to_owned()], ..asked() };
    assert!(report::judge(&facts, &own_risk).unwrap().passed());
}

#[test]
fn programs_get_a_line_for_each_finding_and_then_the_counts() {
    let judged = report::judge(&host("port-taken"), &asked()).unwrap();
    let mut out = Vec::new();
    let code = report::preflight(&mut out, &judged, Show { json: true, ..Show::default() }).unwrap();
    let lines: Vec<serde_json::Value> =
        String::from_utf8(out).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((code, lines.len()), (10, judged.findings.len() + 1));
    let port = lines.iter().find(|line| line["id"] == "PF020").unwrap();
    assert_eq!(port["outcome"], "fail");
    assert_eq!(port["found"], "8080 is taken by java (pid 4242)");
    assert_eq!(lines.last().unwrap()["summary"]["fail"], Counts::of(&judged.findings).fail);
}

#[test]
fn colour_is_there_only_when_asked_for() {
    let judged = report::judge(&host("port-taken"), &asked()).unwrap();
    let printed = |show| {
        let mut out = Vec::new();
        report::print(&mut out, &judged.findings, show).unwrap();
        String::from_utf8(out).unwrap()
    };
    assert!(!printed(Show::default()).contains('\u{1b}'));
    assert!(printed(Show { colour: true, ..Show::default() }).contains('\u{1b}'));
    assert!(!printed(Show { brief: true, ..Show::default() }).contains("PF003"));
}
