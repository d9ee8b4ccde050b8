//! The interfaces that are spoken here, and what they have of their own on HTTP.

/// One interface of an inference server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    OpenAiChat,
    OpenAiCompletions,
    OpenAiEmbeddings,
    OpenAiResponses,
    AnthropicMessages,
    OllamaChat,
    OllamaGenerate,
    /// `generateContent` and `streamGenerateContent`; towards upstream only.
    GoogleGenerate,
}

/// How the pieces of a streamed answer are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Server-sent events.
    Sse,
    /// One JSON text a line.
    Lines,
}

impl Protocol {
    pub const ALL: [Self; 8] = [
        Self::OpenAiChat,
        Self::OpenAiCompletions,
        Self::OpenAiEmbeddings,
        Self::OpenAiResponses,
        Self::AnthropicMessages,
        Self::OllamaChat,
        Self::OllamaGenerate,
        Self::GoogleGenerate,
    ];

    /// The path of a request below the server's root. `None` for Google, whose path names the model;
    /// [`crate::Written::path`] has it for every protocol.
    pub const fn path(self) -> Option<&'static str> {
        match self {
            Self::OpenAiChat => Some("/v1/chat/completions"),
            Self::OpenAiCompletions => Some("/v1/completions"),
            Self::OpenAiEmbeddings => Some("/v1/embeddings"),
            Self::OpenAiResponses => Some("/v1/responses"),
            Self::AnthropicMessages => Some("/v1/messages"),
            Self::OllamaChat => Some("/api/chat"),
            Self::OllamaGenerate => Some("/api/generate"),
            Self::GoogleGenerate => None,
        }
    }

    pub const fn framing(self) -> Framing {
        match self {
            Self::OllamaChat | Self::OllamaGenerate => Framing::Lines,
            Self::OpenAiChat
            | Self::OpenAiCompletions
            | Self::OpenAiEmbeddings
            | Self::OpenAiResponses
            | Self::AnthropicMessages
            | Self::GoogleGenerate => Framing::Sse,
        }
    }

    /// The `content-type` of an answer.
    pub const fn content_type(self, streamed: bool) -> &'static str {
        match (streamed, self.framing()) {
            (true, Framing::Sse) => "text/event-stream; charset=utf-8",
            (true, Framing::Lines) => "application/x-ndjson",
            (false, _) => "application/json",
        }
    }

    /// Whose error bodies and model lists it shares.
    pub const fn family(self) -> Family {
        match self {
            Self::OpenAiChat | Self::OpenAiCompletions | Self::OpenAiEmbeddings | Self::OpenAiResponses => {
                Family::OpenAi
            }
            Self::AnthropicMessages => Family::Anthropic,
            Self::OllamaChat | Self::OllamaGenerate => Family::Ollama,
            Self::GoogleGenerate => Family::Google,
        }
    }
}

/// Protocols that share one shape of error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    OpenAi,
    Anthropic,
    Ollama,
    Google,
}
