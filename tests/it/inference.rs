//! `fettle-inference` as its users have it: engines that take memory of a GPU, requests by every API, and faults of both. The GPUs
//! are NVIDIA's library as tests build it, loaded by the unmodified program; engines are processes of their own.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod agents;
mod clients;
mod engines;
mod faults;
mod guard;
mod models;
mod runs;
mod tiny_model;

use std::process::{Command, Output};
use std::time::Duration;

use camino::Utf8PathBuf;
use fettle_fake_engine::{Behaviour, Fault, link};
use fettle_fake_nvml::{Gpu, Installed, Memory, State};
use fettle_tests::world::{PATIENCE, Process, message, program, toolchains};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

const GIB: u64 = 1 << 30;
/// Nothing of an engine may be left this long after whoever had to end it is gone.
const ORPHANS: Duration = Duration::from_secs(5);
/// A fault is known by everybody so soon after it happened.
const KNOWN: Duration = Duration::from_secs(3);

/// A machine with GPUs of `gib`, and its inference process.
struct Host {
    root: Utf8PathBuf,
    nvml: Installed,
    models: String,
    /// Whether models are examined when they are ready; most tests count who asks them.
    conformance: &'static str,
    environment: Vec<(&'static str, String)>,
    max_wait: &'static str,
    process: Option<Process>,
    gateway: String,
    http: reqwest::Client,
    _home: tempfile::TempDir,
}

impl Host {
    fn with_gpus(gib: &[u64]) -> Self {
        let home = tempfile::tempdir().unwrap();
        let root = Utf8PathBuf::try_from(home.path().to_owned()).unwrap();
        let gpus = gib.iter().zip(1..).map(|(gib, nth)| Gpu {
            uuid: uuid(nth),
            name: "NVIDIA H100 80GB HBM3".into(),
            cc: (9, 0),
            pci: format!("00000000:{nth:02}:00.0"),
            memory: Some(Memory { total: gib * GIB, reserved: 0, used: 0 }),
            ..Gpu::default()
        });
        let state =
            State { driver: "580.95".into(), gpus: gpus.collect(), follows_processes: true, ..State::default() };
        fs_err::create_dir(root.join("nvml")).unwrap();
        let nvml = Installed::new(root.join("nvml").as_std_path(), &state).unwrap();
        fettle_runtime::install_tls();
        let http = reqwest::Client::builder().timeout(PATIENCE).build().unwrap();
        Self {
            root,
            nvml,
            models: String::new(),
            conformance: "off",
            environment: Vec::new(),
            max_wait: "5s",
            process: None,
            gateway: String::new(),
            http,
            _home: home,
        }
    }

    /// A model of `gib` whose engine is `kind` and takes 2 GiB less, of GPU `nth`.
    fn model(mut self, name: &str, kind: &str, gib: u64, nth: usize, behaviour: Behaviour) -> Self {
        let bin = self.root.join("bin");
        fs_err::create_dir_all(&bin).unwrap();
        let gpu =
            fettle_fake_engine::Gpu { nvml: self.root.join("nvml").into(), uuid: uuid(nth), bytes: (gib - 2) * GIB };
        let behaviour = Behaviour { load_ms: behaviour.load_ms.max(100), gpu: Some(gpu), ..behaviour };
        let program = if kind == "command" { "other" } else { kind };
        let built = fettle_tests::world::program("fettle-fake-engine").unwrap();
        let program = link(built.as_std_path(), bin.as_std_path(), program, &behaviour).unwrap();
        let args =
            if kind == "command" { ", args = [\"--socket\", \"{socket}\", \"--model\", \"{model}\"]" } else { "" };
        let program = program.display();
        self.models.push_str(
            &format!(
                "[[gateway.models]]\nname = \"{name}\"\npath = \"{}\"\n\
             recipes = [{{ engine = \"{kind}\", memory = \"{gib}GiB\" }}]\n\
             [gpu.engines.{kind}]\nprogram = \"{program}\"{args}\n",
                self.root.join("weights"),
            )
            .replace(", args", "\nargs"),
        );
        self
    }

    async fn up(mut self) -> Self {
        fs_err::create_dir_all(self.root.join("weights")).unwrap();
        let config = format!(
            "[gateway]\nlisten = \"127.0.0.1:0\"\nmax_wait = \"{}\"\nconformance = \"{}\"\n\
             [gpu]\nnvml_lib = \"{}\"\nmin_residency = \"500ms\"\n{}",
            self.max_wait,
            self.conformance,
            self.nvml.library().display(),
            self.models
        );
        fs_err::write(self.root.join("fettle.toml"), config).unwrap();
        self.start().await;
        self
    }

    async fn start(&mut self) {
        let mut command = Command::new(program("fettle-inference").unwrap());
        self.place(&mut command);
        let process = Process::start("fettle-inference", &mut command).unwrap();
        let address =
            |line: &str| Some(message(line)?.split_once(" answers on ")?.1.split_once(", models: ")?.0.to_owned());
        self.gateway = process.logged("it answers", PATIENCE, address).await.unwrap();
        self.process = Some(process);
    }

    fn place(&self, command: &mut Command) {
        command.arg("--config").arg(self.root.join("fettle.toml")).arg("--data-dir").arg(self.root.join("data"));
        command.env_clear().current_dir(&self.root).env("HOME", &self.root).envs(toolchains());
        command.envs(self.environment.iter().map(|(name, value)| (*name, value)));
    }

    fn fettle(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(program("fettle").unwrap());
        command.args(arguments);
        self.place(&mut command);
        command.output().unwrap()
    }

    /// What a command of the CLI prints.
    fn tells(&self, arguments: &[&str]) -> String {
        let output = self.fettle(arguments);
        let said = || self.process.as_ref().map(Process::tail).unwrap_or_default();
        assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stderr), said());
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.tells(&[arguments, &["--json"]].concat())).unwrap()
    }

    /// Waits until the CLI's JSON is as `wanted`, for at most `limit`.
    async fn until(&self, arguments: &[&str], limit: Duration, wanted: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + limit;
        loop {
            let value = self.json(arguments);
            if wanted(&value) {
                return value;
            }
            assert!(Instant::now() < end, "not within {limit:?}: {value:#}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn ask(&self, model: &str) -> (u16, Value) {
        let body = json!({ "model": model, "messages": [{ "role": "user", "content": "hi" }] });
        let (status, text) = self.post(&body).await;
        (status, serde_json::from_str(&text).unwrap())
    }

    /// A chat completion, as it comes.
    async fn post(&self, body: &Value) -> (u16, String) {
        let url = format!("{}/v1/chat/completions", self.gateway);
        let answer = self.http.post(url).json(body).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    async fn answers(&self, model: &str) -> String {
        let (status, body) = self.ask(model).await;
        assert_eq!(status, 200, "{body:#}\n{}", self.process.as_ref().unwrap().tail());
        body["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    }

    /// Processes of engines, by their marker.
    fn engines(&self) -> Vec<u32> {
        let marks = self.root.join("bin").to_string();
        let processes = fs_err::read_dir("/proc").unwrap().filter_map(|entry| {
            let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let line = fs_err::read(format!("/proc/{pid}/cmdline")).ok()?;
            String::from_utf8_lossy(&line).contains(&marks).then_some(pid)
        });
        processes.collect()
    }

    async fn no_engine_is_left(&self) {
        let end = Instant::now() + ORPHANS;
        while !self.engines().is_empty() {
            assert!(Instant::now() < end, "left behind: {:?}", self.engines());
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Of the driver, in turn with engines that enter what they have.
    fn change(&self, change: impl FnOnce(&mut State)) {
        State::change(self.root.join("nvml").as_std_path(), change).unwrap();
    }

    fn state_of<'v>(models: &'v Value, model: &str) -> Option<&'v str> {
        let engines = models["engines"].as_array()?;
        engines.iter().find(|engine| engine["model"] == model)?["state"].as_str()
    }

    fn kill_engine(&self, model: &str) {
        let program = self.root.join("bin").join(model);
        let pid = self.engines().into_iter().find(|pid| {
            let line = fs_err::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.starts_with(program.as_str().as_bytes())
        });
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid.expect("an engine")).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Its engines end with it; the folder that they use goes after them.
        self.process.take();
        let end = Instant::now() + ORPHANS;
        while !self.engines().is_empty() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn uuid(nth: usize) -> String {
    format!("GPU-{nth:08}-0000-0000-0000-000000000000")
}

fn says(text: &str) -> Behaviour {
    Behaviour { answers: vec![text.to_owned()], ..Behaviour::default() }
}

#[tokio::test]
async fn a_request_loads_its_model_and_another_takes_its_room_once_the_memory_was_seen_free() {
    let host = Host::with_gpus(&[80]);
    let host =
        host.model("coder", "vllm", 40, 1, says("one")).model("writer", "command", 50, 1, says("two")).up().await;
    assert_eq!(host.answers("coder").await, "one");
    sleep(Duration::from_millis(2_000)).await;
    assert_eq!(host.answers("writer").await, "two");
    assert_eq!(host.engines().len(), 1, "the first has gone");
    let events = host.json(&["placements", "--events"]);
    let told = |kind: &str, model: &str| {
        let events = events.as_array().unwrap();
        events.iter().position(|event| event["kind"] == kind && event["model"] == model).unwrap()
    };
    assert!(told("ready", "coder") < told("evicted", "coder"));
    assert!(told("evicted", "coder") < told("ready", "writer"));
    let text = host.tells(&["placements", "--why", "writer"]);
    assert!(text.contains("in place of coder.1"), "{text}");
}

#[tokio::test]
async fn the_same_engine_answers_by_the_apis_of_openai_anthropic_and_ollama() {
    let host = Host::with_gpus(&[80]).model("coder", "llama-server", 20, 1, says("hello there")).up().await;
    assert_eq!(host.answers("coder").await, "hello there");
    let message = json!([{ "role": "user", "content": "hi" }]);
    let asked = async |path: &str, body: Value| {
        let answer = host.http.post(format!("{}{path}", host.gateway)).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        answer.text().await.unwrap()
    };
    let anthropic = asked("/v1/messages", json!({ "model": "coder", "max_tokens": 9, "messages": message })).await;
    let anthropic: Value = serde_json::from_str(&anthropic).unwrap();
    assert_eq!(anthropic["content"][0]["text"], "hello there");
    let responses = asked("/v1/responses", json!({ "model": "coder", "input": "hi" })).await;
    let responses: Value = serde_json::from_str(&responses).unwrap();
    assert_eq!(responses["output"][0]["content"][0]["text"], "hello there");
    let ollama = asked("/api/chat", json!({ "model": "coder", "messages": message, "stream": false })).await;
    let ollama: Value = serde_json::from_str(&ollama).unwrap();
    assert_eq!(ollama["message"]["content"], "hello there");
    let streamed = json!({ "model": "coder", "max_tokens": 9, "stream": true, "messages": message });
    let streamed = asked("/v1/messages", streamed).await;
    assert!(streamed.contains("event: message_stop"), "{streamed}");
}

#[tokio::test]
async fn an_engine_that_is_killed_is_replaced_while_another_gpu_serves_on() {
    let host = Host::with_gpus(&[80, 40]);
    let host = host.model("big", "vllm", 60, 1, says("big")).model("small", "command", 30, 2, says("small")).up().await;
    assert_eq!(host.answers("big").await, "big");
    assert_eq!(host.answers("small").await, "small");
    host.kill_engine("vllm");
    assert_eq!(host.answers("small").await, "small");
    assert_eq!(host.answers("big").await, "big");
    let events = host.tells(&["placements", "--events", "--why", "big"]);
    assert!(events.contains("ended while it served: it was ended by signal 9"), "{events}");
}

#[tokio::test]
async fn nothing_is_left_of_a_supervisor_that_is_killed_and_the_next_one_serves() {
    let workers = Behaviour { workers: 2, faults: vec![Fault::OrphanedWorkers, Fault::IgnoreTerm], ..says("one") };
    let mut host = Host::with_gpus(&[80]).model("coder", "vllm", 20, 1, workers).up().await;
    assert_eq!(host.answers("coder").await, "one");
    assert!(host.engines().len() >= 3, "an engine and its workers: {:?}", host.engines());
    host.process.take().unwrap().kill();
    host.no_engine_is_left().await;
    host.start().await;
    assert_eq!(host.answers("coder").await, "one");
}

#[tokio::test]
async fn a_driver_that_hangs_stops_loads_and_no_answers() {
    let mut host = Host::with_gpus(&[80]);
    host = host.model("coder", "vllm", 20, 1, says("one")).model("writer", "command", 20, 1, says("two")).up().await;
    assert_eq!(host.answers("coder").await, "one");
    host.change(|state| state.hanging = vec!["nvmlDeviceGetMemoryInfo_v2".into(), "nvmlDeviceGetMemoryInfo".into()]);
    let closed = |gpus: &Value| gpus["pools"].as_array().unwrap().iter().any(|pool| pool["closed"].is_string());
    host.until(&["gpus"], KNOWN + Duration::from_secs(2), closed).await;
    assert_eq!(host.answers("coder").await, "one");
    let (status, body) = host.ask("writer").await;
    assert_eq!(status, 503, "{body:#}");
    assert_eq!(body["error"]["code"], "model_unavailable");
    host.change(|state| state.hanging.clear());
    host.until(&["gpus"], PATIENCE, |gpus| !closed(gpus)).await;
    assert_eq!(host.answers("writer").await, "two");
}

#[tokio::test]
async fn a_lost_gpu_is_told_at_once_and_the_other_serves_on() {
    let mut host = Host::with_gpus(&[80, 40]);
    host = host.model("big", "vllm", 60, 1, says("big")).model("small", "command", 30, 2, says("small")).up().await;
    assert_eq!(host.answers("small").await, "small");
    host.change(|state| state.gpus[0].lost = true);
    let lost = |gpus: &Value| {
        gpus["devices"].as_array().unwrap().iter().any(|device| device["id"] == uuid(1) && device["health"] == "lost")
    };
    host.until(&["gpus"], KNOWN, lost).await;
    assert_eq!(host.answers("small").await, "small");
    let (status, body) = host.ask("big").await;
    assert_eq!(status, 503, "{body:#}");
}

#[tokio::test]
async fn a_quarantine_moves_engines_away_and_survives_a_restart_until_it_is_released() {
    let mut host = Host::with_gpus(&[80]).model("coder", "vllm", 20, 1, says("one")).up().await;
    assert_eq!(host.answers("coder").await, "one");
    host.tells(&["gpus", "quarantine", &uuid(1)[..12], "--why", "its fan is loud"]);
    host.until(&["models"], PATIENCE, |models| Host::state_of(models, "coder").is_none()).await;
    let mut process = host.process.take().unwrap();
    process.terminate();
    assert!(process.ended(PATIENCE).await.unwrap().success(), "{}", process.tail());
    host.start().await;
    assert!(host.tells(&["gpus"]).contains("quarantined: its fan is loud"));
    let (status, body) = host.ask("coder").await;
    assert_eq!(status, 503);
    assert!(body["error"]["message"].as_str().unwrap().contains("quarantined"), "{body:#}");
    host.tells(&["gpus", "release", &uuid(1)]);
    assert_eq!(host.answers("coder").await, "one");
}

#[tokio::test]
async fn a_model_that_runs_out_of_memory_while_it_loads_says_so_to_who_waits() {
    let fails = Behaviour { faults: vec![Fault::OutOfMemory], ..says("never") };
    let host = Host::with_gpus(&[80]).model("coder", "vllm", 20, 1, fails).up().await;
    let (status, body) = host.ask("coder").await;
    assert_eq!(status, 503, "{body:#}");
    assert_eq!(body["error"]["code"], "model_unavailable");
    let events = host.tells(&["placements", "--events"]);
    assert!(events.contains("ended while it loaded") && events.contains("memory"), "{events}");
    host.no_engine_is_left().await;
}

#[tokio::test]
async fn a_model_that_never_fits_is_refused_at_once_in_the_spoken_apis_form() {
    let host = Host::with_gpus(&[80]).model("huge", "vllm", 500, 1, says("never")).up().await;
    let (status, body) = host.ask("huge").await;
    assert_eq!((status, &body["error"]["code"]), (503, &json!("model_unplaceable")), "{body:#}");
    let asked = json!({ "model": "huge", "max_tokens": 9, "messages": [{ "role": "user", "content": "hi" }] });
    let answer = host.http.post(format!("{}/v1/messages", host.gateway)).json(&asked).send().await.unwrap();
    assert_eq!(answer.headers()["x-should-retry"], "false");
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body["type"], "error");
}

#[tokio::test]
async fn without_a_gpu_models_elsewhere_are_served_and_gpus_explains_itself() {
    let mut host = Host::with_gpus(&[]);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let bin = host.root.join("bin");
    fs_err::create_dir_all(&bin).unwrap();
    let built = program("fettle-fake-engine").unwrap();
    let server = link(built.as_std_path(), bin.as_std_path(), "server", &says("from afar")).unwrap();
    let _server = Process::start("server", Command::new(server).args(["--port", &port.to_string()])).unwrap();
    host.models =
        format!("mode = \"off\"\n[[gateway.models]]\nname = \"far\"\nbase_url = \"http://127.0.0.1:{port}/v1\"\n");
    let host = host.up().await;
    let end = Instant::now() + PATIENCE;
    while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() && Instant::now() < end {
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(host.answers("far").await, "from afar");
    assert!(host.tells(&["gpus"]).contains("no GPU that Fettle can use"));
    let usage = fs_err::read_dir(host.root.join("data/usage")).unwrap().next().unwrap().unwrap().path();
    let end = Instant::now() + PATIENCE;
    while !fs_err::read_to_string(&usage).unwrap().contains("\"far") {
        assert!(Instant::now() < end, "its usage was not written");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_model_that_calls_no_tool_is_found_out_when_it_is_ready_and_that_is_known_after_a_restart() {
    let mut host = Host::with_gpus(&[80]).model("talker", "vllm", 20, 1, says("I would look at the file."));
    host.conformance = "auto";
    let mut host = host.up().await;
    assert_eq!(host.answers("talker").await, "I would look at the file.");
    let listed = async |host: &Host| {
        let answer = host.http.get(format!("{}/v1/models/talker", host.gateway)).send().await.unwrap();
        answer.json::<Value>().await.unwrap()["fettle"]["tool_calls"]["chat_only"]["why"].clone()
    };
    let end = Instant::now() + PATIENCE;
    while listed(&host).await.is_null() {
        assert!(Instant::now() < end, "{}", host.process.as_ref().unwrap().tail());
        sleep(Duration::from_millis(100)).await;
    }
    let why = listed(&host).await.as_str().unwrap().to_owned();
    assert!(why.contains("native calls were right 0 of") && why.contains("98 % are needed"), "{why}");

    host.process.take().unwrap().stop().unwrap();
    host.start().await;
    assert_eq!(listed(&host).await, why, "nobody has asked for it yet");

    let checked = host.fettle(&["models", "check", "talker"]);
    let text = String::from_utf8(checked.stdout).unwrap();
    assert_eq!(checked.status.code(), Some(1), "{text}{}", String::from_utf8_lossy(&checked.stderr));
    assert!(text.contains("talker: for chat only") && text.contains("each tool"), "{text}");
    let unknown = host.fettle(&["models", "check", "nobody"]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("no model is called `nobody`"));
}
