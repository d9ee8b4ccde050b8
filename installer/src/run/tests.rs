//! Runs are killed before each change that they make, refused each change that they make, and must always end in one of two
//! states: all done, or as it was.

use std::panic::{AssertUnwindSafe, catch_unwind};

use proptest::prelude::*;

use super::*;
use crate::action::{Manifest, ManifestFile};
use crate::answers::Answers;
use crate::host::fake::{FakeHost, Fault, Killed};
use crate::host::{HostView as _, UnitVerb, sha256};
use crate::journal::Product;
use crate::layout::HOME;
use crate::plan::{Facts, Foreign, Plan, Release, Settled, plan, settle, uninstall};
use crate::take_over::{look, take_over};

mod cluster;

const SYSUSERS: &str = "u fettle - \"Fettle\"\nu fettle-worker - \"Fettle's workers\"\nm fettle-worker fettle\n";

/// A release tree on the host, as `release-tree` makes it.
fn release(host: &mut FakeHost, version: &str) -> Release {
    let source = format!("/srv/fettle-{version}");
    let shared = [
        ("sysusers/fettle.conf", SYSUSERS.to_owned()),
        (
            "sysusers/fettle-inference.conf",
            "u fettle-inference - \"Fettle's models\"\nm fettle-inference fettle\n".to_owned(),
        ),
        ("polkit/50-fettle.rules", "polkit.addRule();\n".to_owned()),
        ("tmpfiles/fettle.conf", "d /run/fettle 0755\n".to_owned()),
        ("apparmor/fettle-worker", "profile".to_owned()),
        ("units/fettle.target", format!("# {version}")),
        ("units/fettle-dashboard.service", format!("# {version}")),
        ("units/fettle-dashboard.socket", "ListenStream=127.0.0.1:8080\n".to_owned()),
        ("units/fettle-dashboard-internal.socket", "ListenStream=127.0.0.1:8081\n".to_owned()),
        ("units/fettle-inference.service", format!("# {version}")),
        ("units/fettle-inference.socket", "ListenStream=127.0.0.1:8484\n".to_owned()),
        ("units/fettle-engine@.service", format!("# {version}")),
        ("units/fettle-engine.slice", String::new()),
        ("units/fettle-worker@.service", format!("# {version}")),
        ("units/fettle-backup.service", String::new()),
        ("units/fettle-backup.timer", String::new()),
    ];
    let programs = ["bin/fettle", "bin/fettle-dashboard", "bin/fettle-installer"]
        .map(|path| (path.to_owned(), version.to_owned(), "0755"));
    let shared_files = shared.iter().map(|(path, text)| (format!("share/fettle/{path}"), text.clone(), "0644"));
    let mut files = std::collections::BTreeMap::new();
    for (path, text, mode) in programs.into_iter().chain(shared_files) {
        host.put(&format!("{source}/{path}"), &text, 0o644);
        files.insert(path.into(), ManifestFile { sha256: sha256(text.as_bytes()), mode: mode.to_owned() });
    }
    let manifest =
        Manifest { schema: 1, version: version.to_owned(), arch: "x86_64".to_owned(), oldest_reader: 1, files };
    let text = serde_json::to_string(&manifest).unwrap();
    host.put(&format!("{source}/manifest.json"), &text, 0o644);
    let shared = shared.into_iter().map(|(path, text)| (path.into(), text)).collect();
    Release { source: source.into(), manifest, manifest_sha256: sha256(text.as_bytes()), shared }
}

fn planned(host: &FakeHost, release: &Release, answers: &Answers) -> Plan {
    let config = host.text("/etc/fettle/fettle.toml").map(str::to_owned);
    let facts = Facts { config, apparmor_restricts_namespaces: true, ..Facts::default() };
    let plan = plan(release, &facts, answers);
    assert_eq!(plan.refusals, Vec::<String>::new());
    plan
}

fn settled(host: &FakeHost, plan: &Plan) -> Settled {
    let receipt = Receipt::read(host, &home().receipt()).unwrap();
    let settled = settle(plan, host, receipt.as_ref(), Foreign::Refuse).unwrap();
    assert_eq!((settled.conflicts.len(), settled.blocked.len()), (0, 0), "{settled:?}");
    settled
}

fn home() -> Home {
    Home(HOME.into())
}

fn run(purpose: Purpose, product: Product, steps: Vec<Step>) -> Run {
    Run {
        id: product.release.clone(),
        purpose,
        on_failure: OnFailure::Revert,
        started: "2026-01-01T00:00:00Z".to_owned(),
        product,
        mode: "systemd".to_owned(),
        steps,
    }
}

/// The panics that stand for SIGKILL are no news.
fn quiet() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !info.payload().is::<Killed>() {
                hook(info)
            }
        }));
    });
}

/// What a process did, or none when it was killed.
fn process<T>(host: &mut FakeHost, work: impl FnOnce(&mut FakeHost, &mut Runner<'_>) -> T) -> Option<T> {
    quiet();
    let home = home();
    let mut watch = |_: Event<'_>| {};
    let mut runner = Runner::new(&home, &mut watch);
    match catch_unwind(AssertUnwindSafe(|| work(host, &mut runner))) {
        Ok(value) => Some(value),
        Err(payload) if payload.is::<Killed>() => None,
        Err(payload) => std::panic::resume_unwind(payload),
    }
}

fn apply(host: &mut FakeHost, release: &Release, answers: &Answers) -> Option<Result<Outcome, RunError>> {
    let plan = planned(host, release, answers);
    let steps = settled(host, &plan).steps;
    let run = run(Purpose::Apply, plan.product, steps);
    process(host, |host, runner| runner.start(host, run))
}

fn remove(host: &mut FakeHost, purge: bool) -> Option<Result<Outcome, RunError>> {
    let receipt = Receipt::read(host, &home().receipt()).unwrap().expect("something is installed");
    let run = run(Purpose::Uninstall { purge }, Product::default(), uninstall(&receipt, purge));
    process(host, |host, runner| runner.start(host, run))
}

fn resume(host: &mut FakeHost) -> Option<Outcome> {
    host.fault = None;
    process(host, |host, runner| runner.resume(host).unwrap()).expect("nobody kills it now")
}

fn turn_back(host: &mut FakeHost) -> Option<Outcome> {
    host.fault = None;
    process(host, |host, runner| runner.turn_back(host, "asked for").unwrap()).expect("nobody kills it now")
}

fn same(left: &crate::host::fake::Facts, right: &crate::host::fake::Facts, when: &str) {
    assert_eq!(left.differences(right), Vec::<String>::new(), "{when}");
}

const PREDECESSOR: &str = "aiagent.service";

/// Everything that can be asked for: to take another installation's place is part of it.
fn asked() -> Answers {
    let found = look(&fresh().0).unwrap().unwrap();
    take_over(&found, None).answers
}

/// A machine on which another installation runs, with the release's tree lying about.
fn fresh() -> (FakeHost, Release) {
    let mut host = FakeHost::fresh();
    host.put(
        "/etc/ai-agent/env",
        "GITHUB_WEBHOOK_SECRET='a secret of what ran here before'\nOLLAMA_MODEL=codellama:13b\n",
        0o600,
    );
    host.put(&format!("/etc/systemd/system/{PREDECESSOR}"), "[Service]\n", 0o644);
    host.daemon_reload().unwrap();
    host.units(UnitVerb::Enable, PREDECESSOR).unwrap();
    host.units(UnitVerb::Start, PREDECESSOR).unwrap();
    let release = release(&mut host, "1.0.0");
    (host, release)
}

fn installed() -> (FakeHost, Release) {
    let (mut host, release) = fresh();
    assert_eq!(apply(&mut host, &release, &asked()).unwrap().unwrap(), Outcome::Done);
    (host, release)
}

/// Runs `work` once undisturbed to count its changes, then once for every change with `fault` at it.
fn at_each_change(start: &FakeHost, fault: Fault, work: impl Fn(&mut FakeHost), mut then: impl FnMut(usize, FakeHost)) {
    let mut undisturbed = start.clone();
    work(&mut undisturbed);
    let changes = undisturbed.changes() - start.changes();
    assert!(changes > 5, "only {changes} changes");
    for change in start.changes() + 1..=start.changes() + changes {
        let mut host = start.clone();
        host.fault = Some((change, fault));
        work(&mut host);
        host.fault = None;
        then(change, host);
    }
}

#[test]
fn an_installation_killed_before_any_change_is_finished_by_resume() {
    let (start, release) = fresh();
    let (wanted, _) = installed();
    at_each_change(
        &start,
        Fault::Killed,
        |host| drop(apply(host, &release, &asked())),
        |change, mut host| {
            match resume(&mut host) {
                Some(outcome) => assert_eq!(outcome, Outcome::Done, "at change {change}"),
                // Killed before the journal began, or after it had ended.
                None => assert_eq!(apply(&mut host, &release, &asked()).unwrap().unwrap(), Outcome::Done),
            }
            same(&host.without(HOME), &wanted.without(HOME), &format!("at change {change}"));
            assert_eq!(
                host.text("/var/lib/fettle-installer/receipt.json"),
                wanted.text("/var/lib/fettle-installer/receipt.json")
            );
        },
    );
}

#[test]
fn an_installation_killed_before_any_change_leaves_nothing_when_it_is_taken_back() {
    let (start, release) = fresh();
    at_each_change(
        &start,
        Fault::Killed,
        |host| drop(apply(host, &release, &asked())),
        |change, mut host| {
            if turn_back(&mut host).is_none() && Receipt::read(&host, &home().receipt()).unwrap().is_some() {
                assert_eq!(remove(&mut host, true).unwrap().unwrap(), Outcome::Done);
            }
            same(&host.without(HOME), &start.without(HOME), &format!("at change {change}"));
        },
    );
}

#[test]
fn an_installation_that_is_refused_a_change_takes_itself_back() {
    let (start, release) = fresh();
    at_each_change(
        &start,
        Fault::Refused,
        |host| drop(apply(host, &release, &asked())),
        |change, mut host| {
            // Without its journal a run can do nothing, not even go back: that is for the next one.
            turn_back(&mut host);
            if Receipt::read(&host, &home().receipt()).unwrap().is_some() {
                assert_eq!(remove(&mut host, true).unwrap().unwrap(), Outcome::Done);
            }
            same(&host.without(HOME), &start.without(HOME), &format!("at change {change}"));
        },
    );
}

#[test]
fn what_ran_before_is_retired_with_its_secret_carried_over_and_comes_back_with_an_uninstallation() {
    let (mut host, release) = installed();
    assert_eq!(host.text("/etc/fettle/secrets/webhook-secret"), Some("a secret of what ran here before"));
    assert!(host.text("/etc/fettle/fettle.toml").unwrap().contains("http://127.0.0.1:11434/v1"));
    assert_eq!(host.unit(PREDECESSOR).unwrap(), crate::host::UnitState::default());
    // Whoever is content removes what was there before; nothing hangs on it any more.
    let mut content = host.clone();
    for path in ["/etc/ai-agent/env", "/etc/systemd/system/aiagent.service"] {
        content.remove(path.into()).unwrap();
    }
    content.daemon_reload().unwrap();
    assert_eq!(settled(&content, &planned(&content, &release, &asked())).steps, []);
    assert_eq!(remove(&mut content, true).unwrap().unwrap(), Outcome::Done);
    assert_eq!(remove(&mut host, false).unwrap().unwrap(), Outcome::Done);
    let state = host.unit(PREDECESSOR).unwrap();
    assert!(state.enabled && state.active);
}

#[test]
fn a_second_apply_has_nothing_to_do() {
    let (host, release) = installed();
    assert_eq!(settled(&host, &planned(&host, &release, &asked())).steps, []);
}

#[test]
fn an_upgrade_killed_before_any_change_ends_as_the_new_or_the_old_release() {
    let (mut start, old) = installed();
    let new = release(&mut start, "2.0.0");
    let mut wanted = start.clone();
    assert_eq!(apply(&mut wanted, &new, &asked()).unwrap().unwrap(), Outcome::Done);
    assert_eq!(settled(&wanted, &planned(&wanted, &new, &asked())).steps, []);
    at_each_change(
        &start,
        Fault::Killed,
        |host| drop(apply(host, &new, &asked())),
        |change, host| {
            let mut forth = host.clone();
            if resume(&mut forth).is_none() {
                apply(&mut forth, &new, &asked());
            }
            same(&forth.without(HOME), &wanted.without(HOME), &format!("forth, at change {change}"));
            let mut back = host;
            if turn_back(&mut back).is_some() {
                same(&back.without(HOME), &start.without(HOME), &format!("back, at change {change}"));
                assert_eq!(settled(&back, &planned(&back, &old, &asked())).steps, []);
            }
        },
    );
}

#[test]
fn an_upgrade_to_a_release_that_never_gets_ready_is_switched_back_and_says_that_it_was_the_gate() {
    let (mut start, _) = installed();
    let new = release(&mut start, "2.0.0");
    let mut host = start.clone();
    host.broken.insert("2.0.0".to_owned());
    let outcome = apply(&mut host, &new, &asked()).unwrap().unwrap();
    assert!(matches!(&outcome, Outcome::Reverted { gate: true, reason } if reason.contains("503")), "{outcome:?}");
    same(&host.without(HOME), &start.without(HOME), "");
}

#[test]
fn an_upgrade_that_is_ready_and_does_not_work_is_switched_back_as_well() {
    let (mut start, _) = installed();
    let new = release(&mut start, "2.0.0");
    let mut host = start.clone();
    host.smoking.insert("2.0.0".to_owned());
    let outcome = apply(&mut host, &new, &asked()).unwrap().unwrap();
    assert!(matches!(&outcome, Outcome::Reverted { gate: true, reason } if reason.contains("SM03")), "{outcome:?}");
    same(&host.without(HOME), &start.without(HOME), "");
}

#[test]
fn a_service_that_does_not_start_with_what_was_there_before_either_is_told_and_keeps_no_run_unfinished() {
    let (mut start, _) = installed();
    let new = release(&mut start, "2.0.0");
    let mut host = start.clone();
    host.unstartable = true;
    let outcome = apply(&mut host, &new, &asked()).unwrap().unwrap();
    let told = matches!(&outcome, Outcome::Reverted { gate: true, reason } if reason.contains("does not run either"));
    assert!(told, "{outcome:?}");
    same(&host.without(HOME), &start.without(HOME), "");
    assert_eq!(remove(&mut host, true).unwrap().unwrap(), Outcome::Done);
}

#[test]
fn a_configuration_that_the_new_release_refuses_is_not_switched_to() {
    let (mut start, _) = installed();
    let new = release(&mut start, "2.0.0");
    let mut host = start.clone();
    host.refused_config = Some("worker_key_file");
    let outcome = apply(&mut host, &new, &asked()).unwrap().unwrap();
    assert!(
        matches!(&outcome, Outcome::Reverted { gate: false, reason } if reason.contains("unknown key")),
        "{outcome:?}"
    );
    same(&host.without(HOME), &start.without(HOME), "");
}

#[test]
fn an_uninstallation_killed_before_any_change_goes_on_and_leaves_what_is_the_operators() {
    let (start, _) = installed();
    let kept = ["/etc/fettle/fettle.toml", "/etc/fettle/secrets/worker.key", "/var/lib/fettle/dashboard/ledger.sqlite"];
    at_each_change(
        &start,
        Fault::Killed,
        |host| drop(remove(host, false)),
        |change, mut host| {
            // Not even begun, or ended already.
            if resume(&mut host).is_none() && host.text("/etc/systemd/system/fettle.target").is_some() {
                assert_eq!(remove(&mut host, false).unwrap().unwrap(), Outcome::Done);
            }
            for path in kept {
                assert!(host.text(path).is_some(), "{path} at change {change}");
            }
            assert_eq!(host.text("/etc/systemd/system/fettle.target"), None, "at change {change}");
            assert_eq!(host.entry("/opt/fettle".into()).unwrap(), crate::host::Entry::Absent, "at change {change}");
            assert!(!host.unit("fettle-dashboard.service").unwrap().active);
        },
    );
}

#[test]
fn a_purge_killed_before_any_change_goes_on_and_leaves_the_host_as_it_was() {
    let (before, _) = fresh();
    let (start, _) = installed();
    at_each_change(
        &start,
        Fault::Killed,
        |host| drop(remove(host, true)),
        |change, mut host| {
            if resume(&mut host).is_none() && Receipt::read(&host, &home().receipt()).unwrap().is_some() {
                assert_eq!(remove(&mut host, true).unwrap().unwrap(), Outcome::Done);
            }
            forget(&mut host, HOME.into()).unwrap();
            same(&host.facts, &before.facts, &format!("at change {change}"));
        },
    );
}

#[test]
fn a_purge_after_an_uninstallation_leaves_the_host_as_it_was() {
    let (before, _) = fresh();
    let (mut host, _) = installed();
    assert_eq!(remove(&mut host, false).unwrap().unwrap(), Outcome::Done);
    assert_eq!(remove(&mut host, true).unwrap().unwrap(), Outcome::Done);
    forget(&mut host, HOME.into()).unwrap();
    same(&host.facts, &before.facts, "");
}

#[test]
fn what_was_there_before_the_first_installation_comes_back_even_after_an_upgrade() {
    let (mut host, old) = fresh();
    host.put("/etc/sysusers.d/fettle.conf", "# somebody's\n", 0o600);
    let before = host.clone();
    let plan = planned(&host, &old, &asked());
    let settled = settle(&plan, &host, None, Foreign::Refuse).unwrap();
    assert_eq!(settled.conflicts.len(), 1, "{settled:?}");
    assert!(settled.conflicts[0].1.contains("-# somebody's"), "{settled:?}");
    let steps = settle(&plan, &host, None, Foreign::Overwrite).unwrap().steps;
    let first = run(Purpose::Apply, plan.product, steps);
    assert_eq!(process(&mut host, |host, runner| runner.start(host, first)).unwrap().unwrap(), Outcome::Done);
    let new = release(&mut host, "2.0.0");
    assert_eq!(apply(&mut host, &new, &asked()).unwrap().unwrap(), Outcome::Done);
    assert_eq!(remove(&mut host, true).unwrap().unwrap(), Outcome::Done);
    assert_eq!(host.text("/etc/sysusers.d/fettle.conf"), before.text("/etc/sysusers.d/fettle.conf"));
}

#[test]
fn fewer_workers_are_the_only_change_and_more_come_back() {
    let (mut host, release) = fresh();
    let answers = |workers| Answers { workers, ..Answers::default() };
    assert_eq!(apply(&mut host, &release, &answers(3)).unwrap().unwrap(), Outcome::Done);
    let three = host.clone();
    let fewer = settled(&host, &planned(&host, &release, &answers(2))).steps;
    let keys: Vec<String> = fewer.iter().map(|step| step.action().key()).collect();
    assert_eq!(
        keys,
        [
            "start:fettle-worker@03.service",
            "enable:fettle-worker@03.service",
            "file:/etc/fettle/installer.toml",
            "gate",
            "smoke"
        ]
    );
    assert_eq!(apply(&mut host, &release, &answers(2)).unwrap().unwrap(), Outcome::Done);
    assert!(!host.unit("fettle-worker@03.service").unwrap().active);
    assert_eq!(apply(&mut host, &release, &answers(3)).unwrap().unwrap(), Outcome::Done);
    same(&host.without(HOME), &three.without(HOME), "");
}

#[test]
fn without_the_inference_service_nothing_of_it_stays_and_it_comes_back() {
    let (mut host, release) = fresh();
    let answers = |inference| Answers { inference, ..Answers::default() };
    assert_eq!(apply(&mut host, &release, &answers(true)).unwrap().unwrap(), Outcome::Done);
    let with = host.clone();
    assert!(host.unit("fettle-inference.service").unwrap().active);
    assert_eq!(apply(&mut host, &release, &answers(false)).unwrap().unwrap(), Outcome::Done);
    // Engines are in the slice: it goes after what starts them.
    for unit in ["fettle-inference.socket", "fettle-inference.service", "fettle-engine.slice"] {
        assert!(!host.unit(unit).unwrap().active, "{unit}");
        assert!(host.text(&format!("/etc/systemd/system/{unit}")).is_none(), "{unit}");
    }
    for file in ["polkit-1/rules.d/50-fettle.rules", "systemd/system/fettle-worker@.service.d/10-gateway.conf"] {
        assert!(with.text(&format!("/etc/{file}")).is_some() && host.text(&format!("/etc/{file}")).is_none(), "{file}");
    }
    assert_eq!(apply(&mut host, &release, &answers(true)).unwrap().unwrap(), Outcome::Done);
    same(&host.without(HOME), &with.without(HOME), "");
}

#[test]
fn workers_ask_the_gateway_of_the_host_and_get_no_key_of_a_model() {
    let secrets = |plan: &Plan, unit: &str| {
        let file = format!("/etc/systemd/system/{unit}.d/10-secrets.conf");
        let text = plan.actions.iter().find_map(|action| match action {
            Action::File { path, text, .. } if *path == file => Some(text.clone()),
            _ => None,
        });
        let text = text.unwrap_or_default();
        let names = text.lines().filter_map(|line| line.strip_prefix("LoadCredential=")?.split_once(':'));
        names.map(|(name, _)| name.to_owned()).collect::<Vec<_>>().join(" ")
    };
    let gateway = |plan: &Plan| {
        plan.actions.iter().find_map(|action| match action {
            Action::File { path, text, .. } if path.ends_with("fettle-worker@.service.d/10-gateway.conf") => {
                Some(text.lines().last().unwrap().to_owned())
            }
            _ => None,
        })
    };
    let (mut host, release) = fresh();
    let planned = |host: &mut FakeHost, inference: bool, more: &str| {
        let config = format!(
            "[auth]\nworker_key_file = \"secrets/worker.key\"\n[[gateway.models]]\nname = \"m\"\n\
             base_url = \"http://127.0.0.1:1/v1\"\napi_key_file = \"secrets/m.key\"\n{more}"
        );
        host.put("/etc/fettle/fettle.toml", &config, 0o640);
        let secrets = std::iter::once("/etc/fettle/secrets/m.key".into()).collect();
        plan(
            &release,
            &Facts { config: Some(config), secrets, ..Facts::default() },
            &Answers { inference, ..Answers::default() },
        )
    };
    let with = planned(&mut host, true, "[gateway]\nlisten = \"127.0.0.1:9999\"\n");
    assert_eq!(with.refusals, Vec::<String>::new());
    assert_eq!(secrets(&with, "fettle-worker@.service"), "worker.key");
    assert_eq!(secrets(&with, "fettle-inference.service"), "m.key worker.key");
    assert_eq!(secrets(&with, "fettle-dashboard.service"), "m.key worker.key");
    assert_eq!(gateway(&with).unwrap(), "Environment=FETTLE_GATEWAY__URL=http://127.0.0.1:9999");

    let without = planned(&mut host, false, "");
    assert_eq!(secrets(&without, "fettle-worker@.service"), "m.key worker.key");
    assert_eq!((secrets(&without, "fettle-inference.service").as_str(), gateway(&without)), ("", None));

    let local = "[[gateway.models]]\nname = \"here\"\npath = \"/srv/m.gguf\"\n";
    let refused = planned(&mut host, false, local).refusals;
    assert!(
        matches!(refused.as_slice(), [why] if why.contains("`here`") && why.contains("inference = true")),
        "{refused:?}"
    );
    let elsewhere = planned(&mut host, false, &format!("{local}[gateway]\nurl = \"http://gpu-host:8484\"\n"));
    assert_eq!((elsewhere.refusals.len(), gateway(&elsewhere)), (0, None));
}

#[test]
fn the_operators_changes_of_the_configuration_stay_through_apply_and_upgrade() {
    let (mut host, release_1) = installed();
    let text = "[auth]\nworker_key_file = \"secrets/worker.key\"\n[server]\nlisten = \"0.0.0.0:8443\"\n";
    host.put("/etc/fettle/fettle.toml", text, 0o640);
    let attrs = Attrs { mode: 0o640, owner: crate::host::Owner::new("root", "fettle") };
    host.set_attrs("/etc/fettle/fettle.toml".into(), &attrs).unwrap();
    assert_eq!(apply(&mut host, &release_1, &asked()).unwrap().unwrap(), Outcome::Done);
    assert_eq!(host.text("/etc/fettle/fettle.toml"), Some(text));
    assert_eq!(settled(&host, &planned(&host, &release_1, &asked())).steps, []);
    let changed = text.replace("8443", "8444");
    let mut later = host.clone();
    later.put("/etc/fettle/fettle.toml", &changed, 0o640);
    later.set_attrs("/etc/fettle/fettle.toml".into(), &attrs).unwrap();
    let steps = settled(&later, &planned(&later, &release_1, &asked())).steps;
    let keys: Vec<String> = steps.iter().map(|step| step.action().key()).collect();
    assert!(keys.contains(&"restart:forth".to_owned()) && keys.last().unwrap() == "smoke", "{keys:?}");
    let listen = host.text("/etc/systemd/system/fettle-dashboard.socket.d/10-listen.conf").unwrap();
    assert!(listen.contains("ListenStream=0.0.0.0:8443"), "{listen}");
    let new = release(&mut host, "2.0.0");
    assert_eq!(apply(&mut host, &new, &asked()).unwrap().unwrap(), Outcome::Done);
    assert_eq!(host.text("/etc/fettle/fettle.toml"), Some(text));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Killed, resumed, killed again, turned back, killed again …
    #[test]
    fn whatever_kills_it_and_however_often_it_ends_installed_or_as_it_was(kills in prop::collection::vec((1usize..80, any::<bool>()), 1..5)) {
        let (start, release) = fresh();
        let wanted = installed().0.without(HOME);
        let mut host = start.clone();
        host.fault = Some((kills[0].0, Fault::Killed));
        apply(&mut host, &release, &asked());
        for (after, turn) in &kills[1..] {
            host.fault = Some((host.changes() + after, Fault::Killed));
            process(&mut host, |host, runner| if *turn { runner.turn_back(host, "asked for") } else { runner.resume(host) });
        }
        resume(&mut host);
        let receipt = Receipt::read(&host, &home().receipt()).unwrap();
        if receipt.is_some() {
            prop_assert_eq!(host.without(HOME).differences(&wanted), Vec::<String>::new());
        } else {
            prop_assert_eq!(host.without(HOME).differences(&start.without(HOME)), Vec::<String>::new());
        }
    }
}

const LEDGER: &str = "/var/lib/fettle/dashboard/ledger";
const KEY: &str = "/etc/fettle/secrets/worker.key";
const NEW_SECRET: &str = "/etc/fettle/secrets/webhook";

/// An installation with a backup laid out beside it.
fn with_backup() -> FakeHost {
    let (mut host, _) = installed();
    host.put(&format!("{LEDGER}/ledger.db"), "now", 0o600);
    host.put("/var/lib/fettle/.restore/new/ledger/ledger.db", "then", 0o600);
    host.put("/var/lib/fettle/.restore/old/.keep", "", 0o600);
    host.put("/etc/fettle/.restore/new/key", "the key of then", 0o600);
    host.put("/etc/fettle/.restore/new/webhook", "a secret of then", 0o600);
    host.put("/etc/fettle/.restore/old/.keep", "", 0o600);
    host
}

fn restore(host: &mut FakeHost) -> Option<Result<Outcome, RunError>> {
    let receipt = Receipt::read(host, &home().receipt()).unwrap().unwrap();
    let swap = |from: &str, path: &str, aside: &str| Action::Swap {
        from: from.into(),
        path: path.into(),
        aside: aside.into(),
    };
    let started: Vec<Action> = receipt
        .known()
        .map(|entry| entry.action.clone())
        .filter(|action| matches!(action, Action::Start { .. }))
        .collect();
    let units = started.iter().rev().map(|action| action.key()["start:".len()..].to_owned()).collect();
    let gate = crate::action::Gate {
        urls: vec!["http://127.0.0.1:8081/readyz".to_owned()],
        version: "1.0.0".to_owned(),
        limit_s: 1,
    };
    let mut actions = vec![
        Action::Stop { units },
        swap("/var/lib/fettle/.restore/new/ledger", LEDGER, "/var/lib/fettle/.restore/old/ledger"),
        swap("/etc/fettle/.restore/new/key", KEY, "/etc/fettle/.restore/old/key"),
        swap("/etc/fettle/.restore/new/webhook", NEW_SECRET, "/etc/fettle/.restore/old/webhook"),
    ];
    actions.extend(started);
    actions.push(Action::HealthGate { gate });
    let steps = actions.into_iter().map(|action| Step::Do { action }).collect();
    let mut run = run(Purpose::Restore, receipt.product, steps);
    run.id = "restore".to_owned();
    process(host, |host, runner| runner.start(host, run))
}

#[test]
fn a_restoration_killed_before_any_change_ends_with_the_data_of_then_or_of_now() {
    let start = with_backup();
    at_each_change(
        &start,
        Fault::Killed,
        |host| drop(restore(host)),
        |change, host| {
            let mut forth = host.clone();
            match resume(&mut forth) {
                Some(outcome) => assert_eq!(outcome, Outcome::Done, "at change {change}"),
                // Before its journal began, or after it had ended.
                None if forth.text(&format!("{LEDGER}/ledger.db")) == Some("then") => {}
                None => assert_eq!(restore(&mut forth).unwrap().unwrap(), Outcome::Done, "at change {change}"),
            }
            assert_eq!(forth.text(&format!("{LEDGER}/ledger.db")), Some("then"), "at change {change}");
            assert_eq!(forth.text(KEY), Some("the key of then"), "at change {change}");
            assert_eq!(forth.text(NEW_SECRET), Some("a secret of then"), "at change {change}");
            let mut back = host;
            let turned = turn_back(&mut back);
            if matches!(turned, Some(Outcome::Reverted { .. })) {
                assert_eq!(back.text(&format!("{LEDGER}/ledger.db")), Some("now"), "at change {change}");
                assert_eq!(back.text(KEY), start.text(KEY), "at change {change}");
                assert_eq!(back.text(NEW_SECRET), None, "at change {change}");
            } else if turned.is_some() {
                // Too late: its gate had passed.
                assert_eq!(turned, Some(Outcome::Done), "at change {change}");
                assert_eq!(back.text(&format!("{LEDGER}/ledger.db")), Some("then"), "at change {change}");
                assert_eq!(back.text(KEY), Some("the key of then"), "at change {change}");
            }
            for host in [&forth, &back] {
                assert!(host.unit("fettle-dashboard.service").unwrap().active, "at change {change}");
                assert!(host.unit("fettle-worker@01.service").unwrap().active, "at change {change}");
            }
            for left in ["/etc/fettle/.restore", "/var/lib/fettle/.restore"] {
                assert_eq!(forth.entry(left.into()).unwrap(), crate::host::Entry::Absent, "at change {change}");
            }
        },
    );
}

#[test]
fn a_restoration_that_does_not_become_healthy_brings_back_what_was_there() {
    let mut host = with_backup();
    host.broken.insert("1.0.0".to_owned());
    let outcome = restore(&mut host).unwrap().unwrap();
    assert!(matches!(&outcome, Outcome::Reverted { gate: true, .. }), "{outcome:?}");
    let (before, _) = installed();
    let mut before = before;
    before.put(&format!("{LEDGER}/ledger.db"), "now", 0o600);
    same(&host.without(HOME), &before.without(HOME), "");
}

#[test]
fn releases_older_than_three_generations_go_and_those_that_can_be_gone_back_to_stay() {
    let (mut host, _) = installed();
    for version in ["2.0.0", "3.0.0", "4.0.0"] {
        let new = release(&mut host, version);
        assert_eq!(apply(&mut host, &new, &asked()).unwrap().unwrap(), Outcome::Done);
        assert_eq!(settled(&host, &planned(&host, &new, &asked())).steps, []);
    }
    let kept: Vec<String> = host.list(crate::layout::RELEASES.into()).unwrap();
    let versions: Vec<&str> = kept.iter().filter_map(|name| name.split('-').next()).collect();
    assert_eq!(versions, ["2.0.0", "3.0.0", "4.0.0"]);
    let receipt = Receipt::read(&host, &home().receipt()).unwrap().unwrap();
    assert_eq!(receipt.generations.iter().map(|generation| generation.n).collect::<Vec<_>>(), [2, 3, 4]);
}

/// The host on which a receipt was written, as far as the receipt tells: before, and after.
fn host_of(receipt: &Receipt) -> (FakeHost, FakeHost) {
    let mut before = FakeHost::fresh();
    for entry in receipt.known() {
        if let (Action::Dir { path, .. }, Trace::Path { entry: crate::host::Entry::Absent, .. }) =
            (&entry.action, &entry.before)
        {
            before.rmdir(path).unwrap();
        }
    }
    let mut host = before.clone();
    for entry in receipt.known() {
        match &entry.action {
            Action::Dir { path, attrs, .. } => host.mkdir(path, attrs).unwrap(),
            Action::File { path, text, attrs, .. } => host.write(path, text.as_bytes(), attrs).unwrap(),
            Action::GenerateSecret { path, .. } | Action::CopySecret { path, .. } => {
                host.write(path, b"a secret", &Attrs::root(0o600)).unwrap();
            }
            Action::Release { path, .. } => host.put(path.join("manifest.json").as_str(), "{}", 0o644),
            Action::SwitchRelease { path, target } => host.link(path, target).unwrap(),
            Action::Users { users, .. } => users.iter().for_each(|user| host.put_user(user)),
            Action::Reload { .. } => host.daemon_reload().unwrap(),
            Action::Enable { unit } => host.units(UnitVerb::Enable, unit).unwrap(),
            Action::Start { unit } => host.units(UnitVerb::Start, unit).unwrap(),
            _ => {}
        }
    }
    (before, host)
}

/// Receipts as released installers have written them, one of each schema at least: `tests/receipts` only ever grows.
#[test]
fn a_receipt_of_every_schema_loads_keeps_what_it_does_not_know_and_uninstalls() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/receipts");
    let mut schemas = std::collections::BTreeSet::new();
    for file in fs_err::read_dir(folder).unwrap() {
        let text = fs_err::read_to_string(file.unwrap().path()).unwrap();
        let receipt: Receipt = serde_json::from_str(&text).unwrap();
        assert_eq!(receipt.unknown().count(), 0, "an action is not known any more");
        let (before, mut host) = host_of(&receipt);
        home().make(&mut host).unwrap();
        let mut later: serde_json::Value = serde_json::from_str(&text).unwrap();
        later["of_a_later_release"] = serde_json::json!({ "kept": true });
        host.write(&home().receipt(), later.to_string().as_bytes(), &Attrs::root(0o600)).unwrap();
        assert_eq!(remove(&mut host, false).unwrap().unwrap(), Outcome::Done);
        assert!(host.text("/var/lib/fettle-installer/receipt.json").unwrap().contains("of_a_later_release"));
        assert_eq!(remove(&mut host, true).unwrap().unwrap(), Outcome::Done);
        forget(&mut host, HOME.into()).unwrap();
        same(&host.facts, &before.facts, &format!("schema {}", receipt.schema));
        schemas.insert(receipt.schema);
    }
    assert_eq!(schemas, (1..=crate::receipt::SCHEMA).collect(), "a schema has no receipt to try");
}

/// A NixOS host whose owner has laid the placeholder out and imports it.
fn nixos() -> FakeHost {
    let mut host = FakeHost::fresh();
    host.put(crate::nixos::MODULE, "{ }\n", 0o644);
    host.put("/run/current-system/sw/bin/fettle-installer", "", 0o755);
    host.change("nixos-rebuild".into(), &["switch"]).unwrap();
    host
}

fn nixos_apply(host: &mut FakeHost, answers: &Answers) -> Option<Result<Outcome, RunError>> {
    let plan = crate::nixos::plan(answers, "1.0.0", "/run/current-system/sw/bin/fettle-installer".into());
    assert_eq!(plan.refusals, Vec::<String>::new());
    let steps = settled(host, &plan).steps;
    let run = run(Purpose::Apply, plan.product, steps);
    process(host, |host, runner| runner.start(host, run))
}

#[test]
fn on_nixos_an_installation_killed_before_any_change_is_finished_or_leaves_nothing() {
    let start = nixos();
    let mut wanted = start.clone();
    let answers = Answers::default();
    assert_eq!(nixos_apply(&mut wanted, &answers).unwrap().unwrap(), Outcome::Done);
    assert!(wanted.unit("fettle-dashboard.service").unwrap().active);
    let plan = crate::nixos::plan(&answers, "1.0.0", "/run/current-system/sw/bin/fettle-installer".into());
    assert_eq!(settled(&wanted, &plan).steps, [], "a second apply has nothing to do");
    at_each_change(
        &start,
        Fault::Killed,
        |host| drop(nixos_apply(host, &answers)),
        |change, host| {
            let mut forth = host.clone();
            if resume(&mut forth).is_none() {
                nixos_apply(&mut forth, &answers);
            }
            same(&forth.without(HOME), &wanted.without(HOME), &format!("forth, at change {change}"));
            let mut back = host;
            if turn_back(&mut back).is_none() && Receipt::read(&back, &home().receipt()).unwrap().is_some() {
                assert_eq!(remove(&mut back, true).unwrap().unwrap(), Outcome::Done);
            }
            same(&back.without(HOME), &start.without(HOME), &format!("back, at change {change}"));
        },
    );
}

#[test]
fn on_nixos_what_does_not_build_is_taken_back_and_an_edited_module_is_a_conflict() {
    let start = nixos();
    let mut host = start.clone();
    host.refused_config = Some("\"instances\" = 3");
    let answers = Answers { workers: 3, ..Answers::default() };
    let outcome = nixos_apply(&mut host, &answers).unwrap().unwrap();
    assert!(matches!(&outcome, Outcome::Reverted { reason, .. } if reason.contains("does not exist")), "{outcome:?}");
    same(&host.without(HOME), &start.without(HOME), "");

    assert_eq!(nixos_apply(&mut host, &Answers::default()).unwrap().unwrap(), Outcome::Done);
    host.put(crate::nixos::MODULE, "{ services.fettle.enable = false; }", 0o644);
    let receipt = Receipt::read(&host, &home().receipt()).unwrap();
    let plan = crate::nixos::plan(&Answers::default(), "1.0.0", "/x".into());
    let settled = settle(&plan, &host, receipt.as_ref(), Foreign::Refuse).unwrap();
    assert_eq!(settled.conflicts.len(), 1, "{settled:?}");
    host.remove(crate::nixos::MODULE.into()).unwrap();
    let settled = settle(&plan, &host, receipt.as_ref(), Foreign::Refuse).unwrap();
    assert!(settled.blocked[0].contains("{ }"), "{settled:?}");
}

#[test]
fn a_new_value_of_a_secret_restarts_whom_it_is_handed_to_and_is_then_known() {
    let (mut host, release) = fresh();
    let text = "[auth]\nworker_key_file = \"secrets/worker.key\"\n[forge]\nwebhook_secret_file = \"secrets/hook\"\n";
    host.put("/etc/fettle/fettle.toml", text, 0o640);
    host.put("/etc/fettle/secrets/hook", "of the operator", 0o600);
    let steps = |host: &FakeHost| {
        let facts = Facts {
            config: Some(text.to_owned()),
            secrets: ["/etc/fettle/secrets/hook".into()].into(),
            ..Facts::default()
        };
        let plan = plan(&release, &facts, &Answers::default());
        assert_eq!(plan.refusals, Vec::<String>::new());
        (settled(host, &plan).steps, plan.product)
    };
    let apply = |host: &mut FakeHost| {
        let (steps, product) = steps(host);
        let run = run(Purpose::Apply, product, steps);
        assert_eq!(process(host, |host, runner| runner.start(host, run)).unwrap().unwrap(), Outcome::Done);
    };
    apply(&mut host);
    assert_eq!(steps(&host).0, []);
    host.put("/etc/fettle/secrets/hook", "a new one", 0o600);
    let keys: Vec<String> = steps(&host).0.iter().map(|step| step.action().key()).collect();
    assert!(keys.contains(&"restart:forth".to_owned()) && keys.contains(&"smoke".to_owned()), "{keys:?}");
    apply(&mut host);
    assert_eq!(steps(&host).0, []);
    assert_eq!(host.text("/etc/fettle/secrets/hook"), Some("a new one"));
}

#[test]
fn no_secret_gets_into_a_unit_by_its_name_or_to_a_worker_by_another_key() {
    let (mut host, release) = fresh();
    let model = "[[gateway.models]]\nname = \"m\"\nbase_url = \"http://127.0.0.1:1/v1\"\napi_key_file = ";
    for (text, why) in [
        ("[forge]\nwebhook_secret_file = \"secrets/x\\nUser=root\"\n".to_owned(), "goes into a unit"),
        ("[forge]\nwebhook_secret_file = \"secrets/%n\"\n".to_owned(), "goes into a unit"),
        (format!("[forge]\nwrite_token_file = \"secrets/write\"\n{model}\"secrets/write\"\n"), "must be two secrets"),
    ] {
        host.put("/etc/fettle/fettle.toml", &text, 0o640);
        let facts = Facts { config: Some(text.clone()), ..Facts::default() };
        let refusals = plan(&release, &facts, &Answers::default()).refusals;
        assert!(refusals.iter().any(|refusal| refusal.contains(why)), "{text}: {refusals:?}");
    }
}
