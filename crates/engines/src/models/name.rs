//! Which names a model and its files may have. They come from people, folders and mirrors, and become parts of paths and URLs.

use fettle_placement::id::ModelId;

/// As long as names of published models are, twice.
const MAX_MODEL_NAME: usize = 128;
/// Of most file systems, less what we put behind it.
const MAX_FILE_NAME: usize = 240;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error(
        "`{0}` is no name of a model: letters, digits and `._:-`, perhaps with `/` between two parts, as in `mistral:7b`"
    )]
    Model(String),
    #[error("`{0}` is no name of a model's file: it must be one plain name that does not begin with a dot")]
    File(String),
}

pub fn model_name(text: &str) -> Result<ModelId, NameError> {
    let part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "._:-".contains(c))
    };
    if text.len() <= MAX_MODEL_NAME && text.split('/').all(part) {
        Ok(ModelId::new(text))
    } else {
        Err(NameError::Model(shown(text)))
    }
}

/// Nothing that leads out of a folder, hides in it or moves a terminal's cursor.
pub(super) fn is_file_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_FILE_NAME
        && !name.starts_with('.')
        && !name.chars().any(|c| c == '/' || c == '\\' || c.is_control())
}

pub(super) fn file_name(name: &str) -> Result<(), NameError> {
    if is_file_name(name) { Ok(()) } else { Err(NameError::File(shown(name))) }
}

/// Foreign text in an error.
fn shown(text: &str) -> String {
    text.chars().take(MAX_MODEL_NAME).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_models_lead_nowhere_else() {
        for good in ["mistral:7b", "deepseek-coder:6.7b", "Qwen/Qwen3-8B", "a"] {
            assert_eq!(model_name(good), Ok(ModelId::new(good)));
        }
        for bad in ["", "..", "../etc", "a/../b", "/etc", "a/", "a//b", ".a", "-a", "a b", "a\nb", "ä", "a\\b", "a%2e"]
        {
            assert!(model_name(bad).is_err(), "{bad}");
        }
        assert!(model_name(&"a".repeat(MAX_MODEL_NAME + 1)).is_err());
    }

    #[test]
    fn names_of_files_are_one_plain_name() {
        for good in ["a.gguf", "model-00001-of-00002.safetensors", "my model (1).gguf"] {
            assert!(is_file_name(good), "{good}");
        }
        for bad in ["", ".", "..", ".hidden", "a/b", "/a", "..\\a", "a\u{1b}[2J", "a\0"] {
            assert!(!is_file_name(bad), "{bad:?}");
        }
    }
}
