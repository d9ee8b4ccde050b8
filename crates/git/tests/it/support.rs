//! Repositories made with `git`, and a server that runs `git http-backend` and can misbehave on request.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, Once};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use camino::{Utf8Path, Utf8PathBuf};
use fettle_app::ports::git::{BaseCommit, BaseRef, CommitSpec, Repositories, Source};
use fettle_domain::object::{CommitId, TreeId};
use fettle_git::{Git, GitOptions};
use futures::stream;
use jiff::Timestamp;
use secrecy::SecretString;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Must never turn up anywhere but in an `Authorization` header.
pub(crate) const TOKEN: &str = "canary-5f0c2e91";

pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> &Utf8Path {
        Utf8Path::from_path(self.0.path()).unwrap()
    }

    pub(crate) fn join(&self, name: &str) -> Utf8PathBuf {
        self.path().join(name)
    }
}

/// The `git` command, cut off from every configuration but the repository's.
pub(crate) fn git_command(folder: &Utf8Path) -> Command {
    let mut command = Command::new("git");
    command
        .current_dir(folder)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_AUTHOR_NAME", "Test")
        .env("GIT_AUTHOR_EMAIL", "test@localhost")
        .env("GIT_COMMITTER_NAME", "Test")
        .env("GIT_COMMITTER_EMAIL", "test@localhost")
        .env("GIT_AUTHOR_DATE", "1700000000 +0100")
        .env("GIT_COMMITTER_DATE", "1700000000 +0100")
        .env("LC_ALL", "C");
    command
}

pub(crate) fn git<S: AsRef<OsStr>>(folder: &Utf8Path, arguments: impl IntoIterator<Item = S>) -> String {
    let output = git_command(folder).args(arguments).output().unwrap();
    assert!(output.status.success(), "git failed: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// As [`git`], with bytes on standard input.
pub(crate) fn git_with_input(folder: &Utf8Path, arguments: &[&str], input: &[u8]) -> String {
    use std::io::Write;
    let mut child = git_command(folder).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

pub(crate) fn commit_id(folder: &Utf8Path, name: &str) -> CommitId {
    git(folder, ["rev-parse", &format!("{name}^{{commit}}")]).parse().unwrap()
}

pub(crate) fn tree_id(folder: &Utf8Path, name: &str) -> TreeId {
    git(folder, ["rev-parse", &format!("{name}^{{tree}}")]).parse().unwrap()
}

pub(crate) fn write(folder: &Utf8Path, path: &str, content: impl AsRef<[u8]>) {
    let place = folder.join(path);
    fs_err::create_dir_all(place.parent().unwrap()).unwrap();
    fs_err::write(place, content).unwrap();
}

/// A repository on branch `main` with the files given, committed.
pub(crate) fn repository(folder: &Utf8Path, files: &[(&str, &str)]) {
    fs_err::create_dir_all(folder).unwrap();
    git(folder, ["init", "-q", "-b", "main"]);
    for (path, content) in files {
        write(folder, path, content);
    }
    commit_all(folder, "first");
}

pub(crate) fn commit_all(folder: &Utf8Path, message: &str) -> CommitId {
    git(folder, ["add", "-A", "-f"]);
    git(folder, ["commit", "-q", "--allow-empty", "-m", message]);
    commit_id(folder, "HEAD")
}

pub(crate) fn adapter(mirrors: &Utf8Path) -> Git {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| rustls::crypto::aws_lc_rs::default_provider().install_default().unwrap());
    Git::new(GitOptions { plain_http_on_loopback: true, ..GitOptions::new(mirrors.join("mirrors")) }).unwrap()
}

pub(crate) fn local_source(path: &Utf8Path) -> Source {
    Source { key: "local-test".into(), url: path.to_string(), token: None }
}

/// A local repository with its adapter, resolved at `HEAD`.
pub(crate) struct Local {
    pub(crate) folder: Folder,
    pub(crate) repo: Utf8PathBuf,
    pub(crate) git: Git,
    pub(crate) base: BaseCommit,
}

pub(crate) const KEY: &str = "local-test";

impl Local {
    pub(crate) async fn new(make: impl FnOnce(&Utf8Path)) -> Self {
        let folder = Folder::new();
        let repo = folder.join("user");
        fs_err::create_dir_all(&repo).unwrap();
        make(&repo);
        let git = adapter(folder.path());
        let base = git.resolve(&local_source(&repo), &BaseRef::Default).await.unwrap();
        Self { folder, repo, git, base }
    }
}

pub(crate) fn spec(parent: CommitId, tree: TreeId) -> CommitSpec {
    CommitSpec {
        parent,
        tree,
        message: "Fix it\n\nFettle-Task: task_1\n".into(),
        author_name: "Fettle".into(),
        author_email: "fettle@localhost".into(),
        at: Timestamp::from_second(1_750_000_000).unwrap(),
    }
}

/// Every file below `folder` with its bytes, length of life (mtime in ns) and mode, by path.
pub(crate) fn fingerprint(folder: &Path) -> BTreeMap<PathBuf, (Vec<u8>, i128, u32)> {
    use std::os::unix::fs::MetadataExt;
    let mut found = BTreeMap::new();
    let mut pending = vec![folder.to_owned()];
    while let Some(next) = pending.pop() {
        for entry in fs_err::read_dir(&next).unwrap() {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            let time = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
            if metadata.is_dir() {
                pending.push(entry.path());
            } else if metadata.is_file() {
                found.insert(entry.path(), (fs_err::read(entry.path()).unwrap(), time, metadata.mode()));
            }
        }
    }
    found
}

type Interruption = Box<dyn FnOnce() + Send>;

/// What the server does besides serving.
#[derive(Default)]
pub(crate) struct Script {
    /// Runs once, after the client sent its push and before git sees it.
    pub(crate) before_receive: Option<Interruption>,
    /// Git does what it is asked, but the answer to a push breaks off.
    pub(crate) lose_push_answers: bool,
    /// Every request is answered with this.
    pub(crate) status: Option<StatusCode>,
    /// The first path prefix is redirected to the second text.
    pub(crate) redirect: Option<(String, String)>,
}

#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) line: String,
    pub(crate) authorized: bool,
    pub(crate) body_bytes: usize,
}

struct Shared {
    root: Utf8PathBuf,
    expected: String,
    script: Mutex<Script>,
    seen: Mutex<Vec<Seen>>,
}

/// Serves the repositories beneath its folder, to holders of [`TOKEN`].
pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) folder: Folder,
    shared: Arc<Shared>,
    _task: JoinSet<()>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let folder = Folder::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let pair =
            base64::Engine::encode(&base64::engine::general_purpose::STANDARD, format!("x-access-token:{TOKEN}"));
        let shared = Arc::new(Shared {
            root: folder.path().to_owned(),
            expected: format!("Basic {pair}"),
            script: Mutex::default(),
            seen: Mutex::default(),
        });
        let router = Router::new().fallback(serve).with_state(Arc::clone(&shared));
        let mut task = JoinSet::new();
        task.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, folder, shared, _task: task }
    }

    /// A bare repository `name` cloned from a working one beside it, which is returned.
    pub(crate) fn repository(&self, name: &str, files: &[(&str, &str)]) -> Utf8PathBuf {
        let work = self.folder.join(&format!("{name}.work"));
        repository(&work, files);
        git(self.folder.path(), ["clone", "-q", "--bare", work.as_str(), self.bare(name).as_str()]);
        git(&work, ["remote", "add", "origin", self.bare(name).as_str()]);
        work
    }

    pub(crate) fn bare(&self, name: &str) -> Utf8PathBuf {
        self.folder.join(&format!("{name}.git"))
    }

    pub(crate) fn source(&self, name: &str) -> Source {
        Source {
            key: format!("github-{name}"),
            url: format!("{}/{name}.git", self.url),
            token: Some(SecretString::from(TOKEN)),
        }
    }

    pub(crate) fn script(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.shared.script.lock().unwrap());
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }
}

async fn serve(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 100 << 20).await.unwrap();
    let path = parts.uri.path().to_owned();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let authorized = parts.headers.get(header::AUTHORIZATION).is_some_and(|value| value == shared.expected.as_str());
    shared.seen.lock().unwrap().push(Seen {
        line: format!("{} {path}?{query}", parts.method),
        authorized,
        body_bytes: body.len(),
    });
    let receives = path.ends_with("/git-receive-pack");
    let (status, redirect, lost, interruption) = {
        let mut script = shared.script.lock().unwrap();
        let interruption = if receives { script.before_receive.take() } else { None };
        (script.status, script.redirect.clone(), script.lose_push_answers && receives, interruption)
    };
    if let Some(status) = status {
        return status.into_response();
    }
    if let Some((from, to)) = redirect
        && let Some(rest) = path.strip_prefix(&from)
    {
        let location = format!("{to}{rest}?{query}");
        return (StatusCode::MOVED_PERMANENTLY, [(header::LOCATION, location)]).into_response();
    }
    if !authorized {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    if let Some(interruption) = interruption {
        interruption();
    }
    let answer = http_backend(&shared.root, parts.method.as_str(), &path, &query, &parts.headers, body).await;
    if lost {
        let broken = stream::iter([Err::<Bytes, _>(std::io::Error::other("the line is cut"))]);
        return Response::builder()
            .header(header::CONTENT_TYPE, "application/x-git-receive-pack-result")
            .body(Body::from_stream(broken))
            .unwrap();
    }
    answer
}

/// The CGI bridge.
async fn http_backend(
    root: &Utf8Path,
    method: &str,
    path: &str,
    query: &str,
    headers: &HeaderMap,
    body: Bytes,
) -> Response {
    let content_type = headers.get(header::CONTENT_TYPE).map_or("", |value| value.to_str().unwrap());
    let mut command = tokio::process::Command::from(git_command(root));
    let mut child = command
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REMOTE_USER", "tester")
        .env("REMOTE_ADDR", "127.0.0.1")
        .env("REQUEST_METHOD", method)
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query)
        .env("CONTENT_TYPE", content_type)
        .env("CONTENT_LENGTH", body.len().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let feed = async move {
        // Git may answer without having read everything.
        let _ = input.write_all(&body).await;
    };
    let (output, ()) = tokio::join!(child.wait_with_output(), feed);
    let output = output.unwrap().stdout;
    let end = output.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let mut response = Response::builder();
    for line in std::str::from_utf8(&output[..end]).unwrap().split("\r\n") {
        let (name, value) = line.split_once(": ").unwrap();
        response = match name {
            "Status" => response.status(value[..3].parse::<u16>().unwrap()),
            _ => response.header(name, value),
        };
    }
    response.body(Body::from(output[end + 4..].to_vec())).unwrap()
}
