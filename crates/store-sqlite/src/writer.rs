//! The one thread that writes. It takes what queued while the last group reached the disk, applies it in one transaction,
//! and answers after the commit, so that many callers share one fsync and an answer is always durable.
//!
//! It never waits for more work to come, and never answers before the commit.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use camino::Utf8PathBuf;
use fettle_app::crash::{self, Point};
use fettle_app::metrics::LedgerMetrics;
use fettle_app::ports::clock::IdSource;
use fettle_app::ports::ledger::{L, LedgerError};
use fettle_domain::job::JobKind;
use fettle_domain::lease::Timing;
use fettle_domain::turn::Slots;
use jiff::Timestamp;
use rusqlite::{Connection, TransactionBehavior, params};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::error::{self, OrLedger};
use crate::line::{Line, LineEnd, Taken, line};
use crate::open::{self, DataDirLock};
use crate::sql::Sql as _;
use crate::time::LedgerTime;

/// Callers that can wait in line; more wait to be let in.
const QUEUE: usize = 1024;
/// Commands in one transaction: a failing one makes the others run again one by one, so a group stays small.
const MAX_GROUP: usize = 512;
/// Bytes of deliveries in one transaction: the others of the group wait until they are written.
const MAX_GROUP_BYTES: usize = 16 * 1024 * 1024;
/// Without a command for this long, the log is moved into the database.
const IDLE: Duration = Duration::from_millis(250);
/// Beyond this much log since the last checkpoint nobody waits for idleness.
const CHECKPOINT_BYTES: usize = 64 * 1024 * 1024;
/// What is left to move is so little that the writer may wait for it; only then can the log start over in its file.
const LAST_BYTES: usize = 4 * 1024 * 1024;
/// Beyond this the writer waits however much is left: a log that writes outrun would grow until the disk is full.
const MAX_LOG_BYTES: usize = 512 * 1024 * 1024;
/// What a verb adds to the log, roughly: about eight pages.
const VERB_LOG_BYTES: usize = 32 * 1024;
/// A caller waits at most this long for the writer; a healthy one answers within milliseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// One change of the ledger. May be applied more than once before its transaction commits, so it changes nothing else.
pub(crate) trait Verb: Send + Sync + 'static {
    type Out: Send + 'static;
    fn apply(&self, tx: &mut Tx<'_>) -> L<Self::Out>;

    /// What it carries of somebody else's, of whatever size.
    fn body_bytes(&self) -> usize {
        0
    }

    /// What it adds to the log, roughly.
    fn log_bytes(&self) -> usize {
        VERB_LOG_BYTES
    }
}

/// What a verb works with.
pub(crate) struct Tx<'c> {
    pub(crate) conn: &'c Connection,
    pub(crate) now: Timestamp,
    pub(crate) timing: Timing,
    pub(crate) slots: &'c Slots,
    pub(crate) ids: &'c dyn IdSource,
    pub(crate) time: &'c LedgerTime,
    pub(crate) wakes: Wakes,
    /// The last event appended, or 0.
    pub(crate) newest_event: u64,
    /// The wall clock was stepped ahead by this much and live leases were moved with it.
    pub(crate) stepped: Option<Duration>,
}

/// What became runnable, so that whoever waits is woken after the commit.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wakes {
    delivery: bool,
    run: bool,
    publish: bool,
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

    fn ring(self, work: &watch::Sender<u64>, jobs: &watch::Sender<u64>) {
        let Self { delivery, run, publish } = self;
        let points = [(run, Point::HintRing), (publish, Point::PublishWake)];
        let reached = || points.into_iter().filter_map(|(wakes, point)| wakes.then_some(point));
        if delivery || run || publish {
            reached().for_each(crash::before);
            work.send_modify(|count| *count += 1);
            if run || publish {
                jobs.send_modify(|count| *count += 1);
            }
            reached().for_each(crash::after);
        }
    }
}

/// The handle that callers hold.
pub(crate) struct Writer {
    line: Line<Box<dyn Asked>>,
    metrics: LedgerMetrics,
    /// Set once the file cannot be trusted; every later write is refused with it.
    broken: Arc<OnceLock<String>>,
    /// Taken by whoever closes.
    thread: Mutex<Option<JoinHandle<L<()>>>>,
}

/// What the writer is started with.
pub(crate) struct WriterParts {
    pub(crate) conn: Connection,
    /// What `conn` was made of, to make it anew.
    pub(crate) file: Utf8PathBuf,
    pub(crate) time: Arc<LedgerTime>,
    pub(crate) timing: Timing,
    pub(crate) slots: Arc<Slots>,
    pub(crate) ids: Arc<dyn IdSource>,
    pub(crate) newest_event: watch::Sender<u64>,
    /// Rung by deliveries and jobs.
    pub(crate) work: watch::Sender<u64>,
    /// Rung by jobs alone: whoever waits for a lease asks with a write, and a flood of deliveries must not make them ask.
    pub(crate) jobs: watch::Sender<u64>,
    pub(crate) metrics: LedgerMetrics,
    /// Held for as long as the connection may write.
    pub(crate) lock: DataDirLock,
}

impl Writer {
    /// Errors when the system has no thread left.
    pub(crate) fn start(parts: WriterParts) -> L<Self> {
        let (line, end) = line(QUEUE);
        let metrics = parts.metrics.clone();
        let broken = Arc::new(OnceLock::new());
        let state = WriterThread { parts, line: end, broken: broken.clone(), log: Log::default(), suspect: false };
        let thread = std::thread::Builder::new()
            .name("ledger-writer".to_owned())
            .spawn(move || state.run())
            .map_err(|error| LedgerError::Unavailable(error.to_string()))?;
        Ok(Self { line, metrics, broken, thread: Mutex::new(Some(thread)) })
    }

    pub(crate) async fn write<V: Verb>(&self, verb: V) -> L<V::Out> {
        let _waiting = self.metrics.wait();
        let (reply, answer) = oneshot::channel();
        let answered = tokio::time::timeout(ANSWER_TIMEOUT, async {
            self.line.join(Box::new(Ask { verb, out: None, reply })).await.ok_or_else(|| self.gone())?;
            answer.await.map_err(|_| self.gone())?
        });
        answered.await.unwrap_or_else(|_| {
            Err(LedgerError::Unavailable(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())))
        })
    }

    fn gone(&self) -> LedgerError {
        match self.broken.get() {
            Some(why) => LedgerError::Corrupt(why.clone()),
            None => LedgerError::Unavailable("it has been closed".to_owned()),
        }
    }

    /// Waits until nothing can be written any more: after a close, or when the thread behind has ended by itself.
    pub(crate) async fn ended(&self) {
        self.line.ended().await;
    }

    /// Waits until everything asked before is answered and the file is closed. A second call finds nothing to do.
    pub(crate) async fn close(&self) -> L<()> {
        self.line.close();
        self.line.ended().await;
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = thread else { return Ok(()) };
        let gone = |why: &str| Err(LedgerError::Unavailable(format!("its writer ended: {why}")));
        match tokio::task::spawn_blocking(move || thread.join()).await {
            Ok(Ok(closed)) => closed,
            Ok(Err(_)) => gone("it panicked"),
            Err(join) => gone(&join.to_string()),
        }
    }
}

impl Drop for Writer {
    /// The thread ends by itself after the group that it is at, without a word in the file.
    fn drop(&mut self) {
        self.line.abandon();
    }
}

trait Asked: Send {
    fn apply(&mut self, tx: &mut Tx<'_>) -> L<()>;
    fn answer(self: Box<Self>, failed: Option<LedgerError>);
    fn body_bytes(&self) -> usize;
    fn log_bytes(&self) -> usize;
}

struct Ask<V: Verb> {
    verb: V,
    out: Option<V::Out>,
    reply: oneshot::Sender<L<V::Out>>,
}

impl<V: Verb> Asked for Ask<V> {
    fn apply(&mut self, tx: &mut Tx<'_>) -> L<()> {
        self.out = Some(self.verb.apply(tx)?);
        Ok(())
    }

    fn answer(self: Box<Self>, failed: Option<LedgerError>) {
        let answer = match failed {
            Some(error) => Err(error),
            None => Ok(self.out.expect("an applied verb has an outcome")),
        };
        // A caller that gave up finds its change in the ledger when it asks again.
        let _ = self.reply.send(answer);
    }

    fn body_bytes(&self) -> usize {
        self.verb.body_bytes()
    }

    fn log_bytes(&self) -> usize {
        self.verb.log_bytes()
    }
}

/// Tells those who asked that their changes are durable, after whoever waits for them was woken.
fn answer(group: Vec<Box<dyn Asked>>, woken: Wakes) {
    if woken.run {
        crash::before(Point::HintMark);
    }
    group.into_iter().for_each(|command| command.answer(None));
    if woken.run {
        crash::after(Point::HintMark);
    }
}

/// What stands in the log, estimated, and who moves it into the database.
#[derive(Default)]
struct Log {
    /// Written since the last checkpoint began.
    fresh: usize,
    /// Written since the log last started over.
    whole: usize,
    /// A checkpoint on a connection of its own, beside which the writer goes on.
    mover: Option<JoinHandle<L<()>>>,
}

struct WriterThread {
    parts: WriterParts,
    line: LineEnd<Box<dyn Asked>>,
    broken: Arc<OnceLock<String>>,
    log: Log,
    /// The connection's idea of its transaction may be wrong, so it is made anew before the next one.
    suspect: bool,
}

impl WriterThread {
    fn run(mut self) -> L<()> {
        while self.broken.get().is_none() {
            let looks = self.log.fresh > 0 || self.log.mover.is_some();
            match self.line.take(looks.then_some(IDLE)) {
                Taken::Some(asked) => self.settle_all(asked),
                Taken::Idle if self.log.mover.is_some() => self.look_after_the_log(),
                Taken::Idle => self.checkpoint(),
                Taken::Closed => return self.close(),
                Taken::Abandoned => return Ok(()),
            }
        }
        // The handle answers for those still in line.
        Ok(())
    }

    fn settle_all(&mut self, asked: Vec<Box<dyn Asked>>) {
        for group in groups(asked) {
            self.settle(group);
            if self.broken.get().is_some() {
                return;
            }
        }
        self.look_after_the_log();
    }

    /// Applies and answers. A group in which one fails is rolled back and goes one by one, so that each gets its own
    /// answer.
    fn settle(&mut self, mut group: Vec<Box<dyn Asked>>) {
        let bytes = group.iter().map(|ask| ask.log_bytes()).sum::<usize>();
        self.log.fresh += bytes;
        self.log.whole += bytes;
        match self.attempt(&mut group) {
            Ok(woken) => answer(group, woken),
            Err(error) if group.len() == 1 || error::concerns_the_file(&error) => {
                self.refuse(group, error);
            }
            Err(_) => {
                let mut left = VecDeque::from(group);
                while let Some(command) = left.pop_front() {
                    let mut alone = vec![command];
                    match self.attempt(&mut alone) {
                        Ok(woken) => answer(alone, woken),
                        Err(error) if matches!(error, LedgerError::Corrupt(_)) => {
                            alone.extend(left.drain(..));
                            self.refuse(alone, error);
                        }
                        Err(error) => self.refuse(alone, error),
                    }
                }
            }
        }
    }

    fn refuse(&self, group: Vec<Box<dyn Asked>>, error: LedgerError) {
        if let LedgerError::Corrupt(why) = &error {
            self.broken.get_or_init(|| why.clone());
        }
        for command in group {
            command.answer(Some(error::copy(&error)));
        }
    }

    /// A full disk makes SQLite roll back by itself, in the middle of whatever was asked of it. What is left of such a
    /// connection is nothing to build on, so whatever did not end as it should gets a new one.
    fn attempt(&mut self, group: &mut [Box<dyn Asked>]) -> L<Wakes> {
        if self.suspect {
            self.parts.conn = open::writing(&self.parts.file).or_ledger()?;
            self.suspect = false;
        }
        let outcome = self.transact(group);
        self.suspect |= outcome.as_ref().is_err_and(error::concerns_the_file);
        outcome
    }

    fn transact(&mut self, group: &mut [Box<dyn Asked>]) -> L<Wakes> {
        let parts = &mut self.parts;
        let begun = Instant::now();
        let changes = group.len();
        let transaction = parts.conn.transaction_with_behavior(TransactionBehavior::Immediate).or_ledger()?;
        let mut tx = Tx {
            conn: &transaction,
            now: parts.time.now(),
            timing: parts.timing,
            slots: &parts.slots,
            ids: parts.ids.as_ref(),
            time: &parts.time,
            wakes: Wakes::default(),
            newest_event: 0,
            stepped: None,
        };
        for ask in group {
            ask.apply(&mut tx)?;
        }
        let (wakes, newest_event, stepped) = (tx.wakes, tx.newest_event, tx.stepped);
        transaction.commit().or_ledger()?;
        parts.metrics.commit.observe(begun.elapsed().as_secs_f64());
        parts.metrics.batch.observe(changes as f64);

        if let Some(step) = stepped {
            parts.time.follow(step);
        }
        if newest_event > 0 {
            parts.newest_event.send_replace(newest_event);
        }
        wakes.ring(&parts.work, &parts.jobs);
        Ok(wakes)
    }

    /// Has a log that grew long moved beside the writes. One that was moved while writes went on has a rest, which is moved
    /// likewise until it is small enough to wait for.
    fn look_after_the_log(&mut self) {
        if let Some(mover) = self.log.mover.take_if(|mover| mover.is_finished()) {
            self.told(joined(mover));
            if self.log.fresh <= LAST_BYTES || self.log.whole > MAX_LOG_BYTES {
                self.checkpoint();
            } else {
                self.checkpoint_beside();
            }
        } else if self.log.fresh >= CHECKPOINT_BYTES && self.log.mover.is_none() {
            self.checkpoint_beside();
        }
    }

    /// Moves the log into the database while nobody asks for anything. A reader in the way only postpones it: the next one
    /// takes all.
    fn checkpoint(&mut self) {
        self.log.fresh = 0;
        self.log.whole = 0;
        let moved = move_log(&self.parts.conn);
        self.told(moved);
    }

    /// Begins to move the log on another connection. Writes go on into the log meanwhile.
    fn checkpoint_beside(&mut self) {
        self.log.fresh = 0;
        let file = self.parts.file.clone();
        let moves = move || {
            let conn = open::writing(&file).or_ledger()?;
            move_log(&conn)?;
            conn.close().map_err(|(_, error)| error).or_ledger()
        };
        match std::thread::Builder::new().name("ledger-mover".to_owned()).spawn(moves) {
            Ok(mover) => self.log.mover = Some(mover),
            Err(error) => self.told(Err(LedgerError::Unavailable(error.to_string()))),
        }
    }

    fn told(&self, moved: L<()>) {
        if let Err(error) = moved {
            tracing::warn!(error = &error as &dyn std::error::Error, "could not checkpoint the ledger");
            if let LedgerError::Corrupt(why) = error {
                self.broken.get_or_init(|| why);
            }
        }
    }

    fn close(mut self) -> L<()> {
        if let Some(mover) = self.log.mover.take() {
            self.told(joined(mover));
        }
        let now = self.parts.time.now().as_microsecond();
        self.parts.conn.run("UPDATE ledger SET time_at = max(time_at, ?), closed = 1", params![now])?;
        // Closing the last connection checkpoints; a reader still open leaves that to the next start.
        let WriterParts { conn, lock, .. } = self.parts;
        conn.close().map_err(|(_, error)| error).or_ledger()?;
        drop(lock);
        Ok(())
    }
}

/// No more in one than a transaction should hold. There is no waiting window: alone, a command goes at once.
fn groups(asked: Vec<Box<dyn Asked>>) -> Vec<Vec<Box<dyn Asked>>> {
    let mut groups = vec![Vec::with_capacity(asked.len().min(MAX_GROUP))];
    let mut bytes = 0;
    for command in asked {
        let full = groups.last().is_some_and(|group| group.len() == MAX_GROUP || bytes >= MAX_GROUP_BYTES);
        if full {
            groups.push(Vec::new());
            bytes = 0;
        }
        bytes += command.body_bytes();
        groups.last_mut().expect("there is one from the beginning").push(command);
    }
    groups
}

fn joined(mover: JoinHandle<L<()>>) -> L<()> {
    mover.join().unwrap_or_else(|_| Err(LedgerError::Unavailable("what moves the log panicked".to_owned())))
}

/// `PASSIVE` never waits for readers; once all is moved, the next write starts the log over in the same file.
fn move_log(conn: &Connection) -> L<()> {
    conn.one("PRAGMA wal_checkpoint(PASSIVE)", (), |_| Ok(()))
}

#[cfg(test)]
mod tests {
    use fettle_app::ports::clock::IdSource;
    use fettle_app::ports::ledger::{Accepted, Delivery, Ledger as _};
    use fettle_domain::id::{CorrelationId, DeliveryId};
    use uuid::Uuid;

    use super::*;
    use crate::{Options, SqliteLedger};

    struct Now;

    impl fettle_app::ports::clock::Clock for Now {
        fn now(&self) -> Timestamp {
            Timestamp::UNIX_EPOCH
        }
    }

    #[derive(Default)]
    struct Counted(std::sync::atomic::AtomicU64);

    impl IdSource for Counted {
        fn uuid(&self) -> Uuid {
            Uuid::from_u128(u128::from(self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed)))
        }
    }

    /// Lets the file grow by no page more, as a full disk would. It holds for this connection alone.
    struct FillTheDisk;

    impl Verb for FillTheDisk {
        type Out = ();

        fn apply(&self, tx: &mut Tx<'_>) -> L<()> {
            tx.conn.one("PRAGMA max_page_count = 1", (), |_| Ok(()))
        }
    }

    /// Says that it has begun and keeps the writer until it is told to go on, so that what is asked meanwhile becomes one group.
    struct Busy {
        begun: std::sync::Mutex<Option<tokio::sync::oneshot::Sender<()>>>,
        held: std::sync::Mutex<std::sync::mpsc::Receiver<()>>,
    }

    impl Verb for Busy {
        type Out = ();

        fn apply(&self, _tx: &mut Tx<'_>) -> L<()> {
            self.begun.lock().unwrap().take().unwrap().send(()).unwrap();
            self.held.lock().unwrap().recv().unwrap();
            Ok(())
        }
    }

    /// What one row holds is no reason to give up the file.
    struct FindNonsense;

    impl Verb for FindNonsense {
        type Out = ();

        fn apply(&self, _tx: &mut Tx<'_>) -> L<()> {
            Err(error::unreadable("a row from another world"))
        }
    }

    async fn ledger(folder: &tempfile::TempDir) -> SqliteLedger {
        let path = camino::Utf8Path::from_path(folder.path()).unwrap();
        SqliteLedger::open(path, Options::new(Arc::new(Now), Arc::new(Counted::default()))).await.unwrap()
    }

    fn delivery(number: u128) -> Delivery {
        Delivery {
            id: DeliveryId::from_uuid(Uuid::from_u128(number)),
            key: format!("github:{number}"),
            event: "issues".to_owned(),
            body: vec![b'x'; 1 << 20].into(),
            correlation: CorrelationId::from_uuid(Uuid::from_u128(number)),
            received_at: Timestamp::UNIX_EPOCH,
        }
    }

    #[tokio::test]
    async fn a_full_disk_refuses_writes_and_takes_them_again_when_there_is_room() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = ledger(&folder).await;
        assert_eq!(ledger.accept(delivery(1)).await.unwrap(), Accepted::New);
        ledger.write(FillTheDisk).await.unwrap();
        let (go_on, held) = std::sync::mpsc::channel();
        let (begun, begins) = tokio::sync::oneshot::channel();
        let busy = Busy { begun: std::sync::Mutex::new(Some(begun)), held: std::sync::Mutex::new(held) };
        let (_, (refused, other, ())) = tokio::join!(ledger.write(busy), async {
            begins.await.unwrap();
            tokio::join!(ledger.accept(delivery(2)), ledger.accept(delivery(3)), async { go_on.send(()).unwrap() })
        });
        assert!(
            matches!((&refused, &other), (Err(LedgerError::Full), Err(LedgerError::Full))),
            "{refused:?} {other:?}"
        );
        assert_eq!(ledger.depth().await.unwrap().open_deliveries, 1, "reads go on");
        for number in [2, 3] {
            assert_eq!(ledger.accept(delivery(number)).await.unwrap(), Accepted::New);
        }
        ledger.close().await.unwrap();
        assert_eq!(self::ledger(&folder).await.depth().await.unwrap().open_deliveries, 3);
    }

    #[tokio::test]
    async fn an_unreadable_row_fails_its_own_command_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = ledger(&folder).await;
        let (nonsense, accepted) = tokio::join!(ledger.write(FindNonsense), ledger.accept(delivery(1)));
        assert!(matches!(nonsense, Err(LedgerError::Unreadable(_))), "{nonsense:?}");
        assert_eq!(accepted.unwrap(), Accepted::New);
        assert!(ledger.probe().await.is_ok());
    }
}
