//! The processes of a history and who starts, stops and kills them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fettle_app::admission::Gate;
use fettle_app::foreign::ForeignIntake;
use fettle_app::intake::{DAILY_TASKS, Intake, IntakeOptions, ReadWebhook};
use fettle_app::leasing::{Heart, Holdings};
use fettle_app::live::Live;
use fettle_app::ports::clock::IdSource as _;
use fettle_app::ports::ledger::{Holder, Ledger};
use fettle_app::publishing::{Pace, PublishOptions, Publisher};
use fettle_app::reaping::reconcile;
use fettle_app::reconciling::Reconcilers;
use fettle_app::ringing::ring;
use fettle_app::running::{Stay, Worker};
use fettle_app::submitting::Submitting;
use fettle_app::vitals::{Pulse, Vitals};
use fettle_domain::id::{JobId, WorkerId};
use fettle_domain::incoming::Incoming;
use fettle_domain::intake::IntakeRules;
use fettle_domain::label::Labels;
use fettle_domain::lease::Timing;
use fettle_domain::task::Mode;
use fettle_domain::turn::Slots;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::Options;
use crate::broker::Broker;
use crate::forge::{LABEL, SimForge};
use crate::ledger::{Durable, MemoryLedger, Surroundings};
use crate::mirror::Mirror;
use crate::nature::{Nature, Who, lock};
use crate::people::{People, Wish};
use crate::run::{Meter, SimRunner};
use crate::watch::Watch;
use crate::wire::Wire;

/// A process that is asked to end is killed after this, as its supervisor would.
const GRACE: Duration = Duration::from_secs(25);
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
    with_bell: bool,
    options: Options,
    watch: Arc<Watch>,
    timing: Timing,
    dashboard: Mutex<Option<Dashboard>>,
    workers: Mutex<BTreeMap<Who, Process>>,
    pub(crate) size: Size,
}

/// How much there is of everything.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) workers: usize,
    pub(crate) issues: u64,
    pub(crate) letters: u64,
    pub(crate) wishes: u64,
    pub(crate) storm: Duration,
}

struct Process {
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

struct Dashboard {
    ledger: Arc<MemoryLedger>,
    process: Process,
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

/// Webhooks as the forge's adapter would read them.
struct Reader;

impl ReadWebhook for Reader {
    fn read(&self, _event: &str, body: &[u8]) -> Result<Incoming, String> {
        serde_json::from_slice(body).map_err(|error| error.to_string())
    }
}

impl World {
    pub(crate) fn new(nature: Arc<Nature>, options: Options) -> Arc<Self> {
        let dice = &nature.dice;
        let slots = Slots { per_repository: u32::try_from(dice.between(1, 4)).unwrap_or(1), ..Slots::default() };
        let size = Size {
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
            dashboard: Mutex::default(),
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
        plan.at(Duration::ZERO, Event::Start(Who::Dashboard));
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
        if lock(&self.dashboard).as_ref().is_none_or(|dashboard| stopping(&dashboard.process)) {
            self.start(Who::Dashboard);
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
                    Who::Dashboard => lock(&self.dashboard).iter().for_each(|dashboard| stop(&dashboard.process)),
                    _ => lock(&self.workers).get(&who).into_iter().for_each(stop),
                }
                plan.at(now + GRACE, Event::Start(who));
            }
            Event::Weather => {
                self.weather(now, plan);
                people.ask_again(self);
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
        if nature.wrong(weather.kill) {
            plan.at(now, Event::Stop(Who::Dashboard));
        }
        if nature.wrong(weather.clock) {
            let most_ms = [2_000, 600_000, 3_600_000][usize::try_from(nature.dice.below(3)).unwrap_or(0)];
            nature.set_clock(nature.dice.millis(0, most_ms), nature.dice.below(2) == 0);
        }
        if nature.wrong(weather.bell) {
            self.broker.wipe_hints();
        }
    }

    fn bury(&self, now: Duration, plan: &mut Plan) {
        for who in self.nature.take_killed() {
            self.kill(who);
            let away = match who {
                Who::Dashboard => self.nature.dice.millis(100, 10_000),
                _ => self.nature.dice.millis(100, 30_000),
            };
            plan.at(now + away, Event::Start(who));
        }
    }

    fn kill(&self, who: Who) {
        match who {
            Who::Dashboard => drop(lock(&self.dashboard).take()),
            _ => drop(lock(&self.workers).remove(&who)),
        }
    }

    fn start(self: &Arc<Self>, who: Who) {
        self.kill(who);
        self.nature.forget(who);
        self.nature.note(who, || "starts".to_owned());
        match who {
            Who::Dashboard => {
                let dashboard = self.dashboard();
                *lock(&self.dashboard) = Some(dashboard);
            }
            _ => {
                let worker = self.worker(who);
                lock(&self.workers).insert(who, worker);
            }
        }
    }

    fn pulse() -> Pulse {
        Arc::new(Vitals::default()).pulse("part", Duration::MAX)
    }

    /// As `fettle-dashboard` is put together, without HTTP.
    fn dashboard(&self) -> Dashboard {
        let (clock, ids, forge) = (self.nature.clone(), self.nature.clone(), self.forge.clone());
        let options = Live::new(PublishOptions { trigger_label: LABEL.to_owned(), ..PublishOptions::default() });
        let nature = self.nature.clone();
        let around = Surroundings {
            clock: clock.clone(),
            stopwatch: Arc::new(move || nature.elapsed()),
            ids: ids.clone(),
            timing: self.timing,
            slots: self.slots.clone(),
            admissions: Some(Arc::new(Gate { forge: forge.clone(), options: options.clone() })),
        };
        let disk = self.watch.clone();
        let memory = Arc::new(MemoryLedger::open_on(self.durable.clone(), around, Some(disk), self.options.bug));
        let ledger: Arc<dyn Ledger> = memory.clone();
        let intake_options = Live::new(IntakeOptions {
            rules: IntakeRules { label: LABEL.to_owned(), label_mode: Mode::Quickfix, allowed_bots: Vec::new() },
            daily_tasks: DAILY_TASKS,
            needs: Vec::new(),
        });
        let submit = Arc::new(Submitting {
            ledger: ledger.clone(),
            forge: forge.clone(),
            clock: clock.clone(),
            ids: ids.clone(),
            hosts: vec!["forge.test".to_owned()],
            models: Vec::new(),
            options: intake_options.clone(),
        });
        let intake = Intake {
            ledger: ledger.clone(),
            forge: forge.clone(),
            reader: Arc::new(Reader),
            submit,
            dead_letters: Some(self.broker.clone()),
            clock: clock.clone(),
            ids: ids.clone(),
            options: intake_options,
            pulse: Self::pulse(),
        };
        let publisher = Publisher {
            ledger: ledger.clone(),
            forge: forge.clone(),
            repositories: self.mirror.clone(),
            push: forge,
            ids: ids.clone(),
            holder: Holder { worker: WorkerId::from_uuid(ids.uuid()), name: "publisher".to_owned() },
            timing: self.timing,
            heart: Heart::Beside,
            options,
            pulse: Self::pulse(),
            pace: Pace::new(self.timing.write_gap),
        };
        let foreign = ForeignIntake {
            inbox: self.broker.clone(),
            ledger: ledger.clone(),
            clock: clock.clone(),
            ids,
            pulse: Self::pulse(),
        };
        let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
        let token = stop.clone();
        tasks.spawn(async move { intake.work(&token).await });
        let token = stop.clone();
        tasks.spawn(async move { publisher.work(&token).await });
        let token = stop.clone();
        tasks.spawn(async move { foreign.work(&token).await });
        let reconcilers = Arc::new(Reconcilers::new(clock));
        tasks.spawn(reconcile(ledger.clone(), &reconcilers, Self::pulse(), stop.clone()));
        if self.with_bell {
            tasks.spawn(ring(ledger, self.broker.clone(), &reconcilers, Self::pulse(), stop.clone()));
        }
        Dashboard { ledger: memory, process: Process { tasks, stop } }
    }

    /// As `fettle-worker` is put together, with one slot.
    fn worker(self: &Arc<Self>, who: Who) -> Process {
        let wire = Arc::new(Wire { world: self.clone(), who });
        let worker = Worker {
            leases: wire.clone(),
            heartbeat_leases: wire,
            runner: Arc::new(SimRunner { nature: self.nature.clone(), who, meter: self.meter.clone() }),
            ids: self.nature.clone(),
            holder: Holder { worker: WorkerId::from_uuid(self.nature.uuid()), name: who.to_string() },
            labels: Labels::default(),
            timing: self.timing,
            heart: Heart::Beside,
            bell: if self.with_bell { Some(self.broker.clone()) } else { None },
            holdings: Arc::new(Holdings::default()),
            pulse: Self::pulse(),
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

    /// Has the dashboard do something, in its own process: killed with it. `None`: it is away.
    pub(crate) fn at_dashboard<T, A>(&self, ask: impl FnOnce(Arc<MemoryLedger>) -> A) -> Option<oneshot::Receiver<T>>
    where
        T: Send + 'static,
        A: Future<Output = T> + Send + 'static,
    {
        let mut dashboard = lock(&self.dashboard);
        let dashboard = dashboard.as_mut()?;
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
        let _ = self.at_dashboard(|ledger| async move { ledger.redrive(job, "ada").await });
    }

    /// Ends all processes; what they wrote stays.
    pub(crate) fn end(&self) {
        drop(lock(&self.dashboard).take());
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
