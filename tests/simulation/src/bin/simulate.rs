//! `cargo xtask simulate`: lives through many histories and names the first seed whose history must not be.

#![expect(clippy::print_stdout, reason = "a developer's tool speaks through the terminal")]

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use clap::Parser;
use clap::builder::RangedU64ValueParser;
use fettle_simulation::{Bug, History, Options, replay_command, run};
use tokio::time::Instant;

/// Threads that live through histories, each its own.
const MOST_THREADS: usize = 16;

#[derive(Parser)]
#[command(name = "simulate", about = "The durable core in virtual time, under faults drawn from seeds")]
struct Arguments {
    /// How many histories
    #[arg(long, default_value_t = 10_000)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Plant this bug: the histories must then fail
    #[arg(long)]
    bug: Option<Bug>,
    /// So many dashboards share the ledger; one to three as each seed draws when absent
    #[arg(long, value_parser = RangedU64ValueParser::<usize>::new().range(1..=9))]
    dashboards: Option<usize>,
    /// Print what happened in a history that failed, or in the only one
    #[arg(long)]
    trace: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let options = Options { bug: arguments.bug, dashboards: arguments.dashboards, keep_trace: false };
    let (next, tasks) = (AtomicU64::new(arguments.from), AtomicU64::new(0));
    let end = arguments.from.saturating_add(arguments.seeds);
    let failed: Mutex<Option<History>> = Mutex::new(None);
    let began = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get().min(MOST_THREADS));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let history = run(seed, options);
                    tasks.fetch_add(history.tasks as u64, Ordering::Relaxed);
                    if !history.breaches.is_empty() {
                        let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                        if failed.as_ref().is_none_or(|known| seed < known.seed) {
                            *failed = Some(history);
                        }
                        // Those that are under way end; no more begin.
                        next.fetch_max(end, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let took = began.elapsed().as_secs_f64();
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    let tasks = tasks.load(Ordering::Relaxed);
    if let Some(history) = failed {
        let seed = history.seed;
        if arguments.trace {
            for line in run(seed, Options { keep_trace: true, ..options }).trace {
                println!("{line}");
            }
        }
        println!("seed {seed} failed:");
        for breach in &history.breaches {
            println!("  {breach}");
        }
        println!("again, with what happened: {}", replay_command(seed, options));
        return ExitCode::FAILURE;
    }
    if arguments.trace && arguments.seeds == 1 {
        for line in run(arguments.from, Options { keep_trace: true, ..options }).trace {
            println!("{line}");
        }
    }
    let rate = arguments.seeds as f64 / took;
    println!("{} histories of {tasks} Tasks held, in {took:.1} s: {rate:.0} a second", arguments.seeds);
    ExitCode::SUCCESS
}
