//! One verb, one short transaction, repeated when another dashboard's was in the way; answered after its commit.
//!
//! A transaction is never given up in the middle: a caller that goes away leaves it to end by itself. What became of one whose
//! connection was lost nobody knows; its caller asks again, and each verb recognises what was done already.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use fettle_app::crash::{self, Point};
use fettle_app::metrics::LedgerMetrics;
use fettle_app::ports::clock::{Clock, IdSource};
use fettle_app::ports::ledger::{L, LedgerError};
use fettle_domain::lease::Timing;
use fettle_domain::turn::Slots;
use jiff::Timestamp;
use sqlx::pool::PoolConnection;
use sqlx::{Acquire as _, PgConnection, PgPool, Postgres};
use tokio::sync::oneshot;

use crate::PostgresLedger;
use crate::error::{Failed, OrLedger, R};
use crate::event::{self, NewEvent};
use crate::presence::Presence;
use crate::time::Instant;
use crate::wakes::{Bells, Wakes};

/// A verb that others were in the way of this often is not lucky, it is wrong: ids that exist already.
const TRIES: u32 = 8;
/// Before the second try; doubled for each further one. A rival's transaction takes a few milliseconds.
const PAUSE: Duration = Duration::from_millis(2);
/// One try, all waits for locks included. Above the limits that the server keeps itself, which say better what it was.
const ONE_TRY: Duration = Duration::from_secs(30);
/// A caller waits at most this long; a healthy server answers within milliseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// One change of the ledger. May be applied more than once before its transaction commits, so it changes nothing else.
pub(crate) trait Verb: Send + Sync + 'static {
    type Out: Send + 'static;
    fn apply(&self, tx: &mut Tx<'_>) -> impl Future<Output = R<Self::Out>> + Send;
}

/// What a verb works with.
pub(crate) struct Tx<'c> {
    pub(crate) conn: &'c mut PgConnection,
    /// Taken before any wait for a lock, so deadlines are rather too early than too late.
    pub(crate) now: Timestamp,
    pub(crate) timing: Timing,
    pub(crate) slots: &'c Slots,
    pub(crate) ids: &'c dyn IdSource,
    pub(crate) wakes: Wakes,
    pub(crate) presence: &'c Presence,
    /// Written last, so that the feed's lock is held only for this and the commit.
    pub(crate) events: Vec<NewEvent>,
}

/// What verbs and reads need of an open ledger.
pub(crate) struct Store {
    pub(crate) pool: PgPool,
    pub(crate) timing: Timing,
    pub(crate) slots: Slots,
    pub(crate) ids: Arc<dyn IdSource>,
    pub(crate) clock: Option<Arc<dyn Clock>>,
    pub(crate) bells: Bells,
    pub(crate) presence: Presence,
    pub(crate) metrics: LedgerMetrics,
}

impl PostgresLedger {
    pub(crate) async fn write<V: Verb>(&self, verb: V) -> L<V::Out> {
        if self.shutdown.is_cancelled() {
            return Err(LedgerError::Unavailable("it has been closed".to_owned()));
        }
        let _waiting = self.store.metrics.wait();
        let (reply, answer) = oneshot::channel();
        let store = self.store.clone();
        self.writes.spawn(async move {
            let written = store.write(&verb).await;
            let woken = written.as_ref().is_ok_and(|(_, wakes)| wakes.a_run());
            if woken {
                crash::before(Point::HintMark);
            }
            // A caller that gave up finds its change in the ledger when it asks again.
            let _ = reply.send(written.map(|(out, _)| out));
            if woken {
                crash::after(Point::HintMark);
            }
        });
        within(async { answer.await.map_err(|_| LedgerError::Unavailable("its task has ended".to_owned()))? }).await
    }
}

/// Nobody is kept waiting for ever.
pub(crate) async fn within<T>(answer: impl Future<Output = L<T>>) -> L<T> {
    tokio::time::timeout(ANSWER_TIMEOUT, answer)
        .await
        .unwrap_or_else(|_| Err(LedgerError::Unavailable(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()))))
}

impl Store {
    async fn write<V: Verb>(&self, verb: &V) -> L<(V::Out, Wakes)> {
        let mut pause = PAUSE;
        for _ in 1..TRIES {
            match self.attempt(verb).await {
                Err(failed) if failed.again => tokio::time::sleep(pause).await,
                outcome => return self.told(outcome),
            }
            pause *= 2;
        }
        let last = self.attempt(verb).await;
        self.told(last)
    }

    fn told<T>(&self, outcome: R<(T, Wakes)>) -> L<(T, Wakes)> {
        let (out, wakes) = outcome?;
        self.bells.ring(wakes);
        Ok((out, wakes))
    }

    async fn attempt<V: Verb>(&self, verb: &V) -> R<(V::Out, Wakes)> {
        let mut lent = self.lend().await?;
        let attempted = tokio::time::timeout(ONE_TRY, self.transact(&mut lent, verb)).await;
        match attempted {
            Ok(outcome) => {
                lent.is_whole = true;
                outcome
            }
            Err(_) => Err(no_answer()),
        }
    }

    async fn transact<V: Verb>(&self, conn: &mut PgConnection, verb: &V) -> R<(V::Out, Wakes)> {
        let begun = tokio::time::Instant::now();
        let mut transaction = conn.begin().await.or_ledger()?;
        match self.apply(&mut transaction, verb).await {
            Ok(applied) => {
                transaction.commit().await.or_ledger()?;
                self.metrics.commit.observe(begun.elapsed().as_secs_f64());
                // Each change has a transaction of its own here.
                self.metrics.batch.observe(1.0);
                Ok(applied)
            }
            Err(failed) => {
                // Its locks go at once. Without an answer the connection is lost, and they are gone too.
                let _ = transaction.rollback().await;
                Err(failed)
            }
        }
    }

    async fn apply<V: Verb>(&self, conn: &mut PgConnection, verb: &V) -> R<(V::Out, Wakes)> {
        let now = self.now(conn).await?;
        let mut tx = Tx {
            conn,
            now,
            timing: self.timing,
            slots: &self.slots,
            ids: self.ids.as_ref(),
            wakes: Wakes::default(),
            presence: &self.presence,
            events: Vec::new(),
        };
        let out = verb.apply(&mut tx).await?;
        event::flush(&mut tx).await?;
        Ok((out, tx.wakes))
    }

    /// The ledger's time.
    pub(crate) async fn now(&self, conn: &mut PgConnection) -> R<Timestamp> {
        match &self.clock {
            Some(clock) => Ok(clock.now()),
            None => {
                let Instant(now) =
                    sqlx::query_scalar!(r#"SELECT clock_timestamp() AS "now!""#).fetch_one(conn).await.or_ledger()?;
                Ok(now)
            }
        }
    }

    pub(crate) async fn lend(&self) -> R<Lent> {
        let asked = tokio::time::Instant::now();
        let acquired = self.pool.acquire().await;
        self.metrics.connection_wait.observe(asked.elapsed().as_secs_f64());
        Ok(Lent { conn: acquired.or_ledger()?, is_whole: false })
    }

    /// A connection that sees one snapshot and changes nothing.
    pub(crate) async fn reading(&self) -> R<Lent> {
        let mut lent = self.lend().await?;
        sqlx::query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").execute(&mut *lent).await.or_ledger()?;
        Ok(lent)
    }
}

fn no_answer() -> Failed {
    LedgerError::Unavailable(format!("no answer within {} s", ONE_TRY.as_secs())).into()
}

/// A connection of the pool. Dropped in the middle of something it is closed: what it would be found in, or whether its server
/// ever answers again, nobody knows.
pub(crate) struct Lent {
    conn: PoolConnection<Postgres>,
    is_whole: bool,
}

impl Lent {
    pub(crate) fn give_back<T>(mut self, outcome: R<T>) -> L<T> {
        self.is_whole = true;
        Ok(outcome?)
    }

    /// Ends a [`Store::reading`].
    pub(crate) async fn end<T>(mut self, outcome: R<T>) -> L<T> {
        sqlx::query("ROLLBACK").execute(&mut *self).await.or_ledger()?;
        self.give_back(outcome)
    }
}

impl Deref for Lent {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.conn
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.conn
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if !self.is_whole {
            self.conn.close_on_drop();
        }
    }
}
