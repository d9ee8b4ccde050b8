//! Why a request is not taken: a sentence for whoever sent it, and the field it is about.

/// A request that cannot be read, or cannot be said in the other protocol. The caller's turn: HTTP 400.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub struct Refused {
    /// Where, as `messages[2].content`; `None` for the body as a whole.
    pub field: Option<String>,
    /// One sentence. Never quotes more of the body than a field's name.
    pub sentence: String,
}

impl Refused {
    pub(crate) fn at(field: impl Into<String>, sentence: impl Into<String>) -> Self {
        Self { field: Some(field.into()), sentence: sentence.into() }
    }

    pub(crate) fn whole(sentence: impl Into<String>) -> Self {
        Self { field: None, sentence: sentence.into() }
    }
}
