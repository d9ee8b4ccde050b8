//! The whole system in one thread and in virtual time: the real use cases of `fettle-app` between a ledger in memory, a
//! network, a forge, a broker and clocks that fail by a seed. The same seed gives the same history, to the last line.
//!
//! Processes are groups of tasks; killing one drops them where they wait. Heartbeats beat on the same runtime
//! ([`fettle_app::leasing::Heart::Beside`]), since a thread would have a time of its own. A model, a sandbox, HTTP and SQL
//! are not here: they have tests of their own.

mod broker;
mod bug;
mod check;
mod dashboard;
mod dice;
mod disk;
mod forge;
mod ledger;
mod mirror;
mod nature;
mod people;
mod run;
mod together;
mod watch;
mod wire;
mod world;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use fettle_domain::effect::EffectKind;
use fettle_domain::id::JobId;
use fettle_domain::job::{JobKind, JobState};
use fettle_domain::task::TaskState;
use tokio::time::{Instant, sleep};

pub use bug::Bug;
pub use ledger::{Durable, MemoryLedger, Surroundings};

use crate::ledger::JobRow;
use crate::nature::{Nature, Who};
use crate::people::People;
use crate::world::World;

/// When nothing fails any more, everything ends within this: five tries with pauses of up to ten minutes between them, for a
/// Run and for its publication.
const ENDS_WITHIN: Duration = Duration::from_secs(2 * 3600);
/// Requests that were under way when the calm began have arrived by then.
const SETTLES: Duration = Duration::from_secs(15);
/// An operator looks for what is dead this often.
const LOOK_EVERY: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    pub bug: Option<Bug>,
    /// How many dashboards share the ledger; drawn when absent.
    pub dashboards: Option<usize>,
    /// Keeps what happened as text; slower.
    pub keep_trace: bool,
}

/// What came of a seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    pub seed: u64,
    /// What must never happen and did; empty when all held.
    pub breaches: Vec<String>,
    /// One line for each thing that happened, when it was asked for.
    pub trace: Vec<String>,
    pub tasks: usize,
    pub dashboards: usize,
}

/// Lives through the history of `seed`.
pub fn run(seed: u64, options: Options) -> History {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O can be made");
    runtime.block_on(live(seed, options))
}

/// What shows a history again, line by line.
pub fn replay_command(seed: u64, options: Options) -> String {
    use clap::ValueEnum as _;
    let bug = options.bug.and_then(|bug| bug.to_possible_value()).map(|value| format!(" --bug {}", value.get_name()));
    let dashboards = options.dashboards.map(|count| format!(" --dashboards {count}"));
    format!(
        "cargo xtask simulate --from {seed} --seeds 1 --trace{}{}",
        bug.unwrap_or_default(),
        dashboards.unwrap_or_default()
    )
}

async fn live(seed: u64, options: Options) -> History {
    let nature = Arc::new(Nature::of_seed(seed, options.keep_trace));
    let world = World::new(nature.clone(), options);
    let people = People::new(nature.clone(), world.size);
    world.storm(&people).await;
    world.calm();
    come_to_an_end(&world, &people).await;
    world.end();
    audit(&world);
    for breach in check::at_the_end(&world, &people) {
        nature.breach(breach);
    }
    let tasks = world.durable.rows().tasks.len();
    let dashboards = world.size.dashboards;
    History { seed, breaches: nature.breaches(), trace: nature.take_trace(), tasks, dashboards }
}

/// I8: without faults, everything ends. What died in the storm is started once more.
async fn come_to_an_end(world: &World, people: &People) {
    let began = Instant::now();
    sleep(SETTLES).await;
    // Those that were queued again.
    let mut started_over = BTreeSet::new();
    loop {
        people.ask_again(world);
        people.choose(world);
        let asked = dead(world);
        for job in asked.difference(&started_over) {
            world.redrive(*job);
        }
        sleep(LOOK_EVERY).await;
        let still = dead(world);
        started_over.extend(asked.difference(&still));
        let mut open = check::unfinished(world, people);
        open.extend(still.difference(&started_over).map(|job| format!("{job} is dead and was not started over")));
        if open.is_empty() {
            break;
        }
        if began.elapsed() > ENDS_WITHIN {
            world.nature.breach(format!("I8: {} s after the storm: {}", ENDS_WITHIN.as_secs(), open.join("; ")));
            break;
        }
    }
    world.nature.note(Who::Outside, || "the end".to_owned());
}

/// Those that can be started over: what was cancelled is asked for anew instead.
fn dead(world: &World) -> BTreeSet<JobId> {
    let rows = world.durable.rows();
    let is_cancelled = |row: &JobRow| rows.task(row.task).is_ok_and(|task| task.state == TaskState::Cancelled);
    // Another Run's patch is the Task's pull request.
    let is_beaten = |row: &JobRow| {
        let task = rows.task(row.task).expect("a job has a Task");
        task.runs.len() > 1 && task.effects.iter().any(|(effect, _)| effect.kind == EffectKind::Push)
    };
    let dead = rows.jobs.iter().filter(|row| {
        let is_run = row.job.kind == JobKind::Run;
        matches!(row.job.state, JobState::Dead { .. }) && !(is_run && (is_cancelled(row) || is_beaten(row)))
    });
    dead.map(|row| row.job.id).collect()
}

fn audit(world: &World) {
    use fettle_app::ports::clock::Clock as _;
    let rows = world.durable.rows();
    for breach in ledger::audit(&rows, &world.slots, world.clock_of_ledger(Who::Dashboard(0)).now()) {
        world.nature.breach(breach);
    }
}
