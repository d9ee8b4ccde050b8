//! The processes of a history and who starts, stops and kills them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fettle_app::leasing::{Heart, Holdings};
use fettle_app::metrics::RunMetrics;
use fettle_app::ports::clock::IdSource as _;
use fettle_app::ports::ledger::{Holder, Ledger as _};
use fettle_app::running::{Drain, Stay, Worker};
use fettle_domain::id::{JobId, WorkerId};
use fettle_domain::label::Labels;
use fettle_domain::lease::Timing;
use fettle_domain::turn::Slots;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::Options;
use crate::broker::Broker;
use crate::dashboard::{Dashboard, pulse};
use crate::forge::SimForge;
use crate::ledger::{Durable, MemoryLedger};
use crate::mirror::Mirror;
use crate::nature::{Nature, Who, lock};
use crate::people::{People, Wish};
use crate::run::{Meter, SimRunner};
use crate::together::Together;
use crate::watch::Watch;
use crate::wire::Wire;

/// A process that is asked to end is killed after this, as its supervisor would.
const GRACE: Duration = Duration::from_secs(25);
/// What one history has at most.
const MOST_DASHBOARDS: u64 = 3;
/// Between two looks at the network and the clocks.
const WEATHER_EVERY: Duration = Duration::from_secs(10);

pub(crate) struct World {
    pub(crate) nature: Arc<Nature>,
    pub(crate) durable: Durable,
    pub(crate) forge: Arc<SimForge>,
    pub(crate) mirror: Arc<Mirror>,
    pub(crate) broker: Arc<Broker>,
    pub(crate) meter: Arc<Meter>,
    pub(crate) slots: Slots,
    /// Workers hear of work through the broker and not by asking for long.
    pub(crate) with_bell: bool,
    pub(crate) options: Options,
    pub(crate) watch: Arc<Watch>,
    pub(crate) timing: Timing,
    /// Absent: one dashboard has the ledger for itself.
    pub(crate) together: Option<Arc<Together>>,
    dashboards: Mutex<BTreeMap<Who, Dashboard>>,
    workers: Mutex<BTreeMap<Who, Process>>,
    pub(crate) size: Size,
}

/// How much there is of everything.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) dashboards: usize,
    pub(crate) workers: usize,
    pub(crate) issues: u64,
    pub(crate) letters: u64,
    pub(crate) wishes: u64,
    pub(crate) storm: Duration,
}

pub(crate) struct Process {
    pub(crate) tasks: JoinSet<()>,
    pub(crate) stop: CancellationToken,
}

/// What happens at a time.
#[derive(Debug)]
enum Event {
    Start(Who),
    /// Asked to end; killed after the grace, then started again.
    Stop(Who),
    Weather,
    Wish(Wish),
    End,
}

impl World {
    pub(crate) fn new(nature: Arc<Nature>, options: Options) -> Arc<Self> {
        let dice = &nature.dice;
        let slots = Slots { per_repository: u32::try_from(dice.between(1, 4)).unwrap_or(1), ..Slots::default() };
        let drawn = usize::try_from(dice.between(1, MOST_DASHBOARDS)).unwrap_or(1);
        let size = Size {
            dashboards: options.dashboards.unwrap_or(drawn),
            workers: usize::try_from(dice.between(1, 3)).unwrap_or(1),
            issues: dice.between(1, 4),
            letters: dice.below(3),
            wishes: dice.below(5),
            storm: dice.millis(30_000, 120_000),
        };
        let with_bell = dice.below(2) == 0;
        let durable = Durable::default();
        nature.note(Who::Outside, || format!("{size:?}, bell {with_bell}, {:?}", nature.weather));
        Arc::new(Self {
            forge: Arc::new(SimForge::new(nature.clone(), durable.clone(), options.bug)),
            mirror: Arc::new(Mirror::new(nature.clone())),
            broker: Arc::new(Broker::new(nature.clone(), options.bug)),
            meter: Arc::default(),
            watch: Arc::new(Watch::new(nature.clone(), slots.clone())),
            timing: Timing::default(),
            together: (size.dashboards > 1).then(|| Arc::new(Together::of(size.dashboards))),
            dashboards: Mutex::default(),
            workers: Mutex::default(),
            slots,
            with_bell,
            options,
            durable,
            nature,
            size,
        })
    }

    /// Faults and wishes for a while.
    pub(crate) async fn storm(self: &Arc<Self>, people: &People) {
        let mut plan = Plan::default();
        for number in 0..self.size.dashboards {
            plan.at(
                Duration::from_millis(700) * u32::try_from(number).unwrap_or(0),
                Event::Start(Who::Dashboard(number)),
            );
        }
        for number in 0..self.size.workers {
            plan.at(self.nature.dice.millis(0, 3_000), Event::Start(Who::Worker(number)));
        }
        for wish in people.wishes() {
            let half = u64::try_from(self.size.storm.as_millis() / 2).unwrap_or(u64::MAX);
            plan.at(self.nature.dice.millis(0, half), Event::Wish(wish));
        }
        plan.at(WEATHER_EVERY, Event::Weather);
        plan.at(self.size.storm, Event::End);
        let started = Instant::now();
        loop {
            let next = plan.next_at().unwrap_or(self.size.storm);
            tokio::select! {
                biased;
                () = self.nature.kill.notified() => self.bury(started.elapsed(), &mut plan),
                () = sleep_until(started + next) => match plan.take() {
                    Some(Event::End) | None => return,
                    Some(event) => self.happen(event, started.elapsed(), &mut plan, people),
                },
            }
        }
    }

    /// Everything runs, and what was killed comes back at once.
    pub(crate) fn calm(self: &Arc<Self>) {
        self.nature.calm();
        for who in self.nature.take_killed() {
            self.kill(who);
        }
        let stopping = |process: &Process| process.stop.is_cancelled();
        for number in 0..self.size.dashboards {
            let who = Who::Dashboard(number);
            if lock(&self.dashboards).get(&who).is_none_or(|dashboard| stopping(&dashboard.process)) {
                self.start(who);
            }
        }
        for number in 0..self.size.workers {
            let who = Who::Worker(number);
            if lock(&self.workers).get(&who).is_none_or(stopping) {
                self.start(who);
            }
        }
    }

    fn happen(self: &Arc<Self>, event: Event, now: Duration, plan: &mut Plan, people: &People) {
        match event {
            Event::Start(who) => self.start(who),
            Event::Stop(who) => {
                self.nature.note(who, || "is asked to end".to_owned());
                let stop = |process: &Process| process.stop.cancel();
                match who {
                    Who::Dashboard(_) => {
                        lock(&self.dashboards).get(&who).into_iter().for_each(|found| stop(&found.process))
                    }
                    _ => lock(&self.workers).get(&who).into_iter().for_each(stop),
                }
                plan.at(now + GRACE, Event::Start(who));
            }
            Event::Weather => {
                self.weather(now, plan);
                people.ask_again(self);
                people.choose(self);
                plan.at(now + WEATHER_EVERY, Event::Weather);
            }
            Event::Wish(wish) => people.wish(self, wish),
            Event::End => {}
        }
    }

    fn weather(&self, now: Duration, plan: &mut Plan) {
        let (nature, weather) = (&self.nature, self.nature.weather);
        for number in 0..self.size.workers {
            if nature.wrong(weather.partition) {
                nature.cut_off(Who::Worker(number), nature.dice.millis(1_000, 60_000));
            }
            if nature.wrong(weather.kill) {
                plan.at(now, Event::Stop(Who::Worker(number)));
            }
        }
        for number in 0..self.size.dashboards {
            let who = Who::Dashboard(number);
            if nature.wrong(weather.kill) {
                plan.at(now, Event::Stop(who));
            }
            if nature.wrong(weather.clock) {
                let most_ms = [2_000, 600_000, 3_600_000][usize::try_from(nature.dice.below(3)).unwrap_or(0)];
                nature.set_clock(who, nature.dice.millis(0, most_ms), nature.dice.below(2) == 0);
            }
            if self.together.is_some() && nature.wrong(weather.partition) {
                nature.cut_off(who, nature.dice.millis(1_000, 60_000));
            }
        }
        if nature.wrong(weather.bell) {
            self.broker.wipe_hints();
        }
    }

    fn bury(&self, now: Duration, plan: &mut Plan) {
        for who in self.nature.take_killed() {
            self.kill(who);
            let away = match who {
                Who::Dashboard(_) => self.nature.dice.millis(100, 10_000),
                _ => self.nature.dice.millis(100, 30_000),
            };
            plan.at(now + away, Event::Start(who));
        }
    }

    fn kill(&self, who: Who) {
        match who {
            Who::Dashboard(_) => {
                let killed = lock(&self.dashboards).remove(&who);
                drop(killed);
                if let Some(together) = &self.together {
                    together.leave(who);
                }
            }
            _ => drop(lock(&self.workers).remove(&who)),
        }
    }

    fn start(self: &Arc<Self>, who: Who) {
        self.kill(who);
        self.nature.forget(who);
        self.nature.note(who, || "starts".to_owned());
        match who {
            Who::Dashboard(_) => {
                let dashboard = self.dashboard(who);
                lock(&self.dashboards).insert(who, dashboard);
            }
            _ => {
                let worker = self.worker(who);
                lock(&self.workers).insert(who, worker);
            }
        }
    }

    /// As `fettle-worker` is put together, with one slot.
    fn worker(self: &Arc<Self>, who: Who) -> Process {
        let wire = Arc::new(Wire::new(self.clone(), who));
        let worker = Worker {
            listener: None,
            leases: wire.clone(),
            heartbeat_leases: wire,
            runner: Arc::new(SimRunner { nature: self.nature.clone(), who, meter: self.meter.clone() }),
            ids: self.nature.clone(),
            holder: Holder { worker: WorkerId::from_uuid(self.nature.uuid()), name: who.to_string() },
            labels: Labels::default(),
            timing: self.timing,
            heart: Heart::Beside,
            bell: if self.with_bell { Some(self.broker.of(who)) } else { None },
            holdings: Arc::new(Holdings::default()),
            metrics: RunMetrics::default(),
            drain: Drain::default(),
            pulse: pulse(),
        };
        let (mut tasks, stop, nature) = (JoinSet::new(), CancellationToken::new(), self.nature.clone());
        let token = stop.clone();
        tasks.spawn(async move {
            if let Err(error) = worker.work(Stay::UntilShutdown, &token).await {
                nature.breach(format!("a worker was refused: {error}"));
            }
        });
        Process { tasks, stop }
    }

    /// The one that somebody is sent to who asks for any.
    pub(crate) fn any_dashboard(&self) -> Who {
        Who::Dashboard(usize::try_from(self.nature.dice.below(self.size.dashboards as u64)).unwrap_or(0))
    }

    pub(crate) fn at_any_dashboard<T, A>(
        &self,
        ask: impl FnOnce(Arc<MemoryLedger>) -> A,
    ) -> Option<oneshot::Receiver<T>>
    where
        T: Send + 'static,
        A: Future<Output = T> + Send + 'static,
    {
        self.at_dashboard(self.any_dashboard(), ask)
    }

    /// Has a dashboard do something, in its own process: killed with it. `None`: it is away.
    pub(crate) fn at_dashboard<T, A>(
        &self,
        who: Who,
        ask: impl FnOnce(Arc<MemoryLedger>) -> A,
    ) -> Option<oneshot::Receiver<T>>
    where
        T: Send + 'static,
        A: Future<Output = T> + Send + 'static,
    {
        let mut dashboards = lock(&self.dashboards);
        let dashboard = dashboards.get_mut(&who)?;
        let tasks = &mut dashboard.process.tasks;
        while tasks.try_join_next().is_some() {}
        let (answer, answered) = oneshot::channel();
        let asked = ask(dashboard.ledger.clone());
        tasks.spawn(async move {
            let _ = answer.send(asked.await);
        });
        Some(answered)
    }

    /// An operator starts a dead job over.
    pub(crate) fn redrive(&self, job: JobId) {
        let _ = self.at_any_dashboard(|ledger| async move { ledger.redrive(job, "ada").await });
    }

    /// Ends all processes; what they wrote stays.
    pub(crate) fn end(&self) {
        lock(&self.dashboards).clear();
        lock(&self.workers).clear();
    }
}

/// What is to happen, the earliest first; what was planned first comes first.
#[derive(Debug, Default)]
struct Plan {
    events: BTreeMap<(Duration, u64), Event>,
    planned: u64,
}

impl Plan {
    fn at(&mut self, when: Duration, event: Event) {
        self.planned += 1;
        self.events.insert((when, self.planned), event);
    }

    fn next_at(&self) -> Option<Duration> {
        self.events.keys().next().map(|(when, _)| *when)
    }

    fn take(&mut self) -> Option<Event> {
        self.events.pop_first().map(|(_, event)| event)
    }
}
