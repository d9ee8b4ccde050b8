use std::collections::BTreeSet;

use fettle_app::ports::sandbox::SandboxLevel;
use fettle_installer::facts::{ConfigFacts, HostFacts, ReceiptFacts, SecretFacts, Seen, Stat, Strength, Unit};
use fettle_installer::production;
use fettle_installer::report::{self, Counts, Finding, Outcome, Show};
use fettle_runtime::config::PrepareNetwork;

use super::{host, hosts};

#[test]
fn installations_are_judged_as_their_snapshots_say() {
    for name in ["installed", "neglected"] {
        let mut out = Vec::new();
        let code = report::production_checks(&mut out, &host(name), Show::default()).unwrap();
        out.extend(format!("exit {code}\n").bytes());
        insta::assert_snapshot!(format!("production_{name}"), String::from_utf8(out).unwrap());
    }
}

type Break = fn(&mut HostFacts);

/// One thing wrong at a time on a well-kept installation.
const BREAKS: &[(&str, Outcome, Break)] = &[
    ("PC01", Outcome::Fail, |facts| config(facts).listen = "0.0.0.0:8080".into()),
    ("PC02", Outcome::Fail, |facts| config(facts).internal_listen = "[::]:8081".into()),
    ("PC03", Outcome::Fail, |facts| attributes(facts, "/etc/fettle/fettle.toml").mode = 0o644),
    ("PC03", Outcome::Fail, |facts| attributes(facts, "/etc/fettle/fettle.toml").uid = 1000),
    ("PC04", Outcome::Fail, |facts| attributes(facts, "/etc/fettle/secrets").mode = 0o750),
    ("PC04", Outcome::Fail, |facts| key(facts).file.as_mut().unwrap().mode = 0o640),
    ("PC04", Outcome::Fail, |facts| key(facts).file.as_mut().unwrap().uid = 995),
    ("PC04", Outcome::Fail, |facts| key(facts).file = None),
    ("PC05", Outcome::Fail, |facts| key(facts).strength = Seen::Known(Strength::Empty)),
    ("PC05", Outcome::Fail, |facts| key(facts).strength = Seen::Known(Strength::Placeholder)),
    ("PC05", Outcome::Fail, |facts| key(facts).strength = Seen::Known(Strength::Short)),
    ("PC06", Outcome::Warn, |facts| config(facts).webhook_secret = false),
    ("PC07", Outcome::Warn, |facts| config(facts).write_token = true),
    ("PC07", Outcome::Fail, |facts| config(facts).app = false),
    ("PC08", Outcome::Fail, |facts| unit(facts, "fettle-backup.timer").active = "inactive".into()),
    ("PC08", Outcome::Fail, |facts| unit(facts, "fettle-backup.timer").enabled = "disabled".into()),
    ("PC09", Outcome::Fail, |facts| facts.backup.verified = Seen::Known(None)),
    ("PC09", Outcome::Warn, |facts| verified(facts, "2026-11-18T03:20:00Z")),
    ("PC09", Outcome::Fail, |facts| verified(facts, "2026-11-12T03:20:00Z")),
    ("PC10", Outcome::Warn, |facts| {
        let state = facts.disks[camino::Utf8Path::new("/var/lib/fettle")].clone();
        facts.disks.insert("/var/lib/fettle/backups".into(), state);
    }),
    ("PC11", Outcome::Warn, |facts| free(facts, 100)),
    ("PC11", Outcome::Fail, |facts| free(facts, 20)),
    ("PC12", Outcome::Fail, |facts| facts.system.clock_synchronised = Seen::Known(false)),
    ("PC13", Outcome::Warn, |facts| facts.updates.automatic = Seen::Known(None)),
    ("PC14", Outcome::Warn, |facts| facts.updates.reboot_required = Seen::Known(true)),
    ("PC15", Outcome::Fail, |facts| facts.installed.receipt = Seen::Known(ReceiptFacts::None)),
    ("PC15", Outcome::Warn, |facts| {
        let Seen::Known(ReceiptFacts::Present { installed, .. }) = &mut facts.installed.receipt else { panic!() };
        *installed = Some("2026-01-01T00:00:00Z".parse().unwrap());
    }),
    ("PC16", Outcome::Warn, |facts| facts.sandbox.apparmor_restricts = Seen::Known(false)),
    ("PC16", Outcome::Warn, |facts| facts.sandbox.profile_loaded = Seen::Known(false)),
    ("PC16", Outcome::Fail, |facts| {
        facts.sandbox.apparmor_restricts = Seen::Known(false);
        facts.sandbox.landlock_abi = Seen::Known(0);
    }),
    ("PC17", Outcome::Warn, |facts| config(facts).min_level = SandboxLevel::Landlock),
    ("PC18", Outcome::Fail, |facts| config(facts).prepare_network = PrepareNetwork::Host),
    ("PC19", Outcome::Fail, |facts| unit(facts, "fettle-dashboard.service").active = "failed".into()),
    ("PC19", Outcome::Fail, |facts| unit(facts, "fettle-worker@01.service").active = "failed".into()),
    ("PC19", Outcome::Fail, |facts| unit(facts, "fettle.target").enabled = "disabled".into()),
    ("PC20", Outcome::Fail, |facts| unit(facts, "fettle-worker@01.service").watchdog_s = 0),
    ("PC21", Outcome::Warn, |facts| unit(facts, "fettle-dashboard.service").needs_reload = true),
    ("PC22", Outcome::Warn, |facts| config(facts).plain_models = vec!["coder".into()]),
    ("PC23", Outcome::Fail, |facts| {
        facts.names.groups = host("neglected").names.groups;
    }),
];

fn config(facts: &mut HostFacts) -> &mut ConfigFacts {
    match &mut facts.config {
        Seen::Known(Some(config)) => config,
        _ => panic!("recorded"),
    }
}

fn attributes<'a>(facts: &'a mut HostFacts, path: &str) -> &'a mut Stat {
    match facts.attributes.get_mut(camino::Utf8Path::new(path)) {
        Some(Seen::Known(Some(stat))) => stat,
        _ => panic!("recorded"),
    }
}

fn key(facts: &mut HostFacts) -> &mut SecretFacts {
    let Seen::Known(secrets) = &mut facts.secrets else { panic!("recorded") };
    secrets.get_mut(camino::Utf8Path::new("/etc/fettle/secrets/worker.key")).unwrap()
}

fn unit<'a>(facts: &'a mut HostFacts, name: &str) -> &'a mut Unit {
    let Seen::Known(units) = &mut facts.units else { panic!("recorded") };
    units.get_mut(name).unwrap()
}

fn verified(facts: &mut HostFacts, time: &str) {
    facts.backup.verified = Seen::Known(Some(time.parse().unwrap()));
}

fn free(facts: &mut HostFacts, gib: u64) {
    let Some(Seen::Known(disk)) = facts.disks.get_mut(camino::Utf8Path::new("/var/lib/fettle")) else { panic!() };
    disk.free_bytes = gib << 30;
}

fn finding(facts: &HostFacts, id: &str) -> Finding {
    production::checks(facts).into_iter().find(|finding| finding.id == id).unwrap()
}

#[test]
fn every_check_passes_on_a_well_kept_installation_and_not_when_its_thing_is_broken() {
    let findings = production::checks(&host("installed"));
    let amiss: Vec<&Finding> = findings.iter().filter(|finding| finding.outcome != Outcome::Pass).collect();
    assert!(amiss.is_empty(), "{amiss:#?}");
    let all: BTreeSet<&str> = findings.iter().map(|finding| finding.id).collect();
    let mut broken = BTreeSet::new();
    for (id, outcome, breaks) in BREAKS {
        let mut facts = host("installed");
        breaks(&mut facts);
        let finding = finding(&facts, id);
        assert_eq!(finding.outcome, *outcome, "{finding:?}");
        assert!(finding.remedy.ends_with('.') && !finding.remedy.contains(". "), "{finding:?}");
        broken.insert(*id);
    }
    assert_eq!(broken, all, "each check has a case");
}

#[test]
fn whoever_polls_needs_no_webhook_secret() {
    let mut facts = host("installed");
    (config(&mut facts).webhook_secret, config(&mut facts).polls) = (false, true);
    assert_eq!(finding(&facts, "PC06").outcome, Outcome::Pass);
}

#[test]
fn a_host_without_an_installation_is_told_so_and_nothing_unknown_is_a_failure() {
    let bare = production::checks(&host("debian-13"));
    let listen = bare.iter().find(|finding| finding.id == "PC01").unwrap();
    assert_eq!(listen.outcome, Outcome::Unknown);
    assert!(listen.found.contains("is Fettle installed?"), "{listen:?}");
    let nothing = production::checks(&HostFacts::default());
    assert_eq!(Counts::of(&nothing), Counts { unknown: nothing.len(), ..Counts::default() });
}

#[test]
fn records_survive_being_written_and_read() {
    for (name, facts) in hosts() {
        let text = serde_json::to_string(&facts).unwrap();
        assert_eq!(serde_json::from_str::<HostFacts>(&text).unwrap(), facts, "{name}");
    }
    // What looks alike on paper is told apart.
    let list: Seen<Vec<String>> = Seen::Known(vec!["needs root".into()]);
    let unknown: Seen<Vec<String>> = Seen::unknown("needs root");
    for seen in [list, unknown] {
        let text = serde_json::to_string(&seen).unwrap();
        assert_eq!(serde_json::from_str::<Seen<Vec<String>>>(&text).unwrap(), seen, "{text}");
    }
}
