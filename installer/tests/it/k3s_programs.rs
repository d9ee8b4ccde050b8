//! Mode k3s by the real program, as root of a root folder of its own, with a `k3s`, a `helm` and a `systemctl` that record what
//! they are given (arguments, standard input, environment) and end the installer when they are told to.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Output};

use camino::{Utf8Path, Utf8PathBuf};
use fettle_installer::host::sha256;
use fettle_test_kit::skip::skip;

const SECRET: &str = "a-key-of-the-operator";
/// `printf a-key-of-the-operator | base64`.
const ENCODED: &str = "YS1rZXktb2YtdGhlLW9wZXJhdG9y";

/// What all three have in common: a record of the call, and death at a number.
const RECORD: &str = r#"#!/bin/sh
name=${0##*/}
case "$name $*" in
  "systemctl show"*|"systemctl --version"*|"systemctl is-active"*|"k3s kubectl get"*|"helm history"*) ;;
  *)
    number=$(($(cat /state/count 2>/dev/null || echo 0) + 1)); echo $number > /state/count
    echo "$name $*" >> /state/calls
    env | cut -d= -f1 | sort | tr '\n' ' ' >> /state/environment; echo >> /state/environment
    if [ "$number" = "$(cat /state/kill_before 2>/dev/null)" ]; then rm /state/kill_before; kill -9 $PPID; exit 1; fi
    dies() { if [ "$number" = "$(cat /state/kill_after 2>/dev/null)" ]; then rm /state/kill_after; kill -9 $PPID; fi; }
    trap dies EXIT ;;
esac
"#;
const K3S: &str = r#"
case "$*" in
  "kubectl get nodes"*) echo True ;;
  "kubectl get job helm-install-"*) if [ -e "/var/lib/rancher/k3s/server/manifests/fettle-${4#helm-install-}.yaml" ] || [ -e "/state/chart" ]; then echo True; fi ;;
  "kubectl get secret"*)
    if [ -e /state/deaf ]; then echo "The connection to the server was refused" >&2; exit 1; fi
    if [ -e /state/digest ]; then echo "fettle $(cat /state/digest)"; fi ;;
  "kubectl apply"*) cat > /state/stdin; sed -n 's/.*"fettle-installer\/digest":"\([0-9a-f]*\)".*/\1/p' /state/stdin > /state/digest ;;
  "kubectl delete secret"*) rm -f /state/digest ;;
esac
exit 0
"#;
const HELM: &str = r#"
case "$1" in
  history) if [ -e /state/release ]; then cat /state/release; else echo "Error: release: not found"; exit 1; fi ;;
  upgrade)
    for word in "$@"; do case "$word" in --description=*) description=${word#--description=} ;; esac; done
    echo "[{\"revision\": 1, \"status\": \"deployed\", \"description\": \"$description\"}]" > /state/release ;;
  uninstall) rm -f /state/release ;;
esac
exit 0
"#;
const SYSTEMCTL: &str = r#"
[ "$1" = --no-ask-password ] && shift
for unit in "$@"; do :; done
case "$1" in
  --version) echo "systemd 252 (252.1)" ;;
  show)
    if [ -e "/state/active-$unit" ]; then echo ActiveState=active; else echo ActiveState=inactive; fi
    if [ -e "/etc/systemd/system/$unit" ]; then echo LoadState=loaded; else echo LoadState=not-found; fi
    if [ -e "/state/enabled-$unit" ]; then echo UnitFileState=enabled; else echo UnitFileState=disabled; fi ;;
  is-active) [ -e "/state/active-$unit" ] && echo active ;;
  enable) touch "/state/enabled-$unit" ;;
  disable) rm -f "/state/enabled-$unit" ;;
  start)
    touch "/state/active-$unit"; echo config > /etc/rancher/k3s/k3s.yaml
    printf 'K10%064d::node:%s\n' 0 "$(cat /etc/fettle/secrets/k3s-agent-token)" > /var/lib/rancher/k3s/server/agent-token ;;
  stop) rm -f "/state/active-$unit" ;;
esac
"#;
const SYSCTL: &str =
    "#!/bin/sh\nfor word in \"$@\"; do :; done\necho \"${word#*=}\" > \"/proc/sys/$(echo \"${word%%=*}\" | tr . /)\"\n";

struct Machine {
    _folder: tempfile::TempDir,
    root: Utf8PathBuf,
}

impl Machine {
    /// A fresh one with a bundle at `/bundle`; none where this system lets nobody make namespaces.
    fn new() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let root = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
        for path in [
            "etc/systemd/system",
            "etc/sysctl.d",
            "etc/ssl",
            "opt",
            "var/lib",
            "var/log",
            "var/tmp",
            "run/current-system/sw/bin",
            "local",
            "state",
            "sys/kernel",
            "sys/vm",
            "bundle/release/bin",
            "bundle/k3s",
            "bundle/charts",
            "bundle/images",
            "srv",
        ] {
            fs_err::create_dir_all(root.join(path)).unwrap();
        }
        let machine = Self { _folder: folder, root };
        for (path, text) in [
            ("etc/passwd", "root:x:0:0::/root:/bin/sh\n"),
            ("etc/group", "root:x:0:\n"),
            ("etc/os-release", "ID=debian\nVERSION_ID=12\nPRETTY_NAME=Debian 12\n"),
            ("sys/kernel/hostname", "machine\n"),
            ("sys/kernel/panic", "0\n"),
            ("sys/kernel/panic_on_oops", "0\n"),
            ("sys/vm/overcommit_memory", "0\n"),
            ("sys/vm/panic_on_oom", "0\n"),
            ("srv/app.pem", SECRET),
        ] {
            machine.put(path, text, 0o644);
        }
        machine.put("run/current-system/sw/bin/systemctl", &format!("{RECORD}{SYSTEMCTL}"), 0o755);
        machine.put("run/current-system/sw/bin/sysctl", SYSCTL, 0o755);
        // The name of process 1 is looked at.
        fs_err::copy("/usr/bin/bwrap", machine.root.join("systemd")).ok()?;
        machine.bundle();
        let tried = machine.inside(&["/bin/true"]).ok()?;
        tried.status.success().then_some(machine)
    }

    fn put(&self, path: &str, text: &str, mode: u32) {
        let path = self.root.join(path);
        fs_err::write(&path, text).unwrap();
        fs_err::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn bundle(&self) {
        let (k3s, helm) = (format!("{RECORD}{K3S}"), format!("{RECORD}{HELM}"));
        let installer = "installer";
        let manifest = serde_json::json!({
            "schema": 1, "version": "1.0.0", "arch": std::env::consts::ARCH, "oldest_reader": 1,
            "files": { "bin/fettle-installer": { "sha256": sha256(installer.as_bytes()), "mode": "0755" } },
        })
        .to_string();
        let mut sums = String::new();
        for (file, text) in [
            ("release/manifest.json", manifest.as_str()),
            ("release/bin/fettle-installer", installer),
            ("k3s/k3s", &k3s),
            ("k3s/helm", &helm),
            ("k3s/k3s-airgap-images.tar.zst", "images of k3s"),
            ("charts/fettle.tgz", "chart"),
            ("charts/cert-manager.tgz", "chart"),
            ("charts/keda.tgz", "chart"),
            ("images/fettle.tar", "images"),
            ("images/others.tar", "images"),
        ] {
            self.put(&format!("bundle/{file}"), text, 0o755);
            writeln!(sums, "{}  {file}", sha256(text.as_bytes())).unwrap();
        }
        self.put("bundle/SHA256SUMS", &sums, 0o644);
        let answers = format!(
            "[settings.forge]\napp_id = 7\napp_key_file = 'app.pem'\n[secrets]\n'app.pem' = '/srv/app.pem'\n[k3s.sha256]\nSHA256SUMS = '{}'\n",
            sha256(sums.as_bytes())
        );
        self.put("srv/answers.toml", &answers, 0o644);
    }

    fn inside(&self, command: &[&str]) -> std::io::Result<Output> {
        let mut bwrap = Command::new(self.root.join("systemd"));
        bwrap.args([
            "--unshare-user",
            "--uid",
            "0",
            "--gid",
            "0",
            "--unshare-pid",
            "--unshare-net",
            "--die-with-parent",
        ]);
        bwrap.args(["--ro-bind", "/usr", "/usr", "--tmpfs", "/tmp", "--proc", "/proc", "--dev", "/dev"]);
        for link in ["bin", "sbin", "lib", "lib64"] {
            bwrap.args(["--symlink", &format!("usr/{link}"), &format!("/{link}")]);
        }
        for folder in ["etc", "opt", "var", "run", "state", "bundle", "srv"] {
            bwrap.args(["--bind", self.root.join(folder).as_str(), &format!("/{folder}")]);
        }
        bwrap.args(["--bind", self.root.join("local").as_str(), "/usr/local/bin"]);
        bwrap.args(["--bind", self.root.join("sys").as_str(), "/proc/sys"]);
        // No client for HTTP is made without certificates to trust.
        bwrap.args(["--ro-bind-try", "/etc/ssl", "/etc/ssl"]);
        bwrap.args(["--ro-bind", env!("CARGO_BIN_EXE_fettle-installer"), "/srv/fettle-installer"]);
        bwrap.args(command).env_clear().env("PATH", "/usr/bin:/bin").env("CANARY", SECRET).output()
    }

    fn installer(&self, arguments: &[&str]) -> Output {
        self.inside(&[&["/srv/fettle-installer"], arguments].concat()).unwrap()
    }

    fn apply(&self) -> Output {
        let ids = preflight_ids();
        self.installer(&[
            "apply",
            "--mode",
            "k3s",
            "--bundle",
            "/bundle",
            "--answers",
            "/srv/answers.toml",
            "--yes",
            "--ignore",
            &ids,
        ])
    }

    fn state(&self, file: &str) -> String {
        fs_err::read_to_string(self.root.join("state").join(file)).unwrap_or_default()
    }

    /// Every path of the machine with its content, but for what the programs have recorded.
    fn everything(&self) -> Vec<(Utf8PathBuf, String)> {
        let mut found = Vec::new();
        for folder in ["etc", "opt", "var", "local", "sys"] {
            collect(&self.root.join(folder), &mut found);
        }
        found.sort();
        found
    }
}

fn collect(folder: &Utf8Path, found: &mut Vec<(Utf8PathBuf, String)>) {
    for entry in folder.read_dir_utf8().unwrap() {
        let entry = entry.unwrap();
        let path = entry.path().to_owned();
        if entry.file_type().unwrap().is_dir() {
            found.push((path.clone(), String::new()));
            collect(&path, found);
        } else {
            let content = fs_err::read(&path).unwrap_or_default();
            found.push((path, String::from_utf8_lossy(&content).into_owned()));
        }
    }
}

/// Of a machine that is half made up: its disk, memory and kernel are those of whoever runs the test.
fn preflight_ids() -> String {
    "PF003,PF004,PF005,PF013,PF014,PF015,PF016,PF025,PF038".to_owned()
}

fn said(output: &Output) -> String {
    format!("{:?} {}", output.status, String::from_utf8_lossy(&output.stderr))
}

/// None, told as a skip, where no root folder can be made.
fn machine() -> Option<Machine> {
    let machine = Machine::new();
    if machine.is_none() {
        skip(
            "mode k3s by the real program: bubblewrap (Debian package bubblewrap) is not there, or may not make namespaces",
        );
    }
    machine
}

#[test]
fn the_real_program_makes_a_cluster_once_hands_no_secret_around_and_takes_all_away() {
    let Some(machine) = machine() else { return };
    let before = machine.everything();
    let applied = machine.apply();
    assert!(applied.status.success(), "{}", said(&applied));
    let calls = machine.state("calls");
    // The release is called by the hash of its manifest, which names this processor.
    let release = machine.root.join("opt/fettle/releases").read_dir_utf8().unwrap().next().unwrap().unwrap();
    insta::assert_snapshot!("k3s_calls", calls.replace(release.file_name(), "RELEASE"));
    // The shell adds what it always adds.
    for line in machine.state("environment").lines() {
        let names: Vec<&str> =
            line.split_whitespace().filter(|name| !["PWD", "SHLVL", "_", "OLDPWD"].contains(name)).collect();
        assert_eq!(names, ["HOME", "LC_ALL", "PATH"]);
    }
    assert!(machine.state("stdin").contains(ENCODED));
    for (path, content) in machine.everything() {
        let holds = content.contains(SECRET) || content.contains(ENCODED);
        assert_eq!(holds, path.ends_with("etc/fettle/secrets/app.pem"), "{path}");
    }
    assert!(!calls.contains(SECRET) && !calls.contains(ENCODED));
    let again = machine.apply();
    assert!(again.status.success() && said(&again).contains("there is nothing to do"), "{}", said(&again));
    assert_eq!(machine.state("calls"), calls);
    let status = machine.installer(&["status"]);
    assert!(String::from_utf8_lossy(&status.stdout).contains("k3s.service"), "{}", said(&status));
    let join = machine.installer(&["join"]);
    let command = String::from_utf8_lossy(&join.stdout).into_owned();
    assert!(command.contains("join --server https://machine:6443 --token-file agent-token"), "{command}");
    assert!(said(&join).contains("Copy /var/lib/rancher/k3s/server/agent-token"), "{}", said(&join));
    for name in ["k3s-token", "k3s-agent-token"] {
        let path = machine.root.join("etc/fettle/secrets").join(name);
        let word = fs_err::read_to_string(&path).unwrap();
        assert_eq!(fs_err::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let told = format!("{calls}{command}{}{}", said(&applied), said(&join));
        assert!(word.len() == 64 && !told.contains(&word), "{name}");
    }
    let removed = machine.installer(&["uninstall", "--purge", "--yes"]);
    assert!(removed.status.success(), "{}", said(&removed));
    assert_eq!(machine.everything(), before);
}

#[test]
fn the_real_program_killed_at_any_call_goes_on_or_leaves_nothing() {
    let Some(first) = machine() else { return };
    let applied = first.apply();
    assert!(applied.status.success(), "{}", said(&applied));
    let calls = first.state("calls").lines().count();
    assert!(calls > 5, "{calls}");
    for number in 1..=calls {
        for (when, back) in [("kill_before", number % 2 == 0), ("kill_after", number % 2 == 1)] {
            let machine = Machine::new().unwrap();
            let before = machine.everything();
            machine.put(&format!("state/{when}"), &number.to_string(), 0o644);
            let killed = machine.apply();
            let by = killed.status.signal().or(killed.status.code().map(|code| code - 128));
            assert_eq!(by, Some(9), "{when} {number}: {}", said(&killed));
            let (arguments, wanted): (&[&str], bool) =
                if back { (&["uninstall", "--purge", "--yes"], false) } else { (&["resume"], true) };
            let then = machine.installer(arguments);
            assert!(then.status.success(), "{when} {number}: {}", said(&then));
            assert_eq!(machine.root.join("local/k3s").exists(), wanted, "{when} {number}");
            assert_eq!(machine.root.join("state/release").exists(), wanted, "{when} {number}");
            if back {
                assert_eq!(machine.everything(), before, "{when} {number}");
            } else {
                let again = machine.apply();
                assert!(said(&again).contains("there is nothing to do"), "{when} {number}: {}", said(&again));
            }
        }
    }
}

#[test]
fn the_real_program_goes_not_on_and_removes_no_secret_while_the_cluster_does_not_say_whether_there_is_one() {
    let Some(machine) = machine() else { return };
    let applied = machine.apply();
    assert!(applied.status.success(), "{}", said(&applied));
    let (digest, calls) = (machine.state("digest"), machine.state("calls"));
    assert!(!digest.is_empty());
    machine.put("srv/app.pem", "another-key-of-the-operator", 0o600);
    machine.put("state/deaf", "", 0o644);
    let refused = machine.apply();
    assert_eq!(refused.status.code(), Some(20), "{}", said(&refused));
    assert!(said(&refused).contains("does not say whether there is a Secret fettle"), "{}", said(&refused));
    assert_eq!(machine.state("digest"), digest);
    assert_eq!(machine.state("calls"), calls, "nothing was done to the cluster");
    fs_err::remove_file(machine.root.join("state/deaf")).unwrap();
    let again = machine.apply();
    assert!(again.status.success(), "{}", said(&again));
    assert_ne!(machine.state("digest"), digest);
}

#[test]
fn the_real_program_says_how_a_bundle_is_made_when_none_is_named() {
    let Some(machine) = machine() else { return };
    for verb in ["plan", "apply"] {
        let refused = machine.installer(&[verb, "--mode", "k3s", "--answers", "/srv/answers.toml"]);
        assert_eq!(refused.status.code(), Some(2), "{verb}: {}", said(&refused));
        for word in ["--bundle", "cargo xtask bundle", "cargo xtask release-tree"] {
            assert!(said(&refused).contains(word), "{verb}: {}", said(&refused));
        }
    }
    let no_bundle = machine.installer(&["plan", "--mode", "k3s", "--bundle", "/srv"]);
    assert_eq!(no_bundle.status.code(), Some(60), "{}", said(&no_bundle));
}

#[test]
fn the_real_program_joins_by_a_full_token_of_nodes_alone() {
    let Some(machine) = machine() else { return };
    let before = machine.everything();
    let hash = "0a".repeat(32);
    let full = format!("K10{hash}::node:the-word");
    for (token, code, why) in [
        ("the-word".to_owned(), 11, "would tell it to whoever answers"),
        (format!("K10{hash}::server:the-word"), 11, "administers the cluster"),
        (full.clone(), 0, "/etc/fettle/secrets/k3s-token"),
    ] {
        machine.put("srv/token", &token, 0o600);
        let ids = preflight_ids();
        let arguments = ["join", "--server", "https://one:6443", "--token-file", "/srv/token", "--bundle", "/bundle"];
        let more = ["--answers", "/srv/agent.toml", "--yes", "--dry-run", "--ignore", &ids];
        let sums = sha256(&fs_err::read(machine.root.join("bundle/SHA256SUMS")).unwrap());
        machine.put("srv/agent.toml", &format!("[k3s.sha256]\nSHA256SUMS = '{sums}'\n"), 0o644);
        let ended = machine.installer(&[&arguments[..], &more].concat());
        let told = format!("{}{}", said(&ended), String::from_utf8_lossy(&ended.stdout));
        assert_eq!(ended.status.code(), Some(code), "{told}");
        assert!(told.contains(why) && !told.contains("the-word"), "{told}");
        assert_eq!(machine.everything(), before);
    }
    let shown = machine.installer(&["join"]);
    assert!(!shown.status.success() && said(&shown).contains("--server"), "{}", said(&shown));
}

/// Somebody has installed a k3s of his own on the data that ours has left.
#[test]
fn the_real_program_leaves_a_k3s_alone_that_somebody_has_installed_since() {
    for theirs in ["local/k3s", "etc/systemd/system/k3s.service"] {
        let Some(machine) = machine() else { return };
        let applied = machine.apply();
        assert!(applied.status.success(), "{}", said(&applied));
        let removed = machine.installer(&["uninstall", "--yes"]);
        assert!(removed.status.success(), "{}", said(&removed));
        machine.put(theirs, "of somebody else", 0o755);
        let before = machine.everything();
        let refused = machine.installer(&["uninstall", "--purge", "--yes"]);
        assert_eq!(refused.status.code(), Some(11), "{theirs}: {}", said(&refused));
        assert!(said(&refused).contains("was not installed by Fettle"), "{}", said(&refused));
        assert_eq!(machine.everything(), before, "{theirs}");
        fs_err::remove_file(machine.root.join(theirs)).unwrap();
        let removed = machine.installer(&["uninstall", "--purge", "--yes"]);
        assert!(removed.status.success() && !machine.root.join("var/lib/rancher").exists(), "{}", said(&removed));
    }
}

#[test]
fn a_bundle_with_one_flipped_byte_is_refused_before_anything_is_written() {
    let Some(machine) = machine() else { return };
    let before = machine.everything();
    for file in ["k3s/k3s", "images/fettle.tar", "release/bin/fettle-installer", "SHA256SUMS"] {
        let path = machine.root.join("bundle").join(file);
        let good = fs_err::read(&path).unwrap();
        let mut bad = good.clone();
        // A digit of a checksum stays one.
        bad[3] = if bad[3] == b'1' { b'2' } else { b'1' };
        fs_err::write(&path, bad).unwrap();
        let refused = machine.apply();
        assert_eq!(refused.status.code(), Some(60), "{file}: {}", said(&refused));
        assert_eq!(machine.everything(), before, "{file}");
        assert_eq!(machine.state("calls"), "", "{file}");
        fs_err::write(&path, good).unwrap();
    }
}
