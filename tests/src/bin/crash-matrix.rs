//! `crash-matrix`: kills the real programs at every point that must survive it, and tells what was left.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a developer's tool speaks through the terminal")]

use std::process::ExitCode;

use camino::Utf8PathBuf;
use clap::Parser;
use fettle_app::ports::clock::IdSource as _;
use fettle_runtime::system::RandomIds;
use fettle_tests::crash::{self, Backend, Calm, Case, On, Row};
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
    /// Also each passing of a point, `fettle up` at all points, and recoveries that die as well
    #[arg(long)]
    full: bool,
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
    let cases = match chosen(flags, &calm, On { broker: backend.has_broker(), database: backend.has_database() }) {
        Ok(cases) => cases,
        Err(error) => {
            eprintln!("crash-matrix: {error:#}");
            return Ok(ExitCode::from(MISSING));
        }
    };
    println!("{:<64}{:>8}{:>7}{:>7}  {:<42}{:<9}recovered", "case", "again", "twice", "took", "effects", "verdict");
    let jobs = flags.jobs.max(1);
    let mut running = futures::stream::iter(&cases).map(|case| crash::run(case, &calm, backend)).buffer_unordered(jobs);
    let mut rows = Vec::new();
    while let Some(row) = running.next().await {
        tell(&row);
        rows.push(row);
    }
    let violated = rows.iter().filter(|row| !row.held()).count();
    println!("\n{} cases, {violated} violated, {:.1} s", rows.len(), began.elapsed().as_secs_f64());
    if let Some(file) = &flags.report {
        fs_err::write(file, serde_json::to_string_pretty(&rows)?)?;
    }
    Ok(if violated == 0 { ExitCode::SUCCESS } else { ExitCode::from(VIOLATED) })
}

fn chosen(flags: &Flags, calm: &Calm, on: On) -> anyhow::Result<Vec<Case>> {
    let all = if flags.full { crash::full_plan(&calm.steps, on) } else { crash::every_case(&calm.steps, on) };
    match (flags.points.as_slice(), flags.sample) {
        ([], None) => Ok(all),
        ([], Some(count)) => {
            let seed = flags.seed.unwrap_or_else(|| RandomIds.uuid().as_u64_pair().1);
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
    println!("{case:<64}{again:>8}{paid_twice:>7}{took:>7}  {effects:<42}{verdict:<9}{}", recovered.join("; then "));
    for breach in &row.breaches {
        println!("    {breach}");
    }
}
