//! `fettle`: everything in one process, and the commands of people.

mod fix;
mod journal;
mod progress;
mod up;

use std::process::ExitCode;

use camino::Utf8PathBuf;
use clap::{Parser, Subcommand};
use fettle_runtime::environment::Environment;
use fettle_runtime::install_tls;

/// Turns issues into pull requests that carry their own proof.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Flags {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Args)]
struct Common {
    /// The configuration file.
    #[arg(long, global = true)]
    config: Option<Utf8PathBuf>,
    /// Where state is kept; default: the user's state folder.
    #[arg(long, global = true)]
    data_dir: Option<Utf8PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Run everything in one process: webhooks, API, ledger, publisher and workers.
    Up,
    /// Fix one issue in a local repository, without any forge.
    Fix(fix::Flags),
}

#[tokio::main]
async fn main() -> ExitCode {
    install_tls();
    let flags = Flags::parse();
    let environment = Environment::of_process();
    fettle_runtime::arm_crash_point(&environment);
    let ended = match &flags.command {
        Command::Up => up::run(&flags.common, &environment).await.map(|()| ExitCode::SUCCESS),
        Command::Fix(fix) => fix::run(&flags.common, fix, &environment).await,
    };
    ended.unwrap_or_else(|error| {
        progress::complain(&error);
        ExitCode::FAILURE
    })
}
