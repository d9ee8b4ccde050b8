//! The desk among real requests: those that wait are woken, places are given back whatever happens, and what others are told
//! of it (demand, load) is made here. All decisions are the desk's.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fettle_app::ports::serving::{Demand, EngineLoad, Load, ServedModel, Supply, Waiting};
use fettle_placement::id::{EngineId, Epoch};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tracing::warn;

use crate::breaker::Outcome;
use crate::desk::{Arrival, Ask, Called, Desk, Grant, NotNow, Refusal, Rules, Source, SourceFacts, TargetFacts, Went};
use crate::metrics::Metrics;
use crate::retry::{Failed, Verdict};
use crate::routing::TargetId;
use crate::settings::{Provider, Settings, SettingsError, Timeouts};
use crate::upstream::{Upstream, Wiring};

pub(crate) struct Floor {
    inner: Mutex<Inner>,
    wiring: Wiring,
    timeouts: Timeouts,
    metrics: Arc<Metrics>,
    /// Somebody waits, or has stopped waiting.
    pub(crate) changed: Notify,
}

struct Inner {
    desk: Desk,
    upstreams: HashMap<TargetId, Arc<Upstream>>,
    engines: HashMap<(EngineId, Epoch), TargetId>,
    providers: BTreeMap<Source, SourceFacts>,
    waiting: HashMap<u64, oneshot::Sender<Result<Grant, Refusal>>>,
    next_target: u64,
    supply: Arc<Supply>,
}

/// A place at a target; given back when it is dropped.
pub(crate) struct Held {
    floor: Arc<Floor>,
    pub(crate) grant: Grant,
    pub(crate) upstream: Arc<Upstream>,
    source: Source,
    went: Went,
}

#[derive(Debug)]
pub(crate) enum NotAdmitted {
    Refused(Refusal),
    /// Nobody was free for as long as the caller may wait; the planner's sentence, if it has one.
    Waited(Option<NotNow>),
}

impl Floor {
    pub(crate) fn new(settings: &Settings, wiring: Wiring, metrics: Arc<Metrics>) -> Result<Self, SettingsError> {
        let rules = Rules {
            queue_limit: settings.queue.per_model,
            interactive_weight: settings.queue.interactive_weight,
            sticky_ttl: settings.sticky_ttl,
        };
        let inner = Inner {
            desk: Desk::new(rules),
            upstreams: HashMap::new(),
            engines: HashMap::new(),
            providers: BTreeMap::new(),
            waiting: HashMap::new(),
            next_target: 0,
            supply: Arc::default(),
        };
        let floor =
            Self { inner: Mutex::new(inner), wiring, timeouts: settings.timeouts, metrics, changed: Notify::new() };
        match floor.provide(settings.providers.iter().enumerate()).pop() {
            Some((_, error)) => Err(error),
            None => Ok(floor),
        }
    }

    /// Which providers there are from now on, by their numbers; a number stands for the same provider for ever. Requests at one that
    /// is gone come to their end, and whoever waits for it is told that nobody is called so.
    ///
    /// Gives those that cannot be asked, by their numbers.
    pub(crate) fn provide<'a>(
        &self,
        providers: impl Iterator<Item = (usize, &'a Provider)>,
    ) -> Vec<(usize, SettingsError)> {
        let known: Vec<Source> = self.inner().providers.keys().cloned().collect();
        let (mut present, mut new, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        for (number, provider) in providers {
            let source = Source::Provider(number);
            if !known.contains(&source) {
                match Upstream::of_provider(provider, &self.timeouts, &self.wiring) {
                    Ok(upstream) => new.push((source.clone(), provider.parallel, Arc::new(upstream))),
                    Err(error) => {
                        refused.push((number, error));
                        continue;
                    }
                }
            }
            present.push(source);
        }
        let mut inner = self.inner();
        for source in known.iter().filter(|source| !present.contains(source)) {
            for target in inner.providers.remove(source).into_iter().flat_map(|facts| facts.targets) {
                inner.upstreams.remove(&target.id);
            }
        }
        for (source, parallel, upstream) in new {
            let id = TargetId(inner.next_target);
            inner.next_target += 1;
            inner.upstreams.insert(id, upstream);
            let facts = TargetFacts { id, parallel, draining: false };
            inner.providers.insert(source, SourceFacts { targets: vec![facts], unserved: None });
        }
        let supply = Arc::clone(&inner.supply);
        drop(inner);
        self.supply(supply);
        refused
    }

    /// Engines come and go as `supply` says; those that wait for one that has come are woken.
    pub(crate) fn supply(&self, supply: Arc<Supply>) {
        let mut inner = self.inner();
        let mut facts = inner.providers.clone();
        let mut present = Vec::new();
        for model in &supply.models {
            let targets = model.engines.iter().filter_map(|engine| {
                let life = (engine.engine.clone(), engine.epoch);
                let id = match inner.engines.get(&life) {
                    Some(id) => *id,
                    None => {
                        let id = TargetId(inner.next_target);
                        let Some(upstream) = Upstream::of_engine(engine, &self.timeouts, &self.wiring) else {
                            warn!(engine.id = %engine.engine, "an engine's address or key cannot be used; it gets no requests");
                            return None;
                        };
                        inner.next_target += 1;
                        inner.upstreams.insert(id, Arc::new(upstream));
                        inner.engines.insert(life.clone(), id);
                        id
                    }
                };
                present.push(life);
                Some(TargetFacts { id, parallel: u32::from(engine.parallel), draining: engine.draining })
            });
            let targets = targets.collect();
            facts.insert(Source::Local(model.id.clone()), SourceFacts { targets, unserved: unserved(model) });
        }
        let gone: Vec<_> = inner.engines.keys().filter(|life| !present.contains(life)).cloned().collect();
        for life in gone {
            if let Some(id) = inner.engines.remove(&life) {
                inner.upstreams.remove(&id);
            }
        }
        let called = inner.desk.supply(facts, Instant::now());
        inner.tell(called);
        inner.supply = supply;
        drop(inner);
        self.changed.notify_one();
    }

    /// The supply that the desk's books are made from.
    pub(crate) fn known(&self) -> Arc<Supply> {
        Arc::clone(&self.inner().supply)
    }

    /// A place for `ask`, after `patience` at the latest.
    pub(crate) async fn admit(self: &Arc<Self>, ask: &Ask, patience: Duration) -> Result<Held, NotAdmitted> {
        let place = {
            let mut inner = self.inner();
            let arrival = inner.desk.arrive(ask.clone(), Instant::now());
            let turned_away = inner.desk.turned_away();
            inner.tell(turned_away);
            match arrival {
                Arrival::Go(grant) => {
                    return self.hold(&inner, grant, ask).ok_or(NotAdmitted::Refused(Refusal::Unknown));
                }
                Arrival::Refused(refusal) => return Err(NotAdmitted::Refused(refusal)),
                Arrival::Waits(id) => {
                    let (call, called) = oneshot::channel();
                    inner.waiting.insert(id, call);
                    Place { floor: Arc::clone(self), ask: ask.clone(), id, called: Some(called) }
                }
            }
        };
        self.changed.notify_one();
        place.wait(patience).await
    }

    /// Whether `ask`, which has just failed at `failing`, is tried again.
    pub(crate) fn retry(&self, ask: &Ask, failed: Failed, failing: TargetId) -> Verdict {
        self.inner().desk.retry(ask, failed, failing, Instant::now())
    }

    /// What time alone changes: pauses that are over, sessions that are too old.
    pub(crate) fn tick(&self) {
        let now = Instant::now();
        let mut inner = self.inner();
        let called = inner.desk.call(now);
        inner.tell(called);
        self.metrics.queue_depth.set(i64::try_from(inner.desk.queue_depth()).unwrap_or(i64::MAX));
        self.metrics.breakers.reset();
        for (id, upstream) in &inner.upstreams {
            if let Some(state) = inner.desk.breaker_state(*id, now) {
                self.metrics.breakers.with_label_values(&[&upstream.name]).set(state);
            }
        }
    }

    pub(crate) fn forget_old(&self) {
        self.inner().desk.forget_old(Instant::now());
    }

    pub(crate) fn demand(&self) -> Demand {
        let crowds = self.inner().desk.crowds();
        let waiting = crowds.into_iter().filter_map(|crowd| match crowd.source {
            Source::Local(model) => Some(Waiting {
                model,
                owner: crowd.owner,
                class: crowd.class,
                requests: u32::try_from(crowd.requests).unwrap_or(u32::MAX),
                oldest: crowd.oldest,
            }),
            Source::Provider(_) => None,
        });
        Demand { waiting: waiting.collect() }
    }

    pub(crate) fn load(&self) -> Load {
        let inner = self.inner();
        let loads = inner.desk.loads(Instant::now());
        let mut engines: Vec<EngineLoad> = inner
            .engines
            .iter()
            .filter_map(|((engine, epoch), id)| {
                let load = loads.get(id)?;
                Some(EngineLoad {
                    engine: engine.clone(),
                    epoch: *epoch,
                    inflight: load.inflight,
                    warm_sessions: load.warm_sessions,
                    rate_milli: load.rate_milli,
                    last_used: load.last_used,
                })
            })
            .collect();
        engines.sort_by(|one, other| one.engine.cmp(&other.engine));
        Load { engines }
    }

    fn hold(self: &Arc<Self>, inner: &Inner, grant: Grant, ask: &Ask) -> Option<Held> {
        let upstream = Arc::clone(inner.upstreams.get(&grant.target)?);
        self.metrics.routes.with_label_values(&[grant.policy.word()]).inc();
        self.metrics.prefix_hit_tokens.inc_by(grant.cached_tokens);
        let source = ask.sources[grant.source].clone();
        let went = Went { outcome: Outcome::Neutral, said: None, rest: None, measured: None };
        Some(Held { floor: Arc::clone(self), grant, upstream, source, went })
    }

    fn answers(&self, grant: &Grant) {
        let mut inner = self.inner();
        let called = inner.desk.answers(grant.target, Instant::now());
        let any = !called.is_empty();
        inner.tell(called);
        drop(inner);
        if any {
            self.changed.notify_one();
        }
    }

    fn release(&self, source: &Source, grant: &Grant, went: Went) {
        let mut inner = self.inner();
        let called = inner.desk.release(source, grant, went, Instant::now());
        let any = !called.is_empty();
        inner.tell(called);
        drop(inner);
        if any {
            self.changed.notify_one();
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn tell(&mut self, called: Vec<Called>) {
        for Called { waiter, to } in called {
            if let Some(call) = self.waiting.remove(&waiter) {
                // Whoever has just gone takes it out of the channel and gives it back: see `Place`.
                let _ = call.send(to);
            }
        }
    }
}

fn unserved(model: &ServedModel) -> Option<NotNow> {
    model.unserved.as_ref().map(|one| NotNow { why: one.why.clone(), when: one.when })
}

impl Held {
    /// Its answer has begun, and may go on for long.
    pub(crate) fn answers(&self) {
        self.floor.answers(&self.grant);
    }

    /// How it went; until this is said, it says nothing of the target.
    pub(crate) fn went(&mut self, went: Went) {
        self.went = went;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.floor.release(&self.source, &self.grant, self.went.clone());
    }
}

/// A request in line; dropped, it leaves.
struct Place {
    floor: Arc<Floor>,
    ask: Ask,
    id: u64,
    called: Option<oneshot::Receiver<Result<Grant, Refusal>>>,
}

impl Place {
    async fn wait(mut self, patience: Duration) -> Result<Held, NotAdmitted> {
        let Some(called) = self.called.as_mut() else { return Err(NotAdmitted::Waited(None)) };
        match tokio::time::timeout(patience, called).await {
            Ok(Ok(Ok(grant))) => {
                self.called = None;
                let inner = self.floor.inner();
                self.floor.hold(&inner, grant, &self.ask).ok_or(NotAdmitted::Refused(Refusal::Unknown))
            }
            Ok(Ok(Err(refusal))) => {
                self.called = None;
                Err(NotAdmitted::Refused(refusal))
            }
            Ok(Err(_)) | Err(_) => Err(NotAdmitted::Waited(self.floor.inner().desk.why_waiting(&self.ask))),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(mut called) = self.called.take() else { return };
        let left = {
            let mut inner = self.floor.inner();
            inner.waiting.remove(&self.id);
            inner.desk.leave(self.id)
        };
        if !left && let Ok(Ok(grant)) = called.try_recv() {
            let went = Went { outcome: Outcome::Neutral, said: None, rest: None, measured: None };
            self.floor.release(&self.ask.sources[grant.source], &grant, went);
        }
        self.floor.changed.notify_one();
    }
}
