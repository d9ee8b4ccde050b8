//! What CI runs, stage by stage: every stage runs even when another one failed, unless it needs what that one makes.

use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::time::Instant;

use crate::process::Stream;
use crate::test_output::TestOutput;
use crate::workspace::Workspace;
use crate::{chart, cluster, codegen, engines, needs, process, programs, tidy};

/// Where tests tell that they skipped themselves; `fettle_test_kit::skip` writes it.
const SKIP_LOG: &str = "FETTLE_SKIP_LOG";
const FORMAT_LIMIT: Duration = Duration::from_secs(2 * 60);
/// Cold, on two cores; ten minutes are usual.
const BUILD_LIMIT: Duration = Duration::from_secs(25 * 60);
/// All tests, on two cores.
const TESTS_LIMIT: Duration = Duration::from_secs(20 * 60);
/// One Task from issue to pull request, with a scripted model.
const DEMO_LIMIT: Duration = Duration::from_secs(3 * 60);
/// One installation, with the Debian root made anew over a slow line.
const INSTALLED_LIMIT: Duration = Duration::from_secs(10 * 60);
const PLATFORM_LIMIT: Duration = Duration::from_secs(40 * 60);
/// Debian packages of the servers that some tests start for themselves, and skip themselves without.
const BROKERS_AND_DATABASE: &[&str] = &["redis-server", "rabbitmq-server", "postgresql", "openssl"];
/// What `platform` exits with when there can be no machine.
const SKIPPED: i32 = 77;
const CRASH_LIMIT: Duration = Duration::from_secs(8 * 60);
/// As many cases as fit beside the other stages, with each backend; the whole matrix is for the night.
const CRASH_SAMPLES: &[(&str, &str, &str)] = &[
    (programs::EMBEDDED, SQLITE, "3"),
    ("redis", SQLITE, "2"),
    ("rabbitmq", SQLITE, "2"),
    (programs::EMBEDDED, "postgres", "2"),
];
const SQLITE: &str = "sqlite";
/// What `crash-matrix` exits with when a backend is not there.
const MISSING: i32 = 2;

/// How much of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    Quick,
    Usual,
    /// The whole life of an installation, too.
    Platform,
}

/// What is built first, where it is not there yet, for the tests that need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct With {
    pub(crate) engines: bool,
    pub(crate) cluster: bool,
}

/// Succeeds only when every stage did.
pub(crate) fn run(workspace: &Workspace, extent: Extent, with: With, filter: Option<&str>) -> anyhow::Result<ExitCode> {
    let quick = extent == Extent::Quick;
    let mut report = Report::default();
    let mut tests = TestOutput::default();
    if !quick {
        report.stage("needs", || {
            needs::offer(BROKERS_AND_DATABASE);
            needs::provide()
        });
    }
    if with.engines {
        needs::offer(&["cmake", "g++"]);
        report.stage("engines", || engines::provide(workspace));
    }
    if with.cluster {
        report.stage("cluster", || cluster::provide(workspace));
    }
    report.stage("fmt", || format(workspace));
    if quick {
        report.stage("tidy", || tidy::run(workspace));
        report.stage("tests", || run_tests(workspace, filter, &mut tests));
    } else {
        let built = report.stage("build", || build(workspace));
        if built {
            report.stage("clippy", || clippy(workspace));
        }
        report.stage("tidy", || tidy::run(workspace));
        if built {
            report.stage("codegen", || codegen::run(workspace, true));
            report.stage("tests", || run_tests(workspace, filter, &mut tests));
            report.stage("chart", || {
                tests.skipped.extend(chart::check(workspace, chart::Missing::Leave)?);
                Ok(())
            });
            if workspace.has_binary(programs::DEMO) {
                report.stage("demo", || demo(workspace));
            }
            if workspace.has_binary(programs::CRASH_MATRIX) {
                report.stage("crash-matrix", || crash_sample(workspace, &mut tests));
            }
            if workspace.has_binary(programs::PLATFORM) {
                report.stage("platform", || platform(workspace, extent, &mut tests));
            }
        } else {
            println!("\nclippy, codegen, tests and what follows did not run: they need the build");
        }
    }
    if quick {
        println!(
            "\nleft out by --quick: needs, build of all targets, clippy, codegen, chart, demo, crash-matrix, platform"
        );
    }
    println!("\n{}", report.table());
    println!("tests: {} passed, {} failed", tests.passed, tests.failed);
    println!("{}", skipped_line(&tests.skipped));
    Ok(if report.all_succeeded() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn format(workspace: &Workspace) -> anyhow::Result<()> {
    let mut command = Command::new("cargo");
    command.current_dir(workspace.root()).args(["fmt", "--all", "--check"]);
    process::run(command, FORMAT_LIMIT)
}

fn build(workspace: &Workspace) -> anyhow::Result<()> {
    let mut command = workspace.cargo("build");
    command.args(["--workspace", "--all-targets"]).args(workspace.crash_points());
    process::run(command, BUILD_LIMIT)
}

/// Without the crash points: the code that a release is built from is compiled here.
fn clippy(workspace: &Workspace) -> anyhow::Result<()> {
    let mut command = workspace.cargo("clippy");
    command.args(["--workspace", "--all-targets", "--", "--deny", "warnings"]);
    process::run(command, BUILD_LIMIT)
}

fn run_tests(workspace: &Workspace, filter: Option<&str>, seen: &mut TestOutput) -> anyhow::Result<()> {
    let log = workspace.built("", "skipped-tests.log");
    fs_err::write(&log, "")?;
    let mut command = workspace.cargo("test");
    command.args(["--workspace", "--no-fail-fast"]).args(workspace.crash_points()).args(filter);
    command.args(["--", "--show-output"]).env(SKIP_LOG, &log);
    let status = process::run_lines(command, BUILD_LIMIT + TESTS_LIMIT, &mut |stream, line| match stream {
        Stream::Out if seen.read_out(line) => println!("{line}"),
        Stream::Out => {}
        Stream::Err => {
            seen.read_err(line);
            eprintln!("{line}");
        }
    })?;
    seen.add_log(&fs_err::read_to_string(&log)?);
    ensure!(status.success(), "cargo test failed ({status})");
    ensure!(seen.passed > 0, "no test has run");
    Ok(())
}

/// The demo ends by itself with `--json`; its last line is the result.
fn demo(workspace: &Workspace) -> anyhow::Result<()> {
    let mut command = Command::new(workspace.built("debug", programs::DEMO));
    command.current_dir(workspace.root()).arg("--json");
    let text = process::output(command, DEMO_LIMIT)?;
    let last = text.lines().last().context("the demo printed nothing")?;
    println!("{last}");
    judge_demo(last)
}

/// The demo did the main job when its last line tells of one ready pull request with a proof and one comment.
fn judge_demo(line: &str) -> anyhow::Result<()> {
    let result: serde_json::Value = serde_json::from_str(line).context("the demo's last line is not JSON")?;
    let holds = |pointer: &str, wanted: serde_json::Value| match result.pointer(pointer) {
        Some(found) if *found == wanted => Ok(()),
        found => bail!("the demo's last line has {found:?} at {pointer}, wanted {wanted}"),
    };
    holds("/pull_request/draft", false.into())?;
    holds("/proof/proven", true.into())?;
    holds("/comments", 1.into())?;
    holds("/task/state", "done".into())
}

fn crash_sample(workspace: &Workspace, seen: &mut TestOutput) -> anyhow::Result<()> {
    for (backend, ledger, sample) in CRASH_SAMPLES {
        let mut command = Command::new(workspace.built("debug", programs::CRASH_MATRIX));
        command.current_dir(workspace.root()).args(["--backend", backend, "--ledger", ledger, "--sample", sample]);
        let status = process::run_lines(command, CRASH_LIMIT, &mut |stream, line| match stream {
            Stream::Out => println!("{line}"),
            Stream::Err => eprintln!("{line}"),
        })?;
        let needs_nothing = *backend == programs::EMBEDDED && *ledger == SQLITE;
        if status.code() == Some(MISSING) && !needs_nothing {
            seen.skipped.push(format!("crash points with {backend} and {ledger}: not installed"));
        } else {
            ensure!(status.success(), "the crash matrix with {backend} and {ledger} failed ({status})");
        }
    }
    Ok(())
}

/// A machine is booted and Fettle installed on it; skips where there can be no machine.
fn platform(workspace: &Workspace, extent: Extent, seen: &mut TestOutput) -> anyhow::Result<()> {
    needs::offer(&["debootstrap", "systemd-container"]);
    let log = workspace.built("", "skipped-tests.log");
    fs_err::write(&log, "")?;
    let mut command = Command::new(workspace.built("debug", programs::PLATFORM));
    command.args(["tell", "--systemd"]).arg(workspace.root().join("systemd"));
    command.arg("--cache").arg(workspace.built("", "fettle-test-cache/machine")).env(SKIP_LOG, &log);
    let limit = match extent {
        Extent::Platform => {
            command.arg("--full");
            PLATFORM_LIMIT
        }
        Extent::Quick | Extent::Usual => INSTALLED_LIMIT,
    };
    let status = process::run_lines(command, limit, &mut |stream, line| match stream {
        Stream::Out => println!("{line}"),
        Stream::Err => eprintln!("{line}"),
    })?;
    seen.add_log(&fs_err::read_to_string(&log)?);
    ensure!(status.success() || status.code() == Some(SKIPPED), "the installation did not hold ({status})");
    Ok(())
}

fn skipped_line(skipped: &[String]) -> String {
    if skipped.is_empty() {
        "skipped: 0".to_owned()
    } else {
        format!("skipped: {} ({})", skipped.len(), skipped.join("; "))
    }
}

#[derive(Default)]
struct Report {
    stages: Vec<Stage>,
}

struct Stage {
    name: &'static str,
    elapsed: Duration,
    failure: Option<String>,
}

impl Report {
    /// Runs a stage and tells its time; whether it succeeded.
    fn stage(&mut self, name: &'static str, work: impl FnOnce() -> anyhow::Result<()>) -> bool {
        println!("\n== {name}");
        let start = Instant::now();
        let failure = work().err().map(|error| format!("{error:#}"));
        let elapsed = start.elapsed();
        match &failure {
            None => println!("== {name}: ok, {:.1} s", elapsed.as_secs_f64()),
            Some(why) => println!("== {name}: FAILED, {:.1} s: {why}", elapsed.as_secs_f64()),
        }
        self.stages.push(Stage { name, elapsed, failure });
        self.stages.last().is_some_and(|stage| stage.failure.is_none())
    }

    fn all_succeeded(&self) -> bool {
        self.stages.iter().all(|stage| stage.failure.is_none())
    }

    fn table(&self) -> String {
        let mut table = format!("{:<14}{:>9}  result\n", "stage", "seconds");
        for Stage { name, elapsed, failure } in &self.stages {
            let result = failure.as_ref().map_or("ok".to_owned(), |why| format!("FAILED: {why}"));
            table += &format!("{name:<14}{:>9.1}  {result}\n", elapsed.as_secs_f64());
        }
        let total: Duration = self.stages.iter().map(|stage| stage.elapsed).sum();
        table + &format!("{:<14}{:>9.1}", "total", total.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failed_stage_fails_the_whole_and_the_table_says_why() {
        let mut report = Report::default();
        assert!(report.stage("first", || Ok(())));
        assert!(!report.stage("second", || bail!("it broke")));
        assert!(!report.all_succeeded());
        let table = report.table();
        assert!(table.contains("first") && table.contains("FAILED: it broke") && table.contains("total"), "{table}");
    }

    #[test]
    fn a_demo_passes_only_when_it_says_so() {
        let line = |draft: bool, comments: u8| {
            let pull = format!(r#"{{"number":2,"draft":{draft}}}"#);
            format!(
                r#"{{"pull_request":{pull},"proof":{{"proven":true}},"comments":{comments},"task":{{"state":"done"}}}}"#
            )
        };
        assert!(judge_demo(&line(false, 1)).is_ok());
        assert!(judge_demo(&line(true, 1)).is_err());
        assert!(judge_demo(&line(false, 2)).is_err());
        assert!(judge_demo("done").is_err());
    }

    #[test]
    fn skips_are_counted_with_their_reasons() {
        assert_eq!(skipped_line(&[]), "skipped: 0");
        assert_eq!(skipped_line(&["a".into(), "b".into()]), "skipped: 2 (a; b)");
    }
}
