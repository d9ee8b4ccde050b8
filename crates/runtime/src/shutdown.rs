//! From signals to what the process waits on: a token for its end, hangups for a reload.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

/// SIGHUPs as they come. Without an owner they do nothing; in particular they end no process.
pub struct Hangups(Signal);

impl Hangups {
    /// Waits for one; several that came meanwhile are one. May be dropped while it waits.
    pub async fn next(&mut self) {
        if self.0.recv().await.is_none() {
            // The runtime is going down.
            std::future::pending::<()>().await;
        }
    }
}

/// Cancels `token` on SIGTERM or SIGINT; ends the process at once on the second. The task behind it ends with the runtime.
pub fn on_signals(token: CancellationToken) -> std::io::Result<Hangups> {
    on_signals_in_turn(token, None)
}

/// The same, where the first signal asks for an end in one's own time: the second one cancels `at_once`, and the third ends the
/// process.
pub fn on_signals_in_turn(token: CancellationToken, at_once: Option<CancellationToken>) -> std::io::Result<Hangups> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // Caught from the beginning, before anybody asks for a reload: else it would end the process.
    let hangups = Hangups(signal(SignalKind::hangup())?);
    // Its own tracker: waiting for a process's tasks must not wait for a signal that never comes.
    TaskTracker::new().spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
            () = token.cancelled() => return,
        };
        let next = if at_once.is_some() { "lets go of what is held" } else { "ends the process at once" };
        info!("{name}: shutting down; once more {next}");
        token.cancel();
        // The runtime drops this task when main has ended.
        let mut again = async || {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        again().await;
        if let Some(at_once) = at_once {
            info!("a second signal: letting go; once more ends the process at once");
            at_once.cancel();
            again().await;
        }
        #[expect(clippy::exit, reason = "the second signal asks for exactly this")]
        std::process::exit(130);
    });
    Ok(hangups)
}
