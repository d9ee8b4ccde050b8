//! All engines of this machine: who is there, who is an orphan, who of an earlier life may go on. Starts nothing by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use camino::{Utf8Path, Utf8PathBuf};
use fettle_app::ports::serving::{Adopted, EngineHost, EngineProcess, HostError, LaunchOrder, ProcessState, Since};
use fettle_placement::id::{EngineId, Epoch};
use fettle_placement::quantity::{Bytes, Millis};
use fettle_placement::recipe::Recipe;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::actor::{self, duration};
use crate::launch::{self, Launcher};
use crate::log::LogMark;
use crate::probe::Client;
use crate::record::{Folder, Kept, Record, make_private};
use crate::settings::Settings;
use crate::sight::Watcher;
use crate::table::{Table, boot_id};
use crate::{cgroup, log};

/// Held by the one host of a folder.
const LOCK: &str = "lock";
/// Looks at an engine of an earlier life while it is ended.
const LOOK: Millis = Millis::new(50);

/// The engines of this machine.
pub struct Engines {
    shared: Arc<Shared>,
    tasks: TaskTracker,
    runtime: tokio::runtime::Handle,
    stops: Mutex<BTreeMap<EngineId, (Epoch, watch::Sender<bool>)>>,
    _lock: std::fs::File,
}

/// From where on a log is read.
#[derive(Debug, Clone, Copy)]
pub enum LogFrom {
    /// Only so much of its end.
    Last(Bytes),
    /// Where an earlier part ended.
    Mark(LogMark),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogPart {
    pub engine: EngineId,
    pub text: String,
    pub end: LogMark,
}

/// What actors and the sweep share.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) launcher: Launcher,
    pub(crate) watcher: Watcher,
    pub(crate) board: Board,
    pub(crate) boot: String,
    pub(crate) since: Since,
    pub(crate) closing: CancellationToken,
    /// Somebody ended, and may have left something behind.
    pub(crate) sweep: Notify,
    orphans: AtomicU64,
}

impl Engines {
    /// Must be called within a runtime, which its actors run on. `since`: the origin of times that the process has chosen.
    pub fn open(settings: Settings, since: Since) -> Result<Self, HostError> {
        let folder = settings.folder.clone();
        let records = |source: io::Error| HostError::Records { folder: folder.clone(), source: source.into() };
        for path in [&settings.folder, &settings.logs, &settings.cache] {
            make_private(path).map_err(records)?;
        }
        let lock = std::fs::File::create(settings.folder.join(LOCK)).map_err(records)?;
        lock.try_lock().map_err(|e| records(e.into()))?;
        let shared = Arc::new(Shared {
            launcher: Launcher::new(&settings),
            watcher: Watcher::new(&settings.folder),
            board: Board::default(),
            boot: boot_id().map_err(records)?,
            since,
            closing: CancellationToken::new(),
            sweep: Notify::new(),
            orphans: AtomicU64::new(0),
            settings,
        });
        Ok(Self {
            shared,
            tasks: TaskTracker::new(),
            runtime: tokio::runtime::Handle::current(),
            stops: Mutex::default(),
            _lock: lock,
        })
    }

    /// What an engine says and has said, of this life and of earlier ones, also of one that is gone. `name` is an engine's, or a
    /// model's: then it is the engine of it that spoke last. `None`: nobody of that name ever spoke.
    pub async fn log(&self, name: &str, from: LogFrom) -> io::Result<Option<LogPart>> {
        let (logs, name) = (self.shared.settings.logs.clone(), name.to_owned());
        let read = move || match log::find(&logs, &name)? {
            None => Ok(None),
            Some((engine, path)) => {
                let (text, end) = match from {
                    LogFrom::Last(bytes) => log::read_end(&path, bytes.get())?,
                    LogFrom::Mark(mut mark) => (mark.read_on(&path, log::AT_ONCE)?, mark),
                };
                Ok(Some(LogPart { engine, text: String::from_utf8_lossy(&text).into_owned(), end }))
            }
        };
        tokio::task::spawn_blocking(read).await?
    }

    /// Processes without an engine that were ended since the start.
    pub fn orphans_ended(&self) -> u64 {
        self.shared.orphans.load(Ordering::Relaxed)
    }

    /// Ends what ends with this process and lets go of the rest. Returns when the actors are done, which the grace of a stop
    /// bounds unless the kernel cannot end a process.
    pub async fn close(&self) {
        self.shared.closing.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn stops(&self) -> MutexGuard<'_, BTreeMap<EngineId, (Epoch, watch::Sender<bool>)>> {
        self.stops.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A way to stop it, unless it is there already.
    fn enter(&self, engine: &EngineId, epoch: Epoch, state: ProcessState) -> Option<watch::Receiver<bool>> {
        let (stop, stopped) = watch::channel(false);
        let mut stops = self.stops();
        if !self.shared.board.enter(engine, epoch, state) {
            return None;
        }
        stops.insert(engine.clone(), (epoch, stop));
        Some(stopped)
    }

    /// Engines of an earlier life, with what is known of them. What cannot be read names nobody, and the sweep finds whom it was
    /// about.
    fn records(&self) -> io::Result<Vec<(Folder, Option<Record>)>> {
        let mut found = Vec::new();
        for entry in fs_err::read_dir(&self.shared.settings.folder)? {
            let entry = entry?;
            let Ok(path) = Utf8PathBuf::from_path_buf(entry.path()) else { continue };
            if entry.file_type()?.is_dir() {
                let folder = Folder::at(path);
                let record = folder.record().unwrap_or_else(|e| {
                    warn!(error = &e as &dyn std::error::Error, "an engine's record cannot be read");
                    None
                });
                found.push((folder, record));
            }
        }
        Ok(found)
    }
}

/// Whoever did not wait for [`Engines::close`] still leaves nothing behind: actors end their engines, and without actors the
/// keepers do.
impl Drop for Engines {
    fn drop(&mut self) {
        self.shared.closing.cancel();
    }
}

#[async_trait::async_trait]
impl EngineHost for Engines {
    async fn adopt(&self, recipes: &[Recipe]) -> Result<Vec<Adopted>, HostError> {
        let folder = self.shared.settings.folder.clone();
        let records =
            self.records().map_err(|source| HostError::Records { folder: folder.clone(), source: source.into() })?;
        let (mut adopted, mut ending) = (Vec::new(), JoinSet::new());
        for (folder, record) in records {
            let Some(record) = record else {
                if let Err(e) = folder.remove() {
                    warn!(error = &e as &dyn std::error::Error, "the remains of a record could not be removed");
                }
                continue;
            };
            let recipe = recipes.iter().find(|recipe| recipe.id == record.recipe).cloned();
            match (doubt(&self.shared, &folder, &record, recipe.is_some()).await, recipe) {
                (None, Some(recipe)) => {
                    let state = ProcessState::Ready(record.address());
                    let Some(stop) = self.enter(&record.engine, record.epoch, state) else { continue };
                    info!(engine.id = %record.engine, epoch = record.epoch.0, "an engine of an earlier life goes on");
                    adopted.push(Adopted { seat: record.seat(), epoch: record.epoch, recipe: recipe.clone() });
                    self.tasks.spawn_on(actor::take_up(Arc::clone(&self.shared), record, recipe, stop), &self.runtime);
                }
                (doubt, _) => {
                    let reason = doubt.unwrap_or("no such recipe is configured");
                    info!(engine.id = %record.engine, epoch = record.epoch.0, reason, "an engine of an earlier life is ended");
                    ending.spawn(end(Arc::clone(&self.shared), folder, record));
                }
            }
        }
        ending.join_all().await;
        sweep(&self.shared).await;
        self.tasks.spawn_on(keep_sweeping(Arc::clone(&self.shared)), &self.runtime);
        Ok(adopted)
    }

    fn start(&self, order: LaunchOrder) {
        let (engine, epoch) = (order.seat.engine.clone(), order.epoch);
        match self.enter(&engine, epoch, ProcessState::Spawning) {
            Some(stop) => drop(self.tasks.spawn_on(actor::start(Arc::clone(&self.shared), order, stop), &self.runtime)),
            None => warn!(engine.id = %engine, epoch = epoch.0, "an engine that is there was to be started"),
        }
    }

    fn stop(&self, engine: &EngineId, epoch: Epoch) {
        if let Some((_, stop)) = self.stops().get(engine).filter(|(now, _)| *now == epoch) {
            stop.send_replace(true);
        }
    }

    fn forget(&self, engine: &EngineId, epoch: Epoch) {
        let mut stops = self.stops();
        if self.shared.board.forget(engine, epoch) {
            stops.remove(engine);
        }
    }

    fn processes(&self) -> watch::Receiver<Arc<Vec<EngineProcess>>> {
        self.shared.board.0.subscribe()
    }
}

/// Why an engine of an earlier life must not go on.
async fn doubt(shared: &Shared, folder: &Folder, record: &Record, is_configured: bool) -> Option<&'static str> {
    let known = Known {
        boot: shared.boot == record.boot,
        launcher: shared.launcher.take_up(record).is_some(),
        kept: folder.kept().ok().flatten(),
        is_configured,
    };
    let Some(sight) = shared.watcher.look().await else { return Some("nobody can see whether it is alive") };
    if let Some(doubt) = known.doubt(record, &sight.table) {
        return Some(doubt);
    }
    let client = Client::new(record.address(), record.api.clone(), shared.settings.limits.token);
    (!client.takes_key().await).then_some("it does not take its key")
}

/// What can be said of a record without asking the engine.
struct Known {
    boot: bool,
    /// It runs in the way that is configured now, and outlives a host.
    launcher: bool,
    kept: Option<Kept>,
    is_configured: bool,
}

impl Known {
    fn doubt(&self, record: &Record, table: &Table) -> Option<&'static str> {
        let alive =
            self.kept.is_some_and(|kept| table.has(kept.keeper) && kept.engine.is_some_and(|engine| table.has(engine)));
        let checks = [
            (self.boot, "the machine was started anew"),
            (self.launcher, "it was to end with its host"),
            (alive, "it is not alive"),
            (record.ready, "it was not ready yet"),
            (self.is_configured, "no such recipe is configured"),
        ];
        checks.into_iter().find_map(|(holds, doubt)| (!holds).then_some(doubt))
    }
}

/// Ends an engine of an earlier life: politely where it may still be serving, and in any case. Its record stays until nothing is
/// left, so that the next start tries again.
async fn end(shared: Arc<Shared>, folder: Folder, record: Record) {
    let limits = &shared.settings.limits;
    let hand = shared.launcher.take_up(&record);
    if let Some(hand) = &hand {
        hand.terminate().await;
    }
    let begun = shared.since.millis();
    let (kill_at, give_up_at) = match hand {
        Some(_) => (begun + limits.grace, begun + limits.grace + limits.grace),
        None => (begun, begun + limits.grace),
    };
    let kept = folder.kept().ok().flatten().filter(|_| record.boot == shared.boot);
    loop {
        let now = shared.since.millis();
        if let Some(sight) = shared.watcher.look().await {
            let of_unit = || cgroup::of_unit(kept?.keeper.pid, record.unit.as_deref()?);
            let group = record.cgroup.clone().or_else(of_unit);
            let members = sight.members(&record.engine, record.epoch, kept, group.as_deref());
            if members.pids.is_empty() && members.keeper.is_none() {
                if let Some(group) = &record.cgroup {
                    cgroup::remove(group);
                }
                if let Err(e) = folder.remove() {
                    warn!(engine.id = %record.engine, error = &e as &dyn std::error::Error, "an engine's record could not be removed");
                }
                return;
            }
            if now >= kill_at {
                let keeper = members.keeper.filter(|_| members.pids.is_empty());
                launch::end(
                    &members.pids.into_iter().chain(keeper.map(|keeper| keeper.pid)).collect(),
                    group.as_deref(),
                );
            }
        }
        if now >= give_up_at {
            warn!(engine.id = %record.engine, "an engine of an earlier life cannot be ended");
            return;
        }
        tokio::time::sleep(duration(LOOK)).await;
    }
}

async fn keep_sweeping(shared: Arc<Shared>) {
    loop {
        tokio::select! {
            () = shared.closing.cancelled() => return,
            () = tokio::time::sleep(duration(shared.settings.limits.sweep)) => {}
            () = shared.sweep.notified() => {}
        }
        sweep(&shared).await;
    }
}

/// Ends what says it is of this host's engines and is of none that is there. What says nothing of the kind is somebody else's.
async fn sweep(shared: &Shared) {
    let Some(sight) = shared.watcher.look().await else { return };
    // Read after the look: an engine that has begun meanwhile is among them.
    let lives = shared.board.lives();
    let is_there = |engine: &EngineId, epoch: Epoch| lives.contains(&(engine.clone(), epoch));
    let orphans: BTreeSet<u32> =
        sight.marked().filter(|(_, engine, epoch)| !is_there(engine, *epoch)).map(|(pid, ..)| pid).collect();
    // A number may have been given away since; who has it now must say the same.
    let still = Table::read().map(|table| {
        orphans.iter().copied().filter(|pid| table.identity(*pid) == sight.table.identity(*pid)).collect()
    });
    let orphans: BTreeSet<u32> = still.unwrap_or_default();
    if !orphans.is_empty() {
        warn!(count = orphans.len(), "processes that an engine left behind are ended");
        launch::end(&orphans, None);
        shared.orphans.fetch_add(orphans.len() as u64, Ordering::Relaxed);
    }
    if let Some(parent) = &shared.launcher.delegated {
        let groups = cgroup::all(parent);
        // Read after the groups, for the same reason.
        let lives = shared.board.lives();
        let names: Vec<String> = lives.iter().map(|(engine, epoch)| group_of(parent, engine, *epoch)).collect();
        for group in groups.into_iter().filter(|group| !names.contains(&group.to_string())) {
            let pids = cgroup::pids(&group);
            if pids.is_empty() {
                cgroup::remove(&group);
            } else {
                launch::end(&pids, Some(&group));
                shared.orphans.fetch_add(pids.len() as u64, Ordering::Relaxed);
            }
        }
    }
    let hands = shared.launcher.units().await;
    // Read after the units: the next life of one that has just ended may have begun while systemd was asked.
    let units: BTreeSet<String> = shared.board.lives().iter().map(|(engine, _)| launch::unit_of(engine)).collect();
    for hand in hands {
        if hand.unit().is_some_and(|unit| !units.contains(unit)) {
            warn!(unit = hand.unit(), "a unit without an engine is stopped");
            hand.terminate().await;
            shared.orphans.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn group_of(parent: &Utf8Path, engine: &EngineId, epoch: Epoch) -> String {
    cgroup::path(parent, &crate::record::file_name(engine), epoch.0).into_string()
}

/// What everybody is told.
#[derive(Default)]
pub(crate) struct Board(watch::Sender<Arc<Vec<EngineProcess>>>);

/// Less of a change is not told.
const HOST_BYTES_STEP: i64 = 16 << 20;

impl Board {
    /// Whether it may begin: nobody of that name is there, or only one that is gone.
    fn enter(&self, engine: &EngineId, epoch: Epoch, state: ProcessState) -> bool {
        self.change(|list| {
            if list.iter().any(|one| one.engine == *engine && !matches!(one.state, ProcessState::Gone(_))) {
                return false;
            }
            list.retain(|one| one.engine != *engine);
            let new =
                EngineProcess { engine: engine.clone(), epoch, state, pids: BTreeSet::new(), host_bytes: Bytes::ZERO };
            list.push(new);
            list.sort_by(|a, b| a.engine.cmp(&b.engine));
            true
        })
    }

    pub(crate) fn tell(
        &self,
        engine: &EngineId,
        epoch: Epoch,
        state: ProcessState,
        pids: BTreeSet<u32>,
        host_bytes: Bytes,
    ) {
        self.change(|list| {
            let Some(one) = list.iter_mut().find(|one| one.engine == *engine && one.epoch == epoch) else {
                return false;
            };
            let same = std::mem::discriminant(&one.state) == std::mem::discriminant(&state)
                && one.pids == pids
                && one.host_bytes.over(host_bytes).abs() < HOST_BYTES_STEP;
            if same {
                return false;
            }
            (one.state, one.pids, one.host_bytes) = (state, pids, host_bytes);
            true
        });
    }

    fn forget(&self, engine: &EngineId, epoch: Epoch) -> bool {
        self.change(|list| {
            let before = list.len();
            list.retain(|one| {
                one.engine != *engine || one.epoch != epoch || !matches!(one.state, ProcessState::Gone(_))
            });
            list.len() < before
        })
    }

    /// Engines that are not gone.
    fn lives(&self) -> BTreeSet<(EngineId, Epoch)> {
        let there = |one: &&EngineProcess| !matches!(one.state, ProcessState::Gone(_));
        self.0.borrow().iter().filter(there).map(|one| (one.engine.clone(), one.epoch)).collect()
    }

    fn change(&self, change: impl FnOnce(&mut Vec<EngineProcess>) -> bool) -> bool {
        self.0.send_if_modified(|list| {
            let mut next = Vec::clone(list);
            let changed = change(&mut next);
            if changed {
                *list = Arc::new(next);
            }
            changed
        })
    }
}

#[cfg(test)]
mod tests {
    use fettle_app::ports::serving::{Exit, ExitClass};

    use super::*;

    fn gone() -> ProcessState {
        ProcessState::Gone(Exit { class: ExitClass::Asked, why: String::new() })
    }

    #[test]
    fn an_engine_is_told_of_until_it_is_gone_and_forgotten() {
        let board = Board::default();
        let engine = EngineId::new("a.1");
        assert!(board.enter(&engine, Epoch(1), ProcessState::Spawning));
        assert!(!board.enter(&engine, Epoch(2), ProcessState::Spawning));
        assert!(!board.forget(&engine, Epoch(1)));
        board.tell(&engine, Epoch(7), gone(), BTreeSet::new(), Bytes::ZERO);
        assert_eq!(board.lives().len(), 1);
        board.tell(&engine, Epoch(1), gone(), BTreeSet::new(), Bytes::ZERO);
        assert_eq!(board.lives().len(), 0);
        assert_eq!(board.0.borrow().len(), 1);
        assert!(!board.forget(&engine, Epoch(7)));
        assert!(board.forget(&engine, Epoch(1)));
        assert!(board.0.borrow().is_empty());
    }

    #[test]
    fn only_changes_are_told() {
        let board = Board::default();
        let engine = EngineId::new("a.1");
        board.enter(&engine, Epoch(1), ProcessState::Spawning);
        let mut told = board.0.subscribe();
        told.mark_unchanged();
        board.tell(&engine, Epoch(1), ProcessState::Spawning, BTreeSet::new(), Bytes::mib(1));
        assert!(!told.has_changed().unwrap());
        board.tell(&engine, Epoch(1), ProcessState::Spawning, [4].into(), Bytes::mib(1));
        assert!(told.has_changed().unwrap());
    }
}
