//! What runs by the clock. Each reconciler has a name, a period, a last run and what came of it, for whoever asks how the process
//! is doing. Nothing is decided by what stands here.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::ports::chain;
use crate::ports::clock::Clock;
use crate::ports::forge::ForgeError;
use crate::ports::ledger::LedgerError;
use crate::vitals::Pulse;

/// After failures one after the other. Whoever mends what is wrong does not want to wait for longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(15 * 60);
/// And not for so many periods: what is looked at every few seconds is waited for.
const LONGEST_PAUSE_PERIODS: u32 = 16;
/// Of a failure's sentence: the forge's words may be many.
const MAX_DETAIL_CHARS: usize = 500;
/// A pause is slept in pieces, and the pulse beats between them.
const PIECE: Duration = Duration::from_secs(30);

/// A piece of a pause or one request with its token, each with a timeout of seconds, and some slack.
pub const WORKED_WITHIN: Duration = Duration::from_secs(3 * 60);

/// All reconcilers of one process.
pub struct Reconcilers {
    clock: Arc<dyn Clock>,
    all: Mutex<Vec<Reconciled>>,
}

/// A reconciler, as it is seen now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reconciled {
    pub name: &'static str,
    pub period: Duration,
    pub last_started_at: Option<Timestamp>,
    /// Of the last run that has ended.
    pub last: Option<Ended>,
    pub failures_in_a_row: u32,
    pub last_success_at: Option<Timestamp>,
    /// Runs since the start of the process.
    pub succeeded: u64,
    pub failed: u64,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    pub took: Duration,
    /// A sentence, when it failed.
    pub failure: Option<String>,
}

impl Reconcilers {
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, all: Mutex::default() }
    }

    /// One that runs once in `period`, or sooner when something rings for it.
    pub fn register(self: &Arc<Self>, name: &'static str, period: Duration) -> Reconciler {
        let mut all = lock(&self.all);
        all.push(Reconciled {
            name,
            period,
            last_started_at: None,
            last: None,
            failures_in_a_row: 0,
            last_success_at: None,
            succeeded: 0,
            failed: 0,
        });
        Reconciler { reconcilers: self.clone(), nth: all.len() - 1, name, period }
    }

    /// Every reconciler, in the order in which they were registered.
    pub fn observe(&self) -> Vec<Reconciled> {
        lock(&self.all).clone()
    }
}

/// One reconciler's own record.
pub struct Reconciler {
    reconcilers: Arc<Reconcilers>,
    nth: usize,
    name: &'static str,
    period: Duration,
}

impl Reconciler {
    /// Runs once and records how it went. Dropped in the middle, the run has no end.
    pub async fn run<T, E: fmt::Display>(&self, run: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let started = Instant::now();
        self.record(|own, now| own.last_started_at = Some(now));
        let result = run.await;
        let failure = result.as_ref().err().map(|why| why.to_string().chars().take(MAX_DETAIL_CHARS).collect());
        self.record(|own, now| {
            match failure {
                None => {
                    (own.failures_in_a_row, own.last_success_at) = (0, Some(now));
                    own.succeeded += 1;
                }
                Some(_) => {
                    own.failures_in_a_row = own.failures_in_a_row.saturating_add(1);
                    own.failed += 1;
                }
            }
            own.last = Some(Ended { took: started.elapsed(), failure });
        });
        result
    }

    fn record(&self, change: impl FnOnce(&mut Reconciled, Timestamp)) {
        let now = self.reconcilers.clock.now();
        change(&mut lock(&self.reconcilers.all)[self.nth], now);
    }

    /// Runs again and again until `shutdown`, which ends a run in its middle: each can be repeated.
    pub async fn work(&self, what: &mut dyn Reconcile, pulse: &Pulse, shutdown: &CancellationToken) {
        let mut failures = 0;
        loop {
            pulse.beat();
            let ran = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                ran = self.run(what.tick(pulse)) => ran,
            };
            let rest = match ran {
                Ok(()) => {
                    if std::mem::take(&mut failures) > 0 {
                        info!("{} works again", self.name);
                    }
                    self.period
                }
                Err(trouble) => {
                    let rest = rest_after(self.period, failures, trouble.wait);
                    if failures == 0 {
                        warn!("{}: {trouble}; the next try is in {} s", self.name, rest.as_secs());
                    }
                    failures += 1;
                    rest
                }
            };
            let until = Instant::now() + rest;
            while Instant::now() < until {
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep_until(until.min(Instant::now() + PIECE)) => pulse.beat(),
                }
            }
        }
    }
}

/// Twice as long after each failure, and never shorter than the forge asked for.
fn rest_after(period: Duration, earlier_failures: u32, asked: Option<Duration>) -> Duration {
    let doubled = period.saturating_mul(2_u32.saturating_pow(earlier_failures.saturating_add(1)));
    doubled
        .min(LONGEST_PAUSE)
        .min(period.saturating_mul(LONGEST_PAUSE_PERIODS))
        .max(period)
        .max(asked.unwrap_or_default())
}

/// Compares what is with what should be, and does the difference. Bounded, and harmless when it is repeated, ended in its middle
/// or done by several dashboards at once.
#[async_trait]
pub trait Reconcile: Send {
    /// Beats `pulse` within [`WORKED_WITHIN`].
    async fn tick(&mut self, pulse: &Pulse) -> Result<(), Trouble>;
}

/// Why a run failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    why: String,
    /// The forge wants to be left alone for so long.
    wait: Option<Duration>,
}

impl Trouble {
    pub fn new(why: impl Into<String>) -> Self {
        Self { why: why.into(), wait: None }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl From<ForgeError> for Trouble {
    fn from(error: ForgeError) -> Self {
        let wait = match error {
            ForgeError::RateLimited { wait } => Some(wait),
            _ => None,
        };
        Self { why: chain(&error), wait }
    }
}

impl From<LedgerError> for Trouble {
    fn from(error: LedgerError) -> Self {
        Self::new(error.to_string())
    }
}

fn lock(all: &Mutex<Vec<Reconciled>>) -> MutexGuard<'_, Vec<Reconciled>> {
    all.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vitals::Vitals;

    struct Still;

    impl Clock for Still {
        fn now(&self) -> Timestamp {
            Timestamp::UNIX_EPOCH
        }
    }

    /// Fails as often as it is told to and notes when it ran.
    struct Failing {
        left: u32,
        wait: Option<Duration>,
        ran: Arc<Mutex<Vec<u64>>>,
        started: Instant,
    }

    #[async_trait]
    impl Reconcile for Failing {
        async fn tick(&mut self, _pulse: &Pulse) -> Result<(), Trouble> {
            self.ran.lock().unwrap().push(self.started.elapsed().as_secs());
            match self.left {
                0 => Ok(()),
                _ => {
                    self.left -= 1;
                    Err(Trouble { wait: self.wait, ..Trouble::new("no") })
                }
            }
        }
    }

    /// At which seconds it ran, within so many.
    async fn ran(left: u32, wait: Option<Duration>, within: u64) -> (Vec<u64>, Vec<Reconciled>) {
        let reconcilers = Arc::new(Reconcilers::new(Arc::new(Still)));
        let one = reconcilers.register("one", Duration::from_secs(60));
        let pulse = Arc::new(Vitals::default()).pulse("one", WORKED_WITHIN);
        let seconds = Arc::new(Mutex::default());
        let mut failing = Failing { left, wait, ran: Arc::clone(&seconds), started: Instant::now() };
        let stop = CancellationToken::new();
        let _late = tokio::time::timeout(Duration::from_secs(within), one.work(&mut failing, &pulse, &stop)).await;
        let seconds = seconds.lock().unwrap().clone();
        (seconds, reconcilers.observe())
    }

    #[tokio::test(start_paused = true)]
    async fn it_runs_at_once_and_then_by_its_period() {
        let (seconds, observed) = ran(0, None, 130).await;
        assert_eq!(seconds, [0, 60, 120]);
        let [one] = &observed[..] else { panic!("{observed:?}") };
        assert_eq!((one.succeeded, one.failed, one.failures_in_a_row), (3, 0, 0));
        assert_eq!(one.last, Some(Ended { took: Duration::ZERO, failure: None }));
    }

    #[tokio::test(start_paused = true)]
    async fn failures_make_it_rest_longer_up_to_a_quarter_of_an_hour() {
        let (seconds, observed) = ran(6, None, 3_590).await;
        assert_eq!(seconds, [0, 120, 360, 840, 1740, 2640, 3540]);
        assert_eq!((observed[0].succeeded, observed[0].failed, observed[0].failures_in_a_row), (1, 6, 0));
        let (_, failing) = ran(9, None, 500).await;
        assert_eq!((failing[0].failures_in_a_row, failing[0].last_success_at), (3, None));
        assert_eq!(failing[0].last.as_ref().and_then(|last| last.failure.as_deref()), Some("no"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_of_the_forge_is_honoured_though_it_is_longer_than_any_rest_of_ours() {
        let (seconds, _) = ran(1, Some(Duration::from_secs(3000)), 3100).await;
        assert_eq!(seconds, [0, 3000, 3060]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_shutdown_ends_a_run_in_its_middle() {
        struct Stuck;
        #[async_trait]
        impl Reconcile for Stuck {
            async fn tick(&mut self, _pulse: &Pulse) -> Result<(), Trouble> {
                std::future::pending().await
            }
        }
        let reconcilers = Arc::new(Reconcilers::new(Arc::new(Still)));
        let one = reconcilers.register("one", Duration::from_secs(60));
        let pulse = Arc::new(Vitals::default()).pulse("one", WORKED_WITHIN);
        let stop = CancellationToken::new();
        let (mut stuck, cancel) = (Stuck, stop.clone());
        let both = async { tokio::join!(one.work(&mut stuck, &pulse, &stop), async move { cancel.cancel() }) };
        tokio::time::timeout(Duration::from_secs(1), both).await.unwrap();
        assert_eq!(reconcilers.observe()[0].last, None);
    }
}
