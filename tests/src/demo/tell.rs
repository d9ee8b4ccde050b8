//! The demo's words on standard output.

use std::io::{ErrorKind, Write as _};

use tokio::time::Instant;

/// Tells the story with the time since it began. A reader that went away is no failure; the story then goes on in silence.
pub struct Teller {
    began: Instant,
    silent: bool,
}

impl Default for Teller {
    fn default() -> Self {
        Self { began: Instant::now(), silent: false }
    }
}

impl Teller {
    pub fn line(&mut self, text: &str) -> std::io::Result<()> {
        if self.silent {
            return Ok(());
        }
        let mut out = std::io::stdout().lock();
        match writeln!(out, "{text}").and_then(|()| out.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.silent = true;
                Ok(())
            }
            told => told,
        }
    }

    pub(super) fn title(&mut self, text: &str) -> std::io::Result<()> {
        self.line("")?;
        self.line(text)?;
        self.line(&"─".repeat(text.chars().count()))
    }

    /// Something that happened just now.
    pub(super) fn now(&mut self, text: &str) -> std::io::Result<()> {
        let elapsed = self.began.elapsed().as_secs_f32();
        self.line(&format!("{elapsed:6.1} s  {text}"))
    }

    /// Foreign text, set off by a bar.
    pub(super) fn quote(&mut self, text: &str) -> std::io::Result<()> {
        text.trim_end().lines().try_for_each(|line| self.line(format!("  │ {line}").trim_end()))
    }
}
