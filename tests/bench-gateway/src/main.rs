//! `bench-gateway`: measures the gateway beside the model's server alone, and beside other gateways of the same minute.
//! `cargo xtask bench gateway` builds and starts it.
//!
//! A figure is judged against another one of the same run, because the machine's own speed is no merit. A missed target is
//! printed as missed, and only a request that fails or a broken program is a failure.

mod contenders;
mod figures;
mod load;
mod rounds;
mod upstream;

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use camino::Utf8PathBuf;
use clap::Parser;

use contenders::Peer;

/// Prints a table of targets and figures.
#[derive(Parser)]
#[command(version)]
struct Flags {
    /// Two rounds of short measurements instead of five
    #[arg(long)]
    quick: bool,
    /// Which others to measure beside; one that is not measured is printed as missing
    #[arg(long, value_delimiter = ',', num_args = 0.., default_values_t = Peer::ALL)]
    peers: Vec<Peer>,
    /// Also write the figures, round by round, to this file
    #[arg(long)]
    json: Option<Utf8PathBuf>,
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(clap::Subcommand)]
enum Part {
    /// The model's server that is measured through; started by the benchmark itself
    #[command(hide = true)]
    Upstream,
}

/// Twice what it takes with a first download of the peers: what takes longer hangs.
const LIMIT: Duration = Duration::from_secs(30 * 60);

#[tokio::main]
async fn main() -> ExitCode {
    let flags = Flags::parse();
    let done = match flags.part {
        Some(Part::Upstream) => upstream::serve().await,
        None => {
            let measured = tokio::time::timeout(LIMIT, measure(&flags)).await;
            measured.unwrap_or_else(|_| bail!("it took longer than {LIMIT:?}"))
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If standard error is gone too, the exit code says it all.
            let _ = writeln!(std::io::stderr(), "bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn measure(flags: &Flags) -> anyhow::Result<()> {
    let own = Utf8PathBuf::try_from(std::env::current_exe().context("while looking for this executable")?)?;
    let report = rounds::measure(&own, flags.quick, &flags.peers).await?;
    writeln!(std::io::stdout(), "{}", report.table())?;
    flags.json.as_ref().map_or(Ok(()), |file| report.write(file))
}

/// Nanoseconds of the clock that all processes of this machine share.
pub(crate) fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let part = |number: i64| u64::try_from(number).unwrap_or_default();
    part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec)
}
