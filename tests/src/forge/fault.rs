//! Calls that go wrong, chosen by pattern and count.

use std::time::Duration;

/// One way in which the matching calls go wrong.
#[derive(Debug, Clone)]
pub struct Fault {
    method: String,
    path: String,
    first: u32,
    times: u32,
    seen: u32,
    act: Act,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Answers with this status; nothing was applied.
    Fail(u16),
    /// Applies, then answers with this status.
    FailAfter(u16),
    /// Cuts the connection; nothing was applied.
    Drop,
    /// Applies, then cuts the connection without an answer.
    DropAfter,
    /// Never answers; nothing was applied.
    Hang,
    /// Applies and never answers.
    HangAfter,
    /// Answers as it should, but so much later.
    Delay(Duration),
    /// 429 with `Retry-After` in seconds.
    TooMany { retry_after: u64 },
    /// 403 for the hourly limit, with the reset so many seconds ahead.
    Exhausted { reset_in: u64 },
    /// Answers as it should, and says that so many requests are left of the hour's.
    Left(u64),
    /// 403 for the secondary limit, with `Retry-After` in seconds when given.
    Secondary { retry_after: Option<u64> },
    /// Applies and answers with the right status and half of the body.
    Garble,
}

impl Fault {
    /// The first call of `method` to `path`, in which `*` is any one segment and a last `**` is any rest.
    pub fn on(method: &str, path: &str, act: Act) -> Self {
        Self { method: method.to_owned(), path: path.to_owned(), first: 1, times: 1, seen: 0, act }
    }

    /// Starts with the `n`th matching call, counted from 1.
    pub fn nth(self, n: u32) -> Self {
        Self { first: n, ..self }
    }

    /// Goes wrong so many times in a row.
    pub fn times(self, times: u32) -> Self {
        Self { times, ..self }
    }

    pub(super) fn is_spent(&self) -> bool {
        self.seen >= self.first - 1 + self.times
    }

    /// Counts the call and says what goes wrong with it.
    pub(super) fn strike(&mut self, method: &str, path: &str) -> Option<Act> {
        if self.method != method || !matches(&self.path, path) {
            return None;
        }
        let due = !self.is_spent() && self.seen + 1 >= self.first;
        self.seen = self.seen.saturating_add(1);
        due.then_some(self.act)
    }
}

fn matches(pattern: &str, path: &str) -> bool {
    let (mut pattern, mut path) = (pattern.split('/'), path.split('/'));
    loop {
        match (pattern.next(), path.next()) {
            (Some("**"), _) | (None, None) => return true,
            (Some("*"), Some(_)) => {}
            (Some(wanted), Some(found)) if wanted == found => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_strikes_the_wanted_calls_only() {
        let mut fault = Fault::on("POST", "/repos/*/*/pulls", Act::Hang).nth(2).times(2);
        assert_eq!(fault.strike("GET", "/repos/o/r/pulls"), None);
        assert_eq!(fault.strike("POST", "/repos/o/r/pulls/1"), None);
        let struck: Vec<bool> = (0..5).map(|_| fault.strike("POST", "/repos/o/r/pulls").is_some()).collect();
        assert_eq!(struck, [false, true, true, false, false]);
        assert!(fault.is_spent());
        assert!(matches("/o/**", "/o/r.git/info/refs"));
    }
}
