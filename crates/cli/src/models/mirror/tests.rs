use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use camino::Utf8Path;
use fettle_engines::models::{Model, Store, StoreError};
use sha2::{Digest as _, Sha256};

use super::*;

const QUICK: Patience = Patience { silence: Duration::from_millis(500), tries: 3, pause: Duration::from_millis(1) };
const FILE: &str = "a.gguf";

/// How a server of files is: well, unless something is said.
#[derive(Debug, Clone)]
struct Ways {
    sends_parts: bool,
    /// Closes the connection after so many bytes of a body.
    breaks_at: Option<usize>,
    /// Says that files are so much longer.
    adds: usize,
    /// Sends the second half of a file of another content.
    changes: bool,
    /// Says nothing in the middle of a body, and keeps the connection.
    falls_silent: bool,
    /// Fails so many requests with 503 first.
    busy: usize,
    /// Answers parts with others than were asked for.
    confuses_parts: bool,
    says_length: bool,
}

const WELL: Ways = Ways {
    sends_parts: true,
    breaks_at: None,
    adds: 0,
    changes: false,
    falls_silent: false,
    busy: 0,
    confuses_parts: false,
    says_length: true,
};

/// A server of files on loopback, for as long as the test's process.
struct Server {
    url: String,
    /// Each request's method, path and range.
    asked: Arc<Mutex<Vec<String>>>,
    ways: Arc<Mutex<Ways>>,
}

impl Server {
    fn with(files: BTreeMap<String, Vec<u8>>, ways: Ways) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/models", listener.local_addr().unwrap());
        let (asked, ways) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(ways)));
        let (told, followed) = (asked.clone(), ways.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // Whoever hangs up in the middle is no error of the server.
                let _ = answer(stream.unwrap(), &files, &told, &followed);
            }
        });
        Self { url, asked, ways }
    }

    /// The model `m` with one file, and its list.
    fn of(content: &[u8], ways: Ways) -> Self {
        let sums = format!("{}  {FILE}\n", hex(content));
        let file = |name: &str, content: &[u8]| (format!("/models/m/{name}"), content.to_vec());
        Self::with([file(FILE, content), file(SUMS, sums.as_bytes())].into(), ways)
    }

    fn gets(&self) -> Vec<String> {
        self.asked.lock().unwrap().iter().filter(|asked| asked.starts_with("GET /models/m/a.gguf")).cloned().collect()
    }
}

fn answer(
    mut stream: TcpStream,
    files: &BTreeMap<String, Vec<u8>>,
    asked: &Mutex<Vec<String>>,
    ways: &Mutex<Ways>,
) -> io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let mut from = None;
    for line in lines {
        let line = line?.to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        let range = line.strip_prefix("range: bytes=").and_then(|range| range.strip_suffix('-'));
        from = range.map(|from| from.parse::<usize>().unwrap()).or(from);
    }
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    asked.lock().unwrap().push(format!("{method} {path} {}", from.unwrap_or(0)));
    let ways = {
        let mut ways = ways.lock().unwrap();
        if ways.busy > 0 {
            ways.busy -= 1;
            return stream.write_all(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
        ways.clone()
    };
    let Some(content) = files.get(path) else {
        return stream.write_all(b"HTTP/1.1 404 Absent\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    };
    let plain = path.ends_with(SUMS);
    let adds = if plain { 0 } else { ways.adds };
    let from = from.filter(|_| ways.sends_parts);
    let begin = from.unwrap_or(0).min(content.len());
    let (rest, total) = (content.len() - begin + adds, content.len() + adds);
    let mut head = match from {
        Some(from) => {
            let told = if ways.confuses_parts { from - 1 } else { from };
            format!("HTTP/1.1 206 Part\r\ncontent-range: bytes {told}-{}/{total}\r\n", total - 1)
        }
        None => "HTTP/1.1 200 OK\r\n".to_owned(),
    };
    if ways.says_length || plain {
        head += &format!("content-length: {rest}\r\n");
    }
    stream.write_all(format!("{head}connection: close\r\n\r\n").as_bytes())?;
    if method == "HEAD" {
        return Ok(());
    }
    let mut body = content[begin..].to_vec();
    if ways.changes && !plain {
        body.iter_mut().skip(content.len() / 2).for_each(|byte| *byte ^= 1);
    }
    let most = if plain { None } else { ways.breaks_at }.unwrap_or(body.len()).min(body.len());
    stream.write_all(&body[..most])?;
    if ways.falls_silent && !plain {
        // Until the other side has had enough.
        let _ = stream.read(&mut [0]);
    }
    Ok(())
}

fn hex(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A llama of one layer with `bytes` behind its header.
fn gguf(bytes: usize) -> Vec<u8> {
    let mut keys = Vec::new();
    let text = |keys: &mut Vec<u8>, text: &str| {
        keys.extend((text.len() as u64).to_le_bytes());
        keys.extend(text.as_bytes());
    };
    text(&mut keys, "general.architecture");
    keys.extend(8_u32.to_le_bytes());
    text(&mut keys, "llama");
    for (key, value) in [("block_count", 1_u32), ("embedding_length", 64), ("attention.head_count", 4)] {
        text(&mut keys, &format!("llama.{key}"));
        keys.extend(4_u32.to_le_bytes());
        keys.extend(value.to_le_bytes());
    }
    let head = [&b"GGUF"[..], &3_u32.to_le_bytes(), &0_u64.to_le_bytes(), &4_u64.to_le_bytes()].concat();
    [head, keys, (0..bytes).map(|nth| (nth % 251) as u8).collect()].concat()
}

struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        fettle_runtime::install_tls();
        Self(tempfile::tempdir().unwrap())
    }

    fn add(&self, server: &Server) -> Result<Model, StoreError> {
        let id = ModelId::new("m");
        let mirror = Mirror::of(&server.url, &id, QUICK).unwrap();
        Store::at(Utf8Path::from_path(self.0.path()).unwrap().join("models")).add(&id, &mirror, &mut |_| ())
    }
}

fn chain(error: &StoreError) -> String {
    fettle_app::ports::chain(error)
}

#[test]
fn a_model_comes_whole_however_often_its_connections_break_off() {
    let content = gguf(300_000);
    for ways in [
        WELL,
        Ways { breaks_at: Some(70_000), ..WELL },
        Ways { falls_silent: true, breaks_at: Some(200_000), ..WELL },
        Ways { busy: 2, ..WELL },
    ] {
        let (home, server) = (Home::new(), Server::of(&content, ways.clone()));
        let model = home.add(&server).unwrap_or_else(|error| panic!("{ways:?}: {}", chain(&error)));
        assert_eq!(model.files[0].sha256, hex(&content), "{ways:?}");
        if ways.breaks_at == Some(70_000) {
            assert_eq!(server.gets()[1], "GET /models/m/a.gguf 70000", "it goes on where it stopped");
        }
    }
}

#[test]
fn a_server_that_sends_no_parts_is_read_from_the_beginning_again() {
    let content = gguf(300_000);
    let (home, server) = (Home::new(), Server::of(&content, Ways { breaks_at: Some(200_000), ..WELL }));
    server.ways.lock().unwrap().sends_parts = false;
    let error = home.add(&server).unwrap_err();
    assert!(chain(&error).contains("broke off at byte 200000"), "{}", chain(&error));
    server.ways.lock().unwrap().breaks_at = None;
    assert_eq!(home.add(&server).unwrap().files[0].sha256, hex(&content));
}

#[test]
fn one_that_was_interrupted_goes_on_at_the_next_call() {
    let content = gguf(300_000);
    let (home, server) =
        (Home::new(), Server::of(&content, Ways { breaks_at: Some(100_000), sends_parts: false, ..WELL }));
    home.add(&server).unwrap_err();
    *server.ways.lock().unwrap() = WELL;
    server.asked.lock().unwrap().clear();
    home.add(&server).unwrap();
    assert_eq!(server.gets(), ["GET /models/m/a.gguf 100000"]);
}

#[test]
fn a_server_that_lies_is_not_believed() {
    let content = gguf(300_000);
    for (ways, told) in [
        (Ways { adds: 9, ..WELL }, "broke off at byte"),
        (Ways { changes: true, ..WELL }, "is not what its SHA-256 says"),
        (Ways { confuses_parts: true, breaks_at: Some(9), ..WELL }, "sends another one"),
        (Ways { says_length: false, ..WELL }, "does not say how long it is"),
        (Ways { breaks_at: Some(0), ..WELL }, "broke off at byte 0"),
        (Ways { busy: 99, ..WELL }, "503"),
    ] {
        let (home, server) = (Home::new(), Server::of(&content, ways.clone()));
        let error = home.add(&server).unwrap_err();
        assert!(chain(&error).contains(told), "{ways:?}: {}", chain(&error));
    }
}

#[test]
fn a_list_with_hostile_names_or_none_is_refused_before_a_file_is_asked_for() {
    let digest = "0".repeat(64);
    for (sums, told) in [
        (format!("{digest}  ../a.gguf\n"), "no name of a model's file"),
        (format!("{digest}  /etc/passwd\n"), "no name of a model's file"),
        (format!("{digest}  .ssh\n"), "no name of a model's file"),
        (format!("{digest} *notes.txt\n"), "holds no weights"),
        ("<html>".to_owned(), "line 1 of"),
        (format!("{digest}  {}\n", "a".repeat(1 << 20)), "longer than a list"),
    ] {
        let files = [("/models/m/SHA256SUMS", sums.as_str()), ("/models/m/notes.txt", "hello")];
        let files = files.map(|(path, text)| (path.to_owned(), text.as_bytes().to_vec()));
        let (home, server) = (Home::new(), Server::with(files.into(), WELL));
        let error = home.add(&server).unwrap_err();
        assert!(chain(&error).contains(told), "{}", chain(&error));
        assert!(!server.asked.lock().unwrap().iter().any(|asked| asked.starts_with("GET") && !asked.contains(SUMS)));
    }
    let (home, server) = (Home::new(), Server::with(BTreeMap::new(), WELL));
    assert!(chain(&home.add(&server).unwrap_err()).contains("has no model of that name"));
}

#[test]
fn a_name_of_two_parts_is_a_folder_in_a_folder() {
    let mirror = Mirror::of("http://127.0.0.1:1/models/", &ModelId::new("Qwen/Qwen3:8b"), QUICK).unwrap();
    assert_eq!(mirror.at("a b.gguf").path(), "/models/Qwen/Qwen3:8b/a%20b.gguf");
    assert!(Mirror::of("http://user:word@h/", &ModelId::new("m"), QUICK).is_err());
}
