//! The broker between the processes: hints that get lost, come twice and in any order, and messages of other programs that
//! come again until they are taken.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fettle_app::ports::transport::{ForeignInbox, ForeignMessage, Hint, Transport, TransportError, X};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::bug::Bug;
use crate::nature::{Nature, Who, lock};

/// What was read and not taken comes again after this.
const COMES_AGAIN: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
struct Hung {
    hints: Vec<u64>,
    read: Vec<(u64, Instant)>,
    newest: u64,
}

#[derive(Debug)]
struct Letter {
    message: ForeignMessage,
    read_at: Option<Instant>,
    taken: bool,
}

#[derive(Default)]
struct Held {
    hung: Mutex<Hung>,
    rung: Notify,
    letters: Mutex<Vec<Letter>>,
    arrived: Notify,
}

/// One process's connection to it.
#[derive(Clone)]
pub(crate) struct Broker {
    who: Who,
    nature: Arc<Nature>,
    bug: Option<Bug>,
    held: Arc<Held>,
}

impl Broker {
    pub(crate) fn new(nature: Arc<Nature>, bug: Option<Bug>) -> Self {
        Self { who: Who::Outside, nature, bug, held: Arc::default() }
    }

    pub(crate) fn of(&self, who: Who) -> Arc<Self> {
        Arc::new(Self { who, ..self.clone() })
    }

    fn answers(&self) -> X<()> {
        match self.nature.wrong(self.nature.weather.bell / 3) {
            true => Err(TransportError::Unreachable("connection reset".into())),
            false => Ok(()),
        }
    }

    /// Everything about hints is gone, as after a restart without a disk.
    pub(crate) fn wipe_hints(&self) {
        *lock(&self.held.hung) = Hung::default();
    }

    /// Another program orders something.
    pub(crate) fn put(&self, id: Option<String>, body: Bytes) {
        let mut letters = lock(&self.held.letters);
        let message = ForeignMessage { body, id, redelivered: false, receipt: letters.len().to_string() };
        letters.push(Letter { message, read_at: None, taken: false });
        self.held.arrived.notify_one();
    }

    pub(crate) fn all_taken(&self) -> bool {
        lock(&self.held.letters).iter().all(|letter| letter.taken)
    }

    fn read_letter(&self) -> Option<ForeignMessage> {
        let now = Instant::now();
        let repeats = self.nature.wrong(self.nature.weather.bell / 3);
        let mut letters = lock(&self.held.letters);
        let free = |letter: &&mut Letter| {
            (!letter.taken && letter.read_at.is_none_or(|at| at + COMES_AGAIN <= now))
                || (repeats && letter.read_at.is_some())
        };
        let letter = letters.iter_mut().find(free)?;
        letter.message.redelivered = letter.read_at.is_some();
        letter.read_at = Some(now);
        letter.taken |= self.bug == Some(Bug::AckBeforeCommit);
        Some(letter.message.clone())
    }
}

#[async_trait]
impl Transport for Broker {
    async fn ring(&self, count: u32) -> X<()> {
        self.nature.step(self.who, "bell.ring").await;
        self.answers()?;
        for _ in 0..count {
            if self.nature.wrong(self.nature.weather.bell) {
                continue;
            }
            let copies = if self.nature.wrong(self.nature.weather.bell) { 2 } else { 1 };
            let mut hung = lock(&self.held.hung);
            for _ in 0..copies {
                hung.newest += 1;
                let hint = hung.newest;
                hung.hints.push(hint);
                self.held.rung.notify_one();
            }
        }
        self.nature.step(self.who, "bell.ring").await;
        Ok(())
    }

    async fn depth(&self) -> X<u64> {
        self.answers()?;
        let now = Instant::now();
        let mut hung = lock(&self.held.hung);
        let (again, still) = hung.read.drain(..).partition(|(_, at)| *at + COMES_AGAIN <= now);
        hung.read = still;
        let again: Vec<(u64, Instant)> = again;
        hung.hints.extend(again.into_iter().map(|(hint, _)| hint));
        Ok((hung.hints.len() + hung.read.len()) as u64)
    }

    async fn wait(&self, max: Duration) -> Option<Hint> {
        let until = Instant::now() + max;
        loop {
            {
                let mut hung = lock(&self.held.hung);
                if !hung.hints.is_empty() {
                    let any = usize::try_from(self.nature.dice.below(hung.hints.len() as u64)).unwrap_or(0);
                    let hint = hung.hints.swap_remove(any);
                    hung.read.push((hint, Instant::now()));
                    return Some(Hint(hint.to_string()));
                }
            }
            timeout_at(until, self.held.rung.notified()).await.ok()?;
        }
    }

    async fn done(&self, hint: Hint) -> X<()> {
        self.answers()?;
        lock(&self.held.hung).read.retain(|(read, _)| read.to_string() != hint.0);
        Ok(())
    }
}

#[async_trait]
impl ForeignInbox for Broker {
    async fn next(&self, max: Duration) -> Option<ForeignMessage> {
        self.nature.step(self.who, "inbox.next").await;
        if let Some(message) = self.read_letter() {
            return Some(message);
        }
        let _ = timeout_at(Instant::now() + max, self.held.arrived.notified()).await;
        self.read_letter()
    }

    async fn taken(&self, message: &ForeignMessage) -> X<()> {
        self.nature.step(self.who, "inbox.taken").await;
        self.answers()?;
        let mut letters = lock(&self.held.letters);
        if let Some(letter) = letters.iter_mut().find(|letter| letter.message.receipt == message.receipt) {
            letter.taken = true;
        }
        Ok(())
    }

    async fn bury(&self, _body: &Bytes, _reason: &str) -> X<()> {
        self.answers()
    }

    async fn depth(&self) -> X<u64> {
        Ok(lock(&self.held.letters).iter().filter(|letter| !letter.taken).count() as u64)
    }
}
