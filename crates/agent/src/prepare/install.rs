//! Which install commands a base needs, decided from its manifests and lockfiles.

use fettle_domain::object::BlobId;

use super::toolchain::{self, Toolchains};
use crate::ecosystem::{BaseFiles, Commands, Ecosystem, quote};

/// Names the folder of the layer, for install and setup commands.
pub(super) const FOLDER_VARIABLE: &str = "FETTLE_PREPARED";
/// What a setup command leaves in the checkout and tests need.
pub(super) const SETUP_FOLDERS: [&str; 2] = ["node_modules", ".venv"];
/// A host that the proxy refuses stays refused, and five tries, as pip has them, cost eight seconds before that is told.
const PIP_RETRIES: u32 = 2;
/// Hosts that one repository's lockfiles may name; more is no dependency list any more.
const HOSTS_MAX: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) installs: Vec<Install>,
    pub(super) notes: Vec<String>,
}

impl Plan {
    /// A change names no host that its base does not.
    pub(super) fn keep_hosts_of(&mut self, base: &Self) {
        let is_named = |host: &String| base.installs.iter().any(|install| install.hosts.contains(host));
        self.installs.iter_mut().for_each(|install| install.hosts.retain(is_named));
    }
}

/// One command that fills one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Install {
    /// `None`: the repository's own setup command.
    pub(super) ecosystem: Option<Ecosystem>,
    /// As people are told.
    pub(super) what: String,
    pub(super) script: String,
    pub(super) hosts: Vec<String>,
    /// Everything that decides the result, beside the toolchain.
    material: BlobId,
}

impl Install {
    pub(super) fn name(&self) -> &'static str {
        self.ecosystem.map_or("setup", Ecosystem::name)
    }

    pub(super) fn is_setup(&self) -> bool {
        self.ecosystem.is_none()
    }

    pub(super) fn key(&self, versions: &[String], cargo_config: Option<&str>) -> BlobId {
        let architecture = std::env::consts::ARCH;
        BlobId::of(
            format!("{architecture}\n{versions:?}\n{}\n{cargo_config:?}\n{}", self.script, self.material).as_bytes(),
        )
    }
}

pub(super) fn plan(files: &BaseFiles, commands: &Commands, toolchains: &Toolchains) -> Plan {
    let mut plan = Plan::default();
    for ecosystem in &commands.ecosystems {
        match ecosystem {
            Ecosystem::Cargo => cargo(files, &mut plan),
            Ecosystem::Npm => npm(files, &mut plan),
            Ecosystem::Pytest => python(files, toolchains, &mut plan),
            Ecosystem::Make => {}
        }
    }
    if let Some(setup) = &commands.setup {
        let keep: Vec<String> = SETUP_FOLDERS
            .iter()
            .map(|name| format!("if [ -d {name} ]; then cp -a {name} \"${FOLDER_VARIABLE}\"/; fi"))
            .collect();
        let script = format!("set -e\n{{ {setup}\n}}\n{}", keep.join("\n"));
        plan.installs.push(install(files, None, "the setup command of `.fettle.toml`", script, |_| true));
    }
    plan
}

fn install(
    files: &BaseFiles,
    ecosystem: Option<Ecosystem>,
    what: &str,
    script: String,
    is_material: impl Fn(&str) -> bool,
) -> Install {
    let mut material = Vec::new();
    let mut hosts = Vec::new();
    for (name, bytes) in files.read().filter(|(name, _)| is_material(name)) {
        material.extend_from_slice(format!("{name} {}\n", BlobId::of(bytes)).as_bytes());
        hosts.extend(hosts_in(&String::from_utf8_lossy(bytes)));
    }
    hosts.sort();
    hosts.dedup();
    hosts.truncate(HOSTS_MAX);
    Install { ecosystem, what: what.to_owned(), script, hosts, material: BlobId::of(&material) }
}

fn cargo(files: &BaseFiles, plan: &mut Plan) {
    let lock = files.text("Cargo.lock");
    let external = match &lock {
        Some(lock) => lock.lines().any(|line| line.starts_with("source = ")),
        None => files.read().filter(|(name, _)| name.ends_with("Cargo.toml")).any(|(_, bytes)| has_external(bytes)),
    };
    if !external {
        return;
    }
    let command = if lock.is_some() { "cargo fetch --locked" } else { "cargo fetch" };
    if lock.is_none() {
        plan.notes.push(
            "there is no `Cargo.lock`: dependencies are the newest that fitted when they were prepared".to_owned(),
        );
    }
    let is_material = |name: &str| {
        name == "Cargo.lock" || name.starts_with("rust-toolchain") || name.ends_with("Cargo.toml") && lock.is_none()
    };
    plan.installs.push(install(
        files,
        Some(Ecosystem::Cargo),
        &format!("`{command}`"),
        command.to_owned(),
        is_material,
    ));
}

/// A dependency that is neither a path nor taken from the workspace's own list.
fn has_external(manifest: &[u8]) -> bool {
    let Ok(table) = String::from_utf8_lossy(manifest).parse::<toml::Table>() else { return false };
    let of = |table: &toml::Table| {
        ["dependencies", "dev-dependencies", "build-dependencies"].iter().any(|kind| {
            let list = table.get(*kind).and_then(toml::Value::as_table);
            list.is_some_and(|list| {
                list.values().any(|value| value.get("path").is_none() && value.get("workspace").is_none())
            })
        })
    };
    let workspace = table.get("workspace").and_then(toml::Value::as_table);
    let targets = table.get("target").and_then(toml::Value::as_table);
    of(&table)
        || workspace.is_some_and(of)
        || targets.is_some_and(|targets| targets.values().filter_map(toml::Value::as_table).any(of))
}

fn npm(files: &BaseFiles, plan: &mut Plan) {
    let package = files.text("package.json").and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok());
    let Some(package) = package else { return };
    let has = |key: &str| package[key].as_object().is_some_and(|list| !list.is_empty());
    let depends = ["dependencies", "devDependencies", "optionalDependencies"].into_iter().any(has);
    if !depends && package.get("workspaces").is_none() {
        return;
    }
    if !files.has("package-lock.json") && !files.has("npm-shrinkwrap.json") {
        let other = ["pnpm-lock.yaml", "yarn.lock"].into_iter().find(|name| files.has(name));
        plan.notes.push(match other {
            Some(name) => {
                format!("`{name}` is not understood yet: install the dependencies with `[setup]` in `.fettle.toml`")
            }
            None => "`package.json` names dependencies, but there is no `package-lock.json`: nothing was installed"
                .to_owned(),
        });
        return;
    }
    let script = format!(
        "set -e\nnpm ci --ignore-scripts --no-audit --no-fund\nmkdir -p node_modules\ncp -a node_modules \"${FOLDER_VARIABLE}\"/"
    );
    let is_material = |name: &str| {
        matches!(name, "package-lock.json" | "npm-shrinkwrap.json" | ".npmrc") || name.ends_with("package.json")
    };
    plan.installs.push(install(files, Some(Ecosystem::Npm), "`npm ci --ignore-scripts`", script, is_material));
}

fn python(files: &BaseFiles, toolchains: &Toolchains, plan: &mut Plan) {
    let mut requirements: Vec<&str> = Vec::new();
    let mut text = String::new();
    for (name, bytes) in files.read().filter(|(name, _)| crate::ecosystem::is_requirements(name)) {
        let lines = String::from_utf8_lossy(bytes);
        if lines.lines().any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#')) {
            requirements.push(name);
            text.push_str(&lines);
            text.push('\n');
        }
    }
    let listed = project_dependencies(files);
    if requirements.is_empty() && listed.is_empty() {
        // The host's own interpreter with its pytest will do.
        return;
    }
    let Some(tool) = toolchains.get(Ecosystem::Pytest) else { return };
    let names_pytest = |line: &str| line.trim_start().to_ascii_lowercase().starts_with("pytest");
    let mut arguments: Vec<String> = requirements.iter().map(|name| format!("-r {}", quote(name))).collect();
    arguments.extend(listed.iter().map(|dependency| quote(dependency)));
    if !text.lines().any(names_pytest) && !listed.iter().any(|line| names_pytest(line)) {
        arguments.push("pytest".to_owned());
        plan.notes.push("the repository does not name pytest: the newest was installed".to_owned());
    }
    let script = format!(
        "set -e\n{} -m venv \"${FOLDER_VARIABLE}/venv\"\n\"${FOLDER_VARIABLE}/venv/bin/python\" -m pip install --quiet \
         --disable-pip-version-check --retries {PIP_RETRIES} {}",
        quote(tool.executable.as_str()),
        arguments.join(" ")
    );
    let is_material = |name: &str| crate::ecosystem::is_requirements(name) || name == "pyproject.toml";
    plan.installs.push(install(
        files,
        Some(Ecosystem::Pytest),
        "`pip install` into a virtual environment",
        script,
        is_material,
    ));
}

/// `[project] dependencies` and what `test` and `dev` add to them.
fn project_dependencies(files: &BaseFiles) -> Vec<String> {
    let table = files.text("pyproject.toml").and_then(|text| text.parse::<toml::Table>().ok());
    let Some(table) = table else { return Vec::new() };
    let strings = |value: Option<&toml::Value>| -> Vec<String> {
        let list = value.and_then(toml::Value::as_array).map(Vec::as_slice).unwrap_or_default();
        list.iter().filter_map(toml::Value::as_str).map(str::to_owned).collect()
    };
    let project = table.get("project");
    let mut found = strings(project.and_then(|project| project.get("dependencies")));
    for group in ["test", "tests", "testing", "dev"] {
        found
            .extend(strings(project.and_then(|p| p.get("optional-dependencies")).and_then(|extras| extras.get(group))));
        found.extend(strings(table.get("dependency-groups").and_then(|groups| groups.get(group))));
    }
    found
}

/// Host names of `https://` addresses. No addresses of numbers and no single words: those name machines nearby.
fn hosts_in(text: &str) -> Vec<String> {
    let mut hosts = Vec::new();
    for rest in text.split("https://").skip(1) {
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '.' || c == '-')).unwrap_or(rest.len());
        let host = rest[..end].to_ascii_lowercase();
        let named = host.rsplit('.').next().is_some_and(|last| last.chars().any(|c| c.is_ascii_alphabetic()));
        if named && host.contains('.') && !host.ends_with('.') && !hosts.contains(&host) {
            hosts.push(host);
        }
    }
    hosts
}

/// The registry that the tool itself is set to on this worker.
pub(super) async fn hosts_of_tool(ecosystem: Option<Ecosystem>, path: &str) -> Vec<String> {
    let argv: &[&str] = match ecosystem {
        Some(Ecosystem::Npm) => &["npm", "config", "get", "registry"],
        Some(Ecosystem::Pytest) => &["python3", "-m", "pip", "config", "list"],
        Some(Ecosystem::Cargo | Ecosystem::Make) | None => return Vec::new(),
    };
    toolchain::ask(path, argv).await.map(|said| hosts_in(&said)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use camino::Utf8PathBuf;

    use super::*;
    use crate::ecosystem::{Ecosystem, discover};
    use crate::prepare::Tool;

    fn planned(files: &[(&str, &str)]) -> Plan {
        let contents: BTreeMap<String, Bytes> =
            files.iter().map(|(name, text)| ((*name).to_owned(), Bytes::copy_from_slice(text.as_bytes()))).collect();
        let paths = contents.keys().map(|name| fettle_domain::path::RepoPath::parse(name).unwrap()).collect();
        let files = BaseFiles::new(paths, contents);
        let executable = Utf8PathBuf::from("/usr/bin/python3");
        let bin = Utf8PathBuf::from("/usr/bin");
        let tool = Tool { ecosystem: Ecosystem::Pytest, version: "python 3".into(), bin, roots: vec![], executable };
        plan(&files, &discover(&files, None).unwrap(), &Toolchains { tools: vec![tool], ..Toolchains::default() })
    }

    fn script(plan: &Plan) -> &str {
        &plan.installs[0].script
    }

    #[test]
    fn a_repository_without_dependencies_installs_nothing() {
        let own = "[[package]]\nname = \"a\"\nversion = \"0.1.0\"\n";
        assert!(planned(&[("Cargo.toml", "[package]"), ("Cargo.lock", own)]).installs.is_empty());
        assert!(planned(&[("Cargo.toml", "[dependencies]\nb = { path = \"b\" }\n")]).installs.is_empty());
        assert!(planned(&[("package.json", r#"{"scripts":{"test":"node --test"}}"#)]).installs.is_empty());
        assert!(
            planned(&[("test_a.py", ""), ("pyproject.toml", "[project]\ndependencies = []\n")]).installs.is_empty()
        );
    }

    #[test]
    fn each_ecosystem_installs_from_its_lockfile() {
        let lock = "[[package]]\nname = \"a\"\nsource = \"registry+https://example.test/index\"\n";
        assert_eq!(script(&planned(&[("Cargo.toml", "[package]"), ("Cargo.lock", lock)])), "cargo fetch --locked");
        let package = r#"{"devDependencies":{"a":"1"},"scripts":{"test":"jest"}}"#;
        let resolved = r#"{"packages":{"a":{"resolved":"https://npm.example.test/a.tgz"}}}"#;
        let plan = planned(&[("package.json", package), ("package-lock.json", resolved)]);
        assert!(script(&plan).contains("npm ci --ignore-scripts"));
        assert_eq!(plan.installs[0].hosts, ["npm.example.test"]);
        let project = "[project]\ndependencies = [\"a>1\"]\n[project.optional-dependencies]\ntest = [\"pytest>8\"]\n";
        let plan = planned(&[("tests/test_a.py", ""), ("pyproject.toml", project)]);
        assert!(script(&plan).ends_with("'a>1' 'pytest>8'"), "{}", script(&plan));
    }

    #[test]
    fn a_change_names_no_host_that_its_base_does_not() {
        let with = |url: &str| {
            let lock = format!(r#"{{"packages":{{"a":{{"resolved":"{url}/a.tgz"}}}}}}"#);
            planned(&[("package.json", r#"{"dependencies":{"a":"1"}}"#), ("package-lock.json", &lock)])
        };
        let base = with("https://npm.example.test");
        let (mut same, mut other) = (with("https://npm.example.test/new"), with("https://evil.example.test"));
        assert_eq!(other.installs[0].hosts, ["evil.example.test"]);
        same.keep_hosts_of(&base);
        other.keep_hosts_of(&base);
        assert_eq!((same.installs[0].hosts.len(), other.installs[0].hosts.len()), (1, 0));
    }

    #[test]
    fn dependencies_without_a_lockfile_that_npm_could_follow_are_refused_with_a_note() {
        let plan = planned(&[("package.json", r#"{"dependencies":{"a":"1"}}"#)]);
        assert!(plan.installs.is_empty() && plan.notes[0].contains("package-lock.json"), "{:?}", plan.notes);
    }

    #[test]
    fn the_key_changes_with_lockfile_and_toolchain_and_with_nothing_else() {
        let with = |lock: &str, other: &str| {
            let lock = format!("[[package]]\nsource = \"{lock}\"\n");
            planned(&[("Cargo.toml", other), ("Cargo.lock", &lock)]).installs.remove(0)
        };
        let versions = ["rustc 1".to_owned()];
        let key = with("a", "[package]").key(&versions, None);
        assert_eq!(with("a", "[package]\n#").key(&versions, None), key);
        assert_ne!(with("b", "[package]").key(&versions, None), key);
        assert_ne!(with("a", "[package]").key(&["rustc 2".to_owned()], None), key);
    }

    #[test]
    fn hosts_are_names_with_a_dot_and_a_letter() {
        let text = "https://a.test/x https://10.0.0.1/ https://localhost:80 \"https://b.c.test\" http://plain.test";
        assert_eq!(hosts_in(text), ["a.test", "b.c.test"]);
    }
}
