//! The one thread that asks NVML. Callers hand it questions and wait with a deadline; it never makes two calls at once, so a
//! call that hangs in the driver is not joined by more of its kind. Its callers' runtime is never blocked.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use nvml_wrapper::Nvml;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::load::{self, Attempt, Fault};

/// Initialising wakes GPUs up where no persistence daemon keeps them awake, some seconds each.
const LOAD_DEADLINE: Duration = Duration::from_secs(60);
/// Questions that wait behind one that hangs. There are four kinds, so more means that nobody reads the answers.
const QUEUE: usize = 16;

/// Asked on the thread; what it gives back has gone to the caller.
type Question = Box<dyn FnOnce(&Arc<Nvml>) + Send>;

/// The initialised library and its thread. Dropped, the thread ends after the call that it is in.
pub struct Driver {
    questions: SyncSender<Question>,
    ended: oneshot::Receiver<()>,
    call_timeout: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No path has the library: this host has no GPU part.
    #[error("no NVML library at {} paths", .0.len())]
    Absent(Vec<Attempt>),
    /// A library is there, and none initialises. May be better later.
    #[error("{}", worst(.0))]
    Failed(Vec<Attempt>),
    /// It was left behind, still in its call: a second one would hang beside it.
    #[error("the NVML library did not initialise within {} s", LOAD_DEADLINE.as_secs())]
    Hangs,
    #[error("could not start the thread for NVML")]
    Thread(#[source] io::Error),
}

/// The last one that is there: earlier ones failed, too.
fn worst(attempts: &[Attempt]) -> String {
    let failed = attempts.iter().rev().find(|attempt| attempt.outcome != load::Outcome::Absent);
    failed.map(ToString::to_string).unwrap_or_default()
}

/// Why there is no answer. In each case nothing is known, and what was known gets stale.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    #[error("the driver did not answer in time")]
    Timeout,
    #[error("too many questions wait behind one that the driver does not answer")]
    Stuck,
    #[error("the thread for NVML has ended")]
    Ended,
    /// Of all devices together. What one device does not answer is told with that device.
    #[error("{0}")]
    Driver(Fault),
}

impl Driver {
    /// Loads the first of `paths` that initialises. `call_timeout` is how long a caller waits for each later answer.
    pub async fn start(paths: Vec<PathBuf>, call_timeout: Duration) -> Result<(Self, Vec<Attempt>), StartError> {
        let (questions, asked) = sync_channel(QUEUE);
        let (loaded, loading) = oneshot::channel();
        let (ending, ended) = oneshot::channel();
        thread::Builder::new()
            .name("gpu-nvml".to_owned())
            .spawn(move || {
                // Dropped with the thread, whatever ends it.
                let _ending: oneshot::Sender<()> = ending;
                serve(&paths, loaded, &asked);
            })
            .map_err(StartError::Thread)?;
        let driver = Self { questions, ended, call_timeout };
        match timeout(LOAD_DEADLINE, loading).await {
            Ok(Ok((true, attempts))) => Ok((driver, attempts)),
            Ok(Ok((false, attempts))) if attempts.iter().all(|one| one.outcome == load::Outcome::Absent) => {
                Err(StartError::Absent(attempts))
            }
            Ok(Ok((false, attempts))) => Err(StartError::Failed(attempts)),
            Ok(Err(_)) => Err(StartError::Failed(Vec::new())),
            Err(_) => Err(StartError::Hangs),
        }
    }

    /// What `question` makes of NVML. One that nobody waits for any more is not asked.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Arc<Nvml>) -> T + Send + 'static,
    ) -> Result<T, CallError> {
        let (reply, answer) = oneshot::channel();
        let question = Box::new(move |nvml: &Arc<Nvml>| {
            if !reply.is_closed() {
                // Whoever asked may have left meanwhile.
                let _ = reply.send(question(nvml));
            }
        });
        self.questions.try_send(question).map_err(|e| match e {
            TrySendError::Full(_) => CallError::Stuck,
            TrySendError::Disconnected(_) => CallError::Ended,
        })?;
        match timeout(self.call_timeout, answer).await {
            Ok(answer) => answer.map_err(|_| CallError::Ended),
            Err(_) => Err(CallError::Timeout),
        }
    }

    pub(crate) fn call_timeout(&self) -> Duration {
        self.call_timeout
    }

    /// Ends the thread; whether it did end within `patience`. One that is stuck in the driver is left behind.
    pub async fn close(self, patience: Duration) -> bool {
        drop(self.questions);
        timeout(patience, self.ended).await.is_ok()
    }
}

fn serve(paths: &[PathBuf], loaded: oneshot::Sender<(bool, Vec<Attempt>)>, asked: &Receiver<Question>) {
    let (nvml, attempts) = load::load(paths);
    if loaded.send((nvml.is_some(), attempts)).is_err() {
        return;
    }
    let Some(nvml) = nvml.map(Arc::new) else { return };
    while let Ok(question) = asked.recv() {
        question(&nvml);
    }
}
