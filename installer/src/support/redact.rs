//! Takes secrets out of text that leaves the host: those that are known, in any disguise, and what looks like one.

use std::sync::LazyLock;

use fettle_domain::secret::{KnownSecrets, scan};
use regex::Regex;

/// A value after a word that announces a secret, in a header, a variable, a flag or a query.
static ANNOUNCED: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r#"(?i)((?:authorization|proxy-authorization|cookie|[a-z0-9_.-]*(?:secret|token|passw(?:or)?d|passphrase|api[_-]?key|private[_-]?key|access[_-]?key|credential)[a-z0-9_.-]*)["']?\s*(?:=>|:=|[:=])\s*)(?:(?:bearer|basic|token)\s+)?("[^"]*"|'[^']*'|[^\s,;&"']+)"#,
    )
    .expect("a constant pattern")
});
/// A scheme of authorization without its header.
static BEARER: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9+/_=.~-]{8,}").expect("a constant pattern"));
/// Whoever a URL names before its host.
static URL_USER: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?i)\b([a-z][a-z0-9+.-]*://)[^/\s@]+@").expect("a constant pattern"));

const WITHHELD: &str = "[withheld]";

/// A key that names a file, in our own configuration: its value is a path.
fn is_path(key: &str) -> bool {
    key.trim_end_matches(['=', ':', ' ', '"', '\'']).to_lowercase().ends_with("_file")
}

/// The text without secrets. A line in which one is left after all replacements goes as a whole; and when one is spread over
/// lines, all of it.
pub(super) fn redact(known: &KnownSecrets, text: &str) -> String {
    let lines: Vec<String> = text.lines().map(|line| redact_line(known, line)).collect();
    let mut redacted = lines.join("\n");
    if text.ends_with('\n') {
        redacted.push('\n');
    }
    // What is known is searched for in the whole as well, without its blanks and ends of lines.
    let spread = scan(known, "", &redacted).into_iter().find(|finding| finding.rule.starts_with("known secret"));
    match spread {
        None => redacted,
        Some(_) => "[all of it withheld: a known secret is spread over its lines]\n".to_owned(),
    }
}

fn redact_line(known: &KnownSecrets, line: &str) -> String {
    if let Some(finding) = scan(known, "", line).first() {
        return format!("[line withheld: {}]", finding.rule);
    }
    let line = ANNOUNCED.replace_all(line, |found: &regex::Captures<'_>| {
        if is_path(&found[1]) { found[0].to_owned() } else { format!("{}{WITHHELD}", &found[1]) }
    });
    let line = BEARER.replace_all(&line, |found: &regex::Captures<'_>| format!("{} {WITHHELD}", &found[1]));
    URL_USER.replace_all(&line, format!("${{1}}{WITHHELD}@")).into_owned()
}

/// A configuration as its keys and values, without the comments: people leave in them what they tried.
pub(super) fn configuration(known: &KnownSecrets, text: &str) -> String {
    match text.parse::<toml::Table>() {
        Ok(table) => redact(known, &toml::to_string_pretty(&table).unwrap_or_default()),
        Err(error) => format!("# it cannot be read as TOML: {}\n", redact(known, error.message())),
    }
}

/// Replaces what names this host, its users and addresses. Loopback and our own user stay: they tell nothing.
pub(super) fn anonymise(text: &str, names: &[(String, &'static str)]) -> String {
    static ADDRESS: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"\b(?:\d{1,3}\.){3}\d{1,3}\b|\b(?:[0-9a-fA-F]{1,4}:){3,7}(?::?[0-9a-fA-F]{1,4})\b|\b(?:[0-9a-fA-F]{1,4}:){1,6}:(?:[0-9a-fA-F]{1,4}(?::[0-9a-fA-F]{1,4})*)?")
            .expect("a constant pattern")
    });
    static MAIL: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"\b[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,}\b").expect("a constant pattern")
    });
    static HOME: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"/home/[^/\s:]+").expect("a constant pattern"));
    let mut text = MAIL.replace_all(text, "[mail]").into_owned();
    text = ADDRESS
        .replace_all(&text, |found: &regex::Captures<'_>| match &found[0] {
            own if own.starts_with("127.") || own == "0.0.0.0" => own.to_owned(),
            _ => "[address]".to_owned(),
        })
        .into_owned();
    text = HOME.replace_all(&text, "/home/[user]").into_owned();
    for (name, stands_for) in names {
        text = text.replace(name.as_str(), stands_for);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const CANARY: &str = "canary-7f9d-b1e2";

    fn known() -> KnownSecrets {
        KnownSecrets::new([("worker.key", CANARY)])
    }

    #[test]
    fn known_secrets_go_in_any_disguise_and_what_is_beside_them_stays() {
        for line in [CANARY.to_owned(), format!("key={CANARY}."), hex::encode(CANARY), CANARY.to_uppercase()] {
            let redacted = redact(&known(), &format!("before\n{line}\nafter\n"));
            assert!(redacted.starts_with("before\n[") && redacted.ends_with("after\n"), "{redacted}");
        }
        let spread = format!("{}\n{}\n", &CANARY[..8], &CANARY[8..]);
        assert!(redact(&known(), &spread).starts_with("[all of it withheld"));
    }

    #[test]
    fn what_looks_like_a_secret_goes_and_ordinary_lines_stay() {
        for line in [
            "Authorization: Bearer q8Zr2LxW0vTn",
            "GET /x?access_token=q8Zr2LxW0vTn&y=1",
            "FETTLE_API_KEY=q8Zr2LxW0vTn",
            "password: 'q8Zr2LxW0vTn'",
            "{\"client_secret\": \"q8Zr2LxW0vTn\"}",
            "clone https://q8Zr2LxW0vTn@git.example.org/x",
            "clone https://me:q8Zr2LxW0vTn@git.example.org/x",
            "cookie: session=q8Zr2LxW0vTn",
            "--token q8Zr2LxW0vTn was given as bearer q8Zr2LxW0vTn",
        ] {
            let redacted = redact(&known(), line);
            assert!(redacted.contains("withheld"), "{redacted}");
            let last = redacted.replace("--token q8Zr2LxW0vTn", "");
            assert!(!last.contains("q8Zr2LxW0vTn"), "{redacted}");
        }
        for line in [
            "leased job_1 to worker-1",
            "worker_key_file = \"secrets/worker.key\"",
            "1024 context tokens",
            "https://example.org/x",
        ] {
            assert_eq!(redact(&known(), line), line);
        }
    }

    #[test]
    fn a_configuration_keeps_its_keys_and_loses_its_comments() {
        let text = format!("# was {CANARY}\n[auth]\nworker_key_file = \"secrets/worker.key\" # {CANARY}\n");
        assert_eq!(configuration(&known(), &text), "[auth]\nworker_key_file = \"secrets/worker.key\"\n");
        assert!(!configuration(&known(), &format!("x = {CANARY}\n")).contains(CANARY));
    }

    #[test]
    fn who_and_where_is_not_told_when_asked_for() {
        let names = [("node-17".to_owned(), "[host]")];
        let home = "/home";
        let text =
            format!("node-17 10.1.2.3 127.0.0.1:8081 0.0.0.0 a.b@example.org {home}/ada/x fe80::1 12:30:45 0.1.0\n");
        assert_eq!(
            anonymise(&text, &names),
            "[host] [address] 127.0.0.1:8081 0.0.0.0 [mail] /home/[user]/x [address] 12:30:45 0.1.0\n"
        );
    }
}
