//! How long a Task waits for a worker that has nothing else to do: from the call that opens it to its handler. The worker, its
//! heartbeat and what rings the broker are the real ones; only the handler does nothing, and no HTTP is between them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use async_trait::async_trait;
use camino::Utf8Path;
use fettle_app::leasing::{Heart, Holdings};
use fettle_app::metrics::RunMetrics;
use fettle_app::ports::ledger::RunOrder;
use fettle_app::ports::transport::Transport;
use fettle_app::reconciling::Reconcilers;
use fettle_app::ringing::{RUNG_WITHIN, ring};
use fettle_app::running::{Drain, RunContext, RunEnd, Runner, Stay, WORKED_WITHIN, Worker};
use fettle_app::vitals::Vitals;
use fettle_broker_rabbitmq::{Limits, RabbitOptions, RabbitTransport};
use fettle_broker_redis::{Redis, RedisOptions};
use fettle_domain::id::TaskId;
use fettle_domain::label::Labels;
use fettle_domain::lease::Timing;
use fettle_domain::run::RunResult;
use fettle_runtime::system::{RandomIds, SystemClock};
use fettle_test_kit::brokers::rabbitmq::RabbitServer;
use fettle_test_kit::brokers::redis::RedisServer;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::ledger::{Measured, holder, nothing_to_do};

/// Nobody waits longer for a handler: a lost hint costs five seconds.
const HANDLED_WITHIN: Duration = Duration::from_secs(30);
/// Connections are there and everything has run once.
const WARM_UP: usize = 5;
/// The worker is back at its bell, and the ledger at rest, when the next Task comes.
const IDLE: Duration = Duration::from_millis(25);
/// Parts end at once when they are told to.
const END_LIMIT: Duration = Duration::from_secs(20);

/// What tells the worker that there is work: the dashboard's end and the worker's, each with connections of its own.
pub(crate) struct Bell {
    dashboard: Arc<dyn Transport>,
    worker: Arc<dyn Transport>,
}

impl Bell {
    pub(crate) fn of_redis(server: &RedisServer) -> anyhow::Result<Self> {
        let end = |process| anyhow::Ok(Arc::new(Redis::new(&RedisOptions::new(server.url(), process))?.transport()));
        Ok(Self { dashboard: end("dashboard")?, worker: end("worker")? })
    }

    pub(crate) fn of_rabbitmq(server: &RabbitServer) -> anyhow::Result<Self> {
        let options = RabbitOptions { url: server.url("/"), user: None, password: None, ca_pem: None };
        let end = || anyhow::Ok(Arc::new(RabbitTransport::new(&options, Limits::default())?));
        Ok(Self { dashboard: end()?, worker: end()? })
    }
}

/// Opens `samples` Tasks, one at a time, in a new ledger; sorted. Without a bell the ledger itself wakes the worker.
pub(crate) async fn waits(folder: &Utf8Path, bell: Option<&Bell>, samples: usize) -> anyhow::Result<Vec<Duration>> {
    let measured = Measured::new(folder).await?;
    let (handled, mut handling) = mpsc::channel(1);
    let shutdown = CancellationToken::new();
    let vitals = Arc::new(Vitals::default());
    let worker = Worker {
        listener: None,
        leases: measured.ledger.clone(),
        heartbeat_leases: measured.ledger.clone(),
        runner: Arc::new(Stamp { handled }),
        ids: Arc::new(RandomIds),
        holder: holder(),
        labels: Labels::default(),
        timing: Timing::default(),
        heart: Heart::Apart,
        bell: bell.map(|bell| bell.worker.clone()),
        holdings: Arc::new(Holdings::default()),
        metrics: RunMetrics::default(),
        drain: Drain::default(),
        pulse: vitals.pulse("worker", WORKED_WITHIN),
    };
    let mut parts = JoinSet::new();
    parts.spawn({
        let shutdown = shutdown.clone();
        async move { worker.work(Stay::UntilShutdown, &shutdown).await.context("while working") }
    });
    if let Some(bell) = bell {
        let reconcilers = Arc::new(Reconcilers::new(Arc::new(SystemClock)));
        let pulse = vitals.pulse("ringing", RUNG_WITHIN);
        let ringing = ring(measured.ledger.clone(), bell.dashboard.clone(), &reconcilers, pulse, shutdown.clone());
        parts.spawn(async move {
            ringing.await;
            Ok(())
        });
    }

    let mut waits = Vec::new();
    for nth in 0..WARM_UP + samples {
        sleep(IDLE).await;
        let began = Instant::now();
        let task = measured.open_task(1).await?;
        let (handled, at) = timeout(HANDLED_WITHIN, handling.recv())
            .await
            .with_context(|| format!("no handler within {HANDLED_WITHIN:?}"))?
            .context("the worker has gone")?;
        ensure!(handled == task, "the handler got another Task than the one that was opened");
        if nth >= WARM_UP {
            waits.push(at.duration_since(began));
        }
    }
    shutdown.cancel();
    let ending = async {
        while let Some(ended) = parts.join_next().await {
            ended.context("a part panicked")??;
        }
        anyhow::Ok(())
    };
    timeout(END_LIMIT, ending).await.context("a part does not end")??;
    measured.ledger.close().await?;
    waits.sort_unstable();
    Ok(waits)
}

/// A handler that notes when it began.
struct Stamp {
    handled: mpsc::Sender<(TaskId, Instant)>,
}

#[async_trait]
impl Runner for Stamp {
    async fn run(&self, order: &RunOrder, _context: RunContext) -> Result<RunResult, RunEnd> {
        let began = Instant::now();
        self.handled
            .send((order.task, began))
            .await
            .map_err(|_| RunEnd::Never("nobody measures any more".to_owned()))?;
        Ok(nothing_to_do())
    }
}
