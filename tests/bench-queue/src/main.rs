//! `bench-queue`: measures the ledger as a queue, beside what the disk can do and beside other queues of the same minute.
//! `cargo xtask bench queue` builds and starts it.
//!
//! A figure is judged against another one of the same run, because the machine's own speed is no merit. Nothing here asserts a
//! time: a missed target is printed as missed, and only a lost job or a broken program is a failure.

mod backlog;
mod callers;
mod figures;
mod fill;
mod latency;
mod ledger;
mod peers;
mod recovery;
mod rounds;
mod streams;
mod wait;

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use camino::Utf8PathBuf;
use clap::Parser;

use peers::Peer;
use rounds::Extent;

/// Prints a table of targets and figures. A missed target is no failure of the benchmark; a lost job is.
#[derive(Parser)]
#[command(version)]
struct Flags {
    /// Two rounds instead of five, a backlog of 100,000 jobs instead of a million, nothing of the real programs; below three
    /// minutes
    #[arg(long)]
    quick: bool,
    /// Which others to measure beside; one that is not measured is printed as missing
    #[arg(long, value_delimiter = ',', num_args = 0.., default_values_t = Peer::ALL)]
    peers: Vec<Peer>,
    /// Where state lies meanwhile, on a disk; default: beside this program
    #[arg(long)]
    folder: Option<Utf8PathBuf>,
    /// Also write the figures, round by round, to this file
    #[arg(long)]
    json: Option<Utf8PathBuf>,
}

/// Twice what it takes, the first build of apalis included: what takes longer hangs.
const LIMIT: Duration = Duration::from_secs(30 * 60);

#[tokio::main]
async fn main() -> ExitCode {
    let flags = Flags::parse();
    let measured = tokio::time::timeout(LIMIT, measure(&flags)).await;
    match measured.unwrap_or_else(|_| bail!("it took longer than {LIMIT:?}")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If standard error is gone too, the exit code says it all.
            let _ = writeln!(std::io::stderr(), "bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn measure(flags: &Flags) -> anyhow::Result<()> {
    let folder = match &flags.folder {
        Some(folder) => camino::absolute_utf8(folder)?,
        None => {
            let own = Utf8PathBuf::try_from(std::env::current_exe().context("while looking for this executable")?)?;
            own.parent().context("an executable lies in a folder")?.to_owned()
        }
    };
    let extent = if flags.quick { Extent::Quick } else { Extent::Whole };
    let report = rounds::measure(&folder, extent, &flags.peers).await?.and(recovery::measure(&folder, extent).await?);
    writeln!(std::io::stdout(), "{}", report.table())?;
    flags.json.as_ref().map_or(Ok(()), |file| report.write(file))
}
