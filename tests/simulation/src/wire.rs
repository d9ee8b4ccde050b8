//! The worker API's two ends without HTTP: requests and answers that are lost or late, dashboards that are away, and a
//! client that asks again, another one if there is one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fettle_app::ports::ledger::{
    Admission, Beat, BeatAnswer, Fenced, Granted, Holder, L, Leases, LedgerError, Then, Wake, Want,
};
use fettle_domain::id::RequestId;
use fettle_domain::lease::LeaseRef;
use fettle_domain::object::BlobId;
use fettle_domain::run::RunResult;
use fettle_domain::step::StepRecord;
use tokio::time::{sleep, timeout};

use crate::ledger::MemoryLedger;
use crate::nature::Who;
use crate::world::World;

/// The time of one try and how many there are, as `WorkerClient` has them.
#[derive(Clone, Copy)]
struct Patience {
    limit: Duration,
    tries: u32,
}

const RENEW: Patience = Patience { limit: Duration::from_secs(3), tries: 1 };
const WRITE: Patience = Patience { limit: Duration::from_secs(10), tries: 3 };
const ADMIT: Patience = Patience { limit: Duration::from_secs(30), tries: 2 };
const LEASE_SLACK: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(200);

pub(crate) struct Wire {
    world: Arc<World>,
    who: Who,
    /// The dashboard that is talked to; another one after it did not answer.
    at: AtomicUsize,
}

impl Wire {
    pub(crate) fn new(world: Arc<World>, who: Who) -> Self {
        Self { world, who, at: AtomicUsize::new(0) }
    }

    async fn ask<T, A>(
        &self,
        verb: &'static str,
        patience: Patience,
        ask: impl Fn(Arc<MemoryLedger>) -> A + Sync,
    ) -> L<T>
    where
        T: Send + 'static,
        A: Future<Output = L<T>> + Send + 'static,
    {
        let mut last = LedgerError::Unavailable("never asked".to_owned());
        for _ in 0..patience.tries {
            self.world.nature.step(self.who, verb).await;
            let answer = timeout(patience.limit, self.once(&ask)).await;
            self.world.nature.step(self.who, verb).await;
            match answer {
                Ok(Err(LedgerError::Unavailable(why))) => last = LedgerError::Unavailable(why),
                Ok(answer) => return answer,
                Err(_) => last = LedgerError::Unavailable("no answer".to_owned()),
            }
            self.at.fetch_add(1, Ordering::Relaxed);
            sleep(PAUSE).await;
        }
        Err(last)
    }

    async fn once<T, A>(&self, ask: &(impl Fn(Arc<MemoryLedger>) -> A + Sync)) -> L<T>
    where
        T: Send + 'static,
        A: Future<Output = L<T>> + Send + 'static,
    {
        let nature = &self.world.nature;
        self.travel().await?;
        let at = Who::Dashboard(self.at.load(Ordering::Relaxed) % self.world.size.dashboards);
        let Some(answer) = self.world.at_dashboard(at, ask) else {
            return Err(LedgerError::Unavailable("connection refused".to_owned()));
        };
        let answer = answer.await.map_err(|_| LedgerError::Unavailable("connection reset".to_owned()))?;
        self.travel().await?;
        nature.latency(0).await;
        answer
    }

    /// One way between worker and dashboard.
    async fn travel(&self) -> L<()> {
        let nature = &self.world.nature;
        if nature.is_stormy() {
            nature.latency(20).await;
        }
        if nature.is_cut_off(self.who) || nature.wrong(nature.weather.lost) {
            if nature.dice.below(2) == 0 {
                return Err(LedgerError::Unavailable("no route to host".to_owned()));
            }
            std::future::pending::<()>().await;
        }
        Ok(())
    }
}

#[async_trait]
impl Leases for Wire {
    async fn lease(&self, who: &Holder, want: &Want, max: u8, wait: Duration, request: RequestId) -> L<Granted> {
        let (who, want) = (who.clone(), want.clone());
        let patience = Patience { limit: wait + LEASE_SLACK, tries: 1 };
        self.ask("wire.lease", patience, move |ledger| {
            let (who, want) = (who.clone(), want.clone());
            async move { ledger.lease(&who, &want, max, wait, request).await }
        })
        .await
    }

    async fn renew(&self, beats: &[Beat]) -> L<Vec<BeatAnswer>> {
        let beats = beats.to_vec();
        self.ask("wire.renew", RENEW, move |ledger| {
            let beats = beats.clone();
            async move { ledger.renew(&beats).await }
        })
        .await
    }

    async fn record(&self, lease: &LeaseRef, step: &StepRecord) -> L<Fenced> {
        let (lease, step) = (*lease, step.clone());
        self.ask("wire.record", WRITE, move |ledger| {
            let step = step.clone();
            async move { ledger.record(&lease, &step).await }
        })
        .await
    }

    async fn steps(&self, lease: &LeaseRef) -> L<Vec<StepRecord>> {
        let lease = *lease;
        self.ask("wire.steps", WRITE, move |ledger| async move { ledger.steps(&lease).await }).await
    }

    async fn complete_run(&self, lease: &LeaseRef, result: &RunResult) -> L<Fenced> {
        let (lease, result) = (*lease, result.clone());
        self.ask("wire.complete", WRITE, move |ledger| {
            let result = result.clone();
            async move { ledger.complete_run(&lease, &result).await }
        })
        .await
    }

    async fn fail(&self, lease: &LeaseRef, why: &str, then: Then) -> L<Fenced> {
        let (lease, why) = (*lease, why.to_owned());
        self.ask("wire.fail", WRITE, move |ledger| {
            let why = why.clone();
            async move { ledger.fail(&lease, &why, then).await }
        })
        .await
    }

    async fn defer(&self, lease: &LeaseRef, until: Wake, why: &str) -> L<Fenced> {
        let (lease, why) = (*lease, why.to_owned());
        self.ask("wire.defer", WRITE, move |ledger| {
            let why = why.clone();
            async move { ledger.defer(&lease, until, &why).await }
        })
        .await
    }

    async fn release(&self, lease: &LeaseRef) -> L<Fenced> {
        let lease = *lease;
        self.ask("wire.release", WRITE, move |ledger| async move { ledger.release(&lease).await }).await
    }

    async fn put_blob(&self, content: Bytes) -> L<BlobId> {
        self.ask("wire.put_blob", WRITE, move |ledger| {
            let content = content.clone();
            async move { ledger.put_blob(content).await }
        })
        .await
    }

    async fn blob(&self, id: BlobId) -> L<Bytes> {
        self.ask("wire.blob", WRITE, move |ledger| async move { ledger.blob(id).await }).await
    }

    async fn admit(&self, lease: &LeaseRef) -> L<Admission> {
        let lease = *lease;
        self.ask("wire.admit", ADMIT, move |ledger| async move { ledger.admit(&lease).await }).await
    }
}
