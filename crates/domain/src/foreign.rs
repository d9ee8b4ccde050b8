//! A message of another program that asks for a Task: read from its bytes, or refused with a word that a person can act on.
//! Whether its repository, issue and user exist is for the forge to say.

use serde_json::{Map, Value};

use crate::task::Mode;

/// Larger ones are refused unread: four short fields fill a hundredth of it.
pub const MAX_BYTES: usize = 64 * 1024;

/// What the message asks for. Fields beside these are nobody's business.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignTask {
    pub repo_url: String,
    pub issue: u64,
    pub mode: Mode,
    /// The forge login whose permission decides.
    pub user: String,
}

/// Why a message makes no Task: the reason that goes with it to the dead letters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("too_large")]
    TooLarge,
    #[error("not_utf8")]
    NotUtf8,
    #[error("not_json")]
    NotJson,
    #[error("missing_field:{0}")]
    MissingField(&'static str),
    #[error("bad_field:{0}")]
    BadField(&'static str),
    #[error("unknown_mode")]
    UnknownMode,
}

/// Reads `{"repo_url", "issue_id", "mode", "trigger_user"}`. `issue_id` is a number or its digits; `mode` is `quickfix`, also
/// when absent, or `refine`.
pub fn read(body: &[u8]) -> Result<ForeignTask, Refusal> {
    if body.len() > MAX_BYTES {
        return Err(Refusal::TooLarge);
    }
    let text = str::from_utf8(body).map_err(|_| Refusal::NotUtf8)?;
    let Ok(Value::Object(fields)) = serde_json::from_str(text) else { return Err(Refusal::NotJson) };
    Ok(ForeignTask {
        repo_url: text_of(&fields, "repo_url")?,
        issue: issue(&fields)?,
        mode: mode(&fields)?,
        user: text_of(&fields, "trigger_user")?,
    })
}

fn text_of(fields: &Map<String, Value>, name: &'static str) -> Result<String, Refusal> {
    match fields.get(name) {
        None | Some(Value::Null) => Err(Refusal::MissingField(name)),
        Some(Value::String(text)) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
        Some(_) => Err(Refusal::BadField(name)),
    }
}

fn issue(fields: &Map<String, Value>) -> Result<u64, Refusal> {
    const NAME: &str = "issue_id";
    let number = match fields.get(NAME) {
        None | Some(Value::Null) => return Err(Refusal::MissingField(NAME)),
        Some(Value::Number(number)) => number.as_u64(),
        // `parse` would take a sign.
        Some(Value::String(digits)) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok(),
        Some(_) => None,
    };
    // A ledger's integers are signed.
    number.filter(|number| (1..=i64::MAX as u64).contains(number)).ok_or(Refusal::BadField(NAME))
}

fn mode(fields: &Map<String, Value>) -> Result<Mode, Refusal> {
    match fields.get("mode") {
        None | Some(Value::Null) => Ok(Mode::Quickfix),
        Some(Value::String(text)) => match text.parse() {
            Ok(mode @ (Mode::Quickfix | Mode::Refine)) => Ok(mode),
            // A probe is the operator's own.
            Ok(Mode::Probe) | Err(_) => Err(Refusal::UnknownMode),
        },
        Some(_) => Err(Refusal::BadField("mode")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refused(body: &str) -> String {
        read(body.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn the_founding_message_is_understood() {
        let task = read(
            br#"{"repo_url":"https://github.com/o/r.git","issue_id":7,"mode":"refine","trigger_user":"ada","priority":9}"#,
        );
        let expected = ForeignTask {
            repo_url: "https://github.com/o/r.git".into(),
            issue: 7,
            mode: Mode::Refine,
            user: "ada".into(),
        };
        assert_eq!(task, Ok(expected.clone()));
        let digits =
            read(br#"{"repo_url":" https://github.com/o/r.git ","issue_id":"0007","trigger_user":"ada","mode":null}"#);
        assert_eq!(digits, Ok(ForeignTask { mode: Mode::Quickfix, ..expected }));
    }

    #[test]
    fn each_fault_has_its_word() {
        assert_eq!(refused(&" ".repeat(MAX_BYTES + 1)), "too_large");
        assert_eq!(read(b"\xff{}").unwrap_err().to_string(), "not_utf8");
        for body in ["", "null", "[]", "{", "\"text\"", "{\"repo_url\":1}{}"] {
            assert_eq!(refused(body), "not_json", "{body}");
        }
        let with = |field: &str| format!(r#"{{"repo_url":"https://h/o/r","issue_id":1,"trigger_user":"a",{field}}}"#);
        for (field, word) in [
            (r#""repo_url":null"#, "missing_field:repo_url"),
            (r#""repo_url":7"#, "bad_field:repo_url"),
            (r#""repo_url":"  ""#, "bad_field:repo_url"),
            (r#""issue_id":null"#, "missing_field:issue_id"),
            (r#""issue_id":0"#, "bad_field:issue_id"),
            (r#""issue_id":-1"#, "bad_field:issue_id"),
            (r#""issue_id":1.5"#, "bad_field:issue_id"),
            (r#""issue_id":"+1""#, "bad_field:issue_id"),
            (r#""issue_id":"""#, "bad_field:issue_id"),
            (r#""issue_id":18446744073709551615"#, "bad_field:issue_id"),
            (r#""issue_id":"99999999999999999999""#, "bad_field:issue_id"),
            (r#""trigger_user":["a"]"#, "bad_field:trigger_user"),
            (r#""mode":1"#, "bad_field:mode"),
            (r#""mode":"probe""#, "unknown_mode"),
            (r#""mode":"Quickfix""#, "unknown_mode"),
        ] {
            assert_eq!(refused(&with(field)), word, "{field}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&body);
        }
    }
}
