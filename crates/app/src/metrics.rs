//! What is counted of Runs, of calls to models as a worker sees them, and of the ledger's store. Counted where it happens, and told
//! to nobody until it is registered. Labels are closed sets: outcomes, kinds, configured models.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry};

use fettle_domain::budget::Spent;

/// From a probe to the longest that a Run may take.
const RUN_S: [f64; 12] = [1.0, 5.0, 15.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0, 7200.0, 14_400.0];
/// From a cached answer of a small model to a long one behind a queue.
const CALL_S: [f64; 12] = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0];
/// From a disk with a cache that survives a power cut to one that is in trouble.
const COMMIT_S: [f64; 12] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];
/// Up to the largest group of a writer.
const BATCH: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];
/// Mostly a connection is free at once.
const CONNECTION_WAIT_S: [f64; 9] = [0.0001, 0.0005, 0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0];

const NAMES_ARE_GOOD: &str = "the names and buckets of metrics are constants that a test has seen";

fn histogram(name: &str, help: &str, buckets: &[f64]) -> HistogramOpts {
    HistogramOpts::new(name, help).buckets(buckets.to_vec())
}

fn counters(name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    IntCounterVec::new(Opts::new(name, help), labels).expect(NAMES_ARE_GOOD)
}

fn register(registry: &Registry, all: Vec<Box<dyn Collector>>) -> Result<(), prometheus::Error> {
    all.into_iter().try_for_each(|one| registry.register(one))
}

/// Runs of a worker. Copies count together.
#[derive(Clone)]
pub struct RunMetrics {
    ended: IntCounterVec,
    duration: Histogram,
    tokens: IntCounterVec,
}

impl Default for RunMetrics {
    fn default() -> Self {
        let duration = histogram("fettle_run_duration_seconds", "How long a lease of a Run was worked on", &RUN_S);
        let metrics = Self {
            ended: counters("fettle_runs_total", "Leases of Runs by how the work on them ended", &["outcome"]),
            duration: Histogram::with_opts(duration).expect(NAMES_ARE_GOOD),
            tokens: counters("fettle_run_tokens_total", "Tokens of Runs that came to a result", &["kind"]),
        };
        ["prompt", "generated"].iter().for_each(|kind| drop(metrics.tokens.with_label_values(&[*kind])));
        metrics
    }
}

impl RunMetrics {
    /// Errors when one of the names is taken in `registry`.
    pub fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        let Self { ended, duration, tokens } = self;
        register(registry, vec![Box::new(ended.clone()), Box::new(duration.clone()), Box::new(tokens.clone())])
    }

    /// `outcome`: of a closed set. `spent`: what the whole Run took, if this was its end.
    pub(crate) fn ended(&self, outcome: &'static str, took: Duration, spent: Option<Spent>) {
        self.ended.with_label_values(&[outcome]).inc();
        self.duration.observe(took.as_secs_f64());
        if let Some(spent) = spent {
            self.tokens.with_label_values(&["prompt"]).inc_by(spent.prompt_tokens);
            self.tokens.with_label_values(&["generated"]).inc_by(spent.generated_tokens);
        }
    }
}

/// Calls of models by those who wait for the answers. Copies count together.
#[derive(Clone)]
pub struct ModelMetrics {
    calls: IntCounterVec,
    duration: HistogramVec,
}

impl Default for ModelMetrics {
    fn default() -> Self {
        let duration = histogram("fettle_model_call_seconds", "From a model call to its whole answer", &CALL_S);
        Self {
            calls: counters("fettle_model_calls_total", "Model calls by how they ended", &["model", "outcome"]),
            duration: HistogramVec::new(duration, &["model"]).expect(NAMES_ARE_GOOD),
        }
    }
}

impl ModelMetrics {
    /// Errors when one of the names is taken in `registry`.
    pub fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        register(registry, vec![Box::new(self.calls.clone()), Box::new(self.duration.clone())])
    }

    /// `model`: as the configuration calls it. `outcome`: of a closed set.
    pub fn ended(&self, model: &str, outcome: &'static str, took: Duration) {
        self.calls.with_label_values(&[model, outcome]).inc();
        self.duration.with_label_values(&[model]).observe(took.as_secs_f64());
    }
}

/// The ledger's store, whichever it is. Copies count together.
#[derive(Clone)]
pub struct LedgerMetrics {
    /// Time of one transaction that was committed, from its beginning.
    pub commit: Histogram,
    /// Changes in one of those.
    pub batch: Histogram,
    /// Changes that are asked for and not answered yet.
    pub waiting: IntGauge,
    /// How long a read, or with PostgreSQL a change, waited for a connection.
    pub connection_wait: Histogram,
}

impl Default for LedgerMetrics {
    fn default() -> Self {
        let own = |name: &str, help: &str, buckets: &[f64]| {
            Histogram::with_opts(histogram(name, help, buckets)).expect(NAMES_ARE_GOOD)
        };
        let waiting = IntGauge::new("fettle_ledger_waiting_changes", "Changes that are asked for and not answered yet");
        Self {
            commit: own("fettle_ledger_commit_seconds", "From the beginning of a transaction to its commit", &COMMIT_S),
            batch: own("fettle_ledger_batch_changes", "Changes of the ledger in one transaction", &BATCH),
            waiting: waiting.expect(NAMES_ARE_GOOD),
            connection_wait: own(
                "fettle_ledger_connection_wait_seconds",
                "How long a read, or with PostgreSQL a change, waited for a connection",
                &CONNECTION_WAIT_S,
            ),
        }
    }
}

impl LedgerMetrics {
    /// Errors when one of the names is taken in `registry`.
    pub fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        let Self { commit, batch, waiting, connection_wait } = self;
        let all: [Box<dyn Collector>; 4] = [
            Box::new(commit.clone()),
            Box::new(batch.clone()),
            Box::new(waiting.clone()),
            Box::new(connection_wait.clone()),
        ];
        register(registry, all.into())
    }

    /// Somebody waits, until what is given is dropped.
    pub fn wait(&self) -> Waiting {
        self.waiting.inc();
        Waiting(self.waiting.clone())
    }
}

/// One who waits for the ledger.
pub struct Waiting(IntGauge);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_them_fit_into_one_registry_and_only_once() {
        let registry = Registry::new();
        let (runs, models, ledger) = (RunMetrics::default(), ModelMetrics::default(), LedgerMetrics::default());
        runs.register(&registry).unwrap();
        models.register(&registry).unwrap();
        ledger.register(&registry).unwrap();
        assert!(RunMetrics::default().register(&registry).is_err());
        assert!(ModelMetrics::default().register(&registry).is_err());
        assert!(LedgerMetrics::default().register(&registry).is_err());
    }

    #[test]
    fn a_run_that_is_let_go_of_has_spent_nothing_yet() {
        let runs = RunMetrics::default();
        let spent = Spent { prompt_tokens: 70, generated_tokens: 7, ..Spent::default() };
        runs.ended("released", Duration::from_secs(1), None);
        runs.ended("ready_pr", Duration::from_secs(2), Some(spent));
        let of = |counters: &IntCounterVec, label: &str| counters.with_label_values(&[label]).get();
        assert_eq!((of(&runs.tokens, "prompt"), of(&runs.tokens, "generated")), (70, 7));
        assert_eq!(
            (of(&runs.ended, "released"), of(&runs.ended, "ready_pr"), runs.duration.get_sample_count()),
            (1, 1, 2)
        );
    }

    #[test]
    fn who_gives_up_waits_no_longer() {
        let ledger = LedgerMetrics::default();
        let (first, _second) = (ledger.wait(), ledger.wait());
        drop(first);
        assert_eq!(ledger.waiting.get(), 1);
    }
}
