//! Commands that build programs of `tests/` and hand over to them.

use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::ensure;
use clap::ValueEnum;

use crate::process;
use crate::workspace::Workspace;

/// The backend that needs nothing installed.
pub(crate) const EMBEDDED: &str = "embedded";
pub(crate) const DEMO: &str = "fettle-demo";
pub(crate) const CRASH_MATRIX: &str = "crash-matrix";
pub(crate) const PLATFORM: &str = "platform";

const BENCH: &str = "bench";
const SIMULATE: &str = "simulate";
/// Of a package of its own, which builds without our programs.
const BENCH_QUEUE: &str = "bench-queue";
const BENCH_QUEUE_PACKAGE: &str = "fettle-bench-queue";
const BENCH_GATEWAY: &str = "bench-gateway";
const BENCH_GATEWAY_PACKAGE: &str = "fettle-bench-gateway";
const BENCH_PLACEMENT: &str = "bench-placement";
const BENCH_PLACEMENT_PACKAGE: &str = "fettle-bench-placement";
/// The packages whose binaries stand beside each other when the system runs.
const PACKAGES: &[&str] = &[
    "fettle-tests",
    "fettle-cli",
    "fettle-dashboard",
    "fettle-engines",
    "fettle-inference",
    "fettle-sandbox",
    "fettle-worker",
];
/// Cold, optimised, on two slow cores.
const BUILD_LIMIT: Duration = Duration::from_secs(60 * 60);

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Bench {
    /// From a webhook to a queued Task
    Intake,
    /// A checkout beside what git offers
    Checkout,
    /// What the system costs when nothing happens
    Idle,
    /// The ledger as a queue, beside raw Redis Streams, apalis, RQ and Celery; and, unless `--quick`, what `recovery` says
    Queue,
    /// How soon the guard over memory that GPU and host share acts
    Guard,
    /// How soon a Run goes on after its worker is gone, and what is paid again
    Recovery,
    /// The gateway in front of a model's server, beside that server alone, nginx, TensorZero and LiteLLM
    Gateway,
    /// The planner on simulated machines, beside other policies and the best packing
    Placement,
    /// The API with many users, live followers and a ledger with a long history
    Api,
}

#[derive(Clone, Copy)]
enum Profile {
    Dev,
    Release,
}

pub(crate) fn demo(workspace: &Workspace, rest: &[String]) -> anyhow::Result<ExitCode> {
    build(workspace, DEMO, Profile::Dev, &[])?;
    start(workspace, DEMO, Profile::Dev, rest)
}

pub(crate) fn crash_matrix(workspace: &Workspace, backend: &str, rest: &[String]) -> anyhow::Result<ExitCode> {
    build(workspace, CRASH_MATRIX, Profile::Dev, &workspace.crash_points())?;
    start(workspace, CRASH_MATRIX, Profile::Dev, &[&["--backend".to_owned(), backend.to_owned()], rest].concat())
}

pub(crate) fn bench(workspace: &Workspace, what: Bench, rest: &[String]) -> anyhow::Result<ExitCode> {
    let name = match what {
        Bench::Checkout => {
            let mut command = workspace.cargo("bench");
            command.args(["--package", "fettle-git", "--bench", "checkout", "--"]).args(rest);
            return process::become_command(command);
        }
        Bench::Intake => "intake",
        Bench::Idle => "idle",
        Bench::Guard => "guard",
        Bench::Recovery => "recovery",
        Bench::Api => "api",
        Bench::Queue => {
            // It starts the other benchmark for what needs the real programs.
            if !rest.iter().any(|argument| argument == "--quick") {
                build(workspace, BENCH, Profile::Release, &[])?;
            }
            build_packages(workspace, BENCH_QUEUE, Profile::Release, &[BENCH_QUEUE_PACKAGE], &[])?;
            return start(workspace, BENCH_QUEUE, Profile::Release, rest);
        }
        Bench::Gateway => {
            let packages = [BENCH_GATEWAY_PACKAGE, "fettle-inference"];
            build_packages(workspace, BENCH_GATEWAY, Profile::Release, &packages, &[])?;
            return start(workspace, BENCH_GATEWAY, Profile::Release, rest);
        }
        Bench::Placement => {
            build_packages(workspace, BENCH_PLACEMENT, Profile::Release, &[BENCH_PLACEMENT_PACKAGE], &[])?;
            return start(workspace, BENCH_PLACEMENT, Profile::Release, rest);
        }
    };
    build(workspace, BENCH, Profile::Release, &[])?;
    start(workspace, BENCH, Profile::Release, &[&[name.to_owned()], rest].concat())
}

/// Alone: it starts nothing, and builds in a minute.
pub(crate) fn simulate(workspace: &Workspace, rest: &[String]) -> anyhow::Result<ExitCode> {
    let mut command = workspace.cargo("build");
    command.args(["--release", "--package", "fettle-simulation", "--bin", SIMULATE]);
    process::run(command, BUILD_LIMIT)?;
    start(workspace, SIMULATE, Profile::Release, rest)
}

/// Builds every program, since the one that is started starts others.
fn build(workspace: &Workspace, program: &str, profile: Profile, features: &[String]) -> anyhow::Result<()> {
    let packages: Vec<&str> = workspace
        .members()
        .map(|member| member.name.as_str())
        // A feature can be named only for a package that is selected.
        .filter(|name| PACKAGES.contains(name) || features.iter().any(|named| named.contains(&format!("{name}/"))))
        .collect();
    build_packages(workspace, program, profile, &packages, features)
}

fn build_packages(
    workspace: &Workspace,
    program: &str,
    profile: Profile,
    packages: &[&str],
    features: &[String],
) -> anyhow::Result<()> {
    ensure!(workspace.has_binary(program), "this tree has no program `{program}`");
    let mut command = workspace.cargo("build");
    command.arg("--bins").args(features);
    for package in packages {
        command.args(["--package", package]);
    }
    if let Profile::Release = profile {
        command.arg("--release");
    }
    // Cargo tells its progress on standard error, beside this line; standard output stays the program's own.
    eprintln!("building {program} and what it starts; a first build takes minutes");
    process::run(command, BUILD_LIMIT)
}

fn start(workspace: &Workspace, program: &str, profile: Profile, rest: &[String]) -> anyhow::Result<ExitCode> {
    let folder = match profile {
        Profile::Dev => "debug",
        Profile::Release => "release",
    };
    let mut command = Command::new(workspace.built(folder, program));
    command.args(rest);
    process::become_command(command)
}
