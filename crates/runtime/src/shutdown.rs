//! From a signal to a token that everybody waits on.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

/// Cancels `token` on SIGTERM or SIGINT; ends the process at once on the second. The task behind it ends with the runtime.
pub fn on_signals(token: CancellationToken) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // A peer that closes its end of a pipe must not end a server.
    let mut hangup = signal(SignalKind::hangup())?;
    // Its own tracker: waiting for a process's tasks must not wait for a signal that never comes.
    TaskTracker::new().spawn(async move {
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
                _ = hangup.recv() => {
                    info!("SIGHUP: the configuration is read at start only");
                    continue;
                }
                () = token.cancelled() => return,
            };
            info!("{name}: shutting down; once more ends the process at once");
            token.cancel();
            break;
        }
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            // The runtime drops this task when main has ended.
            () = std::future::pending() => {}
        }
        #[expect(clippy::exit, reason = "the second signal asks for exactly this")]
        std::process::exit(130);
    });
    Ok(())
}
