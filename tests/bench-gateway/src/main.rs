//! `bench-gateway`: what the gateway adds to a request and to a piece of a stream, how many requests it passes, and what open
//! streams cost, beside the same without it and beside nginx. `cargo xtask bench gateway` builds and starts it.
//!
//! Each round asks all ways one after the other; ratios of a round count, their median is judged. A missed target is printed as
//! missed and is no failure.

mod callers;
mod clock;
mod roles;
mod rounds;
mod ways;

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;

use camino::Utf8PathBuf;
use clap::{Parser, Subcommand};

/// Prints a table of targets and figures.
#[derive(Parser)]
#[command(version)]
struct Flags {
    /// Three short rounds instead of seven
    #[arg(long)]
    quick: bool,
    /// Also write the figures, round by round, to this file
    #[arg(long)]
    json: Option<Utf8PathBuf>,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What it starts of itself as processes of their own.
#[derive(Subcommand)]
enum Role {
    /// The model's server
    #[command(hide = true)]
    Upstream,
    /// The gateway in front of it
    #[command(hide = true)]
    Gateway { upstream: SocketAddr },
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let done = match flags.role {
        Some(Role::Upstream) => roles::upstream(),
        Some(Role::Gateway { upstream }) => roles::gateway(upstream),
        None => rounds::measure(flags.quick, flags.json.as_deref()),
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
