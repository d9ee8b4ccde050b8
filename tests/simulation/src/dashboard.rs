//! A dashboard: as `fettle-dashboard` is put together, without HTTP.

use std::sync::Arc;
use std::time::Duration;

use fettle_app::adding::KnownModels;
use fettle_app::admission::Gate;
use fettle_app::foreign::ForeignIntake;
use fettle_app::intake::{DAILY_TASKS, Intake, IntakeOptions, ReadWebhook};
use fettle_app::leasing::Heart;
use fettle_app::live::Live;
use fettle_app::polling::{self, LookAt, Poller};
use fettle_app::ports::clock::{Clock, IdSource as _};
use fettle_app::ports::ledger::{Holder, Ledger};
use fettle_app::publishing::{Pace, PublishOptions, Publisher};
use fettle_app::reaping::reconcile;
use fettle_app::reconciling::Reconcilers;
use fettle_app::ringing::ring;
use fettle_app::submitting::Submitting;
use fettle_app::telling::Teller;
use fettle_app::vitals::{Pulse, Vitals};
use fettle_domain::id::WorkerId;
use fettle_domain::incoming::Incoming;
use fettle_domain::intake::IntakeRules;
use fettle_domain::progress;
use fettle_domain::task::Mode;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::disk::SimDisk;
use crate::forge::{LABEL, repo};
use crate::ledger::{MemoryLedger, Surroundings};
use crate::nature::{WallClock, Who};
use crate::together;
use crate::world::{Process, World};

pub(crate) struct Dashboard {
    pub(crate) ledger: Arc<MemoryLedger>,
    pub(crate) process: Process,
}

/// Webhooks as the forge's adapter would read them.
struct Reader;

impl ReadWebhook for Reader {
    fn read(&self, _event: &str, body: &[u8]) -> Result<Incoming, String> {
        serde_json::from_slice(body).map_err(|error| error.to_string())
    }
}

pub(crate) fn pulse() -> Pulse {
    Arc::new(Vitals::default()).pulse("part", Duration::MAX)
}

impl World {
    /// What the ledger goes by: the wall clock of the one dashboard that has it, or that of the server.
    pub(crate) fn clock_of_ledger(&self, who: Who) -> Arc<WallClock> {
        self.nature.clock(if self.together.is_some() { Who::Outside } else { who })
    }

    fn open_ledger(&self, who: Who, gate: Gate) -> Arc<MemoryLedger> {
        let nature = self.nature.clone();
        let around = Surroundings {
            clock: self.clock_of_ledger(who),
            stopwatch: Arc::new(move || nature.elapsed()),
            ids: self.nature.clone(),
            timing: self.timing,
            slots: self.slots.clone(),
            admissions: Some(Arc::new(gate)),
        };
        let disk =
            SimDisk { who, nature: self.nature.clone(), watch: self.watch.clone(), together: self.together.clone() };
        Arc::new(MemoryLedger::open_on(self.durable.clone(), around, Some(Arc::new(disk)), self.options.bug))
    }

    pub(crate) fn dashboard(&self, who: Who) -> Dashboard {
        let (clock, ids) = (self.nature.clock(who), self.nature.clone());
        let (forge, broker) = (self.forge.seen_by(who), self.broker.of(who));
        let options = Live::new(PublishOptions { trigger_label: LABEL.to_owned(), ..PublishOptions::default() });
        let models = KnownModels::fixed(Vec::new());
        let gate = Gate { forge: forge.clone(), options: options.clone(), run_tokens: None, models: models.clone() };
        let memory = self.open_ledger(who, gate);
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
            models,
            options: intake_options.clone(),
        });
        let intake = Intake {
            ledger: ledger.clone(),
            forge: forge.clone(),
            reader: Arc::new(Reader),
            submit,
            dead_letters: Some(broker.clone()),
            clock: clock.clone(),
            ids: ids.clone(),
            options: intake_options.clone(),
            pulse: pulse(),
        };
        let publisher = Publisher {
            ledger: ledger.clone(),
            forge: forge.clone(),
            repositories: self.mirror.of(who),
            push: forge.clone(),
            ids: ids.clone(),
            holder: Holder { worker: WorkerId::from_uuid(ids.uuid()), name: format!("publisher of {who}") },
            timing: self.timing,
            heart: Heart::Beside,
            options,
            pulse: pulse(),
            pace: Pace::new(self.timing.write_gap),
        };
        let foreign = ForeignIntake {
            inbox: broker.clone(),
            ledger: ledger.clone(),
            clock: clock.clone(),
            ids: ids.clone(),
            pulse: pulse(),
        };
        let mut lookout = Poller {
            ledger: ledger.clone(),
            forge,
            clock: clock.clone(),
            ids,
            options: intake_options,
            at: LookAt::Named(vec![repo().name]),
            added: watch::channel(Arc::default()).1,
            remembered: polling::Remembered::default(),
        };
        let mut teller = Teller { ledger: ledger.clone(), clock: clock.clone(), every: progress::EVERY };
        let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
        match self.together.clone() {
            Some(others) => drop(tasks.spawn(together::stay(others, who, memory.clone(), self.nature.clone()))),
            None => memory.grant_grace(),
        }
        let token = stop.clone();
        tasks.spawn(async move { intake.work(&token).await });
        let token = stop.clone();
        tasks.spawn(async move { publisher.work(&token).await });
        let token = stop.clone();
        tasks.spawn(async move { foreign.work(&token).await });
        let reconcilers = Arc::new(Reconcilers::new(clock as Arc<dyn Clock>));
        tasks.spawn(reconcile(ledger.clone(), &reconcilers, pulse(), stop.clone()));
        let (poll, token) = (reconcilers.register("poll", polling::EVERY), stop.clone());
        tasks.spawn(async move { poll.work(&mut lookout, &pulse(), &token).await });
        let (tell, token) = (reconcilers.register("progress", progress::EVERY), stop.clone());
        tasks.spawn(async move { tell.work(&mut teller, &pulse(), &token).await });
        if self.with_bell {
            tasks.spawn(ring(ledger, broker, &reconcilers, pulse(), stop.clone()));
        }
        Dashboard { ledger: memory, process: Process { tasks, stop } }
    }
}
