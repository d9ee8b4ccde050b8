//! `crash-matrix`: kills the real programs at every point that must survive it, and tells what was left.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a developer's tool speaks through the terminal")]

use std::process::ExitCode;
use std::time::Duration;

use camino::Utf8PathBuf;
use clap::Parser;
use fettle_app::ports::clock::IdSource as _;
use fettle_runtime::system::RandomIds;
use fettle_tests::crash::{self, Backend, Calm, Case, Harm, On, Row};
use futures::StreamExt as _;
use tokio::time::Instant;

const VIOLATED: u8 = 1;
/// Neither held nor violated.
const MISSING: u8 = 2;

/// Kills dashboard, worker and `fettle up` at their crash points, starts them again and checks what is left.
///
/// Exit status: 0 all held, 1 a violation, 2 nothing was tried: no such backend or point, or programs without crash
/// points.
#[derive(Parser)]
#[command(version)]
struct Flags {
    /// What stands between dashboard and worker: embedded (nothing), redis or rabbitmq
    #[arg(long, default_value = "embedded")]
    backend: String,
    /// Where the ledger is: sqlite or postgres; a server of its own for each case
    #[arg(long, default_value = "sqlite")]
    ledger: String,
    /// Only these points or scenarios, as C9,C18,C28
    #[arg(long, value_delimiter = ',', conflicts_with = "sample")]
    points: Vec<String>,
    /// So many cases, drawn by the seed
    #[arg(long)]
    sample: Option<usize>,
    /// Draws the sample, and which passing of a point kills; another one each time when absent
    #[arg(long)]
    seed: Option<u64>,
    /// Also each passing of a point, `fettle up` at all points, recoveries that die as well, and faults under many Tasks
    #[arg(long)]
    full: bool,
    /// Faults under many Tasks, round after round with new seeds, until so many Tasks were in flight at one
    #[arg(long, conflicts_with_all = ["sample", "full"])]
    faulted: Option<usize>,
    /// Writes the rows as JSON
    #[arg(long)]
    report: Option<Utf8PathBuf>,
    /// Cases at a time
    #[arg(long, default_value_t = 2)]
    jobs: usize,
}

#[tokio::main]
async fn main() -> ExitCode {
    let flags = Flags::parse();
    let backend = match crash::armable() {
        Ok(()) => Backend::named(&flags.backend, &flags.ledger).await,
        Err(error) => Err(error),
    };
    let backend = match backend {
        Ok(backend) => backend,
        Err(error) => {
            eprintln!("crash-matrix: {error:#}");
            return ExitCode::from(MISSING);
        }
    };
    run(&flags, &backend).await.unwrap_or_else(|error| {
        eprintln!("crash-matrix: {error:#}");
        ExitCode::from(VIOLATED)
    })
}

async fn run(flags: &Flags, backend: &Backend) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    let calm = crash::calm().await?;
    println!("undisturbed: {} model calls, {:.1} s\n", calm.model_calls, began.elapsed().as_secs_f64());
    let on = On { broker: backend.has_broker(), database: backend.has_database() };
    let seed = flags.seed.unwrap_or_else(|| RandomIds.uuid().as_u64_pair().1);
    let cases = match chosen(flags, &calm, on, seed) {
        Ok(cases) => cases,
        Err(error) => {
            eprintln!("crash-matrix: {error:#}");
            return Ok(ExitCode::from(MISSING));
        }
    };
    println!("{:<64}{:>8}{:>7}{:>9}  {:<42}{:<9}recovered", "case", "again", "twice", "took", "effects", "verdict");
    let rows = match flags.faulted {
        Some(wanted) => until_faulted(wanted, flags, on, seed, &calm, backend).await?,
        None => all(&cases, flags.jobs, &calm, backend).await,
    };
    let violated = rows.iter().filter(|row| !row.held()).count();
    let took = began.elapsed();
    println!("\n{} cases, {violated} violated, {:.1} s", rows.len(), took.as_secs_f64());
    summarize(&rows, took);
    if let Some(file) = &flags.report {
        fs_err::write(file, serde_json::to_string_pretty(&rows)?)?;
    }
    Ok(if violated == 0 { ExitCode::SUCCESS } else { ExitCode::from(VIOLATED) })
}

async fn all(cases: &[Case], jobs: usize, calm: &Calm, backend: &Backend) -> Vec<Row> {
    // A crowd has the machine for itself.
    let (crowds, single): (Vec<&Case>, Vec<&Case>) = cases.iter().partition(|case| case.is_crowd());
    let mut rows = Vec::new();
    for (cases, jobs) in [(single, jobs.max(1)), (crowds, 1)] {
        let mut running =
            futures::stream::iter(cases).map(|case| crash::run(case, calm, backend)).buffer_unordered(jobs);
        while let Some(row) = running.next().await {
            tell(&row);
            rows.push(row);
        }
    }
    rows
}

/// Stops at the first round in which something was violated: the rest would say the same.
async fn until_faulted(
    wanted: usize,
    flags: &Flags,
    on: On,
    seed: u64,
    calm: &Calm,
    backend: &Backend,
) -> anyhow::Result<Vec<Row>> {
    let (mut rows, mut round): (Vec<Row>, u64) = (Vec::new(), 0);
    let faulted = |rows: &[Row]| rows.iter().map(|row| row.faulted).sum::<usize>();
    while faulted(&rows) < wanted && rows.iter().all(Row::held) {
        let mut cases = crash::crowds(on, seed.wrapping_add(round));
        if !flags.points.is_empty() {
            cases = crash::named_cases(cases, &flags.points)?;
        }
        for case in cases {
            let row = crash::run(&case, calm, backend).await;
            tell(&row);
            rows.push(row);
            if faulted(&rows) >= wanted {
                break;
            }
        }
        round += 1;
    }
    Ok(rows)
}

/// What was seen of all Tasks that were in flight at a fault, and of the calls that a crash made pay again.
fn summarize(rows: &[Row], took: Duration) {
    let (faulted, at_work) =
        rows.iter().fold((0, 0), |(faulted, at_work), row| (faulted + row.faulted, at_work + row.at_work));
    let mut harm = Harm::default();
    rows.iter().for_each(|row| harm += row.harm);
    let Harm { lost, second_pulls, second_pushes, comment_copies } = harm;
    println!(
        "faulted Tasks: {faulted} ({at_work} of them at work), lost {lost}, second pull requests {second_pulls}, \
         second pushes {second_pushes}, comment copies {comment_copies}"
    );
    if faulted > 0 {
        let hours = took.as_secs_f64() / 3600.0 * 10_000.0 / faulted as f64;
        println!("at this rate, 10,000 faulted Tasks take {hours:.1} h");
    }
    let mut paid: Vec<usize> = rows.iter().filter(|row| row.faulted == 1).map(|row| row.paid_twice).collect();
    paid.sort_unstable();
    if let Some(most) = paid.last() {
        println!("model calls paid again after a crash: median {}, at most {most}", paid[paid.len() / 2]);
    }
}

fn chosen(flags: &Flags, calm: &Calm, on: On, seed: u64) -> anyhow::Result<Vec<Case>> {
    let all = match (flags.full, flags.faulted) {
        (true, _) => crash::full_plan(&calm.steps, on, seed),
        (_, Some(_)) => crash::crowds(on, seed),
        _ => crash::every_case(&calm.steps, on),
    };
    match (flags.points.as_slice(), flags.sample) {
        ([], None) => Ok(all),
        ([], Some(count)) => {
            println!("--sample {count} --seed {seed}");
            crash::sample(all, &calm.steps, count, seed)
        }
        (names, _) => crash::named_cases(all, names),
    }
}

fn tell(row: &Row) {
    let again = row.again_ms.map_or("-".to_owned(), |ms| format!("{ms} ms"));
    let (took, verdict) =
        (format!("{:.1} s", row.took_ms as f64 / 1000.0), if row.held() { "held" } else { "VIOLATED" });
    let Row { case, paid_twice, effects, recovered, .. } = row;
    println!("{case:<64}{again:>8}{paid_twice:>7}{took:>9}  {effects:<42}{verdict:<9}{}", recovered.join("; then "));
    for breach in &row.breaches {
        println!("    {breach}");
    }
}
