//! What Fettle costs when nothing happens: its start, its memory, its time on a CPU.

use std::time::Duration;

use anyhow::Context as _;
use camino::Utf8Path;
use fettle_test_kit::measure::home;
use fettle_test_kit::measure::process::{cpu_time, load_average, resident_bytes};
use fettle_test_kit::measure::report::{Figure, Report, Target};
use tokio::time::sleep;

use super::server::Server;

/// Enough for a median.
const STARTS: usize = 10;
/// As long as the figures promise.
const IDLE: Duration = Duration::from_secs(10);
const MEBIBYTE: f64 = 1024.0 * 1024.0;

/// Starts `fettle up` without a configuration, again and again, and then leaves one alone. State lies below `folder`.
pub async fn idle(folder: &Utf8Path) -> anyhow::Result<Report> {
    let load = load_average()?;
    let (mut first, mut again) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let own = home(folder)?;
        let home = Utf8Path::from_path(own.path()).context("a folder's name is text")?;
        for times in [&mut first, &mut again] {
            let server = Server::start(home, None).await?;
            times.push(server.ready_after.as_secs_f64() * 1000.0);
            server.stop().await?;
        }
    }

    let own = home(folder)?;
    let home = Utf8Path::from_path(own.path()).context("a folder's name is text")?;
    let server = Server::start(home, None).await?;
    sleep(IDLE).await;
    let resident = resident_bytes(server.pid())? as f64 / MEBIBYTE;
    let before = cpu_time(server.pid())?;
    sleep(IDLE).await;
    let used = cpu_time(server.pid())?.saturating_sub(before);
    server.stop().await?;

    let figures = vec![
        Figure::new("first start until /readyz, with an empty folder", "ms", Some(Target::AtMost(300.0)), first),
        Figure::new("later start until /readyz", "ms", Some(Target::AtMost(300.0)), again),
        Figure::new(
            "VmRSS after 10 s without work",
            "MiB",
            Some(Target::AtMost(60.0 * 1e6 / MEBIBYTE)),
            vec![resident],
        ),
        Figure::new("CPU time in 10 s without work", "ms", None, vec![used.as_secs_f64() * 1000.0]),
    ];
    Report::new("idle", load, figures, Vec::new())
}
