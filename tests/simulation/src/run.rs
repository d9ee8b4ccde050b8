//! A Run without a model: pays for calls, journals steps, replays what is on record, and ends as its number says.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use fettle_app::ports::journal::{Journal, Stop};
use fettle_app::ports::ledger::RunOrder;
use fettle_app::running::{RunContext, RunEnd, Runner};
use fettle_domain::budget::Spent;
use fettle_domain::id::RunId;
use fettle_domain::object::BlobId;
use fettle_domain::proof::{Environment, Level, NewTest, Outcome, Proof};
use fettle_domain::run::{ProvenChange, RunOutcome, RunResult};
use fettle_domain::step::{StepBody, StepKind, StepRecord};
use tokio::time::sleep;

use crate::mirror::{self, BASE};
use crate::nature::{Nature, Who, lock};

/// What was really asked of models, counted where it is paid.
#[derive(Debug, Default)]
pub(crate) struct Meter(Mutex<BTreeMap<RunId, u32>>);

impl Meter {
    pub(crate) fn paid(&self, run: RunId) -> u32 {
        lock(&self.0).get(&run).copied().unwrap_or(0)
    }
}

pub(crate) struct SimRunner {
    pub(crate) nature: Arc<Nature>,
    pub(crate) who: Who,
    pub(crate) meter: Arc<Meter>,
}

#[async_trait]
impl Runner for SimRunner {
    async fn run(&self, order: &RunOrder, context: RunContext) -> Result<RunResult, RunEnd> {
        let RunContext { journal, recorded, cancel, .. } = context;
        let work = self.work(order, &*journal, recorded);
        tokio::select! {
            biased;
            result = work => result,
            () = cancel.cancelled() => Err(RunEnd::Stopped(journal.ended().unwrap_or(Stop::Lost))),
        }
    }
}

impl SimRunner {
    async fn work(
        &self,
        order: &RunOrder,
        journal: &dyn Journal,
        mut recorded: Vec<StepRecord>,
    ) -> Result<RunResult, RunEnd> {
        let number = order.run.as_uuid().as_u64_pair().1;
        let calls = 1 + number % 4;
        let called = |steps: &[StepRecord]| steps.iter().filter(|step| step.kind == StepKind::ModelCall).count() as u64;
        while called(&recorded) < calls {
            for message in journal.take_messages() {
                self.record(journal, &mut recorded, StepKind::MessageIn, message).await?;
            }
            self.nature.step(self.who, "model.call").await;
            *lock(&self.meter.0).entry(order.run).or_default() += 1;
            sleep(self.nature.dice.millis(200, 9_000)).await;
            self.nature.step(self.who, "model.answer").await;
            let said = format!("call {}", called(&recorded));
            self.record(journal, &mut recorded, StepKind::ModelCall, said).await?;
            if self.nature.wrong(self.nature.weather.run) {
                return Err(self.mishap());
            }
        }
        let outcome = match (number >> 8) % 8 {
            0 => RunOutcome::Unsolved { notes: "no way found".to_owned() },
            1 => RunOutcome::NoChangeNeeded { why: "it works".to_owned() },
            2 => RunOutcome::DraftPr { reasons: vec!["no new test".to_owned()] },
            _ => RunOutcome::ReadyPr,
        };
        let proven = outcome == RunOutcome::ReadyPr;
        let change = match outcome {
            RunOutcome::ReadyPr | RunOutcome::DraftPr { .. } => Some(change(order.run, journal, proven).await?),
            _ => None,
        };
        let spent = Spent { calls: u32::try_from(calls).unwrap_or(0), ..Spent::default() };
        Ok(RunResult { outcome, base: Some(BASE), change, spent, model: "coder".to_owned() })
    }

    fn mishap(&self) -> RunEnd {
        match self.nature.dice.below(4) {
            0 => RunEnd::Never("the repository cannot be built".to_owned()),
            1 => RunEnd::Defer { wait: self.nature.dice.millis(1_000, 20_000), why: "the model is busy".to_owned() },
            _ => RunEnd::Retry("the sandbox did not start".to_owned()),
        }
    }

    async fn record(
        &self,
        journal: &dyn Journal,
        recorded: &mut Vec<StepRecord>,
        kind: StepKind,
        said: String,
    ) -> Result<(), Stop> {
        let step = StepRecord {
            seq: u32::try_from(recorded.len()).unwrap_or(u32::MAX),
            kind,
            phase: "fix".to_owned(),
            title: said.clone(),
            input: BlobId::of(said.as_bytes()),
            body: StepBody::Inline(serde_json::Value::String(said)),
            workspace: None,
            spent: Spent { calls: u32::try_from(recorded.len()).unwrap_or(u32::MAX), ..Spent::default() },
            took_ms: 5,
        };
        journal.record(&step).await?;
        recorded.push(step);
        Ok(())
    }
}

/// The same Run makes the same change, whoever carries it out.
async fn change(run: RunId, journal: &dyn Journal, proven: bool) -> Result<ProvenChange, Stop> {
    let patch = mirror::patch(&run.to_string());
    let bundle = journal.put_blob(mirror::bundle(&patch)).await?;
    let env = Environment {
        architecture: "x86_64".to_owned(),
        sandbox_level: "full".to_owned(),
        toolchain: Vec::new(),
        digest: BlobId::of(b"env"),
    };
    let new_test = NewTest {
        id: "adds".to_owned(),
        base: vec![Outcome::Failed; 3],
        base_failure: None,
        names_added_symbol: false,
        head: vec![Outcome::Passed; 3],
    };
    let proof = Proof {
        version: 1,
        run,
        base: patch.base,
        head_tree: patch.head_tree,
        env,
        level: if proven { Level::Proven } else { Level::Weak },
        reasons: Vec::new(),
        new_tests: vec![new_test],
        suite: None,
        checks: Vec::new(),
        touched_tests: Vec::new(),
        commands: Vec::new(),
    };
    Ok(ProvenChange { patch, bundle, proof, title: "Add one".to_owned(), summary: "It was off by one.".to_owned() })
}
