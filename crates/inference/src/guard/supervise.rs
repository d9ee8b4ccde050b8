//! The supervisor's side: writes who may be ended, sees that a guard runs, and says why nothing may be loaded.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use camino::{Utf8Path, Utf8PathBuf};
use fettle_app::ports::serving::{EngineProcess, ProcessState, World};
use fettle_app::serving::Status;
use fettle_gpu::guard::{Process, Victim};
use fettle_placement::device::PoolKind;
use fettle_placement::id::EngineId;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::watch::started;
use super::{Heartbeat, now_micros};

/// How soon the supervisor knows what the guard sees; the guard itself needs nobody.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A guard that was just started gets so long for its first look.
const STARTS_WITHIN: u64 = 2_000_000;
/// The program that holds the guard, beside ours.
const PROGRAM: &str = "fettle-inference";
/// An engine of the operator's pinned models is asked last.
const PINNED: u8 = 1;

pub struct Guarding {
    pub folder: Utf8PathBuf,
    pub world: watch::Receiver<Arc<World>>,
    pub engines: watch::Receiver<Arc<Vec<EngineProcess>>>,
    pub status: watch::Receiver<Arc<Status>>,
    /// Files of weights, whose pages may be given up.
    pub files: Vec<Utf8PathBuf>,
    /// Instead of the kernel's, in tests.
    pub meminfo: Option<Utf8PathBuf>,
    /// Why the unified pool offers nothing.
    pub closed: watch::Sender<Option<String>>,
}

/// Until `stop`. Does nothing on a machine whose GPU has memory of its own.
pub async fn guard(mut parts: Guarding, stop: CancellationToken) {
    let is_unified = |world: &Arc<World>| world.pools.iter().any(|pool| pool.kind == PoolKind::Unified);
    tokio::select! {
        () = stop.cancelled() => return,
        unified = parts.world.wait_for(is_unified) => if unified.is_err() { return },
    }
    let mut watch = match Watchman::new(&parts) {
        Ok(watch) => watch,
        Err(error) => {
            error!("memory of this machine is not guarded, so nothing is loaded: {error:#}");
            return;
        }
    };
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = ticks.tick() => {}
            changed = parts.engines.changed() => if changed.is_err() { break },
        }
        let (engines, status) = (parts.engines.borrow_and_update().clone(), parts.status.borrow().clone());
        watch.write(&engines, &status);
        let closed = watch.look();
        parts.closed.send_if_modified(|known| {
            let new = *known != closed;
            if new {
                match &closed {
                    Some(why) => warn!("nothing is loaded: {why}"),
                    None => info!("memory of this machine is guarded"),
                }
                known.clone_from(&closed);
            }
            new
        });
    }
    watch.dismiss();
}

struct Watchman {
    victims: Utf8PathBuf,
    state: Utf8PathBuf,
    files: Vec<Utf8PathBuf>,
    meminfo: Option<Utf8PathBuf>,
    /// Numbers of engines, in the order in which they came.
    numbers: BTreeMap<(EngineId, u64), u64>,
    numbered: u64,
    written: String,
    child: Option<(Child, u64)>,
}

impl Watchman {
    fn new(parts: &Guarding) -> Result<Self> {
        fs_err::create_dir_all(&parts.folder)?;
        Ok(Self {
            victims: parts.folder.join("victims"),
            state: parts.folder.join("state"),
            files: parts.files.clone(),
            meminfo: parts.meminfo.clone(),
            numbers: BTreeMap::new(),
            numbered: 0,
            written: String::new(),
            child: None,
        })
    }

    /// Whole or not at all: the guard reads it at any moment.
    fn write(&mut self, engines: &[EngineProcess], status: &Status) {
        let text = self.victims_of(engines, status);
        if text == self.written && self.victims.exists() {
            return;
        }
        let begun = self.victims.with_extension("begun");
        match fs_err::write(&begun, &text).and_then(|()| fs_err::rename(&begun, &self.victims)) {
            Ok(()) => self.written = text,
            Err(error) => error!("the guard does not learn who may be ended: {error}"),
        }
    }

    fn victims_of(&mut self, engines: &[EngineProcess], status: &Status) -> String {
        let pinned = |id: &EngineId| status.engines.iter().any(|one| one.engine.id == *id && one.engine.pinned);
        let mut text = String::new();
        let is_known = |key: &(EngineId, u64)| engines.iter().any(|one| one.engine == key.0 && one.epoch.0 == key.1);
        self.numbers.retain(|key, _| is_known(key));
        for engine in engines {
            let loading = match engine.state {
                ProcessState::Spawning | ProcessState::Loading => true,
                ProcessState::Ready(_) | ProcessState::Stopping => false,
                ProcessState::Gone(_) => continue,
            };
            let nth = *self.numbers.entry((engine.engine.clone(), engine.epoch.0)).or_insert_with(|| {
                self.numbered += 1;
                self.numbered
            });
            let processes: Vec<Process> = engine.pids.iter().filter_map(|pid| known(*pid)).collect();
            if !processes.is_empty() {
                let priority = if pinned(&engine.engine) { PINNED } else { 0 };
                text.push_str(&Victim::write(loading, priority, nth, &processes));
            }
        }
        for file in &self.files {
            let _ = writeln!(text, "file {file}");
        }
        text
    }

    /// Why nothing may be loaded. Starts a guard where none runs: ours, or one that the system's manager runs.
    fn look(&mut self) -> Option<String> {
        let now = now_micros();
        let seen = fs_err::read_to_string(&self.state).ok().and_then(|text| Heartbeat::read(&text));
        let closed = Heartbeat::closes(seen, now);
        let is_old = seen.is_none_or(|seen| now.saturating_sub(seen.at_micros) > super::STALE_MICROS);
        let is_starting = self.child.as_ref().is_some_and(|(_, at)| now.saturating_sub(*at) < STARTS_WITHIN);
        if is_old && !is_starting {
            self.dismiss();
            match self.start() {
                Ok(child) => self.child = Some((child, now)),
                Err(error) => error!("the guard cannot be started: {error:#}"),
            }
        }
        closed
    }

    fn start(&self) -> Result<Child> {
        let own = std::env::current_exe().context("while looking for this program's folder")?;
        let mut command = Command::new(own.with_file_name(PROGRAM));
        command.arg("guard").arg("--victims").arg(&self.victims).arg("--state").arg(&self.state);
        command.arg("--owner").arg(std::process::id().to_string());
        if let Some(meminfo) = &self.meminfo {
            command.arg("--meminfo").arg(meminfo);
        }
        Ok(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?)
    }

    /// Only ours: the engines that it was for end with this process.
    fn dismiss(&mut self) {
        if let Some((mut child, _)) = self.child.take() {
            let _gone = child.kill();
            let _status = child.wait();
        }
    }
}

fn known(pid: u32) -> Option<Process> {
    let stat = fs_err::read_to_string(Utf8Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    Some(Process { pid: i32::try_from(pid).ok()?, started: started(&stat)? })
}
