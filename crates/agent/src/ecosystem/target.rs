//! The command for a part of a suite.

use fettle_domain::path::RepoPath;

use super::{Suite, TargetForm};

/// More targets than this make the whole suite cheaper to say and hardly dearer to run.
const TARGETS_MAX: usize = 100;

/// Which tests are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    All,
    Files(Vec<RepoPath>),
    /// Ids as the report names them.
    Cases(Vec<String>),
    /// A file or test id in somebody's words.
    Word(String),
}

impl Suite {
    /// The shell command for the selection, or `None` when only the whole suite can be run.
    pub fn command_for(&self, selection: &Selection) -> Option<String> {
        match selection {
            Selection::All => Some(self.command.clone()),
            Selection::Files(files) => self.for_files(files),
            Selection::Cases(ids) => self.for_cases(ids),
            Selection::Word(word) => self.for_word(word),
        }
    }

    fn for_files(&self, files: &[RepoPath]) -> Option<String> {
        let names: Option<Vec<&str>> = files.iter().map(|file| std::str::from_utf8(file.as_bytes()).ok()).collect();
        let names = names.filter(|names| !names.is_empty() && names.len() <= TARGETS_MAX)?;
        let of_kind = |suffixes: &[&str]| names.iter().all(|name| suffixes.iter().any(|suffix| name.ends_with(suffix)));
        match &self.target {
            TargetForm::Pytest if of_kind(&[".py"]) => Some(format!("{} {}", self.command, quoted(&names))),
            TargetForm::Node { flags } if of_kind(&["js", "ts"]) => Some(format!("node {flags} {}", quoted(&names))),
            TargetForm::Script if of_kind(&["js", "ts", "jsx", "tsx"]) => {
                Some(format!("{} -- {}", self.command, quoted(&names)))
            }
            TargetForm::Template(template) if names.len() == 1 => Some(filled(template, names[0])),
            TargetForm::None
            | TargetForm::Template(_)
            | TargetForm::Cargo
            | TargetForm::Pytest
            | TargetForm::Node { .. }
            | TargetForm::Script => None,
        }
    }

    fn for_cases(&self, ids: &[String]) -> Option<String> {
        if ids.is_empty() || ids.len() > TARGETS_MAX {
            return None;
        }
        match &self.target {
            TargetForm::Cargo => {
                // A documentation test is named by its line, which the id leaves out.
                let names: Option<Vec<&str>> = ids
                    .iter()
                    .map(|id| id.split_once("::").map(|(_, name)| name).filter(|_| !id.contains(" (doc)::")))
                    .collect();
                Some(format!("{} -- --exact {}", self.command, quoted(&names?)))
            }
            TargetForm::Pytest if ids.iter().all(|id| id.contains(".py::")) => {
                Some(format!("{} {}", self.command, quoted(&ids.iter().map(String::as_str).collect::<Vec<_>>())))
            }
            TargetForm::Template(template) if ids.len() == 1 => Some(filled(template, &ids[0])),
            TargetForm::Script if ids.iter().all(|id| id.contains(" > ")) => {
                let mut files: Vec<&str> =
                    ids.iter().filter_map(|id| id.split_once(" > ")).map(|(file, _)| file).collect();
                files.dedup();
                Some(format!("{} -- {}", self.command, quoted(&files)))
            }
            TargetForm::None
            | TargetForm::Template(_)
            | TargetForm::Pytest
            | TargetForm::Node { .. }
            | TargetForm::Script => None,
        }
    }

    fn for_word(&self, word: &str) -> Option<String> {
        match &self.target {
            TargetForm::Cargo => Some(format!("{} {}", self.command, cargo_word(word))),
            TargetForm::Pytest => Some(format!("{} {}", self.command, quote(word))),
            TargetForm::Node { flags } if word.ends_with("js") || word.ends_with("ts") => {
                Some(format!("node {flags} {}", quote(word)))
            }
            TargetForm::Node { flags } => Some(format!("node {flags} --test-name-pattern={}", quote(word))),
            TargetForm::Script => Some(format!("{} -- {}", self.command, quote(word))),
            TargetForm::Template(template) => Some(filled(template, word)),
            TargetForm::None => None,
        }
    }
}

/// A file becomes the binary that holds its tests; anything else is a name filter.
fn cargo_word(word: &str) -> String {
    let Some(stem) = word.strip_suffix(".rs") else {
        // An id as we print it begins with the binary, which cargo's filter does not know.
        return quote(word);
    };
    let parts: Vec<&str> = stem.split('/').collect();
    match parts.iter().position(|&part| part == "tests") {
        Some(at) if at + 2 == parts.len() => format!("--test {}", quote(parts[at + 1])),
        Some(at) if parts.len() > at + 2 => format!("--test {}", quote(parts[at + 1])),
        _ => match parts.last() {
            Some(&("lib" | "main" | "mod")) | None => String::new(),
            Some(module) => quote(&format!("{module}::")),
        },
    }
}

fn filled(template: &str, target: &str) -> String {
    template.replace("{target}", &quote(target))
}

fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ")
}

/// `word` as one word of a POSIX shell.
pub(crate) fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) && !word.starts_with('-') {
        word.to_owned()
    } else if word.starts_with('-') {
        // A word from a model or a file name must never become a flag.
        format!("'./{}'", word.replace('\'', "'\\''"))
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}
