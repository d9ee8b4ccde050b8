//! Bodies and answers as files: `<case>.<protocol>.<ending>`.

use fettle_protocols::Protocol;

pub(crate) struct Fixture {
    pub(crate) case: String,
    pub(crate) protocol: Protocol,
    pub(crate) streamed: bool,
    pub(crate) bytes: Vec<u8>,
}

pub(crate) const SPOKEN: [(&str, Protocol); 8] = [
    ("chat", Protocol::OpenAiChat),
    ("completions", Protocol::OpenAiCompletions),
    ("embeddings", Protocol::OpenAiEmbeddings),
    ("responses", Protocol::OpenAiResponses),
    ("anthropic", Protocol::AnthropicMessages),
    ("ollama-chat", Protocol::OllamaChat),
    ("ollama-generate", Protocol::OllamaGenerate),
    ("google", Protocol::GoogleGenerate),
];

/// All files of `requests` or `answers`, by name.
pub(crate) fn all(folder: &str) -> Vec<Fixture> {
    let folder = format!("{}/fixtures/{folder}", env!("CARGO_MANIFEST_DIR"));
    let mut names: Vec<String> = fs_err::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.ends_with(".snap") && !name.ends_with(".new"))
        .collect();
    names.sort();
    let read = |name: &String| {
        let mut parts = name.splitn(3, '.');
        let (case, protocol, ending) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
        Fixture {
            case: format!("{case}.{protocol}"),
            protocol: SPOKEN.iter().find(|(word, _)| *word == protocol).unwrap().1,
            streamed: ending != "json",
            bytes: fs_err::read(format!("{folder}/{name}")).unwrap(),
        }
    };
    let found: Vec<Fixture> = names.iter().map(read).collect();
    assert!(!found.is_empty(), "{folder} is empty");
    found
}
