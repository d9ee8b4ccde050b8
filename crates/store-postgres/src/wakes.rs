//! Who waits for something to happen is woken: here through channels, at other dashboards through `NOTIFY`.

use std::sync::atomic::{AtomicU8, Ordering};

use fettle_app::crash::{self, Point};
use fettle_domain::job::JobKind;
use tokio::sync::{Notify, watch};

/// What one transaction made happen.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wakes {
    delivery: bool,
    run: bool,
    publish: bool,
    /// The newest event, or 0.
    newest_event: u64,
}

impl Wakes {
    pub(crate) fn delivery(&mut self) {
        self.delivery = true;
    }

    pub(crate) fn job(&mut self, kind: JobKind) {
        match kind {
            JobKind::Run => self.run = true,
            JobKind::Publish => self.publish = true,
        }
    }

    pub(crate) fn event(&mut self, seq: u64) {
        self.newest_event = seq;
    }

    /// A job of a worker became runnable.
    pub(crate) fn a_run(self) -> bool {
        self.run
    }
}

/// What dashboards tell each other, as bits.
const EVENT: u8 = 1;
const JOB: u8 = 2;
const DELIVERY: u8 = 4;

/// What happened somewhere, without particulars: whoever hears it looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct News {
    pub(crate) event: bool,
    pub(crate) job: bool,
    pub(crate) delivery: bool,
}

impl News {
    /// `None`: a word of another version.
    pub(crate) fn heard(payload: &str) -> Option<Self> {
        let bits = payload.parse::<u8>().ok()?;
        Some(Self { event: bits & EVENT != 0, job: bits & JOB != 0, delivery: bits & DELIVERY != 0 })
    }
}

/// The sending ends of what this dashboard's callers wait on.
pub(crate) struct Bells {
    pub(crate) newest_event: watch::Sender<u64>,
    /// Rung by deliveries and jobs.
    pub(crate) work: watch::Sender<u64>,
    /// Rung by jobs alone: whoever waits for a lease asks with a transaction, and a flood of deliveries must not make them ask.
    pub(crate) jobs: watch::Sender<u64>,
    /// What other dashboards have not been told yet.
    untold: AtomicU8,
    something_untold: Notify,
}

impl Bells {
    pub(crate) fn new() -> Self {
        Self {
            newest_event: watch::Sender::new(0),
            work: watch::Sender::new(0),
            jobs: watch::Sender::new(0),
            untold: AtomicU8::new(0),
            something_untold: Notify::new(),
        }
    }

    /// After an own commit. Others are told later and by another session: a `NOTIFY` within the transaction would let all
    /// transactions of the server that notify commit only one after the other.
    pub(crate) fn ring(&self, wakes: Wakes) {
        let Wakes { delivery, run, publish, newest_event } = wakes;
        let points = [(run, Point::HintRing), (publish, Point::PublishWake)];
        let reached = || points.into_iter().filter_map(|(wakes, point)| wakes.then_some(point));
        self.event(newest_event);
        if delivery || run || publish {
            reached().for_each(crash::before);
            self.heard(News { event: false, job: run || publish, delivery });
            reached().for_each(crash::after);
        }
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        let told = bit(newest_event > 0, EVENT) | bit(run || publish, JOB) | bit(delivery, DELIVERY);
        if told != 0 {
            self.untold.fetch_or(told, Ordering::SeqCst);
            self.something_untold.notify_one();
        }
    }

    /// Something is runnable or was accepted, here or elsewhere.
    pub(crate) fn heard(&self, news: News) {
        if news.job || news.delivery {
            self.work.send_modify(|count| *count += 1);
        }
        if news.job {
            self.jobs.send_modify(|count| *count += 1);
        }
    }

    /// Event `seq` exists; numbers are seen in any order.
    pub(crate) fn event(&self, seq: u64) {
        self.newest_event.send_if_modified(|newest| {
            let newer = seq > *newest;
            *newest = seq.max(*newest);
            newer
        });
    }

    /// Waits for something to tell other dashboards, and gives the word for it.
    pub(crate) async fn untold(&self) -> String {
        loop {
            let bits = self.untold.swap(0, Ordering::SeqCst);
            if bits != 0 {
                return bits.to_string();
            }
            self.something_untold.notified().await;
        }
    }
}
