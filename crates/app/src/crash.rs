//! Named points at which tests kill the process, before and after each action that must survive it.
//!
//! With the feature `crash-points` a process that was armed with one of these names sends itself SIGKILL when it gets
//! there. Without the feature, as in every release, reaching a point does nothing.

/// Where a process can be killed, with the number that `crates/README.md` explains.
macro_rules! points {
    ($($(#[$doc:meta])* $name:ident = $number:literal $text:literal),* $(,)?) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Point {
            $($(#[$doc])* $name,)*
        }

        impl Point {
            /// Every point, in the order of a Task's life, and then those of a broker.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// `C9`, as the crash matrix numbers it.
            pub fn number(self) -> &'static str {
                match self {
                    $(Self::$name => $number,)*
                }
            }

            /// Only a process that has a broker gets there.
            pub fn is_of_broker(self) -> bool {
                self.number().starts_with('B')
            }

            /// `worker.model.call`.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

points! {
    /// Webhook read, nothing stored.
    IntakeStore = "C0" "intake.store",
    /// Delivery stored, not answered.
    IntakeAnswer = "C1" "intake.answer",
    /// Answered, Task not opened.
    IntakeOpen = "C2" "intake.open",
    /// A run job's row is committed, the in-process transport not rung: the writer's watch that wakes whoever waits to
    /// lease.
    HintRing = "C3" "hint.ring",
    /// Rung, and whoever wrote the job is not told so. In one process no row is marked: the answer is the mark.
    HintMark = "C4" "hint.mark",
    /// About to ask for a lease.
    WorkerLease = "C5" "worker.lease",
    /// Leased, the answer not used.
    WorkerLeased = "C6" "worker.leased",
    WorkerResolve = "C7" "worker.resolve",
    WorkerCheckout = "C8" "worker.checkout",
    WorkerModelCall = "C9" "worker.model.call",
    WorkerModelRecord = "C10" "worker.model.record",
    WorkerToolRecord = "C11" "worker.tool.record",
    WorkerVerifyRecord = "C12" "worker.verify.record",
    WorkerBundle = "C13" "worker.bundle",
    WorkerComplete = "C14" "worker.complete",
    /// A publish job's row is committed, the publisher not woken.
    PublishWake = "C15" "publish.wake",
    PublishLeased = "C16" "publish.leased",
    PushIntend = "C17" "publish.push.intend",
    PushSend = "C18" "publish.push.send",
    PushSettle = "C19" "publish.push.settle",
    PullIntend = "C20" "publish.pull.intend",
    PullSend = "C21" "publish.pull.send",
    PullSettle = "C22" "publish.pull.settle",
    CommentIntend = "C23" "publish.comment.intend",
    CommentSend = "C24" "publish.comment.send",
    CommentSettle = "C25" "publish.comment.settle",
    PublishComplete = "C26" "publish.complete",
    /// Runnable, and not rung for at the broker.
    BrokerRing = "B1" "broker.ring",
    /// A hint is read, no lease asked for.
    WorkerHint = "B2" "worker.hint",
    /// A foreign message is read, nothing stored.
    ForeignStore = "B3" "foreign.store",
    /// Stored, and not taken from the broker.
    ForeignTaken = "B4" "foreign.taken",
    /// A refused message is not among the dead letters yet.
    ForeignBury = "B5" "foreign.bury",
    /// Events are told, and that they are is not written.
    Announce = "B6" "events.announce",
}

#[cfg(feature = "crash-points")]
struct Armed {
    /// `worker.model.call:before`.
    name: String,
    /// Arrivals left until the one that kills.
    left: std::sync::atomic::AtomicU32,
}

#[cfg(feature = "crash-points")]
static ARMED: std::sync::OnceLock<Armed> = std::sync::OnceLock::new();

/// Arms this process: `worker.model.call:before` or `:after`, or `…:before:3` for the third time. Only the first call
/// counts.
#[cfg(feature = "crash-points")]
pub fn arm(text: &str) {
    let counted = text.rsplit_once(':').and_then(|(name, nth)| Some((name, nth.parse::<u32>().ok()?)));
    let (name, nth) = counted.unwrap_or((text, 1));
    let _ = ARMED.set(Armed { name: name.to_owned(), left: nth.into() });
}

/// Just before the action.
pub fn before(point: Point) {
    reach(point, "before");
}

/// Just after the action.
pub fn after(point: Point) {
    reach(point, "after");
}

#[cfg(feature = "crash-points")]
fn reach(point: Point, side: &str) {
    use std::sync::atomic::Ordering::SeqCst;
    let Some(armed) = ARMED.get().filter(|armed| armed.name.split_once(':') == Some((point.name(), side))) else {
        return;
    };
    if armed.left.fetch_sub(1, SeqCst) == 1 {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        loop {
            std::thread::park();
        }
    }
}

#[cfg(not(feature = "crash-points"))]
fn reach(_point: Point, _side: &str) {}
