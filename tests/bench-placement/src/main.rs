//! `bench-placement`: measures the planner against other policies on simulated machines, against the best packing there is, and
//! against the clock. `cargo xtask bench placement` builds and starts it.
//!
//! All but the time of a decision is the same on every machine: traces and machines come from seeds, and each round has its own.
//! A missed target is printed as missed and is no failure.

mod memory;
mod packing;
mod speed;
mod waits;

use std::io::Write as _;
use std::process::ExitCode;

use camino::Utf8PathBuf;
use clap::Parser;
use fettle_test_kit::measure::process::load_average;
use fettle_test_kit::measure::report::Report;

/// Prints a table of targets and figures.
#[derive(Parser)]
#[command(version)]
struct Flags {
    /// Three rounds instead of seven, and a tenth of the loads
    #[arg(long)]
    quick: bool,
    /// Also write the figures, round by round, to this file
    #[arg(long)]
    json: Option<Utf8PathBuf>,
}

/// How much of everything.
#[derive(Clone, Copy)]
struct Extent {
    rounds: u64,
    /// Random cases of packing, over all rounds.
    cases: u64,
    /// Simulated loads that may run out of memory, over all rounds.
    loads: u64,
}

const WHOLE: Extent = Extent { rounds: 7, cases: 1000, loads: 100_000 };
const QUICK: Extent = Extent { rounds: 3, cases: 150, loads: 10_000 };

fn main() -> ExitCode {
    match measure(&Flags::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If standard error is gone too, the exit code says it all.
            let _ = writeln!(std::io::stderr(), "bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(flags: &Flags) -> anyhow::Result<()> {
    let extent = if flags.quick { QUICK } else { WHOLE };
    let load = load_average()?;
    let (mut figures, mut notes) = waits::figures(extent);
    for (more_figures, more_notes) in [packing::figures(extent), memory::figures(extent), speed::figures(extent)] {
        figures.extend(more_figures);
        notes.extend(more_notes);
    }
    let report = Report::new("placement", load, figures, notes)?;
    writeln!(std::io::stdout(), "{}", report.table())?;
    flags.json.as_ref().map_or(Ok(()), |file| report.write(file))
}

/// `of / by`, for people.
fn ratio(of: u64, by: u64) -> f64 {
    of as f64 / by.max(1) as f64
}
