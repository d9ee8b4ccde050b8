//! The official clients, as their makers publish them, in front of a scripted engine that calls a tool when it has one.

use std::process::{Command, Stdio};
use std::time::Duration;

use fettle_tests::downloads;
use fettle_tests::world::{PATIENCE, Process, program};

const PACKAGES: [&str; 3] = ["anthropic==2.14.0", "ollama==0.6.3", "openai==3.57.0"];
/// Imports alone take seconds on a busy machine.
const ASKED: Duration = Duration::from_secs(120);
const QUESTIONS: usize = 27;

#[tokio::test]
async fn the_official_python_clients_work_unmodified() {
    let Some(packages) = downloads::python_packages("clients-of-models", &PACKAGES) else { return };
    // It goes on until its standard input ends.
    let (input, _open) = std::io::pipe().unwrap();
    let mut gateway = Command::new(program("examples/scripted").unwrap());
    let gateway = Process::start_reading("the gateway", gateway.arg("0"), Stdio::from(input)).unwrap();
    let url = |line: &str| line.starts_with("http://").then(|| line.trim().to_owned());
    let url = gateway.logged("where it listens", PATIENCE, url).await.unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/it/inference/clients.py");
    let mut clients = Command::new("python3");
    clients.args([script, &url]).env("PYTHONPATH", packages).env("PYTHONDONTWRITEBYTECODE", "1");
    let mut clients = Process::start("the clients", &mut clients).unwrap();
    let status = clients.ended(ASKED).await.unwrap();
    let said = clients.log();
    assert!(status.success(), "{}", said.join("\n"));
    let wrong: Vec<&String> = said.iter().filter(|line| !line.starts_with("ok ")).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(said.len(), QUESTIONS, "{said:#?}");
}
