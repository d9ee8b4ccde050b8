//! Why an engine ended, from its exit status and its last words. Engines have no codes for that; the texts below are theirs.

use fettle_app::ports::serving::{Exit, ExitClass};
use serde::{Deserialize, Serialize};

/// As the keeper saw the first process end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Code(i32),
    Signal(i32),
    /// There was no such program, or it could not be executed.
    NotStarted,
}

/// In lower case, with what it means; the first row that any of the last lines has wins. Memory comes first, because an engine
/// that has none left also says much else.
const TEXTS: &[(&str, ExitClass)] = &[
    // PyTorch, CUDA, cuBLAS
    ("cuda out of memory", ExitClass::OutOfMemory),
    ("outofmemoryerror", ExitClass::OutOfMemory),
    ("cuda error: out of memory", ExitClass::OutOfMemory),
    ("cudaerrormemoryallocation", ExitClass::OutOfMemory),
    ("cuda_error_out_of_memory", ExitClass::OutOfMemory),
    // llama.cpp, and ollama, which runs it
    ("cudamalloc failed: out of memory", ExitClass::OutOfMemory),
    ("failed to allocate buffer for kv cache", ExitClass::OutOfMemory),
    ("failed to allocate compute buffers", ExitClass::OutOfMemory),
    ("failed to allocate compute pp buffers", ExitClass::OutOfMemory),
    ("unable to allocate cuda", ExitClass::OutOfMemory),
    ("model requires more system memory", ExitClass::OutOfMemory),
    // vLLM
    ("no available memory for the cache blocks", ExitClass::OutOfMemory),
    ("is less than desired gpu memory utilization", ExitClass::OutOfMemory),
    ("kv cache is needed, which is larger than the available kv cache memory", ExitClass::OutOfMemory),
    // SGLang
    ("not enough memory. please try to increase --mem-fraction-static", ExitClass::OutOfMemory),
    ("std::bad_alloc", ExitClass::OutOfMemory),
    // Drivers and devices
    ("cuda driver version is insufficient", ExitClass::Driver),
    ("no cuda-capable device is detected", ExitClass::Driver),
    ("no cuda gpus are available", ExitClass::Driver),
    ("system not yet initialized", ExitClass::Driver),
    ("cuda error: unspecified launch failure", ExitClass::Driver),
    ("cuda error: an illegal memory access", ExitClass::Driver),
    ("cuda unknown error", ExitClass::Driver),
    ("failed to initialize nvml", ExitClass::Driver),
    ("driver/library version mismatch", ExitClass::Driver),
    ("no kernel image is available for execution", ExitClass::Driver),
    ("ggml_cuda_init: failed to initialize cuda", ExitClass::Driver),
    ("nccl error", ExitClass::Driver),
    ("failed to infer device type", ExitClass::Driver),
    // Command lines
    ("error: unrecognized arguments", ExitClass::BadFlag),
    ("error: argument", ExitClass::BadFlag),
    ("error: invalid argument", ExitClass::BadFlag),
    ("error: the following arguments are required", ExitClass::BadFlag),
    ("error while handling argument", ExitClass::BadFlag),
    ("expected value for argument", ExitClass::BadFlag),
    ("is greater than the derived max_model_len", ExitClass::BadFlag),
    ("must be divisible by tensor parallel size", ExitClass::BadFlag),
    ("unknown flag:", ExitClass::BadFlag),
    ("error: unknown command", ExitClass::BadFlag),
    // Models
    ("invalid magic", ExitClass::BadModel),
    ("failed to read magic", ExitClass::BadModel),
    ("unknown model architecture", ExitClass::BadModel),
    ("error loading model", ExitClass::BadModel),
    ("failed to load model", ExitClass::BadModel),
    ("data is not within the file bounds", ExitClass::BadModel),
    ("safetensorerror", ExitClass::BadModel),
    ("safetensors_rust", ExitClass::BadModel),
    ("are not supported for now", ExitClass::BadModel),
    ("does not recognize this architecture", ExitClass::BadModel),
    ("cannot find any model weights", ExitClass::BadModel),
    ("no such file or directory: ", ExitClass::BadModel),
    ("is not a valid model identifier", ExitClass::BadModel),
    ("can't load the configuration", ExitClass::BadModel),
    ("invalid repository id or local directory", ExitClass::BadModel),
    ("not found, try pulling it first", ExitClass::BadModel),
    ("invalid file magic", ExitClass::BadModel),
];

/// Lines of an end that are looked at: a traceback of each rank and what is logged around it.
pub const LAST_LINES: usize = 400;

/// SIGKILL: whom the kernel ends for want of memory gets no other.
const KILLED: i32 = 9;

/// What `status` and the last lines, oldest first, mean. `oom_killed`: the kernel says that it ended a process for want of
/// memory.
pub fn classify<'l>(status: Status, lines: impl DoubleEndedIterator<Item = &'l str> + Clone, oom_killed: bool) -> Exit {
    if status == Status::NotStarted {
        let said = lines.clone().next_back().map(shown).unwrap_or_default();
        return Exit { class: ExitClass::NotStarted, why: sentence("its program could not be started", &said) };
    }
    let found = TEXTS.iter().find_map(|(text, class)| {
        // The last line that says so is the one that ended it.
        let line = lines.clone().rev().find(|line| line.to_ascii_lowercase().contains(text))?;
        Some((*class, shown(line)))
    });
    if let Some((class, line)) = found {
        return Exit { class, why: sentence(meaning(class), &line) };
    }
    match status {
        Status::Signal(KILLED) if oom_killed => Exit {
            class: ExitClass::OutOfMemory,
            why: "the host had no memory left for it, and the kernel ended it".to_owned(),
        },
        Status::Signal(signal) => Exit { class: ExitClass::Unknown, why: format!("it was ended by signal {signal}") },
        Status::Code(code) => {
            let said = lines.rev().find(|line| !line.trim().is_empty()).map(shown).unwrap_or_default();
            Exit { class: ExitClass::Unknown, why: sentence(&format!("it ended with status {code}"), &said) }
        }
        Status::NotStarted => Exit { class: ExitClass::NotStarted, why: "its program could not be started".to_owned() },
    }
}

fn meaning(class: ExitClass) -> &'static str {
    match class {
        ExitClass::OutOfMemory => "it ran out of memory",
        ExitClass::BadModel => "it cannot read the model",
        ExitClass::BadFlag => "it does not accept its command line",
        ExitClass::Driver => "driver or device failed it",
        ExitClass::Asked | ExitClass::Stalled | ExitClass::NotStarted | ExitClass::Unknown => "it ended",
    }
}

fn sentence(what: &str, line: &str) -> String {
    if line.is_empty() { what.to_owned() } else { format!("{what}: {line}") }
}

/// Of a line that is shown to people.
const SHOWN_CHARS: usize = 240;

/// `line` for people: short, without control characters, folders or what looks like a key.
pub fn shown(line: &str) -> String {
    let words = line.split_whitespace().map(|word| {
        let clean: String = word.chars().filter(|c| !c.is_control()).collect();
        let core = clean.trim_matches(|c: char| !c.is_ascii_alphanumeric());
        if core.len() >= 32 && core.chars().all(|c| c.is_ascii_hexdigit()) {
            return "…".to_owned();
        }
        match clean.rsplit_once('/') {
            // A path, and no fraction such as 13.33/22.07: of a path only the name is shown.
            Some((before, name)) if before.contains('/') => {
                let quote: String = clean.chars().take_while(|c| matches!(c, '\'' | '"' | '`' | '(')).collect();
                format!("{quote}{name}")
            }
            _ => clean,
        }
    });
    words.collect::<Vec<_>>().join(" ").chars().take(SHOWN_CHARS).collect()
}

#[cfg(test)]
mod tests;
