//! How far work on files is: a line that moves on a terminal, and nothing elsewhere.

use std::time::Duration;

use fettle_engines::models::Progress;
use fettle_placement::quantity::Bytes;
use tokio::time::Instant;

use crate::progress::StatusLine;

const REDRAW: Duration = Duration::from_millis(200);

pub(super) struct Bar {
    line: StatusLine,
    drawn: Option<Instant>,
    /// When the first was seen, and how much was done then: a beginning that was there already is no speed.
    began: Option<(Instant, u64)>,
}

impl Bar {
    pub(super) fn new() -> Self {
        Self { line: StatusLine::new(), drawn: None, began: None }
    }

    pub(super) fn show(&mut self, seen: Progress<'_>) {
        let (began, first) = *self.began.get_or_insert((Instant::now(), seen.done));
        if self.drawn.is_some_and(|drawn| drawn.elapsed() < REDRAW) {
            return;
        }
        self.drawn = Some(Instant::now());
        self.line.show(&told(seen, seen.done - first.min(seen.done), began.elapsed()));
    }

    pub(super) fn clear(&mut self) {
        self.line.clear();
    }
}

fn told(seen: Progress<'_>, since: u64, elapsed: Duration) -> String {
    let (done, total) = (Bytes::new(seen.done), Bytes::new(seen.total));
    let percent = u128::from(seen.done) * 100 / u128::from(seen.total.max(1));
    let speed = match elapsed.as_millis() {
        0 => String::new(),
        millis => {
            let speed = u64::try_from(u128::from(since) * 1000 / millis).unwrap_or(u64::MAX);
            format!(", {}/s", Bytes::new(speed))
        }
    };
    format!("{percent:>3}% {}: {done} of {total}{speed}", seen.file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_before_is_progress_and_no_speed() {
        let seen = Progress { file: "a.gguf", done: 3 << 30, total: 4 << 30 };
        assert_eq!(told(seen, 1 << 30, Duration::from_secs(10)), " 75% a.gguf: 3.0 GiB of 4.0 GiB, 102 MiB/s");
        assert_eq!(told(seen, 0, Duration::ZERO), " 75% a.gguf: 3.0 GiB of 4.0 GiB");
    }
}
