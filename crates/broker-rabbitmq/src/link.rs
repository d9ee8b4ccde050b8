//! One connection to the broker: opened within a limit, never mended. Whoever loses one opens the next.

use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use lapin::tcp::AsyncTcpStream;
use lapin::{Channel, Connection, ConnectionProperties, Event};
use tokio::time::timeout;

use crate::fault::Fault;
use crate::options::Target;

/// Name resolution, TCP, TLS and the greeting together; also for a broker at the other end of a continent.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// One question that the broker answers from memory or after one round among its nodes.
pub(crate) const CALL_LIMIT: Duration = Duration::from_secs(5);
/// What a goodbye is worth waiting for.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);
const REPLY_SUCCESS: u16 = 200;

pub(crate) struct Link {
    connection: Connection,
    events: Pin<Box<dyn Stream<Item = Event> + Send + Sync>>,
    _line: Line,
}

/// What the broker says without being asked.
pub(crate) enum News {
    /// It takes no messages on this connection until further notice.
    Blocked,
    Lost(Fault),
}

impl Link {
    /// Connects as `role`, which is how the broker's own pages show it.
    pub(crate) async fn open(target: &Target, role: &str) -> Result<Self, Fault> {
        let during = format!("connecting to {}", target.place());
        let line = Line::default();
        let (socket, tls) = (Arc::clone(&line.0), target.tls());
        let properties = ConnectionProperties::default().with_connection_name(format!("fettle {role}").into());
        let runtime = lapin::runtime::default_runtime().map_err(|error| Fault::of(&during, error))?;
        let opening = Connection::connector(
            target.uri(),
            runtime,
            async move |uri, runtime| {
                let (host, port) = (uri.authority.host, uri.authority.port);
                let connecting = AsyncTcpStream::connect(&runtime, runtime.to_socket_addrs((host.clone(), port)));
                let connected = timeout(CONNECT_LIMIT, connecting).await.map_err(std::io::Error::from)??;
                if let AsyncTcpStream::Plain(plain) = &connected {
                    keep(&socket, plain.get_ref().as_fd().try_clone_to_owned()?.into())?;
                }
                match &tls {
                    None => Ok(connected),
                    Some(tls) => Ok(connected.into_tls(&host, tls.as_ref()).await?),
                }
            },
            properties,
        );
        match timeout(CONNECT_LIMIT, opening).await {
            Ok(Ok(connection)) => {
                let events = Box::pin(connection.events_listener());
                Ok(Self { connection, events, _line: line })
            }
            Ok(Err(error)) => Err(Fault::of(during, error)),
            Err(_) => Err(Fault::Silent { during, limit: CONNECT_LIMIT }),
        }
    }

    pub(crate) async fn channel(&self) -> Result<Channel, Fault> {
        call("opening a channel", self.connection.create_channel()).await
    }

    pub(crate) fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    /// The next piece of news. May be dropped meanwhile.
    pub(crate) async fn news(&mut self) -> News {
        loop {
            match self.events.next().await {
                Some(Event::ConnectionBlocked(_)) => return News::Blocked,
                // A channel's errors come here as well; whoever uses the channel is told.
                Some(Event::Error(error)) if !self.connection.status().connected() => {
                    return News::Lost(Fault::of("being connected", error));
                }
                Some(_) => {}
                None => return News::Lost(Fault::Unfit("the connection to the broker has ended".to_owned())),
            }
        }
    }

    /// Waits for its end.
    pub(crate) async fn lost(&mut self) -> Fault {
        loop {
            if let News::Lost(fault) = self.news().await {
                return fault;
            }
        }
    }

    /// Says goodbye; what was not settled goes back at once.
    pub(crate) async fn close(self) {
        let closing = self.connection.close(REPLY_SUCCESS, "OK".into());
        let _cut_instead = timeout(CLOSE_LIMIT, closing).await;
    }
}

/// Waits for one of the broker's answers.
pub(crate) async fn call<T>(during: &str, asking: impl Future<Output = lapin::Result<T>>) -> Result<T, Fault> {
    match timeout(CALL_LIMIT, asking).await {
        Ok(answer) => answer.map_err(|error| Fault::of(during, error)),
        Err(_) => Err(Fault::Silent { during: during.to_owned(), limit: CALL_LIMIT }),
    }
}

/// Closes a channel that has done its work. One that cannot be closed ends with its connection.
pub(crate) async fn close(channel: &Channel) {
    let _ends_later = timeout(CALL_LIMIT, channel.close(REPLY_SUCCESS, "OK".into())).await;
}

/// The socket beneath a connection. Dropped, it is cut: lapin's thread would otherwise wait for the answer to a goodbye, and a
/// broker that is blocked or stopped gives none.
#[derive(Default)]
struct Line(Arc<Mutex<Socket>>);

#[derive(Default)]
enum Socket {
    #[default]
    Awaited,
    Open(std::net::TcpStream),
    Cut,
}

fn keep(socket: &Mutex<Socket>, opened: std::net::TcpStream) -> std::io::Result<()> {
    let mut socket = socket.lock().expect("no holder of a socket panics");
    if matches!(*socket, Socket::Cut) {
        return Err(std::io::ErrorKind::ConnectionAborted.into());
    }
    *socket = Socket::Open(opened);
    Ok(())
}

impl Drop for Line {
    fn drop(&mut self) {
        let mut socket = self.0.lock().expect("no holder of a socket panics");
        if let Socket::Open(open) = std::mem::replace(&mut *socket, Socket::Cut) {
            let _gone_already = open.shutdown(std::net::Shutdown::Both);
        }
    }
}
