//! Finds secrets in what is about to leave: those the appliance knows, in any common disguise, and what looks like one.
//!
//! Gives rule names and never the secret itself, so that a finding can be logged and shown.

use std::sync::LazyLock;

use regex::Regex;

use crate::unseen::is_ignorable;

/// A known secret shorter than this is not searched for: it would be found everywhere.
pub const MIN_KNOWN_SECRET_BYTES: usize = 8;

/// A finding: the rule and where, never what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub rule: String,
    /// What was scanned: `title`, `src/main.rs`, …
    pub place: String,
}

/// The secrets the appliance holds, prepared for search.
#[derive(Default)]
pub struct KnownSecrets {
    /// (name of the secret, disguises without blanks)
    needles: Vec<(String, Vec<String>)>,
}

impl std::fmt::Debug for KnownSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.needles.iter().map(|(name, _)| name)).finish()
    }
}

impl KnownSecrets {
    /// From (name, value) pairs. A value of several lines (a private key) is also searched for line by line.
    pub fn new<'a>(secrets: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut needles: Vec<(String, Vec<String>)> = Vec::new();
        for (name, value) in secrets {
            let value = value.trim();
            let lines = value.lines().map(str::trim).filter(|line| !line.starts_with("-----"));
            let parts: Vec<&str> =
                if value.contains('\n') { lines.filter(|l| l.len() >= 24).collect() } else { vec![value] };
            let disguises =
                parts.into_iter().filter(|p| p.len() >= MIN_KNOWN_SECRET_BYTES).flat_map(disguises).collect();
            needles.push((name.to_owned(), disguises));
        }
        Self { needles }
    }

    fn find_in(&self, text: &str, place: &str, findings: &mut Vec<Finding>) {
        let squashed = squash(text);
        let lower = squashed.to_lowercase();
        for (name, needles) in &self.needles {
            if needles.iter().any(|needle| squashed.contains(needle.as_str()) || lower.contains(&needle.to_lowercase()))
            {
                findings.push(Finding { rule: format!("known secret `{name}`"), place: place.to_owned() });
            }
        }
    }
}

/// Words that a credential, or what gives one away, begins with or has near its beginning; in small letters.
const BEGINNINGS: [&str; 16] = [
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "github_pat_",
    "glpat-",
    "akia",
    "asia",
    "aiza",
    "xox",
    "_live_",
    "eyj",
    "-----begin",
    "sk-",
    "://",
];
/// The same for values that are assigned.
const NAMES: [&str; 5] = ["secret", "token", "passwd", "password", "key"];
/// So many characters after such a word it is known whether a credential follows: the longest forges make has 93.
const WINDOW: usize = 160;
/// What stands before such a word and belongs to it, such as a URL's scheme.
const LEAD: usize = 24;

/// Up to where `text`, in which [`scan`] finds nothing, cannot become a part of a secret by what follows it. In bytes.
pub fn settled(known: &KnownSecrets, text: &str) -> usize {
    let chars: Vec<(usize, char)> =
        text.char_indices().filter(|(_, c)| !is_filler(*c)).map(|(at, c)| (at, c.to_ascii_lowercase())).collect();
    let words: Vec<char> = chars.iter().map(|(_, c)| *c).collect();
    let needles = known.needles.iter().flat_map(|(_, needles)| needles);
    let of_known = needles.filter_map(|needle| unfinished(&words, needle.to_ascii_lowercase().chars().collect()));
    let of_shape = BEGINNINGS.iter().chain(&NAMES).filter_map(|word| begun(&chars, &words, word));
    let from = of_known.chain(of_shape).min();
    from.map_or(text.len(), |from| chars[from].0)
}

/// Where a beginning of `needle` stands at the end of `words`, the longest such beginning.
fn unfinished(words: &[char], needle: Vec<char>) -> Option<usize> {
    let first = (words.len() + 1).saturating_sub(needle.len());
    (first..words.len()).find(|&from| needle.starts_with(&words[from..]))
}

/// Where `word`, or a beginning of it at the very end, stands so near the end that a credential may still follow.
fn begun(chars: &[(usize, char)], words: &[char], word: &str) -> Option<usize> {
    let word: Vec<char> = word.chars().collect();
    let first = words.len().saturating_sub(WINDOW);
    let at = (first..words.len()).find(|&from| {
        let rest = &words[from..];
        rest.starts_with(&word) || word.starts_with(rest)
    })?;
    let belongs = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '+');
    let touches =
        |from: &usize| from + 1 == words.len() || chars[*from].0 + chars[*from].1.len_utf8() == chars[from + 1].0;
    let lead = (0..at).rev().take(LEAD).take_while(|from| belongs(&words[*from]) && touches(from)).count();
    Some(at - lead)
}

/// Blanks, quotes and joiners with which one value is spread over lines or strings; what nobody sees, which
/// [`crate::outgoing`] puts in itself; and the bar that it exchanges.
fn is_filler(c: char) -> bool {
    c.is_whitespace() || is_ignorable(c) || matches!(c, '"' | '\'' | '`' | '+' | '\\' | ',' | '|' | '¦')
}

fn squash(text: &str) -> String {
    text.chars().filter(|c| !is_filler(*c)).collect()
}

/// The value itself, as hexadecimal, URL-encoded, reversed and base64 at each of the three alignments.
fn disguises(value: &str) -> Vec<String> {
    let mut all = vec![
        squash(value),
        hex::encode(value),
        squash(
            &value
                .bytes()
                .map(|b| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") })
                .collect::<String>(),
        ),
        squash(&value.chars().rev().collect::<String>()),
    ];
    for alphabet in [STANDARD, URL_SAFE] {
        for lead in 0..3 {
            all.push(squash(&base64_core(value.as_bytes(), lead, alphabet)));
        }
    }
    all.retain(|needle| needle.len() >= MIN_KNOWN_SECRET_BYTES);
    all.sort();
    all.dedup();
    all
}

const STANDARD: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const URL_SAFE: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// The base64 characters that depend only on `value` when `lead` unknown bytes stand before it and any after it.
fn base64_core(value: &[u8], lead: usize, alphabet: &[u8; 64]) -> String {
    let mut bytes = vec![0; lead];
    bytes.extend_from_slice(value);
    let whole_bits = bytes.len() * 8;
    let first = (lead * 8).div_ceil(6);
    (first..whole_bits / 6)
        .map(|sextet| {
            let index = (0..6).fold(0_usize, |acc, bit| {
                let at = sextet * 6 + bit;
                acc << 1 | usize::from(bytes[at / 8] >> (7 - at % 8) & 1)
            });
            char::from(alphabet[index])
        })
        .collect()
}

type Shapes = Vec<(&'static str, Regex)>;

/// Credentials whose beginning is a word of their own, so that they are known even in text without blanks and quotes.
static TOKENS: LazyLock<Shapes> = LazyLock::new(|| {
    shapes(&[
        ("GitHub token", r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})"),
        ("GitLab token", r"\bglpat-[A-Za-z0-9_-]{20,}"),
        ("AWS access key", r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
        ("Google API key", r"\bAIza[A-Za-z0-9_-]{35}\b"),
        ("Slack token", r"\bxox[abposr]-[A-Za-z0-9-]{10,}"),
        ("Stripe key", r"\b[rs]k_live_[A-Za-z0-9]{20,}"),
        ("JSON web token", r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"),
    ])
});

/// Credentials whose shape ordinary words take on as soon as the blanks between them are gone.
static PHRASES: LazyLock<Shapes> = LazyLock::new(|| {
    shapes(&[
        ("private key", r"-----BEGIN (?:[A-Z0-9 ]+ )?PRIVATE KEY(?: BLOCK)?-----"),
        ("OpenAI or Anthropic key", r"\bsk-(?:ant-|proj-)?[A-Za-z0-9_-]{32,}"),
        ("URL with password", r"\b[a-z][a-z0-9+.-]*://[^/\s:@]+:[^/\s:@$<{]{6,}@"),
    ])
});

fn shapes(patterns: &[(&'static str, &str)]) -> Shapes {
    patterns.iter().map(|(name, pattern)| (*name, Regex::new(pattern).expect("a constant pattern"))).collect()
}

static ASSIGNMENT: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r#"(?i)(?:secret|token|passwd|password|api[_-]?key|private[_-]?key|access[_-]?key)["']?\s*(?::|=|=>|:=)\s*["']([A-Za-z0-9+/_=.~-]{20,})["']"#)
        .expect("a constant pattern")
});

/// Bits a character above which an assigned value counts as random. English words are near 3.5.
const ENTROPY_BITS: f64 = 4.0;

/// All findings in one outgoing text.
pub fn scan(known: &KnownSecrets, place: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    known.find_in(text, place, &mut findings);
    let shown: String = text.chars().filter(|c| c.is_whitespace() || !is_ignorable(*c)).collect();
    let squashed = squash(text);
    let mut add = |rule: &str| findings.push(Finding { rule: rule.to_owned(), place: place.to_owned() });
    for (name, shape) in TOKENS.iter() {
        let in_squashed = || shape.find_iter(&squashed).any(|found| looks_random(found.as_str()));
        if shape.is_match(text) || shape.is_match(&shown) || in_squashed() {
            add(name);
        }
    }
    for (name, shape) in PHRASES.iter() {
        if shape.is_match(text) || shape.is_match(&shown) {
            add(name);
        }
    }
    let is_random = |text: &str| ASSIGNMENT.captures_iter(text).any(|c| entropy_bits(&c[1]) >= ENTROPY_BITS);
    if is_random(text) || is_random(&shown) {
        add("assigned random value");
    }
    findings
}

/// Words that follow a token's beginning in a text about tokens run together when blanks are dropped; they hold no
/// digit.
fn looks_random(text: &str) -> bool {
    text.bytes().any(|b| b.is_ascii_digit())
}

/// Shannon entropy a character.
fn entropy_bits(text: &str) -> f64 {
    let mut counts = [0_u32; 256];
    for byte in text.bytes() {
        counts[usize::from(byte)] += 1;
    }
    let total = f64::from(u32::try_from(text.len()).unwrap_or(u32::MAX));
    counts.iter().filter(|n| **n > 0).map(|n| f64::from(*n) / total).map(|p| -p * p.log2()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CANARY: &str = "canary-7f@d9b!e2#4a1|8x";

    fn rules(text: &str) -> Vec<String> {
        let known = KnownSecrets::new([("webhook", CANARY)]);
        scan(&known, "body", text).into_iter().map(|f| f.rule).collect()
    }

    #[test]
    fn a_known_secret_is_found_in_every_disguise() {
        use base64_reference as b64;
        let split = CANARY.chars().map(|c| format!("{c}\n")).collect::<String>();
        let quoted = format!("\"{}\" +\n  \"{}\"", &CANARY[..9], &CANARY[9..]);
        let url: String = CANARY
            .bytes()
            .map(|b| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02x}") })
            .collect();
        for text in [
            CANARY.to_owned(),
            CANARY.to_uppercase(),
            format!("x{CANARY}y"),
            hex::encode(CANARY),
            hex::encode_upper(CANARY),
            b64(CANARY.as_bytes()),
            b64(format!("a{CANARY}").as_bytes()),
            b64(format!("ab{CANARY}tail").as_bytes()),
            url,
            split,
            quoted,
            CANARY.chars().rev().collect(),
            CANARY.chars().flat_map(|c| ['\u{2060}', c, '\u{202e}']).collect(),
            crate::outgoing::paragraph(CANARY, 9, 999),
            crate::outgoing::inline_code(CANARY),
        ] {
            assert!(rules(&text).iter().any(|r| r.contains("webhook")), "{text:?}");
        }
        assert!(rules("an honest summary of the change").is_empty());
    }

    /// An encoder written apart from the one under test.
    fn base64_reference(bytes: &[u8]) -> String {
        let mut out = String::new();
        for chunk in bytes.chunks(3) {
            let n = chunk.iter().fold(0_u32, |acc, b| acc << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
            for i in 0..4 {
                out.push(if i <= chunk.len() { char::from(STANDARD[(n >> (18 - 6 * i) & 63) as usize]) } else { '=' });
            }
        }
        out
    }

    #[test]
    fn credentials_are_known_by_their_shape_and_ordinary_code_is_not() {
        assert_eq!(rules("-----BEGIN OPENSSH PRIVATE KEY-----"), ["private key"]);
        assert_eq!(rules(&format!("ghp_{}", "a1B2".repeat(9))), ["GitHub token"]);
        assert_eq!(rules("password = \"q8Zr2LxW0vTnB5mKj7Yd\""), ["assigned random value"]);
        assert_eq!(rules(&format!("ghp_\u{2060}{}", "a1B2".repeat(9))), ["GitHub token"]);
        assert_eq!(rules(&format!("\"ghp_{}\" +\n \"{}\"", "a1B2".repeat(4), "a1B2".repeat(5))), ["GitHub token"]);
        assert_eq!(rules("pass\u{2060}word = \"q8Zr2LxW0\u{2060}vTnB5mKj7Yd\""), ["assigned random value"]);
        for text in [
            "GitHub's tokens (ghp_ and then many letters that nobody could guess, however hard they try)",
            r#"{"homepage": "https://example.org", "version": "^1.2.3", "needs": "left@1"}"#,
            "let token = \"lexer_token_identifier\";",
            "integrity sha512-abc",
            "fn password_is_long_enough() {}",
            "https://user@example.org/path",
            "sha256 = 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        ] {
            assert!(rules(text).is_empty(), "{text}: {:?}", rules(text));
        }
    }

    #[test]
    fn a_finding_and_the_debug_form_never_hold_the_secret() {
        let known = KnownSecrets::new([("webhook", CANARY)]);
        let shown = format!("{:?} {known:?}", scan(&known, "body", CANARY));
        assert!(!shown.contains(CANARY));
    }
}
