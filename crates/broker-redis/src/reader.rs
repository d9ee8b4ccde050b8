//! The one that reads a stream for all who wait in this process.
//!
//! A blocking read is never given up: who waits may go at any time, the read goes on and its entry finds somebody else. After
//! anything that may have cost an answer, what the server says this process holds is read before anything new.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use fettle_app::ports::transport::X;
use redis::RedisResult;
use redis::aio::MultiplexedConnection;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use crate::connection::Server;
use crate::desk::Desk;
use crate::error::{from_redis, is_answer, is_no_group};
use crate::options::Limits;
use crate::stream::{Entry, Stream};

/// One blocking read. Between two of them entries are claimed; and on Redis 6 and older a read goes on after its stream
/// was deleted, and hears nothing.
const LONGEST_BLOCK: Duration = Duration::from_secs(5);
/// Between a fault and the next try, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// A broker that comes back is used at most this much later: as often as workers ask without hints.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

pub(crate) struct Reader {
    pub(crate) server: Arc<Server>,
    pub(crate) stream: Stream,
    pub(crate) consumer: String,
    pub(crate) limits: Limits,
    /// Entries in one read, at most one for each who waits.
    pub(crate) at_once: usize,
    /// Fields of an entry that takes another's place.
    pub(crate) anew: &'static [(&'static str, &'static str)],
    pub(crate) desk: Arc<Desk>,
}

/// A reader and its task, which begins with the first who waits and ends when this is dropped.
pub(crate) struct Reading {
    reader: Arc<Reader>,
    task: Mutex<JoinSet<()>>,
}

impl Reading {
    pub(crate) fn new(reader: Reader) -> Self {
        Self { reader: Arc::new(reader), task: Mutex::default() }
    }

    /// As the port says of `wait` and `next`.
    pub(crate) async fn next(&self, max: Duration) -> Option<Entry> {
        self.keep_running();
        self.reader.desk.take(max).await
    }

    pub(crate) fn desk(&self) -> &Desk {
        &self.reader.desk
    }

    fn keep_running(&self) {
        let mut task = self.task.lock().expect("no holder of a reader's task panics");
        // One that ended was a bug, or its runtime's end.
        while task.try_join_next().is_some() {}
        if task.is_empty() {
            task.spawn(Arc::clone(&self.reader).work());
        }
    }
}

struct Session {
    connection: MultiplexedConnection,
    /// Whether everything that the server counts as this process's was handed out.
    caught_up: bool,
    claim_at: Instant,
}

impl Reader {
    async fn work(self: Arc<Self>) {
        let mut session = None;
        let mut pause = FIRST_PAUSE;
        loop {
            self.desk.called().await;
            let Err(error) = self.round(&mut session).await else {
                if pause != FIRST_PAUSE {
                    info!("reading from stream {} again", self.stream.key);
                }
                pause = FIRST_PAUSE;
                continue;
            };
            let fault = Instant::now();
            session = None;
            // Once for each outage.
            if pause == FIRST_PAUSE {
                warn!(error = &error as &dyn std::error::Error, "cannot read from stream {}", self.stream.key);
            } else {
                debug!(error = &error as &dyn std::error::Error, "still cannot read from stream {}", self.stream.key);
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            self.desk.dismiss(fault);
        }
    }

    async fn round(&self, session: &mut Option<Session>) -> X<()> {
        let session = match session {
            Some(session) => session,
            None => session.insert(self.open().await?),
        };
        match self.read(session).await {
            Err(error) if is_no_group(&error) => {
                debug!("stream {} has lost its group, which is made anew", self.stream.key);
                self.stream.create_group(&mut session.connection).await.map_err(from_redis)
            }
            done => done.map_err(from_redis),
        }
    }

    async fn open(&self) -> X<Session> {
        let mut connection = self.server.connect().await?;
        match self.stream.forget_consumers(&mut connection, self.limits.forgotten_after).await {
            Ok(0) => {}
            Ok(count) => debug!("removed {count} consumers of stream {} that are gone", self.stream.key),
            // No group yet, or a user without the right to scripts; consumers then stay, which costs some bytes each.
            Err(error) if is_answer(&error) => debug!("consumers of stream {} stay: {error}", self.stream.key),
            Err(error) => return Err(from_redis(error)),
        }
        Ok(Session { connection, caught_up: false, claim_at: Instant::now() })
    }

    /// What came back, what an answer was lost of, what others left, and then what is new.
    async fn read(&self, session: &mut Session) -> RedisResult<()> {
        let connection = &mut session.connection;
        self.deliver(connection, self.desk.returned()).await?;
        if !session.caught_up {
            self.catch_up(connection).await?;
            session.caught_up = true;
        }
        let Some((waiting, _)) = self.desk.demand() else { return Ok(()) };
        if session.claim_at <= Instant::now() {
            let idle = self.limits.unsettled_after;
            let count = waiting.min(self.at_once);
            let claimed = self.stream.claim(connection, &self.consumer, count, idle).await?;
            if claimed.len() < count {
                session.claim_at = Instant::now() + self.limits.between_claims();
            }
            self.deliver(connection, claimed).await?;
        }
        let Some((waiting, until)) = self.desk.demand() else { return Ok(()) };
        let now = Instant::now();
        let block = until.min(now + LONGEST_BLOCK).min(session.claim_at.max(now)) - now;
        let count = waiting.min(self.at_once);
        // Its answer is lost with an error, and found when caught up.
        session.caught_up = false;
        let new = self.stream.read_new(connection, &self.consumer, count, block).await?;
        session.caught_up = true;
        self.deliver(connection, new).await
    }

    async fn catch_up(&self, connection: &mut MultiplexedConnection) -> RedisResult<()> {
        let mut after = "0".to_owned();
        loop {
            let (held, last) = self.stream.read_own(connection, &self.consumer, self.at_once, &after).await?;
            let lost: Vec<Entry> = held.into_iter().filter(|entry| !self.desk.knows(&entry.id)).collect();
            self.deliver(connection, lost).await?;
            match last {
                Some(last) => after = last,
                None => return Ok(()),
            }
        }
    }

    async fn deliver(
        &self,
        connection: &mut MultiplexedConnection,
        entries: impl IntoIterator<Item = Entry>,
    ) -> RedisResult<()> {
        for unwanted in entries.into_iter().filter_map(|entry| self.desk.hand(entry)) {
            self.stream.put_back(&unwanted.id, self.anew).exec_async(connection).await?;
        }
        Ok(())
    }
}
