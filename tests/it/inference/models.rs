//! Models that are brought to this machine, loaded, heard and removed, by the commands that people type.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex};

use sha2::{Digest as _, Sha256};

use super::tiny_model::gguf;
use super::*;

/// As ready recipes name it.
const MISTRAL: &str = "mistral:7b";
const FILE: &str = "mistral-7b-instruct-v0.2.Q4_K_M.gguf";

/// A server of files that knows one model. It stops sending in the middle, with the connection open, until it is told better.
struct Files {
    url: String,
    stalls_at: Arc<Mutex<Option<usize>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Files {
    fn with(content: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let stalls_at = Arc::new(Mutex::new(Some(200_000)));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (stalls, told) = (stalls_at.clone(), asked.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // Whoever is killed hangs up in the middle.
                let _ = answer(stream.unwrap(), &content, &stalls, &told);
            }
        });
        Self { url, stalls_at, asked }
    }
}

fn answer(
    mut stream: std::net::TcpStream,
    content: &[u8],
    stalls_at: &Mutex<Option<usize>>,
    asked: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let head: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let range = head.iter().find_map(|line| line.to_ascii_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
    let from: usize = range.as_deref().map_or(0, |range| range.trim_end_matches('-').parse().unwrap());
    asked.lock().unwrap().push(format!("{} from {from}", first.trim_end_matches(" HTTP/1.1")));
    let sums = format!("{}  {FILE}\n", hex::encode(Sha256::digest(content)));
    let listed = first.contains("/SHA256SUMS ");
    let body = if listed { sums.as_bytes() } else { content };
    let (rest, total) = (&body[from..], body.len());
    let status = if from > 0 {
        format!("206 Part\r\ncontent-range: bytes {from}-{}/{total}", total - 1)
    } else {
        "200 OK".into()
    };
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", rest.len());
    stream.write_all(head.as_bytes())?;
    if first.starts_with("HEAD") {
        return Ok(());
    }
    match stalls_at.lock().unwrap().filter(|_| !listed) {
        None => stream.write_all(rest),
        Some(at) => {
            stream.write_all(&rest[..at])?;
            stream.read(&mut [0]).map(drop)
        }
    }
}

fn partial(host: &Host) -> u64 {
    let listed = host.json(&["models", "list"]);
    listed["models"][0]["bytes"].as_u64().unwrap_or(0)
}

#[tokio::test]
async fn a_download_that_is_killed_goes_on_and_its_entry_is_accepted_as_it_is_printed() {
    let content = gguf(32_768);
    let files = Files::with(content.clone());
    let host = Host::with_gpus(&[]);
    let config = host.root.join("fettle.toml");
    fs_err::write(&config, format!("[gateway]\nmirror = \"{}\"\n", files.url)).unwrap();
    let mut add = Command::new(program("fettle").unwrap());
    add.args(["models", "add", MISTRAL]);
    host.place(&mut add);
    let mut killed = Process::start("add", &mut add).unwrap();
    let end = Instant::now() + PATIENCE;
    while partial(&host) < 200_000 {
        assert!(Instant::now() < end, "{}", killed.tail());
        sleep(Duration::from_millis(50)).await;
    }
    let listed = host.json(&["models", "list"]);
    assert_eq!((&listed["models"][0]["name"], &listed["models"][0]["complete"]), (&json!(MISTRAL), &json!(false)));
    let busy = host.fettle(&["models", "rm", MISTRAL]);
    assert!(String::from_utf8_lossy(&busy.stderr).contains("somebody else is at work"), "{busy:?}");
    killed.kill();

    *files.stalls_at.lock().unwrap() = None;
    files.asked.lock().unwrap().clear();
    let entry = host.tells(&["models", "add", MISTRAL]);
    assert_eq!(*files.asked.lock().unwrap().last().unwrap(), format!("GET /{MISTRAL}/{FILE} from 200000"));
    let mut whole = fs_err::OpenOptions::new().append(true).open(&config).unwrap();
    whole.write_all(entry.as_bytes()).unwrap();
    assert!(host.tells(&["check-config", config.as_str()]).contains(MISTRAL), "{entry}");
    let listed = host.json(&["models", "list"]);
    let model = &listed["models"][0];
    assert_eq!(model["files"][0]["sha256"], hex::encode(Sha256::digest(&content)));
    assert_eq!((&model["configured"][0], &model["complete"]), (&json!(MISTRAL), &json!(true)));
    assert!(host.tells(&["models", "list"]).contains("No inference process runs"));

    assert!(host.tells(&["models", "verify"]).contains("whole"));
    let kept = Utf8PathBuf::from(model["path"].as_str().unwrap());
    let file = fs_err::OpenOptions::new().write(true).open(&kept).unwrap();
    file.file().write_at(b"x", 400_000).unwrap();
    let wrong = host.fettle(&["models", "verify", MISTRAL]);
    assert_eq!(wrong.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&wrong.stdout).contains(&format!("{FILE} is not what it was")), "{wrong:?}");
    host.tells(&["models", "rm", MISTRAL]);
    assert!(!kept.exists());
}

#[tokio::test]
async fn a_model_that_an_engine_uses_is_listed_heard_and_not_removed() {
    let mut host = Host::with_gpus(&[24]);
    let file = host.root.join("a.gguf");
    fs_err::write(&file, gguf(32_768)).unwrap();
    fs_err::write(host.root.join("fettle.toml"), "").unwrap();
    let entry = host.tells(&["models", "add", MISTRAL, file.as_str()]);
    let bin = host.root.join("bin");
    fs_err::create_dir_all(&bin).unwrap();
    let gpu = fettle_fake_engine::Gpu { nvml: host.root.join("nvml").into(), uuid: uuid(1), bytes: GIB };
    let behaviour = Behaviour { gpu: Some(gpu), ..says("hello") };
    let built = program("fettle-fake-engine").unwrap();
    let engine = link(built.as_std_path(), bin.as_std_path(), "llama-server", &behaviour).unwrap();
    host.models = format!("[gpu.engines.llama-server]\nprogram = \"{}\"\n{entry}", engine.display());
    let host = host.up().await;
    let nobody = host.fettle(&["models", "logs", MISTRAL]);
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("has never been loaded here"), "{nobody:?}");
    let listed = host.json(&["models", "list"]);
    assert_eq!(listed["models"][0]["fits"], json!([{ "device": uuid(1), "now": true }]), "{listed:#}");

    assert_eq!(host.answers(MISTRAL).await, "hello");
    let refused = host.fettle(&["models", "rm", MISTRAL]);
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && why.contains("mistral:7b.1 uses its files"), "{why}");
    assert!(host.json(&["models", "list"])["models"][0]["complete"].as_bool().unwrap());

    assert!(host.tells(&["models", "logs", MISTRAL]).contains("server is listening"));
    assert_eq!(host.tells(&["models", "logs", "mistral:7b.1", "--lines", "1"]).lines().count(), 1);
    let mut follow = Command::new(program("fettle").unwrap());
    follow.args(["models", "logs", MISTRAL, "--follow", "--lines", "0"]);
    host.place(&mut follow);
    let follow = Process::start("logs", &mut follow).unwrap();
    host.kill_engine("llama-server");
    assert_eq!(host.answers(MISTRAL).await, "hello");
    let loaded = |line: &str| line.contains("server is listening").then_some(());
    follow.logged("what the next engine says", PATIENCE, loaded).await.unwrap();
    let unknown = host.fettle(&["models", "logs", "nobody"]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("is no model or engine"), "{unknown:?}");
}

#[tokio::test]
async fn hostile_names_and_links_are_refused_and_leave_nothing() {
    let host = Host::with_gpus(&[]);
    fs_err::write(host.root.join("fettle.toml"), "").unwrap();
    let folder = host.root.join("weights");
    fs_err::create_dir(&folder).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", folder.join("a.gguf")).unwrap();
    for (arguments, told) in [
        (["../m", folder.as_str()], "no name of a model"),
        (["/m", folder.as_str()], "no name of a model"),
        (["m", folder.as_str()], "--follow-links"),
        (["m", "/nowhere/m.gguf"], "/nowhere/m.gguf"),
    ] {
        let refused = host.fettle(&[&["models", "add"][..], &arguments].concat());
        let why = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && why.contains(told), "{arguments:?}: {why}");
    }
    assert_eq!(host.json(&["models", "list"])["models"], json!([]));
    let unmirrored = host.fettle(&["models", "add", MISTRAL]);
    let why = String::from_utf8_lossy(&unmirrored.stderr);
    assert!(why.contains("gateway.mirror") && why.contains(FILE), "{why}");
}
