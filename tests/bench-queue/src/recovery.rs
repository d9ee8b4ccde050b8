//! How soon a Run goes on after its worker is gone. That needs the real programs, so the other benchmark measures it, which
//! lies beside this one when `cargo xtask bench queue` has built it.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use camino::Utf8Path;
use fettle_test_kit::measure::process::load_average;
use fettle_test_kit::measure::report::{Figure, Report, Target};

use crate::rounds::Extent;

const PROGRAM: &str = "bench";
/// It takes two to four minutes.
const LIMIT: Duration = Duration::from_secs(20 * 60);

/// What is missing when nobody measures it.
const FIGURES: [(&str, &str, f64); 4] = [
    ("leased again after kill -9, p50", "s", 32.0),
    ("leased again after kill -9, p99", "s", 35.0),
    ("leased again after SIGTERM, longest", "s", 1.0),
    ("model calls paid again after kill -9, median", "", 1.0),
];

/// Errors when the other benchmark fails: a Task was lost, or done twice.
pub(crate) async fn measure(folder: &Utf8Path, extent: Extent) -> anyhow::Result<Report> {
    let own = std::env::current_exe().context("while looking for this executable")?;
    let program = own.with_file_name(PROGRAM);
    match extent {
        Extent::Quick => missing("leased again: not measured with --quick"),
        Extent::Whole if !program.exists() => missing("leased again: the program `bench` is not beside this one"),
        Extent::Whole => {
            let file = folder.join("recovery.json");
            let mut command = tokio::process::Command::new(&program);
            command.args(["recovery", "--json", file.as_str()]).stdin(Stdio::null()).stdout(Stdio::null());
            let running = command.kill_on_drop(true).status();
            let status = tokio::time::timeout(LIMIT, running).await.context("`bench recovery` takes too long")??;
            ensure!(status.success(), "`bench recovery` ended with {status}");
            let report = Report::read(&file)?;
            fs_err::remove_file(&file)?;
            Ok(report)
        }
    }
}

fn missing(why: &str) -> anyhow::Result<Report> {
    let figures = FIGURES.map(|(name, unit, bound)| Figure::missing(name, unit, Some(Target::AtMost(bound))));
    Report::new("recovery", load_average()?, figures.into(), vec![why.to_owned()])
}
