//! The official clients, as their makers publish them, in front of a scripted engine that calls a tool when it has one.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use fettle_tests::downloads;
use fettle_tests::world::{PATIENCE, Process, program};

const PYTHON: [&str; 3] = ["anthropic==2.14.0", "ollama==0.6.3", "openai==3.57.0"];
const NODE: [&str; 3] = ["@anthropic-ai/sdk@1.14.0", "ollama@0.6.4", "openai@7.59.0"];
/// Imports alone take seconds on a busy machine.
const ASKED: Duration = Duration::from_secs(120);
/// Of each language.
const QUESTIONS: usize = 27;

#[tokio::test]
async fn the_official_python_clients_work_unmodified() {
    let Some(packages) = downloads::python_packages("clients-of-models", &PYTHON) else { return };
    let mut clients = Command::new("python3");
    clients.arg(script("clients.py")).env("PYTHONPATH", packages).env("PYTHONDONTWRITEBYTECODE", "1");
    all_is_well(clients).await;
}

#[tokio::test]
async fn the_official_javascript_clients_work_unmodified() {
    let Some(packages) = downloads::npm_packages("clients-of-models", &NODE) else { return };
    // A module looks for its packages above itself, wherever it is run from.
    let home = tempfile::tempdir().unwrap();
    let copy = home.path().join("clients.mjs");
    fs_err::copy(script("clients.mjs"), &copy).unwrap();
    std::os::unix::fs::symlink(packages.join("node_modules"), home.path().join("node_modules")).unwrap();
    let mut clients = Command::new("node");
    clients.arg(copy);
    all_is_well(clients).await;
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("it/inference").join(name)
}

/// The clients ask a gateway, whose address is their last argument, and print a line for each question.
async fn all_is_well(mut clients: Command) {
    // It goes on until its standard input ends.
    let (input, _open) = std::io::pipe().unwrap();
    let mut gateway = Command::new(program("examples/scripted").unwrap());
    let gateway = Process::start_reading("the gateway", gateway.arg("0"), Stdio::from(input)).unwrap();
    let url = |line: &str| line.starts_with("http://").then(|| line.trim().to_owned());
    let url = gateway.logged("where it listens", PATIENCE, url).await.unwrap();
    let mut clients = Process::start("the clients", clients.arg(&url)).unwrap();
    let status = clients.ended(ASKED).await.unwrap();
    let said = clients.log();
    assert!(status.success(), "{}", said.join("\n"));
    let wrong: Vec<&String> = said.iter().filter(|line| !line.starts_with("ok ")).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(said.len(), QUESTIONS, "{said:#?}");
}
