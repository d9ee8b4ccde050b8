//! What a model's files say of themselves, read no further than their headers: a file of hundreds of gigabytes costs a few reads.

use std::io::{self, Read as _};

use camino::{Utf8Path, Utf8PathBuf};
use fettle_placement::estimate::config::ConfigError;
use fettle_placement::estimate::gguf::{self, GgufError, Header};
use fettle_placement::estimate::safetensors::{self, SafetensorsError};
use fettle_placement::estimate::weights::Weights;
use fettle_placement::estimate::{ModelFacts, config};
use fettle_placement::quantity::Bytes;

use super::bring::MAX_FILES;

const CONFIG: &str = "config.json";
/// Enough for most headers of safetensors, and for GGUF without its vocabulary.
const FIRST_READ: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    #[error("{0} has neither .safetensors nor .gguf files")]
    None(Utf8PathBuf),
    #[error("{0} has several models; name the file with `file` in its recipe")]
    Several(Utf8PathBuf),
    #[error("{0} has, or says that it has, more than {MAX_FILES} files: it is no model")]
    TooManyFiles(Utf8PathBuf),
    #[error("{0} ends within its header: it is cut off")]
    CutOff(Utf8PathBuf),
    #[error("{path} has {bytes} and its header speaks of {wanted}: it is cut off. Bring it again")]
    Truncated { path: Utf8PathBuf, bytes: Bytes, wanted: Bytes },
    #[error("the header of {path} has more than {} MiB", limit >> 20)]
    TooLong { path: Utf8PathBuf, limit: u64 },
    #[error("{path} cannot be read as GGUF")]
    Gguf { path: Utf8PathBuf, source: GgufError },
    #[error("{path} cannot be read as safetensors")]
    Safetensors { path: Utf8PathBuf, source: SafetensorsError },
    #[error("{path} beside the weights cannot be used")]
    Config { path: Utf8PathBuf, source: ConfigError },
    #[error("a model's files cannot be read")]
    Io(#[from] io::Error),
}

pub(super) fn is_weights(name: &str) -> bool {
    is_gguf(name) || name.ends_with(".safetensors")
}

pub(super) fn is_gguf(name: &str) -> bool {
    name.ends_with(".gguf")
}

/// What the files at `path` are: one GGUF file, the first of several, or a folder.
pub fn facts(path: &Utf8Path) -> Result<ModelFacts, WeightsError> {
    if fs_err::metadata(path)?.is_dir() { folder(path) } else { gguf_model(path) }
}

fn folder(path: &Utf8Path) -> Result<ModelFacts, WeightsError> {
    let mut files = Vec::new();
    for entry in path.read_dir_utf8()? {
        files.push(entry?.into_path());
        if files.len() > MAX_FILES {
            return Err(WeightsError::TooManyFiles(path.to_owned()));
        }
    }
    files.sort();
    let of = |extension: &str| files.iter().filter(|file| file.extension() == Some(extension)).collect::<Vec<_>>();
    let (tensors, ggufs) = (of("safetensors"), of("gguf"));
    match (tensors.as_slice(), ggufs.as_slice()) {
        ([], []) => Err(WeightsError::None(path.to_owned())),
        ([], [first, rest @ ..]) if rest.is_empty() || numbers(first).is_some() => gguf_model(first),
        ([], _) => Err(WeightsError::Several(path.to_owned())),
        (tensors, _) => {
            let mut weights = Weights::default();
            for file in tensors {
                weights.merge(&tensors_of(file)?);
            }
            let json = path.join(CONFIG);
            let arch = config::facts(&beginning(&json, config::MAX_CONFIG as u64 + 1)?)
                .map_err(|source| WeightsError::Config { path: json, source })?;
            Ok(ModelFacts { arch, weights })
        }
    }
}

fn gguf_model(first: &Utf8Path) -> Result<ModelFacts, WeightsError> {
    let headers = split(first)?.iter().map(|file| gguf_header(file)).collect::<Result<Vec<Header>, _>>()?;
    let [first_header, others @ ..] = headers.as_slice() else { return Err(WeightsError::None(first.to_owned())) };
    first_header.model(others).map_err(|source| WeightsError::Gguf { path: first.to_owned(), source })
}

/// Of `name-00001-of-00003.gguf`: `name`, and 3.
fn numbers(file: &Utf8Path) -> Option<(&str, usize)> {
    let (rest, total) = file.file_stem()?.rsplit_once("-of-")?;
    let (name, number) = rest.rsplit_once('-')?;
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(number) && is_number(total)).then_some((name, total.parse().ok()?))
}

/// All files of the model that begins with `first`.
fn split(first: &Utf8Path) -> Result<Vec<Utf8PathBuf>, WeightsError> {
    let Some((name, total)) = numbers(first) else { return Ok(vec![first.to_owned()]) };
    if total > MAX_FILES {
        return Err(WeightsError::TooManyFiles(first.to_owned()));
    }
    let folder = first.parent().unwrap_or(Utf8Path::new("."));
    Ok((1..=total).map(|nth| folder.join(format!("{name}-{nth:05}-of-{total:05}.gguf"))).collect())
}

fn gguf_header(path: &Utf8Path) -> Result<Header, WeightsError> {
    let mut read = FIRST_READ;
    loop {
        match gguf::header(&beginning(path, read)?) {
            Ok(header) => return is_whole(path, header.file).map(|()| header),
            Err(GgufError::Short { wanted }) => read = more(path, read, wanted, gguf::MAX_HEADER)?,
            Err(source) => return Err(WeightsError::Gguf { path: path.to_owned(), source }),
        }
    }
}

fn tensors_of(path: &Utf8Path) -> Result<Weights, WeightsError> {
    let mut read = FIRST_READ;
    loop {
        match safetensors::header(&beginning(path, read)?) {
            Ok(header) => return is_whole(path, header.file).map(|()| header.weights),
            Err(SafetensorsError::Short { wanted }) => read = more(path, read, wanted, safetensors::MAX_HEADER + 8)?,
            Err(source) => return Err(WeightsError::Safetensors { path: path.to_owned(), source }),
        }
    }
}

/// An engine would find it only after it has read all the rest, and may not say so.
fn is_whole(path: &Utf8Path, wanted: Bytes) -> Result<(), WeightsError> {
    let bytes = Bytes::new(fs_err::metadata(path)?.len());
    if bytes < wanted { Err(WeightsError::Truncated { path: path.to_owned(), bytes, wanted }) } else { Ok(()) }
}

/// How much to read next: at least twice as much, or a header in small steps would be read a thousand times.
fn more(path: &Utf8Path, read: u64, wanted: u64, limit: u64) -> Result<u64, WeightsError> {
    if read >= fs_err::metadata(path)?.len() {
        return Err(WeightsError::CutOff(path.to_owned()));
    }
    if wanted > limit {
        return Err(WeightsError::TooLong { path: path.to_owned(), limit });
    }
    Ok(wanted.max(read.saturating_mul(2)).min(limit))
}

fn beginning(path: &Utf8Path, bytes: u64) -> io::Result<Vec<u8>> {
    let mut read = Vec::new();
    fs_err::File::open(path)?.take(bytes).read_to_end(&mut read)?;
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_a_split_model_are_found_by_their_numbers() {
        let files = split(Utf8Path::new("/m/big-00001-of-00003.gguf")).unwrap();
        assert_eq!(files, ["/m/big-00001-of-00003.gguf", "/m/big-00002-of-00003.gguf", "/m/big-00003-of-00003.gguf"]);
        assert_eq!(split(Utf8Path::new("/m/a-of-b.gguf")).unwrap(), ["/m/a-of-b.gguf"]);
        assert!(matches!(split(Utf8Path::new("/m/big-00001-of-99999.gguf")), Err(WeightsError::TooManyFiles(_))));
    }

    #[test]
    fn a_cut_off_file_is_told_as_such() {
        let folder = tempfile::tempdir().unwrap();
        let file = Utf8PathBuf::from_path_buf(folder.path().join("m.gguf")).unwrap();
        fs_err::write(&file, b"GGUF\x03\0\0\0").unwrap();
        assert!(matches!(facts(&file), Err(WeightsError::CutOff(path)) if path == file));
    }

    #[test]
    fn a_folder_without_a_model_is_told_as_such() {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(folder.path()).unwrap();
        assert!(matches!(facts(path), Err(WeightsError::None(_))));
    }
}
