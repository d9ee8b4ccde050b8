//! A box that is not there: requests come, engines load, serve and go, in virtual time, and any policy decides. The same setup
//! and trace give the same outcome, so policies can be compared, and what must never happen can be looked for.
//!
//! What is simulated: slots of engines, prefixes that are warm or not, loads that take time and sometimes more memory than was
//! estimated, memory that comes back after a while, others' processes, samples that are old. What is not: tokens one by one,
//! batches that slow each other down, sleeping engines.

pub mod baseline;
pub mod box_of_gpus;
pub mod optimum;
pub mod random;
pub mod trace;
mod truth;
mod world;

use crate::id::{ModelId, OwnerId};
use crate::placement::{Barrier, Placement};
use crate::plan::plan;
use crate::quantity::{Bytes, Millis};
use crate::turns::Turns;
use crate::view::{Policy, View, Want};

/// Whoever decides. The view's turns and barrier are its own to keep.
pub trait Decide {
    fn decide(&mut self, view: &mut View, demand: &[Want]) -> Placement;
}

/// The planner.
#[derive(Debug, Default)]
pub struct Planner {
    pub policy: Policy,
    turns: Turns,
    barrier: Option<Barrier>,
}

impl Planner {
    pub fn new(policy: Policy) -> Self {
        Self { policy, ..Self::default() }
    }
}

impl Decide for Planner {
    fn decide(&mut self, view: &mut View, demand: &[Want]) -> Placement {
        view.turns = std::mem::take(&mut self.turns);
        view.barrier = self.barrier.take();
        let placement = plan(view, demand, &self.policy);
        self.turns = placement.turns.clone();
        self.barrier.clone_from(&placement.barrier);
        placement
    }
}

/// One request of a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub at: Millis,
    pub model: ModelId,
    pub owner: OwnerId,
    pub session: u64,
    pub input: u32,
    pub output: u32,
    /// When whoever asked gives up, if nothing has begun.
    pub patience: Option<Millis>,
}

/// The machine and what may go wrong on it.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Devices, pools, models, recipes and footprints; nothing is loaded yet.
    pub view: View,
    pub mistakes: Mistakes,
    pub seed: u64,
    /// Whether claims follow what loads teach; else they stay as the view has them.
    pub learns: bool,
}

/// How the truth differs from what is known of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mistakes {
    /// A load takes its estimate, more or less by so many thousandths at most.
    pub noise_permille: u32,
    /// One load in a hundred takes one and a half times its estimate.
    pub outliers: bool,
    /// Samples are as old as this.
    pub lag: Millis,
    /// Others take and give back up to so much on each pool, at random.
    pub foreign: Bytes,
}

/// What came of a trace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outcome {
    /// From its arrival until an engine began with it, for each request that was begun with.
    pub waits: Vec<Millis>,
    pub finished: u64,
    /// Given up by whoever asked.
    pub cancelled: u64,
    /// Ended by a barrier's deadline and begun again.
    pub interrupted: u64,
    /// Of requests after the first of their session: how many found their prefix, of how many.
    pub warm: (u64, u64),
    pub loads: u64,
    pub evictions: u64,
    /// Evicted, and loaded again within a minute.
    pub thrashed: u64,
    /// Loads for which there was not enough memory in truth.
    pub out_of_memory: u64,
    /// By owner, in the order of their names.
    pub mean_wait_of: Vec<(OwnerId, Millis)>,
    /// When a promise was greater than its pool: never, for a policy that keeps the memory ledger.
    pub overcommitted: u64,
    /// The time at which the last request ended.
    pub end: Millis,
}

impl Outcome {
    pub fn mean_wait(&self) -> Millis {
        let sum: u64 = self.waits.iter().map(|wait| wait.get()).sum();
        Millis::new(sum / (self.waits.len() as u64).max(1))
    }

    pub fn longest_wait(&self) -> Millis {
        self.waits.iter().copied().max().unwrap_or_default()
    }

    pub fn warm_permille(&self) -> u64 {
        self.warm.0 * 1000 / self.warm.1.max(1)
    }
}

/// Lives through `trace`, which is in the order of time.
pub fn simulate(setup: &Setup, trace: &[Request], decide: &mut dyn Decide) -> Outcome {
    world::World::new(setup, trace, decide).live()
}

#[cfg(test)]
mod tests;
