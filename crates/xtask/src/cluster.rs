//! A control plane of Kubernetes as its makers publish it, for the tests that `--cluster` adds: built once by Go from their modules,
//! kept below `target/fettle-test-cache`. What cannot be had is left out, and the tests that need it say so.

use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use cargo_metadata::camino::Utf8Path;

use crate::chart;
use crate::process;
use crate::workspace::Workspace;

/// What `fettle_tests::downloads::cluster` looks for, with Helm beside it.
const CACHED: &str = "fettle-test-cache/cluster";
/// `go.mod` names the modules, and `go.sum` beside it what is in them.
const MODULES: &str = "crates/xtask/src/cluster/programs";
const KUBERNETES: &str = "v1.37.2";
/// Etcd's program is its module's root.
const PROGRAMS: &[(&str, &str)] = &[
    ("etcd", "go.etcd.io/etcd/server/v3"),
    ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
    ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
];
/// More than two thousand packages on two busy cores, fetched over a slow line.
const BUILD_LIMIT: Duration = Duration::from_secs(60 * 60);

/// Makes what is missing.
pub(crate) fn provide(workspace: &Workspace) -> anyhow::Result<()> {
    let helm = chart::helm(workspace)?;
    let (kept, work) = (workspace.built("", CACHED), workspace.built("", &format!("{CACHED}.new")));
    let made_of = format!("Kubernetes {KUBERNETES}, {helm}");
    if fs_err::read_to_string(kept.join("version")).is_ok_and(|found| found == made_of) {
        println!("the control plane of Kubernetes {KUBERNETES} is there");
        return Ok(());
    }
    println!(
        "the control plane of Kubernetes {KUBERNETES} is fetched and built; that takes a quarter of an hour and more"
    );
    for old in [&kept, &work] {
        if old.exists() {
            fs_err::remove_dir_all(old)?;
        }
    }
    // What resolving adds to the files stays here.
    let modules = work.join("modules");
    fs_err::create_dir_all(&modules)?;
    for file in ["go.mod", "go.sum"] {
        fs_err::copy(workspace.root().join(MODULES).join(file), modules.join(file))?;
    }
    for (name, package) in PROGRAMS {
        build(&modules, package, &work.join(name)).with_context(|| format!("while building {name}"))?;
    }
    fs_err::remove_dir_all(modules)?;
    fs_err::os::unix::fs::symlink(helm, work.join("helm"))?;
    fs_err::write(work.join("version"), made_of)?;
    fs_err::rename(work, kept)?;
    Ok(())
}

fn build(modules: &Utf8Path, package: &str, program: &Utf8Path) -> anyhow::Result<()> {
    // What the makers' own build tells it, since Helm asks a server for its version.
    let (major, minor) = KUBERNETES.trim_start_matches('v').split_once('.').context("a version has dots")?;
    let minor = minor.split('.').next().unwrap_or_default();
    let say = |what: &str, value: &str| format!("-X k8s.io/component-base/version.{what}={value}");
    let told = [say("gitVersion", KUBERNETES), say("gitMajor", major), say("gitMinor", minor)].join(" ");
    let mut command = Command::new("nice");
    command.args(["-n", "15", "go", "build", "-mod=mod", "-trimpath", "-buildvcs=false"]).current_dir(modules);
    command.args(["-ldflags", &format!("-s -w {told}"), "-o", program.as_str(), package]);
    // A toolchain that is fetched behind one's back is not the one that was asked for.
    command.env("GOTOOLCHAIN", "local").env("CGO_ENABLED", "0");
    process::run(command, BUILD_LIMIT)
}
