//! What a person sees while a Run works: a line that moves on a terminal, plain lines elsewhere. All on standard error.

use std::io::{IsTerminal as _, Write as _};
use std::sync::{Mutex, PoisonError};

use fettle_agent::solve::Watch;
use fettle_domain::step::{StepKind, StepRecord};
use tokio::time::Instant;

/// Characters of a line that moves; longer ones would wrap and leave traces.
const LINE_CHARS: usize = 100;

pub(crate) struct Progress {
    started: Instant,
    terminal: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    phase: String,
    calls: u32,
    tokens: u64,
    streamed: u64,
    moving: bool,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), terminal: std::io::stderr().is_terminal(), state: Mutex::default() }
    }

    fn line(&self, text: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = std::io::stderr().lock();
        if std::mem::take(&mut state.moving) {
            let _ = write!(out, "\r\x1b[K");
        }
        let _ = writeln!(out, "{} {text}", self.clock());
    }

    /// On a terminal, one line that is written over.
    fn moving(&self, state: &mut State, text: &str) {
        if self.terminal {
            let text: String = text.chars().take(LINE_CHARS).collect();
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K{} {text}", self.clock());
            let _ = std::io::stderr().flush();
            state.moving = true;
        }
    }

    fn clock(&self) -> String {
        let seconds = self.started.elapsed().as_secs();
        format!("{:>2}:{:02}", seconds / 60, seconds % 60)
    }

    /// Ends a line that moves.
    pub(crate) fn done(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut state.moving) {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K");
        }
    }
}

impl Watch for Progress {
    fn phase(&self, name: &str) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).phase = name.to_owned();
        self.line(&format!("── {}", name.replace('_', "-")));
    }

    fn step(&self, step: &StepRecord, _replayed: bool) {
        {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.calls = step.spent.calls;
            state.tokens = step.spent.generated_tokens;
            state.streamed = 0;
        }
        let what = match step.kind {
            StepKind::ModelCall => format!("   {} ({} calls so far)", step.title, step.spent.calls),
            _ => format!("   {}", step.title),
        };
        self.line(&what);
    }

    fn streamed(&self, text: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.streamed += text.len() as u64;
        let text = format!("   {}: the model writes … {} characters", state.phase, state.streamed);
        self.moving(&mut state, &text);
    }

    fn note(&self, text: &str) {
        self.line(&format!("   {text}"));
    }
}

/// An error for a person: what, and each cause on a line of its own.
pub(crate) fn complain(error: &anyhow::Error) {
    let mut out = std::io::stderr().lock();
    let _ = writeln!(out, "error: {error}");
    for cause in error.chain().skip(1) {
        let _ = writeln!(out, "  because: {cause}");
    }
}
