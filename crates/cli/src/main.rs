//! `fettle`: everything in one process, and the commands of people.

mod admin;
mod carry;
mod check_config;
mod client;
mod doctor;
mod fix;
mod follow;
mod gpus;
mod inference_process;
mod journal;
mod log;
mod models;
mod progress;
mod served;
mod snapshot;
mod submit;
mod table;
mod tasks;
mod up;
mod usage;
mod users;
mod wire;
mod workers;

use std::process::ExitCode;

use camino::Utf8PathBuf;
use clap::{Parser, Subcommand};
use fettle_runtime::environment::Environment;
use fettle_runtime::install_tls;

/// The heading of what every command takes in its help.
const GLOBAL: &str = "Which Fettle";
const FIX_STATUS: &str = "Exit status: 0 when the fix is proven, 3 when there is a fix without proof, 4 when there is none, \
2 for wrong usage, 1 when something failed.";
const SUBMIT_STATUS: &str = "Exit status with --wait: 0 when a pull request with proof was made (or the probe passed), 3 when it \
is a draft, 4 when there is no patch, 2 for wrong usage, 1 when something failed.";

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
    /// The configuration file; without one, the built-in configuration.
    #[arg(long, global = true, value_name = "FILE", help_heading = GLOBAL)]
    config: Option<Utf8PathBuf>,
    /// Where state is kept; default: store.data_dir, else $STATE_DIRECTORY, else fettle in the user's state folder.
    #[arg(long, global = true, value_name = "FOLDER", help_heading = GLOBAL)]
    data_dir: Option<Utf8PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Run everything in one process: webhooks, API, ledger, publisher and workers.
    Up,
    /// Fix one issue in a local repository, without any forge.
    #[command(after_help = FIX_STATUS)]
    Fix(fix::Flags),
    /// Ask the running Fettle to work on an issue.
    #[command(after_help = SUBMIT_STATUS)]
    Submit(submit::Flags),
    /// List the Tasks of the running Fettle, newest first.
    Tasks(tasks::ListFlags),
    /// Look at one Task, follow it, cancel it or try it again.
    Task(tasks::TaskFlags),
    /// Show this machine's GPUs: memory, load, health, and who has what of them.
    Gpus(gpus::GpuFlags),
    /// Show the models that this machine runs, with their engines; bring models here, look at their logs.
    Models(models::Flags),
    /// Say why each model is where it is, and why a request waits.
    Placements(gpus::PlacementFlags),
    /// Show what models were used for: requests, tokens, GPU seconds, energy.
    Usage(usage::Flags),
    /// In a cluster: the pods that workers run in, and what they have logged.
    Workers(workers::Flags),
    /// For operators: jobs that were given up, the audit, accounts, the audit log, and moving the ledger.
    Admin(admin::Flags),
    /// Check whether this machine can do the work, and say what to do where it cannot.
    #[command(after_help = "Exit status: 0 when no check fails, 1 when one does.")]
    Doctor(doctor::Flags),
    /// Check a configuration file without starting anything.
    #[command(after_help = "Exit status: 0 when the file is accepted, 1 when it is refused.")]
    CheckConfig(check_config::Flags),
    /// Copy the ledger into one file, also while Fettle runs.
    Snapshot(snapshot::Flags),
    /// Check that a copy of the ledger is whole.
    #[command(after_help = "Exit status: 0 when it is whole, 1 when it is not or cannot be read.")]
    CheckSnapshot(snapshot::CheckFlags),
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
        Command::Submit(submit) => submit::run(&flags.common, submit, &environment).await,
        Command::Tasks(list) => tasks::list(&flags.common, list, &environment).await,
        Command::Task(task) => tasks::one(&flags.common, task, &environment).await,
        Command::Gpus(gpus) => gpus::gpus(&flags.common, gpus, &environment).await,
        Command::Models(models) => models::run(&flags.common, models, &environment).await,
        Command::Placements(placements) => gpus::placements(&flags.common, placements, &environment).await,
        Command::Usage(usage) => usage::run(&flags.common, usage, &environment).await,
        Command::Workers(workers) => workers::run(&flags.common, workers, &environment).await,
        Command::Admin(admin) => admin::run(&flags.common, admin, &environment).await,
        Command::Doctor(doctor) => doctor::run(&flags.common, doctor, &environment).await,
        Command::CheckConfig(check) => check_config::run(check, &environment),
        Command::Snapshot(snapshot) => snapshot::run(&flags.common, snapshot, &environment).await,
        Command::CheckSnapshot(check) => snapshot::check(check).await,
    };
    ended.unwrap_or_else(|error| {
        if !progress::is_closed_pipe(&error) {
            progress::complain(&error);
        }
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_arguments_of_all_commands_fit_together() {
        Flags::command().debug_assert();
    }
}
