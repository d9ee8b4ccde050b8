//! `bench`: measures the release programs beside it. `cargo xtask bench intake|idle|guard|recovery|api` builds and starts it.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use camino::Utf8PathBuf;
use clap::{Parser, Subcommand};
use fettle_tests::bench::{ApiOptions, IntakeOptions, Report, api, guard, idle, intake, recovery};

/// Prints a table of targets and figures. A missed target is no failure of the benchmark; a lost delivery is.
#[derive(Parser)]
#[command(version)]
struct Flags {
    #[command(subcommand)]
    what: What,
    /// Where state lies meanwhile, on a disk; default: beside this program
    #[arg(long, global = true)]
    folder: Option<Utf8PathBuf>,
    /// Also write the figures, round by round, to this file
    #[arg(long, global = true)]
    json: Option<Utf8PathBuf>,
}

#[derive(Clone, Copy, Subcommand)]
enum What {
    /// From a signed webhook to its durable answer
    Intake {
        /// Rounds that count
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=20))]
        rounds: u8,
    },
    /// Start, memory and CPU time without work
    Idle,
    /// How soon the guard over memory that GPU and host share acts, and whether it acts without need
    Guard,
    /// How soon a Run goes on after its worker is gone, and what is paid again
    Recovery,
    /// The API with many users, live followers and a ledger with a long history
    Api {
        /// With fewer users, followers and events, in a quarter of a minute
        #[arg(long)]
        quick: bool,
    },
}

// One thread: the senders share the machine with the server that they measure.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let flags = Flags::parse();
    let done = measure(&flags).await.and_then(|report| {
        writeln!(std::io::stdout(), "{}", report.table())?;
        flags.json.as_ref().map_or(Ok(()), |file| report.write(file))
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If standard error is gone too, the exit code says it all.
            let _ = writeln!(std::io::stderr(), "bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn measure(flags: &Flags) -> anyhow::Result<Report> {
    let folder = match &flags.folder {
        Some(folder) => camino::absolute_utf8(folder)?,
        None => {
            let own = Utf8PathBuf::try_from(std::env::current_exe().context("while looking for this executable")?)?;
            own.parent().context("an executable lies in a folder")?.to_owned()
        }
    };
    match flags.what {
        What::Intake { rounds } => intake(IntakeOptions { folder: &folder, rounds: rounds.into() }).await,
        What::Idle => idle(&folder).await,
        What::Guard => guard().await,
        What::Recovery => recovery().await,
        What::Api { quick } => api(ApiOptions { folder: &folder, quick }).await,
    }
}
