//! What a model's files say of themselves, read no further than their headers.

use std::io::{self, Read};

use camino::{Utf8Path, Utf8PathBuf};
use fettle_placement::estimate::config::ConfigError;
use fettle_placement::estimate::gguf::{self, GgufError};
use fettle_placement::estimate::safetensors::{self, SafetensorsError};
use fettle_placement::estimate::{ModelFacts, config, weights::Weights};

use super::File;

const CONFIG: &str = "config.json";
/// Read first; most headers need more, and say how much.
const FIRST_LOOK: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    #[error("{name} cannot be read as GGUF")]
    Gguf { name: String, source: GgufError },
    #[error("{name} cannot be read as safetensors")]
    Safetensors { name: String, source: SafetensorsError },
    #[error("{CONFIG} beside the weights cannot be used")]
    Config(#[from] ConfigError),
    #[error("a header cannot be read")]
    Io(#[from] io::Error),
}

pub(super) fn is_weights(name: &str) -> bool {
    is_gguf(name) || name.ends_with(".safetensors")
}

fn is_gguf(name: &str) -> bool {
    name.ends_with(".gguf")
}

/// The one that is named to engines; the others of a divided model are found by it. A projector is a model of its own.
pub(super) fn first_gguf(files: &[File]) -> Option<&File> {
    ggufs(files).next()
}

fn ggufs(files: &[File]) -> impl Iterator<Item = &File> {
    files.iter().filter(|file| is_gguf(&file.name) && !file.name.contains("mmproj"))
}

/// `files` are sorted by name, as the parts of a divided model are numbered.
pub(super) fn facts(folder: &Utf8Path, files: &[File]) -> Result<ModelFacts, HeaderError> {
    let parts = ggufs(files).map(|file| gguf_header(&folder.join(&file.name), &file.name));
    let parts = parts.collect::<Result<Vec<_>, _>>()?;
    if let Some((first, others)) = parts.split_first() {
        let name = first_gguf(files).map(|file| file.name.clone()).unwrap_or_default();
        return first.model(others).map_err(|source| HeaderError::Gguf { name, source });
    }
    let mut all = Weights::default();
    for file in files.iter().filter(|file| is_weights(&file.name)) {
        all.merge(&safetensors_weights(&folder.join(&file.name), &file.name)?);
    }
    let json = read(&folder.join(CONFIG), config::MAX_CONFIG as u64 + 1)?;
    Ok(ModelFacts { arch: config::facts(&json)?, weights: all })
}

fn gguf_header(path: &Utf8PathBuf, name: &str) -> Result<gguf::Header, HeaderError> {
    let mut wanted = FIRST_LOOK;
    loop {
        let bytes = read(path, wanted.min(gguf::MAX_HEADER))?;
        match gguf::header(&bytes) {
            // The file goes on, and more may be asked for.
            Err(GgufError::Short { wanted: more }) if bytes.len() as u64 == wanted && wanted < gguf::MAX_HEADER => {
                wanted = more.max(wanted.saturating_mul(2)).min(gguf::MAX_HEADER);
            }
            parsed => return parsed.map_err(|source| HeaderError::Gguf { name: name.to_owned(), source }),
        }
    }
}

fn safetensors_weights(path: &Utf8PathBuf, name: &str) -> Result<Weights, HeaderError> {
    let mut wanted = FIRST_LOOK;
    loop {
        let bytes = read(path, wanted)?;
        match safetensors::weights(&bytes) {
            Err(SafetensorsError::Short { wanted: more }) if bytes.len() as u64 == wanted && more > wanted => {
                wanted = more
            }
            parsed => return parsed.map_err(|source| HeaderError::Safetensors { name: name.to_owned(), source }),
        }
    }
}

/// The beginning of a file.
fn read(path: &Utf8Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs_err::File::open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}
