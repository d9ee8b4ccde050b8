//! Holding a lease: heartbeats that nothing starves, and the point in time after which the holder writes nothing.
//!
//! A busy executor or sandbox cannot starve the heartbeat, and a holder that cannot renew stops by itself before the next
//! one begins. Clocks of worker and ledger are never compared: all times here are this process's own.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fettle_domain::lease::{LeaseRef, Timing};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::ports::journal::Stop;
use crate::ports::ledger::{Beat, BeatAnswer, Leases};

/// How many leases a process holds now.
#[derive(Debug, Default)]
pub struct Holdings(AtomicUsize);

impl Holdings {
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// One more, until it is dropped.
    pub(crate) fn hold(self: &Arc<Self>) -> Holding {
        self.0.fetch_add(1, Ordering::Relaxed);
        Holding(self.clone())
    }
}

pub(crate) struct Holding(Arc<Holdings>);

impl Drop for Holding {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where a lease's heart beats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Heart {
    /// On a thread and runtime of its own, so that nothing starves it.
    #[default]
    Apart,
    /// On the runtime of the work, whose virtual time a simulation moves.
    Beside,
}

/// What beats; dropped, it stops.
enum Beating {
    Apart { thread: Option<std::thread::JoinHandle<()>>, stop: CancellationToken },
    Beside(#[expect(dead_code, reason = "owned, so that the heart ends with the lease")] JoinSet<()>),
}

/// A live lease with its heartbeat. Dropping it ends the heartbeat; the lease itself ends by a verb or by expiry.
pub struct HeldLease {
    shared: Arc<Shared>,
    _beating: Beating,
}

struct Shared {
    lease: LeaseRef,
    timing: Timing,
    standing: Mutex<Standing>,
    /// Bumped at each change of `standing`.
    changed: watch::Sender<u64>,
    /// Cancelled when the work must stop.
    work: CancellationToken,
    progress: AtomicU64,
    messages: Mutex<Vec<String>>,
    /// Of [`Beat::received`].
    received: Mutex<Option<u64>>,
}

struct Standing {
    /// From then on, no write is started.
    fenced_from: Instant,
    /// The last moment at which the lease was known to be ours.
    known_good: Instant,
    ended: Option<Stop>,
}

impl HeldLease {
    /// Begins to renew `lease`, of which `time_left` was left when it was received. [`Heart::Apart`] uses `leases` from
    /// another thread and runtime, so an HTTP client here must not be shared with other callers.
    pub fn start(
        lease: LeaseRef,
        time_left: Duration,
        timing: Timing,
        heart: Heart,
        leases: Arc<dyn Leases>,
    ) -> std::io::Result<Self> {
        let now = Instant::now();
        let shared = Arc::new(Shared {
            lease,
            timing,
            standing: Mutex::new(Standing {
                fenced_from: now + time_left.saturating_sub(timing.margin),
                known_good: now,
                ended: None,
            }),
            changed: watch::Sender::new(0),
            work: CancellationToken::new(),
            progress: AtomicU64::new(0),
            messages: Mutex::default(),
            received: Mutex::default(),
        });
        let beat = {
            let shared = shared.clone();
            async move { shared.beat(&*leases).await }
        };
        let beating = match heart {
            Heart::Apart => Beating::apart(beat)?,
            Heart::Beside => {
                let mut tasks = JoinSet::new();
                tasks.spawn(beat);
                Beating::Beside(tasks)
            }
        };
        Ok(Self { shared, _beating: beating })
    }

    pub fn lease(&self) -> LeaseRef {
        self.shared.lease
    }

    /// Cancelled when the work must stop: the lease is lost or its job cancelled.
    pub fn work_token(&self) -> CancellationToken {
        self.shared.work.clone()
    }

    /// Tells the ledger, with the next heartbeat, that the work gets somewhere.
    pub fn progress(&self) {
        self.shared.progress.fetch_add(1, Ordering::Relaxed);
    }

    pub fn take_messages(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.shared.messages))
    }

    /// Why the work must stop, if it must.
    pub fn ended(&self) -> Option<Stop> {
        lock(&self.shared.standing).ended.clone()
    }

    /// Ends the work for a reason of this process's own, such as its shutdown.
    pub fn end(&self, why: Stop) {
        self.shared.end(why);
    }

    /// Waits until a write that takes up to `needs` may begin: the self-fence point is further away than that.
    ///
    /// Errors when the lease was lost meanwhile; then nothing may be written.
    pub async fn ready(&self, needs: Duration) -> Result<(), Stop> {
        // A request longer than the whole lease could never begin; half of it leaves room for one renewal.
        let needs = needs.min(self.shared.timing.self_fence_after() / 2);
        let mut changed = self.shared.changed.subscribe();
        loop {
            {
                let standing = lock(&self.shared.standing);
                if let Some(why) = &standing.ended {
                    return Err(why.clone());
                }
                if Instant::now() + needs < standing.fenced_from {
                    return Ok(());
                }
            }
            // Every heartbeat bumps it, good or bad, and the heart ends the lease after `give_up`.
            if timeout(self.shared.timing.give_up, changed.changed()).await.is_err() {
                self.shared.end(Stop::Lost);
            }
        }
    }
}

impl Beating {
    fn apart(beat: impl Future<Output = ()> + Send + 'static) -> std::io::Result<Self> {
        let stop = CancellationToken::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("heartbeat".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = stopped.cancelled() => {}
                    () = beat => {}
                }
            });
        })?;
        Ok(Self::Apart { thread: Some(thread), stop })
    }
}

impl Drop for Beating {
    fn drop(&mut self) {
        if let Self::Apart { thread, stop } = self {
            stop.cancel();
            if let Some(thread) = thread.take() {
                // The heart waits only on its select, so this ends at once; a panic in it has been printed already.
                let _ = thread.join();
            }
        }
    }
}

impl Shared {
    async fn beat(&self, leases: &dyn Leases) {
        loop {
            tokio::time::sleep(self.timing.heartbeat).await;
            let sent = Instant::now();
            let (progress, received) = (self.progress.load(Ordering::Relaxed), *lock(&self.received));
            let beat = Beat { lease: self.lease, progress, received };
            let answer = timeout(self.timing.heartbeat_timeout, leases.renew(&[beat])).await;
            match answer {
                Ok(Ok(answers)) => match answers.into_iter().next() {
                    Some(BeatAnswer::Renewed { time_left, messages, received }) => {
                        self.renewed(sent, time_left);
                        lock(&self.messages).extend(messages);
                        *lock(&self.received) = received;
                    }
                    Some(BeatAnswer::Cancel { reason }) => {
                        info!(job.id = %self.lease.job, "{} is cancelled: {reason}", self.lease.job);
                        // Go on renewing: the holder keeps the lease until it has let go.
                        self.renewed(sent, self.timing.lease);
                        self.end(Stop::Cancelled(reason));
                    }
                    Some(BeatAnswer::Lost) | None => {
                        warn!(job.id = %self.lease.job, lease.fence = self.lease.fence.get(), "lost the lease of {}", self.lease.job);
                        self.end(Stop::Lost);
                        return;
                    }
                },
                Ok(Err(error)) => self.missed(&error.to_string()),
                Err(_) => self.missed("no answer in time"),
            }
            self.changed.send_modify(|n| *n += 1);
        }
    }

    fn renewed(&self, sent: Instant, time_left: Duration) {
        let mut standing = lock(&self.standing);
        standing.fenced_from = sent + time_left.saturating_sub(self.timing.margin);
        standing.known_good = sent;
    }

    fn missed(&self, why: &str) {
        debug!(job.id = %self.lease.job, "a heartbeat of {} failed: {why}", self.lease.job);
        let silent = lock(&self.standing).known_good.elapsed();
        if silent > self.timing.give_up {
            warn!(job.id = %self.lease.job, "gave up {} after {} s without the ledger", self.lease.job, silent.as_secs());
            self.end(Stop::Lost);
        }
    }

    fn end(&self, why: Stop) {
        lock(&self.standing).ended.get_or_insert(why);
        self.work.cancel();
        self.changed.send_modify(|n| *n += 1);
    }
}

/// The values behind these locks are whole at every moment, so a panic elsewhere does not spoil them.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
