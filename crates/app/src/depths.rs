//! How much waits at the broker, for `/metrics`. Nothing is decided by it.

use std::time::Duration;

use prometheus::{IntCounter, IntGauge, IntGaugeVec, Opts, Registry};
use tokio_util::sync::CancellationToken;

use crate::ports::transport::{Broker, X};
use crate::vitals::Pulse;

/// As often as metrics are read, mostly.
const MEASURE_EVERY: Duration = Duration::from_secs(10);
/// Two short questions, each with a timeout of seconds.
pub const MEASURED_WITHIN: Duration = Duration::from_secs(90);

/// What is told of the broker.
pub struct BrokerGauges {
    up: IntGauge,
    depth: IntGaugeVec,
    /// Under the name that dashboards of before look for, when the broker is RabbitMQ.
    rabbitmq: Option<IntGaugeVec>,
    ended: IntCounter,
}

impl BrokerGauges {
    /// Errors when one of the names is taken in `registry`.
    pub fn register(registry: &Registry, broker: &Broker) -> Result<Self, prometheus::Error> {
        let up = IntGauge::new("fettle_broker_up", "Whether the broker answered when it was asked last")?;
        let depth =
            Opts::new("fettle_broker_depth", "Messages that nobody has taken yet: hints, and other programs' orders");
        let depth = IntGaugeVec::new(depth, &["queue"])?;
        let ended =
            IntCounter::new("fettle_broker_consumers_ended_total", "Consumers that the broker ended by itself")?;
        registry.register(Box::new(up.clone()))?;
        registry.register(Box::new(depth.clone()))?;
        registry.register(Box::new(ended.clone()))?;
        let rabbitmq = broker.is_rabbitmq.then(|| {
            let depth = Opts::new("rabbitmq_queue_depth", "Messages of a queue that nobody has taken yet");
            let depth = IntGaugeVec::new(depth, &["queue"])?;
            registry.register(Box::new(depth.clone()))?;
            Ok::<_, prometheus::Error>(depth)
        });
        Ok(Self { up, depth, rabbitmq: rabbitmq.transpose()?, ended })
    }

    fn tell(&self, [hints, orders]: [&X<u64>; 2]) {
        self.up.set((hints.is_ok() && orders.is_ok()).into());
        for (queue, name, depth) in [("hints", "fettle.hints", hints), ("agent-tasks", "agent-tasks", orders)] {
            tell(&self.depth, queue, depth);
            if let Some(rabbitmq) = &self.rabbitmq {
                tell(rabbitmq, name, depth);
            }
        }
    }
}

/// What is not known is not told: an old number would look like a new one.
fn tell(gauge: &IntGaugeVec, queue: &str, depth: &X<u64>) {
    match depth {
        Ok(depth) => gauge.with_label_values(&[queue]).set(i64::try_from(*depth).unwrap_or(i64::MAX)),
        // One that was never told has nothing to remove.
        Err(_) => drop(gauge.remove_label_values(&[queue])),
    }
}

/// Measures until `shutdown`.
pub async fn measure(broker: Broker, gauges: BrokerGauges, pulse: Pulse, shutdown: &CancellationToken) {
    loop {
        pulse.beat();
        let measured = async { tokio::join!(broker.bell.depth(), broker.inbox.depth()) };
        tokio::select! {
            () = shutdown.cancelled() => return,
            (hints, orders) = measured => gauges.tell([&hints, &orders]),
        }
        gauges.ended.inc_by(broker.inbox.consumers_ended().saturating_sub(gauges.ended.get()));
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(MEASURE_EVERY) => {}
        }
    }
}
