//! The task that owns a publishing connection: takes batches in turn, connects when there is one to send.

use std::time::Duration;

use fettle_app::ports::transport::{TransportError, X};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::back_off::BackOff;
use crate::fault::Fault;
use crate::options::Target;
use crate::outbound::{Outbound, Outgoing, Sent, blocked};
use crate::task::Task;
use crate::topology::Place;

/// Batches in line. Each of their senders waits, so more of them only wait elsewhere.
const QUEUED: usize = 16;
/// Connecting, making what is absent and one batch, behind another that takes its whole time.
const SEND_LIMIT: Duration = Duration::from_secs(45);

pub(crate) struct Publisher {
    batches: mpsc::Sender<Batch>,
    task: Task,
}

struct Batch {
    messages: Vec<Outgoing>,
    answer: oneshot::Sender<Result<(), Fault>>,
}

impl Publisher {
    /// Publishes to `place`, which is made when it is absent.
    pub(crate) fn start(target: Target, role: &'static str, place: Place) -> Self {
        let (batches, queued) = mpsc::channel(QUEUED);
        let worker =
            Worker { target, role, place, outbound: None, began: Instant::now(), back_off: BackOff::default() };
        Self { batches, task: Task::start(|stop| worker.run(queued, stop)) }
    }

    /// Errors: not all of it is known to have arrived.
    pub(crate) async fn send(&self, messages: Vec<Outgoing>) -> X<()> {
        if messages.is_empty() {
            return Ok(());
        }
        let (answer, sent) = oneshot::channel();
        let sending = async {
            self.batches.send(Batch { messages, answer }).await.ok()?;
            sent.await.ok()
        };
        match timeout(SEND_LIMIT, sending).await {
            Ok(Some(sent)) => sent.map_err(TransportError::from),
            Ok(None) => Err(Fault::Unfit("the connection to the broker is closed".to_owned()).into()),
            Err(_) => Err(Fault::Silent { during: "publishing".to_owned(), limit: SEND_LIMIT }.into()),
        }
    }

    pub(crate) async fn close(&self) {
        self.task.end().await;
    }
}

struct Worker {
    target: Target,
    role: &'static str,
    place: Place,
    outbound: Option<Outbound>,
    /// When it was tried to make the connection.
    began: Instant,
    back_off: BackOff,
}

impl Worker {
    async fn run(mut self, mut batches: mpsc::Receiver<Batch>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                fault = lost(&mut self.outbound) => self.failed(fault),
                batch = batches.recv() => {
                    let Some(Batch { messages, answer }) = batch else { break };
                    // Whoever asked has given up: the batch may be asked for again by now.
                    if answer.is_closed() {
                        continue;
                    }
                    let sent = tokio::select! {
                        () = stop.cancelled() => break,
                        sent = self.send(&messages) => sent,
                    };
                    let _given_up = answer.send(sent);
                }
            }
        }
        if let Some(outbound) = self.outbound {
            outbound.close().await;
        }
    }

    async fn send(&mut self, messages: &[Outgoing]) -> Result<(), Fault> {
        if self.outbound.is_none() {
            if let Some(fault) = self.back_off.forbids() {
                return Err(fault);
            }
            self.began = Instant::now();
            match Outbound::open(&self.target, self.role, self.place).await {
                Ok(outbound) => self.outbound = Some(outbound),
                Err(fault) => {
                    self.failed(fault.clone());
                    return Err(fault);
                }
            }
        }
        let outbound = self.outbound.as_mut().expect("it was just opened");
        match outbound.send(messages).await {
            Ok(Sent::Confirmed) => Ok(()),
            Ok(Sent::Blocked) => Err(blocked()),
            Err(fault) => {
                self.failed(fault.clone());
                Err(fault)
            }
        }
    }

    fn failed(&mut self, fault: Fault) {
        self.outbound = None;
        self.back_off.failed(self.role, self.began, fault);
    }
}

async fn lost(outbound: &mut Option<Outbound>) -> Fault {
    match outbound {
        Some(outbound) => outbound.lost().await,
        None => std::future::pending().await,
    }
}
