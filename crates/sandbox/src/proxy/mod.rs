//! The only way out of a sandbox with an allow-list: an HTTP proxy on the trusted side that connects to named hosts and nowhere else.
//!
//! Its listener was made inside the sandbox's network namespace and handed over, so nothing has to be relayed.

mod policy;
mod request;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, lookup_host};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::debug;

use policy::{AllowList, Verdict};
use request::{Asked, Request};

/// Package managers open a few dozen at once; further ones wait.
const CONNECTIONS: usize = 64;
const HEAD_BYTES: usize = 16 * 1024;
const HEAD_TIME: Duration = Duration::from_secs(10);
const CONNECT_TIME: Duration = Duration::from_secs(15);
/// No download of a preparation takes longer; the command's own limit ends it earlier.
const EXCHANGE_TIME: Duration = Duration::from_secs(1800);
/// A command can ask for any number of hosts; the report needs only some.
const DENIED_KEPT: usize = 100;

/// Stops with all its connections when dropped.
pub(crate) struct Proxy {
    _acceptor: JoinSet<()>,
    denied: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    pub(crate) fn start(listener: TcpListener, hosts: &[String]) -> Self {
        let denied = Arc::new(Mutex::new(Vec::new()));
        let desk = Arc::new(Desk { allowed: AllowList::new(hosts), denied: denied.clone() });
        let mut acceptor = JoinSet::new();
        acceptor.spawn(accept(listener, desk));
        Self { _acceptor: acceptor, denied }
    }

    /// What was asked for and refused, each once, in order: the host, and for one that is listed the reason.
    pub(crate) fn denied(&self) -> Vec<String> {
        self.denied.lock().expect("nobody panics while holding the list of denied hosts").clone()
    }
}

/// What all connections share.
struct Desk {
    allowed: AllowList,
    denied: Arc<Mutex<Vec<String>>>,
}

async fn accept(listener: TcpListener, desk: Arc<Desk>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(place) = room.clone().acquire_owned().await else { return };
        let Ok((client, _)) = listener.accept().await else { return };
        let desk = desk.clone();
        connections.spawn(async move {
            let _place = place;
            match timeout(EXCHANGE_TIME, serve(client, &desk)).await {
                Ok(Ok(())) => {}
                Ok(Err(e)) => debug!(error = &e as &dyn std::error::Error, "a proxied connection broke"),
                Err(_) => debug!("a proxied connection took too long"),
            }
        });
    }
}

async fn serve(mut client: TcpStream, desk: &Desk) -> io::Result<()> {
    let Some((head, rest)) = timeout(HEAD_TIME, read_head(&mut client)).await?? else {
        return answer(&mut client, "400 Bad Request", "the request has no readable head").await;
    };
    let request = match Request::parse(&head) {
        Ok(request) => request,
        Err(why) => return answer(&mut client, "400 Bad Request", why).await,
    };
    let mut server = match desk.connect(&request).await {
        Ok(server) => server,
        Err(Unreachable::Denied(what)) => {
            let why = format!("refused by the list of allowed hosts: {what}");
            return answer(&mut client, "403 Forbidden", &why).await;
        }
        Err(Unreachable::Failed(e)) => {
            return answer(&mut client, "502 Bad Gateway", &format!("{} cannot be reached: {e}", request.host)).await;
        }
    };
    match &request.asked {
        Asked::Tunnel => {
            client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
            server.write_all(&rest).await?;
            copy_bidirectional(&mut client, &mut server).await?;
        }
        // One request per connection: whatever follows the head is never sent on.
        Asked::Fetch { head } => {
            server.write_all(head).await?;
            copy(&mut server, &mut client).await?;
            client.shutdown().await?;
        }
    }
    Ok(())
}

/// The head with its empty line, and what came after it. `None` when it ends early or is too long.
async fn read_head(client: &mut TcpStream) -> io::Result<Option<(Vec<u8>, Vec<u8>)>> {
    let mut head = Vec::new();
    let mut chunk = [0; 2048];
    loop {
        if let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = head.split_off(end + 4);
            return Ok(Some((head, rest)));
        }
        let count = client.read(&mut chunk).await?;
        if count == 0 || head.len() + count > HEAD_BYTES {
            return Ok(None);
        }
        head.extend_from_slice(&chunk[..count]);
    }
}

async fn answer(client: &mut TcpStream, status: &str, why: &str) -> io::Result<()> {
    let length = why.len() + 1;
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{why}\n"
    );
    client.write_all(head.as_bytes()).await?;
    client.shutdown().await
}

enum Unreachable {
    /// As in [`Proxy::denied`].
    Denied(String),
    Failed(io::Error),
}

impl Desk {
    /// Connects to the very address that was judged, so a name cannot mean something else a moment later.
    async fn connect(&self, request: &Request) -> Result<TcpStream, Unreachable> {
        let Request { host, port, .. } = request;
        let verdict = self.allowed.judge(host, *port);
        match verdict {
            Verdict::Refused => return Err(self.deny(host.clone())),
            Verdict::OtherPort => {
                let entry = policy::entry(host, *port);
                return Err(self.deny(format!("{host} (listed without port {port}; list it as {entry} to allow that)")));
            }
            Verdict::PublicOnly | Verdict::Anywhere => {}
        }
        let found = match timeout(CONNECT_TIME, lookup_host((host.as_str(), *port))).await {
            Ok(found) => found.map_err(Unreachable::Failed)?,
            Err(late) => return Err(Unreachable::Failed(late.into())),
        };
        let found: Vec<SocketAddr> = found.collect();
        let inner = found.iter().find_map(|found| Some((policy::inner_kind(found.ip())?, found.ip())));
        if let (Verdict::PublicOnly, Some((kind, address))) = (verdict, inner) {
            // Only with its port may a name lead elsewhere.
            let entry = policy::entry(host, *port);
            return Err(self
                .deny(format!("{host} (resolves to the {kind} address {address}; list it as {entry} to allow that)")));
        }
        match timeout(CONNECT_TIME, TcpStream::connect(found.as_slice())).await {
            Ok(connected) => connected.map_err(Unreachable::Failed),
            Err(late) => Err(Unreachable::Failed(late.into())),
        }
    }

    fn deny(&self, what: String) -> Unreachable {
        let mut denied = self.denied.lock().expect("nobody panics while holding the list of denied hosts");
        if denied.len() < DENIED_KEPT && !denied.contains(&what) {
            denied.push(what.clone());
        }
        Unreachable::Denied(what)
    }
}
