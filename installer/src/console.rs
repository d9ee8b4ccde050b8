//! What people and scripts see while a run goes on: a line per step on standard error, JSON lines on standard output, and
//! the log.

use std::io::{IsTerminal as _, Write as _};

use camino::Utf8Path;
use fettle_app::ports::clock::Clock as _;
use fettle_runtime::system::SystemClock;
use fs_err::os::unix::fs::OpenOptionsExt as _;
use jiff::Timestamp;
use serde::Serialize;

use crate::journal::Step;
use crate::layout::LOGS;
use crate::run::{Event, Phase};

/// The log is begun anew when it is larger; one older file is kept.
const LOG_BYTES: u64 = 8 << 20;
const LOG: &str = "installer.jsonl";

/// One JSON line.
#[derive(Serialize)]
struct Line<'a> {
    ts: Timestamp,
    seq: u64,
    plan_id: &'a str,
    action: &'a str,
    phase: &'static str,
    status: &'static str,
    detail: &'a str,
}

pub struct Reporter {
    json: bool,
    /// What is written is rewritten in place.
    live: bool,
    plan_id: String,
    seq: u64,
    began: Timestamp,
}

impl Reporter {
    pub fn new(json: bool) -> Self {
        let live = std::io::stderr().is_terminal();
        Self { json, live, plan_id: String::new(), seq: 0, began: SystemClock.now() }
    }

    pub fn is_json(&self) -> bool {
        self.json
    }

    pub fn of_plan(&mut self, id: &str) {
        id.clone_into(&mut self.plan_id);
    }

    /// Tells of one step.
    pub fn step(&mut self, event: &Event<'_>) {
        let action = event.step.action();
        let description = action.describe();
        let what = match event.step {
            Step::Do { .. } => description.what,
            Step::Undo { .. } => format!("take back: {}", description.what),
        };
        let (phase, status, detail) = match &event.phase {
            Phase::Begins => ("forth", "begins", ""),
            Phase::Ends => ("forth", "done", ""),
            Phase::Fails(reason) => ("forth", "failed", reason.as_str()),
            Phase::TakesBack => ("back", "begins", ""),
            Phase::TakenBack => ("back", "done", ""),
        };
        self.line(&action.key(), phase, status, detail);
        let width = event.of.to_string().len();
        let place = format!("[{:>width$}/{}]", event.number, event.of);
        let now = SystemClock.now();
        match &event.phase {
            Phase::Begins => {
                self.began = now;
                self.part(&format!("{place} {what} …"), false);
            }
            Phase::TakesBack => {
                self.began = now;
                self.part(&format!("{place} take back: {what} …"), false);
            }
            Phase::Ends | Phase::TakenBack => {
                let took = now.duration_since(self.began).as_millis();
                self.part(&format!(" {took} ms\n"), true);
            }
            Phase::Fails(reason) => self.part(&format!(" FAILED\n        {reason}\n"), true),
        }
    }

    /// A sentence of its own.
    pub fn say(&mut self, sentence: &str) {
        let _ = writeln!(std::io::stderr().lock(), "{sentence}");
        self.line("", "", "said", sentence);
    }

    fn part(&self, text: &str, ends: bool) {
        let mut stderr = std::io::stderr().lock();
        // A person who watches sees at once what is waited for; a file gets whole lines, since both parts follow each other.
        let _ = write!(stderr, "{text}");
        if self.live || ends {
            let _ = stderr.flush();
        }
    }

    fn line(&mut self, action: &str, phase: &'static str, status: &'static str, detail: &str) {
        self.seq += 1;
        let line = Line { ts: SystemClock.now(), seq: self.seq, plan_id: &self.plan_id, action, phase, status, detail };
        let text = serde_json::to_string(&line).unwrap_or_default();
        if self.json {
            let _ = writeln!(std::io::stdout().lock(), "{text}");
        }
        // The journal is what counts; a log that cannot be written stops nothing.
        let _ = log(Utf8Path::new(LOGS), &text);
    }

    /// The last JSON line.
    pub fn summary(&mut self, summary: &serde_json::Value) {
        if self.json {
            let _ = writeln!(std::io::stdout().lock(), "{summary}");
        }
    }
}

fn log(folder: &Utf8Path, text: &str) -> std::io::Result<()> {
    // Made by the installation itself, and not again after it was taken back.
    if !folder.is_dir() || !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let path = folder.join(LOG);
    if fs_err::metadata(&path).is_ok_and(|found| found.len() > LOG_BYTES) {
        fs_err::rename(&path, folder.join(format!("{LOG}.1")))?;
    }
    let mut file = fs_err::OpenOptions::new().append(true).create(true).mode(0o640).open(&path)?;
    writeln!(file, "{text}")
}
