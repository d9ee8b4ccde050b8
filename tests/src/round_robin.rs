//! What stands before several dashboards: each connection goes to the next one that takes it.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// On loopback a listener takes a connection at once, or there is none.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// Ends with all its connections when dropped.
pub struct RoundRobin {
    address: SocketAddr,
    behind: Arc<Mutex<Vec<SocketAddr>>>,
    _accepting: JoinSet<()>,
}

impl RoundRobin {
    pub async fn start(behind: Vec<SocketAddr>) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let behind = Arc::new(Mutex::new(behind));
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, Arc::clone(&behind)));
        Ok(Self { address, behind, _accepting: accepting })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// New connections go to it no more; those that are there stay.
    pub fn leave_out(&self, address: SocketAddr) {
        lock(&self.behind).retain(|known| *known != address);
    }

    pub fn take_in(&self, address: SocketAddr) {
        lock(&self.behind).push(address);
    }
}

async fn accept(listener: TcpListener, behind: Arc<Mutex<Vec<SocketAddr>>>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        connections.spawn(pass(client, Arc::clone(&behind)));
    }
}

async fn pass(mut client: TcpStream, behind: Arc<Mutex<Vec<SocketAddr>>>) {
    let all = {
        let mut all = lock(&behind);
        if all.is_empty() {
            return;
        }
        all.rotate_left(1);
        all.clone()
    };
    for address in all {
        if let Ok(Ok(mut server)) = tokio::time::timeout(CONNECT_LIMIT, TcpStream::connect(address)).await {
            // Small answers would wait for each other.
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            // Whoever breaks off is the other side's matter.
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            return;
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
