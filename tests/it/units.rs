//! The committed systemd units: systemd understands every line of them, and none is more exposed than its gate allows.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::Path;
use std::process::{Command, Output};

use fettle_tests::skip::skip;

/// The most exposure a service may have, in tenths, as `systemd-analyze security` measures it.
const GATES: [(&str, u32); 5] = [
    ("fettle-backup.service", 13),
    ("fettle-dashboard.service", 11),
    ("fettle-engine@.service", 14),
    ("fettle-inference.service", 14),
    ("fettle-worker@.service", 24),
];
/// Where the committed units look for the programs, which this machine need not have.
const INSTALLED: &str = "/opt/fettle/current/bin";
/// What units of a machine hang on, stood in for, so that no unit of this one is looked at.
const TARGETS: [&str; 7] = [
    "basic.target",
    "multi-user.target",
    "network.target",
    "shutdown.target",
    "sockets.target",
    "sysinit.target",
    "timers.target",
];

/// A folder with the units, stand-ins for what they start, and nothing else.
struct Units {
    folder: tempfile::TempDir,
    names: Vec<String>,
}

impl Units {
    fn lay_out() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd");
        let mut names = Vec::new();
        for entry in fs_err::read_dir(committed.join("units")).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let text = fs_err::read_to_string(entry.path()).unwrap();
            let bin = folder.path().join("bin");
            for program in text.split(INSTALLED).skip(1).map(|rest| rest[1..].split([' ', '\n']).next().unwrap()) {
                fs_err::create_dir_all(&bin).unwrap();
                fs_err::copy("/bin/true", bin.join(program)).unwrap();
            }
            fs_err::write(folder.path().join(&name), text.replace(INSTALLED, bin.to_str().unwrap())).unwrap();
            names.push(name);
        }
        for target in TARGETS {
            fs_err::write(folder.path().join(target), "[Unit]\n").unwrap();
        }
        names.sort();
        Self { folder, names }
    }

    fn change(&self, name: &str, change: impl FnOnce(String) -> String) {
        let path = self.folder.path().join(name);
        let text = fs_err::read_to_string(&path).unwrap();
        let changed = change(text.clone());
        assert_ne!(changed, text, "{name} was changed");
        fs_err::write(path, changed).unwrap();
    }

    fn verify(&self, name: &str) -> Output {
        self.analyze(&["verify", "--man=no"], name)
    }

    fn within(&self, name: &str, gate: u32) -> Output {
        self.analyze(&["security", "--no-pager", "--offline=true", &format!("--threshold={gate}")], name)
    }

    fn analyze(&self, arguments: &[&str], name: &str) -> Output {
        let mut command = Command::new("systemd-analyze");
        command.args(arguments).arg(self.folder.path().join(name)).env("SYSTEMD_UNIT_PATH", self.folder.path());
        command.output().unwrap()
    }
}

/// Whether the units can be judged here; says so when not.
fn judge_is_here() -> bool {
    let there = Command::new("systemd-analyze").arg("--version").output().is_ok_and(|output| output.status.success());
    if !there {
        skip("what judges systemd units: systemd-analyze is not installed");
    }
    there
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn systemd_has_nothing_to_say_about_any_unit() {
    if !judge_is_here() {
        return;
    }
    let units = Units::lay_out();
    assert!(!units.names.is_empty());
    for name in &units.names {
        let output = units.verify(name);
        assert!(output.status.success() && said(&output).is_empty(), "{name}: {}", said(&output));
    }
}

#[test]
fn an_unknown_key_and_a_missing_program_are_found() {
    if !judge_is_here() {
        return;
    }
    let units = Units::lay_out();
    units.change("fettle-dashboard.service", |text| text.replace("[Service]\n", "[Service]\nProtectEverything=true\n"));
    units.change("fettle-worker@.service", |text| text.replace("/fettle-worker ", "/fettle-wroker "));
    assert!(said(&units.verify("fettle-dashboard.service")).contains("ProtectEverything"));
    assert!(said(&units.verify("fettle-worker@.service")).contains("fettle-wroker"));
}

#[test]
fn no_service_is_more_exposed_than_its_gate() {
    if !judge_is_here() {
        return;
    }
    let units = Units::lay_out();
    let services: Vec<&str> =
        units.names.iter().map(String::as_str).filter(|name| name.ends_with(".service")).collect();
    assert_eq!(services, GATES.map(|(name, _)| name), "every service has a gate");
    for (name, gate) in GATES {
        let output = units.within(name, gate);
        assert!(output.status.success(), "{name} is above {gate}: {}", said(&output));
    }
}

// A gate that lets everything pass would look just as green.
#[test]
fn a_service_that_lost_a_wall_or_has_none_does_not_pass_its_gate() {
    if !judge_is_here() {
        return;
    }
    let units = Units::lay_out();
    units.change("fettle-dashboard.service", |text| text.replace("NoNewPrivileges=true\n", ""));
    units.change("fettle-engine@.service", |text| {
        text.replace("DevicePolicy=closed\n", "").replace("ProtectSystem=strict\n", "")
    });
    units.change("fettle-inference.service", |text| text.replace("PrivateUsers=true\n", ""));
    units.change("fettle-worker@.service", |text| text.replace("ProtectSystem=strict\n", ""));
    units.change("fettle-backup.service", |_| "[Service]\nExecStart=/bin/true\nUser=fettle\n".to_owned());
    for (name, gate) in GATES {
        let output = units.within(name, gate);
        assert!(!output.status.success(), "{name} passed {gate}: {}", said(&output));
    }
}
