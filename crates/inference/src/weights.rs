//! Reads the headers of a model's files, never its weights: a file of hundreds of gigabytes costs a few reads.

use std::io::Read as _;

use anyhow::{Context as _, Result, bail, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use fettle_placement::estimate::gguf::{self, GgufError, Header};
use fettle_placement::estimate::safetensors::{self, SafetensorsError};
use fettle_placement::estimate::weights::Weights;
use fettle_placement::estimate::{ModelFacts, config};

/// Enough for most headers of safetensors, and for GGUF without its vocabulary.
const FIRST_READ: u64 = 1 << 20;
/// The largest published models have fewer than two hundred.
const MAX_FILES: usize = 1_000;

/// What the files at `path` are: one GGUF file, the first of several, or a folder.
pub fn facts(path: &Utf8Path) -> Result<ModelFacts> {
    if fs_err::metadata(path)?.is_dir() { folder(path) } else { gguf_model(path) }
}

fn folder(path: &Utf8Path) -> Result<ModelFacts> {
    let mut files = Vec::new();
    for entry in path.read_dir_utf8().with_context(|| format!("while reading {path}"))? {
        files.push(entry?.into_path());
        ensure!(files.len() <= MAX_FILES, "{path} has more than {MAX_FILES} files: it is no model's folder");
    }
    files.sort();
    let of = |extension: &str| files.iter().filter(|file| file.extension() == Some(extension)).collect::<Vec<_>>();
    let (tensors, ggufs) = (of("safetensors"), of("gguf"));
    match (tensors.as_slice(), ggufs.as_slice()) {
        ([], []) => bail!("{path} has neither .safetensors nor .gguf files"),
        ([], [first, rest @ ..]) => {
            ensure!(
                rest.is_empty() || is_split(first),
                "{path} has several models; name the file with `file` in its recipe"
            );
            gguf_model(first)
        }
        (tensors, _) => {
            let arch = config::facts(&fs_err::read(path.join("config.json"))?)?;
            let mut weights = Weights::default();
            for file in tensors {
                weights.merge(&tensors_of(file).with_context(|| format!("in {file}"))?);
            }
            Ok(ModelFacts { arch, weights })
        }
    }
}

fn gguf_model(first: &Utf8Path) -> Result<ModelFacts> {
    let headers = split(first)?
        .iter()
        .map(|file| gguf_header(file).with_context(|| format!("in {file}")))
        .collect::<Result<Vec<Header>>>()?;
    let [first_header, others @ ..] = headers.as_slice() else { bail!("{first} is no file") };
    Ok(first_header.model(others)?)
}

fn is_split(file: &Utf8Path) -> bool {
    numbers(file).is_some()
}

/// Of `name-00001-of-00003.gguf`: `name`, and 3.
fn numbers(file: &Utf8Path) -> Option<(&str, usize)> {
    let (rest, total) = file.file_stem()?.rsplit_once("-of-")?;
    let (name, number) = rest.rsplit_once('-')?;
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(number) && is_number(total)).then_some((name, total.parse().ok()?))
}

/// All files of the model that begins with `first`.
fn split(first: &Utf8Path) -> Result<Vec<Utf8PathBuf>> {
    let Some((name, total)) = numbers(first) else { return Ok(vec![first.to_owned()]) };
    ensure!(total <= MAX_FILES, "{first} says that there are {total} files: it is no model");
    let folder = first.parent().unwrap_or(Utf8Path::new("."));
    Ok((1..=total).map(|nth| folder.join(format!("{name}-{nth:05}-of-{total:05}.gguf"))).collect())
}

fn gguf_header(file: &Utf8Path) -> Result<Header> {
    let mut read = FIRST_READ;
    loop {
        match gguf::header(&beginning(file, read)?) {
            Ok(header) => return Ok(header),
            Err(GgufError::Short { wanted }) => read = more(file, read, wanted, gguf::MAX_HEADER)?,
            Err(error) => return Err(error.into()),
        }
    }
}

fn tensors_of(file: &Utf8Path) -> Result<Weights> {
    let mut read = FIRST_READ;
    loop {
        match safetensors::weights(&beginning(file, read)?) {
            Ok(weights) => return Ok(weights),
            Err(SafetensorsError::Short { wanted }) => read = more(file, read, wanted, safetensors::MAX_HEADER + 8)?,
            Err(error) => return Err(error.into()),
        }
    }
}

/// How much to read next: at least twice as much, or a header in small steps would be read a thousand times.
fn more(file: &Utf8Path, read: u64, wanted: u64, limit: u64) -> Result<u64> {
    let length = fs_err::metadata(file)?.len();
    ensure!(read < length, "the file ends within its header: it is cut off");
    ensure!(wanted <= limit, "its header has more than {} MiB", limit >> 20);
    Ok(wanted.max(read * 2).min(limit))
}

fn beginning(file: &Utf8Path, bytes: u64) -> Result<Vec<u8>> {
    let mut read = Vec::new();
    fs_err::File::open(file)?.take(bytes).read_to_end(&mut read)?;
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
        assert!(split(Utf8Path::new("/m/big-00001-of-99999.gguf")).is_err());
    }

    #[test]
    fn a_cut_off_file_is_told_as_such() {
        let folder = tempfile::tempdir().unwrap();
        let file = Utf8PathBuf::from_path_buf(folder.path().join("m.gguf")).unwrap();
        fs_err::write(&file, b"GGUF\x03\0\0\0").unwrap();
        let error = format!("{:#}", facts(&file).unwrap_err());
        assert!(error.contains("cut off"), "{error}");
    }

    #[test]
    fn a_folder_without_a_model_is_told_as_such() {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(folder.path()).unwrap();
        assert!(facts(path).unwrap_err().to_string().contains("neither .safetensors nor .gguf"));
    }
}
