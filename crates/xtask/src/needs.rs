//! What the tests need on a machine: looked for, and installed where that can be done without asking.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::bail;

use crate::process;

/// Package lists and packages over a slow line.
const INSTALL_LIMIT: Duration = Duration::from_secs(5 * 60);

struct Need {
    name: &'static str,
    /// Succeeds when it is there.
    probe: &'static [&'static str],
    from: From,
}

#[derive(PartialEq, Eq)]
enum From {
    Debian(&'static str),
    Rustup(&'static str),
}

const NEEDS: &[Need] = &[
    Need { name: "git", probe: &["git", "--version"], from: From::Debian("git") },
    Need { name: "make", probe: &["make", "--version"], from: From::Debian("make") },
    Need { name: "node", probe: &["node", "--version"], from: From::Debian("nodejs") },
    Need { name: "npm", probe: &["npm", "--version"], from: From::Debian("npm") },
    Need { name: "python3", probe: &["python3", "--version"], from: From::Debian("python3") },
    Need { name: "venv", probe: &["python3", "-c", "import venv, ensurepip"], from: From::Debian("python3-venv") },
    Need { name: "pytest", probe: &["python3", "-m", "pytest", "--version"], from: From::Debian("python3-pytest") },
    Need { name: "nix", probe: &["nix-instantiate", "--version"], from: From::Debian("nix-bin") },
    Need { name: "systemd-analyze", probe: &["systemd-analyze", "--version"], from: From::Debian("systemd") },
    Need { name: "rustfmt", probe: &["cargo", "fmt", "--version"], from: From::Rustup("rustfmt") },
    Need { name: "clippy", probe: &["cargo", "clippy", "--version"], from: From::Rustup("clippy") },
];

/// Errors name what is missing still, with the package that brings it.
pub(crate) fn provide() -> anyhow::Result<()> {
    let missing: Vec<&Need> = missing();
    if missing.is_empty() {
        return Ok(());
    }
    for command in installers(&missing) {
        // Whether it helped is asked of the tools themselves below.
        if let Err(error) = process::run(command, INSTALL_LIMIT) {
            eprintln!("{error:#}");
        }
    }
    let missing: Vec<String> = self::missing()
        .into_iter()
        .map(|need| match need.from {
            From::Debian(package) => format!("{} (Debian package {package})", need.name),
            From::Rustup(component) => format!("{} (`rustup component add {component}`)", need.name),
        })
        .collect();
    if missing.is_empty() { Ok(()) } else { bail!("missing: {}", missing.join(", ")) }
}

/// Installs Debian packages that a stage can do without: it skips itself then.
pub(crate) fn offer(packages: &[&str]) {
    let here = |package: &&str| answers(&["dpkg", "--status", package]);
    if packages.iter().all(here) || !rustix::process::geteuid().is_root() || !answers(&["apt-get", "--version"]) {
        return;
    }
    let install = [&["install", "--yes", "--no-install-recommends"], packages].concat();
    for arguments in [&["update"], install.as_slice()] {
        let mut command = Command::new("apt-get");
        // In this runlevel no package starts its service: tests start their own.
        command.env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1").args(arguments);
        if let Err(error) = process::run(command, INSTALL_LIMIT) {
            eprintln!("{error:#}");
        }
    }
}

fn missing() -> Vec<&'static Need> {
    NEEDS.iter().filter(|need| !answers(need.probe)).collect()
}

fn answers(probe: &[&str]) -> bool {
    let mut command = Command::new("timeout");
    command.arg("60").args(probe).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn installers(missing: &[&Need]) -> Vec<Command> {
    let mut commands = Vec::new();
    let debian: Vec<&str> = missing
        .iter()
        .filter_map(|need| match need.from {
            From::Debian(package) => Some(package),
            From::Rustup(_) => None,
        })
        .collect();
    if !debian.is_empty() && rustix::process::geteuid().is_root() && answers(&["apt-get", "--version"]) {
        let install = [&["install", "--yes", "--no-install-recommends"], debian.as_slice()].concat();
        for arguments in [&["update"], install.as_slice()] {
            let mut command = Command::new("apt-get");
            command.env("DEBIAN_FRONTEND", "noninteractive").args(arguments);
            commands.push(command);
        }
    }
    let rustup: Vec<&str> = missing
        .iter()
        .filter_map(|need| match need.from {
            From::Rustup(component) => Some(component),
            From::Debian(_) => None,
        })
        .collect();
    if !rustup.is_empty() {
        let mut command = Command::new("rustup");
        command.args(["component", "add"]).args(rustup);
        commands.push(command);
    }
    commands
}
