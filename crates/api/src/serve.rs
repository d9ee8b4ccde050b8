//! Serves a router on a listener that is handed in, until it is told to stop.
//!
//! HTTP/1.1 only: behind a proxy that is what arrives, and one protocol has one set of limits.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

/// Open connections; more wait in the kernel's queue. Each costs a file descriptor and some 20 KB.
const MAX_CONNECTIONS: u32 = 4096;
/// A head that comes slower is no client of ours. Also ends idle keep-alive connections.
const HEAD_LIMIT: Duration = Duration::from_secs(30);
/// A client that takes nothing of its answer for so long is gone, or keeps the connection from others.
const WRITE_LIMIT: Duration = Duration::from_secs(60);
/// After the shutdown signal, requests in flight get this long; below the 30 s that supervisors wait before they kill.
const DRAIN_LIMIT: Duration = Duration::from_secs(20);
/// Who connected right before the shutdown signal may take this long to begin its request.
const FIRST_REQUEST_LIMIT: Duration = Duration::from_millis(500);
/// Without file descriptors there is nothing to do but wait for a connection to end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Returns when `shutdown` was cancelled and every request in flight has ended or [`DRAIN_LIMIT`] is over. Connection
/// tasks run on `tracker`.
pub async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken, tracker: TaskTracker) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS as usize));
    let abort = CancellationToken::new();
    let _ends_connections = abort.clone().drop_guard();
    loop {
        let slot = tokio::select! {
            () = shutdown.cancelled() => break,
            slot = slots.clone().acquire_owned() => slot.expect("the semaphore is never closed"),
        };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let slot = Slot(Arc::new(slot));
                let connection = connection(stream, peer, router.clone(), shutdown.clone(), slot.clone());
                let abort = abort.clone();
                tracker.spawn(async move {
                    tokio::select! {
                        () = abort.cancelled() => {}
                        () = connection => {}
                    }
                    drop(slot);
                });
            }
            Err(error) => refused(&error).await,
        }
    }
    drop(listener);
    if timeout(DRAIN_LIMIT, slots.acquire_many(MAX_CONNECTIONS)).await.is_err() {
        warn!("requests were still running {} s after the shutdown signal; they are cut off", DRAIN_LIMIT.as_secs());
    }
}

/// A connection's place among [`MAX_CONNECTIONS`]. Requests carry it, so that one that takes the connection over keeps it, and
/// the drain waits for it.
#[derive(Clone)]
pub(crate) struct Slot(Arc<OwnedSemaphorePermit>);

impl Slot {
    /// Keeps the place until `work` has ended.
    pub(crate) async fn hold<T>(self, work: impl Future<Output = T>) -> T {
        let done = work.await;
        drop(self.0);
        done
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, router: Router, shutdown: CancellationToken, slot: Slot) {
    if let Err(error) = stream.set_nodelay(true) {
        debug!(error = &error as &dyn std::error::Error, "could not set TCP_NODELAY");
    }
    let router = TowerToHyperService::new(router);
    let begun = Arc::new(Notify::new());
    let begins = begun.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        begins.notify_one();
        request.extensions_mut().insert(ConnectInfo(peer));
        request.extensions_mut().insert(slot.clone());
        router.call(request.map(Body::new))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .serve_connection(TokioIo::new(Taken::new(stream)), service)
        .with_upgrades();
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = shutdown.cancelled() => {
            // A connection on which nothing has been read yet would be closed at once. Its request is on its way, and where a
            // socket outlives the process nobody shall notice that this one ends.
            let ended = tokio::select! {
                ended = &mut connection => Some(ended),
                () = begun.notified() => None,
                () = sleep(FIRST_REQUEST_LIMIT) => None,
            };
            match ended {
                Some(ended) => ended,
                None => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        }
    };
    if let Err(error) = ended {
        debug!(error = &error as &dyn std::error::Error, "a connection ended with an error");
    }
}

/// A stream whose writing ends with an error when the other side takes nothing for [`WRITE_LIMIT`].
struct Taken<S> {
    stream: S,
    /// Since a write found no room.
    stuck: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncWrite + Unpin> Taken<S> {
    fn new(stream: S) -> Self {
        Self { stream, stuck: None }
    }

    fn within<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stuck = None;
            return written;
        }
        let stuck = self.stuck.get_or_insert_with(|| Box::pin(sleep(WRITE_LIMIT)));
        ready!(stuck.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing of its answer")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Taken<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Taken<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, from);
        self.within(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, from);
        self.within(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.within(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.within(context, shut)
    }
}

/// A client that left before it was accepted is nothing; anything else gets a pause, so that the loop does not spin.
async fn refused(error: &io::Error) {
    let left = [io::ErrorKind::ConnectionAborted, io::ErrorKind::ConnectionReset, io::ErrorKind::ConnectionRefused];
    if !left.contains(&error.kind()) {
        warn!(error = error as &dyn std::error::Error, "could not accept a connection");
        sleep(ACCEPT_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_given_up_and_a_slow_one_is_not() {
        let (mut client, server) = tokio::io::duplex(10);
        let mut server = Taken::new(server);
        let slow = async {
            for _ in 0..5 {
                sleep(WRITE_LIMIT / 2).await;
                client.read_exact(&mut [0; 10]).await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(server.write_all(&[1; 60]), slow);
        written.unwrap();
        let begun = Instant::now();
        let error = server.write_all(&[1; 1]).await.unwrap_err();
        assert_eq!((error.kind(), begun.elapsed()), (io::ErrorKind::TimedOut, WRITE_LIMIT));
    }
}
