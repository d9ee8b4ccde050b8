//! Rounds of measurements, and the figures they become.

use std::io::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use camino::Utf8Path;
use fettle_test_kit::measure::process::{load_average, resident_bytes};
use fettle_test_kit::measure::report::{Figure, Report, Target};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::ways::{Way, Ways};

const CALLERS: usize = 32;
const OPEN_STREAMS: usize = 1_000;
/// Files that this process needs for them, and for everything else.
const OPEN_FILES: u64 = 4_096;
const PACED_PIECES: u32 = 100;
const TORRENT_PIECES: u32 = 2_000;
/// Connections, caches and branch predictors are warm when the clock starts.
const WARM_UP: usize = 100;

#[derive(Clone, Copy)]
struct Extent {
    rounds: usize,
    requests: usize,
    time: Duration,
    first_pieces: usize,
}

const WHOLE: Extent = Extent { rounds: 7, requests: 1_000, time: Duration::from_secs(2), first_pieces: 40 };
const QUICK: Extent = Extent { rounds: 3, requests: 300, time: Duration::from_secs(1), first_pieces: 10 };

/// One value for each round.
#[derive(Default)]
struct Seen {
    added_p50: Vec<f64>,
    added_p99: Vec<f64>,
    nginx_added_p50: Vec<f64>,
    rate: Vec<f64>,
    rate_by_nginx: Vec<f64>,
    cpu_by_nginx: Vec<f64>,
    first_piece: Vec<f64>,
    piece: Vec<f64>,
    torrent_piece: Vec<f64>,
}

pub(crate) fn measure(quick: bool, json: Option<&Utf8Path>) -> anyhow::Result<()> {
    let extent = if quick { QUICK } else { WHOLE };
    let load = load_average()?;
    allow_files()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (seen, bytes, notes) = runtime.block_on(all(extent))?;
    let report = Report::new("gateway", load, figures(seen, bytes), notes)?;
    writeln!(std::io::stdout(), "{}", report.table())?;
    json.map_or(Ok(()), |file| report.write(file))
}

async fn all(extent: Extent) -> anyhow::Result<(Seen, f64, Vec<String>)> {
    let folder = tempfile::tempdir()?;
    let path = Utf8Path::from_path(folder.path()).context("the folder of temporary files has a name of UTF-8")?;
    let ways = Ways::start(path).await?;
    let mut seen = Seen::default();
    for way in [Some(&ways.direct), Some(&ways.fettle), ways.nginx.as_ref()].into_iter().flatten() {
        way.caller.latencies(WARM_UP).await?;
    }
    for _ in 0..extent.rounds {
        round(&ways, extent, &mut seen).await?;
    }
    let open = ways.fettle.caller.open(OPEN_STREAMS).await?;
    let bytes = resident_bytes(ways.fettle.process.id())? as f64;
    drop(open);
    let mut notes = vec![
        "TensorZero and LiteLLM are not measured yet".to_owned(),
        "\"by nginx\" compares time on a CPU for a request; it does not see what else this machine does".to_owned(),
    ];
    if ways.nginx.is_none() {
        notes.push("this machine has no nginx".to_owned());
    }
    Ok((seen, bytes, notes))
}

async fn round(ways: &Ways, extent: Extent, seen: &mut Seen) -> anyhow::Result<()> {
    let Ways { direct, fettle, nginx } = ways;
    let mut alone = direct.caller.latencies(extent.requests).await?;
    let mut through = fettle.caller.latencies(extent.requests).await?;
    seen.added_p50.push((quantile(&mut through, 0.5) - quantile(&mut alone, 0.5)) / 1e3);
    seen.added_p99.push((quantile(&mut through, 0.99) - quantile(&mut alone, 0.99)) / 1e3);
    let (rate, cpu) = crowd(fettle, extent.time).await?;
    seen.rate.push(rate);
    if let Some(nginx) = nginx {
        let mut through = nginx.caller.latencies(extent.requests).await?;
        seen.nginx_added_p50.push((quantile(&mut through, 0.5) - quantile(&mut alone, 0.5)) / 1e3);
        let (its_rate, its_cpu) = crowd(nginx, extent.time).await?;
        seen.rate_by_nginx.push(rate / its_rate);
        seen.cpu_by_nginx.push(its_cpu / cpu);
    }
    let mut firsts = [Vec::new(), Vec::new()];
    for _ in 0..extent.first_pieces {
        firsts[0].push(direct.caller.first_piece().await?);
        firsts[1].push(fettle.caller.first_piece().await?);
    }
    let [mut alone, mut through] = firsts;
    seen.first_piece.push(quantile(&mut through, 0.99) / quantile(&mut alone, 0.99));
    let mut alone = direct.caller.pieces(PACED_PIECES).await?;
    let mut through = fettle.caller.pieces(PACED_PIECES).await?;
    seen.piece.push(quantile(&mut through, 0.5) - quantile(&mut alone, 0.5));
    let (alone, through) = (direct.caller.torrent(TORRENT_PIECES).await?, fettle.caller.torrent(TORRENT_PIECES).await?);
    seen.torrent_piece.push((through - alone) * 1e6 / f64::from(TORRENT_PIECES));
    Ok(())
}

/// Requests a second, and seconds on a CPU for each.
async fn crowd(way: &Way, time: Duration) -> anyhow::Result<(f64, f64)> {
    let before = way.cpu()?;
    let answered = way.caller.crowd(CALLERS, time).await? as f64;
    Ok((answered / time.as_secs_f64(), (way.cpu()? - before) / answered))
}

fn figures(seen: Seen, bytes: f64) -> Vec<Figure> {
    let (most, least) = (|bound| Some(Target::AtMost(bound)), |bound| Some(Target::AtLeast(bound)));
    vec![
        Figure::new("added to a request, median", "ms", most(0.2), seen.added_p50),
        Figure::new("added to a request, p99", "ms", most(0.9), seen.added_p99),
        Figure::of("nginx adds to a request, median", "ms", None, seen.nginx_added_p50),
        Figure::new("requests a second, 32 callers", "1/s", None, seen.rate),
        Figure::of("requests a second, by nginx", "x", least(0.4), seen.rate_by_nginx),
        Figure::of("requests a CPU second, by nginx", "x", least(0.4), seen.cpu_by_nginx),
        Figure::missing("requests a second, by TensorZero", "x", least(2.0)),
        Figure::new("first piece of a stream, p99, by direct", "x", most(1.05), seen.first_piece),
        Figure::new("added to a piece of a paced stream", "us", most(20.0), seen.piece),
        Figure::new("added to a piece of an unpaced stream", "us", most(20.0), seen.torrent_piece),
        Figure::new("memory with 1,000 open streams", "MB", most(150.0), vec![bytes / 1e6]),
    ]
}

fn quantile(values: &mut [f64], quantile: f64) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index within the list")]
    let at = (quantile * (values.len() - 1) as f64).round() as usize;
    values[at]
}

fn allow_files() -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let current = limit.maximum.map_or(OPEN_FILES, |most| most.min(OPEN_FILES));
    setrlimit(Resource::Nofile, Rlimit { current: Some(current.max(limit.current.unwrap_or(0))), ..limit })?;
    Ok(())
}
