//! Signatures of thoughts. Each is worth something only to the server that made it and is refused by others, so it goes
//! about under its maker's name, also through the hands of a caller that speaks another protocol.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Maker {
    Anthropic,
    OpenAi,
}

/// Before the data of a thought that Anthropic shows only encrypted.
pub(crate) const REDACTED: &str = "anthropic-redacted:";

impl Maker {
    const fn tag(self) -> &'static str {
        match self {
            Self::Anthropic => "anthropic:",
            Self::OpenAi => "openai:",
        }
    }

    /// A signature as the neutral form has it. In this maker's protocol one without a name is the maker's own.
    pub(crate) fn read(self, said: String) -> String {
        let tags = [Self::Anthropic.tag(), Self::OpenAi.tag(), REDACTED];
        if said.is_empty() || tags.iter().any(|tag| said.starts_with(tag)) {
            said
        } else {
            format!("{}{said}", self.tag())
        }
    }

    /// A signature for a caller who speaks this maker's protocol; others keep their names.
    pub(crate) fn told(self, signature: &str) -> &str {
        signature.strip_prefix(self.tag()).unwrap_or(signature)
    }

    /// A signature for the maker itself; `None` if it is somebody else's.
    pub(crate) fn own(self, signature: &str) -> Option<&str> {
        signature.strip_prefix(self.tag())
    }
}
