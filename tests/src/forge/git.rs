//! Bare repositories, and git's own smart-HTTP server in front of them.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use camino::Utf8Path;
use fettle_domain::repo::RepoName;
use futures::{StreamExt as _, TryStreamExt};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, BodyStream, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio_util::io::{ReaderStream, StreamReader};

use super::server::{Body, bytes_body, io_error};
use super::state::Forge;

/// Longer than any push of a test, short enough to end a stuck one.
const GIT_TIMEOUT: Duration = Duration::from_secs(120);
/// All commits that the forge itself makes: the same content gives the same id.
const IDENTITY: &str = "Octo Cat <octocat@forge.invalid> 1750000000 +0000";
/// Tells, from inside the push, which refs moved; each push has its own file.
const POST_RECEIVE: &str = "#!/bin/sh\ncat >> \"$FORGE_UPDATES\"\n";

/// A ref that a push has moved. All-zero names mean that it was created or deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefUpdate {
    pub repository: RepoName,
    pub old: String,
    pub new: String,
    pub name: String,
}

pub(super) async fn create(bare: &Utf8Path) -> anyhow::Result<()> {
    fs_err::create_dir_all(bare)?;
    run(bare, &["init", "--quiet", "--bare", "--initial-branch=main", "."], &[]).await?;
    // As GitHub: fetches by commit id and partial clones are served, forced pushes are taken.
    for (key, value) in [
        ("uploadpack.allowAnySHA1InWant", "true"),
        ("uploadpack.allowFilter", "true"),
        ("receive.denyDeleteCurrent", "refuse"),
        ("gc.auto", "0"),
    ] {
        run(bare, &["config", key, value], &[]).await?;
    }
    let hook = bare.join("hooks").join("post-receive");
    fs_err::create_dir_all(bare.join("hooks"))?;
    fs_err::write(&hook, POST_RECEIVE)?;
    fs_err::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(())
}

/// Writes one commit with these files changed and moves the branch there.
pub(super) async fn commit(
    bare: &Utf8Path,
    branch: &str,
    parent: Option<&str>,
    files: &[(&str, &str)],
    message: &str,
) -> anyhow::Result<String> {
    let mut stream = format!("commit refs/heads/{branch}\ncommitter {IDENTITY}\ndata {}\n{message}\n", message.len());
    if let Some(parent) = parent {
        stream.push_str(&format!("from {parent}\n"));
    }
    for (path, content) in files {
        let mode = if content.starts_with("#!") { "100755" } else { "100644" };
        stream.push_str(&format!("M {mode} inline {path}\ndata {}\n{content}\n", content.len()));
    }
    run(bare, &["fast-import", "--quiet", "--force"], stream.as_bytes()).await?;
    resolve(bare, &format!("refs/heads/{branch}")).await?.context("fast-import made no branch")
}

/// Copies branches and tags; gives the name of the source's current branch.
pub(super) async fn import(source: &Utf8Path, bare: &Utf8Path) -> anyhow::Result<String> {
    let all = ["refs/heads/*:refs/heads/*", "refs/tags/*:refs/tags/*"];
    run(source, &["-c", "core.hooksPath=/dev/null", "push", "--quiet", bare.as_str(), all[0], all[1]], &[]).await?;
    let head = run(source, &["symbolic-ref", "HEAD"], &[]).await?;
    run(bare, &["symbolic-ref", "HEAD", head.trim()], &[]).await?;
    Ok(head.trim().trim_start_matches("refs/heads/").to_owned())
}

pub(super) async fn resolve(bare: &Utf8Path, name: &str) -> anyhow::Result<Option<String>> {
    let found = run(bare, &["for-each-ref", "--format=%(objectname)", name], &[]).await?;
    Ok(found.lines().next().map(str::to_owned))
}

/// What `git <arguments>` prints in `folder`.
pub(super) async fn run(folder: &Utf8Path, arguments: &[&str], input: &[u8]) -> anyhow::Result<String> {
    let mut child = git(folder).args(arguments).stderr(Stdio::piped()).spawn().context("while starting git")?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let fed = async move { stdin.write_all(input).await };
    let (fed, output) = tokio::time::timeout(GIT_TIMEOUT, async { tokio::join!(fed, child.wait_with_output()) })
        .await
        .with_context(|| format!("while waiting for git {arguments:?}"))?;
    let output = output?;
    if !output.status.success() {
        bail!("git {arguments:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    fed?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// git without anybody's configuration.
fn git(folder: &Utf8Path) -> Command {
    let mut command = Command::new("git");
    command
        .current_dir(folder)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("HOME", folder)
        .env_remove("GIT_DIR")
        .env_remove("GIT_WORK_TREE")
        .env_remove("GIT_INDEX_FILE")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// A path of git's protocol: the repository and whether it wants to write.
pub(super) struct GitPath {
    pub(super) owner: String,
    pub(super) name: String,
    /// `/info/refs`, `/git-upload-pack` or `/git-receive-pack`.
    service: &'static str,
    pub(super) writes: bool,
}

impl GitPath {
    pub(super) fn parse(path: &str, query: Option<&str>) -> Option<Self> {
        let (service, before) = ["/info/refs", "/git-upload-pack", "/git-receive-pack"]
            .into_iter()
            .find_map(|service| Some((service, path.strip_suffix(service)?)))?;
        let (owner, name) = before.strip_prefix('/')?.split_once('/')?;
        let name = name.strip_suffix(".git").unwrap_or(name);
        let writes = service == "/git-receive-pack" || query.is_some_and(|q| q.contains("service=git-receive-pack"));
        Some(Self { owner: owner.to_owned(), name: name.to_owned(), service, writes })
    }
}

/// Runs `git http-backend` for one request whose caller was let in.
pub(super) async fn serve(
    forge: &Forge,
    repo: &RepoName,
    path: &GitPath,
    request: Request<Incoming>,
) -> anyhow::Result<Response<Body>> {
    let (parts, body) = request.into_parts();
    let header = |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let updates = tempfile::NamedTempFile::new_in(&forge.folder)?;
    let bare = forge.bare(repo);
    let mut command = git(&bare);
    command
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", &bare)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("PATH_INFO", path.service)
        .env("QUERY_STRING", parts.uri.query().unwrap_or_default())
        .env("REQUEST_METHOD", parts.method.as_str())
        .env("CONTENT_TYPE", header("content-type"))
        .env("CONTENT_LENGTH", header("content-length"))
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("GIT_PROTOCOL", header("git-protocol"))
        .env("REMOTE_ADDR", "127.0.0.1")
        .env("FORGE_UPDATES", updates.path())
        .stderr(Stdio::null());
    if path.writes {
        // git takes pushes from named users only.
        command.env("REMOTE_USER", "forge");
    }
    let mut child = command.spawn().context("while starting git http-backend")?;
    let stdin = child.stdin.take().expect("stdin is piped");
    let mut stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));

    if path.service != "/git-receive-pack" {
        feed(body, stdin).await?;
        let answer = head(&mut stdout).await?;
        // The child lives as long as its output is read.
        let output = ReaderStream::new(stdout).map_ok(Frame::data).map(move |frame| (frame, &child).0);
        return Ok(answer.body(StreamBody::new(output).boxed_unsync())?);
    }
    let answered = async {
        let (fed, output) = tokio::join!(feed(body, stdin), async {
            let answer = head(&mut stdout).await?;
            let mut output = Vec::new();
            stdout.read_to_end(&mut output).await?;
            anyhow::Ok(answer.body(bytes_body(output))?)
        });
        let response = output?;
        fed?;
        wait(&mut child).await?;
        anyhow::Ok(response)
    };
    let response = tokio::time::timeout(GIT_TIMEOUT, answered).await.context("while waiting for a push")??;
    note_updates(forge, repo, &fs_err::read_to_string(updates.path())?);
    Ok(response)
}

async fn wait(child: &mut Child) -> anyhow::Result<()> {
    child.wait().await.context("while waiting for git http-backend")?;
    Ok(())
}

/// Streams the request's body, compressed or not, into git.
async fn feed(body: Incoming, mut stdin: tokio::process::ChildStdin) -> anyhow::Result<()> {
    let frames = TryStreamExt::map_err(BodyStream::new(body), io_error)
        .try_filter_map(async |frame| Ok::<Option<Bytes>, std::io::Error>(frame.into_data().ok()));
    let mut reader = StreamReader::new(Box::pin(frames));
    match tokio::io::copy(&mut reader, &mut stdin).await {
        // git has read what it wants of a request that it refuses.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => {}
        other => drop(other.context("while reading a git request")?),
    }
    Ok(())
}

/// The CGI header of git's answer.
async fn head(output: &mut (impl tokio::io::AsyncBufRead + Unpin)) -> anyhow::Result<http::response::Builder> {
    let mut builder = Response::builder().status(StatusCode::OK);
    loop {
        let mut line = String::new();
        if output.read_line(&mut line).await? == 0 {
            bail!("git http-backend gave no header");
        }
        let line = line.trim_end();
        if line.is_empty() {
            return Ok(builder);
        }
        let (name, value) = line.split_once(':').with_context(|| format!("not a CGI header: {line}"))?;
        builder = match name {
            "Status" => builder.status(value.trim().get(..3).unwrap_or_default().parse::<u16>()?),
            _ => builder.header(name, value.trim()),
        };
    }
}

fn note_updates(forge: &Forge, repo: &RepoName, lines: &str) {
    for line in lines.lines() {
        let [old, new, name] = line.splitn(3, ' ').collect::<Vec<_>>()[..] else {
            continue;
        };
        forge.moved(repo, name, new);
        let update =
            RefUpdate { repository: repo.clone(), old: old.to_owned(), new: new.to_owned(), name: name.to_owned() };
        forge.lock().ref_updates.push(update);
    }
    forge.changed();
}
