//! A forge in a box: what Fettle uses of GitHub, with real git behind it, on loopback.
//!
//! REST answers have GitHub's shapes (checked against its OpenAPI description), pushes go through `git http-backend` to
//! bare repositories, credentials are checked, every request and ref update is recorded, and any call can be made to
//! fail in the ways that calls to a forge fail. Made for tests and the demo; it never reaches beyond loopback.

mod access;
mod fault;
mod git;
mod hook;
mod json;
mod model;
mod refusal;
mod rest;
mod server;
mod state;
pub mod webhook;

use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use camino::Utf8PathBuf;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use access::{AppKey, Credential, PatAccess};
pub use fault::{Act, Fault};
pub use git::RefUpdate;
pub use hook::HookAttempt;
pub use model::{Comment, Issue, IssueEvent, Pull, PullState, Role};
pub use server::Recorded;
pub use state::{AppOptions, Forge};

/// How a forge starts.
#[derive(Default)]
pub struct ForgeOptions {
    /// Where the bare repositories lie; a temporary folder when absent.
    pub folder: Option<Utf8PathBuf>,
    /// The App that is installed on every repository, when there is one.
    pub app: Option<AppOptions>,
}

/// A forge that is being served. Stops when it is dropped; [`ForgeEmulator::stop`] also waits for the end.
pub struct ForgeEmulator {
    forge: Arc<Forge>,
    address: SocketAddr,
    cancel: CancellationToken,
    tasks: TaskTracker,
    _folder: Option<tempfile::TempDir>,
}

impl ForgeEmulator {
    /// Serves on a free port of 127.0.0.1.
    pub async fn start(options: ForgeOptions) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("while binding the forge")?;
        let address = listener.local_addr()?;
        let (folder, temporary) = match options.folder {
            Some(folder) => (folder, None),
            None => {
                let temporary = tempfile::tempdir()?;
                (Utf8PathBuf::try_from(temporary.path().to_path_buf())?, Some(temporary))
            }
        };
        let forge = Arc::new(Forge::new(format!("http://{address}"), folder, options.app)?);
        let (cancel, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(serve(listener, Arc::clone(&forge), cancel.clone()));
        tasks.close();
        Ok(Self { forge, address, cancel, tasks, _folder: temporary })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// For what outlives the borrow of the emulator.
    pub fn forge(&self) -> Arc<Forge> {
        Arc::clone(&self.forge)
    }

    /// Ends all connections and waits until nothing of the forge runs.
    pub async fn stop(self) {
        self.cancel.cancel();
        if tokio::time::timeout(STOP, self.tasks.wait()).await.is_err() {
            panic!("the forge did not stop within {STOP:?}");
        }
    }
}

/// Connections are cut at once, so only a stuck git could take longer.
const STOP: Duration = Duration::from_secs(10);

impl Drop for ForgeEmulator {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl Deref for ForgeEmulator {
    type Target = Forge;

    fn deref(&self) -> &Forge {
        &self.forge
    }
}

/// Serves `forge` until `cancel`; then cuts what is open. The forge's own URL must lead to `listener`.
pub async fn serve(listener: TcpListener, forge: Arc<Forge>, cancel: CancellationToken) {
    server::serve(listener, forge, cancel).await;
}
