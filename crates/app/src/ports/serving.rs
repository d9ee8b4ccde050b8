//! Models on this machine, between three that know nothing of each other: who samples the devices ([`World`]), who runs engines
//! ([`EngineHost`]), and the gateway that sends requests to them ([`Supply`] to it, [`Demand`] and [`Load`] from it).
//! `app::serving` stands in the middle. Each tells what is, as a value in a `watch` channel; whoever missed one needs only the
//! newest.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use camino::Utf8PathBuf;
use fettle_placement::device::{Device, Pool};
use fettle_placement::engine::Seat;
use fettle_placement::id::{DeviceId, EngineId, Epoch, ModelId, OwnerId, PoolId};
use fettle_placement::quantity::{Bytes, Millis};
use fettle_placement::recipe::Recipe;
use fettle_placement::view::Class;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

/// Devices and memory as last seen. `Millis` count from one origin of the process, see [`Since`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct World {
    pub devices: Vec<Device>,
    pub pools: Vec<Pool>,
    /// Who has memory of GPUs; a process that is on two of them is there twice.
    pub processes: Vec<DeviceProcess>,
    pub meters: Vec<Meter>,
    /// How programs that take no UUID number a device: its place in the order of PCI buses.
    pub order: Vec<DeviceId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceProcess {
    pub pool: PoolId,
    /// As the host numbers it.
    pub pid: u32,
    /// `None` where the driver does not say.
    pub bytes: Option<Bytes>,
}

/// What a device does, and what it has done since it was first seen. Each is `None` where the device does not tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meter {
    pub device: DeviceId,
    /// Only grows.
    pub busy: Duration,
    /// Only grows.
    pub millijoules: Option<u64>,
    pub gpu_percent: Option<u32>,
    pub memory_percent: Option<u32>,
    pub milliwatts: Option<u32>,
    pub celsius: Option<u32>,
}

/// The origin of all `Millis` of a process. Monotonic, so that a clock that is set changes no deadline.
#[derive(Debug, Clone, Copy)]
pub struct Since(Instant);

impl Since {
    pub fn now_is_zero() -> Self {
        Self(Instant::now())
    }

    pub fn millis(self) -> Millis {
        self.of(Instant::now())
    }

    pub fn of(self, instant: Instant) -> Millis {
        let since = instant.saturating_duration_since(self.0);
        Millis::new(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}

/// One engine to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchOrder {
    pub seat: Seat,
    pub epoch: Epoch,
    pub recipe: Recipe,
    /// Weights, as a file or a folder; what the recipe's engine expects.
    pub weights: Utf8PathBuf,
    /// In rank order, as the engine has to be told.
    pub devices: Vec<LaunchDevice>,
    /// What the seat claims of the pool of its first device, and how much of that is neither weights nor cache: the driver's
    /// context, graphs, one batch. Engines are told their limit with or without it.
    pub claim: Bytes,
    pub scratch: Bytes,
    /// What the pool of the first device has in all, and has free under the lock of this load: some engines take their limit
    /// as a share of the one or the other.
    pub total: Bytes,
    pub free: Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchDevice {
    pub id: DeviceId,
    /// Its place in the order of PCI buses; `None` for a slice and for the CPU.
    pub nth: Option<u32>,
}

/// Runs engine processes, one actor an engine. It chooses no device and starts nothing by itself.
///
/// An engine is in [`processes`](Self::processes) from its start until the last of its processes is gone and it was told so
/// ([`forget`](Self::forget)).
#[async_trait::async_trait]
pub trait EngineHost: Send + Sync {
    /// Once, before any start: takes on the engines of an earlier life that check out (alive, same start time, key accepted, a
    /// recipe in `recipes`), ends the rest, and gives those taken on.
    async fn adopt(&self, recipes: &[Recipe]) -> Result<Vec<Adopted>, HostError>;
    /// Begins to start; returns at once. How it goes is seen in `processes`.
    fn start(&self, order: LaunchOrder);
    /// Asks politely, then less so. Void if the engine has another epoch. Returns at once.
    fn stop(&self, engine: &EngineId, epoch: Epoch);
    /// Its entry may go; a `Gone` engine only.
    fn forget(&self, engine: &EngineId, epoch: Epoch);
    fn processes(&self) -> watch::Receiver<Arc<Vec<EngineProcess>>>;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adopted {
    pub seat: Seat,
    pub epoch: Epoch,
    pub recipe: Recipe,
}

#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The folder of records: nothing is started without one.
    #[error("engines cannot be recorded in {folder}")]
    Records {
        folder: Utf8PathBuf,
        #[source]
        source: super::BoxError,
    },
}

/// An engine as its actor sees it.
#[derive(Debug, Clone)]
pub struct EngineProcess {
    pub engine: EngineId,
    pub epoch: Epoch,
    pub state: ProcessState,
    /// All of its processes, as the host numbers them.
    pub pids: BTreeSet<u32>,
    /// Anonymous memory of them all on the host.
    pub host_bytes: Bytes,
}

#[derive(Debug, Clone)]
pub enum ProcessState {
    Spawning,
    Loading,
    /// One token came back.
    Ready(EngineAddress),
    Stopping,
    /// No process is left.
    Gone(Exit),
}

/// Where a ready engine takes requests, and how.
#[derive(Debug, Clone)]
pub struct EngineAddress {
    pub at: Endpoint,
    /// Sent as a bearer token.
    pub key: Option<SecretString>,
    /// The model's name in requests to it.
    pub model: String,
    /// Tokens that its cache was seen to hold; `None` where it does not say.
    pub kv_tokens: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    Unix(Utf8PathBuf),
    /// On loopback.
    Tcp(SocketAddr),
}

/// How an engine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    pub class: ExitClass,
    /// One sentence for people, without paths of secrets or keys.
    pub why: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitClass {
    /// Somebody asked for it.
    Asked,
    OutOfMemory,
    BadModel,
    BadFlag,
    Driver,
    /// It made no progress while loading.
    Stalled,
    /// The program is not there, or could not be started.
    NotStarted,
    Unknown,
}

/// What can be served here now; the gateway's view of the machine.
#[derive(Debug, Clone, Default)]
pub struct Supply {
    /// By name.
    pub models: Vec<ServedModel>,
}

#[derive(Debug, Clone)]
pub struct ServedModel {
    pub id: ModelId,
    /// Of one sequence, prompt and answer together.
    pub context_tokens: u64,
    pub engines: Vec<ReadyEngine>,
    /// Why nobody serves it, where that is known; `None`: one is there, or on its way.
    pub unserved: Option<Unserved>,
}

#[derive(Debug, Clone)]
pub struct ReadyEngine {
    pub engine: EngineId,
    pub epoch: Epoch,
    pub recipe: String,
    pub address: EngineAddress,
    /// Requests that it works on at once; more wait inside it.
    pub parallel: u16,
    /// It takes no new requests; those it has go on.
    pub draining: bool,
    pub devices: Vec<DeviceId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unserved {
    /// The planner's refusal in one sentence.
    pub why: String,
    pub when: When,
}

/// When what is not served may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Who waits in line may be served; asking again after this may be of use.
    Waiting(Duration),
    /// Its engines do not start, and somebody has to mend them: nobody is let wait. It is tried again when asked for after this.
    Mended(Duration),
    /// Never on this machine as it is configured.
    Never,
}

/// What an operator wants of a model, until this process ends or he wants otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelOrder {
    /// At least one engine, also when nobody asks.
    Load,
    /// As that, and never pushed out.
    Pin,
    /// As configured again. What is loaded stays while it is used.
    Unpin,
    /// As configured again, and its engines go: what they are at ends before, within the time for draining. Who asks for it
    /// has it loaded anew.
    Unload,
}

/// What is asked for and not served yet: the gateway's queues.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Demand {
    pub waiting: Vec<Waiting>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    pub model: ModelId,
    pub owner: OwnerId,
    pub class: Class,
    pub requests: u32,
    pub oldest: Instant,
}

/// What the gateway knows of an engine's work.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Load {
    pub engines: Vec<EngineLoad>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineLoad {
    pub engine: EngineId,
    pub epoch: Epoch,
    pub inflight: u32,
    /// Sessions that were there within the time that prefixes are kept.
    pub warm_sessions: u32,
    /// Requests in a thousand seconds, as an average that forgets.
    pub rate_milli: u32,
    pub last_used: Option<Instant>,
}

/// What an engine has used of its devices since it was first seen; both only grow. What several engines share of a device is
/// divided among them already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineMeter {
    pub engine: EngineId,
    pub epoch: Epoch,
    pub busy: Duration,
    /// `None` where its devices do not measure it.
    pub millijoules: Option<u64>,
}
