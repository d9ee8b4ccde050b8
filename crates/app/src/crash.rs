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
            /// Every point, in the order of a Task's life.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// `C9`, as the crash matrix numbers it.
            pub fn number(self) -> &'static str {
                match self {
                    $(Self::$name => $number,)*
                }
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
    /// Committed, transport not rung.
    HintRing = "C3" "hint.ring",
    /// Rung, not marked.
    HintMark = "C4" "hint.mark",
    /// Work noticed, not leased.
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
}

#[cfg(feature = "crash-points")]
static ARMED: std::sync::OnceLock<String> = std::sync::OnceLock::new();

/// Arms this process: `worker.model.call:before` or `:after`. Only the first call counts.
#[cfg(feature = "crash-points")]
pub fn arm(name: String) {
    let _ = ARMED.set(name);
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
    let armed = ARMED.get().and_then(|name| name.split_once(':'));
    if armed.is_some_and(|(name, wanted)| name == point.name() && wanted == side) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        loop {
            std::thread::park();
        }
    }
}

#[cfg(not(feature = "crash-points"))]
fn reach(_point: Point, _side: &str) {}
