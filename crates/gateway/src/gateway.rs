//! The gateway put together: the endpoint as a router, and one task that keeps its books true.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use fettle_app::live::Live;
use fettle_app::ports::clock::{Clock, IdSource};
use fettle_app::ports::model::ToolCalls;
use fettle_app::ports::serving::{Demand, EngineMeter, Load, Supply};
use jiff::SignedDuration;
use prometheus::Registry;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::access::Access;
use crate::bodies::Bodies;
use crate::budgets::{Budgets, Cost};
use crate::endpoint;
use crate::floor::Floor;
use crate::front::Front;
use crate::metrics::Metrics;
use crate::providers::{Providers, check, names};
use crate::relay::Streams;
use crate::settings::{Settings, SettingsError};
use crate::upstream::Wiring;
use crate::usage::{Accounts, Store, UsageReader, UsageRecord};

/// How soon a pause that is over is noticed, and how old the load may be that others see.
const TICK: Duration = Duration::from_millis(200);
const FORGET_EVERY: Duration = Duration::from_secs(60);
/// What is left of usage when the gateway ends gets so long to be written.
const LAST_WRITE: Duration = Duration::from_secs(5);
/// Older records belong to no run token that is still good.
const LONGEST_RUN: SignedDuration = SignedDuration::from_hours(24);

/// What the gateway is given.
pub struct Parts {
    pub supply: watch::Receiver<Arc<Supply>>,
    /// Of engines whose devices are measured.
    pub meters: watch::Receiver<Arc<Vec<EngineMeter>>>,
    /// How models call tools, by name; whoever lists models is told.
    pub examined: watch::Receiver<Arc<BTreeMap<String, ToolCalls>>>,
    pub clock: Arc<dyn Clock>,
    pub ids: Arc<dyn IdSource>,
}

/// What the gateway tells.
pub struct Told {
    pub demand: watch::Receiver<Arc<Demand>>,
    pub load: watch::Receiver<Arc<Load>>,
}

pub struct Gateway {
    front: Arc<Front>,
    providers: Arc<Providers>,
    supply: watch::Receiver<Arc<Supply>>,
    meters: watch::Receiver<Arc<Vec<EngineMeter>>>,
    demand: watch::Sender<Arc<Demand>>,
    load: watch::Sender<Arc<Load>>,
    tracker: TaskTracker,
}

impl Gateway {
    /// Reads what runs have spent in an earlier life; blocks for as long as that takes. Its metrics are in `registry`.
    pub fn new(mut settings: Settings, parts: Parts, registry: &Registry) -> Result<(Self, Told), SettingsError> {
        check(&settings.providers)?;
        let Parts { supply, meters, examined, clock, ids } = parts;
        let tracker = TaskTracker::new();
        let metrics = Arc::new(Metrics::register(registry).map_err(SettingsError::Metrics)?);
        let floor = Arc::new(Floor::new(&settings, Wiring::new(tracker.clone())?, Arc::clone(&metrics))?);
        floor.supply(supply.borrow().clone());
        let store = Arc::new(Store::open(&settings.usage_folder));
        let budgets = Arc::new(Budgets::default());
        recall(&budgets, &store.reader(), clock.now());
        let front = Front {
            access: Access::new(&mut settings),
            bodies: Bodies::new(settings.most_body_bytes),
            budgets,
            names: Live::new(names(&settings, &[])),
            floor,
            streams: Streams::default(),
            store,
            accounts: Mutex::new(Accounts::default()),
            metrics,
            clock,
            ids,
            max_wait: settings.queue.max_wait,
            timeouts: settings.timeouts,
            examined,
        };
        let (demand, demand_told) = watch::channel(Arc::default());
        let (load, load_told) = watch::channel(Arc::default());
        let front = Arc::new(front);
        let providers = Providers::new(&front, settings);
        let gateway = Self { front, providers: Arc::new(providers), supply, meters, demand, load, tracker };
        Ok((gateway, Told { demand: demand_told, load: load_told }))
    }

    /// The endpoint. Whoever serves it sets TCP_NODELAY on its connections: without, a stream's pieces wait for each other.
    pub fn router(&self) -> Router {
        endpoint::router(Arc::clone(&self.front))
    }

    /// Who exchanges providers while the gateway serves.
    pub fn providers(&self) -> Arc<Providers> {
        Arc::clone(&self.providers)
    }

    pub fn usage(&self) -> UsageReader {
        self.front.store.reader()
    }

    /// Until `shutdown`: follows supply and meters, tells demand and load, writes usage. The server is ended first: what a
    /// request has used that ends after `shutdown` is not written.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let store = Arc::clone(&self.front.store);
        let follow = self.follow();
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = follow => {}
            () = store.run() => {}
        }
        self.front.store.append(self.front.accounts().close_all());
        if !timeout(LAST_WRITE, self.front.store.flush()).await.unwrap_or(false) {
            warn!("some usage could not be written before the end");
        }
        self.tracker.close();
    }

    async fn follow(&mut self) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut forgotten = Instant::now();
        let (mut supplied, mut metered) = (true, true);
        loop {
            let front = &self.front;
            tokio::select! {
                changed = self.supply.changed(), if supplied => {
                    supplied = changed.is_ok();
                    front.floor.supply(self.supply.borrow_and_update().clone());
                }
                changed = self.meters.changed(), if metered => {
                    metered = changed.is_ok();
                    let meters = self.meters.borrow_and_update().clone();
                    self.close(&meters);
                }
                () = front.floor.changed.notified() => {}
                _ = tick.tick() => {
                    front.floor.tick();
                    front.streams.look(Instant::now());
                    front.metrics.usage_lost.set(i64::try_from(front.store.lost()).unwrap_or(i64::MAX));
                    if forgotten.elapsed() >= FORGET_EVERY {
                        forgotten = Instant::now();
                        front.floor.forget_old();
                    }
                    tell(&self.load, front.floor.load());
                }
            }
            tell(&self.demand, self.front.floor.demand());
        }
    }

    fn close(&self, meters: &[EngineMeter]) {
        let records = self.front.accounts().measure(meters, Instant::now());
        for UsageRecord { run, gpu_micros, .. } in &records {
            if let Some(run) = run {
                let expires = self.front.clock.now().saturating_add(LONGEST_RUN).unwrap_or(jiff::Timestamp::MAX);
                self.front.budgets.add(*run, Cost::default(), *gpu_micros, expires);
            }
        }
        self.front.store.append(records);
    }
}

fn tell<T: PartialEq>(told: &watch::Sender<Arc<T>>, now: T) {
    told.send_if_modified(|before| {
        let changed = **before != now;
        if changed {
            *before = Arc::new(now);
        }
        changed
    });
}

/// What runs have spent, as far as it was written.
fn recall(budgets: &Budgets, usage: &UsageReader, now: jiff::Timestamp) {
    let since = now.saturating_sub(LONGEST_RUN).unwrap_or(jiff::Timestamp::MIN);
    let mut cursor = None;
    loop {
        let page = match usage.read(cursor.as_deref()) {
            Ok(page) => page,
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "what runs have spent before cannot be read");
                return;
            }
        };
        for record in page.records.iter().filter(|record| record.ended_at >= since) {
            if let Some(run) = record.run {
                let tokens = record.prompt_tokens.saturating_add(record.output_tokens);
                let expires = record.ended_at.saturating_add(LONGEST_RUN).unwrap_or(jiff::Timestamp::MAX);
                budgets.add(run, Cost { tokens, micros: record.cost_micros }, record.gpu_micros, expires);
            }
        }
        if !page.more {
            return;
        }
        cursor = Some(page.next);
    }
}
