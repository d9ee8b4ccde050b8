//! The task that owns a reading connection: consumes only while somebody waits, and knows what was handed out.
//!
//! A delivery ends its consumer before it is handed over, so nothing is parked at a process that is busy. What was handed out
//! and is not settled in time comes again: a hint to anybody, a message of another program here, since its queue may drop what
//! was given back too often.

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fettle_app::ports::transport::{MAX_FOREIGN_BYTES, TransportError, X};
use futures::{FutureExt as _, StreamExt as _};
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Acker, Channel, Consumer};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::back_off::BackOff;
use crate::fault::Fault;
use crate::link::{Link, call};
use crate::options::Target;
use crate::task::Task;
use crate::topology;

/// One message at a time: the next goes to whoever is free.
const PREFETCH: u16 = 1;
/// Handed out and not settled. More waiters than this wait in line.
const MAX_HELD: usize = 64;
/// What came for nobody any more is kept this long for the next who waits here, since asking again takes about a second.
const KEPT: Duration = Duration::from_secs(2);
/// After a fault nobody is answered sooner, or whoever asks again at once would spin.
const FAULT_PAUSE: Duration = Duration::from_secs(1);
/// Commands in line. Each of their senders waits, so more of them only wait elsewhere.
const QUEUED: usize = 64;
/// Connecting and making what is absent, then one question.
const ASK_LIMIT: Duration = Duration::from_secs(30);

/// A message as it is handed out.
#[derive(Debug, Clone)]
pub(crate) struct Taken {
    pub(crate) receipt: String,
    pub(crate) content: Content,
}

#[derive(Debug, Clone)]
pub(crate) struct Content {
    /// Cut to [`MAX_FOREIGN_BYTES`] + 1.
    pub(crate) body: Bytes,
    pub(crate) id: Option<String>,
    pub(crate) redelivered: bool,
}

/// Where it comes again when it was not settled in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    /// Given back to the queue.
    Anywhere,
    /// Offered again by this reader, unless its connection ends before.
    Here,
}

pub(crate) struct Reader {
    commands: mpsc::Sender<Command>,
    ended_by_broker: Arc<AtomicU64>,
    task: Task,
}

pub(crate) struct Plan {
    pub(crate) target: Target,
    /// Made when it is absent.
    pub(crate) queue: &'static str,
    pub(crate) unsettled: Duration,
    pub(crate) again: Again,
}

enum Command {
    Next(oneshot::Sender<Taken>),
    Settle { receipt: String, answer: oneshot::Sender<Result<(), Fault>> },
    Depth(oneshot::Sender<Result<u64, Fault>>),
}

impl Reader {
    pub(crate) fn start(plan: Plan) -> Self {
        let (commands, queued) = mpsc::channel(QUEUED);
        let ended_by_broker = Arc::new(AtomicU64::new(0));
        let supervisor = Supervisor {
            plan,
            commands: queued,
            generation: 0,
            ended_by_broker: Arc::clone(&ended_by_broker),
            back_off: BackOff::default(),
        };
        Self { commands, ended_by_broker, task: Task::start(|stop| supervisor.run(stop)) }
    }

    /// `None` after `max`, and a pause after a fault. Dropped meanwhile, it may have been handed a message, which then comes
    /// again as one that was not settled.
    pub(crate) async fn next(&self, max: Duration) -> Option<Taken> {
        let began = Instant::now();
        let (answer, taken) = oneshot::channel();
        let asking = async {
            self.commands.send(Command::Next(answer)).await.ok()?;
            taken.await.ok()
        };
        match timeout(max, asking).await {
            Ok(None) => {
                sleep(FAULT_PAUSE.min(max.saturating_sub(began.elapsed()))).await;
                None
            }
            Ok(taken) => taken,
            Err(_) => None,
        }
    }

    /// Errors: it is not settled, and comes again or has already.
    pub(crate) async fn settle(&self, receipt: String) -> X<()> {
        self.ask("settling a message", |answer| Command::Settle { receipt, answer }).await
    }

    pub(crate) async fn depth(&self) -> X<u64> {
        self.ask("counting messages", Command::Depth).await
    }

    pub(crate) fn ended_by_broker(&self) -> u64 {
        self.ended_by_broker.load(Ordering::Relaxed)
    }

    pub(crate) async fn close(&self) {
        self.task.end().await;
    }

    async fn ask<T>(&self, during: &str, make: impl FnOnce(oneshot::Sender<Result<T, Fault>>) -> Command) -> X<T> {
        let (answer, answered) = oneshot::channel();
        let asking = async {
            self.commands.send(make(answer)).await.ok()?;
            answered.await.ok()
        };
        match timeout(ASK_LIMIT, asking).await {
            Ok(Some(answer)) => answer.map_err(TransportError::from),
            Ok(None) => Err(Fault::Unfit("the connection to the broker has ended".to_owned()).into()),
            Err(_) => Err(Fault::Silent { during: during.to_owned(), limit: ASK_LIMIT }.into()),
        }
    }
}

/// Outlives connections.
struct Supervisor {
    plan: Plan,
    commands: mpsc::Receiver<Command>,
    /// Of the newest connection; the first part of a receipt.
    generation: u64,
    ended_by_broker: Arc<AtomicU64>,
    back_off: BackOff,
}

impl Supervisor {
    async fn run(mut self, stop: CancellationToken) {
        loop {
            let command = tokio::select! {
                () = stop.cancelled() => return,
                command = self.commands.recv() => command,
            };
            let Some(command) = command else { return };
            // Nothing is held without a connection, so there is nothing to connect for.
            if let Command::Settle { answer, .. } = command {
                let _given_up = answer.send(Err(superseded()));
                continue;
            }
            if let Some(fault) = self.back_off.forbids() {
                refuse(command, fault);
                continue;
            }
            let began = Instant::now();
            let opened = tokio::select! {
                () = stop.cancelled() => return,
                opened = Session::open(&self.plan, self.generation + 1) => opened,
            };
            let ended = match opened {
                Err(fault) => {
                    refuse(command, fault.clone());
                    Err(fault)
                }
                Ok(session) => {
                    self.generation += 1;
                    self.serve(session, command, &stop).await
                }
            };
            match ended {
                Ok(()) => return,
                Err(fault) => self.back_off.failed(self.plan.queue, began, fault),
            }
        }
    }

    /// Works with one connection until it is asked to stop. Errors: the connection is of no use any more; whoever waits is let
    /// go.
    async fn serve(&mut self, mut session: Session, first: Command, stop: &CancellationToken) -> Result<(), Fault> {
        session.obey(first).await?;
        loop {
            session.match_demand().await?;
            let next_due = session.next_due();
            tokio::select! {
                () = stop.cancelled() => break,
                command = self.commands.recv() => match command {
                    Some(command) => session.obey(command).await?,
                    None => break,
                },
                delivery = delivered(&mut session.consumer) => match delivery {
                    Some(Ok(delivery)) => session.deliver(delivery).await?,
                    Some(Err(error)) => return Err(Fault::of("waiting for a message", error)),
                    None => {
                        self.ended_by_broker.fetch_add(1, Ordering::Relaxed);
                        return Err(Fault::Unfit(format!("the broker has ended the consumer of {}", session.queue)));
                    }
                },
                () = some_gone(&mut session.waiters) => session.waiters.retain(|waiter| !waiter.is_closed()),
                () = due(next_due) => session.settle_overdue().await?,
                fault = session.link.lost() => return Err(fault),
            }
        }
        session.link.close().await;
        Ok(())
    }
}

/// One connection with its queue, its consumer, and what came over it.
struct Session {
    link: Link,
    channel: Channel,
    queue: &'static str,
    unsettled: Duration,
    again: Again,
    generation: u64,
    consumer: Option<Consumer>,
    waiters: VecDeque<oneshot::Sender<Taken>>,
    /// By their order of arrival, which is the second part of a receipt.
    held: BTreeMap<u64, Held>,
    arrivals: u64,
}

struct Held {
    acker: Acker,
    content: Content,
    whose: Whose,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// Waits for somebody; until then, or for ever.
    Nobodys(Option<Instant>),
    /// In somebody's hand until then.
    Somebodys(Instant),
}

impl Session {
    async fn open(plan: &Plan, generation: u64) -> Result<Self, Fault> {
        let link = Link::open(&plan.target, plan.queue).await?;
        topology::ensure_queue(&link, plan.queue).await?;
        let channel = link.channel().await?;
        // For each consumer that this channel will have.
        call("limiting deliveries", channel.basic_qos(PREFETCH, BasicQosOptions::default())).await?;
        Ok(Self {
            link,
            channel,
            queue: plan.queue,
            unsettled: plan.unsettled,
            again: plan.again,
            generation,
            consumer: None,
            waiters: VecDeque::new(),
            held: BTreeMap::new(),
            arrivals: 0,
        })
    }

    async fn obey(&mut self, command: Command) -> Result<(), Fault> {
        match command {
            Command::Next(waiter) => {
                if !waiter.is_closed() {
                    self.waiters.push_back(waiter);
                }
                Ok(())
            }
            Command::Settle { receipt, answer } => answer_and_keep(answer, self.settle(&receipt).await),
            Command::Depth(answer) => {
                let depth = topology::ensure_queue(&self.link, self.queue).await.map_err(Lasting::Fatal);
                answer_and_keep(answer, depth)
            }
        }
    }

    async fn settle(&mut self, receipt: &str) -> Result<(), Lasting> {
        let number = self.number(receipt).ok_or_else(|| Lasting::Passing(superseded()))?;
        let Some(held) = self.held.remove(&number) else { return Err(Lasting::Passing(superseded())) };
        match call("settling a message", held.acker.ack(BasicAckOptions::default())).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Lasting::Passing(superseded())),
            Err(fault) => Err(Lasting::Fatal(fault)),
        }
    }

    /// The arrival that a receipt of this very connection names.
    fn number(&self, receipt: &str) -> Option<u64> {
        let (generation, number) = receipt.split_once('.')?;
        (generation.parse() == Ok(self.generation)).then(|| number.parse().ok()).flatten()
    }

    /// Hands over what is kept, and consumes exactly while somebody waits.
    async fn match_demand(&mut self) -> Result<(), Fault> {
        self.hand_over();
        let demanded = !self.waiters.is_empty() && self.held.len() < MAX_HELD;
        match (demanded, self.consumer.is_some()) {
            (true, false) => {
                let consuming = self.channel.basic_consume(
                    self.queue.into(),
                    "".into(),
                    BasicConsumeOptions::default(),
                    FieldTable::default(),
                );
                self.consumer = Some(call("beginning to consume", consuming).await?);
                Ok(())
            }
            (false, true) => self.stop_consuming().await,
            _ => Ok(()),
        }
    }

    async fn deliver(&mut self, delivery: Delivery) -> Result<(), Fault> {
        self.keep(delivery);
        self.stop_consuming().await
    }

    /// What was on its way meanwhile is kept.
    async fn stop_consuming(&mut self) -> Result<(), Fault> {
        let Some(mut consumer) = self.consumer.take() else { return Ok(()) };
        let cancelling = self.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
        call("ending to consume", cancelling).await?;
        while let Some(Some(Ok(delivery))) = consumer.next().now_or_never() {
            self.keep(delivery);
        }
        Ok(())
    }

    fn keep(&mut self, delivery: Delivery) {
        let Delivery { mut data, properties, redelivered, acker, .. } = delivery;
        data.truncate(MAX_FOREIGN_BYTES + 1);
        data.shrink_to_fit();
        let id = properties.message_id().as_ref().map(|id| id.as_str().to_owned());
        let content = Content { body: data.into(), id, redelivered };
        let until = (self.again == Again::Anywhere).then(|| Instant::now() + KEPT);
        self.arrivals += 1;
        self.held.insert(self.arrivals, Held { acker, content, whose: Whose::Nobodys(until) });
    }

    fn hand_over(&mut self) {
        let free = self.held.iter_mut().filter(|(_, held)| matches!(held.whose, Whose::Nobodys(_)));
        for (number, held) in free {
            let receipt = format!("{}.{number}", self.generation);
            let mut taken = Taken { receipt, content: held.content.clone() };
            loop {
                let Some(waiter) = self.waiters.pop_front() else { return };
                match waiter.send(taken) {
                    Ok(()) => break,
                    Err(back) => taken = back,
                }
            }
            held.whose = Whose::Somebodys(Instant::now() + self.unsettled);
        }
    }

    fn next_due(&self) -> Option<Instant> {
        self.held.values().filter_map(|held| held.whose.until()).min()
    }

    async fn settle_overdue(&mut self) -> Result<(), Fault> {
        let now = Instant::now();
        let overdue = self.held.iter().filter(|(_, held)| held.whose.until().is_some_and(|until| until <= now));
        let overdue: Vec<u64> = overdue.map(|(number, _)| *number).collect();
        for number in overdue {
            match self.again {
                Again::Here => {
                    if let Some(held) = self.held.get_mut(&number) {
                        held.content.redelivered = true;
                        held.whose = Whose::Nobodys(None);
                    }
                }
                Again::Anywhere => {
                    let Some(held) = self.held.remove(&number) else { continue };
                    let requeue = BasicNackOptions { multiple: false, requeue: true };
                    call("giving a message back", held.acker.nack(requeue)).await?;
                }
            }
        }
        Ok(())
    }
}

impl Whose {
    fn until(self) -> Option<Instant> {
        match self {
            Self::Nobodys(until) => until,
            Self::Somebodys(until) => Some(until),
        }
    }
}

/// Whether the connection is of use after a fault.
enum Lasting {
    Passing(Fault),
    Fatal(Fault),
}

fn answer_and_keep<T>(answer: oneshot::Sender<Result<T, Fault>>, result: Result<T, Lasting>) -> Result<(), Fault> {
    let (answered, kept) = match result {
        Ok(value) => (Ok(value), Ok(())),
        Err(Lasting::Passing(fault)) => (Err(fault), Ok(())),
        Err(Lasting::Fatal(fault)) => (Err(fault.clone()), Err(fault)),
    };
    let _given_up = answer.send(answered);
    kept
}

fn refuse(command: Command, fault: Fault) {
    match command {
        // Dropped, it lets its waiter go.
        Command::Next(_) => {}
        Command::Settle { answer, .. } => drop(answer.send(Err(fault))),
        Command::Depth(answer) => drop(answer.send(Err(fault))),
    }
}

fn superseded() -> Fault {
    Fault::Unfit("the message is no longer in this reader's hand: it comes again".to_owned())
}

async fn delivered(consumer: &mut Option<Consumer>) -> Option<lapin::Result<Delivery>> {
    match consumer {
        Some(consumer) => consumer.next().await,
        None => std::future::pending().await,
    }
}

/// Until one of them has given up.
async fn some_gone(waiters: &mut VecDeque<oneshot::Sender<Taken>>) {
    poll_fn(|cx| {
        let gone = waiters.iter_mut().any(|waiter| waiter.poll_closed(cx).is_ready());
        if gone { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

async fn due(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
