//! Everything that only reads: a few read-only connections, each used on a thread where it may block.
//!
//! A read sees one snapshot and holds it for as long as it takes; nothing long is read at once, or the log could not be moved
//! into the database.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use camino::Utf8PathBuf;
use fettle_app::metrics::LedgerMetrics;
use fettle_app::ports::ledger::{L, LedgerError};
use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::error::{self, OrLedger};
use crate::open;

/// Pages, lists and streams; each occupies a blocking thread while it reads.
const READERS: u32 = 4;
/// A reader that is not free within this long is a sign of overload.
const READER_WAIT: Duration = Duration::from_secs(5);

#[derive(Clone)]
pub(crate) struct Readers {
    file: Utf8PathBuf,
    /// Open and not in use.
    free: Arc<Mutex<Vec<Connection>>>,
    permits: Arc<Semaphore>,
    metrics: LedgerMetrics,
}

impl Readers {
    /// Opens one, so that a file that cannot be read is told now; the others are opened when they are needed.
    pub(crate) fn open(file: Utf8PathBuf, metrics: LedgerMetrics) -> L<Self> {
        let first = open::reading(&file).or_ledger()?;
        let permits = Semaphore::new(READERS as usize);
        Ok(Self { file, free: Arc::new(Mutex::new(vec![first])), permits: Arc::new(permits), metrics })
    }

    /// Lets `read` see one snapshot. It goes on to its end also when nobody waits for it any more.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> L<T> + Send + 'static,
    ) -> L<T> {
        let asked = Instant::now();
        let permit = tokio::time::timeout(READER_WAIT, self.permits.clone().acquire_owned()).await;
        self.metrics.connection_wait.observe(asked.elapsed().as_secs_f64());
        let permit = permit
            .map_err(|_| LedgerError::Unavailable(format!("no reader was free within {} s", READER_WAIT.as_secs())))?
            .map_err(|_| LedgerError::Unavailable("it has been closed".to_owned()))?;
        let readers = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            let read = readers.read_now(read);
            drop(permit);
            read
        });
        done.await.map_err(|join| LedgerError::Unavailable(join.to_string()))?
    }

    fn read_now<T>(&self, read: impl FnOnce(&Connection) -> L<T>) -> L<T> {
        let free = self.free().pop();
        let mut conn = match free {
            Some(conn) => conn,
            None => open::reading(&self.file).or_ledger()?,
        };
        let outcome = snapshot(&mut conn, read);
        // One that met trouble with the file is opened anew.
        if !outcome.as_ref().is_err_and(error::concerns_the_file) {
            self.free().push(conn);
        }
        outcome
    }

    fn free(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for who reads, then closes; later reads are refused.
    pub(crate) async fn close(&self) {
        // Whoever still reads after this long keeps its connection until it has done.
        let all = tokio::time::timeout(READER_WAIT, self.permits.acquire_many(READERS)).await;
        self.permits.close();
        drop(all);
        self.free().clear();
    }
}

fn snapshot<T>(conn: &mut Connection, read: impl FnOnce(&Connection) -> L<T>) -> L<T> {
    let transaction = conn.transaction_with_behavior(TransactionBehavior::Deferred).or_ledger()?;
    let outcome = read(&transaction)?;
    transaction.commit().or_ledger()?;
    Ok(outcome)
}
