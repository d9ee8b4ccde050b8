//! Dependencies, installed before any model is asked and through the allow-list proxy alone. The registry's hosts are
//! learned as an operator learns them: from the sentence that refuses them.

use std::process::Command;

use fettle_tests::fixtures::{Ended, Fix, Project, Repo};
use fettle_tests::model::ModelServer;
use fettle_tests::skip::skip;

/// An index, and where the packages themselves lie, each perhaps behind another name.
const HOSTS_MAX: usize = 6;

/// How the next run's hosts come from the refused ones.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Learn {
    /// By the sentence alone.
    AsTold,
    /// Also with the entry that a private address would need: half as many installations.
    Ahead,
}

/// Runs with ever more of the hosts that were refused, until none is.
fn prove(project: &Project, repo: &Repo, learn: Learn) {
    // With no host at all, an installation is not even tried.
    let mut hosts = vec!["packages.invalid".to_owned()];
    for _ in 0..HOSTS_MAX {
        let server = ModelServer::start(project.solving().script());
        let fix = Fix::new(repo, project.issue).model(&server);
        let ended = fix.config(&format!("[agent.sandbox]\nprepare_hosts = {hosts:?}\n")).run();
        let refused = refused_hosts(&ended);
        if refused.is_empty() {
            ended.expect_proven();
            return;
        }
        assert_eq!((ended.status.code(), server.request_count()), (Some(4), 0), "{ended}");
        assert!(refused.iter().all(|host| !hosts.contains(host)), "an allowed host is refused: {hosts:?}\n{ended}");
        if learn == Learn::Ahead {
            hosts.extend(refused.iter().filter(|host| !host.contains(':')).map(|host| format!("{host}:443")));
        }
        hosts.extend(refused);
    }
    panic!("{HOSTS_MAX} hosts are not enough: {hosts:?}");
}

fn refused_hosts(ended: &Ended) -> Vec<String> {
    let told =
        ended.json()["reason"].as_str().unwrap_or_default().split_once("refused by `[agent.sandbox] prepare_hosts`: ");
    let list = told.map(|(_, list)| list.lines().next().unwrap_or_default()).unwrap_or_default();
    // A host that is listed, but leads to a private address, comes with the entry that it needs.
    let entry = |host: &str| match host.split_once("list it as ") {
        Some((_, entry)) => entry.split(' ').next().unwrap_or_default().to_owned(),
        None => host.to_owned(),
    };
    list.split(", ").filter(|host| !host.is_empty()).map(entry).collect()
}

/// Whether a package manager reaches its registry; tells a person when not.
fn reaches(repo: &Repo, program: &str, arguments: &[&str]) -> bool {
    let asked = Command::new(program).args(arguments).current_dir(repo.root()).output();
    let reached = asked.is_ok_and(|output| output.status.success());
    if !reached {
        skip(&format!("the registry of {program} is away, so no dependency could be installed"));
    }
    reached
}

#[test]
fn a_crate_from_the_registry_is_there_for_the_tests() {
    let manifest = format!("{}\n[dependencies]\nitoa = \"1\"\n", Project::RUST.files[0].1);
    let library = format!("pub use itoa;\n{}", Project::RUST.files[3].1);
    let repo = Project::RUST.repo_with(&[("Cargo.toml", &manifest), ("src/lib.rs", &library)]);
    fs_err::remove_file(repo.path("Cargo.lock")).unwrap();
    if reaches(&repo, "cargo", &["generate-lockfile", "--quiet"]) {
        repo.commit("Depend on something");
        let test_text = "#[test]\nfn above() {\n    assert_eq!(clamp::itoa::Buffer::new().format(clamp::clamp(12, 1, 9)), \"9\");\n}\n";
        prove(&Project { test_text, ..Project::RUST }, &repo, Learn::Ahead);
    }
}

#[test]
fn a_package_of_npm_is_there_for_the_tests() {
    let repo = Project::JAVASCRIPT.repo_with(&[(".gitignore", "node_modules\n")]);
    if reaches(&repo, "npm", &["install", "--silent", "--no-audit", "--no-fund", "is-number@7"]) {
        repo.commit("Depend on something");
        let test_text = "import assert from \"node:assert\";\nimport { test } from \"node:test\";\nimport isNumber from \"is-number\";\n\
                         import { clamp } from \"../clamp.js\";\n\n\
                         test(\"above\", () => assert.ok(isNumber(1) && clamp(12, 1, 9) === 9));\n";
        prove(&Project { test_text, ..Project::JAVASCRIPT }, &repo, Learn::AsTold);
    }
}

#[test]
fn a_package_of_pip_is_there_for_the_tests() {
    let repo = Project::PYTHON.repo_with(&[("requirements.txt", "six\npytest\n")]);
    let folder = repo.beside("downloaded");
    if reaches(&repo, "python3", &["-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder.as_str(), "six"]) {
        let test_text = "import six\n\nfrom clamp import clamp\n\n\ndef test_above():\n    assert six.PY3 and clamp(12, 1, 9) == 9\n";
        prove(&Project { test_text, ..Project::PYTHON }, &repo, Learn::Ahead);
    }
}
