//! The tools that look at the chart, built or installed once and kept below `target/fettle-test-cache`. One that cannot be had is a
//! sentence, and no failure.

use std::process::{Command, Stdio};
use std::time::Duration;

use cargo_metadata::camino::{Utf8Path, Utf8PathBuf};

use super::render::Helm;
use crate::workspace::Workspace;
use crate::{needs, process};

const CACHE: &str = "fettle-test-cache";
const HELM: &str = "helm.sh/helm/v4/cmd/helm";
const HELM_VERSION: &str = "v4.3.2";
/// Its schemas are those of Kubernetes up to the same number.
const VALIDATOR: &str = "kubernetes-validate==1.37.0";
/// Some hundred Go modules, fetched and compiled on two busy cores.
const BUILD_LIMIT: Duration = Duration::from_secs(20 * 60);
const INSTALL_LIMIT: Duration = Duration::from_secs(5 * 60);

/// Whether a tool is fetched and built where it is not there: helm alone is more than a thousand Go packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    Build,
    Leave,
}

/// Helm, built by Go. What is built is kept by its version.
pub(super) fn helm(workspace: &Workspace, missing: Missing) -> anyhow::Result<Result<Helm, String>> {
    let folder = workspace.built("", &format!("{CACHE}/helm-{HELM_VERSION}"));
    let program = folder.join("helm");
    if !program.exists() && missing == Missing::Leave {
        return Ok(Err("helm was not built yet; `cargo xtask chart` builds it once, which takes minutes".to_owned()));
    }
    if !program.exists() {
        if !answers(&["go", "version"]) {
            return Ok(Err("there is no Go to build helm with".to_owned()));
        }
        fs_err::create_dir_all(&folder)?;
        println!("building helm {HELM_VERSION}; the first time takes minutes");
        let mut command = Command::new("go");
        command.args(["install", "-trimpath", &format!("{HELM}@{HELM_VERSION}")]).env("GOBIN", &folder);
        // A toolchain that is fetched behind one's back is not the one that was asked for.
        command.env("GOTOOLCHAIN", "local").env("CGO_ENABLED", "0");
        if let Err(error) = process::run(command, BUILD_LIMIT) {
            return Ok(Err(format!("helm cannot be built: {error:#}")));
        }
    }
    Ok(Ok(Helm::new(program, folder)))
}

/// A Python with the schemas of Kubernetes.
pub(super) fn validator(workspace: &Workspace, missing: Missing) -> anyhow::Result<Result<Utf8PathBuf, String>> {
    let folder = workspace.built("", &format!("{CACHE}/{}", VALIDATOR.replace("==", "-")));
    let python = folder.join("bin/python");
    if !installed(&python) && missing == Missing::Leave {
        return Ok(Err(format!("{VALIDATOR} was not installed yet; `cargo xtask chart` installs it once")));
    }
    if !installed(&python) {
        let mut venv = Command::new("python3");
        venv.args(["-m", "venv", "--clear"]).arg(&folder);
        let mut install = Command::new(&python);
        install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", VALIDATOR]);
        for command in [venv, install] {
            if let Err(error) = process::run(command, INSTALL_LIMIT) {
                return Ok(Err(format!("{VALIDATOR} cannot be installed: {error:#}")));
            }
        }
    }
    Ok(Ok(python))
}

/// A folder that was left half made does not count.
fn installed(python: &Utf8Path) -> bool {
    python.exists() && answers(&[python.as_str(), "-c", "import kubernetes_validate, jsonschema, yaml"])
}

/// Of the machine, or as a Debian package that may be installed.
pub(super) fn promtool() -> Result<&'static str, String> {
    needs::offer(&["prometheus"]);
    if answers(&["promtool", "--version"]) {
        Ok("promtool")
    } else {
        Err("there is no promtool (Debian package prometheus)".to_owned())
    }
}

fn answers(probe: &[&str]) -> bool {
    let mut command = Command::new("timeout");
    command.arg("60").args(probe).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
