//! Pods of a cluster: their names, and which lines of their logs people may read.

use std::fmt;

use crate::outgoing::visible;
use crate::secret::{self, KnownSecrets};

/// Of a name in Kubernetes (RFC 1123, a subdomain).
const MAX_NAME_BYTES: usize = 253;
/// Stands where a line was taken out.
pub const HIDDEN_LINE: &str = "(a line that may hold a secret is not shown)";

/// A name that stands for itself in a path: small letters, digits, dots and dashes, and no dot or dash at either end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodName(String);

impl PodName {
    pub fn parse(text: &str) -> Option<Self> {
        let sign = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let part = |part: &str| {
            let bytes = part.as_bytes();
            let ends = bytes.first().zip(bytes.last()).is_some_and(|(first, last)| sign(*first) && sign(*last));
            ends && bytes.iter().all(|byte| sign(*byte) || *byte == b'-')
        };
        (text.len() <= MAX_NAME_BYTES && text.split('.').all(part)).then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A log as people may read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readable {
    /// Without control characters.
    pub text: String,
    /// Lines that were taken out.
    pub hidden: usize,
}

/// A line of a key in PEM has 64 such characters, of base64 elsewhere 76.
const BASE64_LINE: usize = 40;

/// Takes out of `log` each line that gives a secret away, and the whole of a private key, of which a log may begin or end in the
/// middle; all of it where another secret is spread over lines.
pub fn readable(known: &KnownSecrets, log: &str) -> Readable {
    let text = visible(log);
    let is_harmless = |text: &str| secret::scan(known, "log", text).is_empty();
    let all: Vec<&str> = text.lines().collect();
    let keys = of_keys(&all);
    if !keys.contains(&true) && is_harmless(&text) {
        return Readable { text, hidden: 0 };
    }
    let mut hidden = 0;
    let lines: Vec<&str> = all
        .iter()
        .zip(keys)
        .map(|(line, of_key)| {
            if !of_key && is_harmless(line) {
                return *line;
            }
            hidden += 1;
            HIDDEN_LINE
        })
        .collect();
    let rest = lines.join("\n");
    if is_harmless(&rest) {
        return Readable { text: rest, hidden };
    }
    Readable { text: HIDDEN_LINE.to_owned(), hidden: lines.len() }
}

/// Which lines are or may be of a private key: from its beginning to its end, before an end whose beginning is not there, and
/// whatever looks like a line of one.
fn of_keys(lines: &[&str]) -> Vec<bool> {
    let says = |line: &str, word: &str| line.contains(word) && line.contains("PRIVATE KEY");
    let foreign = |c: char| !(c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '='));
    let mixed = |run: &str| {
        // A digest in hex or a word is none.
        let has = |one: fn(&u8) -> bool| run.as_bytes().iter().any(one);
        has(u8::is_ascii_uppercase) && has(u8::is_ascii_lowercase) && has(u8::is_ascii_digit)
    };
    let body = |line: &str| line.split(foreign).any(|run| run.len() >= BASE64_LINE && mixed(run));
    let mut hidden: Vec<bool> = lines.iter().map(|line| body(line)).collect();
    let mut from = None;
    let mut seen = false;
    for (nth, line) in lines.iter().enumerate() {
        if says(line, "-----BEGIN") {
            from = Some(nth);
            seen = true;
        }
        if says(line, "-----END") {
            // What stands before it is the key's if nothing says where that began.
            let from = from.take().unwrap_or(if seen { nth } else { 0 });
            hidden[from..=nth].fill(true);
            seen = true;
        }
    }
    if let Some(from) = from {
        hidden[from..].fill(true);
    }
    hidden
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CANARY: &str = "canary-51&d9b!e2#4a1|8x";

    fn known() -> KnownSecrets {
        KnownSecrets::new([("webhook", CANARY)])
    }

    #[test]
    fn a_name_is_one_of_kubernetes_and_never_a_path() {
        for good in ["fettle-worker-7c9f4d5b6-x2x9p", "a", "a.b-c.d", "0"] {
            assert_eq!(PodName::parse(good).unwrap().as_str(), good);
        }
        let long = "a".repeat(MAX_NAME_BYTES + 1);
        for bad in ["", ".", "..", "a/b", "a%2fb", "-a", "a-", "a..b", "A", "a b", "a?b", "ä", "a\n", long.as_str()] {
            assert_eq!(PodName::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_harmless_log_stays_and_a_secret_takes_its_line_with_it() {
        let log = "one\n\u{1b}[31mtwo\n";
        assert_eq!(readable(&known(), log), Readable { text: "one\n[31mtwo\n".to_owned(), hidden: 0 });
        let log = format!("one\nthe key is {CANARY}, says it\nthree");
        let text = format!("one\n{HIDDEN_LINE}\nthree");
        assert_eq!(readable(&known(), &log), Readable { text, hidden: 1 });
    }

    #[test]
    fn of_a_private_key_no_line_is_seen_wherever_the_log_begins_or_ends() {
        let body = "MIIEowIBAAKCAQEAx7d2Xw0Pq8yT5sJv3kLmNcRbUaZhGfEiOoWnQtBy+/K1pVrD\n";
        let key =
            format!("-----BEGIN RSA PRIVATE KEY-----\n{}c2hvcnQ=\n-----END RSA PRIVATE KEY-----\n", body.repeat(4));
        let log = format!("one\n{key}two\n");
        for (log, left) in [(log.as_str(), "two"), (&log[40..], "two"), (&log[..150], "one")] {
            let shown = readable(&known(), log);
            assert!(!shown.text.contains("MII") && !shown.text.contains("c2hv"), "{}", shown.text);
            assert!(shown.text.contains(left) && shown.hidden >= 2, "{}", shown.text);
        }
        let whole = readable(&known(), &log[..]).text;
        assert!(whole.starts_with("one\n") && whole.ends_with("two"), "{whole}");
    }

    proptest! {
        // Spread over lines, no line of it gives it away.
        #[test]
        fn no_secret_is_left_wherever_lines_end_in_it(
            cuts in prop::collection::btree_set(1..CANARY.len(), 0..3), before in "[a-z \n]{0,40}", after in "[a-z \n]{0,40}",
        ) {
            let mut spread: Vec<char> = CANARY.chars().collect();
            cuts.iter().rev().for_each(|cut| spread.insert(*cut, '\n'));
            let spread: String = spread.into_iter().collect();
            let shown = readable(&known(), &format!("{before}{spread}{after}"));
            let joined: String = shown.text.split('\n').collect();
            prop_assert!(!joined.contains(CANARY), "{}", shown.text);
            prop_assert!(shown.hidden > 0);
        }
    }
}
