//! How soon the guard of shared memory acts, and whether it ever acts without need: the real program, a `/proc/meminfo` of ours, and
//! engines that only sleep.

use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use fettle_test_kit::measure::process::load_average;
use fettle_test_kit::measure::report::{Figure, Report, Target};
use tokio::time::{Instant, sleep};

use crate::world::program;

/// The fall that is on record of such machines, in GiB a second.
const FALL: f64 = 14.0;
const FROM_GIB: f64 = 40.0;
/// Where the last rung is.
const KILL_GIB: f64 = 12.0;
const RAMPS: usize = 40;
/// Page cache that comes and goes: `MemFree` near nothing, `MemAvailable` up and down.
const FLOOD: Duration = Duration::from_secs(30);
const STEP: Duration = Duration::from_millis(2);
/// An engine that lives longer was forgotten.
const LIMIT: Duration = Duration::from_secs(10);

/// Errors when an engine outlives a ramp, or one dies without need.
pub async fn guard() -> anyhow::Result<Report> {
    let load = load_average()?;
    let home = tempfile::tempdir()?;
    let root = Utf8PathBuf::try_from(home.path().to_owned())?;
    let (mut late, mut left) = (Vec::new(), Vec::new());
    for nth in 0..RAMPS {
        let folder = root.join(nth.to_string());
        fs_err::create_dir(&folder)?;
        // Not in step with the guard's own looks.
        sleep(Duration::from_millis(37 * (nth as u64 % 7))).await;
        let (late_ms, left_gib) = ramp(&folder).await?;
        late.push(late_ms);
        left.push(left_gib);
    }
    let flood = root.join("flood");
    fs_err::create_dir(&flood)?;
    let killed = without_need(&flood).await?;
    ensure!(killed == 0, "an engine was ended though there was memory");
    let at = |sorted: &[f64], share: f64| sorted[((sorted.len() - 1) as f64 * share) as usize];
    late.sort_unstable_by(f64::total_cmp);
    left.sort_unstable_by(f64::total_cmp);
    let figures = vec![
        Figure::of("ended after 12 GiB were passed, p50", "ms", None, vec![at(&late, 0.5)]),
        Figure::of("ended after 12 GiB were passed, p99", "ms", Some(Target::AtMost(150.0)), vec![at(&late, 0.99)]),
        Figure::of("available at the end of the engine, least", "GiB", Some(Target::AtLeast(8.0)), vec![left[0]]),
        Figure::of("ended without need", "", Some(Target::AtMost(0.0)), vec![killed as f64]),
    ];
    let note = format!(
        "{RAMPS} ramps of {FALL} GiB a second until the loading engine is gone, negative where the fall was foreseen; then {} s \
         of page cache that comes and goes above 30 GiB",
        FLOOD.as_secs()
    );
    Report::new("guard", load, figures, vec![note])
}

/// How long after the last rung was passed the engine was gone, in ms, and what was available then.
async fn ramp(folder: &Utf8Path) -> anyhow::Result<(f64, f64)> {
    let mut watched = Watched::start(folder, "loading", FROM_GIB)?;
    watched.is_looking().await?;
    let began = Instant::now();
    loop {
        let passed = began.elapsed();
        let available = (FROM_GIB - passed.as_secs_f64() * FALL).max(0.5);
        write_meminfo(folder, available)?;
        if watched.engine.try_wait()?.is_some() {
            let rung_passed = (FROM_GIB - KILL_GIB) / FALL;
            return Ok(((passed.as_secs_f64() - rung_passed) * 1e3, available));
        }
        ensure!(passed < LIMIT, "the engine lives though no memory is left");
        sleep(STEP).await;
    }
}

/// Engines that were ended while there was memory.
async fn without_need(folder: &Utf8Path) -> anyhow::Result<usize> {
    let mut watched = Watched::start(folder, "ready", 60.0)?;
    watched.is_looking().await?;
    let began = Instant::now();
    while began.elapsed() < FLOOD {
        // Up and down between 30 and 60 GiB within four seconds.
        let swing = (began.elapsed().as_secs_f64() * std::f64::consts::TAU / 4.0).sin();
        write_meminfo(folder, 45.0 + 15.0 * swing)?;
        sleep(STEP * 5).await;
    }
    Ok(usize::from(watched.engine.try_wait()?.is_some()))
}

struct Watched {
    folder: Utf8PathBuf,
    engine: Child,
    guard: Child,
}

impl Watched {
    fn start(folder: &Utf8Path, state: &str, gib: f64) -> anyhow::Result<Self> {
        write_meminfo(folder, gib)?;
        let engine = Command::new("sleep").arg("600").process_group(0).stdin(Stdio::null()).spawn()?;
        let stat = fs_err::read_to_string(format!("/proc/{}/stat", engine.id()))?;
        let started = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(19)).context("no start time")?;
        fs_err::write(folder.join("victims"), format!("{state} 0 1 {}:{started}\n", engine.id()))?;
        let guard = Command::new(program("fettle-inference")?)
            .arg("guard")
            .args(["--victims", folder.join("victims").as_str(), "--state", folder.join("state").as_str()])
            .args(["--meminfo", folder.join("meminfo").as_str(), "--kmsg", folder.join("kmsg").as_str()])
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { folder: folder.to_owned(), engine, guard })
    }

    async fn is_looking(&self) -> anyhow::Result<()> {
        let began = Instant::now();
        while !fs_err::read_to_string(self.folder.join("state")).unwrap_or_default().starts_with("calm") {
            ensure!(began.elapsed() < LIMIT, "the guard does not begin");
            sleep(STEP).await;
        }
        Ok(())
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        for child in [&mut self.guard, &mut self.engine] {
            let _gone = child.kill();
            let _status = child.wait();
        }
    }
}

fn write_meminfo(folder: &Utf8Path, gib: f64) -> anyhow::Result<()> {
    let kib = (gib * f64::from(1 << 20)) as u64;
    let text = format!("MemTotal:       125829120 kB\nMemFree:          524288 kB\nMemAvailable: {kib:>12} kB\n");
    let begun = folder.join("meminfo.begun");
    fs_err::write(&begun, text)?;
    Ok(fs_err::rename(begun, folder.join("meminfo"))?)
}
