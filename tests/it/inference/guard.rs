//! The guard over memory that GPU and host share, as the process that it is, with a `/proc/meminfo` of ours.

use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use fettle_fake_nvml::State;
use fettle_tests::world::{PATIENCE, program};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{Host, KNOWN};

/// Between two states of memory.
const STEP: Duration = Duration::from_millis(20);

/// A machine's memory, engines that only sleep, and the guard over them.
struct Watched {
    root: Utf8PathBuf,
    engines: Vec<Child>,
    guard: Child,
    _home: tempfile::TempDir,
}

impl Watched {
    /// Engines as lines say it, without their processes: `ready 0 1`.
    fn start(lines: &[&str], gib: f64) -> Self {
        let home = tempfile::tempdir().unwrap();
        let root = Utf8PathBuf::try_from(home.path().to_owned()).unwrap();
        let engines: Vec<Child> = lines
            .iter()
            .map(|_| Command::new("sleep").arg("600").process_group(0).stdin(Stdio::null()).spawn().unwrap())
            .collect();
        let victims: String = lines
            .iter()
            .zip(&engines)
            .map(|(line, engine)| format!("{line} {}:{}\n", engine.id(), started(engine.id())))
            .collect();
        fs_err::write(root.join("victims"), victims).unwrap();
        available(&root, gib);
        let guard = Self::guard(&root, std::process::id());
        Self { root, engines, guard, _home: home }
    }

    fn guard(root: &Utf8Path, owner: u32) -> Child {
        let mut command = Command::new(program("fettle-inference").unwrap());
        command.arg("guard").arg("--victims").arg(root.join("victims")).arg("--state").arg(root.join("state"));
        command.arg("--meminfo").arg(root.join("meminfo")).arg("--kmsg").arg(root.join("kmsg"));
        command.arg("--owner").arg(owner.to_string()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn available(&self, gib: f64) {
        available(&self.root, gib);
    }

    /// From one amount to another, so many GiB a second.
    async fn falls(&self, from: f64, to: f64, per_second: f64) {
        let began = Instant::now();
        loop {
            let now = from - began.elapsed().as_secs_f64() * per_second;
            self.available(now.max(to));
            if now <= to {
                return;
            }
            sleep(STEP).await;
        }
    }

    /// The signal by which an engine ends.
    async fn ended(&mut self, nth: usize) -> i32 {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.engines[nth].try_wait().unwrap() {
                return status.signal().unwrap();
            }
            assert!(Instant::now() < end, "engine {nth} lives");
            sleep(STEP).await;
        }
    }

    fn lives(&mut self, nth: usize) -> bool {
        self.engines[nth].try_wait().unwrap().is_none()
    }

    async fn says(&self, rung: &str) {
        let end = Instant::now() + PATIENCE;
        while !fs_err::read_to_string(self.root.join("state")).unwrap_or_default().starts_with(rung) {
            assert!(Instant::now() < end, "it never says {rung}");
            sleep(STEP).await;
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        for child in self.engines.iter_mut().chain([&mut self.guard]) {
            let _gone = child.kill();
            let _status = child.wait();
        }
    }
}

/// `MemFree` is always low, as it is after reading large files.
fn available(root: &Utf8Path, gib: f64) {
    let kib = (gib * f64::from(1 << 20)) as u64;
    let text = format!("MemTotal:       125829120 kB\nMemFree:         1048576 kB\nMemAvailable: {kib:>12} kB\n");
    let begun = root.join("meminfo.begun");
    fs_err::write(&begun, text).unwrap();
    fs_err::rename(begun, root.join("meminfo")).unwrap();
}

fn started(pid: u32) -> u64 {
    let stat = fs_err::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.split(' ').nth(19).unwrap().parse().unwrap()
}

#[tokio::test]
async fn memory_that_runs_out_fast_costs_the_engine_that_loads_and_no_other() {
    let mut watched = Watched::start(&["ready 0 1", "loading 0 2", "ready 0 3"], 40.0);
    watched.says("calm").await;
    // Steep enough to be foreseen, and it ends above the rungs at which a second one would be ended.
    watched.falls(40.0, 15.0, 28.0).await;
    assert_eq!(watched.ended(1).await, Signal::KILL.as_raw());
    watched.says("freeze").await;
    assert!(watched.lives(0) && watched.lives(2), "what has loaded already stays");
}

#[tokio::test]
async fn memory_that_runs_out_slowly_asks_the_engine_of_lowest_priority() {
    let mut watched = Watched::start(&["ready 1 1", "ready 0 2"], 15.1);
    watched.says("freeze").await;
    // So slowly that a test that is held up for a second falls less at once than is foreseen.
    watched.falls(15.0, 13.7, 0.5).await;
    assert_eq!(watched.ended(1).await, Signal::TERM.as_raw());
    watched.available(20.0);
    watched.says("calm").await;
    assert!(watched.lives(0));
}

#[tokio::test]
async fn a_process_that_took_an_engines_number_is_left_alone() {
    let mut watched = Watched::start(&["ready 0 1"], 60.0);
    let victims = format!("ready 0 1 {}:{}\n", watched.engines[0].id(), 1);
    fs_err::write(watched.root.join("victims"), victims).unwrap();
    watched.says("calm").await;
    watched.available(5.0);
    watched.says("kill").await;
    sleep(STEP * 20).await;
    assert!(watched.lives(0));
}

#[tokio::test]
async fn a_guard_goes_when_its_owner_and_all_engines_have_gone() {
    let mut watched = Watched::start(&["ready 0 1"], 60.0);
    watched.guard.kill().unwrap();
    watched.guard.wait().unwrap();
    let mut owner = Command::new("sleep").arg("600").spawn().unwrap();
    watched.guard = Watched::guard(&watched.root, owner.id());
    watched.says("calm").await;
    owner.kill().unwrap();
    owner.wait().unwrap();
    sleep(Duration::from_secs(2)).await;
    assert!(watched.guard.try_wait().unwrap().is_none(), "an engine is left, which it watches");
    watched.engines[0].kill().unwrap();
    watched.engines[0].wait().unwrap();
    let end = Instant::now() + PATIENCE;
    while watched.guard.try_wait().unwrap().is_none() {
        assert!(Instant::now() < end, "it stays");
        sleep(STEP).await;
    }
}

/// Guards whose files are in a folder.
fn guards(root: &Utf8Path) -> Vec<u32> {
    let mark = root.join("data/guard/state").to_string();
    let processes = fs_err::read_dir("/proc").unwrap().filter_map(|entry| {
        let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let line = fs_err::read(format!("/proc/{pid}/cmdline")).ok()?;
        String::from_utf8_lossy(&line).contains(&mark).then_some(pid)
    });
    processes.collect()
}

#[tokio::test]
async fn a_machine_with_one_memory_is_guarded_and_a_dead_guard_is_replaced() {
    let mut host = Host::with_gpus(&[]);
    let meminfo = host.root.join("meminfo");
    fs_err::write(&meminfo, "MemAvailable:   62914560 kB\n").unwrap();
    host.environment.push(("FETTLE_TEST_MEMINFO", meminfo.to_string()));
    host.nvml.set(&State::gb10()).unwrap();
    let mut host = host.up().await;
    let closed = |status: &Value| -> Option<bool> {
        let pool = status["pools"].as_array()?.iter().find(|pool| pool["kind"] == "unified")?;
        Some(!pool["closed"].is_null())
    };
    host.until(&["gpus"], PATIENCE, |status| closed(status) == Some(false)).await;
    let [first] = guards(&host.root)[..] else { panic!("one guard") };
    let pid = Pid::from_raw(i32::try_from(first).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    host.until(&["gpus"], KNOWN, |status| closed(status) == Some(true)).await;
    host.until(&["gpus"], PATIENCE, |status| closed(status) == Some(false)).await;
    let [second] = guards(&host.root)[..] else { panic!("one guard again") };
    assert_ne!(first, second);
    assert!(host.process.take().unwrap().stop().unwrap().success());
    assert!(guards(&host.root).is_empty(), "it goes with the engines that it was for");
}
