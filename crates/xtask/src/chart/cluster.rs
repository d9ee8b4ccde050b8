//! What the chart finds out of a cluster while it is rendered: a stand-in for the API server that knows some Secrets.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use cargo_metadata::camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};

use super::render::Helm;
use super::{BASE, CHART};

/// By name, with their keys.
type Secrets = &'static [(&'static str, &'static [&'static str])];

const REQUEST_LIMIT: Duration = Duration::from_secs(10); // one request of helm on loopback

/// With these values, a cluster whose Secrets hold these keys, and what is said of those that are missing; nothing is said when
/// there are all.
const CASES: &[(&str, Secrets, Option<&str>)] = &[
    (
        "auth: {existingSecret: own}\nworker: {scaling: fixed}",
        &[("own", &["admin-key", "worker-key"])],
        Some("auth.existingSecret names the Secret own, and it lacks scale-key ("),
    ),
    (
        "auth: {existingSecret: own}\nworker: {scaling: fixed}",
        &[("own", &["admin-key", "worker-key", "scale-key"])],
        None,
    ),
    (
        "auth: {existingSecret: own}\npostgres: {enabled: true}\ninference: {enabled: true}",
        &[("own", &["admin-key", "worker-key", "scale-key"])],
        Some("it lacks secrets-key, run-token-key ("),
    ),
    (
        "secrets: {existingSecret: own}",
        &[("own", &["another.pem"])],
        Some("secrets.existingSecret names the Secret own, and it lacks app.pem ("),
    ),
    ("secrets: {existingSecret: own}", &[("own", &["app.pem"])], None),
    // It may come later.
    ("secrets: {existingSecret: own}", &[], None),
    (
        "redis: {enabled: true, existingSecret: own}",
        &[("own", &["password"])],
        Some("redis.existingSecret names the Secret own, and it lacks broker-password ("),
    ),
    (
        "postgres: {enabled: true, existingSecret: own}",
        &[("own", &["password"])],
        Some("postgres.existingSecret names the Secret own, and it lacks database-password ("),
    ),
];

/// What every one of these sentences has.
const SENTENCE: &str = "and it lacks";

pub(super) fn lacking_keys_are_named(root: &Utf8Path, helm: &Helm) -> anyhow::Result<()> {
    let mut wrong = Vec::new();
    for (values, secrets, wanted) in CASES {
        let cluster = Cluster::start(secrets)?;
        let folder = tempfile::tempdir()?;
        let file = Utf8PathBuf::try_from(folder.path().join("values.yaml"))?;
        fs_err::write(&file, values)?;
        let said = helm.template_asking(&root.join(CHART), &[root.join(BASE), file], &cluster.address)?;
        ensure!(cluster.was_asked(), "helm asked the cluster for no Secret: {said:?}");
        // What such a cluster cannot tell fails later, after everything was rendered.
        let why = said.err().unwrap_or_default();
        match wanted {
            Some(wanted) if why.contains(wanted) => {}
            None if !why.contains(SENTENCE) => {}
            _ => wrong.push(format!("{values}: `{why}`, wanted {wanted:?}")),
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("{} Secrets of a cluster are looked at, and their missing keys named", CASES.len());
    Ok(())
}

/// Ends with its value.
struct Cluster {
    address: String,
    asked: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
}

impl Cluster {
    fn start(secrets: Secrets) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("while starting a stand-in for a cluster")?;
        let address = listener.local_addr()?.to_string();
        let (asked, over) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (noted, ends) = (asked.clone(), over.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ends.load(Ordering::Relaxed) {
                    return;
                }
                // Helm tells of a connection that broke.
                let _ = stream.and_then(|stream| answer(stream, secrets, &noted));
            }
        });
        Ok(Self { address, asked, over })
    }

    fn was_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // It waits for one more.
        let _ = TcpStream::connect(&self.address);
    }
}

/// One request, and the connection's end.
fn answer(stream: TcpStream, secrets: Secrets, asked: &AtomicBool) -> std::io::Result<()> {
    stream.set_read_timeout(Some(REQUEST_LIMIT))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let path = first.split(' ').nth(1).unwrap_or_default();
    let path = path.split('?').next().unwrap_or_default();
    asked.fetch_or(path.contains("/secrets/"), Ordering::Relaxed);
    let (status, body) = match said(path, secrets) {
        Some(body) => ("200 OK", body),
        None => (
            "404 Not Found",
            json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404 }),
        ),
    };
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let mut stream = stream;
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())
}

fn said(path: &str, secrets: Secrets) -> Option<Value> {
    Some(match path {
        "/version" => json!({ "major": "1", "minor": "35", "gitVersion": "v1.35.0" }),
        "/api" => json!({ "kind": "APIVersions", "versions": ["v1"] }),
        "/apis" => json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [] }),
        "/api/v1" => json!({ "kind": "APIResourceList", "groupVersion": "v1", "resources": [
            { "name": "secrets", "singularName": "secret", "namespaced": true, "kind": "Secret", "verbs": ["get", "list"] },
        ] }),
        path => {
            let name = path.strip_prefix("/api/v1/namespaces/fettle/secrets/")?;
            let (_, keys) = secrets.iter().find(|(secret, _)| *secret == name)?;
            let data: serde_json::Map<String, Value> =
                keys.iter().map(|key| ((*key).to_owned(), "eA==".into())).collect();
            json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name, "namespace": "fettle" }, "data": data })
        }
    })
}
