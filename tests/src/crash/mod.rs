//! The crash matrix: each named point of the code is a case in which the real program kills itself there, just before or
//! just after the action; then it is started again, the Task runs to its end, and nothing may be lost, published twice or
//! paid twice.

mod backend;
mod case;
mod crowd;
mod dice;
mod evidence;
mod plan;
mod scenario;

use std::io::BufRead as _;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use fettle_runtime::system::SystemClock;
use serde::Serialize;
use serde_json::Value;

use backend::Services;

use crate::model::Script;
use crate::world::{Layout, Setup, TestBox, program, repository};

pub use backend::Backend;
pub use evidence::Harm;
pub use plan::{
    Case, Counted, Crash, Crowd, FOUR_HOURS, Fault, On, Programs, SHORT_JOB, Scenario, Side, Story, crowds, every_case,
    full_plan, named_cases, sample,
};

/// What a Task does when nothing dies.
#[derive(Debug, Clone, Copy)]
pub struct Calm {
    pub model_calls: usize,
    pub steps: Counted,
    /// Of all kinds.
    pub all_steps: usize,
}

/// What came of one case.
#[derive(Debug, Serialize)]
pub struct Row {
    pub case: String,
    /// What the restarted program found of the Task; one for each death.
    pub recovered: Vec<String>,
    /// From the (last) death until the Task went on, by the ledger's events. None when it had ended already.
    pub again_ms: Option<u64>,
    /// Model calls beyond those of a Task in which nothing dies.
    pub paid_twice: usize,
    /// What the forge was made to do.
    pub effects: String,
    pub took_ms: u64,
    /// Tasks that were in flight at a fault, each once.
    pub faulted: usize,
    /// Of these, the ones that a worker or the publisher was at then.
    pub at_work: usize,
    #[serde(flatten)]
    pub harm: Harm,
    /// Empty when everything held.
    pub breaches: Vec<String>,
}

impl Row {
    pub fn held(&self) -> bool {
        self.breaches.is_empty()
    }
}

/// Errors when the programs under test cannot be killed at their points, with what to build.
pub fn armable() -> anyhow::Result<()> {
    for name in ["fettle", "fettle-dashboard", "fettle-worker"] {
        let file = program(name)?;
        ensure!(
            mentions(&fs_err::read(&file)?, plan::VARIABLE),
            "{file} was built without the feature `crash-points`; build it with `cargo build --workspace`"
        );
    }
    Ok(())
}

/// From one first letter to the next: comparing at each of a hundred million bytes takes seconds without optimisation.
fn mentions(mut content: &[u8], name: &str) -> bool {
    let (first, rest) = name.as_bytes().split_first().expect("a name has letters");
    while content.skip_until(*first).is_ok_and(|skipped| skipped > 0) {
        if content.starts_with(rest) {
            return true;
        }
    }
    false
}

/// One Task without a crash: what the others are measured by.
pub async fn calm() -> anyhow::Result<Calm> {
    let (ended, model_calls) = case::undisturbed().await.context("without any crash")?;
    let all_steps = ended.iter().filter(|event| event["what"]["type"] == "step").count();
    Ok(Calm { model_calls, steps: Counted::of(&ended), all_steps })
}

/// Runs one case and judges what is left.
pub async fn run(case: &Case, calm: &Calm, backend: &Backend) -> Row {
    let began = tokio::time::Instant::now();
    let lived = match &case.story {
        Story::Crashes(crashes) => case::crashes(case.programs, crashes, calm, backend).await,
        Story::Scenario(scenario) => scenario::run(*scenario, calm, backend).await,
        Story::Crowd(crowd) => crowd::run(crowd, calm, backend).await,
    };
    let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let broken = |error| Lived { breaches: vec![format!("{error:#}")], ..Lived::default() };
    let Lived { recovered, again_ms, paid_twice, effects, faulted, at_work, harm, breaches } =
        lived.unwrap_or_else(broken);
    let case = case.to_string();
    Row { case, recovered, again_ms, paid_twice, effects, took_ms, faulted, at_work, harm, breaches }
}

/// What a case left behind.
#[derive(Default)]
struct Lived {
    recovered: Vec<String>,
    again_ms: Option<u64>,
    paid_twice: usize,
    effects: String,
    faulted: usize,
    at_work: usize,
    harm: Harm,
    breaches: Vec<String>,
}

async fn start(layout: Layout, armed: Option<&str>, services: &Services) -> anyhow::Result<TestBox> {
    start_with(repository::solving().script(), layout, armed, services).await
}

async fn start_with(
    script: Script,
    layout: Layout,
    armed: Option<&str>,
    services: &Services,
) -> anyhow::Result<TestBox> {
    let (broker, store) = (services.broker(), services.store());
    let setup = Setup { layout, armed, broker: broker.as_deref(), store: store.as_deref(), ..Setup::with(script) };
    Ok(TestBox::start(setup).await?.checked_by_its_owner())
}

fn now() -> jiff::Timestamp {
    use fettle_app::ports::clock::Clock as _;
    SystemClock.now()
}

/// The longest that a Task may take to end after its programs are back.
const TASK_LIMIT: Duration = Duration::from_secs(40);

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}
