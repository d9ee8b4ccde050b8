//! Keeps the models that are asked for loaded: facts about devices, engines and demand go in, a plan comes out of `placement`,
//! and what has to be started and stopped is handed to the host of engines. Knows no NVML, no HTTP and no process.
//!
//! [`Placer::step`] is the whole decision, a function of what it remembers and of the [`Facts`] of one moment; [`run`] is the
//! edge that brings the facts and carries out the commands. In a step, in this order: engines are as their processes say
//! (`engine`); bytes are theirs whose processes have them (`seen`); memory that was left is free once it was seen free
//! (`leaving`); what loads took is learned for the next ones (`lessons`); the planner decides; seats whose room has been made are started; what is served is told.

mod catalog;
mod engine;
mod leaving;
mod lessons;
mod metering;
mod placer;
mod seen;
mod telling;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use fettle_placement::id::ModelId;

use crate::ports::serving::{Demand, EngineHost, EngineMeter, HostError, Load, ModelOrder, Since, Supply, World};
use crate::vitals::Pulse;

pub use catalog::{Catalog, LocalModel, LocalRecipe};
pub use lessons::Lesson;
pub use placer::{Command, Facts, Placer, Step};
pub use telling::{EngineStatus, Notice, NoticeKind, Refused, Status};

/// At least so often, since time alone changes what is to be done: a barrier's deadline, a back-off, a sample that gets old.
const TICK: Duration = Duration::from_millis(250);
/// Requests come by the thousand; a plan for each would be the same plan.
const MIN_PAUSE: Duration = Duration::from_millis(2);

/// What tells the placer about the rest, and what it tells.
pub struct Ports {
    pub host: Arc<dyn EngineHost>,
    pub world: watch::Receiver<Arc<World>>,
    pub demand: watch::Receiver<Arc<Demand>>,
    pub load: watch::Receiver<Arc<Load>>,
    pub orders: mpsc::Receiver<(ModelId, ModelOrder)>,
    pub supply: watch::Sender<Arc<Supply>>,
    pub meters: watch::Sender<Arc<Vec<EngineMeter>>>,
    /// Whether an engine loads or leaves: memory has to be sampled more often meanwhile.
    pub in_change: watch::Sender<bool>,
    pub status: watch::Sender<Arc<Status>>,
    pub pulse: Pulse,
    /// Told once each, for the log and the admin API.
    pub notices: Box<dyn Fn(Notice) + Send + Sync>,
    /// Kept for the next life; what cannot be kept is learned again.
    pub lessons: Box<dyn Fn(Lesson) + Send + Sync>,
}

/// Adopts engines of an earlier life, then plans until `stop`. Nothing is planned before the first sample of the devices and
/// before the engines of an earlier life are known.
///
/// # Errors
///
/// When engines cannot be recorded, since what is not recorded could outlive everybody who knows of it.
pub async fn run(mut placer: Placer, mut ports: Ports, since: Since, stop: CancellationToken) -> Result<(), HostError> {
    let mut processes = ports.host.processes();
    let recipes = placer.recipes();
    let adopted = tokio::select! {
        adopted = ports.host.adopt(&recipes) => adopted?,
        () = stop.cancelled() => return Ok(()),
    };
    tell(&ports, placer.adopt(adopted, since.millis()));
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while ports.world.borrow().pools.is_empty() {
        // A driver that wakes its GPUs takes a minute, and nothing is wrong meanwhile.
        ports.pulse.beat();
        tokio::select! {
            _ = tick.tick() => {}
            () = stop.cancelled() => return Ok(()),
        }
    }
    loop {
        let facts = Facts {
            now: since.millis(),
            since,
            world: Arc::clone(&ports.world.borrow_and_update()),
            processes: Arc::clone(&processes.borrow_and_update()),
            demand: Arc::clone(&ports.demand.borrow_and_update()),
            load: Arc::clone(&ports.load.borrow_and_update()),
        };
        let Step { commands, supply, meters, lessons, in_change, notices, status } = placer.step(&facts);
        for command in commands {
            match command {
                Command::Start(order) => ports.host.start(*order),
                Command::Stop(engine, epoch) => ports.host.stop(&engine, epoch),
                Command::Forget(engine, epoch) => ports.host.forget(&engine, epoch),
            }
        }
        ports.supply.send_replace(Arc::new(supply));
        ports.meters.send_replace(Arc::new(meters));
        ports.in_change.send_if_modified(|before| std::mem::replace(before, in_change) != in_change);
        ports.status.send_replace(Arc::new(status));
        tell(&ports, notices);
        lessons.into_iter().for_each(|lesson| (ports.lessons)(lesson));
        ports.pulse.beat();
        tokio::time::sleep(MIN_PAUSE).await;
        let gone = tokio::select! {
            changed = ports.world.changed() => changed.is_err(),
            changed = processes.changed() => changed.is_err(),
            changed = ports.demand.changed() => changed.is_err(),
            Some((model, order)) = ports.orders.recv() => {
                placer.obey(&model, order, since.millis());
                false
            }
            _ = tick.tick() => false,
            () = stop.cancelled() => true,
        };
        if gone {
            return Ok(());
        }
    }
}

fn tell(ports: &Ports, notices: Vec<Notice>) {
    notices.into_iter().for_each(|notice| (ports.notices)(notice));
}

#[cfg(test)]
mod tests;
