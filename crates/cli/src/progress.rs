//! What a person sees while a Run works: a line that moves on a terminal, plain lines elsewhere. All on standard error.

use std::io::{IsTerminal as _, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use fettle_agent::solve::Watch;
use fettle_domain::outgoing::visible;
use fettle_domain::step::{StepKind, StepRecord};
use tokio::time::Instant;

/// The moving line is written over this often at most: tokens come faster than anybody reads.
const REDRAW: Duration = Duration::from_millis(100);
/// Of a terminal that does not tell.
const DEFAULT_COLUMNS: u16 = 80;

/// The last line of the terminal, written over again and again. Elsewhere there is none.
pub(crate) struct StatusLine {
    terminal: bool,
    shown: bool,
}

impl StatusLine {
    pub(crate) fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), shown: false }
    }

    pub(crate) fn is_terminal(&self) -> bool {
        self.terminal
    }

    pub(crate) fn show(&mut self, text: &str) {
        if self.terminal {
            // A line that wraps would leave traces.
            let room = usize::from(columns(std::io::stderr())).saturating_sub(1);
            let text: String = one_line(text).chars().take(room).collect();
            let mut out = std::io::stderr().lock();
            let _ = write!(out, "\r\x1b[K{text}").and_then(|()| out.flush());
            self.shown = true;
        }
    }

    /// Makes room for other output.
    pub(crate) fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            let mut out = std::io::stderr().lock();
            let _ = write!(out, "\r\x1b[K").and_then(|()| out.flush());
        }
    }
}

/// How wide a terminal is.
pub(crate) fn columns(terminal: impl std::os::fd::AsFd) -> u16 {
    rustix::termios::tcgetwinsize(terminal)
        .ok()
        .map(|size| size.ws_col)
        .filter(|columns| *columns > 0)
        .unwrap_or(DEFAULT_COLUMNS)
}

/// Foreign text as one line that cannot move a terminal's cursor.
pub(crate) fn one_line(text: &str) -> String {
    visible(text).replace(['\n', '\t'], " ").trim().to_owned()
}

/// `1:02`, minutes and seconds.
pub(crate) fn clock(elapsed: Duration) -> String {
    let seconds = elapsed.as_secs();
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

/// The progress of a Run in this process.
pub(crate) struct Progress {
    started: Instant,
    state: Mutex<State>,
}

struct State {
    phase: String,
    streamed: usize,
    status: StatusLine,
    drawn: Option<Instant>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let state = State { phase: String::new(), streamed: 0, status: StatusLine::new(), drawn: None };
        Self { started: Instant::now(), state: Mutex::new(state) }
    }

    fn line(&self, state: &mut State, text: &str) {
        state.status.clear();
        let _ = writeln!(
            std::io::stderr().lock(),
            "{:>5} {}",
            clock(self.started.elapsed()),
            visible(text).replace('\n', " ")
        );
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Ends a line that moves.
    pub(crate) fn done(&self) {
        self.change(|state| state.status.clear());
    }
}

impl Watch for Progress {
    fn phase(&self, name: &str) {
        self.change(|state| {
            state.phase = name.replace('_', "-");
            let text = format!("── {}", state.phase);
            self.line(state, &text);
        });
    }

    fn step(&self, step: &StepRecord, _replayed: bool) {
        let text = match step.kind {
            StepKind::ModelCall => format!("   {} ({} calls so far)", step.title, step.spent.calls),
            _ => format!("   {}", step.title),
        };
        self.change(|state| {
            state.streamed = 0;
            self.line(state, &text);
        });
    }

    fn streamed(&self, text: &str) {
        self.change(|state| {
            state.streamed += text.chars().count();
            if state.drawn.is_none_or(|drawn| drawn.elapsed() >= REDRAW) {
                state.drawn = Some(Instant::now());
                let (elapsed, phase, count) = (clock(self.started.elapsed()), &state.phase, state.streamed);
                let text = format!("{elapsed:>5}    {phase}: the model writes … {count} characters");
                state.status.show(&text);
            }
        });
    }

    fn note(&self, text: &str) {
        self.change(|state| self.line(state, &format!("   {text}")));
    }
}

/// A line beside a command's own output.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// An error for a person: what, and each cause on a line of its own.
pub(crate) fn complain(error: &anyhow::Error) {
    let mut out = std::io::stderr().lock();
    let _ = writeln!(out, "error: {error}");
    for cause in error.chain().skip(1) {
        let _ = writeln!(out, "  because: {cause}");
    }
}

/// Nobody reads our output any more, as in `fettle tasks | head`: no error of ours.
pub(crate) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_cannot_move_the_cursor_and_stays_on_its_line() {
        assert_eq!(one_line("view \u{1b}[2Ja\rb\nc\u{202e}d\te \n"), "view [2Jab cd e");
        assert_eq!(clock(Duration::from_secs(62)), "1:02");
    }
}
