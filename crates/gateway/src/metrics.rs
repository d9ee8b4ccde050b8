//! The gateway's own figures. Labels are closed sets: no text of a user, no key, no run, and no model that is not configured.

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

/// From what an idle gateway adds up to a stall, in seconds.
const OVERHEAD: &[f64] = &[0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.000_9, 0.002, 0.005, 0.02, 0.1, 1.0];
/// Up to the longest wait, in seconds.
const WAIT: &[f64] = &[0.001, 0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 120.0, 300.0];

pub(crate) struct Metrics {
    /// By protocol and status class.
    pub(crate) requests: IntCounterVec,
    /// By phase: `request` until it is sent, without waiting.
    pub(crate) overhead: HistogramVec,
    pub(crate) queue_depth: IntGauge,
    pub(crate) queue_wait: Histogram,
    pub(crate) rejected: IntCounterVec,
    pub(crate) routes: IntCounterVec,
    pub(crate) prefix_hit_tokens: IntCounter,
    pub(crate) tokens: IntCounterVec,
    pub(crate) retries: IntCounter,
    pub(crate) streams: IntGauge,
    pub(crate) breakers: IntGaugeVec,
    pub(crate) usage_lost: IntGauge,
}

impl Metrics {
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counters.clone()))?;
            Ok::<_, prometheus::Error>(counters)
        };
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let histogram =
            |name: &str, help: &str, buckets: &[f64]| HistogramOpts::new(name, help).buckets(buckets.to_vec());
        let overhead = HistogramVec::new(
            histogram("fettle_gateway_overhead_seconds", "What the gateway adds to a request", OVERHEAD),
            &["phase"],
        )?;
        registry.register(Box::new(overhead.clone()))?;
        let queue_wait = Histogram::with_opts(histogram(
            "fettle_gateway_queue_wait_seconds",
            "How long requests waited for a target",
            WAIT,
        ))?;
        registry.register(Box::new(queue_wait.clone()))?;
        let breakers = IntGaugeVec::new(
            Opts::new("fettle_gateway_breaker_state", "0 serving, 1 one request may try, 2 closed"),
            &["target"],
        )?;
        registry.register(Box::new(breakers.clone()))?;
        Ok(Self {
            requests: counters("fettle_gateway_requests_total", "Answered requests", &["protocol", "status"])?,
            overhead,
            queue_depth: gauge("fettle_gateway_queue_depth", "Requests that wait for a target")?,
            queue_wait,
            rejected: counters(
                "fettle_gateway_rejected_total",
                "Requests that got an error from the gateway itself",
                &["reason"],
            )?,
            routes: counters("fettle_gateway_route_total", "Why requests went where they did", &["policy"])?,
            prefix_hit_tokens: counter(
                "fettle_gateway_prefix_hit_tokens_total",
                "Prompt tokens that targets remembered",
            )?,
            tokens: counters("fettle_gateway_tokens_total", "Tokens of requests", &["kind"])?,
            retries: counter("fettle_gateway_retries_total", "Attempts beyond the first")?,
            streams: gauge("fettle_gateway_open_answers", "Answers on their way to callers")?,
            breakers,
            usage_lost: gauge("fettle_gateway_usage_lost_records", "Usage records that found neither disk nor memory")?,
        })
    }
}
