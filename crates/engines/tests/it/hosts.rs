//! A host in a folder of its own, with fake engines; how it is watched, and how it is checked that nothing is left.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use fettle_app::ports::serving::{
    Endpoint, EngineAddress, EngineHost, EngineProcess, Exit, LaunchDevice, LaunchOrder, ProcessState, Since,
};
use fettle_engines::settings::{Answers, Command, Launcher, Limits, LlamaServer, Program, Programs};
use fettle_engines::table::{Mark, Table};
use fettle_engines::{Engines, LogFrom, Settings};
use fettle_fake_engine::{Behaviour, Gpu};
use fettle_fake_nvml::State;
use fettle_placement::device::ComputeCapability;
use fettle_placement::engine::Seat;
use fettle_placement::id::{DeviceId, EngineId, Epoch, ModelId, PoolId, RecipeId};
use fettle_placement::quantity::{Bytes, Millis};
use fettle_placement::recipe::{EngineKind, KvType, Recipe, RunsOn, SleepLevel};
use secrecy::ExposeSecret;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

/// For what takes a moment on an idle machine; tests share theirs.
const SOON: Duration = Duration::from_secs(60);

/// A folder with all that a host writes to, and a fake GPU.
pub(crate) struct Home {
    path: Utf8PathBuf,
    _folder: Option<tempfile::TempDir>,
    pub(crate) limits: Limits,
    pub(crate) launcher: Launcher,
}

impl Home {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let state = State { follows_processes: true, ..State::one_gpu() };
        fs_err::write(folder.path().join("nvml.json"), serde_json::to_vec(&state).unwrap()).unwrap();
        let path = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
        Self { _folder: Some(folder), ..Self::at(path) }
    }

    /// That of another process.
    pub(crate) fn at(path: Utf8PathBuf) -> Self {
        let limits =
            Limits { grace: Millis::new(400), look: Millis::new(20), look_ready: Millis::new(20), ..Limits::default() };
        Self { path, _folder: None, limits, launcher: Launcher::Direct }
    }

    pub(crate) fn path(&self) -> &Utf8Path {
        &self.path
    }

    pub(crate) fn records(&self) -> Utf8PathBuf {
        self.path().join("engines")
    }

    /// An engine of that name in this home, which behaves so.
    pub(crate) fn engine(&self, name: &str, behaviour: &Behaviour) -> Utf8PathBuf {
        Utf8PathBuf::from_path_buf(
            fettle_fake_engine::link(&built(), self.path.as_std_path(), name, behaviour).unwrap(),
        )
        .unwrap()
    }

    /// Memory of the fake GPU for each process of an engine.
    pub(crate) fn gpu(&self, bytes: u64) -> Gpu {
        Gpu { nvml: self.path.clone().into(), uuid: fettle_fake_nvml::Gpu::uuid_of(0), bytes }
    }

    /// Processes that hold memory of it, and bytes in use.
    pub(crate) fn held(&self) -> (BTreeSet<u32>, u64) {
        let state = State::read(self.path.as_std_path()).unwrap();
        let gpu = &state.gpus[0];
        (gpu.processes.iter().map(|process| process.pid).collect(), gpu.memory.unwrap().used)
    }

    pub(crate) fn settings(&self) -> Settings {
        let program = |name: &str| Program { program: self.path().join(name), args: Vec::new() };
        let fake = self.path().join("fake");
        let command = [fake.as_str(), "--socket={socket}", "--ctx={ctx}", "--parallel={parallel}"];
        Settings {
            folder: self.records(),
            logs: self.path().join("logs"),
            cache: self.path().join("cache"),
            keeper: env!("CARGO_BIN_EXE_fettle-engine-keeper").into(),
            launcher: self.launcher.clone(),
            environment: BTreeMap::from([
                ("PATH".to_owned(), "/usr/bin:/bin".to_owned()),
                ("OPENAI_API_KEY".to_owned(), "secret".to_owned()),
            ]),
            programs: Programs {
                llama_server: Some(LlamaServer { program: program("llama-server"), cache_ram: Bytes::ZERO }),
                vllm: Some(program("vllm")),
                sglang: Some(program("sglang")),
                ollama: Some(program("ollama")),
                command: Some(Command {
                    argv: command.map(str::to_owned).to_vec(),
                    health: "/health".to_owned(),
                    answers: Answers::Chat,
                }),
            },
            limits: self.limits.clone(),
        }
    }

    pub(crate) async fn open(&self) -> Host {
        let host = self.open_only();
        assert!(host.engines.adopt(&[]).await.unwrap().is_empty());
        host
    }

    pub(crate) fn open_only(&self) -> Host {
        Host { engines: Engines::open(self.settings(), Since::now_is_zero()).unwrap() }
    }

    /// Processes that say they are of this home's engines.
    pub(crate) fn marked(&self) -> BTreeSet<u32> {
        let home = self.records();
        let ours = |pid: &u32| Mark::of(*pid).is_some_and(|mark| mark.home == home.as_str());
        Table::read().unwrap().pids().filter(ours).collect()
    }

    /// Nothing is left: no process, no memory of the GPU, no record.
    pub(crate) async fn becomes_empty(&self, within: Duration) {
        let idle = State::one_gpu().gpus[0].memory.unwrap().used;
        until(within, "nothing to be left", || {
            let (holders, used) = self.held();
            (self.marked().is_empty() && holders.is_empty() && used == idle).then_some(())
        })
        .await;
        until(within, "its record to go", || (self.folders() == 0).then_some(())).await;
    }

    /// Engines that there is a record of.
    pub(crate) fn folders(&self) -> usize {
        fs_err::read_dir(self.records()).unwrap().flatten().filter(|entry| entry.path().is_dir()).count()
    }
}

/// The program, which cargo builds beside the tests.
fn built() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let built = tests.parent().and_then(Path::parent).unwrap().join("examples/fake-engine");
    assert!(built.exists(), "`cargo test -p fettle-engines` builds {}", built.display());
    built
}

/// What `look` gives, as soon as it gives anything.
pub(crate) async fn until<T>(within: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let waited = async {
        loop {
            if let Some(seen) = look() {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(within, waited).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

pub(crate) struct Host {
    pub(crate) engines: Engines,
}

impl Host {
    pub(crate) fn now(&self) -> Arc<Vec<EngineProcess>> {
        self.engines.processes().borrow().clone()
    }

    /// The engine once `is` holds of it.
    pub(crate) async fn sees(&self, engine: &str, what: &str, is: impl Fn(&EngineProcess) -> bool) -> EngineProcess {
        let engine = EngineId::new(engine);
        let mut told = self.engines.processes();
        let waited = async {
            let list =
                told.wait_for(|list| list.iter().any(|one| one.engine == engine && is(one))).await.unwrap().clone();
            list.iter().find(|one| one.engine == engine).unwrap().clone()
        };
        match tokio::time::timeout(SOON, waited).await {
            Ok(seen) => seen,
            Err(_) => panic!("{engine} never was {what}: {:?}\n{}", self.now(), self.log(engine.as_str()).await),
        }
    }

    pub(crate) async fn ready(&self, engine: &str) -> EngineProcess {
        // One that is gone will not be ready.
        let is_settled = |one: &EngineProcess| matches!(one.state, ProcessState::Ready(_) | ProcessState::Gone(_));
        let seen = self.sees(engine, "ready", is_settled).await;
        assert!(matches!(seen.state, ProcessState::Ready(_)), "{seen:?}\n{}", self.log(engine).await);
        seen
    }

    pub(crate) async fn gone(&self, engine: &str) -> Exit {
        let seen = self.sees(engine, "gone", |one| matches!(one.state, ProcessState::Gone(_))).await;
        assert!(seen.pids.is_empty());
        match seen.state {
            ProcessState::Gone(exit) => exit,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn log(&self, engine: &str) -> String {
        self.engines.log(engine, LogFrom::Last(Bytes::mib(1))).await.unwrap().unwrap().text
    }
}

pub(crate) fn recipe(engine: EngineKind) -> Recipe {
    Recipe {
        id: RecipeId::new("r1"),
        model: ModelId::new("m"),
        engine,
        build: "1".to_owned(),
        quant: "q4".to_owned(),
        kv: KvType::F16,
        on: RunsOn::Gpu,
        tp: 1,
        ctx: 4096,
        parallel: 2,
        min_cc: ComputeCapability(8, 0),
        sleep: SleepLevel::Never,
        flags: Vec::new(),
    }
}

pub(crate) fn order(engine: &str, epoch: u64, kind: EngineKind) -> LaunchOrder {
    let recipe = recipe(kind);
    let device = DeviceId::new(fettle_fake_nvml::Gpu::uuid_of(0));
    let claims = vec![(PoolId::new(format!("gpu:{device}")), Bytes::gib(8))];
    LaunchOrder {
        seat: Seat {
            engine: EngineId::new(engine),
            model: recipe.model.clone(),
            recipe: recipe.id.clone(),
            devices: vec![device.clone()],
            peaks: claims.clone(),
            claims,
        },
        epoch: Epoch(epoch),
        weights: "/models/m.gguf".into(),
        devices: vec![LaunchDevice { id: device, nth: Some(0) }],
        claim: Bytes::gib(8),
        scratch: Bytes::gib(1),
        total: Bytes::gib(80),
        free: Bytes::gib(79),
        recipe,
    }
}

/// A request on a connection of its own. Gives the status and all that comes after it.
pub(crate) async fn ask(address: &EngineAddress, path: &str, body: Option<&str>) -> (u16, String) {
    let key = address.key.as_ref().map(|key| format!("authorization: Bearer {}\r\n", key.expose_secret()));
    let request = format!(
        "{} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n{}content-length: {}\r\n\r\n{}",
        if body.is_some() { "POST" } else { "GET" },
        key.unwrap_or_default(),
        body.unwrap_or_default().len(),
        body.unwrap_or_default(),
    );
    let answer = async {
        match &address.at {
            Endpoint::Unix(path) => exchange(UnixStream::connect(path.as_std_path()).await?, &request).await,
            Endpoint::Tcp(address) => exchange(TcpStream::connect(address).await?, &request).await,
        }
    };
    let text = tokio::time::timeout(SOON, answer).await.unwrap().unwrap();
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    (status, text)
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> std::io::Result<String> {
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

pub(crate) fn address(process: &EngineProcess) -> EngineAddress {
    match &process.state {
        ProcessState::Ready(address) => address.clone(),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}
