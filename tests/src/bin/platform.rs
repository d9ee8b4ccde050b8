//! `platform`: the appliance on a whole machine, from its installation to the last trace of it.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a developer's tool speaks through the terminal")]

use std::process::ExitCode;

use camino::Utf8PathBuf;
use clap::{Parser, Subcommand};
use fettle_tests::platform::{Depth, Root, hammer, play, tell};
use fettle_tests::skip::skip;

/// Nothing was tried: no root, or no Debian to boot.
const MISSING: u8 = 77;

#[derive(Parser)]
#[command(version)]
struct Flags {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Boot a machine, install Fettle on it, and do to it what happens in a year
    Tell {
        /// The repository's folder of units
        #[arg(long)]
        systemd: Utf8PathBuf,
        /// Where the archive of the Debian root is kept
        #[arg(long)]
        cache: Utf8PathBuf,
        /// Everything; else the part that fits into every test run
        #[arg(long)]
        full: bool,
        /// Leave the machine's folder for a look
        #[arg(long)]
        keep: bool,
    },
    /// Forge and model for a machine; started by `tell`
    #[command(hide = true)]
    Stage,
    /// Clients of a machine; started by `tell`
    #[command(hide = true)]
    Hammer {
        #[arg(long)]
        address: String,
        #[arg(long)]
        per_second: u32,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Flags::parse().command {
        Command::Tell { systemd, cache, full, keep } => {
            let depth = if full { Depth::Full } else { Depth::Quick };
            match tokio::task::spawn_blocking(move || whole(&systemd, &cache, depth, keep)).await {
                Ok(Ok(code)) => return code,
                Ok(Err(error)) => Err(error),
                Err(error) => Err(error.into()),
            }
        }
        Command::Stage => play().await,
        Command::Hammer { address, per_second } => hammer(&address, per_second).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn whole(systemd: &camino::Utf8Path, cache: &camino::Utf8Path, depth: Depth, keep: bool) -> anyhow::Result<ExitCode> {
    let root = match Root::provide(cache)? {
        Ok(root) => root,
        Err(missing) => {
            skip(&format!("the appliance on a whole machine: {}", missing.0));
            return Ok(ExitCode::from(MISSING));
        }
    };
    let own = Utf8PathBuf::try_from(std::env::current_exe()?)?;
    let folder = tempfile::Builder::new().prefix("fettle-platform-").tempdir()?;
    let place = Utf8PathBuf::try_from(folder.path().to_owned())?;
    let told = tell(&root, &place, systemd, &own, depth);
    if keep {
        println!("kept: {}", folder.keep().display());
    }
    let tale = told?;
    println!("{} steps held", tale.steps.len());
    Ok(ExitCode::SUCCESS)
}
