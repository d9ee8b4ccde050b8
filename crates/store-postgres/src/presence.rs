//! The one session of a dashboard that lasts: it listens, tells, looks every few seconds, and shows that the dashboard is alive.
//!
//! Who is alive is known to the server, by a lock that all such sessions share and that dies with each. A session that joins and
//! finds nobody has come after an outage of whatever length: nobody could renew meanwhile, so it gives every leased job a full
//! lease, while no other can join yet. A session that finds others gives nothing: they took the renewals. This covers dashboards
//! that were down and a server that was: its end takes all sessions with it, and the first to come back is alone. It costs no
//! timestamps, which would make an idle dashboard look dead and a crashed one alive for a while.
//!
//! Until its session has joined, a dashboard expires no lease. A session that the network cut off keeps its lock until the
//! server misses its answers, after [`crate::open::SILENCE`]; that is shorter than a lease, so a dashboard that comes back
//! earlier finds leases alive.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use fettle_app::ports::ledger::LedgerError;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::{Acquire as _, PgConnection, PgPool};
use tokio::time::Instant as Moment;

use crate::error::{OrLedger, R, unreadable};
use crate::time::{Instant, after};
use crate::wakes::News;
use crate::writer::Store;
use crate::{POLL, lock};

const CHANNEL: &str = "fettle";
/// Of one statement of this session. Beyond it the session is given up and another one begun.
const ANSWER: Duration = Duration::from_secs(5);
/// Joining waits for whoever joins alone, and reads all leased jobs.
const JOINING: Duration = Duration::from_secs(20);
/// Between two tries to join, while the server is away.
const AGAIN: Duration = Duration::from_millis(500);
/// What happens within this is told in one word: a busy dashboard wakes others fifty times a second.
const TELL_EVERY: Duration = Duration::from_millis(20);

/// With which start of the server this dashboard's session has joined: microseconds since 1970, or 0 while it has none.
#[derive(Debug, Default)]
pub(crate) struct Presence(AtomicI64);

impl Presence {
    /// Refuses to go on when leases could not be renewed for a while, as far as this dashboard can know.
    pub(crate) async fn require(&self, conn: &mut PgConnection) -> R<()> {
        let joined = self.0.load(Ordering::SeqCst);
        // A server that failed over without a word has new connections before the old session is missed.
        if joined == 0 || server_start(conn).await? != joined {
            return Err(LedgerError::Unavailable("this dashboard is just joining it again".to_owned()).into());
        }
        Ok(())
    }
}

async fn server_start(conn: &mut PgConnection) -> R<i64> {
    let Instant(start) =
        sqlx::query_scalar!(r#"SELECT pg_postmaster_start_time() AS "start!""#).fetch_one(conn).await.or_ledger()?;
    Ok(start.as_microsecond())
}

/// A session that has joined.
pub(crate) struct Session {
    listener: PgListener,
    pool: PgPool,
    /// By which it knows its own words.
    process: u32,
}

impl Session {
    pub(crate) async fn join(store: &Store, options: &PgConnectOptions) -> R<Self> {
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .acquire_timeout(ANSWER)
            .connect_lazy_with(options.clone());
        let joined = tokio::time::timeout(JOINING, Self::joined(store, &pool)).await;
        let (listener, process) = joined.unwrap_or_else(|_| Err(no_answer(JOINING).into()))?;
        Ok(Self { listener, pool, process })
    }

    async fn joined(store: &Store, pool: &PgPool) -> R<(PgListener, u32)> {
        let mut listener = PgListener::connect_with(pool).await.or_ledger()?;
        listener.eager_reconnect(false);
        listener.ignore_pool_close_event(true);
        // Before the first look, so that nothing happens between the two unheard.
        listener.listen(CHANNEL).await.or_ledger()?;
        let conn = listener.acquire().await.or_ledger()?;
        if lock::try_presence_alone(conn).await? {
            grant_grace(store, conn).await?;
            lock::presence(conn).await?;
            lock::presence_no_longer_alone(conn).await?;
        } else {
            lock::presence(conn).await?;
        }
        let process =
            sqlx::query_scalar!(r#"SELECT pg_backend_pid() AS "pid!""#).fetch_one(&mut *conn).await.or_ledger()?;
        let start = server_start(conn).await?;
        look(store, conn).await?;
        store.presence.0.store(start, Ordering::SeqCst);
        Ok((listener, process.unsigned_abs()))
    }

    /// Until something of it fails.
    async fn last(&mut self, store: &Store) -> R<()> {
        let mut next_look = Moment::now() + POLL;
        let mut next_word = Moment::now();
        loop {
            let tell = async {
                tokio::time::sleep_until(next_word).await;
                store.bells.untold().await
            };
            tokio::select! {
                heard = self.listener.try_recv() => {
                    let Some(heard) = heard.or_ledger()? else {
                        return Err(LedgerError::Unavailable("its session has ended".to_owned()).into());
                    };
                    if heard.process_id() == self.process {
                        continue;
                    }
                    let Some(news) = News::heard(heard.payload()) else { continue };
                    store.bells.heard(news);
                    if news.event {
                        self.ask(async |conn| newest_event(store, conn).await).await?;
                    }
                }
                word = tell => {
                    next_word = Moment::now() + TELL_EVERY;
                    self.ask(async |conn| say(conn, &word).await).await?;
                }
                () = tokio::time::sleep_until(next_look) => {
                    next_look = Moment::now() + POLL;
                    self.ask(async |conn| look(store, conn).await).await?;
                }
            }
        }
    }

    async fn ask(&mut self, question: impl AsyncFnOnce(&mut PgConnection) -> R<()>) -> R<()> {
        let conn = self.listener.acquire().await.or_ledger()?;
        tokio::time::timeout(ANSWER, question(conn)).await.unwrap_or_else(|_| Err(no_answer(ANSWER).into()))
    }
}

fn no_answer(within: Duration) -> LedgerError {
    LedgerError::Unavailable(format!("no answer within {} s", within.as_secs()))
}

/// Keeps a session, beginning with the one that has joined. Ends only by being dropped, and the session with it.
pub(crate) async fn stay(store: Arc<Store>, options: PgConnectOptions, mut session: Session) {
    loop {
        let ended = session.last(&store).await.err();
        store.presence.0.store(0, Ordering::SeqCst);
        if let Some(failed) = ended {
            tracing::warn!(error = &failed.error as &dyn std::error::Error, "lost the session with the ledger");
        }
        // A connection that is still good is closed and its lock with it; of one that is not, nobody waits for an answer.
        let Session { listener, pool, .. } = session;
        drop(listener);
        let _ = tokio::time::timeout(ANSWER, pool.close()).await;
        session = loop {
            match Session::join(&store, &options).await {
                Ok(session) => break session,
                Err(failed) => {
                    tracing::debug!(error = &failed.error as &dyn std::error::Error, "could not join the ledger");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        };
        tracing::info!("joined the ledger again");
    }
}

/// Whatever may have happened unheard.
async fn look(store: &Store, conn: &mut PgConnection) -> R<()> {
    newest_event(store, conn).await?;
    let waiting = sqlx::query!(
        r#"SELECT (SELECT seq FROM job WHERE state = 'queued' AND kind = 'run' ORDER BY seq LIMIT 1) IS NOT NULL
                  OR (SELECT seq FROM job WHERE state = 'queued' AND kind = 'publish' ORDER BY seq LIMIT 1) IS NOT NULL AS "job!",
                  (SELECT seq FROM delivery WHERE closed_at IS NULL ORDER BY seq LIMIT 1) IS NOT NULL AS "delivery!""#
    )
    .fetch_one(conn)
    .await
    .or_ledger()?;
    store.bells.heard(News { event: false, job: waiting.job, delivery: waiting.delivery });
    Ok(())
}

async fn newest_event(store: &Store, conn: &mut PgConnection) -> R<()> {
    let newest = sqlx::query_scalar!("SELECT max(seq) FROM event").fetch_one(conn).await.or_ledger()?;
    store.bells.event(u64::try_from(newest.unwrap_or(0)).map_err(unreadable)?);
    Ok(())
}

async fn say(conn: &mut PgConnection, word: &str) -> R<()> {
    sqlx::query!("SELECT pg_notify($1, $2)", CHANNEL, word).execute(conn).await.or_ledger()?;
    Ok(())
}

/// While no dashboard was alive no holder could renew; all of them get a full lease from now.
async fn grant_grace(store: &Store, conn: &mut PgConnection) -> R<()> {
    let mut transaction = conn.begin().await.or_ledger()?;
    let until = Instant(after(store.now(&mut transaction).await?, store.timing.lease));
    // A verb of a dashboard that has not noticed yet writes whole rows; it waits for this, or this for it.
    sqlx::query!(
        "SELECT id FROM task WHERE id IN (SELECT task_id FROM job WHERE leased_until IS NOT NULL)
         ORDER BY id FOR NO KEY UPDATE"
    )
    .fetch_all(&mut *transaction)
    .await
    .or_ledger()?;
    sqlx::query!("UPDATE job SET leased_until = greatest(leased_until, $1) WHERE leased_until IS NOT NULL", until)
        .execute(&mut *transaction)
        .await
        .or_ledger()?;
    transaction.commit().await.or_ledger()
}
