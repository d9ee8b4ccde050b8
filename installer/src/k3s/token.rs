//! The word by which a node joins. In its full form it names the cluster's certificate, so that a node tells it to no other
//! server; and that of agents makes no servers. Source: https://docs.k3s.io/cli/token.

const PREFIX: &str = "K10";
/// SHA-256, in hexadecimal digits.
const HASH_DIGITS: usize = 64;

/// What a token is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// Full, and good for agents alone.
    Node,
    /// Full, and good for servers as well: whoever has it administers the cluster.
    Server,
    /// Without the hash of the cluster's certificate: a node would tell it to whoever answers at the address.
    Short,
    Strange,
}

impl Token {
    pub fn read(text: &str) -> Self {
        let text = text.trim();
        let Some((hash, word)) = text.strip_prefix(PREFIX).and_then(|rest| rest.split_once("::")) else {
            return if text.is_empty() || text.contains(char::is_whitespace) { Self::Strange } else { Self::Short };
        };
        if hash.is_empty() {
            return Self::Short;
        }
        if hash.len() != HASH_DIGITS || !hash.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Self::Strange;
        }
        match word.split_once(':') {
            Some(("node", password)) if is_password(password) => Self::Node,
            Some(("server", password)) if is_password(password) => Self::Server,
            None if is_bootstrap(word) => Self::Node,
            _ => Self::Strange,
        }
    }
}

fn is_password(text: &str) -> bool {
    !text.is_empty() && !text.contains(char::is_whitespace)
}

/// As `k3s token create` makes it, for agents, with an end: `abcdef.0123456789abcdef`.
fn is_bootstrap(word: &str) -> bool {
    let plain = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9'))
    };
    word.split_once('.').is_some_and(|(id, secret)| plain(id, 6) && plain(secret, 16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_told_by_its_form() {
        let hash = "0a".repeat(32);
        for (text, form) in [
            (format!("K10{hash}::node:word\n"), Token::Node),
            (format!("K10{hash}::abcdef.0123456789abcdef"), Token::Node),
            (format!("K10{hash}::server:word"), Token::Server),
            ("word".to_owned(), Token::Short),
            ("abcdef.0123456789abcdef".to_owned(), Token::Short),
            ("K10::node:word".to_owned(), Token::Short),
            ("K10word".to_owned(), Token::Short),
            (format!("K10{hash}::node:"), Token::Strange),
            (format!("K10{hash}::word"), Token::Strange),
            (format!("K10{}::node:word", &hash[2..]), Token::Strange),
            (format!("K10{hash}::node:two words"), Token::Strange),
            ("two words".to_owned(), Token::Strange),
            (String::new(), Token::Strange),
        ] {
            assert_eq!(Token::read(&text), form, "{text:?}");
        }
    }
}
