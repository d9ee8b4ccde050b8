//! A model on a server elsewhere, as people describe it: in the configuration, or in the browser.

use serde::{Deserialize, Serialize};

use crate::budget::MIN_CONTEXT_TOKENS;

/// Names stand in menus, tables and metrics.
pub const MAX_NAME_CHARS: usize = 100;
/// Of an address or of the name that a server knows a model by.
pub const MAX_TEXT_BYTES: usize = 500;
/// No server offers more; a larger number is a slip.
pub const MAX_CONTEXT_TOKENS: u64 = 100_000_000;

/// What a server speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModelKind {
    #[default]
    OpenaiCompatible,
    Openai,
    Anthropic,
    Google,
    Ollama,
}

impl ModelKind {
    pub const ALL: [Self; 5] = [Self::OpenaiCompatible, Self::Openai, Self::Anthropic, Self::Google, Self::Ollama];

    /// As the configuration has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OpenaiCompatible => "openai-compatible",
            Self::Openai => "openai",
            Self::Anthropic => "anthropic",
            Self::Google => "google",
            Self::Ollama => "ollama",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == text)
    }

    /// Where it is served unless somebody says something else.
    pub const fn default_url(self) -> Option<&'static str> {
        match self {
            Self::OpenaiCompatible => None,
            Self::Openai => Some("https://api.openai.com/v1"),
            Self::Anthropic => Some("https://api.anthropic.com"),
            Self::Google => Some("https://generativelanguage.googleapis.com"),
            Self::Ollama => Some("http://127.0.0.1:11434"),
        }
    }
}

/// A model that somebody added in the browser.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelProfile {
    /// What people call it: one word.
    pub name: String,
    pub kind: ModelKind,
    /// As the server documents it, mostly ending in `/v1`. `None`: the kind's own.
    pub base_url: Option<String>,
    /// The name that the server knows it by. `None`: `name`.
    pub known_as: Option<String>,
    /// The window, prompt and answer together.
    pub context_tokens: u64,
}

/// What is wrong with a profile: in which field, and a sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct BadProfile {
    /// As in [`ModelProfile`].
    pub field: &'static str,
    pub what: String,
}

impl ModelProfile {
    pub fn server(&self) -> Option<&str> {
        self.base_url.as_deref().or(self.kind.default_url())
    }

    pub fn wire_name(&self) -> &str {
        self.known_as.as_deref().unwrap_or(&self.name)
    }

    pub fn check(&self) -> Result<(), BadProfile> {
        let bad = |field, what: String| Err(BadProfile { field, what });
        // Nothing that looks like another name, or like none.
        let odd = |c: char| !c.is_alphanumeric() && !"-_.:/@+".contains(c);
        let chars = self.name.chars().count();
        if chars == 0 || chars > MAX_NAME_CHARS || self.name.contains(odd) {
            let what = format!(
                "A name is one word of at most {MAX_NAME_CHARS} letters, digits and - _ . : / @ +, such as `coder`."
            );
            return bad("name", what);
        }
        if let Some(known_as) = &self.known_as
            && (known_as.is_empty() || known_as.len() > MAX_TEXT_BYTES || known_as.contains(char::is_control))
        {
            return bad("known_as", format!("The server's name for it has 1 to {MAX_TEXT_BYTES} bytes."));
        }
        match self.server() {
            None => return bad("base_url", "Where does its server listen? Give its address.".into()),
            Some(url) => check_server(url).map_err(|what| BadProfile { field: "base_url", what })?,
        }
        if !(MIN_CONTEXT_TOKENS..=MAX_CONTEXT_TOKENS).contains(&self.context_tokens) {
            return bad(
                "context_tokens",
                format!(
                    "A window of {} tokens: Runs need at least {MIN_CONTEXT_TOKENS}, since the prompt alone would fill less.",
                    self.context_tokens
                ),
            );
        }
        Ok(())
    }
}

/// As which a configured model is asked for at the gateway, where a slash stands between server and model.
pub fn plain_name(name: &str) -> String {
    name.replace('/', "-")
}

/// Errors with a sentence. A key belongs into its own field, where it is kept as a secret.
fn check_server(url: &str) -> Result<(), String> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let Some(rest) = rest.filter(|rest| !rest.is_empty() && !rest.starts_with('/')) else {
        return Err("An address begins with http:// or https://, and a host follows.".into());
    };
    if url.len() > MAX_TEXT_BYTES || url.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(format!("An address has no blanks, and at most {MAX_TEXT_BYTES} bytes."));
    }
    if rest.contains(['@', '?', '#']) {
        return Err("The address holds more than an address: leave out user, password, query and fragment.".into());
    }
    if !is_authority(rest.split('/').next().unwrap_or_default()) {
        return Err(
            "A host is a name of ASCII letters, digits, dots and dashes or an address, and a port may follow.".into()
        );
    }
    if !rest.bytes().all(|byte| byte.is_ascii_graphic())
        || rest.contains(['"', '<', '>', '\\', '^', '`', '{', '|', '}'])
    {
        return Err("The path has characters that no address can carry.".into());
    }
    Ok(())
}

/// `host`, `host:port`, `[::1]:port`.
fn is_authority(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) if address.parse::<core::net::Ipv6Addr>().is_ok() => {
            ("v6", rest.strip_prefix(':').or(rest.is_empty().then_some("0")))
        }
        Some(_) => return false,
        None => text.rsplit_once(':').map_or((text, Some("0")), |(host, port)| (host, Some(port))),
    };
    let named = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    !host.is_empty() && host.bytes().all(named) && port.is_some_and(|port| port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile() -> ModelProfile {
        ModelProfile {
            name: "coder".into(),
            kind: ModelKind::OpenaiCompatible,
            base_url: Some("http://127.0.0.1:8000/v1".into()),
            known_as: None,
            context_tokens: 65_536,
        }
    }

    #[test]
    fn what_cannot_be_asked_is_refused_by_field() {
        let field = |change: fn(&mut ModelProfile)| {
            let mut profile = profile();
            change(&mut profile);
            profile.check().err().map(|bad| bad.field)
        };
        assert_eq!(field(|_| {}), None);
        assert_eq!(field(|it| it.name = "qwen3/coder:30b".into()), None);
        for name in ["", "two words", "a\u{7}", "a?b", "a#b", "a\u{202e}b", "a\u{200b}"] {
            assert_eq!(profile_named(name).check().unwrap_err().field, "name", "{name}");
        }
        assert_eq!(field(|it| it.base_url = None), Some("base_url"));
        assert_eq!(field(|it| (it.base_url, it.kind) = (None, ModelKind::Ollama)), None);
        for url in [
            "ftp://x",
            "http://",
            "http:///v1",
            "https://u:p@host/v1",
            "https://host/v1?key=a",
            "https://a b",
            "http://m\u{fc}nchen.example/v1",
            "http://[x/v1",
            "http://host:99999",
            "http://[::1]x",
        ] {
            assert_eq!(at(url).check().unwrap_err().field, "base_url", "{url}");
        }
        for url in ["http://[::1]:8000/v1", "https://models.example", "http://10.0.0.7:80/a/b_c"] {
            assert_eq!(at(url).check(), Ok(()), "{url}");
        }
        assert_eq!(field(|it| it.known_as = Some(String::new())), Some("known_as"));
        assert_eq!(field(|it| it.context_tokens = 8_192), Some("context_tokens"));
    }

    fn profile_named(name: &str) -> ModelProfile {
        ModelProfile { name: name.into(), ..profile() }
    }

    fn at(url: &str) -> ModelProfile {
        ModelProfile { base_url: Some(url.into()), ..profile() }
    }

    #[test]
    fn kinds_are_read_as_they_are_written() {
        for kind in ModelKind::ALL {
            assert_eq!(ModelKind::parse(kind.name()), Some(kind));
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
    }
}
