//! `fettle-demo`: watch an issue become a proven pull request, without network, service or account.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;
use fettle_tests::demo::{Stage, Teller, play};
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

/// What a shell expects of a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

/// Starts a forge emulator, a scripted model and `fettle up` in a temporary folder, and shows how an issue becomes a
/// proven pull request. Nothing outside of this machine is contacted, and nothing stays.
#[derive(Parser)]
#[command(version)]
struct Flags {
    /// The last line of standard output is what came of it, as JSON
    #[arg(long)]
    json: bool,
    /// Everything keeps running until Ctrl-C, to look around
    #[arg(long)]
    keep: bool,
    /// The port that Fettle listens on; 0 takes a free one
    #[arg(long, default_value_t = 0)]
    port: u16,
}

#[tokio::main]
async fn main() -> ExitCode {
    let flags = Flags::parse();
    run(&flags).await.unwrap_or_else(|error| complain(&error))
}

async fn run(flags: &Flags) -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut stopped = std::pin::pin!(async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    });
    let stage = tokio::select! {
        stage = Stage::set(flags.port) => stage?,
        () = &mut stopped => return Ok(ExitCode::from(INTERRUPTED)),
    };
    let mut teller = Teller::default();
    let played = tokio::select! {
        played = play(&stage, &mut teller) => played.map(Some),
        () = &mut stopped => Ok(None),
    };
    if flags.keep && matches!(played, Ok(Some(_))) {
        teller.line(&format!("\n{}", stage.next()))?;
        stopped.await;
    }
    let log = stage.log();
    let struck = tokio::task::spawn_blocking(|| stage.strike()).await?;
    let code = match &played {
        Ok(Some(end)) => {
            if flags.json {
                teller.line(&end.to_string())?;
            }
            if is_proven(end) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Ok(None) => ExitCode::from(INTERRUPTED),
        Err(error) => complain(error),
    };
    if code == ExitCode::FAILURE {
        let _ = writeln!(std::io::stderr(), "\nthe last of Fettle's log:\n{log}");
    }
    struck?;
    Ok(code)
}

/// There is a pull request, it is no draft, and its proof holds.
fn is_proven(end: &Value) -> bool {
    end["pull_request"]["number"].is_u64() && end["pull_request"]["draft"] == false && end["proof"]["proven"] == true
}

fn complain(error: &anyhow::Error) -> ExitCode {
    // If standard error is gone too, the exit code says it all.
    let _ = writeln!(std::io::stderr(), "fettle-demo: {error:#}");
    ExitCode::FAILURE
}
