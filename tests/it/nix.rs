//! The flake, the NixOS module and its units, as bare Nix sees them: nothing is built and nothing is fetched.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod host;
mod unit;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fettle_tests::skip::skip;
use fettle_tests::world::program;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// What `flake.lock` says, and nothing else proves without a network. A wrong hash stops every `nix run`: these change in the
/// commit that changes the lock.
const LOCKED: [(&str, &str); 3] = [
    ("lastModified", "1782116945"),
    ("narHash", "sha256-G3tw/IXmaH6IQ2upZvhuN9sG8CkuX+BLuJDpE8hz0Ds="),
    ("rev", "34268251cf5547d39063f2c5ea9a196246f7f3a6"),
];
const SYSTEMS: [&str; 2] = ["aarch64-linux", "x86_64-linux"];

/// Nix with a store of its own.
struct Nix(tempfile::TempDir);

/// On a busy machine, with a whole NixOS to read.
const EVALUATION_SECONDS: &str = "300";

impl Nix {
    /// `None`, told as a skip, when there is no Nix.
    fn find(what: &str) -> Option<Self> {
        let probe = Command::new("nix-instantiate").arg("--version").stdout(Stdio::null()).status();
        if !probe.is_ok_and(|status| status.success()) {
            skip(&format!("{what}: `nix-instantiate` is missing (Debian package nix-bin)"));
            return None;
        }
        Some(Self(tempfile::tempdir().unwrap()))
    }

    fn command(&self) -> Command {
        let mut command = Command::new("timeout");
        command.args([EVALUATION_SECONDS, "nix-instantiate"]).stdin(Stdio::null()).env("NIX_REMOTE", "");
        for (name, folder) in [
            ("NIX_STORE_DIR", "store"),
            ("NIX_STATE_DIR", "var"),
            ("NIX_LOG_DIR", "log"),
            ("NIX_CONF_DIR", "etc"),
            ("HOME", "home"),
        ] {
            command.env(name, self.0.path().join(folder));
        }
        command
    }

    fn parses(&self, file: &Path) -> Result<(), String> {
        let output = self.command().arg("--parse").arg(file).output().unwrap();
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    }

    fn eval(&self, expression: &str) -> Value {
        let output = self.command().args(["--eval", "--strict", "--json", "--expr", expression]).output().unwrap();
        assert!(output.status.success(), "{expression}\n{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

/// Answers that use what a module could get wrong: quotes, what Nix would substitute, lists of tables.
const ANSWERS: &str = r#"
workers = 2
[settings.forge]
label = 'ask "${fettle}" \ now'
allowed_bots = [1, 2]
app_id = 7
app_key_file = "secrets/app.pem"
webhook_secret_file = "secrets/webhook-secret"
[[settings.gateway.models]]
name = "coder"
base_url = "http://127.0.0.1:8000/v1"
api_key_file = "secrets/model-key"
[[settings.gateway.models]]
name = "other"
base_url = "http://127.0.0.1:8001/v1"
[secrets]
"app.pem" = "/srv/app.pem"
webhook-secret = "/srv/webhook-secret"
model-key = { file = "/srv/models.env", variable = "KEY" }
[backup]
keep = 3
"#;

/// The module that the installer makes of [`ANSWERS`], in a file of that name.
fn module_of_the_installer() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nixos");
    fs_err::create_dir_all(&folder).unwrap();
    let answers = folder.join("answers.toml");
    fs_err::write(&answers, ANSWERS).unwrap();
    let mut command = Command::new(program("fettle-installer").unwrap());
    let said = command.args(["plan", "--mode", "nixos", "--answers"]).arg(&answers).output().unwrap();
    let module = folder.join("from-answers.nix");
    fs_err::write(&module, &said.stdout).unwrap();
    assert!(said.stdout.ends_with(b"}\n"), "{}", String::from_utf8_lossy(&said.stderr));
    module
}

#[test]
fn the_installers_module_says_to_nix_what_the_answers_say() {
    let Some(nix) = Nix::find("the module that the installer writes") else { return };
    let module = nix.eval(&format!("import {}", module_of_the_installer().display()));
    let fettle = &module["services"]["fettle"];
    let answers: toml::Table = toml::from_str(ANSWERS).unwrap();
    let mut settings = serde_json::to_value(&answers["settings"]).unwrap();
    settings["auth"] = json!({ "worker_key_file": "secrets/worker.key" });
    assert_eq!(fettle["settings"], settings);
    assert_eq!(
        (&fettle["enable"], &fettle["worker"]["instances"], &fettle["backup"]["keep"]),
        (&json!(true), &json!(2), &json!(3))
    );
    assert_eq!(fettle["secrets"]["worker.key"], "/etc/fettle-secrets/worker.key");
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// All files below a folder with this ending, or that one file.
fn files(at: &Path, ending: &str) -> Vec<PathBuf> {
    if at.is_dir() {
        let mut found: Vec<PathBuf> =
            fs_err::read_dir(at).unwrap().flat_map(|entry| files(&entry.unwrap().path(), ending)).collect();
        found.sort();
        found
    } else {
        at.to_str().filter(|name| name.ends_with(ending)).map(PathBuf::from).into_iter().collect()
    }
}

fn names(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn every_nix_file_parses() {
    let Some(nix) = Nix::find("whether Nix files parse") else { return };
    let ours: Vec<PathBuf> =
        ["flake.nix", "nixos", "tests/nixos"].iter().flat_map(|at| files(&root().join(at), ".nix")).collect();
    assert!(ours.len() > 20, "the Nix files are elsewhere: {ours:?}");
    let broken: Vec<String> = ours.iter().filter_map(|file| nix.parses(file).err()).collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn units_rendered_by_nix_are_the_committed_files() {
    let Some(nix) = Nix::find("units.nix against the committed units") else { return };
    let rendered = nix.eval(&format!("(import {}/nixos/module/units.nix {{ }}).files", root().display()));
    let committed: BTreeMap<String, String> = committed_units();
    assert_eq!(serde_json::from_value::<BTreeMap<String, String>>(rendered).unwrap(), committed);
}

#[test]
fn other_paths_change_nothing_else_in_the_units() {
    let Some(nix) = Nix::find("units.nix with other paths") else { return };
    let rendered = nix.eval(&format!(
        "(import {}/nixos/module/units.nix {{ placeholders = {{ bin = \"/b\"; config = \"/c\"; kill = \"/k\"; }}; }}).files",
        root().display()
    ));
    let expected: BTreeMap<String, String> = committed_units()
        .into_iter()
        .map(|(name, text)| {
            let text = text.replace("/opt/fettle/current/bin", "/b").replace("/etc/fettle/fettle.toml", "/c");
            (name, text.replace("=/bin/kill", "=/k"))
        })
        .collect();
    assert_eq!(serde_json::from_value::<BTreeMap<String, String>>(rendered).unwrap(), expected);
}

fn committed_units() -> BTreeMap<String, String> {
    let units = files(&root().join("systemd/units"), "");
    assert!(!units.is_empty());
    let name = |file: &Path| file.file_name().unwrap().to_str().unwrap().to_owned();
    units.iter().map(|file| (name(file), fs_err::read_to_string(file).unwrap())).collect()
}

#[test]
fn the_flake_has_one_input_locked_to_what_was_looked_up() {
    let lock: Value = serde_json::from_slice(&fs_err::read(root().join("flake.lock")).unwrap()).unwrap();
    assert_eq!(names(&lock["nodes"]), ["nixpkgs", "root"]);
    let locked = &lock["nodes"]["nixpkgs"]["locked"];
    for (key, value) in LOCKED {
        let found = locked[key].as_str().map_or_else(|| locked[key].to_string(), str::to_owned);
        assert_eq!(found, value, "{key}");
    }
    let original = json!({ "owner": "NixOS", "ref": "nixos-26.05", "repo": "nixpkgs", "type": "github" });
    assert_eq!(lock["nodes"]["nixpkgs"]["original"], original);
    let flake = fs_err::read_to_string(root().join("flake.nix")).unwrap();
    assert_eq!(flake.matches("inputs.").count(), 1);
    assert!(flake.contains("inputs.nixpkgs.url = \"github:NixOS/nixpkgs/nixos-26.05\";"));
}

/// The flake over stand-ins for nixpkgs.
fn flake(nix: &Nix) -> Value {
    nix.eval(&format!("import {}/tests/nixos/flake.nix", root().display()))
}

#[test]
fn the_flake_offers_the_same_for_both_architectures() {
    let Some(nix) = Nix::find("the flake's outputs") else { return };
    let flake = flake(&nix);
    assert_eq!(
        flake["outputs"],
        json!(["apps", "checks", "devShells", "formatter", "nixosModules", "overlays", "packages"])
    );
    for kind in ["packages", "apps", "checks", "shells", "formatter"] {
        assert_eq!(names(&flake[kind]), SYSTEMS, "{kind}");
        let [one, other] = SYSTEMS.map(|system| &flake[kind][system]);
        assert_eq!(one, other, "{kind}");
    }
    let here = &flake["packages"][SYSTEMS[1]];
    assert_eq!(
        names(here),
        [
            "default",
            "fettle",
            "fettle-dashboard",
            "fettle-inference",
            "fettle-installer",
            "fettle-worker",
            "image-dashboard",
            "image-worker"
        ]
    );
    assert_eq!(here["default"], here["fettle"]);
    for image in ["image-dashboard", "image-worker"] {
        assert_eq!(here[image]["User"], "65532:65532");
    }
    assert_eq!(here["fettle-installer"]["static"], true);
    assert_eq!(flake["absent"], json!([]));
    assert_eq!(flake["module"]["runs"], "aarch64-linux");
    assert_eq!(flake["module"]["checks"], "x86_64-linux", "a cross build checks with what the builder can run");
}

#[test]
fn what_is_built_is_there_and_comes_without_what_tests_turn_on() {
    let Some(nix) = Nix::find("the packages that the flake builds") else { return };
    let flake = flake(&nix);
    let here = &flake["packages"][SYSTEMS[1]];
    let built: Vec<&str> =
        here["fettle"]["packages"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert!(!built.contains(&"fettle-tests"), "it arms the points at which tests kill programs");
    let manifests = [files(&root().join("crates"), "/Cargo.toml"), files(&root().join("installer"), "/Cargo.toml")];
    let there: BTreeSet<String> = manifests
        .concat()
        .iter()
        .filter_map(|file| {
            let text = fs_err::read_to_string(file).unwrap();
            let name = text.lines().find_map(|line| line.strip_prefix("name = "))?;
            Some(name.trim_matches('"').to_owned())
        })
        .collect();
    let absent: Vec<&str> = built.into_iter().filter(|name| !there.contains(*name)).collect();
    assert!(absent.is_empty(), "{absent:?}");
}

#[test]
fn the_release_tree_lists_every_file_with_its_hash() {
    let Some(nix) = Nix::find("the release tree's manifest") else { return };
    let script = flake(&nix)["manifest"].as_str().unwrap().to_owned();
    let tree = tempfile::tempdir().unwrap();
    for (name, content, mode) in
        [("bin/fettle", "a program", 0o555), ("share/fettle/units/fettle-worker@.service", "a unit", 0o444)]
    {
        let file = tree.path().join(name);
        fs_err::create_dir_all(file.parent().unwrap()).unwrap();
        fs_err::write(&file, content).unwrap();
        fs_err::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    }
    let status = Command::new("bash").args(["-euc", &script]).env("out", tree.path()).status().unwrap();
    assert!(status.success());
    let text = fs_err::read_to_string(tree.path().join("manifest.json")).unwrap();
    let hash = |content: &str| hex::encode(Sha256::digest(content));
    let expected = json!({
        "schema": 1,
        "version": env!("CARGO_PKG_VERSION"),
        "arch": "x86_64",
        "oldest_reader": 12,
        "files": {
            "bin/fettle": { "sha256": hash("a program"), "mode": "0755" },
            "share/fettle/units/fettle-worker@.service": { "sha256": hash("a unit"), "mode": "0644" },
        },
    });
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected);
    assert_eq!(text, format!("{expected}\n"), "keys are sorted");
}
