//! One engine's actor: looks at it, asks [`life`](crate::life) what follows, does it, and tells. Ends when the engine is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use camino::Utf8PathBuf;
use fettle_app::ports::serving::{Exit, ExitClass, LaunchOrder, ProcessState};
use fettle_placement::id::{EngineId, Epoch};
use fettle_placement::quantity::{Bytes, Millis};
use fettle_placement::recipe::Recipe;
use secrecy::SecretString;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::cgroup;
use crate::driver::{self, Place, Refused};
use crate::exit::{self, LAST_LINES, Status};
use crate::host::Shared;
use crate::launch::Hand;
use crate::life::{self, Act, Keeper, Seen, State, Work};
use crate::log::{self, Tail};
use crate::probe::{Answer, Client};
use crate::record::{Folder, Kept, Record, Spec, write_private};
use crate::settings::INHERITED;
use crate::sight::Members;
use crate::table::{MARKER, MARKER_HOME, Mark, Usage};

/// Random bytes of a key.
const KEY_BYTES: usize = 32;

pub(crate) struct Actor {
    shared: Arc<Shared>,
    record: Record,
    folder: Folder,
    /// Tokens of one context, which the cache must hold.
    ctx: u64,
    hand: Option<Hand>,
    tail: Option<Tail>,
    stop: watch::Receiver<bool>,
    state: State,
    /// Why it cannot be used, though it may be alive.
    refused: Option<Exit>,
    kept: Option<Kept>,
    members: Members,
    host_bytes: Bytes,
    /// What each of its processes was seen to have done and to hold at most.
    most: BTreeMap<u32, Usage>,
}

/// Looked at on disk and in `/proc`, in one go.
struct Look {
    tail: Tail,
    kept: Option<Kept>,
    status: Option<Status>,
    usage: Vec<(u32, Usage)>,
    kv_tokens: Option<u64>,
}

/// Starts an engine and stays with it to its end.
pub(crate) async fn start(shared: Arc<Shared>, order: LaunchOrder, stop: watch::Receiver<bool>) {
    let (engine, epoch) = (order.seat.engine.clone(), order.epoch);
    let setup = {
        let shared = Arc::clone(&shared);
        tokio::task::spawn_blocking(move || prepare(&shared, &order)).await
    };
    let (record, folder, tail, recipe) = match setup {
        Ok(Ok(prepared)) => prepared,
        Ok(Err(refused)) => {
            return never_started(&shared, &engine, epoch, Exit { class: refused.class, why: refused.why });
        }
        Err(e) => {
            let why = format!("its start was not prepared: {e}");
            return never_started(&shared, &engine, epoch, Exit { class: ExitClass::NotStarted, why });
        }
    };
    let (hand, refused) = match shared.launcher.start(&folder, &record).await {
        Ok(hand) => (Some(hand), None),
        // It may be that it was started all the same.
        Err(why) => (shared.launcher.take_up(&record), Some(Exit { class: ExitClass::NotStarted, why })),
    };
    info!(engine.id = %engine, epoch = epoch.0, recipe = %record.recipe, "an engine starts");
    let state = State::Spawning { since: shared.since.millis() };
    let actor = Actor {
        shared,
        record,
        folder,
        ctx: u64::from(recipe.ctx),
        hand,
        tail: Some(tail),
        stop,
        state,
        refused,
        kept: None,
        members: Members::default(),
        host_bytes: Bytes::ZERO,
        most: BTreeMap::new(),
    };
    actor.run().await;
}

/// Goes on with an engine of an earlier life that checked out.
pub(crate) async fn take_up(shared: Arc<Shared>, record: Record, recipe: Recipe, stop: watch::Receiver<bool>) {
    let folder = Folder::of(&shared.settings.folder, &record.engine);
    let tail = Tail::from_end(log::path_of(&shared.settings.logs, &record.engine), LAST_LINES);
    let hand = shared.launcher.take_up(&record);
    let actor = Actor {
        shared,
        record,
        folder,
        ctx: u64::from(recipe.ctx),
        hand,
        tail: Some(tail),
        stop,
        state: State::Ready,
        refused: None,
        kept: None,
        members: Members::default(),
        host_bytes: Bytes::ZERO,
        most: BTreeMap::new(),
    };
    actor.run().await;
}

fn never_started(shared: &Shared, engine: &EngineId, epoch: Epoch, exit: Exit) {
    warn!(engine.id = %engine, epoch = epoch.0, reason = exit.why, "an engine was not started");
    shared.board.tell(engine, epoch, ProcessState::Gone(exit), BTreeSet::new(), Bytes::ZERO);
}

/// All that has to be on disk before there is a process.
fn prepare(shared: &Shared, order: &LaunchOrder) -> Result<(Record, Folder, Tail, Recipe), Refused> {
    let settings = &shared.settings;
    let folder = Folder::of(&settings.folder, &order.seat.engine);
    let not_written = |e: io::Error| Refused::not_started(format!("its start cannot be written down: {e}"));
    let key = key().map_err(not_written)?;
    let port = free_port().map_err(not_written)?;
    let place = Place { folder: folder.path().to_owned(), cache: settings.cache.clone(), port, key };
    let launch = driver::plan(order, &settings.programs, &place)?;

    let mut record = Record::of(&order.seat, order.epoch, &launch, shared.boot.clone());
    folder.make().map_err(not_written)?;
    // On disk before the first thing that would have to be found again, which a control group is.
    folder.write_record(&record).map_err(not_written)?;
    shared.launcher.prepare(&mut record).map_err(not_written)?;
    folder.write_record(&record).map_err(not_written)?;
    for (path, text) in &launch.files {
        write_private(path, text.as_bytes()).map_err(not_written)?;
    }
    let log = log::path_of(&shared.settings.logs, &record.engine);
    let inherited = settings.environment.iter().filter(|(name, _)| INHERITED.contains(&name.as_str()));
    let mut env: BTreeMap<_, _> = inherited.map(|(name, value)| (name.clone(), value.clone())).collect();
    env.extend(launch.env);
    env.insert(MARKER.to_owned(), Mark::value(&record.engine, record.epoch));
    env.insert(MARKER_HOME.to_owned(), settings.folder.to_string());
    let spec = Spec {
        argv: launch.argv,
        env,
        log: log.clone(),
        log_bytes: settings.limits.log.get(),
        cgroup: record.cgroup.clone(),
        bound: shared.launcher.is_direct(),
    };
    folder.write_spec(&spec).map_err(not_written)?;
    Ok((record, folder, Tail::from_end(log, LAST_LINES), order.recipe.clone()))
}

fn key() -> io::Result<SecretString> {
    let mut bytes = [0; KEY_BYTES];
    fs_err::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(hex::encode(bytes).into())
}

/// Free now; an engine that finds it taken ends, and is started again with another.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

impl Actor {
    async fn run(mut self) {
        let mut probes = JoinSet::new();
        let mut answered = false;
        loop {
            let Some(seen) = self.look(answered).await else {
                self.pause(&mut probes, &mut answered).await;
                continue;
            };
            let now = self.shared.since.millis();
            let before = std::mem::discriminant(&self.state);
            let (state, act) = life::next(self.state.clone(), &seen, now, &self.shared.settings.limits);
            self.state = state;
            if before != std::mem::discriminant(&self.state) {
                self.changed().await;
            }
            if let State::Gone(exit) = &self.state {
                let exit = exit.clone();
                return self.leave(exit);
            }
            self.tell();
            self.act(act, &mut probes).await;
            if self.shared.closing.is_cancelled() && !self.shared.launcher.is_direct() {
                return;
            }
            self.pause(&mut probes, &mut answered).await;
        }
    }

    /// `None`: nothing is known now.
    async fn look(&mut self, answered: bool) -> Option<Seen> {
        let sight = self.shared.watcher.look().await?;
        let group = self.group();
        self.members = sight.members(&self.record.engine, self.record.epoch, self.kept, group.as_deref());
        let tail = self.tail.take()?;
        let (folder, pids, api) = (self.folder.clone(), self.members.pids.clone(), self.record.api.clone());
        let look = tokio::task::spawn_blocking(move || look_at(tail, &folder, &pids, &api)).await;
        let look = match look {
            Ok(look) => look,
            Err(e) => {
                warn!(engine.id = %self.record.engine, error = &e as &dyn std::error::Error, "looking at an engine failed");
                self.tail =
                    Some(Tail::from_end(log::path_of(&self.shared.settings.logs, &self.record.engine), LAST_LINES));
                return None;
            }
        };
        // A cache of a sliding window beside the whole one is smaller, and is none that a context must fit into.
        self.record.kv_tokens = self.record.kv_tokens.max(look.kv_tokens);
        if answered {
            self.check_cache();
        }
        let keeper = match (self.kept, look.kept) {
            (Some(_), _) if self.members.keeper.is_some() => Keeper::Alive,
            (Some(_), _) => Keeper::Ended,
            // It has begun since the processes were looked at, and is judged by the next look.
            (None, Some(_)) => Keeper::Alive,
            (None, None) => self.keeper_by_hand().await,
        };
        self.kept = look.kept.or(self.kept);
        let ended = look.status.map(|status| {
            let out_of_memory = self.group().is_some_and(|group| cgroup::ran_out_of_memory(&group));
            exit::classify(status, look.tail.lines.iter().map(String::as_str), out_of_memory)
        });
        let now: Usage = look.usage.iter().fold(Usage::default(), |sum, (_, usage)| sum.plus(*usage));
        self.host_bytes = Bytes::new(now.anonymous);
        for (pid, usage) in look.usage {
            let most = self.most.entry(pid).or_default();
            *most = most.most(usage);
        }
        // Who has ended has done its part all the same.
        let done = self.most.values().fold(Usage::default(), |sum, usage| sum.plus(*usage));
        let work = Work { log_bytes: look.tail.bytes, read_bytes: done.read, memory_bytes: done.resident };
        self.tail = Some(look.tail);
        Some(Seen {
            keeper,
            processes: self.members.pids.len(),
            ended,
            refused: self.refused.clone(),
            work,
            answered: answered && self.refused.is_none(),
            stop: *self.stop.borrow() || (self.shared.closing.is_cancelled() && self.shared.launcher.is_direct()),
        })
    }

    /// Before it has said itself who it is.
    async fn keeper_by_hand(&mut self) -> Keeper {
        let Some(hand) = &mut self.hand else { return Keeper::Absent };
        if hand.is_held().await {
            return Keeper::Alive;
        }
        let why = "its keeper ended before it began".to_owned();
        self.refused.get_or_insert(Exit { class: ExitClass::NotStarted, why });
        Keeper::Ended
    }

    /// The control group that all of it is in, where there is one.
    fn group(&self) -> Option<Utf8PathBuf> {
        let of_unit = || cgroup::of_unit(self.kept?.keeper.pid, self.record.unit.as_deref()?);
        self.record.cgroup.clone().or_else(of_unit)
    }

    async fn changed(&mut self) {
        let (engine, epoch) = (&self.record.engine, self.record.epoch.0);
        match &self.state {
            State::Spawning { .. } => {}
            State::Loading { .. } => info!(engine.id = %engine, epoch, "an engine loads"),
            State::Ready => {
                info!(engine.id = %engine, epoch, kv_tokens = self.record.kv_tokens, "an engine is ready");
                self.record.ready = true;
                let (folder, record) = (self.folder.clone(), self.record.clone());
                let written = tokio::task::spawn_blocking(move || folder.write_record(&record)).await;
                // It serves; only it will not be taken on after a restart.
                if !matches!(written, Ok(Ok(()))) {
                    warn!(engine.id = %engine, epoch, "an engine's record could not be brought up to date");
                }
            }
            State::Stopping { why, .. } => info!(engine.id = %engine, epoch, reason = why.why, "an engine stops"),
            State::Gone(why) => {
                info!(engine.id = %engine, epoch, class = ?why.class, reason = why.why, "an engine is gone")
            }
        }
    }

    fn tell(&self) {
        let state = match &self.state {
            State::Spawning { .. } => ProcessState::Spawning,
            State::Loading { .. } => ProcessState::Loading,
            State::Ready => ProcessState::Ready(self.record.address()),
            State::Stopping { .. } => ProcessState::Stopping,
            State::Gone(exit) => ProcessState::Gone(exit.clone()),
        };
        self.shared.board.tell(
            &self.record.engine,
            self.record.epoch,
            state,
            self.members.pids.clone(),
            self.host_bytes,
        );
    }

    async fn act(&mut self, act: Act, probes: &mut JoinSet<Answer>) {
        match (act, &self.hand) {
            (Act::Wait, _) => {}
            (Act::Probe, _) => {
                if probes.is_empty() {
                    let client =
                        Client::new(self.record.address(), self.record.api.clone(), self.shared.settings.limits.token);
                    probes.spawn(async move { client.ask().await });
                }
            }
            (Act::Terminate, Some(hand)) => hand.terminate().await,
            (Act::Kill, Some(hand)) => hand.kill(&self.members.pids, self.group().as_deref()).await,
            (Act::Terminate | Act::Kill, None) => crate::launch::end(&self.members.pids, self.group().as_deref()),
        }
    }

    /// Until it is time to look again, or there is a reason to.
    async fn pause(&mut self, probes: &mut JoinSet<Answer>, answered: &mut bool) {
        let limits = &self.shared.settings.limits;
        let wait = if self.state == State::Ready { limits.look_ready } else { limits.look };
        let stopped = *self.stop.borrow();
        let closing = self.shared.closing.is_cancelled();
        tokio::select! {
            () = tokio::time::sleep(duration(wait)) => {}
            Ok(()) = self.stop.changed(), if !stopped => {}
            () = self.shared.closing.cancelled(), if !closing => {}
            Some(answer) = probes.join_next() => match answer {
                Ok(Answer::Token) => *answered = true,
                Ok(Answer::Wrong(exit)) => self.refused = Some(exit),
                Ok(Answer::NotYet) => tokio::time::sleep(duration(limits.look)).await,
                Err(e) => warn!(error = &e as &dyn std::error::Error, "a question to an engine failed"),
            }
        }
    }

    /// Of an engine that answers. Its log comes by way of the keeper, perhaps after its first answer.
    fn check_cache(&mut self) {
        if let Some(tokens) = self.record.kv_tokens.filter(|tokens| *tokens < self.ctx) {
            let why = format!("its cache holds {tokens} tokens, and one context has {}", self.ctx);
            self.refused.get_or_insert(Exit { class: ExitClass::OutOfMemory, why });
        }
    }

    fn leave(self, exit: Exit) {
        if let Some(group) = &self.record.cgroup {
            cgroup::remove(group);
        }
        if let Err(e) = self.folder.remove() {
            // Found again at the next start, it will name nobody.
            warn!(engine.id = %self.record.engine, error = &e as &dyn std::error::Error, "an engine's record could not be removed");
        }
        self.shared.board.tell(
            &self.record.engine,
            self.record.epoch,
            ProcessState::Gone(exit),
            BTreeSet::new(),
            Bytes::ZERO,
        );
        self.shared.sweep.notify_one();
    }
}

fn look_at(mut tail: Tail, folder: &Folder, pids: &BTreeSet<u32>, api: &driver::Api) -> Look {
    // How it ended is read before its last words, which were written before.
    let status = folder.status().ok().flatten();
    let mut kv_tokens = None;
    let read = tail.look(|line| {
        kv_tokens = kv_tokens.max(driver::kv_tokens(api.engine, line));
        !driver::is_echo(api, line)
    });
    if let Err(e) = read {
        warn!(error = &e as &dyn std::error::Error, "an engine's log cannot be read");
    }
    let usage = pids.iter().map(|pid| (*pid, Usage::of(*pid))).collect();
    Look { tail, kept: folder.kept().ok().flatten(), status, usage, kv_tokens }
}

/// From a length of time to one that tokio waits for.
pub(crate) fn duration(millis: Millis) -> Duration {
    Duration::from_millis(millis.get())
}
